//! The in-process link keeps the rules of the one over the network.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

mod rig;

use bytes::Bytes;
use plinth_protocol::buffer::{AlignedBuf, BLOCK_BYTES};
use plinth_protocol::{FailureKind, Incarnation, Method, NodeId, Role};
use plinth_transport::{
    Call, Fault, HEADER_BYTES_MAX, Identity, Link, LocalNetwork, PAYLOAD_BYTES_MAX, Peer, Request, Response,
};
use rig::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;
use tokio::time::Instant;

fn target(node: u64) -> Peer {
    Peer { node: NodeId(node), incarnation: Some(Incarnation(1)), address: String::new() }
}

/// Long enough for a call on a busy machine, short enough to wait for.
const SHORT: Duration = Duration::from_millis(300);

fn short_call() -> Call {
    Call { deadline: SHORT, ..call(Method::Raft, "", vec![]) }
}

fn network() -> LocalNetwork {
    let network = LocalNetwork::new();
    network.attach(identity(1, &[Role::Meta, Role::Storage]), echo());
    network
}

#[tokio::test]
async fn one_aligned_part_arrives_without_a_copy_and_others_arrive_aligned() {
    let network = network();
    let link = network.link(identity(2, &[Role::Gateway]));
    let mut buffer = AlignedBuf::zeroed(8192);
    buffer[8191] = 9;
    let payload = buffer.freeze();
    let reply = link.call(&target(1), call(Method::Storage, "h", vec![payload.clone()])).await.unwrap();
    assert_eq!(reply.payload.as_ptr(), payload.as_ptr());
    let parts = vec![payload.slice(1..5000), Bytes::from_static(b"tail")];
    let reply = link.call(&target(1), call(Method::Storage, "h", parts.clone())).await.unwrap();
    assert_eq!(reply.payload, parts.concat());
    assert_eq!(reply.payload.as_ptr() as usize % BLOCK_BYTES, 0);
}

#[tokio::test]
async fn role_table_decides_for_every_method_and_role() {
    let network = LocalNetwork::new();
    let reached = Arc::new(AtomicUsize::new(0));
    let spy = reached.clone();
    network.attach(
        identity(1, &[Role::Meta]),
        Arc::new(Run(move |_: Request| {
            spy.fetch_add(1, SeqCst);
            async { Ok(Response::default()) }
        })),
    );
    for method in Method::ALL.iter().copied() {
        let named = Role::ALL.iter().map(|role| Identity { roles: vec![*role], ..identity(2, &[]) });
        let nobody = [Identity::anonymous(CLUSTER), identity(2, &[])];
        for caller in named.chain(nobody) {
            let before = reached.load(SeqCst);
            let outcome = network.link(caller.clone()).call(&target(1), call(method, "", vec![])).await;
            let allowed = caller.roles.iter().any(|role| method.callers().contains(role));
            assert_eq!(outcome.is_ok(), allowed, "{method:?} by {:?}", caller.roles);
            assert_eq!(reached.load(SeqCst) - before, usize::from(allowed), "{method:?} by {:?}", caller.roles);
            if let Err(failure) = outcome {
                assert_eq!(failure.kind, FailureKind::Denied);
            }
        }
    }
}

#[tokio::test]
async fn bounds_and_identity_are_checked_before_the_service() {
    let network = network();
    let link = network.link(identity(2, &[Role::Gateway]));
    let kind = async |peer: Peer, header: usize, payload: usize| {
        let call = call(Method::Storage, vec![0; header], vec![Bytes::from(vec![0; payload])]);
        link.call(&peer, call).await.map_err(|failure| failure.kind).map(|_| ())
    };
    assert_eq!(kind(target(1), HEADER_BYTES_MAX, PAYLOAD_BYTES_MAX).await, Ok(()));
    assert_eq!(kind(target(1), HEADER_BYTES_MAX + 1, 0).await, Err(FailureKind::Invalid));
    assert_eq!(kind(target(1), 0, PAYLOAD_BYTES_MAX + 1).await, Err(FailureKind::Invalid));
    assert_eq!(kind(target(3), 0, 0).await, Err(FailureKind::Unavailable));
    let older = Peer { incarnation: Some(Incarnation(2)), ..target(1) };
    assert_eq!(kind(older, 0, 0).await, Err(FailureKind::Unavailable));
}

#[tokio::test]
async fn faults_tell_what_surely_did_not_happen_from_what_may_have() {
    let network = LocalNetwork::new();
    let gate = Gate::new();
    network.attach(identity(1, &[Role::Meta]), Arc::new(gate.clone()));
    let link = network.link(identity(2, &[Role::Meta]));
    let (here, there) = (NodeId(2), NodeId(1));
    let kind = async || link.call(&target(1), short_call()).await.map_err(|failure| failure.kind).map(|_| ());
    gate.open.add_permits(1000);
    assert_eq!(kind().await, Ok(()));
    for (from, to, fault, expected, begun) in [
        (here, there, Fault::Refuse, Err(FailureKind::Unavailable), 0),
        (here, there, Fault::Lose, Err(FailureKind::Unknown), 0),
        (there, here, Fault::Refuse, Err(FailureKind::Unknown), 1),
        (there, here, Fault::Lose, Err(FailureKind::Unknown), 1),
        (here, there, Fault::Delay(SHORT / 10), Ok(()), 1),
        (there, here, Fault::Delay(2 * SHORT), Err(FailureKind::Unknown), 1),
    ] {
        network.set_fault(from, to, fault);
        let before = gate.begun.load(SeqCst);
        assert_eq!(kind().await, expected, "{from} to {to}: {fault:?}");
        assert_eq!(gate.begun.load(SeqCst) - before, begun, "{from} to {to}: {fault:?}");
        network.heal_all();
    }
    network.cut(here, there);
    assert_eq!(kind().await, Err(FailureKind::Unavailable));
    network.heal(there, here);
    network.set_judge(Some(Arc::new(|passage| if passage.reply { Fault::Refuse } else { Fault::None })));
    assert_eq!(kind().await, Err(FailureKind::Unknown));
    network.set_judge(None);
    assert_eq!(kind().await, Ok(()));
}

#[tokio::test]
async fn deadline_and_drop_end_the_service() {
    let network = LocalNetwork::new();
    let gate = Gate::new();
    network.attach(identity(1, &[Role::Meta]), Arc::new(gate.clone()));
    let link = network.link(identity(2, &[Role::Meta]));
    let begun = Instant::now();
    let failure = link.call(&target(1), short_call()).await.unwrap_err();
    assert_eq!((failure.kind, begun.elapsed() >= SHORT), (FailureKind::Unknown, true));
    assert_eq!(gate.dropped.load(SeqCst), 1);
    let peer = target(1);
    let dropped = tokio::time::timeout(Duration::from_millis(5), link.call(&peer, short_call()));
    assert!(dropped.await.is_err());
    assert_eq!(gate.dropped.load(SeqCst), 2);
}

#[tokio::test]
async fn detached_node_fails_calls_in_flight() {
    let network = LocalNetwork::new();
    let gate = Gate::new();
    network.attach(identity(1, &[Role::Meta]), Arc::new(gate.clone()));
    let link = network.link(identity(2, &[Role::Meta]));
    let calling = tokio::spawn(async move { link.call(&target(1), call(Method::Raft, "", vec![])).await });
    eventually("call begins", || gate.begun.load(SeqCst) == 1).await;
    network.detach(NodeId(1));
    assert_eq!(calling.await.unwrap().unwrap_err().kind, FailureKind::Unknown);
    eventually("service is dropped", || gate.dropped.load(SeqCst) == 1).await;
}
