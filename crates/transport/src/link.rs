//! The calling side over the network: which connection a call takes, and how connections come about.
//!
//! Per peer there is one connection for small calls and [`BULK_CONNECTIONS`] for bulk, each made when
//! the first call needs it. A peer that cannot be reached is tried again after a growing pause; calls
//! within the pause fail at once, so that a dead peer costs its callers nothing.
//!
//! Nodes move. Beside the address that a caller names, a link tries those that it was told of ([`Link::learn_address`]):
//! by the node's configuration and by the node itself. Whoever answers must prove that it is the node that was
//! meant, so that a wrong address costs a try and nothing else.

use crate::authority::Fingerprint;
use crate::call::{BoxFuture, Call, DEADLINE_MAX, Identity, Link, Peer, Reply, Service, check_bounds};
use crate::caller::{Connection, Driver, REQUEST_BYTES, Standing, WaitingBytes, decode_goodbye};
use crate::channel::Channel;
use crate::counters::{Counters, PeerCounters, Snapshot};
use crate::credentials::{Credentials, joining_config, lifetime, name_of, peer_facts, peer_name};
use crate::error::TransportError;
use crate::frame::{Bounds, FrameKind, HELLO_VERSION, Hello, Lane, OutFrame};
use crate::local::serve_in_process;
use crate::server::Allowed;
use crate::session::Session;
use plinth_protocol::pool::BufferPool;
use plinth_protocol::wire::Wire;
use plinth_protocol::{ClusterId, Failure, FailureKind, Incarnation, Method, NodeId};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Connections per peer for bulk calls.
pub const BULK_CONNECTIONS: usize = 2;
/// Calls whose payload is larger than this go over the bulk connections, whatever their method.
pub const SMALL_PAYLOAD_BYTES_MAX: usize = 64 << 10;
/// Longest time for connecting: TCP, TLS and hellos.
pub const CONNECT_MAX: Duration = Duration::from_secs(5);
/// First pause after a failed attempt to connect; it doubles with each further one.
pub const BACKOFF_MIN: Duration = Duration::from_millis(20);
/// Longest pause between attempts to connect.
pub const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// Other addresses of a node that a link remembers; the oldest goes first.
pub const ADDRESSES_MAX: usize = 4;
/// How long one address may be silent before the next one is tried beside it.
const NEXT_ADDRESS_AFTER: Duration = Duration::from_millis(250);
/// A connection is replaced so long before one of its two certificates ends, or a quarter of what was left of the
/// certificate where that is less: the callee, who counts on its own, cuts it off at the end.
const REPLACE_BEFORE_END: Duration = Duration::from_secs(5);
/// Times that one call looks for another connection when the one it chose closed before sending.
const ATTEMPTS_MAX: usize = 3;

/// The link of one node to all others, over TCP and mutual TLS 1.3.
pub struct TlsLink {
    credentials: RwLock<Arc<Credentials>>,
    allowed: RwLock<Allowed>,
    peers: RwLock<HashMap<NodeId, Arc<PeerLanes>>>,
    /// Where nodes may be found beside the address that a caller names, the newest first.
    book: RwLock<HashMap<NodeId, Vec<String>>>,
    /// Where others reach this node.
    own_address: Option<String>,
    counters: Arc<Counters>,
    pool: Arc<BufferPool>,
    /// Serves calls of the node to itself, without a socket.
    own_service: RwLock<Option<Arc<dyn Service>>>,
}

/// The connections to one peer at one address.
struct PeerLanes {
    peer: Peer,
    small: Arc<LaneSlot>,
    bulk: [Arc<LaneSlot>; BULK_CONNECTIONS],
    turn: AtomicUsize,
    counters: Arc<PeerCounters>,
}

/// The place of one connection.
struct LaneSlot {
    lane: Lane,
    state: Mutex<LaneState>,
    /// Whether the credentials have changed since the connection in the making was begun.
    is_outdated: AtomicBool,
    changed: Notify,
    /// Bytes of the calls that wait until the connection is made, each with its share beside the payload.
    waiting_bytes: AtomicUsize,
}

enum LaneState {
    Idle,
    Connecting,
    Ready(Arc<Connection>),
    Backoff { until: Instant, attempts: u32, failure: Failure },
}

