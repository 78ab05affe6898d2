//! A node: its roles started in order, watched, and stopped in reverse.

use crate::config::{Config, RoleName, parse_meta_peer};
use crate::identity::Secrets;
use crate::init;
use crate::join::JoinDesk;
use crate::keyring::ClusterKeys;
use crate::measure::Measures;
use crate::observe::{self, Observed};
use crate::service::{NodeService, ProcessControl};
use plinth_admin::exit::{Exit, Trouble};
use plinth_admin::secret::draw;
use plinth_client::Housekeeping;
use plinth_client::{Client, ClientConfig};
use plinth_gateway::{Gateway, GatewayConfig};
use plinth_meta::{MetaConfig, MetaLimits, MetaNode};
use plinth_protocol::map::{ClusterMap, DiskRecord, State};
use plinth_protocol::meta::{Command, Outcome, SetDiskState};
use plinth_protocol::storage::DiskStat;
use plinth_protocol::*;
use plinth_storage::{DiskConfig, FormatConfig, StorageConfig, StorageNode};
use plinth_transport::{Credentials, Identity, Link, LocalNetwork, Peer, Server, ServerConfig, TlsLink};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;

/// How often a storage node reports its disks to the system group.
const REPORT_EVERY: Duration = Duration::from_secs(10);
/// How long one report or registration may take.
const REPORT_TIME_MAX: Duration = Duration::from_secs(10);
/// Pause before a registration that failed is tried again.
const RETRY_AFTER: Duration = Duration::from_millis(500);
/// Age of an owed fragment in a demo at which it is filled in: one wants to see it happen.
const EMBEDDED_FILL_IN_AFTER: Duration = Duration::from_millis(200);
/// Pause between two rounds of housekeeping in a demo.
const EMBEDDED_HOUSEKEEPING_EVERY: Duration = Duration::from_millis(500);
/// How long in-flight requests may take at a graceful stop.
const STOP_TIME_MAX: Duration = Duration::from_secs(20);

/// Returns the wall clock: the one place of the binary that reads it.
#[allow(clippy::disallowed_methods)]
pub fn wall_clock() -> SystemTime {
    SystemTime::now()
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
    network: Network,
    server: Option<Server>,
    measures: Arc<Measures>,
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
    Ok(())
}

impl Node {
    /// Starts a node's sockets and its meta and storage roles; the gateway follows with [`Node::start_gateway`].
    pub async fn start(
        config: Config,
        network: Network,
        control: Option<Arc<dyn ProcessControl>>,
    ) -> Result<Node, Trouble> {
        let secrets = Secrets::load(&config).map_err(|error| Trouble::new(Exit::Usage, "E2004", error.to_string()))?;
        let identity = secrets.identity.clone();
        crate::files::make_folder(&config.node.data).map_err(|error| init::file_trouble(&config.node.data, error))?;
        let service = NodeService::default();
        let credentials =
            Arc::new(Credentials::new(&secrets.certificate, &secrets.ca_pem, identity.incarnation).map_err(failed)?);
        let link = open_link(&network, &credentials, &identity, &service);
        let (stop, _) = watch::channel(false);
        let measures = Arc::new(Measures::new(&config, service.clone()).map_err(failed)?);
        let mut node = Node {
            name: config.node.name.clone(),
            identity,
            service,
            client: None,
            housekeeping: None,
            link,
            server: None,
            measures,
            stop,
            tasks: Vec::new(),
            network,
            config,
        };
        // Disks and logs open before the socket does: nobody is answered from a half-open node.
        node.start_storage().await?;
        node.listen(&credentials).await?;
        node.start_meta().await?;
        if let Some(control) = control.or_else(|| node.own_control()) {
            let _ = node.service.parts.control.set(control);
        }
        node.watch().await?;
        node.start_background(secrets);
        Ok(node)
    }

