//! The node on real folders: through the ring, with O_DIRECT, across restarts.

#![allow(clippy::disallowed_methods)]

mod sim;

use bytes::Bytes;
use plinth_protocol::storage::{
    DeleteFragments, IoClass, ListFragments, ReadFrames, StorageAction, StorageReply, StorageRequest,
};
use plinth_protocol::{ClusterId, DiskId, Failure, FailureKind, FragmentId, Incarnation};
use plinth_storage::{DiskConfig, FormatConfig, StorageConfig, StorageNode, format_disk};
use sim::Content;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::Instant;

const CLUSTER: ClusterId = ClusterId(7);

fn format_config(path: PathBuf, disk: DiskId) -> FormatConfig {
    FormatConfig {
        path,
        cluster: CLUSTER,
        disk,
        incarnation: Incarnation(1),
        segment_bytes: 1 << 20,
        size_bytes: 64 << 20,
        stamp: 5,
    }
}

fn folders(root: &Path, count: u128) -> Vec<DiskConfig> {
    let make = |number: u128| {
        let config = format_config(root.join(format!("d{number}")), DiskId(number));
        format_disk(&config).expect("an empty folder can be formatted");
        DiskConfig { path: config.path, expected: Some((DiskId(number), Incarnation(1))) }
    };
    (1..=count).map(make).collect()
}

struct Asker {
    node: StorageNode,
    disk: DiskId,
}

impl Asker {
    async fn ask(&self, action: StorageAction, payload: Bytes) -> Result<(StorageReply, Vec<Bytes>), Failure> {
        let request = StorageRequest { disk: self.disk, incarnation: Incarnation(1), class: IoClass::Write, action };
        self.node.handle(request, payload, Instant::now() + Duration::from_secs(20)).await
    }

    async fn put(&self, content: &Content) -> Result<(), Failure> {
        let (reply, _) = self.ask(StorageAction::Put(content.header()), content.frames()).await?;
        assert_eq!(reply, StorageReply::Stored);
        Ok(())
    }

    async fn read(&self, fragment: FragmentId) -> Result<Bytes, Failure> {
        let read = ReadFrames { fragment, first: 0, count: 64 };
        let (reply, frames) = self.ask(StorageAction::Read(read), Bytes::new()).await?;
        assert_eq!(reply, StorageReply::Frames);
        Ok(frames.concat().into())
    }

    async fn delete(&self, fragments: Vec<FragmentId>) -> u32 {
        match self.ask(StorageAction::Delete(DeleteFragments { fragments }), Bytes::new()).await {
            Ok((StorageReply::Deleted(deleted), _)) => deleted.found,
            other => panic!("a delete answered {other:?}"),
        }
    }
}

async fn put_many(asker: &Asker, contents: &[Content]) {
    let puts = contents.iter().map(|content| asker.put(content));
    for put in join_all(puts).await {
        put.expect("an empty disk takes fragments");
    }
}

/// Runs futures side by side on this task.
async fn join_all<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut waiting: Vec<_> = futures.map(|future| (Box::pin(future), None)).collect();
    std::future::poll_fn(|context| {
        for (future, output) in waiting.iter_mut().filter(|(_, output)| output.is_none()) {
            if let std::task::Poll::Ready(ready) = future.as_mut().poll(context) {
                *output = Some(ready);
            }
        }
        match waiting.iter().all(|(_, output)| output.is_some()) {
            true => std::task::Poll::Ready(()),
            false => std::task::Poll::Pending,
        }
    })
    .await;
    waiting.into_iter().map(|(_, output)| output.expect("all are ready")).collect()
}

fn contents() -> Vec<Content> {
    (0..60).map(|stripe| Content::new(stripe, 300 + 4_000 * (stripe as usize % 30))).collect()
}

