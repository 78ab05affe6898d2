//! Staging: heads and bodies lie side by side in pooled, aligned memory; payloads are only referred
//! to. One run of a segment thus becomes one vectored write of few parts.

use crate::disk::{Area, WRITE_PARTS_MAX};
use bytes::Bytes;
use plinth_protocol::buffer::{AlignedBuf, BLOCK_BYTES, round_up_to_block};
use plinth_protocol::pool::BufferPool;
use std::sync::Arc;

/// Least bytes of an arena.
const ARENA_BYTES: usize = 256 << 10;

/// A piece of staged memory: whole blocks of one arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    arena: usize,
    start: usize,
    end: usize,
}

/// The staged memory of one batch.
pub(crate) struct Staging {
    pool: Arc<BufferPool>,
    arenas: Vec<AlignedBuf>,
    used: usize,
}

impl Staging {
    /// Makes a staging area that holds nothing yet.
    pub fn new(pool: Arc<BufferPool>) -> Staging {
        Staging { pool, arenas: Vec::new(), used: 0 }
    }

    /// Returns a piece of `bytes`, rounded up to whole blocks. Its content is arbitrary.
    pub fn take(&mut self, bytes: usize) -> Piece {
        let bytes = round_up_to_block(bytes);
        if self.arenas.last().is_none_or(|arena| self.used + bytes > arena.len()) {
            self.arenas.push(self.pool.take(bytes.max(ARENA_BYTES)));
            self.used = 0;
        }
        let start = self.used;
        self.used += bytes;
        Piece { arena: self.arenas.len() - 1, start, end: self.used }
    }

    /// Returns a block of zeros.
    pub fn take_zeroed_block(&mut self) -> Piece {
        let piece = self.take(BLOCK_BYTES);
        self.bytes_mut(piece).fill(0);
        piece
    }

    /// Returns a piece's bytes.
    pub fn bytes_mut(&mut self, piece: Piece) -> &mut [u8] {
        &mut self.arenas[piece.arena][piece.start..piece.end]
    }

    /// Ends the staging: the arenas as shareable bytes.
    fn freeze(&mut self) -> Vec<Bytes> {
        self.arenas.drain(..).map(AlignedBuf::freeze).collect()
    }
}

enum Part {
    Staged(Piece),
    Payload(Bytes),
}

struct Run {
    area: Area,
    start: u64,
    end: u64,
    parts: Vec<Part>,
}

/// One contiguous write, ready for the disk.
pub(crate) struct RunWrite {
    pub area: Area,
    pub offset: u64,
    pub parts: Vec<Bytes>,
}

/// The writes of a batch as they take shape: contiguous pieces grow together.
#[derive(Default)]
pub(crate) struct Runs(Vec<Run>);

impl Runs {
    fn run(&mut self, area: Area, offset: u64, bytes: u64) -> &mut Run {
        let found = self.0.iter().rposition(|run| run.area == area && run.end == offset);
        let index = found.unwrap_or_else(|| {
            self.0.push(Run { area, start: offset, end: offset, parts: Vec::new() });
            self.0.len() - 1
        });
        let run = &mut self.0[index];
        run.end += bytes;
        run
    }

    /// Adds staged memory.
    pub fn add_piece(&mut self, area: Area, offset: u64, piece: Piece) {
        let run = self.run(area, offset, (piece.end - piece.start) as u64);
        match run.parts.last_mut() {
            Some(Part::Staged(last)) if last.arena == piece.arena && last.end == piece.start => last.end = piece.end,
            _ => run.parts.push(Part::Staged(piece)),
        }
    }

    /// Adds a payload as it is.
    pub fn add_payload(&mut self, area: Area, offset: u64, payload: Bytes) {
        let run = self.run(area, offset, payload.len() as u64);
        run.parts.push(Part::Payload(payload));
    }

    /// Freezes the staged memory and returns the writes, each of at most [`WRITE_PARTS_MAX`] parts.
    pub fn finish(self, staging: &mut Staging) -> Vec<RunWrite> {
        let arenas = staging.freeze();
        let mut writes = Vec::with_capacity(self.0.len());
        for run in self.0 {
            let mut offset = run.start;
            let mut parts = Vec::with_capacity(run.parts.len().min(WRITE_PARTS_MAX));
            let mut bytes = 0;
            for part in run.parts {
                if parts.len() == WRITE_PARTS_MAX {
                    writes.push(RunWrite { area: run.area, offset, parts: std::mem::take(&mut parts) });
                    offset += bytes;
                    bytes = 0;
                }
                let part = match part {
                    Part::Staged(piece) => arenas[piece.arena].slice(piece.start..piece.end),
                    Part::Payload(payload) => payload,
                };
                bytes += part.len() as u64;
                parts.push(part);
            }
            writes.push(RunWrite { area: run.area, offset, parts });
        }
        writes
    }
}
