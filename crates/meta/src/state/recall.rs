//! What has been decided before: outcomes by request id, client token, finished upload.
//!
//! Requests are remembered for [`REQUEST_MEMORY_MS`] and tokens as long as they ask, but never
//! more of them than [`REQUESTS_MAX`] and [`TOKENS_MAX`]: beyond that the ones that expire first
//! go early. Expired rows are removed a bounded number at a time, in entries whose index is a
//! multiple of [`SWEEP_INTERVAL`]; until then they count as forgotten.

use super::rows::Remembered;
use super::store::{Family, KeyRange, View};
use super::work::{Work, count_down, count_up};
use super::{StateError, keys};
use keys::Memory;
use plinth_protocol::meta::{ClientToken, Outcome, REQUEST_MEMORY_MS, RefusalKind, TOKEN_MEMORY_MS};
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
        row.as_ref().filter(|row| row.expires > self.now)
    }

    /// Remembers what a request came to, in place of the expired row that was found under its id.
    pub(super) fn remember_request(&mut self, request: RequestId, outcome: &Outcome, old: Option<Remembered>) {
        self.remember(Memory::Request, request.0, old, REQUEST_MEMORY_MS, None, outcome);
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
        self.remember(Memory::Token, token.scope, old, memory_ms, Some(token.parameters), outcome);
    }

    /// Remembers a finished upload with the hash of the part list that finished it (M5).
    pub(super) fn remember_upload(
        &mut self,
        upload: UploadId,
        list: u128,
        outcome: &Outcome,
    ) -> Result<(), StateError> {
        let old = self.recall(Memory::Upload, upload.0)?;
        self.remember(Memory::Upload, upload.0, old, TOKEN_MEMORY_MS, Some(list), outcome);
        Ok(())
    }

    fn remember(
        &mut self,
        kind: Memory,
        id: u128,
        old: Option<Remembered>,
        memory_ms: u64,
        parameters: Option<u128>,
        outcome: &Outcome,
    ) {
        match old {
            Some(old) => self.batch.delete(Family::TokenExpiry, keys::expiry(kind, old.expires, id)),
            None => count_up(self.memory(kind).count, 1),
        }
        let expires = HybridTime::from_millis(self.now.millis() + memory_ms);
        let row = Remembered { expires, outcome: outcome.clone(), parameters };
        self.put(Family::Tokens, keys::memory(kind, id), &row);
        self.batch.put(Family::TokenExpiry, keys::expiry(kind, expires, id), Vec::new());
        let due = self.memory(kind).due;
        *due = Some(due.map_or(expires, |due| due.min(expires)));
    }

    fn memory(&mut self, kind: Memory) -> MemoryCounters<'_> {
        let shard = &mut self.shard.record;
        let (count, due, max) = match kind {
            Memory::Request => (&mut shard.requests, &mut shard.requests_due, REQUESTS_MAX),
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
        let now = self.now;
        let MemoryCounters { count, due, max } = self.memory(kind);
        let mut surplus = count.saturating_sub(max);
        let Some(first) = due.filter(|due| *due <= now || surplus > 0) else {
            return Ok(());
        };
        // The walk starts at the first row that can be there, not at the graves of earlier ones.
        let range = KeyRange { start: keys::expiry(kind, first, 0), end: Some(vec![kind as u8 + 1]) };
        let rows = self.scan(Family::TokenExpiry, &range, limit + 1)?;
        let mut next = None;
        for (at, (key, _)) in rows.into_iter().enumerate() {
            let (expires, id) = keys::parse_expiry(&key).map_err(super::rows::unreadable(Family::TokenExpiry))?;
            if at == limit || (expires > now && surplus == 0) {
                next = Some(expires);
                break;
            }
            surplus = surplus.saturating_sub(1);
            self.batch.delete(Family::Tokens, keys::memory(kind, id));
            self.batch.delete(Family::TokenExpiry, key);
            count_down(self.memory(kind).count, 1);
        }
        *self.memory(kind).due = next;
        Ok(())
    }
}

struct MemoryCounters<'a> {
    count: &'a mut u64,
    due: &'a mut Option<HybridTime>,
    max: u64,
}
