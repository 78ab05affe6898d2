//! Conditions, tokens and deletes.

use crate::client::{Request, Server, request};
use base64::Engine as _;
use md5::{Digest, Md5};
use plinth_protocol::FailureKind;

fn md5_base64(body: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(Md5::digest(body))
}

fn delete_many(body: &str) -> Request {
    request("POST", "/bucket?delete").header("content-md5", &md5_base64(body.as_bytes())).body(body)
}

#[tokio::test]
async fn c1_other_preconditions_on_writes_are_refused() {
    let server = Server::with_bucket().await;
    let date = "Wed, 21 Oct 2015 07:28:00 GMT";
    for headers in [
        vec![("if-none-match", "\"etag\"")],
        vec![("if-match", "*"), ("if-none-match", "*")],
        vec![("if-modified-since", date)],
        vec![("if-unmodified-since", date)],
        vec![("if-match", "\"a\", \"b\"")],
    ] {
        let put =
            headers.iter().fold(request("PUT", "/bucket/k").body("v"), |ask, (name, value)| ask.header(name, value));
        server.send(put).await.expect_error(501, "NotImplemented");
    }
    for (method, target) in [("POST", "/bucket/k?uploads"), ("PUT", "/newbucket")] {
        server.send(request(method, target).header("if-none-match", "*")).await.expect_error(501, "NotImplemented");
    }
    server.send(request("DELETE", "/bucket/k").header("if-none-match", "*")).await.expect_error(501, "NotImplemented");
    assert!(server.fake.keys().is_empty());
}

#[tokio::test]
async fn conditions_on_writes_follow_the_table() {
    let server = Server::with_bucket().await;
    let put = |name: &str, value: &str| request("PUT", "/bucket/k").header(name, value).body("v");
    server.send(put("if-match", "*")).await.expect_error(404, "NoSuchKey");
    server.send(put("if-match", "\"x\"")).await.expect_error(404, "NoSuchKey");
    let etag =
        server.send(put("if-none-match", "*")).await.expect_status(200).header("etag").expect("a tag").to_owned();
    // C6: a write never answers 304.
    server.send(put("if-none-match", "*")).await.expect_error(412, "PreconditionFailed");
    server.send(put("if-match", "\"x\"")).await.expect_error(412, "PreconditionFailed");
    server.send(put("if-match", &etag)).await.expect_status(200);
    server.send(put("if-match", "*")).await.expect_status(200);
    let delete = |value: &str| request("DELETE", "/bucket/k").header("if-match", value);
    server.send(delete("\"x\"")).await.expect_error(412, "PreconditionFailed");
    server.send(delete(&etag)).await.expect_status(204);
    server.send(delete("*")).await.expect_error(404, "NoSuchKey");
}

#[tokio::test]
async fn c2_of_racing_creators_one_wins() {
    let server = Server::with_bucket().await;
    let tries = (0..16).map(|number| {
        let put = request("PUT", "/bucket/k").header("if-none-match", "*").body(format!("{number}"));
        server.send(put)
    });
    let mut statuses = Vec::new();
    let answers = futures_all(tries).await;
    for answer in answers {
        statuses.push(answer.status);
    }
    statuses.sort_unstable();
    assert_eq!(statuses[0], 200);
    assert!(statuses[1..].iter().all(|status| *status == 412), "{statuses:?}");
}

