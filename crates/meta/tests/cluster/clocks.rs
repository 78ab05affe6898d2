//! Wall clocks of voters that are wrong: nothing acknowledged is lost, nothing comes back.

use crate::harness::*;
use plinth_protocol::meta::*;
use plinth_protocol::*;
use std::sync::Arc;
use std::time::Duration;

const MINUTES_20_MS: i64 = 20 * 60 * 1000;
/// How far a stamp may be from real time in these tests: the bound, and what a busy machine adds.
const NEAR_MS: u64 = 5_000;
const VOTERS: [NodeId; 3] = [NodeId(1), NodeId(2), NodeId(3)];

/// A put of so many bytes, as a gateway sends it: with its issue time, to be sent again unchanged.
async fn issued(cluster: &Cluster, key: &str, bytes: usize) -> MetaRequest {
    let mutation = cluster.mutation(SHARD, put_command(key, bytes));
    let query = Query::Object(ObjectQuery { bucket: BUCKET, key: key.into(), body: false });
    let ask = GroupQuery { group: SHARD, query, seen: Some(HybridTime(0)) };
    let issued = match cluster.request(MetaRequest::Query(ask)).await {
        Reply::Timed(timed) => Some(timed.time),
        other => panic!("{other:?}"),
    };
    MetaRequest::Mutate(Mutation { issued, ..mutation })
}

fn outcome(reply: Reply) -> Outcome {
    match reply {
        Reply::Outcome(outcome) => outcome,
        other => panic!("{other:?}"),
    }
}

