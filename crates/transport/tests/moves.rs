//! Nodes that are not where a caller thinks: other addresses are tried, and nobody else is taken for them.
#![allow(clippy::disallowed_methods, clippy::unwrap_used)]

mod rig;

use plinth_protocol::{FailureKind, Incarnation, Method, NodeId};
use plinth_transport::{Link, Peer, TlsLink};
use rig::{Cluster, call, echo};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;

fn at(node: u64, address: &str) -> Peer {
    Peer { node: NodeId(node), incarnation: Some(Incarnation(1)), address: address.to_string() }
}

/// An address at which nobody listens.
async fn nobody() -> String {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string()
}

async fn ask(link: &TlsLink, peer: &Peer) -> Result<(), FailureKind> {
    link.call(peer, call(Method::Ping, "", vec![])).await.map(drop).map_err(|failure| failure.kind)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_moved_is_found_where_the_link_was_told() {
    let cluster = Cluster::new();
    let server = cluster.server(1, echo()).await;
    let (link, old) = (cluster.link(2), nobody().await);
    assert_eq!(ask(&link, &at(1, &old)).await, Err(FailureKind::Unavailable));
    link.learn_address(NodeId(1), &old);
    link.learn_address(NodeId(1), &server.address().to_string());
    rig::eventually_async("the moved peer answers", async || ask(&link, &at(1, &old)).await.is_ok()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_node_at_the_old_address_is_not_taken_for_the_one_that_moved() {
    let cluster = Cluster::new();
    let (one, other) = (cluster.server(1, echo()).await, cluster.server(3, echo()).await);
    let link = cluster.link(2);
    let wrong = at(1, &other.address().to_string());
    assert_eq!(ask(&link, &wrong).await, Err(FailureKind::Unavailable));
    link.learn_address(NodeId(1), &one.address().to_string());
    rig::eventually_async("node 1 answers", async || ask(&link, &wrong).await.is_ok()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_address_is_not_waited_for() {
    let cluster = Cluster::new();
    let server = cluster.server(1, echo()).await;
    // Accepts, as any listener's backlog does, and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let link = cluster.link(2);
    link.learn_address(NodeId(1), &server.address().to_string());
    let begun = Instant::now();
    ask(&link, &at(1, &silent.local_addr().unwrap().to_string())).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_whose_maps_differ_share_the_connection() {
    let cluster = Cluster::new();
    let server = cluster.server(1, echo()).await;
    let (link, old) = (cluster.link(2), nobody().await);
    let new = server.address().to_string();
    link.learn_address(NodeId(1), &new);
    for _ in 0..5 {
        for address in [&old, &new] {
            ask(&link, &at(1, address)).await.unwrap();
        }
    }
    assert_eq!(link.counters().connections_opened, 1);
}
