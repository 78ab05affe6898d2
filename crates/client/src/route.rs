//! The way to the metadata: to the leader of a group, with retries that the group recognises.

use crate::chart::Chart;
use crate::client::Client;
use crate::counters::Timed;
use bytes::Bytes;
use plinth_protocol::meta::{
    ClientToken, Command, GroupQuery, MetaRequest, Mutation, Outcome, Query, RefusalKind, Reply,
};
use plinth_protocol::object::Body;
use plinth_protocol::wire::Wire;
use plinth_protocol::{Failure, FailureKind, GROUP_SYSTEM, GroupId, HybridTime, Method, NodeId, RequestId, WriterId};
use plinth_transport::{Call, Peer};
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Longest wait for one voter's answer before another voter is asked.
const TRY_MAX: Duration = Duration::from_millis(1500);
/// First pause after all voters of a group have been asked in vain.
const PAUSE_MIN: Duration = Duration::from_millis(10);
/// Longest pause between two rounds.
const PAUSE_MAX: Duration = Duration::from_millis(250);
/// Most hints that are followed without a pause: two nodes that name each other must not spin.
const HINTS_MAX: u32 = 3;
/// How long a refresh of the map may take.
const REFRESH_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a request must have looked in vain for a group before the group counts as away: longer than an election.
const AWAY_AFTER: Duration = Duration::from_secs(4);
/// How long a group counts as away after the last request that looked in vain.
const AWAY_FOR: Duration = Duration::from_secs(10);
/// How long a request looks for a group that is away, so that requests do not pile up behind one that answers nobody.
const AWAY_PATIENCE: Duration = Duration::from_millis(1500);
/// Shortest time between two refreshes of the map.
const REFRESH_GAP: Duration = Duration::from_millis(200);

/// Returns a new request's id: when in the upper 48 bits, in milliseconds since 1970, chance in the lower 80. A group
/// keeps what it remembers by this id, so new ones stand side by side, and so do those that go. A clock that errs costs
/// this order, nothing else.
fn fresh_request(now_ms: u64, chance: u128) -> RequestId {
    RequestId(u128::from(now_ms) << 80 | chance >> 48)
}

impl Client {
    /// Changes a group: sends the command to the leader, again and again under one request id,
    /// until an answer comes or `deadline` passes.
    ///
    /// Decided refusals are outcomes, not errors, but for a fenced writer: that is `Fenced`, and
    /// the stripes must be written anew. Fails with `Unknown` where the command may yet take effect.
    pub async fn mutate(
        &self,
        group: GroupId,
        command: Command,
        token: Option<ClientToken>,
        deadline: Instant,
    ) -> Result<Outcome, Failure> {
        let writer = writer_of(&command);
        let request = fresh_request((self.inner.config.clock)(), self.inner.chance.u128());
        let issued = self.issue_time(group, deadline).await?;
        let seen = Some(self.inner.times.highest());
        let mut mutation = Mutation { group, request, writer, token, command, issued, seen };
        let (mut outcome, alone) = self.ask_outcome(&mutation, deadline).await?;
        if is_out_of_time(&outcome) && alone {
            // Nothing of this request is under way any more: it may be issued anew, in the time that came with the answer.
            mutation.issued = self.inner.times.now(group);
            (outcome, _) = self.ask_outcome(&mutation, deadline).await?;
        }
        if let Outcome::Refused(refusal) = &outcome {
            match refusal.kind {
                RefusalKind::Expired | RefusalKind::IssuedInFuture => {
                    let kind = if alone { FailureKind::Unavailable } else { FailureKind::Unknown };
                    return Err(Failure::new(kind, refusal.text.clone()));
                }
                RefusalKind::WriterFenced => {
                    self.retire_writer(writer);
                    return Err(Failure::new(FailureKind::Fenced, refusal.text.clone()));
                }
                RefusalKind::NoSuchBucket => self.inner.buckets.clear(),
                _ => {}
            }
        }
        Ok(outcome)
    }

    /// Asks a group's leader at a read index: what was committed before the call is seen.
    pub async fn query(&self, group: GroupId, query: Query, deadline: Instant) -> Result<Reply, Failure> {
        let seen = Some(self.inner.times.highest());
        let (reply, _) = self.ask(group, &MetaRequest::Query(GroupQuery { group, query, seen }), deadline).await?;
        if reply == Reply::Absent(RefusalKind::NoSuchBucket) {
            self.inner.buckets.clear();
        }
        Ok(reply)
    }

