//! What this client has seen of each disk: load, latency, strikes.
//!
//! Only group 0 decides a disk's state; this is the client's own memory of the last seconds, so that
//! a dead, slow or full disk costs one request a wait, not every request. A disk that failed or
//! stalled is avoided for a while that doubles with every further strike. When the while is over,
//! one read tries the disk again and the others go on avoiding it until that one succeeded. Writes
//! never try: they do without the disk until a probe in the background has been answered.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::time::Duration;
use tokio::time::Instant;

/// How long a disk is avoided after its first strike; doubles with each further one.
const AVOID_MS_MIN: u64 = 500;
/// Longest time for which a disk is avoided without another try.
const AVOID_MS_MAX: u64 = 15_000;
/// How long the one request that tries a disk again keeps the others away.
const RETRY_GAP_MS: u64 = 500;
/// How long a disk that said it was full gets no new stripes.
const FULL_MS: u64 = 10_000;

/// Milliseconds since the client's start, on the monotonic clock.
pub(crate) struct Uptime {
    start: Instant,
}

impl Uptime {
    pub(crate) fn new() -> Self {
        Uptime { start: Instant::now() }
    }

    pub(crate) fn ms(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }
}

/// The client's memory of one disk.
#[derive(Default)]
pub(crate) struct DiskHealth {
    inflight_bytes: AtomicU64,
    latency_us: AtomicU64,
    strikes: AtomicU32,
    avoid_until_ms: AtomicU64,
    /// Strikes since the last write that was answered: reads that succeed say nothing of writes.
    write_strikes: AtomicU32,
    /// When a probe is due.
    probe_at_ms: AtomicU64,
    /// No stripe goes to the disk until a probe has been answered.
    is_out: AtomicBool,
    /// A task probes the disk.
    is_probed: AtomicBool,
    full_until_ms: AtomicU64,
}

impl DiskHealth {
    /// Returns whether a request should go to the disk now. After strikes, every
    /// [`RETRY_GAP_MS`] one caller is let through.
    pub(crate) fn admits(&self, now_ms: u64) -> bool {
        if self.strikes.load(Relaxed) == 0 {
            return true;
        }
        let until = self.avoid_until_ms.load(Relaxed);
        now_ms >= until && self.avoid_until_ms.compare_exchange(until, now_ms + RETRY_GAP_MS, Relaxed, Relaxed).is_ok()
    }

    /// Returns whether the disk is free of fresh strikes; does not count as a try.
    pub(crate) fn is_sound(&self, now_ms: u64) -> bool {
        self.strikes.load(Relaxed) == 0 || now_ms >= self.avoid_until_ms.load(Relaxed)
    }

    /// Returns whether new stripes may go to the disk.
    pub(crate) fn takes_stripes(&self, now_ms: u64) -> bool {
        !self.is_out.load(SeqCst) && now_ms >= self.full_until_ms.load(Relaxed)
    }

    /// Notes a failure or a stall.
    pub(crate) fn strike(&self, now_ms: u64) {
        let strikes = self.strikes.fetch_add(1, Relaxed).min(16);
        let avoid = (AVOID_MS_MIN << strikes).min(AVOID_MS_MAX);
        self.avoid_until_ms.fetch_max(now_ms + avoid, Relaxed);
        let strikes = self.write_strikes.fetch_add(1, Relaxed).min(16);
        let pause = (AVOID_MS_MIN << strikes).min(AVOID_MS_MAX);
        self.probe_at_ms.fetch_max(now_ms + pause, Relaxed);
        self.is_out.store(true, SeqCst);
    }

    /// Returns whether the caller shall begin to probe the disk: it is out, and nobody else does.
    pub(crate) fn begins_probing(&self) -> bool {
        self.is_out.load(SeqCst) && self.is_probed.compare_exchange(false, true, SeqCst, SeqCst).is_ok()
    }

    /// Returns how long to wait before the next probe.
    pub(crate) fn probe_in(&self, now_ms: u64) -> Duration {
        Duration::from_millis(self.probe_at_ms.load(Relaxed).saturating_sub(now_ms))
    }

    /// A probe has been answered in time: stripes may go to the disk again. A strike soon after keeps it out for
    /// longer than the last one did.
    pub(crate) fn is_back(&self) {
        self.is_out.store(false, SeqCst);
    }

    /// The caller probes no more. Who strikes from now on begins anew.
    pub(crate) fn ends_probing(&self) {
        self.is_probed.store(false, SeqCst);
    }

    /// Notes that a write was answered in time.
    pub(crate) fn stored(&self) {
        if self.write_strikes.load(Relaxed) != 0 {
            self.write_strikes.store(0, Relaxed);
            self.is_out.store(false, SeqCst);
        }
    }

    /// Notes an answer and how long it took.
    pub(crate) fn answered(&self, took: Duration) {
        if self.strikes.load(Relaxed) != 0 {
            self.strikes.store(0, Relaxed);
        }
        let (before, us) = (self.latency_us.load(Relaxed), took.as_micros() as u64);
        self.latency_us.store(before - before / 8 + us / 8, Relaxed);
    }

    /// Notes that the disk has no room.
    pub(crate) fn is_full(&self, now_ms: u64) {
        self.full_until_ms.store(now_ms + FULL_MS, Relaxed);
    }

    /// Returns a figure to compare disks by: bytes on their way, and latency as bytes at 100 MB/s.
    pub(crate) fn load(&self) -> u64 {
        self.inflight_bytes.load(Relaxed) + self.latency_us.load(Relaxed) * 100
    }

