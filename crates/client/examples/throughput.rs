//! Prints the processor time of puts and gets through the in-process link, with disks that only
//! verify what they get: what the client itself costs, hashing and networking apart.
//!
//! `cargo run -p plinth-client --example throughput`

#![allow(clippy::disallowed_methods, clippy::unwrap_used)] // A stopwatch over fakes.

#[path = "../tests/fakes/mod.rs"]
mod fakes;

use fakes::*;
use plinth_client::Client;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

const CLIENTS: usize = 4;
const CROWD: usize = 64;
const STEP_BYTES: usize = 64 << 10;
const BYTES_PER_ROW: usize = 2 << 30;

/// Processor time of this process in seconds.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}

fn resident_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

async fn measure<F>(
    name: &str,
    clients: usize,
    size: usize,
    count: usize,
    client: &Client,
    work: impl Fn(Client, usize) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let (cpu, wall) = (cpu_seconds(), Instant::now());
    let mut tasks = tokio::task::JoinSet::new();
    for worker in 0..clients {
        for number in (worker..count).step_by(clients) {
            while tasks.len() >= clients {
                tasks.join_next().await.unwrap().unwrap();
            }
            tasks.spawn(work(client.clone(), number));
        }
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    let (cpu, wall) = (cpu_seconds() - cpu, wall.elapsed().as_secs_f64());
    let gib = (size * count) as f64 / f64::from(1 << 30);
    println!(
        "{name:4} {:>8} B: {:8.3} CPU-s/GiB, {:8.1} us CPU each, {:7.0} MiB/s, peak {} MiB",
        size,
        cpu / gib,
        cpu * 1e6 / count as f64,
        gib * 1024.0 / wall,
        resident_mib()
    );
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let cluster = Cluster::new(Shape { fragment_bytes_max: 4 << 20, ..Shape::default() });
    let client = cluster.client().await;
    for size in [8 << 10, 256 << 10, 1 << 20, 64 << 20] {
        let count = (BYTES_PER_ROW / size).min(40_000);
        let bytes: &'static [u8] = Vec::leak(noise(1, size));
        put(&client, "key", bytes).await.unwrap();
        let view = std::sync::Arc::new(view(&client, "key").await.unwrap());
        cluster.disks.values().for_each(|disk| disk.forgets.store(true, Relaxed));
        measure("put", CLIENTS, size, count, &client, |client, number| async move {
            write(&client, &format!("key{number}"), bytes, STEP_BYTES, true).await.unwrap();
        })
        .await;
        cluster.disks.values().for_each(|disk| disk.forgets.store(false, Relaxed));
        measure("get", CLIENTS, size, count, &client, move |client, _| {
            let view = view.clone();
            async move {
                let mut reader = client.open(BUCKET, "key", &view, 0..size as u64);
                while let Some(part) = reader.next().await {
                    std::hint::black_box(part.unwrap());
                }
            }
        })
        .await;
    }
    cluster.disks.values().for_each(|disk| disk.forgets.store(true, Relaxed));
    let bytes: &'static [u8] = Vec::leak(noise(1, 64 << 20));
    println!("{CROWD} clients at once:");
    measure("put", CROWD, bytes.len(), CROWD, &client, |client, number| async move {
        write(&client, &format!("key{number}"), bytes, STEP_BYTES, true).await.unwrap();
    })
    .await;
    println!("{:?}", client.counters());
}
