//! The closed loop: every client sends its next request when the last one is answered.

use crate::connection::{Call, Connection, Content, Failed, element};
use crate::latency::Histogram;
use crate::meter::{Memory, Servers};
use crate::payload::Pool;
use crate::report::Report;
use crate::signer::Signer;
use clap::ValueEnum;
use http::Method;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::{Instant, sleep, sleep_until};

/// Keys on one page of LIST, the most that S3 gives.
const PAGE_KEYS: usize = 1000;

/// How long a client rests after a failed request, so that a dead server is not hammered.
const REST_AFTER_FAILURE: Duration = Duration::from_millis(20);

/// What a client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Operation {
    /// Writes every key of the key space once (for later reads), then ends.
    Fill,
    /// Writes objects under new keys, spread over the key space.
    Put,
    /// Reads random keys of the filled key space.
    Get,
    /// Asks for the head of random keys.
    Head,
    /// Reads pages of 1,000 keys from random places on.
    List,
    /// Deletes every key of the key space once, then ends.
    Delete,
    /// 70 % get, 15 % put, 10 % head, 5 % list.
    Mixed,
}

/// One measurement, as the operator ordered it.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What to do.
    pub operation: Operation,
    /// Where: `http://HOST:PORT`, used in turn by the clients.
    pub endpoints: Vec<String>,
    /// Access key, secret key, region.
    pub credentials: (String, String, String),
    /// The bucket; made when it is missing.
    pub bucket: String,
    /// What every key begins with.
    pub prefix: String,
    /// Keys in the key space.
    pub keys: u64,
    /// Bytes of an object.
    pub size: u64,
    /// Above this many bytes an object is written in parts of this size; 0: never.
    pub part_bytes: u64,
    /// Requests under way at a time.
    pub clients: usize,
    /// How long to measure; `fill` and `delete` end by themselves.
    pub duration: Duration,
    /// Not measured, at the beginning.
    pub warm_up: Duration,
    /// Ends the measurement after this many requests.
    pub count_max: Option<u64>,
    /// Compares every byte read with what was written.
    pub verify: bool,
    /// Signs SHA-256 of every body.
    pub signed_payload: bool,
    /// Decides keys, order and bytes.
    pub seed: u64,
}

/// What all clients share.
struct Run {
    plan: Plan,
    pool: Pool,
    tickets: AtomicU64,
    opens: Instant,
    closes: Instant,
}

/// What one client counted between the opening and the closing of the window.
#[derive(Default)]
struct Tally {
    latency: Histogram,
    bytes: u64,
    keys: u64,
    errors: BTreeMap<String, u64>,
    last: Option<Instant>,
}

/// What one request moved: bytes of objects, keys listed.
struct Moved {
    bytes: u64,
    keys: u64,
}

struct Client {
    run: Arc<Run>,
    connection: Connection,
    rng: StdRng,
    serial: u64,
    id: usize,
    /// Where the walk over the bucket goes on.
    list_after: Option<String>,
}

impl Plan {
    /// Tells whether the operation goes once over the key space and then ends.
    fn is_one_pass(&self) -> bool {
        matches!(self.operation, Operation::Fill | Operation::Delete)
    }

    fn connection(&self, client: usize) -> Result<Connection, String> {
        let (access_key, secret_key, region) = &self.credentials;
        let endpoint = &self.endpoints[client % self.endpoints.len()];
        Connection::new(endpoint, Signer::new(access_key, secret_key, region), self.signed_payload)
    }
}

/// Runs a plan and measures the servers meanwhile.
///
/// # Errors
/// When an endpoint is malformed or the bucket cannot be made; failed requests are counted, not returned.
pub async fn run(plan: Plan, servers: &Servers) -> Result<Report, String> {
    make_bucket(&plan).await?;
    let warm_up = if plan.is_one_pass() { Duration::ZERO } else { plan.warm_up };
    let opens = Instant::now() + warm_up;
    // A pass over the key space ends with the last key; a day is only a bound.
    let closes = opens + if plan.is_one_pass() { Duration::from_secs(86_400) } else { plan.duration };
    let run = Arc::new(Run { pool: Pool::new(plan.seed), plan, tickets: AtomicU64::new(0), opens, closes });

    let mut clients = Vec::new();
    for id in 0..run.plan.clients {
        clients.push(tokio::spawn(Client::new(&run, id)?.work()));
    }
    sleep_until(opens).await;
    let before = servers.read();
    let ends_by_itself = run.plan.is_one_pass() || run.plan.count_max.is_some();
    let mut after = None;
    if !ends_by_itself {
        sleep_until(closes).await;
        after = Some(servers.read());
    }
    let mut total = Tally::default();
    for client in clients {
        total.add(client.await.map_err(|error| format!("a client of the load generator failed: {error}"))?);
    }
    let after = after.unwrap_or_else(|| servers.read());
    let seconds = if ends_by_itself { total.last.unwrap_or(opens) - opens } else { run.plan.duration };
    let memory: Vec<Memory> = servers.memory().into_values().collect();
    Ok(Report {
        operation: format!("{:?}", run.plan.operation).to_lowercase(),
        size: run.plan.size,
        clients: run.plan.clients,
        endpoints: run.plan.endpoints.len(),
        seconds: seconds.as_secs_f64(),
        operations: total.latency.count(),
        bytes: total.bytes,
        keys: total.keys,
        errors: total.errors,
        latency: total.latency,
        server_cpu_seconds: after.seconds_since(&before),
        server_written_bytes: after.written_since(&before),
        server_processes: servers.count(),
        server_peak_bytes: memory.iter().map(|one| one.peak_bytes).sum(),
        server_peak_bytes_largest: memory.iter().map(|one| one.peak_bytes).max().unwrap_or(0),
        server_resident_bytes: memory.iter().map(|one| one.resident_bytes).sum(),
    })
}

