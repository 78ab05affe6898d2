//! One engine on one simulated disk, driven turn by turn, and the words to ask it.

#![allow(dead_code, clippy::disallowed_methods)]

pub mod crash_states;
pub mod model;

use bytes::Bytes;
use plinth_journal::{Completion, Disk};
use plinth_journal::{DiskIdentity, Format, JournalOptions, Recovery, SimDisk};
use plinth_protocol::buffer::AlignedBuf;
use plinth_protocol::frame::{FRAME_BYTES, FRAME_PAYLOAD_BYTES, fragment_bytes, seal_frame};
use plinth_protocol::storage::{DeleteFragments, IoClass, ListFragments, ReadFrames, StorageAction, StorageReply};
use plinth_protocol::stripe::{Code, FragmentHeader, StripeRef};
use plinth_protocol::{ClusterId, DiskId, Failure, FragmentId, Incarnation, PgId, StripeId, WriterId};
use plinth_storage::{Answer, Engine, EngineOptions, Opened, RecoveryReport, Request, Ticket};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

pub const IDENTITY: DiskIdentity = DiskIdentity { cluster: ClusterId(7), disk: DiskId(9), incarnation: Incarnation(1) };

/// Where answers arrive, by the number of their request.
#[derive(Clone, Default)]
pub struct Mailbox {
    pub answers: Rc<RefCell<BTreeMap<u64, Answer>>>,
}

pub struct Slip {
    number: u64,
    mailbox: Mailbox,
    cancelled: Rc<Cell<bool>>,
}

impl Ticket for Slip {
    fn is_cancelled(&self) -> bool {
        self.cancelled.get()
    }

    fn reserve(&mut self, _bytes: u64) -> bool {
        true
    }

    fn answer(self, answer: Answer) {
        let old = self.mailbox.answers.borrow_mut().insert(self.number, answer);
        assert!(old.is_none(), "request {} answered twice", self.number);
    }
}

pub struct Sim {
    pub engine: Engine<Slip>,
    pub disk: SimDisk,
    pub now: Instant,
    pub mailbox: Mailbox,
    pub report: RecoveryReport,
    pub options: EngineOptions,
    next: u64,
}

/// Segments small enough that a short sequence fills, compacts and recycles them.
pub fn small_options() -> EngineOptions {
    EngineOptions {
        journal: JournalOptions { floor_delay: Duration::from_millis(20), ..EngineOptions::default().journal },
        checkpoint_log_bytes: 512 << 10,
        reclaim_interval: Duration::from_millis(5),
    }
}

pub fn format_sim(seed: u64, segment_bytes: u32, segments: u32) -> SimDisk {
    let mut disk = SimDisk::new(seed, segments);
    let format = Format {
        identity: IDENTITY,
        segment_bytes,
        segment_count_max: segments,
        segment_count_initial: 1,
        fill: plinth_journal::Fill::Allocated,
        stamp: 0x5eed,
    };
    plinth_journal::format(&mut disk, &format).expect("an empty simulated disk can be formatted");
    disk
}

pub fn start_of_time() -> Instant {
    static START: OnceLock<Instant> = OnceLock::new();
    *START.get_or_init(Instant::now)
}

impl Sim {
    pub fn open(disk: SimDisk, options: EngineOptions, now: Instant) -> Sim {
        let recovery = Recovery::start(disk, Some(IDENTITY)).expect("a crashed disk still mounts");
        let opened = Engine::recover(now, recovery, options.clone()).expect("a crashed disk still mounts");
        let Opened { engine, disk, report } = opened;
        Sim { engine, disk, now, mailbox: Mailbox::default(), report, options, next: 0 }
    }

    pub fn new(seed: u64, segment_bytes: u32, segments: u32, options: EngineOptions) -> Sim {
        Sim::open(format_sim(seed, segment_bytes, segments), options, start_of_time())
    }

    pub fn ask_as(&mut self, class: IoClass, action: StorageAction, payload: Bytes) -> u64 {
        self.ask_with(class, action, payload, self.now + Duration::from_secs(3600), Rc::default())
    }

    pub fn ask_with(
        &mut self,
        class: IoClass,
        action: StorageAction,
        payload: Bytes,
        deadline: Instant,
        cancelled: Rc<Cell<bool>>,
    ) -> u64 {
        let number = self.next;
        self.next += 1;
        let ticket = Slip { number, mailbox: self.mailbox.clone(), cancelled };
        let request = Request { class, action, payload, arrived: self.now, deadline, ticket };
        self.engine.handle_request(self.now, request);
        number
    }

    pub fn put(&mut self, content: &Content) -> u64 {
        self.put_as(IoClass::Write, content)
    }

    pub fn put_as(&mut self, class: IoClass, content: &Content) -> u64 {
        self.ask_as(class, StorageAction::Put(content.header()), content.frames())
    }

    pub fn delete(&mut self, fragments: &[FragmentId]) -> u64 {
        let fragments = fragments.to_vec();
        self.ask_as(IoClass::Background, StorageAction::Delete(DeleteFragments { fragments }), Bytes::new())
    }

    pub fn read(&mut self, fragment: FragmentId) -> u64 {
        let read = ReadFrames { fragment, first: 0, count: u16::MAX };
        self.ask_as(IoClass::Read, StorageAction::Read(read), Bytes::new())
    }

    pub fn stat(&mut self, fragment: FragmentId) -> u64 {
        self.ask_as(IoClass::Read, StorageAction::Stat(fragment), Bytes::new())
    }

