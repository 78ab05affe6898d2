//! Openraft's log storage on one group's part of our log.

use super::words::{Config, RaftEntry, RaftLogId, RaftVote, from_log_entry, from_raft, from_raft_vote, to_log_entry};
use super::words::{to_raft, to_raft_vote};
use crate::MetaError;
use crate::log::handle::{Done, GroupLog};
use crate::log::record::LogEntry;
use futures_util::Stream;
use openraft::OptionalSend;
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, Range, RangeBounds, RangeInclusive};

/// Bytes of entries that are read at one time for applying.
const APPLY_BYTES_MAX: usize = 4 << 20;

/// One group's log, as openraft wants it.
#[derive(Clone)]
pub(crate) struct LogStore {
    log: GroupLog,
    append_bytes_max: usize,
}

impl LogStore {
    /// Wraps a group's log; messages to followers hold at most `append_bytes_max` bytes of entries.
    pub(crate) fn new(log: GroupLog, append_bytes_max: usize) -> Self {
        LogStore { log, append_bytes_max }
    }
}

fn indices(range: &impl RangeBounds<u64>) -> Range<u64> {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(start) => start + 1,
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(end) => end + 1,
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    start..end.max(start)
}

fn to_entries(entries: Vec<LogEntry>) -> Result<Vec<RaftEntry>, io::Error> {
    entries.into_iter().map(|entry| from_log_entry(entry).map_err(io::Error::from)).collect()
}

impl RaftLogReader<Config> for LogStore {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> Result<Vec<RaftEntry>, io::Error>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        to_entries(self.log.read(indices(&range), usize::MAX).await?)
    }

    async fn read_vote(&mut self) -> Result<Option<RaftVote>, io::Error> {
        Ok(self.log.with_view(|view| view.vote.as_ref().map(to_raft_vote)))
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<RaftEntry>, io::Error> {
        to_entries(self.log.read(start..end, self.append_bytes_max).await?)
    }

    async fn entries_stream<RB>(&mut self, range: RB) -> impl Stream<Item = Result<RaftEntry, io::Error>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        // Read piece by piece: after a restart the range may be the whole log.
        let range = indices(&range);
        let state = (self.log.clone(), range, Vec::<RaftEntry>::new().into_iter());
        futures_util::stream::unfold(Some(state), |state| async move {
            let (log, mut range, mut ready) = state?;
            if let Some(entry) = ready.next() {
                return Some((Ok(entry), Some((log, range, ready))));
            }
            if range.is_empty() {
                return None;
            }
            let read = log.read(range.clone(), APPLY_BYTES_MAX).await.map_err(io::Error::from).and_then(to_entries);
            match read {
                Ok(entries) => {
                    ready = entries.into_iter();
                    let entry = ready.next()?;
                    range.start = entry.log_id.index + 1 + ready.len() as u64;
                    Some((Ok(entry), Some((log, range, ready))))
                }
                Err(error) => Some((Err(error), None)),
            }
        })
    }

    async fn get_key_log_ids(&mut self, range: RangeInclusive<RaftLogId>) -> Result<Vec<RaftLogId>, io::Error> {
        let ends = self.log.with_view(|view| view.leader_ends(range.start().index..range.end().index + 1));
        Ok(ends.into_iter().map(to_raft).collect())
    }
}

impl RaftLogStorage<Config> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Config>, io::Error> {
        Ok(self.log.with_view(|view| LogState {
            last_purged_log_id: view.purged.map(to_raft),
            last_log_id: view.last().map(to_raft),
        }))
    }

    async fn get_log_reader(&mut self) -> Self::LogReader {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &RaftVote) -> Result<(), io::Error> {
        Ok(self.log.save_vote(from_raft_vote(vote)).await?)
    }

    async fn save_committed(&mut self, committed: Option<RaftLogId>) -> Result<(), io::Error> {
        self.log.set_committed(committed.as_ref().map(from_raft));
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<RaftLogId>, io::Error> {
        Ok(self.log.with_view(|view| view.committed.map(to_raft)))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Config>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = RaftEntry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<LogEntry> = entries.into_iter().map(to_log_entry).collect();
        let done: Done =
            Box::new(move |result| callback.io_completed(result.map_err(|reason| MetaError::Stopped(reason).into())));
        Ok(self.log.append(entries, done).await?)
    }

    async fn truncate_after(&mut self, last_log_id: Option<RaftLogId>) -> Result<(), io::Error> {
        Ok(self.log.truncate_after(last_log_id.as_ref().map(from_raft)).await?)
    }

    async fn purge(&mut self, log_id: RaftLogId) -> Result<(), io::Error> {
        Ok(self.log.purge(from_raft(&log_id)).await?)
    }
}
