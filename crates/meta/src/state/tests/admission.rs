//! The system group: admission by token, certificates, the deny list.

use super::system::{map, moved, node, system};
use super::*;
use plinth_protocol::map::{ClusterMap, NodeRecord};

const TOKEN: [u8; 32] = [1; 32];
const DAY_S: u64 = 24 * 3600;

fn token(system: &Replica<MemoryStore>) -> Command {
    let expires = HybridTime::from_millis(system.now_ms + 60_000);
    Command::CreateJoinToken(JoinTokenRow { hash: TOKEN, expires, roles: vec![Role::Storage], used: None })
}

fn admit(name: &str, key: u8) -> Command {
    let register = RegisterNode { node: node(0, name), public_key: Some([key; 32]) };
    Command::AdmitNode(Box::new(AdmitNode { token: TOKEN, register }))
}

fn certificate(serial: u128, id: u64, key: u8) -> CertificateRow {
    let now_s = START_MS / 1000;
    CertificateRow {
        serial,
        node: NodeId(id),
        roles: vec![Role::Storage],
        valid_from_s: now_s,
        valid_until_s: now_s + DAY_S,
        public_key: [key; 32],
        operator: None,
    }
}

fn record(system: &mut Replica<MemoryStore>, row: CertificateRow) -> Outcome {
    system.run(Command::RecordCertificate(row))
}

fn listed(system: &Replica<MemoryStore>) -> CertificateList {
    match system.query(Query::Certificates) {
        Reply::Certificates(list) => list,
        other => panic!("{other:?}"),
    }
}

fn deny(id: u64, denied: bool) -> Command {
    Command::DenyNode(DenyNode { node: NodeId(id), denied })
}

#[test]
fn a_refused_admission_leaves_the_token_as_it_was() {
    let mut system = system();
    let create = token(&system);
    system.run(create);
    let meta = RegisterNode { node: NodeRecord { roles: vec![Role::Meta], ..node(0, "d") }, public_key: Some([7; 32]) };
    assert_refused(system.run(admit("a", 7)), RefusalKind::AlreadyExists);
    assert_refused(
        system.run(Command::AdmitNode(Box::new(AdmitNode { token: TOKEN, register: meta }))),
        RefusalKind::InvalidToken,
    );
    let keyless = RegisterNode { node: node(0, "d"), public_key: None };
    assert_refused(
        system.run(Command::AdmitNode(Box::new(AdmitNode { token: TOKEN, register: keyless }))),
        RefusalKind::Invalid,
    );
    let Outcome::Node(admitted) = system.run(admit("d", 7)) else { panic!() };
    let shown = map(&system);
    let known = shown.node(admitted.node).unwrap();
    assert_eq!((known.name.as_str(), known.public_key), ("d", Some([7; 32])));
}

#[test]
fn a_token_admits_one_node_and_answers_that_one_again() {
    let mut system = system();
    assert_refused(system.run(admit("d", 7)), RefusalKind::InvalidToken);
    let create = token(&system);
    system.run(create);
    let Outcome::Node(admitted) = system.run(admit("d", 7)) else { panic!() };
    assert_eq!(system.run(admit("d", 7)), Outcome::Node(admitted.clone()), "the answer was lost on its way");
    assert_refused(system.run(admit("e", 8)), RefusalKind::InvalidToken);
    let consume = ConsumeJoinToken { hash: TOKEN, roles: vec![Role::Storage] };
    assert_refused(system.run(Command::ConsumeJoinToken(consume)), RefusalKind::InvalidToken);
    let Reply::JoinToken(row) = system.query(Query::JoinToken(TOKEN)) else { panic!() };
    assert_eq!(row.used, Some(UsedToken { node: admitted.node, public_key: [7; 32] }));
    assert_eq!(map(&system).nodes.iter().filter(|node| node.name == "d" || node.name == "e").count(), 1);
    system.now_ms += 60_001;
    assert_refused(system.run(admit("d", 7)), RefusalKind::InvalidToken);
}

