//! The compression function of MD5 (RFC 1321) over eight messages at once.
//!
//! One message is a chain of dependent steps and leaves most of a core idle; eight independent ones fill
//! it. The code is plain Rust over arrays of eight words, which the compiler turns into vector
//! instructions: with AVX-512's rotate and 256-bit registers, eight blocks take hardly longer than one.

/// Messages hashed side by side.
pub const LANES: usize = 8;

/// Bytes of a block.
pub const BLOCK_BYTES: usize = 64;

/// A chaining value.
pub type State = [u32; 4];

/// The chaining value before the first block.
pub const INITIAL: State = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476];

/// One word of each of N messages.
type Words<const N: usize> = [u32; N];

const SHIFTS: [[u32; 4]; 4] = [[7, 12, 17, 22], [5, 9, 14, 20], [4, 11, 16, 23], [6, 10, 15, 21]];

/// The integer parts of 2^32 × |sin(i + 1)|.
#[rustfmt::skip]
const SINES: [u32; 64] = [
    0xd76aa478, 0xe8c7b756, 0x242070db, 0xc1bdceee, 0xf57c0faf, 0x4787c62a, 0xa8304613, 0xfd469501,
    0x698098d8, 0x8b44f7af, 0xffff5bb1, 0x895cd7be, 0x6b901122, 0xfd987193, 0xa679438e, 0x49b40821,
    0xf61e2562, 0xc040b340, 0x265e5a51, 0xe9b6c7aa, 0xd62f105d, 0x02441453, 0xd8a1e681, 0xe7d3fbc8,
    0x21e1cde6, 0xc33707d6, 0xf4d50d87, 0x455a14ed, 0xa9e3e905, 0xfcefa3f8, 0x676f02d9, 0x8d2a4c8a,
    0xfffa3942, 0x8771f681, 0x6d9d6122, 0xfde5380c, 0xa4beea44, 0x4bdecfa9, 0xf6bb4b60, 0xbebfbc70,
    0x289b7ec6, 0xeaa127fa, 0xd4ef3085, 0x04881d05, 0xd9d4d039, 0xe6db99e5, 0x1fa27cf8, 0xc4ac5665,
    0xf4292244, 0x432aff97, 0xab9423a7, 0xfc93a039, 0x655b59c3, 0x8f0ccc92, 0xffeff47d, 0x85845dd1,
    0x6fa87e4f, 0xfe2ce6e0, 0xa3014314, 0x4e0811a1, 0xf7537e82, 0xbd3af235, 0x2ad7d2bb, 0xeb86d391,
];

/// Returns from how many messages on [`compress_many`] is faster than [`compress_one`] for each: measured
/// as 0.6 of its time for two messages with AVX-512 and 0.7 for six without
/// (`cargo test -p plinth-gateway measure_lanes -- --ignored --nocapture`).
pub fn worth_it_from() -> usize {
    if has_rotate() { 2 } else { 6 }
}

/// Returns whether the processor rotates and mixes three words in one instruction each.
fn has_rotate() -> bool {
    is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vl")
}

/// Takes the first `blocks` blocks of each message into its chaining value; lanes beyond the messages
/// given stay idle.
pub fn compress_many(messages: &mut [(State, &[u8])], blocks: usize) {
    assert!(!messages.is_empty() && messages.len() <= LANES);
    // An idle lane works on the first message's bytes, and its result is dropped.
    let data: [&[u8]; LANES] = std::array::from_fn(|lane| messages.get(lane).unwrap_or(&messages[0]).1);
    let mut state = [[0u32; LANES]; 4];
    for (lane, (one, _)) in messages.iter().enumerate() {
        for (words, word) in state.iter_mut().zip(one) {
            words[lane] = *word;
        }
    }
    if has_rotate() {
        // SAFETY: the processor has the features.
        unsafe { compress_with_rotate(&mut state, &data, blocks) };
    } else {
        compress_blocks(&mut state, &data, blocks);
    }
    for (lane, (one, _)) in messages.iter_mut().enumerate() {
        for (words, word) in state.iter().zip(one) {
            *word = words[lane];
        }
    }
}

/// Takes the whole blocks of one message into its chaining value.
pub fn compress_one(state: &mut State, bytes: &[u8]) {
    let mut one = state.map(|word| [word]);
    compress_blocks(&mut one, &[bytes], bytes.len() / BLOCK_BYTES);
    *state = one.map(|[word]| word);
}

#[target_feature(enable = "avx512f,avx512vl")]
fn compress_with_rotate(state: &mut [Words<LANES>; 4], data: &[&[u8]; LANES], blocks: usize) {
    compress_blocks(state, data, blocks);
}

#[inline(always)]
fn compress_blocks<const N: usize>(state: &mut [Words<N>; 4], data: &[&[u8]; N], blocks: usize) {
    for block in 0..blocks {
        let mut message = [[0u32; N]; 16];
        for (lane, bytes) in data.iter().enumerate() {
            let bytes = &bytes[block * BLOCK_BYTES..(block + 1) * BLOCK_BYTES];
            for (words, word) in message.iter_mut().zip(bytes.chunks_exact(4)) {
                words[lane] = u32::from_le_bytes(word.try_into().expect("chunks of four bytes"));
            }
        }
        compress(state, &message);
    }
}

