//! A batch: records that are written together and made durable by one sync.

use crate::disk::{Area, SegmentIndex};
use crate::journal::Append;
use crate::record::{
    Generation, HEAD_BYTES, Head, KIND_SEAL, Position, STREAM_COUNT, Sequence, Stream, chain_hash, head_and_body_bytes,
};
use crate::segment::{SegmentHead, records_end};
use crate::staging::{Piece, RunWrite, Runs, Staging};
use crate::superblock::{StreamEnd, Superblock};
use bytes::Bytes;
use plinth_protocol::pool::BufferPool;
use std::sync::Arc;

/// Where a stream's next record goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tail {
    pub segment: SegmentIndex,
    pub generation: Generation,
    pub offset: u32,
}

/// A segment that is opened by the batch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Opening {
    pub stream: Stream,
    pub segment: SegmentIndex,
    pub generation: Generation,
    pub prior: Option<(SegmentIndex, Generation)>,
}

struct Staged {
    piece: Piece,
    head: Head,
    payload: Bytes,
}

/// Records that gather for their sync.
pub(crate) struct Batch {
    staging: Staging,
    records: Vec<Staged>,
    openings: Vec<(Opening, Piece)>,
    releases: Vec<(SegmentIndex, Generation)>,
    /// Bytes of the records.
    pub bytes: usize,
}

/// A batch on its way to the disk.
pub(crate) struct Flying {
    /// The last sequence; that of the batch before where there is no record in it.
    pub last: Sequence,
    pub records: u64,
    pub bytes: usize,
    pub writes_left: usize,
    /// What must be synced when the writes are done; empty where one durable write does it all.
    pub areas: Vec<Area>,
    pub syncs_left: usize,
    pub syncs: u64,
    pub opened: Vec<SegmentIndex>,
    pub sealed: Vec<(SegmentIndex, Stream)>,
    pub releases: Vec<SegmentIndex>,
    /// The streams' ends once the batch is durable.
    pub ends: [Option<StreamEnd>; STREAM_COUNT],
    /// The floors once the batch is durable.
    pub floors: [Sequence; STREAM_COUNT],
}

impl Batch {
    /// Makes an empty batch over pooled memory.
    pub fn new(pool: &Arc<BufferPool>) -> Batch {
        Batch {
            staging: Staging::new(pool.clone()),
            records: Vec::new(),
            openings: Vec::new(),
            releases: Vec::new(),
            bytes: 0,
        }
    }

    /// Returns the number of records in it, seals and mounts included.
    pub fn record_count(&self) -> usize {
        self.records.len()
    }

    /// Adds the heads of a segment that its next record opens.
    pub fn add_opening(&mut self, opening: Opening) {
        let piece = self.staging.take_zeroed_block();
        self.openings.push((opening, piece));
    }

    /// Adds the free heads of a segment.
    pub fn add_release(&mut self, segment: SegmentIndex, generation: Generation) {
        self.releases.push((segment, generation));
    }

    /// Stages a record: the body is copied behind the place of its head, which is written when the
    /// batch is launched. Returns the payload's offset.
    pub fn add_record(
        &mut self,
        append: Append<'_>,
        sequence: Sequence,
        position: Position,
        generation: Generation,
        bytes: usize,
    ) -> u32 {
        let head = Head {
            kind: append.kind,
            stream: append.stream,
            body_bytes: append.body.len() as u32,
            payload_bytes: append.payload.len() as u32,
            body_crc: crc32fast::hash(append.body),
            payload_crc: crc32fast::hash(&append.payload),
            mount: 0,
            sequence,
            generation,
            position,
            stamp: 0,
            chain: 0,
            floors: [Sequence(0); STREAM_COUNT],
        };
        let piece = self.staging.take(head_and_body_bytes(append.body.len()));
        let block = self.staging.bytes_mut(piece);
        let body_end = HEAD_BYTES + append.body.len();
        block[HEAD_BYTES..body_end].copy_from_slice(append.body);
        block[body_end..].fill(0);
        self.records.push(Staged { piece, head, payload: append.payload });
        self.bytes += bytes;
        head.payload_offset()
    }

