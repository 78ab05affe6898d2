//! Seeded changes of valid encodings, for the fuzz bodies of the crates: the same seed gives the
//! same changes everywhere. Shared by path, as `golden.rs` is.

/// Integers that break arithmetic, as varints.
const EDGES: [u64; 12] = [
    0,
    1,
    0x7f,
    0x80,
    u16::MAX as u64,
    u32::MAX as u64,
    1 << 32,
    1 << 48,
    1 << 63,
    i64::MAX as u64,
    u64::MAX - 1,
    u64::MAX,
];
/// Longest input that a body is given: bounds memory and time.
const INPUT_BYTES_MAX: usize = 64 << 10;

/// A small generator of numbers (SplitMix64).
pub struct Numbers(pub u64);

impl Numbers {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ word >> 31
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
    out
}

/// Length of the varint at the front.
fn varint_length(bytes: &[u8]) -> usize {
    bytes.iter().position(|byte| byte & 0x80 == 0).map_or(bytes.len(), |at| at + 1)
}

/// Changes a few places: a flipped bit, a byte, an integer of the edge kind put in place of a whole
/// value with its length, a piece cut out, doubled, or taken from another sample.
pub fn change(numbers: &mut Numbers, corpus: &[Vec<u8>], sample: &[u8]) -> Vec<u8> {
    let mut bytes = sample.to_vec();
    for _ in 0..=numbers.below(3) {
        let at = numbers.below(bytes.len());
        let some = numbers.below(16).min(bytes.len() - at.min(bytes.len()));
        match numbers.below(7) {
            0 if !bytes.is_empty() => bytes[at] ^= 1 << numbers.below(8),
            1 if !bytes.is_empty() => bytes[at] = numbers.next() as u8,
            2 | 3 if !bytes.is_empty() => {
                let mut edge = varint(EDGES[numbers.below(EDGES.len())]);
                // A value behind its length, or the integer alone. Often one as long as the old one, so that the
                // lengths of all that surrounds it stay right.
                let old = bytes[at] as usize;
                let fitting: Vec<_> = EDGES.map(varint).into_iter().filter(|edge| edge.len() == old).collect();
                if !fitting.is_empty() && numbers.below(4) > 0 {
                    edge = fitting[numbers.below(fitting.len())].clone();
                }
                match bytes.get(at + 1..at + 1 + old) {
                    Some(value) if old > 0 && varint_length(value) == old => {
                        bytes.splice(at..at + 1 + old, std::iter::once(edge.len() as u8).chain(edge));
                    }
                    _ => drop(bytes.splice(at..at + varint_length(&bytes[at..]), edge)),
                }
            }
            4 => drop(bytes.drain(at..at + some)),
            5 => {
                let piece = bytes[at..at + some].to_vec();
                bytes.splice(at..at, piece);
            }
            _ => {
                let other = &corpus[numbers.below(corpus.len())];
                let from = numbers.below(other.len());
                let piece = other[from..(from + some).min(other.len())].to_vec();
                bytes.splice(at..at + some, piece);
            }
        }
    }
    bytes.truncate(INPUT_BYTES_MAX);
    bytes
}

/// Runs a body on `runs` changes of each sample; tells the seed and the bytes where it panics.
pub fn each_change(corpus: &[Vec<u8>], runs: u64, body: impl Fn(&[u8])) {
    let seed = setting("PLINTH_SEED").unwrap_or(13);
    let runs = setting("PLINTH_FUZZ_RUNS").unwrap_or(runs);
    let mut numbers = Numbers(seed);
    for sample in corpus {
        for _ in 0..runs {
            let bytes = change(&mut numbers, corpus, sample);
            let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| body(&bytes)));
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            assert!(caught.is_ok(), "seed {seed}: panics on {hex}");
        }
    }
}
