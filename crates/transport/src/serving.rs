//! The serving side of one connection: requests in, answers out.
//!
//! One task, the driver, reads requests, polls each service future once and answers at once what is
//! ready at once; the rest goes to a task each, which the driver aborts when the caller cancels or
//! the connection ends. While too many bytes are in flight the driver does not read, so that the
//! caller's own queue fills and its calls wait there.

use crate::budget::Budget;
use crate::call::{Identity, Request, Response, Service, check_bounds};
use crate::certificate::CertificateFacts;
use crate::channel::Channel;
use crate::counters::{Counters, PeerCounters};
use crate::error::TransportError;
use crate::frame::{Frame, FrameError, FrameHead, FrameKind, Lane, OutFrame};
use crate::pulse::Pulse;
use crate::server::Allowed;
use plinth_protocol::{Failure, FailureKind, Method};
use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::task::AbortHandle;
use tokio::time::Instant;

/// Bytes in flight of one bulk connection beyond which it reads no further.
pub(crate) const BULK_BYTES_IN_FLIGHT_MAX: usize = 16 << 20;
/// Bytes in flight of one small connection beyond which it reads no further.
pub(crate) const SMALL_BYTES_IN_FLIGHT_MAX: usize = 4 << 20;
/// What a request counts beyond its header and payload: its task and tables.
pub(crate) const REQUEST_BYTES: usize = 1 << 10;
/// Longest text of a failure that travels, in bytes; longer ones are cut.
const FAILURE_TEXT_BYTES_MAX: usize = 4 << 10;
/// Rounds of reading and writing before the driver lets other tasks run.
const ROUNDS_MAX: usize = 16;

/// What the driver and the tasks of its requests share.
#[derive(Default)]
pub(crate) struct Shared {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    finished: VecDeque<(u64, Result<Response, Failure>)>,
    /// The driver, where it sleeps.
    driver: Option<Waker>,
    /// Whether the connection is to end once its requests are answered.
    closing: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn finish(&self, id: u64, result: Result<Response, Failure>) {
        let driver = {
            let mut state = self.lock();
            state.finished.push_back((id, result));
            state.driver.take()
        };
        driver.into_iter().for_each(Waker::wake);
    }

    /// Lets the connection end once its requests are answered.
    pub(crate) fn close(&self) {
        let driver = {
            let mut state = self.lock();
            state.closing = true;
            state.driver.take()
        };
        driver.into_iter().for_each(Waker::wake);
    }
}

/// What a connection is served with.
pub(crate) struct Terms {
    pub(crate) service: Arc<dyn Service>,
    pub(crate) allowed: Allowed,
    pub(crate) caller: Identity,
    /// What the caller showed, unless it joins.
    pub(crate) certificate: Option<Arc<CertificateFacts>>,
    pub(crate) lane: Lane,
    /// When the caller's certificate ends.
    pub(crate) expires: Instant,
    pub(crate) budget: Arc<Budget>,
    pub(crate) counters: Arc<Counters>,
}

/// A request that is being served.
struct InFlight {
    method: Method,
    begun: Instant,
    received_bytes: usize,
    /// What it counts in bytes in flight.
    charge: usize,
    task: Option<AbortHandle>,
}

/// The task of one connection.
pub(crate) struct Serving {
    channel: Channel,
    shared: Arc<Shared>,
    terms: Terms,
    peer: Arc<PeerCounters>,
    pulse: Pulse,
    in_flight: HashMap<u64, InFlight>,
    /// Answers that wait for the socket, with what they count.
    answers: VecDeque<(OutFrame, usize)>,
    /// Sum of all charges: requests in flight and answers that wait.
    bytes: usize,
    paused: bool,
    /// Whether the driver has stepped back once to let answers gather.
    gathering: bool,
    said_goodbye: bool,
}

impl Future for Serving {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let serving = self.get_mut();
        let Err(error) = serving.drive(cx) else { return Poll::Pending };
        serving.end(&error, cx);
        Poll::Ready(())
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.in_flight.values().filter_map(|request| request.task.as_ref()).for_each(AbortHandle::abort);
        self.terms.budget.release(self.bytes);
        self.terms.counters.connections_closed.fetch_add(1, Relaxed);
    }
}

impl Serving {
    /// Takes over a channel whose handshake and hellos are done.
    pub(crate) fn new(channel: Channel, terms: Terms) -> (Self, Arc<Shared>) {
        terms.counters.connections_opened.fetch_add(1, Relaxed);
        let shared = Arc::new(Shared::default());
        let serving = Serving {
            channel,
            shared: shared.clone(),
            peer: terms.counters.peer(terms.caller.node),
            terms,
            pulse: Pulse::new(),
            in_flight: HashMap::new(),
            answers: VecDeque::new(),
            bytes: 0,
            paused: false,
            gathering: false,
            said_goodbye: false,
        };
        (serving, shared)
    }

