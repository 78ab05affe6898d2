//! Certificates in the life of a connection: renewal under load, incarnations, peers that are no longer allowed.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

mod rig;

use plinth_protocol::{FailureKind, Incarnation, Method, NodeId, Role};
use plinth_transport::frame::{FrameKind, Hello, OutFrame};
use plinth_transport::{
    Allowed, Authority, Call, Credentials, Identity, Link, NodeCertificate, NodeName, Request, Response, Server,
    ServerConfig, Service, TlsLink, call_joining,
};
use rig::raw::{RawClient, failure_text, hello};
use rig::*;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

fn short_lived(cluster: &Cluster, identity: &Identity, life: Duration) -> Arc<Credentials> {
    let certificate = cluster.authority.issue(identity, life, SystemTime::now()).unwrap();
    Arc::new(Credentials::new(&certificate, cluster.authority.certificate_pem(), identity.incarnation).unwrap())
}

/// A certificate as 02a86df made it: the subject names no incarnation.
fn certificate_without_incarnation(authority: &Authority, node: u64, role: Role) -> NodeCertificate {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let issuer_key = rcgen::KeyPair::from_pem(&authority.key_pem()).unwrap();
    let issuer = rcgen::Issuer::from_ca_cert_pem(authority.certificate_pem(), issuer_key).unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, format!("Plinth n{node}"));
    let name = NodeName::new(CLUSTER, &[role], NodeId(node)).unwrap().to_uri();
    params.subject_alt_names = vec![rcgen::SanType::URI(name.try_into().unwrap())];
    params.serial_number = Some(rcgen::SerialNumber::from_slice(&[0x41; 16]));
    params.extended_key_usages =
        vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth, rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    let leaf = params.signed_by(&key, &issuer).unwrap();
    NodeCertificate::load(&format!("{}{}", leaf.pem(), authority.certificate_pem()), &key.serialize_pem()).unwrap()
}

