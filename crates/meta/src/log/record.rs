//! How changes of the log become journal records.
//!
//! | kind | record    | body                                                                       |
//! |------|-----------|----------------------------------------------------------------------------|
//! | 16   | entries   | head (below), then entries: appended behind the group's last one           |
//! | 17   | vote      | tag-length: 1 group, 2 vote                                                |
//! | 18   | truncate  | tag-length: 1 group, 2 last entry kept (absent: none is)                   |
//! | 19   | purge     | tag-length: 1 group, 2 last entry purged                                   |
//! | 20   | state     | tag-length: 1 group, 2 vote, 3 committed, 4 purged: repeats what stands    |
//! | 21   | carry     | as 16: entries that still live in a segment that is about to go, once more |
//!
//! Head of kinds 16 and 21:
//!
//! | offset | bytes | content                                                              |
//! |--------|-------|----------------------------------------------------------------------|
//! | 0      | 1     | version: 1                                                           |
//! | 1      | 1     | 1 if bytes 16..40 hold a committed log id, else 0                    |
//! | 2      | 2     | zero                                                                 |
//! | 4      | 4     | number of entries                                                    |
//! | 8      | 8     | group                                                                |
//! | 16     | 24    | log id up to which the group is known to be committed                |
//!
//! Entry, also on the wire between voters:
//!
//! | offset | bytes | content                                                              |
//! |--------|-------|----------------------------------------------------------------------|
//! | 0      | 24    | log id: term, leader, index                                          |
//! | 24     | 1     | kind: 1 blank, 2 batch of mutations, 3 membership                    |
//! | 25     | 3     | zero                                                                 |
//! | 28     | 4     | length of the payload                                                |
//! | 32     | …     | payload                                                              |
//!
//! Integers are little-endian. The journal's record header carries length and checksum.

use super::{LOG_ID_BYTES, LogId};
use bytes::Bytes;
use plinth_protocol::wire::{Wire, WireError};
use plinth_protocol::{GroupId, NodeId, numbered, record};

numbered! {
    /// The kinds of journal records of the Raft log.
    pub enum RecordKind {
        /// Entries behind the group's last one.
        Entries = 16,
        /// A vote.
        Vote = 17,
        /// Entries at the end are dropped.
        Truncate = 18,
        /// Entries at the front are dropped.
        Purge = 19,
        /// Vote, committed and purged as they stand, before the segment of their own records goes.
        State = 20,
        /// Entries once more, before their segment goes.
        Carry = 21,
    }
}

numbered! {
    /// What an entry's payload is.
    pub enum EntryKind {
        /// Nothing: a new leader's first entry.
        Blank = 1,
        /// Mutations (`crate::batch`).
        Batch = 2,
        /// A membership (`crate::raft::words`).
        Membership = 3,
    }
}

record! {
    /// A vote: for whom in which term, and whether a quorum granted it.
    pub struct VoteWords {
        1 => term: u64,
        2 => node: NodeId,
        3 => committed: bool,
    }
}

record! {
    /// Kind 17.
    pub struct VoteRecord {
        1 => group: GroupId,
        2 => vote: VoteWords,
    }
}

record! {
    /// Kind 18.
    pub struct TruncateRecord {
        1 => group: GroupId,
        2 => last: Option<LogId>,
    }
}

record! {
    /// Kind 19.
    pub struct PurgeRecord {
        1 => group: GroupId,
        2 => upto: LogId,
    }
}

record! {
    /// Kind 20.
    pub struct StateRecord {
        1 => group: GroupId,
        2 => vote: Option<VoteWords>,
        3 => committed: Option<LogId>,
        4 => purged: Option<LogId>,
    }
}

/// One entry of a group's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogEntry {
    /// Its place.
    pub id: LogId,
    /// What the payload is.
    pub kind: EntryKind,
    /// The payload's bytes.
    pub payload: Bytes,
}

/// Bytes of an entry's head.
pub(crate) const ENTRY_HEAD_BYTES: usize = 32;
/// Bytes in front of the entries of a record.
pub(crate) const ENTRIES_HEAD_BYTES: usize = 40;
const ENTRIES_VERSION: u8 = 1;

/// Appends an entry's head.
pub(crate) fn encode_entry_head(entry: &LogEntry, out: &mut Vec<u8>) {
    let length = u32::try_from(entry.payload.len()).expect("entries are bounded by entry_bytes_max, far below 4 GiB");
    entry.id.encode(out);
    out.extend_from_slice(&[entry.kind as u8, 0, 0, 0]);
    out.extend_from_slice(&length.to_le_bytes());
}

