//! What has been decided before: outcomes by request id, client token, finished upload.
//!
//! Requests are remembered for [`REQUEST_MEMORY_MS`] and tokens as long as they ask, but never
//! more of them than [`REQUESTS_MAX`] and [`TOKENS_MAX`]: beyond that the ones that expire first
//! go early. Expired rows are removed a bounded number at a time, in entries whose index is a
//! multiple of [`SWEEP_INTERVAL`]; until then tokens count as forgotten, requests as remembered.
//!
//! A request that is forgotten raises the group's watermark to its issue time. Whatever was issued
//! at or below it and is not remembered may have been decided before, so it is refused: a late
//! repetition never takes effect twice, however early the table had to forget.

use super::rows::{self, Expiring, Remembered};
use super::store::{Family, KeyRange, View};
use super::work::{Work, count_down, count_up, refusal};
use super::{StateError, keys};
use keys::Memory;
use plinth_protocol::meta::{
    CLOCK_BOUND_MS, ClientToken, Outcome, REQUEST_MEMORY_MS, Refusal, RefusalKind, TOKEN_MEMORY_MS,
};
use plinth_protocol::{HybridTime, RequestId, UploadId};

/// Most requests remembered at once by a group: at 10,000 mutations a second still 100 s.
pub(super) const REQUESTS_MAX: u64 = 1_000_000;
/// Most client tokens remembered at once by a group.
pub(super) const TOKENS_MAX: u64 = 4_000_000;
/// Most finished uploads remembered at once by a group.
pub(super) const FINISHED_UPLOADS_MAX: u64 = 1_000_000;
/// Entries between two sweeps.
const SWEEP_INTERVAL: u64 = 16;
/// Rows that a sweep removes at most, beside two for each mutation of the entry.
const SWEEP_ROWS_MAX: usize = 256;

