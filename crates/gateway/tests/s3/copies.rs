//! CopyObject and UploadPartCopy.

use crate::client::{Request, Server, request};

async fn put(server: &Server, key: &str, body: impl Into<Vec<u8>>) {
    let put = request("PUT", &format!("/bucket/{key}")).header("x-amz-meta-a", "1").header("content-type", "text/x");
    server.send(put.body(body)).await.expect_status(200);
}

fn copy(key: &str, source: &str) -> Request {
    request("PUT", &format!("/bucket/{key}")).header("x-amz-copy-source", source)
}

#[tokio::test]
async fn y1_sources_are_found_as_clients_write_them() {
    let server = Server::with_bucket().await;
    put(&server, "a%20b%2Bc", "v").await;
    for source in ["/bucket/a%20b%2Bc", "bucket/a%20b%2Bc", "bucket/a%20b+c", "bucket/a%20b%2Bc?versionId=null"] {
        server.send(copy("k", source)).await.expect_status(200);
    }
    server.send(copy("k", "bucket/none")).await.expect_error(404, "NoSuchKey");
    server.send(copy("k", "nobucket/k")).await.expect_error(404, "NoSuchBucket");
    server.send(copy("k", "arn:aws:s3:r:1:accesspoint/x/object/k")).await.expect_error(501, "NotImplemented");
    server.send(copy("k", "bucket")).await.expect_error(400, "InvalidArgument");
}

#[tokio::test]
async fn y2_failed_source_conditions_are_412() {
    let server = Server::with_bucket().await;
    put(&server, "s", "v").await;
    let (past, future) = ("Wed, 21 Oct 2015 07:28:00 GMT", "Wed, 21 Oct 2099 07:28:00 GMT");
    let etag = "\"9e3669d19b675bd57058fd4664205d2a\"";
    for (name, value, status) in [
        ("x-amz-copy-source-if-match", etag, 200),
        ("x-amz-copy-source-if-match", "\"x\"", 412),
        ("x-amz-copy-source-if-none-match", etag, 412),
        ("x-amz-copy-source-if-none-match", "\"x\"", 200),
        ("x-amz-copy-source-if-modified-since", future, 412),
        ("x-amz-copy-source-if-modified-since", past, 200),
        ("x-amz-copy-source-if-unmodified-since", past, 412),
    ] {
        server.send(copy("k", "bucket/s").header(name, value)).await.expect_status(status);
    }
    // Its own condition is decided at commit.
    server.send(copy("k", "bucket/s").header("if-none-match", "*")).await.expect_error(412, "PreconditionFailed");
}

#[tokio::test]
async fn y3_copies_keep_or_replace_metadata() {
    let server = Server::with_bucket().await;
    let body: Vec<u8> = (0..200_000u32).map(|at| at as u8).collect();
    put(&server, "s", body.clone()).await;
    let answer = server.send(copy("k", "bucket/s")).await.expect_status(200);
    assert!(answer.element("ETag").is_some() && answer.element("LastModified").is_some());
    let back = server.send(request("GET", "/bucket/k")).await.expect_status(200);
    assert!(back.body == body);
    assert_eq!((back.header("x-amz-meta-a"), back.header("content-type")), (Some("1"), Some("text/x")));
    let replace = copy("k", "bucket/s").header("x-amz-metadata-directive", "REPLACE").header("x-amz-meta-b", "2");
    server.send(replace).await.expect_status(200);
    let back = server.send(request("HEAD", "/bucket/k")).await.expect_status(200);
    assert_eq!((back.header("x-amz-meta-a"), back.header("x-amz-meta-b")), (None, Some("2")));
    assert_eq!(back.header("content-type"), Some("binary/octet-stream"), "what is not sent is dropped");
    server.send(copy("s", "bucket/s")).await.expect_error(400, "InvalidRequest");
    let touch = copy("s", "bucket/s").header("x-amz-metadata-directive", "REPLACE");
    server.send(touch).await.expect_status(200);
    // Naming a property is a change, also where it stays what it is (Y3).
    server.send(copy("s", "bucket/s")).await.expect_error(400, "InvalidRequest");
    let names = [("x-amz-storage-class", "STANDARD"), ("x-amz-checksum-algorithm", "CRC64NVME")];
    for (name, value) in names {
        server.send(copy("s", "bucket/s").header(name, value)).await.expect_status(200);
        let kept = server.send(request("HEAD", "/bucket/s")).await.expect_status(200);
        assert_eq!(kept.header("content-type"), Some("binary/octet-stream"), "{name}");
    }
    let bad = copy("k", "bucket/s").header("x-amz-metadata-directive", "OTHER");
    server.send(bad).await.expect_error(400, "InvalidArgument");
}

