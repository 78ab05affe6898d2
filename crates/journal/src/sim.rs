//! The simulated disk: volatile and durable sectors, crashes and faults from a seed.

use crate::disk::{Completion, Disk, Operation, SegmentIndex, Waker};
use std::time::Duration;

/// A disk in memory, deterministic from its seed.
#[derive(Clone)]
pub struct SimDisk {}

#[allow(unused_variables)]
impl SimDisk {
    /// Makes an empty disk that may hold `segments_max` segments.
    pub fn new(seed: u64, segments_max: u32) -> SimDisk {
        unimplemented!("being written")
    }
    /// Cuts the power: any subset of the unflushed sectors survives, drawn from the seed. Operations in flight vanish.
    pub fn crash(&mut self) {
        unimplemented!("being written")
    }
}

#[allow(unused_variables)]
impl Disk for SimDisk {
    fn segments(&self) -> Vec<(SegmentIndex, u64)> {
        unimplemented!("being written")
    }
    fn room(&self) -> usize {
        unimplemented!("being written")
    }
    fn submit(&mut self, operation: Operation) {
        unimplemented!("being written")
    }
    fn reap(&mut self, timeout: Option<Duration>, completions: &mut Vec<Completion>) {
        unimplemented!("being written")
    }
    fn waker(&self) -> Waker {
        unimplemented!("being written")
    }
}
