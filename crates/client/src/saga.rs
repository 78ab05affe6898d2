//! How a bucket comes and goes: the steps, apart from the network that carries them.
//!
//! A change (creation, deletion, a deletion turned round) has a number from group 0, which goes with
//! each of its steps. Groups refuse a step of a change that a later one has overtaken, so that a
//! request which was on its way for minutes, or a gateway that slept, undoes nothing. Any number of
//! actors may share one change, or take up one that another left half-way: each step may be repeated.
//!
//! | step   | create                          | delete                                            |
//! |--------|---------------------------------|---------------------------------------------------|
//! | 1      | row appears as `Opening`        | row becomes `Closing`                             |
//! | 2      | every shard opens the bucket    | every shard closes it, which proves it empty there |
//! | 3      | row becomes `Active`            | row goes; or, not empty: a new change, in which all shards open again and the row becomes `Active` |
//!
//! What holds at every moment, whoever stops where: an active bucket is open in every shard; a bucket
//! whose row went is open in none, and stays so.

use plinth_protocol::meta::{BucketAttempt, Command, CreateBucket, Outcome, Refusal, RefusalKind};
use plinth_protocol::object::{BucketRow, BucketState};
use plinth_protocol::{BucketId, Failure, FailureKind, GROUP_SYSTEM, GroupId};

/// The groups as a saga sees them.
pub trait Groups: Sync {
    /// Has a group decide a command; fails where it is not known whether it has, too.
    fn mutate(&self, group: GroupId, command: Command) -> impl Future<Output = Result<Outcome, Failure>> + Send;

    /// Returns a bucket's row in group 0 by its name.
    fn bucket_row(&self, name: &str) -> impl Future<Output = Result<Option<BucketRow>, Failure>> + Send;

    /// Returns the object shards' groups.
    fn shard_groups(&self) -> Vec<GroupId>;
}

/// Creates a bucket. The outcome is the active row, or the refusal `BucketExists` or `BucketOwnedByYou`. Fails with
/// `Conflict` where somebody deleted the bucket meanwhile.
pub async fn create(groups: &impl Groups, create: CreateBucket) -> Result<Outcome, Failure> {
    let begin = || Command::CreateBucket(CreateBucket { numbered: true, ..create.clone() });
    let mut outcome = groups.mutate(GROUP_SYSTEM, begin()).await?;
    if taken(&outcome) {
        // The row may stand there because somebody crashed half-way: then finish that first.
        let Some(row) = groups.bucket_row(&create.name).await? else { return Ok(outcome) };
        match row.state {
            BucketState::Active => return Ok(outcome),
            BucketState::Opening if row.owner == create.owner => outcome = Outcome::Bucket(row),
            BucketState::Opening => return Ok(outcome),
            BucketState::Closing => {
                if finish(groups, row).await? != Outcome::Done {
                    return Ok(outcome);
                }
                outcome = groups.mutate(GROUP_SYSTEM, begin()).await?;
            }
        }
    }
    match outcome {
        Outcome::Bucket(row) => open(groups, row).await,
        refused => Ok(refused),
    }
}

/// Deletes an empty bucket. The outcome is `Done`, or the refusal `NoSuchBucket`, also where another bucket has the
/// name by now, or `BucketNotEmpty`.
pub async fn delete(groups: &impl Groups, name: &str, bucket: BucketId) -> Result<Outcome, Failure> {
    let row = groups.bucket_row(name).await?.filter(|row| row.bucket == bucket);
    let Some(row) = row else { return Ok(no_such_bucket(name)) };
    match row.state {
        BucketState::Opening => Ok(no_such_bucket(name)),
        BucketState::Closing if row.reopening => {
            open(groups, row).await?;
            Ok(not_empty("another deletion has just found objects"))
        }
        BucketState::Closing | BucketState::Active => begin_delete(groups, row.bucket).await,
    }
}

/// Takes a bucket that stands half-way to where it was going.
pub async fn finish(groups: &impl Groups, row: BucketRow) -> Result<Outcome, Failure> {
    match row.state {
        BucketState::Active => Ok(Outcome::Bucket(row)),
        BucketState::Opening => open(groups, row).await,
        BucketState::Closing if row.reopening => open(groups, row).await,
        BucketState::Closing => begin_delete(groups, row.bucket).await,
    }
}

async fn begin_delete(groups: &impl Groups, bucket: BucketId) -> Result<Outcome, Failure> {
    match groups.mutate(GROUP_SYSTEM, Command::BeginDeleteAttempt(bucket)).await? {
        Outcome::Bucket(row) if row.reopening => {
            open(groups, row).await?;
            Ok(not_empty("another deletion has just found objects"))
        }
        Outcome::Bucket(row) => close(groups, row).await,
        refused => Ok(refused),
    }
}