    /// Returns the time at which a request to a group is issued now, asking the group where it has never answered yet.
    /// Nothing where its voters do not tell their time.
    async fn issue_time(&self, group: GroupId, deadline: Instant) -> Result<Option<HybridTime>, Failure> {
        self.learn_time(group, deadline).await?;
        Ok(self.inner.times.now(group))
    }

    /// Asks a group that has never answered yet for its time.
    pub(crate) async fn learn_time(&self, group: GroupId, deadline: Instant) -> Result<(), Failure> {
        if !self.inner.times.knows(group) {
            let query = match group {
                GROUP_SYSTEM => Query::Map(Some(self.chart().map.epoch)),
                _ => Query::ShardStat,
            };
            self.query(group, query, deadline).await?;
        }
        Ok(())
    }

    /// Sends a mutation, and returns its outcome and whether the answer is to the only try that may have had an effect.
    async fn ask_outcome(&self, mutation: &Mutation, deadline: Instant) -> Result<(Outcome, bool), Failure> {
        match self.ask(mutation.group, &MetaRequest::Mutate(mutation.clone()), deadline).await? {
            (Reply::Outcome(outcome), alone) => Ok((outcome, alone)),
            // It was answered, so it may have taken effect.
            _ => Err(Failure::new(FailureKind::Unknown, "a mutation was answered as a query")),
        }
    }

    /// Sends a request to the leader of a group until it is answered; returns also whether no try before that may have
    /// reached a leader.
    async fn ask(&self, group: GroupId, request: &MetaRequest, deadline: Instant) -> Result<(Reply, bool), Failure> {
        let _turn = self.inner.meta_calls.acquire().await.expect("never closed");
        let header = request.to_bytes();
        let mut search = Search::new(self.leader(group), matches!(request, MetaRequest::Mutate(_)));
        let came = Instant::now();
        let deadline = if self.is_away(group) { deadline.min(came + AWAY_PATIENCE) } else { deadline };
        let mut alone = true;
        loop {
            let chart = self.chart();
            let Some(peer) = search.next_peer(self, &chart, group) else {
                return Err(Failure::new(FailureKind::Unavailable, format!("no voter of {group} is known")));
            };
            let now = Instant::now();
            if now >= deadline {
                if !search.is_busy {
                    self.note_silence(group, came);
                }
                return Err(search.give_up(group));
            }
            let failure = match self.ask_peer(group, &peer, header.clone(), TRY_MAX.min(deadline - now)).await {
                Ok(reply) => {
                    self.set_leader(group, peer.node);
                    self.note_answer(group);
                    return Ok((reply, alone));
                }
                Err(failure) => failure,
            };
            alone &= matches!(failure.kind, FailureKind::NotLeader | FailureKind::Busy);
            self.inner.counters.meta_retries.add(1);
            match search.judge(failure, peer.node)? {
                Step::Next => {}
                Step::Pause(pause) => {
                    let pause = self.inner.chance.jitter(pause);
                    tokio::time::sleep_until((Instant::now() + pause).min(deadline)).await;
                    self.hint_map_changed(group);
                }
            }
        }
    }

    async fn ask_peer(&self, group: GroupId, peer: &Peer, header: Bytes, deadline: Duration) -> Result<Reply, Failure> {
        let started = Instant::now();
        let call = Call { method: Method::Meta, header, payload: Vec::new(), deadline };
        let reply = self.inner.link.call(peer, call).await?;
        self.inner.counters.times[Timed::Meta as usize].note(started.elapsed());
        // Whatever it says, it is an answer: what was asked may have taken effect.
        let unreadable = |error| Failure::new(FailureKind::Unknown, format!("an answer that can't be read: {error}"));
        let (reply, time) = match Reply::decode(&reply.header).map_err(unreadable)? {
            Reply::Timed(timed) => (Reply::decode(&timed.reply).map_err(unreadable)?, Some(timed.time)),
            reply => (reply, None),
        };
        self.inner.times.note(group, time);
        Ok(reply)
    }

    fn leader(&self, group: GroupId) -> Option<NodeId> {
        self.inner.leaders.lock().unwrap_or_else(PoisonError::into_inner).get(&group).copied()
    }

