//! A node: its roles started in order, watched, and stopped in reverse.

use crate::admission::Admission;
use crate::announce::Announcer;
use crate::config::{Config, RoleName, parse_meta_peer};
use crate::disks::{self, Memory, OwnControl, ReportOrder, Reporter};
use crate::https;
use crate::identity::{Secrets, check_validity};
use crate::init;
use crate::keyring::ClusterKeys;
use crate::measure::Measures;
use crate::observe::{self, Observed};
use crate::peers::PeerCheck;
use crate::renewal::Renewal;
use crate::service::{NodeService, ProcessControl};
use crate::voters::Voters;
use plinth_admin::exit::{Exit, Trouble};
use plinth_admin::secret::draw;
use plinth_client::Housekeeping;
use plinth_client::{Client, ClientConfig};
use plinth_gateway::{Gateway, GatewayConfig};
use plinth_meta::{MetaConfig, MetaLimits, MetaNode};
use plinth_protocol::map::State;
use plinth_protocol::meta::{Command, SetNodeState};
use plinth_protocol::*;
use plinth_transport::{Credentials, Identity, Link, LocalNetwork, Peer, Server, ServerConfig, TlsLink};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// Pause before a registration that failed is tried again.
const RETRY_AFTER: Duration = Duration::from_millis(500);
/// Age of an owed fragment in a demo at which it is filled in: one wants to see it happen.
const EMBEDDED_FILL_IN_AFTER: Duration = Duration::from_millis(200);
/// Pause between two rounds of housekeeping in a demo.
const EMBEDDED_HOUSEKEEPING_EVERY: Duration = Duration::from_millis(500);
/// How long a stopping node tries to tell the cluster.
const GOODBYE_TIME_MAX: Duration = Duration::from_secs(1);
/// How long each part of the node may take at a graceful stop; above the gateway's own bound for requests in flight
/// (25 s), so that it is the gateway that says which it cut off.
const STOP_TIME_MAX: Duration = Duration::from_secs(30);

/// By how many milliseconds the wall clock is wrong on purpose; 0 outside tests (`config::TestSection`).
static CLOCK_OFFSET_MS: AtomicI64 = AtomicI64::new(0);

/// Returns the wall clock: the one place of the binary that reads it.
#[allow(clippy::disallowed_methods)]
pub fn wall_clock() -> SystemTime {
    let offset_ms = CLOCK_OFFSET_MS.load(Ordering::Relaxed);
    let offset = Duration::from_millis(offset_ms.unsigned_abs());
    let now = SystemTime::now();
    let shifted = if offset_ms < 0 { now.checked_sub(offset) } else { now.checked_add(offset) };
    shifted.unwrap_or(now)
}

/// Sets the process's wall clock wrong, and says so.
fn shift_wall_clock(offset_ms: i64) {
    if offset_ms != 0 {
        CLOCK_OFFSET_MS.store(offset_ms, Ordering::Relaxed);
        tracing::error!(
            event = "test_clock",
            offset_ms,
            "test.clock_offset_ms is set: this node's wall clock is wrong on purpose"
        );
    }
}

