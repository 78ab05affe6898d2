//! Laying out a new cluster: certificates, configuration, founding record, first access key.

use crate::config::*;
use crate::files;
use crate::profile::{PROFILE_FILE, Profile};
use clap::{Args, Subcommand};
use plinth_admin::Report;
use plinth_admin::exit::{Exit, Trouble};
use plinth_admin::secret::{self, draw};
use plinth_meta::state::placement;
use plinth_protocol::map::*;
use plinth_protocol::meta::{AccessKeyRow, Founding};
use plinth_protocol::stripe::Code;
use plinth_protocol::wire::{Wire, WireError};
use plinth_protocol::*;
use plinth_storage::FormatConfig;
use plinth_transport::Identity;
use plinth_transport::authority::Authority;
use serde_json::json;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Feature level of clusters that this binary founds.
pub const FEATURE_LEVEL: u32 = 1;
/// Version byte in front of the founding record.
const FOUNDING_VERSION: u8 = 1;
/// How long the first operator's certificate is valid.
const OPERATOR_CERTIFICATE_LIFE: Duration = Duration::from_secs(365 * 24 * 3600);
/// Most nodes of each role that `init cluster` lays out on one machine.
const NODES_MAX: u64 = 32;
/// Fragment size of embedded clusters in bytes.
const FRAGMENT_BYTES_EMBEDDED: u32 = 1 << 20;
/// Fragment size of other clusters in bytes.
const FRAGMENT_BYTES_CLUSTER: u32 = 4 << 20;
/// Segment size of embedded clusters in bytes.
pub const SEGMENT_BYTES_EMBEDDED: u64 = 64 << 20;
/// The first object shard.
const FIRST_SHARD: GroupId = GroupId(1);

/// What is said of clusters whose code bears no loss.
pub const NO_REDUNDANCY: &str =
    "WARNING      one disk, no redundancy: data does not survive its loss. Add nodes (plinth join) or disks (--disk)";

/// What `plinth init` can lay out.
#[derive(Debug, Subcommand)]
pub enum InitCommand {
    /// One node with all roles: for a laptop or a trial. Grows into a cluster by `plinth join`.
    ///
    /// Example: plinth init single --data /srv/plinth && plinth server --config /srv/plinth/plinth.toml
    Single(SingleArgs),
    /// Many nodes below one folder, each with its own configuration: on this machine, or to be copied to theirs.
    ///
    /// Example: plinth init cluster --dir cluster --meta 3 --storage 6 --gateway 1
    Cluster(ClusterArgs),
}

/// Options of `init single`.
#[derive(Debug, Args)]
pub struct SingleArgs {
    /// Folder for everything; must be empty or absent.
    #[arg(long)]
    data: PathBuf,
    /// Disk folders, one a disk, where the disks are mounted; without any, one below the data folder.
    #[arg(long)]
    disk: Vec<PathBuf>,
    /// Makes the disk folders that do not exist: on whatever file system is there.
    #[arg(long)]
    create: bool,
    /// Address that the sockets for S3 and between nodes listen on; a host name stands for the first of its addresses, IPv4 before IPv6.
    #[arg(long, default_value = "127.0.0.1", value_parser = parse_host)]
    host: IpAddr,
    /// Address of the observability socket, which asks nobody for credentials.
    #[arg(long, default_value = "127.0.0.1", value_parser = parse_host)]
    observability_host: IpAddr,
    /// Port of S3; node-to-node and observability take the next two.
    #[arg(long, default_value_t = 9000)]
    port: u16,
    /// The cluster's name for people.
    #[arg(long, default_value = "plinth")]
    name: String,
    /// How long nodes' certificates are valid, such as 90d, 24h, 5m: nodes renew them at two thirds of it.
    #[arg(long, default_value = "90d", value_parser = parse_lifetime)]
    certificate_lifetime: Duration,
}

