//! Response bodies: whole, streamed from the cluster, or kept alive while a commit takes long.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body::{Frame, SizeHint};
use plinth_protocol::Failure;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::{Instant, Sleep};

use crate::store::BodyReader;
use crate::xml::Writer;

/// How often white space is sent while a commit outlasts the first answer.
pub const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(10);
const XML: HeaderValue = HeaderValue::from_static("application/xml");

/// What ends with the response: counters, the log line.
pub trait Finish: Send + Sync {
    /// Takes note of bytes that leave.
    fn sent(&mut self, bytes: u64);
    /// Takes note that the body broke off, and why.
    fn broken(&mut self, why: &Broken);
}

/// A response body.
pub struct Body {
    kind: Kind,
    finish: Option<Box<dyn Finish>>,
}

enum Kind {
    Empty,
    Whole(Bytes),
    Stream(Box<Stream>),
    Waiting(Box<Waiting>),
}

struct Stream {
    first: Option<Bytes>,
    reader: Box<dyn BodyReader>,
    left: u64,
}

struct Waiting {
    /// Whether the XML declaration has been sent.
    declared: bool,
    rest: Pin<Box<dyn Future<Output = Vec<u8>> + Send>>,
    pause: Pin<Box<Sleep>>,
}

/// A body that broke off behind its headers; the connection breaks with it (X3).
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// The cluster failed.
    #[error("reading the object failed")]
    Failed(#[source] Failure),
    /// Fewer or more bytes came than were announced.
    #[error("the object's length is not what its row says")]
    Length,
}

impl Body {
    fn of(kind: Kind) -> Self {
        Body { kind, finish: None }
    }

    /// Makes a body without bytes.
    pub fn empty() -> Self {
        Body::of(Kind::Empty)
    }

    /// Makes a body of these bytes.
    pub fn whole(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        if bytes.is_empty() { Body::empty() } else { Body::of(Kind::Whole(bytes)) }
    }

    /// Makes a body of `length` bytes: those read already, then the reader's.
    pub fn stream(first: Bytes, reader: Box<dyn BodyReader>, length: u64) -> Self {
        if first.len() as u64 == length {
            return Body::whole(first);
        }
        Body::of(Kind::Stream(Box::new(Stream { first: Some(first), reader, left: length })))
    }

    /// Makes a body of the XML declaration at once, white space while `rest` is pending, then `rest`
    /// (M4).
    pub fn waiting(rest: Pin<Box<dyn Future<Output = Vec<u8>> + Send>>) -> Self {
        let pause = Box::pin(tokio::time::sleep(KEEP_ALIVE_EVERY));
        Body::of(Kind::Waiting(Box::new(Waiting { declared: false, rest, pause })))
    }

    /// Attaches what ends with the body.
    pub fn with_finish(mut self, finish: Box<dyn Finish>) -> Self {
        self.finish = Some(finish);
        self
    }

    /// Drops the bytes and keeps the rest, for answers to HEAD.
    pub fn clear(&mut self) {
        self.kind = Kind::Empty;
    }
}

impl Stream {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Broken>>> {
        let next = match self.first.take() {
            Some(first) => Some(Ok(first)),
            None if self.left == 0 => None,
            None => ready!(self.reader.poll_next(cx)),
        };
        Poll::Ready(match next {
            Some(Ok(bytes)) => match self.left.checked_sub(bytes.len() as u64) {
                Some(left) => {
                    self.left = left;
                    Some(Ok(bytes))
                }
                None => Some(Err(Broken::Length)),
            },
            Some(Err(failure)) => Some(Err(Broken::Failed(failure))),
            None if self.left > 0 => Some(Err(Broken::Length)),
            None => None,
        })
    }
}

impl Waiting {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if !self.declared {
            self.declared = true;
            return Poll::Ready(Some(Bytes::from(Writer::document(0).into_vec())));
        }
        if let Poll::Ready(rest) = self.rest.as_mut().poll(cx) {
            return Poll::Ready(Some(rest.into()));
        }
        ready!(self.pause.as_mut().poll(cx));
        self.pause.as_mut().reset(Instant::now() + KEEP_ALIVE_EVERY);
        // Register the new timer, so that the task wakes for it.
        let _ = self.pause.as_mut().poll(cx);
        Poll::Ready(Some(Bytes::from_static(b" ")))
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let this = self.get_mut();
        let next = match &mut this.kind {
            Kind::Empty => None,
            Kind::Whole(bytes) => {
                let bytes = std::mem::take(bytes);
                this.kind = Kind::Empty;
                Some(Ok(bytes))
            }
            Kind::Stream(stream) => ready!(stream.poll(cx)),
            Kind::Waiting(waiting) => {
                let last = waiting.declared;
                let bytes = ready!(waiting.poll(cx));
                // White space is one byte; the result never is.
                if last && bytes.as_ref().is_some_and(|bytes| bytes.len() > 1) {
                    this.kind = Kind::Empty;
                }
                bytes.map(Ok)
            }
        };
        if let Some(finish) = &mut this.finish {
            match &next {
                Some(Ok(bytes)) => finish.sent(bytes.len() as u64),
                Some(Err(broken)) => finish.broken(broken),
                None => {}
            }
        }
        Poll::Ready(next.map(|next| next.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Empty => true,
            Kind::Stream(stream) => stream.left == 0,
            Kind::Whole(_) | Kind::Waiting(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Empty => SizeHint::with_exact(0),
            Kind::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Kind::Stream(stream) => SizeHint::with_exact(stream.left),
            Kind::Waiting(_) => SizeHint::default(),
        }
    }
}

/// Makes an answer without a body.
pub fn empty(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

/// Makes a 200 with an XML document.
pub fn xml(document: Writer) -> Response<Body> {
    let mut response = Response::new(Body::whole(document.into_vec()));
    response.headers_mut().insert(header::CONTENT_TYPE, XML);
    response
}

/// Makes an XML answer with another status.
pub fn xml_with(status: StatusCode, document: Writer) -> Response<Body> {
    let mut response = xml(document);
    *response.status_mut() = status;
    response
}

/// Makes a 200 that is kept alive until `rest` is there.
pub fn xml_waiting(rest: Pin<Box<dyn Future<Output = Vec<u8>> + Send>>) -> Response<Body> {
    let mut response = Response::new(Body::waiting(rest));
    response.headers_mut().insert(header::CONTENT_TYPE, XML);
    response
}
