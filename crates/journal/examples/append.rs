//! Measures appends through the whole journal on a real folder: each record is durable before it
//! counts. `cargo run -p plinth-journal --example append -- FOLDER [SECONDS]`; the folder must be
//! empty or absent, and is left behind.
#![allow(clippy::disallowed_methods)]

use bytes::Bytes;
use plinth_journal::*;
use plinth_protocol::buffer::AlignedBuf;
use plinth_protocol::ids::{ClusterId, DiskId, Incarnation};
use std::time::{Duration, Instant};

const SEGMENT_BYTES: u32 = 64 << 20;

/// CPU seconds that this process has used.
fn cpu_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/self/stat").expect("Linux");
    let after = text.rsplit(')').next().expect("the name stands in brackets");
    let fields: Vec<&str> = after.split_whitespace().collect();
    let ticks = |index: usize| fields[index].parse::<f64>().expect("a number");
    (ticks(11) + ticks(12)) / 100.0
}

fn measure(
    journal: &mut Journal,
    disk: &mut UringDisk,
    name: &str,
    depth: usize,
    body: usize,
    payload: &Bytes,
    time: Duration,
) {
    let body = vec![7u8; body];
    let (start, cpu, stats) = (Instant::now(), cpu_seconds(), journal.stats());
    let (mut waiting, mut done) = (std::collections::VecDeque::new(), 0u64);
    let mut completions = Vec::new();
    let mut bytes = 0u64;
    while start.elapsed() < time || !waiting.is_empty() {
        while waiting.len() < depth && start.elapsed() < time {
            let append =
                Append { stream: Stream::Main, kind: 20, body: &body, payload: payload.clone(), reserve: true };
            match journal.append(append) {
                Ok(placed) => waiting.push_back(placed.sequence),
                Err(_) => break,
            }
        }
        let now = Instant::now();
        while disk.room() > 0
            && let Some(operation) = journal.poll_disk(now)
        {
            disk.submit(operation);
        }
        disk.reap(Some(Duration::from_millis(50)), &mut completions);
        for completion in completions.drain(..) {
            journal.handle_completion(now, completion);
        }
        while let Some(event) = journal.poll_event() {
            match event {
                Event::Durable(last) => {
                    while waiting.front().is_some_and(|sequence| *sequence <= last) {
                        waiting.pop_front();
                        done += 1;
                        bytes += record_bytes(body.len(), payload.len()) as u64;
                    }
                }
                Event::Fenced(why) => panic!("{why}"),
                _ => {}
            }
        }
        let sealed: Vec<_> = journal
            .segments()
            .filter(|info| matches!(info.state, SegmentState::Sealed(_)))
            .map(|info| info.segment)
            .collect();
        if sealed.len() > 4 {
            let _ = journal.release(sealed[0]);
        }
    }
    let (seconds, cpu) = (start.elapsed().as_secs_f64(), cpu_seconds() - cpu);
    let batches = journal.stats().batches - stats.batches;
    println!(
        "{name:32} {:>9.0}/s {:>8.1} MiB/s {:>7.1} us CPU/record {:>6.1} records/batch",
        done as f64 / seconds,
        bytes as f64 / seconds / f64::from(1 << 20),
        cpu * 1e6 / done as f64,
        done as f64 / batches as f64,
    );
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().expect("usage: append FOLDER [SECONDS]");
    let seconds = arguments.next().map_or(3.0, |text| text.parse().expect("seconds"));
    let time = Duration::from_secs_f64(seconds);
    let identity = DiskIdentity { cluster: ClusterId(1), disk: DiskId(1), incarnation: Incarnation(1) };
    let plan = Format {
        identity,
        segment_bytes: SEGMENT_BYTES,
        segment_count_max: 12,
        segment_count_initial: 12,
        fill: Fill::Written,
        stamp: 99,
    };
    let mut disk = UringDisk::create(folder.as_ref()).expect("an empty folder");
    format(&mut disk, &plan).expect("a blank disk");
    let recovery = Recovery::start(disk, Some(identity)).expect("a fresh disk");
    let (mut journal, mut disk) = recovery.resume(Instant::now(), JournalOptions::default()).expect("a fresh disk");
    let (journal, disk) = (&mut journal, &mut disk);
    let none = Bytes::new();
    measure(journal, disk, "4 KiB record, depth 1", 1, 3000, &none, time);
    measure(journal, disk, "4 KiB record, depth 32", 32, 3000, &none, time);
    measure(journal, disk, "4 KiB record, depth 256", 256, 3000, &none, time);
    let payload = AlignedBuf::zeroed(128 << 10).freeze();
    measure(journal, disk, "128 KiB payload, depth 1", 1, 200, &payload, time);
    measure(journal, disk, "128 KiB payload, depth 8", 8, 200, &payload, time);
    measure(journal, disk, "128 KiB payload, depth 64", 64, 200, &payload, time);
}