async fn make_bucket(plan: &Plan) -> Result<(), String> {
    let path = format!("/{}", plan.bucket);
    match plan.connection(0)?.call(Call::plain(Method::PUT, &path), |_| {}).await {
        Ok(_) => Ok(()),
        Err(Failed(code)) if code == "BucketAlreadyOwnedByYou" || code == "BucketAlreadyExists" => Ok(()),
        Err(Failed(code)) => Err(format!("bucket {}: {code}", plan.bucket)),
    }
}

impl Tally {
    fn add(&mut self, other: Tally) {
        self.latency.merge(&other.latency);
        self.bytes += other.bytes;
        self.keys += other.keys;
        for (error, count) in other.errors {
            *self.errors.entry(error).or_default() += count;
        }
        self.last = self.last.max(other.last);
    }
}

impl Client {
    fn new(run: &Arc<Run>, id: usize) -> Result<Client, String> {
        let rng = StdRng::seed_from_u64(run.plan.seed.wrapping_mul(1_000_003).wrapping_add(id as u64));
        let connection = run.plan.connection(id)?;
        Ok(Client { run: run.clone(), connection, rng, serial: 0, id, list_after: None })
    }

    async fn work(mut self) -> Tally {
        let mut tally = Tally::default();
        while let Some(ticket) = self.ticket() {
            let operation = self.choose();
            let began = Instant::now();
            let outcome = self.perform(operation, ticket).await;
            let ended = Instant::now();
            if ended < self.run.opens || ended > self.run.closes {
                continue;
            }
            tally.last = Some(ended);
            match outcome {
                Ok(moved) => {
                    tally.latency.record(ended - began);
                    tally.bytes += moved.bytes;
                    tally.keys += moved.keys;
                }
                Err(Failed(word)) => {
                    *tally.errors.entry(word).or_default() += 1;
                    sleep(REST_AFTER_FAILURE).await;
                }
            }
        }
        tally
    }

    /// The number of the next request; `None` when the measurement is over.
    fn ticket(&self) -> Option<u64> {
        let plan = &self.run.plan;
        let ticket = self.run.tickets.fetch_add(1, Ordering::Relaxed);
        let more = ticket < plan.count_max.unwrap_or(u64::MAX) && Instant::now() < self.run.closes;
        (more && (!plan.is_one_pass() || ticket < plan.keys)).then_some(ticket)
    }

    fn choose(&mut self) -> Operation {
        if self.run.plan.operation != Operation::Mixed {
            return self.run.plan.operation;
        }
        match self.rng.random_range(0..100) {
            0..70 => Operation::Get,
            70..85 => Operation::Put,
            85..95 => Operation::Head,
            _ => Operation::List,
        }
    }

    async fn perform(&mut self, operation: Operation, ticket: u64) -> Result<Moved, Failed> {
        let number = self.rng.random_range(0..self.run.plan.keys.max(1));
        match operation {
            Operation::Fill => self.put(self.key(ticket), ticket).await,
            Operation::Put => {
                self.serial += 1;
                let key = format!("{}-{}-{}", self.key(number), self.id, self.serial);
                self.put(key, number).await
            }
            Operation::Get | Operation::Mixed => self.get(number).await,
            Operation::Head => self.plain(Method::HEAD, number).await,
            Operation::Delete => self.plain(Method::DELETE, ticket).await,
            Operation::List => self.list(number).await,
        }
    }

    fn key(&self, number: u64) -> String {
        format!("{}{number:010}", self.run.plan.prefix)
    }

    fn path(&self, key: &str) -> String {
        format!("/{}/{key}", self.run.plan.bucket)
    }

    async fn plain(&mut self, method: Method, number: u64) -> Result<Moved, Failed> {
        let path = self.path(&self.key(number));
        self.connection.call(Call::plain(method, &path), |_| {}).await?;
        Ok(Moved { bytes: 0, keys: 0 })
    }

