//! Sums of multipart objects: the ETag over the parts' MD5s, composite checksums over the parts'
//! checksums, and CRCs of the whole object combined from the parts' CRCs (E1, K2).

use aws_lc_rs::digest;
use bytes::Bytes;
use crc_fast::CrcAlgorithm;
use md5::{Digest, Md5};
use plinth_protocol::meta::{CompletePart, CompleteUpload};
use plinth_protocol::object::{Checksum, ChecksumAlgorithm, ChecksumKind, Etag};
use plinth_protocol::wire::Wire;
use std::collections::BTreeMap;

/// Returns the kind that an upload's checksum has: the one asked for, else the algorithm's default.
/// None where the pair is impossible.
pub(super) fn kind_of(algorithm: ChecksumAlgorithm, asked: Option<ChecksumKind>) -> Option<ChecksumKind> {
    use ChecksumAlgorithm::*;
    use ChecksumKind::*;
    match (algorithm, asked) {
        (Crc64Nvme, None | Some(FullObject)) => Some(FullObject),
        (Sha1 | Sha256, None | Some(Composite)) => Some(Composite),
        (Crc32 | Crc32c, kind) => Some(kind.unwrap_or(Composite)),
        (Crc64Nvme, Some(Composite)) | (Sha1 | Sha256, Some(FullObject)) => None,
    }
}

/// Returns the bytes of a checksum value.
pub(super) fn value_bytes(algorithm: ChecksumAlgorithm) -> usize {
    match algorithm {
        ChecksumAlgorithm::Crc32 | ChecksumAlgorithm::Crc32c => 4,
        ChecksumAlgorithm::Crc64Nvme => 8,
        ChecksumAlgorithm::Sha1 => 20,
        ChecksumAlgorithm::Sha256 => 32,
    }
}

/// Returns the ETag of an object made of parts with these MD5s.
pub(super) fn etag<'a>(parts: impl ExactSizeIterator<Item = &'a [u8; 16]>) -> Etag {
    let count = u16::try_from(parts.len()).unwrap_or(u16::MAX);
    let mut hash = Md5::new();
    for md5 in parts {
        hash.update(md5);
    }
    Etag { md5: hash.finalize().into(), parts: Some(count) }
}

/// Returns the checksum of an object made of parts of these sizes with these checksums, each of
/// [`value_bytes`] length.
pub(super) fn checksum(algorithm: ChecksumAlgorithm, kind: ChecksumKind, parts: &[(u64, &[u8])]) -> Checksum {
    match kind {
        ChecksumKind::Composite => {
            Checksum { algorithm, kind, value: composite(algorithm, parts), parts: u16::try_from(parts.len()).ok() }
        }
        ChecksumKind::FullObject => Checksum { algorithm, kind, value: full_object(algorithm, parts), parts: None },
    }
}

fn composite(algorithm: ChecksumAlgorithm, parts: &[(u64, &[u8])]) -> Bytes {
    let joined: Vec<u8> = parts.iter().flat_map(|(_, value)| value.iter().copied()).collect();
    match algorithm {
        ChecksumAlgorithm::Sha1 => {
            Bytes::copy_from_slice(digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, &joined).as_ref())
        }
        ChecksumAlgorithm::Sha256 => Bytes::copy_from_slice(digest::digest(&digest::SHA256, &joined).as_ref()),
        _ => crc_value(algorithm, crc_fast::checksum(crc(algorithm), &joined)),
    }
}

fn crc(algorithm: ChecksumAlgorithm) -> CrcAlgorithm {
    match algorithm {
        ChecksumAlgorithm::Crc32 => CrcAlgorithm::Crc32IsoHdlc,
        ChecksumAlgorithm::Crc32c => CrcAlgorithm::Crc32Iscsi,
        // Hashes are composite only (`kind_of`): nobody asks for their CRC.
        ChecksumAlgorithm::Crc64Nvme | ChecksumAlgorithm::Sha1 | ChecksumAlgorithm::Sha256 => CrcAlgorithm::Crc64Nvme,
    }
}

/// The big-endian form of a CRC, as S3 shows it.
fn crc_value(algorithm: ChecksumAlgorithm, sum: u64) -> Bytes {
    Bytes::copy_from_slice(&sum.to_be_bytes()[8usize.saturating_sub(value_bytes(algorithm))..])
}

fn crc_number(value: &[u8]) -> u64 {
    value.iter().fold(0, |sum, &byte| sum << 8 | u64::from(byte))
}

/// From here on parts of one length share a table: building it costs 64 combinations.
const TABLE_PARTS_MIN: usize = 128;

/// Combines the CRCs of adjoining parts. Appending a part of a given length is a linear map of the
/// CRC before it, so that the map of a length that many parts share is worked out once.
fn full_object(algorithm: ChecksumAlgorithm, parts: &[(u64, &[u8])]) -> Bytes {
    let crc = crc(algorithm);
    let mut lengths: BTreeMap<u64, usize> = BTreeMap::new();
    for (size, _) in parts {
        *lengths.entry(*size).or_default() += 1;
    }
    let shared = lengths.into_iter().filter(|(_, count)| *count >= TABLE_PARTS_MIN);
    let tables: BTreeMap<u64, Append> = shared.map(|(size, _)| (size, Append::new(crc, size))).collect();
    let mut parts = parts.iter();
    let Some((_, first)) = parts.next() else {
        return crc_value(algorithm, crc_fast::checksum(crc, &[]));
    };
    let sum = parts.fold(crc_number(first), |sum, (size, value)| match tables.get(size) {
        Some(table) => table.apply(sum) ^ crc_number(value),
        None => crc_fast::checksum_combine(crc, sum, crc_number(value), *size),
    });
    crc_value(algorithm, sum)
}

