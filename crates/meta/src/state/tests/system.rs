//! The system group: registry, placement, voters, buckets, keys, tokens.

use super::*;
use crate::state::store::Batch;
use crate::state::{keys, placement};
use plinth_protocol::map::*;

pub fn node(id: u64, name: &str) -> NodeRecord {
    NodeRecord {
        node: NodeId(id),
        name: name.into(),
        roles: vec![Role::Storage],
        address: format!("{name}:1"),
        incarnation: Incarnation(1),
        state: State::Up,
        domain: name.into(),
        version: None,
        public_key: None,
    }
}

fn disk(id: u128, node: u64) -> DiskRecord {
    DiskRecord {
        disk: DiskId(id),
        node: NodeId(node),
        incarnation: Incarnation(1),
        state: State::Up,
        name: format!("n{node}/d{id}"),
        size_bytes: 1_000_000,
        used_bytes: None,
        quarantined: None,
        write_stop_bytes: None,
    }
}

pub fn founding() -> Founding {
    let map = ClusterMap {
        cluster: ClusterId(1),
        epoch: Epoch(1),
        nodes: vec![node(1, "a"), node(2, "b"), node(3, "c")],
        disks: vec![disk(1, 1), disk(2, 2), disk(3, 3)],
        pgs: vec![],
        shards: vec![ShardRecord {
            group: GroupId(1),
            start: ShardStart { bucket: BucketId(0), key: "".into() },
            voters: vec![NodeId(1)],
        }],
        code: Code::new(1, 2),
        fragment_bytes_max: 1 << 20,
        name: "test".into(),
        voters: vec![NodeId(1)],
        feature_level: 1,
        denied_nodes: vec![],
        revoked_certificates: vec![],
    };
    Founding { map, keys: vec![access_key("first")] }
}

fn access_key(id: &str) -> AccessKeyRow {
    AccessKeyRow {
        id: id.into(),
        wrapped_secret: Bytes::from_static(b"wrapped").into(),
        account: "root".into(),
        created: HybridTime(0),
        description: None,
    }
}

pub fn system() -> Replica<MemoryStore> {
    let mut system = Replica::new(MemoryStore::new(), GROUP_SYSTEM);
    assert_eq!(system.run(Command::Found(Box::new(founding()))), Outcome::Done);
    system
}

pub fn map(system: &Replica<MemoryStore>) -> ClusterMap {
    match system.query(Query::Map(None)) {
        Reply::Map(map) => map,
        other => panic!("{other:?}"),
    }
}

/// Runs a command and tells by how much it moved the map's epoch.
pub fn moved(system: &mut Replica<MemoryStore>, command: Command) -> (Outcome, u64) {
    let before = map(system).epoch.0;
    let outcome = system.run(command);
    (outcome, map(system).epoch.0 - before)
}

#[test]
fn founding_happens_once() {
    let mut system = Replica::new(MemoryStore::new(), GROUP_SYSTEM);
    assert!(system.machine.query(&Query::Map(None)).is_err());
    assert_refused(system.run(Command::RegisterWriter(NodeId(1))), RefusalKind::Invalid);
    system.run(Command::Found(Box::new(founding())));
    assert_eq!(map(&system), founding().map);
    assert_eq!(system.query(Query::Map(Some(Epoch(1)))), Reply::MapUnchanged);
    assert_refused(system.run(Command::Found(Box::new(founding()))), RefusalKind::AlreadyFounded);
    assert!(matches!(system.query(Query::AccessKey("first".into())), Reply::AccessKey(_)));
}

#[test]
fn nodes_get_ids_that_are_never_reused() {
    let mut system = system();
    let register = |node: NodeRecord| Command::RegisterNode(RegisterNode { node, public_key: Some([1; 32]) });
    let (outcome, bumps) = moved(&mut system, register(node(0, "d")));
    let Outcome::Node(new) = outcome else { panic!("{outcome:?}") };
    assert_eq!((new.node, new.incarnation, bumps), (NodeId(4), Incarnation(1), 1));
    assert_refused(system.run(register(node(0, "d"))), RefusalKind::AlreadyExists);
    let moved_node = NodeRecord { address: "elsewhere:2".into(), ..new.clone() };
    let (outcome, bumps) = moved(&mut system, register(moved_node));
    let Outcome::Node(renewed) = outcome else { panic!("{outcome:?}") };
    assert_eq!((renewed.incarnation, renewed.address.as_str(), bumps), (Incarnation(2), "elsewhere:2", 1));
    assert_refused(system.run(register(node(9, "z"))), RefusalKind::NoSuchNode);
    system.run(Command::SetNodeState(SetNodeState { node: NodeId(4), state: State::Retired }));
    assert_refused(system.run(register(renewed)), RefusalKind::NoSuchNode);
    let Outcome::Node(next) = system.run(register(node(0, "e"))) else { panic!() };
    assert_eq!(next.node, NodeId(5));
}

