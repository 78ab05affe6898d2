//! MD5 of bodies, for their ETags: large ones are hashed side by side.
//!
//! MD5 in one stream costs more than all else that a PUT does. Every body of [`TOGETHER_BYTES_MIN`] or more
//! hands its pieces to a thread that hashes up to eight bodies at once ([`lanes`]); the connection goes
//! on receiving and sending meanwhile. Smaller ones are hashed where they are.

mod bodies;
mod lanes;

use bodies::{Bodies, BodyId};
use bytes::Bytes;
use md5::{Digest as _, Md5};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::Instant;

use crate::pieces::Pieces;
pub use bodies::Digest;

/// Smallest body that is worth the way to the thread and back.
const TOGETHER_BYTES_MIN: u64 = 128 << 10;

/// Pieces of a body are handed over in batches of at least this many bytes.
const BATCH_BYTES_MIN: usize = 128 << 10;

/// Bytes of a body that wait for the thread at most; its connection pauses then.
const WAITING_BYTES_MAX: usize = 1 << 20;

/// How long a crowded body waits for company. Its connection has half of its room left meanwhile, and its socket's buffers.
const PATIENCE: Duration = Duration::from_millis(10);

/// Threads at most; each takes as many bodies as there are lanes before the next one is used.
const THREADS_MAX: usize = 4;

/// Hashes bodies, on threads that end with it and its last body.
pub struct Hasher {
    threads: Vec<Thread>,
    next: AtomicU64,
}

struct Thread {
    messages: Sender<Message>,
    open: Arc<()>,
}

enum Message {
    Pieces(BodyId, VecDeque<Bytes>, OwnedSemaphorePermit),
    End(BodyId, oneshot::Sender<Digest>),
    Due(BodyId),
    Crowded(BodyId),
    Abandoned(BodyId),
}

/// The MD5 of one body that is still coming.
pub enum Running {
    /// Hashed where it is.
    Alone(Md5),
    /// Hashed by the thread.
    Together(Box<Together>),
}

/// A body's end of the way to the thread.
pub struct Together {
    id: BodyId,
    messages: Sender<Message>,
    batch: Pieces,
    batch_bytes: usize,
    left_bytes: u64,
    room: Arc<Semaphore>,
    is_over: bool,
    _open: Arc<()>,
}

impl Hasher {
    /// Starts the threads: one for every four processors.
    pub fn start() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let threads = (0..(processors / 4).clamp(1, THREADS_MAX)).map(|index| {
            let (messages, inbox) = channel();
            let builder = std::thread::Builder::new().name(format!("md5-{index}"));
            builder.spawn(move || work(&inbox)).expect("a process can start a handful of threads");
            Thread { messages, open: Arc::new(()) }
        });
        Hasher { threads: threads.collect(), next: AtomicU64::new(0) }
    }

    /// Begins a body of about `length` bytes.
    pub fn body(&self, length: u64) -> Running {
        if length < TOGETHER_BYTES_MIN {
            return Running::Alone(Md5::new());
        }
        let open = |thread: &&Thread| Arc::strong_count(&thread.open) - 1;
        let roomy = self.threads.iter().find(|thread| open(thread) < lanes::LANES);
        let thread = roomy.or_else(|| self.threads.iter().min_by_key(open)).expect("there is a thread");
        Running::Together(Box::new(Together {
            id: self.next.fetch_add(1, Ordering::Relaxed),
            messages: thread.messages.clone(),
            batch: Pieces::default(),
            batch_bytes: 0,
            left_bytes: length,
            room: Arc::new(Semaphore::new(WAITING_BYTES_MAX)),
            is_over: false,
            _open: Arc::clone(&thread.open),
        }))
    }
}

impl Running {
    /// Hashes in place, whatever comes: for documents that are small.
    pub fn alone() -> Self {
        Running::Alone(Md5::new())
    }

    /// Takes the next bytes; waits while the thread is behind.
    pub async fn update(&mut self, piece: &Bytes) {
        match self {
            Running::Alone(md5) => md5.update(piece),
            Running::Together(together) => together.update(piece).await,
        }
    }

    /// Returns the digest of everything taken.
    pub async fn finish(self) -> Digest {
        self.finish_beside(std::future::ready(())).await.0
    }

