//! Reading an object: pieces of its stripes, fetched ahead, handed out in order.

use crate::client::{Client, unexpected};
use crate::config::{CHUNK_BYTES_MAX, READ_AHEAD_BYTES_MAX, READ_LEAN_BYTES_MAX, READ_SHARE_OF_FREE};
use crate::fetch::Rows;
use crate::layout::{Piece, pieces};
use crate::memory::{Held, with_held};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;
use plinth_protocol::frame::{FRAME_BYTES, FRAME_PAYLOAD_BYTES};
use plinth_protocol::meta::{LIST_ENTRIES_MAX, ObjectView, PartsPage, PartsQuery, Query, Reply};
use plinth_protocol::object::{Body, PartSpan};
use plinth_protocol::stripe::StripeRef;
use plinth_protocol::{BucketId, Failure, FailureKind, UploadId};
use plinth_transport::BoxFuture;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::Instant;

/// How long the question for a page of part rows may take.
const PARTS_TIMEOUT: Duration = Duration::from_secs(10);
/// By how much a retention may seem shorter here than it was: clocks run at different rates.
const RETENTION_DOUBT: Duration = Duration::from_secs(10);
/// Bytes of part rows that one page should stay below.
const PARTS_PAGE_BYTES: u64 = 256 << 10;
/// Estimated bytes of a part row without its stripes.
const PART_ROW_BYTES: u64 = 200;
/// Estimated bytes of one stripe reference in a part row.
const STRIPE_REF_BYTES: u64 = 80;

impl Client {
    /// Reads a range of an object, given as a query for it with `body` answered. A range beyond the
    /// object, or a view without body, makes the reader fail at its first bytes with `Invalid`.
    pub fn open(&self, bucket: BucketId, key: &str, view: &ObjectView, range: Range<u64>) -> ObjectReader {
        let mut window = Window {
            client: self.clone(),
            opened: Instant::now(),
            whose: (bucket, key.into()),
            sources: VecDeque::new(),
            parts: None,
            pieces: VecDeque::new(),
            fetches: FuturesOrdered::new(),
            fetching: VecDeque::new(),
            fetching_bytes: 0,
            paging: None,
            current: None,
            ready: VecDeque::new(),
            failure: None,
            asked: Instant::now(),
            is_awaited: false,
        };
        let body = view.body.as_ref().filter(|_| range.start <= range.end && range.end <= view.row.size_bytes);
        match (body.map(|body| &body.body), view.row.upload) {
            (None, _) => {
                window.failure = Some(Failure::new(FailureKind::Invalid, "no such range, or no body to read"));
            }
            (Some(Body::Parts(spans)), Some(upload)) => {
                window.parts = Parts::over(bucket, key, upload, spans, range);
            }
            (Some(Body::Parts(_)), None) => {
                window.failure = Some(Failure::new(FailureKind::Corrupt, "parts without an upload"));
            }
            (Some(whole), _) => window.push_body(whole, range),
        }
        let window = Arc::new(Mutex::new(window));
        let number = self.inner.readers.enter(&window);
        ObjectReader { client: self.clone(), window, number }
    }
}

/// Yields an object's bytes in order, each verified.
pub struct ObjectReader {
    client: Client,
    /// Shared with [`Readers`](crate::readers::Readers) alone, which empties it where its caller stalls.
    window: Arc<Mutex<Window>>,
    number: u64,
}

impl ObjectReader {
    /// Returns the next bytes; nothing at the end. An error ends the body: bytes that were handed
    /// out before it are right, those that follow are lost.
    pub async fn next(&mut self) -> Option<Result<Bytes, Failure>> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    /// As [`ObjectReader::next`], for callers that poll.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Failure>>> {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        let polled = window.poll_next(cx);
        window.asked = Instant::now();
        window.is_awaited = polled.is_pending();
        polled
    }
}

impl Drop for ObjectReader {
    fn drop(&mut self) {
        self.client.inner.readers.leave(self.number);
    }
}

/// What a reader has under way and ready.
pub(crate) struct Window {
    client: Client,
    opened: Instant,
    /// Bucket and key, for the log.
    whose: (BucketId, String),
    /// What follows, not yet cut into pieces.
    sources: VecDeque<Source>,
    /// Parts whose rows are not yet fetched.
    parts: Option<Parts>,
    pieces: VecDeque<(Arc<StripeRef>, Piece)>,
    /// Pieces that are being fetched; they answer in order.
    fetches: FuturesOrdered<BoxFuture<'static, Result<Chunk, Failure>>>,
    /// What `fetches` are, in the same order.
    fetching: VecDeque<(Arc<StripeRef>, Piece)>,
    fetching_bytes: usize,
    paging: Option<BoxFuture<'static, Result<PartsPage, Failure>>>,
    /// The piece whose frames are in `ready`.
    current: Option<(Arc<StripeRef>, Piece)>,
    ready: VecDeque<Bytes>,
    failure: Option<Failure>,
    /// When the caller last asked.
    asked: Instant,
    /// Whether the caller waits for what it asked.
    is_awaited: bool,
}

