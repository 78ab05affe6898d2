//! Collects what an operator is shown: the map from a majority where there is one, and what each node knows.
//!
//! All nodes are asked at the same time and none for long, so that a look takes about two seconds at most, however many
//! nodes are silent. Without a majority the newest map that any node has seen is shown, and called unconfirmed.

use crate::exit::{Exit, Trouble};
use crate::run::Operator;
use crate::verdict::{Answers, Collected};
use plinth_protocol::map::{ClusterMap, NodeRecord};
use plinth_protocol::meta::{AdminReply, AdminRequest, NodeReport, Query, Reply, ShardStat};
use plinth_protocol::wire::Wire;
use plinth_protocol::{Epoch, Failure, FailureKind, Method, NodeId, Role};
use plinth_transport::{Call, Peer};
use std::time::Duration;
use tokio::time::Instant;

/// How long the metadata may take to confirm the map before a look goes on without.
const CONFIRM_TIME_MAX: Duration = Duration::from_millis(1_700);
/// How long one node may take to answer.
const ANSWER_TIME_MAX: Duration = Duration::from_millis(1_000);
/// How long a shard may take to tell its counts.
const SHARD_TIME_MAX: Duration = Duration::from_millis(1_700);
/// How long is waited for a leader while a majority of the voters answers: an election lies within.
const ELECTION_TIME_MAX: Duration = Duration::from_secs(10);

/// What was collected.
pub struct Look {
    /// The newest map.
    pub map: ClusterMap,
    /// Whether a majority confirmed it.
    pub confirmed: bool,
    /// What each node answered.
    pub answers: Answers,
    demo: bool,
}

impl Look {
    /// Returns what is known, for the verdict.
    pub fn collected<'a>(&'a self, shards: Option<&'a [ShardStat]>) -> Collected<'a> {
        Collected { map: &self.map, confirmed: self.confirmed, answers: &self.answers, shards, demo: self.demo }
    }

    /// Returns the reports of metadata nodes, in the order of the map.
    pub fn voters_reports(&self) -> impl Iterator<Item = (&NodeRecord, &NodeReport)> {
        self.map.nodes.iter().filter_map(|node| {
            let report = self.answers.get(&node.node)?.as_ref().ok()?;
            report.raft.is_some().then_some((node, report))
        })
    }

    /// Says that nothing can be decided, and what each voter answered.
    pub fn no_majority(&self) -> Trouble {
        let voters = self.map.voters.iter().map(|voter| {
            let name = self.map.node(*voter).map_or_else(|| voter.to_string(), |node| node.name.clone());
            match self.answers.get(voter) {
                Some(Ok(report)) if report.refused_by.is_empty() => format!("{name} answers"),
                Some(Ok(_)) => format!("{name} is refused by the others"),
                Some(Err(why)) => format!("{name} does not answer ({why})"),
                None => format!("{name} was not asked"),
            }
        });
        let voters: Vec<String> = voters.collect();
        let text = format!(
            "the metadata nodes have no leader with a majority, so nothing was read or changed: {}. Start those that are \
             missing; plinth status shows what is known",
            voters.join("; ")
        );
        Trouble::new(Exit::Unreachable, "E1014", text)
    }
}

impl Operator {
    /// Looks at the cluster. Fails where no node answers at all.
    pub async fn look(&self) -> Result<Look, Trouble> {
        let until = Instant::now() + ELECTION_TIME_MAX;
        loop {
            let (confirmed, seen) = tokio::join!(self.confirmed_map(), self.ask_around());
            if let Some(map) = confirmed {
                let mut answers = seen.answers;
                self.ask_missing(&map, &mut answers).await;
                return Ok(Look { map, confirmed: true, answers, demo: self.demo });
            }
            let Some(map) = seen.map else { return Err(nobody(&seen.answers)) };
            let look = Look { map, confirmed: false, answers: seen.answers, demo: self.demo };
            // A majority that answers will have a leader in a moment.
            if !majority_answers(&look) || Instant::now() >= until {
                return Ok(look);
            }
        }
    }

    /// Looks at the cluster and fails where no majority confirms what is seen.
    pub async fn look_confirmed(&self) -> Result<Look, Trouble> {
        let look = self.look().await?;
        if look.confirmed { Ok(look) } else { Err(look.no_majority()) }
    }

    /// Asks all object shards for their counts at the same time; those that don't answer are left out.
    pub async fn shard_stats(&self, look: &Look) -> Vec<ShardStat> {
        if !look.confirmed {
            return Vec::new();
        }
        let until = Instant::now() + SHARD_TIME_MAX;
        let asked = look.map.shards.iter().map(|shard| self.client.query(shard.group, Query::ShardStat, until));
        let answers = futures_util::future::join_all(asked).await;
        let stats = answers.into_iter().filter_map(|answer| match answer {
            Ok(Reply::ShardStat(stat)) => Some(stat),
            _ => None,
        });
        stats.collect()
    }

