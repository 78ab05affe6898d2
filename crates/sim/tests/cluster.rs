//! The parts fit together: objects through a real client, real voters and real disks in one process.

#![allow(clippy::disallowed_methods, clippy::unwrap_used)]

use bytes::Bytes;
use plinth_client::Client;
use plinth_protocol::meta::{Command, DueQuery, ObjectQuery, Outcome, PutObject, Query, Reply};
use plinth_protocol::object::{Etag, ObjectBody, StoredHeaders};
use plinth_protocol::stripe::Owner;
use plinth_protocol::{BucketId, GroupId, HybridTime, NodeId, Role};
use plinth_sim::{Cluster, Shape};
use plinth_transport::Fault;
use std::time::Duration;
use tokio::time::Instant;

/// How long a state may take to come about.
const PATIENCE: Duration = Duration::from_secs(30);

/// Bytes that tell their own place: a read that is off by one shows.
fn content(seed: u64, size: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..size).map(|_| next()).collect()
}

fn deadline() -> Instant {
    Instant::now() + PATIENCE
}

async fn bucket(client: &Client) -> BucketId {
    match client.create_bucket("warehouse", "root", None).await.unwrap() {
        Outcome::Bucket(row) => row.bucket,
        other => panic!("{other:?}"),
    }
}

async fn put(client: &Client, bucket: BucketId, key: &str, bytes: &[u8]) {
    let owner = Owner { bucket, key: key.into(), upload: None, part: None, ordinal: 0, offset: 0 };
    let mut writer = client.write(owner, Some(bytes.len() as u64));
    for piece in bytes.chunks(100_000) {
        writer.write(piece).await.unwrap();
    }
    let body = writer.finish().await.unwrap();
    let command = Command::PutObject(PutObject {
        bucket,
        key: key.into(),
        size_bytes: bytes.len() as u64,
        etag: Etag { md5: [7; 16], parts: None },
        checksum: None,
        body: ObjectBody { headers: StoredHeaders { standard: vec![], user: vec![] }, body },
        expectation: None,
    });
    match client.mutate(client.group_of(bucket, key), command, None, deadline()).await.unwrap() {
        Outcome::Object(_) => {}
        other => panic!("{other:?}"),
    }
}

async fn get(client: &Client, bucket: BucketId, key: &str) -> Option<Vec<u8>> {
    let query = Query::Object(ObjectQuery { bucket, key: key.into(), body: true });
    let view = match client.query(client.group_of(bucket, key), query, deadline()).await.unwrap() {
        Reply::Object(view) => view,
        Reply::Absent(_) => return None,
        other => panic!("{other:?}"),
    };
    let mut reader = client.open(bucket, key, &view, 0..view.row.size_bytes);
    let mut bytes = Vec::new();
    while let Some(piece) = reader.next().await {
        let piece: Bytes = piece.unwrap();
        bytes.extend_from_slice(&piece);
    }
    Some(bytes)
}

async fn owed(client: &Client) -> usize {
    let query = Query::FillIns(DueQuery { before: HybridTime(u64::MAX), after: None, limit: 1000, age_ms: None });
    match client.query(GroupId(1), query, deadline()).await.unwrap() {
        Reply::FillIns(page) => page.rows.len(),
        other => panic!("{other:?}"),
    }
}

const SIZES: [usize; 8] = [0, 1, 4096, 4097, 70_000, 300_000, 1 << 20, (9 << 20) + 12_345];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_of_every_size_survive_two_lost_storage_nodes_and_a_restart_of_all() {
    let mut cluster = Cluster::start(Shape::default()).await;
    let client = cluster.client().await;
    let bucket = bucket(&client).await;
    for (seed, size) in SIZES.into_iter().enumerate() {
        put(&client, bucket, &format!("object-{size}"), &content(seed as u64, size)).await;
    }
    let check = async |client: &Client| {
        for (seed, size) in SIZES.into_iter().enumerate() {
            let read = get(client, bucket, &format!("object-{size}")).await.unwrap();
            assert!(read == content(seed as u64, size), "object of {size} bytes");
        }
    };
    check(&client).await;
    let storages = cluster.nodes_with(Role::Storage);
    for &node in &storages[1..3] {
        cluster.stop_node(node).await;
    }
    check(&client).await;
    for node in cluster.nodes_with(Role::Meta).into_iter().chain([storages[0], storages[3], storages[4], storages[5]]) {
        cluster.stop_node(node).await;
    }
    for node in storages.into_iter().chain(cluster.nodes_with(Role::Meta)) {
        cluster.start_node(node).await;
    }
    check(&client).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stripe_written_without_a_node_is_filled_in_when_it_returns() {
    let mut cluster = Cluster::start(Shape { storages: 5, ..Shape::default() }).await;
    let client = cluster.client().await;
    let bucket = bucket(&client).await;
    let node = cluster.nodes_with(Role::Storage)[2];
    cluster.stop_node(node).await;
    put(&client, bucket, "short", &content(1, 3 << 20)).await;
    assert!(owed(&client).await > 0, "one of five fragments is owed");
    assert!(get(&client, bucket, "short").await.unwrap() == content(1, 3 << 20));
    cluster.start_node(node).await;
    let until = deadline();
    while owed(&client).await > 0 {
        client.housekeeping_once().await;
        assert!(Instant::now() < until, "owed fragments are filled in");
    }
    // Now any two others may go.
    let storages = cluster.nodes_with(Role::Storage);
    for &other in storages.iter().filter(|&&other| other != node).take(2) {
        cluster.stop_node(other).await;
    }
    assert!(get(&client, bucket, "short").await.unwrap() == content(1, 3 << 20));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_resume_when_a_voter_is_cut_off() {
    let cluster = Cluster::start(Shape::default()).await;
    let client = cluster.client().await;
    let bucket = bucket(&client).await;
    put(&client, bucket, "before", b"before").await;
    for cut in cluster.nodes_with(Role::Meta) {
        let others: Vec<NodeId> = cluster.map.nodes.iter().map(|node| node.node).collect();
        for &other in others.iter().filter(|&&other| other != cut) {
            cluster.network.cut(cut, other);
        }
        let key = format!("while-{cut}-is-away");
        let begun = Instant::now();
        put(&client, bucket, &key, key.as_bytes()).await;
        assert!(begun.elapsed() < Duration::from_secs(10), "writes resume, took {:?}", begun.elapsed());
        assert_eq!(get(&client, bucket, "before").await.unwrap(), b"before");
        cluster.network.heal_all();
        assert_eq!(get(&client, bucket, &key).await.unwrap(), key.as_bytes());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_messages_lose_no_object() {
    let cluster = Cluster::start(Shape::default()).await;
    let client = cluster.client().await;
    let bucket = bucket(&client).await;
    let dropped = std::sync::atomic::AtomicU64::new(0);
    cluster.network.set_judge(Some(std::sync::Arc::new(move |_| {
        let count = dropped.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        if count % 53 == 52 { Fault::Refuse } else { Fault::None }
    })));
    for number in 0..40u64 {
        put(&client, bucket, &format!("lossy-{number}"), &content(number, 10_000 * number as usize)).await;
    }
    cluster.network.set_judge(None);
    for number in 0..40u64 {
        let read = get(&client, bucket, &format!("lossy-{number}")).await.unwrap();
        assert!(read == content(number, 10_000 * number as usize), "object {number}");
    }
}
