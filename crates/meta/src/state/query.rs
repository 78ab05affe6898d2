//! Queries: what a group answers from its rows, changing nothing.

use super::rows::{
    self, BucketName, BucketsByAccount, DeferredDelete, MapHeader, NodeRow, OpenBucketRow, OwedFragments, ShardRow,
};
use super::store::{Cursor, Family, KeyRange, View};
use super::{StateError, keys, listing};
use bytes::Bytes;
use plinth_protocol::map::{ClusterMap, NodeRecord};
use plinth_protocol::meta::{
    AccessKeyList, BucketUsage, BucketsPage, BucketsQuery, CertificateList, DueDelete, DuePage, DueQuery, FillInPage,
    FillInRow, JoinTokenList, LIST_ENTRIES_MAX, ObjectQuery, ObjectView, PartsPage, PartsQuery, Query, RefusalKind,
    Reply, ShardStat, UploadQuery, VoterList,
};
use plinth_protocol::object::{BucketRow, ObjectBody, ObjectRow, PartRow, UploadRow};
use plinth_protocol::wire::{Wire, WireError, encode_varint};
use plinth_protocol::{BucketId, Epoch, Failure, FailureKind, GROUP_SYSTEM, GroupId, UploadId, WriterId};

/// Most bytes of rows in one page of parts or work rows: keeps replies far below a frame.
const PAGE_BYTES_MAX: usize = 4 << 20;
/// The variant of `Reply` that holds a listing; a test holds it to the protocol's.
const REPLY_LIST: u64 = 4;

type Answered = Result<Reply, StateError>;

/// Answers a query from one view.
pub(super) fn answer<V: View>(view: &V, group: GroupId, query: &Query) -> Result<Reply, Failure> {
    if of_system(query) != (group == GROUP_SYSTEM) {
        return Err(Failure::new(FailureKind::Invalid, "the query is for another kind of group"));
    }
    if let Query::Map(known) = query {
        return map(view, *known)?
            .ok_or_else(|| Failure::new(FailureKind::Unavailable, "the cluster is not founded yet"));
    }
    Ok(answer_from(view, query)?)
}

/// Answers a query in wire form.
pub(super) fn answer_encoded<V: View>(
    view: &V,
    group: GroupId,
    query: &Query,
    out: &mut Vec<u8>,
) -> Result<(), Failure> {
    match query {
        Query::List(list) if group != GROUP_SYSTEM && is_open(view, list.bucket)? => {
            encode_varint(REPLY_LIST, out);
            Ok(listing::list_encoded(view, list, out)?)
        }
        _ => {
            answer(view, group, query)?.encode(out);
            Ok(())
        }
    }
}

fn of_system(query: &Query) -> bool {
    match query {
        Query::Map(_)
        | Query::Bucket(_)
        | Query::Buckets(_)
        | Query::AccessKey(_)
        | Query::AccessKeys
        | Query::Voters
        | Query::JoinToken(_)
        | Query::JoinTokens
        | Query::Certificates => true,
        Query::Object(_)
        | Query::Parts(_)
        | Query::Upload(_)
        | Query::List(_)
        | Query::Uploads(_)
        | Query::DueDeletes(_)
        | Query::FillIns(_)
        | Query::ShardStat => false,
    }
}

