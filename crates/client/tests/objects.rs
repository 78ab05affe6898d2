//! Objects of all sizes come back as they were, whatever range is asked for and whichever m disks are gone.

#![allow(clippy::disallowed_methods, clippy::unwrap_used)]

mod fakes;

use fakes::*;
use plinth_protocol::meta::{ObjectView, Outcome};
use plinth_protocol::object::{Body, INLINE_BYTES_MAX, PartRow};
use plinth_protocol::stripe::Code;
use plinth_protocol::{FailureKind, GroupId, HybridTime, RequestId, UploadId};
use proptest::prelude::*;

/// Sizes around every edge of the layout of 3+2 with fragments of 4 frames.
const SIZES: [usize; 17] = [
    0,
    1,
    4095,
    INLINE_BYTES_MAX,
    4097,
    8192,
    65_491,
    65_492,
    65_493,
    150_000,
    262_144,
    262_145,
    400_000,
    785_904,
    785_905,
    1_048_576,
    3_000_000,
];

fn check(expected: &[u8], found: &[u8], what: &str) {
    assert_eq!(expected.len(), found.len(), "{what}: length");
    if let Some(at) = (0..expected.len()).find(|&at| expected[at] != found[at]) {
        panic!("{what}: byte {at} differs");
    }
}

#[tokio::test]
async fn every_size_reads_back() {
    let cluster = Cluster::new(Shape::default());
    let client = cluster.client().await;
    for size in SIZES {
        for (known, step) in [(true, 1 << 20), (true, 10_007), (false, 70_001)] {
            let bytes = noise(size as u64, size);
            let body = write(&client, "key", &bytes, step, known).await.unwrap();
            assert_eq!(matches!(body, Body::Inline(_)), size <= INLINE_BYTES_MAX, "{size}");
            publish(&client, "key", size, body).await.unwrap();
            check(&bytes, &get(&client, "key").await.unwrap(), &format!("{size} known {known}"));
        }
    }
    let counters = client.counters();
    assert_eq!(counters.fragment_reads_degraded, 0);
    assert_eq!((counters.write_bytes_held, counters.read_bytes_held), (0, 0));
}

#[tokio::test]
async fn a_wrong_size_hint_costs_nothing_but_space() {
    let cluster = Cluster::new(Shape::default());
    let client = cluster.client().await;
    let bytes = noise(5, 900_000);
    for hint in [1, 5000, 300_000, 899_999, 900_001, 5_000_000] {
        let mut writer = client.write(owner("key"), Some(hint));
        for part in bytes.chunks(33_333) {
            writer.write(part).await.unwrap();
        }
        let body = writer.finish().await.unwrap();
        publish(&client, "key", bytes.len(), body).await.unwrap();
        check(&bytes, &get(&client, "key").await.unwrap(), &format!("hint {hint}"));
    }
}

#[tokio::test]
async fn small_objects_are_read_with_one_disk_read_of_one_frame() {
    let cluster = Cluster::new(Shape::default());
    let client = cluster.client().await;
    put(&client, "key", &noise(1, 200_000)).await.unwrap();
    let view = view(&client, "key").await.unwrap();
    check(&noise(1, 200_000)[70_000..70_010], &read(&client, "key", &view, 70_000..70_010).await.unwrap(), "range");
    let reads: usize = cluster.disks.values().map(|d| d.reads.load(std::sync::atomic::Ordering::Relaxed)).sum();
    let frames: usize = cluster.disks.values().map(|d| d.frames.load(std::sync::atomic::Ordering::Relaxed)).sum();
    assert_eq!((reads, frames), (1, 1));
}

#[tokio::test]
async fn fragments_name_their_owner_and_place() {
    let cluster = Cluster::new(Shape::default());
    let client = cluster.client().await;
    let body = put(&client, "a/key", &noise(1, 2_000_000)).await.unwrap();
    let mut offset = 0;
    assert!(stripes(&body).len() > 1);
    for (ordinal, stripe) in stripes(&body).iter().enumerate() {
        for index in stripe.indexes() {
            let holder = cluster.holder(stripe.fragment(index)).unwrap();
            let header = cluster.disks[&holder].header(stripe.fragment(index)).unwrap();
            let owner = header.owner.unwrap();
            assert_eq!((owner.key.as_str(), owner.ordinal, owner.offset), ("a/key", ordinal as u32, offset));
            assert_eq!(holder, client.map().pg(stripe.pg).unwrap().disks[stripe.slot(index)]);
        }
        offset += stripe.payload_bytes;
    }
    assert_eq!(offset, 2_000_000);
}

