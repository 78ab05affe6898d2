//! Reading: headers, ranges, conditions, checksums; and what broken reads look like.

use crate::client::{Answer, Mode, Request, Server, request};
use plinth_protocol::FailureKind;

async fn put(server: &Server, key: &str, body: &[u8]) -> Answer {
    server.send(request("PUT", &format!("/bucket/{key}")).body(body)).await.expect_status(200)
}

async fn get(server: &Server, key: &str, headers: &[(&str, &str)]) -> Answer {
    let ask =
        headers.iter().fold(request("GET", &format!("/bucket/{key}")), |ask, (name, value)| ask.header(name, value));
    server.send(ask).await
}

#[tokio::test]
async fn e1_a_plain_put_has_a_quoted_md5() {
    let server = Server::with_bucket().await;
    let answer = put(&server, "k", b"hello").await;
    assert_eq!(answer.header("etag"), Some("\"5d41402abc4b2a76b9719d911017c592\""));
    let empty = put(&server, "empty", b"").await;
    assert_eq!(empty.header("etag"), Some("\"d41d8cd98f00b204e9800998ecf8427e\""));
}

#[tokio::test]
async fn bodies_of_every_size_come_back_as_they_were() {
    let server = Server::with_bucket().await;
    for size in [0usize, 1, 4096, 4097, 65_535, 300_000, 1_200_000] {
        let body: Vec<u8> = (0..size).map(|at| (at * 31 + at / 253) as u8).collect();
        put(&server, "k", &body).await;
        let answer = get(&server, "k", &[]).await.expect_status(200);
        assert!(answer.body == body, "{size} bytes");
        assert_eq!(answer.header("content-length"), Some(size.to_string().as_str()));
        assert_eq!(answer.header("content-type"), Some("binary/octet-stream"));
        let head = server.send(request("HEAD", "/bucket/k")).await.expect_status(200);
        for (name, value) in &answer.headers {
            if !["date", "x-amz-request-id"].contains(&name.as_str()) {
                assert_eq!(head.header(name), Some(value.as_str()), "HEAD reports what GET does: {name}");
            }
        }
    }
}

#[tokio::test]
async fn stored_headers_come_back_verbatim() {
    let server = Server::with_bucket().await;
    let put = request("PUT", "/bucket/k")
        .header("content-type", "text/plain; charset=utf-8")
        .header("cache-control", "no-cache")
        .header("content-disposition", "attachment; filename=\"a b\"")
        .header("content-encoding", "gzip")
        .header("content-language", "vi")
        .header("expires", "Thu, 01 Dec 2094 16:00:00 GMT");
    server.send(put.body("not really gzip")).await.expect_status(200);
    let answer = get(&server, "k", &[("accept-encoding", "identity")]).await.expect_status(200);
    assert_eq!(answer.header("content-type"), Some("text/plain; charset=utf-8"));
    assert_eq!(answer.header("cache-control"), Some("no-cache"));
    assert_eq!(answer.header("content-disposition"), Some("attachment; filename=\"a b\""));
    assert_eq!(answer.header("content-encoding"), Some("gzip"));
    assert_eq!(answer.header("content-language"), Some("vi"));
    assert_eq!(answer.header("expires"), Some("Thu, 01 Dec 2094 16:00:00 GMT"));
    assert_eq!(answer.text(), "not really gzip", "never transcoded");
}

#[tokio::test]
async fn h5_metadata_is_lower_cased_and_repeats_joined() {
    let server = Server::with_bucket().await;
    let put =
        request("PUT", "/bucket/k").header("x-amz-meta-a", "1").header("x-amz-meta-a", "2").header("x-amz-meta-b", "é");
    server.send(put).await.expect_status(200);
    let answer = get(&server, "k", &[]).await.expect_status(200);
    assert_eq!(answer.header("x-amz-meta-a"), Some("1,2"));
    assert_eq!(answer.header("x-amz-meta-b"), Some("=?UTF-8?B?w6k=?="));
    let large = request("PUT", "/bucket/k2").header("x-amz-meta-a", &"v".repeat(2048));
    server.send(large).await.expect_error(400, "MetadataTooLarge");
    assert_eq!(server.fake.keys(), ["k"]);
}

