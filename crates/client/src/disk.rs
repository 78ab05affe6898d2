//! Calls to one disk, and what their outcomes say about it.

use crate::chart::Site;
use crate::client::{Client, Inner, unexpected};
use crate::counters::Timed;
use crate::health::DiskHealth;
use bytes::Bytes;
use plinth_protocol::frame::verify_frames;
use plinth_protocol::storage::{DeleteFragments, IoClass, ReadFrames, StorageAction, StorageReply, StorageRequest};
use plinth_protocol::stripe::FragmentHeader;
use plinth_protocol::wire::Wire;
use plinth_protocol::{DiskId, Failure, FailureKind, FragmentId, Method, StripeId};
use plinth_transport::{Call, Reply};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::time::Instant;

/// Longest wait for a fragment to be durable.
const PUT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for frames.
const READ_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for a delete or an inquiry.
const OTHER_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest total of pauses that a disk's full queue may impose on one request.
const BUSY_WAIT_MAX: Duration = Duration::from_secs(2);
/// Shortest and longest pause before a request to a full queue is repeated.
const BUSY_PAUSE_MIN: Duration = Duration::from_millis(2);
const BUSY_PAUSE_MAX: Duration = Duration::from_millis(500);

impl Client {
    /// Stores a fragment durably.
    pub(crate) async fn put_fragment(
        &self,
        site: &Site,
        class: IoClass,
        header: FragmentHeader,
        frames: Bytes,
    ) -> Result<(), Failure> {
        let _carried = site.health.carry(frames.len());
        let started = Instant::now();
        let reply = self.ask_disk(site, class, StorageAction::Put(header), Some(frames), PUT_TIMEOUT).await;
        match reply {
            Ok((StorageReply::Stored, _)) => {
                site.health.stored();
                self.inner.counters.times[Timed::Write as usize].note(started.elapsed());
                Ok(())
            }
            Ok(_) => Err(unexpected("Put")),
            Err(failure) => {
                self.inner.counters.fragment_writes_failed.add(1);
                Err(failure)
            }
        }
    }

    /// Reads `count` frames of a fragment from frame `first` on and verifies each; `bytes` is what
    /// they must amount to. `Corrupt` where they are damaged or another fragment's.
    pub(crate) async fn read_frames(
        &self,
        site: &Site,
        class: IoClass,
        fragment: FragmentId,
        first: usize,
        count: usize,
        bytes: usize,
    ) -> Result<Bytes, Failure> {
        let _carried = site.health.carry(bytes);
        let started = Instant::now();
        let action = StorageAction::Read(ReadFrames { fragment, first: first as u16, count: count as u16 });
        let reply = self.ask_disk(site, class, action, None, READ_TIMEOUT).await;
        let counters = &self.inner.counters;
        let (answer, reply) = match reply {
            Ok(answered) => answered,
            Err(failure) => {
                match failure.kind {
                    FailureKind::NotFound => counters.fragments_absent.add(1),
                    FailureKind::Corrupt => counters.fragments_corrupt.add(1),
                    _ => return Err(failure),
                }
                tracing::warn!(%fragment, disk = %site.disk, %failure, "fragment damaged or absent");
                return Err(failure);
            }
        };
        if answer != StorageReply::Frames || reply.payload.len() != bytes {
            return Err(unexpected("Read"));
        }
        if let Err(error) = verify_frames(&reply.payload, fragment, first as u16) {
            counters.fragments_corrupt.add(1);
            tracing::warn!(%fragment, disk = %site.disk, %error, "fragment damaged");
            return Err(Failure::new(FailureKind::Corrupt, format!("{fragment}: {error}")));
        }
        counters.times[Timed::Read as usize].note(started.elapsed());
        Ok(reply.payload)
    }

    /// Deletes fragments durably; returns how many there were.
    pub(crate) async fn delete_fragments(&self, site: &Site, fragments: Vec<FragmentId>) -> Result<u32, Failure> {
        let started = Instant::now();
        let action = StorageAction::Delete(DeleteFragments { fragments });
        match self.ask_disk(site, IoClass::Background, action, None, OTHER_TIMEOUT).await? {
            (StorageReply::Deleted(deleted), _) => {
                self.inner.counters.times[Timed::Other as usize].note(started.elapsed());
                Ok(deleted.found)
            }
            _ => Err(unexpected("Delete")),
        }
    }

    /// Returns whether the disk has a fragment.
    pub(crate) async fn has_fragment(&self, site: &Site, fragment: FragmentId) -> Result<bool, Failure> {
        match self.ask_disk(site, IoClass::Repair, StorageAction::Stat(fragment), None, OTHER_TIMEOUT).await {
            Ok((StorageReply::Header(_), _)) => Ok(true),
            Ok(_) => Err(unexpected("Stat")),
            Err(failure) if failure.kind == FailureKind::NotFound => Ok(false),
            Err(failure) => Err(failure),
        }
    }

