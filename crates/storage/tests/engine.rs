//! What the engine promises, one fact a test.

#![allow(clippy::disallowed_methods)]

mod sim;

use bytes::Bytes;
use plinth_journal::sim::{SimFaults, SimOp};
use plinth_journal::{Append, Area, JournalError, JournalOptions, Position, Recovery, SegmentIndex, SimDisk, Stream};
use plinth_protocol::frame::seal_frame;
use plinth_protocol::storage::{IoClass, ReadFrames, StorageAction, StorageReply};
use plinth_protocol::stripe::{FragmentHeader, Owner};
use plinth_protocol::wire::Wire;
use plinth_protocol::{BucketId, Failure, FailureKind};
use plinth_storage::Engine;
use plinth_storage::tombstone::KIND_FRAGMENT;
use sim::{Content, IDENTITY, Sim, Slip, format_sim, small_options, start_of_time};
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

fn small() -> Sim {
    Sim::new(1, 64 << 10, 24, small_options())
}

fn kind<T>(result: Result<T, Failure>) -> FailureKind {
    match result {
        Ok(_) => panic!("a failure was expected"),
        Err(failure) => failure.kind,
    }
}

#[test]
fn repeated_put_is_confirmed_and_other_bytes_are_refused() {
    let mut sim = small();
    let content = Content::new(1, 9_000);
    // Side by side, while the first is not durable, and after it.
    let (first, second) = (sim.put(&content), sim.put(&content));
    let other = sim.put(&Content { variant: 1, ..content });
    assert!(sim.wait(first).is_ok() && sim.wait(second).is_ok());
    assert_eq!(kind(sim.wait(other)), FailureKind::Invalid);
    sim.put_now(&content).unwrap();
    assert_eq!(kind(sim.put_now(&Content { variant: 1, ..content })), FailureKind::Invalid);
    assert_eq!(sim.engine.stat().fragments, 1);
    assert_eq!(sim.read_now(content.id()).unwrap(), content.frames());
}

#[test]
fn damaged_or_misshapen_puts_are_refused_before_writing() {
    let mut sim = small();
    let content = Content::new(1, 9_000);
    let mut damaged = content.frames().to_vec();
    damaged[100] ^= 1;
    let mut misplaced = content.frames().to_vec();
    seal_frame(&mut misplaced, Content::new(2, 9_000).id(), 0);
    let mut wrong_stripe = content.header();
    wrong_stripe.stripe.stripe = Content::new(2, 9_000).id().stripe;
    let mut wrong_index = content.header();
    wrong_index.fragment.index = 9;
    let mut zero_sizes = content.header();
    zero_sizes.stripe.fragment_payload_bytes = 0;
    let cases = [
        (content.header(), damaged, FailureKind::Corrupt),
        (content.header(), misplaced, FailureKind::Corrupt),
        (content.header(), content.frames()[4096..].to_vec(), FailureKind::Invalid),
        (wrong_stripe, content.frames().to_vec(), FailureKind::Invalid),
        (wrong_index, content.frames().to_vec(), FailureKind::Invalid),
        (zero_sizes, content.frames().to_vec(), FailureKind::Invalid),
    ];
    for (header, frames, expected) in cases {
        let payload = plinth_protocol::buffer::into_aligned(Bytes::from(frames));
        let number = sim.ask_as(IoClass::Write, StorageAction::Put(header), payload);
        assert_eq!(kind(sim.wait(number)), expected);
    }
    assert_eq!((sim.engine.stat().fragments, sim.engine.stat().used_bytes), (0, 0));
}

