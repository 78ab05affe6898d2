//! The simulated disk: volatile and durable sectors, crashes and faults from a seed.
//!
//! A write lands in a list of unflushed writes when it is submitted, so that a crash at any later
//! moment may keep any part of it. A sync moves to the durable image only those writes of its area
//! that had *completed* before the sync was submitted: the least that a real device promises. A
//! failed sync gives its writes up: a second sync will not make them durable (as kernels do).
//! Cloning the disk is cheap (pages are shared) and makes a crash image.

use crate::disk::{
    Action, Area, Completion, Disk, DiskError, Done, Fill, OPERATIONS_MAX, OpId, Operation, SegmentIndex, Waker,
};
use plinth_protocol::buffer::BLOCK_BYTES;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// The unit in which a write can be torn, in bytes.
pub const SECTOR_BYTES: usize = 512;

const EIO: i32 = 5;

type Page = Arc<[u8; BLOCK_BYTES]>;
type Pages = BTreeMap<(Area, u64), Page>;

/// Splitmix64: deterministic chance, the same on every machine and version.
#[derive(Clone, Debug)]
pub struct Chance(u64);

impl Chance {
    /// Starts a sequence of draws from a seed.
    pub fn new(seed: u64) -> Chance {
        Chance(seed)
    }

    /// Draws 64 bits.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Draws a number below `bound`, which is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.draw() % bound
    }

    fn per_million(&mut self, rate: u32) -> bool {
        rate > 0 && self.below(1_000_000) < u64::from(rate)
    }
}

/// How often operations fail, per million; all zero at first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SimFaults {
    /// Reads that answer EIO.
    pub read_error: u32,
    /// Writes that answer EIO; any part of them may have been written.
    pub write_error: u32,
    /// Syncs that answer EIO; what they should have made durable is given up.
    pub sync_error: u32,
    /// Writes that answer well and were never done.
    pub lost_write: u32,
    /// Writes that answer well and were done one block beside their place.
    pub misdirected_write: u32,
    /// Syncs that answer well and flush nothing.
    pub lying_sync: u32,
}

/// Operations that can be made to fail one by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SimOp {
    /// Reads.
    Read,
    /// Writes.
    Write,
    /// Syncs, durable writes included.
    Sync,
}

/// What survives of one unflushed write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Survival {
    /// Nothing.
    Lost,
    /// All.
    Whole,
    /// The first sectors.
    Head(usize),
    /// All but the first sectors.
    Tail(usize),
    /// The sectors whose bit is drawn from the seed; whole blocks where `blocks`.
    Torn {
        /// Seed of the draw.
        seed: u64,
        /// Whether blocks, not sectors, survive or vanish as one.
        blocks: bool,
    },
}

#[derive(Clone)]
struct Unflushed {
    id: u64,
    area: Area,
    offset: u64,
    data: Arc<Vec<u8>>,
    completed: bool,
    /// A sync of it has failed: no later sync takes it up.
    given_up: bool,
}

impl Unflushed {
    /// Takes over the bytes of a newer write where the two overlap.
    fn cover(&mut self, newer: &Unflushed) {
        let (start, end) = (self.offset, self.offset + self.data.len() as u64);
        let (from, until) = (start.max(newer.offset), end.min(newer.offset + newer.data.len() as u64));
        if self.area == newer.area && from < until {
            let bytes = &newer.data[(from - newer.offset) as usize..(until - newer.offset) as usize];
            Arc::make_mut(&mut self.data)[(from - start) as usize..(until - start) as usize].copy_from_slice(bytes);
        }
    }
}

enum Work {
    Write { unflushed: Option<u64>, durable: bool },
    Read { area: Area, offset: u64, buffer: plinth_protocol::buffer::AlignedBuf },
    Sync { writes: Vec<u64> },
    Create { segment: SegmentIndex, bytes: u64, fill: Fill },
    Remove { segment: SegmentIndex },
    Fail(DiskError),
}