    async fn confirmed_map(&self) -> Option<ClusterMap> {
        match tokio::time::timeout(CONFIRM_TIME_MAX, self.client.refresh_map()).await {
            Ok(Ok(())) => Some(self.client.map().as_ref().clone()),
            _ => None,
        }
    }

    /// Asks the configured metadata nodes, and then all nodes of the newest map that they know.
    async fn ask_around(&self) -> Seen {
        let asked = self.bootstrap.iter().map(|peer| self.report(peer.clone(), Epoch(0)));
        let mut answers: Answers = futures_util::future::join_all(asked).await.into_iter().collect();
        let maps = answers.values_mut().flatten().filter_map(|report| report.map.take());
        let map = maps.max_by_key(|map| map.epoch);
        if let Some(map) = &map {
            self.ask_missing(map, &mut answers).await;
        }
        Seen { map, answers }
    }

    /// Asks the nodes of a map that have not been asked yet. Nodes of a demo have no sockets, but for the metadata's.
    async fn ask_missing(&self, map: &ClusterMap, answers: &mut Answers) {
        let has_socket = |node: &&NodeRecord| !node.address.ends_with(":0");
        let missing = map.nodes.iter().filter(has_socket).filter(|node| !answers.contains_key(&node.node));
        let asked = missing.map(|node| {
            let peer = Peer { node: node.node, incarnation: Some(node.incarnation), address: node.address.clone() };
            self.report(peer, map.epoch)
        });
        answers.extend(futures_util::future::join_all(asked).await);
    }

    async fn report(&self, peer: Peer, known: Epoch) -> (NodeId, Result<NodeReport, String>) {
        let answer = match self.ask_peer(&peer, &AdminRequest::Report(known), ANSWER_TIME_MAX).await {
            Ok(AdminReply::Report(report)) => Ok(*report),
            Ok(_) => Err("unexpected answer".to_owned()),
            // A node of an older version knows its groups and no more.
            Err(failure) if failure.kind == FailureKind::Invalid => self.old_report(&peer).await,
            Err(failure) => Err(failure.text),
        };
        (peer.node, answer)
    }

    async fn old_report(&self, peer: &Peer) -> Result<NodeReport, String> {
        let raft = match self.ask_peer(peer, &AdminRequest::RaftStatus, ANSWER_TIME_MAX).await {
            Ok(AdminReply::RaftStatus(raft)) => Some(raft),
            // It answers, and is no metadata node.
            Ok(_) | Err(Failure { kind: FailureKind::Unavailable, .. }) => None,
            Err(failure) => return Err(failure.text),
        };
        let (voters, refused_by, reasons) = (vec![], vec![], vec![]);
        Ok(NodeReport { node: peer.node, map: None, raft, voters, refused_by, reasons })
    }

    async fn ask_peer(&self, peer: &Peer, request: &AdminRequest, time: Duration) -> Result<AdminReply, Failure> {
        let call = Call { method: Method::Admin, header: request.to_bytes(), payload: Vec::new(), deadline: time };
        let reply = self.link.call(peer, call).await?;
        Ok(AdminReply::decode(&reply.header)?)
    }
}

struct Seen {
    map: Option<ClusterMap>,
    answers: Answers,
}

fn majority_answers(look: &Look) -> bool {
    let voters = &look.map.voters;
    let sound = |voter: &&NodeId| {
        let report = look.answers.get(voter).and_then(|answer| answer.as_ref().ok());
        report.is_some_and(|report| report.raft.is_some() && report.refused_by.is_empty())
    };
    voters.iter().filter(sound).count() > voters.len() / 2
}

fn nobody(answers: &Answers) -> Trouble {
    let silent = answers.iter().filter_map(|(node, answer)| Some(format!("{node}: {}", answer.as_ref().err()?)));
    let silent: Vec<String> = silent.collect();
    let text = match answers.len() {
        0 => "the profile names no metadata node".to_owned(),
        _ if silent.is_empty() => {
            "the metadata nodes answer, but know no cluster yet: it has not been founded".to_owned()
        }
        _ => format!("no metadata node of the profile answers: {}. Are their processes running?", silent.join("; ")),
    };
    Trouble::new(Exit::Unreachable, "E1001", text)
}

/// Returns a metadata node to join through: a voter that takes part, where there is one.
pub fn admitting(look: &Look) -> Option<&NodeRecord> {
    let metas = || look.map.nodes.iter().filter(|node| node.roles.contains(&Role::Meta));
    let verdict = crate::verdict::judge(&look.collected(None));
    let collected = look.collected(None);
    let votes = |node: &&NodeRecord| {
        let sound = collected.serves(node) && !verdict.states.contains_key(&node.node);
        sound && look.map.voters.contains(&node.node)
    };
    metas().find(votes).or_else(|| metas().next())
}
