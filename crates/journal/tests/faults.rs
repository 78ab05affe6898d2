//! Faults one by one: damage is told from a torn tail, errors fence, a full disk refuses.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

mod harness;

use bytes::Bytes;
use harness::{IDENTITY, SEGMENT_BYTES, body, disk_format, formatted, options, payload};
use plinth_journal::sim::{SimFaults, SimOp};
use plinth_journal::superblock::{COPY_OFFSETS, SLOT_OFFSETS};
use plinth_journal::*;
use std::time::{Duration, Instant};

fn now() -> Instant {
    Instant::now()
}

fn mount(disk: SimDisk) -> (Journal, SimDisk) {
    Recovery::start(disk, Some(IDENTITY)).unwrap().resume(now(), options()).unwrap()
}

fn settle_at(journal: &mut Journal, disk: &mut SimDisk, time: Instant) -> Vec<Event> {
    let (mut events, mut completions) = (Vec::new(), Vec::new());
    for _ in 0..1000 {
        while disk.room() > 0
            && let Some(operation) = journal.poll_disk(time)
        {
            disk.submit(operation);
        }
        disk.reap(Some(Duration::ZERO), &mut completions);
        for completion in completions.drain(..) {
            journal.handle_completion(time, completion);
        }
        events.extend(std::iter::from_fn(|| journal.poll_event()));
        if journal.is_idle() {
            return events;
        }
    }
    panic!("the journal never becomes idle");
}

fn settle(journal: &mut Journal, disk: &mut SimDisk) -> Vec<Event> {
    settle_at(journal, disk, now())
}

fn append(journal: &mut Journal, disk: &mut SimDisk, stream: Stream, bytes: usize, blocks: usize) -> Placed {
    let (body, payload) = (body(bytes as u64, bytes), payload(blocks as u64, blocks));
    loop {
        let append = Append { stream, kind: 20, body: &body, payload: payload.clone(), reserve: true };
        match journal.append(append) {
            Ok(placed) => {
                settle(journal, disk);
                return placed;
            }
            Err(Refused::Busy) => drop(settle(journal, disk)),
            Err(error) => panic!("{error}"),
        }
    }
}

/// Five durable records of two blocks each, then a crash that loses nothing.
fn five_records() -> (Vec<Placed>, SimDisk) {
    let (mut journal, mut disk) = mount(formatted(1));
    let placed = (0..5).map(|_| append(&mut journal, &mut disk, Stream::Main, 100, 1)).collect();
    (placed, disk)
}

fn recover(disk: SimDisk) -> (Vec<Sequence>, Recovery<SimDisk>) {
    let mut recovery = Recovery::start(disk, Some(IDENTITY)).unwrap();
    let found = std::iter::from_fn(|| recovery.next()).map(|record| record.sequence).collect();
    (found, recovery)
}

fn area(placed: &Placed) -> Area {
    Area::Segment(placed.position.segment)
}

#[test]
fn a_rotten_head_below_the_floor_is_damage() {
    let (placed, mut disk) = five_records();
    disk.rot(area(&placed[1]), u64::from(placed[1].position.offset) + 33, 3);
    let (found, recovery) = recover(disk);
    let expected: Vec<_> = [0, 2, 3, 4].map(|index| placed[index].sequence).to_vec();
    assert_eq!(found, expected, "the records beside it are still found");
    let gap = Damage::Stretch {
        from: placed[1].position,
        until: placed[2].position.offset,
        after: placed[0].sequence,
        before: Some(placed[2].sequence),
    };
    assert_eq!(recovery.damage(), [gap]);
}

#[test]
fn a_rotten_body_below_the_floor_is_damage_and_not_returned() {
    let (placed, mut disk) = five_records();
    disk.rot(area(&placed[2]), u64::from(placed[2].position.offset) + HEAD_BYTES as u64 + 50, 0);
    let (found, recovery) = recover(disk);
    assert!(!found.contains(&placed[2].sequence) && found.len() == 4);
    assert_eq!(recovery.damage(), [Damage::Body { sequence: placed[2].sequence, position: placed[2].position }]);
}

