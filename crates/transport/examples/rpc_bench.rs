//! What a call costs: CPU-seconds per GiB and microseconds per call, both sides together, over
//! loopback with mutual TLS.
//!
//! `cargo run --release -p plinth-transport --example rpc_bench [seconds per row] [part of a row's name]`

use bytes::Bytes;
use plinth_protocol::buffer::AlignedBuf;
use plinth_protocol::{ClusterId, Failure, Incarnation, Method, NodeId, Role};
use plinth_transport::{
    Authority, BoxFuture, Call, Credentials, Identity, Link, Peer, Request, Response, Server, ServerConfig, Service,
    TlsLink,
};
use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime};

/// Answers a GET (header = length as text) from one buffer, a PUT with nothing.
struct Store {
    bytes: Bytes,
    /// Whether the answer comes from a task of its own, as that of a disk would.
    hop: bool,
}

impl Service for Store {
    fn serve(&self, request: Request) -> BoxFuture<'static, Result<Response, Failure>> {
        let length = std::str::from_utf8(&request.header).ok().and_then(|text| text.parse().ok()).unwrap_or(0);
        let (payload, hop) = (self.bytes.slice(..length), self.hop);
        Box::pin(async move {
            if hop {
                tokio::task::yield_now().await;
            }
            Ok(Response { header: request.header, payload: if length > 0 { vec![payload] } else { vec![] } })
        })
    }
}

struct Row {
    name: &'static str,
    method: Method,
    header: &'static str,
    payload: usize,
    in_flight: usize,
    hop: bool,
}

const fn row(name: &'static str, method: Method, header: &'static str, payload: usize, in_flight: usize) -> Row {
    Row { name, method, header, payload, in_flight, hop: false }
}

const SMALL: &str = concat!(
    "small 0000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000",
    "0000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000",
    "00000000000000000000000000000000000000000000000000"
);

const ROWS: [Row; 9] = [
    row("PUT 4 KiB, 16 in flight", Method::Storage, "0", 4 << 10, 16),
    row("PUT 64 KiB, 8 in flight", Method::Storage, "0", 64 << 10, 8),
    row("PUT 1 MiB, 4 in flight", Method::Storage, "0", 1 << 20, 4),
    row("GET 64 KiB, 8 in flight", Method::Storage, "65536", 0, 8),
    row("GET 1 MiB, 4 in flight", Method::Storage, "1048576", 0, 4),
    row("GET 4 MiB, 4 in flight", Method::Storage, "4194304", 0, 4),
    row("256 B calls, 1 in flight", Method::Meta, SMALL, 0, 1),
    row("256 B calls, 64 in flight", Method::Meta, SMALL, 0, 64),
    Row { hop: true, ..row("256 B calls, 64 in flight, a task each", Method::Meta, SMALL, 0, 64) },
];

fn main() -> Result<(), Box<dyn Error>> {
    let seconds = std::env::args().nth(1).map_or(Ok(2), |text| text.parse())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    println!("{:<40} {:>10} {:>10} {:>12} {:>12}", "", "calls/s", "MiB/s", "CPU us/call", "CPU-s/GiB");
    let wanted = std::env::args().nth(2).unwrap_or_default();
    for row in ROWS.iter().filter(|row| row.name.contains(&wanted)) {
        runtime.block_on(run(row, Duration::from_secs(seconds)))?;
    }
    Ok(())
}

#[allow(clippy::disallowed_methods)] // A bench measures time.
async fn run(row: &'static Row, length: Duration) -> Result<(), Box<dyn Error>> {
    let now = SystemTime::now();
    let cluster = ClusterId(1);
    let authority = Authority::create(cluster, now)?;
    let credentials = |node| -> Result<Arc<Credentials>, Box<dyn Error>> {
        let roles = vec![Role::Gateway, Role::Storage];
        let identity = Identity { cluster, node: NodeId(node), roles, incarnation: Incarnation(1) };
        let certificate = authority.issue(&identity, Duration::from_secs(3600), now)?;
        Ok(Arc::new(Credentials::new(&certificate, authority.certificate_pem(), Incarnation(1))?))
    };
    let store = Store { bytes: random(4 << 20), hop: row.hop };
    let server = Server::bind("127.0.0.1:0", ServerConfig::new(credentials(1)?), Arc::new(store)).await?;
    let link = Arc::new(TlsLink::new(credentials(2)?));
    let peer = Peer { node: NodeId(1), incarnation: Some(Incarnation(1)), address: server.address().to_string() };
    let payload = if row.payload > 0 { vec![random(row.payload)] } else { vec![] };
    let (calls, bytes, stop) =
        (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let tasks: Vec<_> = (0..row.in_flight)
        .map(|_| {
            let (link, peer, payload) = (link.clone(), peer.clone(), payload.clone());
            let (calls, bytes, stop) = (calls.clone(), bytes.clone(), stop.clone());
            tokio::spawn(async move {
                while !stop.load(Relaxed) {
                    let (header, payload) = (Bytes::from_static(row.header.as_bytes()), payload.clone());
                    let call = Call { method: row.method, header, payload, deadline: Duration::from_secs(30) };
                    let reply = link.call(&peer, call).await?;
                    calls.fetch_add(1, Relaxed);
                    bytes.fetch_add((row.payload + reply.payload.len()) as u64, Relaxed);
                }
                Ok::<(), Failure>(())
            })
        })
        .collect();
    tokio::time::sleep(length / 5).await;
    let (begun, cpu, before) = (Instant::now(), cpu_seconds()?, (calls.load(Relaxed), bytes.load(Relaxed)));
    tokio::time::sleep(length).await;
    let (took, cpu) = (begun.elapsed().as_secs_f64(), cpu_seconds()? - cpu);
    let (calls, bytes) = ((calls.load(Relaxed) - before.0) as f64, (bytes.load(Relaxed) - before.1) as f64);
    stop.store(true, Relaxed);
    for task in tasks {
        task.await??;
    }
    server.shutdown(Duration::from_secs(1)).await;
    println!(
        "{:<40} {:>10.0} {:>10.0} {:>12.2} {:>12}",
        row.name,
        calls / took,
        bytes / took / (1 << 20) as f64,
        cpu / calls * 1e6,
        if bytes > 0.0 { format!("{:.2}", cpu / (bytes / (1u64 << 30) as f64)) } else { "-".to_string() },
    );
    Ok(())
}

/// Returns the CPU time of this process so far, user and system, in seconds: fields 14 and 15 of
/// `/proc/self/stat`, in hundredths.
#[allow(clippy::disallowed_methods)] // A bench reads the kernel's own accounts.
fn cpu_seconds() -> Result<f64, Box<dyn Error>> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    Ok(ticks as f64 / 100.0)
}

fn random(length: usize) -> Bytes {
    let mut buffer = AlignedBuf::zeroed(length);
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    for byte in buffer.iter_mut() {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        *byte = (state >> 56) as u8;
    }
    buffer.freeze()
}