/// Options of `init cluster`.
#[derive(Debug, Args)]
pub struct ClusterArgs {
    /// Folder that gets one folder a node; must be empty or absent.
    #[arg(long)]
    dir: PathBuf,
    /// Metadata nodes: 1, 3 or 5.
    #[arg(long, default_value_t = 3)]
    meta: u64,
    /// Storage nodes.
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u64).range(1..=NODES_MAX))]
    storage: u64,
    /// Gateways.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=NODES_MAX))]
    gateway: u64,
    /// Disks of each storage node.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=64))]
    disks: u64,
    /// Address that the sockets for S3 and between nodes listen on; a host name stands for the first of its addresses, IPv4 before IPv6.
    #[arg(long, default_value = "127.0.0.1", value_parser = parse_host)]
    host: IpAddr,
    /// Address of the observability sockets, which ask nobody for credentials.
    #[arg(long, default_value = "127.0.0.1", value_parser = parse_host)]
    observability_host: IpAddr,
    /// First port; each node takes one or two. Gateways' S3 ports come first.
    #[arg(long, default_value_t = 9100)]
    base_port: u16,
    /// Code of new stripes as K+M; without it, by the number of storage nodes.
    #[arg(long)]
    code: Option<Code>,
    /// Segment size of the disks in MiB.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u64).range(16..=256))]
    segment_mib: u64,
    /// Bytes in MiB that each disk may take; 0 = what its file system has.
    #[arg(long, default_value_t = 0)]
    capacity_mib: u64,
    /// The cluster's name for people.
    #[arg(long, default_value = "plinth")]
    name: String,
    /// How long nodes' certificates are valid, such as 90d, 24h, 5m: nodes renew them at two thirds of it.
    #[arg(long, default_value = "90d", value_parser = parse_lifetime)]
    certificate_lifetime: Duration,
}

/// Reads a certificate's lifetime: a number with s, m, h or d behind it, 10 seconds to 400 days.
pub fn parse_lifetime(text: &str) -> Result<Duration, String> {
    let invalid = || "a lifetime is a number and s, m, h or d: 90d, 24h, 5m; between 10s and 400d".to_string();
    let unit = text.chars().last().ok_or_else(invalid)?;
    let seconds: u64 = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 24 * 3600,
        _ => return Err(invalid()),
    };
    let number: u64 = text[..text.len() - 1].parse().map_err(|_| invalid())?;
    let lifetime = number.checked_mul(seconds).filter(|lifetime| CERTIFICATE_LIFETIMES.contains(lifetime));
    lifetime.map(Duration::from_secs).ok_or_else(invalid)
}

/// Reads an address, or asks the system for those of a host name.
fn parse_host(text: &str) -> Result<IpAddr, String> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let found = std::net::ToSocketAddrs::to_socket_addrs(&(text, 0)).map_err(|error| error.to_string())?;
    let addresses: Vec<IpAddr> = found.map(|address| address.ip()).collect();
    let first = addresses.iter().find(|address| address.is_ipv4()).or(addresses.first());
    first.copied().ok_or_else(|| "the host has no address".to_string())
}

/// Refuses disk folders that do not exist: made in the place of a mount, they would lie on the root disk.
pub fn require_disks(disks: &[PathBuf]) -> Result<(), Trouble> {
    match disks.iter().find(|disk| !files::exists(disk)) {
        None => Ok(()),
        Some(disk) => {
            let text = format!(
                "{} does not exist: mount the disk there, or add --create to make the folder on the file system that \
                 is there now. Nothing was changed",
                disk.display()
            );
            Err(Trouble::new(Exit::NotFound, "E2019", text))
        }
    }
}

/// One node to lay out.
#[derive(Debug, Clone)]
pub struct PlannedNode {
    /// Its name.
    pub name: String,
    /// Its roles.
    pub roles: Vec<RoleName>,
    /// Node-to-node socket.
    pub listen: SocketAddr,
    /// S3 socket of gateways.
    pub s3: Option<SocketAddr>,
    /// Observability socket.
    pub health: SocketAddr,
    /// Disk folders.
    pub disks: Vec<PathBuf>,
}

