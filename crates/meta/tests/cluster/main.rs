//! Voters in one process: commits, restarts, elections, snapshots, refusals, growth.

#![allow(clippy::disallowed_methods, clippy::unwrap_used)]

mod clocks;
mod damage;
mod harness;
mod retention;
mod room;

use harness::*;
use plinth_meta::{MetaError, MetaLimits};
use plinth_protocol::map::State;
use plinth_protocol::meta::*;
use plinth_protocol::object::{Body, PartRow, StoredHeaders};
use plinth_protocol::stripe::{Code, StripeRef};
use plinth_protocol::*;
use plinth_transport::Fault;
use std::sync::Arc;
use std::time::{Duration, Instant};

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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_voters_killed_at_once_come_back_with_everything() {
    let cluster = Cluster::started(3).await;
    cluster.open_bucket().await;
    for number in 0..30 {
        cluster.put(&format!("k{number}"), 2000).await;
    }
    for node in [NodeId(1), NodeId(2), NodeId(3)] {
        cluster.kill(node);
    }
    for node in [NodeId(3), NodeId(1), NodeId(2)] {
        cluster.start(node).await.unwrap();
    }
    for number in 0..30 {
        assert!(cluster.has(&format!("k{number}")).await, "k{number} was acknowledged");
    }
    assert_eq!(cluster.map().await.voters.len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn minority_answers_nothing_and_writes_resume_with_the_majority() {
    let cluster = Cluster::started(3).await;
    cluster.open_bucket().await;
    let leader = cluster.await_leader(SHARD).await;
    for other in cluster.running().into_iter().filter(|node| *node != leader) {
        cluster.network.cut(leader, other);
    }
    let wait = Duration::from_millis(1500);
    let query = Query::Object(ObjectQuery { bucket: BUCKET, key: "x".into(), body: false });
    let read = cluster.ask(leader, MetaRequest::Query(GroupQuery { group: SHARD, query, seen: None }), wait).await;
    assert!(read.is_err(), "a leader without a majority must not answer reads: {read:?}");
    let cut = Instant::now();
    cluster.put("x", 100).await;
    assert!(cut.elapsed() < Duration::from_secs(5), "took {:?}", cut.elapsed());
    cluster.network.heal_all();
    assert!(cluster.has("x").await);
    let caught_up = until(|| async {
        let (old, new) = (cluster.status(leader, SHARD).await?, cluster.await_leader(SHARD).await);
        let new = cluster.status(new, SHARD).await?;
        (old.applied == new.applied).then_some(())
    });
    caught_up.await.expect("the old leader follows");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lagging_voter_catches_up_by_snapshot() {
    let limits = MetaLimits {
        flush_entries: 50,
        log_keep_bytes: 4096,
        log_lag_bytes: 4096,
        snapshot_lag_entries: 20,
        ..quick_limits()
    };
    let cluster = Arc::new(Cluster::new(3, limits));
    for node in 1..=3 {
        cluster.start(NodeId(node)).await.unwrap();
    }
    cluster.open_bucket().await;
    let leader = cluster.await_leader(SHARD).await;
    let lagging = cluster.running().into_iter().find(|node| *node != leader).unwrap();
    cluster.kill(lagging);
    for number in 0..200 {
        cluster.put(&format!("k{number:03}"), 500).await;
    }
    let purged = until(|| async {
        let stats = cluster.node(leader).stats().await;
        let shard = stats.groups.into_iter().find(|group| group.group == SHARD)?;
        (shard.log_entries < 100).then_some(())
    });
    purged.await.expect("the log is purged behind the flush");
    cluster.start(lagging).await.unwrap();
    let caught_up = until(|| async {
        let (behind, ahead) = (cluster.status(lagging, SHARD).await?, cluster.status(leader, SHARD).await?);
        (behind.applied >= ahead.applied).then_some(())
    });
    caught_up.await.expect("caught up");
    let current = cluster.folder(lagging).join("groups").join("1").join("CURRENT");
    assert_ne!(std::fs::read_to_string(current).unwrap(), "db.1\n", "a snapshot has been installed");
    // It must hold all of it: let it lead alone with one other.
    cluster.stop(leader).await;
    for number in 0..200 {
        assert!(cluster.has(&format!("k{number:03}")).await);
    }
    cluster.kill(lagging);
    cluster.start(lagging).await.unwrap();
    assert!(cluster.has("k007").await, "a restart finds the installed snapshot");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wiped_voter_is_refused_and_the_others_go_on() {
    let cluster = Cluster::started(3).await;
    cluster.open_bucket().await;
    cluster.put("a", 100).await;
    cluster.await_records(3).await;
    let leader = cluster.await_leader(GROUP_SYSTEM).await;
    let wiped = cluster.running().into_iter().find(|node| *node != leader).unwrap();
    cluster.kill(wiped);
    cluster.wait_unlocked(wiped).await;
    std::fs::remove_dir_all(cluster.folder(wiped)).unwrap();
    cluster.start(wiped).await.unwrap();
    cluster.put("b", 100).await;
    let refused = until(|| async {
        let mut sum = 0;
        for node in cluster.running() {
            sum += cluster.node(node).stats().await.refused_messages;
        }
        (sum > 0).then_some(())
    });
    refused.await.expect("its messages are refused");
    // With the wiped voter and one other alone nothing may be decided: two of three must remember.
    let third = cluster.running().into_iter().find(|node| *node != leader && *node != wiped).unwrap();
    cluster.kill(leader);
    let request = MetaRequest::Mutate(cluster.mutation(SHARD, put_command("c", 10)));
    let deadline = Instant::now() + Duration::from_secs(4);
    while Instant::now() < deadline {
        for node in [third, wiped] {
            let answer = cluster.ask(node, request.clone(), Duration::from_millis(300)).await;
            assert!(answer.is_err(), "{node} decided without a majority that remembers: {answer:?}");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    cluster.start(leader).await.unwrap();
    assert!(cluster.has("a").await && cluster.has("b").await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rolled_back_voter_is_refused() {
    let limits = MetaLimits { floor_step: 1, ..quick_limits() };
    let cluster = Arc::new(Cluster::new(3, limits));
    for node in 1..=3 {
        cluster.start(NodeId(node)).await.unwrap();
    }
    cluster.open_bucket().await;
    cluster.await_records(3).await;
    let leader = cluster.await_leader(GROUP_SYSTEM).await;
    let victim = cluster.running().into_iter().find(|node| *node != leader).unwrap();
    cluster.stop(victim).await;
    cluster.wait_unlocked(victim).await;
    let image = cluster.folder(NodeId(99));
    copy_folder(&cluster.folder(victim), &image);
    let before = cluster.recorded(victim).await;
    cluster.start(victim).await.unwrap();
    for number in 0..20 {
        cluster.put(&format!("k{number}"), 100).await;
    }
    // Only a voter that was heard in its new life can be rolled back behind its word.
    cluster.await_recorded_past(victim, before).await;
    cluster.stop(victim).await;
    cluster.wait_unlocked(victim).await;
    std::fs::remove_dir_all(cluster.folder(victim)).unwrap();
    copy_folder(&image, &cluster.folder(victim));
    cluster.start(victim).await.unwrap();
    let refused = until(|| async {
        let mut sum = 0;
        for node in cluster.running() {
            sum += cluster.node(node).stats().await.refused_messages;
        }
        (sum > 0).then_some(())
    });
    refused.await.expect("an old boot counter is refused");
    cluster.put("after", 10).await;
    // Both sides can tell: the leader whom it refuses, the voter that it is refused, and neither order pretends.
    let leader = cluster.await_leader(GROUP_SYSTEM).await;
    let told = until(|| async {
        let sights = cluster.node(leader).report().voters;
        let refused = sights.into_iter().find(|sight| sight.node == victim)?.refused?;
        let (_, known) = cluster.node(victim).report().refused_by.first()?.clone();
        (refused == known && refused.contains("rolled back")).then_some(())
    });
    told.await.expect("the refusal is known on both sides");
    let refused = cluster.admin(AdminRequest::AddVoter(victim)).await.unwrap_err();
    assert!(refused.text.contains("must not vote again") && refused.text.contains("plinth raft remove"), "{refused}");
    cluster.admin(AdminRequest::RemoveVoter(victim)).await.unwrap();
    assert_eq!(cluster.map().await.voters.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voter_that_stops_opens_no_group_again() {
    let cluster = Cluster::started(3).await;
    cluster.open_bucket().await;
    let leader = cluster.await_leader(SHARD).await;
    let other = cluster.running().into_iter().find(|node| *node != leader).unwrap();
    for round in 0..5 {
        // The leader goes on sending to it, and a message opens a group that a voter does not know.
        let (node, _) = cluster.voter(other);
        cluster.stop(other).await;
        assert_eq!(node.stats().await.groups.len(), 0, "in round {round}");
        drop(node);
        cluster.start(other).await.unwrap();
        cluster.put(&format!("k{round}"), 100).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn voter_without_its_log_refuses_to_start() {
    let cluster = Cluster::started(1).await;
    cluster.open_bucket().await;
    cluster.stop(NodeId(1)).await;
    cluster.wait_unlocked(NodeId(1)).await;
    std::fs::remove_dir_all(cluster.folder(NodeId(1)).join("log")).unwrap();
    let error = cluster.start(NodeId(1)).await.unwrap_err();
    assert!(matches!(error, MetaError::Damaged { node: NodeId(1), .. }), "{error}");
    assert!(error.to_string().contains("n1 must not vote again"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn database_older_than_its_log_refuses_to_start() {
    let limits = MetaLimits { flush_entries: 20, log_keep_bytes: 4096, ..quick_limits() };
    let cluster = Arc::new(Cluster::new(1, limits));
    cluster.start(NodeId(1)).await.unwrap();
    cluster.open_bucket().await;
    for number in 0..100 {
        cluster.put(&format!("k{number:03}"), 500).await;
    }
    let purged = until(|| async {
        let stats = cluster.node(NodeId(1)).stats().await;
        let shard = stats.groups.into_iter().find(|group| group.group == SHARD)?;
        (shard.log_entries < 80).then_some(())
    });
    purged.await.expect("the log is purged behind the flush");
    cluster.stop(NodeId(1)).await;
    std::fs::remove_dir_all(cluster.folder(NodeId(1)).join("groups").join("1")).unwrap();
    match cluster.start(NodeId(1)).await {
        Err(MetaError::Damaged { node, reason }) => {
            assert_eq!(node, NodeId(1));
            assert!(reason.contains("holds nothing"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_log_refuses_to_start() {
    let cluster = Cluster::started(1).await;
    cluster.open_bucket().await;
    for number in 0..20 {
        cluster.put(&format!("k{number}"), 3000).await;
    }
    cluster.stop(NodeId(1)).await;
    cluster.wait_unlocked(NodeId(1)).await;
    let log = cluster.folder(NodeId(1)).join("log");
    let mut rotted = 0;
    for entry in std::fs::read_dir(&log).unwrap() {
        let path = entry.unwrap().path();
        let Ok(mut bytes) = std::fs::read(&path) else { continue };
        let needle = b"k7";
        if let Some(at) = bytes.windows(2).position(|window| window == needle) {
            bytes[at + 100] ^= 1;
            std::fs::write(&path, bytes).unwrap();
            rotted += 1;
        }
    }
    assert!(rotted > 0, "the log holds the key");
    let error = cluster.start(NodeId(1)).await.unwrap_err();
    assert!(matches!(error, MetaError::Damaged { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stop_hands_leadership_over() {
    let cluster = Cluster::started(3).await;
    cluster.open_bucket().await;
    let leader = cluster.await_leader(SHARD).await;
    cluster.stop(leader).await;
    let stopped = Instant::now();
    cluster.put("x", 10).await;
    let gap = stopped.elapsed();
    assert!(gap < Duration::from_millis(1500), "leadership was handed over, yet writes took {gap:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn voters_are_added_and_removed_under_load() {
    let cluster = Cluster::started(3).await;
    cluster.open_bucket().await;
    let writer = {
        let cluster = cluster.clone();
        tokio::spawn(async move {
            let mut written = 0;
            loop {
                cluster.put(&format!("load{written:05}"), 500).await;
                written += 1;
                if cluster.has("stop").await {
                    return written;
                }
            }
        })
    };
    let refused = cluster.admin(AdminRequest::AddVoter(NodeId(4))).await.unwrap_err();
    assert_eq!(refused.kind, FailureKind::NotFound);
    let registered = cluster.run(GROUP_SYSTEM, cluster.register(NodeId(4))).await;
    assert!(matches!(registered, Outcome::Node(_)), "{registered:?}");
    cluster.start(NodeId(4)).await.unwrap();
    cluster.admin(AdminRequest::AddVoter(NodeId(4))).await.unwrap();
    let map = cluster.map().await;
    assert_eq!(map.voters, (1..=4).map(NodeId).collect::<Vec<_>>());
    assert_eq!(map.shards[0].voters, map.voters);
    assert_followers_say_where_the_leader_is(&cluster).await;
    cluster.admin(AdminRequest::RemoveVoter(NodeId(1))).await.unwrap();
    let leader = cluster.await_leader(SHARD).await;
    assert_ne!(leader, NodeId(1));
    let voters = cluster.status(leader, SHARD).await.unwrap().voters;
    assert_eq!(voters, (2..=4).map(NodeId).collect::<Vec<_>>());
    assert_eq!(cluster.map().await.voters, voters);
    cluster.stop(NodeId(1)).await;
    cluster.put("stop", 1).await;
    let written = writer.await.unwrap();
    assert!(written > 0);
    for number in 0..written {
        assert!(cluster.has(&format!("load{number:05}")).await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_never_started_is_not_added_and_nothing_changes() {
    let cluster = Cluster::started(1).await;
    cluster.map().await;
    cluster.open_bucket().await;
    let registered = cluster.run(GROUP_SYSTEM, cluster.register(NodeId(2))).await;
    assert!(matches!(registered, Outcome::Node(_)), "{registered:?}");
    let refused = add_second(&cluster).await.unwrap_err();
    assert_eq!(refused.kind, FailureKind::Conflict, "{refused}");
    assert!(refused.text.contains("does not reach it"), "{refused}");
    assert_alone(&cluster).await;
    cluster.start(NodeId(2)).await.unwrap();
    for wanted in ["votes in 2 groups", "already"] {
        let done = add_second(&cluster).await.unwrap();
        assert!(matches!(&done, AdminReply::Done(text) if text.contains(wanted)), "{done:?}");
    }
    assert_eq!(cluster.map().await.voters, [NodeId(1), NodeId(2)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_learner_that_falls_silent_is_taken_back_from_every_group() {
    let cluster = Cluster::started(1).await;
    cluster.map().await;
    cluster.open_bucket().await;
    cluster.run(GROUP_SYSTEM, cluster.register(NodeId(2))).await;
    cluster.start(NodeId(2)).await.unwrap();
    // It answers pings, and no message between voters gets through.
    cluster.network.set_judge(Some(Arc::new(|passage| match passage.method {
        plinth_protocol::Method::Raft => Fault::Refuse,
        _ => Fault::None,
    })));
    let refused = add_second(&cluster).await.unwrap_err();
    assert_eq!(refused.kind, FailureKind::Conflict, "{refused}");
    assert!(refused.text.contains("nothing was changed"), "{refused}");
    assert_alone(&cluster).await;
    cluster.network.set_judge(None);
    add_second(&cluster).await.unwrap();
}

/// Asks the first voter, which leads, to add the second node.
async fn add_second(cluster: &Cluster) -> Result<AdminReply, Failure> {
    let (meta, runtime) = cluster.voter(NodeId(1));
    runtime.spawn(async move { meta.handle_admin(AdminRequest::AddVoter(NodeId(2))).await }).await.unwrap()
}

/// The one voter has nobody beside it in any group, and writes.
async fn assert_alone(cluster: &Cluster) {
    for group in [GROUP_SYSTEM, SHARD] {
        let status = cluster.status(NodeId(1), group).await.unwrap();
        assert_eq!((status.voters, status.learners), (vec![NodeId(1)], vec![]), "{group}");
    }
    assert_eq!(cluster.map().await.voters, [NodeId(1)]);
    cluster.put("alone", 10).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn voters_that_are_added_at_once_are_both_in_the_map() {
    let cluster = Cluster::started(3).await;
    // Founded.
    cluster.map().await;
    for node in [4, 5] {
        let registered = cluster.run(GROUP_SYSTEM, cluster.register(NodeId(node))).await;
        assert!(matches!(&registered, Outcome::Node(record) if record.node == NodeId(node)), "{registered:?}");
        cluster.start(NodeId(node)).await.unwrap();
    }
    let add = |node| cluster.admin(AdminRequest::AddVoter(NodeId(node)));
    let (four, five) = tokio::join!(add(4), add(5));
    four.unwrap();
    five.unwrap();
    let map = cluster.map().await;
    assert_eq!(map.voters, (1..=5).map(NodeId).collect::<Vec<_>>());
    assert_eq!(map.shards[0].voters, map.voters);
}

/// A client that knows one voter must be able to reach a leader that joined later.
async fn assert_followers_say_where_the_leader_is(cluster: &Cluster) {
    let failure = until(|| async {
        let leader = cluster.await_leader(GROUP_SYSTEM).await;
        let follower = (1..=4).map(NodeId).find(|node| *node != leader)?;
        let query = GroupQuery { group: GROUP_SYSTEM, query: Query::Map(None), seen: None };
        let answer = cluster.ask(follower, MetaRequest::Query(query), Duration::from_secs(2)).await;
        answer.err().filter(|failure| failure.kind == FailureKind::NotLeader && failure.leader.is_some())
    });
    let failure = failure.await.expect("a follower names the leader");
    assert!(failure.leader_address.is_some(), "{failure:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn removal_below_a_majority_is_refused() {
    let cluster = Cluster::started(1).await;
    assert_eq!(cluster.map().await.voters.len(), 1);
    let refused = cluster.admin(AdminRequest::RemoveVoter(NodeId(1))).await.unwrap_err();
    assert_eq!(refused.kind, FailureKind::Invalid, "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_request_has_one_result_under_message_loss() {
    let cluster = Cluster::started(3).await;
    cluster.open_bucket().await;
    // A third of all Raft messages and replies vanish or come late, drawn from a fixed seed.
    let draws = std::sync::atomic::AtomicU64::new(0x1234_5678);
    cluster.network.set_judge(Some(Arc::new(move |_| {
        let draw = draws.fetch_add(0x9e37_79b9_7f4a_7c15, std::sync::atomic::Ordering::Relaxed);
        match (draw ^ draw >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 60 {
            0 | 1 => Fault::Lose,
            2 => Fault::Refuse,
            3 => Fault::Delay(Duration::from_millis(50)),
            _ => Fault::None,
        }
    })));
    let tasks: Vec<_> = (0..8)
        .map(|writer| {
            let cluster = cluster.clone();
            tokio::spawn(async move {
                for number in 0..10 {
                    // Absent only once: a second apply of the same request would be refused.
                    let command = absent_put(&format!("w{writer}-{number}"));
                    match cluster.run(SHARD, command).await {
                        Outcome::Object(_) => {}
                        other => panic!("applied twice: {other:?}"),
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    cluster.network.set_judge(None);
    match cluster.query(SHARD, Query::ShardStat).await {
        Reply::ShardStat(stat) => assert_eq!(stat.objects, 80),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_node_becomes_suspect_then_down_then_up_again() {
    let limits = MetaLimits { ping_ms: 100, suspect_ms: 500, down_ms: 4_000, ..quick_limits() };
    let cluster = Arc::new(Cluster::new(3, limits));
    for node in 1..=3 {
        cluster.start(NodeId(node)).await.unwrap();
    }
    let leader = cluster.await_leader(GROUP_SYSTEM).await;
    let silent = cluster.running().into_iter().find(|node| *node != leader).unwrap();
    cluster.kill(silent);
    for expected in [State::Suspect, State::Down] {
        let seen = until(|| async { (cluster.map().await.node(silent)?.state == expected).then_some(()) });
        seen.await.unwrap_or_else(|| panic!("never {expected:?}"));
    }
    cluster.start(silent).await.unwrap();
    let seen = until(|| async { (cluster.map().await.node(silent)?.state == State::Up).then_some(()) });
    seen.await.expect("up again");
}

/// Whoever leads takes apart what heavy commands put off.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropped_uploads_are_taken_apart_by_whoever_leads() {
    let cluster = Cluster::started(3).await;
    cluster.open_bucket().await;
    // The leader does so within its next round: what follows must not depend on when that is.
    assert_eq!(cluster.run(SHARD, Command::RaiseRules(RULES_STRICT)).await, Outcome::Done);
    let upload = UploadId(7);
    let key = || "big".to_string();
    let headers = StoredHeaders { standard: vec![], user: vec![] };
    let create = CreateUpload { bucket: BUCKET, key: key(), upload, headers, algorithm: None, kind: None };
    assert_eq!(cluster.run(SHARD, Command::CreateUpload(create)).await, Outcome::Done);
    for number in 1..=150u16 {
        let stripe = StripeRef {
            stripe: StripeId::new(WriterId(1), number.into(), 0),
            pg: PgId(0),
            generation: 1,
            code: Code::new(1, 0),
            payload_bytes: 9,
            fragment_payload_bytes: 9,
            missing: None,
            plain_bytes: None,
            sealing: None,
            pack_offset: None,
        };
        let (modified, request) = (HybridTime(0), RequestId(0));
        let body = Body::Stripes(vec![stripe]);
        let part = PartRow { size_bytes: 9, md5: [0; 16], modified, checksum: None, body, request };
        let put = PutPart { bucket: BUCKET, key: key(), upload, number, part };
        assert!(matches!(cluster.run(SHARD, Command::PutPart(put)).await, Outcome::Part(_)));
    }
    let abort = AbortUpload { bucket: BUCKET, key: key(), upload };
    assert_eq!(cluster.run(SHARD, Command::AbortUpload(abort)).await, Outcome::Done);
    cluster.kill(cluster.await_leader(SHARD).await);
    let done = until(|| async {
        let Reply::ShardStat(stat) = cluster.query(SHARD, Query::ShardStat).await else { return None };
        // All parts are of one key: their stripes share a row.
        (stat.discards.is_none() && stat.deferred_deletes > 0).then_some(stat)
    });
    let stat = done.await.expect("taken apart");
    assert_eq!((stat.uploads, stat.deferred_deletes), (0, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forged_mutation_is_refused_and_stops_no_voter() {
    let cluster = Cluster::started(1).await;
    cluster.open_bucket().await;
    let Command::PutObject(mut put) = put_command("forged", 0) else { unreachable!("a put") };
    put.size_bytes = u64::MAX;
    let forged = cluster.mutation(SHARD, Command::PutObject(put));
    let refused = cluster.ask(NodeId(1), MetaRequest::Mutate(forged), Duration::from_secs(5)).await;
    assert_eq!(refused.unwrap_err().kind, FailureKind::Invalid);
    cluster.put("sound", 100).await;
    assert!(cluster.has("sound").await);
}

/// Measures mutations and reads per second and processor time each: three voters in one process,
/// 64 clients. Run with `--ignored --nocapture`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement, not a check"]
async fn measure_inline_puts_and_reads() {
    let limits =
        MetaLimits { election_ms_min: 1000, election_ms_max: 2000, heartbeat_ms: 250, ..MetaLimits::default() };
    let cluster = Arc::new(Cluster::new(3, limits));
    for node in 1..=3 {
        cluster.start(NodeId(node)).await.unwrap();
    }
    cluster.open_bucket().await;
    // The first elections are over once everybody has been recorded.
    cluster.await_records(3).await;
    let chosen = std::env::var("PLINTH_CLIENTS").ok().and_then(|text| text.parse().ok());
    for clients in chosen.map_or(vec![1, 16, 64], |clients: usize| vec![clients]) {
        for reads in [false, true] {
            let leader = cluster.await_leader(SHARD).await;
            let count = Arc::new(std::sync::atomic::AtomicU64::new(0));
            let (began, cpu) = (Instant::now(), processor_time());
            let tasks: Vec<_> = (0..clients)
                .map(|client| {
                    let (meta, handle) = cluster.voter(leader);
                    let (cluster, count) = (cluster.clone(), count.clone());
                    handle.spawn(async move {
                        let began = Instant::now();
                        let mut number = 0;
                        while began.elapsed() < Duration::from_secs(4) {
                            let key = format!("bench/{client:03}/{number:06}");
                            let request = match reads {
                                true => {
                                    let key = format!("bench/{client:03}/{:06}", number % 100);
                                    let query = Query::Object(ObjectQuery { bucket: BUCKET, key, body: true });
                                    MetaRequest::Query(GroupQuery { group: SHARD, query, seen: None })
                                }
                                false => MetaRequest::Mutate(cluster.mutation(SHARD, put_command(&key, 4096))),
                            };
                            let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
                            meta.handle_meta(request, deadline).await.unwrap();
                            number += 1;
                        }
                        count.fetch_add(number, std::sync::atomic::Ordering::Relaxed);
                    })
                })
                .collect();
            for task in tasks {
                task.await.unwrap();
            }
            let count = count.load(std::sync::atomic::Ordering::Relaxed) as f64;
            let (took, cpu) = (began.elapsed().as_secs_f64(), processor_time() - cpu);
            let what = if reads { "reads" } else { "puts" };
            println!("{clients:3} clients {what:5}: {:8.0}/s {:7.1} us cpu each", count / took, cpu / count * 1e6);
        }
    }
    let stats = cluster.node(cluster.await_leader(SHARD).await).stats().await;
    for group in stats.groups {
        println!(
            "{}: {} mutations in {} entries, {} reads in {} rounds",
            group.group, group.mutations, group.entries, group.reads, group.read_rounds
        );
    }
    println!("log: {} records in {} batches, {} syncs", stats.log_records, stats.log_batches, stats.log_syncs);
}

/// Processor seconds of this process, user and system.
fn processor_time() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}
