//! The loop of one thread and one disk, shared by all engines on a journal.
//!
//! Other threads put requests into a queue that is bounded in number and bytes and wake the thread
//! where it sleeps. Each turn takes what waits, lets the engine decide, hands its operations to the
//! disk, and sleeps in the disk until an operation ends, a request comes, or the engine's deadline.

use crate::disk::{Completion, Disk, Operation, Waker};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// Most requests that one turn takes before it looks at the disk again.
const REQUESTS_PER_TURN_MAX: usize = 256;

/// An engine that a disk thread drives: decisions only, no I/O.
pub trait Engine {
    /// What other threads ask of it.
    type Request: Send + 'static;

    /// Takes a request.
    fn handle_request(&mut self, now: Instant, request: Self::Request);

    /// Takes the end of a disk operation.
    fn handle_completion(&mut self, now: Instant, completion: Completion);

    /// Does what is due by now, and what the last requests and completions allow; called once per
    /// turn, before operations are polled. The place to drain the journal's events.
    fn handle_turn(&mut self, now: Instant);

    /// Returns the next operation for the disk.
    fn poll_disk(&mut self, now: Instant) -> Option<Operation>;

    /// Returns when the engine wants its next turn although nothing happens.
    fn deadline(&self) -> Option<Instant>;

    /// Told once, when all handles are gone: finish, then say so by [`Engine::is_finished`].
    fn handle_hangup(&mut self, now: Instant);

    /// Returns whether the loop may end: all requests are answered and the journal is idle.
    fn is_finished(&self) -> bool;
}

/// Bounds of the queue to an engine's thread.
#[derive(Clone, Copy, Debug)]
pub struct QueueBounds {
    /// Most requests that wait.
    pub requests_max: usize,
    /// Most bytes that wait, as [`Handle::send`] was told.
    pub bytes_max: usize,
}

/// Why a request did not reach the engine; it comes back.
#[derive(Debug)]
pub enum SendRefused<R> {
    /// The queue is full.
    Busy(R),
    /// The thread has ended.
    Gone(R),
}

/// What sender and receiver share.
struct Shared {
    /// Bytes that wait in the queue.
    bytes: AtomicUsize,
    /// Whether the thread sleeps in the disk or is about to: only then a sender pays for a wake-up.
    is_asleep: AtomicBool,
    waker: OnceLock<Waker>,
}

impl Shared {
    fn wake(&self) {
        if self.is_asleep.swap(false, Ordering::SeqCst)
            && let Some(waker) = self.waker.get()
        {
            waker.wake();
        }
    }
}

/// Wakes the thread when the last handle is dropped, so that it sees the hang-up.
struct Hangup(Arc<Shared>);

impl Drop for Hangup {
    fn drop(&mut self) {
        // The sender is dropped after this; the thread looks again within its sleep's bound.
        self.0.wake();
    }
}

/// The way to an engine's thread. Cheap to clone; the thread is told to finish when the last one is dropped.
pub struct Handle<R> {
    // The order matters: the channel closes before the hang-up wakes.
    requests: SyncSender<(R, usize)>,
    hangup: Arc<Hangup>,
    bytes_max: usize,
}

impl<R> Clone for Handle<R> {
    fn clone(&self) -> Self {
        Handle { requests: self.requests.clone(), hangup: Arc::clone(&self.hangup), bytes_max: self.bytes_max }
    }
}

impl<R: Send + 'static> Handle<R> {
    /// Queues a request that weighs `bytes` and wakes the thread where it sleeps.
    pub fn send(&self, request: R, bytes: usize) -> Result<(), SendRefused<R>> {
        let shared = &self.hangup.0;
        let before = shared.bytes.fetch_add(bytes, Ordering::Relaxed);
        if before > 0 && before + bytes > self.bytes_max {
            shared.bytes.fetch_sub(bytes, Ordering::Relaxed);
            return Err(SendRefused::Busy(request));
        }
        match self.requests.try_send((request, bytes)) {
            Ok(()) => {
                shared.wake();
                Ok(())
            }
            Err(error) => {
                shared.bytes.fetch_sub(bytes, Ordering::Relaxed);
                Err(match error {
                    TrySendError::Full((request, _)) => SendRefused::Busy(request),
                    TrySendError::Disconnected((request, _)) => SendRefused::Gone(request),
                })
            }
        }
    }

    /// Returns the bytes that wait in the queue.
    pub fn queued_bytes(&self) -> usize {
        self.hangup.0.bytes.load(Ordering::Relaxed)
    }
}