/// Says hello under an incarnation; returns what the callee answers.
async fn greet_as(server: &Server, certificate: NodeCertificate, incarnation: u64) -> (FrameKind, String) {
    let address = server.address();
    let greeting = tokio::task::spawn_blocking(move || {
        let mut client = RawClient::connect(address, Some(&certificate), None).unwrap();
        client.send(&OutFrame::hello(&Hello { incarnation: Incarnation(incarnation), ..hello(2) })).unwrap();
        let answer = client.receive().unwrap();
        (answer.head.kind, failure_text(&answer))
    });
    greeting.await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hello_of_another_incarnation_than_the_certificates_is_refused() {
    let cluster = Cluster::new();
    let server = cluster.server(1, echo()).await;
    let made = |incarnation| {
        let identity = Identity { incarnation: Incarnation(incarnation), ..identity(2, &[Role::Gateway]) };
        cluster.authority.issue(&identity, HOUR, SystemTime::now()).unwrap()
    };
    assert_eq!(greet_as(&server, made(1), 1).await.0, FrameKind::Hello);
    assert_eq!(greet_as(&server, made(2), 2).await.0, FrameKind::Hello);
    for (proved, said) in [(1, 2), (2, 1), (1, 0)] {
        let (kind, text) = greet_as(&server, made(proved), said).await;
        assert_eq!(kind, FrameKind::Goodbye, "certificate of i{proved}, hello of i{said}");
        assert!(text.contains("incarnation"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_that_names_no_incarnation_leaves_it_to_the_registry() {
    let cluster = Cluster::new();
    let mut config = ServerConfig::new(cluster.credentials(&identity(1, &[Role::Meta])));
    config.allowed = Arc::new(|caller, certificate| {
        assert_eq!(
            certificate.map(|facts| (facts.serial, facts.incarnation)),
            Some((0x4141 * (u128::MAX / 0xffff), None))
        );
        if caller.incarnation == Incarnation(2) { Ok(()) } else { Err("the registry knows i2".into()) }
    });
    let server = Server::bind("127.0.0.1:0", config, echo()).await.unwrap();
    let old = || certificate_without_incarnation(&cluster.authority, 2, Role::Gateway);
    assert_eq!(greet_as(&server, old(), 2).await.0, FrameKind::Hello);
    let (kind, text) = greet_as(&server, old(), 1).await;
    assert_eq!(kind, FrameKind::Goodbye);
    assert!(text.contains("the registry knows i2"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_callee_of_another_incarnation_than_its_certificates_is_not_believed() {
    let cluster = Cluster::new();
    let certificate = cluster.authority.issue(&identity(1, &[Role::Meta]), HOUR, SystemTime::now()).unwrap();
    let claimed = Credentials::new(&certificate, cluster.authority.certificate_pem(), Incarnation(2)).unwrap();
    let server = Server::bind("127.0.0.1:0", ServerConfig::new(Arc::new(claimed)), echo()).await.unwrap();
    for meant in [None, Some(Incarnation(2))] {
        let peer = plinth_transport::Peer { incarnation: meant, ..peer(1, &server) };
        let failure = cluster.link(2).call(&peer, call(Method::Meta, "", vec![])).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Unavailable, "{failure}");
        assert!(failure.text.contains("certificate is of another"), "{failure}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewed_certificate_is_used_by_the_next_call_and_calls_in_flight_are_answered() {
    let cluster = Cluster::new();
    let (gate, seen) = (Gate::new(), Arc::new(Mutex::new(Vec::new())));
    let (inner, serials) = (gate.clone(), seen.clone());
    let service: Arc<dyn Service> = Arc::new(Run(move |request: Request| {
        serials.lock().unwrap().push(request.certificate.as_ref().unwrap().serial);
        let waits = request.header == "wait";
        let answer = inner.serve(request);
        async move { if waits { answer.await } else { Ok(Response::default()) } }
    }));
    let server = cluster.server(1, service).await;
    let (peer, link) = (peer(1, &server), Arc::new(cluster.link(2)));
    let waiting: Vec<_> = [Method::Meta, Method::Storage]
        .map(|method| {
            let (link, peer) = (link.clone(), peer.clone());
            tokio::spawn(async move { link.call(&peer, call(method, "wait", vec![])).await })
        })
        .into_iter()
        .collect();
    eventually("both calls wait", || gate.begun.load(SeqCst) == 2).await;
    let before: BTreeSet<u128> = seen.lock().unwrap().drain(..).collect();
    assert_eq!(before.len(), 1);
    link.set_credentials(cluster.credentials(&identity(2, &[Role::Gateway, Role::Meta])));
    for method in [Method::Meta, Method::Storage] {
        link.call(&peer, call(method, "", vec![])).await.unwrap();
    }
    let after: BTreeSet<u128> = seen.lock().unwrap().drain(..).collect();
    assert!(after.len() == 1 && after.is_disjoint(&before), "{after:?} after {before:?}");
    gate.open.add_permits(2);
    for call in waiting {
        call.await.unwrap().unwrap();
    }
    eventually("the old connections end", || link.counters().connections_closed == 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_of_seconds_are_renewed_under_load_without_a_failed_call() {
    const LIFE: Duration = Duration::from_secs(6);
    let cluster = Arc::new(Cluster::new());
    let (callee, caller) = (identity(1, &[Role::Meta]), identity(2, &[Role::Gateway]));
    let config = ServerConfig::new(short_lived(&cluster, &callee, LIFE));
    let server = Server::bind("127.0.0.1:0", config, slow_echo()).await.unwrap();
    let (peer, link) = (peer(1, &server), Arc::new(TlsLink::new(short_lived(&cluster, &caller, LIFE))));
    let (ends, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let loads: Vec<_> = (0..4)
        .map(|number| {
            let (link, peer, ends, done) = (link.clone(), peer.clone(), ends.clone(), done.clone());
            tokio::spawn(async move {
                let method = if number % 2 == 0 { Method::Meta } else { Method::Storage };
                while !ends.load(SeqCst) {
                    let deadline = Duration::from_secs(3);
                    let call = Call { deadline, ..call(method, "h", vec![pattern(number, 9_000)]) };
                    if method == Method::Meta || number > 1 {
                        link.call(&peer, call).await.unwrap();
                    }
                    done.fetch_add(1, SeqCst);
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            })
        })
        .collect();
    // Two whole lives and a bit; each side renews at two thirds, the callee a little after the caller.
    for _ in 0..3 {
        tokio::time::sleep(LIFE * 2 / 3).await;
        link.set_credentials(short_lived(&cluster, &caller, LIFE));
        server.set_credentials(short_lived(&cluster, &callee, LIFE));
    }
    tokio::time::sleep(LIFE / 2).await;
    ends.store(true, SeqCst);
    for load in loads {
        load.await.expect("no call fails");
    }
    assert!(done.load(SeqCst) > 1_000, "{done:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_callee_that_is_denied_is_left_and_not_called_again() {
    let cluster = Cluster::new();
    let server = cluster.server(1, echo()).await;
    let (peer, link) = (peer(1, &server), cluster.link(2));
    let denied = Arc::new(AtomicBool::new(false));
    let list = denied.clone();
    let allowed: Allowed = Arc::new(move |callee, certificate| {
        assert!(callee.roles == [Role::Meta, Role::Storage] && certificate.is_some());
        if list.load(SeqCst) { Err("denied by an operator".into()) } else { Ok(()) }
    });
    link.set_allowed(allowed);
    link.call(&peer, call(Method::Meta, "", vec![])).await.unwrap();
    denied.store(true, SeqCst);
    eventually("the connection is closed", || link.counters().connections_closed == 1).await;
    let failure = link.call(&peer, call(Method::Meta, "", vec![])).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Unavailable);
    assert!(failure.text.contains("denied by an operator"), "{failure}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_joins_believes_metadata_nodes_alone() {
    let cluster = Cluster::new();
    let address = |server: &Server| server.address().to_string();
    let ask = |address: String| {
        let pin = cluster.authority.fingerprint();
        async move { call_joining(&address, pin, None, call(Method::Join, "token", vec![])).await }
    };
    for role in [Role::Storage, Role::Gateway, Role::Admin] {
        let config = ServerConfig::new(cluster.credentials(&identity(1, &[role])));
        let server = Server::bind("127.0.0.1:0", config, echo()).await.unwrap();
        let failure = ask(address(&server)).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Unavailable, "{role}: {failure}");
        assert!(failure.text.contains("no meta node"), "{failure}");
    }
    ask(address(&cluster.server(1, echo()).await)).await.unwrap();
}
