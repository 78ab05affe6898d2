//! The serving side over the network: the listener, and who is let in.
//!
//! A caller shows a certificate of the cluster's authority and says hello as the node that it names;
//! then it may call what the role table gives its roles. A caller without certificate is let in as
//! [`plinth_protocol::Role::Joining`], with small bounds and for a short time. Everyone else is
//! turned away before a single request is read.

use crate::budget::Budget;
use crate::call::{Identity, Service};
use crate::certificate::CertificateFacts;
use crate::channel::Channel;
use crate::counters::{Counters, Snapshot};
use crate::credentials::{Credentials, lifetime, peer_facts, peer_name};
use crate::error::TransportError;
use crate::frame::{Bounds, FrameKind, HELLO_VERSION, Hello, Lane, OutFrame};
use crate::gate::HandshakeGate;
use crate::serving::{Serving, Shared, Terms};
use crate::session::Session;
use plinth_protocol::pool::BufferPool;
use plinth_protocol::wire::Wire;
use plinth_protocol::{ClusterId, FailureKind, Incarnation, NodeId};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

/// Connections that a server keeps at once; further ones are closed unread.
pub const CONNECTIONS_MAX: usize = 8192;
/// Longest time for a handshake, hellos included.
pub const HANDSHAKE_MAX: Duration = Duration::from_secs(5);
/// Connections without certificate that a server keeps at once.
pub const STRANGERS_MAX: usize = 64;
/// Bytes in flight of all connections without certificate beyond which none of them reads on.
pub const STRANGERS_BYTES_IN_FLIGHT_MAX: usize = 1 << 20;
/// Longest life of a connection without certificate.
pub const STRANGER_LIFETIME_MAX: Duration = Duration::from_secs(60);
/// Default of [`ServerConfig::bytes_in_flight_max`].
pub const BYTES_IN_FLIGHT_MAX: usize = 128 << 20;
/// Pause after a failed accept: no descriptors left, as a rule.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Decides whether a peer may connect and stay connected, by what group 0 knows of it: the registry and the deny
/// list. Says why not.
pub type Allowed = Arc<dyn Fn(&Identity, Option<&CertificateFacts>) -> Result<(), String> + Send + Sync>;

/// How a server serves.
#[derive(Clone)]
pub struct ServerConfig {
    /// What the node shows and trusts.
    pub credentials: Arc<Credentials>,
    /// Asked at each handshake and every few seconds of a connection's life.
    pub allowed: Allowed,
    /// Bytes of requests and answers in flight over all bulk connections beyond which none reads on;
    /// small connections share a quarter of it beside that.
    pub bytes_in_flight_max: usize,
}

impl ServerConfig {
    /// Returns a configuration that allows every node of the cluster.
    pub fn new(credentials: Arc<Credentials>) -> Self {
        ServerConfig { credentials, allowed: Arc::new(|_, _| Ok(())), bytes_in_flight_max: BYTES_IN_FLIGHT_MAX }
    }
}

/// A listener that serves one service. Dropping it ends all its connections at once.
pub struct Server {
    house: Arc<House>,
    address: SocketAddr,
    stop: watch::Sender<Option<Duration>>,
    listening: JoinHandle<()>,
}

/// What all connections of a server share.
struct House {
    service: Arc<dyn Service>,
    credentials: RwLock<Arc<Credentials>>,
    allowed: Allowed,
    small: Arc<Budget>,
    bulk: Arc<Budget>,
    /// Of connections without certificate, apart: what strangers send must not keep nodes waiting.
    strange: Arc<Budget>,
    counters: Arc<Counters>,
    pool: Arc<BufferPool>,
    gate: Arc<HandshakeGate>,
    strangers: Arc<Semaphore>,
    connections: Mutex<Vec<Weak<Shared>>>,
}

impl Server {
    /// Listens on `address` (host and port; port 0 takes any) and serves what comes.
    pub async fn bind(address: &str, config: ServerConfig, service: Arc<dyn Service>) -> Result<Self, TransportError> {
        Server::serve(TcpListener::bind(address).await?, config, service)
    }