impl TlsLink {
    /// Makes a link that shows and trusts what the credentials say. Connects to nobody yet.
    pub fn new(credentials: Arc<Credentials>) -> Self {
        TlsLink {
            credentials: RwLock::new(credentials),
            allowed: RwLock::new(Arc::new(|_, _| Ok(()))),
            peers: RwLock::default(),
            book: RwLock::default(),
            own_address: None,
            counters: Arc::default(),
            pool: BufferPool::new(),
            own_service: RwLock::default(),
        }
    }

    /// Says where others reach this node.
    pub fn with_own_address(mut self, address: Option<String>) -> Self {
        self.own_address = address;
        self
    }

    /// Lists the addresses to try for a peer: the one that the caller names, then the others.
    fn addresses(&self, peer: &Peer) -> Vec<String> {
        let book = self.book.read().unwrap_or_else(PoisonError::into_inner);
        let others = book.get(&peer.node).into_iter().flatten().filter(|other| **other != peer.address);
        std::iter::once(&peer.address).chain(others).cloned().collect()
    }

    /// Uses other credentials from now on: a renewed certificate, a changed set of authorities. Calls in flight are
    /// answered on the connections that carry them; the next call to each peer makes a new one. The node must be the
    /// same.
    pub fn set_credentials(&self, credentials: Arc<Credentials>) {
        *self.credentials.write().unwrap_or_else(PoisonError::into_inner) = credentials;
        for lanes in self.peers.read().unwrap_or_else(PoisonError::into_inner).values() {
            lanes.slots().for_each(|slot| slot.retire());
        }
    }

    /// Asks this of each peer that answers, and every few seconds of those that are connected.
    pub fn set_allowed(&self, allowed: Allowed) {
        *self.allowed.write().unwrap_or_else(PoisonError::into_inner) = allowed;
    }

    /// Serves the node's calls to itself by `service`, without a socket and under the same rules.
    pub fn serve_own_calls(&self, service: Arc<dyn Service>) {
        *self.own_service.write().unwrap_or_else(PoisonError::into_inner) = Some(service);
    }

    /// Returns what has been counted.
    pub fn counters(&self) -> Snapshot {
        self.counters.snapshot()
    }

    /// Returns what reads the counters, also once the link is gone.
    pub fn meter(&self) -> Arc<dyn Fn() -> Snapshot + Send + Sync> {
        let counters = self.counters.clone();
        Arc::new(move || counters.snapshot())
    }

