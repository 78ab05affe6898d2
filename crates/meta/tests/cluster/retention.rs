//! How much log is kept for voters that lag.

use crate::harness::*;
use plinth_meta::MetaLimits;
use plinth_protocol::*;
use std::sync::Arc;

/// The database that counts, by name.
fn current(cluster: &Cluster, node: NodeId) -> String {
    std::fs::read_to_string(cluster.folder(node).join("groups").join("1").join("CURRENT")).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn voter_that_restarts_under_load_catches_up_from_the_log() {
    // Flushed all the time and almost nothing kept for its own sake: what is kept is kept for the voter that is away.
    let limits = MetaLimits { flush_entries: 20, log_keep_bytes: 4096, snapshot_lag_entries: 20, ..quick_limits() };
    let cluster = Arc::new(Cluster::new(3, limits));
    for node in 1..=3 {
        cluster.start(NodeId(node)).await.unwrap();
    }
    cluster.open_bucket().await;
    for number in 0..50 {
        cluster.put(&format!("before{number:03}"), 2000).await;
    }
    let leader = cluster.await_leader(SHARD).await;
    let away = cluster.running().into_iter().find(|node| *node != leader).unwrap();
    cluster.kill(away);
    // 3 MB of a quarter of 64 MiB, over several looks of the keeper.
    for number in 0..1500 {
        cluster.put(&format!("k{number:04}"), 2000).await;
    }
    let tables = cluster.folder(leader).join("groups").join("1").join("db.1");
    let flushed = until(|| async {
        let names = std::fs::read_dir(&tables).ok()?.flatten().map(|entry| entry.path());
        names.filter(|path| path.extension().is_some_and(|end| end == "sst")).nth(2).map(drop)
    });
    flushed.await.expect("rows are flushed");
    // The failover after it must not cost a snapshot either: the new leader has kept as much.
    cluster.kill(leader);
    cluster.start(away).await.unwrap();
    cluster.put("after", 100).await;
    let caught_up = until(|| async {
        let ahead = cluster.status(cluster.leader(SHARD).await?, SHARD).await?;
        (cluster.status(away, SHARD).await?.applied >= ahead.applied).then_some(())
    });
    caught_up.await.expect("caught up");
    assert_eq!(current(&cluster, away), "db.1\n", "no snapshot was needed");
    cluster.start(leader).await.unwrap();
    assert!(cluster.has("k1499").await && cluster.has("before000").await);
    // Once nobody lags, what was kept for it goes.
    cluster.await_purge(cluster.await_leader(SHARD).await, 200).await;
}