fn answer_from<V: View>(view: &V, query: &Query) -> Answered {
    if let Some(bucket) = bucket_of(query)
        && !is_open(view, bucket)?
    {
        return Ok(Reply::Absent(RefusalKind::NoSuchBucket));
    }
    match query {
        Query::Object(query) => object(view, query),
        Query::Parts(query) => parts(view, query),
        Query::Upload(query) => upload(view, query),
        Query::List(query) => listing::list(view, query).map(Reply::List),
        Query::Uploads(query) => listing::uploads(view, query).map(Reply::Uploads),
        Query::DueDeletes(query) => due_deletes(view, query),
        Query::FillIns(query) => fill_ins(view, query),
        Query::ShardStat => shard_stat(view),
        Query::Map(known) => map(view, *known).map(|reply| reply.unwrap_or(Reply::MapUnchanged)),
        Query::Bucket(name) => {
            let row = read(view, Family::Registry, &keys::bucket_name(name))?;
            Ok(row.map_or(Reply::Absent(RefusalKind::NoSuchBucket), Reply::Bucket))
        }
        Query::Buckets(query) => buckets(view, query),
        Query::AccessKey(id) => {
            let row = read(view, Family::Registry, &keys::access_key(id))?;
            Ok(row.map_or(Reply::Absent(RefusalKind::NoSuchAccessKey), Reply::AccessKey))
        }
        Query::AccessKeys => {
            let keys = registered(view, keys::registry::ACCESS_KEY)?;
            Ok(Reply::AccessKeys(AccessKeyList { keys }))
        }
        Query::Voters => {
            let voters = registered(view, keys::registry::VOTER)?;
            Ok(Reply::Voters(VoterList { voters }))
        }
        Query::JoinToken(hash) => {
            let row = read(view, Family::Registry, &keys::join_token(hash))?;
            Ok(row.map_or(Reply::Absent(RefusalKind::InvalidToken), Reply::JoinToken))
        }
        Query::JoinTokens => {
            let tokens = registered(view, keys::registry::JOIN_TOKEN)?;
            Ok(Reply::JoinTokens(JoinTokenList { tokens }))
        }
        Query::Certificates => {
            let certificates = registered(view, keys::registry::CERTIFICATE)?;
            let header: Option<MapHeader> = read(view, Family::Registry, &keys::header())?;
            let revoked = header.map(|header| header.revoked).unwrap_or_default();
            Ok(Reply::Certificates(CertificateList { certificates, revoked }))
        }
    }
}

/// Returns the bucket that must be open for a query.
fn bucket_of(query: &Query) -> Option<BucketId> {
    match query {
        Query::Object(query) => Some(query.bucket),
        Query::Parts(query) => Some(query.bucket),
        Query::Upload(query) => Some(query.bucket),
        Query::List(query) => Some(query.bucket),
        Query::Uploads(query) => Some(query.bucket),
        _ => None,
    }
}

fn is_open<V: View>(view: &V, bucket: BucketId) -> Result<bool, StateError> {
    Ok(view.get(Family::State, &keys::open_bucket(bucket))?.is_some())
}

fn open_upload<V: View>(
    view: &V,
    bucket: BucketId,
    key: &str,
    upload: UploadId,
) -> Result<Option<UploadRow>, StateError> {
    let row: Option<UploadRow> = read(view, Family::Uploads, &keys::upload(bucket, key, upload))?;
    let opened = listing::opened(view, bucket)?;
    Ok(row.filter(|row| opened.is_some_and(|opened| row.initiated >= opened)))
}

fn read<V: View, T: Wire>(view: &V, family: Family, key: &[u8]) -> Result<Option<T>, StateError> {
    view.get(family, key)?.map(|row| rows::decode(family, &row)).transpose()
}

fn registered<V: View, T: Wire>(view: &V, tag: u8) -> Result<Vec<T>, StateError> {
    let mut cursor = view.cursor(Family::Registry, &KeyRange::of_prefix(&[tag]))?;
    let mut records = Vec::new();
    while let Some((_, row)) = cursor.item() {
        records.push(rows::decode(Family::Registry, row)?);
        cursor.step()?;
    }
    Ok(records)
}

fn object<V: View>(view: &V, query: &ObjectQuery) -> Answered {
    let key = keys::object(query.bucket, &query.key);
    let Some(row) = read::<V, ObjectRow>(view, Family::Objects, &key)? else {
        return Ok(Reply::Absent(RefusalKind::NoSuchKey));
    };
    if !query.body {
        return Ok(Reply::Object(ObjectView { row, body: None }));
    }
    // The two rows come and go in one batch: one without the other is damage.
    let Some(body) = read::<V, ObjectBody>(view, Family::Bodies, &key)? else {
        return Err(StateError::Row { family: Family::Bodies.name(), source: WireError::Truncated });
    };
    Ok(Reply::Object(ObjectView { row, body: Some(body) }))
}

fn upload<V: View>(view: &V, query: &UploadQuery) -> Answered {
    let row = open_upload(view, query.bucket, &query.key, query.upload)?;
    Ok(row.map_or(Reply::Absent(RefusalKind::NoSuchUpload), Reply::Upload))
}

