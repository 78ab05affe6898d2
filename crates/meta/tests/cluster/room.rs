//! Voters on a file system that another program fills. Needs root for a small file system; skipped elsewhere.

use crate::harness::*;
use plinth_meta::MetaLimits;
use plinth_protocol::meta::*;
use plinth_protocol::*;
use std::path::{Path, PathBuf};
use std::process::Command as Program;
use std::sync::Arc;
use std::time::Duration;

/// A file system of its own below a voter's folder.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Mounts one; says why not where that is not allowed.
    fn mount(path: &Path, mebibytes: u32) -> Result<SmallDisk, String> {
        std::fs::create_dir_all(path).unwrap();
        let size = format!("size={mebibytes}m");
        let mount = Program::new("mount").args(["-t", "tmpfs", "-o", &size, "plinth-test"]).arg(path).output();
        match mount {
            Ok(output) if output.status.success() => Ok(SmallDisk(path.to_owned())),
            Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Fills it, but for `left` bytes, as another program would.
    fn fill(&self, left: u64) {
        let file = std::fs::File::create(self.0.join("somebody-elses")).unwrap();
        let zeros = vec![0; 1 << 16];
        let mut writer = &file;
        while std::io::Write::write_all(&mut writer, &zeros).is_ok() {}
        let length = file.metadata().unwrap().len();
        file.set_len(length.saturating_sub(left)).unwrap();
    }

    fn empty(&self) {
        std::fs::remove_file(self.0.join("somebody-elses")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: databases may still be closing.
        let _ = Program::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Mounts a file system for each voter, or says on the output why the test is skipped.
fn small_disks(cluster: &Cluster, voters: u64, mebibytes: u32) -> Option<Vec<SmallDisk>> {
    let mounted: Result<Vec<_>, String> =
        (1..=voters).map(|node| SmallDisk::mount(&cluster.folder(NodeId(node)), mebibytes)).collect();
    mounted.inspect_err(|why| println!("SKIP: no small file system can be mounted: {why}")).ok()
}

async fn put_once(cluster: &Cluster, node: NodeId, key: &str, bytes: usize) -> Result<Reply, Failure> {
    let request = MetaRequest::Mutate(cluster.mutation(SHARD, put_command(key, bytes)));
    cluster.ask(node, request, Duration::from_secs(2)).await
}

fn delete(key: &str) -> Command {
    Command::DeleteObject(DeleteObject { bucket: BUCKET, key: key.into(), expectation: None })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_file_system_refuses_growth_takes_deletes_and_resumes_by_itself() {
    let limits = MetaLimits { room_bytes_min: 24 << 20, ..quick_limits() };
    let cluster = Arc::new(Cluster::new(3, limits));
    let Some(disks) = small_disks(&cluster, 3, 160) else { return };
    for node in 1..=3 {
        cluster.start(NodeId(node)).await.unwrap();
    }
    cluster.open_bucket().await;
    for number in 0..20 {
        cluster.put(&format!("k{number}"), 4000).await;
    }
    disks.iter().for_each(|disk| disk.fill(0));
    let refused = until(|| async {
        let leader = cluster.leader(SHARD).await?;
        let failure = put_once(&cluster, leader, "more", 100).await.err()?;
        (failure.kind == FailureKind::Full).then_some(failure)
    });
    let refused = refused.await.expect("growth is refused");
    assert!(refused.text.contains("no room for growth"), "{refused}");
    for number in 0..10 {
        let deleted = cluster.run(SHARD, delete(&format!("k{number}"))).await;
        assert!(!matches!(deleted, Outcome::Refused(_)), "deletes pass: {deleted:?}");
    }
    for node in cluster.running() {
        let told = until(|| async { cluster.status(node, SHARD).await?.condition }).await;
        assert!(told.is_some_and(|text| text.contains("no room")), "{node} tells");
        assert_eq!(cluster.status(node, SHARD).await.unwrap().stopped, None, "it takes part all the while");
    }
    disks.iter().for_each(SmallDisk::empty);
    cluster.put("again", 100).await;
    for node in cluster.running() {
        let told = until(|| async { cluster.status(node, SHARD).await?.condition.is_none().then_some(()) });
        told.await.unwrap_or_else(|| panic!("{node} is well again and says so"));
    }
    assert!(cluster.has("k15").await && cluster.has("again").await);
    assert!(!cluster.has("k5").await);
    drop(cluster);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn database_that_found_no_space_is_opened_again_without_a_restart() {
    // No reserve at all, so that the database meets the end of the file system; a log that holds what is written.
    let limits = MetaLimits {
        room_bytes_min: 0,
        log_segment_bytes: 1 << 20,
        log_segments_max: 200,
        flush_bytes: 8 << 20,
        log_keep_bytes: 4096,
        ..quick_limits()
    };
    let cluster = Arc::new(Cluster::new(1, limits));
    let Some(disks) = small_disks(&cluster, 1, 400) else { return };
    cluster.start(NodeId(1)).await.unwrap();
    cluster.open_bucket().await;
    // Enough for many segments, so that the log has room on a file system without any.
    let fill = |name: &'static str, count: u64| {
        let cluster = cluster.clone();
        async move {
            let mut written = Vec::new();
            for number in 0..count {
                let key = format!("{name}{number}");
                match put_once(&cluster, NodeId(1), &key, 60_000).await {
                    Ok(Reply::Outcome(Outcome::Object(_))) => written.push(key),
                    _ if name == "before" => panic!("{key}"),
                    _ => break,
                }
            }
            written
        }
    };
    let mut kept = fill("before", 600).await;
    cluster.await_purge(NodeId(1), 200).await;
    disks[0].fill(1 << 20);
    kept.extend(fill("after", 2_000).await);
    let told = until(|| async { cluster.status(NodeId(1), SHARD).await?.condition }).await;
    println!("{} objects, then: {told:?}", kept.len());
    disks[0].empty();
    cluster.put("again", 100).await;
    let well = until(|| async { cluster.status(NodeId(1), SHARD).await?.stopped.is_none().then_some(()) });
    well.await.expect("the replica takes part again");
    for key in kept {
        assert!(cluster.has(&key).await, "{key} was acknowledged");
    }
    drop(cluster);
}
