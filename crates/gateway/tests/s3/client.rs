//! A client of our own: it signs in every mode, and can be told to do it wrong.

use crate::fake::Fake;
use aws_lc_rs::{digest, hmac};
use plinth_gateway::{Credential, Gateway, GatewayConfig, Metrics, StaticKeys, Store, serve};
use prometheus::Registry;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

pub const ACCESS_KEY: &str = "PLTEST0000000000001A";
pub const SECRET: &str = "canary-secret-7f3b9c/abc+def";
pub const ACCOUNT: &str = "account-1";
pub const OTHER_KEY: &str = "PLTEST0000000000002B";
/// Generous: tests on a paused clock jump ahead while bytes are on their way.
const WAIT: Duration = Duration::from_secs(600);

/// A gateway over a fake cluster.
pub struct Server {
    pub address: SocketAddr,
    pub fake: Fake,
    pub registry: Registry,
    stop: Option<oneshot::Sender<()>>,
    pub done: tokio::task::JoinHandle<()>,
}

pub fn keys() -> Arc<StaticKeys> {
    Arc::new(StaticKeys::new([
        Credential::new(ACCESS_KEY, SECRET, ACCOUNT),
        Credential::new(OTHER_KEY, SECRET, "account-2"),
    ]))
}

impl Server {
    /// A server that answers any number of failed signatures at once: tests make thousands.
    pub async fn start() -> Server {
        let mut config = GatewayConfig::new(keys());
        config.failures_free = u32::MAX;
        Server::start_with(config).await
    }

    pub async fn start_with(config: GatewayConfig) -> Server {
        Server::start_over(config, None).await
    }

    pub async fn start_over(mut config: GatewayConfig, tls: Option<tokio_rustls::TlsAcceptor>) -> Server {
        config.base_domains = vec!["s3.test".into()];
        let fake = Fake::default();
        let registry = Registry::new();
        let metrics = Metrics::register(&registry).expect("fresh registry");
        let gateway = Gateway::new(config, fake.clone(), metrics);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let (stop, stopped) = oneshot::channel::<()>();
        let done = tokio::spawn(serve(listener, tls, gateway, async move {
            let _ = stopped.await;
        }));
        Server { address, fake, registry, stop: Some(stop), done }
    }

    /// A server with a bucket called `bucket`.
    pub async fn with_bucket() -> Server {
        let server = Server::start().await;
        server.send(request("PUT", "/bucket")).await.expect_status(200);
        server
    }

    pub fn stop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
    }

    /// Returns what a gauge stands at.
    pub fn gauge(&self, name: &str) -> i64 {
        let text = prometheus::TextEncoder::new().encode_to_string(&self.registry.gather()).expect("text");
        let line = text.lines().find_map(|line| line.strip_prefix(name)).expect("a metric of this name");
        line.trim().parse().expect("a number")
    }

    pub async fn connect(&self) -> Connection {
        let stream = TcpStream::connect(self.address).await.expect("a connection");
        Connection::over(stream)
    }

    /// Signs and sends a request on a connection of its own.
    pub async fn send(&self, request: Request) -> Answer {
        let mut connection = self.connect().await;
        let bytes = request.sign(&self.fake);
        connection.exchange(&bytes, request.method == "HEAD").await
    }
}

pub fn request(method: &str, target: &str) -> Request {
    Request::new(method, target)
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    Hash,
    Unsigned,
    Chunked,
    ChunkedTrailer,
    UnsignedTrailer,
}

pub const MODES: [Mode; 5] = [Mode::Hash, Mode::Unsigned, Mode::Chunked, Mode::ChunkedTrailer, Mode::UnsignedTrailer];

#[derive(Clone)]
pub struct Request {
    pub method: String,
    pub target: String,
    pub headers: Vec<(String, String)>,
    pub unsigned: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub mode: Mode,
    pub presigned: bool,
    pub access_key: String,
    pub secret: String,
    pub chunk_bytes: usize,
    pub trailer: Option<(String, String)>,
    /// How the trailer ends, before the end of the body or its signature.
    pub trailer_end: &'static str,
    /// What is sent instead of the target that is signed.
    pub wire_target: Option<fn(&str) -> String>,
    pub sends_length: bool,
}