/// A moment of a trace: the disk just before a write or sync took effect.
pub type Moment = SimDisk;

/// A disk in memory, deterministic from its seed.
pub struct SimDisk {
    durable: Pages,
    current: Pages,
    segments: BTreeMap<SegmentIndex, u64>,
    fills: BTreeMap<SegmentIndex, Fill>,
    segments_max: u32,
    unflushed: Vec<Unflushed>,
    next_write: u64,
    in_flight: VecDeque<(OpId, Work)>,
    chance: Chance,
    faults: SimFaults,
    fail_at: Vec<(SimOp, u64)>,
    trace: Option<Vec<Moment>>,
    shuffle: bool,
    wake: Arc<Wake>,
}

#[derive(Default)]
struct Wake {
    woken: Mutex<bool>,
    bell: Condvar,
}

/// A clone is a copy of the medium: operations in flight, trace and wakers stay behind.
impl Clone for SimDisk {
    fn clone(&self) -> SimDisk {
        SimDisk {
            durable: self.durable.clone(),
            current: self.current.clone(),
            segments: self.segments.clone(),
            fills: self.fills.clone(),
            segments_max: self.segments_max,
            unflushed: self.unflushed.clone(),
            next_write: self.next_write,
            in_flight: VecDeque::new(),
            chance: self.chance.clone(),
            faults: self.faults,
            fail_at: self.fail_at.clone(),
            trace: None,
            shuffle: self.shuffle,
            wake: Arc::default(),
        }
    }
}

impl SimDisk {
    /// Makes an empty disk that may hold `segments_max` segments.
    pub fn new(seed: u64, segments_max: u32) -> SimDisk {
        SimDisk {
            durable: Pages::new(),
            current: Pages::new(),
            segments: BTreeMap::new(),
            fills: BTreeMap::new(),
            segments_max,
            unflushed: Vec::new(),
            next_write: 0,
            in_flight: VecDeque::new(),
            chance: Chance::new(seed),
            faults: SimFaults::default(),
            fail_at: Vec::new(),
            trace: None,
            shuffle: true,
            wake: Arc::default(),
        }
    }

    /// Starts the disk's chance anew from a seed.
    pub fn reseed(&mut self, seed: u64) {
        self.chance = Chance::new(seed);
    }

    /// Sets how often operations fail from now on.
    pub fn set_faults(&mut self, faults: SimFaults) {
        self.faults = faults;
    }

    /// Lets the `nth` operation of a kind from now on fail with EIO, counted from 0.
    pub fn fail_at(&mut self, op: SimOp, nth: u64) {
        self.fail_at.push((op, nth));
    }

    /// Changes how many segments the disk may hold.
    pub fn set_segments_max(&mut self, segments_max: u32) {
        self.segments_max = segments_max;
    }

    /// Sets whether operations in flight complete in an order drawn from the seed; at first they do.
    pub fn set_shuffle(&mut self, shuffle: bool) {
        self.shuffle = shuffle;
    }

    /// Starts to keep an image of the disk before each write and each completed sync.
    pub fn start_trace(&mut self) {
        self.trace = Some(Vec::new());
    }

    /// Ends the trace and returns its moments.
    pub fn take_trace(&mut self) -> Vec<Moment> {
        self.trace.take().unwrap_or_default()
    }

    /// Returns how each segment was made.
    pub fn fills(&self) -> &BTreeMap<SegmentIndex, Fill> {
        &self.fills
    }

    /// Returns place and sectors of each write that is not yet durable, oldest first.
    pub fn unflushed(&self) -> Vec<(Area, u64, usize)> {
        self.unflushed.iter().map(|write| (write.area, write.offset, write.data.len() / SECTOR_BYTES)).collect()
    }

