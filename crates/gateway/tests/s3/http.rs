//! The connection: 100-continue, limits, framing, time.

use crate::client::{Connection, Mode, Server, keys, request};
use plinth_gateway::{GatewayConfig, Patience};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};

#[tokio::test]
async fn h1_refusals_come_instead_of_100() {
    let server = Server::with_bucket().await;
    let mut put = request("PUT", "/bucket/k").header("expect", "100-continue").body(vec![1; 100_000]);
    put.secret = "wrong".into();
    let (head, _) = put.sign_parts(&server.fake);
    let mut connection = server.connect().await;
    connection.exchange(&head, false).await.expect_error(403, "SignatureDoesNotMatch");
    let put = request("PUT", "/nobucket/k").header("expect", "100-continue").body(vec![1; 100_000]);
    let (head, _) = put.sign_parts(&server.fake);
    server.connect().await.exchange(&head, false).await.expect_error(404, "NoSuchBucket");
    let put = request("PUT", "/bucket/k").header("expect", "100-continue").header("x-amz-tagging", "a=b").body("v");
    let (head, _) = put.sign_parts(&server.fake);
    server.connect().await.exchange(&head, false).await.expect_error(501, "NotImplemented");
    // What is admitted is asked for.
    let put = request("PUT", "/bucket/k").header("expect", "100-continue").body(vec![1; 100_000]);
    let (head, body) = put.sign_parts(&server.fake);
    let mut connection = server.connect().await;
    assert_eq!(connection.exchange(&head, false).await.status, 100);
    connection.exchange(&body, false).await.expect_status(200);
}

#[tokio::test]
async fn h2_a_small_rest_is_drained_and_a_large_one_closes() {
    let server = Server::with_bucket().await;
    let small = request("PUT", "/bucket/k").header("x-amz-tagging", "a=b").body(vec![1; 200_000]);
    let mut connection = server.connect().await;
    connection.exchange(&small.sign(&server.fake), false).await.expect_error(501, "NotImplemented");
    // The connection goes on.
    let next = request("HEAD", "/bucket").sign(&server.fake);
    connection.exchange(&next, true).await.expect_status(200);
    let large = request("PUT", "/bucket/k").header("x-amz-tagging", "a=b").body(vec![1; 300_000]);
    let answer = connection.exchange(&large.sign(&server.fake), false).await.expect_error(501, "NotImplemented");
    assert_eq!(answer.header("connection"), Some("close"));
    assert!(connection.is_closed().await);
}

#[tokio::test]
async fn h3_lengths_are_required_and_reported() {
    let server = Server::with_bucket().await;
    let mut put = request("PUT", "/bucket/k");
    put.sends_length = false;
    server.send(put).await.expect_error(411, "MissingContentLength");
    let put = request("PUT", "/bucket/k").unsigned("transfer-encoding", "chunked");
    let (head, _) = put.sign_parts(&server.fake);
    let answer = server.connect().await.exchange(&[&head[..], b"0\r\n\r\n"].concat(), false).await;
    answer.expect_error(411, "MissingContentLength");
    server.send(request("PUT", "/bucket/k").body("hello")).await.expect_status(200);
    let head = server.send(request("HEAD", "/bucket/k")).await.expect_status(200);
    assert_eq!(head.header("content-length"), Some("5"));
    // HEAD and 304 have no body: the connection is in step behind them.
    let etag = head.header("etag").expect("a tag").to_owned();
    let mut connection = server.connect().await;
    connection.exchange(&request("HEAD", "/bucket/none").sign(&server.fake), true).await.expect_status(404);
    let same = request("GET", "/bucket/k").header("if-none-match", &etag).sign(&server.fake);
    connection.exchange(&same, false).await.expect_status(304);
    let get = request("GET", "/bucket/k").sign(&server.fake);
    assert_eq!(connection.exchange(&get, false).await.expect_status(200).text(), "hello");
}

