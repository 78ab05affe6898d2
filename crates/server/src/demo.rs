//! `plinth demo`: a whole cluster in this process, real roles and real code paths.
//!
//! Nodes reach each other without sockets; S3, the operators' sockets of the metadata nodes and the
//! observability sockets are on loopback. Everything lies in one folder that is thrown away at
//! Ctrl-C unless it is to be kept.

use crate::config::{Config, MetaSection, RoleName};
use crate::files;
use crate::init::{self, Laid, Plan, PlannedNode};
use crate::kept::{self, Kept};
use crate::logging;
use crate::node::{Network, Node};
use crate::profile::{PROFILE_FILE, Profile};
use crate::selftest::{SelfTest, Step};
use crate::service::ProcessControl;
use clap::Args;
use plinth_admin::OutputFormat;
use plinth_admin::exit::{Exit, Trouble};
use plinth_protocol::meta::{AdminReply, AdminRequest};
use plinth_protocol::stripe::Code;
use plinth_protocol::{Failure, FailureKind, Hidden};
use plinth_transport::{BoxFuture, LocalNetwork};
use serde_json::json;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Mutex;
use tokio::time::Instant;

/// The port of S3 where it is free; else the next free one.
const S3_PORT: u16 = 9000;
/// How many ports are tried above the wished one.
const PORTS_TRIED_MAX: u16 = 1000;
/// The demo's bucket.
pub const BUCKET: &str = "demo";
/// The demo's cluster.
pub const NAME: &str = "demo";
/// How long deleted data is kept in a demo, in seconds.
pub const DEFERRED_DELETE_SECONDS: u64 = 60;

/// How long certificates are valid in a demo, which renews none.
pub const CERTIFICATE_LIFE: Duration = Duration::from_secs(365 * 24 * 3600);

/// Options of `plinth demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Keeps the data in this folder: empty, absent, or that of an earlier demo, which is then started again.
    #[arg(long)]
    keep: Option<PathBuf>,
    /// Writes the lines to paste into this file too.
    #[arg(long)]
    env_file: Option<PathBuf>,
    /// Ends after the self-test: exit 0 where it passed.
    #[arg(long)]
    exit_after_selftest: bool,
}

/// The running demo.
pub struct Demo {
    network: LocalNetwork,
    configs: BTreeMap<String, Config>,
    nodes: Mutex<BTreeMap<String, Node>>,
    me: OnceLock<std::sync::Weak<Demo>>,
}

/// Runs the demo until Ctrl-C or SIGTERM.
pub async fn run(args: DemoArgs, output: OutputFormat) -> Result<(), Trouble> {
    logging::start_text("error,openraft=off").map_err(|text| Trouble::new(Exit::Failed, "E2002", text))?;
    let thrown_away = args.keep.is_none();
    let folder = match &args.keep {
        Some(folder) => folder.clone(),
        None => std::env::temp_dir().join(format!("plinth-demo-{}", std::process::id())),
    };
    if thrown_away {
        files::make_own_folder(&folder).map_err(|error| init::file_trouble(&folder, error))?;
    }
    let human = output == OutputFormat::Table;
    let result = Box::pin(run_in(&args, &folder, human)).await;
    if thrown_away && files::exists(&folder) {
        files::remove_tree(&folder).map_err(|error| init::file_trouble(&folder, error))?;
    }
    result
}