/// Where some of the bytes are.
enum Source {
    /// Here: a part that was small enough for its row.
    Inline(Bytes),
    /// In this range of a stripe's payload.
    Stripe(StripeRef, Range<u64>),
}

/// A fetched piece: a run of frames and the payload bytes of it that are wanted.
struct Chunk {
    frames: Bytes,
    wanted: Range<usize>,
}

impl Window {
    /// Returns whether bytes are here, or on their way, that the caller has not asked for since a while.
    pub(crate) fn is_stalled(&self, now: Instant, after: Duration) -> bool {
        !self.is_awaited && now >= self.asked + after && (self.fetching_bytes > 0 || !self.ready.is_empty())
    }

    /// Gives back what has been fetched and not handed out; it is fetched again when the caller asks.
    pub(crate) fn give_back(&mut self) {
        self.fetches = FuturesOrdered::new();
        self.fetching_bytes = 0;
        while let Some(piece) = self.fetching.pop_back() {
            self.pieces.push_front(piece);
        }
        // Bytes that came with a row take no memory that is shared.
        let Some((stripe, piece)) = self.current.take().filter(|_| !self.ready.is_empty()) else { return };
        let handed_out = piece.count - self.ready.len();
        let rest = if handed_out > 0 { piece.split(handed_out).1 } else { piece };
        self.pieces.push_front((stripe, rest));
        self.ready.clear();
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Failure>>> {
        loop {
            if let Some(bytes) = self.ready.pop_front() {
                self.client.inner.counters.bytes_read.add(bytes.len() as u64);
                return Poll::Ready(Some(Ok(bytes)));
            }
            if let Some(failure) = self.failure.take() {
                self.report(&failure);
                self.abandon();
                return Poll::Ready(Some(Err(failure)));
            }
            self.fetch_ahead();
            if self.fetches.is_empty() {
                match ready!(self.poll_idle(cx)) {
                    true => continue,
                    false => return Poll::Ready(None),
                }
            }
            match ready!(self.fetches.poll_next_unpin(cx)) {
                Some(Ok(chunk)) => self.cut(chunk),
                Some(Err(failure)) => self.failure = Some(failure),
                None => {}
            }
        }
    }

    /// Tells the log of a read that is cut because its object has gone meanwhile.
    fn report(&self, failure: &Failure) {
        let (read_for, retention) = (self.opened.elapsed(), self.client.inner.config.deferred_delete_after);
        let gone = match failure.kind {
            FailureKind::NotFound => read_for >= retention.saturating_sub(RETENTION_DOUBT),
            // Part rows are those of another object, or of none.
            FailureKind::Conflict => true,
            _ => false,
        };
        if gone {
            tracing::warn!(
                event = "read_cut",
                bucket = %self.whose.0,
                key = self.whose.1,
                read_for_s = read_for.as_secs(),
                retention_s = retention.as_secs(),
                %failure,
                "read cut: the object was deleted or overwritten and its data destroyed while it was read; \
                 gateway.deferred_delete_seconds says how long it is kept"
            );
        }
    }

    /// Gives up what is under way and what would follow.
    fn abandon(&mut self) {
        self.fetches = FuturesOrdered::new();
        self.fetching.clear();
        self.fetching_bytes = 0;
        self.sources.clear();
        self.pieces.clear();
        self.ready.clear();
        (self.parts, self.paging, self.current) = (None, None, None);
    }

    /// Nothing is being fetched: gets the next page of part rows, or a little of the next piece.
    /// Ready with `false` at the end of the range.
    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        if !self.pieces.is_empty() {
            // Memory is scarce. Waiting for it would mean waiting for readers that may wait for this very one, as
            // copies do, or for clients that hardly read.
            self.client.inner.readers.reclaim(Instant::now());
            self.split_front(READ_LEAN_BYTES_MAX / FRAME_BYTES);
            let held = self.client.inner.read_budget.try_acquire(self.front_bytes());
            self.fetch_next(held);
            return Poll::Ready(true);
        }
        if let Some(Source::Inline(bytes)) = self.sources.pop_front_if(|source| matches!(source, Source::Inline(_))) {
            self.current = None;
            self.ready.push_back(bytes);
            return Poll::Ready(true);
        }
        let Some(parts) = &self.parts else { return Poll::Ready(false) };
        let paging = self.paging.get_or_insert_with(|| Box::pin(parts.page(self.client.clone())));
        let page = ready!(paging.as_mut().poll(cx));
        self.paging = None;
        if let Err(failure) = page.and_then(|page| self.take_page(page)) {
            self.failure = Some(failure);
        }
        Poll::Ready(true)
    }

