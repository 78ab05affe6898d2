//! What a mutation must fulfil before the leader proposes it: all that can be judged without any
//! state. The log thus holds no nonsense; apply judges again what it relies on, since an entry may
//! come from an older leader, and never trusts a size.

use super::discards::TAKE_APART_ROWS_MAX;
use super::machine::serves;
use plinth_protocol::map::{ClusterMap, DiskRecord, PlacementGroup};
use plinth_protocol::meta::{
    ADDRESS_BYTES_MAX, ChangePlacement, Command, CompleteUpload, FINISHED_DELETES_MAX, FilledIn, FinishDeletes,
    Founding, Mutation, OPERATOR_NAME_BYTES_MAX, RegisterNode, SetDiskState,
};
use plinth_protocol::object::{Body, PART_NUMBER_MAX, check_key};
use plinth_protocol::stripe::Code;
use plinth_protocol::wire::WireError;
use plinth_protocol::{Failure, FailureKind, GroupId};

/// Largest disk in bytes: a sum over all disks of a cluster stays far below 2^64.
const DISK_BYTES_MAX: u64 = 1 << 52;
/// Ids, epochs and incarnations that are counted up stay below this: a cluster gets nowhere near it
/// by counting, so that a larger one is not one of ours.
const COUNT_MAX: u64 = 1 << 48;
/// Bytes of the key of a row that housekeeping names.
const ROW_KEY_BYTES_MAX: usize = 64;

/// Most row operations that one entry's mutations may take together, as [`row_operations`] estimates them; with what
/// they displace ([`super::discards`]) at most 25,000, some 50 ms of apply. A mutation that takes more has an entry of
/// its own.
pub const ENTRY_ROWS_MAX: usize = 15_000;

/// Returns about how many rows applying a command reads and writes, beyond what it displaces: that is bounded in apply,
/// where it is known.
pub fn row_operations(command: &Command) -> usize {
    let owed = |body: &Body| match body {
        Body::Stripes(stripes) => stripes.iter().filter(|stripe| stripe.missing.is_some()).count(),
        _ => 0,
    };
    const EACH: usize = 10;
    const UNLISTED_PARTS_USUAL: usize = 1_000;
    match command {
        Command::PutObject(put) => EACH + owed(&put.body.body),
        Command::PutPart(put) => EACH + 2 * owed(&put.part.body),
        // More parts may be there than are listed: those are passed over.
        Command::CompleteUpload(complete) => EACH + UNLISTED_PARTS_USUAL + complete.parts.len(),
        Command::FinishDeletes(finish) => EACH + 2 * finish.rows.len(),
        Command::TakeApart => EACH + TAKE_APART_ROWS_MAX,
        _ => EACH,
    }
}

type Checked = Result<(), WireError>;

/// Checks what can be checked of a mutation without any state.
///
/// Fails with `Invalid`, which names the field.
pub fn check(group: GroupId, mutation: &Mutation) -> Result<(), Failure> {
    let refuse = |text: &str| Err(Failure::new(FailureKind::Invalid, text));
    if mutation.group != group {
        return refuse("the mutation is for another group");
    }
    if !serves(group, &mutation.command) {
        return refuse("the command is for another kind of group");
    }
    Ok(check_command(&mutation.command)?)
}