impl Request {
    pub fn new(method: &str, target: &str) -> Self {
        Request {
            method: method.into(),
            target: target.into(),
            headers: vec![("host".into(), "127.0.0.1:9000".into())],
            unsigned: Vec::new(),
            body: Vec::new(),
            mode: Mode::Hash,
            presigned: false,
            access_key: ACCESS_KEY.into(),
            secret: SECRET.into(),
            chunk_bytes: 8192,
            trailer: None,
            trailer_end: "\r\n",
            wire_target: None,
            sends_length: true,
        }
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.retain(|(known, _)| known != name || name.starts_with("x-amz-meta"));
        self.headers.push((name.into(), value.into()));
        self
    }

    pub fn unsigned(mut self, name: &str, value: &str) -> Self {
        self.unsigned.push((name.into(), value.into()));
        self
    }

    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    pub fn mode(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self
    }

    pub fn trailer(mut self, name: &str, value: &str) -> Self {
        self.trailer = Some((name.into(), value.into()));
        self
    }

    /// Writes the request's bytes, signed now.
    pub fn sign(&self, fake: &Fake) -> Vec<u8> {
        let (head, body) = self.sign_parts(fake);
        [head, body].concat()
    }

    pub fn sign_parts(&self, fake: &Fake) -> (Vec<u8>, Vec<u8>) {
        let date = amz_date(fake.now().millis() / 1000);
        let scope = format!("{}/us-east-1/s3/aws4_request", &date[..8]);
        let mut headers: BTreeMap<String, String> = BTreeMap::new();
        for (name, value) in &self.headers {
            headers
                .entry(name.clone())
                .and_modify(|known| {
                    known.push(',');
                    known.push_str(value);
                })
                .or_insert_with(|| value.clone());
        }
        let payload = match self.mode {
            Mode::Hash if self.presigned => "UNSIGNED-PAYLOAD".to_owned(),
            Mode::Hash => sha_hex(&self.body),
            Mode::Unsigned => "UNSIGNED-PAYLOAD".into(),
            Mode::Chunked => "STREAMING-AWS4-HMAC-SHA256-PAYLOAD".into(),
            Mode::ChunkedTrailer => "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER".into(),
            Mode::UnsignedTrailer => "STREAMING-UNSIGNED-PAYLOAD-TRAILER".into(),
        };
        let chunked = !matches!(self.mode, Mode::Hash | Mode::Unsigned);
        if chunked {
            headers.insert("x-amz-decoded-content-length".into(), self.body.len().to_string());
        }
        if let Some((name, _)) = &self.trailer {
            headers.insert("x-amz-trailer".into(), name.clone());
        }
        if !self.presigned || self.mode != Mode::Hash {
            headers.insert("x-amz-content-sha256".into(), payload.clone());
        }
        if !self.presigned {
            headers.insert("x-amz-date".into(), date.clone());
        }
        let signed: Vec<&str> = headers.keys().map(String::as_str).collect();
        let signed = signed.join(";");
        let (path, query) = self.target.split_once('?').unwrap_or((self.target.as_str(), ""));
        let mut query = query.to_owned();
        if self.presigned {
            let extra = format!(
                "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential={}%2F{}&X-Amz-Date={date}&X-Amz-Expires=600&X-Amz-SignedHeaders={}",
                self.access_key,
                scope.replace('/', "%2F"),
                signed.replace(';', "%3B"),
            );
            query = if query.is_empty() { extra } else { format!("{query}&{extra}") };
        }
        let mut pairs: Vec<String> = query
            .split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| if pair.contains('=') { pair.to_owned() } else { format!("{pair}=") })
            .collect();
        pairs.sort_by(|one, other| one.split('=').collect::<Vec<_>>().cmp(&other.split('=').collect::<Vec<_>>()));
        let lines: String = headers.iter().map(|(name, value)| format!("{name}:{}\n", value.trim())).collect();
        let canonical = format!("{}\n{path}\n{}\n{lines}\n{signed}\n{payload}", self.method, pairs.join("&"));
        let to_sign = format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{}", sha_hex(canonical.as_bytes()));
        let key = signing_key(&self.secret, &date[..8]);
        let signature = hmac_hex(&key, to_sign.as_bytes());