    fn drive(&mut self, cx: &mut Context<'_>) -> Result<(), TransportError> {
        for _ in 0..ROUNDS_MAX {
            let reading = self.read(cx)?;
            if self.has_finished() && !std::mem::replace(&mut self.gathering, true) {
                // Requests that are about to finish do so first: one write takes all their answers.
                cx.waker().wake_by_ref();
                return Ok(());
            }
            self.gathering = false;
            let answered = self.collect(cx)?;
            self.write(cx)?;
            // Written answers may have made room for reading.
            let resumed = self.paused && !self.must_pause(cx);
            if !reading && !answered && !resumed {
                return self.tick(cx);
            }
        }
        cx.waker().wake_by_ref();
        Ok(())
    }

    /// Reads once unless too many bytes are in flight; returns whether there may be more.
    fn read(&mut self, cx: &mut Context<'_>) -> Result<bool, TransportError> {
        let paused = self.must_pause(cx);
        if paused && !self.paused {
            self.terms.counters.reading_paused.fetch_add(1, Relaxed);
        }
        self.paused = paused;
        if paused {
            return Ok(false);
        }
        let read = self.channel.poll_read(cx);
        let now = Instant::now();
        while let Some(frame) = self.channel.next_frame() {
            self.receive(frame, now)?;
        }
        match read {
            Poll::Ready(result) => result.map(|()| true),
            Poll::Pending => Ok(false),
        }
    }

    fn must_pause(&self, cx: &Context<'_>) -> bool {
        let own_max = match self.terms.lane {
            Lane::Small => SMALL_BYTES_IN_FLIGHT_MAX,
            Lane::Bulk => BULK_BYTES_IN_FLIGHT_MAX,
        };
        self.bytes > own_max || self.channel.is_clogged() || self.terms.budget.is_over(cx.waker())
    }

    fn charge(&mut self, bytes: usize) {
        self.bytes += bytes;
        self.terms.budget.take(bytes);
    }

    fn release(&mut self, bytes: usize) {
        self.bytes -= bytes;
        self.terms.budget.release(bytes);
    }

    fn receive(&mut self, frame: Frame, now: Instant) -> Result<(), TransportError> {
        match frame.head.kind {
            FrameKind::Request => self.admit(frame, now),
            FrameKind::Cancel => {
                if let Some(request) = self.in_flight.remove(&frame.head.id) {
                    request.task.inspect(AbortHandle::abort);
                    self.release(request.charge);
                    self.terms.counters.cancelled.fetch_add(1, Relaxed);
                }
                Ok(())
            }
            FrameKind::Ping => Ok(()),
            FrameKind::Goodbye => Err(TransportError::Closed("caller said goodbye")),
            FrameKind::Hello => Err(FrameError::Unexpected("second hello").into()),
            FrameKind::Response | FrameKind::Failure => Err(FrameError::Unexpected("answer to a callee").into()),
        }
    }