    /// Serves what comes to a socket that listens already. Must be called inside a tokio runtime.
    pub fn serve(
        listener: TcpListener,
        config: ServerConfig,
        service: Arc<dyn Service>,
    ) -> Result<Self, TransportError> {
        let address = listener.local_addr()?;
        let house = Arc::new(House {
            service,
            credentials: RwLock::new(config.credentials),
            allowed: config.allowed,
            small: Arc::new(Budget::new(config.bytes_in_flight_max / 4)),
            bulk: Arc::new(Budget::new(config.bytes_in_flight_max)),
            strange: Arc::new(Budget::new(STRANGERS_BYTES_IN_FLIGHT_MAX)),
            counters: Arc::default(),
            pool: BufferPool::new(),
            gate: HandshakeGate::new(),
            strangers: Arc::new(Semaphore::new(STRANGERS_MAX)),
            connections: Mutex::default(),
        });
        let (stop, stopped) = watch::channel(None);
        let listening = tokio::spawn(listen(listener, house.clone(), stopped));
        Ok(Server { house, address, stop, listening })
    }

    /// Returns the address that the server listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns what has been counted.
    pub fn counters(&self) -> Snapshot {
        self.house.counters.snapshot()
    }

    /// Returns what reads the counters, also once the server is gone.
    pub fn meter(&self) -> Arc<dyn Fn() -> Snapshot + Send + Sync> {
        let counters = self.house.counters.clone();
        Arc::new(move || counters.snapshot())
    }

    /// Returns the bytes of requests and answers in flight.
    pub fn bytes_in_flight(&self) -> usize {
        self.house.small.used() + self.house.bulk.used() + self.house.strange.used()
    }

    /// Uses other credentials for connections accepted from now on. The node must be the same.
    pub fn set_credentials(&self, credentials: Arc<Credentials>) {
        self.house.set_credentials(credentials);
    }

    /// Returns what does [`Server::set_credentials`], for whoever renews certificates.
    pub fn credentials_setter(&self) -> Arc<dyn Fn(Arc<Credentials>) + Send + Sync> {
        let house = self.house.clone();
        Arc::new(move |credentials| house.set_credentials(credentials))
    }

    /// Stops listening, tells all callers, answers what is in flight for at most `grace`, then ends
    /// what is left.
    pub async fn shutdown(mut self, grace: Duration) {
        self.stop.send_replace(Some(grace));
        // The task fails only where its runtime ends first, which is a shutdown as well.
        let _ = (&mut self.listening).await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

async fn listen(listener: TcpListener, house: Arc<House>, mut stopped: watch::Receiver<Option<Duration>>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((socket, address)) => house.accept(socket, address.ip(), &mut connections),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {}
            changed = stopped.changed() => {
                if changed.is_err() {
                    return;
                }
                break;
            }
        }
    }
    drop(listener);
    let grace = stopped.borrow().unwrap_or_default();
    for connection in house.lock_connections().drain(..) {
        connection.upgrade().inspect(|connection| connection.close());
    }
    let all = async { while connections.join_next().await.is_some() {} };
    // What is not done by now is aborted with the set.
    let _ = tokio::time::timeout(grace, all).await;
}

/// A caller that has been let in.
struct Guest {
    channel: Channel,
    caller: Identity,
    certificate: Option<Arc<CertificateFacts>>,
    lane: Lane,
    expires: Instant,
    /// Held by connections without certificate.
    stranger: Option<OwnedSemaphorePermit>,
}

impl House {
    fn set_credentials(&self, credentials: Arc<Credentials>) {
        *self.credentials.write().unwrap_or_else(PoisonError::into_inner) = credentials;
    }

