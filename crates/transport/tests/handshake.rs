//! Who is let in, and who is believed: everyone else is refused before a request is read.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

mod rig;

use plinth_protocol::{ClusterId, FailureKind, Incarnation, Method, NodeId, Role};
use plinth_transport::frame::{FrameKind, Hello, Lane, OutFrame};
use plinth_transport::{
    Authority, Credentials, Fingerprint, Identity, Link, NodeCertificate, NodeKey, Peer, Request, Response, Server,
    ServerConfig, Service, TlsLink, call_joining,
};
use rig::raw::{RawClient, failure_text, hello, hello_of_cluster};
use rig::*;
use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, SystemTime};

/// A server that counts the requests that reach its service.
async fn spied(cluster: &Cluster) -> (Server, Arc<AtomicUsize>) {
    let reached = Arc::new(AtomicUsize::new(0));
    let spy = reached.clone();
    let service: Arc<dyn Service> = Arc::new(Run(move |_: Request| {
        spy.fetch_add(1, SeqCst);
        async { Ok(Response::default()) }
    }));
    (cluster.server(1, service).await, reached)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

/// Runs one call of a gateway with these credentials and expects it to find nobody it trusts.
async fn expect_unreached(link: &TlsLink, peer: &Peer, reached: &AtomicUsize, why: &str) {
    let failure = link.call(peer, call(Method::Meta, "", vec![])).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Unavailable, "{why}: {failure}");
    assert_eq!(reached.load(SeqCst), 0, "{why}");
    assert!(link.counters().handshakes_refused > 0, "{why}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_are_refused_unless_their_certificate_proves_them() {
    let cluster = Cluster::new();
    let (server, reached) = spied(&cluster).await;
    let address = server.address();
    let own = |node, roles: &[Role]| cluster.authority.issue(&identity(node, roles), HOUR, SystemTime::now()).unwrap();
    let other = Cluster::new();
    let foreign = other.authority.issue(&identity(2, &[Role::Gateway]), HOUR, SystemTime::now()).unwrap();
    let past = SystemTime::now() - 3 * HOUR;
    let expired = cluster.authority.issue(&identity(2, &[Role::Gateway]), HOUR, past).unwrap();
    let future = SystemTime::now() + 3 * HOUR;
    let early = cluster.authority.issue(&identity(2, &[Role::Gateway]), HOUR, future).unwrap();
    let renamed = certificate_of_another_cluster(&cluster.authority);
    let good = own(2, &[Role::Gateway]);

    for (why, certificate, said) in [
        ("foreign authority", &foreign, hello(2)),
        ("expired", &expired, hello(2)),
        ("not valid yet", &early, hello(2)),
        ("certificate of another cluster", &renamed, hello(2)),
        ("hello as another node", &good, hello(3)),
        ("hello for another cluster", &good, hello_of_cluster(7)),
        ("hello for another incarnation", &good, Hello { peer_incarnation: Some(Incarnation(9)), ..hello(2) }),
        ("hello of another version", &good, Hello { version: 2, ..hello(2) }),
    ] {
        let certificate = NodeCertificate::load(certificate.chain_pem(), certificate.key_pem()).unwrap();
        let refused = blocking(move || {
            let Ok(mut client) = RawClient::connect(address, Some(&certificate), None) else { return true };
            if client.send(&OutFrame::hello(&said)).is_err() {
                return true;
            }
            match client.receive() {
                Ok(frame) => frame.head.kind == FrameKind::Goodbye && !failure_text(&frame).is_empty() && client.ends(),
                Err(_) => true,
            }
        });
        assert!(refused.await, "{why}");
    }
    let good = NodeCertificate::load(good.chain_pem(), good.key_pem()).unwrap();
    assert!(blocking(move || RawClient::greet(address, &good, 2).is_ok()).await);
    let without = blocking(move || {
        let mut client = RawClient::connect(address, None, None)?;
        client.send(&OutFrame::hello(&hello(2)))?;
        client.receive()
    });
    assert_eq!(without.await.unwrap().head.kind, FrameKind::Goodbye);
    assert_eq!(reached.load(SeqCst), 0);
    eventually("nine refusals are counted", || server.counters().handshakes_refused == 9).await;
}

/// A certificate of the right authority whose name is of another cluster.
fn certificate_of_another_cluster(authority: &Authority) -> NodeCertificate {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let issuer_key = rcgen::KeyPair::from_pem(&authority.key_pem()).unwrap();
    let issuer = rcgen::Issuer::from_ca_cert_pem(authority.certificate_pem(), issuer_key).unwrap();
    let mut params = rcgen::CertificateParams::default();
    let name = format!("plinth://{}/gateway/n2", ClusterId(7));
    params.subject_alt_names = vec![rcgen::SanType::URI(name.try_into().unwrap())];
    params.serial_number = Some(rcgen::SerialNumber::from_slice(&[7; 16]));
    params.extended_key_usages =
        vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth, rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    let leaf = params.signed_by(&key, &issuer).unwrap();
    let chain = format!("{}{}", leaf.pem(), authority.certificate_pem());
    NodeCertificate::load(&chain, &key.serialize_pem()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callees_are_believed_only_as_the_node_that_was_dialled() {
    let cluster = Cluster::new();
    let (server, reached) = spied(&cluster).await;
    let right = peer(1, &server);
    let wrong_node = Peer { node: NodeId(5), ..right.clone() };
    expect_unreached(&cluster.link(2), &wrong_node, &reached, "another node answers").await;
    let wrong_incarnation = Peer { incarnation: Some(Incarnation(2)), ..right.clone() };
    expect_unreached(&cluster.link(2), &wrong_incarnation, &reached, "another incarnation answers").await;
    expect_unreached(&Cluster::new().link(2), &right, &reached, "an authority that the caller does not trust").await;

    // A server whose certificate has expired.
    let past = SystemTime::now() - 3 * HOUR;
    let expired = cluster.authority.issue(&identity(1, &[Role::Meta]), HOUR, past).unwrap();
    let credentials = Credentials::new(&expired, cluster.authority.certificate_pem(), Incarnation(1)).unwrap();
    let old = Server::bind("127.0.0.1:0", ServerConfig::new(Arc::new(credentials)), echo()).await.unwrap();
    expect_unreached(&cluster.link(2), &peer(1, &old), &reached, "expired callee").await;

    // The same call under the right name passes, and then the wrong incarnation still does not.
    let link = cluster.link(2);
    link.call(&right, call(Method::Meta, "", vec![])).await.unwrap();
    assert_eq!(reached.load(SeqCst), 1);
    let failure = link.call(&wrong_incarnation, call(Method::Meta, "", vec![])).await.unwrap_err();
    assert_eq!((failure.kind, reached.load(SeqCst)), (FailureKind::Unavailable, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn older_protocols_other_suites_and_plaintext_are_refused() {
    let cluster = Cluster::new();
    let (server, reached) = spied(&cluster).await;
    let address = server.address();
    let certificate = cluster.authority.issue(&identity(2, &[Role::Gateway]), HOUR, SystemTime::now()).unwrap();
    let chacha = vec![rustls::crypto::aws_lc_rs::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256];
    let chain = NodeCertificate::load(certificate.chain_pem(), certificate.key_pem()).unwrap();
    assert!(blocking(move || RawClient::connect(address, Some(&chain), Some(chacha)).is_err()).await, "ChaCha20");
    for suite in [
        rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
        rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
    ] {
        let chain = NodeCertificate::load(certificate.chain_pem(), certificate.key_pem()).unwrap();
        assert!(blocking(move || RawClient::connect(address, Some(&chain), Some(vec![suite])).is_ok()).await);
    }
    let answers = |bytes: Vec<u8>| {
        blocking(move || {
            let mut socket = std::net::TcpStream::connect(address).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            socket.write_all(&bytes).unwrap();
            let mut answer = Vec::new();
            // A reset is as good an end as a close.
            let _ = socket.read_to_end(&mut answer);
            answer
        })
    };
    // TLS alert, level fatal, protocol_version (RFC 8446, section 6).
    assert_eq!(answers(client_hello_tls12()).await, [21, 3, 3, 0, 2, 2, 70]);
    let hello = OutFrame::hello(&hello(2));
    let plaintext = [&hello.prefix[..], &hello.header].concat();
    let answer = answers(plaintext).await;
    assert!(answer.is_empty() || answer[0] == 21, "plaintext is answered with {answer:?}");
    let answer = answers(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec()).await;
    assert!(answer.is_empty() || answer[0] == 21, "HTTP is answered with {answer:?}");
    assert_eq!(reached.load(SeqCst), 0);
}

/// A ClientHello that offers TLS 1.2 alone, with a suite, group and signature that were common.
fn client_hello_tls12() -> Vec<u8> {
    let groups: &[u8] = &[0, 10, 0, 4, 0, 2, 0, 23];
    let points: &[u8] = &[0, 11, 0, 2, 1, 0];
    let signatures: &[u8] = &[0, 13, 0, 4, 0, 2, 4, 3];
    let extensions = [groups, points, signatures].concat();
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0, 2, 0xc0, 0x2b, 1, 0]);
    body.extend((extensions.len() as u16).to_be_bytes());
    body.extend(&extensions);
    let mut message = vec![1, 0];
    message.extend((body.len() as u16).to_be_bytes());
    message.extend(&body);
    let mut record = vec![22, 3, 1];
    record.extend((message.len() as u16).to_be_bytes());
    record.extend(&message);
    record
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_an_operators_tool_may_dial_an_address_alone() {
    let cluster = Cluster::new();
    let (server, reached) = spied(&cluster).await;
    let anyone = Peer::at(server.address().to_string());
    for roles in [&[Role::Gateway][..], &[Role::Meta], &[Role::Admin, Role::Gateway]] {
        let link = TlsLink::new(cluster.credentials(&identity(2, roles)));
        expect_unreached(&link, &anyone, &reached, "a node that dials an address").await;
    }
    let tool = TlsLink::new(cluster.credentials(&identity(2, &[Role::Admin])));
    tool.call(&anyone, call(Method::Admin, "", vec![])).await.unwrap();
    assert_eq!(reached.load(SeqCst), 1);
    let wrong = Peer { node: NodeId(5), ..anyone };
    assert_eq!(tool.call(&wrong, call(Method::Admin, "", vec![])).await.unwrap_err().kind, FailureKind::Unavailable);
    let other = TlsLink::new(Cluster::new().credentials(&identity(2, &[Role::Admin])));
    expect_unreached_by(&other, &Peer::at(server.address().to_string())).await;
}

async fn expect_unreached_by(link: &TlsLink, peer: &Peer) {
    let failure = link.call(peer, call(Method::Admin, "", vec![])).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Unavailable, "{failure}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn role_table_decides_for_every_method_and_certificate() {
    let cluster = Cluster::new();
    let (server, reached) = spied(&cluster).await;
    let peer = peer(1, &server);
    for role in [Role::Gateway, Role::Meta, Role::Storage, Role::Admin] {
        let link = TlsLink::new(cluster.credentials(&identity(2, &[role])));
        for method in Method::ALL.iter().copied() {
            let before = reached.load(SeqCst);
            let outcome = link.call(&peer, call(method, "", vec![])).await;
            let allowed = method.callers().contains(&role);
            assert_eq!(outcome.is_ok(), allowed, "{method:?} by {role}");
            assert_eq!(reached.load(SeqCst) - before, usize::from(allowed), "{method:?} by {role}");
            if let Err(failure) = outcome {
                assert_eq!(failure.kind, FailureKind::Denied, "{method:?} by {role}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn joining_node_may_join_and_nothing_else() {
    let cluster = Cluster::new();
    let (server, reached) = spied(&cluster).await;
    let address = server.address().to_string();
    let pin = cluster.authority.fingerprint();
    for method in Method::ALL.iter().copied() {
        let before = reached.load(SeqCst);
        let outcome = call_joining(&address, pin, Some(CLUSTER), call(method, "token", vec![])).await;
        assert_eq!(outcome.is_ok(), method == Method::Join, "{method:?}");
        assert_eq!(reached.load(SeqCst) - before, usize::from(method == Method::Join), "{method:?}");
        if let Err(failure) = outcome {
            assert_eq!(failure.kind, FailureKind::Denied, "{method:?}");
        }
    }
    call_joining(&address, pin, None, call(Method::Join, "token", vec![])).await.unwrap();
    let before = reached.load(SeqCst);
    let other = Cluster::new().authority.fingerprint();
    for (pin, named) in [(other, Some(CLUSTER)), (Fingerprint([0; 32]), None), (pin, Some(ClusterId(7)))] {
        let failure = call_joining(&address, pin, named, call(Method::Join, "token", vec![])).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Unavailable);
    }
    // A stranger's request is small, and its header is bounded before it is read.
    let large = call(Method::Join, vec![0; (64 << 10) + 1], vec![]);
    assert!(call_joining(&address, pin, Some(CLUSTER), large).await.is_err());
    assert_eq!(reached.load(SeqCst), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn joined_node_calls_with_the_certificate_that_it_asked_for() {
    let cluster = Arc::new(Cluster::new());
    let signer = cluster.clone();
    let service: Arc<dyn Service> = Arc::new(Run(move |request: Request| {
        assert_eq!(request.caller.roles, [Role::Joining]);
        let text = std::str::from_utf8(&request.header).unwrap();
        let chain = signer.authority.issue_for_request(&identity(9, &[Role::Storage]), text, HOUR, SystemTime::now());
        async move { Ok(Response { header: chain.unwrap().into(), payload: vec![] }) }
    }));
    let server = cluster.server(1, service).await;
    let key = NodeKey::generate().unwrap();
    let asked = call(Method::Join, key.request_pem().unwrap(), vec![]);
    let address = server.address().to_string();
    let reply = call_joining(&address, cluster.authority.fingerprint(), Some(CLUSTER), asked).await.unwrap();
    let chain = std::str::from_utf8(&reply.header).unwrap();
    let certificate = NodeCertificate::load(chain, &key.key_pem()).unwrap();
    let credentials = Credentials::new(&certificate, cluster.authority.certificate_pem(), Incarnation(1)).unwrap();
    let expected = Identity { node: NodeId(9), ..identity(9, &[Role::Storage]) };
    assert_eq!(credentials.identity(), &expected);
    let (server, reached) = spied(&cluster).await;
    TlsLink::new(Arc::new(credentials)).call(&peer(1, &server), call(Method::Meta, "", vec![])).await.unwrap();
    assert_eq!(reached.load(SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn denied_node_is_refused_and_put_out() {
    let cluster = Cluster::new();
    let denied = Arc::new(AtomicBool::new(true));
    let list = denied.clone();
    let mut config = ServerConfig::new(cluster.credentials(&identity(1, &[Role::Meta])));
    config.allowed = Arc::new(move |caller, _| match caller.node != NodeId(2) || !list.load(SeqCst) {
        true => Ok(()),
        false => Err("denied by an operator".into()),
    });
    let server = Server::bind("127.0.0.1:0", config, echo()).await.unwrap();
    let (peer, link) = (peer(1, &server), cluster.link(2));
    let failure = link.call(&peer, call(Method::Meta, "", vec![])).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Unavailable);
    assert!(failure.text.contains("not allowed"), "{failure}");
    cluster.link(3).call(&peer, call(Method::Meta, "", vec![])).await.unwrap();
    denied.store(false, SeqCst);
    let link = cluster.link(2);
    link.call(&peer, call(Method::Meta, "", vec![])).await.unwrap();
    denied.store(true, SeqCst);
    // The list is read again every few seconds.
    eventually("denied node is put out", || link.counters().connections_closed == 1).await;
    assert!(link.call(&peer, call(Method::Meta, "", vec![])).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn authority_rotates_without_a_failed_call() {
    let (old, new) = (Cluster::new(), Cluster::new());
    let both = format!("{}{}", old.authority.certificate_pem(), new.authority.certificate_pem());
    let credentials = |signer: &Cluster, node, trusted: &str| {
        let certificate = signer.authority.issue(&identity(node, &[Role::Meta]), HOUR, SystemTime::now()).unwrap();
        Arc::new(Credentials::new(&certificate, trusted, Incarnation(1)).unwrap())
    };
    let server = Server::bind("127.0.0.1:0", ServerConfig::new(credentials(&old, 1, &both)), echo()).await.unwrap();
    let peer = peer(1, &server);
    let link = TlsLink::new(credentials(&old, 2, &both));
    link.call(&peer, call(Method::Meta, "", vec![])).await.unwrap();
    // First the callers renew, then the callees; connections that exist go on.
    link.set_credentials(credentials(&new, 2, &both));
    link.call(&peer, call(Method::Meta, "", vec![])).await.unwrap();
    TlsLink::new(credentials(&new, 3, &both)).call(&peer, call(Method::Meta, "", vec![])).await.unwrap();
    server.set_credentials(credentials(&new, 1, new.authority.certificate_pem()));
    link.call(&peer, call(Method::Meta, "", vec![])).await.unwrap();
    TlsLink::new(credentials(&new, 3, &both)).call(&peer, call(Method::Meta, "", vec![])).await.unwrap();
    let outdated = TlsLink::new(credentials(&old, 4, &both));
    assert!(outdated.call(&peer, call(Method::Meta, "", vec![])).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stranger_must_be_small_and_bulk_needs_a_certificate() {
    let cluster = Cluster::new();
    let (server, reached) = spied(&cluster).await;
    let address = server.address();
    for lane in [Lane::Small, Lane::Bulk] {
        let said = Hello { node: NodeId(0), incarnation: Incarnation(0), lane, ..hello(0) };
        let answer = blocking(move || {
            let mut client = RawClient::connect(address, None, None)?;
            client.send(&OutFrame::hello(&said))?;
            client.receive()
        });
        let expected = if lane == Lane::Small { FrameKind::Hello } else { FrameKind::Goodbye };
        assert_eq!(answer.await.unwrap().head.kind, expected, "{lane:?}");
    }
    assert_eq!(reached.load(SeqCst), 0);
}
