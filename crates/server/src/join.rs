//! Admission of a new node: the desk on metadata nodes, and the command on the new machine.
//!
//! A token admits one node, once, before it expires. It carries the fingerprint of the cluster's CA,
//! so that the new node trusts nobody else; the new node draws its own key and sends only a
//! certificate request. The token is used up and the node registered in the system group before a
//! certificate is signed: a crash between them costs a token, never admits twice.

use crate::config::*;
use crate::files;
use crate::init::{CERTIFICATE_LIFE, file_trouble, require_disks};
use crate::registry::address_holder;
use bytes::Bytes;
use clap::Args;
use plinth_admin::Report;
use plinth_admin::exit::{Exit, Trouble};
use plinth_admin::secret::JoinToken;
use plinth_client::Client;
use plinth_protocol::map::{NodeRecord, State};
use plinth_protocol::meta::*;
use plinth_protocol::wire::Wire;
use plinth_protocol::*;
use plinth_transport::authority::{Authority, Fingerprint, NodeKey};
use plinth_transport::{Call, Identity, call_joining};
use serde_json::json;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use zeroize::Zeroizing;

/// How long a node waits for its admission.
const ADMISSION_TIME_MAX: Duration = Duration::from_secs(30);

/// Pause before a busy desk is asked again.
const BUSY_PAUSE: Duration = Duration::from_millis(500);

/// Admissions that a node works on at once; more wait for their turn.
const ADMISSIONS_MAX: usize = 4;
/// Visitors of the desk at once, those that wait for their refusal among them; more are answered `Busy`.
const VISITORS_MAX: usize = 64;
/// How late a refused admission is answered: strangers ask, and each question costs a commit.
const REFUSAL_DELAY: Duration = Duration::from_secs(1);

/// Admits nodes; lives on metadata nodes that hold the CA's key.
pub struct JoinDesk {
    /// Signs certificates.
    pub authority: Authority,
    /// Speaks to the system group.
    pub client: Client,
    /// Handed to joining gateways and metadata nodes.
    pub wrapping_key: Option<Zeroizing<Vec<u8>>>,
    /// Bounds what strangers can make the cluster do at once.
    places: Semaphore,
    /// Bounds what they can make it do in a second.
    visitors: Semaphore,
}

impl JoinDesk {
    /// Opens the desk.
    pub fn new(authority: Authority, client: Client, wrapping_key: Option<Zeroizing<Vec<u8>>>) -> Self {
        let (places, visitors) = (Semaphore::new(ADMISSIONS_MAX), Semaphore::new(VISITORS_MAX));
        JoinDesk { authority, client, wrapping_key, places, visitors }
    }

    /// Checks the token, registers the node, signs its certificate. A refusal comes late, and its visitor is counted
    /// meanwhile: guessing is slow whatever the number of connections, and keeps no node from its turn.
    pub async fn admit(&self, header: &[u8], deadline: Instant) -> Result<JoinReply, Failure> {
        let busy = || Failure::new(FailureKind::Busy, "other nodes are being admitted; try again");
        let _visitor = self.visitors.try_acquire().map_err(|_| busy())?;
        let place = tokio::time::timeout_at(deadline, self.places.acquire()).await.map_err(|_| busy())?;
        let admitted = self.decide(header, deadline).await;
        drop(place);
        if admitted.is_err() {
            tokio::time::sleep(REFUSAL_DELAY).await;
        }
        admitted
    }

    /// Refuses an address that another node has, before the token is used up.
    async fn check_address(&self, address: &str, deadline: Instant) -> Result<(), Failure> {
        let map = match self.client.query(GROUP_SYSTEM, Query::Map(None), deadline).await? {
            Reply::Map(map) => map,
            other => return Err(Failure::new(FailureKind::Internal, format!("unexpected reply {other:?}"))),
        };
        match address_holder(&map, address, None) {
            None => Ok(()),
            Some(other) => {
                let text = format!("{address} is the address of node {}: choose another --listen", other.name);
                Err(Failure::new(FailureKind::Conflict, text))
            }
        }
    }

