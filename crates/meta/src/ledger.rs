//! Who is who among the voters, and who must not be heard.
//!
//! Group 0 keeps, for every voter, the id of its log, its boot counter and a floor that its log had
//! reached ([`VoterRecord`]). Every Raft message carries the sender's own. A voter whose log was
//! wiped presents another log id; one that was restored from an old image presents an old boot
//! counter or a floor below the recorded one. Either has forgotten what it promised, so it is
//! refused before openraft hears it, in requests and in replies.
//!
//! The ledger also remembers what it has heard itself, so that a rolled-back voter is refused even
//! where group 0's floor lags behind. Within one session (one start of the peer's process) the
//! floor may seem to fall, because messages overtake each other; it is checked when a session is
//! first heard.

use crate::hearing::Hearing;
use plinth_protocol::meta::{VoterRecord, VoterSight};
use plinth_protocol::{Failure, FailureKind, NodeId, record};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

record! {
    /// Who sends a Raft message, and what its log has reached.
    pub struct VoterIdentity {
        1 => node: NodeId,
        /// Drawn at random when the log was formatted.
        2 => log: u128,
        /// Counts the node's starts on this log.
        3 => boot: u64,
        /// Drawn at random at each start.
        4 => session: u64,
        /// Every record of the log below this sequence number is durable.
        5 => floor: u64,
    }
}

/// What is known of the voters. Shared by all groups of a node.
pub(crate) struct Ledger {
    node: NodeId,
    log: u128,
    boot: u64,
    session: u64,
    floor: Arc<AtomicU64>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// What group 0 holds, as far as this node has applied it.
    recorded: BTreeMap<NodeId, VoterRecord>,
    /// What this process has heard.
    heard: BTreeMap<NodeId, VoterIdentity>,
    /// Where the nodes are, by the cluster map.
    addresses: BTreeMap<NodeId, String>,
    /// What people call them.
    names: BTreeMap<NodeId, String>,
    refused: u64,
    hearing: Hearing,
}

impl Known {
    fn name(&self, node: NodeId) -> String {
        self.names.get(&node).cloned().unwrap_or_else(|| node.to_string())
    }
}

impl Ledger {
    /// Makes the ledger of a node that has just started.
    pub(crate) fn new(node: NodeId, log: u128, boot: u64, session: u64, floor: Arc<AtomicU64>) -> Self {
        Ledger { node, log, boot, session, floor, known: Mutex::default() }
    }

    /// Returns this node's own identity, with its present floor.
    pub(crate) fn identity(&self) -> VoterIdentity {
        VoterIdentity {
            node: self.node,
            log: self.log,
            boot: self.boot,
            session: self.session,
            floor: self.floor.load(Ordering::Acquire),
        }
    }

    /// Returns the log id that a peer must have, where one is known.
    pub(crate) fn expected(&self, node: NodeId) -> Option<u128> {
        let known = self.lock();
        known.recorded.get(&node).map(|record| record.log).or_else(|| known.heard.get(&node).map(|heard| heard.log))
    }

    /// Returns where a node is, by the cluster map.
    pub(crate) fn address(&self, node: NodeId) -> Option<String> {
        self.lock().addresses.get(&node).cloned()
    }

    /// Takes over what group 0 holds.
    pub(crate) fn set_recorded(&self, records: Vec<VoterRecord>) {
        self.lock().recorded = records.into_iter().map(|record| (record.node, record)).collect();
    }

    /// Takes over where the nodes are.
    pub(crate) fn set_addresses(&self, addresses: BTreeMap<NodeId, String>) {
        self.lock().addresses = addresses;
    }

    /// Takes over what people call the nodes.
    pub(crate) fn set_names(&self, names: BTreeMap<NodeId, String>) {
        self.lock().names = names;
    }

    /// Returns what people call a node.
    pub(crate) fn name(&self, node: NodeId) -> String {
        self.lock().name(node)
    }

    /// Returns how long a node has not been heard, where it ever was.
    pub(crate) fn silence(&self, node: NodeId) -> Option<Duration> {
        self.lock().hearing.silence(node, Instant::now())
    }

    /// Returns how many messages have been refused.
    pub(crate) fn refused(&self) -> u64 {
        self.lock().refused
    }

    /// Checks the sender of a message against what is known; fails with `Denied`.
    pub(crate) fn admit(&self, from: &VoterIdentity) -> Result<(), Failure> {
        let mut known = self.lock();
        match judge(known.recorded.get(&from.node), known.heard.get(&from.node), from) {
            Ok(()) => {
                let floor = known.heard.get(&from.node).filter(|heard| heard.session == from.session);
                let floor = floor.map_or(from.floor, |heard| heard.floor.max(from.floor));
                known.heard.insert(from.node, VoterIdentity { floor, ..from.clone() });
                known.hearing.note_heard(from.node, Instant::now());
                Ok(())
            }
            Err(reason) => {
                known.refused += 1;
                note_refused(&mut known, from.node, &reason);
                Err(refusal(from.node, &reason))
            }
        }
    }

