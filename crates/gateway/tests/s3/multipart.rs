//! The multipart family.

use crate::client::{Answer, Request, Server, request};
use crate::objects::crc32_base64;

const PART: usize = 5 << 20;

async fn create(server: &Server, key: &str, headers: &[(&str, &str)]) -> String {
    let ask = headers
        .iter()
        .fold(request("POST", &format!("/bucket/{key}?uploads")), |ask, (name, value)| ask.header(name, value));
    server.send(ask).await.expect_status(200).element("UploadId").expect("an id")
}

fn part(key: &str, upload: &str, number: u16, body: Vec<u8>) -> Request {
    request("PUT", &format!("/bucket/{key}?partNumber={number}&uploadId={upload}")).body(body)
}

async fn upload(server: &Server, key: &str, id: &str, number: u16, body: Vec<u8>) -> String {
    let answer = server.send(part(key, id, number, body)).await.expect_status(200);
    answer.header("etag").expect("a tag").to_owned()
}

fn document(parts: &[(u16, &str)]) -> String {
    let parts: String = parts
        .iter()
        .map(|(number, etag)| format!("<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>"))
        .collect();
    format!(
        "<CompleteMultipartUpload xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">{parts}</CompleteMultipartUpload>"
    )
}

fn complete(key: &str, id: &str, parts: &[(u16, &str)]) -> Request {
    request("POST", &format!("/bucket/{key}?uploadId={id}")).body(document(parts))
}

fn bytes(seed: u8, size: usize) -> Vec<u8> {
    (0..size).map(|at| (at as u8).wrapping_mul(7).wrapping_add(seed)).collect()
}

async fn get(server: &Server, target: &str) -> Answer {
    server.send(request("GET", target)).await
}

#[tokio::test]
async fn m1_uneven_parts_in_any_order_with_gaps() {
    let server = Server::with_bucket().await;
    let id = create(&server, "k", &[("x-amz-meta-a", "b"), ("content-type", "text/x")]).await;
    let (one, two, three) = (bytes(1, PART), bytes(2, PART + 12_345), bytes(3, 10));
    let tag3 = upload(&server, "k", &id, 900, three.clone()).await;
    let tag1 = upload(&server, "k", &id, 2, one.clone()).await;
    let tag2 = upload(&server, "k", &id, 17, two.clone()).await;
    get(&server, "/bucket/k").await.expect_error(404, "NoSuchKey");
    let list = [(2, tag1.as_str()), (17, tag2.as_str()), (900, tag3.as_str())];
    let answer = server.send(complete("k", &id, &list)).await.expect_status(200);
    // E1: the MD5 of the parts' MD5s, and their number.
    let tag = answer.element("ETag").expect("a tag");
    assert!(tag.ends_with("-3&quot;"), "{tag}");
    assert!(answer.element("ChecksumCRC64NVME").is_some());
    assert!(answer.element("Location").expect("a place").ends_with("/bucket/k"));
    let whole = [one, two, three].concat();
    let back = get(&server, "/bucket/k").await.expect_status(200);
    assert!(back.body == whole);
    // M7: what Create said holds.
    assert_eq!(back.header("x-amz-meta-a"), Some("b"));
    assert_eq!(back.header("content-type"), Some("text/x"));
    // Parts are read by their order in the object.
    let second = get(&server, "/bucket/k?partNumber=2").await.expect_status(206);
    assert_eq!(second.body.len(), PART + 12_345);
    assert_eq!(second.header("x-amz-mp-parts-count"), Some("3"));
    get(&server, "/bucket/k?partNumber=4").await.expect_error(416, "InvalidPartNumber");
    let both = server.send(request("GET", "/bucket/k?partNumber=1").header("range", "bytes=0-1")).await;
    both.expect_error(400, "InvalidRequest");
    // M5: repeated with the same list, the same answer; with another, none.
    let again = server.send(complete("k", &id, &list)).await.expect_status(200);
    assert_eq!(again.element("ETag"), Some(tag));
    server.send(complete("k", &id, &list[..2])).await.expect_error(404, "NoSuchUpload");
}