/// A cluster to lay out.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The cluster's name.
    pub name: String,
    /// Folder that gets one folder a node.
    pub folder: PathBuf,
    /// Its nodes.
    pub nodes: Vec<PlannedNode>,
    /// Code of new stripes.
    pub code: Code,
    /// Largest fragment in bytes.
    pub fragment_bytes_max: u32,
    /// Cache of each metadata node in bytes.
    pub cache_bytes: u64,
    /// Segment size in bytes.
    pub segment_bytes: u64,
    /// Bytes that each disk may take; 0 = what its file system has.
    pub capacity_bytes: u64,
    /// How long deleted data is kept, in seconds.
    pub deferred_delete_seconds: u64,
    /// How long nodes' certificates are valid.
    pub certificate_life: Duration,
}

/// A cluster that has been laid out.
#[derive(Debug, Clone)]
pub struct Laid {
    /// Its nodes with their configuration files.
    pub nodes: Vec<(PlannedNode, PathBuf)>,
    /// The operator's profile.
    pub profile: PathBuf,
    /// The first access key's id.
    pub access_key: String,
    /// The first access key's secret: shown once.
    pub secret_key: Hidden<String>,
}

/// Lays out what the command asks for.
pub fn run(command: InitCommand) -> Result<Report, Trouble> {
    let plan = match command {
        InitCommand::Single(args) => plan_single(args)?,
        InitCommand::Cluster(args) => plan_cluster(args)?,
    };
    let laid = lay(&plan)?;
    Ok(report(&plan, &laid))
}

fn plan_single(args: SingleArgs) -> Result<Plan, Trouble> {
    let data = absolute(&args.data);
    if !args.create {
        require_disks(&args.disk)?;
    }
    let disks = if args.disk.is_empty() {
        vec![data.join("d0")]
    } else {
        args.disk.iter().map(|disk| absolute(disk)).collect()
    };
    let port = |host: IpAddr, offset: u16| SocketAddr::new(host, args.port.saturating_add(offset));
    let node = PlannedNode {
        name: "n1".into(),
        roles: vec![RoleName::Meta, RoleName::Storage, RoleName::Gateway],
        listen: port(args.host, 1),
        s3: Some(port(args.host, 0)),
        health: port(args.observability_host, 2),
        disks,
    };
    Ok(Plan {
        name: args.name,
        folder: data,
        code: Code::for_domains(node.disks.len()),
        nodes: vec![node],
        fragment_bytes_max: FRAGMENT_BYTES_EMBEDDED,
        cache_bytes: MetaSection::CACHE_BYTES_EMBEDDED,
        segment_bytes: SEGMENT_BYTES_EMBEDDED,
        capacity_bytes: 0,
        deferred_delete_seconds: GatewaySection::default().deferred_delete_seconds,
        certificate_life: args.certificate_lifetime,
    })
}

fn plan_cluster(args: ClusterArgs) -> Result<Plan, Trouble> {
    if ![1, 3, 5].contains(&args.meta) {
        return Err(usage("--meta is 1, 3 or 5: an even number of voters bears no more losses"));
    }
    let code = args.code.unwrap_or(Code::for_domains(args.storage as usize));
    let mut ports = args.base_port..=u16::MAX;
    let mut next = |host: IpAddr| {
        ports.next().map(|port| SocketAddr::new(host, port)).ok_or(usage("--base-port leaves too few ports"))
    };
    let folder = absolute(&args.dir);
    let mut nodes = Vec::new();
    for (count, role, letter) in [
        (args.gateway, RoleName::Gateway, 'g'),
        (args.meta, RoleName::Meta, 'm'),
        (args.storage, RoleName::Storage, 's'),
    ] {
        for number in 1..=count {
            let name = format!("{letter}{number}");
            let s3 = if role == RoleName::Gateway { Some(next(args.host)?) } else { None };
            let own = folder.join(&name);
            let disks = if role == RoleName::Storage {
                (0..args.disks).map(|disk| own.join(format!("d{disk}"))).collect()
            } else {
                vec![]
            };
            nodes.push(PlannedNode {
                name,
                roles: vec![role],
                listen: next(args.host)?,
                s3,
                health: next(args.observability_host)?,
                disks,
            });
        }
    }
    Ok(Plan {
        name: args.name,
        folder,
        nodes,
        code,
        fragment_bytes_max: FRAGMENT_BYTES_CLUSTER,
        cache_bytes: MetaSection::default().cache_bytes,
        segment_bytes: args.segment_mib << 20,
        capacity_bytes: args.capacity_mib << 20,
        deferred_delete_seconds: GatewaySection::default().deferred_delete_seconds,
        certificate_life: args.certificate_lifetime,
    })
}

