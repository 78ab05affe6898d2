//! What is told about a request when it is over: counters, one log line, and where the time went.

use http::StatusCode;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

use crate::guard::Watch;
use crate::head::Target;
use crate::metrics::Metrics;
use crate::reply::{Broken, Finish};
use crate::signature::hex;

/// The stages of a request, for the slow log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Signature and bucket.
    Authentication,
    /// Reading rows.
    Row,
    /// Receiving the body and writing it out.
    Body,
    /// Waiting for stripes to be durable.
    Durable,
    /// The Raft commit.
    Commit,
    /// Opening the object up to its first bytes.
    FirstBytes,
    /// Sending the answer.
    Reply,
}

const STAGES: usize = 7;
const STAGE_NAMES: [&str; STAGES] = ["authentication", "row", "body", "durable", "commit", "first_bytes", "reply"];

/// How a log line names an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyLogging {
    /// By its key.
    Full,
    /// By the first 16 hexadecimal digits of the key's SHA-256.
    Hash,
    /// Not at all.
    Off,
}

/// Characters of an access key's id that the log takes: unproved ones are whatever the sender likes.
const ACCESS_KEY_CHARACTERS_MAX: usize = 64;
/// Bytes of a key's hash that stand in the log.
const KEY_HASH_BYTES: usize = 8;

impl KeyLogging {
    fn name(self, key: &str) -> String {
        match self {
            KeyLogging::Full => key.to_owned(),
            KeyLogging::Hash => {
                let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, key.as_bytes());
                hex(&digest.as_ref()[..KEY_HASH_BYTES])
            }
            KeyLogging::Off => String::new(),
        }
    }
}

/// One request's way from head to last byte. Dropped with the response's body, it reports.
pub struct Journey {
    request_id: String,
    metrics: Metrics,
    operation: &'static str,
    access_key: String,
    source: Option<IpAddr>,
    bucket: String,
    /// The object's key, as the configuration lets the log name it.
    key: String,
    slow_after: Duration,
    started: Instant,
    last: Instant,
    stages: [Duration; STAGES],
    received: u64,
    sent: u64,
    status: u16,
    broken: bool,
    watch: Option<Arc<Watch>>,
}

impl Journey {
    /// Starts with the request's head.
    pub fn start(request_id: String, metrics: Metrics, slow_after: Duration) -> Self {
        metrics.in_flight_requests.inc();
        let now = Instant::now();
        Journey {
            request_id,
            metrics,
            operation: "Unknown",
            access_key: String::new(),
            source: None,
            bucket: String::new(),
            key: String::new(),
            slow_after,
            started: now,
            last: now,
            stages: [Duration::ZERO; STAGES],
            received: 0,
            sent: 0,
            status: 0,
            broken: false,
            watch: None,
        }
    }

    /// Returns the request's id.
    pub fn request_id(&self) -> &str {
        &self.request_id
    }

    /// Names the operation.
    pub fn set_operation(&mut self, name: &'static str) {
        self.operation = name;
    }

    /// Says from which address the request comes.
    pub fn set_source(&mut self, source: IpAddr) {
        self.source = Some(source);
    }

    /// Names bucket and object.
    pub fn set_target(&mut self, target: &Target, keys: KeyLogging) {
        self.bucket = target.bucket.clone().unwrap_or_default();
        self.key = target.key.as_deref().map(|key| keys.name(key)).unwrap_or_default();
    }

    /// Names the access key that signed, or is said to have.
    pub fn set_access_key(&mut self, access_key: &str) {
        self.access_key.clear();
        self.access_key.extend(access_key.chars().take(ACCESS_KEY_CHARACTERS_MAX));
    }

    /// Counts bytes of the request's body.
    pub fn received(&mut self, bytes: u64) {
        self.received += bytes;
    }

    /// Ends a stage: the time since the last one's end belongs to it.
    pub fn end(&mut self, stage: Stage) {
        let now = Instant::now();
        self.stages[stage as usize] += now - self.last;
        self.last = now;
    }

    /// Takes note of the answer's head.
    pub fn answered(&mut self, status: StatusCode, watch: Arc<Watch>) {
        self.status = status.as_u16();
        self.watch = Some(watch);
        self.metrics.answered(self.operation, self.status, self.started.elapsed().as_secs_f64());
    }

    fn slow_line(&self, duration: Duration) {
        let longest = (0..STAGES).max_by_key(|stage| self.stages[*stage]).unwrap_or_default();
        self.metrics.slow(self.operation, STAGE_NAMES[longest]);
        let stages: Vec<String> = self
            .stages
            .iter()
            .zip(STAGE_NAMES)
            .filter(|(time, _)| !time.is_zero())
            .map(|(time, name)| format!("{name}={:.1}ms", time.as_secs_f64() * 1e3))
            .collect();
        tracing::warn!(
            event = "s3_slow",
            request_id = %self.request_id,
            operation = self.operation,
            status = self.status,
            duration_s = duration.as_secs_f64(),
            stages = %stages.join(" "),
            "slow request"
        );
    }
}

impl Finish for Journey {
    fn sent(&mut self, bytes: u64) {
        self.sent += bytes;
    }

    fn broken(&mut self, why: &Broken) {
        tracing::warn!(event = "s3_broken", request_id = %self.request_id, error = %why, "response broken off");
        self.broken = true;
    }
}

impl Drop for Journey {
    fn drop(&mut self) {
        self.end(Stage::Reply);
        let duration = self.last - self.started;
        self.metrics.in_flight_requests.dec();
        self.metrics.sent.inc_by(self.sent);
        self.metrics.duration(self.operation).observe(duration.as_secs_f64());
        if let Some(watch) = &self.watch {
            watch.set_busy(false);
        }
        if duration >= self.slow_after {
            self.slow_line(duration);
        }
        tracing::info!(
            event = "s3_request",
            request_id = %self.request_id,
            operation = self.operation,
            status = self.status,
            received_bytes = self.received,
            sent_bytes = self.sent,
            duration_s = duration.as_secs_f64(),
            access_key = %self.access_key,
            source = self.source.map(tracing::field::display),
            bucket = %self.bucket,
            key = %self.key,
            broken = self.broken,
            "request"
        );
    }
}