#[test]
fn deleted_id_is_not_used_again_while_its_tombstone_is_needed() {
    let mut sim = small();
    let content = Content::new(1, 9_000);
    sim.put_now(&content).unwrap();
    assert_eq!(sim.delete_now(&[content.id(), Content::new(2, 1).id()]), Ok(1));
    assert_eq!(sim.delete_now(&[content.id()]), Ok(0));
    assert_eq!(kind(sim.put_now(&content)), FailureKind::Conflict);
    assert_eq!(kind(sim.read_now(content.id())), FailureKind::NotFound);
    let mut sim = sim.crash();
    assert_eq!(kind(sim.put_now(&content)), FailureKind::Conflict);
    assert_eq!(kind(sim.read_now(content.id())), FailureKind::NotFound);
}

#[test]
fn ranges_of_frames_and_headers_are_read() {
    let mut sim = Sim::new(1, 1 << 20, 24, small_options());
    let content = Content::new(1, 150_000);
    sim.put_now(&content).unwrap();
    let frames = content.frames();
    let mut read = |first, count| {
        let action = StorageAction::Read(ReadFrames { fragment: content.id(), first, count });
        let number = sim.ask_as(IoClass::Read, action, Bytes::new());
        sim.wait(number).map(|(_, frames)| frames)
    };
    assert_eq!(read(0, 1).unwrap(), frames[..65_536]);
    assert_eq!(read(1, 1).unwrap(), frames[65_536..131_072]);
    assert_eq!(read(1, 9).unwrap(), frames[65_536..]);
    assert_eq!(kind(read(3, 1)), FailureKind::Invalid);
    assert_eq!(kind(read(0, 0)), FailureKind::Invalid);
    let number = sim.stat(content.id());
    assert_eq!(sim.wait(number).unwrap().0, StorageReply::Header(content.header()));
}

#[test]
fn passed_deadline_is_refused_and_cancelled_read_is_skipped() {
    let mut sim = small();
    let content = Content::new(1, 9_000);
    sim.put_now(&content).unwrap();
    let read = || StorageAction::Read(ReadFrames { fragment: content.id(), first: 0, count: 1 });
    let late = sim.ask_with(IoClass::Read, read(), Bytes::new(), sim.now, Rc::default());
    let cancelled = Rc::new(Cell::new(true));
    let deadline = sim.now + Duration::from_secs(1);
    let skipped = sim.ask_with(IoClass::Read, read(), Bytes::new(), deadline, cancelled);
    sim.settle();
    assert_eq!(kind(sim.take(late).expect("refused")), FailureKind::Unavailable);
    assert!(sim.take(skipped).is_none(), "nobody waits, nobody is told");
    let stats = sim.engine.stats().snapshot();
    assert_eq!((stats.errors_timeout, stats.cancelled, stats.read_bytes), (1, 1, 0));
}

#[test]
fn full_queue_answers_busy_and_other_classes_go_on() {
    let mut sim = Sim::new(1, 8 << 20, 24, small_options());
    let big = |stripe| Content::new(stripe, 900_000);
    let repairs: Vec<u64> = (0..40).map(|stripe| sim.put_as(IoClass::Repair, &big(stripe))).collect();
    let busy = repairs.iter().filter_map(|number| sim.take(*number)).collect::<Vec<_>>();
    assert!(busy.len() > 15, "16 MiB hold at most 17 of these");
    for answer in busy {
        let failure = answer.unwrap_err();
        assert_eq!((failure.kind, failure.retry_after_ms.is_some()), (FailureKind::Busy, true));
    }
    let write = sim.put(&big(100));
    assert!(sim.wait(write).is_ok());
    sim.settle();
    let stored = repairs.iter().filter(|number| sim.take(**number).is_some_and(|answer| answer.is_ok())).count();
    assert_eq!(stored + sim.engine.stats().snapshot().refused_busy as usize, 40);
}

/// Flips a bit in the payload of a stored fragment, below the durable floor.
fn rot_payload(sim: &mut Sim, content: &Content) {
    sim.settle();
    let place = sim.engine.entry(content.id()).expect("the fragment is stored").place;
    let offset = u64::from(place.block) * 4096 + 4096 + 77;
    sim.disk.rot(Area::Segment(SegmentIndex(place.segment)), offset, 3);
}

