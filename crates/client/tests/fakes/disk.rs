//! A disk that is a map, with moods.

use super::reply_bytes;
use bytes::Bytes;
use plinth_protocol::buffer::{AlignedBuf, is_block_aligned};
use plinth_protocol::frame::{FRAME_BYTES, fragment_bytes, verify_frames};
use plinth_protocol::storage::{DeletedFragments, StorageAction, StorageReply, StorageRequest};
use plinth_protocol::stripe::FragmentHeader;
use plinth_protocol::wire::Wire;
use plinth_protocol::{DiskId, Failure, FailureKind, FragmentId, Method};
use plinth_transport::{Request, Response};
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

/// How a disk behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    Well,
    /// Every answer takes this long.
    Slow(Duration),
    /// Every put takes this long.
    SlowWrites(Duration),
    /// Acknowledges nothing more.
    Fenced,
    Full,
    /// Every put meets a fragment that was deleted, or a disk of another incarnation.
    Conflict,
    /// This many requests are told to come back.
    Busy(usize),
}

pub struct FakeDisk {
    id: DiskId,
    fragments: Mutex<BTreeMap<FragmentId, (FragmentHeader, Bytes)>>,
    mood: Mutex<Mood>,
    /// Flips a byte of every frame that is read.
    pub rotten: AtomicBool,
    pub puts: AtomicUsize,
    pub reads: AtomicUsize,
    /// Frames that were read.
    pub frames: AtomicUsize,
    /// Acknowledges puts and forgets them, for measurements of the sender alone.
    pub forgets: AtomicBool,
}

impl FakeDisk {
    pub fn new(id: DiskId) -> Self {
        FakeDisk {
            id,
            fragments: Mutex::default(),
            mood: Mutex::new(Mood::Well),
            rotten: AtomicBool::new(false),
            puts: AtomicUsize::new(0),
            reads: AtomicUsize::new(0),
            frames: AtomicUsize::new(0),
            forgets: AtomicBool::new(false),
        }
    }

    pub fn set_mood(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    pub fn fragments(&self) -> Vec<FragmentId> {
        self.fragments.lock().unwrap().keys().copied().collect()
    }

    pub fn header(&self, fragment: FragmentId) -> Option<FragmentHeader> {
        self.fragments.lock().unwrap().get(&fragment).map(|(header, _)| header.clone())
    }

    pub fn stored_bytes(&self) -> usize {
        self.fragments.lock().unwrap().values().map(|(_, frames)| frames.len()).sum()
    }

    /// Loses a fragment, as a disk never should.
    pub fn lose(&self, fragment: FragmentId) {
        self.fragments.lock().unwrap().remove(&fragment).expect("the fragment is here");
    }

    pub async fn serve(&self, request: Request) -> Result<Response, Failure> {
        assert_eq!(request.method, Method::Storage);
        let head = StorageRequest::decode(&request.header)?;
        assert_eq!(head.disk, self.id);
        let mood = *self.mood.lock().unwrap();
        match mood {
            Mood::Well | Mood::Full | Mood::Conflict => {}
            Mood::Slow(delay) => tokio::time::sleep(delay).await,
            Mood::SlowWrites(delay) if matches!(head.action, StorageAction::Put(_)) => tokio::time::sleep(delay).await,
            Mood::SlowWrites(_) => {}
            Mood::Fenced => return Err(Failure::new(FailureKind::Unavailable, "fenced")),
            Mood::Busy(0) => self.set_mood(Mood::Well),
            Mood::Busy(left) => {
                self.set_mood(Mood::Busy(left - 1));
                return Err(Failure { retry_after_ms: Some(1), ..Failure::new(FailureKind::Busy, "full queue") });
            }
        }
        match head.action {
            StorageAction::Put(_) if mood == Mood::Full => Err(Failure::new(FailureKind::Full, "no room")),
            StorageAction::Put(_) if mood == Mood::Conflict => Err(Failure::new(FailureKind::Conflict, "deleted")),
            StorageAction::Put(header) => self.put(header, request.payload),
            StorageAction::Read(read) => {
                self.reads.fetch_add(1, Ordering::Relaxed);
                self.frames.fetch_add(read.count.into(), Ordering::Relaxed);
                let fragments = self.fragments.lock().unwrap();
                let absent = || Failure::new(FailureKind::NotFound, "no such fragment");
                let (_, frames) = fragments.get(&read.fragment).ok_or_else(absent)?;
                let start = usize::from(read.first) * FRAME_BYTES;
                let end = (start + usize::from(read.count) * FRAME_BYTES).min(frames.len());
                assert!(end > start + (usize::from(read.count) - 1) * FRAME_BYTES, "reads stay inside the fragment");
                let mut payload = frames.slice(start..end);
                if self.rotten.load(Ordering::Relaxed) {
                    let mut copy = payload.to_vec();
                    copy[17] ^= 4;
                    payload = copy.into();
                }
                Ok(Response { header: StorageReply::Frames.to_bytes(), payload: vec![payload] })
            }
            StorageAction::Delete(delete) => {
                let mut fragments = self.fragments.lock().unwrap();
                let found = delete.fragments.iter().filter(|id| fragments.remove(id).is_some()).count() as u32;
                Ok(reply_bytes(&StorageReply::Deleted(DeletedFragments { found })))
            }
            StorageAction::Stat(fragment) => match self.header(fragment) {
                Some(header) => Ok(reply_bytes(&StorageReply::Header(header))),
                None => Err(Failure::new(FailureKind::NotFound, "no such fragment")),
            },
            other => panic!("the client does not send {other:?}"),
        }
    }

    fn put(&self, header: FragmentHeader, frames: Bytes) -> Result<Response, Failure> {
        let fragment = header.fragment;
        assert_eq!(fragment.stripe, header.stripe.stripe);
        assert!(header.owner.is_some(), "fragments describe themselves");
        assert!(is_block_aligned(&frames), "the disk can write the frames as they are");
        assert_eq!(frames.len(), fragment_bytes(header.stripe.fragment_payload(fragment.index)));
        assert_eq!(verify_frames(&frames, fragment, 0), Ok(()));
        self.puts.fetch_add(1, Ordering::Relaxed);
        if self.forgets.load(Ordering::Relaxed) {
            return Ok(reply_bytes(&StorageReply::Stored));
        }
        let mut kept = AlignedBuf::zeroed(frames.len());
        kept.copy_from_slice(&frames);
        let kept = kept.freeze();
        self.fragments.lock().unwrap().insert(fragment, (header, kept));
        Ok(reply_bytes(&StorageReply::Stored))
    }
}