    async fn get(&mut self, number: u64) -> Result<Moved, Failed> {
        let (path, size, verify) = (self.path(&self.key(number)), self.run.plan.size, self.run.plan.verify);
        let mut expected = self.run.pool.stretch(number, 0, size);
        let (mut bytes, mut equal) = (0, true);
        let take = |piece: &[u8]| {
            bytes += piece.len() as u64;
            equal = equal && (!verify || expected.matches(piece));
        };
        self.connection.call(Call::plain(Method::GET, &path), take).await?;
        if bytes != size || !equal {
            return Err(Failed("wrong bytes".into()));
        }
        Ok(Moved { bytes, keys: 0 })
    }

    async fn put(&mut self, key: String, number: u64) -> Result<Moved, Failed> {
        let (size, part_bytes) = (self.run.plan.size, self.run.plan.part_bytes);
        let path = self.path(&key);
        if part_bytes > 0 && size > part_bytes {
            self.put_parts(&path, number).await?;
        } else {
            let content = Content::Object(self.run.pool.stretch(number, 0, size));
            self.connection.call(Call { method: Method::PUT, path: &path, query: "", content }, |_| {}).await?;
        }
        Ok(Moved { bytes: size, keys: 0 })
    }

    async fn put_parts(&mut self, path: &str, number: u64) -> Result<(), Failed> {
        let (size, part_bytes) = (self.run.plan.size, self.run.plan.part_bytes);
        let begin = Call { method: Method::POST, path, query: "uploads=", content: Content::None };
        let answer = String::from_utf8_lossy(&self.connection.call_kept(begin).await?).into_owned();
        let upload = element(&answer, "UploadId").ok_or_else(|| Failed("no upload id".into()))?;
        let upload = percent_encoding::utf8_percent_encode(upload, percent_encoding::NON_ALPHANUMERIC).to_string();

        let mut parts = String::from("<CompleteMultipartUpload>");
        for index in 0..size.div_ceil(part_bytes) {
            let from = index * part_bytes;
            let content = Content::Object(self.run.pool.stretch(number, from, part_bytes.min(size - from)));
            let query = format!("partNumber={}&uploadId={upload}", index + 1);
            let headers =
                self.connection.call(Call { method: Method::PUT, path, query: &query, content }, |_| {}).await?;
            let etag = headers.get("etag").and_then(|value| value.to_str().ok()).unwrap_or_default();
            parts += &format!("<Part><PartNumber>{}</PartNumber><ETag>{etag}</ETag></Part>", index + 1);
        }
        parts += "</CompleteMultipartUpload>";
        let query = format!("uploadId={upload}");
        let call = Call { method: Method::POST, path, query: &query, content: Content::Document(parts.into()) };
        // S3 may answer 200 and say only in the body that it failed.
        let answer = self.connection.call_kept(call).await?;
        let answer = String::from_utf8_lossy(&answer);
        match element(&answer, "Code") {
            Some(code) => Err(Failed(code.to_string())),
            None => Ok(()),
        }
    }

    async fn list(&mut self, number: u64) -> Result<Moved, Failed> {
        let path = format!("/{}", self.run.plan.bucket);
        let after = self.list_after.take().unwrap_or_else(|| self.key(number));
        let encode = |text: &str| percent_encoding::utf8_percent_encode(text, ENCODED).to_string();
        let (prefix, start) = (encode(&self.run.plan.prefix), encode(&after));
        let query = format!("list-type=2&max-keys={PAGE_KEYS}&prefix={prefix}&start-after={start}");
        let call = Call { method: Method::GET, path: &path, query: &query, content: Content::None };
        let page = self.connection.call_kept(call).await?;
        let (keys, last) = keys_of(&page);
        self.list_after = last.filter(|_| keys == PAGE_KEYS as u64);
        Ok(Moved { bytes: 0, keys })
    }
}

/// What SigV4 wants encoded in a query: everything but letters, digits and `-._~`.
const ENCODED: &percent_encoding::AsciiSet =
    &percent_encoding::NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Counts the keys of a page and returns the last one; our keys need no unescaping.
fn keys_of(page: &[u8]) -> (u64, Option<String>) {
    const OPEN: &[u8] = b"<Key>";
    let (mut count, mut last, mut at) = (0, None, 0);
    while let Some(found) = page[at..].iter().position(|byte| *byte == b'<') {
        at += found;
        if page[at..].starts_with(OPEN) {
            count += 1;
            last = Some(at + OPEN.len());
        }
        at += 1;
    }
    let last = last.and_then(|start| {
        let length = page[start..].iter().position(|byte| *byte == b'<')?;
        Some(String::from_utf8_lossy(&page[start..start + length]).into_owned())
    });
    (count, last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_a_page_are_counted() {
        let page = b"<L><Key>a/1</Key><Size>1</Size><Contents><Key>b2</Key></Contents><KeyCount>2</KeyCount></L>";
        assert_eq!(keys_of(page), (2, Some("b2".to_string())));
        assert_eq!(keys_of(b"<L><KeyCount>0</KeyCount></L>"), (0, None));
    }
}