/// An entry's head as read: id, kind, length of the payload.
pub(crate) fn decode_entry_head(input: &[u8]) -> Result<(LogId, EntryKind, usize), WireError> {
    if input.len() < ENTRY_HEAD_BYTES {
        return Err(WireError::Truncated);
    }
    let id = LogId::decode(&input[..LOG_ID_BYTES])?;
    let kind = EntryKind::try_from(input[24])?;
    if input[25..28] != [0; 3] {
        return Err(WireError::Malformed("reserved bytes of an entry are not zero"));
    }
    Ok((id, kind, word32(&input[28..32]) as usize))
}

/// Builds the body of an entries or carry record.
pub(crate) fn encode_entries(group: GroupId, committed: Option<LogId>, entries: &[LogEntry]) -> Vec<u8> {
    let mut out = Vec::new();
    encode_entries_into(group, committed, entries, &mut out);
    out
}

/// Appends the body of an entries or carry record.
pub(crate) fn encode_entries_into(group: GroupId, committed: Option<LogId>, entries: &[LogEntry], out: &mut Vec<u8>) {
    let payload: usize = entries.iter().map(|entry| ENTRY_HEAD_BYTES + entry.payload.len()).sum();
    out.reserve(ENTRIES_HEAD_BYTES + payload);
    out.extend_from_slice(&[ENTRIES_VERSION, u8::from(committed.is_some()), 0, 0]);
    out.extend_from_slice(&u32::try_from(entries.len()).expect("an append is bounded").to_le_bytes());
    out.extend_from_slice(&group.0.to_le_bytes());
    committed.unwrap_or(LogId { term: 0, leader: NodeId(0), index: 0 }).encode(out);
    for entry in entries {
        encode_entry_head(entry, out);
        out.extend_from_slice(&entry.payload);
    }
}

/// The body of an entries or carry record, opened.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Entries {
    pub(crate) group: GroupId,
    pub(crate) committed: Option<LogId>,
    /// Each entry with the offset of its payload in the body.
    pub(crate) entries: Vec<(LogEntry, u32)>,
}

/// Opens the body of an entries or carry record; the payloads share the body's memory.
pub(crate) fn decode_entries(body: &Bytes) -> Result<Entries, WireError> {
    if body.len() < ENTRIES_HEAD_BYTES {
        return Err(WireError::Truncated);
    }
    if body[0] != ENTRIES_VERSION {
        return Err(WireError::UnknownVariant(u64::from(body[0])));
    }
    let count = word32(&body[4..8]) as usize;
    let mut group = [0; 8];
    group.copy_from_slice(&body[8..16]);
    let committed = match body[1] {
        0 => None,
        1 => Some(LogId::decode(&body[16..40])?),
        _ => return Err(WireError::OutOfRange("committed flag")),
    };
    let mut entries = Vec::with_capacity(count.min(body.len() / ENTRY_HEAD_BYTES));
    let mut at = ENTRIES_HEAD_BYTES;
    for _ in 0..count {
        let (id, kind, length) = decode_entry_head(&body[at.min(body.len())..])?;
        let start = at + ENTRY_HEAD_BYTES;
        if length > body.len() - start {
            return Err(WireError::Truncated);
        }
        entries.push((LogEntry { id, kind, payload: body.slice(start..start + length) }, start as u32));
        at = start + length;
    }
    if at != body.len() {
        return Err(WireError::Malformed("bytes behind the entries"));
    }
    Ok(Entries { group: GroupId(u64::from_le_bytes(group)), committed, entries })
}

fn word32(input: &[u8]) -> u32 {
    let mut bytes = [0; 4];
    bytes.copy_from_slice(&input[..4]);
    u32::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry(index: u64, payload: &[u8]) -> LogEntry {
        LogEntry {
            id: LogId { term: 3, leader: NodeId(2), index },
            kind: EntryKind::Batch,
            payload: Bytes::copy_from_slice(payload),
        }
    }

    #[test]
    fn entries_round_trip_and_know_where_their_payload_lies() {
        let entries = [entry(7, b"seven"), entry(8, b"")];
        let body = Bytes::from(encode_entries(GroupId(4), Some(entries[0].id), &entries));
        let read = decode_entries(&body).unwrap();
        assert_eq!((read.group, read.committed), (GroupId(4), Some(entries[0].id)));
        assert_eq!(read.entries[0].0, entries[0]);
        assert_eq!(read.entries[1].0, entries[1]);
        assert_eq!(&body[read.entries[0].1 as usize..][..5], b"seven");
    }

    proptest! {
        #[test]
        fn cut_or_changed_entries_never_panic(cut in 0usize..120, at in 0usize..120, byte: u8) {
            let mut body = encode_entries(GroupId(1), None, &[entry(1, b"abc"), entry(2, b"defg")]);
            let at = at % body.len();
            body[at] = byte;
            let _ = decode_entries(&Bytes::from(body.clone()));
            body.truncate(cut);
            let _ = decode_entries(&Bytes::from(body));
        }
    }
}
