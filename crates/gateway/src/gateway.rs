//! One request, from its head to its answer.
//!
//! The order is fixed (principle 2 of the S3 contract): route, signature, policy, support table,
//! limits, body, conditions. Until policies exist, policy is one rule: a bucket serves the account
//! that owns it.

use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::{Body as _, Incoming};
use plinth_protocol::meta::RefusalKind;
use plinth_protocol::object::{BucketRow, KEY_BYTES_MAX};
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

use crate::admission::{Admission, BODY_BYTES_IN_FLIGHT, Sender};
use crate::dates::Seconds;
use crate::error::{Code, S3Error, S3Result};
use crate::guard::Watch;
use crate::hashing::Hasher;
use crate::head::{Head, is_bucket_name};
use crate::journey::{Journey, KeyLogging, Stage};
use crate::metrics::Metrics;
use crate::ops;
use crate::pace::Patience;
use crate::payload::{Claims, Door, Payload};
use crate::reply::{self, Body};
use crate::signature::{KeyRing, PayloadProof, Verified, Verifier, hex};
use crate::store::Store;
use crate::support::{self, Operation};
use crate::throttle::Throttle;
use crate::xml::{Writer, XmlLimits};

/// How long a commit may take before the answer is 503.
pub const COMMIT_WAIT_MAX: Duration = Duration::from_secs(30);
/// What is read of a body after an early error, at most; then the connection closes.
pub const DRAIN_BYTES_MAX: u64 = 256 << 10;
/// How long that may take.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(5);
/// Largest body of an operation that has no use for one.
const IDLE_BODY_BYTES_MAX: u64 = 64 << 10;
const EMPTY_SHA256: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// What an operator sets of a gateway.
#[derive(Clone)]
pub struct GatewayConfig {
    /// The region that the gateway reports; any well-formed one is accepted.
    pub region: String,
    /// Accepts only `region` in signatures.
    pub region_is_strict: bool,
    /// Hosts under which buckets are subdomains, lower case, without ports.
    pub base_domains: Vec<String>,
    /// Request bodies in flight, in bytes; beyond it `SlowDown`.
    pub in_flight_bytes_max: u64,
    /// Connections at a time.
    pub connections_max: usize,
    /// Connections at a time from one address.
    pub connections_per_source_max: usize,
    /// Failed signatures of one access key from one address that are answered at once; one more each second. Keys that
    /// do not exist count as one.
    pub failures_free: u32,
    /// What clients are given of time for the bytes of a body.
    pub patience: Patience,
    /// From here on a request is logged as slow, with its stages.
    pub slow_after: Duration,
    /// How the log names objects.
    pub log_keys: KeyLogging,
    /// How long requests in flight may go on after the order to stop.
    pub drain: Duration,
    /// Where access keys come from.
    pub keys: Arc<dyn KeyRing>,
}

impl GatewayConfig {
    /// Makes the default configuration over a key ring.
    pub fn new(keys: Arc<dyn KeyRing>) -> Self {
        GatewayConfig {
            region: "us-east-1".into(),
            region_is_strict: false,
            base_domains: Vec::new(),
            in_flight_bytes_max: BODY_BYTES_IN_FLIGHT,
            connections_max: 10_000,
            connections_per_source_max: 1_000,
            failures_free: 20,
            patience: Patience::default(),
            slow_after: Duration::from_secs(1),
            log_keys: KeyLogging::Hash,
            drain: Duration::from_secs(25),
            keys,
        }
    }
}

/// The gateway; clones share everything.
pub struct Gateway<S> {
    pub(crate) inner: Arc<Inner<S>>,
}

impl<S> Clone for Gateway<S> {
    fn clone(&self) -> Self {
        Gateway { inner: Arc::clone(&self.inner) }
    }
}

pub(crate) struct Inner<S> {
    pub store: S,
    pub config: GatewayConfig,
    pub metrics: Metrics,
    pub admission: Admission,
    pub hasher: Hasher,
    verifier: Verifier,
    throttle: Throttle,
    host_id: HeaderValue,
}

/// What a connection tells about each of its requests.
pub(crate) struct Origin {
    pub watch: Arc<Watch>,
    pub encrypted: bool,
    pub source: IpAddr,
    pub stopping: Arc<std::sync::atomic::AtomicBool>,
}