#[test]
fn rot_of_the_newest_record_is_damage_once_the_floor_slot_is_written() {
    let (mut journal, mut disk) = mount(formatted(1));
    let placed = append(&mut journal, &mut disk, Stream::Main, 100, 1);
    let torn = {
        let mut disk = disk.clone();
        disk.rot(area(&placed), u64::from(placed.position.offset) + 33, 3);
        recover(disk).1
    };
    assert!(torn.damage().is_empty(), "without a newer floor it looks torn: the known limit");
    settle_at(&mut journal, &mut disk, now() + Duration::from_secs(1));
    disk.rot(area(&placed), u64::from(placed.position.offset) + 33, 3);
    let (found, recovery) = recover(disk);
    assert!(found.is_empty());
    let last = Sequence(placed.sequence.0 - 1);
    let floor = placed.sequence;
    assert_eq!(recovery.damage(), [Damage::Missing { stream: Stream::Main, last, floor }]);
}

#[test]
fn a_lost_write_below_the_floor_is_damage() {
    let (mut journal, mut disk) = mount(formatted(1));
    append(&mut journal, &mut disk, Stream::Main, 100, 1);
    disk.set_faults(SimFaults { lost_write: 1_000_000, ..SimFaults::default() });
    append(&mut journal, &mut disk, Stream::Main, 100, 1);
    disk.set_faults(SimFaults::default());
    append(&mut journal, &mut disk, Stream::Main, 100, 1);
    let (found, recovery) = recover(disk);
    assert_eq!((found.len(), recovery.damage().len()), (2, 1));
    assert!(matches!(recovery.damage()[0], Damage::Stretch { .. }), "{:?}", recovery.damage());
}

#[test]
fn a_lying_flush_shows_as_damage_after_the_power_is_cut() {
    let (mut journal, mut disk) = mount(formatted(1));
    append(&mut journal, &mut disk, Stream::Main, 100, 1);
    disk.set_faults(SimFaults { lying_sync: 1_000_000, ..SimFaults::default() });
    append(&mut journal, &mut disk, Stream::Main, 100, 1);
    disk.set_faults(SimFaults::default());
    append(&mut journal, &mut disk, Stream::Main, 100, 1);
    disk.crash_with(&[]);
    let (found, recovery) = recover(disk);
    assert_eq!((found.len(), recovery.damage().len()), (2, 1));
}

#[test]
fn an_unreadable_block_is_damage() {
    let (_, mut disk) = five_records();
    // Four superblock copies, two slots and two heads a segment are read before the records.
    let before = 4 + 2 + 2 * disk.segments().len() as u64;
    disk.fail_at(SimOp::Read, before);
    disk.fail_at(SimOp::Read, before + 1);
    disk.set_shuffle(false);
    let (_, recovery) = recover(disk);
    assert!(recovery.damage().iter().any(|damage| matches!(damage, Damage::Unreadable { .. })));
}

#[test]
fn one_rotten_segment_head_is_healed_and_two_quarantine_the_segment() {
    let (placed, disk) = five_records();
    let (front, back) = (0, u64::from(SEGMENT_BYTES) - 4096);
    let mut one = disk.clone();
    one.rot(area(&placed[0]), front + 20, 1);
    let (found, recovery) = recover(one);
    assert!(found.len() == 5 && recovery.damage().is_empty());
    let (_, mut healed) = recovery.resume(now(), options()).unwrap();
    healed.rot(area(&placed[0]), back + 20, 1);
    assert_eq!(recover(healed).0.len(), 5, "the first one has been written anew");

    let mut two = disk;
    two.rot(area(&placed[0]), front + 20, 1);
    two.rot(area(&placed[0]), back + 20, 1);
    let (found, recovery) = recover(two);
    assert!(found.is_empty());
    let segment = placed[0].position.segment;
    assert!(recovery.damage().contains(&Damage::SegmentHead { segment }));
    let (mut journal, mut disk) = recovery.resume(now(), options()).unwrap();
    assert_eq!(journal.segment(segment).unwrap().state, SegmentState::Quarantined);
    append(&mut journal, &mut disk, Stream::Main, 100, 1);
    journal.release(segment).unwrap();
    let events = settle(&mut journal, &mut disk);
    assert!(events.iter().any(|event| matches!(event, Event::Released(released) if *released == segment)));
}

#[test]
fn a_lost_segment_file_is_damage() {
    let (mut journal, mut disk) = mount(formatted(1));
    let first = append(&mut journal, &mut disk, Stream::Main, 100, 7);
    let segment = first.position.segment;
    while append(&mut journal, &mut disk, Stream::Main, 100, 7).position.segment == segment {}
    let generation = journal.segment(segment).unwrap().generation;
    disk.submit(Operation { id: OpId(77), action: Action::Remove { segment } });
    disk.reap(Some(Duration::ZERO), &mut Vec::new());
    let (_, recovery) = recover(disk);
    assert_eq!(recovery.damage(), [Damage::SegmentLost { segment, generation }]);
}