/// Returns the wall clock in milliseconds since 1970.
pub fn wall_clock_ms() -> u64 {
    wall_clock().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// How a node reaches the others.
#[derive(Clone)]
pub enum Network {
    /// Over TCP and mutual TLS.
    Tls,
    /// Inside this process; metadata nodes listen on TLS too, for operators.
    Local(LocalNetwork),
}

/// Makes the configuration of a client.
pub fn client_config(node: NodeId, meta: &[String], deferred_delete: Option<u64>) -> ClientConfig {
    let peers = meta
        .iter()
        .filter_map(|peer| parse_meta_peer(peer))
        .map(|(node, address)| Peer { node: NodeId(node), incarnation: None, address })
        .collect();
    let mut config = ClientConfig::new(node, peers, Arc::new(wall_clock_ms), draw());
    if let Some(seconds) = deferred_delete {
        config.deferred_delete_after = Duration::from_secs(seconds);
    }
    config
}

/// A running node.
pub struct Node {
    /// The node's name.
    pub name: String,
    /// Its identity.
    pub identity: Identity,
    /// Its configuration.
    pub config: Config,
    /// The parts that answer.
    pub service: NodeService,
    /// Its client of the cluster.
    pub client: Option<Client>,
    housekeeping: Option<Housekeeping>,
    link: Arc<dyn Link>,
    /// The same link where it is over TLS: its credentials are renewed.
    tls: Option<Arc<TlsLink>>,
    peers: PeerCheck,
    network: Network,
    server: Option<Server>,
    measures: Arc<Measures>,
    disks: Arc<Memory>,
    voters: Arc<Voters>,
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
}

fn failed(error: impl ToString) -> Trouble {
    Trouble::new(Exit::Failed, "E2011", error.to_string())
}

async fn bind(address: &str, what: &str) -> Result<TcpListener, Trouble> {
    TcpListener::bind(address)
        .await
        .map_err(|error| Trouble::new(Exit::Failed, "E2012", format!("{what}: can't listen on {address}: {error}")))
}

/// Runs a node until SIGTERM or Ctrl-C.
pub async fn run_until_signal(config: Config) -> Result<(), Trouble> {
    let repeats = tokio::spawn(crate::logging::tell_repeats());
    let mut node = Node::start(config, Network::Tls, None).await?;
    node.start_gateway().await?;
    tracing::info!(node = %node.identity.node, name = %node.name, "node serves");
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).map_err(failed)?;
    tokio::select! {
        _ = terminate.recv() => {}
        result = tokio::signal::ctrl_c() => result.map_err(failed)?,
    }
    tracing::info!("stopping");
    node.stop().await;
    repeats.abort();
    crate::logging::tell_last_repeats();
    Ok(())
}

/// Checks what a node needs beside its secrets: disk folders, founding record, certificate of S3. Changes nothing.
pub fn check(config: &Config) -> Result<(), Trouble> {
    if config.has_role(RoleName::Storage) {
        for disk in &config.storage.disks {
            crate::files::list(disk).map_err(|error| init::file_trouble(disk, error))?;
        }
    }
    if let Some(founding) = &config.cluster.founding {
        init::read_founding(founding)?;
    }
    if config.has_role(RoleName::Gateway) {
        https::open(config)?;
    }
    Ok(())
}

impl Node {
    /// Starts a node's sockets and its meta and storage roles; the gateway follows with [`Node::start_gateway`].
    pub async fn start(
        config: Config,
        network: Network,
        control: Option<Arc<dyn ProcessControl>>,
    ) -> Result<Node, Trouble> {
        shift_wall_clock(config.test.clock_offset_ms);
        let secrets = Secrets::load(&config).map_err(|error| Trouble::new(Exit::Usage, "E2004", error.to_string()))?;
        let identity = secrets.identity.clone();
        crate::logging::names::learn_one(identity.node.0, &config.node.name);
        crate::files::make_folder(&config.node.data).map_err(|error| init::file_trouble(&config.node.data, error))?;
        let service = NodeService::default();
        let credentials =
            Arc::new(Credentials::new(&secrets.certificate, &secrets.ca_pem, identity.incarnation).map_err(failed)?);
        let measures = Arc::new(Measures::new(&config, identity.node, service.clone()).map_err(failed)?);
        if let Err(text) = check_validity(&secrets.certificate, wall_clock()) {
            tracing::error!(event = "certificate_ended", "{text}");
        }
        measures.set_certificate("node", secrets.certificate.valid_from(), secrets.certificate.valid_until());
        let voters = Arc::new(Voters::of_node(&config.node.data));
        let peers = PeerCheck::default();
        let (link, tls) = open_link(&network, &credentials, &config, &peers, &voters, &service, &measures);
        let (stop, _) = watch::channel(false);
        let disks = Arc::new(Memory::load(&config.node.data)?);
        measures.set_disks(disks.clone());
        let mut node = Node {
            name: config.node.name.clone(),
            identity,
            service,
            client: None,
            housekeeping: None,
            link,
            tls,
            peers,
            server: None,
            measures,
            disks,
            voters,
            stop,
            tasks: Vec::new(),
            network,
            config,
        };
        // Disks and logs open before the socket does: nobody is answered from a half-open node.
        node.start_storage().await?;
        node.listen(&credentials).await?;
        node.start_meta().await?;
        let (reports, orders) = disks::report_orders();
        if let Some(control) = control.or_else(|| node.own_control(reports)) {
            let _ = node.service.parts.control.set(control);
        }
        node.watch().await?;
        node.start_background(secrets, orders);
        Ok(node)
    }

