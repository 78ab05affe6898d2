//! The way to the metadata: leaders that move, answers that get lost, buckets in steps, lists over shards.

#![allow(clippy::disallowed_methods, clippy::unwrap_used)]

mod fakes;

use fakes::*;
use plinth_client::Client;
use plinth_protocol::meta::{Command, ListQuery, ObjectQuery, Outcome, Query, RefusalKind, Reply};
use plinth_protocol::object::{Body, BucketState};
use plinth_protocol::{Epoch, FailureKind, GroupId, NodeId, Role};
use plinth_transport::Fault;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::time::Instant;

async fn put_empty(client: &Client, key: &str) {
    publish(client, key, 0, Body::Inline(Default::default())).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_leader_is_found_by_hint_and_remembered() {
    let cluster = Cluster::new(Shape::default());
    let client = cluster.client().await;
    put_empty(&client, "key").await;
    let calls = cluster.meta.calls.load(Relaxed);
    put_empty(&client, "key").await;
    assert_eq!(cluster.meta.calls.load(Relaxed), calls + 1);
    cluster.meta.leader.store(3, Relaxed);
    put_empty(&client, "key").await;
    assert_eq!(cluster.meta.calls.load(Relaxed), calls + 3, "one call to the old leader, one to the new");
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_joined_after_the_configuration_was_written_is_found_by_its_address() {
    let cluster = Cluster::new(Shape::default());
    let newcomer = NodeId(4);
    cluster.network.attach(identity(newcomer, Role::Meta), Arc::new(MetaService(cluster.meta.clone(), newcomer)));
    cluster.meta.leader.store(newcomer.0, Relaxed);
    // Neither the client's configuration nor the map names node 4.
    let client = cluster.client().await;
    put_empty(&client, "key").await;
}

#[tokio::test(start_paused = true)]
async fn a_dead_leader_costs_a_search_not_the_request() {
    let cluster = Cluster::new(Shape::default());
    let client = cluster.client().await;
    put_empty(&client, "key").await;
    cluster.network.cut(GATEWAY, NodeId(2));
    cluster.meta.leader.store(1, Relaxed);
    let started = Instant::now();
    put_empty(&client, "key").await;
    assert!(started.elapsed() < Duration::from_millis(500), "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_silent_leader_is_given_up_before_the_deadline() {
    let cluster = Cluster::new(Shape::default());
    let client = cluster.client().await;
    put_empty(&client, "key").await;
    cluster.network.set_fault(GATEWAY, NodeId(2), Fault::Lose);
    cluster.meta.leader.store(1, Relaxed);
    let started = Instant::now();
    put_empty(&client, "key").await;
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_is_asked_for_again_under_the_same_request() {
    let cluster = Cluster::new(Shape::default());
    let client = cluster.client().await;
    cluster.meta.lose_answers.store(3, Relaxed);
    put_empty(&client, "key").await;
    let applied = cluster.meta.state.lock().unwrap().applied.len();
    assert_eq!(applied, 1, "the command was applied once");
}

#[tokio::test(start_paused = true)]
async fn without_any_leader_the_deadline_ends_the_search() {
    let cluster = Cluster::new(Shape::default());
    let client = cluster.client().await;
    (1..=3).for_each(|node| cluster.network.cut(GATEWAY, NodeId(node)));
    let deadline = Instant::now() + Duration::from_secs(2);
    let failure = client.query(GroupId(1), Query::ShardStat, deadline).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Unavailable);
    assert!(Instant::now() >= deadline && Instant::now() < deadline + Duration::from_millis(50));
    // A mutation that may have been applied says so.
    (1..=3).for_each(|node| cluster.network.heal(GATEWAY, NodeId(node)));
    cluster.meta.lose_answers.store(usize::MAX, Relaxed);
    let open = Command::OpenBucket(BUCKET);
    let failure = client.mutate(GroupId(1), open, None, Instant::now() + Duration::from_secs(2)).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Unknown);
}

#[tokio::test(start_paused = true)]
async fn newer_maps_are_taken_and_older_ones_not() {
    let cluster = Cluster::new(Shape::default());
    let client = cluster.client().await;
    let mut map = (*client.map()).clone();
    map.epoch = Epoch(5);
    map.name = "newer".into();
    cluster.meta.state.lock().unwrap().map = Some(map.clone());
    let changed = Instant::now();
    eventually("the newer map arrives", || client.map().name == "newer").await;
    assert!(changed.elapsed() < Duration::from_secs(1), "{:?}", changed.elapsed());
    map.epoch = Epoch(4);
    map.name = "older".into();
    cluster.meta.state.lock().unwrap().map = Some(map);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(client.map().name, "newer");
}

fn refused(outcome: Outcome) -> RefusalKind {
    match outcome {
        Outcome::Refused(refusal) => refusal.kind,
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn buckets_come_and_go_in_every_shard() {
    let cluster = Cluster::new(Shape { splits: vec!["h", "p"], ..Shape::default() });
    let client = cluster.client().await;
    let Outcome::Bucket(row) = client.create_bucket("name", "me", None).await.unwrap() else { panic!() };
    assert_eq!(row.state, BucketState::Active);
    assert_eq!(cluster.meta.state.lock().unwrap().open.len(), 3);
    assert_eq!(client.bucket("name").await.unwrap().unwrap().bucket, row.bucket);
    assert_eq!(refused(client.create_bucket("name", "me", None).await.unwrap()), RefusalKind::BucketOwnedByYou);
    assert_eq!(refused(client.create_bucket("name", "you", None).await.unwrap()), RefusalKind::BucketExists);
    assert_eq!(client.delete_bucket("name", row.bucket).await.unwrap(), Outcome::Done);
    assert_eq!(cluster.meta.state.lock().unwrap().open.len(), 0);
    assert_eq!(client.bucket("name").await.unwrap(), None);
    assert_eq!(refused(client.delete_bucket("name", row.bucket).await.unwrap()), RefusalKind::NoSuchBucket);
}

#[tokio::test(start_paused = true)]
async fn deleting_a_bucket_leaves_one_alone_that_has_its_name_by_now() {
    let cluster = Cluster::new(Shape::default());
    let client = cluster.client().await;
    let Outcome::Bucket(first) = client.create_bucket("name", "me", None).await.unwrap() else { panic!() };
    // Authorised for the first one; meanwhile it goes, and another account takes the name.
    assert_eq!(client.delete_bucket("name", first.bucket).await.unwrap(), Outcome::Done);
    let Outcome::Bucket(second) = client.create_bucket("name", "you", None).await.unwrap() else { panic!() };
    assert_eq!(refused(client.delete_bucket("name", first.bucket).await.unwrap()), RefusalKind::NoSuchBucket);
    assert_eq!(client.bucket_now("name").await.unwrap().unwrap().bucket, second.bucket);
}

#[tokio::test(start_paused = true)]
async fn a_bucket_with_objects_stays_open_in_every_shard() {
    let cluster = Cluster::new(Shape { splits: vec!["h", "p"], ..Shape::default() });
    let client = cluster.client().await;
    let Outcome::Bucket(row) = client.create_bucket("name", "me", None).await.unwrap() else { panic!() };
    {
        let mut state = cluster.meta.state.lock().unwrap();
        let body =
            plinth_protocol::object::ObjectBody { headers: no_headers(), body: Body::Inline(Default::default()) };
        state.objects.insert((row.bucket, "zebra".into()), (fakes_row(), body));
    }
    assert_eq!(refused(client.delete_bucket("name", row.bucket).await.unwrap()), RefusalKind::BucketNotEmpty);
    assert_eq!(cluster.meta.state.lock().unwrap().open.len(), 3);
    assert_eq!(client.bucket_now("name").await.unwrap().unwrap().state, BucketState::Active);
}

fn fakes_row() -> plinth_protocol::object::ObjectRow {
    plinth_protocol::object::ObjectRow {
        size_bytes: 0,
        etag: plinth_protocol::object::Etag { md5: [0; 16], parts: None },
        modified: plinth_protocol::HybridTime(1),
        checksum: None,
        upload: None,
        request: plinth_protocol::RequestId(0),
    }
}

#[tokio::test(start_paused = true)]
async fn half_way_buckets_are_taken_to_where_they_were_going() {
    let cluster = Cluster::new(Shape { splits: vec!["h"], ..Shape::default() });
    let client = cluster.client().await;
    for name in ["opening", "closing"] {
        client.create_bucket(name, "me", None).await.unwrap();
    }
    {
        // As a crash after the first step of each saga leaves them.
        let mut state = cluster.meta.state.lock().unwrap();
        state.open.clear();
        state.buckets.get_mut("opening").unwrap().state = BucketState::Opening;
        state.buckets.get_mut("closing").unwrap().state = BucketState::Closing;
    }
    assert_eq!(client.bucket_now("opening").await.unwrap(), None, "not visible yet");
    let _housekeeping = client.spawn_housekeeping();
    tokio::time::sleep(Duration::from_secs(60)).await;
    {
        let state = cluster.meta.state.lock().unwrap();
        assert_eq!(state.buckets["opening"].state, BucketState::Active);
        assert!(!state.buckets.contains_key("closing"));
        assert_eq!(state.open.len(), 2);
    }
    // A request for the same name need not wait for housekeeping.
    cluster.meta.state.lock().unwrap().buckets.get_mut("opening").unwrap().state = BucketState::Opening;
    assert!(matches!(client.create_bucket("opening", "me", None).await.unwrap(), Outcome::Bucket(_)));
    cluster.meta.state.lock().unwrap().buckets.get_mut("opening").unwrap().state = BucketState::Closing;
    assert!(matches!(client.create_bucket("opening", "you", None).await.unwrap(), Outcome::Bucket(_)));
}

#[tokio::test(start_paused = true)]
async fn a_shard_that_refuses_a_bucket_ends_its_memory() {
    let cluster = Cluster::new(Shape::default());
    let client = cluster.client().await;
    client.create_bucket("name", "me", None).await.unwrap();
    let first = client.bucket("name").await.unwrap().unwrap();
    // Another gateway deletes and creates it anew.
    let other = cluster.client_with({
        let mut config = cluster.config();
        config.seed = [9; 32];
        config
    });
    let other = other.await;
    other.delete_bucket("name", first.bucket).await.unwrap();
    other.create_bucket("name", "me", None).await.unwrap();
    assert_eq!(client.bucket("name").await.unwrap().unwrap().bucket, first.bucket, "remembered");
    let refused = client.query(plinth_protocol::GROUP_SYSTEM, Query::Bucket("gone".into()), soon()).await.unwrap();
    assert_eq!(refused, Reply::Absent(RefusalKind::NoSuchBucket));
    assert_ne!(client.bucket("name").await.unwrap().unwrap().bucket, first.bucket, "asked again");
}

#[tokio::test(start_paused = true)]
async fn pages_over_shards_add_up_to_one_list() {
    let keys = ["a", "b/1", "b/2", "c", "h", "h/1", "m/1", "o", "p/1", "p/2", "p/3", "q", "z/1"];
    for splits in [vec![], vec!["h"], vec!["b/2", "p/2"], vec!["a", "b", "m/1", "zz"]] {
        let cluster = Cluster::new(Shape { splits: splits.clone(), ..Shape::default() });
        let client = cluster.client().await;
        for key in keys {
            put_empty(&client, key).await;
        }
        for (prefix, delimiter) in [("", None), ("", Some("/")), ("p/", None), ("p", Some("/")), ("x", None)] {
            for limit in 1..15 {
                let mut expected: Vec<String> = Vec::new();
                for key in keys.iter().filter(|key| key.starts_with(prefix)) {
                    let cut = delimiter.and_then(|d| key[prefix.len()..].find(d).map(|at| prefix.len() + at + 1));
                    let shown = cut.map_or(*key, |cut| &key[..cut]).to_string();
                    if expected.last() != Some(&shown) {
                        expected.push(shown);
                    }
                }
                let found = list_all(&client, prefix, delimiter, limit).await;
                assert_eq!(found, expected, "{splits:?} {prefix:?} {delimiter:?} {limit}");
            }
        }
    }
}

async fn list_all(client: &Client, prefix: &str, delimiter: Option<&str>, limit: u32) -> Vec<String> {
    let mut query = ListQuery {
        bucket: BUCKET,
        prefix: prefix.into(),
        delimiter: delimiter.map(String::from),
        after: None,
        after_prefix: false,
        limit,
    };
    let mut found = Vec::new();
    loop {
        let page = client.list(query.clone()).await.unwrap();
        let mut shown: Vec<(String, bool)> = page.entries.into_iter().map(|(key, _)| (key, false)).collect();
        shown.extend(page.prefixes.into_iter().map(|prefix| (prefix, true)));
        shown.sort();
        assert!(shown.len() <= limit as usize);
        assert!(!page.more || shown.len() == limit as usize, "pages are full but for the last");
        if let Some((last, is_prefix)) = shown.last() {
            (query.after, query.after_prefix) = (Some(last.clone()), *is_prefix);
        }
        found.extend(shown.into_iter().map(|(key, _)| key));
        if !page.more {
            return found;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn requests_to_a_group_that_is_away_fail_soon_and_go_on_when_it_is_back() {
    let cluster = Cluster::new(Shape::default());
    let client = cluster.client().await;
    let object = Query::Object(ObjectQuery { bucket: BUCKET, key: "key".into(), body: false });
    client.query(GroupId(1), object.clone(), soon()).await.unwrap();
    (1..=3).for_each(|node| cluster.network.cut(GATEWAY, NodeId(node)));
    let ask = async || {
        let started = Instant::now();
        let asked = client.query(GroupId(1), object.clone(), started + Duration::from_secs(10)).await;
        (asked, started.elapsed())
    };
    let (first, took) = ask().await;
    assert_eq!(first.unwrap_err().kind, FailureKind::Unavailable);
    assert!(took >= Duration::from_secs(10), "an election may take a while: {took:?}");
    for _ in 0..20 {
        let (again, took) = ask().await;
        assert_eq!(again.unwrap_err().kind, FailureKind::Unavailable);
        assert!(took <= Duration::from_secs(2), "behind a group that is away: {took:?}");
    }
    (1..=3).for_each(|node| cluster.network.heal(GATEWAY, NodeId(node)));
    let (back, took) = ask().await;
    assert!(back.is_ok() && took < Duration::from_secs(2), "{took:?}");
}
