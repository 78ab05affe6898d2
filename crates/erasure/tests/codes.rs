//! Any m losses rebuild, one more is refused, and matrix 1 is what it was.

#![allow(clippy::disallowed_methods, clippy::unwrap_used)] // The golden file is read and, on request, written.

#[path = "../../../tests/format/golden.rs"]
mod golden;

use plinth_erasure::{Codec, ErasureError, MATRIX_VANDERMONDE, Shape};
use proptest::prelude::*;
use proptest::sample::subsequence;

const CODES: [(u8, u8); 9] = [(1, 0), (1, 1), (1, 2), (2, 2), (3, 2), (4, 2), (6, 3), (8, 3), (10, 4)];

fn shape((k, m): (u8, u8)) -> Shape {
    Shape { matrix: MATRIX_VANDERMONDE, k, m }
}

/// Deterministic bytes that look like nothing in particular.
fn noise(seed: u64, count: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        })
        .collect()
}

fn encode(codec: &Codec, data: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let length = data.iter().map(Vec::len).max().unwrap();
    let mut parity = vec![vec![0xee; length]; usize::from(codec.shape().m)];
    let inputs: Vec<&[u8]> = data.iter().map(Vec::as_slice).collect();
    let mut outputs: Vec<&mut [u8]> = parity.iter_mut().map(Vec::as_mut_slice).collect();
    codec.encode(&inputs, &mut outputs);
    parity
}

#[derive(Debug, Clone)]
struct Case {
    code: (u8, u8),
    data: Vec<Vec<u8>>,
    /// Fragments that are left, in the order in which the reader prefers them.
    left: Vec<u8>,
    lost: Vec<u8>,
}

fn cases(spare: bool) -> impl Strategy<Value = Case> {
    (0..CODES.len(), any::<u64>(), 1usize..9000, 0usize..9000)
        .prop_flat_map(move |(code, seed, length, last)| {
            let code = CODES[code];
            (Just((code, seed, length, last.min(length).max(1))), 1..=code.0)
        })
        .prop_flat_map(move |((code, seed, length, last), data_count)| {
            let all: Vec<u8> = (0..data_count).chain(code.0..code.0 + code.1).collect();
            let left = usize::from(data_count) - usize::from(!spare);
            let kept = subsequence(all.clone(), left).prop_shuffle();
            (Just((code, seed, length, last, data_count, all)), kept)
        })
        .prop_map(|((code, seed, length, last, data_count, all), left)| {
            let data = (0..data_count).map(|index| {
                let short = data_count > 1 && index + 1 == data_count;
                noise(seed ^ u64::from(index), if short { last } else { length })
            });
            let lost = all.into_iter().filter(|index| !left.contains(index)).collect();
            Case { code, data: data.collect(), left, lost }
        })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_losses_up_to_m_rebuild_any_range(case in cases(true), from in 0usize..9000, count in 1usize..5000) {
        let codec = Codec::get(shape(case.code)).unwrap();
        let parity = encode(&codec, &case.data);
        let fragment = |index: u8| -> &[u8] {
            match index.checked_sub(case.code.0) {
                Some(parity_index) => &parity[usize::from(parity_index)],
                None => &case.data[usize::from(index)],
            }
        };
        let plan = codec.plan(case.data.len() as u8, &case.left, &case.lost).unwrap();
        let length = case.data[0].len();
        let range = from.min(length - 1)..(from + count).min(length).max(from.min(length - 1) + 1);
        let clip = |bytes: &'_ [u8]| -> (usize, usize) { (range.start.min(bytes.len()), range.end.min(bytes.len())) };
        let inputs: Vec<&[u8]> = plan.inputs().iter().map(|&index| {
            let bytes = fragment(index);
            let (start, end) = clip(bytes);
            &bytes[start..end]
        }).collect();
        for &index in plan.wanted() {
            let expected = fragment(index);
            let (start, end) = clip(expected);
            let mut out = vec![0x77; end - start];
            plan.rebuild(index, &inputs, &mut out);
            prop_assert_eq!(&out[..], &expected[start..end], "fragment {}", index);
        }
    }

    #[test]
    fn one_loss_too_many_is_refused(case in cases(false)) {
        let codec = Codec::get(shape(case.code)).unwrap();
        let refused = codec.plan(case.data.len() as u8, &case.left, &case.lost);
        prop_assert_eq!(refused, Err(ErasureError::TooFew { available: case.left.len(), needed: case.data.len() }));
    }
}

#[test]
fn fragments_that_a_stripe_lacks_are_refused() {
    let codec = Codec::get(shape((3, 2))).unwrap();
    assert_eq!(codec.plan(1, &[0, 1], &[3]), Err(ErasureError::NoSuchFragment(1)));
    assert_eq!(codec.plan(3, &[0, 1, 2], &[5]), Err(ErasureError::NoSuchFragment(5)));
    let twice = codec.plan(3, &[0, 0, 4], &[3]);
    assert_eq!(twice, Err(ErasureError::TooFew { available: 2, needed: 3 }));
}

#[test]
fn parity_of_matrix_1_is_golden() {
    let mut found = String::from("# code, data fragments, parity fragment: 48 bytes of parity over matrix 1\n");
    for code in CODES.into_iter().filter(|code| code.1 > 0) {
        for data_count in [1, code.0] {
            let data: Vec<_> = (0..data_count).map(|index| noise(u64::from(index) + 1, 48)).collect();
            for (index, cell) in encode(&Codec::get(shape(code)).unwrap(), &data).iter().enumerate() {
                let hex: String = cell.iter().map(|byte| format!("{byte:02x}")).collect();
                found += &format!("{}+{} {data_count} {} {hex}\n", code.0, code.1, usize::from(code.0) + index);
            }
        }
    }
    golden::assert_golden("erasure_parity.hex", &found);
}
