//! Watches a connection's byte stream below hyper.
//!
//! Every request head passes here first, whole, before the HTTP parser sees it. That is what makes
//! three statements true that the parser alone does not: ambiguous framing is refused (H4), every
//! refusal is an S3 error with a request id, and time limits hold for head, idle time and stalled
//! writes. A head that is refused is replaced by a synthetic one; the service asks
//! [`Watch::refusal`] and answers the error, and nothing more is read.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::error::{Code, S3Error};
use crate::head::{HEADER_COUNT_MAX, HEADER_SECTION_BYTES_MAX, REQUEST_LINE_BYTES_MAX};
use crate::pace::{Pace, Patience};

/// From the first byte of a head to its last; also from connecting to the first byte.
pub const HEAD_TIME_MAX: Duration = Duration::from_secs(20);
/// Between two requests of a connection.
pub const IDLE_TIME_MAX: Duration = Duration::from_secs(75);

/// What the parser is shown instead of a refused head.
const SYNTHETIC: &[u8] = b"GET / HTTP/1.1\r\nhost: refused\r\nconnection: close\r\n\r\n";
const READ_BYTES: usize = 8 << 10;

/// What the service and the stream tell each other.
#[derive(Default)]
pub struct Watch {
    busy: AtomicBool,
    /// Whether bytes of the current request's body are still to come.
    in_body: AtomicBool,
    refusal: AtomicU8,
}

/// Why a head is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Refusal {
    Ambiguous = 1,
    LineTooLong = 2,
    SectionTooLarge = 3,
    Malformed = 4,
}

impl Watch {
    /// Says that a request is being answered: idle time does not run.
    pub fn set_busy(&self, busy: bool) {
        self.busy.store(busy, Ordering::Relaxed);
    }

    /// Returns whether bytes of the current request's body are still to come: then its connection cannot
    /// go on behind an answer that nobody read the body for.
    pub fn is_in_body(&self) -> bool {
        self.in_body.load(Ordering::Relaxed)
    }

    /// Returns why the request that has just arrived is refused; it is the connection's last.
    pub fn refusal(&self) -> Option<S3Error> {
        let error = match self.refusal.load(Ordering::Relaxed) {
            0 => return None,
            n if n == Refusal::Ambiguous as u8 => Code::InvalidRequest
                .with("The length of the body is ambiguous: Content-Length stands twice, or beside Transfer-Encoding."),
            n if n == Refusal::LineTooLong as u8 => Code::InvalidURI.with("The request line is too long."),
            n if n == Refusal::SectionTooLarge as u8 => Code::RequestHeaderSectionTooLarge
                .with("Your request header section exceeds the maximum allowed size.")
                .element("MaxSizeAllowed", HEADER_SECTION_BYTES_MAX.to_string()),
            _ => Code::InvalidRequest.with("The request's head is not well-formed HTTP."),
        };
        Some(error.closing())
    }
}

enum Mode {
    /// Reading a head; counts what the parser has been shown.
    Head,
    /// Inside a body of known length.
    Body(u64),
    /// Inside a chunked body.
    Chunks(ChunkScanner),
    /// A head was refused: nothing more is read.
    Refused,
}

/// A stream that shows the parser one judged head at a time.
pub struct Guarded<T> {
    stream: T,
    watch: Arc<Watch>,
    mode: Mode,
    /// Received and not yet shown.
    held: Vec<u8>,
    /// How much of `held` may be shown.
    shown: usize,
    /// How much of `held` has been judged and found to be no whole head.
    judged: usize,
    read_timer: Pin<Box<Sleep>>,
    read_timer_runs: bool,
    is_first: bool,
    silent_max: Duration,
    write_timer: Option<Pin<Box<Sleep>>>,
    /// Since when the client takes nothing.
    waiting_since: Option<Instant>,
    /// How fast the client takes what it asked for.
    pace: Pace,
}