    /// Flips one bit of the medium, behind everyone's back: rot.
    pub fn rot(&mut self, area: Area, offset: u64, bit: u8) {
        let key = (area, offset / BLOCK_BYTES as u64);
        let byte = (offset % BLOCK_BYTES as u64) as usize;
        for pages in [&mut self.durable, &mut self.current] {
            let page = pages.entry(key).or_insert_with(|| Arc::new([0; BLOCK_BYTES]));
            Arc::make_mut(page)[byte] ^= 1 << (bit % 8);
        }
    }

    /// Returns the bytes that are durable at a place, for checkers.
    pub fn durable_bytes(&self, area: Area, offset: u64, length: usize) -> Vec<u8> {
        let mut out = vec![0; length];
        copy_out(&self.durable, area, offset, &mut out);
        out
    }

    /// Cuts the power: any subset of the unflushed writes survives, torn or whole, drawn from the
    /// seed. Operations in flight vanish; planned faults are forgotten.
    pub fn crash(&mut self) {
        let style = self.chance.below(4);
        let mut survivals = Vec::with_capacity(self.unflushed.len());
        for _ in 0..self.unflushed.len() {
            let draw = match style {
                0 => 0,
                1 => 1,
                _ => self.chance.below(4),
            };
            survivals.push(match draw {
                0 => Survival::Lost,
                1 => Survival::Whole,
                _ => Survival::Torn { seed: self.chance.draw(), blocks: draw == 3 },
            });
        }
        self.crash_with(&survivals);
    }

    /// Cuts the power: of the unflushed writes, oldest first, these parts survive; those without
    /// an entry are lost.
    pub fn crash_with(&mut self, survivals: &[Survival]) {
        let unflushed = std::mem::take(&mut self.unflushed);
        for (write, survival) in unflushed.iter().zip(survivals) {
            let sectors = write.data.len() / SECTOR_BYTES;
            let mut torn = match survival {
                Survival::Torn { seed, .. } => Chance::new(*seed),
                _ => Chance::new(0),
            };
            let mut kept = false;
            for sector in 0..sectors {
                kept = match survival {
                    Survival::Lost => false,
                    Survival::Whole => true,
                    Survival::Head(count) => sector < *count,
                    Survival::Tail(count) => sector >= *count,
                    Survival::Torn { blocks: true, .. } if !sector.is_multiple_of(BLOCK_BYTES / SECTOR_BYTES) => kept,
                    Survival::Torn { .. } => torn.below(2) == 0,
                };
                if kept {
                    let at = sector * SECTOR_BYTES;
                    let offset = write.offset + at as u64;
                    copy_in(&mut self.durable, write.area, offset, &write.data[at..at + SECTOR_BYTES]);
                }
            }
        }
        self.current = self.durable.clone();
        self.in_flight.clear();
        self.faults = SimFaults::default();
        self.fail_at.clear();
    }

    /// Ends the process that uses the disk: of the writes in flight any subset, drawn from the seed,
    /// has reached the medium, which keeps all that has completed, flushed or not. Planned faults
    /// are forgotten.
    pub fn kill(&mut self) {
        let mut unflushed = std::mem::take(&mut self.unflushed);
        unflushed.retain(|write| write.completed || self.chance.below(2) == 0);
        self.current = self.durable.clone();
        for write in &mut unflushed {
            write.completed = true;
            copy_in(&mut self.current, write.area, write.offset, &write.data);
        }
        self.unflushed = unflushed;
        self.in_flight.clear();
        self.faults = SimFaults::default();
        self.fail_at.clear();
    }

    /// Whether this operation is one of those that were planned to fail.
    fn is_planned_failure(&mut self, op: SimOp) -> bool {
        let mut fails = false;
        self.fail_at.retain_mut(|(kind, left)| {
            if *kind != op {
                return true;
            }
            fails |= *left == 0;
            *left = left.wrapping_sub(1);
            *left != u64::MAX
        });
        fails
    }