#[tokio::test]
async fn y4_part_copies_take_exact_ranges() {
    let server = Server::with_bucket().await;
    let body: Vec<u8> = (0..100_000u32).map(|at| at as u8).collect();
    put(&server, "s", body.clone()).await;
    let id =
        server.send(request("POST", "/bucket/k?uploads")).await.expect_status(200).element("UploadId").expect("an id");
    let part = |range: &str| {
        request("PUT", &format!("/bucket/k?partNumber=1&uploadId={id}"))
            .header("x-amz-copy-source", "/bucket/s")
            .header("x-amz-copy-source-range", range)
    };
    for bad in ["bytes=0-", "bytes=-5", "bytes=0-100000", "0-5", "bytes=5-1"] {
        server.send(part(bad)).await.expect_error(400, "InvalidArgument");
    }
    let answer = server.send(part("bytes=10-99998")).await.expect_status(200);
    let tag = answer.element("ETag").expect("a tag");
    let list = format!(
        "<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>{tag}</ETag></Part></CompleteMultipartUpload>"
    );
    server.send(request("POST", &format!("/bucket/k?uploadId={id}")).body(list)).await.expect_status(200);
    let back = server.send(request("GET", "/bucket/k")).await.expect_status(200);
    assert!(back.body == body[10..=99_998]);
    // E2: a copy of a multipart object is a plain one.
    server.send(copy("plain", "bucket/k")).await.expect_status(200);
    let plain = server.send(request("HEAD", "/bucket/plain")).await.expect_status(200);
    assert!(!plain.header("etag").expect("a tag").contains('-'));
}

#[tokio::test]
async fn a_copy_needs_its_source_readable() {
    let server = Server::with_bucket().await;
    server.send(request("PUT", "/foreign")).await.expect_status(200);
    server.send(request("PUT", "/foreign/s").body("secret")).await.expect_status(200);
    server.fake.give_away("foreign", "account-2");
    server.send(copy("k", "foreign/s")).await.expect_error(403, "AccessDenied");
    let id =
        server.send(request("POST", "/bucket/k?uploads")).await.expect_status(200).element("UploadId").expect("an id");
    let part =
        request("PUT", &format!("/bucket/k?partNumber=1&uploadId={id}")).header("x-amz-copy-source", "/foreign/s");
    server.send(part).await.expect_error(403, "AccessDenied");
}

#[tokio::test]
async fn a_repeated_copy_under_a_token_says_that_it_is_one() {
    let server = Server::with_bucket().await;
    put(&server, "s", vec![5; 10_000]).await;
    put(&server, "other", vec![6; 10_000]).await;
    let token = |copy: Request| copy.header("x-amz-client-token", "t-1");
    let first = server.send(token(copy("k", "bucket/s"))).await.expect_status(200);
    assert_eq!(first.header("x-plinth-replayed"), None);
    let again = server.send(token(copy("k", "bucket/s"))).await.expect_status(200);
    assert_eq!(again.header("x-plinth-replayed"), Some("true"));
    assert_eq!(again.body, first.body);
    server.send(token(copy("k", "bucket/other"))).await.expect_error(400, "IdempotencyParameterMismatch");

    let id =
        server.send(request("POST", "/bucket/m?uploads")).await.expect_status(200).element("UploadId").expect("an id");
    let part = |source: &str| token(copy(&format!("m?partNumber=1&uploadId={id}"), source));
    server.send(part("bucket/s")).await.expect_status(200);
    let again = server.send(part("bucket/s")).await.expect_status(200);
    assert_eq!(again.header("x-plinth-replayed"), Some("true"));
    server.send(part("bucket/other")).await.expect_error(400, "IdempotencyParameterMismatch");
}

#[tokio::test]
async fn a_source_key_has_the_length_of_a_key() {
    let server = Server::with_bucket().await;
    let long = "k".repeat(1025);
    server.send(copy("k", &format!("bucket/{long}"))).await.expect_error(400, "KeyTooLongError");
    server.send(copy("k", &format!("bucket/{}", &long[1..]))).await.expect_error(404, "NoSuchKey");
}
