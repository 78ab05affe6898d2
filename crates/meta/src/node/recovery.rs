//! Replicas that come back by themselves, without a restart of the node.
//!
//! - A database that can't be read any more (**damaged**): the replica answers no more reads and gives leadership away, so
//!   that another one answers; it fetches the rows of a peer, changes databases, and goes on from its own log. Its votes
//!   and entries are not touched by any of this, so it takes part in Raft meanwhile, as long as its own rows let it.
//! - A database that stopped for **want of space**: the replica is closed, and opened again once there is room. The Raft
//!   log has what the database lost.
//!
//! Whatever else stops a replica (a Raft log whose device fails) needs the node to be started again.

use super::{Inner, OpenGroup, groups};
use crate::MetaError;
use crate::log::engine::lock;
use crate::raft::machine::{SnapshotFolder, blocking, drop_blocking};
use crate::raft::words::SnapshotMeta;
use crate::stats::ReplicaState;
use plinth_protocol::meta::{RaftGroupStatus, RaftStatus};
use plinth_protocol::{Failure, FailureKind, GroupId, NodeId};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// Pause between two tries to bring a replica back.
const RETRY: Duration = Duration::from_secs(1);
/// How often a damaged replica looks whether it leads.
const LEAD_LOOK: Duration = Duration::from_millis(100);

/// Why a replica is not what it should be, although it comes back by itself.
#[derive(Debug, Clone)]
pub(crate) struct Ailment {
    pub(crate) text: String,
    /// Whether the replica answers no reads meanwhile.
    pub(crate) is_fenced: bool,
    /// Whether it is closed, so that it does not take part in Raft either.
    pub(crate) is_closed: bool,
}

impl Inner {
    /// Returns a node's view of its groups: open ones, and those that are being brought back.
    pub(crate) fn raft_status(&self) -> RaftStatus {
        let ailments = lock(&self.ailments).clone();
        let shortage = self.wires.room.shortage();
        let mut groups: Vec<RaftGroupStatus> = self.open_groups().iter().map(|group| group.raft.status()).collect();
        for status in &mut groups {
            let ailment = ailments.get(&status.group).map(|ailment| ailment.text.clone());
            status.condition = ailment.or_else(|| shortage.clone().map(|why| format!("no room for growth: {why}")));
        }
        for (group, ailment) in ailments.iter().filter(|(_, ailment)| ailment.is_closed) {
            if groups.iter().all(|status| status.group != *group) {
                groups.push(closed_status(*group, ailment));
            }
        }
        RaftStatus { groups }
    }

    /// Returns how many replicas answer nothing for now and are being brought back.
    pub(super) fn recovering(&self) -> usize {
        lock(&self.ailments).values().filter(|ailment| ailment.is_fenced).count()
    }

    /// Fails where a replica is closed until it can come back.
    pub(super) fn check_closed(&self, group: GroupId) -> Result<(), Failure> {
        match lock(&self.ailments).get(&group).filter(|ailment| ailment.is_closed) {
            Some(ailment) => Err(Failure::new(FailureKind::Unavailable, ailment.text.clone())),
            None => Ok(()),
        }
    }

    fn set_ailment(&self, group: GroupId, ailment: Ailment) {
        lock(&self.ailments).insert(group, ailment);
    }
}

fn closed_status(group: GroupId, ailment: &Ailment) -> RaftGroupStatus {
    RaftGroupStatus {
        group,
        leader: None,
        term: 0,
        last_log: 0,
        applied: 0,
        voters: Vec::new(),
        learners: Vec::new(),
        matched: Vec::new(),
        stopped: Some(ailment.text.clone()),
        condition: Some(ailment.text.clone()),
    }
}

/// Looks at an answer to a read: where the database turned out to be damaged, the replica is fenced, and the failure
/// sends the caller to another one.
pub(super) fn judge_read<T>(
    inner: &Arc<Inner>,
    open: &Arc<OpenGroup>,
    answer: Result<T, Failure>,
) -> Result<T, Failure> {
    match (answer, open.raft.shard().damage()) {
        (Err(_), Some(why)) => Err(fence(inner, open, why)),
        (answer, _) => answer,
    }
}

/// Fences a replica whose database is damaged, and starts to rebuild it. Where no peer has the rows, nothing would be won
/// by silence: what can be read is answered.
fn fence(inner: &Arc<Inner>, open: &Arc<OpenGroup>, why: String) -> Failure {
    let group = open.raft.group;
    if open.raft.status().voters.len() < 2 {
        let text = format!("its database is damaged and no other replica has its rows: {why}");
        if lock(&inner.ailments).contains_key(&group) {
            return Failure::new(FailureKind::Corrupt, text);
        }
        tracing::error!(%group, why, "database is damaged; there is no peer to rebuild it from");
        inner.set_ailment(group, Ailment { text: text.clone(), is_fenced: false, is_closed: false });
        return Failure::new(FailureKind::Corrupt, text);
    }
    if !open.is_fenced.swap(true, Ordering::AcqRel) {
        tracing::error!(%group, why, "database is damaged: the replica is fenced and rebuilt from a peer");
        let text = format!("its database is damaged and is being rebuilt from a peer: {why}");
        inner.set_ailment(group, Ailment { text, is_fenced: true, is_closed: false });
        tokio::spawn(rebuild(Arc::downgrade(inner), group));
    }
    fenced()
}

/// What a fenced replica answers: another one has the rows.
pub(super) fn fenced() -> Failure {
    Failure::new(FailureKind::Unavailable, "this replica is being rebuilt; another one answers")
}

