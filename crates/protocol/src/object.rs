//! Objects, uploads and parts as the namespace keeps them.

use crate::ids::{BucketId, HybridTime, RequestId, UploadId};
use crate::record;
use crate::stripe::StripeRef;
use crate::{choice, numbered, wire};
use bytes::Bytes;
use std::fmt;

/// Longest key in bytes (S3).
pub const KEY_BYTES_MAX: usize = 1024;
/// Largest part number (S3).
pub const PART_NUMBER_MAX: u16 = 10_000;
/// Default of `inline_bytes_max`: up to here the bytes live in the metadata row.
pub const INLINE_BYTES_MAX: usize = 4096;

record! {
    /// An object's ETag: an MD5, and for multipart objects the number of parts.
    pub struct Etag {
        1 => md5: [u8; 16],
        2 => parts: Option<u16>,
    }
}

impl fmt::Display for Etag {
    /// Writes the tag without quotes, `-N` behind it for multipart objects.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.md5 {
            write!(f, "{byte:02x}")?;
        }
        match self.parts {
            Some(parts) => write!(f, "-{parts}"),
            None => Ok(()),
        }
    }
}

numbered! {
    /// The checksum algorithms of S3.
    pub enum ChecksumAlgorithm {
        /// CRC-32, IEEE polynomial.
        Crc32 = 1,
        /// CRC-32C, Castagnoli polynomial.
        Crc32c = 2,
        /// CRC-64/NVME.
        Crc64Nvme = 3,
        /// SHA-1.
        Sha1 = 4,
        /// SHA-256.
        Sha256 = 5,
    }
}

numbered! {
    /// What a checksum of a multipart object is over.
    pub enum ChecksumKind {
        /// Over the object's bytes.
        FullObject = 1,
        /// Over the parts' binary checksums.
        Composite = 2,
    }
}

record! {
    /// A checksum as stored: big-endian as S3 shows it in base64.
    pub struct Checksum {
        1 => algorithm: ChecksumAlgorithm,
        2 => kind: ChecksumKind,
        3 => value: Bytes,
        /// Number of parts behind a composite checksum.
        4 => parts: Option<u16>,
    }
}

record! {
    /// The row of an object's current version: what LIST and HEAD need.
    pub struct ObjectRow {
        1 => size_bytes: u64,
        2 => etag: Etag,
        /// Commit time, stamped by the leader.
        3 => modified: HybridTime,
        4 => checksum: Option<Checksum>,
        /// The upload that made it, where it was multipart: its part rows hold the stripes.
        5 => upload: Option<UploadId>,
        /// The request that made it: tells a retry its own work.
        6 => request: RequestId,
    }
}

record! {
    /// Headers stored with an object and returned verbatim: lower-case name, value.
    pub struct StoredHeaders {
        /// Content-Type, Cache-Control and their kin.
        1 => standard: Vec<(String, String)>,
        /// User metadata, without the `x-amz-meta-` prefix.
        2 => user: Vec<(String, String)>,
    }
}

choice! {
    /// Where an object's bytes are.
    pub enum Body {
        /// In the row itself.
        1 => Inline(Bytes),
        /// In stripes, one behind the other.
        2 => Stripes(Vec<StripeRef>),
        /// In the stripes of these parts, in order; ask for the part rows by upload.
        3 => Parts(Vec<PartSpan>),
    }
}

record! {
    /// One part in a finished object's manifest.
    pub struct PartSpan {
        1 => number: u16,
        2 => size_bytes: u64,
        3 => checksum: Option<Bytes>,
    }
}

record! {
    /// The part of an object that only its readers need, beside the row in a family of its own.
    pub struct ObjectBody {
        1 => headers: StoredHeaders,
        2 => body: Body,
    }
}

record! {
    /// An open multipart upload.
    pub struct UploadRow {
        1 => initiated: HybridTime,
        2 => headers: StoredHeaders,
        3 => algorithm: Option<ChecksumAlgorithm>,
        4 => kind: Option<ChecksumKind>,
        5 => request: RequestId,
    }
}

record! {
    /// One uploaded part.
    pub struct PartRow {
        1 => size_bytes: u64,
        2 => md5: [u8; 16],
        3 => modified: HybridTime,
        4 => checksum: Option<Checksum>,
        5 => body: Body,
        6 => request: RequestId,
    }
}

numbered! {
    /// What a bucket is going through.
    pub enum BucketState {
        /// Being opened in its shards: not visible yet.
        Opening = 1,
        /// Serves.
        Active = 2,
        /// Being closed in its shards: the shard decides whether it is empty.
        Closing = 3,
    }
}

record! {
    /// A bucket in the system group.
    pub struct BucketRow {
        1 => bucket: BucketId,
        2 => name: String,
        3 => created: HybridTime,
        4 => state: BucketState,
        /// Access key id's account that owns it.
        5 => owner: String,
        6 => location: Option<String>,
    }
}

/// Checks an object key against S3's only rule: 1 to 1,024 bytes of UTF-8.
pub fn check_key(key: &str) -> Result<(), wire::WireError> {
    if key.is_empty() || key.len() > KEY_BYTES_MAX {
        return Err(wire::WireError::OutOfRange("key"));
    }
    Ok(())
}
