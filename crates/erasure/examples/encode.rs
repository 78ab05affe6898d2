//! Prints how fast codes encode and rebuild 64 KiB cells on one thread, in GB/s of data.

#![allow(clippy::disallowed_methods)] // A stopwatch.

use plinth_erasure::{Codec, MATRIX_VANDERMONDE, Shape};
use std::time::Instant;

const CELL_BYTES: usize = 65_520;
const ROUNDS: usize = 4000;

fn main() {
    for (k, m) in [(3u8, 2u8), (4, 2), (8, 3), (10, 4)] {
        let codec = Codec::get(Shape { matrix: MATRIX_VANDERMONDE, k, m }).expect("a code of the table");
        let data = vec![vec![0x5au8; CELL_BYTES]; usize::from(k)];
        let mut parity = vec![vec![0u8; CELL_BYTES]; usize::from(m)];
        let inputs: Vec<&[u8]> = data.iter().map(Vec::as_slice).collect();
        let mut outputs: Vec<&mut [u8]> = parity.iter_mut().map(Vec::as_mut_slice).collect();
        let started = Instant::now();
        for _ in 0..ROUNDS {
            codec.encode(std::hint::black_box(&inputs), &mut outputs);
        }
        let encode = (ROUNDS * CELL_BYTES * usize::from(k)) as f64 / started.elapsed().as_secs_f64() / 1e9;
        let left: Vec<u8> = (1..=k).collect();
        let plan = codec.plan(k, &left, &[0]).expect("k fragments are left");
        let mut cells: Vec<&[u8]> = inputs[1..].to_vec();
        cells.push(outputs[0]);
        let mut out = vec![0u8; CELL_BYTES];
        let started = Instant::now();
        for _ in 0..ROUNDS {
            plan.rebuild(0, std::hint::black_box(&cells), &mut out);
        }
        let rebuild = (ROUNDS * CELL_BYTES * usize::from(k)) as f64 / started.elapsed().as_secs_f64() / 1e9;
        println!("{k}+{m}: encode {encode:.1} GB/s, rebuild one {rebuild:.1} GB/s of input");
    }
}