impl<T> Guarded<T> {
    /// Guards a fresh connection.
    pub fn new(stream: T, watch: Arc<Watch>, patience: Patience) -> Self {
        Guarded {
            stream,
            watch,
            mode: Mode::Head,
            held: Vec::new(),
            shown: 0,
            judged: 0,
            read_timer: Box::pin(tokio::time::sleep(HEAD_TIME_MAX)),
            read_timer_runs: true,
            is_first: true,
            silent_max: patience.silent_max,
            write_timer: None,
            waiting_since: None,
            pace: Pace::new(patience),
        }
    }

    /// Returns the stream below.
    pub fn into_inner(self) -> T {
        self.stream
    }

    /// Judges the head at the front of `held`. Returns whether it is whole.
    fn judge(&mut self) -> bool {
        // Only a line's end or a limit can change the judgement: a head that drips in byte by byte
        // is parsed once a line, not once a byte.
        let fresh = &self.held[self.judged..];
        let over = self.held.len() > HEADER_SECTION_BYTES_MAX + REQUEST_LINE_BYTES_MAX
            || self.held.len() > REQUEST_LINE_BYTES_MAX && !self.held.contains(&b'\n');
        if !fresh.contains(&b'\n') && !over {
            self.judged = self.held.len();
            return false;
        }
        match judge(&self.held) {
            Judgement::Partial => {
                self.judged = self.held.len();
                return false;
            }
            Judgement::Refused(refusal) => {
                self.watch.refusal.store(refusal as u8, Ordering::Relaxed);
                self.held.clear();
                self.held.extend_from_slice(SYNTHETIC);
                self.shown = SYNTHETIC.len();
                self.mode = Mode::Refused;
            }
            Judgement::Whole { bytes, body } => {
                self.shown = bytes;
                self.watch.in_body.store(!matches!(body, BodyKind::None), Ordering::Relaxed);
                self.mode = match body {
                    BodyKind::None => Mode::Head,
                    BodyKind::Length(length) => Mode::Body(length),
                    BodyKind::Chunked => Mode::Chunks(ChunkScanner::default()),
                };
            }
        }
        self.is_first = false;
        self.judged = 0;
        self.read_timer_runs = false;
        true
    }

    /// Moves shown bytes over to the parser. Returns whether there were any.
    fn show(&mut self, buf: &mut ReadBuf<'_>) -> bool {
        let count = self.shown.min(buf.remaining());
        if count == 0 {
            return false;
        }
        buf.put_slice(&self.held[..count]);
        self.held.drain(..count);
        self.shown -= count;
        true
    }
}

