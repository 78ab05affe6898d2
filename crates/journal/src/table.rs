//! The segment table: which segment is in which state, and which may be opened next.

use crate::disk::SegmentIndex;
use crate::error::Refused;
use crate::journal::{SegmentInfo, SegmentState};
use crate::record::{Generation, Stream};
use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

/// How long a disk without space is left alone before another segment is tried.
const CREATE_RETRY: Duration = Duration::from_secs(10);

/// One segment's row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    pub generation: Generation,
    pub state: SegmentState,
    pub used_bytes: u32,
    /// Reads in flight: the segment is not recycled under them.
    pub reads: u32,
    /// Whether its head is durable: only then may its predecessor go.
    pub is_durable: bool,
}

/// All segments of a disk.
pub(crate) struct SegmentTable {
    rows: BTreeMap<SegmentIndex, Row>,
    free: VecDeque<SegmentIndex>,
    creating: u32,
    count_max: u32,
    blocked_until: Option<Instant>,
}

impl SegmentTable {
    /// Makes a table of at most `count_max` segments, none of them known.
    pub fn new(count_max: u32) -> SegmentTable {
        SegmentTable { rows: BTreeMap::new(), free: VecDeque::new(), creating: 0, count_max, blocked_until: None }
    }

    /// Adds a segment that exists.
    pub fn insert(&mut self, segment: SegmentIndex, generation: Generation, state: SegmentState, used_bytes: u32) {
        self.rows.insert(segment, Row { generation, state, used_bytes, reads: 0, is_durable: true });
        if state == SegmentState::Free {
            self.free.push_back(segment);
        }
    }

    /// Returns a segment's row.
    pub fn row(&self, segment: SegmentIndex) -> Option<&Row> {
        self.rows.get(&segment)
    }

    /// Returns a segment's row, to be changed.
    pub fn row_mut(&mut self, segment: SegmentIndex) -> Option<&mut Row> {
        self.rows.get_mut(&segment)
    }

    /// Returns all rows as the consumer sees them, in order of their numbers.
    pub fn infos(&self) -> impl Iterator<Item = SegmentInfo> + '_ {
        self.rows.iter().map(|(segment, row)| SegmentInfo {
            segment: *segment,
            generation: row.generation,
            state: row.state,
            used_bytes: row.used_bytes,
        })
    }

    /// Segments that can still be opened, made already or not.
    pub fn available(&self) -> u32 {
        self.free.len() as u32 + self.creating + self.creatable()
    }

    fn creatable(&self) -> u32 {
        if self.blocked_until.is_some() { 0 } else { self.count_max.saturating_sub(self.rows.len() as u32) }
    }

    /// Returns a free segment; leaves `reserved` of them alone.
    pub fn take_free(&mut self, reserved: u32) -> Result<SegmentIndex, Refused> {
        if self.available() <= reserved {
            return Err(Refused::Full);
        }
        self.free.pop_front().ok_or(Refused::Busy)
    }

    /// Returns the number of a segment to make now, so that `ready` are free in advance.
    pub fn next_to_create(&mut self, now: Instant, ready: u32) -> Option<SegmentIndex> {
        if self.blocked_until.is_some_and(|until| now >= until) {
            self.blocked_until = None;
        }
        if self.creating > 0 || self.free.len() as u32 >= ready.max(1) || self.creatable() == 0 {
            return None;
        }
        let unused = (0..self.count_max).map(SegmentIndex).find(|segment| !self.rows.contains_key(segment))?;
        let (generation, state) = (Generation(0), SegmentState::Creating);
        self.rows.insert(unused, Row { generation, state, used_bytes: 0, reads: 0, is_durable: false });
        self.creating += 1;
        Some(unused)
    }

    /// The segment has been made.
    pub fn created(&mut self, segment: SegmentIndex) {
        self.creating -= 1;
        self.insert(segment, Generation(0), SegmentState::Free, 0);
    }

    /// The segment could not be made for want of space.
    pub fn not_created(&mut self, now: Instant, segment: SegmentIndex) {
        self.creating -= 1;
        self.rows.remove(&segment);
        self.blocked_until = Some(now + CREATE_RETRY);
    }

    /// A release has become durable: the segment is free as soon as nobody reads it.
    pub fn released(&mut self, segment: SegmentIndex) {
        if let Some(row) = self.rows.get_mut(&segment) {
            row.used_bytes = 0;
            if row.reads == 0 {
                row.state = SegmentState::Free;
                self.free.push_back(segment);
            }
        }
    }

    /// A read of the segment begins.
    pub fn read_started(&mut self, segment: SegmentIndex) {
        if let Some(row) = self.rows.get_mut(&segment) {
            row.reads += 1;
        }
    }

    /// A read of the segment has ended.
    pub fn read_ended(&mut self, segment: SegmentIndex) {
        let Some(row) = self.rows.get_mut(&segment) else { return };
        row.reads -= 1;
        // Released with zero bytes, and only this read kept it from being free.
        if row.reads == 0 && row.state == SegmentState::Releasing && row.used_bytes == 0 {
            row.state = SegmentState::Free;
            self.free.push_back(segment);
        }
    }

    /// Returns whether the segment is the newest of its stream as far as the disk knows: recovery
    /// finds the stream's end by it.
    pub fn is_newest(&self, stream: Stream, generation: Generation) -> bool {
        !self.rows.values().any(|row| {
            row.generation > generation
                && row.is_durable
                && matches!(row.state, SegmentState::Open(of) | SegmentState::Sealed(of) if of == stream)
        })
    }
}