    /// Counts bytes as on their way until the returned guard is dropped.
    pub(crate) fn carry(self: &Arc<Self>, bytes: usize) -> Carried {
        self.inflight_bytes.fetch_add(bytes as u64, Relaxed);
        Carried { health: self.clone(), bytes: bytes as u64 }
    }
}

/// Bytes on their way to or from a disk.
pub(crate) struct Carried {
    health: Arc<DiskHealth>,
    bytes: u64,
}

impl Drop for Carried {
    fn drop(&mut self) {
        self.health.inflight_bytes.fetch_sub(self.bytes, Relaxed);
    }
}

/// A running estimate of the 95th percentile: each sample above it raises it by 19 parts, each
/// sample below lowers it by one part, so that it rests where one sample in twenty is above.
pub(crate) struct Percentile95 {
    us: AtomicU64,
}

impl Percentile95 {
    /// Starts at `first`.
    pub(crate) fn new(first: Duration) -> Self {
        Percentile95 { us: AtomicU64::new(first.as_micros() as u64) }
    }

    /// Takes a sample in.
    pub(crate) fn note(&self, took: Duration) {
        let before = self.us.load(Relaxed);
        let part = before / 160 + 1;
        let after = if took.as_micros() as u64 > before { before + 19 * part } else { before.saturating_sub(part) };
        self.us.store(after.max(1), Relaxed);
    }

    /// Returns the estimate.
    pub(crate) fn get(&self) -> Duration {
        Duration::from_micros(self.us.load(Relaxed))
    }
}

/// Keeps extra work below a share of the ordinary: every ordinary request earns two hundredths of
/// an extra one, up to a small stock.
pub(crate) struct ExtraShare {
    hundredths: AtomicU64,
}

/// Extra reads in percent of ordinary ones.
const EXTRA_PERCENT: u64 = 2;
/// Extra reads that may be saved up while nothing is slow.
const EXTRA_STOCK_MAX: u64 = 16;

impl ExtraShare {
    pub(crate) fn new() -> Self {
        ExtraShare { hundredths: AtomicU64::new(100 * EXTRA_STOCK_MAX / 4) }
    }

    /// Counts an ordinary request.
    pub(crate) fn earn(&self) {
        if self.hundredths.load(Relaxed) < 100 * EXTRA_STOCK_MAX {
            self.hundredths.fetch_add(EXTRA_PERCENT, Relaxed);
        }
    }

    /// Takes the right to one extra request, where there is any.
    pub(crate) fn spend(&self) -> bool {
        self.hundredths.fetch_update(Relaxed, Relaxed, |stock| stock.checked_sub(100)).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn struck_disks_are_tried_by_one_request_at_a_time() {
        let disk = DiskHealth::default();
        assert!(disk.admits(0) && disk.admits(0));
        disk.strike(1000);
        assert!(!disk.admits(1000) && !disk.is_sound(1499));
        assert!(disk.is_sound(1500) && disk.admits(1500));
        assert!(!disk.admits(1500), "the first caller keeps the others away");
        disk.strike(1500);
        assert!(!disk.admits(2400) && disk.admits(2500), "the second strike doubles the time");
        disk.answered(Duration::from_millis(1));
        assert!(disk.admits(2501) && disk.admits(2501));
    }

    #[test]
    fn strikes_never_avoid_for_longer_than_the_bound() {
        let disk = DiskHealth::default();
        (0..100).for_each(|_| disk.strike(0));
        assert!(disk.is_sound(AVOID_MS_MAX));
    }

    #[test]
    fn disks_that_struck_take_stripes_only_after_a_probe() {
        let disk = DiskHealth::default();
        assert!(disk.takes_stripes(0) && !disk.begins_probing());
        disk.strike(1000);
        assert!(!disk.takes_stripes(60_000), "time alone brings no disk back");
        assert!(disk.begins_probing() && !disk.begins_probing(), "one task probes");
        assert_eq!(disk.probe_in(1000), Duration::from_millis(500));
        disk.is_back();
        disk.ends_probing();
        assert!(disk.takes_stripes(1500));
        // It answers reads and probes, and stalls on writes: each time it is out for longer.
        disk.answered(Duration::from_millis(1));
        disk.strike(2000);
        assert_eq!(disk.probe_in(2000), Duration::from_millis(1000));
        disk.stored();
        disk.strike(4000);
        assert_eq!(disk.probe_in(4000), Duration::from_millis(500), "a write that was answered is a new start");
    }

    #[test]
    fn full_disks_take_no_stripes_but_serve() {
        let disk = DiskHealth::default();
        disk.is_full(5);
        assert!(disk.admits(6) && !disk.takes_stripes(6) && disk.takes_stripes(5 + FULL_MS));
    }

    #[test]
    fn the_estimate_rests_near_the_95th_percentile() {
        let estimate = Percentile95::new(Duration::from_millis(50));
        for sample in 0..40_000u64 {
            estimate.note(Duration::from_micros((sample * 7919) % 1000));
        }
        let us = estimate.get().as_micros();
        assert!((800..=1100).contains(&us), "{us}");
    }

    #[test]
    fn extras_stay_below_two_percent() {
        let share = ExtraShare::new();
        let mut extras = 0;
        for _ in 0..10_000 {
            share.earn();
            extras += u64::from(share.spend());
        }
        assert!((150..=210).contains(&extras), "{extras}");
    }

    #[test]
    fn carried_bytes_are_dropped_with_their_guard() {
        let disk = Arc::new(DiskHealth::default());
        let carried = disk.carry(100);
        assert_eq!(disk.load(), 100);
        drop(carried);
        assert_eq!(disk.load(), 0);
    }
}
