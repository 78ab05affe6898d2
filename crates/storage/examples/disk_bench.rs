//! Measures one disk through the node: puts and reads of several sizes, 32 in flight, with the CPU
//! time of the whole process. `cargo run -p plinth-storage --example disk_bench -- <folder> [seconds]`.
//! The folder must be empty or absent; give it 8 GiB.

#![allow(clippy::disallowed_methods, clippy::unwrap_used)]

use bytes::Bytes;
use plinth_protocol::buffer::AlignedBuf;
use plinth_protocol::frame::{FRAME_BYTES, fragment_bytes, seal_frame};
use plinth_protocol::storage::{DeleteFragments, IoClass, ReadFrames, StorageAction, StorageRequest};
use plinth_protocol::stripe::{Code, FragmentHeader, StripeRef};
use plinth_protocol::{ClusterId, DiskId, FragmentId, Incarnation, PgId, StripeId, WriterId};
use plinth_storage::{DiskConfig, FormatConfig, StorageConfig, StorageNode, format_disk};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::Instant;

const IN_FLIGHT: usize = 32;
const DISK: DiskId = DiskId(1);

fn header(stripe: u64, payload: usize) -> FragmentHeader {
    let fragment = FragmentId { stripe: StripeId::new(WriterId(1), stripe, 1), index: 0 };
    FragmentHeader {
        fragment,
        stripe: StripeRef {
            stripe: fragment.stripe,
            pg: PgId(1),
            generation: 1,
            code: Code::new(3, 2),
            payload_bytes: 3 * payload as u64,
            fragment_payload_bytes: payload as u32,
            missing: None,
            plain_bytes: None,
            sealing: None,
            pack_offset: None,
        },
        owner: None,
        made: 1,
    }
}

fn frames(header: &FragmentHeader) -> Bytes {
    let mut buffer = AlignedBuf::zeroed(fragment_bytes(header.stripe.fragment_payload_bytes as usize));
    for (number, frame) in buffer.chunks_mut(FRAME_BYTES).enumerate() {
        seal_frame(frame, header.fragment, number as u16);
    }
    buffer.freeze()
}

/// User and system time of the process in seconds, and of the calling thread.
fn cpu_seconds(who: i32) -> f64 {
    // SAFETY: getrusage fills the struct that it is given.
    let usage = unsafe {
        let mut usage = std::mem::zeroed::<libc::rusage>();
        libc::getrusage(who, &mut usage);
        usage
    };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}

fn peak_mebibytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

async fn ask(node: &StorageNode, class: IoClass, action: StorageAction, payload: Bytes) -> Vec<Bytes> {
    let request = StorageRequest { disk: DISK, incarnation: Incarnation(1), class, action };
    node.handle(request, payload, Instant::now() + Duration::from_secs(30)).await.unwrap().1
}

struct Run<'a> {
    node: &'a StorageNode,
    seconds: u64,
}

impl Run<'_> {
    /// Runs `work(n)` for n from `first` on, 32 side by side; returns how many ended. Prints rates,
    /// and CPU less `baseline` microseconds an operation, which is what the generator itself costs.
    async fn measure<F, W>(&self, name: &str, bytes: usize, first: u64, last: u64, baseline: f64, work: W) -> u64
    where
        F: Future<Output = ()> + Send + 'static,
        W: Fn(StorageNode, u64) -> F + Send + Sync + 'static,
    {
        let next = Arc::new(AtomicU64::new(first));
        let work = Arc::new(work);
        let (start, cpu) = (Instant::now(), cpu_seconds(libc::RUSAGE_SELF));
        let end = start + Duration::from_secs(self.seconds);
        let tasks: Vec<_> = (0..IN_FLIGHT)
            .map(|_| {
                let (node, next, work) = (self.node.clone(), next.clone(), work.clone());
                tokio::spawn(async move {
                    let mut done = 0u64;
                    while Instant::now() < end {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= last {
                            break;
                        }
                        work(node.clone(), number).await;
                        done += 1;
                    }
                    done
                })
            })
            .collect();
        let mut done = 0;
        for task in tasks {
            done += task.await.unwrap();
        }
        let elapsed = start.elapsed().as_secs_f64();
        let each = (cpu_seconds(libc::RUSAGE_SELF) - cpu) * 1e6 / done.max(1) as f64 - baseline;
        let gib = (done as usize * bytes) as f64 / (1u64 << 30) as f64;
        println!(
            "{name:<22} {:>8.0}/s {:>8.0} MiB/s {each:>8.1} us CPU each {:>6.2} CPU-s/GiB  peak {} MiB",
            done as f64 / elapsed,
            gib * 1024.0 / elapsed,
            each * done as f64 / 1e6 / gib,
            peak_mebibytes(),
        );
        done
    }
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().expect("a folder").into();
    let seconds = arguments.next().map_or(5, |text| text.parse().expect("seconds"));
    let config = FormatConfig {
        path,
        cluster: ClusterId(1),
        disk: DISK,
        incarnation: Incarnation(1),
        segment_bytes: 64 << 20,
        size_bytes: 8 << 30,
        stamp: 1,
    };
    format_disk(&config).unwrap();
    let disk = DiskConfig { path: config.path, expected: None };
    let node = StorageNode::open(StorageConfig::new(ClusterId(1), vec![disk])).await.unwrap();
    let run = Run { node: &node, seconds };
    let mut base = 0;
    for (name, payload) in [("4 KiB", 4_000), ("64 KiB", 65_000), ("350 KiB", 350_000)] {
        let bytes = fragment_bytes(payload);
        // Making the frames is the client's work: measured alone and taken off.
        let cpu = cpu_seconds(libc::RUSAGE_SELF);
        (0..2_000).for_each(|number| drop(std::hint::black_box(frames(&header(number, payload)))));
        let baseline = (cpu_seconds(libc::RUSAGE_SELF) - cpu) * 1e6 / 2_000.0;
        let most = (3u64 << 30) / bytes as u64;
        let put = move |node: StorageNode, number| async move {
            let header = header(number, payload);
            let frames = frames(&header);
            ask(&node, IoClass::Write, StorageAction::Put(header), frames).await;
        };
        let count = run.measure(&format!("put {name}"), bytes, base, base + most, baseline, put).await;
        let first = base;
        let read = move |node: StorageNode, number: u64| async move {
            // Scattered over what was written: 7919 is prime.
            let fragment = header(first + number * 7919 % count, payload).fragment;
            let read = ReadFrames { fragment, first: 0, count: 64 };
            let frames = ask(&node, IoClass::Read, StorageAction::Read(read), Bytes::new()).await;
            assert_eq!(frames.iter().map(Bytes::len).sum::<usize>(), bytes);
        };
        run.measure(&format!("read {name}"), bytes, 0, u64::MAX, 0.0, read).await;
        let delete = move |node: StorageNode, number: u64| async move {
            let fragments = (number * 64..(number + 1) * 64).map(|at| header(first + at, payload).fragment).collect();
            ask(&node, IoClass::Background, StorageAction::Delete(DeleteFragments { fragments }), Bytes::new()).await;
        };
        run.measure(&format!("delete 64 of {name}"), 64 * bytes, 0, count.div_ceil(64), 0.0, delete).await;
        base += count + 64;
        let stats = &node.metrics()[0].stats;
        let (batches, records) = (stats.batch_records.count(), stats.batch_records.sum);
        println!("  {:.1} records a batch, {} us a batch", records as f64 / batches as f64, stats.sync.sum / batches);
    }
    node.shutdown().await;
}