#[tokio::test]
async fn m2_a_part_sent_again_replaces() {
    let server = Server::with_bucket().await;
    let id = create(&server, "k", &[]).await;
    let old = upload(&server, "k", &id, 1, bytes(1, 100)).await;
    let new = upload(&server, "k", &id, 1, bytes(2, 200)).await;
    server.send(complete("k", &id, &[(1, &old)])).await.expect_error(400, "InvalidPart");
    server.send(complete("k", &id, &[(1, &new)])).await.expect_status(200);
    assert!(get(&server, "/bucket/k").await.expect_status(200).body == bytes(2, 200));
}

#[tokio::test]
async fn m3_part_lists_are_judged() {
    let server = Server::with_bucket().await;
    let id = create(&server, "k", &[]).await;
    let one = upload(&server, "k", &id, 1, bytes(1, 100)).await;
    let two = upload(&server, "k", &id, 2, bytes(2, 100)).await;
    let send = |list: Vec<(u16, &str)>| {
        let ask = complete("k", &id, &list);
        server.send(ask)
    };
    send(vec![(2, &two), (1, &one)]).await.expect_error(400, "InvalidPartOrder");
    send(vec![(1, &one), (3, &two)]).await.expect_error(400, "InvalidPart");
    send(vec![(1, &two)]).await.expect_error(400, "InvalidPart");
    send(vec![]).await.expect_error(400, "MalformedXML");
    send(vec![(1, &one), (2, &two)]).await.expect_error(400, "EntityTooSmall");
    let wrong_size = complete("k", &id, &[(1, &one)]).header("x-amz-mp-object-size", "99");
    server.send(wrong_size).await.expect_error(400, "InvalidRequest");
    let right_size = complete("k", &id, &[(1, &one)]).header("x-amz-mp-object-size", "100");
    server.send(right_size).await.expect_status(200);
}

#[tokio::test(start_paused = true)]
async fn m4_a_long_complete_is_kept_alive_and_a_short_one_is_not() {
    let server = Server::with_bucket().await;
    let id = create(&server, "k", &[]).await;
    let tag = upload(&server, "k", &id, 1, bytes(1, 100)).await;
    let wrong = server.send(complete("k", &id, &[(1, "x")])).await.expect_error(400, "InvalidPart");
    assert!(wrong.header("content-length").is_some(), "its true status, whole");
    server.fake.faults.lock().expect("not poisoned").commit_delay = Some(std::time::Duration::from_secs(25));
    let answer = server.send(complete("k", &id, &[(1, &tag)])).await.expect_status(200);
    let text = answer.text();
    assert!(text.starts_with("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n "), "{text}");
    assert!(text.trim_end().ends_with("</CompleteMultipartUploadResult>"), "{text}");
    assert_eq!(text.matches("<?xml").count(), 1);
    let id = create(&server, "k2", &[]).await;
    let answer = server.send(complete("k2", &id, &[(1, "x")])).await;
    assert_eq!(answer.status, 200, "the status has gone out before the result");
    assert!(answer.text().contains("<Error><Code>InvalidPart</Code>"), "{}", answer.text());
}

#[tokio::test]
async fn m6_an_aborted_upload_is_gone() {
    let server = Server::with_bucket().await;
    let id = create(&server, "k", &[]).await;
    let tag = upload(&server, "k", &id, 1, bytes(1, 10)).await;
    let abort = || request("DELETE", &format!("/bucket/k?uploadId={id}"));
    server.send(abort()).await.expect_status(204);
    server.send(abort()).await.expect_error(404, "NoSuchUpload");
    server.send(complete("k", &id, &[(1, &tag)])).await.expect_error(404, "NoSuchUpload");
    server.send(part("k", &id, 2, bytes(1, 10))).await.expect_error(404, "NoSuchUpload");
    server.send(part("k", "nonsense", 2, bytes(1, 10))).await.expect_error(404, "NoSuchUpload");
    assert!(server.fake.keys().is_empty());
}