impl<T: AsyncRead + Unpin> Guarded<T> {
    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        if !self.read_timer_runs {
            let wait = if self.held.is_empty() && !self.is_first { IDLE_TIME_MAX } else { HEAD_TIME_MAX };
            self.read_timer.as_mut().reset(Instant::now() + wait);
            self.read_timer_runs = true;
        }
        loop {
            ready!(self.read_timer.as_mut().poll(cx));
            if !self.watch.busy.load(Ordering::Relaxed) {
                return Poll::Ready(io::ErrorKind::TimedOut.into());
            }
            // A request is being answered: the client rightly waits.
            self.read_timer.as_mut().reset(Instant::now() + IDLE_TIME_MAX);
        }
    }

    /// Reads more into `held`. Returns how many bytes; 0 at the end of the stream.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut space = [0u8; READ_BYTES];
        let mut buf = ReadBuf::new(&mut space);
        match Pin::new(&mut self.stream).poll_read(cx, &mut buf) {
            Poll::Ready(Ok(())) => {
                if self.held.is_empty() {
                    // The head's own time starts with its first byte.
                    self.read_timer_runs = false;
                }
                self.held.extend_from_slice(buf.filled());
                Poll::Ready(Ok(buf.filled().len()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => match self.poll_timer(cx) {
                Poll::Ready(error) => Poll::Ready(Err(error)),
                Poll::Pending => Poll::Pending,
            },
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Guarded<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if buf.remaining() == 0 || this.show(buf) {
                return Poll::Ready(Ok(()));
            }
            match &mut this.mode {
                // No end of the stream: the parser would take it for a client that left, and drop
                // the answer. The answer closes the connection.
                Mode::Refused => return Poll::Pending,
                Mode::Head => {
                    if !this.held.is_empty() && this.judge() {
                        continue;
                    }
                    if ready!(this.poll_fill(cx))? == 0 {
                        return Poll::Ready(Ok(()));
                    }
                }
                Mode::Body(0) => this.mode = Mode::Head,
                Mode::Body(left) if !this.held.is_empty() => {
                    let count = usize::try_from(*left).unwrap_or(usize::MAX).min(this.held.len());
                    *left -= count as u64;
                    this.shown = count;
                    this.watch.in_body.store(*left > 0, Ordering::Relaxed);
                }
                Mode::Body(left) => {
                    // Straight into the parser's buffer, and not a byte of the next head.
                    let before = buf.filled().len();
                    ready!(Pin::new(&mut (&mut this.stream).take(*left)).poll_read(cx, buf))?;
                    *left -= (buf.filled().len() - before) as u64;
                    this.watch.in_body.store(*left > 0, Ordering::Relaxed);
                    return Poll::Ready(Ok(()));
                }
                Mode::Chunks(scanner) => {
                    if this.held.is_empty() {
                        let mut space = [0u8; READ_BYTES];
                        let mut read = ReadBuf::new(&mut space);
                        ready!(Pin::new(&mut this.stream).poll_read(cx, &mut read))?;
                        if read.filled().is_empty() {
                            return Poll::Ready(Ok(()));
                        }
                        this.held.extend_from_slice(read.filled());
                    }
                    this.shown = scanner.scan(&this.held);
                    if scanner.is_done() {
                        this.watch.in_body.store(false, Ordering::Relaxed);
                        this.mode = Mode::Head;
                    }
                }
            }
        }
    }
}

impl<T: AsyncWrite + Unpin> Guarded<T> {
    /// Ends the connection of a client that takes nothing, or too little, of an answer; `bytes` says what it took.
    fn stalled<R>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<R>>,
        bytes: impl Fn(&R) -> usize,
    ) -> Poll<io::Result<R>> {
        if let Poll::Ready(Ok(taken)) = &written {
            self.write_timer = None;
            let waited = self.waiting_since.take().map_or(Duration::ZERO, |since| since.elapsed());
            if !self.pace.handle_moved(waited, bytes(taken) as u64) {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
        }
        if written.is_ready() {
            return written;
        }
        self.waiting_since.get_or_insert_with(Instant::now);
        let silent_max = self.silent_max;
        let timer = self.write_timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(silent_max)));
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Guarded<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write(cx, buf);
        this.stalled(cx, written, |bytes| *bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write_vectored(cx, bufs);
        this.stalled(cx, written, |bytes| *bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = Pin::new(&mut this.stream).poll_flush(cx);
        this.stalled(cx, flushed, |()| 0)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

enum Judgement {
    Partial,
    Refused(Refusal),
    Whole { bytes: usize, body: BodyKind },
}

enum BodyKind {
    None,
    Length(u64),
    Chunked,
}

fn judge(held: &[u8]) -> Judgement {
    let mut headers = [httparse::EMPTY_HEADER; HEADER_COUNT_MAX];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(held) {
        Err(httparse::Error::TooManyHeaders) => Judgement::Refused(Refusal::SectionTooLarge),
        Err(_) => Judgement::Refused(Refusal::Malformed),
        Ok(httparse::Status::Partial) => match (held.contains(&b'\n'), held.len()) {
            (false, length) if length > REQUEST_LINE_BYTES_MAX => Judgement::Refused(Refusal::LineTooLong),
            (true, length) if length > HEADER_SECTION_BYTES_MAX + REQUEST_LINE_BYTES_MAX => {
                Judgement::Refused(Refusal::SectionTooLarge)
            }
            _ => Judgement::Partial,
        },
        Ok(httparse::Status::Complete(bytes)) => match judge_whole(held, bytes, &request) {
            Ok(body) => Judgement::Whole { bytes, body },
            Err(refusal) => Judgement::Refused(refusal),
        },
    }
}

fn judge_whole(held: &[u8], bytes: usize, request: &httparse::Request<'_, '_>) -> Result<BodyKind, Refusal> {
    let line = held[..bytes].iter().position(|&byte| byte == b'\n').map_or(bytes, |at| at + 1);
    if line > REQUEST_LINE_BYTES_MAX {
        return Err(Refusal::LineTooLong);
    }
    if bytes - line > HEADER_SECTION_BYTES_MAX {
        return Err(Refusal::SectionTooLarge);
    }
    // A line that ends in LF alone is read in two ways along a chain of proxies (RFC 9112, section 2.2).
    let lines = held[..bytes].split_inclusive(|&byte| byte == b'\n');
    if lines.into_iter().any(|line| !line.ends_with(b"\r\n")) {
        return Err(Refusal::Malformed);
    }
    // What the parser behind us would refuse must be refused here, or it answers without our headers.
    let method = request.method.unwrap_or_default();
    let is_method = http::Method::from_bytes(method.as_bytes()).is_ok() && method != "CONNECT";
    if !is_method || http::Uri::try_from(request.path.unwrap_or_default()).is_err() {
        return Err(Refusal::Malformed);
    }
    let mut length: Option<u64> = None;
    let mut chunked = false;
    let mut hosts = 0;
    for header in request.headers.iter() {
        if header.name.eq_ignore_ascii_case("content-length") {
            let text = std::str::from_utf8(header.value).unwrap_or_default().trim();
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            let value = text.parse().ok().filter(|_| digits).ok_or(Refusal::Ambiguous)?;
            if length.replace(value).is_some() {
                return Err(Refusal::Ambiguous);
            }
        } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
            let once = !std::mem::replace(&mut chunked, true);
            if !once || !header.value.trim_ascii().eq_ignore_ascii_case(b"chunked") || request.version != Some(1) {
                return Err(Refusal::Ambiguous);
            }
        } else if header.name.eq_ignore_ascii_case("host") {
            hosts += 1;
        }
    }
    if hosts > 1 {
        return Err(Refusal::Malformed);
    }
    match (length, chunked) {
        (Some(_), true) => Err(Refusal::Ambiguous),
        (None, true) => Ok(BodyKind::Chunked),
        (Some(0) | None, false) => Ok(BodyKind::None),
        (Some(length), false) => Ok(BodyKind::Length(length)),
    }
}

/// Finds the end of a chunked body, so that the next head is judged too. Framing errors are the
/// parser's to report: the scanner then shows everything.
#[derive(Default)]
struct ChunkScanner {
    state: ChunkState,
    size: u64,
}

#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum ChunkState {
    /// Reading a size.
    #[default]
    Size,
    /// Behind the size, up to the line's end.
    Extension,
    Data,
    /// The line end behind data.
    DataEnd,
    /// At the start of a trailer line.
    TrailerStart,
    /// Inside a trailer line.
    Trailer,
    Done,
    Lost,
}

impl ChunkScanner {
    fn is_done(&self) -> bool {
        self.state == ChunkState::Done
    }

    /// Returns how many of the bytes belong to the body.
    fn scan(&mut self, bytes: &[u8]) -> usize {
        let mut at = 0;
        while at < bytes.len() && self.state != ChunkState::Done {
            let byte = bytes[at];
            if self.state == ChunkState::Data {
                let count = usize::try_from(self.size).unwrap_or(usize::MAX).min(bytes.len() - at);
                self.size -= count as u64;
                at += count;
                if self.size == 0 {
                    self.state = ChunkState::DataEnd;
                }
                continue;
            }
            at += 1;
            self.state = match (self.state, byte) {
                (ChunkState::Size, b'\n') | (ChunkState::Extension, b'\n') => match self.size {
                    0 => ChunkState::TrailerStart,
                    _ => ChunkState::Data,
                },
                (ChunkState::Size, digit) if digit.is_ascii_hexdigit() => {
                    let digit = u64::from((digit as char).to_digit(16).unwrap_or_default());
                    match self.size.checked_mul(16) {
                        Some(size) => {
                            self.size = size + digit;
                            ChunkState::Size
                        }
                        None => ChunkState::Lost,
                    }
                }
                (ChunkState::Size, b';' | b' ' | b'\t' | b'\r') | (ChunkState::Extension, _) => ChunkState::Extension,
                (ChunkState::DataEnd, b'\r') => ChunkState::DataEnd,
                (ChunkState::DataEnd, b'\n') => ChunkState::Size,
                (ChunkState::TrailerStart, b'\r') => ChunkState::TrailerStart,
                (ChunkState::TrailerStart, b'\n') => ChunkState::Done,
                (ChunkState::Trailer, b'\n') => ChunkState::TrailerStart,
                (ChunkState::TrailerStart | ChunkState::Trailer, _) => ChunkState::Trailer,
                _ => ChunkState::Lost,
            };
            if self.state == ChunkState::Lost {
                return bytes.len();
            }
        }
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn refused(head: &str) -> Option<Refusal> {
        match judge(head.as_bytes()) {
            Judgement::Refused(refusal) => Some(refusal),
            Judgement::Partial | Judgement::Whole { .. } => None,
        }
    }

    #[test]
    fn h4_ambiguous_framing_is_refused() {
        let head = |headers: &str| format!("PUT /b/k HTTP/1.1\r\nhost: h\r\n{headers}\r\n");
        for bad in [
            "content-length: 1\r\ncontent-length: 2\r\n",
            "content-length: 1\r\ncontent-length: 1\r\n",
            "content-length: 1, 1\r\n",
            "content-length: +1\r\n",
            "content-length: 1\r\ntransfer-encoding: chunked\r\n",
            "transfer-encoding: chunked\r\ncontent-length: 1\r\n",
            "transfer-encoding: gzip\r\n",
            "transfer-encoding: chunked, chunked\r\n",
        ] {
            assert_eq!(refused(&head(bad)), Some(Refusal::Ambiguous), "{bad}");
        }
        assert_eq!(refused(&head("content-length: 1\r\n")), None);
        assert_eq!(refused(&head("transfer-encoding: Chunked\r\n")), None);
        assert_eq!(refused(&head("host: other\r\n")), Some(Refusal::Malformed));
    }

    #[test]
    fn h4_lines_of_a_head_end_in_crlf() {
        assert_eq!(refused("GET / HTTP/1.1\r\nhost: h\r\na: b\r\n\r\n"), None);
        for bad in [
            "GET / HTTP/1.1\nhost: h\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: h\n\r\n",
            "GET / HTTP/1.1\r\nhost: h\r\n\n",
            "\nGET / HTTP/1.1\r\nhost: h\r\n\r\n",
            "PUT /b/k HTTP/1.1\r\nhost: h\r\na: b\ntransfer-encoding: chunked\r\n\r\n",
        ] {
            assert_eq!(refused(bad), Some(Refusal::Malformed), "{bad:?}");
        }
    }

    #[test]
    fn heads_have_limits() {
        assert_eq!(refused(&"a".repeat(REQUEST_LINE_BYTES_MAX + 1)), Some(Refusal::LineTooLong));
        let long = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(REQUEST_LINE_BYTES_MAX));
        assert_eq!(refused(&long), Some(Refusal::LineTooLong));
        let large = format!("GET / HTTP/1.1\r\na: {}\r\n\r\n", "b".repeat(HEADER_SECTION_BYTES_MAX));
        assert_eq!(refused(&large), Some(Refusal::SectionTooLarge));
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(HEADER_COUNT_MAX + 1));
        assert_eq!(refused(&many), Some(Refusal::SectionTooLarge));
    }

    #[test]
    fn the_scanner_finds_the_end_of_a_chunked_body() {
        let body = b"5;x=y\r\nhello\r\n1\r\n\n\r\n0\r\nname: value\r\n\r\n";
        let next = b"GET / HTTP/1.1\r\n\r\n";
        let both = [&body[..], &next[..]].concat();
        for step in 1..both.len() {
            let mut scanner = ChunkScanner::default();
            let mut end = 0;
            for piece in both.chunks(step) {
                let count = scanner.scan(piece);
                end += count;
                if scanner.is_done() {
                    break;
                }
                assert_eq!(count, piece.len());
            }
            assert!(scanner.is_done());
            assert_eq!(end, body.len(), "in pieces of {step}");
        }
    }

    proptest! {
        #[test]
        fn any_head_is_judged_without_a_panic(head in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = judge(&head);
            let _ = ChunkScanner::default().scan(&head);
        }
    }
}
