//! Counters of one disk: written by its thread, read by whoever exports metrics.
//!
//! Relaxed atomics: each figure is right for itself, a snapshot of several is not of one instant.

use plinth_protocol::storage::IoClass;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Buckets of a histogram.
pub const HISTOGRAM_BUCKETS: usize = 20;

/// Counts values in buckets whose bounds double.
pub struct Histogram {
    /// Bound of the first bucket, in the histogram's unit.
    first: u64,
    buckets: [AtomicU64; HISTOGRAM_BUCKETS],
    sum: AtomicU64,
}

/// A histogram at one moment: bucket i counts values above `bounds[i−1]` up to `bounds[i]`; the last one also
/// what is above its bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistogramSnapshot {
    /// Upper bounds: microseconds for durations, plain numbers for sizes.
    pub bounds: [u64; HISTOGRAM_BUCKETS],
    /// Values in each bucket.
    pub counts: [u64; HISTOGRAM_BUCKETS],
    /// Sum of all values, in the unit of the bounds.
    pub sum: u64,
}

impl Histogram {
    /// Makes an empty histogram whose first bucket ends at `first`, at least 1.
    pub fn new(first: u64) -> Self {
        Histogram { first: first.max(1), buckets: Default::default(), sum: AtomicU64::new(0) }
    }

    /// Counts a value.
    pub fn record(&self, value: u64) {
        let multiple = value.div_ceil(self.first).clamp(1, 1 << HISTOGRAM_BUCKETS);
        let doublings = multiple.next_power_of_two().trailing_zeros() as usize;
        self.buckets[doublings.min(HISTOGRAM_BUCKETS - 1)].fetch_add(1, Relaxed);
        self.sum.fetch_add(value.min(1 << 50), Relaxed);
    }

    /// Counts a duration in microseconds.
    pub fn record_duration(&self, duration: Duration) {
        self.record(duration.as_micros().min(u128::from(u64::MAX)) as u64);
    }

    /// Returns the counts as they stand.
    pub fn snapshot(&self) -> HistogramSnapshot {
        HistogramSnapshot {
            bounds: std::array::from_fn(|at| self.first << at),
            counts: std::array::from_fn(|at| self.buckets[at].load(Relaxed)),
            sum: self.sum.load(Relaxed),
        }
    }
}

impl HistogramSnapshot {
    /// Returns how many values were counted.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }
}

macro_rules! counters {
    ($($(#[$meta:meta])* $name:ident),* $(,)?) => {
        /// Live counters of one disk.
        pub struct DiskStats {
            /// Time of each batch from submission to durable, in microseconds.
            pub(crate) sync: Histogram,
            /// Records in each durable batch.
            pub(crate) batch_records: Histogram,
            /// Time from arrival to answer, by class, in microseconds.
            pub(crate) operations: [Histogram; IoClass::ALL.len()],
            /// Why the disk is fenced, once it is.
            pub(crate) fenced: OnceLock<String>,
            $(pub(crate) $name: AtomicU64,)*
        }

        /// The counters of one disk at one moment.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct DiskStatsSnapshot {
            /// Time of each batch from submission to durable, in microseconds.
            pub sync: HistogramSnapshot,
            /// Records in each durable batch.
            pub batch_records: HistogramSnapshot,
            /// Time from arrival to answer in microseconds, in the order of [`IoClass::ALL`].
            pub operations: [HistogramSnapshot; IoClass::ALL.len()],
            /// Why the disk is fenced, where it is.
            pub fenced: Option<String>,
            $($(#[$meta])* pub $name: u64,)*
        }

        impl Default for DiskStats {
            fn default() -> Self {
                DiskStats {
                    sync: Histogram::new(50),
                    batch_records: Histogram::new(1),
                    operations: std::array::from_fn(|_| Histogram::new(50)),
                    fenced: OnceLock::new(),
                    $($name: AtomicU64::new(0),)*
                }
            }
        }

        impl DiskStats {
            /// Returns all counters as they stand.
            pub fn snapshot(&self) -> DiskStatsSnapshot {
                DiskStatsSnapshot {
                    sync: self.sync.snapshot(),
                    batch_records: self.batch_records.snapshot(),
                    operations: std::array::from_fn(|at| self.operations[at].snapshot()),
                    fenced: self.fenced.get().cloned(),
                    $($name: self.$name.load(Relaxed),)*
                }
            }
        }
    };
}

counters! {
    /// Bytes of frames stored by puts.
    written_bytes,
    /// Bytes of frames returned by reads.
    read_bytes,
    /// Bytes of frames that compaction moved.
    moved_bytes,
    /// Reads or writes that the device failed.
    errors_eio,
    /// Requests whose deadline passed before they began.
    errors_timeout,
    /// Frames that failed their check, stored or received.
    errors_checksum,
    /// Requests refused because a queue was full.
    refused_busy,
    /// Puts refused because the disk is full.
    refused_full,
    /// Reads that nobody waited for any more when their turn came.
    cancelled,
    /// Tombstones that compaction wrote anew.
    moved_tombstones,
    /// Segments released for reuse by compaction.
    segments_released,
    /// Checkpoints of the index completed.
    checkpoints,
    /// Bytes of live records now.
    used_bytes,
    /// Bytes of all segments that the disk may have.
    size_bytes,
    /// Used bytes from which on puts are refused.
    write_stop_bytes,
    /// Fragments in the index now.
    fragments,
    /// Quarantined fragments and damage found at start.
    quarantined,
}

/// Adds to a counter.
pub(crate) fn add(counter: &AtomicU64, amount: u64) {
    counter.fetch_add(amount, Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_fall_into_the_bucket_that_bounds_them() {
        let histogram = Histogram::new(50);
        for value in [0, 50, 51, 100, 101, u64::MAX] {
            histogram.record(value);
        }
        let snapshot = histogram.snapshot();
        assert_eq!(snapshot.counts[..3], [2, 2, 1]);
        assert_eq!(snapshot.counts[HISTOGRAM_BUCKETS - 1], 1);
        assert_eq!((snapshot.bounds[0], snapshot.bounds[1], snapshot.count()), (50, 100, 6));
    }
}
