//! One operation after the other, waited for: how formatting and recovery use a disk, before there
//! is an engine.

use crate::disk::{Action, Area, Completion, Disk, DiskError, Done, Fill, OpId, Operation, SegmentIndex};
use crate::error::JournalError;
use bytes::Bytes;
use plinth_protocol::buffer::AlignedBuf;

/// A disk whose operations are waited for.
pub(crate) struct Blocking<D> {
    pub disk: D,
}

impl<D: Disk> Blocking<D> {
    /// Runs the actions, several at a time; the results stand in the actions' order.
    pub fn run_all(&mut self, actions: Vec<Action>) -> Vec<Result<Done, DiskError>> {
        let mut results: Vec<Option<Result<Done, DiskError>>> = actions.iter().map(|_| None).collect();
        let mut waiting = actions.into_iter().enumerate();
        let mut left = results.len();
        let mut completions: Vec<Completion> = Vec::new();
        while left > 0 {
            while self.disk.room() > 0 {
                let Some((index, action)) = waiting.next() else { break };
                self.disk.submit(Operation { id: OpId(index as u64), action });
            }
            self.disk.reap(None, &mut completions);
            for completion in completions.drain(..) {
                results[completion.id.0 as usize] = Some(completion.result);
                left -= 1;
            }
        }
        results.into_iter().map(|result| result.expect("all have ended")).collect()
    }

    fn run(&mut self, action: Action) -> Result<Done, DiskError> {
        self.run_all(vec![action]).pop().expect("one action has one result")
    }

    /// Reads into a buffer of its own.
    pub fn read(&mut self, area: Area, offset: u64, buffer: AlignedBuf) -> Result<AlignedBuf, DiskError> {
        match self.run(Action::Read { area, offset, buffer })? {
            Done::Read(buffer) => Ok(buffer),
            other => unreachable!("a read ends as a read, not as {other:?}"),
        }
    }

    /// Writes blocks, not yet durable.
    pub fn write_all(&mut self, writes: Vec<(Area, u64, Bytes)>) -> Result<(), JournalError> {
        let areas: Vec<Area> = writes.iter().map(|(area, ..)| *area).collect();
        let actions = writes.into_iter().map(|(area, offset, bytes)| Action::Write {
            area,
            offset,
            parts: vec![bytes],
            durable: false,
        });
        first_error(&areas, self.run_all(actions.collect()))
    }

    /// Makes areas durable.
    pub fn sync_all(&mut self, areas: &[Area]) -> Result<(), JournalError> {
        let actions = areas.iter().map(|area| Action::Sync { area: *area });
        first_error(areas, self.run_all(actions.collect()))
    }

    /// Makes a segment.
    pub fn create(&mut self, segment: SegmentIndex, bytes: u64, fill: Fill) -> Result<(), JournalError> {
        let result = self.run(Action::Create { segment, bytes, fill });
        first_error(&[Area::Segment(segment)], vec![result])
    }
}

fn first_error(areas: &[Area], results: Vec<Result<Done, DiskError>>) -> Result<(), JournalError> {
    for (area, result) in areas.iter().zip(results) {
        result.map_err(|source| JournalError::Disk { area: *area, source })?;
    }
    Ok(())
}
