//! Openraft's own suite for storage, on our log and our machine: real ring, real database.

use super::machine::{Shard, ShardMachine};
use super::store::LogStore;
use super::words::Config;
use crate::files::SystemFiles;
use crate::log::handle::{LogConfig, NodeLog};
use crate::state::RocksMemory;
use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use plinth_protocol::{ClusterId, GroupId, NodeId};
use std::sync::Arc;

struct Builder;

/// What a store stands on, for as long as a test runs.
struct Ground {
    _folder: tempfile::TempDir,
    _log: NodeLog,
}

impl StoreBuilder<Config, LogStore, ShardMachine, Ground> for Builder {
    async fn build(&self) -> Result<(Ground, LogStore, ShardMachine), StorageError<Config>> {
        let folder = tempfile::tempdir().unwrap();
        let log = NodeLog::open(LogConfig {
            node: NodeId(1),
            cluster: ClusterId(1),
            folder: folder.path().join("log"),
            format: Some(77),
            segment_bytes: 256 << 10,
            segment_count_max: 16,
            cache_bytes_max: 0,
        })
        .unwrap();
        let store = LogStore::new(log.group(GroupId(1)), 1 << 20);
        let groups = folder.path().join("groups");
        std::fs::create_dir(&groups).unwrap();
        let memory = RocksMemory::new(1 << 20, 1 << 20);
        let (shard, machine) = Shard::open(GroupId(1), Arc::new(SystemFiles), memory, groups.join("1"), None).unwrap();
        shard.set_running();
        Ok((Ground { _folder: folder, _log: log }, store, machine))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn log_and_machine_pass_openrafts_own_suite() {
    Suite::<Config, LogStore, ShardMachine, Builder, Ground>::test_all(Builder).await.unwrap();
}