    /// Starts fetching pieces while there is room in the window and memory for more.
    fn fetch_ahead(&mut self) {
        while self.cut_sources() {
            let budget = &self.client.inner.read_budget;
            let share = (budget.free_bytes() / READ_SHARE_OF_FREE).min(READ_AHEAD_BYTES_MAX);
            if self.front_bytes() > share {
                // Scarce: no more than the share, and that only after what is under way.
                if self.fetching_bytes > 0 || share <= READ_LEAN_BYTES_MAX {
                    return;
                }
                self.split_front(share / FRAME_BYTES);
            } else if self.fetching_bytes >= share {
                return;
            }
            let Some(held) = self.client.inner.read_budget.try_acquire(self.front_bytes()) else { return };
            self.fetch_next(Some(held));
        }
    }

    /// Returns the bytes of the next piece, which is there.
    fn front_bytes(&self) -> usize {
        self.pieces.front().map_or(0, |(_, piece)| piece.count * FRAME_BYTES)
    }

    /// Cuts the next piece behind its first `frames`, where it has more.
    fn split_front(&mut self, frames: usize) {
        let Some((stripe, piece)) = self.pieces.front_mut() else { return };
        if piece.count > frames {
            let (head, rest) = piece.split(frames);
            let stripe = stripe.clone();
            *piece = rest;
            self.pieces.push_front((stripe, head));
        }
    }

    /// Sees to it that there are pieces; returns whether there are.
    fn cut_sources(&mut self) -> bool {
        while self.pieces.is_empty() {
            // Bytes that are here wait until what stands before them has been handed out.
            if matches!(self.sources.front(), Some(Source::Inline(_))) {
                return false;
            }
            let Some(Source::Stripe(stripe, range)) = self.sources.pop_front() else { return false };
            let stripe = Arc::new(stripe);
            let cut = pieces(&stripe, range, CHUNK_BYTES_MAX / FRAME_BYTES);
            self.pieces.extend(cut.into_iter().map(|piece| (stripe.clone(), piece)));
        }
        true
    }

    fn fetch_next(&mut self, held: Option<Held>) {
        let (stripe, piece) = self.pieces.pop_front().expect("the caller saw it");
        let client = self.client.clone();
        self.fetching_bytes += piece.wanted.len();
        self.fetching.push_back((stripe.clone(), piece.clone()));
        self.fetches.push_back(Box::pin(async move {
            let rows = Rows { stripe: &stripe, index: piece.index, first: piece.first, count: piece.count };
            let frames = client.fetch(rows).await?;
            Ok(Chunk { frames: with_held(frames, held), wanted: piece.wanted })
        }));
    }

    /// Cuts the payload out of a run of frames: a slice of each, no copy.
    fn cut(&mut self, chunk: Chunk) {
        self.fetching_bytes -= chunk.wanted.len();
        self.current = self.fetching.pop_front();
        let (mut at, end) = (chunk.wanted.start, chunk.wanted.end);
        while at < end {
            let (frame, in_frame) = (at / FRAME_PAYLOAD_BYTES, at % FRAME_PAYLOAD_BYTES);
            let count = (FRAME_PAYLOAD_BYTES - in_frame).min(end - at);
            let start = frame * FRAME_BYTES + in_frame;
            self.ready.push_back(chunk.frames.slice(start..start + count));
            at += count;
        }
    }