async fn run_in(args: &DemoArgs, folder: &Path, human: bool) -> Result<(), Trouble> {
    let started = Instant::now();
    if human {
        let fate = if args.keep.is_some() { "kept" } else { "thrown away at Ctrl-C (keep: --keep DIR)" };
        println!("plinth {} demo: loopback only, {fate}", env!("CARGO_PKG_VERSION"));
    }
    let kept = if args.keep.is_some() { kept::find(folder)? } else { None };
    let is_again = kept.is_some();
    let (plan, mut laid) = match kept {
        Some(Kept { plan, laid }) => (plan, laid),
        None => {
            let plan = plan(folder).await?;
            let laid = init::lay(&plan)?;
            (plan, laid)
        }
    };
    let demo = Demo::start(&laid).await?;
    let profile = publish_profile(&laid)?;
    if is_again {
        // Secrets are shown once: a demo that is started again gets one more key. The earlier ones go on working.
        (laid.access_key, laid.secret_key) = another_key(&laid.profile).await?;
    }
    let test = SelfTest::new(&demo, &plan, &laid, human, started);
    let outcome = Box::pin(test.run()).await;
    if let Ok(steps) = &outcome {
        present(args, &plan, &laid, steps, human)?;
        if !args.exit_after_selftest {
            wait_for_signal().await?;
            if human {
                println!("stopping");
            }
        }
    }
    demo.stop().await;
    let _ = files::remove(&profile);
    outcome.map(|_| ())
}

/// Makes one more access key, as an operator does.
async fn another_key(profile: &Path) -> Result<(String, Hidden<String>), Trouble> {
    let description = Some("made by plinth demo".to_string());
    let create = plinth_admin::command::KeyCommand::Create { account: "root".into(), description };
    let report = crate::operate::run(profile, true, &plinth_admin::Command::Key(create)).await?;
    let text = |name: &str| report.value[name].as_str().unwrap_or_default().to_string();
    Ok((text("access_key"), text("secret_key").into()))
}

async fn wait_for_signal() -> Result<(), Trouble> {
    let failed = |error: std::io::Error| Trouble::new(Exit::Failed, "E2011", error.to_string());
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).map_err(failed)?;
    tokio::select! {
        _ = terminate.recv() => Ok(()),
        result = tokio::signal::ctrl_c() => result.map_err(failed),
    }
}

