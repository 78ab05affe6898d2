//! Requests to the metadata: linearizable reads, and mutations that one Raft commit decides.
//!
//! A mutation names its request id; the group remembers the first outcome for
//! [`REQUEST_MEMORY_MS`] and answers a repetition with it. Time never comes from the sender: the
//! leader stamps the command. A sender only says when it issued a request, in the group's own time
//! as it last saw it, so that a repetition that comes after its outcome has been forgotten is refused.

pub use crate::admission::*;
use crate::hidden::Hidden;
use crate::ids::*;
use crate::map::{ClusterMap, DiskRecord, NodeRecord, PlacementGroup, ShardRecord, State};
use crate::object::{
    BucketRow, Checksum, ChecksumAlgorithm, ChecksumKind, Etag, ObjectBody, ObjectRow, PartRow, StoredHeaders,
    UploadRow,
};
use crate::rpc::{Failure, Role};
use crate::stripe::{Owner, StripeRef};
use crate::{choice, numbered, record};
use bytes::Bytes;

/// How long a group remembers the outcome of an internal request, in milliseconds of command time.
pub const REQUEST_MEMORY_MS: u64 = 15 * 60 * 1000;
/// How long it remembers the outcome of a client's own token.
pub const TOKEN_MEMORY_MS: u64 = 24 * 60 * 60 * 1000;
/// Longest address of a node in bytes: a host name of 253, a colon, five digits, brackets.
pub const ADDRESS_BYTES_MAX: usize = 261;
/// Rules of a shard's apply from which on impossible bodies are refused, and heavy work is put off
/// (see [`Command::RaiseRules`]).
pub const RULES_STRICT: u32 = 1;
/// Most rows of deferred deletes that one command forgets.
pub const FINISHED_DELETES_MAX: usize = 1000;
/// How far a group's time may be from the median of its voters' wall clocks, and an issue time ahead of the group's
/// time, in milliseconds.
pub const CLOCK_BOUND_MS: u64 = 500;
/// Most entries in one page of any list.
pub const LIST_ENTRIES_MAX: u32 = 1000;

choice! {
    /// A request to one group.
    #[allow(clippy::large_enum_variant)]
    pub enum MetaRequest {
        /// Decided by one commit.
        1 => Mutate(Mutation),
        /// Answered from applied state at a read index.
        2 => Query(GroupQuery),
    }
}

record! {
    /// A query and the group that it asks.
    pub struct GroupQuery {
        1 => group: GroupId,
        2 => query: Query,
        /// The highest time that the sender has seen; the answer is then `Reply::Timed`. 0 before the first.
        3 -> seen: Option<HybridTime>,
    }
}

record! {
    /// A mutation of one group.
    pub struct Mutation {
        1 => group: GroupId,
        2 => request: RequestId,
        /// The writer whose stripes the command refers to; refused when fenced.
        3 => writer: Option<WriterId>,
        /// A client's own token (`x-amz-client-token`, or implied).
        4 => token: Option<ClientToken>,
        5 => command: Command,
        /// When the request was first sent, in the group's time. The group refuses what is as old as an outcome that
        /// it has forgotten (`Expired`). Absent: a sender of unknown age (an old gateway, or a voter itself, which
        /// never repeats a request), protected by its request id alone.
        6 -> issued: Option<HybridTime>,
        /// The highest time that the sender has seen in any group, as in `GroupQuery`. Not part of the log.
        7 -> seen: Option<HybridTime>,
    }
}

record! {
    /// A client's token: its scope and parameters are hashed by the gateway.
    pub struct ClientToken {
        /// SHA-256 over principal, operation, bucket, key and token, cut to 128 bits.
        1 => scope: u128,
        /// SHA-256 over the parameters, body checksum included, cut to 128 bits.
        2 => parameters: u128,
        /// How long to remember, in milliseconds.
        3 => memory_ms: u64,
        /// Other parameters under the same token: true = refuse, false = a new request (implied tokens).
        4 => strict: bool,
    }
}