    /// Does what else is to be done, and returns the digest of everything taken beside its result. Nobody
    /// waits for the digest before that is done, so that the body may wait for company.
    pub async fn finish_beside<R>(self, other: impl Future<Output = R>) -> (Digest, R) {
        match self {
            Running::Alone(md5) => (md5.finalize().into(), other.await),
            Running::Together(together) => together.finish_beside(other).await,
        }
    }
}

impl Together {
    async fn update(&mut self, piece: &Bytes) {
        self.batch_bytes += piece.len();
        self.batch.push(piece.clone());
        if self.batch_bytes >= BATCH_BYTES_MIN {
            self.hand_over().await;
        }
    }

    async fn hand_over(&mut self) {
        // A piece larger than all the room takes all of it.
        let permits = self.batch_bytes.min(WAITING_BYTES_MAX);
        if self.room.available_permits() < permits {
            self.send(Message::Crowded(self.id));
        }
        let room = Arc::clone(&self.room).acquire_many_owned(permits as u32).await.expect("never closed");
        self.left_bytes = self.left_bytes.saturating_sub(self.batch_bytes as u64);
        self.batch_bytes = 0;
        let batch = self.batch.take();
        self.send(Message::Pieces(self.id, batch, room));
        let free = self.room.available_permits();
        if free < WAITING_BYTES_MAX / 2 && free < usize::try_from(self.left_bytes).unwrap_or(usize::MAX) {
            // Its connection is to find room when it needs it.
            self.send(Message::Crowded(self.id));
        }
    }

    async fn finish_beside<R>(mut self, other: impl Future<Output = R>) -> (Digest, R) {
        let (answer, digest) = oneshot::channel();
        let last = async {
            if self.batch_bytes > 0 {
                self.hand_over().await;
            }
            self.send(Message::End(self.id, answer));
        };
        let ((), done) = tokio::join!(last, other);
        self.send(Message::Due(self.id));
        let digest = digest.await.expect("the thread answers every body that ends");
        self.is_over = true;
        (digest, done)
    }

    fn send(&self, message: Message) {
        self.messages.send(message).expect("the thread lives as long as a body has its sender");
    }
}

impl Drop for Together {
    fn drop(&mut self) {
        if !self.is_over {
            self.send(Message::Abandoned(self.id));
        }
    }
}

/// What the thread works on; a body's room comes back when the last piece of a batch is hashed.
type Work = Bodies<Option<Arc<OwnedSemaphorePermit>>, oneshot::Sender<Digest>>;

