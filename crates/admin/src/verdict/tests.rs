use super::*;
use crate::view;
use plinth_protocol::map::{ShardRecord, ShardStart};
use plinth_protocol::meta::{NodeReason, RaftStatus};
use plinth_protocol::stripe::MATRIX_VANDERMONDE;
use plinth_protocol::{BucketId, ClusterId, DiskId, Epoch, Incarnation, PgId, WriterId};

const SHARD: GroupId = GroupId(1);

/// A cluster and what was heard of it; tests hurt it and look at the verdict.
struct Scene {
    map: ClusterMap,
    answers: Answers,
    shards: Vec<ShardStat>,
    confirmed: bool,
}

fn node(id: u64, name: String, role: Role) -> NodeRecord {
    NodeRecord {
        node: NodeId(id),
        domain: name.clone(),
        name,
        roles: vec![role],
        address: format!("host{id}:7000"),
        incarnation: Incarnation(1),
        state: State::Up,
        version: None,
        public_key: None,
    }
}

fn disk(id: u64) -> DiskRecord {
    DiskRecord {
        disk: DiskId(u128::from(id)),
        node: NodeId(id),
        incarnation: Incarnation(1),
        state: State::Up,
        name: format!("s{}/d0", id - 10),
        size_bytes: 1_000,
        used_bytes: Some(100),
        quarantined: None,
        write_stop_bytes: None,
    }
}

/// All lists of `width` disks out of `count`, so that what holds for a large table holds here.
fn groups(count: u64, code: Code) -> Vec<PlacementGroup> {
    let lists = (0..1u64 << count).filter(|bits| bits.count_ones() as usize == code.width());
    let disks = |bits: u64| (0..count).filter(|at| bits >> at & 1 == 1).map(|at| DiskId(u128::from(11 + at))).collect();
    let group = |(at, bits): (usize, u64)| PlacementGroup {
        pg: PgId(at as u32),
        generation: 1,
        code,
        disks: disks(bits),
        closed: false,
    };
    lists.enumerate().map(group).collect()
}

/// m1 to m3 (leader m1), s1 to s`storage`, g1.
fn scene(storage: u64, k: u8, m: u8) -> Scene {
    let code = Code { matrix: MATRIX_VANDERMONDE, k, m };
    let metas = (1..=3).map(|id| node(id, format!("m{id}"), Role::Meta));
    let stores = (1..=storage).map(|id| node(10 + id, format!("s{id}"), Role::Storage));
    let voters: Vec<NodeId> = (1..=3).map(NodeId).collect();
    let start = ShardStart { bucket: BucketId(0), key: String::new() };
    let map = ClusterMap {
        cluster: ClusterId(1),
        epoch: Epoch(5),
        nodes: metas.chain(stores).chain([node(30, "g1".into(), Role::Gateway)]).collect(),
        disks: (11..=10 + storage).map(disk).collect(),
        pgs: groups(storage, code),
        shards: vec![ShardRecord { group: SHARD, start, voters: voters.clone() }],
        code,
        fragment_bytes_max: 1,
        name: "test".into(),
        voters,
        feature_level: 1,
        denied_nodes: vec![],
        revoked_certificates: vec![],
    };
    let answers = map.nodes.iter().map(|node| (node.node, Ok(report(node.node)))).collect();
    let stat = ShardStat {
        objects: 1,
        object_bytes: 1,
        uploads: 0,
        deferred_deletes: 0,
        fill_ins: 0,
        fence: WriterId(0),
        buckets: vec![],
        discards: None,
        expiry_held_ms: None,
    };
    Scene { map, answers, shards: vec![stat], confirmed: true }
}

fn report(id: NodeId) -> NodeReport {
    let group = |group| RaftGroupStatus {
        group,
        leader: Some(NodeId(1)),
        term: 1,
        last_log: 1,
        applied: 1,
        voters: (1..=3).map(NodeId).collect(),
        learners: vec![],
        matched: vec![],
        stopped: None,
        condition: None,
    };
    let is_meta = id.0 <= 3;
    let raft = is_meta.then(|| RaftStatus { groups: vec![group(GROUP_SYSTEM), group(SHARD)] });
    let sight = |node: u64| VoterSight { node: NodeId(node), heard_ms: Some(100), refused: None };
    let voters = if id == NodeId(1) { vec![sight(2), sight(3)] } else { vec![] };
    NodeReport { node: id, map: None, raft, voters, refused_by: vec![], reasons: vec![] }
}

