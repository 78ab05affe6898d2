//! The readers that are open, and how those that stall give their memory back.
//!
//! A reader fetches ahead into memory that all readers share. One whose caller takes nothing, because its own client
//! hardly reads, would hold that memory for as long as it likes. So each reader holds a share of what is free at most,
//! and where memory is scarce the others take back what stalled readers have fetched: they fetch it again when they are
//! asked. What a caller has already been given is not touched.

use crate::read::Window;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use tokio::time::Instant;

/// A reader that nobody has asked for so long, although it has bytes, is stalled.
const STALLED_AFTER: Duration = Duration::from_millis(250);
/// How often stalled readers are looked for at most: a look costs a walk over all readers.
const RECLAIM_EVERY: Duration = Duration::from_millis(50);

/// The readers of one client that have anything to fetch.
#[derive(Default)]
pub(crate) struct Readers {
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    windows: BTreeMap<u64, Weak<Mutex<Window>>>,
    next: u64,
    reclaimed: Option<Instant>,
}

impl Readers {
    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of a reader; returns the number under which it leaves.
    pub(crate) fn enter(&self, window: &Arc<Mutex<Window>>) -> u64 {
        let mut open = self.lock();
        open.next += 1;
        let number = open.next;
        open.windows.insert(number, Arc::downgrade(window));
        number
    }

    /// Forgets a reader.
    pub(crate) fn leave(&self, number: u64) {
        self.lock().windows.remove(&number);
    }

    /// Has stalled readers give back what they have fetched ahead. The caller may hold its own window.
    pub(crate) fn reclaim(&self, now: Instant) {
        let windows: Vec<Weak<Mutex<Window>>> = {
            let mut open = self.lock();
            if open.reclaimed.is_some_and(|last| now < last + RECLAIM_EVERY) {
                return;
            }
            open.reclaimed = Some(now);
            open.windows.values().cloned().collect()
        };
        for window in windows.iter().filter_map(Weak::upgrade) {
            // A window that is in use is not stalled.
            let Ok(mut window) = window.try_lock() else { continue };
            if window.is_stalled(now, STALLED_AFTER) {
                window.give_back();
            }
        }
    }
}
