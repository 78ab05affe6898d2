//! Configuration: typed, layered, and strict.
//!
//! `plinth.toml`, then `conf.d/*.toml` beside it in name order, then `PLINTH__SECTION__KEY` from
//! the environment; later layers win key by key. A key that is not known is an error with file,
//! line and the nearest known key: a misspelt setting must never be silently without effect.

use plinth_protocol::Role;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// A whole node's configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Who the node is.
    pub node: NodeSection,
    /// The node-to-node socket.
    pub transport: TransportSection,
    /// Secrets, by file.
    pub security: SecuritySection,
    /// The metadata nodes through which the cluster is found.
    pub cluster: ClusterSection,
    /// The databases of the meta role.
    #[serde(default)]
    pub meta: MetaSection,
    /// Disks of the storage role.
    #[serde(default)]
    pub storage: StorageSection,
    /// The S3 socket of the gateway role.
    #[serde(default)]
    pub gateway: GatewaySection,
    /// Metrics and health.
    #[serde(default)]
    pub observability: ObservabilitySection,
    /// Logging.
    #[serde(default)]
    pub log: LogSection,
    /// Deliberate faults, for tests.
    #[serde(default, skip_serializing_if = "TestSection::is_default")]
    pub test: TestSection,
}

/// Who the node is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeSection {
    /// Name for people, unique in the cluster.
    pub name: String,
    /// `gateway`, `meta`, `storage`: one or more.
    pub roles: Vec<RoleName>,
    /// Folder of everything that the node keeps but its disks.
    pub data: PathBuf,
    /// How often the node has been made anew under its id; the cluster's registry must agree.
    #[serde(default = "first_incarnation")]
    pub incarnation: u64,
}

fn first_incarnation() -> u64 {
    1
}

/// A role as the configuration spells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum RoleName {
    /// Speaks S3.
    Gateway,
    /// Votes and keeps the namespace.
    Meta,
    /// Keeps fragments.
    Storage,
}

impl From<RoleName> for Role {
    fn from(name: RoleName) -> Role {
        match name {
            RoleName::Gateway => Role::Gateway,
            RoleName::Meta => Role::Meta,
            RoleName::Storage => Role::Storage,
        }
    }
}

/// The node-to-node socket.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TransportSection {
    /// Address and port to listen on.
    pub listen: String,
    /// Address and port at which other nodes reach this one, where that is not `listen`: behind address translation,
    /// or where `listen` is a wildcard. The node announces it to the cluster when it starts.
    #[serde(default)]
    pub advertise: Option<String>,
}

/// Secrets, by file: relative paths start at the configuration file's folder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecuritySection {
    /// The node's certificate and the cluster's CA behind it, PEM.
    pub certificate: PathBuf,
    /// The node's private key, PEM.
    pub private_key: PathBuf,
    /// The cluster's CA key, PEM: on metadata nodes, which admit joining nodes.
    pub ca_private_key: Option<PathBuf>,
    /// The key that wraps access keys' secrets: on gateways and metadata nodes.
    pub wrapping_key: Option<PathBuf>,
    /// How long the certificates are valid that a metadata node signs, in seconds: 10 seconds to 400 days. Nodes
    /// renew theirs at two thirds of it.
    #[serde(default = "certificate_lifetime_seconds")]
    pub certificate_lifetime_seconds: u64,
}

impl SecuritySection {
    /// How long a node's certificate is valid unless told: 90 days, so that renewal at 60 leaves a month to mend what
    /// keeps it from happening.
    pub const CERTIFICATE_LIFETIME_SECONDS: u64 = 90 * 24 * 3600;
}

fn certificate_lifetime_seconds() -> u64 {
    SecuritySection::CERTIFICATE_LIFETIME_SECONDS
}

/// Where the cluster is found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterSection {
    /// Metadata nodes: `<node id>@<host>:<port>`.
    pub meta: Vec<String>,
    /// The founding record that `plinth init` wrote; used on the first start of a founding voter.
    pub founding: Option<PathBuf>,
}