/// Plans three metadata nodes, six storage nodes of one disk, and a gateway on free ports.
async fn plan(folder: &Path) -> Result<Plan, Trouble> {
    let mut next = S3_PORT;
    let node = |name: String, role: RoleName| PlannedNode {
        disks: if role == RoleName::Storage { vec![folder.join(&name).join("d0")] } else { Vec::new() },
        // Only metadata nodes listen for other nodes; the others get their sockets below.
        listen: loopback(0),
        s3: None,
        health: loopback(0),
        roles: vec![role],
        name,
    };
    let mut nodes = Vec::new();
    let mut gateway = node("g1".into(), RoleName::Gateway);
    gateway.s3 = Some(free_port(&mut next).await?);
    gateway.health = free_port(&mut next).await?;
    nodes.push(gateway);
    for number in 1..=3 {
        let mut meta = node(format!("m{number}"), RoleName::Meta);
        meta.listen = free_port(&mut next).await?;
        meta.health = free_port(&mut next).await?;
        nodes.push(meta);
    }
    for number in 1..=6 {
        let mut storage = node(format!("s{number}"), RoleName::Storage);
        storage.health = free_port(&mut next).await?;
        nodes.push(storage);
    }
    Ok(Plan {
        name: NAME.into(),
        folder: std::path::absolute(folder).unwrap_or_else(|_| folder.to_path_buf()),
        nodes,
        code: Code::for_domains(6),
        fragment_bytes_max: 1 << 20,
        cache_bytes: MetaSection::CACHE_BYTES_EMBEDDED,
        segment_bytes: init::SEGMENT_BYTES_EMBEDDED,
        capacity_bytes: 0,
        deferred_delete_seconds: DEFERRED_DELETE_SECONDS,
        certificate_life: CERTIFICATE_LIFE,
    })
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// Finds the next port that nobody listens on.
async fn free_port(next: &mut u16) -> Result<SocketAddr, Trouble> {
    for _ in 0..PORTS_TRIED_MAX {
        let candidate = loopback(*next);
        *next += 1;
        if TcpListener::bind(candidate).await.is_ok() {
            return Ok(candidate);
        }
    }
    Err(Trouble::new(Exit::Failed, "E2013", format!("no free port between {S3_PORT} and {next}")))
}

impl Demo {
    /// Starts all nodes; the gateway last.
    async fn start(laid: &Laid) -> Result<Arc<Demo>, Trouble> {
        let mut configs = BTreeMap::new();
        for (node, file) in &laid.nodes {
            let config =
                Config::load(file, &[]).map_err(|error| Trouble::new(Exit::Usage, "E2002", error.to_string()))?;
            configs.insert(node.name.clone(), config);
        }
        let names: Vec<String> = configs.keys().cloned().collect();
        let demo = Arc::new(Demo {
            network: LocalNetwork::new(),
            configs,
            nodes: Mutex::new(BTreeMap::new()),
            me: OnceLock::new(),
        });
        let _ = demo.me.set(Arc::downgrade(&demo));
        for role in [RoleName::Meta, RoleName::Storage, RoleName::Gateway] {
            // Side by side: voters that wait for one another would hold elections in vain.
            let mut starting = tokio::task::JoinSet::new();
            for name in names.iter().filter(|name| demo.configs[*name].has_role(role)) {
                let (demo, name) = (demo.clone(), name.clone());
                starting.spawn(async move { demo.start_node(&name).await });
            }
            while let Some(started) = starting.join_next().await {
                started.map_err(|error| Trouble::new(Exit::Failed, "E2011", error.to_string()))??;
            }
        }
        Ok(demo)
    }

    /// Starts a node that does not run.
    pub async fn start_node(&self, name: &str) -> Result<(), Trouble> {
        let config = self.configs.get(name).cloned().ok_or_else(|| no_node(name))?;
        if self.nodes.lock().await.contains_key(name) {
            return Err(Trouble::new(Exit::Conflict, "E2014", format!("node {name} runs already")));
        }
        let control = self.me.get().and_then(std::sync::Weak::upgrade).map(|demo| demo as Arc<dyn ProcessControl>);
        let mut node = Box::pin(Node::start(config, Network::Local(self.network.clone()), control)).await?;
        Box::pin(node.start_gateway()).await?;
        self.nodes.lock().await.insert(name.to_string(), node);
        Ok(())
    }

    /// Stops a node that runs.
    pub async fn stop_node(&self, name: &str) -> Result<(), Trouble> {
        if !self.configs.contains_key(name) {
            return Err(no_node(name));
        }
        let node = self.nodes.lock().await.remove(name);
        match node {
            Some(node) => {
                node.stop().await;
                Ok(())
            }
            None => Err(Trouble::new(Exit::Conflict, "E2014", format!("node {name} does not run"))),
        }
    }

    /// Returns a running node's client, where it has one.
    pub async fn gateway_client(&self) -> Option<plinth_client::Client> {
        self.nodes.lock().await.values().find_map(|node| node.client.clone())
    }

    /// Returns the metadata parts that run.
    pub async fn metas(&self) -> Vec<plinth_meta::MetaNode> {
        self.nodes.lock().await.values().filter_map(|node| node.service.parts.meta.get().cloned()).collect()
    }

    async fn stop(&self) {
        let mut nodes = std::mem::take(&mut *self.nodes.lock().await);
        // Gateways first: nothing new comes in while the nodes behind them close.
        for role in [RoleName::Gateway, RoleName::Storage, RoleName::Meta] {
            let names: Vec<String> =
                nodes.iter().filter(|(_, node)| node.config.has_role(role)).map(|(name, _)| name.clone()).collect();
            let stopping = names.iter().filter_map(|name| nodes.remove(name)).map(|node| tokio::spawn(node.stop()));
            for task in stopping.collect::<Vec<_>>() {
                let _ = task.await;
            }
        }
    }
}

fn no_node(name: &str) -> Trouble {
    Trouble::new(Exit::NotFound, "E1004", format!("the demo has no node {name}"))
}

impl ProcessControl for Demo {
    fn control(&self, request: AdminRequest) -> BoxFuture<'static, Result<AdminReply, Failure>> {
        let demo = self.me.get().and_then(std::sync::Weak::upgrade);
        Box::pin(async move {
            let demo = demo.ok_or_else(|| Failure::new(FailureKind::Unavailable, "the demo is stopping"))?;
            let failed = |trouble: Trouble| match trouble.exit {
                Exit::NotFound => Failure::new(FailureKind::NotFound, trouble.text),
                Exit::Conflict => Failure::new(FailureKind::Conflict, trouble.text),
                _ => Failure::new(FailureKind::Unavailable, trouble.text),
            };
            // A task of its own: stopping a node must not end with the connection that asked for it.
            let task = tokio::spawn(async move {
                match request {
                    AdminRequest::StopNode(name) => {
                        demo.stop_node(&name).await.map(|()| format!("node {name} is stopped"))
                    }
                    AdminRequest::StartNode(name) => demo.start_node(&name).await.map(|()| format!("node {name} runs")),
                    _ => Err(Trouble::new(Exit::Unsupported, "E2015", "a demo's disks are fixed")),
                }
            });
            let text =
                task.await.map_err(|error| Failure::new(FailureKind::Internal, error.to_string()))?.map_err(failed)?;
            Ok(AdminReply::Done(text))
        })
    }
}