#[test]
fn a_node_that_moved_is_known_at_its_new_address_under_its_old_incarnation() {
    let mut system = system();
    let announce =
        |node, address: &str| Command::AnnounceAddress(NodeAddress { node: NodeId(node), address: address.into() });
    let (outcome, bumps) = moved(&mut system, announce(2, "10.0.0.9:7000"));
    let Outcome::Node(node) = outcome else { panic!("{outcome:?}") };
    assert_eq!((node.address.as_str(), node.incarnation, bumps), ("10.0.0.9:7000", Incarnation(1), 1));
    assert_eq!(moved(&mut system, announce(2, "10.0.0.9:7000")).1, 0, "said again");
    // Two nodes may change places, one after the other.
    assert_eq!(moved(&mut system, announce(1, "10.0.0.9:7000")).1, 1);
    assert_eq!(moved(&mut system, announce(2, "[fd00::1]:7000")).1, 1);
    assert_refused(system.run(announce(9, "10.0.0.9:7000")), RefusalKind::NoSuchNode);
    for bad in ["", "10.0.0.9", ":7000", "host:0", "host:70000", "a b:1", &format!("{}:1", "x".repeat(260))] {
        assert_refused(system.run(announce(2, bad)), RefusalKind::Invalid);
    }
    system.run(Command::SetNodeState(SetNodeState { node: NodeId(3), state: State::Retired }));
    assert_refused(system.run(announce(3, "10.0.0.3:7000")), RefusalKind::NoSuchNode);
}

#[test]
fn writers_count_up() {
    let mut system = system();
    assert_eq!(system.run(Command::RegisterWriter(NodeId(1))), Outcome::Writer(WriterId(1)));
    assert_eq!(system.run(Command::RegisterWriter(NodeId(2))), Outcome::Writer(WriterId(2)));
    assert_refused(system.run(Command::RegisterWriter(NodeId(8))), RefusalKind::NoSuchNode);
}

#[test]
fn disks_are_known_by_id_and_incarnation() {
    let mut system = system();
    assert_eq!(moved(&mut system, Command::RegisterDisk(disk(9, 1))), (Outcome::Done, 1));
    assert_eq!(moved(&mut system, Command::RegisterDisk(disk(9, 1))), (Outcome::Done, 0));
    let newer = DiskRecord { incarnation: Incarnation(2), ..disk(9, 2) };
    assert_eq!(moved(&mut system, Command::RegisterDisk(newer.clone())), (Outcome::Done, 1));
    assert_eq!(map(&system).disk(DiskId(9)), Some(&newer));
    assert_refused(system.run(Command::RegisterDisk(disk(9, 1))), RefusalKind::AlreadyExists);
    assert_refused(system.run(Command::RegisterDisk(disk(10, 99))), RefusalKind::NoSuchNode);
}

#[test]
fn epoch_moves_with_every_change_and_with_nothing_else() {
    let mut system = system();
    let report = SetDiskState { disk: DiskId(1), state: None, used_bytes: None, quarantined: None };
    let used = |bytes| Command::SetDiskState(SetDiskState { used_bytes: Some(bytes), ..report.clone() });
    let damaged = |count| {
        Command::SetDiskState(SetDiskState { used_bytes: Some(500_000), quarantined: Some(count), ..report.clone() })
    };
    let disk_state = |state| Command::SetDiskState(SetDiskState { state: Some(state), ..report.clone() });
    let node_state = |state| Command::SetNodeState(SetNodeState { node: NodeId(1), state });
    let voters = |group, voters: &[u64]| {
        let start = ShardStart { bucket: BucketId(0), key: "".into() };
        let voters = voters.iter().map(|id| NodeId(*id)).collect();
        Command::SetVoters(SetVoters { shard: ShardRecord { group: GroupId(group), start, voters } })
    };
    let cases = [
        (used(500), 1),
        (used(600), 0),
        (used(1_500), 1),
        (used(500_000), 1),
        (damaged(0), 0),
        (damaged(1), 1),
        (damaged(1), 0),
        (damaged(10), 1),
        (damaged(11), 1),
        (damaged(11), 0),
        (disk_state(State::Down), 1),
        (disk_state(State::Down), 0),
        (node_state(State::Suspect), 1),
        (node_state(State::Suspect), 0),
        (voters(0, &[1, 2]), 1),
        (voters(0, &[1, 2]), 0),
        (voters(1, &[1, 2]), 1),
        (voters(1, &[1, 2]), 0),
        (voters(2, &[3]), 1),
        (Command::RegisterWriter(NodeId(1)), 0),
        (Command::CreateAccessKey(access_key("x")), 0),
    ];
    for (command, bumps) in cases {
        assert_eq!(moved(&mut system, command.clone()).1, bumps, "{command:?}");
    }
    let now = map(&system);
    assert_eq!((now.voters.len(), now.shards.len()), (2, 2));
    let unknown = SetDiskState { disk: DiskId(44), state: None, used_bytes: None, quarantined: None };
    assert_refused(system.run(Command::SetDiskState(unknown)), RefusalKind::NoSuchDisk);
}