    /// Checks a request and starts it.
    fn admit(&mut self, frame: Frame, now: Instant) -> Result<(), TransportError> {
        let Frame { head, header, payload } = frame;
        let method = head.method.ok_or(FrameError::Unexpected("request without method"))?;
        if self.in_flight.contains_key(&head.id) {
            return Err(FrameError::Unexpected("request id in use").into());
        }
        let received_bytes = header.len() + payload.len();
        let estimate = self.terms.service.reply_bytes(method, &header);
        let charge = REQUEST_BYTES + received_bytes + estimate;
        self.charge(charge);
        let mut request = InFlight { method, begun: now, received_bytes, charge, task: None };
        let refusal = self.terms.caller.check_role(method).err().or_else(|| self.refusal(head));
        if let Some(failure) = refusal {
            self.answer(head.id, request, Err(failure));
            return Ok(());
        }
        let deadline = now + Duration::from_millis(u64::from(head.deadline_ms));
        let (caller, certificate) = (self.terms.caller.clone(), self.terms.certificate.clone());
        let mut work = self.terms.service.serve(Request { caller, certificate, method, header, payload, deadline });
        // The first poll needs no waker: a future that is not ready is polled again by its own task.
        match work.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(result) => self.answer(head.id, request, result),
            Poll::Pending => {
                let mut finish = Finish { shared: self.shared.clone(), id: head.id, result: None };
                let task = tokio::spawn(async move {
                    finish.set(match tokio::time::timeout_at(deadline, work).await {
                        Ok(result) => result,
                        Err(_) => Err(Failure::new(FailureKind::Unknown, "deadline passed during the call")),
                    });
                });
                request.task = Some(task.abort_handle());
                self.in_flight.insert(head.id, request);
            }
        }
        Ok(())
    }

    fn refusal(&self, head: FrameHead) -> Option<Failure> {
        if head.deadline_ms == 0 {
            return Some(Failure::new(FailureKind::Unavailable, "deadline passed before the call began"));
        }
        self.said_goodbye.then(|| Failure::new(FailureKind::Unavailable, "node is shutting down"))
    }

    /// Queues an answer.
    fn answer(&mut self, id: u64, request: InFlight, result: Result<Response, Failure>) {
        let result = result.and_then(|response| match check_bounds(&response.header, &response.payload) {
            Ok(_) => Ok(response),
            Err(failure) => Err(Failure::new(FailureKind::Internal, format!("reply: {}", failure.text))),
        });
        let failure = result.as_ref().err().cloned();
        let frame = match result {
            Ok(response) => {
                let head = FrameHead { kind: FrameKind::Response, method: None, deadline_ms: 0, id };
                OutFrame::new(head, response.header, response.payload)
            }
            Err(mut failure) => {
                failure.text.truncate(failure.text.floor_char_boundary(FAILURE_TEXT_BYTES_MAX));
                OutFrame::failure(id, &failure)
            }
        };
        self.peer.add_bytes(frame.bytes(), request.received_bytes);
        self.terms.counters.record(&self.peer, request.method, request.begun.elapsed(), failure.as_ref());
        let charge = frame.bytes() + REQUEST_BYTES;
        self.charge(charge);
        self.release(request.charge);
        self.answers.push_back((frame, charge));
    }

    fn has_finished(&self) -> bool {
        !self.shared.lock().finished.is_empty()
    }

    /// Takes over what the tasks have finished; returns whether there was any.
    fn collect(&mut self, cx: &mut Context<'_>) -> Result<bool, TransportError> {
        let (finished, closing) = {
            let mut state = self.shared.lock();
            if state.finished.is_empty() {
                state.driver = Some(cx.waker().clone());
            }
            (std::mem::take(&mut state.finished), state.closing)
        };
        let any = !finished.is_empty();
        for (id, result) in finished {
            // A cancelled request is no longer in the table.
            if let Some(request) = self.in_flight.remove(&id) {
                self.answer(id, request, result);
            }
        }
        if closing && !self.said_goodbye {
            self.said_goodbye = true;
            let goodbye = OutFrame::goodbye(FailureKind::Unavailable, "node is shutting down");
            self.answers.push_back((goodbye, 0));
        }
        Ok(any)
    }

    /// Moves answers into the socket until there are none or it is full.
    fn write(&mut self, cx: &mut Context<'_>) -> Result<(), TransportError> {
        loop {
            while self.channel.wants_frame() {
                let Some((frame, charge)) = self.answers.pop_front() else { break };
                self.channel.push(frame)?;
                self.release(charge);
            }
            if self.channel.poll_flush(cx)?.is_pending() {
                return Ok(());
            }
            if self.answers.is_empty() {
                break;
            }
        }
        if self.said_goodbye && self.in_flight.is_empty() {
            return Err(TransportError::Closed("node is shutting down"));
        }
        Ok(())
    }

    fn tick(&mut self, cx: &mut Context<'_>) -> Result<(), TransportError> {
        while let Poll::Ready(ticked) = self.pulse.poll_tick(cx, &mut self.channel, self.paused) {
            ticked?;
            // A ping that was pushed leaves at once.
            let _ = self.channel.poll_flush(cx)?;
            if let Err(why) = (self.terms.allowed)(&self.terms.caller, self.terms.certificate.as_deref()) {
                let text = format!("{} is no longer allowed: {why}", self.terms.caller.node);
                tracing::warn!(caller = %self.terms.caller.node, why, "a caller is put out");
                return Err(TransportError::Identity(text));
            }
            if Instant::now() >= self.terms.expires {
                return Err(TransportError::Identity("the caller's certificate has expired".to_string()));
            }
        }
        Ok(())
    }

    fn end(&mut self, error: &TransportError, cx: &mut Context<'_>) {
        tracing::debug!(%error, caller = %self.terms.caller.node, "connection from peer ended");
        if let TransportError::Frame(frame_error) = error {
            if matches!(frame_error, FrameError::HeaderChecksum | FrameError::PayloadChecksum(_)) {
                self.terms.counters.checksum_mismatches.fetch_add(1, Relaxed);
            }
            if let FrameError::PayloadChecksum(id) = frame_error
                && self.channel.wants_frame()
            {
                let failure = Failure::new(FailureKind::Corrupt, error.to_string());
                // The connection ends in any case; the caller learns more if this still gets through.
                let _ = self.channel.push(OutFrame::failure(*id, &failure));
                let _ = self.channel.poll_flush(cx);
            }
        }
        self.channel.close();
    }
}

/// Hands a request's result to the driver, also where its future panics.
struct Finish {
    shared: Arc<Shared>,
    id: u64,
    result: Option<Result<Response, Failure>>,
}

impl Finish {
    fn set(&mut self, result: Result<Response, Failure>) {
        self.result = Some(result);
    }
}

impl Drop for Finish {
    fn drop(&mut self) {
        let dropped = || Err(Failure::new(FailureKind::Internal, "the service gave up without an answer"));
        let result = self.result.take().unwrap_or_else(dropped);
        self.shared.finish(self.id, result);
    }
}