/// The engine's end of its queue.
pub struct Inbox<R> {
    requests: Receiver<(R, usize)>,
    shared: Arc<Shared>,
}

/// Makes a queue to an engine.
pub fn queue<R: Send + 'static>(bounds: QueueBounds) -> (Handle<R>, Inbox<R>) {
    let (sender, receiver) = sync_channel(bounds.requests_max);
    let shared =
        Arc::new(Shared { bytes: AtomicUsize::new(0), is_asleep: AtomicBool::new(false), waker: OnceLock::new() });
    let hangup = Arc::new(Hangup(Arc::clone(&shared)));
    (Handle { requests: sender, hangup, bytes_max: bounds.bytes_max }, Inbox { requests: receiver, shared })
}

/// What a turn found in the queue.
enum Taken {
    Nothing,
    Some,
    Hangup,
}

impl<R: Send + 'static> Inbox<R> {
    fn take_into<E: Engine<Request = R>>(&self, now: Instant, engine: &mut E) -> Taken {
        for count in 0..REQUESTS_PER_TURN_MAX {
            match self.requests.try_recv() {
                Ok((request, bytes)) => {
                    self.shared.bytes.fetch_sub(bytes, Ordering::Relaxed);
                    engine.handle_request(now, request);
                }
                Err(TryRecvError::Empty) => return if count == 0 { Taken::Nothing } else { Taken::Some },
                Err(TryRecvError::Disconnected) => return Taken::Hangup,
            }
        }
        Taken::Some
    }
}

/// Longest sleep: a hang-up that slipped between the last look and the sleep is seen by then.
const SLEEP_MAX: Duration = Duration::from_millis(200);

/// Drives the engine on this thread until it is finished. The disk must have been made on this
/// thread. `clock` tells the time: `Instant::now`, given by whoever owns the thread.
pub fn run<E: Engine, D: Disk>(engine: &mut E, disk: &mut D, inbox: &Inbox<E::Request>, clock: impl Fn() -> Instant) {
    inbox.shared.waker.get_or_init(|| disk.waker());
    let mut completions = Vec::with_capacity(64);
    let mut is_hung_up = false;
    // Read once a turn, when what the disk has to tell is there: reading it costs as much as a small decision.
    let mut now = clock();
    loop {
        let taken = if is_hung_up { Taken::Nothing } else { inbox.take_into(now, engine) };
        if matches!(taken, Taken::Hangup) {
            is_hung_up = true;
            engine.handle_hangup(now);
        }
        engine.handle_turn(now);
        while disk.room() > 0
            && let Some(operation) = engine.poll_disk(now)
        {
            disk.submit(operation);
        }
        if is_hung_up && engine.is_finished() {
            return;
        }
        let mut timeout = Duration::ZERO;
        if matches!(taken, Taken::Nothing) {
            // Say that we sleep, then look once more: a sender either sees the flag or is seen.
            inbox.shared.is_asleep.store(true, Ordering::SeqCst);
            if is_hung_up || matches!(inbox.take_into(now, engine), Taken::Nothing) {
                let due = engine.deadline().map_or(SLEEP_MAX, |due| due.saturating_duration_since(now));
                timeout = due.min(SLEEP_MAX);
            }
        }
        disk.reap(Some(timeout), &mut completions);
        inbox.shared.is_asleep.store(false, Ordering::SeqCst);
        now = clock();
        for completion in completions.drain(..) {
            engine.handle_completion(now, completion);
        }
    }
}