async fn futures_all<F: Future>(tries: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut pending: Vec<_> = tries.map(Box::pin).collect();
    let mut done = Vec::new();
    std::future::poll_fn(|cx| {
        pending.retain_mut(|one| match one.as_mut().poll(cx) {
            std::task::Poll::Ready(output) => {
                done.push(output);
                false
            }
            std::task::Poll::Pending => true,
        });
        if pending.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    done
}

#[tokio::test]
async fn d1_deleting_what_is_not_there_succeeds() {
    let server = Server::with_bucket().await;
    server.send(request("DELETE", "/bucket/none")).await.expect_status(204);
    server.send(request("DELETE", "/nobucket/none")).await.expect_error(404, "NoSuchBucket");
}

#[tokio::test]
async fn d2_quiet_omits_successes_only() {
    let server = Server::with_bucket().await;
    for key in ["a", "b", "c"] {
        server.send(request("PUT", &format!("/bucket/{key}")).body(key)).await.expect_status(200);
    }
    // C4: a condition per key, failures reported per key.
    let body = "<Delete><Quiet>true</Quiet><Object><Key>a</Key></Object><Object><Key>b</Key><ETag>\"x\"</ETag></Object></Delete>";
    let answer = server.send(delete_many(body)).await.expect_status(200);
    assert_eq!(answer.elements("Deleted").len(), 0);
    assert_eq!(answer.elements("Code"), ["PreconditionFailed"]);
    assert_eq!(answer.elements("Key"), ["b"]);
    let body =
        "<Delete><Object><Key>b</Key></Object><Object><Key>never</Key></Object><Object><Key>c</Key></Object></Delete>";
    let answer = server.send(delete_many(body)).await.expect_status(200);
    assert_eq!(answer.elements("Key"), ["b", "never", "c"]);
    assert!(server.fake.keys().is_empty());
}

#[tokio::test]
async fn d3_keys_survive_deletion_exactly() {
    let server = Server::with_bucket().await;
    server.send(request("PUT", "/bucket/%20a%0D%0A%26%20").body("v")).await.expect_status(200);
    assert_eq!(server.fake.keys(), [" a\r\n& "]);
    let list = server.send(request("GET", "/bucket?list-type=2")).await.expect_status(200);
    assert_eq!(list.element("Key").as_deref(), Some(" a&#xD;&#xA;&amp; "));
    let answer = server.send(delete_many("<Delete><Object><Key> a&#13;\n&amp; </Key></Object></Delete>")).await;
    answer.expect_status(200);
    assert!(server.fake.keys().is_empty());
}

#[tokio::test]
async fn k8_delete_objects_needs_a_digest() {
    let server = Server::with_bucket().await;
    let body = "<Delete><Object><Key>a</Key></Object></Delete>";
    server.send(request("POST", "/bucket?delete").body(body)).await.expect_error(400, "InvalidRequest");
    server.send(delete_many(body)).await.expect_status(200);
    let crc = crate::objects::crc32_base64(body.as_bytes());
    server
        .send(request("POST", "/bucket?delete").header("x-amz-checksum-crc32", &crc).body(body))
        .await
        .expect_status(200);
    let wrong = request("POST", "/bucket?delete").header("content-md5", &md5_base64(b"other")).body(body);
    server.send(wrong).await.expect_error(400, "BadDigest");
}

#[tokio::test]
async fn malformed_documents_are_refused_and_delete_nothing() {
    let server = Server::with_bucket().await;
    server.send(request("PUT", "/bucket/a").body("v")).await.expect_status(200);
    for body in
        ["", "text", "<Delete>", "<Other/>", "<Delete></Delete>", "<Delete><Object/></Delete>", "<!DOCTYPE a><Delete/>"]
    {
        let answer = server.send(delete_many(body)).await;
        answer.expect_error(400, "MalformedXML");
    }
    let unknown = delete_many("<Delete><Object><Key>a</Key><Size>1</Size></Object></Delete>");
    server.send(unknown).await.expect_error(501, "NotImplemented");
    assert_eq!(server.fake.keys(), ["a"]);
}

#[tokio::test]
async fn a_token_gives_the_first_answer_again() {
    let server = Server::with_bucket().await;
    let put = |body: &str| {
        request("PUT", "/bucket/k").header("if-none-match", "*").header("x-amz-client-token", "token-1").body(body)
    };
    let first = server.send(put("v")).await.expect_status(200);
    assert_eq!(first.header("x-plinth-replayed"), None);
    // A conditional create repeated by its own author succeeds again, instead of failing on itself.
    let again = server.send(put("v")).await.expect_status(200);
    assert_eq!(again.header("x-plinth-replayed"), Some("true"));
    assert_eq!(again.header("etag"), first.header("etag"));
    server.send(put("other")).await.expect_error(400, "IdempotencyParameterMismatch");
    let other_key = request("PUT", "/bucket/k2").header("x-amz-client-token", "token-1").body("v");
    assert_eq!(server.send(other_key).await.expect_status(200).header("x-plinth-replayed"), None, "scope: the key");
    for bad in ["", "a b", &"t".repeat(65)] {
        let put = request("PUT", "/bucket/k3").header("x-amz-client-token", bad).body("v");
        server.send(put).await.expect_error(400, "InvalidArgument");
    }
}

#[tokio::test]
async fn an_invocation_id_is_a_token_of_conditional_writes() {
    let server = Server::with_bucket().await;
    let put = |body: &str| {
        request("PUT", "/bucket/k").header("if-none-match", "*").header("amz-sdk-invocation-id", "id-1").body(body)
    };
    server.send(put("v")).await.expect_status(200);
    assert_eq!(server.send(put("v")).await.expect_status(200).header("x-plinth-replayed"), Some("true"));
    // Other parameters make it a new request, never an error of tokens.
    server.send(put("other")).await.expect_error(412, "PreconditionFailed");
    // Unsigned and without TLS it proves nothing.
    let unsigned =
        request("PUT", "/bucket/k").header("if-none-match", "*").unsigned("amz-sdk-invocation-id", "id-1").body("v");
    server.send(unsigned).await.expect_error(412, "PreconditionFailed");
}

#[tokio::test]
async fn unknown_outcomes_are_503_and_full_is_507() {
    let server = Server::with_bucket().await;
    for (kind, status, code) in [
        (FailureKind::Unavailable, 503, "ServiceUnavailable"),
        (FailureKind::Unknown, 503, "ServiceUnavailable"),
        (FailureKind::NotLeader, 503, "ServiceUnavailable"),
        (FailureKind::Busy, 503, "SlowDown"),
        (FailureKind::Full, 507, "InsufficientStorage"),
        (FailureKind::Internal, 500, "InternalError"),
    ] {
        server.fake.faults.lock().expect("not poisoned").commit = Some(kind);
        let answer = server.send(request("PUT", "/bucket/k").body("v")).await.expect_error(status, code);
        assert_eq!(answer.header("retry-after").is_some(), status == 503);
    }
}

#[tokio::test]
async fn refused_words_leave_the_body_unread_and_no_object() {
    let server = Server::with_bucket().await;
    for (name, value, status, code) in [
        ("x-amz-tagging", "a=b", 501, "NotImplemented"),
        ("x-amz-server-side-encryption", "AES256", 501, "NotImplemented"),
        ("x-amz-storage-class", "GLACIER", 400, "InvalidStorageClass"),
        ("x-amz-acl", "public-read", 400, "AccessControlListNotSupported"),
        ("x-amz-grant-read", "id=1", 400, "AccessControlListNotSupported"),
        ("x-amz-object-lock-mode", "COMPLIANCE", 501, "NotImplemented"),
        ("x-amz-unheard-of", "1", 501, "NotImplemented"),
        ("content-range", "bytes 0-1/2", 501, "NotImplemented"),
    ] {
        let answer = server.send(request("PUT", "/bucket/k").header(name, value).body("v")).await;
        assert!(answer.text().contains(name), "names the word: {}", answer.text());
        answer.expect_error(status, code);
    }
    for (name, value) in [
        ("x-amz-acl", "private"),
        ("x-amz-acl", "bucket-owner-full-control"),
        ("x-amz-storage-class", "STANDARD"),
        ("x-amz-request-payer", "requester"),
    ] {
        server.send(request("PUT", "/bucket/k").header(name, value).body("v")).await.expect_status(200);
    }
    server.send(request("PUT", "/bucket/k?tagging").body("<Tagging/>")).await.expect_error(501, "NotImplemented");
    server.send(request("GET", "/bucket?policy")).await.expect_error(501, "NotImplemented");
    server.send(request("GET", "/bucket?acl&policy")).await.expect_error(400, "InvalidArgument");
}