/// The databases of the meta role.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MetaSection {
    /// Bytes of rows that the node keeps in memory, over all its shards: 16 MiB to 64 GiB. Rows that do not fit
    /// are read from files again; about 350 bytes an object keep all of them.
    pub cache_bytes: u64,
}

impl MetaSection {
    /// The cache of a demo and of a node that is alone, in bytes.
    pub const CACHE_BYTES_EMBEDDED: u64 = 64 << 20;
}

impl Default for MetaSection {
    fn default() -> Self {
        MetaSection { cache_bytes: 512 << 20 }
    }
}

/// Disks of the storage role.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StorageSection {
    /// Disk folders, each on a disk of its own. Empty folders are formatted and registered at start.
    pub disks: Vec<PathBuf>,
    /// Segment size in bytes of disks that are formatted from now on: 16 MiB to 256 MiB.
    pub segment_bytes: u64,
    /// Bytes that each disk may take, 0 = what the file system has.
    pub capacity_bytes: u64,
}

impl Default for StorageSection {
    fn default() -> Self {
        StorageSection { disks: Vec::new(), segment_bytes: 256 << 20, capacity_bytes: 0 }
    }
}

/// The S3 socket of the gateway role.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GatewaySection {
    /// Address and port to listen on.
    pub listen: String,
    /// The region that the cluster reports; any well-formed region is accepted in signatures.
    pub region: String,
    /// Domains below which the first label is a bucket (virtual-host style).
    pub base_domains: Vec<String>,
    /// Certificate and key for HTTPS, PEM; without them the socket speaks plain HTTP.
    pub tls_certificate: Option<PathBuf>,
    /// Private key for HTTPS, PEM.
    pub tls_private_key: Option<PathBuf>,
    /// Body bytes in flight, all requests together, each counted with at most 12 MiB; beyond it `SlowDown`. At least
    /// 32 MiB.
    pub body_bytes_max: u64,
    /// How long deleted and overwritten data is kept before it is destroyed, in seconds of the cluster's own time: a
    /// GET that began before the deletion reads on for as long.
    pub deferred_delete_seconds: u64,
}

impl Default for GatewaySection {
    fn default() -> Self {
        GatewaySection {
            listen: "127.0.0.1:9000".into(),
            region: "us-east-1".into(),
            base_domains: Vec::new(),
            tls_certificate: None,
            tls_private_key: None,
            body_bytes_max: plinth_gateway::BODY_BYTES_IN_FLIGHT,
            deferred_delete_seconds: plinth_client::RETENTION.as_secs(),
        }
    }
}

/// Metrics and health.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ObservabilitySection {
    /// Address and port of `/metrics` and `/health/*`.
    pub listen: String,
}

impl Default for ObservabilitySection {
    fn default() -> Self {
        ObservabilitySection { listen: "127.0.0.1:9002".into() }
    }
}

/// Logging.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogSection {
    /// `json`, or `text` for people.
    pub format: LogFormat,
    /// `error`, `warn`, `info`, `debug` or `trace`, or a filter such as `info,plinth_meta=debug`.
    pub level: String,
    /// How lines about S3 requests name objects: `full`, `hash` (the first 16 digits of the key's SHA-256) or `off`.
    pub keys: KeysInLogs,
}

/// How log lines name objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeysInLogs {
    /// The key itself.
    Full,
    /// The first 16 hexadecimal digits of its SHA-256: the same key is the same word.
    Hash,
    /// Nothing.
    Off,
}

impl From<KeysInLogs> for plinth_gateway::KeyLogging {
    fn from(keys: KeysInLogs) -> Self {
        match keys {
            KeysInLogs::Full => plinth_gateway::KeyLogging::Full,
            KeysInLogs::Hash => plinth_gateway::KeyLogging::Hash,
            KeysInLogs::Off => plinth_gateway::KeyLogging::Off,
        }
    }
}

impl Default for LogSection {
    fn default() -> Self {
        LogSection { format: LogFormat::Json, level: "info".into(), keys: KeysInLogs::Hash }
    }
}