    fn credentials(&self) -> Arc<Credentials> {
        self.credentials.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn deliver(&self, peer: &Peer, call: Call) -> Result<Reply, Failure> {
        let begun = Instant::now();
        let deadline = begun + call.deadline.min(DEADLINE_MAX);
        let payload_bytes = check_bounds(&call.header, &call.payload)?;
        let lanes = self.lanes(peer);
        let (method, sent_bytes) = (call.method, call.header.len() + payload_bytes);
        let outcome = match self.own(peer) {
            Some((service, credentials)) => serve_in_process(credentials.identity(), service, call, deadline).await,
            None => self.send(peer, &lanes, call, payload_bytes, deadline).await,
        };
        let received_bytes = outcome.as_ref().map_or(0, |reply| reply.header.len() + reply.payload.len());
        lanes.counters.add_bytes(sent_bytes, received_bytes);
        self.counters.record(&lanes.counters, method, begun.elapsed(), outcome.as_ref().err());
        outcome
    }

    /// Returns the node's own service where the call is for the node itself.
    fn own(&self, peer: &Peer) -> Option<(Arc<dyn Service>, Arc<Credentials>)> {
        let service = self.own_service.read().unwrap_or_else(PoisonError::into_inner).clone()?;
        let credentials = self.credentials();
        let own = credentials.identity();
        let meant = peer.node == own.node && peer.incarnation.is_none_or(|incarnation| incarnation == own.incarnation);
        meant.then_some((service, credentials))
    }

    /// Returns the connections to a peer. One that moved is a new one, unless it can be reached still: callers whose
    /// maps differ in its address must not take its connections from each other.
    fn lanes(&self, peer: &Peer) -> Arc<PeerLanes> {
        let known = self.peers.read().unwrap_or_else(PoisonError::into_inner).get(&peer.node).cloned();
        if let Some(lanes) = known
            && (lanes.peer.address == peer.address || lanes.is_connected())
        {
            return lanes;
        }
        let lanes = Arc::new(PeerLanes::new(peer.clone(), self.counters.peer(peer.node)));
        self.peers.write().unwrap_or_else(PoisonError::into_inner).insert(peer.node, lanes.clone());
        lanes
    }

    async fn send(
        &self,
        peer: &Peer,
        lanes: &PeerLanes,
        call: Call,
        payload_bytes: usize,
        deadline: Instant,
    ) -> Result<Reply, Failure> {
        let slot = lanes.choose(call.method, payload_bytes);
        let mut attempt = 1;
        loop {
            let connection = self.connection(peer, slot, payload_bytes, deadline).await?;
            if attempt == ATTEMPTS_MAX {
                return connection.call(call, payload_bytes, deadline).await;
            }
            // The copy is of reference counts: bytes are shared.
            let outcome = connection.call(call.clone(), payload_bytes, deadline).await;
            match outcome {
                Err(failure) if failure.kind == FailureKind::Unavailable && !connection.is_open() => attempt += 1,
                outcome => return outcome,
            }
        }
    }

    /// Returns an open connection to the peer, making one where there is none.
    async fn connection(
        &self,
        peer: &Peer,
        slot: &Arc<LaneSlot>,
        payload_bytes: usize,
        deadline: Instant,
    ) -> Result<Arc<Connection>, Failure> {
        if let Some(connection) = slot.open_connection(peer.incarnation) {
            return Ok(connection);
        }
        let _waiting = slot.wait_with(payload_bytes);
        loop {
            let mut changed = std::pin::pin!(slot.changed.notified());
            changed.as_mut().enable();
            match slot.look(peer.incarnation) {
                Look::Ready(connection) => return Ok(connection),
                Look::Failed(failure) => return Err(failure),
                Look::Wait => {}
                Look::Connect { attempts } => self.connect(peer, slot, attempts),
            }
            if tokio::time::timeout_at(deadline, changed).await.is_err() {
                let text = format!("deadline passed while connecting to {} at {}", peer.node, peer.address);
                return Err(Failure::new(FailureKind::Unavailable, text));
            }
        }
    }

    /// Connects in a task of its own, since many calls may wait for the outcome and any may give up.
    fn connect(&self, peer: &Peer, slot: &Arc<LaneSlot>, attempts: u32) {
        let (peer, slot, addresses) = (peer.clone(), slot.clone(), self.addresses(peer));
        let (credentials, counters, pool) = (self.credentials(), self.counters.clone(), self.pool.clone());
        let allowed = self.allowed.read().unwrap_or_else(PoisonError::into_inner).clone();
        tokio::spawn(async move {
            let mut guard = ConnectGuard { slot: &slot, attempts, outcome: None };
            let dialled = dial_any(&peer, addresses, slot.lane, &credentials, allowed, counters.clone(), pool);
            let dialled = match tokio::time::timeout(CONNECT_MAX, dialled).await {
                Ok(dialled) => dialled,
                Err(_) => Err(TransportError::Silent("connecting took more than 5 s")),
            };
            match dialled {
                Ok((connection, driver)) => {
                    counters.connections_opened.fetch_add(1, Relaxed);
                    guard.outcome = Some(Ok(connection));
                    drop(guard);
                    drop(slot);
                    driver.await;
                }
                Err(error) => {
                    counters.handshakes_refused.fetch_add(1, Relaxed);
                    tracing::debug!(peer = %peer.node, address = %peer.address, %error, "cannot connect");
                    let text = format!("cannot connect to {} at {}: {error}", peer.node, peer.address);
                    guard.outcome = Some(Err(Failure::new(FailureKind::Unavailable, text)));
                }
            }
        });
    }
}

impl Link for TlsLink {
    fn call<'a>(&'a self, peer: &'a Peer, call: Call) -> BoxFuture<'a, Result<Reply, Failure>> {
        Box::pin(self.deliver(peer, call))
    }

    fn learn_address(&self, node: NodeId, address: &str) {
        let knows = |book: &HashMap<NodeId, Vec<String>>| {
            book.get(&node).and_then(|known| known.first()).is_some_and(|newest| newest == address)
        };
        if address.is_empty() || knows(&self.book.read().unwrap_or_else(PoisonError::into_inner)) {
            return;
        }
        let mut book = self.book.write().unwrap_or_else(PoisonError::into_inner);
        let known = book.entry(node).or_default();
        known.retain(|other| other != address);
        known.insert(0, address.to_string());
        known.truncate(ADDRESSES_MAX);
    }