/// Lays out a cluster: writes every node's folder, the operator's profile, and formats the disks.
pub fn lay(plan: &Plan) -> Result<Laid, Trouble> {
    refuse_occupied(plan)?;
    let cluster = ClusterId(u128::from_le_bytes(draw()));
    let mut disks = draw_disks(plan);
    // What cannot be planned is refused before anything is written.
    found_map(plan, cluster, disks.clone())?;
    files::make_folder(&plan.folder).map_err(|error| file_trouble(&plan.folder, error))?;
    let now = crate::node::wall_clock();
    format_disks(plan, cluster, &mut disks)?;
    let map = found_map(plan, cluster, disks)?;
    let authority = Authority::create(cluster, now).map_err(failed)?;
    let wrapping_key: [u8; secret::WRAPPING_KEY_BYTES] = draw();
    let fresh = secret::draw_access_key();
    let key = AccessKeyRow {
        id: fresh.id.clone(),
        wrapped_secret: secret::wrap(&wrapping_key, &fresh.secret).map_err(failed)?.into(),
        account: "root".into(),
        created: HybridTime::from_millis(crate::node::wall_clock_ms()),
        description: Some("made by plinth init".into()),
    };
    let founding = Founding { map, keys: vec![key] };
    let mut nodes = Vec::new();
    for (index, node) in plan.nodes.iter().enumerate() {
        let id = NodeId(index as u64 + 1);
        let file = write_node(plan, &authority, cluster, id, node, &wrapping_key, &founding)?;
        nodes.push((node.clone(), file));
    }
    let profile = write_profile(plan, &authority, cluster, &wrapping_key)?;
    Ok(Laid { nodes, profile, access_key: fresh.id, secret_key: fresh.secret.into() })
}

/// Refuses folders that hold anything: nothing is ever overwritten.
fn refuse_occupied(plan: &Plan) -> Result<(), Trouble> {
    let folders = std::iter::once(&plan.folder).chain(plan.nodes.iter().flat_map(|node| &node.disks));
    for folder in folders {
        match files::list(folder) {
            Ok(entries) if files::is_blank(&entries) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Ok(_) => {
                let text = format!("{} is not empty; name an empty or absent folder", folder.display());
                return Err(Trouble::new(Exit::Conflict, "E2005", text));
            }
            Err(error) => return Err(file_trouble(folder, error)),
        }
    }
    Ok(())
}

/// Draws the ids of all disks; nothing is written yet.
fn draw_disks(plan: &Plan) -> Vec<DiskRecord> {
    let mut records = Vec::new();
    for (index, node) in plan.nodes.iter().enumerate() {
        for number in 0..node.disks.len() {
            records.push(DiskRecord {
                disk: DiskId(u128::from_le_bytes(draw())),
                node: NodeId(index as u64 + 1),
                incarnation: Incarnation(1),
                state: State::Up,
                name: format!("{}/d{number}", node.name),
                // Known once the folder is there; plans weigh disks against each other only.
                size_bytes: plan.capacity_bytes.max(1),
                used_bytes: None,
                quarantined: None,
                write_stop_bytes: None,
            });
        }
    }
    records
}

/// Makes the disks' folders and formats them under their ids.
fn format_disks(plan: &Plan, cluster: ClusterId, records: &mut [DiskRecord]) -> Result<(), Trouble> {
    let paths = plan.nodes.iter().flat_map(|node| &node.disks);
    for (path, record) in paths.zip(records) {
        files::make_folder(path).map_err(|error| file_trouble(path, error))?;
        record.size_bytes = match plan.capacity_bytes {
            0 => files::space_bytes(path).map_err(|error| file_trouble(path, error))?,
            bytes => bytes,
        };
        let format = FormatConfig {
            path: path.clone(),
            cluster,
            disk: record.disk,
            incarnation: record.incarnation,
            segment_bytes: plan.segment_bytes as u32,
            size_bytes: record.size_bytes,
            stamp: u64::from_le_bytes(draw()),
        };
        plinth_storage::format_disk(&format).map_err(failed)?;
    }
    Ok(())
}