impl Scene {
    fn collected(&self) -> Collected<'_> {
        let shards = self.confirmed.then_some(&self.shards[..]);
        Collected { map: &self.map, confirmed: self.confirmed, answers: &self.answers, shards, demo: false }
    }

    fn verdict(&self) -> Verdict {
        judge(&self.collected())
    }

    fn record(&mut self, name: &str) -> &mut NodeRecord {
        self.map.nodes.iter_mut().find(|node| node.name == name).unwrap()
    }

    fn report(&mut self, name: &str) -> &mut NodeReport {
        let node = self.record(name).node;
        self.answers.get_mut(&node).unwrap().as_mut().unwrap()
    }

    /// A process that has ended: nobody answers, group 0 may know.
    fn kill(&mut self, name: &str) {
        let node = self.record(name).node;
        self.answers.insert(node, Err("connection refused".into()));
    }

    fn state(&mut self, name: &str, state: State) {
        self.record(name).state = state;
    }

    fn down(&mut self, names: &[&str]) {
        names.iter().for_each(|name| self.state(name, State::Down));
    }

    fn leader_sees(&mut self, voter: u64, heard_ms: Option<u64>, refused: Option<&str>) {
        let sights = &mut self.report("m1").voters;
        let sight = sights.iter_mut().find(|sight| sight.node == NodeId(voter)).unwrap();
        (sight.heard_ms, sight.refused) = (heard_ms, refused.map(str::to_owned));
    }
}

fn codes(verdict: &Verdict) -> Vec<&str> {
    verdict.reasons.iter().map(|reason| reason.code.as_str()).collect()
}

/// Returns what would stop with a node, and why, as `node list` shows it.
fn stops(scene: &Scene, name: &str) -> (Vec<&'static str>, String) {
    let view = view::nodes(&scene.collected()).into_iter().find(|view| view.name == name).unwrap();
    assert_eq!(view.safe_to_stop, view.stops.is_empty());
    (view.stops, view.reason)
}

type Hurt = fn(&mut Scene);

/// What was done, to what, and what must be said: health, codes, voters that take part, how many more may be lost,
/// whether reads and writes work.
type Row = (&'static str, Hurt, &'static str, &'static [&'static str], (usize, usize), (bool, bool));