#[tokio::test]
async fn h4_ambiguous_framing_is_400_and_closes() {
    let server = Server::with_bucket().await;
    for framing in [
        "content-length: 5\r\ncontent-length: 6\r\n",
        "content-length: 5\r\ncontent-length: 5\r\n",
        "content-length: 5\r\ntransfer-encoding: chunked\r\n",
        "transfer-encoding: chunked\r\ncontent-length: 5\r\n",
        "transfer-encoding: gzip, chunked\r\n",
    ] {
        let bytes = format!(
            "PUT /bucket/k HTTP/1.1\r\nhost: h\r\n{framing}\r\nhello0\r\n\r\nGET / HTTP/1.1\r\nhost: h\r\n\r\n"
        );
        let mut connection = server.connect().await;
        let answer = connection.exchange(bytes.as_bytes(), false).await.expect_error(400, "InvalidRequest");
        assert_eq!(answer.header("connection"), Some("close"));
        assert!(connection.is_closed().await, "{framing}");
    }
}

#[tokio::test]
async fn h4_pipelined_heads_are_judged_too() {
    let server = Server::with_bucket().await;
    server.send(request("PUT", "/bucket/k").body("v")).await.expect_status(200);
    let first = request("GET", "/bucket/k").sign(&server.fake);
    let second =
        b"PUT /bucket/k HTTP/1.1\r\nhost: h\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n";
    let mut connection = server.connect().await;
    connection.write(&[&first[..], second].concat()).await;
    assert_eq!(connection.answer(false).await.expect_status(200).text(), "v");
    connection.answer(false).await.expect_error(400, "InvalidRequest");
    assert!(connection.is_closed().await);
}

#[tokio::test]
async fn garbage_gets_an_s3_error() {
    let server = Server::with_bucket().await;
    for bytes in [
        "GARBAGE\r\n\r\n".to_owned(),
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(),
        "GET /bucket HTTP/9.9\r\n\r\n".to_owned(),
        "CONNECT h:1 HTTP/1.1\r\nhost: h\r\n\r\n".to_owned(),
        "GET /bucket HTTP/1.1\r\nbad header\r\n\r\n".to_owned(),
    ] {
        server.connect().await.exchange(bytes.as_bytes(), false).await.expect_error(400, "InvalidRequest");
    }
    let long = format!("GET /{} HTTP/1.1\r\nhost: h\r\n\r\n", "a".repeat(20_000));
    server.connect().await.exchange(long.as_bytes(), false).await.expect_error(400, "InvalidURI");
    let large = format!("GET / HTTP/1.1\r\nhost: h\r\nx: {}\r\n\r\n", "a".repeat(40_000));
    let answer = server.connect().await.exchange(large.as_bytes(), false).await;
    answer.expect_error(400, "RequestHeaderSectionTooLarge");
    let bad_key = "GET /bucket/%zz HTTP/1.1\r\nhost: h\r\n\r\n";
    server.connect().await.exchange(bad_key.as_bytes(), false).await.expect_error(400, "InvalidURI");
}

#[tokio::test]
async fn bodies_beyond_the_limits_are_refused_unread() {
    let mut config = GatewayConfig::new(keys());
    config.in_flight_bytes_max = 2 << 20;
    // Nobody stalls here, however long the test is kept waiting.
    config.patience.stalled_after = Duration::from_secs(3600);
    let server = Server::start_with(config).await;
    server.send(request("PUT", "/bucket")).await.expect_status(200);
    // Too large for any PUT.
    let put = request("PUT", "/bucket/k").unsigned("content-length", "5368709121");
    let (head, _) = put.sign_parts(&server.fake);
    server.connect().await.exchange(&head, false).await.expect_error(400, "EntityTooLarge");
    // Too large for what is in flight: SlowDown before the body.
    let (head, body) = request("PUT", "/bucket/first").body(vec![1; 2_000_000]).sign_parts(&server.fake);
    let mut first = server.connect().await;
    first.write(&[&head[..], &body[..1_999_999]].concat()).await;
    let deadline = Instant::now() + Duration::from_secs(20);
    while server.gauge("plinth_s3_in_flight_bytes") < 2 << 20 {
        // The gauge is set with each answer.
        server.send(request("HEAD", "/bucket")).await.expect_status(200);
        assert!(Instant::now() < deadline, "the gateway takes what is sent");
    }
    let put = request("PUT", "/bucket/k").header("expect", "100-continue").unsigned("content-length", "2000000");
    let (head, _) = put.sign_parts(&server.fake);
    let answer = server.connect().await.exchange(&head, false).await.expect_error(503, "SlowDown");
    assert!(answer.header("retry-after").is_some());
    // Nothing is held by what was refused.
    first.exchange(&body[1_999_999..], false).await.expect_status(200);
    server.send(request("PUT", "/bucket/k").body(vec![1; 1 << 20])).await.expect_status(200);
    let document = "x".repeat((1 << 20) + 1);
    server.send(request("PUT", "/other").body(document)).await.expect_error(400, "MaxMessageLengthExceeded");
}