impl<S: Store> Gateway<S> {
    /// Makes a gateway over a store.
    pub fn new(config: GatewayConfig, store: S, metrics: Metrics) -> Self {
        let verifier = Verifier::new(config.region.clone(), config.region_is_strict, Arc::clone(&config.keys));
        let host_id = HeaderValue::try_from(hex(&store.draw().to_be_bytes())).expect("digits are a valid header value");
        let admission = Admission::new(config.in_flight_bytes_max);
        let hasher = Hasher::start();
        let throttle = Throttle::new(config.failures_free);
        Gateway { inner: Arc::new(Inner { store, config, metrics, admission, hasher, verifier, throttle, host_id }) }
    }

    /// Answers one request.
    pub(crate) async fn handle(
        &self,
        request: Request<Incoming>,
        origin: &Origin,
        refusal: Option<S3Error>,
    ) -> Response<Body> {
        let inner = &self.inner;
        let request_id = format!("{:016X}", inner.store.draw() as u64);
        let mut journey = Journey::start(request_id.clone(), inner.metrics.clone(), inner.config.slow_after);
        journey.set_source(origin.source);
        let (parts, incoming) = request.into_parts();
        let is_empty = incoming.is_end_stream();
        let mut incoming = Some(incoming);
        let domains = &inner.config.base_domains;
        let head = match refusal {
            Some(refusal) => Err(refusal),
            None => Head::read(parts.method.clone(), &parts.uri, parts.headers, domains, origin.encrypted),
        };
        let (mut response, closes) = match head {
            Ok(head) => {
                // Where there is no body to read, hyper sends no 100; botocore, which waited for one, then
                // misreads the next answer on this connection. A new connection puts it right.
                let was_awaited = is_empty && head.expects_continue();
                match self.answer(&head, &mut incoming, &mut journey, origin.source).await {
                    Ok(response) => (response, was_awaited),
                    Err(error) => {
                        let is_drained = drain(&head, incoming.take()).await && !origin.watch.is_in_body();
                        let closes = !is_drained || error.closes() || was_awaited;
                        (self.error_response(Some(&head), error, &journey), closes)
                    }
                }
            }
            Err(error) => (self.error_response(None, error, &journey), true),
        };
        if closes || origin.stopping.load(std::sync::atomic::Ordering::Relaxed) {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        inner.metrics.in_flight_bytes.set(inner.admission.held_bytes() as i64);
        self.finish(response, &request_id, &parts.method, journey, Arc::clone(&origin.watch))
    }

    async fn answer(
        &self,
        head: &Head,
        incoming: &mut Option<Incoming>,
        journey: &mut Journey,
        source: IpAddr,
    ) -> S3Result<Response<Body>> {
        let inner = &self.inner;
        let row = support::route(head)?;
        journey.set_operation(row.name);
        journey.set_target(&head.target, inner.config.log_keys);
        let now = Seconds::from_millis(inner.store.now().millis());
        let mut verified = match inner.verifier.verify(head, now).await {
            Ok(verified) => verified,
            Err(error) => {
                journey.set_access_key(error.element_text("AWSAccessKeyId").unwrap_or_default());
                return Err(self.unproved(error, source).await);
            }
        };
        journey.set_access_key(&verified.credential.access_key);
        journey.end(Stage::Authentication);
        let bucket = match (&head.target.bucket, row.operation) {
            (None, _) | (_, Some(Operation::CreateBucket)) => None,
            (Some(name), operation) => {
                let fresh = matches!(operation, Some(Operation::HeadBucket | Operation::DeleteBucket));
                self.authorised_bucket(name, &verified, fresh).await?
            }
        };
        let operation = support::check(head, row)?;
        check_limits(head)?;
        check_owner(head, "x-amz-expected-bucket-owner", bucket.as_deref())?;
        let bucket_id = bucket.as_ref().map(|bucket| bucket.bucket);
        let mut call = Call { inner, head, verified: &mut verified, incoming, journey, operation, bucket, source };
        let answer = ops::answer(&mut call).await;
        let Err(error) = answer else { return answer };
        if error.code() == Code::NoSuchBucket && bucket_id.is_some() {
            // The name may have been given to a new bucket meanwhile: then the request is to be repeated.
            let again = inner.store.bucket(head.bucket()).await.map_err(S3Error::from)?;
            if again.is_some_and(|row| Some(row.bucket) != bucket_id) {
                return Err(Code::ServiceUnavailable.into());
            }
        }
        Err(error)
    }

    /// Counts a request whose sender is not proved, and delays its refusal where such are many.
    async fn unproved(&self, error: S3Error, source: IpAddr) -> S3Error {
        let inner = &self.inner;
        inner.metrics.rejected(match error.code() {
            Code::RequestTimeTooSkewed => "skew",
            Code::ServiceUnavailable => "not_ready",
            _ => "auth",
        });
        if matches!(error.code(), Code::SignatureDoesNotMatch | Code::InvalidAccessKeyId) {
            // An id that nobody has may be a new one each time: such count together.
            let access_key = match error.code() {
                Code::InvalidAccessKeyId => "",
                _ => error.element_text("AWSAccessKeyId").unwrap_or_default(),
            };
            let delay = inner.throttle.failed(Instant::now(), source, access_key);
            if !delay.is_zero() {
                tokio::time::sleep(delay).await;
            }
        }
        error
    }

    /// Finds a bucket that the caller may use; nothing where there is none of this name.
    async fn authorised_bucket(
        &self,
        name: &str,
        verified: &Verified,
        fresh: bool,
    ) -> S3Result<Option<Arc<BucketRow>>> {
        authorised_bucket(&self.inner.store, name, &verified.credential.account, fresh).await
    }

    fn error_response(&self, head: Option<&Head>, mut error: S3Error, journey: &Journey) -> Response<Body> {
        let inner = &self.inner;
        if head.is_some_and(|head| matches!(head.method, Method::GET | Method::HEAD)) {
            error = error.for_a_read();
        }
        inner.metrics.failed(error.code().name());
        error.tell(journey.request_id());
        if error.code() == Code::SlowDown {
            inner.metrics.rejected("throttle");
        }
        if error.code() == Code::NotModified {
            let mut response = reply::empty(StatusCode::NOT_MODIFIED);
            error.write_headers(response.headers_mut());
            return response;
        }
        let resource = head.map(|head| head.raw_path.as_str()).unwrap_or("/");
        let host_id = inner.host_id.to_str().expect("made from digits");
        let mut xml = Writer::document(512);
        for (name, text) in head.map(|head| name_target(head, &error)).unwrap_or_default() {
            if !error.has_element(name) {
                error = error.element(name, text);
            }
        }
        error.write_xml(&mut xml, resource, journey.request_id(), host_id);
        let mut response = reply::xml_with(error.status(), xml);
        error.write_headers(response.headers_mut());
        if inner.config.region_is_strict {
            response.headers_mut().insert("x-amz-bucket-region", region_value(&inner.config.region));
        }
        response
    }

    fn finish(
        &self,
        mut response: Response<Body>,
        request_id: &str,
        method: &Method,
        mut journey: Journey,
        watch: Arc<Watch>,
    ) -> Response<Body> {
        let headers = response.headers_mut();
        let id = HeaderValue::try_from(request_id).expect("digits are a valid header value");
        headers.insert(HeaderName::from_static("x-amz-request-id"), id);
        headers.insert(HeaderName::from_static("x-amz-id-2"), self.inner.host_id.clone());
        headers.insert(header::SERVER, HeaderValue::from_static("Plinth"));
        if *method == Method::HEAD {
            // HEAD reports the length that GET would have.
            if let Some(length) = response.body().size_hint().exact()
                && !response.headers().contains_key(header::CONTENT_LENGTH)
            {
                response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(length));
            }
            response.body_mut().clear();
        }
        journey.answered(response.status(), watch);
        response.map(|body| body.with_finish(Box::new(journey)))
    }
}