    /// Notes what a peer thinks of this voter: why it refuses to hear it, or that it does hear it.
    pub(crate) fn note_standing(&self, peer: NodeId, refused: Option<&str>) {
        let mut known = self.lock();
        let Some(reason) = refused else { return known.hearing.note_heard_by(peer) };
        if known.hearing.note_refused_by(peer, reason, Instant::now()) {
            let (peer, name) = (known.name(peer), known.name(self.node));
            let remedy = remedy(&name);
            tracing::error!(
                event = "voter_refused",
                peer,
                reason,
                remedy,
                "this voter is refused and does not take part"
            );
        }
    }

    /// Notes what a failed call to a peer says: that it refuses this voter, or that it is not the voter that was meant.
    pub(crate) fn note_failure(&self, peer: NodeId, failure: &Failure) {
        match parse_refusal(failure) {
            Some((node, reason)) if node == self.node => self.note_standing(peer, Some(reason)),
            Some((node, reason)) if node == peer => note_refused(&mut self.lock(), peer, reason),
            _ => {}
        }
    }

    /// Returns why a peer is refused at present, where it is.
    pub(crate) fn refusal_of(&self, peer: NodeId) -> Option<String> {
        self.lock().hearing.refusal(peer, Instant::now()).map(str::to_owned)
    }

    /// Returns the peers that refuse this voter at present, each with why.
    pub(crate) fn refused_by(&self) -> Vec<(NodeId, String)> {
        self.lock().hearing.refused_by(Instant::now())
    }

    /// Returns what is known of each other voter.
    pub(crate) fn sights(&self) -> Vec<VoterSight> {
        self.lock().hearing.sights(Instant::now())
    }

    /// Checks that a message was meant for this log; fails with `Denied`.
    pub(crate) fn check_addressee(&self, expected: Option<u128>) -> Result<(), Failure> {
        match expected {
            Some(log) if log != self.log => Err(refusal(self.node, WIPED)),
            _ => Ok(()),
        }
    }

    /// Checks this node's own log against what group 0 holds of it.
    pub(crate) fn check_self(&self, records: &[VoterRecord]) -> Result<(), String> {
        let record = records.iter().find(|record| record.node == self.node);
        judge(record, None, &self.identity())
    }