        let body = self.framed_body(&key, &date, &scope, &signature, chunked);
        let target = match (query.is_empty(), self.presigned) {
            (true, _) => path.to_owned(),
            (false, true) => format!("{path}?{query}&X-Amz-Signature={signature}"),
            (false, false) => format!("{path}?{query}"),
        };
        let target = self.wire_target.map_or(target.clone(), |wire| wire(&target));
        let mut head = format!("{} {target} HTTP/1.1\r\n", self.method);
        for (name, value) in headers.iter().filter(|(name, _)| !self.headers.iter().any(|(known, _)| known == *name)) {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        for (name, value) in self.headers.iter().chain(&self.unsigned) {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if !self.presigned {
            head.push_str(&format!(
                "authorization: AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders={signed}, Signature={signature}\r\n",
                self.access_key
            ));
        }
        let has_framing = self.unsigned.iter().any(|(name, _)| name == "transfer-encoding" || name == "content-length");
        if self.sends_length && !has_framing && (!body.is_empty() || self.method == "PUT" || self.method == "POST") {
            head.push_str(&format!("content-length: {}\r\n", body.len()));
        }
        head.push_str("\r\n");
        (head.into_bytes(), body)
    }

    fn framed_body(&self, key: &[u8], date: &str, scope: &str, seed: &str, chunked: bool) -> Vec<u8> {
        if !chunked {
            return self.body.clone();
        }
        let is_signed = self.mode != Mode::UnsignedTrailer;
        let mut previous = seed.to_owned();
        let mut out = Vec::new();
        let chunks = self.body.chunks(self.chunk_bytes).chain(std::iter::once(&[][..]));
        for chunk in chunks {
            if is_signed {
                let to_sign = format!(
                    "AWS4-HMAC-SHA256-PAYLOAD\n{date}\n{scope}\n{previous}\n{}\n{}",
                    sha_hex(b""),
                    sha_hex(chunk)
                );
                previous = hmac_hex(key, to_sign.as_bytes());
                out.extend_from_slice(format!("{:x};chunk-signature={previous}\r\n", chunk.len()).as_bytes());
            } else {
                out.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
            }
            if !chunk.is_empty() {
                out.extend_from_slice(chunk);
                out.extend_from_slice(b"\r\n");
            }
        }
        if let Some((name, value)) = &self.trailer {
            out.extend_from_slice(format!("{name}:{value}{}", self.trailer_end).as_bytes());
        }
        if self.mode == Mode::ChunkedTrailer {
            let canonical = match &self.trailer {
                Some((name, value)) => format!("{name}:{value}\n"),
                None => String::new(),
            };
            let to_sign =
                format!("AWS4-HMAC-SHA256-TRAILER\n{date}\n{scope}\n{previous}\n{}", sha_hex(canonical.as_bytes()));
            let signature = hmac_hex(key, to_sign.as_bytes());
            out.extend_from_slice(format!("x-amz-trailer-signature:{signature}\r\n").as_bytes());
        }
        out.extend_from_slice(b"\r\n");
        out
    }
}

pub fn sha_hex(bytes: &[u8]) -> String {
    hex(digest::digest(&digest::SHA256, bytes).as_ref())
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn hmac_bytes(key: &[u8], text: &[u8]) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text).as_ref().to_vec()
}

fn hmac_hex(key: &[u8], text: &[u8]) -> String {
    hex(&hmac_bytes(key, text))
}

fn signing_key(secret: &str, day: &str) -> Vec<u8> {
    let steps = [day.as_bytes(), b"us-east-1", b"s3", b"aws4_request"];
    steps.iter().fold(format!("AWS4{secret}").into_bytes(), |key, step| hmac_bytes(&key, step))
}

pub fn amz_date(seconds: u64) -> String {
    let at = time::OffsetDateTime::from_unix_timestamp(seconds as i64).expect("in range");
    format!(
        "{:04}{:02}{:02}T{:02}{:02}{:02}Z",
        at.year(),
        u8::from(at.month()),
        at.day(),
        at.hour(),
        at.minute(),
        at.second()
    )
}

/// What a connection runs over.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