choice! {
    /// What shall change. Numbers below 64 belong to object shards, others to the system group.
    pub enum Command {
        1 => PutObject(PutObject),
        2 => DeleteObject(DeleteObject),
        3 => CreateUpload(CreateUpload),
        4 => PutPart(PutPart),
        5 => CompleteUpload(CompleteUpload),
        6 => AbortUpload(AbortUpload),
        /// Makes a shard accept the bucket. Idempotent.
        7 => OpenBucket(BucketId),
        /// Makes a shard refuse the bucket from now on; `Conflict` while it holds objects. Open uploads are aborted.
        8 => CloseBucket(BucketId),
        /// Records that owed fragments of a stripe are durable now.
        9 => FillIn(FilledIn),
        /// Forgets deferred deletes whose fragments are gone.
        10 => FinishDeletes(FinishDeletes),
        /// Raises the shard's fence: commits of writers below it fail from now on.
        11 => RaiseFence(WriterId),
        /// Has the shard decide what follows in its log by newer rules, never by older ones again. The
        /// leader sends it: which rules hold is a matter of the log, not of the voter that applies it.
        12 => RaiseRules(u32),
        /// Takes apart what heavy commands have put off, a bounded number of rows. The leader sends it.
        13 => TakeApart,
        /// As `OpenBucket`, for a numbered change: refused where a later change has been seen.
        14 => OpenAttempt(BucketAttempt),
        /// As `CloseBucket`, for a numbered change; changes before it are refused from then on.
        15 => CloseAttempt(BucketAttempt),
        /// Confirms a jump of time by more than a day: what expires goes by the group's time again. Any group.
        40 => ConfirmTime,

        64 => CreateBucket(CreateBucket),
        65 => ActivateBucket(BucketId),
        66 => BeginDeleteBucket(BucketId),
        /// Takes a closing bucket back to active: its shard was not empty.
        67 => KeepBucket(BucketId),
        68 => RemoveBucket(BucketId),
        /// Hands out a writer id to a gateway.
        69 => RegisterWriter(NodeId),
        /// Founds the cluster; only on an empty system group.
        70 => Found(Box<Founding>),
        /// Adds or renews a node; the reply carries its id and incarnation.
        71 => RegisterNode(RegisterNode),
        72 => RegisterDisk(DiskRecord),
        73 => SetNodeState(SetNodeState),
        74 => SetDiskState(SetDiskState),
        /// Adds placement groups and closes others, against the epoch they were planned on.
        75 => ChangePlacement(ChangePlacement),
        76 => SetVoters(SetVoters),
        77 => CreateAccessKey(AccessKeyRow),
        78 => RevokeAccessKey(String),
        79 => CreateJoinToken(JoinTokenRow),
        /// Uses a join token up: once, before its expiry.
        80 => ConsumeJoinToken(ConsumeJoinToken),
        /// A voter's own promise (boot counter, log id, durable floor), checked at every handshake.
        81 => RecordVoter(VoterRecord),
        /// Shows a bucket that all shards have opened, if no later change has begun.
        82 => ActivateAttempt(BucketAttempt),
        /// Begins the deletion of an active bucket under a new number; the outcome is the row with it. Of a bucket
        /// that is being deleted already: its row.
        83 => BeginDeleteAttempt(BucketId),
        /// Turns a deletion round, under a new number: a shard was not empty.
        84 => ReopenBucket(BucketAttempt),
        /// Removes a bucket that all shards have closed, if no later change has begun.
        85 => RemoveAttempt(BucketAttempt),
        /// A node says where it is reached: from itself alone.
        90 => AnnounceAddress(NodeAddress),
        /// Admits a node by its token.
        96 => AdmitNode(Box<AdmitNode>),
        /// Withdraws a join token, by its hash.
        97 => RevokeJoinToken([u8; 32]),
        /// Writes down a certificate, and the key of a node whose key is not known yet.
        98 => RecordCertificate(CertificateRow),
        /// Refuses a certificate from now on, by its serial number.
        99 => RevokeCertificate(u128),
        /// Refuses a node from now on, or admits it again.
        100 => DenyNode(DenyNode),
    }
}