#[test]
fn placement_changes_only_on_the_epoch_it_was_planned_on() {
    let mut system = system();
    let plan = placement::plan(&map(&system), Code::new(1, 2)).unwrap();
    assert_eq!(plan.add.len(), 100);
    system.run(Command::SetNodeState(SetNodeState { node: NodeId(1), state: State::Down }));
    assert_refused(system.run(Command::ChangePlacement(plan)), RefusalKind::StaleEpoch);
    system.run(Command::SetNodeState(SetNodeState { node: NodeId(1), state: State::Up }));
    let plan = placement::plan(&map(&system), Code::new(1, 2)).unwrap();
    assert_eq!(moved(&mut system, Command::ChangePlacement(plan)), (Outcome::Done, 1));
    system.run(Command::RegisterNode(RegisterNode { node: node(0, "d"), public_key: None }));
    system.run(Command::RegisterDisk(disk(4, 4)));
    let again = placement::plan(&map(&system), Code::new(2, 2)).unwrap();
    assert_eq!((again.code, again.add[0].pg, again.close.len()), (Some(Code::new(2, 2)), PgId(100), 100));
    assert_eq!(system.run(Command::ChangePlacement(again)), Outcome::Done);
    let now = map(&system);
    assert_eq!(now.code, Code::new(2, 2));
    assert_eq!(now.pgs.iter().filter(|pg| !pg.closed).count(), 100);
    assert!(now.pg(PgId(0)).unwrap().closed && !now.pg(PgId(150)).unwrap().closed);
}

#[test]
fn impossible_placement_groups_are_refused() {
    let mut system = system();
    let pg = |disks: &[u128]| PlacementGroup {
        pg: PgId(0),
        generation: 1,
        code: Code::new(1, 2),
        disks: disks.iter().map(|id| DiskId(*id)).collect(),
        closed: false,
    };
    let mut change = |add: Vec<PlacementGroup>, close: Vec<PgId>| {
        let planned_on = map(&system).epoch;
        system.run(Command::ChangePlacement(ChangePlacement { planned_on, add, close, code: None }))
    };
    assert_refused(change(vec![pg(&[1, 2])], vec![]), RefusalKind::Invalid);
    assert_refused(change(vec![pg(&[1, 2, 2])], vec![]), RefusalKind::Invalid);
    assert_refused(change(vec![pg(&[1, 2, 9])], vec![]), RefusalKind::NoSuchDisk);
    assert_refused(change(vec![pg(&[1, 2, 3]), pg(&[1, 2, 3])], vec![]), RefusalKind::AlreadyExists);
    assert_refused(change(vec![], vec![PgId(7)]), RefusalKind::Invalid);
    assert_eq!(change(vec![pg(&[1, 2, 3])], vec![]), Outcome::Done);
    assert_refused(change(vec![pg(&[1, 2, 3])], vec![]), RefusalKind::AlreadyExists);
    assert_eq!(change(vec![PlacementGroup { generation: 2, ..pg(&[3, 2, 1]) }], vec![]), Outcome::Done);
}

#[test]
fn wiped_or_rolled_back_voters_are_refused() {
    let mut system = system();
    let voter = |log, boot, floor| Command::RecordVoter(VoterRecord { node: NodeId(1), log, boot, floor });
    let mut try_one = |log, boot, floor| matches!(system.run(voter(log, boot, floor)), Outcome::Done);
    assert!(try_one(7, 1, 100));
    assert!(!try_one(7, 1, 100), "the same boot twice without news: an old image");
    assert!(try_one(7, 1, 150), "the floor rises within a boot");
    assert!(try_one(7, 2, 150));
    assert!(!try_one(7, 1, 500), "an older boot");
    assert!(!try_one(7, 3, 149), "lost log records");
    assert!(!try_one(8, 3, 900), "another log");
    assert_refused(system.run(voter(8, 9, 900)), RefusalKind::VoterRefused);
    let Reply::Voters(list) = system.query(Query::Voters) else { panic!() };
    assert_eq!(list.voters, [VoterRecord { node: NodeId(1), log: 7, boot: 2, floor: 150 }]);
}

