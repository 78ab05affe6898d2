//! What goes wrong on the way: every call ends, with the right word, and nobody's memory grows.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

mod rig;

use bytes::Bytes;
use plinth_protocol::{FailureKind, Incarnation, Method, NodeId, Role};
use plinth_transport::frame::{Frame, FrameHead, FrameKind, OutFrame, PREFIX_BYTES};
use plinth_transport::{Call, Link, NodeCertificate, Peer, Request, Response, Server, ServerConfig, Service, TlsLink};
use rig::raw::RawClient;
use rig::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

fn request(id: u64, payload: Vec<Bytes>) -> OutFrame {
    let head = FrameHead { kind: FrameKind::Request, method: Some(Method::Storage), deadline_ms: 60_000, id };
    OutFrame::new(head, Bytes::from_static(b"header"), payload)
}

async fn raw(cluster: &Cluster, server: &Server) -> RawClient {
    let certificate = cluster.authority.issue(&identity(2, &[Role::Gateway]), HOUR, SystemTime::now()).unwrap();
    let (chain, key) = (certificate.chain_pem().to_string(), certificate.key_pem().clone());
    let address = server.address();
    let greeting = move || RawClient::greet(address, &NodeCertificate::load(&chain, &key).unwrap(), 2).unwrap();
    tokio::task::spawn_blocking(greeting).await.unwrap()
}

/// A relay in front of a server that can be cut or made to swallow bytes.
struct Relay {
    address: String,
    task: tokio::task::JoinHandle<()>,
    passing: tokio::sync::watch::Sender<bool>,
}

impl Relay {
    async fn new(server: &Server) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, target) = (listener.local_addr().unwrap().to_string(), server.address());
        let (passing, gate) = tokio::sync::watch::channel(true);
        let task = tokio::spawn(async move {
            let mut pipes = tokio::task::JoinSet::new();
            loop {
                let (inside, _) = listener.accept().await.unwrap();
                let outside = TcpStream::connect(target).await.unwrap();
                let (from_inside, to_inside) = inside.into_split();
                let (from_outside, to_outside) = outside.into_split();
                pipes.spawn(pipe(from_inside, to_outside, gate.clone()));
                pipes.spawn(pipe(from_outside, to_inside, gate.clone()));
            }
        });
        Relay { address, task, passing }
    }

    fn peer(&self, node: u64) -> Peer {
        Peer { node: NodeId(node), incarnation: Some(Incarnation(1)), address: self.address.clone() }
    }
}