#[tokio::test]
async fn m7_an_open_upload_does_not_make_its_key_exist() {
    let server = Server::with_bucket().await;
    let id = create(&server, "k", &[]).await;
    upload(&server, "k", &id, 1, bytes(1, 10)).await;
    get(&server, "/bucket/k").await.expect_error(404, "NoSuchKey");
    let list = get(&server, "/bucket?list-type=2").await.expect_status(200);
    assert_eq!(list.element("KeyCount").as_deref(), Some("0"));
}

#[tokio::test]
async fn m8_uploads_are_listed_by_key_and_id_and_paged() {
    let server = Server::with_bucket().await;
    let mut made = Vec::new();
    for key in ["b", "a", "a", "c/d"] {
        made.push((key.replace('/', "%2F"), create(&server, key, &[]).await));
    }
    made.sort();
    let mut seen = Vec::new();
    let mut marker = String::new();
    loop {
        let page =
            get(&server, &format!("/bucket?uploads&max-uploads=1&encoding-type=url{marker}")).await.expect_status(200);
        seen.extend(page.elements("Key").into_iter().zip(page.elements("UploadId")));
        if page.element("IsTruncated").as_deref() == Some("false") {
            break;
        }
        let key = page.element("NextKeyMarker").expect("a marker").replace('/', "%2F");
        marker =
            format!("&key-marker={key}&upload-id-marker={}", page.element("NextUploadIdMarker").expect("a marker"));
    }
    let seen: Vec<(String, String)> = seen.into_iter().map(|(key, id)| (key.replace('/', "%2F"), id)).collect();
    assert_eq!(seen, made);
}

#[tokio::test]
async fn parts_are_listed_and_paged() {
    let server = Server::with_bucket().await;
    let id = create(&server, "k", &[]).await;
    for number in [1, 5, 9] {
        upload(&server, "k", &id, number, bytes(1, 10 + usize::from(number))).await;
    }
    let page = get(&server, &format!("/bucket/k?uploadId={id}&max-parts=2")).await.expect_status(200);
    assert_eq!(page.elements("PartNumber"), ["1", "5"]);
    assert_eq!(page.element("IsTruncated").as_deref(), Some("true"));
    assert_eq!(page.element("NextPartNumberMarker").as_deref(), Some("5"));
    let page = get(&server, &format!("/bucket/k?uploadId={id}&part-number-marker=5")).await.expect_status(200);
    assert_eq!(page.elements("PartNumber"), ["9"]);
    assert_eq!(page.elements("Size"), ["19"]);
}

#[tokio::test]
async fn k2_composite_and_full_object_checksums() {
    let server = Server::with_bucket().await;
    for (algorithm, kind) in [("CRC64NVME", "COMPOSITE"), ("SHA1", "FULL_OBJECT"), ("SHA256", "FULL_OBJECT")] {
        let ask = request("POST", "/bucket/k?uploads")
            .header("x-amz-checksum-algorithm", algorithm)
            .header("x-amz-checksum-type", kind);
        server.send(ask).await.expect_error(400, "InvalidRequest");
    }
    let body = bytes(1, 1000);
    let crc = crc32_base64(&body);
    let named = |tag: &str, crc: &str| {
        format!(
            "<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>{tag}</ETag><ChecksumCRC32>{crc}</ChecksumCRC32></Part></CompleteMultipartUpload>"
        )
    };
    let id = create(&server, "k", &[("x-amz-checksum-algorithm", "CRC32")]).await;
    let put = part("k", &id, 1, body.clone()).header("x-amz-checksum-crc32", &crc);
    let tag = server.send(put).await.expect_status(200).header("etag").expect("a tag").to_owned();
    let target = format!("/bucket/k?uploadId={id}");
    let ask = |body: String| request("POST", &target).body(body);
    server.send(ask(named(&tag, "AAAAAA=="))).await.expect_error(400, "InvalidPart");
    // K3: a wrong type at Complete.
    server
        .send(ask(named(&tag, &crc)).header("x-amz-checksum-type", "FULL_OBJECT"))
        .await
        .expect_error(400, "BadDigest");
    let answer = server.send(ask(named(&tag, &crc))).await.expect_status(200);
    assert_eq!(answer.element("ChecksumType").as_deref(), Some("COMPOSITE"));
    assert!(answer.element("ChecksumCRC32").expect("a checksum").ends_with("-1"));

    let id =
        create(&server, "f", &[("x-amz-checksum-algorithm", "CRC32"), ("x-amz-checksum-type", "FULL_OBJECT")]).await;
    let tag = upload(&server, "f", &id, 1, body.clone()).await;
    let target = format!("/bucket/f?uploadId={id}");
    let ask = |crc: &str| request("POST", &target).header("x-amz-checksum-crc32", crc).body(document(&[(1, &tag)]));
    server.send(ask("AAAAAA==")).await.expect_error(400, "BadDigest");
    let answer = server.send(ask(&crc)).await.expect_status(200);
    assert_eq!(answer.element("ChecksumCRC32"), Some(crc));
    assert_eq!(answer.element("ChecksumType").as_deref(), Some("FULL_OBJECT"));
}