#[tokio::test]
async fn r1_one_range_is_partial_content() {
    let server = Server::with_bucket().await;
    let body: Vec<u8> = (0..100_000u32).map(|at| at as u8).collect();
    put(&server, "k", &body).await;
    for (range, first, last) in [
        ("bytes=0-9", 0, 9),
        ("bytes=99990-", 99_990, 99_999),
        ("bytes=-5", 99_995, 99_999),
        ("bytes=70000-200000", 70_000, 99_999),
        ("bytes=-200000", 0, 99_999),
    ] {
        let answer = get(&server, "k", &[("range", range)]).await.expect_status(206);
        assert_eq!(answer.header("content-range"), Some(format!("bytes {first}-{last}/100000").as_str()));
        assert_eq!(answer.body, body[first..=last], "{range}");
    }
    for whole in ["bytes=5-2", "bytes=0-1,3-4", "lines=0-1", "bytes=x"] {
        assert_eq!(get(&server, "k", &[("range", whole)]).await.expect_status(200).body.len(), 100_000, "{whole}");
    }
}

#[tokio::test]
async fn r2_an_unsatisfiable_range_tells_the_size() {
    let server = Server::with_bucket().await;
    put(&server, "k", b"0123456789").await;
    put(&server, "empty", b"").await;
    for (key, range, size) in
        [("k", "bytes=10-", 10), ("k", "bytes=-0", 10), ("empty", "bytes=0-0", 0), ("empty", "bytes=-1", 0)]
    {
        let answer = get(&server, key, &[("range", range)]).await.expect_error(416, "InvalidRange");
        assert_eq!(answer.header("content-range"), Some(format!("bytes */{size}").as_str()), "{range}");
    }
}

#[tokio::test]
async fn r3_if_range_that_does_not_match_gives_everything() {
    let server = Server::with_bucket().await;
    let etag = put(&server, "k", b"0123456789").await.header("etag").expect("a tag").to_owned();
    let range = ("range", "bytes=0-1");
    get(&server, "k", &[range, ("if-range", &etag)]).await.expect_status(206);
    get(&server, "k", &[range, ("if-range", "\"other\"")]).await.expect_status(200);
    get(&server, "k", &[range, ("if-range", &format!("W/{etag}"))]).await.expect_status(200);
    get(&server, "k", &[range, ("if-range", "Wed, 21 Oct 2015 07:28:00 GMT")]).await.expect_status(200);
}

#[tokio::test]
async fn c5_conditions_on_reads_have_a_precedence() {
    let server = Server::with_bucket().await;
    let answer = put(&server, "k", b"v").await;
    let etag = answer.header("etag").expect("a tag").to_owned();
    let (past, future) = ("Wed, 21 Oct 2015 07:28:00 GMT", "Wed, 21 Oct 2099 07:28:00 GMT");
    let weak = format!("W/{etag}");
    let bare = etag.trim_matches('"').to_owned();
    for (headers, status) in [
        (vec![("if-match", etag.as_str())], 200),
        (vec![("if-match", "\"other\"")], 412),
        (vec![("if-match", "*")], 200),
        (vec![("if-match", etag.as_str()), ("if-unmodified-since", past)], 200),
        (vec![("if-unmodified-since", past)], 412),
        (vec![("if-unmodified-since", future)], 200),
        (vec![("if-none-match", etag.as_str())], 304),
        (vec![("if-none-match", "\"other\"")], 200),
        (vec![("if-none-match", "\"other\""), ("if-modified-since", future)], 200),
        (vec![("if-none-match", etag.as_str()), ("if-modified-since", past)], 304),
        (vec![("if-modified-since", future)], 304),
        (vec![("if-modified-since", past)], 200),
        (vec![("if-modified-since", "not a date")], 200),
        // E3: quotes do not matter; weak tags match in If-None-Match only.
        (vec![("if-none-match", bare.as_str())], 304),
        (vec![("if-none-match", weak.as_str())], 304),
        (vec![("if-match", bare.as_str())], 200),
        (vec![("if-match", weak.as_str())], 412),
    ] {
        let answer = get(&server, "k", &headers).await.expect_status(status);
        if status == 304 {
            assert_eq!(answer.header("etag"), Some(etag.as_str()));
            assert!(answer.header("last-modified").is_some());
        }
        if status == 412 {
            assert!(answer.element("Condition").is_some(), "{headers:?}");
        }
    }
}

