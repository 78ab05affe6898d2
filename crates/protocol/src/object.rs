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
/// Most bytes of an object that may stand in its row, whatever the default.
pub const INLINE_ROW_BYTES_MAX: usize = 64 << 10;
/// Largest object in bytes (S3: 10,000 parts of 5 GiB).
pub const OBJECT_BYTES_MAX: u64 = PART_NUMBER_MAX as u64 * (5 << 30);

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

impl Body {
    /// Checks that a body that is not made of parts can be that of an object or part of `size_bytes`:
    /// each stripe is possible, none is named twice, and together they hold what they should.
    ///
    /// Fails with `OutOfRange`, which names what is impossible.
    pub fn check(&self, size_bytes: u64) -> Result<(), wire::WireError> {
        let refuse = |field: &'static str| Err(wire::WireError::OutOfRange(field));
        if size_bytes > OBJECT_BYTES_MAX {
            return refuse("size_bytes");
        }
        let stripes = match self {
            Body::Inline(bytes) if bytes.len() > INLINE_ROW_BYTES_MAX => return refuse("inline bytes"),
            Body::Inline(bytes) if bytes.len() as u64 != size_bytes => return refuse("size_bytes"),
            Body::Inline(_) => return Ok(()),
            Body::Parts(_) => return refuse("body"),
            Body::Stripes(stripes) => stripes,
        };
        stripes.iter().try_for_each(StripeRef::check)?;
        let held = match &stripes[..] {
            [packed] if packed.pack_offset.is_some() => {
                // The object is a slot of the pack: the slot must lie inside.
                let end = packed.pack_offset.unwrap_or(0).checked_add(size_bytes);
                let inside = end.is_some_and(|end| end <= packed.object_bytes());
                return if inside { Ok(()) } else { refuse("pack_offset") };
            }
            _ if stripes.iter().any(|stripe| stripe.pack_offset.is_some()) => return refuse("pack_offset"),
            _ => stripes.iter().try_fold(0u64, |held, stripe| held.checked_add(stripe.object_bytes())),
        };
        if held != Some(size_bytes) {
            return refuse("size_bytes");
        }
        if stripes.len() > 1 {
            let mut ids: Vec<_> = stripes.iter().map(|stripe| stripe.stripe).collect();
            ids.sort_unstable();
            if ids.windows(2).any(|pair| pair[0] == pair[1]) {
                return refuse("stripe");
            }
        }
        Ok(())
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
        /// The number of the change that it went through or goes through; none = 0, from before changes were numbered.
        7 -> attempt: Option<u64>,
        /// While closing: a shard was not empty, all are being opened again.
        8 -> reopening: bool,
    }
}

/// Checks an object key against S3's only rule: 1 to 1,024 bytes of UTF-8.
pub fn check_key(key: &str) -> Result<(), wire::WireError> {
    if key.is_empty() || key.len() > KEY_BYTES_MAX {
        return Err(wire::WireError::OutOfRange("key"));
    }
    Ok(())
}
