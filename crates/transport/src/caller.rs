//! The calling side of one connection: calls in, answers out.
//!
//! Callers put requests into a queue that is bounded in bytes and wait in a slot each. One task, the
//! driver, moves the queue into the socket and answers into the slots; no other task is needed.

use crate::call::{Call, Identity, Reply};
use crate::certificate::CertificateFacts;
use crate::channel::{Channel, OUTPUT_BYTES_MAX};
use crate::counters::Counters;
use crate::error::TransportError;
use crate::frame::{Frame, FrameError, FrameHead, FrameKind, OutFrame};
use crate::pulse::{PING_INTERVAL, Pulse};
use crate::server::Allowed;
use crate::slots::{CallId, Outcome, Slots};
use bytes::Bytes;
use plinth_protocol::wire::Wire;
use plinth_protocol::{Failure, FailureKind, Incarnation, Method};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::Instant;

/// Bytes of requests that wait for one connection's socket; further calls wait before they queue.
pub(crate) const WRITE_QUEUE_BYTES_MAX: usize = 16 << 20;
/// Bytes that a request counts in the queue beyond its header and payload.
pub(crate) const REQUEST_BYTES: usize = 256;
/// A connection without calls for this long is closed.
pub(crate) const IDLE_MAX: Duration = Duration::from_secs(60);
/// Rounds of reading and writing before the driver lets other tasks run.
const ROUNDS_MAX: usize = 16;
/// How soon a caller may try again that met a full table.
const BUSY_RETRY_MS: u64 = 20;

/// A connection to one peer, as its callers see it. Dropping it closes the connection.
pub(crate) struct Connection {
    shared: Arc<Shared>,
    /// The incarnation that the peer proved.
    pub(crate) incarnation: Incarnation,
}

/// What a connection is made under.
pub(crate) struct Standing {
    /// Who answered.
    pub(crate) callee: Identity,
    /// What the callee showed.
    pub(crate) certificate: Option<CertificateFacts>,
    /// Whether that is still good enough; asked every few seconds.
    pub(crate) allowed: Allowed,
    /// When the connection is to be replaced: shortly before one of the two certificates ends.
    pub(crate) expires: Instant,
}

struct Shared {
    state: Mutex<State>,
    /// Room in the write queue, in bytes.
    room: Semaphore,
    /// Bytes of the calls that wait for room.
    waiting_bytes: AtomicUsize,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Queued>,
    slots: Slots,
    /// The driver, where it sleeps.
    driver: Option<Waker>,
    /// Why no new calls are taken.
    closing: Option<TransportError>,
}

/// A request that waits for the socket, or the cancel of one that has gone.
enum Queued {
    Request { id: CallId, method: Method, deadline: Instant, header: Bytes, payload: Vec<Bytes>, charge: u32 },
    Cancel(CallId),
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes no new calls any more and fails those that wait.
    fn close(&self, error: &TransportError) {
        let wakers = {
            let mut state = self.lock();
            state.closing.get_or_insert_with(|| error.clone());
            state.queue.clear();
            state.slots.fail(false, |sent| error.to_failure(sent))
        };
        self.room.close();
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl Connection {
    /// Takes over a channel whose handshake and hellos are done. The driver must be polled.
    pub(crate) fn new(channel: Channel, standing: Standing, counters: Arc<Counters>) -> (Self, Driver) {
        let incarnation = standing.callee.incarnation;
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            room: Semaphore::new(WRITE_QUEUE_BYTES_MAX),
            waiting_bytes: AtomicUsize::new(0),
        });
        let driver = Driver {
            channel,
            shared: shared.clone(),
            counters,
            pulse: Pulse::new(),
            batch: VecDeque::new(),
            gathering: false,
            idle: Duration::ZERO,
            standing,
            wakers: Vec::new(),
        };
        (Connection { shared, incarnation }, driver)
    }

    /// Takes no new calls any more; those in flight are answered. The next call makes another connection.
    pub(crate) fn retire(&self, why: &'static str) {
        let driver = {
            let mut state = self.shared.lock();
            state.closing.get_or_insert(TransportError::Closed(why));
            state.driver.take()
        };
        driver.into_iter().for_each(Waker::wake);
    }

