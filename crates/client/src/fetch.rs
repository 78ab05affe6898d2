//! Fetching rows of one fragment: from its disk, or rebuilt from the same rows of others.
//!
//! The plain read comes first. When it fails, the rows are rebuilt; when it is merely slow, the
//! rebuilding starts beside it and the first answer wins. Slow means later than the 95th percentile
//! of recent reads, as long as such extra reads stay below two in a hundred; far later than that
//! (a stall) is reason enough alone, and costs the disk a strike, so that the reads after this one
//! don't wait for it at all.

use crate::chart::{Chart, Site};
use crate::client::Client;
use crate::filling::codec_of;
use crate::layout::{frame_range, run_bytes};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use plinth_erasure::{Plan, WIDTH_MAX};
use plinth_protocol::frame::{FRAME_BYTES, TRAILER_BYTES};
use plinth_protocol::storage::IoClass;
use plinth_protocol::stripe::StripeRef;
use plinth_protocol::{Failure, FailureKind};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How often a read is tried before it fails, the map refreshed in between.
const ROUNDS_MAX: u32 = 4;
/// Pause before the second round; doubles with each further one.
const ROUND_PAUSE: Duration = Duration::from_millis(50);
/// Shortest time before a read is hedged.
const READ_HEDGE_MIN: Duration = Duration::from_millis(10);
/// Shortest time after which a read counts as stalled.
const READ_STALL_MIN: Duration = Duration::from_millis(200);
/// Longest such time.
const READ_STALL_MAX: Duration = Duration::from_secs(2);
/// A stall in multiples of the 95th percentile of reads.
const READ_STALL_FACTOR: u32 = 8;

/// Rows of one fragment of a stripe.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    pub(crate) stripe: &'a StripeRef,
    pub(crate) index: u8,
    /// First row, which is the number of the first frame.
    pub(crate) first: usize,
    pub(crate) count: usize,
}

impl Rows<'_> {
    /// Returns the bytes that the rows take in fragment `index` of the stripe: none where that
    /// fragment ends before them.
    fn bytes_in(&self, index: u8) -> usize {
        let payload = self.stripe.fragment_payload(index);
        if payload == 0 { 0 } else { run_bytes(payload, self.first, self.count) }
    }

    /// Returns how many frames of fragment `index` the rows meet.
    fn frames_in(&self, index: u8) -> usize {
        self.bytes_in(index).div_ceil(FRAME_BYTES)
    }
}

impl Client {
    /// Returns the frames of the rows, each with verified or rebuilt payload at its place; the
    /// trailers are not to be looked at.
    pub(crate) async fn fetch(&self, rows: Rows<'_>) -> Result<Bytes, Failure> {
        let mut round = 0;
        loop {
            round += 1;
            let failure = match self.fetch_once(rows).await {
                Ok(frames) => return Ok(frames),
                Err(failure) => failure,
            };
            if round == ROUNDS_MAX || failure.kind == FailureKind::Invalid {
                tracing::warn!(stripe = %rows.stripe.stripe, index = rows.index, %failure, "rows cannot be read");
                return Err(failure);
            }
            // The disks may have moved, or be coming back.
            if let Err(failure) = self.refresh_map().await {
                tracing::debug!(%failure, "map not refreshed");
            }
            tokio::time::sleep(self.inner.chance.jitter(ROUND_PAUSE * 2u32.pow(round - 1))).await;
        }
    }

    async fn fetch_once(&self, rows: Rows<'_>) -> Result<Bytes, Failure> {
        let chart = self.chart();
        let site = chart.site_of(rows.stripe, rows.index).filter(|_| !rows.stripe.is_missing(rows.index));
        let Some(site) = site else { return self.rebuild(&chart, rows, IoClass::DegradedRead).await };
        if !site.readable || !site.health.admits(self.inner.uptime.ms()) {
            // Expected to fail or stall: the others first.
            return match self.rebuild(&chart, rows, IoClass::DegradedRead).await {
                Ok(frames) => Ok(frames),
                Err(_) => self.read_plain(site, rows).await,
            };
        }
        self.inner.extra_reads.earn();
        let mut plain = std::pin::pin!(self.read_plain(site, rows));
        tokio::select! {
            biased;
            frames = &mut plain => match frames {
                Ok(frames) => return Ok(frames),
                Err(_) => return self.rebuild(&chart, rows, IoClass::DegradedRead).await,
            },
            () = self.lose_patience(site) => {}
        }
        let mut rebuilt = std::pin::pin!(self.rebuild(&chart, rows, IoClass::DegradedRead));
        tokio::select! {
            frames = &mut plain => match frames {
                Ok(frames) => Ok(frames),
                Err(_) => rebuilt.await,
            },
            frames = &mut rebuilt => match frames {
                Ok(frames) => Ok(frames),
                Err(_) => plain.await,
            },
        }
    }

    async fn read_plain(&self, site: &Site, rows: Rows<'_>) -> Result<Bytes, Failure> {
        let started = Instant::now();
        let (fragment, bytes) = (rows.stripe.fragment(rows.index), rows.bytes_in(rows.index));
        let frames = self.read_frames(site, IoClass::Read, fragment, rows.first, rows.count, bytes).await?;
        self.inner.read_latency.note(started.elapsed());
        self.inner.counters.fragment_reads_plain.add(1);
        Ok(frames)
    }

    /// Ends when a read that began now should be hedged.
    async fn lose_patience(&self, site: &Site) {
        let (started, usual) = (Instant::now(), self.inner.read_latency.get());
        let stall = (usual * READ_STALL_FACTOR).clamp(READ_STALL_MIN, READ_STALL_MAX);
        tokio::time::sleep_until(started + usual.clamp(READ_HEDGE_MIN, stall)).await;
        if self.inner.extra_reads.spend() {
            self.inner.counters.fragment_reads_hedged.add(1);
            return;
        }
        tokio::time::sleep_until(started + stall).await;
        site.health.strike(self.inner.uptime.ms());
    }

