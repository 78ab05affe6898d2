//! Checkpoints of the index, written in steps while work goes on.
//!
//! A checkpoint is fuzzy: its parts show the index at different moments after its mark. Replaying
//! the log from the mark on top of it ends in the same state, because every step of the replay sets
//! what it touches (DESIGN.md has the argument).

use super::{Effect, Engine, Ticket, place_of};
use crate::checkpoint::{
    KIND_CHECKPOINT_PART, KIND_CHECKPOINT_ROOT, PART_ROWS_MAX, PART_SEGMENTS_MAX, PartPlace, PartRows, RootBody,
    SegmentLife, Table, encode_note,
};
use crate::dead::DeadRecord;
use crate::index::Place;
use crate::planted::{Bug, planted};
use crate::stats::add;
use bytes::Bytes;
use plinth_journal::{Append, Checkpoint, Journal, Mark, Placed, Refused, SegmentState, Stream};
use plinth_protocol::FragmentId;
use plinth_protocol::wire::Wire;
use std::time::Instant;

/// A checkpoint is worth its bytes when the log has grown by so many times its size.
const LOG_TO_INDEX_RATIO: u64 = 16;
/// Records replayed at a start from which a checkpoint is written at once: about a second of reading.
const REPLAYED_RECORDS_MAX: u64 = 65_536;
/// Parts that are appended and not durable yet, at most: bounds memory.
const PARTS_IN_FLIGHT_MAX: usize = 4;

/// What a checkpoint under way writes next.
enum Step {
    Segments {
        rest: Vec<SegmentLife>,
    },
    Index {
        cursor: Option<FragmentId>,
        ended: bool,
    },
    Dead {
        rest: Vec<DeadRecord>,
    },
    Root,
    /// The root is appended; when durable, it is set.
    RootDurable,
    /// The journal has been asked to start its next recovery here.
    Setting,
}

struct Writing {
    number: u64,
    mark: Mark,
    step: Step,
    parts: Vec<PartPlace>,
    parts_in_flight: usize,
    fragments: u64,
    root: Option<Place>,
}

/// Where checkpoints stand.
#[derive(Default)]
pub(super) struct Checkpointing {
    writing: Option<Writing>,
    /// Number of the last checkpoint that was begun.
    last: u64,
    /// Records of the checkpoint that is in force, root included.
    places: Vec<Place>,
    /// Bytes that the journal had written when the last checkpoint was begun.
    written_bytes: u64,
    /// Changes of the index since then.
    changes: u64,
    /// Whether somebody has asked for one.
    is_asked: bool,
}

impl Checkpointing {
    /// Takes over a checkpoint that recovery has loaded, and how many records were replayed on top:
    /// the next start shall not have to do so again.
    pub(super) fn loaded(number: u64, places: Vec<Place>, replayed: u64) -> Self {
        let is_asked = replayed >= REPLAYED_RECORDS_MAX;
        Checkpointing { last: number, places, changes: replayed, is_asked, ..Checkpointing::default() }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.writing.is_none()
    }

    /// Notes a change of the index.
    pub(super) fn note_change(&mut self) {
        self.changes += 1;
    }

    /// Returns whether anything has changed since the last checkpoint was begun.
    pub(super) fn has_changes(&self) -> bool {
        self.changes > 0
    }

    /// Returns whether a checkpoint is asked for, or the journal has written `bytes` since the last.
    pub(super) fn is_due(&self, journal: &Journal, bytes: u64) -> bool {
        let grown = journal.stats().bytes >= self.written_bytes + bytes;
        self.writing.is_none() && (grown || self.is_asked)
    }
}

impl<T: Ticket> Engine<T> {
    /// Asks for a checkpoint; it begins with the next turn.
    pub fn request_checkpoint(&mut self) {
        self.checkpointing.is_asked = true;
    }