#[test]
fn two_rotten_superblocks_are_outvoted_and_three_are_not() {
    let (_, mut disk) = five_records();
    disk.rot(Area::Super, COPY_OFFSETS[0] + 80, 0);
    disk.rot(Area::Super, COPY_OFFSETS[2] + 4095, 7);
    let (journal, mut disk) = mount(disk);
    assert_eq!(journal.superblock().mount, 2, "the counter goes on from the two that agree");
    for copy in [0, 1, 3] {
        disk.rot(Area::Super, COPY_OFFSETS[copy] + 80, 0);
    }
    assert!(matches!(Recovery::start(disk, Some(IDENTITY)), Err(JournalError::NoSuperblock(_))));
}

#[test]
fn a_superblock_that_was_rolled_back_is_damage() {
    let (mut journal, disk) = mount(formatted(1));
    let mut old = disk.clone();
    let (mut again, mut disk) = mount(disk);
    append(&mut again, &mut disk, Stream::Main, 100, 0);
    append(&mut journal, &mut old, Stream::Main, 100, 0);
    // The super area of the old image under the segments of the new one.
    for offset in COPY_OFFSETS {
        let bytes = old.durable_bytes(Area::Super, offset, 4096);
        let parts = vec![plinth_protocol::buffer::into_aligned(Bytes::from(bytes))];
        let action = Action::Write { area: Area::Super, offset, parts, durable: true };
        disk.submit(Operation { id: OpId(offset), action });
    }
    let mut completions = Vec::new();
    while completions.len() < 4 {
        disk.reap(Some(Duration::ZERO), &mut completions);
    }
    let (_, recovery) = recover(disk);
    assert!(recovery.damage().contains(&Damage::SuperblockBehind { mount: 2 }), "{:?}", recovery.damage());
}

#[test]
fn unknown_incompatible_features_refuse_the_mount() {
    let disk = formatted(1);
    let expected = DiskIdentity { disk: plinth_protocol::ids::DiskId(1), ..IDENTITY };
    let foreign = Recovery::start(disk.clone(), Some(expected));
    assert!(matches!(foreign, Err(JournalError::Foreign { found_disk, .. }) if found_disk == IDENTITY.disk));
    // A disk of tomorrow: the feature bit is set in every copy, with its checksum.
    let mut disk = disk;
    for (copy, offset) in COPY_OFFSETS.into_iter().enumerate() {
        let mut block = disk.durable_bytes(Area::Super, offset, 4096);
        assert_eq!(usize::from(block[10]), copy);
        block[39] = 0x80;
        let crc = crc32fast::hash(&block[..4092]);
        block[4092..].copy_from_slice(&crc.to_le_bytes());
        let parts = vec![plinth_protocol::buffer::into_aligned(Bytes::from(block))];
        let action = Action::Write { area: Area::Super, offset, parts, durable: true };
        disk.submit(Operation { id: OpId(1), action });
        disk.set_shuffle(false);
        disk.reap(Some(Duration::ZERO), &mut Vec::new());
    }
    let newer = Recovery::start(disk, Some(IDENTITY));
    assert!(matches!(newer, Err(JournalError::Incompatible(bits)) if bits == 1 << 63));
}

#[test]
fn formatting_refuses_a_disk_that_is_not_blank() {
    let mut disk = formatted(1);
    assert!(matches!(format(&mut disk, &disk_format()), Err(JournalError::Occupied(_))));
    let mut disk = SimDisk::new(1, 4);
    disk.rot(Area::Super, 77_777, 0);
    assert!(matches!(format(&mut disk, &disk_format()), Err(JournalError::Occupied(_))));
}