    async fn listen(&mut self, credentials: &Arc<Credentials>) -> Result<(), Trouble> {
        let embedded = matches!(self.network, Network::Local(_));
        if embedded && !self.config.has_role(RoleName::Meta) {
            return Ok(());
        }
        let listener = bind(&self.config.transport.listen, "transport.listen").await?;
        let mut config = ServerConfig::new(credentials.clone());
        config.allowed = self.peers.allowed();
        let server = Server::serve(listener, config, Arc::new(self.service.clone())).map_err(failed)?;
        self.measures.add_wire(("callee", server.meter()));
        self.server = Some(server);
        Ok(())
    }

    async fn start_meta(&mut self) -> Result<(), Trouble> {
        if !self.config.has_role(RoleName::Meta) {
            return Ok(());
        }
        let found = match &self.config.cluster.founding {
            Some(file) => Some(init::read_founding(file)?),
            None => None,
        };
        let data = self.config.node.data.join("meta");
        let config = MetaConfig {
            cluster: self.identity.cluster,
            node: self.identity.node,
            folder: data,
            found,
            clock: Arc::new(wall_clock_ms),
            seed: u64::from_le_bytes(draw()),
            limits: MetaLimits { database_cache_bytes: self.config.meta.cache_bytes as usize, ..MetaLimits::default() },
        };
        let meta = MetaNode::start(config, self.link.clone()).await.map_err(failed)?;
        let _ = self.service.parts.meta.set(meta);
        Ok(())
    }

    async fn start_storage(&mut self) -> Result<(), Trouble> {
        if !self.config.has_role(RoleName::Storage) {
            return Ok(());
        }
        let storage = disks::open(&self.config, &self.identity, &self.disks).await?;
        let _ = self.service.parts.storage.set(storage);
        Ok(())
    }

    /// A node outside a demo takes orders for itself: opening another disk.
    fn own_control(&self, reports: mpsc::Sender<ReportOrder>) -> Option<Arc<dyn ProcessControl>> {
        let storage = self.service.parts.storage.get()?.clone();
        let (config, identity, memory) = (self.config.clone(), self.identity.clone(), self.disks.clone());
        Some(Arc::new(OwnControl { storage, memory, config, identity, reports }))
    }

    /// Starts the observability socket.
    async fn watch(&mut self) -> Result<(), Trouble> {
        let listener = bind(&self.config.observability.listen, "observability.listen").await?;
        let observed: Arc<dyn Observed> = self.measures.clone();
        self.tasks.push(tokio::spawn(observe::serve(listener, observed, self.stop.subscribe())));
        self.tasks.push(tokio::spawn(self.measures.clone().probe(self.stop.subscribe())));
        Ok(())
    }