    fn lock_connections(&self) -> std::sync::MutexGuard<'_, Vec<Weak<Shared>>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn accept(self: &Arc<Self>, socket: TcpStream, source: IpAddr, connections: &mut JoinSet<()>) {
        let pass = match self.gate.admit(source, Instant::now()) {
            Some(pass) if connections.len() < CONNECTIONS_MAX => pass,
            _ => {
                self.counters.handshakes_throttled.fetch_add(1, Relaxed);
                return;
            }
        };
        let house = self.clone();
        connections.spawn(async move {
            let welcome = tokio::time::timeout(HANDSHAKE_MAX, house.welcome(socket)).await;
            drop(pass);
            match welcome.unwrap_or(Err(TransportError::Silent("handshake took more than 5 s"))) {
                Ok(guest) => house.entertain(guest).await,
                Err(error) => {
                    house.counters.handshakes_refused.fetch_add(1, Relaxed);
                    tracing::info!(%error, "connection refused");
                }
            }
        });
    }

    async fn entertain(&self, guest: Guest) {
        let Guest { channel, caller, certificate, lane, expires, stranger } = guest;
        let terms = Terms {
            service: self.service.clone(),
            allowed: self.allowed.clone(),
            caller,
            certificate,
            lane,
            expires,
            budget: match lane {
                _ if stranger.is_some() => self.strange.clone(),
                Lane::Bulk => self.bulk.clone(),
                Lane::Small => self.small.clone(),
            },
            counters: self.counters.clone(),
        };
        let (serving, shared) = Serving::new(channel, terms);
        {
            let mut connections = self.lock_connections();
            connections.retain(|connection| connection.strong_count() > 0);
            connections.push(Arc::downgrade(&shared));
        }
        serving.await;
        drop(stranger);
    }

    /// Shakes hands and decides who the caller is.
    async fn welcome(&self, socket: TcpStream) -> Result<Guest, TransportError> {
        let credentials = self.credentials.read().unwrap_or_else(PoisonError::into_inner).clone();
        let own = credentials.identity();
        let session = Session::server(credentials.server.clone())?;
        let mut channel = Channel::new(socket, session, Bounds::STRANGER, self.pool.clone())?;
        channel.handshake().await?;
        let name = peer_name(channel.peer_certificates())?;
        let certificate = peer_facts(channel.peer_certificates())?;
        let proved = certificate.as_ref().and_then(|certificate| certificate.incarnation);
        let frame = channel.receive().await?;
        let hello = match frame.head.kind {
            FrameKind::Hello => Hello::decode(&frame.header).map_err(|error| refuse(format!("hello: {error}")))?,
            _ => return Err(refuse("first frame is no hello".to_string())),
        };
        let checked = check_hello(&hello, own).and_then(|()| match name {
            Some(name) if name.cluster != own.cluster => {
                Err(refuse(format!("certificate of cluster {}", name.cluster)))
            }
            Some(name) if name.node != hello.node => {
                Err(refuse(format!("certificate is {}'s, hello is {}'s", name.node, hello.node)))
            }
            Some(_) if proved.is_some_and(|proved| proved != hello.incarnation) => {
                Err(refuse(format!("hello is of incarnation {}, the certificate of another", hello.incarnation)))
            }
            Some(name) => {
                let Hello { cluster, node, incarnation, .. } = hello;
                Ok((Identity { cluster, node, roles: name.roles, incarnation }, None))
            }
            None if hello.node != NodeId(0) || hello.incarnation != Incarnation(0) || hello.lane != Lane::Small => {
                Err(refuse("a node needs a certificate".to_string()))
            }
            None => match self.strangers.clone().try_acquire_owned() {
                Ok(permit) => Ok((Identity::anonymous(own.cluster), Some(permit))),
                Err(_) => Err(refuse("too many nodes join at once".to_string())),
            },
        });
        let checked = checked.and_then(|(caller, stranger)| match (self.allowed)(&caller, certificate.as_ref()) {
            Ok(()) => Ok((caller, stranger)),
            Err(why) => Err(refuse(format!("{} is not allowed: {why}", caller.node))),
        });
        let (caller, stranger) = match checked {
            Ok(checked) => checked,
            Err(error) => {
                channel.send(OutFrame::goodbye(FailureKind::Denied, &error.to_string())).await?;
                channel.close();
                return Err(error);
            }
        };
        let life = certificate.as_ref().map_or(STRANGER_LIFETIME_MAX, lifetime);
        if stranger.is_none() {
            channel.set_bounds(Bounds::NODE);
        }
        channel.send(OutFrame::hello(&answer_of(own, hello.lane))).await?;
        let (certificate, expires) = (certificate.map(Arc::new), Instant::now() + life);
        Ok(Guest { channel, caller, certificate, lane: hello.lane, expires, stranger })
    }
}

fn answer_of(own: &Identity, lane: Lane) -> Hello {
    Hello {
        version: HELLO_VERSION,
        cluster: own.cluster,
        node: own.node,
        incarnation: own.incarnation,
        lane,
        peer_incarnation: None,
    }
}

fn check_hello(hello: &Hello, own: &Identity) -> Result<(), TransportError> {
    if hello.version != HELLO_VERSION {
        return Err(refuse(format!("caller speaks version {}", hello.version)));
    }
    // A joining node may not know the cluster's id yet; it knows the authority's fingerprint.
    let unnamed = hello.cluster == ClusterId(0) && hello.node == NodeId(0);
    if hello.cluster != own.cluster && !unnamed {
        return Err(refuse(format!("caller means cluster {}", hello.cluster)));
    }
    if hello.peer_incarnation.is_some_and(|meant| meant != own.incarnation) {
        return Err(refuse(format!("caller means another incarnation than {}", own.incarnation)));
    }
    Ok(())
}

fn refuse(text: String) -> TransportError {
    TransportError::Identity(text)
}
