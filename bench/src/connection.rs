//! One kept HTTP/1.1 connection to one endpoint: signs, sends, and gives the answer back.

use crate::payload::{self, Body, Stretch};
use crate::signer::{Signer, Subject, UNSIGNED_PAYLOAD, hex};
use aws_lc_rs::digest;
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// After this a request counts as failed.
const REQUEST_SECONDS_MAX: u64 = 60;

/// The SHA-256 of nothing.
const EMPTY_HASH: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// The longest answer that is kept whole (a page of LIST is about 400 KiB), in bytes.
const KEPT_BYTES_MAX: usize = 8 << 20;

/// Why a request did not succeed: the word under which it is counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failed(pub String);

/// An S3 endpoint, its credentials, and the connection while it lives.
pub struct Connection {
    authority: String,
    signer: Signer,
    signed_payload: bool,
    sender: Option<SendRequest<Body>>,
    /// The second for which `timestamp` was made.
    clock: (u64, String),
}

/// One request, before it is signed.
pub struct Call<'a> {
    /// The verb.
    pub method: Method,
    /// The path, percent-encoded.
    pub path: &'a str,
    /// The canonical query; empty for none.
    pub query: &'a str,
    /// The body.
    pub content: Content,
}

/// The body of a request.
#[derive(Clone)]
pub enum Content {
    /// No body, no `content-length`.
    None,
    /// Bytes of an object.
    Object(Stretch),
    /// A document, such as the list of parts.
    Document(Bytes),
}

impl Content {
    fn length(&self) -> Option<u64> {
        match self {
            Content::None => None,
            Content::Object(stretch) => Some(stretch.left()),
            Content::Document(bytes) => Some(bytes.len() as u64),
        }
    }

    fn hash(&self) -> String {
        match self {
            Content::None => EMPTY_HASH.to_string(),
            Content::Object(stretch) => {
                let mut context = digest::Context::new(&digest::SHA256);
                stretch.clone().for_each(|slice| context.update(&slice));
                hex(context.finish().as_ref())
            }
            Content::Document(bytes) => hex(digest::digest(&digest::SHA256, bytes).as_ref()),
        }
    }

    fn into_body(self) -> Body {
        match self {
            Content::None => payload::whole(Bytes::new()),
            Content::Object(stretch) => stretch.into_body(),
            Content::Document(bytes) => payload::whole(bytes),
        }
    }
}

impl<'a> Call<'a> {
    /// A request without query and body.
    pub fn plain(method: Method, path: &'a str) -> Call<'a> {
        Call { method, path, query: "", content: Content::None }
    }
}

impl Connection {
    /// Prepares a connection to `http://HOST:PORT`; it opens with the first request.
    ///
    /// # Errors
    /// When the endpoint is not of that form.
    pub fn new(endpoint: &str, signer: Signer, signed_payload: bool) -> Result<Connection, String> {
        let authority = endpoint.strip_prefix("http://").map(|rest| rest.trim_end_matches('/'));
        match authority {
            Some(authority) if authority.contains(':') && !authority.contains('/') => Ok(Connection {
                authority: authority.to_string(),
                signer,
                signed_payload,
                sender: None,
                clock: (0, String::new()),
            }),
            _ => Err(format!("endpoint {endpoint}: wanted http://HOST:PORT (the generator speaks plain HTTP)")),
        }
    }

