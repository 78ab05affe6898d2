//! What the tests share: a cluster authority, nodes with certificates, services that misbehave to order.
#![allow(dead_code)]

pub mod raw;

use bytes::Bytes;
use plinth_protocol::{ClusterId, Failure, FailureKind, Incarnation, Method, NodeId, Role};
use plinth_transport::{
    Authority, BoxFuture, Call, Credentials, Identity, Peer, Request, Response, Server, ServerConfig, Service, TlsLink,
};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, SystemTime};
use tokio::sync::Semaphore;

pub const CLUSTER: ClusterId = ClusterId(0x00c1_0573);
pub const HOUR: Duration = Duration::from_secs(3600);
pub const LONG: Duration = Duration::from_secs(30);

pub fn identity(node: u64, roles: &[Role]) -> Identity {
    Identity { cluster: CLUSTER, node: NodeId(node), roles: roles.to_vec(), incarnation: Incarnation(1) }
}

/// One cluster's authority.
pub struct Cluster {
    pub authority: Authority,
}

impl Cluster {
    pub fn new() -> Self {
        Cluster { authority: Authority::create(CLUSTER, SystemTime::now()).unwrap() }
    }

    pub fn credentials(&self, identity: &Identity) -> Arc<Credentials> {
        let certificate = self.authority.issue(identity, HOUR, SystemTime::now()).unwrap();
        Arc::new(Credentials::new(&certificate, self.authority.certificate_pem(), identity.incarnation).unwrap())
    }

    pub async fn server(&self, node: u64, service: Arc<dyn Service>) -> Server {
        let identity = identity(node, &[Role::Meta, Role::Storage]);
        Server::bind("127.0.0.1:0", ServerConfig::new(self.credentials(&identity)), service).await.unwrap()
    }

    pub fn link(&self, node: u64) -> TlsLink {
        TlsLink::new(self.credentials(&identity(node, &[Role::Gateway, Role::Meta])))
    }
}

pub fn peer(node: u64, server: &Server) -> Peer {
    Peer { node: NodeId(node), incarnation: Some(Incarnation(1)), address: server.address().to_string() }
}

pub fn call(method: Method, header: impl Into<Bytes>, payload: Vec<Bytes>) -> Call {
    Call { method, header: header.into(), payload, deadline: LONG }
}

/// A service made of a closure.
pub struct Run<F>(pub F);

impl<F, W> Service for Run<F>
where
    F: Fn(Request) -> W + Send + Sync + 'static,
    W: Future<Output = Result<Response, Failure>> + Send + 'static,
{
    fn serve(&self, request: Request) -> BoxFuture<'static, Result<Response, Failure>> {
        Box::pin((self.0)(request))
    }
}

/// Answers with what it got, payload and all.
pub fn echo() -> Arc<dyn Service> {
    Arc::new(Run(
        |request: Request| async move { Ok(Response { header: request.header, payload: vec![request.payload] }) },
    ))
}

/// Answers with what it got, from a task of its own.
pub fn slow_echo() -> Arc<dyn Service> {
    Arc::new(Run(|request: Request| async move {
        tokio::task::yield_now().await;
        Ok(Response { header: request.header, payload: vec![request.payload] })
    }))
}

/// Counts what it begins and what is dropped unfinished, and answers only when told to.
#[derive(Clone)]
pub struct Gate {
    pub begun: Arc<AtomicUsize>,
    pub dropped: Arc<AtomicUsize>,
    pub open: Arc<Semaphore>,
}

impl Gate {
    pub fn new() -> Self {
        Gate { begun: Arc::default(), dropped: Arc::default(), open: Arc::new(Semaphore::new(0)) }
    }
}

struct CountDrop(Arc<AtomicUsize>, bool);

impl Drop for CountDrop {
    fn drop(&mut self) {
        if !self.1 {
            self.0.fetch_add(1, SeqCst);
        }
    }
}

impl Service for Gate {
    fn serve(&self, request: Request) -> BoxFuture<'static, Result<Response, Failure>> {
        let gate = self.clone();
        Box::pin(async move {
            gate.begun.fetch_add(1, SeqCst);
            let mut guard = CountDrop(gate.dropped.clone(), false);
            let permit = gate.open.acquire().await;
            permit.map_err(|_| Failure::new(FailureKind::Internal, "gate closed"))?.forget();
            guard.1 = true;
            Ok(Response { header: request.header, payload: vec![] })
        })
    }
}

/// Polls until the condition holds; panics after thirty seconds.
pub async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(tokio::time::Instant::now() < deadline, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// As [`eventually`], with a condition that has to be waited for.
pub async fn eventually_async(what: &str, condition: impl AsyncFn() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    while !condition().await {
        assert!(tokio::time::Instant::now() < deadline, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Bytes that differ from place to place.
pub fn pattern(seed: u64, length: usize) -> Bytes {
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        bytes.extend_from_slice(&(state ^ (state >> 29)).to_le_bytes());
    }
    bytes.truncate(length);
    Bytes::from(bytes)
}