/// Whether an upload is open, or has become the key's current object.
fn has_upload<V: View>(view: &V, bucket: BucketId, key: &str, upload: UploadId) -> Result<bool, StateError> {
    if open_upload(view, bucket, key, upload)?.is_some() {
        return Ok(true);
    }
    let object: Option<ObjectRow> = read(view, Family::Objects, &keys::object(bucket, key))?;
    Ok(object.is_some_and(|row| row.upload == Some(upload)))
}

fn parts<V: View>(view: &V, query: &PartsQuery) -> Answered {
    if !has_upload(view, query.bucket, &query.key, query.upload)? {
        return Ok(Reply::Absent(RefusalKind::NoSuchUpload));
    }
    let mut range = KeyRange::of_prefix(&keys::upload(query.bucket, &query.key, query.upload));
    range.start = keys::part(query.bucket, &query.key, query.upload, query.from);
    let mut page = PartsPage { parts: Vec::new(), more: false };
    page.more = each_row(view, Family::Parts, &range, query.limit, |place, row| {
        let number = keys::parse_part_number(place).map_err(rows::unreadable(Family::Parts))?;
        page.parts.push((number, rows::decode::<PartRow>(Family::Parts, row)?));
        Ok(Taken::Line)
    })?;
    Ok(Reply::Parts(page))
}

/// What a row became in its page.
enum Taken {
    Line,
    Nothing,
    /// Neither this row nor any behind it belongs to the page.
    End,
}

/// Shows the rows of a range until the page is full, in lines or in bytes; returns whether more follow.
fn each_row<V: View>(
    view: &V,
    family: Family,
    range: &KeyRange,
    limit: u32,
    mut take: impl FnMut(&[u8], &[u8]) -> Result<Taken, StateError>,
) -> Result<bool, StateError> {
    let (mut lines, mut bytes) = (0, 0);
    let mut cursor = view.cursor(family, range)?;
    while let Some((place, row)) = cursor.item() {
        if lines == limit.min(LIST_ENTRIES_MAX) || bytes >= PAGE_BYTES_MAX {
            return Ok(true);
        }
        match take(place, row)? {
            Taken::Line => (lines, bytes) = (lines + 1, bytes + row.len()),
            Taken::Nothing => {}
            Taken::End => return Ok(false),
        }
        cursor.step()?;
    }
    Ok(false)
}

fn after(key: &Option<Bytes>) -> KeyRange {
    let start = key.as_ref().map(|key| [key, &[0][..]].concat()).unwrap_or_default();
    KeyRange { start, end: None }
}

fn due_deletes<V: View>(view: &V, query: &DueQuery) -> Answered {
    let shard: Option<ShardRow> = read(view, Family::State, keys::SHARD)?;
    let before = query.before.before(shard.and_then(|shard| shard.expiry_held_ms).unwrap_or(0));
    let mut page = DuePage { rows: Vec::new(), more: false };
    page.more = each_row(view, Family::Deletes, &after(&query.after), query.limit, |place, row| {
        let row: DeferredDelete = rows::decode(Family::Deletes, row)?;
        if row.at >= before {
            return Ok(Taken::End);
        }
        page.rows.push(DueDelete { row: Bytes::copy_from_slice(place), at: row.at, stripes: row.stripes });
        Ok(Taken::Line)
    })?;
    Ok(Reply::DueDeletes(page))
}

fn fill_ins<V: View>(view: &V, query: &DueQuery) -> Answered {
    let mut page = FillInPage { rows: Vec::new(), more: false };
    page.more = each_row(view, Family::FillIns, &after(&query.after), query.limit, |place, row| {
        let row: OwedFragments = rows::decode(Family::FillIns, row)?;
        if row.at >= query.before {
            return Ok(Taken::Nothing);
        }
        page.rows.push(FillInRow { row: Bytes::copy_from_slice(place), owner: row.owner, stripe: row.stripe });
        Ok(Taken::Line)
    })?;
    Ok(Reply::FillIns(page))
}

