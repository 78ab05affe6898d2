//! What admission asks of the cluster, and whom it certifies.

use super::*;
use crate::service::fake;
use plinth_transport::authority::NodeKey;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

const WAIT: Duration = Duration::from_secs(30);
const LIFETIME_S: u64 = 24 * 3600;

fn authority() -> Authority {
    Authority::create(ClusterId(7), wall_clock()).unwrap()
}

fn security() -> SecuritySection {
    SecuritySection {
        certificate: "node.crt".into(),
        private_key: "node.key".into(),
        ca_private_key: None,
        wrapping_key: None,
        certificate_lifetime_seconds: LIFETIME_S,
    }
}

fn request(token: &JoinToken) -> JoinRequest {
    JoinRequest {
        token: token.text().into(),
        csr: NodeKey::generate().unwrap().request_pem().unwrap(),
        name: "s9".into(),
        roles: vec![Role::Storage],
        address: "127.0.0.1:7009".into(),
        domain: None,
    }
}

/// A service whose cluster knows one token for storage nodes, with what it was asked to commit.
async fn admission(authority: Authority, token: Option<JoinToken>) -> (Admission, Arc<Mutex<Vec<Command>>>) {
    let commits = Arc::new(Mutex::new(Vec::new()));
    let seen = commits.clone();
    let decide = move |command: Command| {
        seen.lock().unwrap().push(command.clone());
        Ok(match command {
            Command::AdmitNode(admit) => Outcome::Node(NodeRecord { node: NodeId(5), ..admit.register.node }),
            _ => Outcome::Done,
        })
    };
    let answer = move |query| {
        Ok(match (query, &token) {
            (Query::JoinToken(hash), Some(token)) if hash == token.hash() => Reply::JoinToken(JoinTokenRow {
                hash,
                expires: HybridTime::from_millis(u64::MAX >> 16),
                roles: vec![Role::Storage],
                used: None,
            }),
            _ => Reply::Absent(RefusalKind::InvalidToken),
        })
    };
    let client = fake::client_answering(Vec::new(), decide, answer).await;
    (Admission::new(authority, client, None, &security()), commits)
}

async fn ask(admission: &Admission, request: &JoinRequest) -> Result<JoinReply, Failure> {
    admission.admit(&request.to_bytes(), Instant::now() + WAIT).await
}

#[tokio::test(start_paused = true)]
async fn refused_joins_wait_without_keeping_a_node_from_its_turn() {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = asked.clone();
    let client = fake::client_answering(
        Vec::new(),
        |_| panic!("a guess is worth no commit"),
        move |_| {
            counted.fetch_add(1, Ordering::Relaxed);
            Ok(Reply::Absent(RefusalKind::InvalidToken))
        },
    );
    let authority = authority();
    let header = request(&JoinToken::new(authority.fingerprint().0)).to_bytes();
    let admission = Arc::new(Admission::new(authority, client.await, None, &security()));
    let joins: Vec<_> = (0..JOINS_MAX + 3)
        .map(|_| {
            let (admission, header) = (admission.clone(), header.clone());
            tokio::spawn(async move {
                let started = Instant::now();
                let failure = admission.admit(&header, started + WAIT).await.unwrap_err();
                (failure.kind, started.elapsed())
            })
        })
        .collect();
    let mut kinds = Vec::new();
    for join in joins {
        let (kind, waited) = join.await.unwrap();
        assert_eq!(waited >= REFUSAL_DELAY, kind == FailureKind::Denied, "{kind:?} after {waited:?}");
        assert!(waited < REFUSAL_DELAY * 2, "no turn waits for another's refusal: {waited:?}");
        kinds.push(kind);
    }
    assert_eq!(kinds.iter().filter(|kind| **kind == FailureKind::Busy).count(), 3);
    assert_eq!(asked.load(Ordering::Relaxed), JOINS_MAX, "whoever got in got a decision");
}