#[test]
fn damaged_fragment_is_quarantined_kept_and_replaced_by_a_whole_copy() {
    let mut sim = small();
    let contents: Vec<Content> = (0..12).map(|stripe| Content::new(stripe, 9_000)).collect();
    contents.iter().for_each(|content| sim.put_now(content).unwrap());
    let bad = contents[1];
    rot_payload(&mut sim, &bad);
    assert_eq!(kind(sim.read_now(bad.id())), FailureKind::Corrupt);
    assert_eq!(sim.engine.stat().quarantined, 1);
    assert_eq!(sim.list(None, 100).0.len(), 11, "what is quarantined cannot be counted on");
    // All else in its segment goes; the damaged record stays where it is.
    let segment = sim.engine.entry(bad.id()).unwrap().place.segment;
    let others: Vec<_> = contents.iter().filter(|content| **content != bad).map(Content::id).collect();
    sim.delete_now(&others).unwrap();
    sim.settle();
    assert_eq!(sim.engine.entry(bad.id()).unwrap().place.segment, segment);
    assert_eq!(kind(sim.read_now(bad.id())), FailureKind::Corrupt);
    sim.put_now(&bad).expect("a whole copy is taken");
    assert_eq!(sim.read_now(bad.id()).unwrap(), bad.frames());
    let mut sim = sim.crash();
    assert_eq!(sim.read_now(bad.id()).unwrap(), bad.frames());
    assert_eq!(sim.engine.stat().quarantined, 0);
}

#[test]
fn quarantine_survives_a_restart() {
    let mut sim = small();
    let content = Content::new(1, 9_000);
    sim.put_now(&content).unwrap();
    rot_payload(&mut sim, &content);
    assert_eq!(kind(sim.read_now(content.id())), FailureKind::Corrupt);
    let sim = sim.restart();
    assert_eq!(sim.engine.stat().quarantined, 1);
}

#[test]
fn read_error_is_tried_again_then_told_and_never_quarantines() {
    let mut sim = small();
    let content = Content::new(1, 9_000);
    sim.put_now(&content).unwrap();
    sim.disk.fail_at(SimOp::Read, 0);
    assert_eq!(sim.read_now(content.id()).unwrap(), content.frames());
    sim.disk.set_faults(SimFaults { read_error: 1_000_000, ..SimFaults::default() });
    assert_eq!(kind(sim.read_now(content.id())), FailureKind::Unavailable);
    sim.disk.set_faults(SimFaults::default());
    assert_eq!(sim.read_now(content.id()).unwrap(), content.frames());
    assert_eq!((sim.engine.stat().quarantined, sim.engine.stats().snapshot().errors_eio), (0, 3));
}

#[test]
fn fenced_disk_refuses_writes_says_so_and_goes_on_reading() {
    for op in [SimOp::Write, SimOp::Sync] {
        let mut sim = small();
        let content = Content::new(1, 9_000);
        sim.put_now(&content).unwrap();
        sim.settle();
        sim.disk.fail_at(op, 0);
        assert_eq!(kind(sim.put_now(&Content::new(2, 9_000))), FailureKind::Unavailable);
        assert!(sim.engine.stat().fenced.is_some());
        assert_eq!(kind(sim.put_now(&Content::new(3, 9_000))), FailureKind::Unavailable);
        assert_eq!(kind(sim.delete_now(&[content.id()])), FailureKind::Unavailable);
        assert_eq!(sim.read_now(content.id()).unwrap(), content.frames());
        let mut sim = sim.restart();
        assert_eq!(sim.engine.stat().fenced, None);
        assert_eq!(sim.read_now(content.id()).unwrap(), content.frames());
    }
}

