//! Calls over TCP and TLS, as their callers and services see them.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

mod rig;

use bytes::Bytes;
use plinth_protocol::buffer::BLOCK_BYTES;
use plinth_protocol::{FailureKind, Method};
use plinth_transport::{Link, PAYLOAD_BYTES_MAX};
use rig::*;
use std::sync::Arc;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn payloads_of_all_sizes_return_whole_and_aligned() {
    let cluster = Cluster::new();
    for service in [echo(), slow_echo()] {
        let server = cluster.server(1, service).await;
        let (link, peer) = (cluster.link(2), peer(1, &server));
        for length in [0, 1, 31, 4095, 4096, 4097, 16_384, 16_385, 65_536, 300_001, 1 << 20, PAYLOAD_BYTES_MAX] {
            let payload = pattern(length as u64, length);
            let parts = vec![payload.slice(..length / 3), payload.slice(length / 3..)];
            let header = pattern(7, length.min(100_000));
            let reply = link.call(&peer, call(Method::Storage, header.clone(), parts)).await.unwrap();
            assert!(reply.header == header && reply.payload == payload, "length {length}");
            assert_eq!(reply.payload.as_ptr() as usize % if length == 0 { 1 } else { BLOCK_BYTES }, 0);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_concurrent_calls_get_their_own_answers() {
    let cluster = Cluster::new();
    for service in [echo(), slow_echo()] {
        let server = cluster.server(1, service).await;
        let (link, peer) = (Arc::new(cluster.link(2)), peer(1, &server));
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..5000u64 {
            let (link, peer) = (link.clone(), peer.clone());
            tasks.spawn(async move {
                let payload = pattern(number, (number as usize * 37) % 9000);
                let method = if number % 2 == 0 { Method::Meta } else { Method::Storage };
                let header = Bytes::from(number.to_string());
                let reply = link.call(&peer, call(method, header.clone(), vec![payload.clone()])).await.unwrap();
                assert!(reply.header == header && reply.payload == payload);
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
    }
}

#[tokio::test]
async fn role_table_stands_before_the_service() {
    let cluster = Cluster::new();
    let server = cluster.server(1, echo()).await;
    let link = cluster.link(2);
    let failure = link.call(&peer(1, &server), call(Method::Admin, "", vec![])).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Denied);
}