    fn own_address(&self) -> Option<&str> {
        self.own_address.as_deref()
    }
}

impl PeerLanes {
    fn new(peer: Peer, counters: Arc<PeerCounters>) -> Self {
        let slot = |lane| {
            Arc::new(LaneSlot {
                lane,
                state: Mutex::new(LaneState::Idle),
                is_outdated: AtomicBool::new(false),
                changed: Notify::new(),
                waiting_bytes: AtomicUsize::new(0),
            })
        };
        PeerLanes {
            peer,
            small: slot(Lane::Small),
            bulk: std::array::from_fn(|_| slot(Lane::Bulk)),
            turn: AtomicUsize::new(0),
            counters,
        }
    }

    /// Whether any of the connections is open.
    fn is_connected(&self) -> bool {
        self.slots().any(|slot| slot.open_connection(None).is_some())
    }

    fn slots(&self) -> impl Iterator<Item = &Arc<LaneSlot>> {
        std::iter::once(&self.small).chain(&self.bulk)
    }

    /// Chooses the connection: disks' requests and large payloads take the bulk connection with the
    /// shortest queue, everything else the small one.
    fn choose(&self, method: Method, payload_bytes: usize) -> &Arc<LaneSlot> {
        if method != Method::Storage && payload_bytes <= SMALL_PAYLOAD_BYTES_MAX {
            return &self.small;
        }
        // Among equals the turn decides.
        let turn = self.turn.fetch_add(1, Relaxed);
        let slots = (0..BULK_CONNECTIONS).map(|offset| &self.bulk[(turn + offset) % BULK_CONNECTIONS]);
        slots.min_by_key(|slot| slot.load()).expect("there is at least one bulk connection")
    }
}

/// What a call finds in a connection's place.
enum Look {
    Ready(Arc<Connection>),
    Failed(Failure),
    Wait,
    Connect { attempts: u32 },
}

impl LaneSlot {
    /// Returns the connection, where it is open and leads to the incarnation.
    fn open_connection(&self, incarnation: Option<Incarnation>) -> Option<Arc<Connection>> {
        match &*self.lock() {
            LaneState::Ready(connection)
                if incarnation.is_none_or(|meant| meant == connection.incarnation) && connection.is_open() =>
            {
                Some(connection.clone())
            }
            _ => None,
        }
    }

    /// Looks for an open connection to the incarnation. `Connect` obliges the caller to connect.
    fn look(&self, incarnation: Option<Incarnation>) -> Look {
        let mut state = self.lock();
        let attempts = match &*state {
            LaneState::Ready(connection) if connection.is_open() => {
                if incarnation.is_none_or(|incarnation| incarnation == connection.incarnation) {
                    return Look::Ready(connection.clone());
                }
                if incarnation.is_some_and(|incarnation| incarnation < connection.incarnation) {
                    let text = format!("peer is incarnation {}, the caller's map is older", connection.incarnation);
                    return Look::Failed(Failure::new(FailureKind::Unavailable, text));
                }
                // The connection leads to an incarnation that is gone.
                0
            }
            LaneState::Ready(_) | LaneState::Idle => 0,
            LaneState::Connecting => return Look::Wait,
            LaneState::Backoff { until, attempts, failure } => {
                let left = until.saturating_duration_since(Instant::now());
                if !left.is_zero() {
                    return Look::Failed(Failure {
                        retry_after_ms: Some(left.as_millis() as u64 + 1),
                        ..failure.clone()
                    });
                }
                *attempts
            }
        };
        *state = LaneState::Connecting;
        self.is_outdated.store(false, Relaxed);
        Look::Connect { attempts }
    }

    /// Has the next call make another connection, under the credentials of then.
    fn retire(&self) {
        match &*self.lock() {
            LaneState::Ready(connection) => connection.retire("the node's certificate was renewed"),
            LaneState::Connecting => self.is_outdated.store(true, Relaxed),
            LaneState::Idle | LaneState::Backoff { .. } => {}
        }
    }

    /// Counts a call among those that wait for the connection, until the guard is dropped.
    fn wait_with(&self, payload_bytes: usize) -> WaitingBytes<'_> {
        WaitingBytes::add(&self.waiting_bytes, REQUEST_BYTES + payload_bytes)
    }