    fn trace_moment(&mut self) {
        if let Some(mut trace) = self.trace.take() {
            trace.push(self.clone());
            self.trace = Some(trace);
        }
    }

    fn exists(&self, area: Area, end: u64) -> bool {
        match area {
            Area::Super => end <= crate::disk::SUPER_BYTES,
            Area::Segment(segment) => self.segments.get(&segment).is_some_and(|bytes| end <= *bytes),
        }
    }

    fn submit_write(&mut self, area: Area, offset: u64, parts: &[bytes::Bytes], durable: bool) -> Work {
        let data: Vec<u8> = parts.concat();
        if !self.exists(area, offset + data.len() as u64) {
            return Work::Fail(DiskError::NoArea(area));
        }
        self.trace_moment();
        if self.chance.per_million(self.faults.lost_write) {
            return Work::Write { unflushed: None, durable: false };
        }
        let mut offset = offset;
        if self.chance.per_million(self.faults.misdirected_write)
            && self.exists(area, offset + (data.len() + BLOCK_BYTES) as u64)
        {
            offset += BLOCK_BYTES as u64;
        }
        copy_in(&mut self.current, area, offset, &data);
        let id = self.next_write;
        self.next_write += 1;
        let fails = self.is_planned_failure(SimOp::Write) || self.chance.per_million(self.faults.write_error);
        let data = Arc::new(data);
        self.unflushed.push(Unflushed { id, area, offset, data, completed: false, given_up: fails });
        if fails { Work::Fail(DiskError::Errno(EIO)) } else { Work::Write { unflushed: Some(id), durable } }
    }

    /// Makes these writes durable, or gives them up.
    fn finish_sync(&mut self, writes: &[u64]) -> Result<(), DiskError> {
        self.trace_moment();
        if self.is_planned_failure(SimOp::Sync) || self.chance.per_million(self.faults.sync_error) {
            for write in self.unflushed.iter_mut().filter(|write| writes.contains(&write.id)) {
                write.given_up = true;
            }
            return Err(DiskError::Errno(EIO));
        }
        if self.chance.per_million(self.faults.lying_sync) {
            return Ok(());
        }
        let unflushed = std::mem::take(&mut self.unflushed);
        for write in unflushed {
            if writes.contains(&write.id) && !write.given_up {
                copy_in(&mut self.durable, write.area, write.offset, &write.data);
                // An older write that was given up no longer comes through where this one is durable.
                self.unflushed.iter_mut().for_each(|older| older.cover(&write));
            } else {
                self.unflushed.push(write);
            }
        }
        Ok(())
    }

    fn finish(&mut self, work: Work) -> Result<Done, DiskError> {
        match work {
            Work::Fail(error) => Err(error),
            Work::Write { unflushed, durable } => {
                if let Some(write) = self.unflushed.iter_mut().find(|write| Some(write.id) == unflushed) {
                    write.completed = true;
                }
                if durable {
                    self.finish_sync(unflushed.as_slice())?;
                }
                Ok(Done::Written)
            }
            Work::Read { area, offset, mut buffer } => {
                if self.is_planned_failure(SimOp::Read) || self.chance.per_million(self.faults.read_error) {
                    return Err(DiskError::Errno(EIO));
                }
                copy_out(&self.current, area, offset, &mut buffer);
                Ok(Done::Read(buffer))
            }
            Work::Sync { writes } => self.finish_sync(&writes).map(|()| Done::Synced),
            Work::Create { segment, bytes, fill } => {
                if self.segments.contains_key(&segment) {
                    return Err(DiskError::Errno(17));
                }
                if self.segments.len() >= self.segments_max as usize {
                    return Err(DiskError::NoSpace);
                }
                self.segments.insert(segment, bytes);
                self.fills.insert(segment, fill);
                Ok(Done::Created)
            }
            Work::Remove { segment } => {
                self.fills.remove(&segment);
                self.segments.remove(&segment).ok_or(DiskError::NoArea(Area::Segment(segment)))?;
                let area = Area::Segment(segment);
                self.durable.retain(|(place, _), _| *place != area);
                self.current.retain(|(place, _), _| *place != area);
                self.unflushed.retain(|write| write.area != area);
                Ok(Done::Removed)
            }
        }
    }
}

