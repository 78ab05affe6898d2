//! Whom a voter hears, whom it refuses to hear, and who refuses to hear it: what it can tell an operator.
//!
//! Decides nothing: [`crate::ledger`] judges who is heard. Entries age, so that what was true of a process that has
//! ended since is not told for ever.

use plinth_protocol::NodeId;
use plinth_protocol::meta::VoterSight;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;

/// How long a refusal is told after it last happened. Voters call each other several times a second.
const REFUSAL_AGE_MAX: Duration = Duration::from_secs(15);
/// How often a refusal that goes on is logged again.
const LOG_AGAIN_AFTER: Duration = Duration::from_secs(60);

/// What a voter hears of the others.
#[derive(Default)]
pub(crate) struct Hearing {
    heard: BTreeMap<NodeId, Instant>,
    refused: Refusals,
    refused_by: Refusals,
}

#[derive(Default)]
struct Refusals(BTreeMap<NodeId, Refusal>);

struct Refusal {
    reason: String,
    at: Instant,
    logged: Instant,
}

impl Refusals {
    /// Notes a refusal; returns whether it should be logged: at first, when its reason changes, and now and then.
    fn note(&mut self, node: NodeId, reason: &str, now: Instant) -> bool {
        match self.0.get_mut(&node) {
            Some(known) if known.reason == reason && now - known.logged < LOG_AGAIN_AFTER => {
                known.at = now;
                false
            }
            _ => {
                self.0.insert(node, Refusal { reason: reason.to_owned(), at: now, logged: now });
                true
            }
        }
    }

    fn reason(&self, node: NodeId, now: Instant) -> Option<&str> {
        self.0.get(&node).filter(|refusal| now - refusal.at <= REFUSAL_AGE_MAX).map(|refusal| refusal.reason.as_str())
    }
}

impl Hearing {
    /// Notes that a voter was heard.
    pub(crate) fn note_heard(&mut self, node: NodeId, now: Instant) {
        self.heard.insert(node, now);
        self.refused.0.remove(&node);
    }

    /// Notes that a voter was refused. Returns whether that should be logged.
    pub(crate) fn note_refused(&mut self, node: NodeId, reason: &str, now: Instant) -> bool {
        self.refused.note(node, reason, now)
    }

    /// Notes that a voter refused this one. Returns whether that should be logged.
    pub(crate) fn note_refused_by(&mut self, node: NodeId, reason: &str, now: Instant) -> bool {
        self.refused_by.note(node, reason, now)
    }

    /// Notes that a voter hears this one.
    pub(crate) fn note_heard_by(&mut self, node: NodeId) {
        self.refused_by.0.remove(&node);
    }

    /// Returns why a voter is refused, where it is.
    pub(crate) fn refusal(&self, node: NodeId, now: Instant) -> Option<&str> {
        self.refused.reason(node, now)
    }

    /// Returns how long a voter has not been heard, where it ever was.
    pub(crate) fn silence(&self, node: NodeId, now: Instant) -> Option<Duration> {
        self.heard.get(&node).map(|at| now - *at)
    }

    /// Returns the voters that refuse this one, each with why.
    pub(crate) fn refused_by(&self, now: Instant) -> Vec<(NodeId, String)> {
        let refusals = self.refused_by.0.keys();
        refusals.filter_map(|node| Some((*node, self.refused_by.reason(*node, now)?.to_owned()))).collect()
    }

    /// Returns what is known of each voter that was ever heard or refused.
    pub(crate) fn sights(&self, now: Instant) -> Vec<VoterSight> {
        let mut nodes: Vec<NodeId> = self.heard.keys().chain(self.refused.0.keys()).copied().collect();
        nodes.sort();
        nodes.dedup();
        let sight = |node: NodeId| VoterSight {
            node,
            heard_ms: self.silence(node, now).map(|silence| silence.as_millis() as u64),
            refused: self.refusal(node, now).map(str::to_owned),
        };
        nodes.into_iter().map(sight).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: NodeId = NodeId(2);

    #[test]
    fn a_refusal_is_logged_when_it_is_news_and_told_while_it_lasts() {
        let (mut hearing, start) = (Hearing::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(hearing.note_refused(PEER, "wiped", at(0)));
        assert!(!hearing.note_refused(PEER, "wiped", at(1)) && !hearing.note_refused(PEER, "wiped", at(59)));
        assert!(hearing.note_refused(PEER, "rolled back", at(60)), "another reason");
        assert!(hearing.note_refused(PEER, "rolled back", at(120)), "a minute later");
        assert_eq!(hearing.refusal(PEER, at(135)), Some("rolled back"));
        assert_eq!(hearing.refusal(PEER, at(136)), None, "its process may have ended");
        hearing.note_refused(PEER, "rolled back", at(136));
        hearing.note_heard(PEER, at(137));
        assert_eq!(hearing.sights(at(138)), [VoterSight { node: PEER, heard_ms: Some(1_000), refused: None }]);
    }

    #[test]
    fn a_voter_knows_who_refuses_it() {
        let (mut hearing, now) = (Hearing::default(), Instant::now());
        assert!(hearing.note_refused_by(PEER, "wiped", now) && !hearing.note_refused_by(PEER, "wiped", now));
        assert_eq!(hearing.refused_by(now), [(PEER, "wiped".to_owned())]);
        hearing.note_heard_by(PEER);
        assert_eq!(hearing.refused_by(now), []);
    }
}
