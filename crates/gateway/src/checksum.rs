//! The checksums of S3: computed while bytes pass, read from and written to headers.

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use plinth_protocol::object::{Checksum, ChecksumAlgorithm, ChecksumKind};

use crate::error::{Code, S3Error, S3Result};
use crate::hashing;

/// The five algorithms in the order of S3's documents.
pub const ALGORITHMS: [ChecksumAlgorithm; 5] = [
    ChecksumAlgorithm::Crc32,
    ChecksumAlgorithm::Crc32c,
    ChecksumAlgorithm::Crc64Nvme,
    ChecksumAlgorithm::Sha1,
    ChecksumAlgorithm::Sha256,
];

/// The spellings of an algorithm.
struct Names {
    /// In `x-amz-checksum-algorithm`.
    value: &'static str,
    header: &'static str,
    element: &'static str,
    bytes: usize,
}

fn names(algorithm: ChecksumAlgorithm) -> Names {
    let of = |value, header, element, bytes| Names { value, header, element, bytes };
    match algorithm {
        ChecksumAlgorithm::Crc32 => of("CRC32", "x-amz-checksum-crc32", "ChecksumCRC32", 4),
        ChecksumAlgorithm::Crc32c => of("CRC32C", "x-amz-checksum-crc32c", "ChecksumCRC32C", 4),
        ChecksumAlgorithm::Crc64Nvme => of("CRC64NVME", "x-amz-checksum-crc64nvme", "ChecksumCRC64NVME", 8),
        ChecksumAlgorithm::Sha1 => of("SHA1", "x-amz-checksum-sha1", "ChecksumSHA1", 20),
        ChecksumAlgorithm::Sha256 => of("SHA256", "x-amz-checksum-sha256", "ChecksumSHA256", 32),
    }
}

/// Returns the name as in `x-amz-checksum-algorithm`.
pub fn value_name(algorithm: ChecksumAlgorithm) -> &'static str {
    names(algorithm).value
}

/// Returns the header's name.
pub fn header_name(algorithm: ChecksumAlgorithm) -> &'static str {
    names(algorithm).header
}

/// Returns the XML element's name.
pub fn element_name(algorithm: ChecksumAlgorithm) -> &'static str {
    names(algorithm).element
}

/// Returns the name of a kind.
pub fn kind_name(kind: ChecksumKind) -> &'static str {
    match kind {
        ChecksumKind::FullObject => "FULL_OBJECT",
        ChecksumKind::Composite => "COMPOSITE",
    }
}

/// Reads an algorithm's name in any letter case.
///
/// # Errors
/// `InvalidRequest` naming the algorithm where it is not one of the five.
pub fn parse_algorithm(text: &str) -> S3Result<ChecksumAlgorithm> {
    let found = ALGORITHMS.into_iter().find(|algorithm| names(*algorithm).value.eq_ignore_ascii_case(text));
    found.ok_or_else(|| {
        Code::InvalidRequest.with(format!(
            "The checksum algorithm '{text}' is not supported; use CRC32, CRC32C, CRC64NVME, SHA1 or SHA256."
        ))
    })
}

/// Reads `FULL_OBJECT` or `COMPOSITE`.
///
/// # Errors
/// `InvalidRequest` for anything else.
pub fn parse_kind(text: &str) -> S3Result<ChecksumKind> {
    match text {
        "FULL_OBJECT" => Ok(ChecksumKind::FullObject),
        "COMPOSITE" => Ok(ChecksumKind::Composite),
        _ => Code::InvalidRequest.fail(format!("'{text}' is no checksum type.")),
    }
}

/// Returns the kind of a multipart upload's checksum: the one asked for, or the algorithm's default.
///
/// # Errors
/// `InvalidRequest` for a pair that S3 does not have (K2).
pub fn multipart_kind(algorithm: ChecksumAlgorithm, asked: Option<ChecksumKind>) -> S3Result<ChecksumKind> {
    use ChecksumAlgorithm as A;
    use ChecksumKind::{Composite, FullObject};
    let kind = asked.unwrap_or(if algorithm == A::Crc64Nvme { FullObject } else { Composite });
    match (algorithm, kind) {
        (A::Crc64Nvme, Composite) | (A::Sha1 | A::Sha256, FullObject) => Code::InvalidRequest.fail(format!(
            "The {} checksum type cannot be used with the {} checksum algorithm.",
            kind_name(kind),
            value_name(algorithm)
        )),
        _ => Ok(kind),
    }
}