    /// Queues a range of a body that is not made of parts.
    fn push_body(&mut self, body: &Body, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        match body {
            Body::Inline(bytes) if range.end <= bytes.len() as u64 => {
                self.sources.push_back(Source::Inline(bytes.slice(range.start as usize..range.end as usize)));
            }
            Body::Stripes(stripes) => {
                let mut start = 0u64;
                for stripe in stripes {
                    if stripe.plain_bytes.is_some() || stripe.sealing.is_some() || stripe.pack_offset.is_some() {
                        let text = format!("{}: compressed, sealed or packed stripes can't be read yet", stripe.stripe);
                        self.failure = Some(Failure::new(FailureKind::Invalid, text));
                        return;
                    }
                    if let Err(failure) = check_stripe(stripe) {
                        self.failure = Some(failure);
                        return;
                    }
                    let end = start + stripe.payload_bytes;
                    let wanted = range.start.max(start)..range.end.min(end);
                    if wanted.start < wanted.end {
                        let of_stripe = wanted.start - start..wanted.end - start;
                        self.sources.push_back(Source::Stripe(stripe.clone(), of_stripe));
                    }
                    start = end;
                }
                if start < range.end {
                    self.failure = Some(Failure::new(FailureKind::Corrupt, "the stripes are shorter than the object"));
                }
            }
            _ => self.failure = Some(Failure::new(FailureKind::Corrupt, "the body does not hold the range")),
        }
    }

    /// Queues what a page of part rows holds of the range.
    fn take_page(&mut self, page: PartsPage) -> Result<(), Failure> {
        let gone = || Failure::new(FailureKind::Conflict, "the object changed while it was read");
        let Some(parts) = &mut self.parts else { return Ok(()) };
        let mut found = Vec::new();
        for (number, row) in page.parts {
            let Some((span, range)) = parts.wanted.front() else { break };
            if number < span.number {
                continue; // Uploaded, but not part of the object.
            }
            if number != span.number || row.size_bytes != span.size_bytes {
                return Err(gone());
            }
            found.push((row.body, range.clone()));
            parts.wanted.pop_front();
        }
        if parts.wanted.is_empty() {
            self.parts = None;
        } else if found.is_empty() {
            return Err(gone());
        }
        found.into_iter().for_each(|(body, range)| self.push_body(&body, range));
        Ok(())
    }
}

/// Checks a stripe reference of a row before anything is computed from it.
pub(crate) fn check_stripe(stripe: &StripeRef) -> Result<(), Failure> {
    let corrupt = |error| Failure::new(FailureKind::Corrupt, format!("{}: {error}", stripe.stripe));
    stripe.check().map_err(corrupt)
}

/// The parts of an object that a range meets and whose rows are still to be fetched.
struct Parts {
    bucket: BucketId,
    key: String,
    upload: UploadId,
    /// Each with the range that is wanted of it.
    wanted: VecDeque<(PartSpan, Range<u64>)>,
}

impl Parts {
    fn over(bucket: BucketId, key: &str, upload: UploadId, spans: &[PartSpan], range: Range<u64>) -> Option<Self> {
        let mut wanted = VecDeque::new();
        let mut start = 0u64;
        for span in spans {
            let end = start.saturating_add(span.size_bytes);
            let meets = range.start.max(start)..range.end.min(end);
            if meets.start < meets.end {
                wanted.push_back((span.clone(), meets.start - start..meets.end - start));
            }
            start = end;
        }
        (!wanted.is_empty()).then(|| Parts { bucket, key: key.into(), upload, wanted })
    }

    /// Asks for the next rows: as many as should fit into one page.
    fn page(&self, client: Client) -> impl Future<Output = Result<PartsPage, Failure>> + Send + use<> {
        let stripe_bytes = {
            let chart = client.chart();
            u64::from(chart.map.fragment_bytes_max).max(FRAME_BYTES as u64) * u64::from(chart.code().k)
        };
        let mut page_bytes = 0u64;
        let fits = |(span, _): &&(PartSpan, Range<u64>)| {
            let stripes = span.size_bytes.div_ceil(stripe_bytes.max(1));
            page_bytes = stripes.saturating_mul(STRIPE_REF_BYTES).saturating_add(PART_ROW_BYTES + page_bytes);
            page_bytes <= PARTS_PAGE_BYTES
        };
        let limit = (self.wanted.iter().take_while(fits).count().max(1) as u32).min(LIST_ENTRIES_MAX);
        let query = PartsQuery {
            bucket: self.bucket,
            key: self.key.clone(),
            upload: self.upload,
            from: self.wanted.front().map_or(0, |(span, _)| span.number),
            limit,
        };
        async move {
            let group = client.group_of(query.bucket, &query.key);
            match client.query(group, Query::Parts(query), Instant::now() + PARTS_TIMEOUT).await? {
                Reply::Parts(page) => Ok(page),
                Reply::Absent(_) => Err(Failure::new(FailureKind::Conflict, "the object changed while it was read")),
                _ => Err(unexpected("Parts")),
            }
        }
    }
}