    async fn listen(&mut self, credentials: &Arc<Credentials>) -> Result<(), Trouble> {
        let embedded = matches!(self.network, Network::Local(_));
        if embedded && !self.config.has_role(RoleName::Meta) {
            return Ok(());
        }
        let listener = bind(&self.config.transport.listen, "transport.listen").await?;
        let config = ServerConfig::new(credentials.clone());
        self.server = Some(Server::serve(listener, config, Arc::new(self.service.clone())).map_err(failed)?);
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
            limits: MetaLimits::default(),
        };
        let meta = MetaNode::start(config, self.link.clone()).await.map_err(failed)?;
        let _ = self.service.parts.meta.set(meta);
        Ok(())
    }

    async fn start_storage(&mut self) -> Result<(), Trouble> {
        if !self.config.has_role(RoleName::Storage) {
            return Ok(());
        }
        let mut disks = Vec::new();
        for path in &self.config.storage.disks {
            disks.push(prepare_disk(&self.config, &self.identity, path.clone())?);
        }
        let storage = StorageNode::open(StorageConfig::new(self.identity.cluster, disks)).await.map_err(failed)?;
        let _ = self.service.parts.storage.set(storage);
        Ok(())
    }

    /// A node outside a demo takes orders for itself: opening another disk.
    fn own_control(&self) -> Option<Arc<dyn ProcessControl>> {
        let storage = self.service.parts.storage.get()?.clone();
        let (config, identity) = (self.config.clone(), self.identity.clone());
        Some(Arc::new(OwnControl { storage, config, identity }))
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
    fn start_background(&mut self, secrets: Secrets) {
        let config = client_config(self.identity.node, &self.config.cluster.meta, None);
        let (link, service, stop) = (self.link.clone(), self.service.clone(), self.stop.subscribe());
        let measures = self.measures.clone();
        let base = self.config.node.name.clone();
        let node = self.identity.node;
        self.tasks.push(tokio::spawn(async move {
            let Some(client) = connect(config, link, stop.clone()).await else { return };
            measures.set_client(client.clone());
            if let Some(authority) = secrets.authority {
                let desk = JoinDesk { authority, client: client.clone(), wrapping_key: secrets.wrapping_key };
                let _ = service.parts.desk.set(desk);
            }
            if let Some(storage) = service.parts.storage.get() {
                report_disks(client, storage.clone(), node, base, stop).await;
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
        let mut config = client_config(self.identity.node, &self.config.cluster.meta, deferred);
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
        let metrics = plinth_gateway::Metrics::register(self.measures.registry()).map_err(failed)?;
        let tls = s3_acceptor(&self.config)?;
        let gateway = Gateway::new(settings, client.clone(), metrics);
        let mut stop = self.stop.subscribe();
        let stopped = async move {
            let _ = stop.wait_for(|stop| *stop).await;
        };
        self.client = Some(client);
        self.tasks.push(tokio::spawn(plinth_gateway::serve(listener, tls, gateway, stopped)));
        Ok(())
    }

    /// Stops the node: no new requests, what is in flight ends, disks and logs close.
    pub async fn stop(mut self) {
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

/// Makes the TLS side of the S3 socket, where the configuration names a certificate.
fn s3_acceptor(config: &Config) -> Result<Option<TlsAcceptor>, Trouble> {
    let (Some(certificate), Some(key)) = (&config.gateway.tls_certificate, &config.gateway.tls_private_key) else {
        return Ok(None);
    };
    let chain_pem = crate::files::read(certificate).map_err(|error| init::file_trouble(certificate, error))?;
    let key_pem = crate::files::read_secret(key).map_err(|error| init::file_trouble(key, error))?;
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&chain_pem)
        .collect::<Result<_, _>>()
        .map_err(|error| failed(format!("{}: {error:?}", certificate.display())))?;
    let key =
        PrivateKeyDer::from_pem_slice(&key_pem).map_err(|error| failed(format!("{}: {error:?}", key.display())))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(failed)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(failed)?;
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Some(TlsAcceptor::from(Arc::new(tls))))
}

fn open_link(
    network: &Network,
    credentials: &Arc<Credentials>,
    identity: &Identity,
    service: &NodeService,
) -> Arc<dyn Link> {
    match network {
        Network::Tls => Arc::new(TlsLink::new(credentials.clone())),
        Network::Local(network) => {
            network.attach(identity.clone(), Arc::new(service.clone()));
            Arc::new(network.link(identity.clone()))
        }
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

/// Registers a node's disks, then reports how full they are, until the node stops.
async fn report_disks(
    client: Client,
    storage: StorageNode,
    node: NodeId,
    base: String,
    mut stop: watch::Receiver<bool>,
) {
    loop {
        for (number, stat) in storage.disks().iter().enumerate() {
            if let Err(failure) = report_disk(&client, node, &base, number, stat).await {
                tracing::warn!(%failure, disk = %stat.disk, "disk report failed");
            }
        }
        let pause = tokio::time::sleep(REPORT_EVERY);
        tokio::select! {
            () = pause => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
    }
}

async fn report_disk(client: &Client, node: NodeId, base: &str, number: usize, stat: &DiskStat) -> Result<(), Failure> {
    let deadline = Instant::now() + REPORT_TIME_MAX;
    let map = client.map();
    let known = map.disk(stat.disk);
    let wanted = if stat.fenced.is_some() { State::Failed } else { State::Up };
    let command = match known {
        None => Command::RegisterDisk(DiskRecord {
            disk: stat.disk,
            node,
            incarnation: stat.incarnation,
            state: wanted,
            name: free_name(&map, base, number),
            size_bytes: stat.size_bytes,
            used_bytes: Some(stat.used_bytes),
        }),
        Some(record) => {
            // A restarted process has a healthy ring again, but only an operator brings a failed disk back.
            let state = (wanted == State::Failed && record.state == State::Up).then_some(State::Failed);
            let moved = record.used_bytes.unwrap_or(0).abs_diff(stat.used_bytes);
            if state.is_none() && record.used_bytes.is_some() && moved * 100 < stat.size_bytes.max(1) {
                return Ok(());
            }
            Command::SetDiskState(SetDiskState { disk: stat.disk, state, used_bytes: Some(stat.used_bytes) })
        }
    };
    match client.mutate(GROUP_SYSTEM, command, None, deadline).await? {
        Outcome::Refused(refusal) => Err(Failure::new(FailureKind::Conflict, refusal.text)),
        _ => Ok(()),
    }
}

/// A name that no disk of the map has: the node's own count, which is no stable order, or the next free number.
fn free_name(map: &ClusterMap, base: &str, number: usize) -> String {
    let mut names = (number..).map(|number| format!("{base}/d{number}"));
    names.find(|name| map.disks.iter().all(|disk| disk.name != *name)).expect("there are more numbers than disks")
}

/// Formats an empty disk folder; leaves one that carries a disk as it is.
fn prepare_disk(config: &Config, identity: &Identity, path: PathBuf) -> Result<DiskConfig, Trouble> {
    let entries = crate::files::list(&path).map_err(|error| init::file_trouble(&path, error))?;
    if entries.is_empty() {
        let capacity = match config.storage.capacity_bytes {
            0 => crate::files::space_bytes(&path).map_err(|error| init::file_trouble(&path, error))?,
            bytes => bytes,
        };
        let disk = DiskId(u128::from_le_bytes(draw()));
        let format = FormatConfig {
            path: path.clone(),
            cluster: identity.cluster,
            disk,
            incarnation: Incarnation(1),
            segment_bytes: config.storage.segment_bytes as u32,
            size_bytes: capacity,
            stamp: u64::from_le_bytes(draw()),
        };
        plinth_storage::format_disk(&format).map_err(failed)?;
        tracing::info!(%disk, "empty disk folder formatted");
    }
    Ok(DiskConfig { path, expected: None })
}

/// Orders that a node carries out for itself.
struct OwnControl {
    storage: StorageNode,
    config: Config,
    identity: Identity,
}

impl ProcessControl for OwnControl {
    fn control(
        &self,
        request: plinth_protocol::meta::AdminRequest,
    ) -> plinth_transport::BoxFuture<'static, Result<plinth_protocol::meta::AdminReply, Failure>> {
        use plinth_protocol::meta::{AdminReply, AdminRequest};
        let (storage, config, identity) = (self.storage.clone(), self.config.clone(), self.identity.clone());
        Box::pin(async move {
            let AdminRequest::AddDisk(path) = request else {
                return Err(Failure::new(FailureKind::Invalid, "only a demo stops and starts its nodes by command"));
            };
            let invalid = |trouble: Trouble| Failure::new(FailureKind::Invalid, trouble.text);
            crate::files::make_folder(path.as_ref())
                .map_err(|error| Failure::new(FailureKind::Invalid, error.to_string()))?;
            let disk = prepare_disk(&config, &identity, path.clone().into()).map_err(invalid)?;
            let stat =
                storage.add_disk(disk).await.map_err(|error| Failure::new(FailureKind::Invalid, error.to_string()))?;
            Ok(AdminReply::Done(format!(
                "{path} is disk {}; add it to storage.disks in plinth.toml, then run plinth layout apply to use it",
                stat.disk
            )))
        })
    }
}