/// Reads a checksum's base64 value. A composite one may carry `-N`, which is cut off and returned.
///
/// # Errors
/// `InvalidRequest` where it is not the algorithm's length in base64.
pub fn parse_value(algorithm: ChecksumAlgorithm, text: &str) -> S3Result<(Bytes, Option<u16>)> {
    let names = names(algorithm);
    let bad = || Code::InvalidRequest.with(format!("Value for {} header is invalid.", names.header));
    let (value, parts) = match text.split_once('-') {
        Some((value, parts)) => (value, Some(parts.parse().map_err(|_| bad())?)),
        None => (text, None),
    };
    let bytes = BASE64.decode(value).map_err(|_| bad())?;
    if bytes.len() != names.bytes {
        return Err(bad());
    }
    Ok((Bytes::from(bytes), parts))
}

/// Writes a checksum as headers and XML show it.
pub fn show(checksum: &Checksum) -> String {
    let mut text = BASE64.encode(&checksum.value);
    if let Some(parts) = checksum.parts {
        text.push('-');
        text.push_str(&parts.to_string());
    }
    text
}

/// Writes a part's checksum.
pub fn show_value(value: &[u8]) -> String {
    BASE64.encode(value)
}

/// Reads `Content-MD5`.
///
/// # Errors
/// `InvalidDigest` where it is not 16 bytes in base64.
pub fn parse_md5(text: &str) -> S3Result<[u8; 16]> {
    let bytes = BASE64.decode(text.trim()).map_err(|_| S3Error::from(Code::InvalidDigest))?;
    bytes.try_into().map_err(|_| Code::InvalidDigest.into())
}

/// A running checksum.
pub enum Running {
    /// One of the three CRCs.
    Crc(ChecksumAlgorithm, Box<crc_fast::Digest>),
    /// SHA-1 or SHA-256.
    Sha(ChecksumAlgorithm, Box<digest::Context>),
}

impl Running {
    /// Starts a checksum.
    pub fn new(algorithm: ChecksumAlgorithm) -> Self {
        let crc = |kind| Running::Crc(algorithm, Box::new(crc_fast::Digest::new(kind)));
        let sha = |kind| Running::Sha(algorithm, Box::new(digest::Context::new(kind)));
        match algorithm {
            ChecksumAlgorithm::Crc32 => crc(crc_fast::CrcAlgorithm::Crc32IsoHdlc),
            ChecksumAlgorithm::Crc32c => crc(crc_fast::CrcAlgorithm::Crc32Iscsi),
            ChecksumAlgorithm::Crc64Nvme => crc(crc_fast::CrcAlgorithm::Crc64Nvme),
            ChecksumAlgorithm::Sha1 => sha(&digest::SHA1_FOR_LEGACY_USE_ONLY),
            ChecksumAlgorithm::Sha256 => sha(&digest::SHA256),
        }
    }

    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Running::Crc(_, digest) => digest.update(bytes),
            Running::Sha(_, context) => context.update(bytes),
        }
    }

    /// Returns the checksum over everything taken, as a full-object checksum.
    pub fn finish(self) -> Checksum {
        let (algorithm, value) = match self {
            Running::Crc(algorithm, digest) => {
                let value = digest.finalize().to_be_bytes();
                let value = if algorithm == ChecksumAlgorithm::Crc64Nvme { &value[..] } else { &value[4..] };
                (algorithm, Bytes::copy_from_slice(value))
            }
            Running::Sha(algorithm, context) => (algorithm, Bytes::copy_from_slice(context.finish().as_ref())),
        };
        Checksum { algorithm, kind: ChecksumKind::FullObject, value, parts: None }
    }
}

/// Everything that is computed over a body while it passes.
pub struct BodySums {
    md5: hashing::Running,
    checksum: Option<Running>,
    /// A second algorithm that is only verified, where the stored one is another.
    verified: Option<Running>,
    size_bytes: u64,
}