    async fn decide(&self, header: &[u8], deadline: Instant) -> Result<JoinReply, Failure> {
        let request = JoinRequest::decode(header)?;
        check_request(&request)?;
        let token = JoinToken::parse(&request.token).ok_or_else(|| denied("the token can't be read"))?;
        self.check_address(&request.address, deadline).await?;
        let consume = ConsumeJoinToken { hash: token.hash(), roles: request.roles.clone() };
        expect_done(self.client.mutate(GROUP_SYSTEM, Command::ConsumeJoinToken(consume), None, deadline).await?)?;
        let record = NodeRecord {
            node: NodeId(0),
            name: request.name.clone(),
            roles: request.roles.clone(),
            address: request.address.clone(),
            incarnation: Incarnation(1),
            state: State::Down,
            domain: request.domain.clone().unwrap_or_else(|| request.name.clone()),
            version: Some(env!("CARGO_PKG_VERSION").into()),
        };
        let register = Command::RegisterNode(RegisterNode { node: record, public_key: None });
        let node = match self.client.mutate(GROUP_SYSTEM, register, None, deadline).await? {
            Outcome::Node(node) => node,
            Outcome::Refused(refusal) => return Err(denied(&refusal.text)),
            other => return Err(Failure::new(FailureKind::Internal, format!("unexpected outcome {other:?}"))),
        };
        let identity = Identity {
            cluster: self.authority.cluster(),
            node: node.node,
            roles: node.roles.clone(),
            incarnation: node.incarnation,
        };
        let now = crate::node::wall_clock();
        let certificate = self
            .authority
            .issue_for_request(&identity, &request.csr, CERTIFICATE_LIFE, now)
            .map_err(|error| Failure::new(FailureKind::Invalid, error.to_string()))?;
        let map = match self.client.query(GROUP_SYSTEM, Query::Map(None), deadline).await? {
            Reply::Map(map) => map,
            other => return Err(Failure::new(FailureKind::Internal, format!("unexpected reply {other:?}"))),
        };
        tracing::info!(node = %node.node, name = %node.name, "node admitted");
        let wraps = node.roles.iter().any(|role| matches!(role, Role::Gateway | Role::Meta));
        let wrapping_key = self.wrapping_key.as_ref().filter(|_| wraps).map(|key| Bytes::copy_from_slice(key).into());
        let admits = node.roles.contains(&Role::Meta);
        let ca_private_key = admits.then(|| Bytes::copy_from_slice(self.authority.key_pem().as_bytes()).into());
        let ca = self.authority.certificate_pem().to_string();
        Ok(JoinReply { node, certificate, ca, map, wrapping_key, ca_private_key })
    }
}

/// Checks what a stranger sends before anything is committed.
fn check_request(request: &JoinRequest) -> Result<(), Failure> {
    let name_ok = (1..=63).contains(&request.name.len())
        && request.name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    if !name_ok {
        return Err(Failure::new(FailureKind::Invalid, "a node's name is 1 to 63 letters, digits and dashes"));
    }
    let domain_ok = request.domain.as_ref().is_none_or(|domain| {
        let sign = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        (1..=63).contains(&domain.len()) && domain.bytes().all(sign)
    });
    if !domain_ok {
        return Err(Failure::new(
            FailureKind::Invalid,
            "a failure domain is 1 to 63 letters, digits, dots, dashes and underlines",
        ));
    }
    let roles_ok = !request.roles.is_empty()
        && request.roles.iter().all(|role| matches!(role, Role::Gateway | Role::Meta | Role::Storage));
    if !roles_ok {
        return Err(denied("a node may be gateway, meta or storage"));
    }
    if request.address.parse::<SocketAddr>().is_err() {
        return Err(Failure::new(FailureKind::Invalid, "the address is not HOST:PORT"));
    }
    Ok(())
}

fn denied(text: &str) -> Failure {
    Failure::new(FailureKind::Denied, text)
}

fn expect_done(outcome: Outcome) -> Result<(), Failure> {
    match outcome {
        Outcome::Refused(refusal) => Err(denied(&refusal.text)),
        _ => Ok(()),
    }
}

/// Options of `plinth join`.
#[derive(Debug, Args)]
pub struct JoinArgs {
    /// File that holds the token of `plinth cluster token create`.
    #[arg(long)]
    token_file: PathBuf,
    /// A metadata node of the cluster: HOST:PORT.
    #[arg(long)]
    meta: SocketAddr,
    /// Roles that this node takes.
    #[arg(long, value_enum, required = true, value_delimiter = ',')]
    roles: Vec<RoleName>,
    /// This node's name.
    #[arg(long)]
    name: String,
    /// Folder for everything; must be empty or absent.
    #[arg(long)]
    data: PathBuf,
    /// Node-to-node socket of this node: HOST:PORT.
    #[arg(long)]
    listen: SocketAddr,
    /// Disk folders of a storage node, where the disks are mounted; without any, one below the data folder.
    #[arg(long)]
    disk: Vec<PathBuf>,
    /// Makes the disk folders that do not exist: on whatever file system is there.
    #[arg(long)]
    create: bool,
    /// S3 socket of a gateway: HOST:PORT; a gateway must have one.
    #[arg(long)]
    s3: Option<SocketAddr>,
    /// Observability socket.
    #[arg(long)]
    health: SocketAddr,
    /// Failure domain, by default the node's name.
    #[arg(long)]
    domain: Option<String>,
    /// Segment size of new disks in MiB.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u64).range(16..=256))]
    segment_mib: u64,
}