fn copy_in(pages: &mut Pages, area: Area, offset: u64, data: &[u8]) {
    let mut done = 0;
    while done < data.len() {
        let at = offset + done as u64;
        let within = (at % BLOCK_BYTES as u64) as usize;
        let count = (BLOCK_BYTES - within).min(data.len() - done);
        let key = (area, at / BLOCK_BYTES as u64);
        let page = pages.entry(key).or_insert_with(|| Arc::new([0; BLOCK_BYTES]));
        Arc::make_mut(page)[within..within + count].copy_from_slice(&data[done..done + count]);
        done += count;
    }
}

fn copy_out(pages: &Pages, area: Area, offset: u64, out: &mut [u8]) {
    out.fill(0);
    let mut done = 0;
    while done < out.len() {
        let at = offset + done as u64;
        let within = (at % BLOCK_BYTES as u64) as usize;
        let count = (BLOCK_BYTES - within).min(out.len() - done);
        if let Some(page) = pages.get(&(area, at / BLOCK_BYTES as u64)) {
            out[done..done + count].copy_from_slice(&page[within..within + count]);
        }
        done += count;
    }
}

impl Disk for SimDisk {
    fn segments(&self) -> Vec<(SegmentIndex, u64)> {
        self.segments.iter().map(|(segment, bytes)| (*segment, *bytes)).collect()
    }

    fn room(&self) -> usize {
        OPERATIONS_MAX - self.in_flight.len()
    }

    fn submit(&mut self, operation: Operation) {
        assert!(self.room() > 0, "the driver asks for room first");
        operation.action.assert_aligned();
        let work = match operation.action {
            Action::Write { area, offset, parts, durable } => self.submit_write(area, offset, &parts, durable),
            Action::Read { area, offset, buffer } => {
                if self.exists(area, offset + buffer.len() as u64) {
                    Work::Read { area, offset, buffer }
                } else {
                    Work::Fail(DiskError::NoArea(area))
                }
            }
            Action::Sync { area } => Work::Sync {
                writes: self
                    .unflushed
                    .iter()
                    .filter(|write| write.area == area && write.completed)
                    .map(|write| write.id)
                    .collect(),
            },
            Action::Create { segment, bytes, fill } => Work::Create { segment, bytes, fill },
            Action::Remove { segment } => Work::Remove { segment },
        };
        self.in_flight.push_back((operation.id, work));
    }

    fn reap(&mut self, timeout: Option<Duration>, completions: &mut Vec<Completion>) {
        let before = completions.len();
        // Each call completes a part of what is in flight, so that orders vary and crashes between are possible.
        while !self.in_flight.is_empty() {
            let index = if self.shuffle { self.chance.below(self.in_flight.len() as u64) as usize } else { 0 };
            let (id, work) = self.in_flight.remove(index).expect("the index is below the length");
            let result = self.finish(work);
            completions.push(Completion { id, result });
            if self.shuffle && self.chance.below(4) == 0 {
                break;
            }
        }
        let mut woken = self.wake.woken.lock().unwrap_or_else(PoisonError::into_inner);
        if completions.len() == before && timeout != Some(Duration::ZERO) && Arc::strong_count(&self.wake) > 1 {
            woken = match timeout {
                None => self.wake.bell.wait_while(woken, |woken| !*woken).unwrap_or_else(PoisonError::into_inner),
                Some(timeout) => {
                    self.wake
                        .bell
                        .wait_timeout_while(woken, timeout, |woken| !*woken)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                }
            };
        }
        *woken = false;
    }