/// Deliberate faults, for tests. Accepted only where every address in the configuration is one of the loopback: no
/// cluster of several machines can be given them, and a node that has one says so at every start.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TestSection {
    /// Milliseconds by which the process's wall clock is ahead of the machine's, behind it where negative.
    pub clock_offset_ms: i64,
}

impl TestSection {
    fn is_default(&self) -> bool {
        *self == TestSection::default()
    }
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// Text for a terminal.
    Text,
}

/// Why a configuration can't be used. Every kind is exit code 2.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("{file}: {source}")]
    Read {
        /// Which file.
        file: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A key is unknown or a value wrong.
    #[error("{file}:{line}: {text}")]
    Invalid {
        /// Which file, or `environment`.
        file: PathBuf,
        /// The line, from 1; 0 where there is none.
        line: usize,
        /// What is wrong, with the nearest known key.
        text: String,
    },
    /// The parts do not go together.
    #[error("{file}: {text}")]
    Inconsistent {
        /// Which file.
        file: PathBuf,
        /// What does not hold.
        text: String,
    },
}

/// Lifetimes of certificates that can be configured, in seconds.
pub const CERTIFICATE_LIFETIMES: std::ops::RangeInclusive<u64> = 10..=400 * 24 * 3600;
/// Prefix of environment variables that are a layer of the configuration.
const ENVIRONMENT_PREFIX: &str = "PLINTH__";

impl Config {
    /// Loads the file, its `conf.d` and the environment's layer, and checks that they fit together.
    pub fn load(file: &Path, environment: &[(String, String)]) -> Result<Config, ConfigError> {
        let mut table = read_layer(file)?;
        let folder = file.parent().unwrap_or(Path::new(".")).join("conf.d");
        for extra in toml_files(&folder)? {
            merge(&mut table, read_layer(&extra)?);
        }
        for (name, value) in environment {
            if let Some(path) = name.strip_prefix(ENVIRONMENT_PREFIX) {
                merge(&mut table, environment_layer(name, path, value)?);
            }
        }
        check_required(file, &table)?;
        let config: Config = table.try_into().map_err(|error: toml::de::Error| wrong_value(file, &error))?;
        config.check(file)?;
        Ok(config.with_absolute_paths(file.parent().unwrap_or(Path::new("."))))
    }

    /// Whether the node has a role.
    pub fn has_role(&self, role: RoleName) -> bool {
        self.node.roles.contains(&role)
    }

    /// Returns the address at which other nodes reach this one; nothing where only an operator can tell.
    pub fn advertised(&self) -> Option<String> {
        let address = self.transport.advertise.as_ref().unwrap_or(&self.transport.listen);
        is_dialable(address).then(|| address.clone())
    }