/// A disk with one record on it that this version's engine would never write.
fn disk_with_record(segment_bytes: u32, kind: u8, body: &[u8]) -> (SimDisk, Position) {
    let disk = format_sim(1, segment_bytes, 24);
    let recovery = Recovery::start(disk, Some(IDENTITY)).expect("a blank disk recovers");
    let (mut journal, mut disk) =
        recovery.resume(start_of_time(), JournalOptions::default()).expect("a blank disk mounts");
    let append = Append { stream: Stream::Main, kind, body, payload: Bytes::new(), reserve: false };
    let placed = journal.append(append).expect("an empty journal takes a record");
    let mut completions = Vec::new();
    while journal.durable() < placed.sequence {
        while let Some(operation) = journal.poll_disk(start_of_time()) {
            plinth_journal::Disk::submit(&mut disk, operation);
        }
        plinth_journal::Disk::reap(&mut disk, Some(Duration::ZERO), &mut completions);
        completions.drain(..).for_each(|completion| journal.handle_completion(start_of_time(), completion));
    }
    disk.crash_with(&[]);
    (disk, placed.position)
}

#[test]
fn record_of_unknown_kind_is_kept_counted_and_pins_its_segment() {
    let (disk, position) = disk_with_record(64 << 10, 99, b"from the future");
    let mut sim = Sim::open(disk, small_options(), start_of_time());
    assert_eq!((sim.report.foreign.len(), sim.engine.stat().quarantined), (1, 1));
    // Everything of ours in that segment dies; the segment stays.
    let contents: Vec<Content> = (0..12).map(|stripe| Content::new(stripe, 9_000)).collect();
    contents.iter().for_each(|content| sim.put_now(content).unwrap());
    sim.delete_now(&contents.iter().map(Content::id).collect::<Vec<_>>()).unwrap();
    sim.settle();
    let is_there = |sim: &Sim| {
        let head = sim.disk.durable_bytes(Area::Segment(position.segment), u64::from(position.offset), 4096);
        head.windows(15).any(|bytes| bytes == b"from the future")
    };
    assert!(is_there(&sim));
    let mut sim = sim.crash();
    assert_eq!(sim.report.foreign.len(), 1);
    // A start from a checkpoint does not look at the record again: that it is there must be known still.
    sim.checkpoint();
    let mut sim = sim.crash();
    assert_eq!((sim.report.foreign.len(), sim.engine.stat().quarantined), (0, 1));
    for round in 1..4 {
        let contents: Vec<Content> = (0..12).map(|stripe| Content::new(100 * round + stripe, 9_000)).collect();
        contents.iter().for_each(|content| sim.put_now(content).unwrap());
        sim.delete_now(&contents.iter().map(Content::id).collect::<Vec<_>>()).unwrap();
        sim.checkpoint();
        sim.settle();
    }
    assert!(is_there(&sim));
    assert_eq!(sim.crash().engine.stat().quarantined, 1);
}

#[test]
fn record_with_a_header_longer_than_any_is_kept_as_it_is() {
    let key = "k".repeat(70_000).as_str().into();
    let owner = Owner { bucket: BucketId(5), key, upload: None, part: None, ordinal: 1, offset: 0 };
    let header = FragmentHeader { owner: Some(owner), ..Content::new(1, 9_000).header() };
    let (disk, _) = disk_with_record(1 << 20, KIND_FRAGMENT, &header.to_wire());
    let sim = Sim::open(disk, small_options(), start_of_time());
    assert_eq!((sim.report.foreign.len(), sim.engine.stat().fragments), (1, 0));
}

#[test]
fn disk_of_larger_segments_than_the_index_can_count_is_refused() {
    let disk = format_sim(1, 512 << 20, 24);
    let recovery = Recovery::start(disk, Some(IDENTITY)).unwrap();
    let refused = Engine::<Slip>::recover(start_of_time(), recovery, small_options());
    assert!(matches!(refused, Err(JournalError::Invalid(_))));
}

