//! A walk through one segment, from record to record.
//!
//! A record counts where its head verifies and fits its place, its segment's life, the order and
//! the chain. Where none does, the walk looks ahead, block by block, for the next head of this life
//! that is newer than the last one seen: whether what lies between is torn or damaged is for the
//! caller to say.

use crate::blocking::Blocking;
use crate::disk::{Area, Disk, DiskError, SegmentIndex};
use crate::planted::{Bug, planted};
use crate::record::{Generation, HEAD_BYTES, Head, KIND_SEAL, Position, Sequence, Stream, chain_hash};
use crate::segment::{RECORDS_START, records_end};
use plinth_protocol::buffer::{AlignedBuf, BLOCK_BYTES, round_up_to_block};

/// Bytes that are read at once where records are small.
const WINDOW_BYTES: usize = 256 << 10;

/// A record that the walk has reached.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub head: Head,
    /// Chain hash of this head.
    pub hash: u64,
}

/// What the walk meets.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// A record.
    Record(Entry),
    /// Nothing readable up to `until`, where an unchained record follows.
    Gap { from: u32, until: u32, after: Sequence, before: Sequence },
    /// A block that the device does not read.
    Unreadable { offset: u32, error: DiskError },
    /// The end, behind the last record.
    End { sealed: bool, offset: u32, last: Sequence },
}

/// A piece of a segment in memory.
pub(crate) struct Window {
    segment: SegmentIndex,
    start: u32,
    buffer: Option<AlignedBuf>,
}

impl Window {
    /// Makes a window that holds nothing yet.
    pub fn new(segment: SegmentIndex) -> Window {
        Window { segment, start: 0, buffer: None }
    }

    /// Returns `length` bytes at a block's offset, read with those behind up to `limit` where `ahead`.
    pub fn bytes<D: Disk>(
        &mut self,
        io: &mut Blocking<D>,
        offset: u32,
        length: usize,
        ahead: bool,
        limit: u32,
    ) -> Result<&[u8], DiskError> {
        let held = self.buffer.as_ref().map_or(0, |buffer| buffer.len());
        let is_held = offset >= self.start && (offset - self.start) as usize + length <= held;
        if !is_held {
            let exact = round_up_to_block(length);
            let wide = if ahead { exact.max(WINDOW_BYTES).min((limit - offset) as usize).max(exact) } else { exact };
            self.fill(io, offset, wide).or_else(|error| {
                // One bad block must not hide its neighbours.
                if wide > exact { self.fill(io, offset, exact) } else { Err(error) }
            })?;
        }
        let from = (offset - self.start) as usize;
        let buffer = self.buffer.as_ref().expect("held, or filled just above");
        Ok(&buffer[from..from + length])
    }

    fn fill<D: Disk>(&mut self, io: &mut Blocking<D>, offset: u32, bytes: usize) -> Result<(), DiskError> {
        let mut buffer = match self.buffer.take() {
            Some(buffer) if buffer.capacity() >= bytes => buffer,
            _ => AlignedBuf::zeroed(bytes),
        };
        buffer.set_len(bytes);
        self.start = offset;
        self.buffer = Some(io.read(Area::Segment(self.segment), u64::from(offset), buffer)?);
        Ok(())
    }
}

/// A walk under way.
pub(crate) struct Walk {
    segment: SegmentIndex,
    generation: Generation,
    stream: Stream,
    stamp: u64,
    end: u32,
    offset: u32,
    last: Sequence,
    chain: Option<u64>,
    is_sealed: bool,
    is_finished: bool,
    /// Read ahead where the last record was small.
    ahead: bool,
    /// A block whose error has been told.
    told_unreadable: Option<u32>,
    window: Window,
}