#[tokio::test(start_paused = true)]
async fn only_a_join_that_can_succeed_costs_a_commit() {
    let authority = authority();
    let token = JoinToken::new(authority.fingerprint().0);
    let (admission, commits) = admission(authority, Some(token.clone())).await;
    let good = request(&token);
    for (why, bad) in [
        ("unknown token", request(&JoinToken::new(token.ca_fingerprint))),
        ("token of another cluster", request(&JoinToken::new([7; 32]))),
        ("unreadable token", JoinRequest { token: String::from("plj1.x").into(), ..good.clone() }),
        ("roles that the token is not for", JoinRequest { roles: vec![Role::Meta], ..good.clone() }),
        ("a request that no key signed", JoinRequest { csr: "garbage".into(), ..good.clone() }),
        ("an endless request", JoinRequest { csr: "x".repeat(CSR_BYTES_MAX + 1), ..good.clone() }),
        ("a name with a slash", JoinRequest { name: "a/b".into(), ..good.clone() }),
        ("no address", JoinRequest { address: "somewhere".into(), ..good.clone() }),
    ] {
        ask(&admission, &bad).await.expect_err(why);
        assert!(commits.lock().unwrap().is_empty(), "{why}: {:?}", commits.lock().unwrap());
    }
    let admitted = ask(&admission, &good).await.unwrap();
    let facts = CertificateFacts::from_pem(&admitted.certificate).unwrap();
    let commits = commits.lock().unwrap().clone();
    let [Command::AdmitNode(admit), Command::RecordCertificate(row)] = commits.as_slice() else {
        panic!("{commits:?}");
    };
    assert_eq!((admit.token, admit.register.public_key), (token.hash(), Some(facts.public_key.0)));
    assert_eq!((row.serial, row.node, row.public_key), (facts.serial, NodeId(5), facts.public_key.0));
    assert_eq!(facts.valid_until_s - facts.issued_s(), LIFETIME_S);
    assert_eq!(
        (admitted.ca_private_key, admitted.certificate_lifetime_s),
        (None, None),
        "a storage node signs nothing"
    );
}

#[tokio::test(start_paused = true)]
async fn a_certificate_is_renewed_for_its_own_key_and_a_node_that_the_registry_has() {
    let authority = authority();
    let fingerprint = authority.fingerprint();
    // The fake's voter is node 9.
    let identity = |node: u64| Identity {
        cluster: ClusterId(7),
        node: NodeId(node),
        roles: vec![Role::Meta],
        incarnation: Incarnation(1),
    };
    let key = NodeKey::generate().unwrap();
    let csr = || Some(key.request_pem().unwrap());
    let chain =
        authority.issue_for_request(&identity(9), &csr().unwrap(), Duration::from_secs(60), wall_clock()).unwrap();
    let old = CertificateFacts::from_pem(&chain).unwrap();
    let (admission, commits) = admission(authority, None).await;
    let ask = async |caller: Identity, shown: Option<&CertificateFacts>, csr: Option<String>| {
        let header = CertifyRequest { csr }.to_bytes();
        admission.renew(&caller, shown, &header, Instant::now() + WAIT).await
    };
    assert_eq!(ask(identity(9), None, csr()).await.unwrap_err().kind, FailureKind::Invalid, "no certificate shown");
    let other_key = Some(NodeKey::generate().unwrap().request_pem().unwrap());
    assert_eq!(ask(identity(9), Some(&old), other_key).await.unwrap_err().kind, FailureKind::Denied);
    assert_eq!(ask(identity(4), Some(&old), csr()).await.unwrap_err().kind, FailureKind::Denied, "not registered");
    let second = Identity { incarnation: Incarnation(2), ..identity(9) };
    assert_eq!(ask(second, Some(&old), csr()).await.unwrap_err().kind, FailureKind::Denied, "another incarnation");
    assert!(commits.lock().unwrap().is_empty());

    let renewed = ask(identity(9), Some(&old), csr()).await.unwrap().certificate.unwrap();
    let new = CertificateFacts::from_pem(&renewed).unwrap();
    assert!(new.serial != old.serial && new.public_key == old.public_key && new.valid_until_s > old.valid_until_s);
    let loaded = plinth_transport::NodeCertificate::load(&renewed, &key.key_pem()).unwrap();
    loaded.check_chain(fingerprint).unwrap();
    assert_eq!(ask(identity(9), Some(&old), None).await.unwrap().certificate, None, "only written down");
    let commits = commits.lock().unwrap();
    let serials: Vec<u128> = commits
        .iter()
        .map(|command| match command {
            Command::RecordCertificate(row) => row.serial,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(serials, [new.serial, old.serial]);
}

#[test]
fn operators_have_ids_of_their_own_above_all_nodes() {
    let ids: Vec<u64> = ["mai", "an", "mai"].map(|name| operator_id(name).0).to_vec();
    assert!(ids.iter().all(|id| *id >= OPERATOR_NODE_MIN));
    assert!(ids[0] == ids[2] && ids[0] != ids[1]);
}