    /// Sends a request to a disk; waits and repeats while its queue is full. Notes at the disk's
    /// health what the outcome says.
    async fn ask_disk(
        &self,
        site: &Site,
        class: IoClass,
        action: StorageAction,
        payload: Option<Bytes>,
        timeout: Duration,
    ) -> Result<(StorageReply, Reply), Failure> {
        let is_put = matches!(action, StorageAction::Put(_));
        let header = StorageRequest { disk: site.disk, incarnation: site.incarnation, class, action }.to_bytes();
        let payload: Vec<Bytes> = payload.into_iter().collect();
        let mut waited = Duration::ZERO;
        loop {
            let started = Instant::now();
            let call =
                Call { method: Method::Storage, header: header.clone(), payload: payload.clone(), deadline: timeout };
            let failure = match self.inner.link.call(&site.peer, call).await {
                Ok(reply) => {
                    site.health.answered(started.elapsed());
                    return Ok((StorageReply::decode(&reply.header)?, reply));
                }
                Err(failure) => failure,
            };
            if failure.kind == FailureKind::Busy && waited < BUSY_WAIT_MAX {
                self.inner.counters.busy_waits.add(1);
                let told = Duration::from_millis(failure.retry_after_ms.unwrap_or(0));
                let pause = self.inner.chance.jitter(told.clamp(BUSY_PAUSE_MIN, BUSY_PAUSE_MAX));
                waited += pause;
                tokio::time::sleep(pause).await;
                continue;
            }
            self.note_failure(site, is_put, &failure);
            return Err(failure);
        }
    }

    /// Gives the disk a strike: it gets no more stripes until a probe in the background has been answered.
    pub(crate) fn strike(&self, site: &Site) {
        site.health.strike(self.inner.uptime.ms());
        if site.health.begins_probing() {
            let (inner, disk, health) = (Arc::downgrade(&self.inner), site.disk, site.health.clone());
            tokio::spawn(probe_until_back(inner, disk, health));
        }
    }

    /// Asks the disk's thread something small. True where it answers, whatever it says, within the time that a write
    /// would be waited for.
    async fn probe(&self, site: &Site) -> bool {
        let action = StorageAction::Stat(FragmentId { stripe: StripeId(0), index: 0 });
        let header = StorageRequest { disk: site.disk, incarnation: site.incarnation, class: IoClass::Read, action };
        let call = Call {
            method: Method::Storage,
            header: header.to_bytes(),
            payload: Vec::new(),
            deadline: self.write_patience(),
        };
        match self.inner.link.call(&site.peer, call).await {
            Ok(_) => true,
            Err(failure) => matches!(failure.kind, FailureKind::NotFound | FailureKind::Busy),
        }
    }

    /// Notes at a disk's health what a failure says about it.
    fn note_failure(&self, site: &Site, is_put: bool, failure: &Failure) {
        let now_ms = self.inner.uptime.ms();
        match failure.kind {
            FailureKind::Full => site.health.is_full(now_ms),
            // The fragment is there, or was deleted. It may also be that we know the disk under a stale incarnation.
            FailureKind::Conflict if is_put => self.refresh_map_soon(),
            // The disk answered; the trouble is with one fragment or with the request.
            FailureKind::NotFound | FailureKind::Corrupt | FailureKind::Invalid => {}
            // Overloaded or gone, fenced, or known to us under a stale incarnation.
            _ => {
                self.strike(site);
                tracing::debug!(disk = %site.disk, %failure, "disk failed a request");
                self.refresh_map_soon();
            }
        }
    }
}

/// Probes a disk until it answers, is gone from the map, or the client has ended.
async fn probe_until_back(inner: Weak<Inner>, disk: DiskId, health: Arc<DiskHealth>) {
    loop {
        let Some(pause) = inner.upgrade().map(|inner| health.probe_in(inner.uptime.ms())) else { return };
        tokio::time::sleep(pause).await;
        let Some(inner) = inner.upgrade() else { return };
        let client = Client { inner };
        let chart = client.chart();
        // Under another incarnation it is another disk, with a health of its own.
        let Some(site) = chart.site(disk).filter(|site| Arc::ptr_eq(&site.health, &health)) else {
            return health.ends_probing();
        };
        if !client.probe(site).await {
            health.strike(client.inner.uptime.ms());
            continue;
        }
        tracing::debug!(%disk, "disk answers again");
        health.is_back();
        health.ends_probing();
        // A strike that came in between has found us still probing.
        if !health.begins_probing() {
            return;
        }
    }
}