#[test]
fn a_withdrawn_token_admits_nobody() {
    let mut system = system();
    let create = token(&system);
    system.run(create);
    let Reply::JoinTokens(list) = system.query(Query::JoinTokens) else { panic!() };
    assert_eq!(list.tokens.len(), 1);
    assert_eq!(system.run(Command::RevokeJoinToken(TOKEN)), Outcome::Done);
    assert_refused(system.run(Command::RevokeJoinToken(TOKEN)), RefusalKind::InvalidToken);
    assert_refused(system.run(admit("d", 7)), RefusalKind::InvalidToken);
}

#[test]
fn the_first_certificate_tells_a_nodes_key_and_another_key_is_refused() {
    let mut system = system();
    let key_of = |map: &ClusterMap| map.node(NodeId(2)).unwrap().public_key;
    assert_eq!(key_of(&map(&system)), None, "founders of 02a86df have no key in the registry");
    let (outcome, bumps) = moved(&mut system, Command::RecordCertificate(certificate(1, 2, 5)));
    assert_eq!((outcome, bumps, key_of(&map(&system))), (Outcome::Done, 1, Some([5; 32])));
    let (outcome, bumps) = moved(&mut system, Command::RecordCertificate(certificate(2, 2, 5)));
    assert_eq!((outcome, bumps), (Outcome::Done, 0), "a renewal changes no map");
    assert_refused(record(&mut system, certificate(3, 2, 6)), RefusalKind::AlreadyExists);
    assert_refused(record(&mut system, certificate(3, 77, 6)), RefusalKind::NoSuchNode);
    let operator = CertificateRow { operator: Some("mai".into()), ..certificate(4, OPERATOR_NODE_MIN + 3, 6) };
    assert_eq!(record(&mut system, operator), Outcome::Done);
    assert_eq!(listed(&system).certificates.iter().map(|row| row.serial).collect::<Vec<_>>(), [1, 2, 4]);
    system.now_ms += (DAY_S + 1) * 1000;
    let later = CertificateRow { valid_until_s: START_MS / 1000 + 9 * DAY_S, ..certificate(5, 2, 5) };
    record(&mut system, later);
    assert_eq!(listed(&system).certificates.iter().map(|row| row.serial).collect::<Vec<_>>(), [5], "ended ones go");
}

#[test]
fn a_revoked_serial_number_reaches_every_node_with_the_map_until_it_would_have_ended() {
    let mut system = system();
    record(&mut system, certificate(1, 2, 5));
    assert_refused(system.run(Command::RevokeCertificate(9)), RefusalKind::NoSuchCertificate);
    let (outcome, bumps) = moved(&mut system, Command::RevokeCertificate(1));
    assert_eq!((outcome, bumps, map(&system).revoked_certificates), (Outcome::Done, 1, vec![1]));
    assert_eq!(moved(&mut system, Command::RevokeCertificate(1)).1, 0, "twice is once");
    assert_eq!(listed(&system).revoked.len(), 1);
    system.now_ms += (DAY_S + 1) * 1000;
    let later = CertificateRow { valid_until_s: START_MS / 1000 + 9 * DAY_S, ..certificate(2, 3, 6) };
    record(&mut system, later);
    system.run(Command::RevokeCertificate(2));
    assert_eq!(map(&system).revoked_certificates, [2]);
}

#[test]
fn nodes_are_denied_and_admitted_again_but_never_the_majority_of_the_voters() {
    let mut system = system();
    let (outcome, bumps) = moved(&mut system, deny(2, true));
    assert!(matches!(outcome, Outcome::Node(ref node) if node.name == "b"), "{outcome:?}");
    assert_eq!((bumps, map(&system).denied_nodes), (1, vec![NodeId(2)]));
    assert_eq!(moved(&mut system, deny(2, true)).1, 0);
    assert_refused(system.run(deny(9, true)), RefusalKind::NoSuchNode);
    assert_refused(system.run(deny(1, true)), RefusalKind::Invalid);
    assert_eq!(map(&system).denied_nodes, [NodeId(2)], "the only voter stays");
    assert_eq!(moved(&mut system, deny(2, false)).1, 1);
    assert_eq!(map(&system).denied_nodes, []);
}