    /// Starts what needs the cluster, which may not be there yet: registration, reports, admission.
    fn start_background(&mut self, secrets: Secrets, orders: mpsc::Receiver<ReportOrder>) {
        let config = client_config(self.identity.node, &self.voters.bootstrap(&self.config.cluster.meta), None);
        let (link, service, stop) = (self.link.clone(), self.service.clone(), self.stop.subscribe());
        let (measures, memory, voters) = (self.measures.clone(), self.disks.clone(), self.voters.clone());
        let (node, name) = (self.identity.node, self.config.node.name.clone());
        // Nodes of a demo are reached without sockets.
        let address = self.config.advertised().filter(|_| matches!(self.network, Network::Tls));
        let (peers, security) = (self.peers.clone(), self.config.security.clone());
        let Secrets { certificate, authority, wrapping_key, .. } = secrets;
        // A demo's nodes reach each other without certificates.
        if let Some(tls) = self.tls.clone() {
            let serving = self.server.as_ref().map(Server::credentials_setter);
            let renewal = Renewal::new(&self.config, certificate, tls, serving, peers.clone(), self.measures.clone());
            self.tasks.push(tokio::spawn(renewal.run(self.stop.subscribe())));
        }
        self.tasks.push(tokio::spawn(async move {
            let Some(client) = connect(config, link, stop.clone()).await else { return };
            measures.set_client(client.clone());
            peers.set_client(client.clone());
            if let Some(authority) = authority {
                let admission = Admission::new(authority, client.clone(), wrapping_key, &security);
                let _ = service.parts.admission.set(admission);
            }
            let announcing = announce(client.clone(), node, address, stop.clone());
            let keeping = voters.keep(client.clone(), stop.clone());
            let remembering = async { tokio::join!(keeping, announcing) };
            match service.parts.storage.get().cloned() {
                Some(storage) => {
                    let reporter = Reporter { client, storage, memory, node, name };
                    tokio::join!(remembering, reporter.run(orders, stop));
                }
                None => drop(remembering.await),
            }
        }));
    }

    /// Starts the gateway role: waits for the cluster's map, then serves S3.
    pub async fn start_gateway(&mut self) -> Result<(), Trouble> {
        if !self.config.has_role(RoleName::Gateway) {
            return Ok(());
        }
        let listener = bind(&self.config.gateway.listen, "gateway.listen").await?;
        let wrapping_key = match &self.config.security.wrapping_key {
            Some(file) => crate::identity::load_wrapping_key(file).map_err(failed)?,
            None => return Err(failed("role gateway needs security.wrapping_key")),
        };
        let deferred = Some(self.config.gateway.deferred_delete_seconds);
        let meta = self.voters.bootstrap(&self.config.cluster.meta);
        let mut config = client_config(self.identity.node, &meta, deferred);
        if matches!(self.network, Network::Local(_)) {
            (config.fill_in_after, config.housekeeping_every) = (EMBEDDED_FILL_IN_AFTER, EMBEDDED_HOUSEKEEPING_EVERY);
        }
        let Some(client) = connect(config, self.link.clone(), self.stop.subscribe()).await else { return Ok(()) };
        self.measures.set_client(client.clone());
        self.housekeeping = Some(client.spawn_housekeeping());
        let keys = Arc::new(ClusterKeys::new(client.clone(), wrapping_key));
        let section = &self.config.gateway;
        let mut settings = GatewayConfig::new(keys);
        settings.region = section.region.clone();
        settings.base_domains = section.base_domains.clone();
        settings.in_flight_bytes_max = section.body_bytes_max;
        settings.log_keys = self.config.log.keys.into();
        let metrics = plinth_gateway::Metrics::register(self.measures.registry()).map_err(failed)?;
        let tls = https::open(&self.config)?;
        let acceptor = tls.as_ref().map(https::Https::acceptor);
        if let Some(https) = tls {
            self.tasks.push(tokio::spawn(https.watch(self.measures.clone(), self.stop.subscribe())));
        }
        let gateway = Gateway::new(settings, client.clone(), metrics);
        let mut stop = self.stop.subscribe();
        let stopped = async move {
            let _ = stop.wait_for(|stop| *stop).await;
        };
        self.client = Some(client);
        self.tasks.push(tokio::spawn(plinth_gateway::serve(listener, acceptor, gateway, stopped)));
        Ok(())
    }