    /// Checks what no single key can tell.
    fn check(&self, file: &Path) -> Result<(), ConfigError> {
        let fail = |text: &str| Err(ConfigError::Inconsistent { file: file.to_path_buf(), text: text.into() });
        if self.node.roles.is_empty() {
            return fail("node.roles names no role");
        }
        if self.cluster.meta.is_empty() {
            return fail("cluster.meta names no metadata node");
        }
        if let Some(bad) = self.cluster.meta.iter().find(|peer| parse_meta_peer(peer).is_none()) {
            return fail(&format!("cluster.meta: \"{bad}\" is not <node id>@<host>:<port>"));
        }
        let mut sockets = vec![("transport", &self.transport.listen), ("observability", &self.observability.listen)];
        if self.has_role(RoleName::Gateway) {
            sockets.push(("gateway", &self.gateway.listen));
        }
        if let Some((section, address)) = sockets.iter().find(|(_, address)| !is_address(address)) {
            return fail(&format!("{section}.listen: \"{address}\" is not <host>:<port>"));
        }
        if let Some(address) = self.transport.advertise.as_ref().filter(|address| !is_dialable(address)) {
            return fail(&format!("transport.advertise: \"{address}\" is no <host>:<port> that others can dial"));
        }
        if let Some((section, address)) = sockets.iter().enumerate().find_map(|(at, (section, address))| {
            let twice = sockets[..at].iter().any(|(_, other)| other == address) && !address.ends_with(":0");
            twice.then_some((section, address))
        }) {
            return fail(&format!("{section}.listen: {address} is taken by another socket of this node"));
        }
        let peers = self.cluster.meta.iter().filter_map(|peer| parse_meta_peer(peer)).map(|(_, address)| address);
        let own = sockets.iter().map(|(_, address)| address.to_string()).chain(self.transport.advertise.clone());
        let mut addresses = peers.chain(own);
        if !self.test.is_default() && !addresses.all(|address| is_loopback(&address)) {
            return fail("test.*: deliberate faults are for clusters on the loopback alone; remove the section");
        }
        if let Err(text) = crate::logging::check(&self.log.level) {
            return fail(&text);
        }
        if !CERTIFICATE_LIFETIMES.contains(&self.security.certificate_lifetime_seconds) {
            return fail("security.certificate_lifetime_seconds must be between 10 s and 400 days");
        }
        if !(16 << 20..=64 << 30).contains(&self.meta.cache_bytes) {
            return fail("meta.cache_bytes must be between 16 MiB and 64 GiB");
        }
        if self.has_role(RoleName::Storage) && self.storage.disks.is_empty() {
            return fail("role storage needs storage.disks");
        }
        if !(16 << 20..=256 << 20).contains(&self.storage.segment_bytes)
            || !self.storage.segment_bytes.is_multiple_of(1 << 20)
        {
            return fail("storage.segment_bytes must be whole MiB between 16 MiB and 256 MiB");
        }
        if self.has_role(RoleName::Gateway) && self.security.wrapping_key.is_none() {
            return fail("role gateway needs security.wrapping_key");
        }
        if self.gateway.body_bytes_max < plinth_gateway::BODY_BYTES_IN_FLIGHT_MIN {
            return fail("gateway.body_bytes_max must be at least 32 MiB: one body of any kind has to fit");
        }
        if self.gateway.tls_certificate.is_some() != self.gateway.tls_private_key.is_some() {
            return fail("gateway.tls_certificate and gateway.tls_private_key go together");
        }
        Ok(())
    }

    fn with_absolute_paths(mut self, base: &Path) -> Self {
        let base = if base.as_os_str().is_empty() { Path::new(".") } else { base };
        let fix = |path: &mut PathBuf| *path = base.join(&*path);
        fix(&mut self.node.data);
        fix(&mut self.security.certificate);
        fix(&mut self.security.private_key);
        self.storage.disks.iter_mut().for_each(fix);
        let options = [
            &mut self.security.ca_private_key,
            &mut self.security.wrapping_key,
            &mut self.cluster.founding,
            &mut self.gateway.tls_certificate,
            &mut self.gateway.tls_private_key,
        ];
        options.into_iter().flatten().for_each(fix);
        self
    }
}

/// Whether an address, `<host>:<port>`, can be reached from its own machine alone.
fn is_loopback(address: &str) -> bool {
    match address.parse::<std::net::SocketAddr>() {
        Ok(address) => address.ip().is_loopback(),
        Err(_) => address.rsplit_once(':').is_some_and(|(host, _)| host == "localhost"),
    }
}

/// Keys that have no default.
const REQUIRED: [(&str, &[&str]); 4] = [
    ("node", &["name", "roles", "data"]),
    ("transport", &["listen"]),
    ("security", &["certificate", "private_key"]),
    ("cluster", &["meta"]),
];

/// Refuses a configuration that lacks a key without a default, naming the key.
fn check_required(file: &Path, table: &toml::Table) -> Result<(), ConfigError> {
    let has = |section: &str, key: &str| {
        table.get(section).and_then(toml::Value::as_table).is_some_and(|section| section.contains_key(key))
    };
    let mut keys = REQUIRED.iter().flat_map(|(section, keys)| keys.iter().map(move |key| (section, key)));
    match keys.find(|(section, key)| !has(section, key)) {
        None => Ok(()),
        Some((section, key)) => Err(ConfigError::Inconsistent {
            file: file.to_path_buf(),
            text: format!("{section}.{key} is missing; plinth config default shows every key"),
        }),
    }
}

