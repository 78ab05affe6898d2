//! The machine: log entries in, outcomes and rows out.
//!
//! An entry becomes one batch: the rows that its mutations change, the outcomes to remember, the
//! counters, and the applied position. A crash between two entries leaves the state after the
//! first; the second is applied again from the log.

use super::rows::{self, AppliedRow, ShardRow};
use super::store::{Family, Store, View};
use super::work::Work;
use super::{Batch, StateError, keys, query};
use crate::planted::{Bug, planted};
use bytes::Bytes;
use plinth_protocol::meta::{Command, Mutation, Outcome, Query, Reply};
use plinth_protocol::record;
use plinth_protocol::{Failure, GROUP_SYSTEM, GroupId, HybridTime, NodeId};
use std::path::Path;
use std::sync::Arc;

/// The longest step of time between two entries that is taken for granted: 24 h, in milliseconds. A leader writes an
/// entry every hour though nobody asks, so a longer step means that all voters were down, or that a majority of their
/// clocks is wrong; only a person can tell which.
const TIME_GAP_MS_MAX: u64 = 24 * 60 * 60 * 1000;

record! {
    /// A place in a group's log: the term and the leader that wrote the entry, and its index.
    pub struct LogPosition {
        1 => term: u64,
        2 => leader: NodeId,
        3 => index: u64,
    }
}

/// How far a replica's rows have come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// The last entry applied; none on an empty replica.
    pub position: Option<LogPosition>,
    /// The Raft membership as last given, in the caller's own bytes.
    pub membership: Option<Bytes>,
    /// The time of the last command, 0 before the first; the leader stamps later ones.
    pub time: HybridTime,
}

/// What a shard's leader has to see to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Background {
    /// The rules that the shard decides by.
    pub rules: u32,
    /// Dropped uploads and buckets that wait to be taken apart.
    pub discards: u64,
}

/// The state machine of one replica of one group. Applying takes the machine alone; reading goes
/// on meanwhile through [`Reader`]s.
pub struct Machine<S: Store> {
    store: Arc<S>,
    group: GroupId,
    position: Option<LogPosition>,
    time: HybridTime,
    stopped: Option<String>,
    rows_changed: usize,
}

impl<S: Store> Machine<S> {
    /// Takes up the rows of a store where its last batch left them.
    pub fn open(store: S, group: GroupId) -> Result<Self, StateError> {
        let row = store.view().get(Family::State, keys::APPLIED)?;
        let applied: Option<AppliedRow> = row.map(|row| rows::decode(Family::State, &row)).transpose()?;
        let (position, time) = match applied {
            Some(row) => (Some(row.position), row.time),
            None => (None, HybridTime(0)),
        };
        Ok(Machine { store: Arc::new(store), group, position, time, stopped: None, rows_changed: 0 })
    }

    /// The group whose log is applied here.
    pub fn group(&self) -> GroupId {
        self.group
    }

    /// The last applied entry.
    pub fn position(&self) -> Option<&LogPosition> {
        self.position.as_ref()
    }

    /// The time of the last command. The leader stamps the next one later.
    pub fn time(&self) -> HybridTime {
        self.time
    }

    /// How many rows the last entry has changed.
    pub fn rows_changed(&self) -> usize {
        self.rows_changed
    }

    /// Returns a handle for queries, for any thread.
    pub fn reader(&self) -> Reader<S> {
        Reader { store: self.store.clone(), group: self.group }
    }

    /// The store, for checkpoints and tests.
    pub fn store(&self) -> &Arc<S> {
        &self.store
    }

    /// Applies the mutations of one entry in their order, in one atomic batch with the position,
    /// and returns an outcome for each. An error is final: the replica must stop.
    ///
    /// # Panics
    /// If `at` is not behind the last applied entry.
    pub fn apply(
        &mut self,
        at: LogPosition,
        now: HybridTime,
        mutations: &[Mutation],
    ) -> Result<Vec<Outcome>, StateError> {
        // A new leader's clock may be behind the last one's: time still moves on.
        let now = now.max(self.time.next());
        let gap_ms = now.millis() - self.time.millis();
        let jumped = self.time != HybridTime(0) && gap_ms > TIME_GAP_MS_MAX;
        if jumped {
            let hours = gap_ms / 3_600_000;
            tracing::error!(event = "time_gap", group = %self.group, hours, "time jumped: nothing expires for as long, until `plinth clock confirm`");
        }
        self.advance(at, now, |work| {
            if jumped {
                work.hold_expiry(gap_ms);
            }
            let outcomes = mutations.iter().map(|mutation| work.decide(mutation)).collect::<Result<_, _>>()?;
            work.forget_expired(mutations.len())?;
            Ok(outcomes)
        })
    }