const WOUNDS: [Row; 17] = [
    ("nothing", |_| {}, "OK", &[], (3, 1), (true, true)),
    ("voter killed", |scene| scene.kill("m3"), "CRITICAL", &["M102", "M108"], (2, 0), (true, true)),
    (
        "voter that group 0 has as down and that was not asked",
        |scene| {
            scene.answers.clear();
            scene.state("m3", State::Down);
        },
        "CRITICAL",
        &["M102", "M108"],
        (2, 0),
        (true, true),
    ),
    (
        "voter rolled back: it runs, answers, follows, and is refused",
        |scene| scene.leader_sees(3, Some(100), Some("boot 3 is not newer than boot 3; it was rolled back")),
        "CRITICAL",
        &["M102", "M110"],
        (2, 0),
        (true, true),
    ),
    (
        "voter wiped, as it knows itself",
        |scene| scene.report("m3").refused_by = vec![(NodeId(1), "it was wiped".into())],
        "CRITICAL",
        &["M102", "M110"],
        (2, 0),
        (true, true),
    ),
    (
        "voter that its leader does not hear",
        |scene| scene.leader_sees(2, Some(9_000), None),
        "CRITICAL",
        &["M102", "M109"],
        (2, 0),
        (true, true),
    ),
    (
        "replica stopped",
        |scene| scene.report("m2").raft.as_mut().unwrap().groups[1].stopped = Some("no space".into()),
        "CRITICAL",
        &["M102", "M104"],
        (2, 0),
        (true, true),
    ),
    (
        "voter of one group of two",
        |scene| scene.report("m1").raft.as_mut().unwrap().groups[1].voters.truncate(2),
        "WARN",
        &["M107"],
        (2, 0),
        (true, true),
    ),
    (
        "majority lost",
        |scene| {
            scene.kill("m1");
            scene.kill("m2");
            scene.confirmed = false;
        },
        "CRITICAL",
        &["M106", "M102", "M108", "M108"],
        (1, 0),
        (false, false),
    ),
    ("a shard does not answer", |scene| scene.shards.clear(), "CRITICAL", &["M103"], (3, 1), (false, false)),
    ("storage node killed", |scene| scene.kill("s1"), "WARN", &["N201"], (3, 1), (true, true)),
    (
        "two of six storage nodes down",
        |scene| scene.down(&["s1", "s2"]),
        "WARN",
        &["N201", "N201"],
        (3, 1),
        (true, true),
    ),
    (
        "three of six storage nodes down",
        |scene| scene.down(&["s1", "s2", "s3"]),
        "CRITICAL",
        &["D202", "S203", "N201", "N201", "N201"],
        (3, 1),
        (true, false),
    ),
    ("disk wiped", |scene| scene.map.disks[0].state = State::Down, "WARN", &["D201"], (3, 1), (true, true)),
    (
        "all disks full",
        |scene| scene.map.disks.iter_mut().for_each(|disk| disk.used_bytes = Some(850)),
        "CRITICAL",
        &["S203", "D204", "D204", "D204", "D204", "D204", "D204"],
        (3, 1),
        (true, false),
    ),
    ("only gateway down", |scene| scene.kill("g1"), "CRITICAL", &["G501", "N201"], (3, 1), (true, true)),
    (
        "no open placement group",
        |scene| scene.map.pgs.iter_mut().for_each(|pg| pg.closed = true),
        "CRITICAL",
        &["L401"],
        (3, 1),
        (true, false),
    ),
];

#[test]
fn every_wound_is_told_as_it_is() {
    for (what, hurt, health, expected, (voters_up, can_lose), (reads, writes)) in WOUNDS {
        let mut scene = scene(6, 3, 2);
        hurt(&mut scene);
        let verdict = scene.verdict();
        assert_eq!((verdict.health(), codes(&verdict)), (health, expected.to_vec()), "{what}: {:?}", verdict.reasons);
        let metadata = &verdict.metadata;
        assert_eq!((metadata.voters_up, metadata.can_lose), (voters_up, can_lose), "{what}");
        assert_eq!((verdict.reads(), verdict.writes()), (reads, writes), "{what}");
        let status = view::status(&scene.collected());
        assert_eq!((status.voters_up, status.can_lose, status.writes), (voters_up, can_lose, writes), "{what}");
        assert!(verdict.reasons.iter().all(|reason| !reason.next.is_empty()), "{what}: {:?}", verdict.reasons);
    }
}

#[test]
fn a_refused_voter_is_named_with_its_remedy_and_its_state() {
    let mut scene = scene(6, 3, 2);
    scene.leader_sees(3, Some(100), Some("it was rolled back"));
    let verdict = scene.verdict();
    let reason = verdict.reasons.iter().find(|reason| reason.code == "M110").unwrap();
    assert!(reason.text.contains("m3") && reason.text.contains("rolled back"), "{}", reason.text);
    assert_eq!(reason.next, "plinth raft remove m3 && plinth cluster token create --roles meta");
    assert_eq!(verdict.states[&NodeId(3)], "REFUSED");
    // The trial's outage: one more voter was stopped because three were counted.
    for name in ["m1", "m2"] {
        assert_eq!(stops(&scene, name).0, ["reads", "writes"], "{name}");
    }
    assert_eq!(stops(&scene, "m3").0, [""; 0], "it takes no part");
}