#[tokio::test]
async fn k3_a_part_with_another_algorithm_is_refused() {
    let server = Server::with_bucket().await;
    let id = create(&server, "k", &[("x-amz-checksum-algorithm", "SHA256")]).await;
    let put = part("k", &id, 1, b"hello".to_vec()).header("x-amz-checksum-crc32", &crc32_base64(b"hello"));
    server.send(put).await.expect_error(400, "InvalidRequest");
    // An upload that names no algorithm takes any, and stores CRC64NVME.
    let id = create(&server, "k", &[]).await;
    let put = part("k", &id, 1, b"hello".to_vec()).header("x-amz-checksum-crc32", &crc32_base64(b"hello"));
    assert!(server.send(put).await.expect_status(200).header("x-amz-checksum-crc64nvme").is_some());
}

#[tokio::test]
async fn bad_part_numbers_are_refused() {
    let server = Server::with_bucket().await;
    let id = create(&server, "k", &[]).await;
    for number in ["0", "10001", "-1", "x", ""] {
        let put = request("PUT", &format!("/bucket/k?partNumber={number}&uploadId={id}")).body("v");
        server.send(put).await.expect_error(400, "InvalidArgument");
    }
}

#[tokio::test]
async fn a_token_repeats_the_upload_id() {
    let server = Server::with_bucket().await;
    let headers = [("x-amz-client-token", "t1")];
    let one = create(&server, "k", &headers).await;
    assert_eq!(create(&server, "k", &headers).await, one);
    assert_ne!(create(&server, "k", &[("x-amz-client-token", "t2")]).await, one);
}

#[tokio::test]
async fn a_repeated_complete_under_a_token_says_that_it_is_one() {
    let server = Server::with_bucket().await;
    let id = create(&server, "k", &[]).await;
    let tag = upload(&server, "k", &id, 1, bytes(1, 10)).await;
    let send = || complete("k", &id, &[(1, &tag)]).header("x-amz-client-token", "t-1");
    assert_eq!(server.send(send()).await.expect_status(200).header("x-plinth-replayed"), None);
    assert_eq!(server.send(send()).await.expect_status(200).header("x-plinth-replayed"), Some("true"));
}

#[tokio::test]
async fn a_part_without_its_number_is_malformed() {
    let server = Server::with_bucket().await;
    let id = create(&server, "k", &[]).await;
    for (part, code) in [
        ("<Part><ETag>a</ETag></Part>", "MalformedXML"),
        ("<Part><PartNumber>1</PartNumber></Part>", "MalformedXML"),
        ("<Part><PartNumber>-1</PartNumber><ETag>a</ETag></Part>", "InvalidArgument"),
    ] {
        let body = format!("<CompleteMultipartUpload>{part}</CompleteMultipartUpload>");
        let complete = request("POST", &format!("/bucket/k?uploadId={id}")).body(body);
        server.send(complete).await.expect_error(400, code);
    }
}
