//! Queries, their replies, and the outcomes of mutations.

use super::Samples;
use super::commands::mutation;
use super::fragment::{bare_stripe, owner, stripe};
use super::object::*;
use super::registry::{access_key, certificate, join_token, map, node, revoked, voter};
use bytes::Bytes;
use plinth_protocol::meta::*;
use plinth_protocol::wire::Wire;
use plinth_protocol::{Epoch, GROUP_SYSTEM, GroupId, WriterId};

fn object_query() -> ObjectQuery {
    ObjectQuery { bucket: BUCKET, key: key(), body: true }
}

fn parts_query() -> PartsQuery {
    PartsQuery { bucket: BUCKET, key: key(), upload: UPLOAD, from: 2, limit: LIST_ENTRIES_MAX }
}

fn upload_query() -> UploadQuery {
    UploadQuery { bucket: BUCKET, key: key(), upload: UPLOAD }
}

fn list_query() -> ListQuery {
    ListQuery {
        bucket: BUCKET,
        prefix: "folder/".into(),
        delimiter: Some("/".into()),
        after: Some("folder/b/".into()),
        after_prefix: true,
        limit: LIST_ENTRIES_MAX,
    }
}

fn bare_list_query() -> ListQuery {
    ListQuery { prefix: String::new(), delimiter: None, after: None, after_prefix: false, ..list_query() }
}

fn uploads_query() -> UploadsQuery {
    UploadsQuery {
        bucket: BUCKET,
        prefix: "folder/".into(),
        delimiter: Some("/".into()),
        after_key: Some(key()),
        after_upload: Some(UPLOAD),
        limit: 1,
    }
}

fn due_query() -> DueQuery {
    DueQuery { before: TIME, after: Some(Bytes::from_static(b"\x00row 1")), limit: 100, age_ms: None }
}

fn buckets_query() -> BucketsQuery {
    BucketsQuery { prefix: "a".into(), after: Some("a-bucket".into()), limit: 10, account: None }
}

fn queries() -> Vec<Query> {
    vec![
        Query::Object(object_query()),
        Query::Parts(parts_query()),
        Query::Upload(upload_query()),
        Query::List(list_query()),
        Query::Uploads(uploads_query()),
        Query::DueDeletes(due_query()),
        Query::FillIns(due_query()),
        Query::ShardStat,
        Query::Map(None),
        Query::Map(Some(Epoch(41))),
        Query::Bucket("a-bucket".into()),
        Query::Buckets(buckets_query()),
        Query::AccessKey("PLEXAMPLE".into()),
        Query::AccessKeys,
        Query::Voters,
        Query::JoinToken(join_token().hash),
        Query::JoinTokens,
        Query::Certificates,
    ]
}

fn refusal() -> Refusal {
    Refusal { kind: RefusalKind::InvalidPart, text: "part 2 has another ETag".into() }
}

fn outcomes() -> Vec<Outcome> {
    vec![
        Outcome::Done,
        Outcome::Object(object_row()),
        Outcome::Part(part_row()),
        Outcome::Bucket(bucket_row()),
        Outcome::Writer(WriterId(9)),
        Outcome::Node(node()),
        Outcome::Deleted(true),
        Outcome::Deleted(false),
        Outcome::Refused(refusal()),
        Outcome::Replayed(Box::new(Outcome::Object(bare_object_row()))),
    ]
}

fn object_view() -> ObjectView {
    ObjectView { row: object_row(), body: Some(object_body()) }
}

fn parts_page() -> PartsPage {
    PartsPage { parts: vec![(1, part_row()), (300, part_row())], more: true }
}

fn list_page() -> ListPage {
    ListPage {
        entries: vec![("a".into(), bare_object_row()), (key(), object_row())],
        prefixes: vec!["b/".into(), "c/".into()],
        more: true,
    }
}

fn upload_entry() -> UploadEntry {
    UploadEntry { key: key(), upload: UPLOAD, row: upload_row() }
}

fn uploads_page() -> UploadsPage {
    UploadsPage { uploads: vec![upload_entry()], prefixes: vec!["b/".into()], more: true }
}

fn due_delete() -> DueDelete {
    DueDelete { row: Bytes::from_static(b"\x00row 1"), at: TIME, stripes: vec![bare_stripe(), stripe()] }
}

fn due_page() -> DuePage {
    DuePage { rows: vec![due_delete()], more: true }
}

fn fill_in_row() -> FillInRow {
    FillInRow { row: Bytes::from_static(b"\x00row 2"), owner: owner(), stripe: stripe() }
}

fn fill_in_page() -> FillInPage {
    FillInPage { rows: vec![fill_in_row()], more: true }
}

fn usage() -> BucketUsage {
    BucketUsage { objects: 3, bytes: 5 << 30 }
}

