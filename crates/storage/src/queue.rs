//! Queues of requests by class, bounded in bytes, served by shares.
//!
//! Every class has its own queue with its own bound, so that a flood of one class fills only its
//! own queue: whoever comes then is told `Busy`. Between the classes the bytes served follow the
//! shares (deficit round robin): an idle class leaves its share to the others.

use plinth_protocol::storage::IoClass;
use std::collections::VecDeque;

/// Bytes that each turn gives a class per unit of its share.
const TURN_BYTES: u64 = 64 << 10;

/// How a class is bounded and served.
#[derive(Debug, Clone, Copy)]
pub struct ClassLimit {
    /// Most bytes that wait in the queue.
    pub queue_bytes_max: u64,
    /// Weight of the class against the others.
    pub share: u64,
    /// What a refused caller is told to wait, in milliseconds.
    pub retry_after_ms: u64,
}

/// Returns the bound and share of a class.
pub const fn limit(class: IoClass) -> ClassLimit {
    let (mebibytes, share, retry_after_ms) = match class {
        IoClass::Read => (32, 16, 20),
        IoClass::Write => (32, 16, 20),
        IoClass::DegradedRead => (16, 12, 20),
        IoClass::Repair => (16, 4, 200),
        IoClass::Scrub => (8, 1, 1000),
        IoClass::Background => (8, 2, 200),
    };
    ClassLimit { queue_bytes_max: mebibytes << 20, share, retry_after_ms }
}

struct ClassQueue<T> {
    class: IoClass,
    waiting: VecDeque<(u64, T)>,
    bytes: u64,
    credit: u64,
}

/// The queues of one disk.
pub struct Queues<T> {
    queues: Vec<ClassQueue<T>>,
    turn: usize,
    count: usize,
}

impl<T> Default for Queues<T> {
    fn default() -> Self {
        let queue = |&class| ClassQueue { class, waiting: VecDeque::new(), bytes: 0, credit: 0 };
        Queues { queues: IoClass::ALL.iter().map(queue).collect(), turn: 0, count: 0 }
    }
}

impl<T> Queues<T> {
    /// Puts a request that moves `bytes` into its class's queue. A full queue gives it back; an
    /// empty one takes any request, so that no bound refuses a request for ever.
    pub fn push(&mut self, class: IoClass, bytes: u64, item: T) -> Result<(), T> {
        let queue = &mut self.queues[class as usize - 1];
        if queue.bytes + bytes > limit(class).queue_bytes_max && !queue.waiting.is_empty() {
            return Err(item);
        }
        queue.bytes += bytes;
        queue.waiting.push_back((bytes, item));
        self.count += 1;
        Ok(())
    }

    /// Puts a request that was taken out back to the front, and its credit with it.
    pub fn push_front(&mut self, class: IoClass, bytes: u64, item: T) {
        let queue = &mut self.queues[class as usize - 1];
        queue.bytes += bytes;
        queue.credit += bytes;
        queue.waiting.push_front((bytes, item));
        self.count += 1;
    }

    /// Returns how many requests wait.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Returns the bytes that wait in a class.
    #[cfg(test)]
    pub fn bytes(&self, class: IoClass) -> u64 {
        self.queues[class as usize - 1].bytes
    }