/// Joins a cluster and writes this node's configuration.
pub async fn run(args: JoinArgs) -> Result<Report, Trouble> {
    let folder = std::path::absolute(&args.data).unwrap_or_else(|_| args.data.clone());
    if files::list(&folder).is_ok_and(|entries| !entries.is_empty()) {
        return Err(Trouble::new(Exit::Conflict, "E2005", format!("{} is not empty", folder.display())));
    }
    check_args(&args)?;
    let text = files::read_text(&args.token_file).map_err(|error| file_trouble(&args.token_file, error))?;
    let token = JoinToken::parse(&text)
        .ok_or_else(|| Trouble::new(Exit::Usage, "E2010", format!("{} holds no token", args.token_file.display())))?;
    let failed = |error: plinth_transport::TransportError| Trouble::new(Exit::Failed, "E2008", error.to_string());
    let key = NodeKey::generate().map_err(failed)?;
    let request = JoinRequest {
        token: token.text().into(),
        csr: key.request_pem().map_err(failed)?,
        name: args.name.clone(),
        roles: args.roles.iter().map(|&role| role.into()).collect(),
        address: args.listen.to_string(),
        domain: args.domain.clone(),
    };
    let reply = ask(args.meta, Fingerprint(token.ca_fingerprint), request.to_bytes()).await?;
    let admitted = JoinReply::decode(&reply.header)
        .map_err(|error| Trouble::new(Exit::Unsupported, "E1010", error.to_string()))?;
    let file = write_node(&args, &folder, &key, &admitted)?;
    let s3 = args.s3.map(|address| format!("S3 endpoint  http://{address}\n")).unwrap_or_default();
    let text = format!(
        "Joined {} as {} ({}). Start it:\n  plinth server --config {}\n{s3}",
        admitted.map.name,
        admitted.node.name,
        admitted.node.node,
        file.display()
    );
    let value = json!({"cluster": admitted.map.name, "node": admitted.node.name, "id": admitted.node.node.0,
        "config": file, "s3": args.s3.map(|address| format!("http://{address}"))});
    Ok(Report::done("Joined", value, text))
}

/// Checks what the command line says before a token is used up for it.
fn check_args(args: &JoinArgs) -> Result<(), Trouble> {
    let usage = |text: &str| Err(Trouble::new(Exit::Usage, "E2010", text));
    if args.roles.contains(&RoleName::Gateway) != args.s3.is_some() {
        return usage("--s3 HOST:PORT goes with the role gateway, which needs it");
    }
    if !args.disk.is_empty() && !args.roles.contains(&RoleName::Storage) {
        return usage("--disk goes with the role storage");
    }
    if !args.create {
        require_disks(&args.disk)?;
    }
    for disk in &args.disk {
        if files::list(disk).is_ok_and(|entries| !files::is_blank(&entries)) {
            let text = format!("{} is not empty: name an empty folder. Nothing was changed", disk.display());
            return Err(Trouble::new(Exit::Conflict, "E2005", text));
        }
    }
    Ok(())
}

/// Asks for admission; again where the desk is busy, which has used up nothing.
async fn ask(meta: SocketAddr, authority: Fingerprint, header: Bytes) -> Result<plinth_transport::Reply, Failure> {
    let end = Instant::now() + ADMISSION_TIME_MAX;
    loop {
        let deadline = end.saturating_duration_since(Instant::now());
        let call = Call { method: Method::Join, header: header.clone(), payload: Vec::new(), deadline };
        match call_joining(&meta.to_string(), authority, None, call).await {
            Err(failure) if failure.kind == FailureKind::Busy && Instant::now() + BUSY_PAUSE < end => {
                tokio::time::sleep(BUSY_PAUSE).await;
            }
            answered => return answered,
        }
    }
}