    /// Sends a request and gives the body to `take` piece by piece. A broken connection is dropped and opened anew by
    /// the next request; nothing is tried twice.
    ///
    /// # Errors
    /// `Failed` with the S3 error code or the kind of transport error.
    pub async fn call(&mut self, call: Call<'_>, mut take: impl FnMut(&[u8])) -> Result<http::HeaderMap, Failed> {
        let work = async {
            let response = self.send(call).await?;
            let status = response.status();
            let (head, mut body) = response.into_parts();
            if !status.is_success() {
                return Err(refusal(status, body).await);
            }
            while let Some(frame) = body.frame().await {
                if let Ok(data) = frame.map_err(transport)?.into_data() {
                    take(&data);
                }
            }
            Ok(head.headers)
        };
        let outcome = match timeout(Duration::from_secs(REQUEST_SECONDS_MAX), work).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Failed("timeout".into())),
        };
        if outcome.is_err() {
            self.sender = None;
        }
        outcome
    }

    /// Sends a request and keeps the answer's body.
    ///
    /// # Errors
    /// As [`Connection::call`].
    pub async fn call_kept(&mut self, call: Call<'_>) -> Result<Vec<u8>, Failed> {
        let mut kept = Vec::new();
        self.call(call, |piece| {
            assert!(kept.len() + piece.len() <= KEPT_BYTES_MAX, "an answer of S3 is not that long");
            kept.extend_from_slice(piece);
        })
        .await?;
        Ok(kept)
    }

    async fn send(&mut self, call: Call<'_>) -> Result<http::Response<Incoming>, Failed> {
        let request = self.sign(call);
        if self.sender.as_ref().is_none_or(|sender| sender.is_closed()) {
            let stream = TcpStream::connect(&self.authority).await.map_err(|error| Failed(error.kind().to_string()))?;
            stream.set_nodelay(true).map_err(|error| Failed(error.kind().to_string()))?;
            let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(transport)?;
            tokio::spawn(connection);
            self.sender = Some(sender);
        }
        let sender = self.sender.as_mut().expect("the connection was just opened");
        sender.ready().await.map_err(transport)?;
        sender.send_request(request).await.map_err(transport)
    }

    fn sign(&mut self, call: Call<'_>) -> Request<Body> {
        self.tick();
        let length = call.content.length();
        let payload_hash = match &call.content {
            Content::Object(_) if !self.signed_payload => UNSIGNED_PAYLOAD.to_string(),
            content => content.hash(),
        };
        let headers = [
            ("host", self.authority.as_str()),
            ("x-amz-content-sha256", payload_hash.as_str()),
            ("x-amz-date", self.clock.1.as_str()),
        ];
        let authorization = self.signer.authorization(&Subject {
            method: call.method.as_str(),
            path: call.path,
            query: call.query,
            headers: &headers,
            payload_hash: &payload_hash,
            timestamp: &self.clock.1,
        });
        let target =
            if call.query.is_empty() { call.path.to_string() } else { format!("{}?{}", call.path, call.query) };
        let mut builder = Request::builder().method(call.method).uri(target).header("authorization", authorization);
        for (name, value) in headers {
            builder = builder.header(name, value);
        }
        if let Some(length) = length {
            builder = builder.header("content-length", length);
        }
        builder.body(call.content.into_body()).expect("paths and queries are encoded and headers are ASCII")
    }

    /// Makes the timestamp anew when the second has changed.
    // Requests carry wall time; this is where the bench reads it.
    #[allow(clippy::disallowed_methods)]
    fn tick(&mut self) {
        let now = time::OffsetDateTime::now_utc();
        if self.clock.0 != now.unix_timestamp() as u64 {
            let (date, clock) = (now.date(), now.time());
            let (month, day) = (u8::from(date.month()), date.day());
            let text = format!(
                "{:04}{month:02}{day:02}T{:02}{:02}{:02}Z",
                date.year(),
                clock.hour(),
                clock.minute(),
                clock.second()
            );
            self.clock = (now.unix_timestamp() as u64, text);
        }
    }
}

fn transport(error: hyper::Error) -> Failed {
    Failed(if error.is_incomplete_message() || error.is_canceled() {
        "connection closed".into()
    } else {
        error.to_string()
    })
}

/// The S3 code of an error answer, or its status when there is none.
async fn refusal(status: StatusCode, body: Incoming) -> Failed {
    let text = match body.collect().await {
        Ok(whole) => String::from_utf8_lossy(&whole.to_bytes()).into_owned(),
        Err(_) => String::new(),
    };
    Failed(element(&text, "Code").map_or_else(|| status.as_u16().to_string(), str::to_string))
}

/// The text of the first element called `name`.
pub fn element<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let start = text.find(&format!("<{name}>"))? + name.len() + 2;
    let length = text[start..].find("</")?;
    Some(&text[start..start + length])
}