/// The thread's life: take what has come, and hash when it is worth it.
fn work(inbox: &Receiver<Message>) {
    let mut bodies = Work::new();
    let mut crowded_since: Option<Instant> = None;
    loop {
        if !bodies.is_pass_due() {
            let message = match bodies.has_crowded() {
                true => {
                    let until = *crowded_since.get_or_insert_with(Instant::now) + PATIENCE;
                    inbox.recv_timeout(until.saturating_duration_since(Instant::now()))
                }
                false => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match message {
                Ok(message) => take(&mut bodies, message),
                Err(RecvTimeoutError::Timeout) => bodies.handle_patience_over(),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
        while let Ok(message) = inbox.try_recv() {
            take(&mut bodies, message);
        }
        if !bodies.is_pass_due() {
            continue;
        }
        crowded_since = None;
        for (answer, digest) in bodies.poll_pass() {
            // Whoever asked may have gone away meanwhile.
            let _ = answer.send(digest);
        }
    }
}

fn take(bodies: &mut Work, message: Message) {
    match message {
        Message::Pieces(id, pieces, room) => {
            let room = Arc::new(room);
            for piece in pieces {
                bodies.handle_piece(id, piece, Some(Arc::clone(&room)));
            }
        }
        Message::End(id, answer) => bodies.handle_end(id, answer, None),
        Message::Due(id) => bodies.handle_due(id),
        Message::Crowded(id) => match is_in_a_hurry() {
            true => bodies.handle_due(id),
            false => bodies.handle_crowded(id),
        },
        Message::Abandoned(id) => bodies.handle_abandoned(id),
    }
}

/// Whether crowded bodies wait for nobody, as measurements compare.
#[cfg(test)]
static HURRY: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);

fn is_in_a_hurry() -> bool {
    #[cfg(test)]
    return HURRY.load(Ordering::Relaxed);
    #[cfg(not(test))]
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Processor time of the hashing threads so far, in seconds.
    // Asks the system about this process.
    #[allow(clippy::disallowed_methods)]
    fn hashing_seconds() -> f64 {
        let tasks = std::fs::read_dir("/proc/self/task").expect("Linux").flatten();
        let stats = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("stat")).ok());
        let ticks = stats.filter(|stat| stat.contains("(md5-")).map(|stat| {
            let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
            fields[11..13].iter().map(|ticks| ticks.parse::<f64>().unwrap_or(0.0)).sum::<f64>()
        });
        ticks.sum::<f64>() / 100.0
    }

    /// `cargo test -p plinth-gateway measure_large_bodies -- --ignored --nocapture`
    #[test]
    #[ignore = "a measurement"]
    fn measure_large_bodies() {
        const BODY_BYTES: usize = 64 << 20;
        // What else a connection does with a piece of 200 kB, so that two workers bring 200 MB/s.
        const OTHER_WORK: Duration = Duration::from_millis(2);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().expect("a runtime");
        let hasher = Arc::new(Hasher::start());
        for clients in [1, 2, 4, 8, 4] {
            for hurry in [true, false] {
                HURRY.store(hurry, Ordering::Relaxed);
                let (before, started) = (hashing_seconds(), Instant::now());
                runtime.block_on(async {
                    let bodies = (0..clients).map(|seed| {
                        let hasher = Arc::clone(&hasher);
                        tokio::spawn(async move {
                            let piece = Bytes::from(vec![seed; 200_000]);
                            let mut running = hasher.body(BODY_BYTES as u64);
                            for _ in 0..BODY_BYTES / piece.len() {
                                let began = Instant::now();
                                running.update(&piece).await;
                                while began.elapsed() < OTHER_WORK {
                                    std::hint::spin_loop();
                                }
                                // A connection reads what has come and lets others go on.
                                tokio::task::yield_now().await;
                            }
                            running.finish().await
                        })
                    });
                    for body in bodies.collect::<Vec<_>>() {
                        body.await.expect("no panic");
                    }
                });
                let gib = f64::from(clients) * BODY_BYTES as f64 / f64::from(1 << 30);
                let spent = (hashing_seconds() - before) / gib;
                let rate = gib * 1024.0 / started.elapsed().as_secs_f64();
                println!(
                    "{clients} bodies, {}: {spent:.2} CPU-s/GiB, {rate:.0} MiB/s",
                    if hurry { "each when it is crowded" } else { "with company" }
                );
            }
        }
    }

    #[tokio::test]
    async fn bodies_that_come_together_get_their_own_digests() {
        let hasher = Arc::new(Hasher::start());
        let bodies = (0..20u8).map(|seed| {
            let hasher = Arc::clone(&hasher);
            tokio::spawn(async move {
                let bytes: Vec<u8> = (0..700_000usize).map(|i| (i / 7) as u8 ^ seed).collect();
                let mut running = hasher.body(bytes.len() as u64);
                for piece in bytes.chunks(50_001) {
                    running.update(&Bytes::copy_from_slice(piece)).await;
                }
                // Every third one goes away in the middle.
                let digest = if seed % 3 == 0 {
                    drop(running);
                    None
                } else {
                    Some(running.finish().await)
                };
                (digest, Digest::from(Md5::digest(&bytes)))
            })
        });
        for (seed, body) in bodies.collect::<Vec<_>>().into_iter().enumerate() {
            let (digest, want) = body.await.expect("no panic");
            assert_eq!(digest.is_none(), seed % 3 == 0);
            assert!(digest.is_none_or(|digest| digest == want));
        }
    }

    #[tokio::test]
    async fn a_piece_larger_than_the_room_is_hashed() {
        let bytes = Bytes::from(vec![7; 3 * WAITING_BYTES_MAX + 5]);
        let mut running = Hasher::start().body(bytes.len() as u64);
        running.update(&bytes).await;
        assert_eq!(running.finish().await, Digest::from(Md5::digest(&bytes)));
    }
}