fn found_map(plan: &Plan, cluster: ClusterId, disks: Vec<DiskRecord>) -> Result<ClusterMap, Trouble> {
    let nodes: Vec<NodeRecord> = plan
        .nodes
        .iter()
        .enumerate()
        .map(|(index, node)| NodeRecord {
            node: NodeId(index as u64 + 1),
            name: node.name.clone(),
            roles: node.roles.iter().map(|&role| role.into()).collect(),
            address: node.listen.to_string(),
            incarnation: Incarnation(1),
            state: State::Up,
            domain: node.name.clone(),
            version: Some(env!("CARGO_PKG_VERSION").into()),
            public_key: None,
        })
        .collect();
    let voters: Vec<NodeId> =
        nodes.iter().filter(|node| node.roles.contains(&Role::Meta)).map(|node| node.node).collect();
    let start = ShardStart { bucket: BucketId(0), key: String::new() };
    let mut map = ClusterMap {
        cluster,
        epoch: Epoch(1),
        nodes,
        disks,
        pgs: Vec::new(),
        shards: vec![ShardRecord { group: FIRST_SHARD, start, voters: voters.clone() }],
        code: plan.code,
        fragment_bytes_max: plan.fragment_bytes_max,
        name: plan.name.clone(),
        voters,
        feature_level: FEATURE_LEVEL,
        denied_nodes: vec![],
        revoked_certificates: vec![],
    };
    map.pgs = placement::plan(&map, plan.code).map_err(|error| usage(&error.to_string()))?.add;
    Ok(map)
}

#[allow(clippy::too_many_arguments)]
fn write_node(
    plan: &Plan,
    authority: &Authority,
    cluster: ClusterId,
    id: NodeId,
    node: &PlannedNode,
    wrapping_key: &[u8],
    founding: &Founding,
) -> Result<PathBuf, Trouble> {
    let single = plan.nodes.len() == 1;
    let folder = if single { plan.folder.clone() } else { plan.folder.join(&node.name) };
    files::make_folder(&folder).map_err(|error| file_trouble(&folder, error))?;
    let roles: Vec<Role> = node.roles.iter().map(|&role| role.into()).collect();
    let identity = Identity { cluster, node: id, roles, incarnation: Incarnation(1) };
    write_certificate(authority, &identity, plan.certificate_life, &folder, "node")?;
    let is_meta = node.roles.contains(&RoleName::Meta);
    if is_meta {
        write_secret(&folder.join("ca.key"), authority.key_pem().as_bytes())?;
        write_secret(&folder.join("founding"), &encode_founding(founding))?;
    }
    if is_meta || node.roles.contains(&RoleName::Gateway) {
        write_secret(&folder.join("wrapping.key"), wrapping_key)?;
    }
    let config = node_config(plan, node, &folder, meta_peers(plan));
    let file = folder.join("plinth.toml");
    let text = toml::to_string_pretty(&config).map_err(failed)?;
    files::write_public(&file, text.as_bytes()).map_err(|error| file_trouble(&file, error))?;
    Ok(file)
}

fn node_config(plan: &Plan, node: &PlannedNode, folder: &Path, meta: Vec<String>) -> Config {
    let is_meta = node.roles.contains(&RoleName::Meta);
    let wraps = is_meta || node.roles.contains(&RoleName::Gateway);
    Config {
        node: NodeSection { name: node.name.clone(), roles: node.roles.clone(), data: "data".into(), incarnation: 1 },
        transport: TransportSection { listen: node.listen.to_string(), advertise: None },
        security: SecuritySection {
            certificate: "node.crt".into(),
            private_key: "node.key".into(),
            ca_private_key: is_meta.then(|| "ca.key".into()),
            wrapping_key: wraps.then(|| "wrapping.key".into()),
            certificate_lifetime_seconds: plan.certificate_life.as_secs(),
        },
        cluster: ClusterSection { meta, founding: is_meta.then(|| "founding".into()) },
        meta: MetaSection { cache_bytes: plan.cache_bytes },
        storage: StorageSection {
            disks: node.disks.iter().map(|disk| disk.strip_prefix(folder).unwrap_or(disk).to_path_buf()).collect(),
            segment_bytes: plan.segment_bytes,
            capacity_bytes: plan.capacity_bytes,
        },
        gateway: GatewaySection {
            listen: node.s3.map_or_else(|| GatewaySection::default().listen, |address| address.to_string()),
            deferred_delete_seconds: plan.deferred_delete_seconds,
            ..GatewaySection::default()
        },
        observability: ObservabilitySection { listen: node.health.to_string() },
        log: LogSection::default(),
        test: TestSection::default(),
    }
}