async fn every_pair_of_dead_nodes_is_survived(code: Code, nodes: u64) {
    let cluster = Cluster::new(Shape { code, nodes, ..Shape::default() });
    let client = cluster.client().await;
    let sizes = [5_000, 100_000, 300_000, 700_000, 2_000_000];
    for (number, size) in sizes.into_iter().enumerate() {
        put(&client, &format!("key{number}"), &noise(number as u64, size)).await.unwrap();
    }
    for one in 11..11 + nodes {
        for other in one + 1..11 + nodes {
            // A fresh client: it has to learn for itself who is dead.
            let client = cluster.client().await;
            cluster.kill(one);
            cluster.kill(other);
            for (number, size) in sizes.into_iter().enumerate() {
                let found = get(&client, &format!("key{number}")).await.unwrap();
                check(&noise(number as u64, size), &found, &format!("{size} without {one} and {other}"));
            }
            cluster.revive(one);
            cluster.revive(other);
        }
    }
}

#[tokio::test]
async fn any_two_of_six_nodes_may_die() {
    every_pair_of_dead_nodes_is_survived(Code::new(3, 2), 6).await;
}

#[tokio::test]
async fn any_two_of_three_nodes_may_die() {
    every_pair_of_dead_nodes_is_survived(Code::new(1, 2), 3).await;
}

#[tokio::test]
async fn codes_without_parity_work_and_say_when_they_lost() {
    let cluster = Cluster::new(Shape { code: Code::new(1, 0), nodes: 1, ..Shape::default() });
    let client = cluster.client().await;
    let bytes = noise(3, 600_000);
    put(&client, "key", &bytes).await.unwrap();
    check(&bytes, &get(&client, "key").await.unwrap(), "1+0");
    cluster.kill(11);
    assert_eq!(get(&client, "key").await.unwrap_err().kind, FailureKind::Unavailable);
}

#[tokio::test]
async fn three_dead_nodes_are_an_error_not_wrong_bytes() {
    let cluster = Cluster::new(Shape { nodes: 5, ..Shape::default() });
    let client = cluster.client().await;
    put(&client, "key", &noise(3, 600_000)).await.unwrap();
    (11..14).for_each(|node| cluster.kill(node));
    assert_eq!(get(&client, "key").await.unwrap_err().kind, FailureKind::Unavailable);
}

#[tokio::test]
async fn ranges_beyond_the_object_are_refused() {
    let cluster = Cluster::new(Shape::default());
    let client = cluster.client().await;
    put(&client, "key", &noise(3, 10_000)).await.unwrap();
    let view = view(&client, "key").await.unwrap();
    assert_eq!(read(&client, "key", &view, 0..10_001).await.unwrap_err().kind, FailureKind::Invalid);
    let bare = ObjectView { body: None, ..view };
    assert_eq!(read(&client, "key", &bare, 0..1).await.unwrap_err().kind, FailureKind::Invalid);
}

/// Publishes an object of parts whose sizes alternate between inline and several stripes.
async fn put_parts(client: &plinth_client::Client, cluster: &Cluster, sizes: &[usize]) -> (Vec<u8>, ObjectView) {
    let upload = UploadId(9);
    let mut whole = Vec::new();
    let mut numbers = Vec::new();
    for (position, &size) in sizes.iter().enumerate() {
        let bytes = noise(position as u64 + 77, size);
        let number = position as u16 * 3 + 1;
        let body = write(client, "mpu", &bytes, 1 << 20, true).await.unwrap();
        let part = PartRow {
            size_bytes: size as u64,
            md5: [0; 16],
            modified: HybridTime(1),
            checksum: None,
            body,
            request: RequestId(0),
        };
        cluster.meta.state.lock().unwrap().parts.insert((upload, number), part);
        numbers.push(number);
        whole.extend_from_slice(&bytes);
    }
    let view = cluster.meta.state.lock().unwrap().complete(BUCKET, "mpu", upload, &numbers);
    (whole, view)
}

