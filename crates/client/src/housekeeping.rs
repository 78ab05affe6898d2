//! Housekeeping: what the data path leaves for later.
//!
//! Three kinds of rows wait for somebody: stripes that owe fragments since a hedged write, deferred
//! deletes whose retention is over, and buckets that a crash left half-way. Any client may do the
//! work and several may do it at once: every step is harmless when repeated, and a row goes only
//! when its work is acknowledged. Work per round is bounded; what fails stays for the next round.

use crate::chart::Site;
use crate::client::{Client, unexpected};
use crate::config::CHUNK_BYTES_MAX;
use crate::fetch::Rows;
use crate::layout::frame_range;
use crate::read::check_stripe;
use bytes::Bytes;
use plinth_protocol::frame::{FRAME_BYTES, frame_count, seal_frame};
use plinth_protocol::meta::{
    BucketsQuery, CLOCK_BOUND_MS, Command, DueDelete, DueQuery, FillInRow, FilledIn, FinishDeletes, Outcome, Query,
    Reply,
};
use plinth_protocol::object::BucketState;
use plinth_protocol::storage::{DELETE_FRAGMENTS_MAX, IoClass};
use plinth_protocol::stripe::{FragmentHeader, StripeRef};
use plinth_protocol::{BucketId, DiskId, Failure, FailureKind, FragmentId, GroupId, HybridTime};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// Rows in one page of work.
const PAGE_ROWS: u32 = 64;
/// Pages of one kind of work and one group in one round.
const PAGES_MAX: usize = 32;
/// Pages of buckets that are looked at in one round.
const BUCKET_PAGES_MAX: usize = 10;
/// How long a bucket must have stood half-way before it counts as left there.
const HALFWAY_FOR: Duration = Duration::from_secs(30);
/// How long one request to a group may take.
const META_TIMEOUT: Duration = Duration::from_secs(10);

/// Housekeeping under way; ends when this is dropped or stopped.
pub struct Housekeeping {
    task: JoinHandle<()>,
}

impl Housekeeping {
    /// Stops at once; what was under way is repeated by whoever does the next round.
    pub async fn stop(mut self) {
        self.task.abort();
        // Cancelled is the expected end; a panic has been reported by its own hook.
        let _ = (&mut self.task).await;
    }
}

impl Drop for Housekeeping {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Where one kind of work in one group goes on.
#[derive(Default)]
struct Cursors {
    fill_ins: HashMap<GroupId, Bytes>,
    deletes: HashMap<GroupId, Bytes>,
    halfway: HashMap<BucketId, Instant>,
}

impl Client {
    /// Starts housekeeping in rounds, `housekeeping_every` apart with some chance in it.
    pub fn spawn_housekeeping(&self) -> Housekeeping {
        let client = self.clone();
        let task = tokio::spawn(async move {
            let mut cursors = Cursors::default();
            loop {
                tokio::time::sleep(client.inner.chance.jitter(client.inner.config.housekeeping_every)).await;
                client.housekeeping_round(&mut cursors).await;
            }
        });
        Housekeeping { task }
    }

    /// Does one round of housekeeping now. For tests and for operators who can't wait.
    pub async fn housekeeping_once(&self) {
        self.housekeeping_round(&mut Cursors::default()).await;
    }

    async fn housekeeping_round(&self, cursors: &mut Cursors) {
        for group in self.chart().shard_groups() {
            if let Err(failure) = self.fill_in_group(group, cursors).await {
                tracing::info!(%group, %failure, "fill-in stopped for this round");
            }
            if let Err(failure) = self.delete_in_group(group, cursors).await {
                tracing::info!(%group, %failure, "deferred deletes stopped for this round");
            }
        }
        if let Err(failure) = self.resume_buckets(cursors).await {
            tracing::info!(%failure, "half-way buckets stay for the next round");
        }
    }

    /// Asks a group for rows of this age by the group's own time: its leader decides what is that old. A leader of a
    /// version that knows no `age_ms` goes by `before`, the time that the group told last; one that tells none gives no rows.
    fn due_query(&self, group: GroupId, age: Duration, after: Option<Bytes>) -> DueQuery {
        let age_ms = age.as_millis() as u64;
        let before = self.group_time(group).map_or(HybridTime(0), |time| time.before(age_ms).after(CLOCK_BOUND_MS));
        DueQuery { before, after, limit: PAGE_ROWS, age_ms: Some(age_ms) }
    }