    /// Writes heads and chain, and returns the batch as writes. `floors` and `ends` are those of
    /// the batch before, which is durable.
    pub fn launch(
        mut self,
        superblock: &Superblock,
        chains: &mut [u64; STREAM_COUNT],
        floors: [Sequence; STREAM_COUNT],
        ends: [Option<StreamEnd>; STREAM_COUNT],
        durable: Sequence,
    ) -> (Flying, Vec<RunWrite>) {
        let mut flying = Flying {
            last: self.records.last().map_or(durable, |record| record.head.sequence),
            records: self.records.len() as u64,
            bytes: self.bytes,
            writes_left: 0,
            areas: Vec::new(),
            syncs_left: 0,
            syncs: 1,
            opened: self.openings.iter().map(|(opening, _)| opening.segment).collect(),
            sealed: Vec::new(),
            releases: self.releases.iter().map(|(segment, _)| *segment).collect(),
            ends,
            floors,
        };
        let mut runs = Runs::default();
        self.launch_segment_heads(&mut runs, superblock, floors);
        for staged in &mut self.records {
            let head = &mut staged.head;
            let stream = head.stream.index();
            (head.mount, head.stamp) = (superblock.mount, superblock.stamp);
            (head.chain, head.floors) = (chains[stream], floors);
            let block = self.staging.bytes_mut(staged.piece);
            head.encode(block);
            chains[stream] = chain_hash(block);
            let mut offset = head.position.offset + head.record_bytes();
            if head.kind == KIND_SEAL {
                flying.sealed.push((head.position.segment, head.stream));
                // Nothing follows a seal: the stream's end is the segment's.
                offset = records_end(superblock.segment_bytes);
            }
            flying.floors[stream] = head.sequence;
            flying.ends[stream] = Some(StreamEnd {
                segment: head.position.segment,
                generation: head.generation,
                offset,
                sequence: head.sequence,
                chain: chains[stream],
            });
            let area = Area::Segment(head.position.segment);
            let start = u64::from(head.position.offset);
            runs.add_piece(area, start, staged.piece);
            if !staged.payload.is_empty() {
                let payload = std::mem::take(&mut staged.payload);
                runs.add_payload(area, start + u64::from(head.payload_offset()), payload);
            }
        }
        let writes = runs.finish(&mut self.staging);
        flying.writes_left = writes.len();
        if writes.len() > 1 {
            flying.areas = writes.iter().map(|write| write.area).collect();
            flying.areas.sort_unstable();
            flying.areas.dedup();
            flying.syncs = flying.areas.len() as u64;
        }
        (flying, writes)
    }

    /// Writes both heads of each segment that is opened or freed.
    fn launch_segment_heads(&mut self, runs: &mut Runs, superblock: &Superblock, floors: [Sequence; STREAM_COUNT]) {
        let mut heads = Vec::with_capacity(self.openings.len() + self.releases.len());
        let blank = SegmentHead {
            used: false,
            stream: Stream::Main,
            segment: SegmentIndex(0),
            segment_bytes: superblock.segment_bytes,
            mount: superblock.mount,
            stamp: superblock.stamp,
            generation: Generation(0),
            prior: None,
            floors,
        };
        for (opening, piece) in &self.openings {
            let Opening { stream, segment, generation, prior } = *opening;
            heads.push((SegmentHead { used: true, stream, segment, generation, prior, ..blank }, *piece));
        }
        for (segment, generation) in &self.releases {
            let (segment, generation) = (*segment, *generation);
            heads.push((SegmentHead { segment, generation, ..blank }, self.staging.take_zeroed_block()));
        }
        for (head, piece) in heads {
            head.encode(self.staging.bytes_mut(piece));
            let area = Area::Segment(head.segment);
            runs.add_piece(area, 0, piece);
            runs.add_piece(area, u64::from(records_end(superblock.segment_bytes)), piece);
        }
    }
}