#[tokio::test]
async fn t1_the_same_instant_everywhere() {
    let server = Server::with_bucket().await;
    put(&server, "k", b"v").await;
    let head = server.send(request("HEAD", "/bucket/k")).await.expect_status(200);
    let modified = head.header("last-modified").expect("a date").to_owned();
    let list = server.send(request("GET", "/bucket?list-type=2")).await.expect_status(200);
    let shown = list.element("LastModified").expect("a date");
    assert!(shown.ends_with(".000Z"), "{shown}");
    let clock = &modified[17..25];
    assert!(shown.contains(clock), "{shown} and {modified}");
    // A condition with the date as shown sees no change.
    get(&server, "k", &[("if-modified-since", &modified)]).await.expect_status(304);
    get(&server, "k", &[("if-unmodified-since", &modified)]).await.expect_status(200);
}

#[tokio::test]
async fn k1_all_five_checksums_are_verified_stored_and_echoed() {
    let server = Server::with_bucket().await;
    for (name, good, bad) in [
        ("x-amz-checksum-crc32", "NhCmhg==", "NhCmhw=="),
        ("x-amz-checksum-crc32c", "mnG7TA==", "mnG7TQ=="),
        ("x-amz-checksum-crc64nvme", "M3eFcAZSQlc=", "M3eFcAZSQlg="),
        ("x-amz-checksum-sha1", "qvTGHdzF6KLavt4PO0gs2a6pQ00=", "qvTGHdzF6KLavt4PO0gs2a6pQ01="),
        (
            "x-amz-checksum-sha256",
            "LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=",
            "LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCU=",
        ),
    ] {
        let answer = server.send(request("PUT", "/bucket/k").header(name, good).body("hello")).await.expect_status(200);
        assert_eq!(answer.header(name), Some(good));
        assert_eq!(answer.header("x-amz-checksum-type"), Some("FULL_OBJECT"));
        let shown = get(&server, "k", &[("x-amz-checksum-mode", "ENABLED")]).await.expect_status(200);
        assert_eq!(shown.header(name), Some(good));
        let wrong = request("PUT", "/bucket/wrong").header(name, bad).body("hello");
        let wrong = server.send(wrong).await;
        assert_eq!(wrong.status, 400, "{}", wrong.text());
        assert_eq!(server.fake.keys(), ["k"]);
    }
    let none = put(&server, "none", b"hello").await;
    assert_eq!(none.header("x-amz-checksum-crc64nvme"), Some("M3eFcAZSQlc="), "computed when none is sent");
}

#[tokio::test]
async fn k3_wrong_digests_are_refused() {
    let server = Server::with_bucket().await;
    let put = |headers: &[(&str, &str)]| {
        headers.iter().fold(request("PUT", "/bucket/k").body("hello"), |ask, (name, value)| ask.header(name, value))
    };
    server.send(put(&[("content-md5", "XUFAKrxLKna5cZ2REBfFkg==")])).await.expect_status(200);
    server.send(request("DELETE", "/bucket/k")).await.expect_status(204);
    server.send(put(&[("content-md5", "1B2M2Y8AsgTpgAmY7PhCfg==")])).await.expect_error(400, "BadDigest");
    server.send(put(&[("content-md5", "nonsense")])).await.expect_error(400, "InvalidDigest");
    let two = [("x-amz-checksum-crc32", "NhCmhg=="), ("x-amz-checksum-crc32c", "mnG7TA==")];
    server.send(put(&two)).await.expect_error(400, "InvalidRequest");
    let other = [("x-amz-checksum-crc32", "NhCmhg=="), ("x-amz-sdk-checksum-algorithm", "SHA1")];
    server.send(put(&other)).await.expect_error(400, "InvalidRequest");
    server.send(put(&[("x-amz-checksum-sha512", "AAAA")])).await.expect_error(400, "InvalidRequest");
    assert!(server.fake.keys().is_empty());
}

#[tokio::test]
async fn k4_checksums_show_only_when_asked_and_never_on_ranges() {
    let server = Server::with_bucket().await;
    put(&server, "k", b"hello").await;
    let name = "x-amz-checksum-crc64nvme";
    assert_eq!(get(&server, "k", &[]).await.expect_status(200).header(name), None);
    let asked = ("x-amz-checksum-mode", "ENABLED");
    assert!(get(&server, "k", &[asked]).await.expect_status(200).header(name).is_some());
    assert_eq!(get(&server, "k", &[asked, ("range", "bytes=0-1")]).await.expect_status(206).header(name), None);
    get(&server, "k", &[("x-amz-checksum-mode", "MAYBE")]).await.expect_error(400, "InvalidArgument");
}

