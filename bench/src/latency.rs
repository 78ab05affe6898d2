//! Latencies in a histogram of fixed size: 64 steps to every doubling, so that a percentile is off by at most 1.6 %.

use std::time::Duration;

const STEPS: usize = 64;
const STEP_BITS: u32 = STEPS.ilog2();

/// Counts of latencies in microseconds.
#[derive(Clone)]
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
    max_microseconds: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Histogram { counts: vec![0; STEPS * (64 - STEP_BITS as usize + 1)], total: 0, max_microseconds: 0 }
    }
}

impl Histogram {
    /// Counts one latency.
    pub fn record(&mut self, latency: Duration) {
        let microseconds = latency.as_micros().min(u64::MAX as u128) as u64;
        self.counts[bucket(microseconds)] += 1;
        self.total += 1;
        self.max_microseconds = self.max_microseconds.max(microseconds);
    }

    /// Adds what another histogram counted.
    pub fn merge(&mut self, other: &Histogram) {
        self.counts.iter_mut().zip(&other.counts).for_each(|(mine, more)| *mine += more);
        self.total += other.total;
        self.max_microseconds = self.max_microseconds.max(other.max_microseconds);
    }

    /// How many latencies were counted.
    pub fn count(&self) -> u64 {
        self.total
    }

    /// The latency in milliseconds that a share `quantile` (0 to 1) of all stays within; 0 when nothing was counted.
    pub fn quantile_ms(&self, quantile: f64) -> f64 {
        let wanted = ((self.total as f64 * quantile).ceil() as u64).max(1);
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return upper_end(index).min(self.max_microseconds) as f64 / 1000.0;
            }
        }
        0.0
    }

    /// The longest latency in milliseconds.
    pub fn max_ms(&self) -> f64 {
        self.max_microseconds as f64 / 1000.0
    }
}

fn bucket(value: u64) -> usize {
    if value < STEPS as u64 {
        return value as usize;
    }
    let shift = value.ilog2() - STEP_BITS;
    (shift as usize + 1) * STEPS + ((value >> shift) as usize - STEPS)
}

/// The largest value that falls into a bucket.
fn upper_end(index: usize) -> u64 {
    if index < STEPS {
        return index as u64;
    }
    let shift = (index / STEPS - 1) as u32;
    let first = ((index % STEPS + STEPS) as u64) << shift;
    first + ((1u64 << shift) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_lies_in_its_bucket_within_the_promised_error() {
        for value in (0..5000).chain([1 << 20, (1 << 20) + 12345, u64::MAX / 3, u64::MAX]) {
            let end = upper_end(bucket(value));
            assert!(end >= value && end - value <= value / STEPS as u64, "{value} {end}");
            assert!(bucket(value) == 0 || upper_end(bucket(value) - 1) < value);
        }
    }

    #[test]
    fn quantiles_of_a_known_spread() {
        let mut histogram = Histogram::default();
        for millisecond in 1..=100 {
            histogram.record(Duration::from_millis(millisecond));
        }
        let mut both = Histogram::default();
        both.merge(&histogram);
        assert!((both.quantile_ms(0.5) - 50.0).abs() < 1.0);
        assert!((both.quantile_ms(0.99) - 99.0).abs() < 2.0);
        assert_eq!((both.count(), both.max_ms()), (100, 100.0));
    }
}