    /// Begins a checkpoint of everything that is durable now. Only within a turn, when all that the
    /// journal has told is applied: the mark must not run ahead of the index.
    pub(super) fn begin_checkpoint(&mut self, now: Instant) {
        if self.checkpointing.writing.is_some() || self.fenced.is_some() {
            return;
        }
        let used = self.journal.segments().filter(|info| {
            matches!(info.state, SegmentState::Open(_) | SegmentState::Sealed(_) | SegmentState::Quarantined)
        });
        let life = |info: plinth_journal::SegmentInfo| SegmentLife {
            segment: info.segment.0,
            life: info.generation.0,
            damaged: self.damaged_segments.contains(&info.segment.0),
        };
        let lives = used.map(life).collect::<Vec<_>>();
        let mark = self.journal.mark();
        tracing::debug!(disk = %self.disk, sequence = %mark.sequence, "checkpoint begun");
        self.checkpointing.is_asked = false;
        self.checkpointing.last += 1;
        self.checkpointing.changes = 0;
        self.checkpointing.written_bytes = self.journal.stats().bytes;
        self.checkpointing.writing = Some(Writing {
            number: self.checkpointing.last,
            mark,
            step: Step::Segments { rest: lives },
            parts: Vec::new(),
            parts_in_flight: 0,
            fragments: 0,
            root: None,
        });
        self.step_checkpoint(now);
    }

    /// Writes the next part of a checkpoint under way; begins one where it is due.
    pub(super) fn step_checkpoint(&mut self, now: Instant) {
        let interval = self.options.checkpoint_log_bytes.max(self.index.memory_bytes() as u64 * LOG_TO_INDEX_RATIO);
        if self.checkpointing.is_due(&self.journal, interval) && self.phase == super::Phase::Serving {
            return self.begin_checkpoint(now);
        }
        let Some(mut writing) = self.checkpointing.writing.take() else { return };
        let refused = if writing.parts_in_flight >= PARTS_IN_FLIGHT_MAX {
            None
        } else {
            self.write_step(now, &mut writing).err()
        };
        match refused {
            None | Some(Refused::Busy) => self.checkpointing.writing = Some(writing),
            Some(refused) => self.give_up_checkpoint(writing, &refused),
        }
    }

    fn write_step(&mut self, now: Instant, writing: &mut Writing) -> Result<(), Refused> {
        match &mut writing.step {
            Step::Segments { rest } => {
                let count = rest.len().min(PART_SEGMENTS_MAX);
                let mut rows = PartRows::new(Table::Segments, count);
                rest[..count].iter().for_each(|life| rows.push_segment(*life));
                let place = self.append_part(now, writing.number, rows)?;
                rest.drain(..count);
                if rest.is_empty() {
                    writing.step = Step::Index { cursor: None, ended: false };
                }
                note_part(writing, place);
            }
            Step::Index { cursor, ended } => {
                let mut rows = PartRows::new(Table::Index, self.index.count().min(PART_ROWS_MAX));
                let (mut last, mut count) = (*cursor, 0);
                for entry in self.index.iter_after(*cursor).take(PART_ROWS_MAX.min(self.index.count())) {
                    rows.push_entry(&entry);
                    last = Some(entry.fragment);
                    count += 1;
                }
                *ended = count < PART_ROWS_MAX;
                if count > 0 {
                    let place = self.append_part(now, writing.number, rows)?;
                    let Step::Index { cursor, ended } = &mut writing.step else { unreachable!("still this step") };
                    *cursor = last;
                    writing.fragments += count as u64;
                    let ended = *ended;
                    note_part(writing, place);
                    if !ended {
                        return Ok(());
                    }
                }
                writing.step = Step::Dead { rest: self.dead.iter().collect() };
            }
            Step::Dead { rest } => {
                let count = rest.len().min(PART_ROWS_MAX);
                if count > 0 {
                    let mut rows = PartRows::new(Table::Dead, count);
                    rest[..count].iter().for_each(|record| rows.push_dead(record));
                    let place = self.append_part(now, writing.number, rows)?;
                    rest.drain(..count);
                    let ended = rest.is_empty();
                    note_part(writing, place);
                    if !ended {
                        return Ok(());
                    }
                }
                writing.step = Step::Root;
            }
            Step::Root if writing.parts_in_flight == 0 => self.append_root(now, writing)?,
            Step::Root | Step::RootDurable | Step::Setting => {}
        }
        Ok(())
    }

