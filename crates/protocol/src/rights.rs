//! Who may ask for what: one row for every command and query of the metadata and for every action of a disk, deny by
//! default.
//!
//! [`Method::callers`](crate::Method::callers) says which roles may speak to a part at all; these tables say what
//! each of them may ask of it. A storage node reports on its own disks and reads the map; it can make no
//! access key, no join token, no voter, and it touches no other node's fragments. Commands without callers come from
//! the metadata nodes themselves and never over the wire.

use crate::ids::NodeId;
use crate::map::State;
use crate::meta::{Command, MetaRequest, Mutation, Query};
use crate::rpc::{Failure, FailureKind, Role};
use crate::storage::{StorageAction, StorageRequest};

impl StorageAction {
    /// Returns the roles that may order the action. An action without a row does not compile.
    ///
    /// Fragments are the gateways' affair: they write, read and delete them by the rows of the metadata. A storage
    /// node reaches its own disks without a call and has no business on another's. Repair will not widen these rows:
    /// a worker shows a ticket of group 0 that names job, stripe and end, and
    /// [`check_caller`](StorageRequest::check_caller) is where it is checked.
    pub const fn callers(&self) -> &'static [Role] {
        match self {
            StorageAction::Put(_)
            | StorageAction::Read(_)
            | StorageAction::Delete(_)
            | StorageAction::Stat(_)
            | StorageAction::Disk => &[Role::Gateway],
            // A census is a job: nobody lists by role.
            StorageAction::List(_) => &[],
        }
    }
}

impl StorageRequest {
    /// Fails with `Denied` unless one of the caller's roles may order the action.
    pub fn check_caller(&self, caller: NodeId, roles: &[Role]) -> Result<(), Failure> {
        let callers = self.action.callers();
        if roles.iter().any(|role| callers.contains(role)) {
            return Ok(());
        }
        Err(Failure::new(FailureKind::Denied, format!("{caller}'s roles may not order this of a disk")))
    }
}

impl Command {
    /// Returns the roles that may send the command. A command without a row does not compile.
    pub const fn callers(&self) -> &'static [Role] {
        match self {
            Command::PutObject(_)
            | Command::DeleteObject(_)
            | Command::CreateUpload(_)
            | Command::PutPart(_)
            | Command::CompleteUpload(_)
            | Command::AbortUpload(_)
            | Command::OpenBucket(_)
            | Command::CloseBucket(_)
            | Command::FillIn(_)
            | Command::FinishDeletes(_)
            | Command::CreateBucket(_)
            | Command::ActivateBucket(_)
            | Command::BeginDeleteBucket(_)
            | Command::KeepBucket(_)
            | Command::RemoveBucket(_)
            | Command::OpenAttempt(_)
            | Command::CloseAttempt(_)
            | Command::ActivateAttempt(_)
            | Command::BeginDeleteAttempt(_)
            | Command::ReopenBucket(_)
            | Command::RemoveAttempt(_)
            | Command::RegisterWriter(_) => &[Role::Gateway],
            Command::RegisterDisk(_) | Command::SetDiskState(_) => &[Role::Storage],
            Command::AnnounceAddress(_) => &[Role::Gateway, Role::Meta, Role::Storage],
            // A node says of itself that it stops.
            Command::SetNodeState(_) => &[Role::Gateway, Role::Meta, Role::Storage],
            Command::RegisterNode(_)
            | Command::ConsumeJoinToken(_)
            | Command::AdmitNode(_)
            | Command::RecordCertificate(_) => &[Role::Meta],
            Command::CreateAccessKey(_)
            | Command::RevokeAccessKey(_)
            | Command::CreateJoinToken(_)
            | Command::RevokeJoinToken(_)
            | Command::RevokeCertificate(_)
            | Command::DenyNode(_)
            | Command::ConfirmTime => &[Role::Admin],
            Command::RaiseFence(_)
            | Command::RaiseRules(_)
            | Command::TakeApart
            | Command::Found(_)
            | Command::ChangePlacement(_)
            | Command::SetVoters(_)
            | Command::RecordVoter(_) => &[],
        }
    }

    /// Returns the node that alone may send the command, where it speaks of one.
    const fn speaks_of(&self) -> Option<NodeId> {
        match self {
            Command::RegisterWriter(node) => Some(*node),
            Command::RegisterDisk(disk) => Some(disk.node),
            Command::AnnounceAddress(announced) => Some(announced.node),
            Command::SetNodeState(set) => Some(set.node),
            _ => None,
        }
    }
}

impl Query {
    /// Returns the roles that may ask the query. A query without a row does not compile.
    pub const fn callers(&self) -> &'static [Role] {
        match self {
            Query::Object(_)
            | Query::Parts(_)
            | Query::Upload(_)
            | Query::List(_)
            | Query::Uploads(_)
            | Query::DueDeletes(_)
            | Query::FillIns(_)
            | Query::Bucket(_)
            | Query::AccessKey(_) => &[Role::Gateway],
            Query::Buckets(_) | Query::ShardStat => &[Role::Gateway, Role::Meta, Role::Admin],
            Query::AccessKeys | Query::Voters | Query::JoinTokens | Query::Certificates => &[Role::Admin],
            Query::JoinToken(_) => &[Role::Meta],
            Query::Map(_) => &[Role::Gateway, Role::Meta, Role::Storage, Role::Admin],
        }
    }
}

