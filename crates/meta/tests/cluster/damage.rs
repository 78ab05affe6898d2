//! A replica whose database rots: another one answers, and the damaged one is rebuilt.

use crate::harness::*;
use plinth_meta::MetaLimits;
use plinth_protocol::meta::*;
use plinth_protocol::*;
use std::io::{Read, Seek, SeekFrom, Write};
use std::sync::Arc;
use std::time::Duration;

const KEYS: u64 = 300;

fn key(number: u64) -> String {
    format!("k{number:04}")
}

/// Three voters, all of whose rows stand in files that no cache holds.
async fn flushed_cluster() -> Arc<Cluster> {
    let limits =
        MetaLimits { flush_entries: 20, log_keep_bytes: 4096, database_cache_bytes: 1 << 20, ..quick_limits() };
    let cluster = Arc::new(Cluster::new(3, limits));
    for node in 1..=3 {
        cluster.start(NodeId(node)).await.unwrap();
    }
    cluster.open_bucket().await;
    for number in 0..KEYS {
        cluster.put(&key(number), 900).await;
    }
    for node in cluster.running() {
        flush(&cluster, node).await;
    }
    cluster
}

/// Has a voter write all its rows to files and forget them: by a stop and a start.
async fn flush(cluster: &Cluster, node: NodeId) {
    cluster.stop(node).await;
    cluster.start(node).await.unwrap();
    assert!(!tables(cluster, node).is_empty(), "a stop flushes");
}

/// The sorted files of a voter's object shard.
fn tables(cluster: &Cluster, node: NodeId) -> Vec<std::path::PathBuf> {
    let group = cluster.folder(node).join("groups").join("1");
    let Ok(current) = std::fs::read_to_string(group.join("CURRENT")) else { return Vec::new() };
    let Ok(entries) = std::fs::read_dir(group.join(current.trim())) else { return Vec::new() };
    entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|end| end == "sst"))
        .collect()
}

/// Flips bits in the front of every sorted file, where the rows stand, under the running database.
fn rot(cluster: &Cluster, node: NodeId) {
    let tables = tables(cluster, node);
    assert!(!tables.is_empty());
    for path in tables {
        // A compaction may have taken it away meanwhile.
        let Ok(mut file) = std::fs::OpenOptions::new().read(true).write(true).open(&path) else { continue };
        let front = file.metadata().unwrap().len() * 6 / 10;
        for offset in (8..front).step_by(64) {
            let mut byte = [0];
            file.seek(SeekFrom::Start(offset)).unwrap();
            file.read_exact(&mut byte).unwrap();
            file.seek(SeekFrom::Start(offset)).unwrap();
            file.write_all(&[byte[0] ^ 0x55]).unwrap();
        }
        file.sync_all().unwrap();
    }
}

/// Waits until a voter's replica of the shard is a rebuilt one that has caught up and complains of nothing.
async fn await_rebuilt(cluster: &Cluster, node: NodeId) {
    let rebuilt = until(|| async {
        let current = std::fs::read_to_string(cluster.folder(node).join("groups").join("1").join("CURRENT")).ok()?;
        let status = cluster.status(node, SHARD).await?;
        let ahead = cluster.status(cluster.leader(SHARD).await?, SHARD).await?;
        let is_sound = status.condition.is_none() && status.stopped.is_none() && status.applied >= ahead.applied;
        (current != "db.1\n" && is_sound).then_some(())
    });
    let status = cluster.status(node, SHARD).await;
    rebuilt.await.unwrap_or_else(|| panic!("{node} is not rebuilt: {status:?}"));
}

/// Reads every key from one voter, once it leads.
async fn assert_holds_all(cluster: &Cluster, node: NodeId) {
    let read = until(|| async {
        for number in 0..KEYS {
            let query = Query::Object(ObjectQuery { bucket: BUCKET, key: key(number), body: true });
            let request = MetaRequest::Query(GroupQuery { group: SHARD, query, seen: None });
            match cluster.ask(node, request, Duration::from_secs(2)).await {
                Ok(Reply::Object(_)) => {}
                Ok(other) => panic!("{node} lacks {}: {other:?}", key(number)),
                Err(failure) => {
                    // It does not lead yet: have the leader go.
                    let leader = failure.leader.filter(|leader| *leader != node)?;
                    cluster.node(leader).hand_over().await;
                    return None;
                }
            }
        }
        Some(())
    });
    read.await.unwrap_or_else(|| panic!("{node} never answered for every key"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "passes in most runs only: its setup meets replicas that are just being replaced (issue 9, part 6)"]
async fn keys_stay_readable_while_the_leaders_database_rots_and_the_replica_comes_back() {
    let cluster = flushed_cluster().await;
    let leader = cluster.await_leader(SHARD).await;
    rot(&cluster, leader);
    let told = {
        let cluster = cluster.clone();
        tokio::spawn(async move {
            until(|| async { cluster.status(leader, SHARD).await.and_then(|status| status.condition) }).await
        })
    };
    for number in 0..KEYS {
        assert!(cluster.has(&key(number)).await, "{} is on two sound replicas", key(number));
    }
    let told = told.await.unwrap().expect("the status says so");
    assert!(told.contains("damaged"), "{told}");
    cluster.put("meanwhile", 100).await;
    await_rebuilt(&cluster, leader).await;
    assert_holds_all(&cluster, leader).await;
    cluster.kill(leader);
    cluster.start(leader).await.unwrap();
    assert_holds_all(&cluster, leader).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "passes in most runs only: its setup meets replicas that are just being replaced (issue 9, part 6)"]
async fn follower_that_can_not_apply_over_damaged_rows_is_rebuilt() {
    let cluster = flushed_cluster().await;
    let leader = cluster.await_leader(SHARD).await;
    let follower = cluster.running().into_iter().find(|node| *node != leader).unwrap();
    rot(&cluster, follower);
    // Each of these reads the row that it replaces.
    for number in 0..KEYS {
        cluster.put(&key(number), 900).await;
    }
    await_rebuilt(&cluster, follower).await;
    assert_holds_all(&cluster, follower).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lone_voter_answers_what_it_can_read_of_a_damaged_database() {
    let limits = MetaLimits { flush_entries: 20, database_cache_bytes: 1 << 20, ..quick_limits() };
    let cluster = Arc::new(Cluster::new(1, limits));
    cluster.start(NodeId(1)).await.unwrap();
    cluster.open_bucket().await;
    // Nothing of the leader's own is applied after the damage: apply, which reads damaged rows, ends a replica.
    assert_eq!(cluster.run(SHARD, Command::RaiseRules(RULES_STRICT)).await, Outcome::Done);
    for number in 0..KEYS {
        cluster.put(&key(number), 900).await;
    }
    flush(&cluster, NodeId(1)).await;
    rot(&cluster, NodeId(1));
    let mut answers = Vec::new();
    for number in 0..KEYS {
        let query = Query::Object(ObjectQuery { bucket: BUCKET, key: key(number), body: true });
        let request = MetaRequest::Query(GroupQuery { group: SHARD, query, seen: None });
        answers.push(cluster.ask(NodeId(1), request, Duration::from_secs(2)).await.err().map(|failure| failure.kind));
    }
    let first = answers.iter().position(|answer| *answer == Some(FailureKind::Corrupt));
    let first = first.unwrap_or_else(|| panic!("no damage was read: {answers:?}"));
    // There is no other replica: a fence would only take away the rest.
    assert!(answers[first..].contains(&None), "{answers:?}");
    let condition = cluster.status(NodeId(1), SHARD).await.unwrap().condition.expect("the status says so");
    assert!(condition.contains("damaged"), "{condition}");
}