fn meta_peers(plan: &Plan) -> Vec<String> {
    let voters = plan.nodes.iter().enumerate().filter(|(_, node)| node.roles.contains(&RoleName::Meta));
    voters.map(|(index, node)| format!("{}@{}", index + 1, node.listen)).collect()
}

fn write_profile(
    plan: &Plan,
    authority: &Authority,
    cluster: ClusterId,
    wrapping_key: &[u8],
) -> Result<PathBuf, Trouble> {
    let folder = plan.folder.join("admin");
    files::make_folder(&folder).map_err(|error| file_trouble(&folder, error))?;
    let identity =
        Identity { cluster, node: NodeId(u64::MAX >> 1), roles: vec![Role::Admin], incarnation: Incarnation(1) };
    write_certificate(authority, &identity, OPERATOR_CERTIFICATE_LIFE, &folder, "admin")?;
    write_secret(&folder.join("wrapping.key"), wrapping_key)?;
    let profile = Profile {
        cluster: plan.name.clone(),
        meta: meta_peers(plan),
        certificate: "admin.crt".into(),
        private_key: "admin.key".into(),
        wrapping_key: Some("wrapping.key".into()),
    };
    let file = folder.join(PROFILE_FILE);
    let text = toml::to_string_pretty(&profile).map_err(failed)?;
    files::write_public(&file, text.as_bytes()).map_err(|error| file_trouble(&file, error))?;
    Ok(file)
}

fn write_certificate(
    authority: &Authority,
    identity: &Identity,
    life: Duration,
    folder: &Path,
    name: &str,
) -> Result<(), Trouble> {
    let issued = authority.issue(identity, life, crate::node::wall_clock()).map_err(failed)?;
    let chain = folder.join(format!("{name}.crt"));
    files::write_public(&chain, issued.chain_pem().as_bytes()).map_err(|error| file_trouble(&chain, error))?;
    write_secret(&folder.join(format!("{name}.key")), issued.key_pem().as_bytes())
}

/// Reads the founding record that `lay` wrote.
pub fn read_founding(file: &Path) -> Result<Founding, Trouble> {
    let bytes = files::read_secret(file).map_err(|error| file_trouble(file, error))?;
    let trouble = |exit, what: &str| Trouble::new(exit, "E2006", format!("{}: {what}", file.display()));
    match decode_founding(&bytes) {
        Some(Ok(founding)) => Ok(founding),
        Some(Err(error)) => Err(trouble(Exit::Failed, &error.to_string())),
        None => Err(trouble(Exit::Unsupported, "unknown version")),
    }
}

/// A founding record's file: a version byte, then the record.
fn encode_founding(founding: &Founding) -> Vec<u8> {
    let mut file = vec![FOUNDING_VERSION];
    founding.encode(&mut file);
    file
}

/// Reads such a file's bytes; `None` where the version is another.
fn decode_founding(file: &[u8]) -> Option<Result<Founding, WireError>> {
    let record = file.strip_prefix(&[FOUNDING_VERSION])?;
    Some(Founding::decode(record))
}

