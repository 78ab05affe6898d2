//! Buckets and listings.

use crate::client::{Server, request};

async fn with_keys(keys: &[&str]) -> Server {
    let server = Server::with_bucket().await;
    for key in keys {
        server.fake.put_quietly("bucket", key);
    }
    server
}

#[tokio::test]
async fn l1_keys_are_in_byte_order_and_folders_are_keys() {
    let server = with_keys(&["a", "a/", "a/b", "a//b", "Z", "é", "b"]).await;
    let page = server.send(request("GET", "/bucket?list-type=2")).await.expect_status(200);
    assert_eq!(page.elements("Key"), ["Z", "a", "a/", "a//b", "a/b", "b", "é"]);
    assert_eq!(page.element("KeyCount").as_deref(), Some("7"));
    assert_eq!(page.element("IsTruncated").as_deref(), Some("false"));
}

#[tokio::test]
async fn l2_common_prefixes_count_as_one_and_appear_once() {
    let server = with_keys(&["a/1", "a/2", "a/3", "b", "c::x::1", "c::x::2", "d"]).await;
    let mut seen = Vec::new();
    let mut token = String::new();
    loop {
        let page = server.send(request("GET", &format!("/bucket?list-type=2&delimiter=%2F&max-keys=1{token}"))).await;
        let page = page.expect_status(200);
        assert_eq!(page.element("KeyCount").as_deref(), Some("1"));
        seen.extend(page.elements("CommonPrefixes"));
        seen.extend(page.elements("Key"));
        if page.element("IsTruncated").as_deref() == Some("false") {
            break;
        }
        token = format!("&continuation-token={}", page.element("NextContinuationToken").expect("a token"));
    }
    assert_eq!(seen, ["<Prefix>a/</Prefix>", "b", "c::x::1", "c::x::2", "d"]);
    let page =
        server.send(request("GET", "/bucket?list-type=2&prefix=c&delimiter=%3A%3Ax%3A%3A")).await.expect_status(200);
    assert_eq!(page.elements("CommonPrefixes"), ["<Prefix>c::x::</Prefix>"]);
}

#[tokio::test]
async fn l3_page_sizes() {
    let server = with_keys(&["a", "b"]).await;
    let page = server.send(request("GET", "/bucket?list-type=2&max-keys=0")).await.expect_status(200);
    assert_eq!(page.elements("Key").len(), 0);
    assert_eq!(page.element("IsTruncated").as_deref(), Some("false"));
    let page = server.send(request("GET", "/bucket?list-type=2&max-keys=9999")).await.expect_status(200);
    assert_eq!(page.element("MaxKeys").as_deref(), Some("1000"));
    server.send(request("GET", "/bucket?list-type=2&max-keys=-1")).await.expect_error(400, "InvalidArgument");
    server.send(request("GET", "/bucket?list-type=3")).await.expect_error(400, "InvalidArgument");
}

#[tokio::test]
async fn l4_markers_and_tokens() {
    let server = with_keys(&["a", "b", "c/1", "c/2", "d"]).await;
    let page = server.send(request("GET", "/bucket?max-keys=2")).await.expect_status(200);
    assert_eq!(page.element("NextMarker"), None, "only with a delimiter");
    let page = server.send(request("GET", "/bucket?marker=b&max-keys=2")).await.expect_status(200);
    assert_eq!(page.elements("Key"), ["c/1", "c/2"]);
    let page = server.send(request("GET", "/bucket?delimiter=%2F&max-keys=3")).await.expect_status(200);
    assert_eq!(page.element("NextMarker").as_deref(), Some("c/"));
    let page = server.send(request("GET", "/bucket?delimiter=%2F&marker=c%2F")).await.expect_status(200);
    assert_eq!(page.elements("Key"), ["d"]);
    assert_eq!(page.elements("CommonPrefixes").len(), 0);
    // A token beats start-after.
    let page = server.send(request("GET", "/bucket?list-type=2&max-keys=1")).await.expect_status(200);
    let token = page.element("NextContinuationToken").expect("a token");
    let page =
        server.send(request("GET", &format!("/bucket?list-type=2&continuation-token={token}&start-after=d"))).await;
    assert_eq!(page.expect_status(200).elements("Key"), ["b", "c/1", "c/2", "d"]);
    let page = server.send(request("GET", "/bucket?list-type=2&start-after=c%2F1")).await.expect_status(200);
    assert_eq!(page.elements("Key"), ["c/2", "d"]);
    assert_eq!(page.element("StartAfter").as_deref(), Some("c/1"));
    server
        .send(request("GET", "/bucket?list-type=2&continuation-token=forged"))
        .await
        .expect_error(400, "InvalidArgument");
}

#[tokio::test]
async fn l5_names_may_be_url_encoded() {
    let server = with_keys(&["a b/c(d)", "x\u{1}y"]).await;
    let page = server.send(request("GET", "/bucket?list-type=2&encoding-type=url&delimiter=%2F&prefix=a%20")).await;
    let page = page.expect_status(200);
    assert_eq!(page.element("CommonPrefixes").as_deref(), Some("<Prefix>a+b/</Prefix>"));
    assert_eq!(page.element("EncodingType").as_deref(), Some("url"));
    assert!(page.text().contains("<Prefix>a+</Prefix>"));
    let page = server.send(request("GET", "/bucket?list-type=2&encoding-type=url")).await.expect_status(200);
    assert_eq!(page.elements("Key"), ["a+b/c%28d%29", "x%01y"]);
    let page = server.send(request("GET", "/bucket?list-type=2")).await.expect_status(200);
    assert_eq!(page.elements("Key"), ["a b/c(d)", "x&#x1;y"]);
    server.send(request("GET", "/bucket?encoding-type=base64")).await.expect_error(400, "InvalidArgument");
}

