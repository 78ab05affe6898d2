//! aws-sdk-s3: checksums by default, trailers on streams, conditional writes.

use crate::{SIZES, Target, body};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_s3::error::ProvideErrorMetadata;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{ChecksumAlgorithm, ChecksumMode, CompletedMultipartUpload, CompletedPart};

fn client(target: &Target) -> Client {
    let credentials = Credentials::new(&target.access_key, &target.secret_key, None, None, "environment");
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(target.region.clone()))
        .endpoint_url(&target.endpoint)
        .credentials_provider(credentials)
        .force_path_style(true);
    Client::from_conf(config.build())
}

async fn read(client: &Client, bucket: &str, key: &str) -> Vec<u8> {
    let got = client.get_object().bucket(bucket).key(key).checksum_mode(ChecksumMode::Enabled).send().await;
    got.expect("the object is there").body.collect().await.expect("the whole body, its checksum right").to_vec()
}

/// What is put comes back, byte for byte.
pub async fn sizes(target: &Target) {
    let (client, bucket) = (client(target), &target.bucket);
    for size in SIZES {
        let (key, bytes) = (format!("s/{size}"), body(size as u64, size));
        let put = client.put_object().bucket(bucket).key(&key).body(ByteStream::from(bytes.clone()));
        put.send().await.unwrap_or_else(|error| panic!("put {size}: {error:?}"));
        assert!(read(&client, bucket, &key).await == bytes, "{size} bytes came back changed");
    }
    let mut pages = client.list_objects_v2().bucket(bucket).max_keys(4).into_paginator().send();
    let mut found = 0;
    while let Some(page) = pages.next().await {
        found += page.expect("a page").contents().len();
    }
    assert_eq!(found, SIZES.len());
}

/// Every algorithm is verified, stored and told.
pub async fn checksums(target: &Target) {
    let (client, bucket) = (client(target), &target.bucket);
    let algorithms = [
        ChecksumAlgorithm::Crc32,
        ChecksumAlgorithm::Crc32C,
        ChecksumAlgorithm::Crc64Nvme,
        ChecksumAlgorithm::Sha1,
        ChecksumAlgorithm::Sha256,
    ];
    for algorithm in algorithms {
        let bytes = body(7, 300_001);
        let put = client.put_object().bucket(bucket).key(algorithm.as_str()).body(ByteStream::from(bytes.clone()));
        let put = put.checksum_algorithm(algorithm.clone()).send().await;
        put.unwrap_or_else(|error| panic!("{algorithm:?}: {error:?}"));
        let head = client.head_object().bucket(bucket).key(algorithm.as_str()).checksum_mode(ChecksumMode::Enabled);
        let head = head.send().await.expect("the object is there");
        let told = match algorithm {
            ChecksumAlgorithm::Crc32 => head.checksum_crc32(),
            ChecksumAlgorithm::Crc32C => head.checksum_crc32_c(),
            ChecksumAlgorithm::Crc64Nvme => head.checksum_crc64_nvme(),
            ChecksumAlgorithm::Sha1 => head.checksum_sha1(),
            _ => head.checksum_sha256(),
        };
        assert!(told.is_some(), "{algorithm:?} is not told by HEAD");
        assert!(read(&client, bucket, algorithm.as_str()).await == bytes);
    }
    let wrong = client.put_object().bucket(bucket).key("wrong").body(ByteStream::from_static(b"x"));
    let refused = wrong.checksum_crc32("AAAAAA==").send().await.expect_err("a wrong checksum is refused");
    assert_eq!(refused.code(), Some("BadDigest"), "{refused:?}");
}

/// Parts of different sizes become one object; an unfinished upload shows nothing.
pub async fn multipart(target: &Target) {
    let (client, bucket) = (client(target), &target.bucket);
    let begun = client.create_multipart_upload().bucket(bucket).key("m").send().await.expect("an upload begins");
    let upload = begun.upload_id().expect("it has an id");
    let parts = [body(1, 5 << 20), body(2, (6 << 20) + 13), body(3, 17)];
    let mut rows = Vec::new();
    for (index, part) in parts.iter().enumerate() {
        let number = index as i32 + 1;
        let put = client.upload_part().bucket(bucket).key("m").upload_id(upload).part_number(number);
        let put = put.body(ByteStream::from(part.clone())).send().await.expect("a part is stored");
        let row = CompletedPart::builder().part_number(number).set_e_tag(put.e_tag().map(str::to_string));
        rows.push(row.set_checksum_crc32(put.checksum_crc32().map(str::to_string)).build());
    }
    let early = client.head_object().bucket(bucket).key("m").send().await;
    assert!(early.is_err(), "an unfinished upload is invisible");
    let list = CompletedMultipartUpload::builder().set_parts(Some(rows)).build();
    let complete = client.complete_multipart_upload().bucket(bucket).key("m").upload_id(upload).multipart_upload(list);
    complete.send().await.expect("the upload completes");
    assert!(read(&client, bucket, "m").await == parts.concat());
}

/// `If-None-Match: *` and `If-Match` are decided at commit.
pub async fn conditions(target: &Target) {
    let (client, bucket) = (client(target), &target.bucket);
    let put =
        |text: &'static str| client.put_object().bucket(bucket).key("c").body(ByteStream::from_static(text.as_bytes()));
    let first = put("1").if_none_match("*").send().await.expect("nobody was first");
    let refused = put("2").if_none_match("*").send().await.expect_err("somebody was first");
    assert_eq!(refused.code(), Some("PreconditionFailed"), "{refused:?}");
    let etag = first.e_tag().expect("a put tells its ETag").to_string();
    put("3").if_match(&etag).send().await.expect("the ETag is the current one");
    let refused = put("4").if_match(&etag).send().await.expect_err("the ETag is an old one");
    assert_eq!(refused.code(), Some("PreconditionFailed"), "{refused:?}");
    assert_eq!(read(&client, bucket, "c").await, b"3");
}
