//! What strangers can do to a node that serves others: little, and not for long.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

mod rig;

use bytes::Bytes;
use plinth_protocol::{Incarnation, Method, NodeId, Role};
use plinth_transport::frame::{FrameHead, FrameKind, Hello, Lane, OutFrame};
use plinth_transport::{Call, Link, Request, Response, Server, ServerConfig, Service};
use rig::raw::{RawClient, hello};
use rig::*;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::Instant;

/// Connects without a certificate and sends requests for admission that nobody answers.
fn crowd(address: SocketAddr, requests: u64) -> RawClient {
    let said = Hello { node: NodeId(0), incarnation: Incarnation(0), lane: Lane::Small, ..hello(0) };
    let mut client = RawClient::connect(address, None, None).unwrap();
    client.send(&OutFrame::hello(&said)).unwrap();
    assert_eq!(client.receive().unwrap().head.kind, FrameKind::Hello);
    for id in 1..=requests {
        let head = FrameHead { kind: FrameKind::Request, method: Some(Method::Join), deadline_ms: 60_000, id };
        client.send(&OutFrame::new(head, Bytes::from(vec![0; 60 << 10]), vec![])).unwrap();
    }
    client
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_of_strangers_take_no_room_from_nodes() {
    let cluster = Cluster::new();
    let gate = Gate::new();
    let waiting = gate.clone();
    let service: Arc<dyn Service> = Arc::new(Run(move |request: Request| {
        let waiting = waiting.clone();
        async move {
            match request.method {
                Method::Join => waiting.serve(request).await,
                _ => Ok(Response::default()),
            }
        }
    }));
    let mut config = ServerConfig::new(cluster.credentials(&identity(1, &[Role::Meta])));
    // A quarter of it is for small connections.
    config.bytes_in_flight_max = 1 << 20;
    let server = Server::bind("127.0.0.1:0", config, service).await.unwrap();
    let address = server.address();
    let strangers = tokio::task::spawn_blocking(move || (0..4).map(|_| crowd(address, 2)).collect::<Vec<_>>());
    let strangers = strangers.await.unwrap();
    eventually("more is in flight than nodes may have", || server.bytes_in_flight() > 256 << 10).await;
    let hurried = Call { deadline: Duration::from_secs(5), ..call(Method::Raft, "vote", vec![]) };
    cluster.link(2).call(&peer(1, &server), hurried).await.unwrap();
    drop(strangers);
    eventually("nothing is in flight", || server.bytes_in_flight() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_half_open_connections_is_turned_away_and_nodes_get_in() {
    let cluster = Cluster::new();
    let server = cluster.server(1, echo()).await;
    let mut half_open = Vec::new();
    for _ in 0..400 {
        half_open.push(TcpStream::connect(server.address()).await.unwrap());
    }
    eventually("connections are closed unread", || server.counters().handshakes_throttled > 100).await;
    let link = cluster.link(2);
    let deadline = Instant::now() + Duration::from_secs(10);
    while let Err(failure) = link.call(&peer(1, &server), call(Method::Ping, "", vec![])).await {
        assert!(Instant::now() < deadline, "{failure}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    drop(half_open);
}