    fn waker(&self) -> Waker {
        let wake = Arc::clone(&self.wake);
        Waker::new(move || {
            *wake.woken.lock().unwrap_or_else(PoisonError::into_inner) = true;
            wake.bell.notify_all();
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AREA: Area = Area::Super;

    fn write(disk: &mut SimDisk, id: u64, offset: u64, byte: u8) {
        let mut block = plinth_protocol::buffer::AlignedBuf::zeroed(BLOCK_BYTES);
        block.fill(byte);
        let action = Action::Write { area: AREA, offset, parts: vec![block.freeze()], durable: false };
        disk.submit(Operation { id: OpId(id), action });
    }

    fn finish(disk: &mut SimDisk) -> Vec<Completion> {
        let mut completions = Vec::new();
        while !disk.in_flight.is_empty() {
            disk.reap(Some(Duration::ZERO), &mut completions);
        }
        completions
    }

    fn sync(disk: &mut SimDisk) -> bool {
        disk.submit(Operation { id: OpId(99), action: Action::Sync { area: AREA } });
        finish(disk).iter().all(|completion| completion.result.is_ok())
    }

    #[test]
    fn only_writes_that_completed_before_the_sync_are_durable() {
        let mut disk = SimDisk::new(1, 1);
        disk.set_shuffle(false);
        write(&mut disk, 1, 0, 7);
        finish(&mut disk);
        write(&mut disk, 2, 4096, 8);
        assert!(sync(&mut disk));
        disk.crash_with(&[]);
        assert_eq!(disk.durable_bytes(AREA, 0, 1), [7]);
        assert_eq!(disk.durable_bytes(AREA, 4096, 1), [0], "submitted before the sync, completed with it");
    }

    #[test]
    fn a_second_sync_does_not_save_what_the_first_has_failed() {
        let mut disk = SimDisk::new(1, 1);
        write(&mut disk, 1, 0, 7);
        finish(&mut disk);
        disk.fail_at(SimOp::Sync, 0);
        assert!(!sync(&mut disk));
        assert!(sync(&mut disk));
        disk.crash_with(&[]);
        assert_eq!(disk.durable_bytes(AREA, 0, 1), [0]);
    }

    #[test]
    fn a_write_that_was_given_up_never_covers_a_later_durable_one() {
        let mut disk = SimDisk::new(1, 1);
        disk.fail_at(SimOp::Sync, 0);
        write(&mut disk, 1, 0, 7);
        finish(&mut disk);
        assert!(!sync(&mut disk));
        write(&mut disk, 2, 0, 8);
        finish(&mut disk);
        assert!(sync(&mut disk));
        disk.crash_with(&[Survival::Whole, Survival::Whole]);
        assert_eq!(disk.durable_bytes(AREA, 0, 1), [8]);
    }

    #[test]
    fn a_killed_process_leaves_what_has_completed() {
        let mut disk = SimDisk::new(1, 1);
        write(&mut disk, 1, 0, 7);
        finish(&mut disk);
        disk.kill();
        assert_eq!(disk.unflushed().len(), 1, "still not flushed");
        let mut whole = disk.clone();
        whole.crash_with(&[Survival::Whole]);
        assert_eq!(whole.durable_bytes(AREA, 0, 1), [7]);
        disk.crash_with(&[]);
        assert_eq!(disk.durable_bytes(AREA, 0, 1), [0]);
    }

    #[test]
    fn a_torn_write_keeps_the_sectors_that_survive() {
        let mut disk = SimDisk::new(1, 1);
        write(&mut disk, 1, 0, 7);
        let mut tail = disk.clone();
        disk.crash_with(&[Survival::Head(2)]);
        assert_eq!(disk.durable_bytes(AREA, 0, 1536)[1023..1025], [7, 0]);
        tail.crash_with(&[Survival::Tail(2)]);
        assert_eq!(tail.durable_bytes(AREA, 0, 1536)[1023..1025], [0, 7]);
    }
}