#[test]
fn safe_to_stop_answers_for_reads_writes_and_service() {
    let none: [&str; 0] = [];
    // Five nodes at 3+2, one down: writes need four.
    let mut five = scene(5, 3, 2);
    assert_eq!(stops(&five, "s2").0, none);
    five.kill("s1");
    let (what, why) = stops(&five, "s2");
    assert_eq!(what, ["writes"], "{why}");
    assert!(why.contains("code 3+2 needs 4 disks"), "{why}");
    five.kill("s2");
    assert_eq!(stops(&five, "s3").0, ["reads", "writes"], "two of five would be left");
    assert_eq!(stops(&five, "s1").0, none, "it does not serve as it is");
    assert!(five.verdict().health() == "CRITICAL" && !five.verdict().writes());

    // Six nodes at 3+2: groups without the dead node remain.
    let mut six = scene(6, 3, 2);
    six.kill("s1");
    assert_eq!(stops(&six, "s2").0, none);
    assert_eq!(stops(&six, "g1"), (vec!["service"], "service stops: g1 is the only gateway that serves".into()));
    six.map.nodes.push(node(31, "g2".into(), Role::Gateway));
    assert_eq!(stops(&six, "g1").0, none);
    // A stripe that owes a fragment bears one loss less.
    six.shards[0].fill_ins = 1;
    assert_eq!(stops(&six, "s2").0, ["reads"]);

    // A code that may owe nothing, and a single node that is everything.
    assert_eq!(stops(&scene(3, 2, 1), "s1").0, ["writes"]);
    let mut single = scene(1, 1, 0);
    single.map.nodes.retain(|node| node.name == "s1");
    single.record("s1").roles = vec![Role::Meta, Role::Storage, Role::Gateway];
    single.map.voters = vec![NodeId(11)];
    single.map.shards[0].voters = vec![NodeId(11)];
    single.answers.clear();
    assert_eq!(single.verdict().health(), "OK");
    assert_eq!(stops(&single, "s1").0, ["reads", "writes", "reads", "writes", "service"]);
    assert!(stops(&single, "s1").1.contains("only metadata node"));
}

#[test]
fn write_quorums_are_never_below_one_more_than_reads_need() {
    for (k, m, expected) in [(3, 2, 4), (1, 2, 2), (2, 2, 3), (2, 1, 3), (1, 0, 1), (8, 3, 10)] {
        assert_eq!(write_quorum(Code::new(k, m)), expected, "{k}+{m}");
    }
}

#[test]
fn a_disk_that_no_group_uses_makes_no_object_unreadable() {
    let mut scene = scene(5, 3, 2);
    // Three nodes that joined and never started, beside two that are down.
    for id in 16..19 {
        let mut never = node(id, format!("s{}", id - 10), Role::Storage);
        never.state = State::Down;
        scene.map.nodes.push(never);
        scene.map.disks.push(DiskRecord { state: State::Down, ..disk(id) });
    }
    scene.state("s1", State::Down);
    scene.state("s2", State::Down);
    let verdict = scene.verdict();
    assert!(!codes(&verdict).contains(&"D202"), "{:?}", verdict.reasons);
    assert!(codes(&verdict).contains(&"S203"));
}

#[test]
fn a_metadata_node_that_votes_nowhere_is_no_reason_to_worry() {
    let mut scene = scene(6, 3, 2);
    let never = node(4, "m4".into(), Role::Meta);
    scene.map.nodes.push(NodeRecord { state: State::Down, ..never });
    assert_eq!(scene.verdict().health(), "OK");
    assert_eq!(stops(&scene, "m4").0, [""; 0]);
}

#[test]
fn a_metadata_node_that_takes_part_in_no_group_yet_judges_by_the_map() {
    let mut scene = scene(6, 3, 2);
    let mut new = report(NodeId(2));
    new.raft.as_mut().unwrap().groups.clear();
    scene.answers = Answers::from([(NodeId(4), Ok(new))]);
    scene.map.nodes.push(node(4, "m4".into(), Role::Meta));
    assert_eq!(scene.verdict().health(), "OK");
}