/// Starts a named thread, lets `open` make disk and engine on it, and drives them. Returns once
/// `open` has returned: with the handle, what `open` tells besides, and the thread; or with its error.
#[allow(clippy::type_complexity)]
pub fn spawn<E, D, T, F, X>(
    name: &str,
    bounds: QueueBounds,
    open: F,
) -> Result<(Handle<E::Request>, T, std::thread::JoinHandle<()>), X>
where
    E: Engine,
    D: Disk,
    F: FnOnce() -> Result<(E, D, T), X> + Send + 'static,
    T: Send + 'static,
    X: Send + From<std::io::Error> + 'static,
{
    let (handle, inbox) = queue(bounds);
    let (sender, opened) = sync_channel(1);
    // The seam of threads and time: one thread for each disk, named, on the real clock.
    #[allow(clippy::disallowed_methods)]
    let thread = std::thread::Builder::new().name(name.to_string()).spawn(move || match open() {
        Ok((mut engine, mut disk, told)) => {
            if sender.send(Ok(told)).is_ok() {
                run(&mut engine, &mut disk, &inbox, Instant::now);
            }
        }
        Err(error) => {
            // Where nobody waits for the answer, nobody misses it.
            let _ = sender.send(Err(error));
        }
    })?;
    match opened.recv() {
        Ok(Ok(told)) => Ok((handle, told, thread)),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(std::io::Error::other("the disk's thread ended while it opened the disk").into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_queue_is_bounded_in_requests_and_bytes() {
        let (handle, inbox) = queue::<u8>(QueueBounds { requests_max: 3, bytes_max: 100 });
        assert!(handle.send(1, 90).is_ok());
        assert!(matches!(handle.send(2, 20), Err(SendRefused::Busy(2))));
        assert!(handle.send(3, 5).is_ok() && handle.send(4, 5).is_ok());
        assert!(matches!(handle.send(5, 0), Err(SendRefused::Busy(5))), "three requests wait");
        assert_eq!(handle.queued_bytes(), 100);
        drop(inbox);
        assert!(matches!(handle.send(6, 1), Err(SendRefused::Busy(6) | SendRefused::Gone(6))));
    }

    /// Counts its turns and ends after some of them.
    struct Turns(u32);

    impl Engine for Turns {
        type Request = ();
        fn handle_request(&mut self, _: Instant, (): ()) {}
        fn handle_completion(&mut self, _: Instant, _: Completion) {}
        fn handle_turn(&mut self, _: Instant) {
            self.0 += 1;
        }
        fn poll_disk(&mut self, _: Instant) -> Option<Operation> {
            None
        }
        fn deadline(&self) -> Option<Instant> {
            None
        }
        fn handle_hangup(&mut self, _: Instant) {}
        fn is_finished(&self) -> bool {
            self.0 >= 100
        }
    }

    #[test]
    fn the_clock_is_read_once_a_turn() {
        let (handle, inbox) = queue::<()>(QueueBounds { requests_max: 3, bytes_max: 100 });
        drop(handle);
        let readings = std::cell::Cell::new(0);
        let (mut engine, mut disk) = (Turns(0), crate::SimDisk::new(1, 1));
        let start = Instant::now();
        let clock = || {
            readings.set(readings.get() + 1);
            // Time moves on, so that no turn sleeps.
            start + SLEEP_MAX * readings.get()
        };
        run(&mut engine, &mut disk, &inbox, clock);
        assert!(readings.get() <= engine.0, "{} readings in {} turns", readings.get(), engine.0);
    }

    #[test]
    fn a_request_above_the_bound_passes_an_empty_queue() {
        let (handle, _inbox) = queue::<u8>(QueueBounds { requests_max: 3, bytes_max: 100 });
        assert!(handle.send(1, 5000).is_ok());
        assert!(matches!(handle.send(2, 1), Err(SendRefused::Busy(2))));
    }
}
