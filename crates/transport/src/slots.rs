//! The calls that wait for an answer on one connection.
//!
//! A slot is reused as soon as its call ends; its generation, the upper half of the request id, makes
//! an answer to an earlier call recognisable.

use crate::call::Reply;
use plinth_protocol::Failure;
use std::task::Waker;

/// Calls that one connection carries at once; more are answered `Busy`.
pub(crate) const CALLS_IN_FLIGHT_MAX: usize = 16_384;

/// A request id: slot in the lower half, generation in the upper.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CallId(pub(crate) u64);

pub(crate) type Outcome = Result<Reply, Failure>;

enum Slot {
    Free,
    Waiting { sent: bool, waker: Option<Waker> },
    Done(Outcome),
}

/// The table of slots.
#[derive(Default)]
pub(crate) struct Slots {
    slots: Vec<(u32, Slot)>,
    free: Vec<u32>,
}

impl Slots {
    /// Takes a slot, or nothing where all are taken.
    pub(crate) fn allocate(&mut self) -> Option<CallId> {
        let waiting = Slot::Waiting { sent: false, waker: None };
        if let Some(index) = self.free.pop() {
            let (generation, slot) = &mut self.slots[index as usize];
            *slot = waiting;
            return Some(CallId(u64::from(*generation) << 32 | u64::from(index)));
        }
        if self.slots.len() == CALLS_IN_FLIGHT_MAX {
            return None;
        }
        self.slots.push((1, waiting));
        Some(CallId(1 << 32 | (self.slots.len() - 1) as u64))
    }

    fn slot(&mut self, id: CallId) -> Option<&mut Slot> {
        let (generation, slot) = self.slots.get_mut(id.0 as u32 as usize)?;
        (u64::from(*generation) == id.0 >> 32 && !matches!(slot, Slot::Free)).then_some(slot)
    }

    /// Gives a slot back; returns whether the call's request had been sent and was still unanswered.
    pub(crate) fn release(&mut self, id: CallId) -> bool {
        let Some(slot) = self.slot(id) else { return false };
        let pending = matches!(slot, Slot::Waiting { sent: true, .. });
        self.vacate(id);
        pending
    }

    fn vacate(&mut self, id: CallId) -> Slot {
        let (generation, slot) = &mut self.slots[id.0 as u32 as usize];
        // Generation 0 is never used, so that no request has id 0.
        *generation = generation.checked_add(1).unwrap_or(1);
        let content = std::mem::replace(slot, Slot::Free);
        self.free.push(id.0 as u32);
        content
    }

    /// Notes that the request leaves now; false where nobody waits any more.
    pub(crate) fn mark_sent(&mut self, id: CallId) -> bool {
        match self.slot(id) {
            Some(Slot::Waiting { sent, .. }) => {
                *sent = true;
                true
            }
            _ => false,
        }
    }

    /// Puts an answer in its slot and returns who waits for it; answers to ended calls are dropped.
    pub(crate) fn finish(&mut self, id: CallId, outcome: Outcome) -> Option<Waker> {
        match self.slot(id) {
            Some(slot @ Slot::Waiting { .. }) => match std::mem::replace(slot, Slot::Done(outcome)) {
                Slot::Waiting { waker, .. } => waker,
                _ => unreachable!("the slot was waiting"),
            },
            _ => None,
        }
    }

    /// Takes the answer, which frees the slot, or notes who waits.
    pub(crate) fn poll(&mut self, id: CallId, waker: &Waker) -> Option<Outcome> {
        let slot = self.slot(id).expect("a slot is freed only by its own call");
        if let Slot::Waiting { waker: waiting, .. } = slot {
            match waiting {
                Some(waiting) if waiting.will_wake(waker) => {}
                _ => *waiting = Some(waker.clone()),
            }
            return None;
        }
        match self.vacate(id) {
            Slot::Done(outcome) => Some(outcome),
            _ => unreachable!("the slot was neither waiting nor free"),
        }
    }

    /// Fails all calls that wait, or only those not yet sent; returns who waits for them.
    pub(crate) fn fail(&mut self, only_unsent: bool, failure: impl Fn(bool) -> Failure) -> Vec<Waker> {
        let mut wakers = Vec::new();
        for (_, slot) in &mut self.slots {
            if let Slot::Waiting { sent, waker } = slot
                && !(only_unsent && *sent)
            {
                wakers.extend(waker.take());
                *slot = Slot::Done(Err(failure(*sent)));
            }
        }
        wakers
    }

    /// Returns how many calls hold a slot.
    pub(crate) fn used(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}