numbered! {
    /// The state of an object that a write or delete insists on, decided in apply.
    pub enum ExpectationKind {
        /// The key must not exist (`If-None-Match: *`).
        Absent = 1,
        /// The key must exist (`If-Match: *`).
        Present = 2,
        /// The key must exist with this ETag (`If-Match`).
        Matches = 3,
    }
}

record! {
    /// A condition of a mutation.
    pub struct Expectation {
        1 => kind: ExpectationKind,
        /// The ETag text without quotes, for `Matches`.
        2 => etag: Option<String>,
    }
}

record! {
    /// Publishes an object whose bytes are durable.
    pub struct PutObject {
        1 => bucket: BucketId,
        2 => key: String,
        3 => size_bytes: u64,
        4 => etag: Etag,
        5 => checksum: Option<Checksum>,
        6 => body: ObjectBody,
        7 => expectation: Option<Expectation>,
    }
}

record! {
    /// Deletes the current version.
    pub struct DeleteObject {
        1 => bucket: BucketId,
        2 => key: String,
        3 => expectation: Option<Expectation>,
    }
}

record! {
    /// Opens a multipart upload under an id that the gateway drew.
    pub struct CreateUpload {
        1 => bucket: BucketId,
        2 => key: String,
        3 => upload: UploadId,
        4 => headers: StoredHeaders,
        5 => algorithm: Option<ChecksumAlgorithm>,
        6 => kind: Option<ChecksumKind>,
    }
}

record! {
    /// Adds or replaces a part whose bytes are durable.
    pub struct PutPart {
        1 => bucket: BucketId,
        2 => key: String,
        3 => upload: UploadId,
        4 => number: u16,
        5 => part: PartRow,
    }
}

record! {
    /// Publishes an upload as an object. The gateway names the parts it was told; the shard judges
    /// existence, ETags, sizes and order, and computes ETag and checksum itself.
    pub struct CompleteUpload {
        1 => bucket: BucketId,
        2 => key: String,
        3 => upload: UploadId,
        4 => parts: Vec<CompletePart>,
        5 => expectation: Option<Expectation>,
        /// `x-amz-mp-object-size`, where given.
        6 => size_bytes: Option<u64>,
        /// The object's checksum as the client states it.
        7 => checksum: Option<Checksum>,
    }
}

record! {
    /// One part as CompleteMultipartUpload lists it.
    pub struct CompletePart {
        1 => number: u16,
        /// The ETag text without quotes.
        2 => etag: String,
        3 => checksum: Option<Bytes>,
    }
}

record! {
    /// Drops an upload and its parts.
    pub struct AbortUpload {
        1 => bucket: BucketId,
        2 => key: String,
        3 => upload: UploadId,
    }
}

record! {
    /// Fragments of a stripe that are durable now.
    pub struct FilledIn {
        1 => owner: Owner,
        2 => stripe: StripeId,
        /// Bit i: fragment i.
        3 => fragments: u32,
    }
}

record! {
    /// Deferred deletes that are done, by their row's key.
    pub struct FinishDeletes {
        1 => rows: Vec<Bytes>,
    }
}

record! {
    /// Creates a bucket under an id that the gateway drew.
    pub struct CreateBucket {
        1 => bucket: BucketId,
        2 => name: String,
        3 => owner: String,
        4 => location: Option<String>,
        /// The sender goes on by `OpenAttempt` and `ActivateAttempt`: the row gets a number.
        5 -> numbered: bool,
    }
}