fn check_command(command: &Command) -> Checked {
    match command {
        Command::PutObject(put) => {
            check_key(&put.key)?;
            put.body.body.check(put.size_bytes)
        }
        Command::DeleteObject(delete) => check_key(&delete.key),
        Command::CreateUpload(create) => check_key(&create.key),
        Command::PutPart(put) => {
            check_key(&put.key)?;
            check_part_number(put.number)?;
            put.part.body.check(put.part.size_bytes)
        }
        Command::CompleteUpload(complete) => check_complete(complete),
        Command::AbortUpload(abort) => check_key(&abort.key),
        Command::FillIn(filled) => check_filled(filled),
        Command::FinishDeletes(finish) => check_finished(finish),
        Command::RegisterWriter(node) => check_count(node.0, "node"),
        Command::Found(founding) => check_founding(founding),
        Command::RegisterNode(register) => check_node(register),
        Command::AdmitNode(admit) => check_node(&admit.register),
        Command::RecordCertificate(row) => {
            check_that(row.operator.as_ref().is_none_or(|name| name.len() <= OPERATOR_NAME_BYTES_MAX), "operator")
        }
        Command::RegisterDisk(disk) => check_disk(disk),
        Command::SetDiskState(set) => check_report(set),
        Command::ChangePlacement(change) => check_placement(change),
        Command::RecordVoter(voter) => check_count(voter.node.0, "node"),
        Command::AnnounceAddress(announced) => check_that(announced.address.len() <= ADDRESS_BYTES_MAX, "address"),
        Command::OpenAttempt(change)
        | Command::CloseAttempt(change)
        | Command::ActivateAttempt(change)
        | Command::ReopenBucket(change)
        | Command::RemoveAttempt(change) => check_that(change.attempt < u64::MAX, "attempt"),
        Command::OpenBucket(_)
        | Command::CloseBucket(_)
        | Command::TakeApart
        | Command::ConfirmTime
        | Command::BeginDeleteAttempt(_)
        | Command::RaiseFence(_)
        | Command::RaiseRules(_)
        | Command::CreateBucket(_)
        | Command::ActivateBucket(_)
        | Command::BeginDeleteBucket(_)
        | Command::KeepBucket(_)
        | Command::RemoveBucket(_)
        | Command::SetNodeState(_)
        | Command::SetVoters(_)
        | Command::CreateAccessKey(_)
        | Command::RevokeAccessKey(_)
        | Command::CreateJoinToken(_)
        | Command::ConsumeJoinToken(_)
        | Command::RevokeJoinToken(_)
        | Command::RevokeCertificate(_)
        | Command::DenyNode(_) => Ok(()),
    }
}

fn check_that(holds: bool, field: &'static str) -> Checked {
    if holds { Ok(()) } else { Err(WireError::OutOfRange(field)) }
}

fn check_count(value: u64, field: &'static str) -> Checked {
    check_that(value < COUNT_MAX, field)
}

fn check_part_number(number: u16) -> Checked {
    check_that((1..=PART_NUMBER_MAX).contains(&number), "part number")
}

fn check_complete(complete: &CompleteUpload) -> Checked {
    check_key(&complete.key)?;
    check_that(complete.parts.len() <= usize::from(PART_NUMBER_MAX), "parts")
}

fn check_filled(filled: &FilledIn) -> Checked {
    check_key(&filled.owner.key)?;
    filled.owner.part.map_or(Ok(()), check_part_number)?;
    check_that(filled.owner.upload.is_some() == filled.owner.part.is_some(), "owner")
}

fn check_finished(finish: &FinishDeletes) -> Checked {
    check_that(finish.rows.len() <= FINISHED_DELETES_MAX, "rows")?;
    check_that(finish.rows.iter().all(|row| row.len() <= ROW_KEY_BYTES_MAX), "rows")
}

fn check_founding(founding: &Founding) -> Checked {
    let ClusterMap { epoch, nodes, disks, pgs, shards, voters, .. } = &founding.map;
    check_count(epoch.0, "epoch")?;
    for node in nodes {
        check_count(node.node.0, "node")?;
        check_count(node.incarnation.0, "incarnation")?;
    }
    disks.iter().try_for_each(check_disk)?;
    pgs.iter().try_for_each(check_group)?;
    voters.iter().chain(shards.iter().flat_map(|shard| &shard.voters)).try_for_each(|id| check_count(id.0, "voter"))
}

fn check_node(register: &RegisterNode) -> Checked {
    check_count(register.node.node.0, "node")?;
    check_count(register.node.incarnation.0, "incarnation")
}

fn check_disk(disk: &DiskRecord) -> Checked {
    check_count(disk.node.0, "node")?;
    check_count(disk.incarnation.0, "incarnation")?;
    check_that(disk.size_bytes <= DISK_BYTES_MAX, "size_bytes")?;
    check_that(disk.used_bytes.is_none_or(|used| used <= DISK_BYTES_MAX), "used_bytes")
}

/// A storage node's report of a disk.
fn check_report(set: &SetDiskState) -> Checked {
    check_that(set.used_bytes.is_none_or(|used| used <= DISK_BYTES_MAX), "used_bytes")
}

fn check_code(code: Code) -> Checked {
    check_that(code.k > 0 && code.width() <= plinth_protocol::stripe::WIDTH_MAX, "code")
}

fn check_group(pg: &PlacementGroup) -> Checked {
    check_code(pg.code)?;
    check_that(pg.pg.0 < u32::MAX, "pg")
}

fn check_placement(change: &ChangePlacement) -> Checked {
    change.add.iter().try_for_each(check_group)?;
    change.code.map_or(Ok(()), check_code)
}