    async fn fill_in_group(&self, group: GroupId, cursors: &mut Cursors) -> Result<(), Failure> {
        self.learn_time(group, Instant::now() + META_TIMEOUT).await?;
        for _ in 0..PAGES_MAX {
            let after = cursors.fill_ins.get(&group).cloned();
            let query = Query::FillIns(self.due_query(group, self.inner.config.fill_in_after, after));
            let page = match self.query(group, query, Instant::now() + META_TIMEOUT).await? {
                Reply::FillIns(page) => page,
                _ => return Err(unexpected("FillIns")),
            };
            let last = page.rows.last().map(|row| row.row.clone());
            for row in page.rows {
                if let Err(failure) = self.fill_in(group, row).await {
                    tracing::debug!(%group, %failure, "fragment still owed");
                }
            }
            match last.filter(|_| page.more) {
                Some(last) => cursors.fill_ins.insert(group, last),
                None => {
                    cursors.fill_ins.remove(&group);
                    return Ok(());
                }
            };
        }
        Ok(())
    }

    /// Makes the owed fragments of a stripe durable and records those that are.
    async fn fill_in(&self, group: GroupId, row: FillInRow) -> Result<(), Failure> {
        check_stripe(&row.stripe)?;
        let mut filled = 0u32;
        let mut result = Ok(());
        for index in row.stripe.indexes().filter(|&index| row.stripe.is_missing(index)) {
            match self.fill_in_fragment(&row, index).await {
                Ok(()) => filled |= 1 << index,
                Err(failure) => result = Err(failure),
            }
        }
        if filled != 0 {
            let done = FilledIn { owner: row.owner, stripe: row.stripe.stripe, fragments: filled };
            self.mutate(group, Command::FillIn(done), None, Instant::now() + META_TIMEOUT).await?;
            self.inner.counters.fragments_filled_in.add(u64::from(filled.count_ones()));
        }
        result
    }

    async fn fill_in_fragment(&self, row: &FillInRow, index: u8) -> Result<(), Failure> {
        let chart = self.chart();
        let nowhere = || Failure::new(FailureKind::Unavailable, "the owed fragment's disk is not on the map");
        let site = chart.site_of(&row.stripe, index).filter(|site| site.up).ok_or_else(nowhere)?;
        let fragment = row.stripe.fragment(index);
        // The put that the writer gave up may have arrived after all.
        if self.has_fragment(site, fragment).await? {
            return Ok(());
        }
        let frames = self.rebuild_fragment(&row.stripe, index).await?;
        let stripe = StripeRef { missing: None, ..row.stripe.clone() };
        let header = FragmentHeader { fragment, stripe, owner: Some(row.owner.clone()), made: self.made() };
        match self.put_fragment(site, IoClass::Repair, header, frames).await {
            // Somebody else filled it in meanwhile, or deleted the object.
            Err(failure) if failure.kind == FailureKind::Conflict => match self.has_fragment(site, fragment).await? {
                true => Ok(()),
                false => Err(failure),
            },
            outcome => outcome,
        }
    }

    /// Rebuilds a whole fragment from others, with trailers.
    async fn rebuild_fragment(&self, stripe: &StripeRef, index: u8) -> Result<Bytes, Failure> {
        let chart = self.chart();
        let payload = stripe.fragment_payload(index);
        let frames = frame_count(payload);
        let bytes = frame_range(payload, frames - 1).end;
        let _held = self.inner.write_budget.acquire(bytes).await;
        let mut whole = self.inner.pool.take(bytes);
        let step = CHUNK_BYTES_MAX / FRAME_BYTES;
        for first in (0..frames).step_by(step) {
            let rows = Rows { stripe, index, first, count: step.min(frames - first) };
            let run = self.rebuild(&chart, rows, IoClass::Repair).await?;
            whole[first * FRAME_BYTES..first * FRAME_BYTES + run.len()].copy_from_slice(&run);
        }
        for (number, frame) in whole.chunks_mut(FRAME_BYTES).enumerate() {
            seal_frame(frame, stripe.fragment(index), number as u16);
        }
        Ok(whole.freeze())
    }

