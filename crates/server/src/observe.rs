//! The observability socket: `/metrics`, `/health/live`, `/health/ready`.
//!
//! A socket of its own, without login, for a trusted network: health names states and reasons, metrics name nodes,
//! peers and buckets, neither names a key or a secret. Metrics come from snapshots of each part's counters, taken when
//! a scrape arrives.

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use plinth_admin::verdict::Stops;
use plinth_transport::BoxFuture;
use prometheus::{Encoder, Registry, TextEncoder};
use serde_json::json;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

/// Connections that the socket serves at once; more wait.
const CONNECTIONS_MAX: usize = 64;
/// How long a request head may take.
const HEAD_TIME_MAX: Duration = Duration::from_secs(10);
/// How long a connection may last, answer included: a reader that takes nothing is left.
const CONNECTION_TIME_MAX: Duration = Duration::from_secs(30);

/// Pause after the listener failed, typically for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Why a node is not ready, or not for everything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadyReason {
    /// A code that stays the same for ever.
    pub code: String,
    /// What is wrong and what it means.
    pub text: String,
    /// What to do.
    pub next: String,
    /// What does not work because of it.
    pub stops: Stops,
}

/// What a node says of itself when asked whether it is ready.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Readiness(Vec<ReadyReason>);

impl Readiness {
    /// Adds a reason.
    pub fn add(&mut self, reason: ReadyReason) {
        self.0.push(reason);
    }

    /// Returns all reasons.
    pub fn all(&self) -> impl Iterator<Item = &ReadyReason> {
        self.0.iter()
    }

    /// Returns whether reads work here.
    pub fn reads(&self) -> bool {
        self.0.iter().all(|reason| reason.stops != Stops::Everything)
    }

    /// Returns whether objects of any size can be written here.
    pub fn writes(&self) -> bool {
        self.0.iter().all(|reason| reason.stops == Stops::Nothing)
    }
}

/// A node's own view of itself, for the socket.
pub trait Observed: Send + Sync + 'static {
    /// Returns whether traffic may be sent here.
    fn readiness(&self) -> Readiness;
    /// Brings up to date what can't be read in passing.
    fn refresh(&self) -> BoxFuture<'_, ()>;
    /// Returns the registry that is printed.
    fn registry(&self) -> &Registry;
}

/// Serves the socket until `stop` turns true.
pub async fn serve(listener: TcpListener, node: Arc<dyn Observed>, mut stop: watch::Receiver<bool>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stop.wait_for(|stop| *stop) => return,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let node = node.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let node = node.clone();
                async move { Ok::<_, Infallible>(answer(&*node, &request).await) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIME_MAX)
                // One request a connection: who holds connections idle keeps no place from a health check.
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            match tokio::time::timeout(CONNECTION_TIME_MAX, connection).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "observability connection broke"),
                Err(_) => tracing::debug!("observability connection took too long"),
            }
            drop(place);
        });
    }
}

async fn answer(node: &dyn Observed, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return text(StatusCode::METHOD_NOT_ALLOWED, "text/plain", "GET only\n");
    }
    match request.uri().path() {
        "/metrics" => metrics(node).await,
        "/health/live" => text(StatusCode::OK, "application/json", "{\"live\":true}\n"),
        "/health/ready" => ready(node, request.uri().query()),
        _ => text(StatusCode::NOT_FOUND, "text/plain", "try /metrics, /health/live, /health/ready\n"),
    }
}

async fn metrics(node: &dyn Observed) -> Response<Full<Bytes>> {
    node.refresh().await;
    let mut page = Vec::new();
    match TextEncoder::new().encode(&node.registry().gather(), &mut page) {
        Ok(()) => body(StatusCode::OK, prometheus::TEXT_FORMAT, page.into()),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", &format!("{error}\n")),
    }
}

/// Answers whether traffic may be sent here: `mode=read` for reads, `mode=write`, or none, for reads and writes.
fn ready(node: &dyn Observed, query: Option<&str>) -> Response<Full<Bytes>> {
    let readiness = node.readiness();
    let (reads, writes) = (readiness.reads(), readiness.writes());
    let ready = match query {
        Some("mode=read") => reads,
        Some("mode=write") | None => writes,
        Some(_) => return text(StatusCode::BAD_REQUEST, "text/plain", "mode is read or write\n"),
    };
    let mode = match (reads, writes) {
        (_, true) => "read-write",
        (true, false) => "read-only",
        (false, false) => "none",
    };
    let reasons: Vec<_> = readiness
        .all()
        .map(|reason| json!({"code": reason.code, "text": reason.text, "next": reason.next, "stops": reason.stops}))
        .collect();
    let page = json!({"ready": ready, "mode": mode, "reasons": reasons}).to_string() + "\n";
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut response = text(status, "application/json", &page);
    if !ready {
        response.headers_mut().insert(http::header::RETRY_AFTER, http::HeaderValue::from_static("2"));
    }
    response
}

fn text(status: StatusCode, kind: &str, page: &str) -> Response<Full<Bytes>> {
    body(status, kind, Bytes::copy_from_slice(page.as_bytes()))
}

fn body(status: StatusCode, kind: &str, page: Bytes) -> Response<Full<Bytes>> {
    Response::builder()
        .status(status)
        .header(http::header::CONTENT_TYPE, kind)
        .body(Full::new(page))
        .expect("a status, a fixed header and a body always make a response")
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    #[derive(Default)]
    struct Fake(Registry);

    impl Observed for Fake {
        fn readiness(&self) -> Readiness {
            let mut readiness = Readiness::default();
            let (code, text, next) = ("S203".into(), "too few disks".into(), "plinth status".into());
            readiness.add(ReadyReason { code, text, next, stops: Stops::Writes });
            readiness
        }
        fn refresh(&self) -> BoxFuture<'_, ()> {
            Box::pin(async {})
        }
        fn registry(&self) -> &Registry {
            &self.0
        }
    }

    async fn ask(address: std::net::SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        // Ends only where the server closes: one request a connection.
        tokio::time::timeout(Duration::from_secs(5), stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        answer
    }

    #[tokio::test]
    async fn readiness_tells_reads_from_writes_and_connections_end_with_their_answer() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = watch::channel(false);
        let serving = tokio::spawn(serve(listener, Arc::new(Fake::default()), stopped));
        assert!(ask(address, "/health/live").await.starts_with("HTTP/1.1 200"));
        let ready = ask(address, "/health/ready").await;
        assert!(ready.starts_with("HTTP/1.1 503") && ready.contains("retry-after: 2"), "{ready}");
        assert!(ready.contains("\"mode\":\"read-only\""), "{ready}");
        assert!(ask(address, "/health/ready?mode=read").await.starts_with("HTTP/1.1 200"));
        assert!(ask(address, "/health/ready?mode=write").await.starts_with("HTTP/1.1 503"));
        assert!(ask(address, "/health/ready?mode=reed").await.starts_with("HTTP/1.1 400"));
        assert!(ask(address, "/secrets").await.starts_with("HTTP/1.1 404"));
        stop.send(true).unwrap();
        serving.await.unwrap();
    }
}