/// Decides how a replica that has stopped comes back.
pub(super) fn handle_stop(inner: &Arc<Inner>, group: GroupId, reason: &str) {
    let Ok(open) = inner.group(group) else { return };
    if open.raft.shard().lacks_space() {
        if !open.is_fenced.swap(true, Ordering::AcqRel) {
            tracing::error!(%group, reason, "database has no space: the replica is opened again once there is room");
            let text = format!("its database found no space; it resumes by itself: {reason}");
            inner.set_ailment(group, Ailment { text, is_fenced: true, is_closed: true });
            tokio::spawn(resume(Arc::downgrade(inner), group));
        }
    } else if let Some(why) = open.raft.shard().damage() {
        fence(inner, &open, why);
    } else {
        tracing::error!(%group, reason, "replica stopped; it takes part again once the node is started again");
    }
}

/// Opens a replica again that has stopped for want of space, once there is some.
async fn resume(node: Weak<Inner>, group: GroupId) {
    loop {
        let Some(inner) = node.upgrade() else { return };
        if inner.group(group).is_ok() {
            close(&inner, group).await;
        }
        let folder = inner.config.folder.clone();
        let free_bytes = inner.wires.files.free_bytes(&folder).unwrap_or(0);
        if free_bytes >= inner.config.limits.room_bytes_min / 2 && reopen(&inner, group).await {
            return;
        }
        drop(inner);
        tokio::time::sleep(RETRY).await;
    }
}

/// Rebuilds a damaged replica from a peer.
async fn rebuild(node: Weak<Inner>, group: GroupId) {
    let mut is_replaced = false;
    loop {
        let Some(inner) = node.upgrade() else { return };
        if !is_replaced {
            match replace(&inner, group).await {
                Ok(()) => is_replaced = true,
                Err(error) => {
                    tracing::warn!(%group, %error, "the replica is rebuilt later");
                    // What is kept for rows that did not come must not fill the log.
                    if let Ok(open) = inner.group(group) {
                        open.raft.shard().hold_log(false);
                    }
                }
            }
        }
        if is_replaced && reopen(&inner, group).await {
            return;
        }
        drop(inner);
        tokio::time::sleep(RETRY).await;
    }
}

/// Fetches a peer's rows, closes the replica, and puts them in the place of its own.
async fn replace(inner: &Arc<Inner>, group: GroupId) -> Result<(), MetaError> {
    let open = inner.group(group).map_err(|failure| MetaError::Stopped(failure.text))?;
    // From now on the log must keep what follows the peer's rows.
    open.raft.shard().hold_log(true);
    let (meta, folder) = tokio::select! {
        fetched = fetch_from_any(&open) => fetched?,
        never = refuse_to_lead(&open) => match never {},
    };
    let SnapshotFolder::Files(folder) = folder else {
        return Err(MetaError::Stopped("a peer sent no files".into()));
    };
    let (purged, found) = (open.raft.log().with_view(|view| view.purged), meta.last_log_id.map(|id| id.index));
    if purged.is_some_and(|purged| found.is_none_or(|found| found < purged.index)) {
        return Err(MetaError::Stopped("the peer's rows are older than what the log was purged to".into()));
    }
    let text = "its database was damaged; the copy of a peer takes its place".to_owned();
    inner.set_ailment(group, Ailment { text, is_fenced: true, is_closed: true });
    close(inner, group).await;
    let shard = open.raft.shard().clone();
    drop(open);
    let old = blocking(move || shard.replace(&meta, folder)).await?;
    drop_blocking(old).await
}

/// Fetches the rows of the leader, or else of any other voter.
async fn fetch_from_any(open: &OpenGroup) -> Result<(SnapshotMeta, SnapshotFolder), MetaError> {
    let status = open.raft.status();
    let own = open.raft.node();
    let mut peers: Vec<NodeId> = status.voters.into_iter().filter(|voter| *voter != own).collect();
    peers.sort_by_key(|peer| Some(*peer) != status.leader);
    let mut last = MetaError::Stopped("there is no other voter".into());
    for peer in peers {
        match open.raft.fetch(peer).await {
            Ok(fetched) => return Ok(fetched),
            Err(failure) => {
                tracing::warn!(group = %open.raft.group, %peer, %failure, "rows could not be fetched");
                last = MetaError::Stopped(format!("{peer}: {failure}"));
            }
        }
    }
    Err(last)
}

/// Gives leadership away whenever it comes here.
async fn refuse_to_lead(open: &OpenGroup) -> std::convert::Infallible {
    loop {
        if open.raft.moment().state == ReplicaState::Leader {
            open.raft.give_away().await;
        }
        tokio::time::sleep(LEAD_LOOK).await;
    }
}

/// Closes a replica; its ailment says so to whoever asks for it.
async fn close(inner: &Arc<Inner>, group: GroupId) {
    let open = inner.groups.write().unwrap_or_else(|e| e.into_inner()).remove(&group);
    if let Some(open) = open {
        open.raft.end().await;
        open.tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

/// Opens a closed replica again; false where it must be tried once more.
async fn reopen(inner: &Arc<Inner>, group: GroupId) -> bool {
    let log = match &*inner.log.lock().await {
        Some(log) => log.group(group),
        // The node is stopping.
        None => return true,
    };
    // What the last life's replica appended must be durable before another one counts on it.
    let opened = match log.settle().await {
        Ok(()) => groups::join(inner, group).await.map(drop),
        Err(error) => Err(error),
    };
    match opened {
        Ok(()) => {
            lock(&inner.ailments).remove(&group);
            tracing::info!(%group, "replica takes part again");
            true
        }
        Err(error) => {
            tracing::warn!(%group, %error, "replica is opened later");
            false
        }
    }
}