fn region_value(region: &str) -> HeaderValue {
    HeaderValue::try_from(region).unwrap_or(HeaderValue::from_static("us-east-1"))
}

/// Names bucket and key where the error is about them (X1).
fn name_target(head: &Head, error: &S3Error) -> Vec<(&'static str, String)> {
    let bucket = || head.target.bucket.clone().map(|name| ("BucketName", name));
    let key = || head.target.key.clone().map(|name| ("Key", name));
    match error.code() {
        Code::NoSuchBucket
        | Code::InvalidBucketName
        | Code::BucketNotEmpty
        | Code::BucketAlreadyExists
        | Code::BucketAlreadyOwnedByYou => bucket().into_iter().collect(),
        Code::NoSuchKey => key().into_iter().collect(),
        Code::NoSuchUpload => head.query.get("uploadId").map(|id| ("UploadId", id.to_owned())).into_iter().collect(),
        _ => Vec::new(),
    }
}

/// Finds a bucket that an account may use; nothing where there is none of this name.
///
/// # Errors
/// `InvalidBucketName`; `AccessDenied` where another account owns it.
pub(crate) async fn authorised_bucket<S: Store>(
    store: &S,
    name: &str,
    account: &str,
    fresh: bool,
) -> S3Result<Option<Arc<BucketRow>>> {
    if !is_bucket_name(name) {
        return Err(S3Error::from(Code::InvalidBucketName).element("BucketName", name));
    }
    let found = if fresh { store.bucket_now(name).await } else { store.bucket(name).await };
    match found.map_err(S3Error::from)? {
        Some(row) if row.owner != account => Err(Code::AccessDenied.into()),
        found => Ok(found),
    }
}

