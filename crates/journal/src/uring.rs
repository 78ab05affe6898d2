//! The real disk: a folder of files, opened O_DIRECT, driven through one io_uring.

use crate::disk::{Completion, Disk, Operation, SegmentIndex, Waker};
use crate::error::JournalError;
use std::path::Path;
use std::time::Duration;

/// A disk in a folder. Lives on the thread that made it.
pub struct UringDisk {}

#[allow(unused_variables)]
impl UringDisk {
    /// Opens a formatted folder and locks it against other processes.
    pub fn open(folder: &Path) -> Result<UringDisk, JournalError> {
        unimplemented!("being written")
    }
    /// Makes the super area in an empty folder (made where absent) and opens it; refuses a folder that carries anything.
    pub fn create(folder: &Path) -> Result<UringDisk, JournalError> {
        unimplemented!("being written")
    }
}

#[allow(unused_variables)]
impl Disk for UringDisk {
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