pub struct Connection {
    stream: Box<dyn Stream>,
    buffer: Vec<u8>,
}

impl Connection {
    pub fn over(stream: impl Stream + 'static) -> Self {
        Connection { stream: Box::new(stream), buffer: Vec::new() }
    }

    pub async fn write(&mut self, bytes: &[u8]) {
        // The server may rightly close early.
        let _ = self.stream.write_all(bytes).await;
    }

    pub async fn exchange(&mut self, bytes: &[u8], is_head: bool) -> Answer {
        self.write(bytes).await;
        self.answer(is_head).await
    }

    async fn fill(&mut self) -> bool {
        let mut space = vec![0; 64 << 10];
        let read = tokio::time::timeout(WAIT, self.stream.read(&mut space)).await.expect("an answer in time");
        match read {
            Ok(0) | Err(_) => false,
            Ok(count) => {
                self.buffer.extend_from_slice(&space[..count]);
                true
            }
        }
    }

    /// Returns whether the server has closed.
    pub async fn is_closed(&mut self) -> bool {
        !self.fill().await
    }

    pub async fn answer(&mut self, is_head: bool) -> Answer {
        let end = loop {
            if let Some(at) = self.buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            assert!(self.fill().await, "closed before an answer: {:?}", String::from_utf8_lossy(&self.buffer));
        };
        let head = String::from_utf8(self.buffer[..end].to_vec()).expect("ASCII");
        self.buffer.drain(..end);
        let mut lines = head.split("\r\n");
        let status: u16 = lines.next().expect("a line").split(' ').nth(1).expect("a status").parse().expect("digits");
        let headers: Vec<(String, String)> = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect();
        let mut answer = Answer { status, headers, body: Vec::new(), is_whole: true };
        if is_head || status == 304 || status == 204 || status == 100 {
            return answer;
        }
        if answer.header("transfer-encoding").is_some() {
            answer.is_whole = self.take_chunks(&mut answer.body).await;
            return answer;
        }
        let length: usize = answer.header("content-length").map_or(0, |text| text.parse().expect("digits"));
        while self.buffer.len() < length {
            if !self.fill().await {
                answer.is_whole = false;
                break;
            }
        }
        let count = length.min(self.buffer.len());
        answer.body = self.buffer.drain(..count).collect();
        answer
    }

    async fn take_chunks(&mut self, out: &mut Vec<u8>) -> bool {
        loop {
            let line = loop {
                if let Some(at) = self.buffer.windows(2).position(|window| window == b"\r\n") {
                    break at;
                }
                if !self.fill().await {
                    return false;
                }
            };
            let text = String::from_utf8(self.buffer.drain(..line + 2).take(line).collect()).expect("ASCII");
            let size = usize::from_str_radix(&text, 16).expect("a size");
            while self.buffer.len() < size + 2 {
                if !self.fill().await {
                    return false;
                }
            }
            out.extend(self.buffer.drain(..size + 2).take(size));
            if size == 0 {
                return true;
            }
        }
    }
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub is_whole: bool,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    #[track_caller]
    pub fn expect_status(self, status: u16) -> Answer {
        assert_eq!(self.status, status, "{:?} {}", self.headers, self.text());
        assert!(self.header("x-amz-request-id").is_some_and(|id| id.len() == 16), "every answer has a request id");
        assert!(self.header("x-amz-id-2").is_some());
        self
    }

    #[track_caller]
    pub fn expect_error(self, status: u16, code: &str) -> Answer {
        let answer = self.expect_status(status);
        assert_eq!(answer.element("Code").as_deref(), Some(code), "{}", answer.text());
        assert_eq!(answer.element("RequestId").as_deref(), answer.header("x-amz-request-id"));
        answer
    }

    /// Returns the text of the first element of this name.
    pub fn element(&self, name: &str) -> Option<String> {
        self.elements(name).into_iter().next()
    }

    pub fn elements(&self, name: &str) -> Vec<String> {
        let text = self.text();
        let (open, close) = (format!("<{name}>"), format!("</{name}>"));
        let pieces = text.split(&open).skip(1);
        pieces.filter_map(|piece| piece.split(&close).next().map(str::to_owned)).collect()
    }
}
