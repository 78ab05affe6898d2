//! A real cluster of separate processes on this machine, for the length of a bench.

// The bench starts programs and makes their folders: it is a tool, not a part of the product.
#![allow(clippy::disallowed_methods)]

use crate::meter::Servers;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

/// How long the cluster may take until every node says that it is ready.
const READY_SECONDS_MAX: u64 = 60;

/// How long a node may take to stop before it is killed.
const STOP_SECONDS_MAX: u64 = 15;

/// A running cluster; dropped, its processes end and its folder goes.
pub struct Cluster {
    folder: PathBuf,
    nodes: Vec<Node>,
    /// The S3 endpoint.
    pub endpoint: String,
    /// Access key and secret key.
    pub keys: (String, String),
}

struct Node {
    name: String,
    health: String,
    process: Child,
}

impl Cluster {
    /// Founds a cluster of 3 metadata nodes, 6 storage nodes and a gateway, starts it and waits until it is ready.
    ///
    /// # Errors
    /// When a command fails, a node ends or readiness does not come within a minute.
    pub async fn start(plinth: &Path, folder: &Path, base_port: u16) -> Result<Cluster, String> {
        let found = Command::new(plinth)
            .args(["init", "cluster", "--meta", "3", "--storage", "6", "--gateway", "1", "--output", "json"])
            .args(["--base-port", &base_port.to_string(), "--dir"])
            .arg(folder)
            .output()
            .map_err(|error| format!("{}: {error}", plinth.display()))?;
        if !found.status.success() {
            return Err(format!("plinth init cluster: {}", String::from_utf8_lossy(&found.stderr)));
        }
        let plan: Value =
            serde_json::from_slice(&found.stdout).map_err(|error| format!("plinth init cluster: {error}"))?;
        let word = |value: &Value, name: &str| {
            let text = value[name].as_str().map(str::to_string);
            text.ok_or_else(|| format!("plinth init cluster: no `{name}` in {value}"))
        };
        let keys = (word(&plan, "access_key")?, word(&plan, "secret_key")?);
        let mut cluster = Cluster { folder: folder.to_path_buf(), nodes: vec![], endpoint: word(&plan, "s3")?, keys };
        for node in plan["nodes"].as_array().into_iter().flatten() {
            let (name, config) = (word(node, "name")?, word(node, "config")?);
            let log = folder.join(format!("{name}.log"));
            let log = std::fs::File::create(&log).map_err(|error| format!("{}: {error}", log.display()))?;
            let process = Command::new(plinth)
                .args(["server", "--config", &config])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(log)
                .spawn()
                .map_err(|error| format!("plinth server: {error}"))?;
            cluster.nodes.push(Node { name, health: word(node, "health")?, process });
        }
        cluster.wait_until_ready().await?;
        Ok(cluster)
    }

    /// All processes, or those of nodes whose name begins with `prefix`.
    pub fn servers(&self, prefix: &str) -> Servers {
        Servers::of(self.nodes.iter().filter(|node| node.name.starts_with(prefix)).map(|node| node.process.id()))
    }

    async fn wait_until_ready(&mut self) -> Result<(), String> {
        let deadline = Instant::now() + Duration::from_secs(READY_SECONDS_MAX);
        for node in &mut self.nodes {
            while !is_ready(&node.health).await {
                if let Ok(Some(status)) = node.process.try_wait() {
                    return Err(format!(
                        "node {} ended: {status}; see {}.log in the cluster's folder",
                        node.name, node.name
                    ));
                }
                if Instant::now() > deadline {
                    return Err(format!("node {} is not ready after {READY_SECONDS_MAX} s", node.name));
                }
                sleep(Duration::from_millis(50)).await;
            }
        }
        Ok(())
    }

    /// Leaves the folder with the logs behind.
    pub fn keep_folder(&mut self) {
        self.folder = PathBuf::new();
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in &self.nodes {
            let _ = Command::new("kill").args(["-TERM", &node.process.id().to_string()]).status();
        }
        let deadline = Instant::now() + Duration::from_secs(STOP_SECONDS_MAX);
        for node in &mut self.nodes {
            while Instant::now() < deadline && matches!(node.process.try_wait(), Ok(None)) {
                std::thread::sleep(Duration::from_millis(20));
            }
            let _ = node.process.kill();
            let _ = node.process.wait();
        }
        if !self.folder.as_os_str().is_empty() {
            let _ = std::fs::remove_dir_all(&self.folder);
        }
    }
}

/// Asks `GET /health/ready`; anything but 200 within a second is "no".
async fn is_ready(health: &str) -> bool {
    let authority = health.trim_start_matches("http://").split('/').next().unwrap_or_default().to_string();
    let ask = async move {
        let mut stream = TcpStream::connect(&authority).await.ok()?;
        let request = format!("GET /health/ready HTTP/1.1\r\nhost: {authority}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut status = [0; 12];
        stream.read_exact(&mut status).await.ok()?;
        Some(status == *b"HTTP/1.1 200")
    };
    matches!(timeout(Duration::from_secs(1), ask).await, Ok(Some(true)))
}
