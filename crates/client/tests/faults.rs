//! Disks that are slow, full, busy, rotten or gone; stripes sent elsewhere; owed fragments; deletes.
//!
//! Time is paused: it moves on only when nothing else can, so that waits are exact and cost nothing.

#![allow(clippy::disallowed_methods, clippy::unwrap_used)]

mod fakes;

use fakes::*;
use plinth_client::Client;
use plinth_protocol::map::State;
use plinth_protocol::meta::{Command, DeleteObject, Outcome};
use plinth_protocol::{Epoch, FailureKind, NodeId};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::time::Instant;

const SIZE: usize = 700_000;

async fn puts(client: &Client, count: u64) {
    for number in 0..count {
        put(client, &format!("key{number}"), &noise(number, SIZE)).await.unwrap();
    }
}

async fn gets(client: &Client, count: u64) {
    for number in 0..count {
        assert!(get(client, &format!("key{number}")).await.unwrap() == noise(number, SIZE), "key{number}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_disk_delays_only_the_first_write_and_its_fragment_is_owed() {
    let cluster = Cluster::new(Shape { nodes: 5, ..Shape::default() });
    let client = cluster.client().await;
    cluster.disk(12).set_mood(Mood::Slow(Duration::from_secs(60)));
    let started = Instant::now();
    let body = put(&client, "key", &noise(1, SIZE)).await.unwrap();
    assert!(started.elapsed() < Duration::from_millis(1000), "{:?}", started.elapsed());
    let stripe = &stripes(&body)[0];
    assert_eq!(stripe.missing.unwrap().count_ones(), 1);
    let owed = stripe.indexes().find(|&index| stripe.is_missing(index)).unwrap();
    assert_eq!(client.map().pg(stripe.pg).unwrap().disks[stripe.slot(owed)], disk_of(12));
    assert_eq!(client.counters().quorums_hedged, 1);
    assert!(get(&client, "key").await.unwrap() == noise(1, SIZE));
}

#[tokio::test(start_paused = true)]
async fn a_slow_disk_is_avoided_while_other_groups_exist() {
    let cluster = Cluster::new(Shape { nodes: 7, ..Shape::default() });
    let client = cluster.client().await;
    cluster.disk(12).set_mood(Mood::Slow(Duration::from_secs(1)));
    puts(&client, 40).await;
    assert!(client.counters().quorums_hedged <= 6, "{:?}", client.counters());
}

#[tokio::test(start_paused = true)]
async fn two_dead_nodes_do_not_stop_writes() {
    let cluster = Cluster::new(Shape::default());
    let client = cluster.client().await;
    cluster.kill(12);
    cluster.kill(15);
    let started = Instant::now();
    puts(&client, 20).await;
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    gets(&client, 20).await;
}

#[tokio::test(start_paused = true)]
async fn stripes_that_miss_their_quorum_are_sent_elsewhere_under_a_new_id() {
    let cluster = Cluster::new(Shape { nodes: 7, ..Shape::default() });
    let client = cluster.client().await;
    // Learn the two dead disks within one stripe: the first group that has both fails.
    cluster.disk(12).set_mood(Mood::Fenced);
    cluster.disk(13).set_mood(Mood::Fenced);
    puts(&client, 10).await;
    let counters = client.counters();
    assert!(counters.stripes_resent >= 1 && counters.stripes_resent <= 4, "{counters:?}");
    gets(&client, 10).await;
    // The stripes that rows name are whole.
    for number in 0..10 {
        let view = view(&client, &format!("key{number}")).await.unwrap();
        for stripe in stripes(&view.body.unwrap().body) {
            let expected = stripe.indexes().filter(|&index| !stripe.is_missing(index)).count();
            assert_eq!(cluster.fragments_of(stripe).len(), expected);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn writes_fail_when_no_group_can_hold_a_quorum() {
    let cluster = Cluster::new(Shape { nodes: 5, ..Shape::default() });
    let client = cluster.client().await;
    cluster.kill(12);
    cluster.kill(13);
    assert_eq!(put(&client, "key", &noise(1, SIZE)).await.unwrap_err().kind, FailureKind::Unavailable);
    assert_eq!(client.counters().write_bytes_held, 0);
    cluster.revive(13);
    tokio::time::sleep(Duration::from_secs(16)).await;
    put(&client, "key", &noise(1, SIZE)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn full_disks_get_no_more_stripes() {
    let cluster = Cluster::new(Shape { nodes: 7, ..Shape::default() });
    let client = cluster.client().await;
    cluster.disk(14).set_mood(Mood::Full);
    puts(&client, 1).await;
    let mut tries = 0;
    while client.counters().fragment_writes_failed == 0 {
        puts(&client, 1).await;
        tries += 1;
        assert!(tries < 100, "the full disk is never chosen");
    }
    let failed = client.counters().fragment_writes_failed;
    puts(&client, 30).await;
    assert_eq!(client.counters().fragment_writes_failed, failed);
    gets(&client, 30).await;
}

#[tokio::test(start_paused = true)]
async fn busy_disks_are_waited_for_and_not_forever() {
    let cluster = Cluster::new(Shape { nodes: 5, ..Shape::default() });
    let client = cluster.client().await;
    cluster.disk(12).set_mood(Mood::Busy(3));
    let body = put(&client, "key", &noise(1, SIZE)).await.unwrap();
    assert_eq!(stripes(&body)[0].missing, None);
    assert!(client.counters().busy_waits >= 3);
    cluster.disk(12).set_mood(Mood::Busy(usize::MAX));
    let started = Instant::now();
    put(&client, "key", &noise(1, SIZE)).await.unwrap();
    gets(&client, 0).await;
    assert!(started.elapsed() < Duration::from_secs(5));
    assert!(get(&client, "key").await.unwrap() == noise(1, SIZE));
}

#[tokio::test(start_paused = true)]
async fn slow_reads_are_hedged_and_then_the_disk_is_read_around() {
    let cluster = Cluster::new(Shape { nodes: 5, ..Shape::default() });
    let client = cluster.client().await;
    puts(&client, 20).await;
    gets(&client, 20).await;
    cluster.disk(13).set_mood(Mood::Slow(Duration::from_secs(1)));
    let started = Instant::now();
    gets(&client, 20).await;
    // Twenty waits of a second without hedging; a stall at a time while the disk is tried again.
    assert!(started.elapsed() < Duration::from_millis(2500), "{:?}", started.elapsed());
    let counters = client.counters();
    assert!(counters.fragment_reads_degraded > 0);
    cluster.disk(13).set_mood(Mood::Well);
    tokio::time::sleep(Duration::from_secs(20)).await;
    gets(&client, 20).await;
    gets(&client, 20).await;
    let healed = client.counters();
    assert!(healed.fragment_reads_degraded <= counters.fragment_reads_degraded + 20, "the disk is read again");
}

#[tokio::test(start_paused = true)]
async fn extra_reads_stay_within_two_percent_of_the_ordinary_ones() {
    let cluster = Cluster::new(Shape { nodes: 5, ..Shape::default() });
    let client = cluster.client().await;
    puts(&client, 10).await;
    for round in 0..200u64 {
        // Now and then a disk is a little slower than usual, never enough to count as stalled.
        let mood = if round % 3 == 0 { Mood::Slow(Duration::from_millis(60)) } else { Mood::Well };
        cluster.disk(11 + round % 5).set_mood(mood);
        gets(&client, 10).await;
        cluster.disk(11 + round % 5).set_mood(Mood::Well);
    }
    let counters = client.counters();
    assert!(counters.fragment_reads_hedged > 0);
    let share = counters.fragment_reads_hedged as f64 / counters.fragment_reads_plain as f64;
    assert!(share <= 0.022, "{share} {counters:?}");
}

#[tokio::test(start_paused = true)]
async fn rotten_frames_are_never_returned_and_are_counted() {
    let cluster = Cluster::new(Shape { nodes: 5, ..Shape::default() });
    let client = cluster.client().await;
    puts(&client, 5).await;
    cluster.disk(11).rotten.store(true, Relaxed);
    cluster.disk(12).rotten.store(true, Relaxed);
    gets(&client, 5).await;
    assert!(client.counters().fragments_corrupt > 0);
    cluster.disk(13).rotten.store(true, Relaxed);
    let mut failed = 0;
    for number in 0..5 {
        match get(&client, &format!("key{number}")).await {
            Ok(bytes) => assert!(bytes == noise(number, SIZE)),
            Err(failure) => {
                assert_eq!(failure.kind, FailureKind::Corrupt);
                failed += 1;
            }
        }
    }
    assert!(failed > 0, "three rotten disks of five cannot all be read around");
}

#[tokio::test(start_paused = true)]
async fn fragments_that_a_disk_lost_are_read_around() {
    let cluster = Cluster::new(Shape::default());
    let client = cluster.client().await;
    let body = put(&client, "key", &noise(0, SIZE)).await.unwrap();
    for index in [0, 1] {
        let fragment = stripes(&body)[0].fragment(index);
        cluster.disks[&cluster.holder(fragment).unwrap()].lose(fragment);
    }
    assert!(get(&client, "key").await.unwrap() == noise(0, SIZE));
    assert!(client.counters().fragments_absent > 0);
}

#[tokio::test(start_paused = true)]
async fn owed_fragments_are_filled_in_and_the_rows_go() {
    let cluster = Cluster::new(Shape { nodes: 5, ..Shape::default() });
    let client = cluster.client().await;
    cluster.kill(12);
    puts(&client, 6).await;
    client.housekeeping_once().await;
    assert_eq!(client.counters().fragments_filled_in, 0, "the disk is still gone");
    assert!(!cluster.meta.state.lock().unwrap().fill_ins.is_empty());
    let owing: Vec<_> = cluster.meta.state.lock().unwrap().fill_ins.values().map(|row| row.2.clone()).collect();
    cluster.revive(12);
    client.housekeeping_once().await;
    assert!(cluster.meta.state.lock().unwrap().fill_ins.is_empty());
    for stripe in owing {
        assert_eq!(cluster.fragments_of(&stripe).len(), stripe.indexes().count());
    }
    // The filled-in fragments are as good as written ones: they carry a read alone.
    cluster.kill(11);
    cluster.kill(13);
    gets(&cluster.client().await, 6).await;
}

#[tokio::test(start_paused = true)]
async fn deletes_wait_for_their_retention_and_for_every_disk() {
    let cluster = Cluster::new(Shape { nodes: 5, ..Shape::default() });
    let client = cluster.client().await;
    puts(&client, 3).await;
    for number in 0..2 {
        let delete = DeleteObject { bucket: BUCKET, key: format!("key{number}"), expectation: None };
        let outcome = client.mutate(client.group_of(BUCKET, "key0"), Command::DeleteObject(delete), None, soon()).await;
        assert_eq!(outcome, Ok(Outcome::Deleted(true)));
    }
    let fragments = || cluster.disks.values().map(|disk| disk.fragments().len()).sum::<usize>();
    let before = fragments();
    client.housekeeping_once().await;
    assert_eq!(fragments(), before, "too young");
    // A gateway's clock decides nothing, however far it is ahead.
    cluster.wall.fetch_add(365 * 24 * 3600 * 1000, Relaxed);
    client.housekeeping_once().await;
    assert_eq!(fragments(), before, "the gateway's clock is ahead");
    cluster.meta.wall.fetch_add(901_000, Relaxed);
    cluster.kill(14);
    client.housekeeping_once().await;
    assert!(fragments() < before);
    assert_eq!(cluster.meta.state.lock().unwrap().deletes.len(), 2, "a silent disk keeps the row");
    cluster.revive(14);
    client.housekeeping_once().await;
    assert_eq!(cluster.meta.state.lock().unwrap().deletes.len(), 0);
    let stripes_left: std::collections::BTreeSet<_> =
        cluster.disks.values().flat_map(|disk| disk.fragments()).map(|fragment| fragment.stripe).collect();
    assert_eq!(stripes_left.len(), 1);
    assert!(get(&client, "key2").await.unwrap() == noise(2, SIZE));
}

#[tokio::test(start_paused = true)]
async fn housekeeping_runs_by_itself_and_stops() {
    let cluster = Cluster::new(Shape { nodes: 5, ..Shape::default() });
    let client = cluster.client().await;
    cluster.kill(12);
    puts(&client, 1).await;
    cluster.revive(12);
    cluster.meta.wall.fetch_add(10_000, Relaxed);
    let housekeeping = client.spawn_housekeeping();
    eventually("the owed fragment is filled in", || client.counters().fragments_filled_in > 0).await;
    housekeeping.stop().await;
}

#[tokio::test(start_paused = true)]
async fn abandoned_writers_and_readers_give_everything_back() {
    let cluster = Cluster::new(Shape { nodes: 5, ..Shape::default() });
    let mut config = cluster.config();
    config.write_bytes_max = 4 << 20;
    config.read_bytes_max = 1 << 20;
    let client = cluster.client_with(config).await;
    let bytes = noise(1, 3_000_000);
    put(&client, "key", &bytes).await.unwrap();
    cluster.disks.values().for_each(|disk| disk.set_mood(Mood::Slow(Duration::from_millis(100))));
    for step in 0..40u64 {
        let attempt = put(&client, "other", &bytes);
        let _ = tokio::time::timeout(Duration::from_millis(step * 13), attempt).await;
        let attempt = get(&client, "key");
        let _ = tokio::time::timeout(Duration::from_millis(step * 13), attempt).await;
    }
    eventually("all memory is given back", || {
        let counters = client.counters();
        counters.write_bytes_held == 0 && counters.read_bytes_held == 0
    })
    .await;
    assert!(get(&client, "key").await.unwrap() == bytes);
}

#[tokio::test]
async fn many_writers_and_readers_stay_within_their_budgets() {
    let cluster = Cluster::new(Shape { nodes: 6, fragment_bytes_max: 16 << 16, ..Shape::default() });
    let mut config = cluster.config();
    config.write_bytes_max = 16 << 20;
    config.read_bytes_max = 4 << 20;
    let client = cluster.client_with(config).await;
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..24u64 {
        let client = client.clone();
        tasks.spawn(async move {
            let bytes = noise(number, 8_000_000);
            let key = format!("key{number}");
            put(&client, &key, &bytes).await.unwrap();
            assert!(get(&client, &key).await.unwrap() == bytes);
        });
    }
    let mut most = (0, 0);
    while !tasks.is_empty() {
        let _ =
            tokio::time::timeout(Duration::from_millis(1), tasks.join_next()).await.map(|done| done.unwrap().unwrap());
        let counters = client.counters();
        most = (most.0.max(counters.write_bytes_held), most.1.max(counters.read_bytes_held));
    }
    assert!(most.0 <= 16 << 20 && most.1 <= 4 << 20, "{most:?}");
    assert!(most.0 > 8 << 20, "the budget was put to use: {most:?}");
}

#[tokio::test(start_paused = true)]
async fn readers_that_hold_all_memory_do_not_stop_the_others() {
    let cluster = Cluster::new(Shape { nodes: 5, ..Shape::default() });
    let mut config = cluster.config();
    config.read_bytes_max = 2 << 20;
    let client = cluster.client_with(config).await;
    let bytes = noise(1, 6_000_000);
    put(&client, "key", &bytes).await.unwrap();
    let view = view(&client, "key").await.unwrap();
    let mut idle = Vec::new();
    for _ in 0..300 {
        // Each takes its first bytes and then stops, as a client does that no longer reads.
        let mut reader = client.open(BUCKET, "key", &view, 0..6_000_000);
        let first = reader.next().await.unwrap().unwrap();
        idle.push((reader, first));
    }
    assert!(client.counters().read_bytes_held > 1 << 20);
    let started = Instant::now();
    assert!(get(&client, "key").await.unwrap() == bytes);
    assert!(started.elapsed() < Duration::from_millis(500), "{:?}", started.elapsed());
    // Those that stalled have given back what they had fetched ahead; what they were given they still hold.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(get(&client, "key").await.unwrap() == bytes);
    let held = client.counters().read_bytes_held;
    // They go on where they stopped.
    for (reader, first) in &mut idle[..3] {
        let mut whole = first.to_vec();
        while let Some(piece) = reader.next().await {
            whole.extend_from_slice(&piece.unwrap());
        }
        assert!(whole == bytes);
    }
    drop(idle);
    assert!(held <= 2 << 20);
    assert_eq!(client.counters().read_bytes_held, 0);
}

#[tokio::test(start_paused = true)]
async fn readers_that_stall_give_back_what_they_fetched_ahead() {
    let cluster = Cluster::new(Shape { nodes: 5, ..Shape::default() });
    let mut config = cluster.config();
    config.read_bytes_max = 4 << 20;
    let client = cluster.client_with(config).await;
    let bytes = noise(1, 6_000_000);
    put(&client, "key", &bytes).await.unwrap();
    let view = view(&client, "key").await.unwrap();
    let mut idle = Vec::new();
    for _ in 0..40 {
        let mut reader = client.open(BUCKET, "key", &view, 0..6_000_000);
        // What a client is given and has read is gone from memory.
        let first = reader.next().await.unwrap().unwrap().to_vec();
        idle.push((reader, first));
    }
    let before = client.counters().read_bytes_held;
    assert!(before > 3 << 20, "{before}");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(get(&client, "key").await.unwrap() == bytes);
    let after = client.counters().read_bytes_held;
    assert!(after < before / 8, "{before} bytes before, {after} after");
    for (reader, whole) in &mut idle {
        while let Some(piece) = reader.next().await {
            whole.extend_from_slice(&piece.unwrap());
        }
        assert!(*whole == bytes);
    }
}

#[tokio::test(start_paused = true)]
async fn uploads_that_stall_do_not_stop_the_others() {
    let cluster = Cluster::new(Shape { nodes: 5, fragment_bytes_max: 16 << 16, ..Shape::default() });
    let mut config = cluster.config();
    config.write_bytes_max = 16 << 20;
    let client = cluster.client_with(config).await;
    let bytes = noise(1, 3_000_000);
    // A hundred uploads that have sent their beginning; each would take 5 MiB of the 16.
    let mut slow = Vec::new();
    for number in 0..100 {
        let client = client.clone();
        let bytes = bytes.clone();
        slow.push(tokio::spawn(async move {
            let mut writer = client.write(owner(&format!("slow{number}")), Some(bytes.len() as u64));
            writer.write(&bytes[..200_000]).await.unwrap();
            for _ in 0..60 {
                tokio::time::sleep(Duration::from_millis(500)).await;
                writer.handle_stall().await.unwrap();
            }
            writer.write(&bytes[200_000..]).await.unwrap();
            let body = writer.finish().await.unwrap();
            publish(&client, &format!("slow{number}"), bytes.len(), body).await.unwrap();
        }));
    }
    tokio::time::sleep(Duration::from_secs(20)).await;
    for number in 0..5 {
        let started = Instant::now();
        put(&client, &format!("key{number}"), &bytes).await.unwrap();
        assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    }
    for (number, slow) in slow.into_iter().enumerate() {
        slow.await.unwrap();
        assert!(get(&client, &format!("slow{number}")).await.unwrap() == bytes);
    }
    assert_eq!(client.counters().write_bytes_held, 0);
}

#[tokio::test(start_paused = true)]
async fn a_slow_upload_that_nobody_waits_for_fills_its_stripes() {
    let cluster = Cluster::new(Shape { nodes: 5, ..Shape::default() });
    let client = cluster.client().await;
    let bytes = noise(1, 700_000);
    let mut writer = client.write(owner("key"), Some(bytes.len() as u64));
    for piece in bytes.chunks(70_000) {
        writer.write(piece).await.unwrap();
        writer.handle_stall().await.unwrap();
    }
    let body = writer.finish().await.unwrap();
    assert_eq!(stripes(&body).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn two_silent_disks_of_a_group_cost_seconds_not_the_object() {
    let cluster = Cluster::new(Shape { nodes: 7, ..Shape::default() });
    let client = cluster.client().await;
    cluster.disk(12).set_mood(Mood::Slow(Duration::from_secs(600)));
    cluster.disk(13).set_mood(Mood::Slow(Duration::from_secs(600)));
    let started = Instant::now();
    puts(&client, 20).await;
    assert!(client.counters().stripes_resent >= 1);
    assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
    gets(&client, 20).await;
    // What an abandoned try left behind stands under an id of its own.
    let mut groups = std::collections::BTreeMap::new();
    for disk in cluster.disks.values() {
        for fragment in disk.fragments() {
            let header = disk.header(fragment).unwrap();
            let group = groups.entry(fragment.stripe).or_insert(header.stripe.pg);
            assert_eq!(*group, header.stripe.pg, "one stripe id in two placement groups");
        }
    }
    assert!(groups.len() > 20, "an abandoned try left fragments");
}

#[tokio::test(start_paused = true)]
async fn when_every_disk_is_slow_nothing_is_sent_twice() {
    let cluster = Cluster::new(Shape { nodes: 7, ..Shape::default() });
    let client = cluster.client().await;
    cluster.disks.values().for_each(|disk| disk.set_mood(Mood::Slow(Duration::from_secs(8))));
    puts(&client, 1).await;
    assert_eq!(client.counters().stripes_resent, 0);
}

#[tokio::test(start_paused = true)]
async fn damage_and_loss_together_are_read_around_up_to_the_parity() {
    let cluster = Cluster::new(Shape { nodes: 5, ..Shape::default() });
    let client = cluster.client().await;
    let body = put(&client, "key", &noise(0, SIZE)).await.unwrap();
    let stripe = &stripes(&body)[0];
    let holder = |index| &cluster.disks[&cluster.holder(stripe.fragment(index)).unwrap()];
    holder(0).rotten.store(true, Relaxed);
    holder(1).lose(stripe.fragment(1));
    assert!(get(&client, "key").await.unwrap() == noise(0, SIZE));
    let counters = client.counters();
    assert!(counters.fragments_corrupt > 0 && counters.fragments_absent > 0, "{counters:?}");
    holder(2).lose(stripe.fragment(2));
    let kind = get(&client, "key").await.unwrap_err().kind;
    assert!(matches!(kind, FailureKind::Corrupt | FailureKind::NotFound), "{kind:?}");
}

#[tokio::test(start_paused = true)]
async fn a_put_that_meets_a_deleted_fragment_is_no_strike() {
    let cluster = Cluster::new(Shape { nodes: 5, ..Shape::default() });
    let client = cluster.client().await;
    puts(&client, 5).await;
    cluster.disk(12).set_mood(Mood::Conflict);
    let body = put(&client, "other", &noise(9, SIZE)).await.unwrap();
    assert_eq!(stripes(&body)[0].missing.unwrap().count_ones(), 1);
    let degraded = client.counters().fragment_reads_degraded;
    gets(&client, 5).await;
    assert_eq!(client.counters().fragment_reads_degraded, degraded, "the disk is read from as before");
}

#[tokio::test(start_paused = true)]
async fn what_disks_say_of_fragments_is_not_said_of_the_object() {
    let cluster = Cluster::new(Shape { nodes: 5, ..Shape::default() });
    let client = cluster.client().await;
    cluster.disk(12).set_mood(Mood::Conflict);
    cluster.disk(13).set_mood(Mood::Conflict);
    assert_eq!(put(&client, "key", &noise(1, SIZE)).await.unwrap_err().kind, FailureKind::Unavailable);
}

#[tokio::test(start_paused = true)]
async fn a_black_holed_disk_without_a_spare_domain_costs_one_hedge_not_every_put() {
    let cluster = Cluster::new(Shape { nodes: 5, ..Shape::default() });
    let client = cluster.client().await;
    cluster.disk(12).set_mood(Mood::Slow(Duration::from_secs(600)));
    puts(&client, 1).await;
    assert_eq!(client.counters().quorums_hedged, 1);
    // Long enough for the times after which a disk was tried again by a write.
    for number in 1..60 {
        tokio::time::sleep(Duration::from_millis(700)).await;
        let started = Instant::now();
        let body = put(&client, &format!("key{number}"), &noise(number, SIZE)).await.unwrap();
        assert!(started.elapsed() < Duration::from_millis(50), "put {number}: {:?}", started.elapsed());
        assert_eq!(stripes(&body)[0].missing.unwrap().count_ones(), 1);
    }
    assert_eq!(client.counters().quorums_hedged, 1);
    cluster.disk(12).set_mood(Mood::Well);
    tokio::time::sleep(Duration::from_secs(16)).await;
    let body = put(&client, "later", &noise(7, SIZE)).await.unwrap();
    assert_eq!(stripes(&body)[0].missing, None, "a probe has brought the disk back");
    gets(&client, 60).await;
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_group_0_has_down_is_not_waited_for() {
    let cluster = Cluster::new(Shape { nodes: 5, ..Shape::default() });
    cluster.disk(12).set_mood(Mood::Slow(Duration::from_secs(600)));
    {
        let mut state = cluster.meta.state.lock().unwrap();
        let map = state.map.as_mut().unwrap();
        map.epoch = Epoch(2);
        map.nodes.iter_mut().find(|node| node.node == NodeId(12)).unwrap().state = State::Down;
    }
    let client = cluster.client().await;
    let started = Instant::now();
    puts(&client, 5).await;
    assert!(started.elapsed() < Duration::from_millis(50), "{:?}", started.elapsed());
    assert_eq!(client.counters().quorums_hedged, 0);
    gets(&client, 5).await;
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_answers_and_does_not_write_is_out_for_longer_each_time() {
    let cluster = Cluster::new(Shape { nodes: 5, ..Shape::default() });
    let client = cluster.client().await;
    cluster.disk(12).set_mood(Mood::SlowWrites(Duration::from_secs(600)));
    for number in 0..600 {
        put(&client, &format!("key{number}"), &noise(number, SIZE)).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // A minute: out for 0.5, 1, 2, 4, 8 and then 15 seconds at a time.
    assert!(client.counters().quorums_hedged <= 9, "{:?}", client.counters());
}

#[tokio::test(start_paused = true)]
async fn stripes_go_on_under_the_old_writer_while_group_0_is_away() {
    let cluster = Cluster::new(Shape { nodes: 5, ..Shape::default() });
    let client = cluster.client().await;
    let first = put(&client, "key0", &noise(0, SIZE)).await.unwrap();
    cluster.meta.no_writers.store(true, Relaxed);
    tokio::time::sleep(plinth_client::WRITER_ROTATION + Duration::from_secs(1)).await;
    let started = Instant::now();
    let second = put(&client, "key1", &noise(1, SIZE)).await.unwrap();
    assert!(started.elapsed() < Duration::from_millis(50), "{:?}", started.elapsed());
    assert_eq!(stripes(&first)[0].stripe.writer(), stripes(&second)[0].stripe.writer());
    cluster.meta.no_writers.store(false, Relaxed);
    let rotated = async {
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let body = put(&client, "key2", &noise(2, SIZE)).await.unwrap();
            if stripes(&body)[0].stripe.writer() != stripes(&first)[0].stripe.writer() {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), rotated).await.expect("the writer rotates once group 0 is back");
}

#[tokio::test(start_paused = true)]
async fn puts_without_a_writer_share_one_failed_request() {
    let cluster = Cluster::new(Shape { nodes: 5, ..Shape::default() });
    let client = cluster.client().await;
    cluster.meta.no_writers.store(true, Relaxed);
    let mut tasks = tokio::task::JoinSet::new();
    let started = Instant::now();
    for number in 0..30u64 {
        let client = client.clone();
        tasks.spawn(async move { put(&client, &format!("key{number}"), &noise(number, SIZE)).await });
    }
    while let Some(ended) = tasks.join_next().await {
        assert_eq!(ended.unwrap().unwrap_err().kind, FailureKind::Unavailable);
    }
    assert!(started.elapsed() < Duration::from_secs(6), "{:?}", started.elapsed());
    cluster.meta.no_writers.store(false, Relaxed);
    puts(&client, 1).await;
}

#[tokio::test(start_paused = true)]
async fn a_change_that_may_have_taken_effect_is_unknown_whatever_later_tries_answer() {
    use FailureKind::*;
    for kind in [NotFound, Corrupt, Internal, Invalid, Denied, Full, Conflict, Fenced, Unavailable] {
        let cluster = Cluster::new(Shape { nodes: 5, ..Shape::default() });
        let client = cluster.client().await;
        let body = write(&client, "key", &noise(1, SIZE), SIZE, true).await.unwrap();
        cluster.meta.lose_answers.store(1, Relaxed);
        *cluster.meta.after_loss.lock().unwrap() = Some(kind);
        let failure = publish(&client, "key", SIZE, body).await.unwrap_err();
        assert_eq!(failure.kind, Unknown, "{kind:?}: {failure}");
    }
}