/// Leaves the operator's profile where `plinth --demo` finds it.
fn publish_profile(laid: &Laid) -> Result<PathBuf, Trouble> {
    let environment: Vec<(String, String)> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let folder = Profile::demo_folder(&environment);
    files::make_own_folder(&folder).map_err(|error| init::file_trouble(&folder, error))?;
    let file = folder.join(PROFILE_FILE);
    // What an earlier demo's commands learned is not about this one.
    let _ = files::remove(&file.with_extension("voters"));
    let profile = Profile::load(&laid.profile)?;
    let text =
        toml::to_string_pretty(&profile).map_err(|error| Trouble::new(Exit::Failed, "E2008", error.to_string()))?;
    files::write_secret(&file, text.as_bytes()).map_err(|error| init::file_trouble(&file, error))?;
    Ok(file)
}

/// Prints what a person needs next.
fn present(args: &DemoArgs, plan: &Plan, laid: &Laid, steps: &[Step], human: bool) -> Result<(), Trouble> {
    let gateway = plan.nodes.iter().find(|node| node.s3.is_some()).expect("a demo has a gateway");
    let endpoint = format!("http://{}", gateway.s3.expect("found by its S3 socket"));
    let metrics = format!("http://{}/metrics", gateway.health);
    let exports = format!(
        "export AWS_ACCESS_KEY_ID={} AWS_SECRET_ACCESS_KEY={} AWS_DEFAULT_REGION=us-east-1\n",
        laid.access_key, *laid.secret_key
    );
    if let Some(file) = &args.env_file {
        let text = format!("{exports}export AWS_ENDPOINT_URL={endpoint}\n");
        files::write_secret(file, text.as_bytes()).map_err(|error| init::file_trouble(file, error))?;
    }
    if !human {
        let steps: Vec<_> = steps.iter().map(|step| json!({"text": step.text, "ms": step.milliseconds})).collect();
        let line = json!({"apiVersion": "plinth/v1", "kind": "Demo", "s3": endpoint, "bucket": BUCKET, "region": "us-east-1",
            "access_key": laid.access_key, "secret_key": *laid.secret_key, "metrics": metrics, "selftest": steps});
        println!("{line}");
        return Ok(());
    }
    let plinth = std::env::current_exe().map_or_else(|_| "plinth".into(), |path| path.display().to_string());
    println!("\n  S3 endpoint  {endpoint}   region us-east-1   bucket {BUCKET}");
    println!("  Access key   {}   Secret key  {} (shown once)", laid.access_key, *laid.secret_key);
    println!("  Metrics      {metrics}");
    println!("  Paste:\n    {}    aws --endpoint-url {endpoint} s3 cp README.md s3://{BUCKET}/", exports);
    println!("  Break it:  {plinth} --demo node stop s1 && {plinth} --demo status");
    Ok(())
}
