//! The loop of one thread and one disk, shared by all engines on a journal.

use crate::disk::{Completion, Disk, Operation, Waker};
use std::sync::mpsc::Receiver;
use std::time::Instant;

/// An engine that a disk thread drives: decisions only, no I/O.
pub trait Engine {
    /// What other threads ask of it.
    type Request: Send + 'static;

    /// Takes a request.
    fn handle_request(&mut self, now: Instant, request: Self::Request);

    /// Takes the end of a disk operation.
    fn handle_completion(&mut self, now: Instant, completion: Completion);

    /// Returns the next operation for the disk.
    fn poll_disk(&mut self, now: Instant) -> Option<Operation>;

    /// Does what is due by now, and finishes what the last completions allow; called once per turn.
    fn handle_turn(&mut self, now: Instant);

    /// Returns when the engine wants its next turn although nothing happens.
    fn deadline(&self) -> Option<Instant>;

    /// Returns whether the loop may end: all requests are answered and the journal is idle.
    fn is_finished(&self) -> bool;

    /// Told once when all handles are gone: finish, then [`Engine::is_finished`].
    fn handle_hangup(&mut self, now: Instant);
}

/// The way to an engine's thread: a queue bounded in requests and bytes, and a wake-up. Cheap to clone.
pub struct Handle<R> {
    #[allow(dead_code)]
    waker: Option<Waker>,
    marker: std::marker::PhantomData<fn(R)>,
}

/// Why a request did not reach the engine; it comes back.
pub enum SendRefused<R> {
    /// The queue is full.
    Busy(R),
    /// The thread has ended.
    Gone(R),
}

/// Drives the engine on this thread until it is finished. The disk must have been made on this thread.
#[allow(unused_variables)]
pub fn run<E: Engine, D: Disk>(engine: &mut E, disk: &mut D, requests: &Receiver<E::Request>) {
    unimplemented!("being written")
}

/// Bounds of the queue to an engine's thread.
#[derive(Clone, Copy, Debug)]
pub struct QueueBounds {
    /// Most requests that wait.
    pub requests_max: usize,
    /// Most bytes of payload that wait.
    pub bytes_max: usize,
}

/// Starts a named thread, lets `open` make disk and engine on it, and drives them. Returns once `open` has returned:
/// with the handle, what `open` wants to tell besides, and the thread; or with `open`'s error.
#[allow(unused_variables, clippy::type_complexity)]
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
    unimplemented!("being written")
}

#[allow(unused_variables)]
impl<R: Send + 'static> Handle<R> {
    /// Queues a request that weighs `bytes` and wakes the thread where it sleeps.
    pub fn send(&self, request: R, bytes: usize) -> Result<(), SendRefused<R>> {
        unimplemented!("being written")
    }
}