/// The map that a number of appended zero bytes makes of a CRC: affine over GF(2).
struct Append {
    of_zero: u64,
    of_bit: [u64; 64],
}

impl Append {
    fn new(crc: CrcAlgorithm, size: u64) -> Self {
        let of_zero = crc_fast::checksum_combine(crc, 0, 0, size);
        let bits = 8 * if matches!(crc, CrcAlgorithm::Crc64Nvme) { 8 } else { 4 };
        let mut of_bit = [0; 64];
        for (bit, entry) in of_bit.iter_mut().enumerate().take(bits) {
            *entry = crc_fast::checksum_combine(crc, 1 << bit, 0, size) ^ of_zero;
        }
        Append { of_zero, of_bit }
    }

    fn apply(&self, mut sum: u64) -> u64 {
        let mut result = self.of_zero;
        while sum != 0 {
            result ^= self.of_bit[sum.trailing_zeros() as usize];
            sum &= sum - 1;
        }
        result
    }
}

/// Returns the hash by which a repeated Complete is known: over object and part list (M5).
pub(super) fn list_hash(complete: &CompleteUpload) -> u128 {
    let mut bytes = complete.bucket.0.to_be_bytes().to_vec();
    let parts: Vec<CompletePart> = complete
        .parts
        .iter()
        .map(|part| CompletePart { etag: part.etag.trim_matches('"').to_ascii_lowercase(), ..part.clone() })
        .collect();
    plinth_protocol::wire::encode_counted(&complete.key, &mut bytes);
    parts.encode(&mut bytes);
    let hash = digest::digest(&digest::SHA256, &bytes);
    let head = hash.as_ref().iter().take(16);
    head.fold(0u128, |sum, byte| sum << 8 | u128::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crc_of(algorithm: ChecksumAlgorithm, bytes: &[u8]) -> Bytes {
        crc_value(algorithm, crc_fast::checksum(crc(algorithm), bytes))
    }

    /// Check values of the published catalogue of CRCs: the sum of "123456789".
    #[test]
    fn crcs_are_the_catalogues() {
        let check = |algorithm| crc_of(algorithm, b"123456789");
        assert_eq!(check(ChecksumAlgorithm::Crc32)[..], 0xcbf4_3926_u32.to_be_bytes());
        assert_eq!(check(ChecksumAlgorithm::Crc32c)[..], 0xe306_9283_u32.to_be_bytes());
        assert_eq!(check(ChecksumAlgorithm::Crc64Nvme)[..], 0xae8b_1486_0a79_9888_u64.to_be_bytes());
    }

    #[test]
    fn k2_full_object_crcs_are_combined_from_the_parts() {
        use ChecksumAlgorithm::*;
        let body: Vec<u8> = (0..60_000u32).map(|i| (i * 7 + i / 251) as u8).collect();
        // Uneven parts, and a run of equal ones that is long enough for a table.
        let cuts: Vec<usize> = [1usize, 4_000, 77].into_iter().chain(vec![300; TABLE_PARTS_MIN]).collect();
        for algorithm in [Crc32, Crc32c, Crc64Nvme] {
            let (mut rest, mut parts) = (&body[..], Vec::new());
            for &cut in &cuts {
                let (part, tail) = rest.split_at(cut);
                parts.push((part.len() as u64, crc_of(algorithm, part)));
                rest = tail;
            }
            parts.push((rest.len() as u64, crc_of(algorithm, rest)));
            let parts: Vec<(u64, &[u8])> = parts.iter().map(|(size, value)| (*size, &value[..])).collect();
            let sum = checksum(algorithm, ChecksumKind::FullObject, &parts);
            assert_eq!(sum.value, crc_of(algorithm, &body), "{algorithm:?}");
            assert_eq!(sum.parts, None);
        }
    }

    #[test]
    fn k2_composites_hash_the_parts_values() {
        let parts: Vec<(u64, &[u8])> = vec![(5, &[1; 32]), (6, &[2; 32])];
        let sum = checksum(ChecksumAlgorithm::Sha256, ChecksumKind::Composite, &parts);
        let joined = [[1u8; 32], [2u8; 32]].concat();
        assert_eq!(sum.value, digest::digest(&digest::SHA256, &joined).as_ref());
        assert_eq!(sum.parts, Some(2));
    }

    #[test]
    fn k2_impossible_pairs_are_none() {
        use ChecksumAlgorithm::*;
        use ChecksumKind::*;
        assert_eq!(kind_of(Crc64Nvme, Some(Composite)), None);
        assert_eq!(kind_of(Sha256, Some(FullObject)), None);
        assert_eq!(kind_of(Crc32, None), Some(Composite));
        assert_eq!(kind_of(Crc64Nvme, None), Some(FullObject));
    }

    /// MD5 of the MD5s of "a" and "b", worked out by hand with md5sum.
    #[test]
    fn e1_multipart_etag_is_the_md5_of_the_md5s() {
        let parts = [Md5::digest(b"a").into(), Md5::digest(b"b").into()];
        assert_eq!(etag(parts.iter()).to_string(), "96e024ba2074fe77e8e965ba43a704be-2");
    }
}