#[tokio::test]
async fn x3_a_read_that_fails_behind_its_headers_breaks_the_connection() {
    let server = Server::with_bucket().await;
    put(&server, "k", &vec![7u8; 8_000_000]).await;
    server.fake.faults.lock().expect("not poisoned").read_after = Some(6_000_000);
    let answer = get(&server, "k", &[]).await;
    assert_eq!(answer.status, 200);
    assert!(!answer.is_whole && answer.body.len() < 8_000_000, "it never ends cleanly short");
    // Before the headers it is an error like any other.
    server.fake.faults.lock().expect("not poisoned").read_after = Some(0);
    let answer = get(&server, "k", &[]).await.expect_error(503, "ServiceUnavailable");
    assert!(answer.header("retry-after").is_some());
}

#[tokio::test]
async fn response_headers_may_be_overridden_on_success() {
    let server = Server::with_bucket().await;
    put(&server, "k", b"v").await;
    let target = "/bucket/k?response-content-type=text%2Fhtml&response-cache-control=no-store";
    let answer = server.send(request("GET", target)).await.expect_status(200);
    assert_eq!(answer.header("content-type"), Some("text/html"));
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    let bad = server.send(request("GET", "/bucket/k?response-content-type=a%0Ab")).await;
    bad.expect_error(400, "InvalidArgument");
    let missing = server.send(request("GET", "/bucket/none?response-content-type=text%2Fhtml")).await;
    assert_eq!(missing.expect_error(404, "NoSuchKey").header("content-type"), Some("application/xml"));
}

#[tokio::test]
async fn attributes_show_the_tag_without_quotes() {
    let server = Server::with_bucket().await;
    put(&server, "k", b"hello").await;
    let ask = |value: &str| request("GET", "/bucket/k?attributes").header("x-amz-object-attributes", value);
    let answer = server.send(ask("ETag,Checksum,ObjectSize,StorageClass,ObjectParts")).await.expect_status(200);
    assert_eq!(answer.element("ETag").as_deref(), Some("5d41402abc4b2a76b9719d911017c592"));
    assert_eq!(answer.element("ObjectSize").as_deref(), Some("5"));
    assert_eq!(answer.element("StorageClass").as_deref(), Some("STANDARD"));
    assert!(answer.element("ChecksumCRC64NVME").is_some());
    assert!(answer.element("ObjectParts").is_none());
    server.send(ask("Nonsense")).await.expect_error(400, "InvalidArgument");
    server.send(request("GET", "/bucket/k?attributes")).await.expect_error(400, "InvalidRequest");
}

#[tokio::test]
async fn missing_things_are_404_with_their_names() {
    let server = Server::with_bucket().await;
    let key = server.send(request("GET", "/bucket/no%20such")).await.expect_error(404, "NoSuchKey");
    assert_eq!(key.element("Key").as_deref(), Some("no such"));
    let bucket = server.send(request("GET", "/nobucket/k")).await.expect_error(404, "NoSuchBucket");
    assert_eq!(bucket.element("BucketName").as_deref(), Some("nobucket"));
    server.send(request("HEAD", "/bucket/none")).await.expect_status(404);
    server.send(request("GET", "/bucket/k?versionId=abc")).await.expect_error(400, "InvalidArgument");
    server.send(request("GET", &format!("/bucket/{}", "k".repeat(1025)))).await.expect_error(400, "KeyTooLongError");
}

#[tokio::test]
async fn k5_every_payload_mode_stores_the_same_bytes() {
    let server = Server::with_bucket().await;
    let body: Vec<u8> = (0..50_000u32).map(|at| (at / 7) as u8).collect();
    for mode in crate::client::MODES {
        let mut put = request("PUT", "/bucket/k").mode(mode).body(body.clone());
        if matches!(mode, Mode::ChunkedTrailer | Mode::UnsignedTrailer) {
            put = put.trailer("x-amz-checksum-crc32", &crc32_base64(&body)).header("content-encoding", "aws-chunked");
        }
        let answer = server.send(put).await.expect_status(200);
        if matches!(mode, Mode::ChunkedTrailer | Mode::UnsignedTrailer) {
            assert_eq!(answer.header("x-amz-checksum-crc32"), Some(crc32_base64(&body).as_str()));
        }
        let back = get(&server, "k", &[]).await.expect_status(200);
        assert!(back.body == body, "{mode:?}");
        assert_eq!(back.header("content-encoding"), None, "{mode:?}");
        server.send(request("DELETE", "/bucket/k")).await.expect_status(204);
    }
}