fn write_node(args: &JoinArgs, folder: &Path, key: &NodeKey, admitted: &JoinReply) -> Result<PathBuf, Trouble> {
    files::make_folder(folder).map_err(|error| file_trouble(folder, error))?;
    let secret = |name: &str, content: &[u8]| {
        let file = folder.join(name);
        files::write_secret(&file, content).map_err(|error| file_trouble(&file, error))
    };
    secret("node.key", key.key_pem().as_bytes())?;
    if let Some(wrapping_key) = &admitted.wrapping_key {
        secret("wrapping.key", wrapping_key)?;
    }
    if let Some(ca_private_key) = &admitted.ca_private_key {
        secret("ca.key", ca_private_key)?;
    }
    let public = |name: &str, content: &[u8]| {
        let file = folder.join(name);
        files::write_public(&file, content).map_err(|error| file_trouble(&file, error)).map(|()| file)
    };
    public("node.crt", admitted.certificate.as_bytes())?;
    let storage = args.roles.contains(&RoleName::Storage);
    let disks = if storage && args.disk.is_empty() { vec![folder.join("d0")] } else { args.disk.clone() };
    for disk in &disks {
        files::make_folder(disk).map_err(|error| file_trouble(disk, error))?;
    }
    let meta = admitted.map.nodes.iter().filter(|node| admitted.map.voters.contains(&node.node));
    let config = Config {
        node: NodeSection {
            name: admitted.node.name.clone(),
            roles: args.roles.clone(),
            data: "data".into(),
            incarnation: admitted.node.incarnation.0,
        },
        transport: TransportSection { listen: args.listen.to_string(), advertise: None },
        security: SecuritySection {
            certificate: "node.crt".into(),
            private_key: "node.key".into(),
            ca_private_key: admitted.ca_private_key.as_ref().map(|_| "ca.key".into()),
            wrapping_key: admitted.wrapping_key.as_ref().map(|_| "wrapping.key".into()),
        },
        cluster: ClusterSection {
            meta: meta.map(|node| format!("{}@{}", node.node.0, node.address)).collect(),
            founding: None,
        },
        meta: MetaSection::default(),
        storage: StorageSection { disks, segment_bytes: args.segment_mib << 20, capacity_bytes: 0 },
        gateway: GatewaySection {
            listen: args.s3.map_or_else(|| GatewaySection::default().listen, |address| address.to_string()),
            ..GatewaySection::default()
        },
        observability: ObservabilitySection { listen: args.health.to_string() },
        log: LogSection::default(),
    };
    let text =
        toml::to_string_pretty(&config).map_err(|error| Trouble::new(Exit::Failed, "E2008", error.to_string()))?;
    public("plinth.toml", text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn request() -> JoinRequest {
        JoinRequest {
            token: JoinToken::new([7; 32]).text().into(),
            csr: NodeKey::generate().unwrap().request_pem().unwrap(),
            name: "s9".into(),
            roles: vec![Role::Storage],
            address: "127.0.0.1:7009".into(),
            domain: None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn refused_visitors_wait_without_keeping_a_node_from_its_turn() {
        let asked = Arc::new(AtomicUsize::new(0));
        let counted = asked.clone();
        let client = crate::service::fake::client(Vec::new(), move |_| {
            counted.fetch_add(1, Ordering::Relaxed);
            let refusal = Refusal { kind: RefusalKind::InvalidToken, text: "unknown".into() };
            Ok(Outcome::Refused(refusal))
        });
        let authority = Authority::create(ClusterId(7), crate::node::wall_clock()).unwrap();
        let desk = Arc::new(JoinDesk::new(authority, client.await, None));
        let header = request().to_bytes();
        let visits: Vec<_> = (0..VISITORS_MAX + 3)
            .map(|_| {
                let (desk, header) = (desk.clone(), header.clone());
                tokio::spawn(async move {
                    let started = Instant::now();
                    let failure = desk.admit(&header, started + ADMISSION_TIME_MAX).await.unwrap_err();
                    (failure.kind, started.elapsed())
                })
            })
            .collect();
        let mut kinds = Vec::new();
        for visit in visits {
            let (kind, waited) = visit.await.unwrap();
            assert_eq!(waited >= REFUSAL_DELAY, kind == FailureKind::Denied, "{kind:?} after {waited:?}");
            assert!(waited < REFUSAL_DELAY * 2, "no turn waits for another's refusal: {waited:?}");
            kinds.push(kind);
        }
        assert_eq!(kinds.iter().filter(|kind| **kind == FailureKind::Busy).count(), 3);
        assert_eq!(asked.load(Ordering::Relaxed), VISITORS_MAX, "whoever got in got a decision");
    }
}