record! {
    /// A change of a bucket: creation, deletion, or a deletion turned round. Group 0 numbers them in its
    /// log's order, so that a step of an earlier change that arrives late is known by its number.
    pub struct BucketAttempt {
        1 => bucket: BucketId,
        2 => attempt: u64,
    }
}

record! {
    /// What a cluster begins with: its map and the first access keys.
    pub struct Founding {
        1 => map: ClusterMap,
        2 => keys: Vec<AccessKeyRow>,
    }
}

record! {
    /// Where a node is reached.
    pub struct NodeAddress {
        1 => node: NodeId,
        /// Host and port of the node-to-node socket, at most [`ADDRESS_BYTES_MAX`].
        2 => address: String,
    }
}

record! {
    /// A new state of a node.
    pub struct SetNodeState {
        1 => node: NodeId,
        2 => state: State,
    }
}

record! {
    /// A new state of a disk, and its used bytes and damage as last reported.
    pub struct SetDiskState {
        1 => disk: DiskId,
        2 => state: Option<State>,
        3 => used_bytes: Option<u64>,
        4 -> quarantined: Option<u64>,
    }
}

record! {
    /// New placement groups, planned on one epoch of the map.
    pub struct ChangePlacement {
        1 => planned_on: Epoch,
        2 => add: Vec<PlacementGroup>,
        3 => close: Vec<PgId>,
        4 => code: Option<crate::stripe::Code>,
    }
}

record! {
    /// The voters of a group as its Raft membership stands; also creates the shard record.
    pub struct SetVoters {
        1 => shard: ShardRecord,
    }
}

/// Longest id of an access key in bytes.
pub const ACCESS_KEY_ID_BYTES_MAX: usize = 128;