/// Says what is wrong with a value, with its line where it stands in the main file.
fn wrong_value(file: &Path, error: &toml::de::Error) -> ConfigError {
    let text = crate::files::read_text(file).unwrap_or_default();
    match toml::from_str::<Config>(&text) {
        Err(found) if found.message() == error.message() => ConfigError::Invalid {
            file: file.to_path_buf(),
            line: found.span().map_or(0, |span| line_of(&text, span.start)),
            text: error.message().to_string(),
        },
        _ => ConfigError::Inconsistent { file: file.to_path_buf(), text: error.message().to_string() },
    }
}

/// Whether a text is `<host>:<port>`.
fn is_address(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let bracketed = host.starts_with('[') && host.ends_with(']');
    !host.is_empty() && (bracketed || !host.contains([':', ' '])) && port.parse::<u16>().is_ok()
}

/// Whether others can dial an address: no wildcard, no port that is chosen later.
fn is_dialable(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':').filter(|_| is_address(text)) else { return false };
    let ip = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
    port.parse::<u16>().is_ok_and(|port| port > 0) && !ip.is_ok_and(|ip| ip.is_unspecified())
}

/// Reads `<node id>@<host>:<port>`.
pub fn parse_meta_peer(text: &str) -> Option<(u64, String)> {
    let (node, address) = text.split_once('@')?;
    let (_, port) = address.rsplit_once(':')?;
    port.parse::<u16>().ok()?;
    Some((node.parse().ok()?, address.to_string()))
}

/// Every key, with the value that holds when nobody sets it, as a file to start from.
pub fn default_text() -> String {
    let config = Config {
        node: NodeSection { name: "s1".into(), roles: vec![RoleName::Storage], data: "data".into(), incarnation: 1 },
        transport: TransportSection { listen: "127.0.0.1:7000".into(), advertise: Some("127.0.0.1:7000".into()) },
        security: SecuritySection {
            certificate: "node.crt".into(),
            private_key: "node.key".into(),
            ca_private_key: Some("ca.key".into()),
            wrapping_key: Some("wrapping.key".into()),
            certificate_lifetime_seconds: SecuritySection::CERTIFICATE_LIFETIME_SECONDS,
        },
        cluster: ClusterSection { meta: vec!["1@127.0.0.1:7001".into()], founding: Some("founding".into()) },
        meta: MetaSection::default(),
        storage: StorageSection { disks: vec!["d0".into()], ..StorageSection::default() },
        gateway: GatewaySection {
            tls_certificate: Some("s3.crt".into()),
            tls_private_key: Some("s3.key".into()),
            ..GatewaySection::default()
        },
        observability: ObservabilitySection::default(),
        log: LogSection::default(),
        test: TestSection::default(),
    };
    let text = toml::to_string_pretty(&config).expect("the configuration's types all have a TOML form");
    // Left out of the files that `plinth init` writes.
    text + "\n[test]\nclock_offset_ms = 0\n"
}

fn toml_files(folder: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let entries = match crate::files::list(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(ConfigError::Read { file: folder.to_path_buf(), source }),
    };
    Ok(entries.into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "toml")).collect())
}

/// Reads one file and checks each of its keys against the known ones.
fn read_layer(file: &Path) -> Result<toml::Table, ConfigError> {
    let text =
        crate::files::read_text(file).map_err(|source| ConfigError::Read { file: file.to_path_buf(), source })?;
    let table: toml::Table = toml::from_str(&text).map_err(|error| ConfigError::Invalid {
        file: file.to_path_buf(),
        line: error.span().map_or(0, |span| line_of(&text, span.start)),
        text: error.message().to_string(),
    })?;
    let known: toml::Table = toml::from_str(&default_text()).expect("the default text is TOML");
    check_keys(file, &text, &table, &known, "")?;
    Ok(table)
}