/// What was computed over a body.
pub struct BodyDigest {
    /// For the ETag.
    pub md5: [u8; 16],
    /// The checksum to store.
    pub checksum: Option<Checksum>,
    /// Bytes of the body.
    pub size_bytes: u64,
}

/// What was computed over a body, its MD5 apart.
pub struct ContentDigest {
    /// The checksum to store.
    pub checksum: Option<Checksum>,
    /// The checksum that was only to be verified.
    pub verified: Option<Checksum>,
    /// Bytes of the body.
    pub size_bytes: u64,
}

impl BodySums {
    /// Starts. `stored` is kept with the object; `verified` is only compared.
    pub fn new(md5: hashing::Running, stored: Option<ChecksumAlgorithm>, verified: Option<ChecksumAlgorithm>) -> Self {
        BodySums {
            md5,
            checksum: stored.map(Running::new),
            verified: verified.filter(|verified| stored != Some(*verified)).map(Running::new),
            size_bytes: 0,
        }
    }

    /// Takes the next bytes; waits where the MD5 of a large body is behind.
    pub async fn update(&mut self, bytes: &Bytes) {
        if let Some(checksum) = &mut self.checksum {
            checksum.update(bytes);
        }
        if let Some(verified) = &mut self.verified {
            verified.update(bytes);
        }
        self.size_bytes += bytes.len() as u64;
        self.md5.update(bytes).await;
    }

    /// Ends; the MD5 of a large body may take a moment more.
    pub fn finish(self) -> (ContentDigest, hashing::Running) {
        let digest = ContentDigest {
            checksum: self.checksum.map(Running::finish),
            verified: self.verified.map(Running::finish),
            size_bytes: self.size_bytes,
        };
        (digest, self.md5)
    }
}

impl ContentDigest {
    /// Puts the MD5 beside the rest.
    pub fn with_md5(self, md5: [u8; 16]) -> BodyDigest {
        BodyDigest { md5, checksum: self.checksum, size_bytes: self.size_bytes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn k1_all_five_match_published_check_values() {
        // The customary check input of CRC catalogues.
        let want = [
            (ChecksumAlgorithm::Crc32, "cbf43926"),
            (ChecksumAlgorithm::Crc32c, "e3069283"),
            (ChecksumAlgorithm::Crc64Nvme, "ae8b14860a799888"),
            (ChecksumAlgorithm::Sha1, "f7c3bc1d808e04732adf679965ccc34ca7ae3441"),
            (ChecksumAlgorithm::Sha256, "15e2b0d3c33891ebb0f1ef609ec419420c20e320ce94c65fbc8c3312448eb225"),
        ];
        for (algorithm, hex) in want {
            let mut running = Running::new(algorithm);
            running.update(b"1234");
            running.update(b"56789");
            assert_eq!(crate::signature::hex(&running.finish().value), hex, "{algorithm:?}");
        }
    }

    #[test]
    fn k2_wrong_pairs_of_algorithm_and_type_are_refused() {
        use ChecksumAlgorithm as A;
        use ChecksumKind::{Composite, FullObject};
        for (algorithm, kind) in [(A::Crc64Nvme, Composite), (A::Sha1, FullObject), (A::Sha256, FullObject)] {
            assert_eq!(multipart_kind(algorithm, Some(kind)).expect_err("wrong").code(), Code::InvalidRequest);
        }
        assert_eq!(multipart_kind(A::Crc64Nvme, None).expect("default"), FullObject);
        assert_eq!(multipart_kind(A::Crc32, None).expect("default"), Composite);
        assert_eq!(multipart_kind(A::Crc32c, Some(FullObject)).expect("allowed"), FullObject);
    }

    #[test]
    fn k3_unreadable_values_are_refused() {
        assert_eq!(parse_md5("abc").expect_err("short").code(), Code::InvalidDigest);
        assert_eq!(parse_value(ChecksumAlgorithm::Crc32, "AAAA").expect_err("short").code(), Code::InvalidRequest);
        assert_eq!(parse_value(ChecksumAlgorithm::Crc32, "AAAAAA==-3").expect("composite").1, Some(3));
        assert_eq!(parse_algorithm("SHA512").expect_err("not yet").code(), Code::InvalidRequest);
    }
}