impl<V: View> Work<'_, V> {
    /// Returns what is remembered under an id. Whether it still counts is [`Work::valid`]'s to say.
    pub(super) fn recall(&self, kind: Memory, id: u128) -> Result<Option<Remembered>, StateError> {
        self.read(Family::Tokens, &keys::memory(kind, id))
    }

    /// Returns what is remembered where it has not expired.
    pub(super) fn valid<'r>(&self, row: &'r Option<Remembered>) -> Option<&'r Remembered> {
        row.as_ref().filter(|row| row.expires > self.expiry_now)
    }

    /// Refuses what may have been decided and forgotten, and what claims to come from the future: forgetting that
    /// would refuse everybody else. Without an issue time neither can be told.
    pub(super) fn check_issued(&self, issued: Option<HybridTime>) -> Result<(), Refusal> {
        let Some(issued) = issued else { return Ok(()) };
        if self.shard.record.forgotten.is_some_and(|forgotten| issued <= forgotten) {
            let text = "the request is as old as outcomes that are forgotten: it may have been decided before";
            return Err(refusal(RefusalKind::Expired, text));
        }
        if issued > self.now.after(CLOCK_BOUND_MS) {
            let ahead = issued.millis().saturating_sub(self.now.millis());
            return Err(refusal(RefusalKind::IssuedInFuture, format!("issued {ahead} ms after the group's time")));
        }
        Ok(())
    }

    /// Remembers what a request came to.
    pub(super) fn remember_request(&mut self, request: RequestId, outcome: &Outcome, issued: Option<HybridTime>) {
        let expiring = issued.map(|_| rows::encode(&Expiring { issued })).unwrap_or_default();
        self.remember(
            Memory::Request,
            request.0,
            None,
            REQUEST_MEMORY_MS,
            Fresh { outcome, parameters: None, expiring },
        );
    }

    /// Remembers what a token's request came to, where that was decided: success, 404 or 412.
    pub(super) fn remember_token(&mut self, token: &ClientToken, outcome: &Outcome, old: Option<Remembered>) {
        if let Outcome::Refused(refusal) = outcome {
            use RefusalKind::*;
            if !matches!(refusal.kind, PreconditionFailed | NoSuchKey | NoSuchBucket | NoSuchUpload) {
                return;
            }
        }
        let memory_ms = token.memory_ms.min(TOKEN_MEMORY_MS);
        self.remember(Memory::Token, token.scope, old, memory_ms, Fresh::of(outcome, token.parameters));
    }

    /// Remembers a finished upload with the hash of the part list that finished it (M5).
    pub(super) fn remember_upload(
        &mut self,
        upload: UploadId,
        list: u128,
        outcome: &Outcome,
    ) -> Result<(), StateError> {
        let old = self.recall(Memory::Upload, upload.0)?;
        self.remember(Memory::Upload, upload.0, old, TOKEN_MEMORY_MS, Fresh::of(outcome, list));
        Ok(())
    }

    fn remember(&mut self, kind: Memory, id: u128, old: Option<Remembered>, memory_ms: u64, fresh: Fresh<'_>) {
        match old {
            Some(old) => self.batch.delete(Family::TokenExpiry, keys::expiry(kind, old.expires, id)),
            None => count_up(self.memory(kind).count, 1),
        }
        let expires = HybridTime::from_millis(self.now.millis().saturating_add(memory_ms));
        let row = Remembered { expires, outcome: fresh.outcome.clone(), parameters: fresh.parameters };
        self.put(Family::Tokens, keys::memory(kind, id), &row);
        self.batch.put(Family::TokenExpiry, keys::expiry(kind, expires, id), fresh.expiring);
        let due = self.memory(kind).due;
        *due = Some(due.map_or(expires, |due| due.min(expires)));
    }

    fn memory(&mut self, kind: Memory) -> MemoryCounters<'_> {
        let shard = &mut self.shard.record;
        let (count, due, max) = match kind {
            Memory::Request => (&mut shard.requests, &mut shard.requests_due, requests_max()),
            Memory::Token => (&mut shard.tokens, &mut shard.tokens_due, TOKENS_MAX),
            Memory::Upload => (&mut shard.finished_uploads, &mut shard.uploads_due, FINISHED_UPLOADS_MAX),
        };
        MemoryCounters { count, due, max }
    }

    /// Removes expired rows, a bounded number of each kind.
    pub(super) fn forget_expired(&mut self, mutations: usize) -> Result<(), StateError> {
        if !self.index.is_multiple_of(SWEEP_INTERVAL) && (mutations as u64) < SWEEP_INTERVAL {
            return Ok(());
        }
        for kind in [Memory::Request, Memory::Token, Memory::Upload] {
            self.forget_kind(kind, SWEEP_ROWS_MAX + 2 * mutations)?;
        }
        Ok(())
    }

    fn forget_kind(&mut self, kind: Memory, limit: usize) -> Result<(), StateError> {
        let now = self.expiry_now;
        let MemoryCounters { count, due, max } = self.memory(kind);
        let mut surplus = count.saturating_sub(max);
        let Some(first) = due.filter(|due| *due <= now || surplus > 0) else {
            return Ok(());
        };
        // The walk starts at the first row that can be there, not at the graves of earlier ones.
        let range = KeyRange { start: keys::expiry(kind, first, 0), end: Some(vec![kind as u8 + 1]) };
        let rows = self.scan(Family::TokenExpiry, &range, limit + 1)?;
        let (mut next, mut forgotten) = (None, self.shard.record.forgotten);
        for (at, (key, value)) in rows.into_iter().enumerate() {
            let (expires, id) = keys::parse_expiry(&key).map_err(super::rows::unreadable(Family::TokenExpiry))?;
            if at == limit || (expires > now && surplus == 0) {
                next = Some(expires);
                break;
            }
            surplus = surplus.saturating_sub(1);
            if kind == Memory::Request && !value.is_empty() {
                forgotten = forgotten.max(rows::decode::<Expiring>(Family::TokenExpiry, &value)?.issued);
            }
            self.batch.delete(Family::Tokens, keys::memory(kind, id));
            self.batch.delete(Family::TokenExpiry, key);
            count_down(self.memory(kind).count, 1);
        }
        *self.memory(kind).due = next;
        self.shard.record.forgotten = forgotten;
        Ok(())
    }
}

#[cfg(not(test))]
const fn requests_max() -> u64 {
    REQUESTS_MAX
}

/// What is new about an outcome to be remembered.
struct Fresh<'a> {
    outcome: &'a Outcome,
    parameters: Option<u128>,
    /// The value of its expiry row.
    expiring: Vec<u8>,
}

impl<'a> Fresh<'a> {
    fn of(outcome: &'a Outcome, parameters: u128) -> Self {
        Fresh { outcome, parameters: Some(parameters), expiring: Vec::new() }
    }
}

struct MemoryCounters<'a> {
    count: &'a mut u64,
    due: &'a mut Option<HybridTime>,
    max: u64,
}

#[cfg(test)]
pub(super) use limited::{limit_requests, requests_max};

/// Lets a test fill the table.
#[cfg(test)]
mod limited {
    use std::cell::Cell;

    thread_local! {
        static LIMIT: Cell<u64> = const { Cell::new(super::REQUESTS_MAX) };
    }

    pub(crate) fn requests_max() -> u64 {
        LIMIT.get()
    }

    /// Sets how many requests are remembered at once, for this thread.
    pub(crate) fn limit_requests(count: u64) {
        LIMIT.set(count);
    }
}