    fn set_leader(&self, group: GroupId, node: NodeId) {
        self.inner.leaders.lock().unwrap_or_else(PoisonError::into_inner).insert(group, node);
    }

    /// Whether requests have lately looked for the group in vain.
    fn is_away(&self, group: GroupId) -> bool {
        let away = self.inner.away.lock().unwrap_or_else(PoisonError::into_inner);
        away.get(&group).is_some_and(|at| at.elapsed() < AWAY_FOR)
    }

    /// Notes that a request that came then has not found anybody who answers for the group.
    fn note_silence(&self, group: GroupId, came: Instant) {
        let mut away = self.inner.away.lock().unwrap_or_else(PoisonError::into_inner);
        let was_away = away.get(&group).is_some_and(|at| at.elapsed() < AWAY_FOR);
        if was_away || came.elapsed() >= AWAY_AFTER {
            away.insert(group, Instant::now());
        }
    }

    fn note_answer(&self, group: GroupId) {
        let mut away = self.inner.away.lock().unwrap_or_else(PoisonError::into_inner);
        if !away.is_empty() {
            away.remove(&group);
        }
    }

    /// Has the map refreshed in the background: a group does not answer, its voters may have changed.
    fn hint_map_changed(&self, group: GroupId) {
        if group != GROUP_SYSTEM {
            self.refresh_map_soon();
        }
    }

    /// Starts a refresh of the map in the background, unless one is under way.
    pub(crate) fn refresh_map_soon(&self) {
        if self.inner.refreshing.try_lock().is_ok() {
            let client = self.clone();
            tokio::spawn(async move { client.refresh_map().await });
        }
    }

    /// Asks group 0 whether there is a newer map and takes it. A failure leaves the map as it is.
    pub async fn refresh_map(&self) -> Result<(), Failure> {
        let mut last = self.inner.refreshing.lock().await;
        if last.is_some_and(|at| at.elapsed() < REFRESH_GAP) {
            return Ok(());
        }
        self.fetch_map(Instant::now() + REFRESH_TIMEOUT).await?;
        *last = Some(Instant::now());
        Ok(())
    }

    pub(crate) async fn fetch_map(&self, deadline: Instant) -> Result<(), Failure> {
        // Always the known epoch, 0 at first: as a choice's whole value, an absent option has no bytes to decode.
        let known = self.chart().map.epoch;
        match self.query(GROUP_SYSTEM, Query::Map(Some(known)), deadline).await? {
            Reply::MapUnchanged => Ok(()),
            Reply::Map(map) => {
                self.inner.counters.maps_taken.add(1);
                self.take_map(map);
                Ok(())
            }
            _ => Err(Failure::new(FailureKind::Internal, "the question for the map was answered otherwise")),
        }
    }
}

/// Whether a group neither decided a request nor remembers it, because of when it was issued.
fn is_out_of_time(outcome: &Outcome) -> bool {
    let kinds = [RefusalKind::Expired, RefusalKind::IssuedInFuture];
    matches!(outcome, Outcome::Refused(refusal) if kinds.contains(&refusal.kind))
}

/// What to do after a voter failed to answer.
enum Step {
    Next,
    Pause(Duration),
}

/// Whom to ask next, and where that is in case the map does not know the node yet.
struct Hint {
    node: NodeId,
    address: Option<String>,
}

/// The search for the leader that answers one request.
struct Search {
    /// Whom to ask next: the cached leader or one that was named.
    hint: Option<Hint>,
    hints_followed: u32,
    /// Voters asked since the last pause.
    asked: usize,
    /// Position of the next voter to ask.
    cursor: Option<usize>,
    voters: usize,
    pause: Duration,
    /// Somebody answers for the group, if only that its queue is full.
    is_busy: bool,
    /// Whether the request changes anything.
    is_mutation: bool,
    /// Whether an earlier try may have taken effect: no later answer but the request's own outcome takes that back.
    unknown: bool,
    last: Option<Failure>,
}

impl Hint {
    /// The map's word goes first. A leader that joined after the map was taken is found by the address that
    /// came with its name; its certificate proves that it is the node that was named.
    fn peer(self, client: &Client, chart: &Chart) -> Option<Arc<Peer>> {
        let Hint { node, address } = self;
        let named = || address.map(|address| Arc::new(Peer { node, incarnation: None, address }));
        client.find_peer(chart, node).or_else(named)
    }
}