#[inline(always)]
fn compress<const N: usize>(state: &mut [Words<N>; 4], message: &[Words<N>; 16]) {
    let mut now = *state;
    round::<0, N>(&mut now, message, |x, y, z| z ^ (x & (y ^ z)));
    round::<1, N>(&mut now, message, |x, y, z| y ^ (z & (x ^ y)));
    round::<2, N>(&mut now, message, |x, y, z| x ^ y ^ z);
    round::<3, N>(&mut now, message, |x, y, z| y ^ (x | !z));
    for (words, added) in state.iter_mut().zip(&now) {
        for (word, added) in words.iter_mut().zip(added) {
            *word = word.wrapping_add(*added);
        }
    }
}

/// Sixteen steps. The order of the four words turns with every step; after four it is back.
#[inline(always)]
fn round<const ROUND: usize, const N: usize>(
    state: &mut [Words<N>; 4],
    message: &[Words<N>; 16],
    mix: impl Fn(u32, u32, u32) -> u32 + Copy,
) {
    for step in 0..16 {
        let word = match ROUND {
            0 => step,
            1 => (5 * step + 1) % 16,
            2 => (3 * step + 5) % 16,
            _ => (7 * step) % 16,
        };
        let [a, b, c, d] = *state;
        let mut next = [0u32; N];
        for lane in 0..N {
            let sum = a[lane]
                .wrapping_add(mix(b[lane], c[lane], d[lane]))
                .wrapping_add(message[word][lane])
                .wrapping_add(SINES[ROUND * 16 + step]);
            next[lane] = b[lane].wrapping_add(sum.rotate_left(SHIFTS[ROUND][step % 4]));
        }
        *state = [d, next, b, c];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes_of(lane: usize, count: usize) -> Vec<u8> {
        (0..count).map(|i| (i * 7 + lane * 31) as u8).collect()
    }

    #[test]
    fn lanes_agree_with_one_message_alone() {
        let bytes: Vec<Vec<u8>> = (0..LANES).map(|lane| bytes_of(lane, 640)).collect();
        for count in 1..=LANES {
            let mut many: Vec<(State, &[u8])> = bytes[..count].iter().map(|bytes| (INITIAL, &bytes[..])).collect();
            compress_many(&mut many, 10);
            for (state, bytes) in many {
                let mut alone = INITIAL;
                compress_one(&mut alone, bytes);
                assert_eq!(state, alone);
            }
        }
    }

    #[test]
    fn lanes_without_the_rotate_instruction_agree_too() {
        let bytes: Vec<Vec<u8>> = (0..LANES).map(|lane| bytes_of(lane, 640)).collect();
        let data: [&[u8]; LANES] = std::array::from_fn(|lane| &bytes[lane][..]);
        let mut state = INITIAL.map(|word| [word; LANES]);
        compress_blocks(&mut state, &data, 10);
        for (lane, bytes) in bytes.iter().enumerate() {
            let mut alone = INITIAL;
            compress_one(&mut alone, bytes);
            assert_eq!(state.map(|words| words[lane]), alone);
        }
    }

    #[test]
    #[ignore = "a measurement"]
    #[expect(clippy::disallowed_methods, reason = "a measurement reads the clock")]
    fn measure_lanes() {
        const BYTES: usize = 1 << 20;
        let bytes: Vec<Vec<u8>> = (0..LANES).map(|lane| bytes_of(lane, BYTES)).collect();
        let seconds = |work: &mut dyn FnMut()| {
            let runs = (0..9).map(|_| {
                let started = std::time::Instant::now();
                work();
                started.elapsed().as_secs_f64()
            });
            runs.fold(f64::INFINITY, f64::min)
        };
        let alone = seconds(&mut || compress_one(&mut INITIAL.clone(), std::hint::black_box(&bytes[0])));
        println!("alone: {:.2} GiB/s", BYTES as f64 / alone / (1u64 << 30) as f64);
        for count in 1..=LANES {
            let many = seconds(&mut || {
                let mut many: Vec<(State, &[u8])> = bytes[..count].iter().map(|bytes| (INITIAL, &bytes[..])).collect();
                compress_many(std::hint::black_box(&mut many), BYTES / BLOCK_BYTES);
            });
            println!("{count} together: {:.2} of the time of one alone, each", many / count as f64 / alone);
        }
        let data: [&[u8]; LANES] = std::array::from_fn(|lane| &bytes[lane][..]);
        let mut state = INITIAL.map(|word| [word; LANES]);
        let plain = seconds(&mut || compress_blocks(std::hint::black_box(&mut state), &data, BYTES / BLOCK_BYTES));
        for count in [3, 4, LANES] {
            println!("{count} together without the rotate instruction: {:.2}", plain / count as f64 / alone);
        }
    }
}
