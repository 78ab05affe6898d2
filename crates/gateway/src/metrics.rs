//! The S3 metrics of one gateway (section 5 of the operators' page).

use prometheus::{Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry};

/// Bounds of request times in seconds.
const DURATION_BOUNDS_S: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

/// Counters and histograms; clones share them.
#[derive(Clone)]
pub struct Metrics {
    requests: IntCounterVec,
    errors: IntCounterVec,
    duration: HistogramVec,
    first_byte: HistogramVec,
    /// Bytes of request bodies.
    pub received: IntCounter,
    /// Bytes of response bodies.
    pub sent: IntCounter,
    /// Requests being answered.
    pub in_flight_requests: IntGauge,
    /// Reserved for request bodies being read.
    pub in_flight_bytes: IntGauge,
    rejected: IntCounterVec,
    slow: IntCounterVec,
}

impl Metrics {
    /// Makes the metrics and registers them.
    ///
    /// # Errors
    /// The registry's, where one of the names is taken.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counters = |name: &str, help: &str, labels: &[&str]| {
            let made = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(made.clone()))?;
            Ok::<_, prometheus::Error>(made)
        };
        let counter = |name: &str, help: &str| {
            let made = IntCounter::new(name, help)?;
            registry.register(Box::new(made.clone()))?;
            Ok::<_, prometheus::Error>(made)
        };
        let gauge = |name: &str, help: &str| {
            let made = IntGauge::new(name, help)?;
            registry.register(Box::new(made.clone()))?;
            Ok::<_, prometheus::Error>(made)
        };
        let histogram = |name: &str, help: &str| {
            let made = HistogramVec::new(HistogramOpts::new(name, help).buckets(DURATION_BOUNDS_S.to_vec()), &["api"])?;
            registry.register(Box::new(made.clone()))?;
            Ok::<_, prometheus::Error>(made)
        };
        Ok(Metrics {
            requests: counters("plinth_s3_requests_total", "S3 requests answered.", &["api", "status_class"])?,
            errors: counters("plinth_s3_errors_total", "S3 errors answered.", &["code"])?,
            duration: histogram("plinth_s3_request_duration_seconds", "Time from a request's head to its last byte.")?,
            first_byte: histogram("plinth_s3_first_byte_seconds", "Time from a request's head to the answer's head.")?,
            received: counter("plinth_s3_received_bytes_total", "Bytes of request bodies received.")?,
            sent: counter("plinth_s3_sent_bytes_total", "Bytes of response bodies sent.")?,
            in_flight_requests: gauge("plinth_s3_in_flight_requests", "S3 requests being answered.")?,
            in_flight_bytes: gauge("plinth_s3_in_flight_bytes", "Bytes reserved for request bodies being read.")?,
            rejected: counters(
                "plinth_s3_rejected_requests_total",
                "S3 requests refused before their operation began.",
                &["reason"],
            )?,
            slow: counters(
                "plinth_slow_operations_total",
                "Operations over the slow threshold.",
                &["operation", "stage"],
            )?,
        })
    }

    /// Counts an answer's head.
    pub fn answered(&self, api: &str, status: u16, first_byte_s: f64) {
        let class = match status / 100 {
            2 => "2xx",
            3 => "3xx",
            4 => "4xx",
            _ => "5xx",
        };
        self.requests.with_label_values(&[api, class]).inc();
        self.first_byte.with_label_values(&[api]).observe(first_byte_s);
    }

    /// Counts an error by its code.
    pub fn failed(&self, code: &str) {
        self.errors.with_label_values(&[code]).inc();
    }

    /// Counts a request refused before its operation began.
    pub fn rejected(&self, reason: &str) {
        self.rejected.with_label_values(&[reason]).inc();
    }

    /// Counts a slow operation by its longest stage.
    pub fn slow(&self, operation: &str, stage: &str) {
        self.slow.with_label_values(&[operation, stage]).inc();
    }

    /// Returns the duration histogram of an operation.
    pub fn duration(&self, api: &str) -> Histogram {
        self.duration.with_label_values(&[api])
    }
}