async fn near_real_time(cluster: &Cluster, key: &str) {
    cluster.put(key, 10).await;
    let stamped = cluster.row(key).await.modified.millis();
    let off = stamped.abs_diff(wall_ms());
    assert!(off < NEAR_MS, "{key} is stamped {off} ms away from real time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fast_clock_of_a_voter_forgets_nothing() {
    let cluster = Cluster::started(3).await;
    cluster.open_bucket().await;
    let leader = cluster.await_leader(SHARD).await;
    // One gateway tells when it issued its request, one of an older version does not.
    let old = [issued(&cluster, "a", 100).await, MetaRequest::Mutate(cluster.mutation(SHARD, put_command("b", 100)))];
    for request in &old {
        assert!(matches!(outcome(cluster.request(request.clone()).await), Outcome::Object(_)));
    }
    cluster.set_skew(leader, MINUTES_20_MS);
    for key in ["a", "b"] {
        cluster.put(key, 200).await;
    }
    // Enough entries for the table of requests to be swept.
    for number in 0..40 {
        cluster.put(&format!("k{number}"), 10).await;
    }
    assert_eq!(cluster.await_leader(SHARD).await, leader, "the one with the fast clock still leads");
    for (request, key) in old.into_iter().zip(["a", "b"]) {
        match outcome(cluster.request(request).await) {
            Outcome::Object(first) => assert_eq!(first.size_bytes, 100, "its first outcome"),
            other => panic!("{other:?}"),
        }
        assert_eq!(cluster.row(key).await.size_bytes, 200, "{key}: the acknowledged newer write is gone");
    }
    near_real_time(&cluster, "after-the-jump").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn time_of_a_cluster_that_starts_under_a_fast_leader_is_the_medians() {
    let cluster = Arc::new(Cluster::new(3, quick_limits()));
    cluster.set_skew(NodeId(2), MINUTES_20_MS);
    for node in VOTERS {
        cluster.start(node).await.unwrap();
    }
    cluster.open_bucket().await;
    near_real_time(&cluster, "founded").await;
    cluster.make_lead(NodeId(2), SHARD).await;
    near_real_time(&cluster, "led by the fast one").await;
    // Everybody down and up again, the fast one and one other first: of two the lower counts.
    for node in VOTERS {
        cluster.kill(node);
    }
    cluster.start(NodeId(2)).await.unwrap();
    cluster.start(NodeId(3)).await.unwrap();
    near_real_time(&cluster, "two of three").await;
    cluster.start(NodeId(1)).await.unwrap();
    cluster.make_lead(NodeId(2), SHARD).await;
    near_real_time(&cluster, "led by the fast one again").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jump_of_most_clocks_is_told_and_not_followed_also_by_the_next_leader() {
    let cluster = Cluster::started(3).await;
    cluster.open_bucket().await;
    near_real_time(&cluster, "before").await;
    let leader = cluster.await_leader(SHARD).await;
    let all_there = until(|| async {
        let status = cluster.status(leader, SHARD).await?;
        let there = status.matched.iter().filter(|(_, matched)| *matched == status.last_log).count();
        (there == 3).then_some(())
    });
    all_there.await.expect("all voters have answered the leader");
    near_real_time(&cluster, "with all voters' clocks").await;
    for node in VOTERS {
        cluster.set_skew(node, 10 * MINUTES_20_MS);
    }
    let told = until(|| async {
        let stats = cluster.node(leader).stats().await;
        let shard = stats.groups.into_iter().find(|group| group.group == SHARD)?;
        (shard.clock_stray_ms > 9 * MINUTES_20_MS).then_some(())
    });
    told.await.expect("the jump is in the leader's counters");
    near_real_time(&cluster, "after the jump").await;
    cluster.kill(leader);
    near_real_time(&cluster, "under the next leader").await;
    cluster.start(leader).await.unwrap();
    near_real_time(&cluster, "with all voters").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_tell_the_groups_time_and_merge_what_the_sender_has_seen() {
    let cluster = Cluster::started(1).await;
    cluster.open_bucket().await;
    let ask = |seen: u64| {
        let query = Query::Object(ObjectQuery { bucket: BUCKET, key: "none".into(), body: false });
        MetaRequest::Query(GroupQuery { group: SHARD, query, seen: Some(HybridTime::from_millis(seen)) })
    };
    let time = |reply: Reply| match reply {
        Reply::Timed(timed) => timed.time.millis(),
        other => panic!("{other:?}"),
    };
    let near = time(cluster.request(ask(0)).await);
    assert!(near.abs_diff(wall_ms()) < NEAR_MS);
    // A write in another group may be stamped up to the bound ahead: the next one here comes after it.
    let seen = wall_ms() + CLOCK_BOUND_MS / 2;
    let mutation = cluster.mutation(SHARD, put_command("k", 10));
    let mutation = Mutation { seen: Some(HybridTime::from_millis(seen)), ..mutation };
    assert!(time(cluster.request(MetaRequest::Mutate(mutation)).await) >= seen);
    assert!(cluster.row("k").await.modified.millis() >= seen);
    let mutation = cluster.mutation(SHARD, put_command("k", 20));
    let far = HybridTime::from_millis(wall_ms() + 3_600_000);
    cluster.request(MetaRequest::Mutate(Mutation { seen: Some(far), ..mutation })).await;
    assert!(cluster.row("k").await.modified.millis() < wall_ms() + NEAR_MS, "beyond the bound nothing is merged");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleted_data_grows_old_by_the_groups_time_alone() {
    let cluster = Cluster::started(1).await;
    cluster.open_bucket().await;
    let stripes = vec![stripe(1)];
    assert!(matches!(cluster.run(SHARD, put_stripes("k", stripes)).await, Outcome::Object(_)));
    let delete = DeleteObject { bucket: BUCKET, key: "k".into(), expectation: None };
    assert_eq!(cluster.run(SHARD, Command::DeleteObject(delete)).await, Outcome::Deleted(true));
    let due = |before: HybridTime, age_ms: Option<u64>| {
        let cluster = cluster.clone();
        async move {
            match cluster.query(SHARD, Query::DueDeletes(DueQuery { before, after: None, limit: 10, age_ms })).await {
                Reply::DueDeletes(page) => page.rows.len(),
                other => panic!("{other:?}"),
            }
        }
    };
    let far = HybridTime::from_millis(wall_ms() + 24 * 3600 * 1000);
    assert_eq!(due(far, Some(60_000)).await, 0, "a gateway's clock a day ahead");
    assert_eq!(due(far, None).await, 0, "that of a gateway of an older version");
    assert_eq!(due(far, Some(0)).await, 1);
    assert_eq!(due(HybridTime(0), Some(0)).await, 0);
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(due(far, Some(10)).await, 1, "its time goes on though nobody writes");
}
