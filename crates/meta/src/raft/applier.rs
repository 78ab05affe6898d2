//! The thread that applies a replica's entries: away from the workers that carry heartbeats, votes
//! and other groups, which must go on however long an entry, the database or its disk take.
//!
//! The machine goes to the thread with a run of entries, and comes back with the last of them: one
//! hop for all that have been committed by then. Whoever has the machine has it alone, so that a
//! snapshot is never installed under an entry.

use crate::MetaError;
use crate::state::{LogPosition, Machine, RocksStore, StateError};
use bytes::Bytes;
use plinth_protocol::GroupId;
use plinth_protocol::meta::Outcome;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

/// How long an entry waits for a database that asks for time before it is tried again.
const STALL_PAUSE: Duration = Duration::from_millis(5);

/// What an entry asks for.
pub(crate) enum Work {
    /// Nothing: a new leader's first entry.
    Blank,
    /// A batch of mutations.
    Batch(Bytes),
    /// A Raft membership, in stored form.
    Membership(Vec<u8>),
}

/// An entry on its way to the thread.
pub(crate) struct Step {
    pub(crate) at: LogPosition,
    pub(crate) work: Work,
    /// Takes the outcomes, where somebody waits for them.
    pub(crate) answer: Option<Box<dyn FnOnce(Vec<Outcome>) + Send>>,
}

/// A run of entries with the machine.
struct Turn {
    machine: Machine<RocksStore>,
    steps: Vec<Step>,
    done: oneshot::Sender<(Machine<RocksStore>, Result<(), MetaError>)>,
}

/// A replica's thread; it ends when this is dropped.
pub(crate) struct Applier {
    turns: Sender<Turn>,
}

impl Applier {
    /// Starts the thread. `apply` takes one entry; the last argument tells whether the replica has been stopped
    /// meanwhile, so that nothing needs to be waited for.
    pub(crate) fn start(
        group: GroupId,
        apply: impl Fn(&mut Machine<RocksStore>, Step, &dyn Fn() -> bool) -> Result<(), MetaError> + Send + 'static,
    ) -> Result<Applier, MetaError> {
        let (turns, inbox) = channel::<Turn>();
        let runtime = Handle::try_current().ok();
        // The seam of threads: one for each replica, named. Its end is that of its sender.
        #[allow(clippy::disallowed_methods)]
        std::thread::Builder::new()
            .name(format!("apply-{}", group.0))
            .spawn(move || {
                let _entered = runtime.as_ref().map(Handle::enter);
                while let Ok(Turn { mut machine, steps, done }) = inbox.recv() {
                    let is_stopped = || done.is_closed();
                    let taken = steps.into_iter().try_for_each(|step| apply(&mut machine, step, &is_stopped));
                    // Where nobody waits any more the machine ends here.
                    let _ = done.send((machine, taken));
                }
            })
            .map_err(MetaError::io("start the thread that applies entries"))?;
        Ok(Applier { turns })
    }

    /// Applies entries in their order; the machine comes back with what became of them.
    pub(crate) async fn apply(
        &self,
        machine: Machine<RocksStore>,
        steps: Vec<Step>,
    ) -> Result<(Machine<RocksStore>, Result<(), MetaError>), MetaError> {
        let ended = || MetaError::Stopped("the thread that applies entries has ended".into());
        let (done, answer) = oneshot::channel();
        self.turns.send(Turn { machine, steps, done }).map_err(|_| ended())?;
        answer.await.map_err(|_| ended())
    }
}

/// Takes a step of the machine; where the database asks for time, again a little later.
pub(crate) fn patiently<R>(
    is_stopped: &dyn Fn() -> bool,
    mut step: impl FnMut() -> Result<R, StateError>,
) -> Result<R, MetaError> {
    let (never, pause) = (Mutex::new(()), Condvar::new());
    loop {
        match step() {
            Err(StateError::Stalled) if !is_stopped() => {
                // The database has no event to wait for.
                let held = never.lock().unwrap_or_else(PoisonError::into_inner);
                drop(pause.wait_timeout(held, STALL_PAUSE));
            }
            taken => return Ok(taken?),
        }
    }
}
