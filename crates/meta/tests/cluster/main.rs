//! Voters in one process: commits, restarts, elections, snapshots, refusals, growth.

mod harness;

use harness::*;
use plinth_protocol::*;
use std::time::Instant;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_voter_founds_commits_and_reads_back() {
    let cluster = Cluster::started(1).await;
    cluster.open_bucket().await;
    cluster.put("a", 100).await;
    assert!(cluster.has("a").await);
    assert!(!cluster.has("b").await);
    assert_eq!(cluster.map().await.voters, vec![NodeId(1)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_voter_keeps_everything_over_stop_and_kill() {
    let cluster = Cluster::started(1).await;
    cluster.open_bucket().await;
    cluster.put("before-stop", 4096).await;
    cluster.stop(NodeId(1)).await;
    cluster.start(NodeId(1)).await.unwrap();
    cluster.put("before-kill", 4096).await;
    cluster.kill(NodeId(1));
    cluster.start(NodeId(1)).await.unwrap();
    assert!(cluster.has("before-stop").await && cluster.has("before-kill").await);
    assert_eq!(cluster.map().await.voters, vec![NodeId(1)], "founded once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_voters_commit_and_survive_the_leader() {
    let cluster = Cluster::started(3).await;
    cluster.open_bucket().await;
    for number in 0..20 {
        cluster.put(&format!("k{number}"), 100).await;
    }
    let leader = cluster.await_leader(SHARD).await;
    cluster.kill(leader);
    let killed = Instant::now();
    cluster.put("after", 100).await;
    assert!(killed.elapsed().as_secs() < 5, "writes resume within 5 s, took {:?}", killed.elapsed());
    for number in 0..20 {
        assert!(cluster.has(&format!("k{number}")).await, "k{number} was acknowledged");
    }
    cluster.start(leader).await.unwrap();
    assert!(cluster.has("after").await);
}