pub fn crc32_base64(body: &[u8]) -> String {
    use base64::Engine as _;
    let sum = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32IsoHdlc, body) as u32;
    base64::engine::general_purpose::STANDARD.encode(sum.to_be_bytes())
}

#[tokio::test]
async fn k5_works_under_transfer_encoding_chunked() {
    let server = Server::with_bucket().await;
    let body = vec![b'x'; 30_000];
    let put = Request { chunk_bytes: 8192, ..request("PUT", "/bucket/k") }
        .mode(Mode::UnsignedTrailer)
        .trailer("x-amz-checksum-crc32", &crc32_base64(&body))
        .body(body.clone())
        .unsigned("transfer-encoding", "chunked");
    let (head, framed) = put.sign_parts(&server.fake);
    let mut bytes = head;
    for piece in framed.chunks(1000) {
        bytes.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
        bytes.extend_from_slice(piece);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"0\r\n\r\n");
    let mut connection = server.connect().await;
    connection.exchange(&bytes, false).await.expect_status(200);
    // The connection goes on behind a chunked body.
    let next = request("GET", "/bucket/k").sign(&server.fake);
    assert_eq!(connection.exchange(&next, false).await.expect_status(200).body, body);
}

#[tokio::test]
async fn k6_trailers_may_end_in_lf_as_minio_go_writes_them() {
    let server = Server::with_bucket().await;
    let body: Vec<u8> = (0..20_000u32).map(|at| (at / 3) as u8).collect();
    for mode in [Mode::ChunkedTrailer, Mode::UnsignedTrailer] {
        let mut put = request("PUT", "/bucket/k").mode(mode).body(body.clone());
        put = put.trailer("x-amz-checksum-crc32", &crc32_base64(&body));
        put.trailer_end = "\n\r\n";
        let answer = server.send(put.clone()).await.expect_status(200);
        assert_eq!(answer.header("x-amz-checksum-crc32"), Some(crc32_base64(&body).as_str()), "{mode:?}");
        assert!(server.send(request("GET", "/bucket/k")).await.expect_status(200).body == body);
        // What it says is still checked.
        let wrong = put.clone().trailer("x-amz-checksum-crc32", "AAAAAA==");
        server.send(wrong).await.expect_error(400, "BadDigest");
    }
    // The signature of the trailer covers its value.
    let mut put = request("PUT", "/bucket/other").mode(Mode::ChunkedTrailer).body(body.clone());
    put = put.trailer("x-amz-checksum-crc32", &crc32_base64(&body));
    put.trailer_end = "\n\r\n";
    let (head, mut bytes) = put.sign_parts(&server.fake);
    let at = bytes.windows(23).position(|window| window == b"x-amz-trailer-signature").expect("there") - 5;
    bytes[at] ^= 1;
    let answer = server.connect().await.exchange(&[head, bytes].concat(), false).await;
    answer.expect_error(403, "SignatureDoesNotMatch");
    assert_eq!(server.fake.keys(), ["k"]);
}

#[tokio::test]
async fn a_directive_without_a_copy_is_harmless_to_uploads() {
    let server = Server::with_bucket().await;
    let tagged =
        |request: Request| request.header("x-amz-metadata-directive", "REPLACE").header("x-amz-meta-mode", "33188");
    server.send(tagged(request("PUT", "/bucket/k").body("hello"))).await.expect_status(200);
    let back = server.send(request("GET", "/bucket/k")).await.expect_status(200);
    assert_eq!((back.header("x-amz-meta-mode"), &back.body[..]), (Some("33188"), &b"hello"[..]));
    server.send(tagged(request("POST", "/bucket/m?uploads"))).await.expect_status(200);
    let bad = request("PUT", "/bucket/k").header("x-amz-metadata-directive", "OTHER");
    server.send(bad).await.expect_error(400, "InvalidArgument");
}