    /// Passes over an entry without commands.
    pub fn apply_blank(&mut self, at: LogPosition) -> Result<(), StateError> {
        self.advance(at, self.time, |_| Ok(()))
    }

    /// Records a Raft membership, in the caller's own bytes, with the entry that carries it.
    pub fn apply_membership(&mut self, at: LogPosition, membership: &[u8]) -> Result<(), StateError> {
        self.advance(at, self.time, |work| {
            work.batch.put(Family::State, keys::MEMBERSHIP.to_vec(), membership.to_vec());
            Ok(())
        })
    }

    fn advance<R>(
        &mut self,
        at: LogPosition,
        now: HybridTime,
        body: impl FnOnce(&mut Work<'_, S::View<'_>>) -> Result<R, StateError>,
    ) -> Result<R, StateError> {
        if let Some(reason) = &self.stopped {
            return Err(StateError::Stopped(reason.clone()));
        }
        assert!(
            self.position.as_ref().is_none_or(|last| last.index < at.index),
            "entry {at:?} is not behind the applied one {:?}",
            self.position
        );
        let done = self.commit(&at, now, body);
        match &done {
            Ok((_, rows)) => (self.position, self.time, self.rows_changed) = (Some(at), now, *rows),
            Err(StateError::Stalled) => {}
            Err(error) => self.stopped = Some(error.to_string()),
        }
        done.map(|(result, _)| result)
    }

    fn commit<R>(
        &self,
        at: &LogPosition,
        now: HybridTime,
        body: impl FnOnce(&mut Work<'_, S::View<'_>>) -> Result<R, StateError>,
    ) -> Result<(R, usize), StateError> {
        let view = self.store.view();
        let mut work = Work::begin(&view, self.group, at.index, now)?;
        let result = body(&mut work)?;
        let mut batch: Batch = work.finish();
        let applied = AppliedRow { position: at.clone(), time: now };
        // The planted bug forgets the position of every other entry.
        if !(planted(Bug::ApplyWithoutIndex) && at.index.is_multiple_of(2)) {
            batch.put(Family::State, keys::APPLIED.to_vec(), rows::encode(&applied));
        }
        drop(view);
        self.store.write(&batch)?;
        Ok((result, batch.rows()))
    }

    /// Answers a query from the state after the last applied entry.
    pub fn query(&self, query: &Query) -> Result<Reply, Failure> {
        self.reader().query(query)
    }

    /// Makes everything applied so far survive a crash, and returns the position up to which the
    /// log may be purged.
    pub fn flush(&self) -> Result<Option<LogPosition>, StateError> {
        self.reader().flush()
    }
}

/// A handle on a replica's rows for reading, cheap to clone. Each call sees the state after some
/// entry, never the middle of one.
pub struct Reader<S: Store> {
    store: Arc<S>,
    group: GroupId,
}

impl<S: Store> Clone for Reader<S> {
    fn clone(&self) -> Self {
        Reader { store: self.store.clone(), group: self.group }
    }
}

impl<S: Store> Reader<S> {
    /// Answers a query from the state after the last applied entry.
    pub fn query(&self, query: &Query) -> Result<Reply, Failure> {
        query::answer(&self.store.view(), self.group, query)
    }

    /// Answers a query in wire form: `Reply`'s bytes. Listings are copied row by row without being
    /// taken apart.
    pub fn query_encoded(&self, query: &Query, out: &mut Vec<u8>) -> Result<(), Failure> {
        query::answer_encoded(&self.store.view(), self.group, query, out)
    }

    /// What a shard's leader has to see to.
    pub fn background(&self) -> Result<Background, StateError> {
        let row = self.store.view().get(Family::State, keys::SHARD)?;
        let shard: Option<ShardRow> = row.map(|row| rows::decode(Family::State, &row)).transpose()?;
        Ok(Background {
            rules: shard.as_ref().and_then(|row| row.rules).unwrap_or(0),
            discards: shard.as_ref().and_then(|row| row.discards).unwrap_or(0),
        })
    }