async fn pipe(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut gate: tokio::sync::watch::Receiver<bool>,
) {
    let mut bytes = vec![0; 65_536];
    loop {
        let Ok(count @ 1..) = from.read(&mut bytes).await else { return };
        // A closed gate is a black hole: bytes stay where they are and nobody is told.
        if gate.wait_for(|open| *open).await.is_err() || to.write_all(&bytes[..count]).await.is_err() {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropped_call_is_cancelled_at_the_service() {
    let cluster = Cluster::new();
    let gate = Gate::new();
    let server = cluster.server(1, Arc::new(gate.clone())).await;
    let (link, peer) = (Arc::new(cluster.link(2)), peer(1, &server));
    let calling = tokio::spawn({
        let (link, peer) = (link.clone(), peer.clone());
        async move { link.call(&peer, call(Method::Meta, "", vec![])).await }
    });
    eventually("call begins", || gate.begun.load(SeqCst) == 1).await;
    calling.abort();
    eventually("service is dropped", || gate.dropped.load(SeqCst) == 1).await;
    eventually("nothing is in flight", || server.bytes_in_flight() == 0).await;
    assert_eq!(server.counters().cancelled, 1);
    // The connection goes on.
    gate.open.add_permits(1);
    link.call(&peer, call(Method::Meta, "", vec![])).await.unwrap();
    assert_eq!(link.counters().connections_opened, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deadline_ends_a_call_on_both_sides() {
    let cluster = Cluster::new();
    let gate = Gate::new();
    let server = cluster.server(1, Arc::new(gate.clone())).await;
    let (link, peer) = (cluster.link(2), peer(1, &server));
    gate.open.add_permits(1);
    link.call(&peer, call(Method::Meta, "", vec![])).await.unwrap();
    let begun = Instant::now();
    let hurried = Call { deadline: Duration::from_millis(200), ..call(Method::Meta, "", vec![]) };
    let failure = link.call(&peer, hurried).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Unknown, "{failure}");
    assert!(begun.elapsed() >= Duration::from_millis(200) && begun.elapsed() < Duration::from_secs(10));
    eventually("service is dropped", || gate.dropped.load(SeqCst) == 1).await;
    let late = Call { deadline: Duration::ZERO, ..call(Method::Meta, "", vec![]) };
    let failure = link.call(&peer, late).await.unwrap_err();
    assert_eq!((failure.kind, gate.begun.load(SeqCst)), (FailureKind::Unavailable, 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn request_past_its_deadline_does_not_reach_the_service() {
    let cluster = Cluster::new();
    let gate = Gate::new();
    let server = cluster.server(1, Arc::new(gate.clone())).await;
    let mut client = raw(&cluster, &server).await;
    let answer = tokio::task::spawn_blocking(move || {
        let head = FrameHead { kind: FrameKind::Request, method: Some(Method::Storage), deadline_ms: 0, id: 5 };
        client.send(&OutFrame::new(head, Bytes::new(), vec![])).unwrap();
        client.receive().unwrap()
    });
    let answer = answer.await.unwrap();
    assert_eq!((answer.head.kind, answer.head.id, gate.begun.load(SeqCst)), (FrameKind::Failure, 5, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peer_killed_during_calls_fails_them_at_once() {
    let cluster = Cluster::new();
    let gate = Gate::new();
    let server = cluster.server(1, Arc::new(gate.clone())).await;
    let (link, peer) = (Arc::new(cluster.link(2)), peer(1, &server));
    let calls: Vec<_> = (0..20)
        .map(|number| {
            let (link, peer) = (link.clone(), peer.clone());
            let method = if number % 2 == 0 { Method::Meta } else { Method::Storage };
            tokio::spawn(async move { link.call(&peer, call(method, "", vec![])).await })
        })
        .collect();
    eventually("calls begin", || gate.begun.load(SeqCst) == 20).await;
    let begun = Instant::now();
    drop(server);
    for calling in calls {
        assert_eq!(calling.await.unwrap().unwrap_err().kind, FailureKind::Unknown);
    }
    assert!(begun.elapsed() < Duration::from_secs(5));
    eventually("services are dropped", || gate.dropped.load(SeqCst) == 20).await;
    // Nobody listens any more: refused at once, then again within the pause.
    for _ in 0..3 {
        let failure = link.call(&peer, call(Method::Meta, "", vec![])).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Unavailable);
    }
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peer_that_returns_is_found_again() {
    let cluster = Cluster::new();
    let server = cluster.server(1, echo()).await;
    let (link, peer) = (cluster.link(2), peer(1, &server));
    link.call(&peer, call(Method::Meta, "", vec![])).await.unwrap();
    server.shutdown(Duration::from_secs(5)).await;
    assert!(link.call(&peer, call(Method::Meta, "", vec![])).await.is_err());
    let config = ServerConfig::new(cluster.credentials(&identity(1, &[Role::Meta])));
    let again = Server::bind(&peer.address, config, echo()).await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while let Err(failure) = link.call(&peer, call(Method::Meta, "", vec![])).await {
        assert_eq!(failure.kind, FailureKind::Unavailable);
        assert!(Instant::now() < deadline, "never found again");
        tokio::time::sleep(Duration::from_millis(failure.retry_after_ms.unwrap_or(1))).await;
    }
    drop(again);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn black_hole_is_noticed_and_left() {
    let cluster = Cluster::new();
    let server = cluster.server(1, echo()).await;
    let relay = Relay::new(&server).await;
    let (link, peer) = (cluster.link(2), relay.peer(1));
    link.call(&peer, call(Method::Meta, "", vec![])).await.unwrap();
    relay.passing.send_replace(false);
    let begun = Instant::now();
    // The deadline is 30 s; the silence is noticed before.
    let failure = link.call(&peer, call(Method::Meta, "", vec![])).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Unknown, "{failure}");
    assert!(begun.elapsed() < Duration::from_secs(20), "took {:?}", begun.elapsed());
    eventually("the callee notices too", || server.counters().connections_closed == 1).await;
    relay.passing.send_replace(true);
    link.call(&peer, call(Method::Meta, "", vec![])).await.unwrap();
    relay.task.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_peers_keep_their_connection_by_pings() {
    let cluster = Cluster::new();
    let gate = Gate::new();
    let server = cluster.server(1, Arc::new(gate.clone())).await;
    let (link, peer) = (Arc::new(cluster.link(2)), peer(1, &server));
    let calling = tokio::spawn({
        let (link, peer) = (link.clone(), peer.clone());
        async move { link.call(&peer, call(Method::Meta, "", vec![])).await }
    });
    // Longer than silence is tolerated: only pings pass.
    tokio::time::sleep(Duration::from_secs(11)).await;
    gate.open.add_permits(1);
    calling.await.unwrap().unwrap();
    assert_eq!(link.counters().connections_closed, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shutdown_answers_what_is_in_flight_and_refuses_what_is_not() {
    let cluster = Cluster::new();
    let gate = Gate::new();
    let server = cluster.server(1, Arc::new(gate.clone())).await;
    let (link, peer) = (Arc::new(cluster.link(2)), peer(1, &server));
    let calling = tokio::spawn({
        let (link, peer) = (link.clone(), peer.clone());
        async move { link.call(&peer, call(Method::Meta, "kept", vec![])).await }
    });
    eventually("call begins", || gate.begun.load(SeqCst) == 1).await;
    let stopping = tokio::spawn(server.shutdown(Duration::from_secs(20)));
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        // Calls that slip in before the goodbye are begun; they are dropped by their deadline.
        let hurried = Call { deadline: Duration::from_millis(100), ..call(Method::Meta, "", vec![]) };
        if link.call(&peer, hurried).await.unwrap_err().kind == FailureKind::Unavailable {
            break;
        }
        assert!(Instant::now() < deadline);
    }
    gate.open.add_permits(1);
    assert_eq!(calling.await.unwrap().unwrap().header, "kept");
    stopping.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_service_bounds_the_bytes_in_flight() {
    const PAYLOAD: usize = 1 << 20;
    let cluster = Cluster::new();
    let gate = Gate::new();
    let mut config = ServerConfig::new(cluster.credentials(&identity(1, &[Role::Storage])));
    config.bytes_in_flight_max = 24 << 20;
    let server = Server::bind("127.0.0.1:0", config, Arc::new(gate.clone())).await.unwrap();
    let (link, peer) = (Arc::new(cluster.link(2)), peer(1, &server));
    let payload = pattern(1, PAYLOAD);
    let calls: Vec<_> = (0..200)
        .map(|_| {
            let (link, peer, payload) = (link.clone(), peer.clone(), payload.clone());
            tokio::spawn(async move { link.call(&peer, call(Method::Storage, "", vec![payload])).await })
        })
        .collect();
    eventually("reading pauses", || server.counters().reading_paused > 0).await;
    // Both connections stop at the common bound, passed by at most one payload and one read each.
    let bound = (24 << 20) + 2 * (PAYLOAD + (256 << 10) + 4096);
    eventually("the bound is reached", || server.bytes_in_flight() > 20 << 20).await;
    let mut peak = 0;
    for _ in 0..200 {
        peak = peak.max(server.bytes_in_flight());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(peak > 20 << 20 && peak <= bound, "{peak} bytes in flight");
    assert!(gate.begun.load(SeqCst) <= bound / PAYLOAD);
    // A vote is not held up by bulk that waits.
    gate.open.add_permits(200 + 1);
    link.call(&peer, call(Method::Meta, "", vec![])).await.unwrap();
    for calling in calls {
        calling.await.unwrap().unwrap();
    }
    eventually("nothing is in flight", || server.bytes_in_flight() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_calls_pass_while_bulk_is_held_up() {
    let cluster = Cluster::new();
    let gate = Gate::new();
    let bulk = gate.clone();
    let service: Arc<dyn Service> = Arc::new(Run(move |request: Request| {
        let bulk = bulk.clone();
        async move {
            if request.method == Method::Storage {
                return bulk.serve(request).await;
            }
            Ok(Response::default())
        }
    }));
    let server = cluster.server(1, service).await;
    let (link, peer) = (Arc::new(cluster.link(2)), peer(1, &server));
    let payload = pattern(1, 4 << 20);
    let calls: Vec<_> = (0..64)
        .map(|_| {
            let (link, peer, payload) = (link.clone(), peer.clone(), payload.clone());
            tokio::spawn(async move { link.call(&peer, call(Method::Storage, "", vec![payload])).await })
        })
        .collect();
    eventually("reading pauses", || server.counters().reading_paused >= 2).await;
    let hurried = Call { deadline: Duration::from_secs(10), ..call(Method::Raft, "", vec![]) };
    link.call(&peer, hurried).await.unwrap();
    // A bulk call that finds no room in the queue fails before anything of it is sent.
    let short = Call { deadline: Duration::from_millis(100), ..call(Method::Storage, "", vec![payload]) };
    assert_eq!(link.call(&peer, short).await.unwrap_err().kind, FailureKind::Unavailable);
    gate.open.add_permits(64);
    for calling in calls {
        calling.await.unwrap().unwrap();
    }
}

/// Estimates its replies, so that reads are bounded before their bytes exist.
struct Reader {
    running: Arc<AtomicUsize>,
    peak: Arc<AtomicUsize>,
}

impl Service for Reader {
    fn serve(&self, _: Request) -> plinth_transport::BoxFuture<'static, Result<Response, plinth_protocol::Failure>> {
        let (running, peak) = (self.running.clone(), self.peak.clone());
        Box::pin(async move {
            peak.fetch_max(running.fetch_add(1, SeqCst) + 1, SeqCst);
            tokio::time::sleep(Duration::from_millis(5)).await;
            running.fetch_sub(1, SeqCst);
            Ok(Response { header: Bytes::new(), payload: vec![pattern(3, 1 << 20)] })
        })
    }
    fn reply_bytes(&self, _: Method, _: &[u8]) -> usize {
        1 << 20
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn expected_replies_count_before_they_exist() {
    let cluster = Cluster::new();
    let peak = Arc::new(AtomicUsize::new(0));
    let server = cluster.server(1, Arc::new(Reader { running: Arc::default(), peak: peak.clone() })).await;
    let (link, peer) = (Arc::new(cluster.link(2)), peer(1, &server));
    // Requests come one by one, so that none is read together with too many others.
    let mut calls = Vec::new();
    for _ in 0..100 {
        let (link, peer) = (link.clone(), peer.clone());
        calls.push(tokio::spawn(async move { link.call(&peer, call(Method::Storage, vec![0; 60_000], vec![])).await }));
    }
    for calling in calls {
        assert_eq!(calling.await.unwrap().unwrap().payload, pattern(3, 1 << 20));
    }
    // Two connections of 16 MiB each, passed by what one read brings.
    let peak = peak.load(SeqCst);
    assert!((2..=2 * (17 + 5)).contains(&peak), "{peak} reads at once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_inside_the_connection_ends_it_and_nothing_else() {
    let cluster = Cluster::new();
    let server = cluster.server(1, echo()).await;
    let (link, peer) = (cluster.link(3), peer(1, &server));
    link.call(&peer, call(Method::Meta, "", vec![])).await.unwrap();
    let oversize = {
        let mut bytes = request(1, vec![]).prefix.to_vec();
        bytes[16..24].copy_from_slice(&[0xff; 8]);
        bytes
    };
    let inputs: Vec<(&str, Vec<u8>)> = vec![
        ("noise", pattern(9, 4096).to_vec()),
        ("zeros", vec![0; PREFIX_BYTES]),
        ("lengths of 4 GiB", oversize),
        ("an answer", bytes_of(&OutFrame::failure(1, &plinth_protocol::Failure::new(FailureKind::Busy, "")))),
        ("a second hello", bytes_of(&OutFrame::hello(&raw::hello(2)))),
        ("the same id twice", [bytes_of(&request(1, vec![])), bytes_of(&request(1, vec![]))].concat()),
    ];
    for (why, bytes) in inputs {
        // Twice the same id is wrong only while the first is served.
        let slow = cluster.server(1, slow_echo()).await;
        let mut client = raw(&cluster, if why.contains("twice") { &slow } else { &server }).await;
        let ended = tokio::task::spawn_blocking(move || client.send_bytes(&bytes).is_err() || client.ends());
        assert!(ended.await.unwrap(), "{why}");
    }
    link.call(&peer, call(Method::Meta, "", vec![])).await.unwrap();
    assert_eq!(link.counters().connections_opened, 1);
}

fn bytes_of(frame: &OutFrame) -> Vec<u8> {
    [&frame.prefix[..], &frame.header, &frame.payload.concat()].concat()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changed_payload_is_corrupt_and_counted() {
    let cluster = Cluster::new();
    let gate = Gate::new();
    let server = cluster.server(1, Arc::new(gate.clone())).await;
    let mut client = raw(&cluster, &server).await;
    let mut frame = request(7, vec![pattern(1, 9000)]);
    frame.payload[0] = {
        let mut bytes = frame.payload[0].to_vec();
        bytes[8999] ^= 1;
        bytes.into()
    };
    let answer = tokio::task::spawn_blocking(move || {
        client.send(&frame).unwrap();
        let answer = client.receive().unwrap();
        assert!(client.ends());
        answer
    });
    let answer = answer.await.unwrap();
    assert_eq!((answer.head.kind, answer.head.id), (FrameKind::Failure, 7));
    let failure: plinth_protocol::Failure = plinth_protocol::wire::Wire::decode(&answer.header).unwrap();
    assert_eq!((failure.kind, gate.begun.load(SeqCst)), (FailureKind::Corrupt, 0));
    eventually("the mismatch is counted", || server.counters().checksum_mismatches == 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callee_that_answers_nonsense_fails_calls_and_loses_the_connection() {
    let cluster = Cluster::new();
    let response = |id, payload: &[u8]| {
        let head = FrameHead { kind: FrameKind::Response, method: None, deadline_ms: 0, id };
        bytes_of(&OutFrame::new(head, Bytes::new(), vec![Bytes::copy_from_slice(payload)]))
    };
    type Answer = Box<dyn Fn(&Frame) -> Vec<u8> + Send>;
    let rows: Vec<(&str, FailureKind, u64, Answer)> = vec![
        (
            "changed payload",
            FailureKind::Corrupt,
            1,
            Box::new(move |frame| {
                let mut bytes = response(frame.head.id, b"payload");
                bytes[PREFIX_BYTES + 3] ^= 1;
                bytes
            }),
        ),
        (
            "changed prefix",
            FailureKind::Unknown,
            1,
            Box::new(move |frame| {
                let mut bytes = response(frame.head.id, b"payload");
                bytes[8] ^= 1;
                bytes
            }),
        ),
        ("noise", FailureKind::Unknown, 0, Box::new(|_| pattern(5, 999).to_vec())),
        ("request", FailureKind::Unknown, 0, Box::new(|_| bytes_of(&request(1, vec![])))),
        (
            "no failure",
            FailureKind::Unknown,
            0,
            Box::new(|frame| {
                let head = FrameHead { kind: FrameKind::Failure, method: None, deadline_ms: 0, id: frame.head.id };
                bytes_of(&OutFrame::new(head, Bytes::from_static(b"???"), vec![]))
            }),
        ),
    ];
    for (why, expected, mismatches, answer) in rows {
        let certificate = cluster.authority.issue(&identity(1, &[Role::Meta]), HOUR, SystemTime::now()).unwrap();
        let (address, serving) = raw::rogue_server(&certificate, answer);
        let peer = Peer { node: NodeId(1), incarnation: Some(Incarnation(1)), address: address.to_string() };
        let link = cluster.link(2);
        let failure = link.call(&peer, call(Method::Meta, "", vec![])).await.unwrap_err();
        assert_eq!(failure.kind, expected, "{why}: {failure}");
        eventually(why, || link.counters().connections_closed == 1).await;
        assert_eq!(link.counters().checksum_mismatches, mismatches, "{why}");
        tokio::task::spawn_blocking(move || serving.join().unwrap()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_to_nobody_are_passed_over() {
    let cluster = Cluster::new();
    let certificate = cluster.authority.issue(&identity(1, &[Role::Meta]), HOUR, SystemTime::now()).unwrap();
    let (address, serving) = raw::rogue_server(&certificate, |frame| {
        let response = |id, header: &'static str| {
            let head = FrameHead { kind: FrameKind::Response, method: None, deadline_ms: 0, id };
            bytes_of(&OutFrame::new(head, Bytes::from_static(header.as_bytes()), vec![]))
        };
        let id = frame.head.id;
        // Ids that are not in use, an earlier generation of this one, then the answer, then it again.
        let wrong = [0, id ^ 1, id ^ 1 << 32, u64::MAX].map(|id| response(id, "wrong")).concat();
        [wrong, response(id, "right"), response(id, "again")].concat()
    });
    let peer = Peer { node: NodeId(1), incarnation: Some(Incarnation(1)), address: address.to_string() };
    let link = cluster.link(2);
    for _ in 0..3 {
        assert_eq!(link.call(&peer, call(Method::Meta, "", vec![])).await.unwrap().header, "right");
    }
    drop(link);
    tokio::task::spawn_blocking(move || serving.join().unwrap()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cut_connections_leave_nothing_behind() {
    let cluster = Cluster::new();
    let gate = Gate::new();
    let server = cluster.server(1, Arc::new(gate.clone())).await;
    for cut in [1, 31, 33, 40, 5000] {
        let mut client = raw(&cluster, &server).await;
        let bytes = bytes_of(&request(1, vec![pattern(1, 100_000)]));
        tokio::task::spawn_blocking(move || {
            client.send(&request(2, vec![])).unwrap();
            client.send_bytes(&bytes[..cut]).unwrap();
            client.abort();
        })
        .await
        .unwrap();
    }
    eventually("all connections end", || server.counters().connections_closed == 5).await;
    eventually("services are dropped", || gate.begun.load(SeqCst) == gate.dropped.load(SeqCst)).await;
    assert_eq!(server.bytes_in_flight(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn service_that_panics_or_answers_too_much_fails_only_that_call() {
    let cluster = Cluster::new();
    let service: Arc<dyn Service> = Arc::new(Run(|request: Request| async move {
        tokio::task::yield_now().await;
        match &request.header[..] {
            b"panic" => panic!("to order"),
            b"large" => Ok(Response { header: Bytes::new(), payload: vec![Bytes::from(vec![0; (8 << 20) + 1])] }),
            b"long" => Err(plinth_protocol::Failure::new(FailureKind::Invalid, "ä".repeat(1 << 20))),
            _ => Ok(Response::default()),
        }
    }));
    let server = cluster.server(1, service).await;
    let (link, peer) = (cluster.link(2), peer(1, &server));
    let kind = async |header: &'static str| {
        link.call(&peer, call(Method::Meta, header, vec![])).await.map(|_| ()).map_err(|failure| failure.kind)
    };
    assert_eq!(kind("panic").await, Err(FailureKind::Internal));
    assert_eq!(kind("large").await, Err(FailureKind::Internal));
    assert_eq!(kind("long").await, Err(FailureKind::Invalid));
    assert_eq!(kind("").await, Ok(()));
    let counters = link.counters();
    assert_eq!(counters.connections_opened, 1);
    assert_eq!((counters.methods[&Method::Meta].calls, counters.peers[&NodeId(1)].calls), (4, 4));
    assert_eq!(counters.peers[&NodeId(1)].failures[&FailureKind::Internal], 2);
    assert_eq!(counters.methods[&Method::Meta].buckets.iter().sum::<u64>(), 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_serves_its_own_calls_without_a_socket() {
    let cluster = Cluster::new();
    let link = TlsLink::new(cluster.credentials(&identity(2, &[Role::Gateway])));
    link.serve_own_calls(echo());
    let own = Peer { node: NodeId(2), incarnation: Some(Incarnation(1)), address: "127.0.0.1:1".to_string() };
    let reply = link.call(&own, call(Method::Storage, "h", vec![pattern(1, 5000)])).await.unwrap();
    assert_eq!(reply.payload, pattern(1, 5000));
    let failure = link.call(&own, call(Method::Raft, "", vec![])).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Denied);
}