impl Walk {
    /// Begins at the segment's first record.
    pub fn new(segment: SegmentIndex, generation: Generation, stream: Stream, stamp: u64, segment_bytes: u32) -> Walk {
        Walk {
            segment,
            generation,
            stream,
            stamp,
            end: records_end(segment_bytes),
            offset: RECORDS_START,
            last: Sequence(generation.0.saturating_sub(1)),
            chain: None,
            is_sealed: false,
            is_finished: false,
            ahead: true,
            told_unreadable: None,
            window: Window::new(segment),
        }
    }

    /// Begins behind a record instead.
    pub fn skip_to(&mut self, offset: u32, last: Sequence, chain: u64) {
        (self.offset, self.last, self.chain) = (offset, last, Some(chain));
        self.is_sealed = offset >= self.end;
    }

    /// Returns the next step; None behind the end.
    pub fn next<D: Disk>(&mut self, io: &mut Blocking<D>) -> Option<Step> {
        if self.is_finished {
            return None;
        }
        if self.is_sealed || self.offset >= self.end {
            return Some(self.finish());
        }
        let chain = self.chain;
        match self.head_at(io, self.offset, chain) {
            Ok(Some(found)) => Some(self.take(found)),
            Ok(None) => Some(self.look_ahead(io)),
            Err(error) if self.told_unreadable != Some(self.offset) => {
                self.told_unreadable = Some(self.offset);
                Some(Step::Unreadable { offset: self.offset, error })
            }
            Err(_) => Some(self.look_ahead(io)),
        }
    }

    fn finish(&mut self) -> Step {
        self.is_finished = true;
        Step::End { sealed: self.is_sealed, offset: self.offset, last: self.last }
    }

    fn take(&mut self, (head, hash): (Head, u64)) -> Step {
        self.offset = head.position.offset + head.record_bytes();
        self.ahead = (head.payload_bytes as usize) < WINDOW_BYTES / 4;
        self.last = head.sequence;
        self.chain = Some(hash);
        self.is_sealed = head.kind == KIND_SEAL;
        Step::Record(Entry { head, hash })
    }

    /// Returns the head at an offset where it is one of this life, newer than the last, and fits the chain.
    fn head_at<D: Disk>(
        &mut self,
        io: &mut Blocking<D>,
        offset: u32,
        chain: Option<u64>,
    ) -> Result<Option<(Head, u64)>, DiskError> {
        let block = self.window.bytes(io, offset, BLOCK_BYTES, self.ahead, self.end)?;
        let Ok(head) = Head::decode(block) else { return Ok(None) };
        let position = Position { segment: self.segment, offset };
        let is_here = head.position == position && head.stamp == self.stamp;
        let is_bounded = u64::from(offset) + u64::from(head.record_bytes()) <= u64::from(self.end);
        let is_current = head.generation == self.generation
            && head.stream == self.stream
            && head.sequence > self.last
            && chain.is_none_or(|chain| chain == head.chain);
        let counts = is_here && is_bounded && (is_current || planted(Bug::AcceptStaleRecord));
        Ok(counts.then(|| (head, chain_hash(&block[..HEAD_BYTES]))))
    }

    /// Looks for the next head of this life, wherever it stands.
    fn look_ahead<D: Disk>(&mut self, io: &mut Blocking<D>) -> Step {
        self.ahead = true;
        let from = self.offset;
        let mut offset = from;
        while offset < self.end {
            // A block that is not readable holds no head; the first one has been told already.
            if let Ok(Some((head, _))) = self.head_at(io, offset, None) {
                let after = self.last;
                (self.offset, self.chain) = (offset, None);
                return Step::Gap { from, until: offset, after, before: head.sequence };
            }
            offset += BLOCK_BYTES as u32;
        }
        self.finish()
    }

    /// Reads bytes of the segment through the walk's window.
    pub fn bytes<D: Disk>(&mut self, io: &mut Blocking<D>, offset: u32, length: usize) -> Result<&[u8], DiskError> {
        self.window.bytes(io, offset, length, false, self.end)
    }
}