#[tokio::test]
async fn a_body_that_breaks_off_leaves_no_object() {
    let server = Server::with_bucket().await;
    for mode in crate::client::MODES {
        let put = request("PUT", "/bucket/k").mode(mode).body(vec![1; 50_000]);
        let (head, body) = put.sign_parts(&server.fake);
        let mut connection = server.connect().await;
        connection.write(&[&head[..], &body[..30_000]].concat()).await;
        drop(connection);
    }
    // The gateway is well, and nothing is there.
    server.send(request("HEAD", "/bucket")).await.expect_status(200);
    assert!(server.fake.keys().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_silent_body_times_out_and_closes() {
    let server = Server::with_bucket().await;
    let put = request("PUT", "/bucket/k").body(vec![1; 50_000]);
    let (head, body) = put.sign_parts(&server.fake);
    let mut connection = server.connect().await;
    connection.write(&[&head[..], &body[..30_000]].concat()).await;
    tokio::time::sleep(Duration::from_secs(55)).await;
    let answer = connection.answer(false).await.expect_error(400, "RequestTimeout");
    assert_eq!(answer.header("connection"), Some("close"));
    assert!(connection.is_closed().await);
    assert!(server.fake.keys().is_empty());
}

/// Hundreds of uploads that have begun and go no further, all from one address and under one key, as whoever holds one
/// presigned URL can begin them.
#[tokio::test]
async fn slow_uploads_do_not_keep_others_out() {
    let mut config = GatewayConfig::new(keys());
    config.in_flight_bytes_max = 64 << 20;
    config.patience.stalled_after = Duration::from_millis(20);
    let server = Server::start_with(config).await;
    server.send(request("PUT", "/bucket")).await.expect_status(200);
    let body = vec![7; 12 << 20];
    let mut put = request("PUT", "/bucket/slow").body(body.clone());
    put.presigned = true;
    let (head, sent) = put.sign_parts(&server.fake);
    let mut slow = Vec::new();
    for _ in 0..300 {
        let mut connection = server.connect().await;
        connection.write(&[&head[..], &sent[..100_000]].concat()).await;
        slow.push(connection);
        if slow.len() % 100 == 0 {
            let started = Instant::now();
            server.send(request("PUT", "/bucket/k").body(body.clone())).await.expect_status(200);
            assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
        }
    }
}

#[tokio::test]
async fn a_reader_that_takes_too_little_is_left() {
    let mut config = GatewayConfig::new(keys());
    config.patience = Patience {
        silent_max: Duration::from_secs(2),
        grace: Duration::from_secs(1),
        stalled_after: Duration::from_millis(500),
    };
    let server = Server::start_with(config).await;
    server.send(request("PUT", "/bucket")).await.expect_status(200);
    server.send(request("PUT", "/bucket/k").body(vec![7; 64 << 20])).await.expect_status(200);
    let (head, _) = request("GET", "/bucket/k").sign_parts(&server.fake);
    // One takes nothing at all, the other a few bytes at a time.
    for reads in [false, true] {
        let mut stream = TcpStream::connect(server.address).await.expect("a connection");
        stream.write_all(&head).await.expect("sent");
        let started = Instant::now();
        let mut taken = 0u64;
        let mut space = [0u8; 16];
        while reads && started.elapsed() < Duration::from_secs(5) {
            match stream.read(&mut space).await {
                Ok(0) | Err(_) => break,
                Ok(count) => taken += count as u64,
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        if !reads {
            tokio::time::sleep(Duration::from_secs(4)).await;
        }
        // What is still in the socket's buffers comes; the rest never does.
        let mut rest = Vec::new();
        let _ = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut rest)).await.expect("an end");
        assert!(taken + (rest.len() as u64) < 32 << 20, "{} bytes", rest.len());
    }
}

#[tokio::test(start_paused = true)]
async fn silent_connections_are_closed() {
    let server = Server::with_bucket().await;
    // Nothing sent, half a head sent, idle behind an answer.
    let mut silent = server.connect().await;
    let mut half = server.connect().await;
    half.write(b"GET / HTTP/1.1\r\nhost:").await;
    let mut idle = server.connect().await;
    idle.exchange(&request("HEAD", "/bucket").sign(&server.fake), true).await.expect_status(200);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(silent.is_closed().await);
    assert!(half.is_closed().await);
    let again = request("HEAD", "/bucket").sign(&server.fake);
    idle.exchange(&again, true).await.expect_status(200);
    tokio::time::sleep(Duration::from_secs(70)).await;
    assert!(idle.is_closed().await);
}

#[tokio::test]
async fn connections_are_limited() {
    let mut config = GatewayConfig::new(keys());
    config.connections_per_source_max = 2;
    let server = Server::start_with(config).await;
    let mut one = server.connect().await;
    let mut two = server.connect().await;
    let probe = request("GET", "/").sign(&server.fake);
    one.exchange(&probe, false).await.expect_status(200);
    two.exchange(&probe, false).await.expect_status(200);
    assert!(server.connect().await.is_closed().await);
    drop(one);
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    loop {
        let mut next = server.connect().await;
        next.write(&probe).await;
        let open = tokio::time::timeout(Duration::from_secs(5), next.is_closed()).await;
        if open == Ok(false) {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "a place is given back");
    }
}

#[tokio::test]
async fn stopping_lets_requests_in_flight_finish() {
    let mut server = Server::with_bucket().await;
    server.fake.faults.lock().expect("not poisoned").commit_delay = Some(Duration::from_millis(300));
    let mut idle = server.connect().await;
    idle.exchange(&request("HEAD", "/bucket").sign(&server.fake), true).await.expect_status(200);
    let mut busy = server.connect().await;
    let before = server.fake.calls();
    busy.write(&request("PUT", "/bucket/k").body("v").sign(&server.fake)).await;
    // The bucket has been looked up, the commit has begun.
    tokio::time::timeout(Duration::from_secs(10), async {
        while server.fake.calls() < before + 2 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("the commit begins");
    server.stop();
    assert!(idle.is_closed().await, "idle connections close at once");
    let answer = busy.answer(false).await.expect_status(200);
    assert_eq!(answer.header("connection"), Some("close"));
    tokio::time::timeout(Duration::from_secs(10), &mut server.done).await.expect("it stops").expect("in order");
    assert_eq!(server.fake.keys(), ["k"]);
}

#[tokio::test]
async fn metrics_count_what_happened() {
    let server = Server::with_bucket().await;
    server.send(request("PUT", "/bucket/k").body(vec![1; 1000])).await.expect_status(200);
    server.send(request("GET", "/bucket/k")).await.expect_status(200);
    server.send(request("GET", "/bucket/none")).await.expect_error(404, "NoSuchKey");
    let text = prometheus::TextEncoder::new().encode_to_string(&server.registry.gather()).expect("text");
    for line in [
        "plinth_s3_requests_total{api=\"PutObject\",status_class=\"2xx\"} 1",
        "plinth_s3_requests_total{api=\"GetObject\",status_class=\"4xx\"} 1",
        "plinth_s3_errors_total{code=\"NoSuchKey\"} 1",
        "plinth_s3_received_bytes_total 1000",
        "plinth_s3_in_flight_bytes 0",
    ] {
        assert!(text.contains(line), "{line} in:\n{text}");
    }
    assert!(!text.contains("bucket/k"), "no object keys in labels");
}

#[tokio::test]
async fn an_empty_body_that_waited_for_100_ends_its_connection() {
    let server = Server::with_bucket().await;
    // No 100 can come: botocore, which waited for one, would misread the next answer.
    let put = request("PUT", "/bucket/k").header("expect", "100-continue");
    let mut connection = server.connect().await;
    let answer = connection.exchange(&put.sign(&server.fake), false).await.expect_status(200);
    assert_eq!(answer.header("connection"), Some("close"));
    assert!(connection.is_closed().await);
}

/// A server behind TLS, and what trusts it.
async fn over_tls() -> (Server, TlsConnector) {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate");
    let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let chain = vec![made.cert.der().clone()];
    let config = ServerConfig::builder().with_no_client_auth().with_single_cert(chain.clone(), key).expect("a key");
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let server = Server::start_over(GatewayConfig::new(keys()), Some(acceptor)).await;
    let mut roots = RootCertStore::empty();
    roots.add(chain[0].clone()).expect("a root");
    let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    (server, TlsConnector::from(Arc::new(config)))
}

async fn shake(server: &Server, connector: &TlsConnector) -> Connection {
    let tcp = TcpStream::connect(server.address).await.expect("a connection");
    let name = ServerName::try_from("localhost").expect("a name");
    Connection::over(connector.connect(name, tcp).await.expect("a handshake"))
}

#[tokio::test]
async fn half_open_handshakes_do_not_close_the_tls_socket() {
    let (server, connector) = over_tls().await;
    let mut silent = Vec::new();
    for _ in 0..300 {
        silent.push(TcpStream::connect(server.address).await.expect("a connection"));
    }
    // From the same address, as behind one router.
    let mut connection = shake(&server, &connector).await;
    connection.exchange(&request("PUT", "/bucket").sign(&server.fake), false).await.expect_status(200);
}

#[tokio::test]
async fn tls_serves_the_same_and_trusts_invocation_ids() {
    let (server, connector) = over_tls().await;
    let mut connection = shake(&server, &connector).await;
    connection.exchange(&request("PUT", "/bucket").sign(&server.fake), false).await.expect_status(200);
    let put =
        || request("PUT", "/bucket/k").header("if-none-match", "*").unsigned("amz-sdk-invocation-id", "id-1").body("v");
    connection.exchange(&put().sign(&server.fake), false).await.expect_status(200);
    // Unsigned, but nobody between could have put it there.
    let again = connection.exchange(&put().sign(&server.fake), false).await.expect_status(200);
    assert_eq!(again.header("x-plinth-replayed"), Some("true"));
    // A client that never speaks TLS gets nothing.
    let mut plain = server.connect().await;
    plain.write(b"GET / HTTP/1.1\r\nhost: h\r\n\r\n").await;
    while !plain.is_closed().await {}
}

#[tokio::test]
async fn a_body_that_is_refused_midway_closes_its_connection_and_says_so() {
    let server = Server::with_bucket().await;
    let put = request("PUT", "/bucket/k").mode(Mode::Chunked).body(vec![1; 400_000]);
    let (head, mut body) = put.sign_parts(&server.fake);
    // The first chunk is spoiled; most of the body never comes.
    body[200] ^= 1;
    let mut connection = server.connect().await;
    let answer = connection.exchange(&[&head[..], &body[..20_000]].concat(), false).await;
    assert_eq!(answer.header("connection"), Some("close"));
    answer.expect_error(403, "SignatureDoesNotMatch");
    assert!(connection.is_closed().await);
    // What was read to its end leaves the connection in step.
    let put = request("PUT", "/bucket/k").header("content-md5", "AAAAAAAAAAAAAAAAAAAAAA==").body(vec![1; 400_000]);
    let mut connection = server.connect().await;
    let answer = connection.exchange(&put.sign(&server.fake), false).await.expect_error(400, "BadDigest");
    assert_eq!(answer.header("connection"), None);
    connection.exchange(&request("HEAD", "/bucket").sign(&server.fake), true).await.expect_status(200);
    assert!(server.fake.keys().is_empty());
}

#[tokio::test]
async fn k5_framing_that_is_not_announced_is_refused() {
    let server = Server::with_bucket().await;
    let framed = b"5\r\nhello\r\n0\r\n\r\n".to_vec();
    for mode in [Mode::Hash, Mode::Unsigned] {
        let put = request("PUT", "/bucket/k").mode(mode).header("content-encoding", "aws-chunked");
        let put = put.header("x-amz-decoded-content-length", "5").body(framed.clone());
        server.send(put).await.expect_error(400, "InvalidRequest");
    }
    let put = request("PUT", "/bucket/k").header("x-amz-decoded-content-length", "5").body("hello");
    server.send(put).await.expect_status(200);
    let mut put = request("PUT", "/bucket/none").mode(Mode::UnsignedTrailer);
    put.sends_length = false;
    server.send(put).await.expect_error(411, "MissingContentLength");
    assert_eq!(server.fake.keys(), ["k"]);
}