/// Refuses the first key that is not known, naming its line and the nearest known one.
fn check_keys(
    file: &Path,
    text: &str,
    table: &toml::Table,
    known: &toml::Table,
    prefix: &str,
) -> Result<(), ConfigError> {
    for (key, value) in table {
        match (known.get(key), value) {
            (Some(toml::Value::Table(inner)), toml::Value::Table(given)) => {
                check_keys(file, text, given, inner, &format!("{prefix}{key}."))?;
            }
            (Some(expected), given) => {
                let same = std::mem::discriminant(expected) == std::mem::discriminant(given);
                if !same {
                    let wants = format!("{prefix}{key} wants {}, not {}", a(expected.type_str()), a(given.type_str()));
                    return Err(invalid(file, text, prefix, key, wants));
                }
            }
            (None, _) => {
                let nearest = known.keys().min_by_key(|candidate| distance(candidate, key));
                let hint = nearest.map(|name| format!("; nearest is `{prefix}{name}`")).unwrap_or_default();
                return Err(invalid(file, text, prefix, key, format!("unknown key `{prefix}{key}`{hint}")));
            }
        }
    }
    Ok(())
}

/// A word with its article.
fn a(word: &str) -> String {
    format!("{} {word}", if word.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" })
}

fn invalid(file: &Path, text: &str, prefix: &str, key: &str, what: String) -> ConfigError {
    ConfigError::Invalid { file: file.to_path_buf(), line: find_key(text, prefix, key), text: what }
}

/// Finds the line on which a key stands in its section; 0 where it can't be told.
fn find_key(text: &str, prefix: &str, key: &str) -> usize {
    let section = prefix.trim_end_matches('.');
    let mut current = String::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.split(']').next()) {
            current = name.trim_matches('[').trim().to_string();
            if section.is_empty() && current == key {
                return number + 1;
            }
        } else if current == section && line.split(['=', '.']).next().is_some_and(|name| name.trim() == key) {
            return number + 1;
        }
    }
    0
}

fn line_of(text: &str, offset: usize) -> usize {
    text[..offset.min(text.len())].matches('\n').count() + 1
}

/// `SECTION__KEY` from the environment as a table of one key; the value is TOML where it parses, else a string.
fn environment_layer(name: &str, path: &str, value: &str) -> Result<toml::Table, ConfigError> {
    let keys: Vec<String> = path.split("__").map(str::to_lowercase).collect();
    let parsed = toml::from_str::<toml::Table>(&format!("v = {value}")).ok().and_then(|mut table| table.remove("v"));
    let mut layer = parsed.unwrap_or_else(|| toml::Value::String(value.to_string()));
    for key in keys.iter().rev() {
        layer = toml::Value::Table(toml::Table::from_iter([(key.clone(), layer)]));
    }
    let toml::Value::Table(table) = layer else { unreachable!("at least one key was wrapped around the value") };
    let known: toml::Table = toml::from_str(&default_text()).expect("the default text is TOML");
    check_keys(Path::new(&format!("environment variable {name}")), "", &table, &known, "")?;
    Ok(table)
}