    /// Returns the records that group 0 should hold but does not: new voters and boots, and floors
    /// that have moved by at least `floor_step`.
    pub(crate) fn unrecorded(&self, floor_step: u64) -> Vec<VoterRecord> {
        let known = self.lock();
        let own = self.identity();
        std::iter::once(&own)
            .chain(known.heard.values())
            .filter(|heard| match known.recorded.get(&heard.node) {
                None => true,
                Some(record) => heard.boot > record.boot || heard.floor >= record.floor.saturating_add(floor_step),
            })
            .map(|heard| VoterRecord { node: heard.node, log: heard.log, boot: heard.boot, floor: heard.floor })
            .collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a voter with another log than the recorded one is refused.
const WIPED: &str = "its log is not the one that the cluster knows; it was wiped";

/// What an operator does about a voter that must not vote again.
pub(crate) fn remedy(name: &str) -> String {
    format!("plinth raft remove {name}, then join a new node: plinth cluster token create --roles meta")
}

/// Makes the failure that says who is refused and why; [`parse_refusal`] reads it.
fn refusal(node: NodeId, reason: &str) -> Failure {
    Failure::new(FailureKind::Denied, format!("voter {node} refused: {reason}"))
}

/// Reads who is refused, and why, from the failure of a call.
fn parse_refusal(failure: &Failure) -> Option<(NodeId, &str)> {
    let text = failure.text.strip_prefix("voter n").filter(|_| failure.kind == FailureKind::Denied)?;
    let (node, reason) = text.split_once(" refused: ")?;
    Some((NodeId(node.parse().ok()?), reason))
}

fn note_refused(known: &mut Known, node: NodeId, reason: &str) {
    if known.hearing.note_refused(node, reason, Instant::now()) {
        let name = known.name(node);
        let remedy = remedy(&name);
        tracing::error!(event = "voter_refused", voter = name, reason, remedy, "voter is not heard");
    }
}

/// Decides whether a sender is the voter that is known.
fn judge(recorded: Option<&VoterRecord>, heard: Option<&VoterIdentity>, from: &VoterIdentity) -> Result<(), String> {
    if let Some(record) = recorded {
        if record.log != from.log {
            return Err(WIPED.into());
        }
        if from.boot < record.boot {
            return Err(format!("boot {} is older than boot {}; it was rolled back", from.boot, record.boot));
        }
    }
    match heard {
        Some(heard) if heard.log != from.log => {
            return Err("its log is not the one heard before; it was wiped".into());
        }
        Some(heard) if heard.session == from.session => return Ok(()),
        Some(heard) if from.boot <= heard.boot => {
            return Err(format!("boot {} is not newer than boot {}; it was rolled back", from.boot, heard.boot));
        }
        _ => {}
    }
    let floor = recorded.map_or(0, |record| record.floor).max(heard.map_or(0, |heard| heard.floor));
    if from.floor < floor {
        return Err(format!("its log ends at {}, below {floor} which it had reached; it was rolled back", from.floor));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger() -> Ledger {
        Ledger::new(NodeId(1), 11, 1, 1, Arc::new(AtomicU64::new(5)))
    }

    fn voter(log: u128, boot: u64, session: u64, floor: u64) -> VoterIdentity {
        VoterIdentity { node: NodeId(2), log, boot, session, floor }
    }

    fn record(log: u128, boot: u64, floor: u64) -> VoterRecord {
        VoterRecord { node: NodeId(2), log, boot, floor }
    }

    #[test]
    fn wiped_voter_is_refused() {
        let ledger = ledger();
        ledger.admit(&voter(7, 1, 1, 10)).unwrap();
        assert!(ledger.admit(&voter(8, 1, 2, 99)).is_err());
        ledger.set_recorded(vec![record(7, 1, 10)]);
        assert!(ledger.admit(&voter(8, 2, 3, 99)).unwrap_err().text.contains("wiped"));
        assert_eq!(ledger.refused(), 2);
    }

    #[test]
    fn rolled_back_voter_is_refused_by_boot_or_by_floor() {
        let ledger = ledger();
        ledger.set_recorded(vec![record(7, 3, 100)]);
        assert!(ledger.admit(&voter(7, 2, 1, 200)).unwrap_err().text.contains("rolled back"));
        assert!(ledger.admit(&voter(7, 4, 1, 99)).unwrap_err().text.contains("rolled back"));
        ledger.admit(&voter(7, 4, 1, 100)).unwrap();
        assert!(ledger.admit(&voter(7, 4, 2, 500)).is_err(), "another start under the same boot");
        ledger.admit(&voter(7, 5, 2, 100)).unwrap();
    }

    #[test]
    fn refusals_are_known_on_both_sides_until_they_end() {
        let (ledger, peer) = (ledger(), NodeId(2));
        ledger.admit(&voter(7, 3, 1, 10)).unwrap();
        let denied = ledger.admit(&voter(7, 3, 2, 10)).unwrap_err();
        let reason = "boot 3 is not newer than boot 3; it was rolled back";
        assert_eq!(parse_refusal(&denied), Some((peer, reason)));
        assert_eq!(ledger.refusal_of(peer).as_deref(), Some(reason));
        ledger.admit(&voter(7, 4, 3, 10)).unwrap();
        assert_eq!(ledger.refusal_of(peer), None);
        // The other side learns of it from the failed call, or from the next message that it is sent.
        ledger.note_failure(peer, &refusal(NodeId(1), reason));
        assert_eq!(ledger.refused_by(), [(peer, reason.to_owned())]);
        ledger.note_standing(peer, None);
        assert_eq!(ledger.refused_by(), []);
        ledger.note_failure(peer, &ledger.check_addressee(Some(12)).unwrap_err());
        assert_eq!(ledger.refused_by(), [(peer, WIPED.to_owned())]);
        // A peer that says so of itself is not the voter that was meant.
        ledger.note_failure(peer, &refusal(peer, WIPED));
        assert_eq!(ledger.refusal_of(peer).as_deref(), Some(WIPED));
        ledger.note_failure(peer, &Failure::new(FailureKind::Denied, "voter n refused"));
    }

    #[test]
    fn messages_of_one_session_may_overtake_each_other() {
        let ledger = ledger();
        ledger.admit(&voter(7, 1, 1, 10)).unwrap();
        ledger.admit(&voter(7, 1, 1, 50)).unwrap();
        ledger.admit(&voter(7, 1, 1, 20)).unwrap();
        assert!(ledger.admit(&voter(7, 2, 2, 40)).is_err(), "the next session starts below what was heard");
    }

    #[test]
    fn leader_records_new_voters_new_boots_and_moved_floors() {
        let ledger = ledger();
        ledger.admit(&voter(7, 1, 1, 10)).unwrap();
        let own = VoterRecord { node: NodeId(1), log: 11, boot: 1, floor: 5 };
        assert_eq!(ledger.unrecorded(100), vec![own.clone(), record(7, 1, 10)]);
        ledger.set_recorded(vec![own, record(7, 1, 10)]);
        assert!(ledger.unrecorded(100).is_empty());
        ledger.admit(&voter(7, 1, 1, 110)).unwrap();
        assert_eq!(ledger.unrecorded(100), vec![record(7, 1, 110)]);
    }

    #[test]
    fn node_recognises_its_own_lost_log() {
        let ledger = ledger();
        ledger.check_self(&[]).unwrap();
        ledger.check_self(&[VoterRecord { node: NodeId(1), log: 11, boot: 1, floor: 5 }]).unwrap();
        assert!(ledger.check_self(&[VoterRecord { node: NodeId(1), log: 12, boot: 1, floor: 0 }]).is_err());
        assert!(ledger.check_self(&[VoterRecord { node: NodeId(1), log: 11, boot: 1, floor: 6 }]).is_err());
    }

    #[test]
    fn wiped_voter_learns_it_from_a_peer() {
        assert!(ledger().check_addressee(Some(12)).unwrap_err().text.contains("wiped"));
        ledger().check_addressee(Some(11)).unwrap();
        ledger().check_addressee(None).unwrap();
    }
}
