//! What a fresh disk writes for what it is given. Alone in its file: it counts the bytes of its whole process.

#![allow(clippy::disallowed_methods)]

mod sim;

use plinth_protocol::storage::{IoClass, StorageAction, StorageRequest};
use plinth_protocol::{ClusterId, DiskId, Incarnation};
use plinth_storage::{DiskConfig, FormatConfig, StorageConfig, StorageNode, format_disk};
use sim::Content;
use std::time::Duration;
use tokio::time::Instant;

/// Bytes that this process has had written to devices.
fn written_bytes() -> u64 {
    let counts = std::fs::read_to_string("/proc/self/io").expect("a process may read its own counters");
    let line = counts.lines().find_map(|line| line.strip_prefix("write_bytes: ")).expect("the kernel counts");
    line.parse().expect("a number")
}

#[tokio::test]
async fn large_fragments_are_written_once_on_a_fresh_disk() {
    let root = tempfile::tempdir().expect("a folder for the test");
    let config = FormatConfig {
        path: root.path().join("d0"),
        cluster: ClusterId(7),
        disk: DiskId(1),
        incarnation: Incarnation(1),
        segment_bytes: 16 << 20,
        size_bytes: 1 << 30,
        stamp: 5,
    };
    let before = written_bytes();
    format_disk(&config).expect("an empty folder can be formatted");
    let disk = DiskConfig { path: config.path, expected: None };
    let node = StorageNode::open(StorageConfig::new(ClusterId(7), vec![disk])).await.expect("a formatted disk opens");
    let mut given = 0;
    for number in 0..100 {
        let content = Content::new(number, 1_000_000);
        let (action, frames) = (StorageAction::Put(content.header()), content.frames());
        given += frames.len() as u64;
        let request = StorageRequest { disk: DiskId(1), incarnation: Incarnation(1), class: IoClass::Write, action };
        node.handle(request, frames, Instant::now() + Duration::from_secs(30)).await.expect("there is room");
    }
    node.shutdown().await;
    let written = written_bytes() - before;
    println!("{written} bytes written for {given} given: {:.3}", written as f64 / given as f64);
    if written < given / 2 {
        println!("SKIP: the file system of the temporary folder does not count what it writes");
        return;
    }
    // The superblock's area, formatting and the last checkpoint are part of it.
    assert!(written * 100 <= given * 105 + 100 * (2 << 20), "{written} bytes written for {given}");
}