    /// Returns whether new calls are taken.
    pub(crate) fn is_open(&self) -> bool {
        self.shared.lock().closing.is_none()
    }

    /// Returns how busy the connection is: bytes that wait for its socket or for room before it, and calls
    /// in flight.
    pub(crate) fn load(&self) -> usize {
        let state = self.shared.lock();
        if state.closing.is_some() {
            return 0;
        }
        let queued = WRITE_QUEUE_BYTES_MAX - self.shared.room.available_permits();
        queued + self.shared.waiting_bytes.load(Relaxed) + state.slots.used()
    }

    /// Makes a call. `Unavailable` means that nothing was sent.
    pub(crate) async fn call(&self, call: Call, payload_bytes: usize, deadline: Instant) -> Outcome {
        let charge = u32::try_from(REQUEST_BYTES + call.header.len() + payload_bytes).expect("bounds were checked");
        match self.shared.room.try_acquire_many(charge) {
            Ok(permit) => permit.forget(),
            Err(tokio::sync::TryAcquireError::Closed) => return Err(self.closed()),
            Err(tokio::sync::TryAcquireError::NoPermits) => {
                let _waiting = WaitingBytes::add(&self.shared.waiting_bytes, charge as usize);
                match tokio::time::timeout_at(deadline, self.shared.room.acquire_many(charge)).await {
                    Ok(Ok(permit)) => permit.forget(),
                    Ok(Err(_)) => return Err(self.closed()),
                    Err(_) => return Err(late("deadline passed before the request could be queued")),
                }
            }
        }
        let id = self.enqueue(call, charge, deadline)?;
        answer(&self.shared, id, deadline).await
    }

    fn enqueue(&self, call: Call, charge: u32, deadline: Instant) -> Result<CallId, Failure> {
        let Call { method, header, payload, .. } = call;
        let mut state = self.shared.lock();
        let refusal = match &state.closing {
            Some(error) => error.to_failure(false),
            None => match state.slots.allocate() {
                Some(id) => {
                    state.queue.push_back(Queued::Request { id, method, deadline, header, payload, charge });
                    let driver = state.driver.take();
                    drop(state);
                    driver.into_iter().for_each(Waker::wake);
                    return Ok(id);
                }
                None => Failure {
                    retry_after_ms: Some(BUSY_RETRY_MS),
                    ..Failure::new(FailureKind::Busy, "too many calls in flight on one connection")
                },
            },
        };
        drop(state);
        self.shared.room.add_permits(charge as usize);
        Err(refusal)
    }

    fn closed(&self) -> Failure {
        let error = self.shared.lock().closing.clone();
        error.unwrap_or(TransportError::Closed("connection closed")).to_failure(false)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.retire("link dropped");
    }
}

/// Counts a call's bytes among those that wait, for room in the queue or for a connection, until it is dropped.
pub(crate) struct WaitingBytes<'a> {
    all: &'a AtomicUsize,
    bytes: usize,
}

impl<'a> WaitingBytes<'a> {
    pub(crate) fn add(all: &'a AtomicUsize, bytes: usize) -> Self {
        all.fetch_add(bytes, Relaxed);
        WaitingBytes { all, bytes }
    }
}

impl Drop for WaitingBytes<'_> {
    fn drop(&mut self) {
        self.all.fetch_sub(self.bytes, Relaxed);
    }
}

fn late(text: &str) -> Failure {
    Failure::new(FailureKind::Unavailable, text)
}

/// Waits for a call's answer. Dropped before that, it cancels.
async fn answer(shared: &Shared, id: CallId, deadline: Instant) -> Outcome {
    let mut call = Waiting { shared, id, over: false };
    let mut deadline = std::pin::pin!(tokio::time::sleep_until(deadline));
    poll_fn(|cx| {
        if let Some(outcome) = shared.lock().slots.poll(id, cx.waker()) {
            call.over = true;
            return Poll::Ready(outcome);
        }
        if deadline.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        Poll::Ready(Err(match call.cancel() {
            true => Failure::new(FailureKind::Unknown, "deadline passed before the answer"),
            false => late("deadline passed before the request was sent"),
        }))
    })
    .await
}

/// A call's hold on its slot.
struct Waiting<'a> {
    shared: &'a Shared,
    id: CallId,
    over: bool,
}