fn merge(base: &mut toml::Table, layer: toml::Table) {
    for (key, value) in layer {
        match (base.get_mut(&key), value) {
            (Some(toml::Value::Table(inner)), toml::Value::Table(over)) => merge(inner, over),
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}

/// Edit distance between two short words (Levenshtein).
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, a) in left.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &b) in right.iter().enumerate() {
            let substituted = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(text: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("plinth.toml");
        crate::files::write_public(&file, text.as_bytes()).unwrap();
        (folder, file)
    }

    #[test]
    fn default_text_loads_and_holds_every_key() {
        let (_folder, file) = write(&default_text());
        let config = Config::load(&file, &[]).unwrap();
        assert_eq!(config.gateway.region, "us-east-1");
    }

    #[test]
    fn unknown_key_is_named_with_line_and_nearest() {
        let text = default_text().replace("region =", "regoin =");
        let line = text.lines().position(|line| line.starts_with("regoin")).unwrap() + 1;
        let (_folder, file) = write(&text);
        let error = Config::load(&file, &[]).unwrap_err().to_string();
        assert!(
            error.contains(&format!("plinth.toml:{line}: unknown key `gateway.regoin`; nearest is `gateway.region`")),
            "{error}"
        );
    }

    #[test]
    fn what_cannot_work_is_refused_before_it_is_tried() {
        for (good, bad, says) in [
            ("listen = \"127.0.0.1:7000\"", "listen = \"nonsense\"", "transport.listen: \"nonsense\""),
            (
                "listen = \"127.0.0.1:9002\"",
                "listen = \"127.0.0.1:7000\"",
                "observability.listen: 127.0.0.1:7000 is taken",
            ),
            ("level = \"info\"", "level = \"inof\"", "log.level: \"inof\""),
            ("advertise = \"127.0.0.1:7000\"", "advertise = \"0.0.0.0:7000\"", "transport.advertise: \"0.0.0.0:7000\""),
            ("body_bytes_max = 1073741824", "body_bytes_max = 33554431", "gateway.body_bytes_max"),
            ("\"storage\"", "\"stroage\"", "plinth.toml:3: unknown variant `stroage`"),
            ("name = \"s1\"\n", "", "node.name is missing"),
            ("incarnation = 1", "incarnation = \"x\"", "wants an integer, not a string"),
        ] {
            let text = default_text();
            assert!(text.contains(good), "{good}");
            let (_folder, file) = write(&text.replacen(good, bad, 1));
            let error = Config::load(&file, &[]).unwrap_err().to_string();
            assert!(error.contains(says), "{error} says not {says}");
        }
    }

    #[test]
    fn environment_wins_and_is_checked() {
        let (_folder, file) = write(&default_text());
        let set = |name: &str, value: &str| vec![(name.to_string(), value.to_string())];
        let config = Config::load(&file, &set("PLINTH__GATEWAY__REGION", "hanoi")).unwrap();
        assert_eq!(config.gateway.region, "hanoi");
        assert!(Config::load(&file, &set("PLINTH__GATEWAY__REGOIN", "hanoi")).is_err());
        assert!(Config::load(&file, &set("PLINTH__STORAGE__SEGMENT_BYTES", "17")).is_err());
    }

    #[test]
    fn others_dial_what_is_advertised_or_listened_on_but_no_wildcard() {
        let advertised = |listen: &str, advertise: Option<&str>| {
            let mut config: Config = toml::from_str(&default_text()).unwrap();
            config.transport = TransportSection { listen: listen.into(), advertise: advertise.map(str::to_string) };
            config.advertised()
        };
        assert_eq!(advertised("10.0.0.1:7000", None).as_deref(), Some("10.0.0.1:7000"));
        assert_eq!(advertised("0.0.0.0:7000", Some("s1.dc:7000")).as_deref(), Some("s1.dc:7000"));
        for listen in ["0.0.0.0:7000", "[::]:7000", "127.0.0.1:0"] {
            assert_eq!(advertised(listen, None), None, "{listen}");
        }
    }

    #[test]
    fn deliberate_faults_are_refused_beyond_the_loopback() {
        let skewed = vec![("PLINTH__TEST__CLOCK_OFFSET_MS".to_string(), "-1200000".to_string())];
        let (_folder, file) = write(&default_text());
        assert_eq!(Config::load(&file, &skewed).unwrap().test.clock_offset_ms, -1_200_000);
        for (good, bad) in [
            ("listen = \"127.0.0.1:7000\"", "listen = \"10.0.0.1:7000\""),
            ("listen = \"127.0.0.1:9002\"", "listen = \"0.0.0.0:9002\""),
            ("1@127.0.0.1:7001", "1@meta.example:7001"),
        ] {
            assert!(default_text().contains(good), "{good}");
            let (_folder, file) = write(&default_text().replacen(good, bad, 1));
            let error = Config::load(&file, &skewed).unwrap_err().to_string();
            assert!(error.contains("loopback"), "{error}");
            Config::load(&file, &[]).unwrap();
        }
    }

    #[test]
    fn later_files_win() {
        let (folder, file) = write(&default_text());
        crate::files::make_folder(&folder.path().join("conf.d")).unwrap();
        crate::files::write_public(&folder.path().join("conf.d/10.toml"), b"[log]\nlevel = \"debug\"\n").unwrap();
        assert_eq!(Config::load(&file, &[]).unwrap().log.level, "debug");
    }
}
