//! `plinth join`: the command on a machine that becomes a node of a running cluster.
//!
//! The token names the cluster's CA; the node believes metadata nodes under that CA alone, draws its own key and sends
//! only a certificate request. What it is given is checked against the token before anything is written.

use crate::config::*;
use crate::files;
use crate::identity::{self, authority_pem};
use crate::init::{file_trouble, require_disks};
use bytes::Bytes;
use clap::Args;
use plinth_admin::Report;
use plinth_admin::exit::{Exit, Trouble};
use plinth_admin::secret::JoinToken;
use plinth_protocol::meta::*;
use plinth_protocol::wire::Wire;
use plinth_protocol::*;
use plinth_transport::authority::{Authority, Fingerprint, NodeCertificate, NodeKey};
use plinth_transport::{Call, call_joining};
use serde_json::json;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::Instant;

/// How long a node waits for its admission.
const ADMISSION_TIME_MAX: Duration = Duration::from_secs(30);

/// Pause before the question is asked again where the cluster was busy or the answer was lost.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(500);

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
    check_reply(&token, &key, &admitted).map_err(|text| Trouble::new(Exit::Denied, "E2014", text))?;
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

/// Asks for admission; again where the desk is busy or the answer was lost: the token answers the same key again.
async fn ask(meta: SocketAddr, authority: Fingerprint, header: Bytes) -> Result<plinth_transport::Reply, Failure> {
    let end = Instant::now() + ADMISSION_TIME_MAX;
    loop {
        let deadline = end.saturating_duration_since(Instant::now());
        let call = Call { method: Method::Join, header: header.clone(), payload: Vec::new(), deadline };
        match call_joining(&meta.to_string(), authority, None, call).await {
            Err(failure)
                if matches!(failure.kind, FailureKind::Busy | FailureKind::Unknown)
                    && Instant::now() + ASK_AGAIN_AFTER < end =>
            {
                tokio::time::sleep(ASK_AGAIN_AFTER).await;
            }
            answered => return answered,
        }
    }
}

/// Checks that what came is this cluster's: the CA is the one that the token names, it has signed the certificate, and
/// the certificate is for this node and its key.
fn check_reply(token: &JoinToken, key: &NodeKey, admitted: &JoinReply) -> Result<(), String> {
    let text = |error: &dyn std::fmt::Display| format!("the cluster's answer is not to be trusted: {error}");
    if identity::fingerprint(&admitted.ca).map_err(|error| text(&error))? != token.ca_fingerprint {
        return Err(text(&"its CA is not the one that the token names"));
    }
    let certificate = NodeCertificate::load(&admitted.certificate, &key.key_pem()).map_err(|error| text(&error))?;
    certificate.check_chain(Fingerprint(token.ca_fingerprint)).map_err(|error| text(&error))?;
    identity::check_validity(&certificate, crate::node::wall_clock()).map_err(|error| text(&error))?;
    let node = &admitted.node;
    let mut roles = node.roles.clone();
    roles.sort();
    if (certificate.node(), certificate.cluster(), certificate.roles())
        != (node.node, admitted.map.cluster, roles.as_slice())
    {
        return Err(text(&"its certificate is for another node"));
    }
    if let Some(ca_private_key) = &admitted.ca_private_key {
        let pem = std::str::from_utf8(ca_private_key).map_err(|error| text(&error))?;
        let ca = authority_pem(&certificate).unwrap_or_default();
        Authority::load(&ca, pem).map_err(|error| text(&error))?;
    }
    Ok(())
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
            certificate_lifetime_seconds: admitted
                .certificate_lifetime_s
                .unwrap_or(SecuritySection::CERTIFICATE_LIFETIME_SECONDS),
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
        test: TestSection::default(),
    };
    let text =
        toml::to_string_pretty(&config).map_err(|error| Trouble::new(Exit::Failed, "E2008", error.to_string()))?;
    public("plinth.toml", text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use plinth_protocol::map::{ClusterMap, NodeRecord, State};
    use plinth_protocol::stripe::Code;
    use plinth_transport::Identity;

    fn reply(authority: &Authority, key: &NodeKey, roles: &[Role]) -> JoinReply {
        let node = NodeRecord {
            node: NodeId(5),
            name: "x5".into(),
            roles: roles.to_vec(),
            address: "127.0.0.1:1".into(),
            incarnation: Incarnation(1),
            state: State::Up,
            domain: "x5".into(),
            version: None,
            public_key: None,
        };
        let identity =
            Identity { cluster: ClusterId(7), node: NodeId(5), roles: roles.to_vec(), incarnation: Incarnation(1) };
        let life = Duration::from_secs(3600);
        let now = crate::node::wall_clock();
        let certificate = authority.issue_for_request(&identity, &key.request_pem().unwrap(), life, now).unwrap();
        let map = ClusterMap {
            cluster: ClusterId(7),
            epoch: Epoch(1),
            nodes: vec![node.clone()],
            disks: Vec::new(),
            pgs: Vec::new(),
            shards: Vec::new(),
            code: Code::new(1, 0),
            fragment_bytes_max: 1 << 20,
            name: "test".into(),
            voters: Vec::new(),
            feature_level: 1,
            denied_nodes: Vec::new(),
            revoked_certificates: Vec::new(),
        };
        JoinReply {
            node,
            certificate,
            ca: authority.certificate_pem().to_string(),
            map,
            wrapping_key: None,
            ca_private_key: Some(Bytes::copy_from_slice(authority.key_pem().as_bytes()).into()),
            certificate_lifetime_s: None,
        }
    }

    #[test]
    fn an_answer_that_the_token_does_not_vouch_for_is_refused() {
        let make = || Authority::create(ClusterId(7), crate::node::wall_clock()).unwrap();
        let (own, other) = (make(), make());
        let token = JoinToken::new(own.fingerprint().0);
        let key = NodeKey::generate().unwrap();
        let good = || reply(&own, &key, &[Role::Storage, Role::Meta]);
        assert_eq!(check_reply(&token, &key, &good()), Ok(()));
        let foreign = reply(&other, &key, &[Role::Meta]);
        let own_ca = || own.certificate_pem().to_string();
        let leaf = foreign.certificate.split_inclusive("-----END CERTIFICATE-----\n").next().unwrap().to_string();
        for (why, bad) in [
            ("another CA", foreign.clone()),
            ("another CA, named like the token's", JoinReply { ca: own_ca(), ..foreign.clone() }),
            (
                "a certificate that the CA did not sign",
                JoinReply { certificate: leaf + &own_ca(), ca: own_ca(), ..foreign },
            ),
            (
                "a CA key of another CA",
                JoinReply { ca_private_key: Some(Bytes::copy_from_slice(other.key_pem().as_bytes()).into()), ..good() },
            ),
            ("another node", JoinReply { node: NodeRecord { node: NodeId(6), ..good().node }, ..good() }),
            ("other roles", JoinReply { node: NodeRecord { roles: vec![Role::Meta], ..good().node }, ..good() }),
            ("another cluster", JoinReply { map: ClusterMap { cluster: ClusterId(8), ..good().map }, ..good() }),
        ] {
            check_reply(&token, &key, &bad).expect_err(why);
        }
        check_reply(&token, &NodeKey::generate().unwrap(), &good()).expect_err("another key");
    }
}