fn shard_stat<V: View>(view: &V) -> Answered {
    let shard: Option<ShardRow> = read(view, Family::State, keys::SHARD)?;
    let mut buckets = Vec::new();
    let mut cursor = view.cursor(Family::State, &KeyRange::of_prefix(keys::OPEN_BUCKETS))?;
    while let Some((place, row)) = cursor.item() {
        let bucket = keys::parse_open_bucket(place).map_err(rows::unreadable(Family::State))?;
        let row: OpenBucketRow = rows::decode(Family::State, row)?;
        buckets.push((bucket, BucketUsage { objects: row.objects, bytes: row.bytes }));
        cursor.step()?;
    }
    let count = |of: fn(&ShardRow) -> u64| shard.as_ref().map_or(0, of);
    Ok(Reply::ShardStat(ShardStat {
        objects: count(|shard| shard.objects),
        object_bytes: count(|shard| shard.object_bytes),
        uploads: count(|shard| shard.uploads),
        deferred_deletes: count(|shard| shard.deferred_deletes),
        fill_ins: count(|shard| shard.fill_ins),
        discards: shard.as_ref().and_then(|shard| shard.discards).filter(|discards| *discards > 0),
        fence: shard.as_ref().map_or(WriterId(0), |shard| shard.fence),
        buckets,
        expiry_held_ms: shard.and_then(|shard| shard.expiry_held_ms),
    }))
}

fn map<V: View>(view: &V, known: Option<Epoch>) -> Result<Option<Reply>, StateError> {
    let Some(header) = read::<V, MapHeader>(view, Family::Registry, &keys::header())? else {
        return Ok(None);
    };
    if known == Some(header.epoch) {
        return Ok(Some(Reply::MapUnchanged));
    }
    let nodes: Vec<NodeRow> = registered(view, keys::registry::NODE)?;
    let mut shards: Vec<plinth_protocol::map::ShardRecord> = registered(view, keys::registry::SHARD)?;
    shards.sort_by(|a, b| (a.start.bucket, &a.start.key).cmp(&(b.start.bucket, &b.start.key)));
    Ok(Some(Reply::Map(ClusterMap {
        cluster: header.cluster,
        epoch: header.epoch,
        nodes: nodes.into_iter().map(|row| NodeRecord { public_key: row.public_key, ..row.node }).collect(),
        disks: registered(view, keys::registry::DISK)?,
        pgs: registered(view, keys::registry::PG)?,
        shards,
        code: header.code,
        fragment_bytes_max: header.fragment_bytes_max,
        name: header.name,
        voters: header.voters,
        feature_level: header.feature_level,
        denied_nodes: header.denied,
        revoked_certificates: header.revoked.into_iter().map(|revoked| revoked.serial).collect(),
    })))
}

/// Answers from the list by account.
fn buckets_of<V: View>(view: &V, query: &BucketsQuery, account: &str) -> Answered {
    let mut range = KeyRange::of_prefix(&keys::bucket_of_account(account, &query.prefix));
    if let Some(after) = &query.after {
        range.start = range.start.max([&keys::bucket_of_account(account, after)[..], &[0]].concat());
    }
    let mut page = BucketsPage { buckets: Vec::new(), more: false };
    page.more = each_row(view, Family::Registry, &range, query.limit, |_, row| {
        let BucketName { name } = rows::decode(Family::Registry, row)?;
        let bucket: Option<BucketRow> = read(view, Family::Registry, &keys::bucket_name(&name))?;
        page.buckets.extend(bucket);
        Ok(Taken::Line)
    })?;
    Ok(Reply::Buckets(page))
}

fn buckets<V: View>(view: &V, query: &BucketsQuery) -> Answered {
    if let Some(account) = &query.account {
        let progress: Option<BucketsByAccount> = read(view, Family::Registry, &keys::buckets_by_account())?;
        if progress.is_some_and(|progress| progress.complete) {
            return buckets_of(view, query, account);
        }
    }
    let mut range = KeyRange::of_prefix(&keys::bucket_name(&query.prefix));
    if let Some(after) = &query.after {
        range.start = range.start.max([&keys::bucket_name(after)[..], &[0]].concat());
    }
    let mut page = BucketsPage { buckets: Vec::new(), more: false };
    page.more = each_row(view, Family::Registry, &range, query.limit, |_, row| {
        page.buckets.push(rows::decode::<BucketRow>(Family::Registry, row)?);
        Ok(Taken::Line)
    })?;
    Ok(Reply::Buckets(page))
}