    fn append_part(&mut self, now: Instant, number: u64, rows: PartRows) -> Result<Place, Refused> {
        let (body, payload) = rows.finish(number);
        let body = body.to_wire();
        let append = Append {
            stream: Stream::Checkpoint,
            kind: KIND_CHECKPOINT_PART,
            body: &body,
            payload: payload.clone(),
            reserve: true,
        };
        let placed = self.journal.append(append)?;
        let place = place_of(placed.position, body.len(), payload.len());
        self.note_checkpoint_record(now, placed, place, Effect::CheckpointPart { place });
        Ok(place)
    }

    fn append_root(&mut self, now: Instant, writing: &mut Writing) -> Result<(), Refused> {
        let body = RootBody {
            checkpoint: writing.number,
            replay_from: writing.mark.sequence.0 + 1,
            parts: writing.parts.clone(),
            fragments: writing.fragments,
        };
        let body = body.to_wire();
        let append = Append {
            stream: Stream::Checkpoint,
            kind: KIND_CHECKPOINT_ROOT,
            body: &body,
            payload: Bytes::new(),
            reserve: true,
        };
        let placed = self.journal.append(append)?;
        let place = place_of(placed.position, body.len(), 0);
        self.note_checkpoint_record(now, placed, place, Effect::CheckpointRoot { place });
        writing.root = Some(place);
        writing.step = Step::RootDurable;
        Ok(())
    }

    fn note_checkpoint_record(&mut self, now: Instant, placed: Placed, place: Place, effect: Effect<T>) {
        self.space.add_checkpoint(place.segment, place.record_bytes());
        self.note_append(now, placed, effect);
    }

    pub(super) fn apply_checkpoint_part(&mut self, place: Place) {
        self.space.end(place.segment);
        if let Some(writing) = &mut self.checkpointing.writing {
            writing.parts_in_flight = writing.parts_in_flight.saturating_sub(1);
        }
    }

    /// The root is durable, and all parts with it: the journal may start its next recovery here.
    pub(super) fn apply_checkpoint_root(&mut self, place: Place) {
        self.space.end(place.segment);
        let Some(mut writing) = self.checkpointing.writing.take() else { return };
        if planted(Bug::CheckpointMarkLate) {
            writing.mark = self.journal.mark();
        }
        let checkpoint = Checkpoint { mark: writing.mark, note: encode_note(place) };
        match self.journal.set_checkpoint(checkpoint) {
            Ok(()) => {
                writing.step = Step::Setting;
                self.checkpointing.writing = Some(writing);
            }
            Err(refused) => self.give_up_checkpoint(writing, &refused),
        }
    }

    /// The checkpoint is in force: the one before it is dead.
    pub(super) fn handle_checkpoint_set(&mut self) {
        let Some(writing) = self.checkpointing.writing.take() else { return };
        let root = writing.root.expect("a checkpoint is set by its root");
        let places = writing.parts.iter().map(Place::from).chain([root]).collect();
        for place in std::mem::replace(&mut self.checkpointing.places, places) {
            self.space.remove_checkpoint(place.segment, place.record_bytes());
        }
        self.reclaim_due = true;
        add(&self.stats.checkpoints, 1);
    }

    /// The journal has no room for it: what was written of it is dead, the old one stays in force.
    fn give_up_checkpoint(&mut self, writing: Writing, refused: &Refused) {
        tracing::warn!(disk = %self.disk, %refused, "checkpoint given up");
        for place in writing.parts.iter().map(Place::from).chain(writing.root) {
            self.space.remove_checkpoint(place.segment, place.record_bytes());
        }
    }
}

fn note_part(writing: &mut Writing, place: Place) {
    writing.parts.push(place.into());
    writing.parts_in_flight += 1;
}