impl Search {
    fn new(leader: Option<NodeId>, is_mutation: bool) -> Self {
        let pause = PAUSE_MIN;
        let hint = leader.map(|node| Hint { node, address: None });
        Search {
            hint,
            hints_followed: 0,
            asked: 0,
            cursor: None,
            voters: 0,
            pause,
            is_busy: false,
            is_mutation,
            unknown: false,
            last: None,
        }
    }

    fn next_peer(&mut self, client: &Client, chart: &Chart, group: GroupId) -> Option<Arc<Peer>> {
        let voters = chart.voters(group);
        let bootstrap = voters.is_empty() && group == GROUP_SYSTEM;
        self.voters = if bootstrap { client.inner.bootstrap.len() } else { voters.len() };
        if let Some(peer) = self.hint.take().and_then(|hint| hint.peer(client, chart)) {
            return Some(peer);
        }
        if self.voters == 0 {
            return None;
        }
        let cursor = self.cursor.get_or_insert_with(|| client.inner.chance.below(self.voters as u64) as usize);
        *cursor = (*cursor + 1) % self.voters;
        self.asked += 1;
        if bootstrap {
            return Some(client.inner.bootstrap[*cursor].clone());
        }
        client.find_peer(chart, voters[*cursor])
    }

    /// Decides how to go on; failures that no other voter would answer differently are returned.
    fn judge(&mut self, failure: Failure, asked: NodeId) -> Result<Step, Failure> {
        let busy = failure.retry_after_ms.unwrap_or(0);
        match failure.kind {
            FailureKind::NotLeader => {
                if let Some(node) = failure.leader.filter(|&leader| leader != asked && self.hints_followed < HINTS_MAX)
                {
                    self.hint = Some(Hint { node, address: failure.leader_address });
                    self.hints_followed += 1;
                    return Ok(Step::Next);
                }
            }
            FailureKind::Unavailable => {}
            FailureKind::Busy => {
                self.is_busy = true;
                // The same node again: it leads, but its queue is full.
                self.hint = Some(Hint { node: asked, address: None });
                return Ok(Step::Pause(Duration::from_millis(busy).clamp(PAUSE_MIN, PAUSE_MAX)));
            }
            FailureKind::Unknown => self.unknown = self.is_mutation,
            // This voter is not well; another one, or this one later, has the outcome of the try before.
            FailureKind::NotFound | FailureKind::Corrupt | FailureKind::Internal if self.unknown => {}
            _ if self.unknown => {
                let text = format!("an earlier try may have taken effect; the last one: {failure}");
                return Err(Failure::new(FailureKind::Unknown, text));
            }
            _ => return Err(failure),
        }
        self.last = Some(failure);
        if self.asked < self.voters {
            return Ok(Step::Next);
        }
        self.asked = 0;
        self.hints_followed = 0;
        let pause = self.pause;
        self.pause = (pause * 2).min(PAUSE_MAX);
        Ok(Step::Pause(pause))
    }

    /// Says what is known at the deadline.
    fn give_up(self, group: GroupId) -> Failure {
        let text = match &self.last {
            Some(last) => format!("{group} did not answer in time; last: {last}"),
            None => format!("no time left to ask {group}"),
        };
        Failure::new(if self.unknown { FailureKind::Unknown } else { FailureKind::Unavailable }, text)
    }
}

/// Returns the writer whose stripes a command refers to. Where an object's stripes are of several
/// writers, the oldest counts: a fence that refuses any of them must refuse the command.
fn writer_of(command: &Command) -> Option<WriterId> {
    let body = match command {
        Command::PutObject(put) => &put.body.body,
        Command::PutPart(put) => &put.part.body,
        _ => return None,
    };
    match body {
        Body::Stripes(stripes) => stripes.iter().map(|stripe| stripe.stripe.writer()).min(),
        Body::Inline(_) | Body::Parts(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_follow_the_clock_and_differ_by_chance() {
        let (early, late) = (fresh_request(1_700_000_000_000, u128::MAX), fresh_request(1_700_000_000_001, 0));
        assert!(early < late);
        assert_eq!(early.0 >> 80, 1_700_000_000_000);
        assert_ne!(fresh_request(5, 1 << 48), fresh_request(5, 2 << 48));
        assert_eq!(fresh_request(u64::MAX, 0).0 >> 80, (1 << 48) - 1, "a clock that errs");
    }
}