fn create(id: u64, name: &str, owner: &str) -> Command {
    let (bucket, name, owner) = (BucketId(id), name.into(), owner.into());
    Command::CreateBucket(CreateBucket { bucket, name, owner, location: None, numbered: false })
}

fn bucket_row(outcome: Outcome) -> BucketRow {
    match outcome {
        Outcome::Bucket(row) => row,
        other => panic!("{other:?}"),
    }
}

#[test]
fn bucket_saga_may_be_taken_over_at_every_step() {
    let mut system = system();
    let row = bucket_row(system.run(create(10, "photos", "me")));
    assert_eq!((row.state, row.created.millis()), (BucketState::Opening, system.now_ms));
    assert_eq!(bucket_row(system.run(create(11, "photos", "me"))).bucket, BucketId(10), "carry on with the first id");
    assert_refused(system.run(create(12, "photos", "you")), RefusalKind::BucketExists);
    assert_refused(system.run(create(10, "other", "me")), RefusalKind::AlreadyExists);
    for _ in 0..2 {
        assert_eq!(bucket_row(system.run(Command::ActivateBucket(BucketId(10)))).state, BucketState::Active);
    }
    assert_refused(system.run(create(13, "photos", "me")), RefusalKind::BucketOwnedByYou);
    assert_refused(system.run(Command::RemoveBucket(BucketId(10))), RefusalKind::Invalid);
    for _ in 0..2 {
        assert_eq!(bucket_row(system.run(Command::BeginDeleteBucket(BucketId(10)))).state, BucketState::Closing);
    }
    assert_refused(system.run(Command::ActivateBucket(BucketId(10))), RefusalKind::NoSuchBucket);
    assert_eq!(bucket_row(system.run(Command::KeepBucket(BucketId(10)))).state, BucketState::Active);
    system.run(Command::BeginDeleteBucket(BucketId(10)));
    assert_eq!(system.run(Command::RemoveBucket(BucketId(10))), Outcome::Done);
    assert_refused(system.run(Command::RemoveBucket(BucketId(10))), RefusalKind::NoSuchBucket);
    assert_eq!(system.query(Query::Bucket("photos".into())), Reply::Absent(RefusalKind::NoSuchBucket));
    bucket_row(system.run(create(14, "photos", "you")));
}

