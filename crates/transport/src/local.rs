//! Calls inside one process: no sockets, no TLS, the same rules.
//!
//! A [`LocalNetwork`] is a registry of services by node id. A [`LocalLink`] belongs to one node of it
//! and keeps what `TlsLink` promises: bounds, role table, incarnation check, deadline,
//! cancellation, and the difference between a call that surely did not begin and one that may have.
//! Faults are set per ordered pair of nodes, or decided call by call by a judge that brings its own
//! seeded chance.

use crate::call::{
    BoxFuture, Call, DEADLINE_MAX, Identity, Link, Peer, Reply, Request, Service, check_bounds, join_aligned,
};
use plinth_protocol::{Failure, FailureKind, Method, NodeId};
use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// What happens to a message on its way from one node to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fault {
    /// Passes at once.
    #[default]
    None,
    /// Passes after the delay.
    Delay(Duration),
    /// Vanishes: the caller learns nothing until its deadline.
    Lose,
    /// Meets a broken connection: the caller learns at once that the message did not pass.
    Refuse,
}

/// One message on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Passage {
    /// The node that sends.
    pub from: NodeId,
    /// The node that is to receive.
    pub to: NodeId,
    /// The call that the message belongs to.
    pub method: Method,
    /// Whether the message is the reply.
    pub reply: bool,
}

/// Decides about a message call by call.
pub type Judge = Arc<dyn Fn(Passage) -> Fault + Send + Sync>;

#[derive(Default)]
struct Registry {
    nodes: BTreeMap<NodeId, Attached>,
    faults: BTreeMap<(NodeId, NodeId), Fault>,
    judge: Option<Judge>,
}

/// A service in the registry. Dropping `alive` tells calls in flight that the node is gone.
struct Attached {
    identity: Identity,
    service: Arc<dyn Service>,
    alive: watch::Sender<()>,
}

/// The nodes of one process that reach each other without sockets. Clones share the registry.
#[derive(Clone, Default)]
pub struct LocalNetwork {
    registry: Arc<Mutex<Registry>>,
}

impl LocalNetwork {
    /// Makes an empty network.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts a node's service into the network, in place of an earlier one of the same node id, whose
    /// calls in flight fail with `Unknown`.
    pub fn attach(&self, identity: Identity, service: Arc<dyn Service>) {
        let (alive, _) = watch::channel(());
        let node = identity.node;
        self.lock().nodes.insert(node, Attached { identity, service, alive });
    }

    /// Takes a node out of the network: its calls in flight fail with `Unknown`, later ones with
    /// `Unavailable`.
    pub fn detach(&self, node: NodeId) {
        self.lock().nodes.remove(&node);
    }

    /// Returns the link with which a node calls the others.
    pub fn link(&self, identity: Identity) -> LocalLink {
        LocalLink { identity, network: self.clone() }
    }

    /// Sets what happens to messages from one node to another; replies take the other direction.
    pub fn set_fault(&self, from: NodeId, to: NodeId, fault: Fault) {
        let mut registry = self.lock();
        if fault == Fault::None {
            registry.faults.remove(&(from, to));
        } else {
            registry.faults.insert((from, to), fault);
        }
    }

    /// Refuses messages between two nodes in both directions.
    pub fn cut(&self, one: NodeId, other: NodeId) {
        self.set_fault(one, other, Fault::Refuse);
        self.set_fault(other, one, Fault::Refuse);
    }

    /// Lets messages between two nodes pass again.
    pub fn heal(&self, one: NodeId, other: NodeId) {
        self.set_fault(one, other, Fault::None);
        self.set_fault(other, one, Fault::None);
    }

    /// Lets all messages pass again.
    pub fn heal_all(&self) {
        self.lock().faults.clear();
    }

    /// Asks `judge` about every message that no pair's fault stops; `None` ends that.
    pub fn set_judge(&self, judge: Option<Judge>) {
        self.lock().judge = judge;
    }

    fn lock(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fault(&self, passage: Passage) -> Fault {
        let (fixed, judge) = {
            let registry = self.lock();
            (registry.faults.get(&(passage.from, passage.to)).copied(), registry.judge.clone())
        };
        match (fixed, judge) {
            (Some(fault), _) => fault,
            (None, Some(judge)) => judge(passage),
            (None, None) => Fault::None,
        }
    }
}

/// One node's link inside a [`LocalNetwork`].
#[derive(Clone)]
pub struct LocalLink {
    identity: Identity,
    network: LocalNetwork,
}

impl LocalLink {
    /// Returns the network that the link belongs to.
    pub fn network(&self) -> &LocalNetwork {
        &self.network
    }