#[test]
fn stop_after_a_replay_spares_the_next_start_the_same() {
    let mut sim = small();
    for stripe in 0..20 {
        sim.put_now(&Content::new(stripe, 9_000)).unwrap();
    }
    let sim = sim.crash();
    assert!(sim.report.replayed >= 20);
    let sim = sim.restart();
    assert_eq!((sim.report.fragments, sim.report.checkpoint), (20, Some(1)));
    assert!(sim.report.replayed < 10, "{} records replayed", sim.report.replayed);
}

#[test]
fn damaged_record_head_is_reported_and_other_fragments_go_on() {
    let mut sim = small();
    let contents: Vec<Content> = (0..12).map(|stripe| Content::new(stripe, 9_000)).collect();
    contents.iter().for_each(|content| sim.put_now(content).unwrap());
    sim.settle();
    let place = sim.engine.entry(contents[2].id()).unwrap().place;
    sim.disk.rot(Area::Segment(SegmentIndex(place.segment)), u64::from(place.block) * 4096 + 13, 1);
    let mut sim = sim.crash();
    assert_eq!(sim.report.damage.len(), 1, "{:?}", sim.report);
    assert_eq!(sim.engine.stat().quarantined, 1);
    for (number, content) in contents.iter().enumerate() {
        match sim.read_now(content.id()) {
            Ok(frames) => assert!(number != 2 && frames == content.frames()),
            Err(failure) => assert!(number == 2 && failure.kind == FailureKind::NotFound, "{number}: {failure}"),
        }
    }
}

#[test]
fn checkpoint_shortens_the_replay_and_a_damaged_one_is_replaced_by_a_scan() {
    let mut sim = small();
    let contents: Vec<Content> = (0..20).map(|stripe| Content::new(stripe, 9_000)).collect();
    contents[..15].iter().for_each(|content| sim.put_now(content).unwrap());
    sim.delete_now(&[contents[0].id()]).unwrap();
    sim.checkpoint();
    contents[15..].iter().for_each(|content| sim.put_now(content).unwrap());
    sim.settle();
    let listed = sim.list(None, 100).0;
    let mut sim = sim.crash();
    assert_eq!((sim.report.checkpoint, sim.report.fragments), (Some(1), 19));
    assert!(
        sim.report.replayed <= 12,
        "five puts, what the checkpoint wrote, what was compacted: {}",
        sim.report.replayed
    );
    assert_eq!(sim.list(None, 100).0, listed);
    // Rot in whatever looks like a checkpoint part.
    let mut rotted = 0;
    for segment in 0..24 {
        let area = Area::Segment(SegmentIndex(segment));
        for block in 1..15u64 {
            let head = sim.disk.durable_bytes(area, block * 4096, 16);
            if head.starts_with(b"PLNREC1\n") && head[10] == plinth_storage::checkpoint::KIND_CHECKPOINT_PART {
                sim.disk.rot(area, block * 4096 + 4096 + 5, 1);
                rotted += 1;
            }
        }
    }
    assert!(rotted > 0);
    let mut sim = sim.crash();
    assert!(sim.report.checkpoint_rejected.is_some());
    assert_eq!(sim.list(None, 100).0, listed);
    assert_eq!(sim.read_now(contents[19].id()).unwrap(), contents[19].frames());
}