#[test]
fn buckets_are_paged_by_name() {
    let mut system = system();
    for (id, name) in ["b-one", "a", "b-two", "b", "c"].into_iter().enumerate() {
        system.run(create(id as u64 + 1, name, "me"));
    }
    let page = |prefix: &str, after: Option<&str>, limit| {
        let query = BucketsQuery { prefix: prefix.into(), after: after.map(str::to_owned), limit, account: None };
        match system.query(Query::Buckets(query)) {
            Reply::Buckets(page) => (page.buckets.into_iter().map(|row| row.name).collect::<Vec<_>>(), page.more),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(page("", None, 10), (vec!["a".into(), "b".into(), "b-one".into(), "b-two".into(), "c".into()], false));
    assert_eq!(page("b", None, 2), (vec!["b".into(), "b-one".into()], true));
    assert_eq!(page("b", Some("b-one"), 2), (vec!["b-two".into()], false));
    assert_eq!(page("", Some("b"), 1), (vec!["b-one".into()], true));
}

#[test]
fn an_accounts_buckets_are_listed_without_those_of_others() {
    let mut system = system();
    for (id, (name, owner)) in
        [("b1", "me"), ("b2", "you"), ("a", "me"), ("b3", "me"), ("b4", "me2"), ("c", "you")].into_iter().enumerate()
    {
        system.run(create(id as u64 + 1, name, owner));
    }
    let page = |system: &Replica<MemoryStore>, account: &str, prefix: &str, after: Option<&str>, limit| {
        let (prefix, after) = (prefix.into(), after.map(str::to_owned));
        let query = BucketsQuery { prefix, after, limit, account: Some(account.into()) };
        match system.query(Query::Buckets(query)) {
            Reply::Buckets(page) => (page.buckets.into_iter().map(|row| row.name).collect::<Vec<_>>(), page.more),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(page(&system, "me", "", None, 10), (vec!["a".into(), "b1".into(), "b3".into()], false));
    assert_eq!(page(&system, "me", "b", None, 1), (vec!["b1".into()], true));
    assert_eq!(page(&system, "me", "b", Some("b1"), 1), (vec!["b3".into()], false));
    assert_eq!(page(&system, "you", "", None, 10), (vec!["b2".into(), "c".into()], false));
    assert_eq!(page(&system, "m", "", None, 10), (vec![], false));
    system.run(Command::BeginDeleteBucket(BucketId(1)));
    system.run(Command::RemoveBucket(BucketId(1)));
    assert_eq!(page(&system, "me", "", None, 10), (vec!["a".into(), "b3".into()], false));
}

#[test]
fn a_database_of_an_older_version_gets_its_list_of_buckets_by_account() {
    let mut system = system();
    let names: Vec<String> = (0..1_200).map(|number| format!("bucket-{number:04}")).collect();
    for (number, name) in names.iter().enumerate() {
        system.run(create(number as u64 + 1, name, if number % 3 == 0 { "me" } else { "you" }));
    }
    // As that version left it.
    let mut batch = Batch::new();
    for (number, name) in names.iter().enumerate() {
        batch.delete(Family::Registry, keys::bucket_of_account(if number % 3 == 0 { "me" } else { "you" }, name));
    }
    batch.delete(Family::Registry, keys::buckets_by_account());
    system.machine.store().write(&batch).unwrap();
    let mine = |system: &Replica<MemoryStore>| {
        let (mut found, mut after) = (Vec::new(), None);
        loop {
            let query = BucketsQuery { prefix: String::new(), after, limit: 100, account: Some("me".into()) };
            let Reply::Buckets(page) = system.query(Query::Buckets(query)) else { panic!() };
            after = page.buckets.last().map(|row| row.name.clone());
            found.extend(page.buckets.into_iter().filter(|row| row.owner == "me").map(|row| row.name));
            if !page.more {
                return found;
            }
        }
    };
    let mut want: Vec<String> = names.iter().step_by(3).cloned().collect();
    for number in 0..4 {
        assert_eq!(mine(&system), want, "after {number} further buckets");
        let name = format!("a-{number}");
        system.run(create(2_000 + number, &name, "me"));
        want.insert(number as usize, name);
    }
    // By now nobody else's are among them.
    let query = BucketsQuery { prefix: String::new(), after: None, limit: 1000, account: Some("me".into()) };
    let Reply::Buckets(page) = system.query(Query::Buckets(query)) else { panic!() };
    assert_eq!(page.buckets.into_iter().map(|row| row.name).collect::<Vec<_>>(), want);
}

#[test]
fn access_keys_are_created_once_and_revoked_once() {
    let mut system = system();
    assert_eq!(system.run(Command::CreateAccessKey(access_key("k"))), Outcome::Done);
    assert_refused(system.run(Command::CreateAccessKey(access_key("k"))), RefusalKind::AlreadyExists);
    let Reply::AccessKeys(list) = system.query(Query::AccessKeys) else { panic!() };
    assert_eq!(list.keys.iter().map(|key| key.id.as_str()).collect::<Vec<_>>(), ["first", "k"]);
    assert_eq!(system.run(Command::RevokeAccessKey("k".into())), Outcome::Done);
    assert_refused(system.run(Command::RevokeAccessKey("k".into())), RefusalKind::NoSuchAccessKey);
    assert_eq!(system.query(Query::AccessKey("k".into())), Reply::Absent(RefusalKind::NoSuchAccessKey));
}

#[test]
fn join_tokens_work_once_before_their_expiry_for_their_roles() {
    let mut system = system();
    let token = |hash: u8, ms| JoinTokenRow {
        hash: [hash; 32],
        expires: HybridTime::from_millis(ms),
        roles: vec![Role::Storage, Role::Meta],
        used: None,
    };
    let consume = |hash: u8, role| Command::ConsumeJoinToken(ConsumeJoinToken { hash: [hash; 32], roles: vec![role] });
    let (now, later) = (system.now_ms, system.now_ms + 60_000);
    system.run(Command::CreateJoinToken(token(1, later)));
    assert_refused(system.run(Command::CreateJoinToken(token(1, later))), RefusalKind::AlreadyExists);
    assert_refused(system.run(consume(2, Role::Meta)), RefusalKind::InvalidToken);
    assert_refused(system.run(consume(1, Role::Gateway)), RefusalKind::InvalidToken);
    assert_eq!(system.run(consume(1, Role::Meta)), Outcome::Done);
    assert_refused(system.run(consume(1, Role::Meta)), RefusalKind::InvalidToken);
    system.run(Command::CreateJoinToken(token(3, now + 1_000)));
    system.now_ms = now + 1_001;
    assert_refused(system.run(consume(3, Role::Meta)), RefusalKind::InvalidToken);
}