#[test]
fn a_failed_write_or_sync_fences_and_is_never_tried_again() {
    for op in [SimOp::Write, SimOp::Sync] {
        let (mut journal, mut disk) = mount(formatted(1));
        let first = append(&mut journal, &mut disk, Stream::Main, 100, 1);
        disk.fail_at(op, 0);
        let lost = append(&mut journal, &mut disk, Stream::Main, 100, 1);
        assert!(journal.fenced().is_some());
        assert_eq!(journal.durable(), first.sequence, "the failed batch is not acknowledged");
        let more = Append { stream: Stream::Main, kind: 20, body: &[], payload: Bytes::new(), reserve: true };
        assert!(matches!(journal.append(more), Err(Refused::Fenced(_))));
        assert!(matches!(journal.release(first.position.segment), Err(Refused::Fenced(_))));
        // Reads go on.
        let at = first.position;
        journal.read(ReadToken(1), at.segment, at.offset + first.payload_offset, 4096).unwrap();
        let events = settle(&mut journal, &mut disk);
        assert!(matches!(&events[..], [Event::Read(_, Ok(bytes))] if bytes[..] == payload(1, 1)[..]));
        // Nothing else went to the disk after the failure: the lost batch stays volatile.
        disk.crash_with(&[]);
        let (found, recovery) = recover(disk);
        assert_eq!(found, [first.sequence]);
        assert!(!found.contains(&lost.sequence) && recovery.damage().is_empty());
    }
}

#[test]
fn a_read_error_is_told_and_fences_nothing() {
    let (mut journal, mut disk) = mount(formatted(1));
    let placed = append(&mut journal, &mut disk, Stream::Main, 100, 1);
    disk.fail_at(SimOp::Read, 0);
    journal.read(ReadToken(5), placed.position.segment, placed.position.offset, 4096).unwrap();
    let events = settle(&mut journal, &mut disk);
    assert!(matches!(&events[..], [Event::Read(ReadToken(5), Err(DiskError::Errno(5)))]));
    assert!(journal.fenced().is_none());
}

#[test]
fn a_full_disk_keeps_its_reserve_and_recovers_by_release() {
    let (mut journal, mut disk) = mount(formatted(1));
    let mut refused = None;
    for _ in 0..2000 {
        let payload = payload(1, 3);
        match journal.append(Append { stream: Stream::Main, kind: 20, body: b"x", payload, reserve: false }) {
            Ok(_) => {}
            Err(Refused::Busy) => drop(settle(&mut journal, &mut disk)),
            Err(error) => {
                refused = Some(error);
                break;
            }
        }
    }
    assert_eq!(refused, Some(Refused::Full));
    settle(&mut journal, &mut disk);
    append(&mut journal, &mut disk, Stream::Relocation, 100, 3);
    let sealed: Vec<_> = journal
        .segments()
        .filter(|info| matches!(info.state, SegmentState::Sealed(Stream::Main)))
        .map(|info| info.segment)
        .collect();
    assert!(journal.free_bytes() < u64::from(SEGMENT_BYTES));
    journal.release(sealed[0]).unwrap();
    journal.release(sealed[1]).unwrap();
    settle(&mut journal, &mut disk);
    let more = Append { stream: Stream::Main, kind: 20, body: b"x", payload: payload(1, 10), reserve: false };
    assert!(journal.append(more).is_ok());
}

#[test]
fn a_device_without_space_for_segments_is_full_not_fenced() {
    let mut disk = formatted(1);
    disk.set_segments_max(2);
    let (mut journal, mut disk) = mount(disk);
    let mut last = Ok(());
    for _ in 0..200 {
        let append = Append { stream: Stream::Main, kind: 20, body: b"x", payload: payload(1, 3), reserve: true };
        last = journal.append(append).map(|_| ());
        if last == Err(Refused::Full) {
            break;
        }
        settle(&mut journal, &mut disk);
    }
    assert_eq!(last, Err(Refused::Full));
    assert!(journal.fenced().is_none());
}

#[test]
fn the_slot_note_and_the_checkpoint_survive() {
    let (mut journal, mut disk) = mount(formatted(1));
    let root = append(&mut journal, &mut disk, Stream::Checkpoint, 300, 2);
    let mark = journal.mark();
    journal.set_checkpoint(Checkpoint { mark, note: Bytes::from_static(b"root") }).unwrap();
    journal.set_slot_note(now(), Bytes::from_static(b"vote 7 for n3")).unwrap();
    let events = settle_at(&mut journal, &mut disk, now() + Duration::from_secs(1));
    assert!(events.iter().any(|event| matches!(event, Event::CheckpointSet)));
    let newer = append(&mut journal, &mut disk, Stream::Main, 10, 0);
    disk.crash_with(&[]);
    let mut recovery = Recovery::start(disk, Some(IDENTITY)).unwrap();
    assert_eq!(recovery.slot_note().unwrap(), &b"vote 7 for n3"[..]);
    let checkpoint = recovery.checkpoint().unwrap().clone();
    assert_eq!((checkpoint.mark, &checkpoint.note[..]), (mark, &b"root"[..]));
    let (record, pages) = recovery.read(root.position).unwrap();
    assert_eq!((record.sequence, &pages[..]), (root.sequence, &payload(2, 2)[..]));
    recovery.skip_to(&checkpoint.mark);
    let found: Vec<_> = std::iter::from_fn(|| recovery.next()).map(|record| record.sequence).collect();
    assert_eq!(found, [newer.sequence]);
}

