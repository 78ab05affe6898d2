//! Rows of objects, uploads, parts and buckets.

use super::Samples;
use super::fragment::{bare_stripe, stripe};
use bytes::Bytes;
use plinth_protocol::object::*;
use plinth_protocol::{BucketId, HybridTime, RequestId, UploadId};

pub const BUCKET: BucketId = BucketId(0x0102_0304_0506_0708);
pub const UPLOAD: UploadId = UploadId(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff);
pub const REQUEST: RequestId = RequestId(0xf0e0_d0c0_b0a0_9080_7060_5040_3020_1000);

/// 2026-01-01, with a counter.
pub const TIME: HybridTime = HybridTime(1_767_225_600_000 << 16 | 3);

pub fn key() -> String {
    "folder/ключ".to_string()
}

pub fn etag() -> Etag {
    Etag { md5: std::array::from_fn(|at| 0xd0 + at as u8), parts: Some(3) }
}

pub fn checksum() -> Checksum {
    Checksum {
        algorithm: ChecksumAlgorithm::Crc64Nvme,
        kind: ChecksumKind::Composite,
        value: Bytes::from_static(&[1, 2, 3, 4, 5, 6, 7, 8]),
        parts: Some(3),
    }
}

pub fn object_row() -> ObjectRow {
    ObjectRow {
        size_bytes: 5 << 40,
        etag: etag(),
        modified: TIME,
        checksum: Some(checksum()),
        upload: Some(UPLOAD),
        request: REQUEST,
    }
}

pub fn bare_object_row() -> ObjectRow {
    ObjectRow { size_bytes: 0, etag: Etag { parts: None, ..etag() }, checksum: None, upload: None, ..object_row() }
}

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
}

pub fn headers() -> StoredHeaders {
    StoredHeaders {
        standard: pairs(&[("cache-control", "no-cache"), ("content-type", "text/plain")]),
        user: pairs(&[("colour", "blue"), ("empty", "")]),
    }
}

pub fn inline() -> Body {
    Body::Inline(Bytes::from_static(b"all of its bytes"))
}

fn span() -> PartSpan {
    PartSpan { number: 10_000, size_bytes: 5 << 30, checksum: Some(Bytes::from_static(b"\x01\x02\x03\x04")) }
}

pub fn object_body() -> ObjectBody {
    ObjectBody { headers: headers(), body: inline() }
}

pub fn upload_row() -> UploadRow {
    UploadRow {
        initiated: TIME,
        headers: headers(),
        algorithm: Some(ChecksumAlgorithm::Sha256),
        kind: Some(ChecksumKind::Composite),
        request: REQUEST,
    }
}

pub fn part_row() -> PartRow {
    PartRow {
        size_bytes: 1_000_000,
        md5: etag().md5,
        modified: TIME,
        checksum: Some(checksum()),
        body: Body::Stripes(vec![stripe(), bare_stripe()]),
        request: REQUEST,
    }
}

pub fn bucket_row() -> BucketRow {
    BucketRow {
        bucket: BUCKET,
        name: "a-bucket".into(),
        created: TIME,
        state: BucketState::Active,
        owner: "root".into(),
        location: Some("eu-central-1".into()),
        attempt: Some(5 << 16 | 1),
        reopening: true,
    }
}

pub fn samples(samples: &mut Samples) {
    samples.numbered(ChecksumAlgorithm::ALL);
    samples.numbered(ChecksumKind::ALL);
    samples.numbered(BucketState::ALL);
    samples.record([etag(), Etag { parts: None, ..etag() }]);
    samples.record([checksum(), Checksum { parts: None, ..checksum() }]);
    samples.record([object_row(), bare_object_row()]);
    samples.record([headers(), StoredHeaders { standard: vec![], user: vec![] }]);
    samples.record([span(), PartSpan { checksum: None, ..span() }]);
    samples.choice([
        inline(),
        Body::Inline(Bytes::new()),
        Body::Stripes(vec![stripe(), bare_stripe()]),
        Body::Stripes(vec![]),
        Body::Parts(vec![span(), PartSpan { number: 1, size_bytes: 0, checksum: None }]),
    ]);
    samples.record([object_body()]);
    samples.record([upload_row(), UploadRow { algorithm: None, kind: None, ..upload_row() }]);
    samples.record([part_row(), PartRow { checksum: None, ..part_row() }]);
    // As the first version wrote it.
    let unnumbered = BucketRow { attempt: None, reopening: false, ..bucket_row() };
    samples.record([bucket_row(), BucketRow { location: None, ..unnumbered.clone() }, unnumbered]);
}