fn shard_stat() -> ShardStat {
    ShardStat {
        objects: 1_000,
        object_bytes: 5 << 40,
        uploads: 2,
        deferred_deletes: 3,
        fill_ins: 4,
        fence: WriterId(8),
        buckets: vec![(BUCKET, usage())],
        discards: Some(5),
        expiry_held_ms: None,
    }
}

fn buckets_page() -> BucketsPage {
    BucketsPage { buckets: vec![bucket_row()], more: true }
}

fn timed_reply() -> TimedReply {
    TimedReply { time: TIME, reply: Reply::MapUnchanged.to_bytes() }
}

fn replies() -> Vec<Reply> {
    vec![
        Reply::Object(object_view()),
        Reply::Parts(parts_page()),
        Reply::Upload(upload_row()),
        Reply::List(list_page()),
        Reply::Uploads(uploads_page()),
        Reply::DueDeletes(due_page()),
        Reply::FillIns(fill_in_page()),
        Reply::ShardStat(shard_stat()),
        Reply::Map(map()),
        Reply::MapUnchanged,
        Reply::Bucket(bucket_row()),
        Reply::Buckets(buckets_page()),
        Reply::AccessKey(access_key()),
        Reply::AccessKeys(AccessKeyList { keys: vec![access_key()] }),
        Reply::Voters(VoterList { voters: vec![voter()] }),
        Reply::Absent(RefusalKind::NoSuchBucket),
        Reply::Outcome(Outcome::Refused(refusal())),
        Reply::Timed(timed_reply()),
        Reply::JoinToken(join_token()),
        Reply::JoinTokens(JoinTokenList { tokens: vec![join_token()] }),
        Reply::Certificates(certificates()),
    ]
}

fn certificates() -> CertificateList {
    CertificateList { certificates: vec![certificate()], revoked: vec![revoked()] }
}

fn query_samples(samples: &mut Samples) {
    samples.record([object_query(), ObjectQuery { body: false, ..object_query() }]);
    samples.record([parts_query()]);
    samples.record([upload_query()]);
    samples.record([list_query(), bare_list_query()]);
    let bare = UploadsQuery { delimiter: None, after_key: None, after_upload: None, ..uploads_query() };
    samples.record([uploads_query(), bare]);
    samples.record([
        due_query(),
        DueQuery { after: None, ..due_query() },
        DueQuery { age_ms: Some(900_000), ..due_query() },
    ]);
    samples.record([
        buckets_query(),
        BucketsQuery { after: None, ..buckets_query() },
        BucketsQuery { account: Some("a".into()), ..buckets_query() },
    ]);
    samples.choice(queries());
    let group_query = GroupQuery { group: GroupId(1), query: Query::List(list_query()), seen: None };
    let map = GroupQuery { group: GROUP_SYSTEM, query: Query::Map(None), seen: None };
    samples.record([group_query.clone(), map, GroupQuery { seen: Some(TIME), ..group_query.clone() }]);
    samples.choice([MetaRequest::Mutate(mutation()), MetaRequest::Query(group_query)]);
}

pub fn samples(samples: &mut Samples) {
    query_samples(samples);
    samples.numbered(RefusalKind::ALL);
    samples.record([refusal()]);
    samples.choice(outcomes());
    samples.record([object_view(), ObjectView { row: bare_object_row(), body: None }]);
    samples.record([parts_page(), PartsPage { parts: vec![], more: false }]);
    samples.record([list_page(), ListPage { entries: vec![], prefixes: vec![], more: false }]);
    samples.record([upload_entry()]);
    samples.record([uploads_page(), UploadsPage { uploads: vec![], prefixes: vec![], more: false }]);
    samples.record([due_delete(), DueDelete { stripes: vec![], ..due_delete() }]);
    samples.record([due_page(), DuePage { rows: vec![], more: false }]);
    samples.record([fill_in_row()]);
    samples.record([fill_in_page(), FillInPage { rows: vec![], more: false }]);
    samples.record([usage()]);
    // As the first version wrote it.
    let bare = ShardStat { discards: None, ..shard_stat() };
    samples.record([
        shard_stat(),
        ShardStat { buckets: vec![], ..bare.clone() },
        bare,
        ShardStat { expiry_held_ms: Some(172_800_000), ..shard_stat() },
    ]);
    samples.record([buckets_page(), BucketsPage { buckets: vec![], more: false }]);
    samples.record([AccessKeyList { keys: vec![access_key()] }, AccessKeyList { keys: vec![] }]);
    samples.record([VoterList { voters: vec![voter()] }, VoterList { voters: vec![] }]);
    samples.record([timed_reply()]);
    samples.record([JoinTokenList { tokens: vec![join_token()] }, JoinTokenList { tokens: vec![] }]);
    samples.record([certificates(), CertificateList { certificates: vec![], revoked: vec![] }]);
    samples.choice(replies());
}