impl Waiting<'_> {
    /// Gives the slot back and tells the peer where it has the request; returns whether it has.
    fn cancel(&mut self) -> bool {
        self.over = true;
        let mut state = self.shared.lock();
        let sent = state.slots.release(self.id);
        if sent && state.closing.is_none() {
            state.queue.push_back(Queued::Cancel(self.id));
            let driver = state.driver.take();
            drop(state);
            driver.into_iter().for_each(Waker::wake);
        }
        sent
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if !self.over {
            self.cancel();
        }
    }
}

/// The task of one connection: it ends with the connection.
pub(crate) struct Driver {
    channel: Channel,
    shared: Arc<Shared>,
    counters: Arc<Counters>,
    pulse: Pulse,
    /// Requests that are next into the channel; at most what one output buffer takes.
    batch: VecDeque<OutFrame>,
    /// Whether the driver has stepped back once to let requests gather.
    gathering: bool,
    /// How long there have been no calls.
    idle: Duration,
    standing: Standing,
    wakers: Vec<Waker>,
}

impl Future for Driver {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let driver = self.get_mut();
        let Err(error) = driver.drive(cx) else { return Poll::Pending };
        driver.end(&error);
        Poll::Ready(())
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // A runtime that shuts down drops the driver in the middle; nobody may wait for it then.
        self.shared.close(&TransportError::Closed("connection dropped"));
    }
}

impl Driver {
    fn drive(&mut self, cx: &mut Context<'_>) -> Result<(), TransportError> {
        for _ in 0..ROUNDS_MAX {
            let read = self.channel.poll_read(cx);
            self.deliver()?;
            let reading = match read {
                Poll::Ready(result) => {
                    result?;
                    true
                }
                Poll::Pending => false,
            };
            if self.has_requests() && !std::mem::replace(&mut self.gathering, true) {
                // Callers that are ready now queue their requests first: one write takes them all.
                cx.waker().wake_by_ref();
                return Ok(());
            }
            self.gathering = false;
            self.write(cx)?;
            if !reading {
                return self.tick(cx);
            }
        }
        cx.waker().wake_by_ref();
        Ok(())
    }

    /// Moves answers into their slots.
    fn deliver(&mut self) -> Result<(), TransportError> {
        let Some(first) = self.channel.next_frame() else { return Ok(()) };
        let mut state = self.shared.lock();
        let mut next = Some(first);
        let mut result = Ok(());
        while let Some(frame) = next {
            result = receive(&mut state, frame, &mut self.wakers);
            next = if result.is_ok() { self.channel.next_frame() } else { None };
        }
        let draining = state.closing.is_some();
        drop(state);
        if draining {
            self.shared.room.close();
        }
        self.wakers.drain(..).for_each(Waker::wake);
        result
    }

    /// Moves requests into the socket until there are none or it is full.
    fn write(&mut self, cx: &mut Context<'_>) -> Result<(), TransportError> {
        loop {
            while self.channel.wants_frame() {
                let Some(frame) = self.next_request(cx)? else { break };
                self.channel.push(frame)?;
            }
            if self.channel.poll_flush(cx)?.is_pending() || !self.has_requests() {
                return Ok(());
            }
        }
    }

    fn has_requests(&self) -> bool {
        !self.batch.is_empty() || !self.shared.lock().queue.is_empty()
    }

    fn next_request(&mut self, cx: &mut Context<'_>) -> Result<Option<OutFrame>, TransportError> {
        if self.batch.is_empty() {
            self.take_batch(cx)?;
        }
        Ok(self.batch.pop_front())
    }

