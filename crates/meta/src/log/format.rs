//! The byte forms of what the Raft log writes, held to a golden file.

use super::LogId;
use super::record::*;
use crate::batch::{BatchBuilder, decode_batch, encode_mutation};
use crate::golden::{assert_golden, line};
use crate::raft::words::{MembershipWords, StoredMembershipWords};
use bytes::Bytes;
use plinth_protocol::meta::{Command, Mutation};
use plinth_protocol::wire::Wire;
use plinth_protocol::{BucketId, GroupId, HybridTime, NodeId, RequestId};
use std::collections::BTreeMap;

fn id(index: u64) -> LogId {
    LogId { term: 3, leader: NodeId(2), index }
}

fn membership() -> MembershipWords {
    let address = |node| (NodeId(node), format!("host{node}:1"));
    MembershipWords {
        configs: vec![vec![NodeId(1), NodeId(2)], vec![NodeId(2), NodeId(3)]],
        nodes: BTreeMap::from([address(1), address(2), address(3), address(4)]),
    }
}

fn batch() -> Bytes {
    let mutation = Mutation {
        group: GroupId(4),
        request: RequestId(7),
        writer: None,
        token: None,
        command: Command::OpenBucket(BucketId(9)),
        issued: None,
        seen: None,
    };
    let mut builder = BatchBuilder::with_capacity(0);
    builder.push(&encode_mutation(&mutation));
    let payload = builder.finish(HybridTime(0x0102_0304_0506_0708));
    assert_eq!(decode_batch(&payload).unwrap(), (HybridTime(0x0102_0304_0506_0708), vec![mutation]));
    payload
}

fn entries_body(committed: Option<LogId>, entries: &[LogEntry]) -> Vec<u8> {
    let body = encode_entries(GroupId(4), committed, entries);
    let read = decode_entries(&Bytes::from(body.clone())).unwrap();
    assert_eq!((read.group, read.committed), (GroupId(4), committed));
    assert!(read.entries.iter().map(|(entry, _)| entry).eq(entries), "entries read back as they were");
    body
}

#[test]
fn log_records_are_those_of_the_golden_file() {
    let vote = VoteWords { term: 3, node: NodeId(2), committed: true };
    let group = GroupId(4);
    let entries = [
        LogEntry { id: id(7), kind: EntryKind::Blank, payload: Bytes::new() },
        LogEntry { id: id(8), kind: EntryKind::Batch, payload: batch() },
        LogEntry { id: id(9), kind: EntryKind::Membership, payload: membership().to_bytes() },
    ];
    let kinds: Vec<u8> = (16..=21).collect();
    assert!(kinds.iter().all(|kind| RecordKind::try_from(*kind).is_ok_and(|read| read as u8 == *kind)));
    let state = StateRecord { group, vote: Some(vote.clone()), committed: Some(id(6)), purged: Some(id(5)) };
    let empty = StateRecord { group, vote: None, committed: None, purged: None };
    assert_golden(
        "meta_log_records.hex",
        &[
            line("log-id", &id(7)),
            line("vote-words", &vote),
            ("16-entries", entries_body(Some(id(6)), &entries)),
            ("16-entries-nothing-committed", entries_body(None, &entries[..1])),
            line("17-vote", &VoteRecord { group, vote }),
            line("18-truncate", &TruncateRecord { group, last: Some(id(7)) }),
            line("18-truncate-all", &TruncateRecord { group, last: None }),
            line("19-purge", &PurgeRecord { group, upto: id(7) }),
            line("20-state", &state),
            line("20-state-of-an-empty-group", &empty),
            ("21-carry", entries_body(None, &entries[1..2])),
            ("batch", batch().to_vec()),
            line("membership", &membership()),
            line("stored-membership", &StoredMembershipWords { at: Some(id(9)), membership: membership() }),
            line("stored-membership-before-any", &StoredMembershipWords { at: None, membership: membership() }),
        ],
    );
}