    /// Orders the bulk connections: an open one by its queue, one that is still to be made by the calls that
    /// wait for it, so that all come into use and none draws every call, one that fails last.
    fn load(&self) -> usize {
        let waiting = self.waiting_bytes.load(Relaxed);
        match &*self.lock() {
            LaneState::Ready(connection) => connection.load().saturating_add(waiting),
            LaneState::Idle | LaneState::Connecting => waiting,
            LaneState::Backoff { .. } => usize::MAX,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, LaneState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends an attempt to connect, also where its task is dropped.
struct ConnectGuard<'a> {
    slot: &'a LaneSlot,
    attempts: u32,
    outcome: Option<Result<Connection, Failure>>,
}

impl Drop for ConnectGuard<'_> {
    fn drop(&mut self) {
        let dropped = || Err(Failure::new(FailureKind::Unavailable, "connecting was dropped"));
        let mut state = self.slot.lock();
        *state = match self.outcome.take().unwrap_or_else(dropped) {
            Ok(connection) => {
                if self.slot.is_outdated.load(Relaxed) {
                    connection.retire("the node's certificate was renewed");
                }
                LaneState::Ready(Arc::new(connection))
            }
            Err(failure) => {
                let pause = BACKOFF_MIN.saturating_mul(1 << self.attempts.min(16)).min(BACKOFF_MAX);
                LaneState::Backoff { until: Instant::now() + pause, attempts: self.attempts + 1, failure }
            }
        };
        drop(state);
        self.slot.changed.notify_waiters();
    }
}

/// Connects to a peer at the first of the addresses where it answers. The next one is tried when one has failed, and
/// beside one that is silent. Fails with what the first address said.
async fn dial_any(
    peer: &Peer,
    addresses: Vec<String>,
    lane: Lane,
    credentials: &Arc<Credentials>,
    allowed: Allowed,
    counters: Arc<Counters>,
    pool: Arc<BufferPool>,
) -> Result<(Connection, Driver), TransportError> {
    let mut waiting = addresses.into_iter().enumerate();
    let mut tries = JoinSet::new();
    let mut failed: Option<(usize, TransportError)> = None;
    let mut is_next_due = true;
    loop {
        if is_next_due && let Some((at, address)) = waiting.next() {
            let (peer, credentials) = (Peer { address, ..peer.clone() }, credentials.clone());
            let (allowed, counters, pool) = (allowed.clone(), counters.clone(), pool.clone());
            tries.spawn(async move { (at, dial(&peer, lane, &credentials, allowed, counters, pool).await) });
        }
        is_next_due = tokio::select! {
            tried = tries.join_next() => match tried {
                Some(Ok((_, Ok(dialled)))) => return Ok(dialled),
                Some(Ok((at, Err(error)))) => {
                    if failed.as_ref().is_none_or(|(other, _)| at < *other) {
                        failed = Some((at, error));
                    }
                    true
                }
                Some(Err(_)) => true,
                None => {
                    let error = failed.map(|(_, error)| error);
                    return Err(error.unwrap_or(TransportError::Silent("connecting ended")));
                }
            },
            () = tokio::time::sleep(NEXT_ADDRESS_AFTER), if waiting.len() > 0 => true,
        };
    }
}

/// Connects to a peer and makes sure that it is the one that was meant.
async fn dial(
    peer: &Peer,
    lane: Lane,
    credentials: &Credentials,
    allowed: Allowed,
    counters: Arc<Counters>,
    pool: Arc<BufferPool>,
) -> Result<(Connection, Driver), TransportError> {
    let own = credentials.identity();
    let hello = Hello {
        version: HELLO_VERSION,
        cluster: own.cluster,
        node: own.node,
        incarnation: own.incarnation,
        lane,
        peer_incarnation: peer.incarnation,
    };
    let session = Session::client(credentials.client.clone(), name_of(peer.node))?;
    let (channel, answer) = greet(&peer.address, session, &hello, pool).await?;
    // The certificate was checked against the dialled node; here the words must fit the certificate.
    let name = peer_name(channel.peer_certificates())?;
    let certificate = peer_facts(channel.peer_certificates())?;
    let (Some(name), Some(facts)) = (name, &certificate) else {
        return Err(TransportError::Identity("a node without certificate answered".to_string()));
    };
    let any = peer.node == NodeId(0);
    if answer.cluster != own.cluster || name.node != answer.node || !(any || answer.node == peer.node) {
        return Err(TransportError::Identity(format!("{} of cluster {} answered", answer.node, answer.cluster)));
    }
    if facts.incarnation.is_some_and(|proved| proved != answer.incarnation) {
        let text = format!("{} says that it is {}, its certificate is of another", answer.node, answer.incarnation);
        return Err(TransportError::Identity(text));
    }
    if peer.incarnation.is_some_and(|meant| meant != answer.incarnation) {
        return Err(TransportError::Identity(format!("incarnation {} answered", answer.incarnation)));
    }
    let callee =
        Identity { cluster: answer.cluster, node: name.node, roles: name.roles, incarnation: answer.incarnation };
    if let Err(why) = allowed(&callee, certificate.as_ref()) {
        return Err(TransportError::Identity(format!("{} is not allowed: {why}", callee.node)));
    }
    let left = lifetime(facts).min(credentials.lifetime());
    let expires = Instant::now() + left.saturating_sub(REPLACE_BEFORE_END.min(left / 4));
    Ok(Connection::new(channel, Standing { callee, certificate, allowed, expires }, counters))
}

/// Connects, shakes hands and exchanges hellos.
async fn greet(
    address: &str,
    session: Session,
    hello: &Hello,
    pool: Arc<BufferPool>,
) -> Result<(Channel, Hello), TransportError> {
    let socket = TcpStream::connect(address).await?;
    let mut channel = Channel::new(socket, session, Bounds::STRANGER, pool)?;
    channel.handshake().await?;
    channel.set_bounds(Bounds::NODE);
    channel.send(OutFrame::hello(hello)).await?;
    let frame = channel.receive().await?;
    match frame.head.kind {
        FrameKind::Hello => {}
        FrameKind::Goodbye => return Err(TransportError::Goodbye(decode_goodbye(&frame))),
        _ => return Err(TransportError::Identity("peer did not say hello".to_string())),
    }
    let answer = Hello::decode(&frame.header).map_err(|error| TransportError::Identity(format!("hello: {error}")))?;
    if answer.version != HELLO_VERSION {
        return Err(TransportError::Identity(format!("peer speaks version {}", answer.version)));
    }
    Ok((channel, answer))
}

/// Makes one call as a node that has no certificate yet; the role table lets it call `Join` alone.
///
/// The callee must show a certificate that the authority with this fingerprint signed, for this
/// cluster where it is known. Fingerprint and token come from the operator, out of band.
pub async fn call_joining(
    address: &str,
    authority: Fingerprint,
    cluster: Option<ClusterId>,
    call: Call,
) -> Result<Reply, Failure> {
    let deadline = Instant::now() + call.deadline.min(DEADLINE_MAX);
    let payload_bytes = check_bounds(&call.header, &call.payload)?;
    let hello = Hello {
        version: HELLO_VERSION,
        cluster: cluster.unwrap_or(ClusterId(0)),
        node: NodeId(0),
        incarnation: Incarnation(0),
        lane: Lane::Small,
        peer_incarnation: None,
    };
    let session = Session::client(joining_config(authority, cluster)?, name_of(NodeId(0)))?;
    let greeted = tokio::time::timeout_at(deadline, greet(address, session, &hello, BufferPool::new())).await;
    let (channel, answer) =
        greeted.map_err(|_| Failure::new(FailureKind::Unavailable, "deadline passed while connecting"))??;
    let certificate = peer_facts(channel.peer_certificates())?;
    let callee =
        Identity { cluster: answer.cluster, node: answer.node, roles: vec![], incarnation: answer.incarnation };
    // As long as the call at most: only the handshake decides.
    let standing = Standing { callee, certificate, allowed: Arc::new(|_, _| Ok(())), expires: deadline };
    let (connection, driver) = Connection::new(channel, standing, Arc::default());
    let calling = connection.call(call, payload_bytes, deadline);
    tokio::select! {
        reply = calling => reply,
        () = driver => Err(Failure::new(FailureKind::Unknown, "connection ended during the call")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_in_the_making_does_not_draw_every_call() {
        let peer = Peer { node: NodeId(1), incarnation: None, address: "127.0.0.1:1".into() };
        let lanes = PeerLanes::new(peer, Arc::default());
        let waiting = lanes.bulk[0].wait_with(1 << 20);
        for _ in 0..4 {
            assert!(Arc::ptr_eq(lanes.choose(Method::Storage, 1), &lanes.bulk[1]));
        }
        drop(waiting);
        let chosen: Vec<_> = (0..2).map(|_| Arc::as_ptr(lanes.choose(Method::Storage, 1))).collect();
        assert_ne!(chosen[0], chosen[1]);
    }
}