/// Evaluates an expected owner; a bucket that does not exist has none to compare.
pub(crate) fn check_owner(head: &Head, header: &str, bucket: Option<&BucketRow>) -> S3Result<()> {
    match (head.header(header)?, bucket) {
        (Some(expected), Some(bucket)) if expected != bucket.owner => Err(Code::AccessDenied.into()),
        _ => Ok(()),
    }
}

fn check_limits(head: &Head) -> S3Result<()> {
    match &head.target.key {
        Some(key) if key.len() > KEY_BYTES_MAX => Err(S3Error::from(Code::KeyTooLongError)
            .element("Size", key.len().to_string())
            .element("MaxSizeAllowed", KEY_BYTES_MAX.to_string())),
        _ => Ok(()),
    }
}

/// Reads the rest of a small body that an early error left, so that the connection can go on.
/// Returns whether it can.
async fn drain(head: &Head, incoming: Option<Incoming>) -> bool {
    let Some(mut incoming) = incoming else {
        // An operation had begun to read it: how much is left is unknown, hyper reads on or closes.
        return true;
    };
    if incoming.is_end_stream() {
        return true;
    }
    // A waiting client has sent nothing, and must see the error instead of 100 (H1).
    if head.expects_continue() || head.content_length().is_none_or(|length| length > DRAIN_BYTES_MAX) {
        return false;
    }
    let read = async {
        while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut incoming).poll_frame(cx)).await {
            if frame.is_err() {
                return false;
            }
        }
        true
    };
    tokio::time::timeout(DRAIN_TIME_MAX, read).await.unwrap_or(false)
}

/// One request on its way through an operation.
pub(crate) struct Call<'a, S> {
    pub inner: &'a Inner<S>,
    pub head: &'a Head,
    pub verified: &'a mut Verified,
    incoming: &'a mut Option<Incoming>,
    pub journey: &'a mut Journey,
    pub operation: Operation,
    bucket: Option<Arc<BucketRow>>,
    source: IpAddr,
}

impl<S: Store> Call<'_, S> {
    /// Returns the bucket that the request names.
    ///
    /// # Errors
    /// `NoSuchBucket`.
    pub fn bucket(&self) -> S3Result<Arc<BucketRow>> {
        self.bucket.clone().ok_or_else(|| RefusalKind::NoSuchBucket.into())
    }

    /// Returns when waiting for a commit ends.
    pub fn deadline(&self) -> Instant {
        Instant::now() + COMMIT_WAIT_MAX
    }

    /// Opens the body of a request that must have one.
    ///
    /// # Errors
    /// As [`Payload::open`].
    pub fn payload(&mut self, bytes_max: u64) -> S3Result<Payload> {
        let sender = Sender { source: self.source, account: self.verified.credential.account.clone() };
        let door = Door { admission: &self.inner.admission, sender, patience: self.inner.config.patience };
        Payload::open(self.head, self.verified, self.incoming, door, bytes_max)
    }

    /// Reads a document body whole.
    ///
    /// # Errors
    /// `MaxMessageLengthExceeded`, and as [`Payload::read_document`].
    pub async fn document(&mut self, claims: &Claims, limits: XmlLimits) -> S3Result<Vec<u8>> {
        let mut payload = self.payload(limits.bytes_max as u64).map_err(|error| match error.code() {
            Code::EntityTooLarge => Code::MaxMessageLengthExceeded.into(),
            _ => error,
        })?;
        let body = payload.read_document(claims).await;
        self.inner.metrics.received.inc_by(payload.received_bytes());
        self.journey.received(payload.received_bytes());
        self.journey.end(Stage::Body);
        body
    }

    /// Checks that an operation without a body got none, or one that is what the signature says.
    ///
    /// # Errors
    /// `XAmzContentSHA256Mismatch`, and as [`Payload::next`].
    pub async fn no_body(&mut self) -> S3Result<()> {
        let is_empty = self.incoming.as_ref().is_none_or(|incoming| incoming.is_end_stream());
        if is_empty {
            return match self.verified.payload {
                PayloadProof::Hash(hash) if hex(&hash) != EMPTY_SHA256 => Err(Code::XAmzContentSHA256Mismatch.into()),
                _ => Ok(()),
            };
        }
        let claims = Claims::read_md5(self.head)?;
        let mut payload = self.payload(IDLE_BODY_BYTES_MAX)?;
        payload.read_document(&claims).await.map(drop)
    }
}