async fn check(asker: &Asker, contents: &[Content], deleted: usize) {
    for (number, content) in contents.iter().enumerate() {
        match asker.read(content.id()).await {
            Ok(frames) => assert!(number >= deleted && frames == content.frames(), "fragment {number}"),
            Err(failure) => assert!(number < deleted && failure.kind == FailureKind::NotFound, "{number}: {failure}"),
        }
    }
    let list = ListFragments { after: None, limit: 4096 };
    match asker.ask(StorageAction::List(list), Bytes::new()).await {
        Ok((StorageReply::Fragments(page), _)) => assert_eq!(page.fragments.len(), contents.len() - deleted),
        other => panic!("a list answered {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fragments_survive_restart_and_kill() {
    let root = tempfile::tempdir().unwrap();
    let config = StorageConfig::new(CLUSTER, folders(root.path(), 2));
    let contents = contents();
    // Dropped without a shutdown first, as a kill leaves it; then stopped gracefully; then once more.
    for round in 0..3 {
        let node = StorageNode::open(config.clone()).await.expect("formatted folders open");
        let asker = Asker { node: node.clone(), disk: DiskId(1) };
        if round == 0 {
            put_many(&asker, &contents).await;
            put_many(&asker, &contents[..5]).await;
            let ids = contents[..20].iter().map(Content::id).collect();
            assert_eq!(asker.delete(ids).await, 20);
        }
        check(&asker, &contents, 20).await;
        assert_eq!(node.disks().len(), 2);
        assert_eq!(node.disks()[0].fragments, 40);
        drop(asker);
        match round {
            1 => node.shutdown().await,
            _ => {
                drop(node);
                wait_until_unlocked(&config).await;
            }
        }
    }
}

/// The threads of a dropped node end on their own; the folders' locks tell when.
async fn wait_until_unlocked(config: &StorageConfig) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match StorageNode::open(config.clone()).await {
            Ok(node) if node.disks().len() == config.disks.len() => return node.shutdown().await,
            Ok(node) => node.shutdown().await,
            Err(_) => {}
        }
        assert!(Instant::now() < deadline, "the folders stay locked");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_to_another_incarnation_or_disk_are_refused() {
    let root = tempfile::tempdir().unwrap();
    let node = StorageNode::open(StorageConfig::new(CLUSTER, folders(root.path(), 1))).await.unwrap();
    for (disk, incarnation) in [(DiskId(1), Incarnation(2)), (DiskId(2), Incarnation(1))] {
        let request = StorageRequest { disk, incarnation, class: IoClass::Read, action: StorageAction::Disk };
        let refused = node.handle(request, Bytes::new(), Instant::now() + Duration::from_secs(5)).await;
        assert_eq!(refused.unwrap_err().kind, FailureKind::Unavailable);
    }
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disk_is_added_while_the_node_runs_and_foreign_folders_are_refused() {
    let root = tempfile::tempdir().unwrap();
    let mut disks = folders(root.path(), 2);
    let second = disks.pop().unwrap();
    let node = StorageNode::open(StorageConfig::new(CLUSTER, disks)).await.unwrap();
    node.add_disk(second.clone()).await.expect("a formatted folder is taken");
    assert!(node.add_disk(second.clone()).await.is_err(), "a disk is served once");
    let asker = Asker { node: node.clone(), disk: DiskId(2) };
    asker.put(&Content::new(1, 70_000)).await.unwrap();
    assert_eq!(asker.read(Content::new(1, 70_000).id()).await.unwrap(), Content::new(1, 70_000).frames());

    let wrong = format_config(root.path().join("d3"), DiskId(3));
    format_disk(&wrong).unwrap();
    assert!(format_disk(&wrong).is_err(), "a folder that carries something is never formatted");
    let expected = Some((DiskId(4), Incarnation(1)));
    assert!(node.add_disk(DiskConfig { path: wrong.path, expected }).await.is_err());
    drop(asker);
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_disk_refuses_puts_and_takes_them_again_after_deletes() {
    let root = tempfile::tempdir().unwrap();
    let node = StorageNode::open(StorageConfig::new(CLUSTER, folders(root.path(), 1))).await.unwrap();
    let asker = Asker { node: node.clone(), disk: DiskId(1) };
    let mut stored = Vec::new();
    let refused = loop {
        let content = Content::new(stored.len() as u64, 200_000);
        match asker.put(&content).await {
            Ok(()) => stored.push(content),
            Err(failure) => break failure,
        }
        assert!(stored.len() < 400, "a disk of 64 MiB holds no 80 MB");
    };
    assert_eq!(refused.kind, FailureKind::Full);
    let stat = &node.disks()[0];
    assert!(stat.used_bytes * 100 / stat.size_bytes >= 80, "{stat:?}");
    // Every second fragment goes: compaction must empty segments before puts fit again.
    let (gone, kept): (Vec<Content>, Vec<Content>) =
        stored.iter().copied().partition(|content| content.stripe % 2 == 0);
    for chunk in gone.chunks(100) {
        asker.delete(chunk.iter().map(|content| content.id()).collect()).await;
    }
    for stripe in 1000..1000 + gone.len() as u64 / 2 {
        asker.put(&Content::new(stripe, 200_000)).await.expect("deletes made room");
    }
    for content in kept {
        assert_eq!(asker.read(content.id()).await.unwrap(), content.frames());
    }
    assert!(node.metrics()[0].stats.moved_bytes > 0);
    drop(asker);
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn puts_that_were_answered_survive_a_stop_in_their_midst() {
    for graceful in [true, false] {
        let root = tempfile::tempdir().unwrap();
        let config = StorageConfig::new(CLUSTER, folders(root.path(), 1));
        let node = StorageNode::open(config.clone()).await.unwrap();
        let contents = contents();
        let puts: Vec<_> = contents
            .iter()
            .map(|&content| {
                let asker = Asker { node: node.clone(), disk: DiskId(1) };
                tokio::spawn(async move { asker.put(&content).await })
            })
            .collect();
        tokio::task::yield_now().await;
        match graceful {
            true => node.shutdown().await,
            false => drop(node),
        }
        let mut stored = Vec::new();
        for (content, put) in contents.iter().zip(puts) {
            match put.await.unwrap() {
                Ok(()) => stored.push(*content),
                Err(failure) => {
                    let told = [FailureKind::Unavailable, FailureKind::Unknown];
                    assert!(told.contains(&failure.kind), "{failure}");
                }
            }
        }
        wait_until_unlocked(&config).await;
        let node = StorageNode::open(config).await.unwrap();
        let asker = Asker { node: node.clone(), disk: DiskId(1) };
        for content in stored {
            assert_eq!(asker.read(content.id()).await.unwrap(), content.frames());
        }
        assert_eq!(node.bytes_in_flight(), 0);
        drop(asker);
        node.shutdown().await;
    }
}