    pub fn list(&mut self, after: Option<FragmentId>, limit: u32) -> (Vec<(FragmentId, u32)>, bool) {
        let number = self.ask_as(IoClass::Read, StorageAction::List(ListFragments { after, limit }), Bytes::new());
        match self.take(number) {
            Some(Ok((StorageReply::Fragments(page), _))) => {
                (page.fragments.iter().map(|entry| (entry.fragment, entry.bytes)).collect(), page.more)
            }
            other => panic!("a list is answered at once, not {other:?}"),
        }
    }

    pub fn take(&mut self, number: u64) -> Option<Answer> {
        self.mailbox.answers.borrow_mut().remove(&number)
    }

    /// One turn of the loop: a millisecond passes.
    pub fn turn(&mut self) {
        self.engine.handle_turn(self.now);
        while self.disk.room() > 0 {
            let Some(operation) = self.engine.poll_disk(self.now) else { break };
            self.disk.submit(operation);
        }
        let mut completions: Vec<Completion> = Vec::new();
        self.disk.reap(Some(Duration::ZERO), &mut completions);
        for completion in completions {
            self.engine.handle_completion(self.now, completion);
        }
        self.now += Duration::from_millis(1);
    }

    pub fn turns(&mut self, count: usize) {
        (0..count).for_each(|_| self.turn());
    }

    /// Lets everything that was asked come to an end, and a while more.
    pub fn settle(&mut self) {
        for _ in 0..20_000 {
            self.turn();
            if self.engine.in_flight() == 0 {
                return self.turns(60);
            }
        }
        panic!("the engine does not come to rest: {} in flight", self.engine.in_flight());
    }

    pub fn wait(&mut self, number: u64) -> Answer {
        for _ in 0..20_000 {
            if let Some(answer) = self.take(number) {
                return answer;
            }
            self.turn();
        }
        panic!("request {number} is never answered")
    }

    pub fn put_now(&mut self, content: &Content) -> Result<(), Failure> {
        let number = self.put(content);
        self.wait(number).map(|(reply, _)| assert_eq!(reply, StorageReply::Stored))
    }

    pub fn delete_now(&mut self, fragments: &[FragmentId]) -> Result<u32, Failure> {
        let number = self.delete(fragments);
        self.wait(number).map(|(reply, _)| match reply {
            StorageReply::Deleted(deleted) => deleted.found,
            other => panic!("a delete is answered as {other:?}"),
        })
    }

    pub fn read_now(&mut self, fragment: FragmentId) -> Result<Bytes, Failure> {
        let number = self.read(fragment);
        self.wait(number).map(|(_, frames)| frames)
    }

    /// Writes a checkpoint and waits until it is in force.
    pub fn checkpoint(&mut self) {
        let before = self.engine.stats().snapshot().checkpoints;
        self.engine.request_checkpoint();
        for _ in 0..5_000 {
            self.turn();
            if self.engine.stats().snapshot().checkpoints > before {
                return;
            }
        }
        panic!("the checkpoint is never set");
    }

    /// Cuts the power and starts again.
    pub fn crash(self) -> Sim {
        let Sim { mut disk, now, options, .. } = self;
        disk.crash();
        // In flight operations are gone with the clone as they are with the power.
        Sim::open(disk, options, now)
    }

    /// Kills the process and starts it again; the power stays, nothing is flushed.
    pub fn kill(self) -> Sim {
        let Sim { mut disk, now, options, .. } = self;
        disk.kill();
        Sim::open(disk, options, now)
    }

    /// Ends gracefully and starts again.
    pub fn restart(mut self) -> Sim {
        self.engine.handle_shutdown();
        for _ in 0..20_000 {
            self.turn();
            if self.engine.is_finished() {
                let Sim { mut disk, now, options, .. } = self;
                disk.crash_with(&[]);
                return Sim::open(disk, options, now);
            }
        }
        panic!("the engine does not come to its end");
    }
}

/// What a fragment of the tests holds: everything follows from these numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Content {
    pub stripe: u64,
    pub index: u8,
    pub payload: usize,
    pub variant: u8,
}

impl Content {
    pub fn new(stripe: u64, payload: usize) -> Content {
        Content { stripe, index: (stripe % 3) as u8, payload, variant: 0 }
    }

    pub fn id(&self) -> FragmentId {
        let stripe = StripeId::new(WriterId(1 + self.stripe % 3), self.stripe, 77);
        FragmentId { stripe, index: self.index }
    }

    pub fn header(&self) -> FragmentHeader {
        let each = self.payload as u32;
        FragmentHeader {
            fragment: self.id(),
            stripe: StripeRef {
                stripe: self.id().stripe,
                pg: PgId(1),
                generation: 1,
                code: Code::new(3, 2),
                payload_bytes: u64::from(each) * 3,
                fragment_payload_bytes: each,
                missing: None,
                plain_bytes: None,
                sealing: None,
                pack_offset: None,
            },
            owner: None,
            made: 1,
        }
    }

    pub fn frames(&self) -> Bytes {
        let mut frames = AlignedBuf::zeroed(fragment_bytes(self.payload));
        for (number, frame) in frames.chunks_mut(FRAME_BYTES).enumerate() {
            let fill = (self.stripe as u8).wrapping_mul(31) ^ self.variant ^ number as u8;
            let count = (self.payload - number * FRAME_PAYLOAD_BYTES).min(FRAME_PAYLOAD_BYTES);
            frame[..count].fill(fill);
            seal_frame(frame, self.id(), number as u16);
        }
        frames.freeze()
    }
}
