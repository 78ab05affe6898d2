//! Counters: what the client has done since its start.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

macro_rules! counters {
    ($($(#[$meta:meta])* $name:ident,)*) => {
        /// The live counters.
        #[derive(Default)]
        pub(crate) struct Counters { $(pub(crate) $name: Count,)* pub(crate) times: [Timer; 4] }

        /// Counters as they stood at one moment; each only ever grows, gauges apart.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub struct CounterSnapshot {
            $($(#[$meta])* pub $name: u64,)*
            /// Bytes of stripe buffers that writers hold now (a gauge).
            pub write_bytes_held: u64,
            /// Bytes that readers hold or have asked for now (a gauge).
            pub read_bytes_held: u64,
            /// Calls to metadata groups that were answered.
            pub meta_calls: CallTimes,
            /// Fragment reads that were answered.
            pub read_calls: CallTimes,
            /// Fragment writes that were answered.
            pub write_calls: CallTimes,
            /// Deletes and inquiries at disks that were answered.
            pub other_calls: CallTimes,
        }

        impl Counters {
            pub(crate) fn snapshot(&self) -> CounterSnapshot {
                CounterSnapshot {
                    $($name: self.$name.get(),)*
                    write_bytes_held: 0,
                    read_bytes_held: 0,
                    meta_calls: self.times[Timed::Meta as usize].get(),
                    read_calls: self.times[Timed::Read as usize].get(),
                    write_calls: self.times[Timed::Write as usize].get(),
                    other_calls: self.times[Timed::Other as usize].get(),
                }
            }
        }
    };
}

counters! {
    /// Reads of a fragment's frames from the disk that holds them.
    fragment_reads_plain,
    /// Ranges that were rebuilt from other fragments.
    fragment_reads_degraded,
    /// Of those: begun because the plain read was slow.
    fragment_reads_hedged,
    /// Payload bytes handed to readers.
    bytes_read,
    /// Object bytes in stripes that are durable.
    bytes_written,
    /// Stripes that are durable.
    stripes_written,
    /// Stripes that were sent again to another placement group under a new id.
    stripes_resent,
    /// Stripes answered with one fragment owed, because a disk was slow.
    quorums_hedged,
    /// Stripes answered with one fragment owed, because a disk failed.
    quorums_short,
    /// Fragment writes that failed.
    fragment_writes_failed,
    /// Fragments whose frames did not verify.
    fragments_corrupt,
    /// Fragments that a disk did not have although a row names them.
    fragments_absent,
    /// Calls that were refused because a queue was full, and were repeated.
    busy_waits,
    /// Calls to a metadata group that were repeated.
    meta_retries,
    /// Newer maps that were taken.
    maps_taken,
    /// Owed fragments that were rebuilt and stored.
    fragments_filled_in,
    /// Fragments that disks acknowledged as deleted.
    fragments_deleted,
    /// Deferred deletes that were carried out.
    deletes_finished,
}

/// What a [`Timer`] times.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Timed {
    Meta = 0,
    Read = 1,
    Write = 2,
    Other = 3,
}

/// A counter that only grows.
#[derive(Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    pub(crate) fn add(&self, amount: u64) {
        self.0.fetch_add(amount, Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Upper bounds of the classes of [`CallTimes`] in microseconds; the last class has none.
pub const CALL_TIME_BOUNDS_US: [u64; 11] =
    [250, 500, 1000, 2500, 5000, 10_000, 25_000, 50_000, 100_000, 500_000, 2_000_000];

/// How long calls took: a histogram.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CallTimes {
    /// Calls.
    pub count: u64,
    /// Their durations together, in microseconds.
    pub sum_us: u64,
    /// Calls by class: class i holds those up to [`CALL_TIME_BOUNDS_US`]`[i]`, the last all others.
    pub classes: [u64; 12],
}

/// A live histogram.
#[derive(Default)]
pub(crate) struct Timer {
    sum_us: AtomicU64,
    classes: [AtomicU64; 12],
}

impl Timer {
    pub(crate) fn note(&self, took: Duration) {
        let us = took.as_micros() as u64;
        let class = CALL_TIME_BOUNDS_US.partition_point(|&bound| bound < us);
        self.classes[class].fetch_add(1, Relaxed);
        self.sum_us.fetch_add(us, Relaxed);
    }

    fn get(&self) -> CallTimes {
        let classes = std::array::from_fn(|class| self.classes[class].load(Relaxed));
        CallTimes { count: classes.iter().sum(), sum_us: self.sum_us.load(Relaxed), classes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_fall_into_their_classes() {
        let timer = Timer::default();
        for us in [1, 250, 251, 3_000_000] {
            timer.note(Duration::from_micros(us));
        }
        let times = timer.get();
        assert_eq!((times.count, times.sum_us), (4, 3_000_502));
        assert_eq!((times.classes[0], times.classes[1], times.classes[11]), (2, 1, 1));
    }
}