    /// Rebuilds rows of a fragment from the same rows of as many others as it takes. The frames'
    /// trailers are arbitrary.
    pub(crate) async fn rebuild(&self, chart: &Chart, rows: Rows<'_>, class: IoClass) -> Result<Bytes, Failure> {
        let codec = codec_of(rows.stripe.code)?;
        let needed = usize::from(rows.stripe.data_count());
        let _held = self.inner.rebuild_budget.acquire(needed * rows.count * FRAME_BYTES).await;
        let inputs = self.gather(chart, rows, needed, class).await?;
        let indexes: Vec<u8> = inputs.iter().map(|(index, _)| *index).collect();
        let plan = codec
            .plan(rows.stripe.data_count(), &indexes, &[rows.index])
            .map_err(|error| Failure::new(FailureKind::Internal, error.to_string()))?;
        self.inner.counters.fragment_reads_degraded.add(1);
        Ok(self.rebuild_rows(rows, &plan, &inputs))
    }

    /// Reads the rows of `needed` fragments other than the one that is to be rebuilt.
    async fn gather(
        &self,
        chart: &Chart,
        rows: Rows<'_>,
        needed: usize,
        class: IoClass,
    ) -> Result<Vec<(u8, Bytes)>, Failure> {
        let others: Vec<u8> = rows.stripe.indexes().filter(|&index| index != rows.index).collect();
        // Fragments that end before the rows are known without a read: zeros.
        let (beyond, read): (Vec<u8>, Vec<u8>) = others.into_iter().partition(|&index| rows.bytes_in(index) == 0);
        let mut have: Vec<(u8, Bytes)> = beyond.into_iter().map(|index| (index, Bytes::new())).collect();
        let mut queue = self.in_order_of_trust(chart, rows.stripe, read);
        let mut reads = FuturesUnordered::new();
        let start = |index: u8, site: Arc<Site>| async move {
            let (bytes, count) = (rows.bytes_in(index), rows.frames_in(index));
            let fragment = rows.stripe.fragment(index);
            (index, self.read_frames(&site, class, fragment, rows.first, count, bytes).await)
        };
        let mut last = Failure::new(FailureKind::Unavailable, format!("{}: too few fragments", rows.stripe.stripe));
        let patience = (self.inner.read_latency.get() * READ_STALL_FACTOR).clamp(READ_STALL_MIN, READ_STALL_MAX);
        let mut extra = 0;
        let mut stalled = std::pin::pin!(tokio::time::sleep(patience));
        while have.len() < needed {
            while have.len() + reads.len() < needed + extra {
                match queue.pop_front() {
                    Some((index, site)) => reads.push(start(index, site)),
                    None if have.len() + reads.len() < needed => return Err(last),
                    None => break,
                }
            }
            tokio::select! {
                biased;
                Some((index, frames)) = reads.next() => match frames {
                    Ok(frames) => have.push((index, frames)),
                    Err(failure) => last = failure,
                },
                // One of them is slow: ask one more.
                () = &mut stalled, if extra == 0 => extra = 1,
            }
        }
        have.truncate(needed);
        Ok(have)
    }

    /// Orders fragments for rebuilding: those that are durable and on sound disks first; owed ones never.
    fn in_order_of_trust(&self, chart: &Chart, stripe: &StripeRef, indexes: Vec<u8>) -> VecDeque<(u8, Arc<Site>)> {
        let present = indexes.into_iter().filter(|&index| !stripe.is_missing(index));
        let sited = present.filter_map(|index| chart.site_of(stripe, index).map(|site| (index, site.clone())));
        let mut sited: Vec<(u8, Arc<Site>)> = sited.collect();
        let now_ms = self.inner.uptime.ms();
        sited.sort_by_key(|(_, site)| {
            let doubtful = !site.readable || !site.health.is_sound(now_ms);
            (doubtful, site.health.load() >> 20)
        });
        sited.into()
    }

    fn rebuild_rows(&self, rows: Rows<'_>, plan: &Plan, inputs: &[(u8, Bytes)]) -> Bytes {
        let payload = rows.stripe.fragment_payload(rows.index);
        let mut out = self.inner.pool.take(rows.bytes_in(rows.index));
        for row in rows.first..rows.first + rows.count {
            let mut cells: [&[u8]; WIDTH_MAX] = [&[]; WIDTH_MAX];
            for (cell, wanted) in cells.iter_mut().zip(plan.inputs()) {
                let (index, frames) = inputs.iter().find(|(index, _)| index == wanted).expect("the plan is over these");
                *cell = coded_cell(frames, rows.stripe.fragment_payload(*index), rows.first, row);
            }
            let range = frame_range(payload, row);
            let start = range.start - rows.first * FRAME_BYTES;
            let cell = &mut out[start..start + range.len() - TRAILER_BYTES];
            plan.rebuild(rows.index, &cells[..plan.inputs().len()], cell);
        }
        out.freeze()
    }
}

/// Returns the bytes of one row that the code runs over, in a run of frames that starts at row
/// `first` of a fragment that carries `payload` bytes.
fn coded_cell(frames: &[u8], payload: usize, first: usize, row: usize) -> &[u8] {
    let range = frame_range(payload, row);
    if payload == 0 || range.is_empty() {
        return &[];
    }
    let start = range.start - first * FRAME_BYTES;
    &frames[start..start + range.len() - TRAILER_BYTES]
}