    /// Takes the next request that `ready` lets go, by shares. A class whose first request is not
    /// ready stands back and keeps its order.
    pub fn pop(&mut self, mut ready: impl FnMut(IoClass, u64, &T) -> bool) -> Option<(IoClass, u64, T)> {
        if self.count == 0 {
            return None;
        }
        let mut blocked = [false; IoClass::ALL.len()];
        loop {
            let at = self.turn;
            let queue = &mut self.queues[at];
            match queue.waiting.front() {
                None => {
                    // What an idle class did not use does not add up.
                    queue.credit = 0;
                    blocked[at] = true;
                }
                Some((bytes, item)) if !ready(queue.class, *bytes, item) => blocked[at] = true,
                Some((bytes, _)) if queue.credit >= *bytes => {
                    queue.credit -= bytes;
                    queue.bytes -= bytes;
                    self.count -= 1;
                    let (bytes, item) = queue.waiting.pop_front().expect("front was seen");
                    return Some((queue.class, bytes, item));
                }
                Some(_) => blocked[at] = false,
            }
            if blocked.iter().all(|&blocked| blocked) {
                return None;
            }
            self.turn = (at + 1) % self.queues.len();
            let next = &mut self.queues[self.turn];
            if !blocked[self.turn] && !next.waiting.is_empty() {
                next.credit = (next.credit + TURN_BYTES * limit(next.class).share).min(8 << 20);
            }
        }
    }

    /// Takes all requests that `gone` names, of every class: their deadline passed or nobody waits.
    pub fn drain_where(&mut self, mut gone: impl FnMut(&T) -> bool) -> Vec<T> {
        let mut taken = Vec::new();
        for queue in &mut self.queues {
            if !queue.waiting.iter().any(|(_, item)| gone(item)) {
                continue;
            }
            for (bytes, item) in std::mem::take(&mut queue.waiting) {
                if gone(&item) {
                    queue.bytes -= bytes;
                    self.count -= 1;
                    taken.push(item);
                } else {
                    queue.waiting.push_back((bytes, item));
                }
            }
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_queue_gives_the_request_back_and_spares_other_classes() {
        let mut queues = Queues::default();
        let bound = limit(IoClass::Scrub).queue_bytes_max;
        assert_eq!(queues.push(IoClass::Scrub, bound, 1), Ok(()));
        assert_eq!(queues.push(IoClass::Scrub, 1, 2), Err(2));
        assert_eq!(queues.push(IoClass::Read, 4096, 3), Ok(()));
        assert_eq!((queues.count(), queues.bytes(IoClass::Scrub)), (2, bound));
        assert_eq!(queues.drain_where(|&item| item == 1), [1]);
        assert_eq!((queues.count(), queues.bytes(IoClass::Scrub)), (1, 0));
    }

    #[test]
    fn bytes_served_follow_the_shares() {
        let mut queues = Queues::default();
        for number in 0..400u32 {
            let _ = queues.push(IoClass::Read, 64 << 10, number);
            let _ = queues.push(IoClass::Repair, 64 << 10, number);
        }
        let mut served = [0u32; 7];
        for _ in 0..200 {
            let (class, _, _) = queues.pop(|_, _, _| true).expect("both queues are long");
            served[class as usize] += 1;
        }
        let (reads, repairs) = (served[IoClass::Read as usize], served[IoClass::Repair as usize]);
        assert!((3 * repairs..=5 * repairs).contains(&reads), "{reads} reads, {repairs} repairs");
    }

    #[test]
    fn idle_classes_leave_their_share_and_order_is_kept() {
        let mut queues = Queues::default();
        for number in 0..20 {
            queues.push(IoClass::Background, 1 << 20, number).ok();
        }
        let taken: Vec<i32> = std::iter::from_fn(|| queues.pop(|_, _, _| true)).map(|(_, _, item)| item).collect();
        assert_eq!(taken, (0..8).collect::<Vec<_>>());
    }

    #[test]
    fn class_that_is_not_ready_stands_back() {
        let mut queues = Queues::default();
        queues.push(IoClass::Write, 4096, 1).unwrap();
        queues.push(IoClass::Read, 4096, 2).unwrap();
        let no_writes = |class: IoClass, _: u64, _: &i32| class != IoClass::Write;
        assert_eq!(queues.pop(no_writes), Some((IoClass::Read, 4096, 2)));
        assert_eq!(queues.pop(no_writes), None);
        assert_eq!(queues.pop(|_, _, _| true), Some((IoClass::Write, 4096, 1)));
    }
}