    /// How far the rows have come.
    pub fn applied(&self) -> Result<Applied, StateError> {
        let view = self.store.view();
        applied_of(|key| view.get(Family::State, key))
    }

    /// How far the rows would have come after a crash at this moment.
    pub fn flushed(&self) -> Result<Applied, StateError> {
        applied_of(|key| self.store.get_flushed(Family::State, key))
    }

    /// Makes everything applied so far survive a crash, and returns the position up to which the
    /// log may be purged.
    pub fn flush(&self) -> Result<Option<LogPosition>, StateError> {
        let before = self.applied()?.position;
        self.store.flush()?;
        Ok(before)
    }

    /// Writes a durable copy of the rows into a new folder, and tells which state it holds. Entries
    /// may be applied meanwhile.
    pub fn checkpoint(&self, folder: &Path) -> Result<Applied, StateError> {
        self.store.checkpoint(folder)?;
        applied_of(|key| S::get_in_checkpoint(folder, Family::State, key))
    }

    /// Reads all rows from the device and compares them with their checksums.
    pub fn verify(&self) -> Result<(), StateError> {
        self.store.verify()
    }

    /// The store itself.
    pub fn store(&self) -> &Arc<S> {
        &self.store
    }
}

fn applied_of(get: impl Fn(&[u8]) -> Result<Option<Vec<u8>>, StateError>) -> Result<Applied, StateError> {
    let row: Option<AppliedRow> = get(keys::APPLIED)?.map(|row| rows::decode(Family::State, &row)).transpose()?;
    let membership = get(keys::MEMBERSHIP)?.map(Bytes::from);
    Ok(match row {
        Some(row) => Applied { position: Some(row.position), membership, time: row.time },
        None => Applied { position: None, membership, time: HybridTime(0) },
    })
}

/// Returns whether a command adds rows on behalf of a client: what is refused where voters have little room. Deletes,
/// housekeeping and what operators order to help pass.
pub(crate) fn grows(command: &Command) -> bool {
    matches!(
        command,
        Command::PutObject(_)
            | Command::CreateUpload(_)
            | Command::PutPart(_)
            | Command::CompleteUpload(_)
            | Command::CreateBucket(_)
    )
}

/// Returns whether a group decides this command: object shards those below 64, the system group others.
pub(super) fn serves(group: GroupId, command: &Command) -> bool {
    match command {
        Command::PutObject(_)
        | Command::DeleteObject(_)
        | Command::CreateUpload(_)
        | Command::PutPart(_)
        | Command::CompleteUpload(_)
        | Command::AbortUpload(_)
        | Command::OpenBucket(_)
        | Command::CloseBucket(_)
        | Command::FillIn(_)
        | Command::FinishDeletes(_)
        | Command::RaiseFence(_)
        | Command::RaiseRules(_)
        | Command::TakeApart
        | Command::OpenAttempt(_)
        | Command::CloseAttempt(_) => group != GROUP_SYSTEM,
        Command::ConfirmTime => true,
        Command::CreateBucket(_)
        | Command::ActivateBucket(_)
        | Command::BeginDeleteBucket(_)
        | Command::KeepBucket(_)
        | Command::RemoveBucket(_)
        | Command::RegisterWriter(_)
        | Command::Found(_)
        | Command::RegisterNode(_)
        | Command::RegisterDisk(_)
        | Command::AnnounceAddress(_)
        | Command::SetNodeState(_)
        | Command::SetDiskState(_)
        | Command::ChangePlacement(_)
        | Command::SetVoters(_)
        | Command::CreateAccessKey(_)
        | Command::RevokeAccessKey(_)
        | Command::CreateJoinToken(_)
        | Command::ConsumeJoinToken(_)
        | Command::RecordVoter(_)
        | Command::ActivateAttempt(_)
        | Command::BeginDeleteAttempt(_)
        | Command::ReopenBucket(_)
        | Command::RemoveAttempt(_)
        | Command::AdmitNode(_)
        | Command::RevokeJoinToken(_)
        | Command::RecordCertificate(_)
        | Command::RevokeCertificate(_)
        | Command::DenyNode(_) => group == GROUP_SYSTEM,
    }
}