#[test]
fn a_replica_that_comes_back_by_itself_is_told_once_and_without_a_restart() {
    let mut scene = scene(6, 3, 2);
    for group in &mut scene.report("m3").raft.as_mut().unwrap().groups {
        group.condition = Some("no room for growth: 5 MiB are free".into());
    }
    let verdict = scene.verdict();
    assert_eq!((verdict.metadata.voters_up, codes(&verdict)), (3, vec!["M105"]), "it takes part all the while");
    assert!(!verdict.reasons[0].text.contains("started again") && verdict.writes());
    scene.report("m1").raft.as_mut().unwrap().groups[1].condition = Some("no room for growth".into());
    assert!(!scene.verdict().writes() && scene.verdict().reads(), "a leader refuses what grows");
    scene.report("m3").raft.as_mut().unwrap().groups[0].stopped = Some("corrupt".into());
    assert_eq!(scene.verdict().metadata.voters_up, 2, "it is being brought back");
}

#[test]
fn what_a_node_says_of_itself_is_shown_once() {
    let mut scene = scene(6, 3, 2);
    let wiped = scene.map.disks[0].disk;
    scene.map.disks[0].state = State::Down;
    let next = "plinth disk add s1 /data/d0".to_owned();
    let text = format!("disk {wiped} at /data/d0 is not in service: it is empty");
    scene.report("s1").reasons = vec![NodeReason { code: "D201".into(), text, next: next.clone() }];
    let verdict = scene.verdict();
    assert_eq!(codes(&verdict), ["D201"]);
    assert_eq!(verdict.reasons[0].next, next);
    let collected = Collected { demo: true, ..scene.collected() };
    assert_eq!(judge(&collected).reasons[0].next, "plinth --demo disk add s1 /data/d0");
}

#[test]
fn full_disks_are_told_before_and_when_they_take_no_more() {
    let mut scene = scene(6, 3, 2);
    for (used, health, expected) in
        [(799, "OK", vec![]), (800, "WARN", vec!["D203"]), (849, "WARN", vec!["D203"]), (850, "CRITICAL", vec!["D204"])]
    {
        scene.map.disks[0].used_bytes = Some(used);
        let verdict = scene.verdict();
        assert_eq!((verdict.health(), codes(&verdict)), (health, expected), "{used} of 1,000 bytes");
    }
    // Of a disk of few segments much is kept free: it stops at half.
    scene.map.disks[0].write_stop_bytes = Some(475);
    for (used, expected) in [(424, vec![]), (425, vec!["D203"]), (474, vec!["D203"]), (475, vec!["D204"])] {
        scene.map.disks[0].used_bytes = Some(used);
        assert_eq!(codes(&scene.verdict()), expected, "{used} of 1,000 bytes, stop at 475");
    }
    scene.map.disks.iter_mut().for_each(|disk| (disk.used_bytes, disk.write_stop_bytes) = (Some(475), Some(475)));
    assert!(!scene.verdict().writes(), "507 is what clients get");
    scene.map.disks.iter_mut().for_each(|disk| disk.used_bytes = Some(100));
    scene.map.disks[0].write_stop_bytes = None;
    scene.map.disks[0].used_bytes = Some(u64::MAX / 16);
    scene.map.disks[0].size_bytes = u64::MAX / 16;
    assert_eq!(codes(&scene.verdict()), ["D204"]);
}

#[test]
fn every_code_of_a_verdict_can_be_alerted_on() {
    let source = include_str!("../verdict.rs");
    let is_code = |word: &&str| {
        let bytes = word.as_bytes();
        bytes.len() == 4 && bytes[0].is_ascii_uppercase() && bytes[1..].iter().all(u8::is_ascii_digit)
    };
    let used: BTreeSet<&str> = source.split('"').filter(is_code).collect();
    let known: BTreeSet<&str> = CODES.iter().map(|(code, _)| *code).collect();
    assert_eq!(used, known);
}

#[test]
fn a_gateway_that_asked_nobody_judges_by_the_map() {
    let mut scene = scene(6, 3, 2);
    scene.answers.clear();
    assert_eq!((scene.verdict().health(), scene.verdict().metadata.leaderless), ("OK", 0));
    scene.state("s1", State::Suspect);
    scene.state("s2", State::Down);
    assert!(scene.verdict().writes(), "groups without one of them need only four");
    scene.state("s3", State::Suspect);
    assert!(!scene.verdict().writes() && scene.verdict().reads());
}