    /// Takes requests out of the queue, about as many as one output buffer holds.
    fn take_batch(&mut self, cx: &mut Context<'_>) -> Result<(), TransportError> {
        let now = Instant::now();
        let (mut bytes, mut permits) = (0, 0);
        let mut state = self.shared.lock();
        while bytes < OUTPUT_BYTES_MAX {
            let Some(queued) = state.queue.pop_front() else { break };
            match queued {
                Queued::Cancel(id) => self.batch.push_back(OutFrame::cancel(id.0)),
                Queued::Request { id, method, deadline, header, payload, charge } => {
                    permits += charge as usize;
                    if deadline > now && state.slots.mark_sent(id) {
                        bytes += charge as usize;
                        let deadline_ms = milliseconds_up(deadline - now);
                        let head = FrameHead { kind: FrameKind::Request, method: Some(method), deadline_ms, id: id.0 };
                        self.batch.push_back(OutFrame::new(head, header, payload));
                    }
                }
            }
        }
        let mut result = Ok(());
        if self.batch.is_empty() {
            match &state.closing {
                Some(error) if state.slots.used() == 0 => result = Err(error.clone()),
                _ => state.driver = Some(cx.waker().clone()),
            }
        }
        drop(state);
        self.shared.room.add_permits(permits);
        result
    }

    fn tick(&mut self, cx: &mut Context<'_>) -> Result<(), TransportError> {
        while let Poll::Ready(ticked) = self.pulse.poll_tick(cx, &mut self.channel, false) {
            ticked?;
            // A ping that was pushed leaves at once.
            let _ = self.channel.poll_flush(cx)?;
            let Standing { callee, certificate, allowed, expires } = &self.standing;
            if let Err(why) = allowed(callee, certificate.as_ref()) {
                return Err(TransportError::Identity(format!("{} is no longer allowed: {why}", callee.node)));
            }
            let expired = Instant::now() >= *expires;
            let mut state = self.shared.lock();
            let quiet = state.slots.used() == 0 && state.queue.is_empty();
            self.idle = if quiet { self.idle + PING_INTERVAL } else { Duration::ZERO };
            if expired {
                state.closing.get_or_insert(TransportError::Closed("a certificate is about to end"));
            }
            if self.idle >= IDLE_MAX {
                state.closing.get_or_insert(TransportError::Closed("idle"));
            }
            if let Some(error) = &state.closing
                && quiet
            {
                return Err(error.clone());
            }
        }
        Ok(())
    }

    fn end(&mut self, error: &TransportError) {
        if let TransportError::Frame(frame_error) = error {
            if matches!(frame_error, FrameError::HeaderChecksum | FrameError::PayloadChecksum(_)) {
                self.counters.checksum_mismatches.fetch_add(1, Relaxed);
            }
            if let FrameError::PayloadChecksum(id) = frame_error {
                let failure = Failure::new(FailureKind::Corrupt, error.to_string());
                let waker = self.shared.lock().slots.finish(CallId(*id), Err(failure));
                waker.into_iter().for_each(Waker::wake);
            }
        }
        self.channel.close();
        self.shared.close(error);
        self.counters.connections_closed.fetch_add(1, Relaxed);
        tracing::debug!(%error, "connection to peer ended");
    }
}

/// Puts one frame where it belongs.
fn receive(state: &mut State, frame: Frame, wakers: &mut Vec<Waker>) -> Result<(), TransportError> {
    let id = CallId(frame.head.id);
    match frame.head.kind {
        FrameKind::Response => {
            let reply = Reply { header: frame.header, payload: frame.payload };
            wakers.extend(state.slots.finish(id, Ok(reply)));
        }
        FrameKind::Failure => {
            let failure =
                Failure::decode(&frame.header).map_err(|_| FrameError::Unexpected("bytes in place of a failure"))?;
            wakers.extend(state.slots.finish(id, Err(failure)));
        }
        FrameKind::Ping => {}
        FrameKind::Goodbye => {
            let error = TransportError::Goodbye(decode_goodbye(&frame));
            wakers.extend(state.slots.fail(true, |sent| error.to_failure(sent)));
            state.closing.get_or_insert(error);
        }
        FrameKind::Hello => return Err(FrameError::Unexpected("second hello").into()),
        FrameKind::Request | FrameKind::Cancel => return Err(FrameError::Unexpected("request to a caller").into()),
    }
    Ok(())
}

/// Reads the reason of a goodbye; an unreadable one is as good as none.
pub(crate) fn decode_goodbye(frame: &Frame) -> Failure {
    Failure::decode(&frame.header).unwrap_or_else(|_| Failure::new(FailureKind::Unavailable, "no reason given"))
}

/// Returns whole milliseconds, rounded up, as they travel.
fn milliseconds_up(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros().div_ceil(1000)).unwrap_or(u32::MAX)
}