    async fn deliver(&self, peer: &Peer, call: Call) -> Result<Reply, Failure> {
        let deadline = Instant::now() + call.deadline.min(DEADLINE_MAX);
        check_bounds(&call.header, &call.payload)?;
        let out = Passage { from: self.identity.node, to: peer.node, method: call.method, reply: false };
        match self.network.fault(out) {
            Fault::None => {}
            Fault::Refuse => return Err(unavailable(peer, "cannot be reached")),
            Fault::Lose => return Err(silence(deadline).await),
            Fault::Delay(delay) if Instant::now() + delay >= deadline => return Err(silence(deadline).await),
            Fault::Delay(delay) => tokio::time::sleep(delay).await,
        }
        let (service, mut alive) = self.find(peer)?;
        let mut answer = std::pin::pin!(serve_in_process(&self.identity, service, call, deadline));
        let reply = tokio::select! {
            biased;
            reply = &mut answer => reply,
            _ = alive.changed() => return Err(unknown(peer, "went away during the call")),
        };
        let back = Passage { from: peer.node, to: self.identity.node, reply: true, ..out };
        match self.network.fault(back) {
            Fault::None => reply,
            Fault::Refuse => Err(unknown(peer, "connection broke before the reply")),
            Fault::Lose => Err(silence(deadline).await),
            Fault::Delay(delay) if Instant::now() + delay >= deadline => Err(silence(deadline).await),
            Fault::Delay(delay) => {
                tokio::time::sleep(delay).await;
                reply
            }
        }
    }

    fn find(&self, peer: &Peer) -> Result<(Arc<dyn Service>, watch::Receiver<()>), Failure> {
        let registry = self.network.lock();
        let attached = registry.nodes.get(&peer.node).ok_or_else(|| unavailable(peer, "is not there"))?;
        if peer.incarnation.is_some_and(|expected| expected != attached.identity.incarnation) {
            return Err(unavailable(peer, "is there under another incarnation"));
        }
        if attached.identity.cluster != self.identity.cluster {
            return Err(unavailable(peer, "belongs to another cluster"));
        }
        Ok((attached.service.clone(), attached.alive.subscribe()))
    }
}

impl Link for LocalLink {
    fn call<'a>(&'a self, peer: &'a Peer, call: Call) -> BoxFuture<'a, Result<Reply, Failure>> {
        Box::pin(self.deliver(peer, call))
    }
}

/// Runs a call against a service of this process: role table, alignment, deadline.
pub(crate) async fn serve_in_process(
    caller: &Identity,
    service: Arc<dyn Service>,
    call: Call,
    deadline: Instant,
) -> Result<Reply, Failure> {
    caller.check_role(call.method)?;
    let payload = join_aligned(call.payload);
    let request = Request {
        caller: caller.clone(),
        certificate: None,
        method: call.method,
        header: call.header,
        payload,
        deadline,
    };
    let response = within(deadline, service.serve(request)).await??;
    check_bounds(&response.header, &response.payload)
        .map_err(|failure| Failure::new(FailureKind::Internal, format!("reply: {}", failure.text)))?;
    Ok(Reply { header: response.header, payload: join_aligned(response.payload) })
}

/// Awaits begun work until the deadline, then fails with `Unknown`.
async fn within<T>(deadline: Instant, work: impl Future<Output = T>) -> Result<T, Failure> {
    match tokio::time::timeout_at(deadline, work).await {
        Ok(done) => Ok(done),
        Err(_) => Err(Failure::new(FailureKind::Unknown, "deadline passed during the call")),
    }
}

/// Waits for an answer that never comes.
async fn silence(deadline: Instant) -> Failure {
    tokio::time::sleep_until(deadline).await;
    Failure::new(FailureKind::Unknown, "deadline passed without an answer")
}

fn unavailable(peer: &Peer, text: &str) -> Failure {
    Failure::new(FailureKind::Unavailable, format!("{} {text}", peer.node))
}

fn unknown(peer: &Peer, text: &str) -> Failure {
    Failure::new(FailureKind::Unknown, format!("{} {text}", peer.node))
}