#[tokio::test]
async fn k6_trailers_and_lengths_must_be_as_declared() {
    let server = Server::with_bucket().await;
    let base = |mode| request("PUT", "/bucket/k").mode(mode).body("hello");
    let wrong = base(Mode::UnsignedTrailer).trailer("x-amz-checksum-crc32", "AAAAAA==");
    server.send(wrong).await.expect_error(400, "BadDigest");
    let unsupported = base(Mode::UnsignedTrailer).trailer("x-amz-other", "1");
    server.send(unsupported).await.expect_error(400, "InvalidRequest");
    // Declared, and missing.
    let missing = base(Mode::UnsignedTrailer).header("x-amz-trailer", "x-amz-checksum-crc32");
    server.send(missing).await.expect_error(400, "MalformedTrailerError");
    let declared_other = base(Mode::ChunkedTrailer).trailer("x-amz-checksum-crc32", &crc32_base64(b"hello"));
    let (head, body) = declared_other.sign_parts(&server.fake);
    let text = String::from_utf8(body).expect("ASCII").replace("x-amz-checksum-crc32:", "x-amz-checksum-sha1: ");
    let mut connection = server.connect().await;
    connection.exchange(&[head, text.into_bytes()].concat(), false).await.expect_error(400, "MalformedTrailerError");
    assert!(server.fake.keys().is_empty());
}

#[tokio::test]
async fn a_read_that_loses_its_object_to_a_replacement_reads_the_new_one() {
    let server = Server::with_bucket().await;
    put(&server, "k", &[7; 100_000]).await.expect_status(200);
    server.fake.faults.lock().expect("not poisoned").replaced_at_open = Some("new".into());
    let answer = get(&server, "k", &[]).await.expect_status(200);
    assert_eq!((answer.text().as_str(), answer.header("content-length")), ("new", Some("3")));
    assert_eq!(answer.header("etag"), Some("\"22af645d1859cb5ca6da0c484f1f37ea\""));
    // Its conditions are judged anew.
    let old = put(&server, "k", &[8; 100_000]).await.expect_status(200);
    server.fake.faults.lock().expect("not poisoned").replaced_at_open = Some("newer".into());
    get(&server, "k", &[("if-match", old.header("etag").expect("a tag"))])
        .await
        .expect_error(412, "PreconditionFailed");
}

#[tokio::test]
async fn a_read_that_cannot_start_is_worth_another_try_unless_the_bytes_are_gone() {
    let server = Server::with_bucket().await;
    put(&server, "k", &[7; 100_000]).await.expect_status(200);
    for (kind, status, code) in [
        (FailureKind::Conflict, 503, "ServiceUnavailable"),
        (FailureKind::Unavailable, 503, "ServiceUnavailable"),
        (FailureKind::Busy, 503, "SlowDown"),
        (FailureKind::NotFound, 500, "InternalError"),
        (FailureKind::Corrupt, 500, "InternalError"),
    ] {
        server.fake.faults.lock().expect("not poisoned").open = Some(kind);
        get(&server, "k", &[]).await.expect_error(status, code);
        let copy = request("PUT", "/bucket/copy").header("x-amz-copy-source", "bucket/k");
        server.send(copy).await.expect_error(status, code);
    }
    assert_eq!(server.fake.keys(), ["k"]);
}

#[tokio::test]
async fn r3_a_date_that_is_not_the_objects_own_gives_everything() {
    let server = Server::with_bucket().await;
    put(&server, "k", b"hello").await.expect_status(200);
    let own = get(&server, "k", &[]).await.header("last-modified").expect("a date").to_owned();
    get(&server, "k", &[("range", "bytes=0-1"), ("if-range", &own)]).await.expect_status(206);
    let later = "Wed, 21 Oct 2099 07:28:00 GMT";
    get(&server, "k", &[("range", "bytes=0-1"), ("if-range", later)]).await.expect_status(200);
}

#[tokio::test]
async fn r1_two_range_headers_are_several_ranges() {
    let server = Server::with_bucket().await;
    put(&server, "k", b"hello").await.expect_status(200);
    let get = request("GET", "/bucket/k").unsigned("range", "bytes=0-1").unsigned("range", "bytes=3-4");
    assert_eq!(server.send(get).await.expect_status(200).text(), "hello");
}
