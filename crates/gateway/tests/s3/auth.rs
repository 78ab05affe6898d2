//! Who may do what, and that nobody can change a signed request.

use crate::client::{ACCESS_KEY, MODES, Mode, OTHER_KEY, Request, SECRET, Server, keys, request};
use crate::objects::crc32_base64;
use plinth_gateway::GatewayConfig;
use std::time::Duration;
use tokio::time::Instant;

/// Every handler that writes, in every payload mode.
fn writes(upload: &str) -> Vec<Request> {
    let body = b"hello world, this is a body".to_vec();
    let document =
        "<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>x</ETag></Part></CompleteMultipartUpload>";
    let mut all = Vec::new();
    for mode in MODES {
        for presigned in [false, true] {
            let mut put = request("PUT", "/bucket/k").mode(mode).body(body.clone()).header("x-amz-meta-a", "b");
            let mut part =
                request("PUT", &format!("/bucket/k?partNumber=1&uploadId={upload}")).mode(mode).body(body.clone());
            if matches!(mode, Mode::ChunkedTrailer | Mode::UnsignedTrailer) {
                put = put.trailer("x-amz-checksum-crc32", &crc32_base64(&body));
                part = part.trailer("x-amz-checksum-crc32", &crc32_base64(&body));
            }
            put.presigned = presigned;
            part.presigned = presigned;
            put.chunk_bytes = 10;
            part.chunk_bytes = 10;
            all.extend([put, part]);
        }
    }
    let mut complete = request("POST", &format!("/bucket/k?uploadId={upload}")).body(document);
    complete.mode = Mode::Hash;
    all.push(complete);
    all.push(request("POST", "/bucket/k2?uploads"));
    all.push(request("PUT", "/bucket2"));
    all
}

#[tokio::test]
async fn s9_a_wrong_secret_is_refused_in_every_mode_place_and_handler() {
    let server = Server::with_bucket().await;
    let upload =
        server.send(request("POST", "/bucket/k?uploads")).await.expect_status(200).element("UploadId").expect("an id");
    for mut write in writes(&upload) {
        write.secret = "another secret".into();
        server.send(write).await.expect_error(403, "SignatureDoesNotMatch");
    }
    assert!(server.fake.keys().is_empty());
}