    /// Gives leadership away and tells the cluster that this node stops, so that nobody waits for its silence.
    async fn say_goodbye(&self) {
        self.service.parts.leaving.store(true, Ordering::Release);
        if let Some(meta) = self.service.parts.meta.get() {
            meta.leave();
            meta.hand_over().await;
        }
        let Some(client) = self.measures.client() else { return };
        let map = client.map();
        let is_up = map.node(self.identity.node).is_some_and(|own| matches!(own.state, State::Up | State::Suspect));
        // Alone there is nobody to tell.
        if !is_up || map.nodes.len() == 1 {
            return;
        }
        let down = Command::SetNodeState(SetNodeState { node: self.identity.node, state: State::Down });
        if let Err(failure) = client.mutate(GROUP_SYSTEM, down, None, Instant::now() + GOODBYE_TIME_MAX).await {
            tracing::info!(%failure, "the cluster was not told that this node stops");
        }
    }

    /// Stops the node: the cluster is told, no new requests, what is in flight ends, disks and logs close.
    pub async fn stop(mut self) {
        self.say_goodbye().await;
        let _ = self.stop.send(true);
        for task in self.tasks.drain(..) {
            let abort = task.abort_handle();
            if tokio::time::timeout(STOP_TIME_MAX, task).await.is_err() {
                abort.abort();
            }
        }
        if let Some(housekeeping) = self.housekeeping.take() {
            housekeeping.stop().await;
        }
        if let Network::Local(network) = &self.network {
            network.detach(self.identity.node);
        }
        // Leadership goes before the socket does: writes go on while this node's last answers leave.
        if let Some(meta) = self.service.parts.meta.get() {
            meta.hand_over().await;
        }
        if let Some(server) = self.server.take() {
            server.shutdown(STOP_TIME_MAX).await;
        }
        if let Some(meta) = self.service.parts.meta.get() {
            meta.clone().shutdown().await;
        }
        if let Some(storage) = self.service.parts.storage.get() {
            storage.clone().shutdown().await;
        }
    }
}

/// Makes a link over the network that knows where the metadata nodes may be: `<node id>@<host>:<port>` each, the likelier
/// ones first.
pub fn wire_link<'a>(
    credentials: Arc<Credentials>,
    own_address: Option<String>,
    peers: impl DoubleEndedIterator<Item = &'a String>,
) -> TlsLink {
    let own = credentials.identity().node;
    let link = TlsLink::new(credentials).with_own_address(own_address.clone());
    // What is learned last is tried first.
    for (node, address) in peers.rev().filter_map(|line| parse_meta_peer(line)) {
        link.learn_address(NodeId(node), &address);
    }
    // The registry may still have this node where it was.
    if let Some(address) = own_address {
        link.learn_address(own, &address);
    }
    link
}

fn open_link(
    network: &Network,
    credentials: &Arc<Credentials>,
    config: &Config,
    peers: &PeerCheck,
    voters: &Voters,
    service: &NodeService,
    measures: &Measures,
) -> (Arc<dyn Link>, Option<Arc<TlsLink>>) {
    let identity = credentials.identity();
    match network {
        Network::Tls => {
            let known = voters.bootstrap(&config.cluster.meta);
            let places = known.iter().chain(&config.cluster.meta);
            let link = Arc::new(wire_link(credentials.clone(), config.advertised(), places));
            link.set_allowed(peers.allowed());
            measures.add_wire(("caller", link.meter()));
            (link.clone(), Some(link))
        }
        Network::Local(network) => {
            network.attach(identity.clone(), Arc::new(service.clone()));
            (Arc::new(network.link(identity.clone())), None)
        }
    }
}

/// Announces where the node is reached, where its configuration says that.
async fn announce(client: Client, node: NodeId, address: Option<String>, stop: watch::Receiver<bool>) {
    if let Some(address) = address {
        Announcer { client, node, address }.run(stop).await;
    }
}

/// Connects to the cluster, however long it takes to come up; nothing where the node stops first.
async fn connect(config: ClientConfig, link: Arc<dyn Link>, mut stop: watch::Receiver<bool>) -> Option<Client> {
    loop {
        let attempt = Client::connect(config.clone(), link.clone());
        tokio::select! {
            result = attempt => match result {
                Ok(client) => return Some(client),
                Err(failure) => tracing::warn!(%failure, "the cluster does not answer yet"),
            },
            _ = stop.wait_for(|stop| *stop) => return None,
        }
        tokio::time::sleep(RETRY_AFTER).await;
    }
}