fn report(plan: &Plan, laid: &Laid) -> Report {
    let mut text = format!("Cluster {}: {} nodes, code {}\n", plan.name, plan.nodes.len(), plan.code);
    let mut nodes = Vec::new();
    for (node, file) in &laid.nodes {
        text.push_str(&format!("  plinth server --config {}\n", file.display()));
        nodes.push(json!({"name": node.name, "config": file, "address": node.listen.to_string(),
            "health": format!("http://{}", node.health), "s3": node.s3.map(|address| format!("http://{address}"))}));
    }
    let s3 = plan.nodes.iter().find_map(|node| node.s3).map(|address| format!("http://{address}")).unwrap_or_default();
    text.push_str(&format!(
        "\nS3 endpoint  {s3}\nAccess key   {}\nSecret key   {}   (shown once)\n",
        laid.access_key, *laid.secret_key
    ));
    text.push_str(&format!("Operator     plinth --profile {} status\n", laid.profile.display()));
    if plan.code.m == 0 {
        text.push_str(&format!("{}\n", NO_REDUNDANCY));
    }
    let value = json!({"cluster": plan.name, "code": plan.code.to_string(), "nodes": nodes, "s3": s3,
        "access_key": laid.access_key, "secret_key": *laid.secret_key, "profile": laid.profile});
    Report::done("ClusterInit", value, text)
}

fn write_secret(file: &Path, content: &[u8]) -> Result<(), Trouble> {
    files::write_secret(file, content).map_err(|error| file_trouble(file, error))
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf())
}

fn usage(text: &str) -> Trouble {
    Trouble::new(Exit::Usage, "E2007", text)
}

fn failed(error: impl ToString) -> Trouble {
    Trouble::new(Exit::Failed, "E2008", error.to_string())
}

/// Returns the trouble with a file.
pub fn file_trouble(file: &Path, error: std::io::Error) -> Trouble {
    Trouble::new(Exit::Failed, "E2009", format!("{}: {error}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_an_address_or_a_name_that_has_one() {
        assert_eq!(parse_host("10.0.0.1"), Ok(IpAddr::from([10, 0, 0, 1])));
        assert_eq!(parse_host("::1"), Ok(IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1])));
        assert!(parse_host("localhost").unwrap().is_loopback());
        assert!(parse_host("no such host").is_err());
    }

    // Reads a file of the project.
    #[allow(clippy::disallowed_methods)]
    #[test]
    fn the_founding_file_is_that_of_the_golden_file() {
        let member = std::env::var("CARGO_MANIFEST_DIR").expect("cargo tells its tests");
        let golden = std::fs::read_to_string(format!("{member}/../../tests/format/founding_record.hex")).unwrap();
        let digits = golden.split_whitespace().nth(1).expect("a name and its bytes");
        let byte = |at| u8::from_str_radix(&digits[at..at + 2], 16).expect("hexadecimal");
        let file: Vec<u8> = (0..digits.len()).step_by(2).map(byte).collect();
        let founding = decode_founding(&file).expect("a known version").expect("a founding record");
        assert_eq!(encode_founding(&founding), file);
        let mut later = file;
        later[0] += 1;
        assert!(decode_founding(&later).is_none(), "a later version is not guessed at");
    }

    #[derive(clap::Parser)]
    struct Line {
        #[command(subcommand)]
        command: InitCommand,
    }

    #[test]
    fn a_host_does_not_open_the_observability_socket() {
        let plan = |more: &[&str]| {
            let words = ["init", "cluster", "--dir", "x", "--host", "10.0.0.1"].iter().chain(more);
            let InitCommand::Cluster(args) = <Line as clap::Parser>::parse_from(words).command else { panic!() };
            plan_cluster(args).unwrap()
        };
        let single = ["init", "single", "--data", "x", "--host", "10.0.0.1"];
        let InitCommand::Single(args) = <Line as clap::Parser>::parse_from(single).command else { panic!() };
        for node in plan(&[]).nodes.into_iter().chain(plan_single(args).unwrap().nodes) {
            assert_eq!(
                (node.listen.ip().is_loopback(), node.health.ip().is_loopback()),
                (false, true),
                "{}",
                node.name
            );
            assert!(node.s3.is_none_or(|s3| !s3.ip().is_loopback()));
        }
        for node in plan(&["--observability-host", "10.0.0.2"]).nodes {
            assert_eq!(node.health.ip().to_string(), "10.0.0.2");
        }
    }
}