#[tokio::test]
async fn objects_of_parts_read_in_order_also_across_inline_parts() {
    let cluster = Cluster::new(Shape::default());
    let client = cluster.client().await;
    let (whole, view) = put_parts(&client, &cluster, &[900_000, 10, 300_000, 4096, 1, 1_700_000, 55]).await;
    check(&whole, &read(&client, "mpu", &view, 0..whole.len() as u64).await.unwrap(), "whole");
    for start in (0..whole.len()).step_by(333_331) {
        let end = (start + 700_000).min(whole.len());
        check(&whole[start..end], &read(&client, "mpu", &view, start as u64..end as u64).await.unwrap(), "range");
    }
}

#[tokio::test]
async fn an_object_whose_parts_vanish_breaks_instead_of_ending_early() {
    let cluster = Cluster::new(Shape::default());
    let client = cluster.client().await;
    let (whole, view) = put_parts(&client, &cluster, &[100_000, 100_000]).await;
    cluster.meta.state.lock().unwrap().parts.clear();
    let failure = read(&client, "mpu", &view, 0..whole.len() as u64).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Conflict);
}

#[tokio::test]
async fn rows_are_published_with_the_writer_of_their_stripes() {
    let cluster = Cluster::new(Shape::default());
    let client = cluster.client().await;
    let body = write(&client, "key", &noise(1, 10_000), 10_000, true).await.unwrap();
    cluster.meta.state.lock().unwrap().fence = 2;
    let failure = publish(&client, "key", 10_000, body).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Fenced);
    // The next stripes are made under a new writer id, above the fence.
    put(&client, "key", &noise(1, 10_000)).await.unwrap();
    assert_eq!(cluster.meta.state.lock().unwrap().writers, 2);
}

#[tokio::test]
async fn overwriting_gives_the_new_bytes() {
    let cluster = Cluster::new(Shape::default());
    let client = cluster.client().await;
    put(&client, "key", &noise(1, 300_000)).await.unwrap();
    put(&client, "key", &noise(2, 200_000)).await.unwrap();
    check(&noise(2, 200_000), &get(&client, "key").await.unwrap(), "overwritten");
    assert_eq!(client.group_of(BUCKET, "key"), GroupId(1));
    let deleted = plinth_protocol::meta::DeleteObject { bucket: BUCKET, key: "key".into(), expectation: None };
    let command = plinth_protocol::meta::Command::DeleteObject(deleted);
    assert_eq!(client.mutate(GroupId(1), command, None, soon()).await, Ok(Outcome::Deleted(true)));
    assert_eq!(get(&client, "key").await.unwrap_err().kind, FailureKind::NotFound);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_range_of_any_object_reads_right_without_any_two_disks(
        k in 1u8..5, m in 0u8..4, size in 0usize..1_500_000, step in 1usize..400_000, known: bool,
        ranges in proptest::collection::vec(any::<(u64, u64)>(), 1..6), dead in any::<(u64, u64)>(), rotten: bool,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let code = Code::new(k, m);
            let nodes = code.width() as u64 + 1;
            let cluster = Cluster::new(Shape { code, nodes, fragment_bytes_max: 3 << 16, ..Shape::default() });
            let client = cluster.client().await;
            let bytes = noise(size as u64, size);
            let body = write(&client, "key", &bytes, step, known).await.unwrap();
            publish(&client, "key", size, body).await.unwrap();
            let view = view(&client, "key").await.unwrap();
            if m >= 1 { cluster.kill(11 + dead.0 % nodes); }
            if m >= 2 && rotten {
                cluster.disk(11 + dead.1 % nodes).rotten.store(true, std::sync::atomic::Ordering::Relaxed);
            }
            for (a, b) in ranges {
                let (a, b) = (a % (size as u64 + 1), b % (size as u64 + 1));
                let (start, end) = (a.min(b), a.max(b));
                let found = read(&client, "key", &view, start..end).await.unwrap();
                check(&bytes[start as usize..end as usize], &found, &format!("{code} {size} {start}..{end}"));
            }
            assert_eq!(client.counters().read_bytes_held, 0);
        });
    }
}