    async fn delete_in_group(&self, group: GroupId, cursors: &mut Cursors) -> Result<(), Failure> {
        self.learn_time(group, Instant::now() + META_TIMEOUT).await?;
        for _ in 0..PAGES_MAX {
            let after = cursors.deletes.get(&group).cloned();
            let query = Query::DueDeletes(self.due_query(group, self.inner.config.deferred_delete_after, after));
            let page = match self.query(group, query, Instant::now() + META_TIMEOUT).await? {
                Reply::DueDeletes(page) => page,
                _ => return Err(unexpected("DueDeletes")),
            };
            let last = page.rows.last().map(|row| row.row.clone());
            self.delete_page(group, page.rows).await?;
            // A row that a silent disk holds back must not hold back those behind it.
            match last.filter(|_| page.more) {
                Some(last) => cursors.deletes.insert(group, last),
                None => {
                    cursors.deletes.remove(&group);
                    return Ok(());
                }
            };
        }
        Ok(())
    }

    /// Deletes the fragments of a page of rows, disk by disk; forgets the rows all of whose disks
    /// have acknowledged.
    async fn delete_page(&self, group: GroupId, rows: Vec<DueDelete>) -> Result<(), Failure> {
        let chart = self.chart();
        let mut by_disk: HashMap<DiskId, (Arc<Site>, Vec<FragmentId>)> = HashMap::new();
        let mut held_back: HashSet<usize> = HashSet::new();
        let mut disks_of_row: Vec<Vec<DiskId>> = Vec::with_capacity(rows.len());
        for (position, row) in rows.iter().enumerate() {
            let mut disks = Vec::new();
            if let Some(failure) = row.stripes.iter().find_map(|stripe| check_stripe(stripe).err()) {
                tracing::error!(%failure, "delete names an impossible stripe: kept");
                held_back.insert(position);
                disks_of_row.push(disks);
                continue;
            }
            for (stripe, index) in row.stripes.iter().flat_map(|stripe| stripe.indexes().map(move |i| (stripe, i))) {
                match chart.site_of(stripe, index) {
                    // Gone for good, and its fragments with it.
                    Some(site) if site.retired => {}
                    Some(site) => {
                        disks.push(site.disk);
                        let entry = by_disk.entry(site.disk).or_insert_with(|| (site.clone(), Vec::new()));
                        entry.1.push(stripe.fragment(index));
                    }
                    None => {
                        tracing::warn!(stripe = %stripe.stripe, pg = %stripe.pg, "delete names no known disk: kept");
                        held_back.insert(position);
                    }
                }
            }
            disks_of_row.push(disks);
        }
        let mut silent: HashSet<DiskId> = HashSet::new();
        for (disk, (site, fragments)) in by_disk {
            for batch in fragments.chunks(DELETE_FRAGMENTS_MAX) {
                match self.delete_fragments(&site, batch.to_vec()).await {
                    Ok(found) => self.inner.counters.fragments_deleted.add(u64::from(found)),
                    Err(failure) => {
                        tracing::debug!(%disk, %failure, "delete not acknowledged");
                        silent.insert(disk);
                        break;
                    }
                }
            }
        }
        let acknowledged = |position: usize| {
            !held_back.contains(&position) && disks_of_row[position].iter().all(|d| !silent.contains(d))
        };
        let done = rows.into_iter().enumerate().filter(|(position, _)| acknowledged(*position));
        let done: Vec<Bytes> = done.map(|(_, row)| row.row).collect();
        if done.is_empty() {
            return Ok(());
        }
        let count = done.len() as u64;
        let command = Command::FinishDeletes(FinishDeletes { rows: done });
        match self.mutate(group, command, None, Instant::now() + META_TIMEOUT).await? {
            Outcome::Refused(refusal) => Err(Failure::new(FailureKind::Conflict, refusal.text)),
            _ => {
                self.inner.counters.deletes_finished.add(count);
                Ok(())
            }
        }
    }

    /// Goes on with buckets that have stood half-way for [`HALFWAY_FOR`] as seen from here.
    async fn resume_buckets(&self, cursors: &mut Cursors) -> Result<(), Failure> {
        let mut query = BucketsQuery {
            prefix: String::new(),
            after: None,
            limit: plinth_protocol::meta::LIST_ENTRIES_MAX,
            account: None,
        };
        let mut halfway = HashMap::new();
        for _ in 0..BUCKET_PAGES_MAX {
            let page = self.buckets(query.clone()).await?;
            query.after = page.buckets.last().map(|row| row.name.clone());
            for row in page.buckets.into_iter().filter(|row| row.state != BucketState::Active) {
                let seen = cursors.halfway.get(&row.bucket).copied().unwrap_or_else(Instant::now);
                halfway.insert(row.bucket, seen);
                if seen.elapsed() >= HALFWAY_FOR {
                    self.resume_bucket(row).await?;
                }
            }
            if !page.more {
                break;
            }
        }
        cursors.halfway = halfway;
        Ok(())
    }
}