fn attempt(row: &BucketRow) -> BucketAttempt {
    BucketAttempt { bucket: row.bucket, attempt: row.attempt.unwrap_or(0) }
}

/// Opens the bucket in every shard, then shows it.
async fn open(groups: &impl Groups, row: BucketRow) -> Result<Outcome, Failure> {
    for group in groups.shard_groups() {
        match groups.mutate(group, Command::OpenAttempt(attempt(&row))).await? {
            Outcome::Refused(refusal) if refusal.kind == RefusalKind::StaleAttempt => {
                return overtaken(groups, &row).await;
            }
            Outcome::Refused(refusal) => {
                return Err(Failure::new(FailureKind::Internal, format!("{group} does not open: {}", refusal.text)));
            }
            _ => {}
        }
    }
    match groups.mutate(GROUP_SYSTEM, Command::ActivateAttempt(attempt(&row))).await? {
        Outcome::Refused(_) => overtaken(groups, &row).await,
        active => Ok(active),
    }
}

/// Answers for an opening that a later change has overtaken: the bucket is there, or has been deleted.
async fn overtaken(groups: &impl Groups, row: &BucketRow) -> Result<Outcome, Failure> {
    match groups.bucket_row(&row.name).await? {
        Some(now) if now.bucket == row.bucket && now.state == BucketState::Active => Ok(Outcome::Bucket(now)),
        _ => Err(Failure::new(FailureKind::Conflict, "another request deleted the bucket meanwhile")),
    }
}

/// Closes the bucket in every shard, then removes its row; or opens and keeps it where a shard
/// still has objects.
async fn close(groups: &impl Groups, row: BucketRow) -> Result<Outcome, Failure> {
    for group in groups.shard_groups() {
        let refusal = match groups.mutate(group, Command::CloseAttempt(attempt(&row))).await {
            Ok(Outcome::Refused(refusal)) => refusal,
            Ok(_) => continue,
            Err(failure) if failure.kind == FailureKind::Conflict => {
                Refusal { kind: RefusalKind::BucketNotEmpty, text: failure.text }
            }
            Err(failure) => return Err(failure),
        };
        return match refusal.kind {
            RefusalKind::BucketNotEmpty => reopen(groups, row, refusal).await,
            RefusalKind::StaleAttempt => gone_or_kept(groups, &row).await,
            _ => Ok(Outcome::Refused(refusal)),
        };
    }
    match groups.mutate(GROUP_SYSTEM, Command::RemoveAttempt(attempt(&row))).await? {
        // Somebody else took the same way and was faster.
        Outcome::Refused(refusal) if refusal.kind == RefusalKind::NoSuchBucket => Ok(Outcome::Done),
        Outcome::Refused(_) => gone_or_kept(groups, &row).await,
        _ => Ok(Outcome::Done),
    }
}

/// Turns a deletion round. Others that still close under its number are refused from here on.
async fn reopen(groups: &impl Groups, row: BucketRow, refusal: Refusal) -> Result<Outcome, Failure> {
    match groups.mutate(GROUP_SYSTEM, Command::ReopenBucket(attempt(&row))).await? {
        Outcome::Bucket(row) => {
            // Overtaken by another deletion: that one has the last word, this one's answer stands.
            match open(groups, row).await {
                Err(failure) if failure.kind != FailureKind::Conflict => Err(failure),
                _ => Ok(Outcome::Refused(refusal)),
            }
        }
        // The last object went, and another deleter of the same change found the shards empty.
        Outcome::Refused(gone) if gone.kind == RefusalKind::NoSuchBucket => Ok(Outcome::Done),
        _ => Ok(Outcome::Refused(refusal)),
    }
}

/// Answers for a deletion that a later change has overtaken.
async fn gone_or_kept(groups: &impl Groups, row: &BucketRow) -> Result<Outcome, Failure> {
    match groups.bucket_row(&row.name).await? {
        Some(now) if now.bucket == row.bucket => Ok(not_empty("another deletion has found objects meanwhile")),
        _ => Ok(Outcome::Done),
    }
}

fn taken(outcome: &Outcome) -> bool {
    let kinds = [RefusalKind::BucketExists, RefusalKind::BucketOwnedByYou, RefusalKind::AlreadyExists];
    matches!(outcome, Outcome::Refused(refusal) if kinds.contains(&refusal.kind))
}

fn not_empty(text: &str) -> Outcome {
    Outcome::Refused(Refusal { kind: RefusalKind::BucketNotEmpty, text: text.into() })
}

fn no_such_bucket(name: &str) -> Outcome {
    Outcome::Refused(Refusal { kind: RefusalKind::NoSuchBucket, text: format!("no bucket {name}") })
}