/// Flips a byte and expects that nothing is stored. The flip may break HTTP itself; then any refusal
/// will do.
async fn expect_refused(server: &Server, bytes: &[u8], at: usize) {
    let mut connection = server.connect().await;
    let mut flipped = bytes.to_vec();
    flipped[at] ^= 1;
    let flipped_text =
        String::from_utf8_lossy(&flipped[at.saturating_sub(20)..(at + 20).min(flipped.len())]).into_owned();
    connection.write(&flipped).await;
    let answer = connection.answer(false).await;
    assert!(answer.status >= 400, "byte {at} ({flipped_text}): {}", answer.status);
    assert!(server.fake.keys().is_empty(), "byte {at} ({flipped_text})");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s9_any_flipped_byte_is_refused() {
    let server = Server::with_bucket().await;
    for write in writes("00000000000000000000000000000000").into_iter().take(MODES.len() * 4) {
        let is_proved = write.mode != Mode::Unsigned && !(write.mode == Mode::Hash && write.presigned);
        let is_part = write.target.contains("partNumber");
        let (head, body) = write.sign_parts(&server.fake);
        let text = String::from_utf8(head.clone()).expect("ASCII");
        let whole = [head.clone(), body.clone()].concat();
        // The request line up to its version, and the values of the signed headers.
        let line_end = text.find(" HTTP/1.1").expect("a request line");
        let mut places: Vec<usize> = (0..line_end).filter(|at| text.as_bytes()[*at] != b' ').collect();
        let mut start = line_end + " HTTP/1.1\r\n".len();
        for line in text[start..].split("\r\n").filter(|line| !line.is_empty()) {
            let colon = line.find(": ").expect("a header");
            // Content-Length is no signed header here, and one digit less would wait for the rest.
            if !line.starts_with("content-length") {
                places.extend((colon + 2..line.len()).step_by(3).map(|at| start + at));
            }
            start += line.len() + 2;
        }
        if is_part {
            // The heads are the same but for the query: a sample is enough.
            places.retain(|at| at % 7 == 0);
        }
        if is_proved && !is_part {
            places.extend((0..body.len()).map(|at| head.len() + at));
        }
        for at in places {
            expect_refused_or_waiting(&server, &whole, at).await;
        }
    }
}

/// A flip that makes a size larger leaves the server waiting for bytes: the client closes then.
async fn expect_refused_or_waiting(server: &Server, bytes: &[u8], at: usize) {
    let check = expect_refused(server, bytes, at);
    if tokio::time::timeout(std::time::Duration::from_millis(1500), check).await.is_err() {
        assert!(server.fake.keys().is_empty(), "byte {at}");
    }
}

#[tokio::test]
async fn s2_unsigned_headers_are_refused_in_both_places() {
    let server = Server::with_bucket().await;
    server.send(request("PUT", "/bucket/secret").body("v")).await.expect_status(200);
    for presigned in [false, true] {
        for (name, value) in [
            ("x-amz-copy-source", "/bucket/secret"),
            ("x-amz-meta-a", "b"),
            ("x-amz-acl", "private"),
            ("x-plinth-x", "1"),
        ] {
            let mut put = request("PUT", "/bucket/k").body("v").unsigned(name, value);
            put.presigned = presigned;
            let answer = server.send(put).await.expect_error(403, "AccessDenied");
            assert_eq!(answer.element("HeadersNotSigned").as_deref(), Some(name));
        }
    }
    assert_eq!(server.fake.keys(), ["secret"]);
}

#[tokio::test]
async fn s3_hoisted_parameters_work() {
    let server = Server::with_bucket().await;
    let mut put = request("PUT", "/bucket/k?x-amz-sdk-checksum-algorithm=CRC32&x-amz-meta-a=b").body("hello");
    put.presigned = true;
    let answer = server.send(put).await.expect_status(200);
    assert!(answer.header("x-amz-checksum-crc32").is_some());
    let mut get = request("GET", "/bucket/k?x-amz-checksum-mode=ENABLED");
    get.presigned = true;
    let answer = server.send(get).await.expect_status(200);
    assert!(answer.header("x-amz-checksum-crc32").is_some());
    assert_eq!(answer.header("x-amz-meta-a"), Some("b"));
}

#[tokio::test]
async fn s1_an_escape_signs_like_what_it_stands_for() {
    let server = Server::with_bucket().await;
    type Swap = fn(&str) -> String;
    let swaps: [(&str, &str, Swap); 4] = [
        ("/bucket/a~b_c-d.txt", "a~b_c-d.txt", |target| target.replacen("a~b_c-d.txt", "a%7Eb%5Fc%2Dd%2Etxt", 1)),
        ("/bucket/a~b_c-d.txt", "a~b_c-d.txt", |target| target.replacen('~', "%7e", 1)),
        ("/bucket/%C3%A9%2Fx", "é/x", |target| target.replacen("%C3%A9%2Fx", "%c3%a9%2fx", 1)),
        ("/bucket/%C3%A9%2Fx", "é/x", |target| target.replacen("%C3%A9", "é", 1)),
    ];
    for presigned in [false, true] {
        for (target, key, wire) in swaps {
            let signed = |method: &str| {
                let mut request = request(method, target);
                (request.presigned, request.wire_target) = (presigned, Some(wire));
                request
            };
            server.send(signed("PUT").body("hello")).await.expect_status(200);
            assert_eq!(server.fake.keys(), [key]);
            assert_eq!(server.send(signed("GET")).await.expect_status(200).body, b"hello");
            server.send(signed("DELETE")).await.expect_status(204);
        }
        let mut list = request("GET", "/bucket?list-type=2&prefix=a~b%2F");
        list.presigned = presigned;
        list.wire_target = Some(|target| target.replacen("a~b%2F", "a%7Eb%2f", 1));
        let answer = server.send(list).await.expect_status(200);
        assert_eq!(answer.element("Prefix").as_deref(), Some("a~b/"));
        // Another character is another name.
        let mut other = request("PUT", "/bucket/a~b").body("x");
        other.presigned = presigned;
        other.wire_target = Some(|target| target.replacen('~', "%7F", 1));
        server.send(other).await.expect_error(403, "SignatureDoesNotMatch");
    }
}

#[tokio::test]
async fn s7_the_payload_hash_is_really_computed() {
    let server = Server::with_bucket().await;
    let put = request("PUT", "/bucket/k").body("hello");
    let (head, _) = put.sign_parts(&server.fake);
    let mut connection = server.connect().await;
    connection.exchange(&[&head[..], b"jello"].concat(), false).await.expect_error(400, "XAmzContentSHA256Mismatch");
    // Also of a body that should be empty.
    let mut delete = request("DELETE", "/bucket/k").body("something");
    delete.sends_length = false;
    let (head, _) = delete.sign_parts(&server.fake);
    server.connect().await.exchange(&head, false).await.expect_error(400, "XAmzContentSHA256Mismatch");
    assert!(server.fake.keys().is_empty());
}

#[tokio::test]
async fn s8_a_mismatch_returns_what_was_signed() {
    let server = Server::with_bucket().await;
    let mut get = request("GET", "/bucket/k");
    get.secret = "wrong".into();
    let answer = server.send(get).await.expect_error(403, "SignatureDoesNotMatch");
    let canonical = answer.element("CanonicalRequest").expect("shown");
    assert!(canonical.starts_with("GET&#xA;/bucket/k&#xA;"), "{canonical}");
    assert!(answer.element("StringToSign").expect("shown").starts_with("AWS4-HMAC-SHA256&#xA;"));
    // C37: neither the secret nor anything derived from it.
    assert!(!answer.text().contains(SECRET));
}

#[tokio::test]
async fn c11_strangers_never_reach_the_backend() {
    let server = Server::with_bucket().await;
    server.fake.give_away("bucket", "account-1");
    let before = server.fake.calls();
    for (method, target) in [
        ("GET", "/"),
        ("GET", "/bucket/k"),
        ("PUT", "/bucket/k"),
        ("DELETE", "/bucket/k"),
        ("POST", "/bucket?delete"),
        ("GET", "/bucket?list-type=2"),
        ("HEAD", "/bucket"),
        ("PUT", "/other"),
    ] {
        let bytes = format!("{method} {target} HTTP/1.1\r\nhost: h\r\nif-none-match: *\r\n\r\n");
        let answer = server.connect().await.exchange(bytes.as_bytes(), method == "HEAD").await;
        assert_eq!(answer.expect_status(403).status, 403);
    }
    assert_eq!(server.fake.calls(), before, "anonymous requests touch nothing");
    // Another tenant is denied whatever the state of the object, conditional or not.
    server.send(request("PUT", "/bucket/k").body("v")).await.expect_status(200);
    for target in ["/bucket/k", "/bucket/none"] {
        for condition in ["\"x\"", "*"] {
            let mut get = request("GET", target).header("if-match", condition);
            get.access_key = OTHER_KEY.into();
            server.send(get).await.expect_error(403, "AccessDenied");
        }
    }
    for (method, target) in [
        ("PUT", "/bucket/k"),
        ("DELETE", "/bucket/k"),
        ("GET", "/bucket?list-type=2"),
        ("DELETE", "/bucket"),
        ("GET", "/bucket?location"),
        ("POST", "/bucket/k?uploads"),
        ("GET", "/bucket?policy"),
    ] {
        let mut foreign = request(method, target);
        foreign.access_key = OTHER_KEY.into();
        server.send(foreign).await.expect_error(403, "AccessDenied");
    }
    assert_eq!(server.fake.keys(), ["k"]);
}

#[tokio::test]
async fn expected_owners_are_evaluated() {
    let server = Server::with_bucket().await;
    let put = |owner: &str| request("PUT", "/bucket/k").header("x-amz-expected-bucket-owner", owner).body("v");
    server.send(put("account-1")).await.expect_status(200);
    server.send(put("account-9")).await.expect_error(403, "AccessDenied");
}

#[tokio::test]
async fn a1_both_address_styles_name_the_same_object() {
    let server = Server::with_bucket().await;
    server.send(request("PUT", "/bucket/a/b").body("v")).await.expect_status(200);
    let by_host = request("GET", "/a/b").header("host", "bucket.s3.test:9000");
    assert_eq!(server.send(by_host).await.expect_status(200).text(), "v");
    server.send(request("PUT", "/my.dotted.name")).await.expect_status(200);
    server.send(request("PUT", "/k").header("host", "my.dotted.name.s3.test").body("w")).await.expect_status(200);
    let by_path = request("GET", "/my.dotted.name/k").header("host", "[::1]:9000");
    assert_eq!(server.send(by_path).await.expect_status(200).text(), "w");
    let stranger = request("GET", "/bucket/a/b").header("host", "other.example.com");
    server.send(stranger).await.expect_status(200);
}

#[tokio::test]
async fn x1_errors_are_what_clients_parse() {
    let server = Server::with_bucket().await;
    let answer = server.send(request("GET", "/bucket/a%26b")).await.expect_error(404, "NoSuchKey");
    let text = answer.text();
    assert!(text.starts_with("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>"), "no namespace: {text}");
    for name in ["Message", "Resource", "RequestId", "HostId", "Key"] {
        assert!(answer.element(name).is_some_and(|text| !text.is_empty()), "{name} in {text}");
    }
    assert_eq!(answer.element("Key").as_deref(), Some("a&amp;b"));
    assert_eq!(answer.header("content-type"), Some("application/xml"));
    let argument = server.send(request("GET", "/bucket?max-keys=x")).await.expect_error(400, "InvalidArgument");
    assert_eq!(argument.element("ArgumentName").as_deref(), Some("max-keys"));
    assert_eq!(argument.element("ArgumentValue").as_deref(), Some("x"));
    let header = server.send(request("PUT", "/bucket/k").header("x-amz-tagging", "a=b")).await;
    assert_eq!(header.expect_error(501, "NotImplemented").element("Header").as_deref(), Some("x-amz-tagging"));
    server.send(request("PATCH", "/bucket/k")).await.expect_error(405, "MethodNotAllowed");
}

#[tokio::test]
async fn s1_unusual_paths_verify_as_sent() {
    let server = Server::with_bucket().await;
    for (path, key) in [
        ("a//b", "a//b"),
        ("./../x", "./../x"),
        ("a%2Fb%2fc", "a/b/c"),
        ("a+b%2B", "a+b+"),
        ("%C3%A9%F0%9F%98%80", "é😀"),
        ("a%20%25", "a %"),
        ("~-._", "~-._"),
    ] {
        server.send(request("PUT", &format!("/bucket/{path}")).body("v")).await.expect_status(200);
        assert_eq!(server.fake.keys(), [key]);
        server.send(request("GET", &format!("/bucket/{path}?x=1&x=0&empty"))).await.expect_status(200);
        server.send(request("DELETE", &format!("/bucket/{path}"))).await.expect_status(204);
    }
}

#[tokio::test]
async fn unknown_keys_and_tokens_are_refused() {
    let server = Server::with_bucket().await;
    let mut get = request("GET", "/bucket");
    get.access_key = "NOSUCHKEY".into();
    server.send(get).await.expect_error(403, "InvalidAccessKeyId");
    let token = request("GET", "/bucket").header("x-amz-security-token", "t");
    server.send(token).await.expect_error(400, "InvalidToken");
    assert_ne!(ACCESS_KEY, OTHER_KEY);
}

#[tokio::test]
async fn s3_metadata_that_stands_twice_must_agree_and_be_a_header() {
    let server = Server::with_bucket().await;
    let put = |target: &str| {
        let mut put = request("PUT", target).body("v");
        put.presigned = true;
        put
    };
    let both = put("/bucket/k?x-amz-meta-a=2").header("x-amz-meta-a", "1");
    server.send(both).await.expect_error(400, "InvalidArgument");
    let twice = put("/bucket/k?X-Amz-Meta-A=2&x-amz-meta-a=1");
    server.send(twice).await.expect_error(400, "InvalidArgument");
    for bad in ["/bucket/k?x-amz-meta-a=b%0D%0Ax%3A%20y", "/bucket/k?x-amz-meta-a%20b=c", "/bucket/k?x-amz-meta-a=%00"]
    {
        server.send(put(bad)).await.expect_error(400, "InvalidArgument");
    }
    assert!(server.fake.keys().is_empty());
    server.send(put("/bucket/k?x-amz-meta-a=1").header("x-amz-meta-a", "1")).await.expect_status(200);
}

#[tokio::test]
async fn many_failures_of_a_key_are_answered_late_and_its_owner_is_not() {
    let server = Server::start_with(GatewayConfig::new(keys())).await;
    server.send(request("PUT", "/bucket")).await.expect_status(200);
    let mut wrong = request("GET", "/bucket/k");
    wrong.secret = "wrong".into();
    let mut slowest = Duration::ZERO;
    for _ in 0..40 {
        if slowest >= Duration::from_secs(1) {
            break;
        }
        let started = Instant::now();
        server.send(wrong.clone()).await.expect_error(403, "SignatureDoesNotMatch");
        slowest = slowest.max(started.elapsed());
    }
    assert!(slowest >= Duration::from_secs(1), "{slowest:?}");
    let started = Instant::now();
    server.send(request("HEAD", "/bucket")).await.expect_status(200);
    assert!(started.elapsed() < Duration::from_millis(900), "{:?}", started.elapsed());
}

#[tokio::test]
async fn made_up_keys_of_a_source_count_as_one() {
    let server = Server::start_with(GatewayConfig::new(keys())).await;
    let mut slowest = Duration::ZERO;
    for number in 0..40 {
        if slowest >= Duration::from_secs(1) {
            break;
        }
        let mut unknown = request("GET", "/bucket/k");
        unknown.access_key = format!("PLNOBODY{number:012}");
        let started = Instant::now();
        server.send(unknown).await.expect_error(403, "InvalidAccessKeyId");
        slowest = slowest.max(started.elapsed());
    }
    assert!(slowest >= Duration::from_secs(1), "{slowest:?}");
}