/// Returns whether an access key can have this id: letters, digits, `-`, `_` and `.`, at most
/// [`ACCESS_KEY_ID_BYTES_MAX`]. What is no id is never looked up.
pub fn is_access_key_id(id: &str) -> bool {
    (1..=ACCESS_KEY_ID_BYTES_MAX).contains(&id.len())
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

record! {
    /// An access key; the secret is wrapped under the cluster's key-wrapping key.
    pub struct AccessKeyRow {
        1 => id: String,
        2 => wrapped_secret: Hidden<Bytes>,
        3 => account: String,
        4 => created: HybridTime,
        5 => description: Option<String>,
    }
}

record! {
    /// What group 0 knows of a voter's log.
    pub struct VoterRecord {
        1 => node: NodeId,
        /// Drawn at random when the voter's log was formatted.
        2 => log: u128,
        /// Counts the voter's starts.
        3 => boot: u64,
        /// Every log record up to this sequence number was durable at the voter.
        4 => floor: u64,
    }
}

choice! {
    /// The outcome of a mutation.
    pub enum Outcome {
        /// Done; nothing to tell.
        1 => Done,
        2 => Object(ObjectRow),
        3 => Part(PartRow),
        4 => Bucket(BucketRow),
        5 => Writer(WriterId),
        6 => Node(NodeRecord),
        /// DeleteObject: whether the key existed.
        7 => Deleted(bool),
        /// A decided refusal; repeating the request gives it again.
        8 => Refused(Refusal),
        /// The first answer to a client's token, given again.
        9 => Replayed(Box<Outcome>),
    }
}

numbered! {
    /// Decided refusals, in the namespace's own words; the gateway alone spells S3's.
    pub enum RefusalKind {
        /// The condition does not hold.
        PreconditionFailed = 1,
        /// `If-Match` on a key that does not exist.
        NoSuchKey = 2,
        NoSuchBucket = 3,
        NoSuchUpload = 4,
        BucketNotEmpty = 5,
        BucketExists = 6,
        BucketOwnedByYou = 7,
        /// A listed part does not exist or has another ETag.
        InvalidPart = 8,
        InvalidPartOrder = 9,
        /// A part but the last is below 5 MiB.
        PartTooSmall = 10,
        /// `x-amz-mp-object-size` differs.
        SizeMismatch = 11,
        /// The stated checksum differs from the one computed over the parts.
        BadDigest = 12,
        /// The checksum given does not go with the upload's algorithm or kind.
        InvalidChecksum = 13,
        /// Other parameters under a known client token.
        TokenMismatch = 14,
        /// The writer is below the shard's fence.
        WriterFenced = 15,
        /// The map has moved on since the plan was made.
        StaleEpoch = 16,
        NoSuchNode = 17,
        NoSuchDisk = 18,
        NoSuchAccessKey = 19,
        /// The join token is unknown, used, expired or for other roles.
        InvalidToken = 20,
        /// The voter is not the one that group 0 knows: wiped or rolled back.
        VoterRefused = 21,
        /// The cluster has been founded already.
        AlreadyFounded = 22,
        /// The name or id is taken.
        AlreadyExists = 23,
        /// The object would be larger than S3 allows.
        ObjectTooLarge = 24,
        /// The command makes no sense to this group: a fault of the sender, nothing was changed.
        Invalid = 25,
        /// A later change of the bucket has begun.
        StaleAttempt = 26,
        /// The request is as old as outcomes that the group has forgotten: it may have been decided before, so it is
        /// not decided again. Not remembered: the group refuses it for ever.
        Expired = 40,
        /// The request claims to have been issued after the group's present time. Not remembered.
        IssuedInFuture = 41,
        /// No certificate has this serial number, or it has ended.
        NoSuchCertificate = 48,
    }
}

record! {
    /// A decided refusal with its particulars.
    pub struct Refusal {
        1 => kind: RefusalKind,
        2 => text: String,
    }
}

choice! {
    /// What to read from a group. Numbers below 64 belong to object shards.
    pub enum Query {
        1 => Object(ObjectQuery),
        2 => Parts(PartsQuery),
        3 => Upload(UploadQuery),
        4 => List(ListQuery),
        5 => Uploads(UploadsQuery),
        /// Deferred deletes older than the given time, oldest first.
        6 => DueDeletes(DueQuery),
        /// Stripes that owe fragments.
        7 => FillIns(DueQuery),
        /// Counts and sizes of the shard.
        8 => ShardStat,

        64 => Map(Option<Epoch>),
        65 => Bucket(String),
        66 => Buckets(BucketsQuery),
        67 => AccessKey(String),
        68 => AccessKeys,
        69 => Voters,
        /// A join token, by its hash.
        96 => JoinToken([u8; 32]),
        97 => JoinTokens,
        98 => Certificates,
    }
}

record! {
    /// One object; `body` asks for headers and bytes' places too.
    pub struct ObjectQuery {
        1 => bucket: BucketId,
        2 => key: String,
        3 => body: bool,
    }
}

record! {
    /// Part rows of an upload, open or finished, from a number on.
    pub struct PartsQuery {
        1 => bucket: BucketId,
        2 => key: String,
        3 => upload: UploadId,
        /// First part number wanted.
        4 => from: u16,
        5 => limit: u32,
    }
}

record! {
    /// An open upload.
    pub struct UploadQuery {
        1 => bucket: BucketId,
        2 => key: String,
        3 => upload: UploadId,
    }
}

record! {
    /// A page of a listing in UTF-8 order. `after` is exclusive; a common prefix equal to or above
    /// which the page starts is given as `after` with `after_prefix`.
    pub struct ListQuery {
        1 => bucket: BucketId,
        2 => prefix: String,
        3 => delimiter: Option<String>,
        4 => after: Option<String>,
        /// `after` is a common prefix that has been shown: skip all keys under it.
        5 => after_prefix: bool,
        6 => limit: u32,
    }
}

record! {
    /// A page of open uploads, by key then upload id.
    pub struct UploadsQuery {
        1 => bucket: BucketId,
        2 => prefix: String,
        3 => delimiter: Option<String>,
        4 => after_key: Option<String>,
        5 => after_upload: Option<UploadId>,
        6 => limit: u32,
    }
}

record! {
    /// A page of work rows.
    pub struct DueQuery {
        /// Only rows older than this.
        1 => before: HybridTime,
        /// Row key after which the page starts.
        2 => after: Option<Bytes>,
        3 => limit: u32,
        /// Only rows at least as old as this by the group's own time, in milliseconds: no clock of the sender counts.
        4 -> age_ms: Option<u64>,
    }
}

record! {
    /// A page of buckets in name order.
    pub struct BucketsQuery {
        1 => prefix: String,
        2 => after: Option<String>,
        3 => limit: u32,
        /// Only buckets of this account need be answered; those of others may be among them.
        4 -> account: Option<String>,
    }
}

choice! {
    /// The answer to a query.
    pub enum Reply {
        1 => Object(ObjectView),
        2 => Parts(PartsPage),
        3 => Upload(UploadRow),
        4 => List(ListPage),
        5 => Uploads(UploadsPage),
        6 => DueDeletes(DuePage),
        7 => FillIns(FillInPage),
        8 => ShardStat(ShardStat),
        64 => Map(ClusterMap),
        /// The map has not changed since the epoch in the query.
        65 => MapUnchanged,
        66 => Bucket(BucketRow),
        67 => Buckets(BucketsPage),
        68 => AccessKey(AccessKeyRow),
        69 => AccessKeys(AccessKeyList),
        70 => Voters(VoterList),
        /// There is no such thing; tells which.
        71 => Absent(RefusalKind),
        /// The outcome of a mutation.
        72 => Outcome(Outcome),
        /// Any of these with the group's time, for senders that say what they have seen.
        80 => Timed(TimedReply),
        96 => JoinToken(JoinTokenRow),
        97 => JoinTokens(JoinTokenList),
        98 => Certificates(CertificateList),
    }
}

record! {
    /// A reply with the group's time when it was made.
    pub struct TimedReply {
        1 => time: HybridTime,
        /// The encoded `Reply`; never a `Timed` one.
        2 => reply: Bytes,
    }
}

record! {
    /// An object as read.
    pub struct ObjectView {
        1 => row: ObjectRow,
        2 => body: Option<ObjectBody>,
    }
}

record! {
    /// Part rows by number.
    pub struct PartsPage {
        1 => parts: Vec<(u16, PartRow)>,
        2 => more: bool,
    }
}

record! {
    /// A page of a listing: entries and common prefixes each in order.
    pub struct ListPage {
        1 => entries: Vec<(String, ObjectRow)>,
        2 => prefixes: Vec<String>,
        /// Whether anything follows; then the last entry or prefix, whichever is greater, is where to go on.
        3 => more: bool,
    }
}

record! {
    /// A page of open uploads.
    pub struct UploadsPage {
        1 => uploads: Vec<UploadEntry>,
        2 => prefixes: Vec<String>,
        3 => more: bool,
    }
}

record! {
    /// One open upload in a listing.
    pub struct UploadEntry {
        1 => key: String,
        2 => upload: UploadId,
        3 => row: UploadRow,
    }
}

record! {
    /// A page of deferred deletes.
    pub struct DuePage {
        1 => rows: Vec<DueDelete>,
        2 => more: bool,
    }
}

record! {
    /// Stripes to be destroyed behind the safe point.
    pub struct DueDelete {
        1 => row: Bytes,
        2 => at: HybridTime,
        3 => stripes: Vec<StripeRef>,
    }
}

record! {
    /// A page of owed fragments.
    pub struct FillInPage {
        1 => rows: Vec<FillInRow>,
        2 => more: bool,
    }
}

record! {
    /// A stripe that owes fragments, and whose it is.
    pub struct FillInRow {
        1 => row: Bytes,
        2 => owner: Owner,
        3 => stripe: StripeRef,
    }
}

record! {
    /// Counts and sizes of one shard.
    pub struct ShardStat {
        1 => objects: u64,
        2 => object_bytes: u64,
        3 => uploads: u64,
        4 => deferred_deletes: u64,
        5 => fill_ins: u64,
        6 => fence: WriterId,
        7 => buckets: Vec<(BucketId, BucketUsage)>,
        /// Dropped uploads and buckets that wait to be taken apart; none = 0.
        8 -> discards: Option<u64>,
        /// Milliseconds by which expiry waits since a jump of time that nobody has confirmed.
        20 -> expiry_held_ms: Option<u64>,
    }
}

record! {
    /// Live objects and bytes of one bucket.
    pub struct BucketUsage {
        1 => objects: u64,
        2 => bytes: u64,
    }
}

record! {
    /// A page of buckets.
    pub struct BucketsPage {
        1 => buckets: Vec<BucketRow>,
        2 => more: bool,
    }
}

record! {
    /// All access keys.
    pub struct AccessKeyList {
        1 => keys: Vec<AccessKeyRow>,
    }
}

record! {
    /// All voters' promises.
    pub struct VoterList {
        1 => voters: Vec<VoterRecord>,
    }
}

choice! {
    /// A request of an operator to one node, beyond what `MetaRequest` serves.
    pub enum AdminRequest {
        /// The node's view of its Raft groups.
        1 => RaftStatus,
        /// Makes a registered meta node a voter of every group: learner first, then voter.
        2 => AddVoter(NodeId),
        /// Removes a voter from every group.
        3 => RemoveVoter(NodeId),
        /// Plans placement over the disks that are up and commits it.
        4 => RebuildPlacement,
        /// Opens one more disk folder on a running storage node.
        5 => AddDisk(String),
        /// Demo only: stops a node of the process, by name. Elsewhere `Invalid`.
        6 => StopNode(String),
        /// Demo only: starts a stopped node again.
        7 => StartNode(String),
        /// What the node knows of itself and of the cluster, from memory and at once; the cluster map only where it is
        /// newer than this epoch. Every node answers it, leader or not.
        8 => Report(Epoch),
        /// Plans placement as ordered and commits it where anything changes; the leader of the system group answers
        /// `LayoutOutcome`. In place of `RebuildPlacement`, which is this with everything left at its default.
        16 => ApplyLayout(LayoutOrder),
        /// Opens one more disk folder on a running storage node, and makes it only where that is said. In place of
        /// `AddDisk`, which makes none.
        17 => AddDiskFolder(DiskFolder),
        /// Certifies an operator.
        32 => CertifyOperator(CertifyOperator),
    }
}

choice! {
    /// The answer to an operator.
    pub enum AdminReply {
        1 => Done(String),
        2 => RaftStatus(RaftStatus),
        3 => Report(Box<NodeReport>),
        16 => Layout(LayoutOutcome),
        /// A certificate and the cluster's CA, PEM.
        32 => Certificate(String),
    }
}

record! {
    /// A folder for a disk.
    pub struct DiskFolder {
        /// The folder on the node, from the root of its file system.
        1 => path: String,
        /// Make the folder where it does not exist.
        2 => create: bool,
    }
}

record! {
    /// What an operator wants of the placement groups. By default the code stays, unless failure domains were added.
    pub struct LayoutOrder {
        /// This code instead of the one that the cluster would choose.
        1 => code: Option<crate::stripe::Code>,
        /// Leave out disks that are down or on nodes that are down; otherwise they keep their place.
        2 => skip_down: bool,
        /// Allow a code that bears fewer losses than the present one.
        3 => less_redundancy: bool,
        /// Say what would be done and do nothing.
        4 => dry_run: bool,
    }
}

record! {
    /// What was done, or would be.
    pub struct LayoutOutcome {
        /// Whether anything changes: false where the groups are over these disks with this code already.
        1 => changed: bool,
        /// Placement groups added.
        2 => added: u64,
        /// Placement groups closed.
        3 => closed: u64,
        /// The code of new stripes.
        4 => code: crate::stripe::Code,
        /// The code before.
        5 => code_before: crate::stripe::Code,
        /// Names of the disks that the open groups are over.
        6 => disks: Vec<String>,
        /// Those of them that are down or on a node that is down.
        7 => kept_down: Vec<String>,
        /// Names of disks that are in no open group: failed, draining, or down and left out by order.
        8 => left_out: Vec<String>,
        9 => dry_run: bool,
    }
}

record! {
    /// What one node knows. Nothing in it was confirmed by a majority.
    pub struct NodeReport {
        1 => node: NodeId,
        /// The newest cluster map that it has seen, where newer than the one asked for.
        2 -> map: Option<ClusterMap>,
        /// The groups that it takes part in; only metadata nodes do.
        3 -> raft: Option<RaftStatus>,
        /// What it knows of the other voters, on metadata nodes.
        4 -> voters: Vec<VoterSight>,
        /// Voters that refuse to hear this one, each with why.
        5 -> refused_by: Vec<(NodeId, String)>,
        /// What the node finds wrong with itself.
        6 -> reasons: Vec<NodeReason>,
    }
}

record! {
    /// Something that a node finds wrong with itself.
    pub struct NodeReason {
        /// A code that stays the same for ever.
        1 => code: String,
        /// What is wrong and what it means.
        2 => text: String,
        /// What to do: a command where there is one.
        3 => next: String,
    }
}

record! {
    /// What a voter knows of another one.
    pub struct VoterSight {
        1 => node: NodeId,
        /// Milliseconds since it was last heard, where it has been.
        2 -> heard_ms: Option<u64>,
        /// Why it is refused, where it is.
        3 -> refused: Option<String>,
    }
}

record! {
    /// A node's view of its groups.
    pub struct RaftStatus {
        1 => groups: Vec<RaftGroupStatus>,
    }
}

record! {
    /// One group as one node sees it.
    pub struct RaftGroupStatus {
        1 => group: GroupId,
        2 => leader: Option<NodeId>,
        3 => term: u64,
        4 => last_log: u64,
        5 => applied: u64,
        6 => voters: Vec<NodeId>,
        7 => learners: Vec<NodeId>,
        /// On the leader: the last index known to be on each peer.
        8 => matched: Vec<(NodeId, u64)>,
        /// Why the replica has stopped, where it has: it takes part no more until its node is started again.
        9 -> stopped: Option<String>,
        /// Why the replica is not what it should be, although it comes back by itself: no room, or damaged and being
        /// rebuilt.
        15 -> condition: Option<String>,
    }
}

record! {
    /// A new node's request for admission.
    pub struct JoinRequest {
        1 => token: Hidden<String>,
        /// Certificate signing request, PEM.
        2 => csr: String,
        3 => name: String,
        4 => roles: Vec<Role>,
        5 => address: String,
        6 => domain: Option<String>,
    }
}

record! {
    /// What a new node is given.
    pub struct JoinReply {
        1 => node: NodeRecord,
        /// The node's certificate and the cluster's CA, PEM.
        2 => certificate: String,
        3 => ca: String,
        4 => map: ClusterMap,
        /// The key that wraps access keys, for gateways and metadata nodes only.
        5 => wrapping_key: Option<Hidden<Bytes>>,
        /// The private key of the cluster's CA, PEM, for metadata nodes only: each of them can admit nodes.
        6 -> ca_private_key: Option<Hidden<Bytes>>,
        /// How long the certificates are valid that the node is to sign, for metadata nodes only.
        16 -> certificate_lifetime_s: Option<u64>,
    }
}

/// The header of any reply: the answer, or why there is none.
pub type Answer<T> = Result<T, Failure>;