#[tokio::test]
async fn l6_owners_and_empty_answers() {
    let server = with_keys(&["a"]).await;
    let plain = server.send(request("GET", "/bucket?list-type=2")).await.expect_status(200);
    assert!(plain.element("Owner").is_none());
    let owned = server.send(request("GET", "/bucket?list-type=2&fetch-owner=true")).await.expect_status(200);
    assert!(owned.element("Owner").is_some());
    assert!(server.send(request("GET", "/bucket")).await.expect_status(200).element("Owner").is_some());
    let none = server.send(request("GET", "/bucket?list-type=2&prefix=zz")).await.expect_status(200);
    assert_eq!(none.element("KeyCount").as_deref(), Some("0"));
    server.send(request("GET", "/nobucket?list-type=2")).await.expect_error(404, "NoSuchBucket");
}

#[tokio::test]
async fn b1_any_location_is_accepted() {
    let server = Server::start().await;
    let document = |location: &str| {
        format!(
            "<CreateBucketConfiguration xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><LocationConstraint>{location}</LocationConstraint></CreateBucketConfiguration>"
        )
    };
    for (name, body, shown) in [
        ("one", String::new(), ""),
        ("two", document("us-east-1"), ""),
        ("three", document("EU"), "EU"),
        ("four", document("hanoi-1"), "hanoi-1"),
    ] {
        server.send(request("PUT", &format!("/{name}")).body(body)).await.expect_status(200);
        let location = server.send(request("GET", &format!("/{name}?location"))).await.expect_status(200);
        let text = location.text();
        assert!(text.contains(&format!("\">{shown}</LocationConstraint>")), "{text}");
    }
    let list = server.send(request("GET", "/")).await.expect_status(200);
    assert_eq!(list.elements("Name"), ["four", "one", "three", "two"]);
    let page = server.send(request("GET", "/?max-buckets=2")).await.expect_status(200);
    assert_eq!(page.elements("Name"), ["four", "one"]);
    let token = page.element("ContinuationToken").expect("a token");
    let page =
        server.send(request("GET", &format!("/?max-buckets=2&continuation-token={token}"))).await.expect_status(200);
    assert_eq!(page.elements("Name"), ["three", "two"]);
    let versioning = server.send(request("GET", "/one?versioning")).await.expect_status(200);
    assert!(versioning.text().ends_with("\"></VersioningConfiguration>"));
    server.send(request("PUT", "/Bad_Name")).await.expect_error(400, "InvalidBucketName");
    server.send(request("PUT", "/five").body("<Nonsense>")).await.expect_error(400, "MalformedXML");
}

#[tokio::test]
async fn b2_own_bucket_again_and_someone_elses() {
    let server = Server::with_bucket().await;
    server.send(request("PUT", "/bucket")).await.expect_error(409, "BucketAlreadyOwnedByYou");
    server.fake.give_away("bucket", "account-2");
    server.send(request("PUT", "/bucket")).await.expect_error(409, "BucketAlreadyExists");
    server.send(request("HEAD", "/bucket")).await.expect_status(403);
    let list = server.send(request("GET", "/")).await.expect_status(200);
    assert_eq!(list.elements("Name").len(), 0, "only buckets that the caller may see");
}

#[tokio::test]
async fn b3_only_empty_buckets_are_deleted() {
    let server = with_keys(&["a"]).await;
    server.send(request("POST", "/bucket/u?uploads")).await.expect_status(200);
    server.send(request("DELETE", "/bucket")).await.expect_error(409, "BucketNotEmpty");
    server.send(request("DELETE", "/bucket/a")).await.expect_status(204);
    server.send(request("DELETE", "/bucket")).await.expect_status(204);
    server.send(request("HEAD", "/bucket")).await.expect_status(404);
    server.send(request("DELETE", "/bucket")).await.expect_error(404, "NoSuchBucket");
}

#[tokio::test]
async fn what_never_comes_is_answered_cleanly() {
    let server = Server::with_bucket().await;
    for (target, status) in [
        ("?accelerate", 200),
        ("?analytics", 200),
        ("?metrics", 200),
        ("?intelligent-tiering", 200),
        ("?metrics&id=x", 404),
        ("?acl", 200),
    ] {
        server.send(request("GET", &format!("/bucket{target}"))).await.expect_status(status);
    }
    server.send(request("PUT", "/bucket?accelerate").body("<A/>")).await.expect_error(501, "NotImplemented");
    server.send(request("GET", "/bucket/k?torrent")).await.expect_error(501, "NotImplemented");
    server.send(request("PUT", "/bucket/k").body("v")).await.expect_status(200);
    let tags = server.send(request("GET", "/bucket/k?tagging")).await.expect_status(200);
    assert!(tags.text().contains("<TagSet></TagSet>"));
    server.send(request("GET", "/bucket/none?tagging")).await.expect_error(404, "NoSuchKey");
}

#[tokio::test]
async fn b1_a_location_is_a_name() {
    let server = Server::start().await;
    let create = |location: &str| {
        request("PUT", "/bucket").body(format!(
            "<CreateBucketConfiguration><LocationConstraint>{location}</LocationConstraint></CreateBucketConfiguration>"
        ))
    };
    for bad in ["a b", "x\ny", &"r".repeat(65), &"r".repeat(100_000)] {
        server.send(create(bad)).await.expect_error(400, "InvalidArgument");
    }
    server.send(create(&"r".repeat(64))).await.expect_status(200);
}