#[test]
fn a_rotten_slot_leaves_the_other() {
    let (mut journal, mut disk) = mount(formatted(1));
    for _ in 0..2 {
        append(&mut journal, &mut disk, Stream::Main, 10, 0);
        settle_at(&mut journal, &mut disk, now() + Duration::from_secs(1));
    }
    let floor = recover(disk.clone()).1.floor();
    disk.rot(Area::Super, SLOT_OFFSETS[0] + 30, 2);
    let older = recover(disk).1.floor();
    assert!(older < floor && older > Sequence(0), "slot 0 was the newer one: {older} {floor}");
}

/// Queues reads of one record until many more wait than the disk has room for.
fn flood_with_reads(journal: &mut Journal, at: Placed) {
    for _ in 0..disk::OPERATIONS_MAX * 2 {
        journal.read(ReadToken(1), at.position.segment, at.position.offset, 4096).unwrap();
    }
}

#[test]
fn batch_is_durable_within_a_few_turns_under_a_steady_stream_of_small_reads() {
    // A batch of one write, and one whose writes are followed by a sync.
    for streams in [&[Stream::Main][..], &[Stream::Main, Stream::Relocation]] {
        let (mut journal, mut disk) = mount(formatted(1));
        disk.set_shuffle(false);
        let first = append(&mut journal, &mut disk, Stream::Main, 100, 1);
        append(&mut journal, &mut disk, Stream::Relocation, 100, 1);
        let mut last = first.sequence;
        for stream in streams {
            let record = Append { stream: *stream, kind: 20, body: b"x", payload: Bytes::new(), reserve: true };
            last = journal.append(record).unwrap().sequence;
        }
        let mut completions = Vec::new();
        let mut turns = 0;
        while journal.durable() < last {
            turns += 1;
            assert!(turns <= 4, "reads keep the batch from the disk");
            flood_with_reads(&mut journal, first);
            while disk.room() > 0
                && let Some(operation) = journal.poll_disk(now())
            {
                disk.submit(operation);
            }
            disk.reap(Some(Duration::ZERO), &mut completions);
            completions.drain(..).for_each(|completion| journal.handle_completion(now(), completion));
            while journal.poll_event().is_some() {}
        }
    }
}

#[test]
fn reads_that_do_not_end_leave_room_for_a_batch() {
    let (mut journal, mut disk) = mount(formatted(1));
    let first = append(&mut journal, &mut disk, Stream::Main, 100, 1);
    flood_with_reads(&mut journal, first);
    while disk.room() > 0
        && let Some(operation) = journal.poll_disk(now())
    {
        disk.submit(operation);
    }
    let record = Append { stream: Stream::Main, kind: 20, body: b"x", payload: Bytes::new(), reserve: true };
    journal.append(record).unwrap();
    assert!(disk.room() > 0, "the slow reads have taken all the room there is");
    let operation = journal.poll_disk(now()).expect("the batch");
    assert!(matches!(operation.action, Action::Write { .. }), "{operation:?}");
}

#[test]
fn new_segments_are_written_first_only_where_batches_are_small() {
    let by_batch = JournalOptions { new_segments: NewSegments::ByBatch, ..options() };
    for (new_segments, blocks, fill) in [
        (NewSegments::ByBatch, 9, Fill::Allocated),
        (NewSegments::ByBatch, 0, Fill::Written),
        (NewSegments::Written, 9, Fill::Written),
    ] {
        let options = JournalOptions { new_segments, ..by_batch.clone() };
        let mut disk = SimDisk::new(1, 64);
        let large = Format { segment_bytes: 1 << 20, segment_count_max: 64, ..disk_format() };
        format(&mut disk, &Format { fill: Fill::Allocated, ..large }).unwrap();
        let (mut journal, mut disk) = Recovery::start(disk, Some(IDENTITY)).unwrap().resume(now(), options).unwrap();
        // The first is made before anything is known.
        while disk.fills().len() < 5 {
            append(&mut journal, &mut disk, Stream::Main, 3000, blocks);
        }
        let last = disk.fills().last_key_value().unwrap().1;
        assert_eq!(*last, fill, "{new_segments:?}, {blocks} blocks");
    }
}
