//! Fixed-place little-endian integers in a block.

/// Writes `value` at `offset`.
pub(crate) fn put<const N: usize>(block: &mut [u8], offset: usize, value: [u8; N]) {
    block[offset..offset + N].copy_from_slice(&value);
}

/// Reads N bytes at `offset`.
pub(crate) fn get<const N: usize>(block: &[u8], offset: usize) -> [u8; N] {
    block[offset..offset + N].try_into().expect("a range of N bytes has N bytes")
}

/// Reads a 32-bit integer at `offset`.
pub(crate) fn u32_at(block: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(get(block, offset))
}

/// Reads a 64-bit integer at `offset`.
pub(crate) fn u64_at(block: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(get(block, offset))
}

/// Writes the CRC-32 of everything before `offset` at `offset`.
pub(crate) fn put_crc(block: &mut [u8], offset: usize) {
    let crc = crc32fast::hash(&block[..offset]);
    put(block, offset, crc.to_le_bytes());
}

/// Returns whether the CRC-32 at `offset` fits everything before it.
pub(crate) fn crc_fits(block: &[u8], offset: usize) -> bool {
    crc32fast::hash(&block[..offset]) == u32_at(block, offset)
}