impl MetaRequest {
    /// Fails with `Denied` unless the caller's roles may ask for this, and for this node.
    pub fn check_caller(&self, caller: NodeId, roles: &[Role]) -> Result<(), Failure> {
        let (callers, node) = match self {
            MetaRequest::Mutate(mutation) => (mutation.command.callers(), mutation.command.speaks_of()),
            MetaRequest::Query(query) => (query.query.callers(), None),
        };
        if !roles.iter().any(|role| callers.contains(role)) {
            return Err(Failure::new(
                FailureKind::Denied,
                format!("{caller}'s roles may not ask the metadata for this"),
            ));
        }
        if let MetaRequest::Mutate(Mutation { command: Command::SetNodeState(set), .. }) = self
            && set.state != State::Down
        {
            return Err(Failure::new(FailureKind::Denied, "a node may only say of itself that it stops"));
        }
        match node {
            Some(node) if node != caller => {
                Err(Failure::new(FailureKind::Denied, format!("{caller} may not speak for {node}")))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{DiskId, GROUP_SYSTEM, HybridTime, Incarnation, RequestId, WriterId};
    use crate::map::DiskRecord;
    use crate::meta::{AccessKeyRow, GroupQuery, JoinTokenRow, NodeAddress, SetNodeState};

    use bytes::Bytes;

    fn mutation(command: Command) -> MetaRequest {
        MetaRequest::Mutate(Mutation {
            group: GROUP_SYSTEM,
            request: RequestId(1),
            writer: None,
            token: None,
            command,
            issued: None,
            seen: None,
        })
    }

    fn is_denied(request: &MetaRequest, role: Role) -> bool {
        request.check_caller(NodeId(5), &[role]).is_err_and(|failure| failure.kind == FailureKind::Denied)
    }

    fn disk(node: u64) -> MetaRequest {
        mutation(Command::RegisterDisk(DiskRecord {
            disk: DiskId(1),
            node: NodeId(node),
            incarnation: Incarnation(1),
            state: State::Up,
            name: "s/d0".into(),
            size_bytes: 1,
            used_bytes: None,
            quarantined: None,
            write_stop_bytes: None,
        }))
    }

    #[test]
    fn keys_and_tokens_are_made_by_operators_alone() {
        let key = AccessKeyRow {
            id: "PLK".into(),
            wrapped_secret: Bytes::new().into(),
            account: "root".into(),
            created: HybridTime::from_millis(1),
            description: None,
        };
        let token =
            JoinTokenRow { hash: [0; 32], expires: HybridTime::from_millis(1), roles: vec![Role::Gateway], used: None };
        for command in
            [Command::CreateAccessKey(key), Command::CreateJoinToken(token), Command::RevokeAccessKey("x".into())]
        {
            let request = mutation(command);
            assert!(!is_denied(&request, Role::Admin));
            for role in [Role::Gateway, Role::Meta, Role::Storage, Role::Joining] {
                assert!(is_denied(&request, role), "{role:?} {request:?}");
            }
        }
    }

    #[test]
    fn nobody_sends_what_metadata_nodes_decide_themselves() {
        for role in [Role::Gateway, Role::Meta, Role::Storage, Role::Admin, Role::Joining] {
            assert!(is_denied(&mutation(Command::RaiseFence(WriterId(9))), role));
        }
    }

    #[test]
    fn a_node_speaks_for_itself_alone() {
        assert!(!is_denied(&disk(5), Role::Storage));
        assert!(is_denied(&disk(6), Role::Storage));
        assert!(is_denied(&disk(5), Role::Gateway));
        assert!(!is_denied(&mutation(Command::RegisterWriter(NodeId(5))), Role::Gateway));
        assert!(is_denied(&mutation(Command::RegisterWriter(NodeId(6))), Role::Gateway));
        for role in [Role::Gateway, Role::Meta, Role::Storage] {
            let moved = |node| {
                mutation(Command::AnnounceAddress(NodeAddress { node: NodeId(node), address: "10.0.0.9:7000".into() }))
            };
            assert!(!is_denied(&moved(5), role));
            assert!(is_denied(&moved(6), role));
        }
        let moved = NodeAddress { node: NodeId(5), address: "10.0.0.9:7000".into() };
        assert!(is_denied(&mutation(Command::AnnounceAddress(moved)), Role::Admin));
    }

    #[test]
    fn a_node_may_say_that_it_stops_and_nothing_else_of_a_state() {
        let set = |node, state| mutation(Command::SetNodeState(SetNodeState { node: NodeId(node), state }));
        for role in [Role::Gateway, Role::Meta, Role::Storage] {
            assert!(!is_denied(&set(5, State::Down), role));
            assert!(is_denied(&set(6, State::Down), role), "of another one");
            for state in [State::Up, State::Suspect, State::Failed, State::Draining, State::Retired] {
                assert!(is_denied(&set(5, state), role), "{state:?}");
            }
        }
        assert!(is_denied(&set(5, State::Down), Role::Admin) && is_denied(&set(5, State::Down), Role::Joining));
    }

    #[test]
    fn storage_nodes_read_the_map_and_nothing_else() {
        let ask = |query| MetaRequest::Query(GroupQuery { group: GROUP_SYSTEM, query, seen: None });
        assert!(!is_denied(&ask(Query::Map(None)), Role::Storage));
        for query in [Query::AccessKey("PLK".into()), Query::AccessKeys, Query::Voters, Query::Bucket("b".into())] {
            assert!(is_denied(&ask(query), Role::Storage));
        }
    }
}