#[test]
fn full_disk_stops_writes_then_repair_and_always_deletes() {
    let mut sim = Sim::new(1, 256 << 10, 50, small_options());
    let content = |stripe| Content::new(stripe, 9_000);
    let fill = |sim: &mut Sim, class, from: u64| {
        (from..).find_map(|stripe| {
            let number = sim.put_as(class, &content(stripe));
            sim.wait(number).err().map(|failure| (stripe, failure.kind))
        })
    };
    let share = |sim: &Sim| sim.engine.stat().used_bytes * 100 / sim.engine.stat().size_bytes;
    let (stopped, failure) = fill(&mut sim, IoClass::Write, 0).unwrap();
    assert_eq!(failure, FailureKind::Full);
    assert!((80..=85).contains(&share(&sim)), "writes stop at {} %", share(&sim));
    let (end, failure) = fill(&mut sim, IoClass::Repair, stopped).unwrap();
    assert_eq!(failure, FailureKind::Full);
    assert!(end > stopped && (85..=92).contains(&share(&sim)), "repair stops at {} %", share(&sim));
    // Every third fragment goes, so that compaction has to move the others to gain anything.
    for stripe in (0..end).step_by(3) {
        assert_eq!(sim.delete_now(&[content(stripe).id()]), Ok(1));
    }
    sim.settle();
    for stripe in end..end + end / 6 {
        sim.put_now(&content(stripe)).expect("deletes made room");
    }
    assert!(sim.engine.stats().snapshot().moved_bytes > 0);
    let mut sim = sim.crash();
    for stripe in 0..end + end / 6 {
        let read = sim.read_now(content(stripe).id());
        match stripe < end && stripe % 3 == 0 {
            true => assert_eq!(kind(read), FailureKind::NotFound),
            false => assert_eq!(read.unwrap(), content(stripe).frames()),
        }
    }
}

#[test]
fn lost_and_misdirected_writes_never_show_as_wrong_bytes() {
    for seed in 0..60 {
        let mut sim = Sim::new(seed, 64 << 10, 24, small_options());
        sim.disk.set_faults(SimFaults { lost_write: 60_000, misdirected_write: 60_000, ..SimFaults::default() });
        let contents: Vec<Content> = (0..30).map(|stripe| Content::new(stripe, 9_000)).collect();
        for content in &contents {
            sim.put_now(content).expect("the disk says that all is well");
        }
        sim.settle();
        let mut damaged = 0;
        for content in &contents {
            match sim.read_now(content.id()) {
                Ok(frames) => assert_eq!(frames, content.frames()),
                Err(failure) => {
                    assert_eq!(failure.kind, FailureKind::Corrupt);
                    damaged += 1;
                }
            }
        }
        assert_eq!(sim.engine.stat().quarantined, damaged);
    }
}

#[test]
fn records_that_fill_segments_badly_end_in_full_not_in_endless_compaction() {
    // Three records of 16 KiB fill a segment of 64 KiB: room runs out long before 85 % of it lives.
    let mut sim = Sim::new(1, 64 << 10, 60, small_options());
    let mut stripe = 0;
    let failure = loop {
        match sim.put_now(&Content::new(stripe, 9_000)) {
            Ok(()) => stripe += 1,
            Err(failure) => break failure,
        }
    };
    assert_eq!(failure.kind, FailureKind::Full);
    let moved = |sim: &Sim| sim.engine.stats().snapshot().moved_bytes;
    let before = moved(&sim);
    sim.turns(2_000);
    assert_eq!(moved(&sim), before, "a full disk is at rest");
    sim.delete_now(&(0..12).map(|stripe| Content::new(stripe, 9_000).id()).collect::<Vec<_>>()).unwrap();
    sim.settle();
    sim.put_now(&Content::new(1_000, 9_000)).expect("deletes made room");
}

#[test]
fn segments_are_not_looked_through_in_every_turn() {
    let mut options = small_options();
    options.reclaim_interval = Duration::from_millis(200);
    let mut sim = Sim::new(1, 1 << 20, 64, options);
    let (before, looks) = (sim.now, sim.engine.looks());
    // Something dies in every few turns.
    for number in 0..200 {
        let content = Content::new(number, 9_000);
        sim.put_now(&content).unwrap();
        let delete = sim.delete(&[content.id()]);
        sim.wait(delete).unwrap();
    }
    let turns = (sim.now - before).as_millis() as u64;
    let looks = sim.engine.looks() - looks;
    assert!(turns >= 400 && looks <= turns / 200 + 2, "{looks} looks in {turns} turns");
}
