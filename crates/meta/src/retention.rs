//! How much of the log is kept for members that lag behind.
//!
//! The leader knows how far each member has come, and tells the others with every message the first entry that some
//! member lacks. So every replica keeps what a voter needs that restarts, whoever leads then, and lets go of the rest.
//! Within a bound over all groups of a node: a member that is away for long costs a snapshot, not the log's room.

use crate::MetaLimits;
use crate::log::engine::lock;
use crate::log::view::GroupView;
use plinth_protocol::GroupId;
use std::collections::BTreeMap;
use std::sync::Mutex;

/// Part of the log's room, one in so many bytes, that may be kept for members that lag, over all groups.
const LOG_PART_MAX: u64 = 4;

/// What is kept, group by group. Shared by all groups of a node.
#[derive(Default)]
pub(crate) struct Retention(Mutex<BTreeMap<GroupId, Kept>>);

#[derive(Debug, Clone, Copy, Default)]
struct Kept {
    /// The first entry that some member lacks, where that is known.
    keep_from: Option<u64>,
    /// Bytes that the group would keep for it.
    wanted_bytes: u64,
}

impl Retention {
    /// Takes the first entry that some member lacks, from the leader's own count or from its message.
    pub(crate) fn set_keep_from(&self, group: GroupId, keep_from: Option<u64>) {
        lock(&self.0).entry(group).or_default().keep_from = keep_from;
    }

    /// Returns the first entry that some member lacks, where that is known.
    pub(crate) fn keep_from(&self, group: GroupId) -> Option<u64> {
        lock(&self.0).get(&group)?.keep_from
    }

    /// Returns the last entry of a group that may go: flushed, needed by nobody, and more where the groups together keep
    /// too much.
    pub(crate) fn purge_upto(
        &self,
        group: GroupId,
        view: &GroupView,
        flushed: u64,
        limits: &MetaLimits,
    ) -> Option<u64> {
        let ordinary = view.purge_candidate(flushed, limits.log_keep_bytes);
        let mut all = lock(&self.0);
        let kept = all.entry(group).or_default();
        kept.wanted_bytes = view.bytes_from(kept.keep_from.unwrap_or(0));
        // Where nobody has told yet who lacks what, everything may be lacked.
        let needed = kept.keep_from.map_or(0, |first| first);
        let unneeded = ordinary.and_then(|upto| needed.checked_sub(1).map(|last| upto.min(last)));
        let wanted: Vec<u64> = all.values().map(|kept| kept.wanted_bytes).collect();
        let share = share_bytes(wanted, budget_bytes(limits));
        let beyond = view.purge_candidate(flushed, share.max(limits.log_keep_bytes));
        unneeded.max(beyond)
    }
}

/// Bytes that all groups together may keep for members that lag.
fn budget_bytes(limits: &MetaLimits) -> u64 {
    let log_bytes = u64::from(limits.log_segment_bytes) * u64::from(limits.log_segments_max);
    limits.log_lag_bytes.min(log_bytes / LOG_PART_MAX)
}

/// Returns the most bytes that one group may keep, so that those who want less than that and those who want more take no
/// more than the budget together.
fn share_bytes(mut wanted: Vec<u64>, budget: u64) -> u64 {
    wanted.sort_unstable();
    let (mut left, mut groups) = (budget, wanted.len() as u64);
    for bytes in wanted {
        if bytes > left / groups {
            return left / groups;
        }
        left -= bytes;
        groups -= 1;
    }
    budget
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::LogId;
    use crate::log::record::{EntryKind, LogEntry};
    use plinth_protocol::NodeId;

    /// A log of entries that weigh 1 KiB each.
    fn view(entries: u64) -> GroupView {
        let mut view = GroupView::default();
        for index in 0..entries {
            let id = LogId { term: 1, leader: NodeId(1), index };
            let payload = vec![0; 1024 - 256].into();
            view.append(&LogEntry { id, kind: EntryKind::Membership, payload }, None).unwrap();
        }
        view
    }

    fn limits() -> MetaLimits {
        MetaLimits { log_keep_bytes: 10 << 10, log_lag_bytes: 100 << 10, ..MetaLimits::default() }
    }

    const ONE: GroupId = GroupId(1);
    const TWO: GroupId = GroupId(2);

    #[test]
    fn log_is_kept_from_the_first_entry_that_some_member_lacks() {
        let retention = Retention::default();
        let upto = |flushed| retention.purge_upto(ONE, &view(80), flushed, &limits());
        assert_eq!(upto(79), None, "nobody has told who lacks what");
        retention.set_keep_from(ONE, Some(40));
        assert_eq!(upto(79), Some(39));
        assert_eq!(upto(20), Some(20), "only what is flushed goes");
        retention.set_keep_from(ONE, Some(80));
        assert_eq!(upto(79), Some(69), "a little is kept always");
        retention.set_keep_from(ONE, Some(0));
        assert_eq!(upto(79), None);
    }

    #[test]
    fn members_that_lag_too_far_cost_a_snapshot_not_the_log() {
        let retention = Retention::default();
        retention.set_keep_from(ONE, Some(0));
        assert_eq!(retention.purge_upto(ONE, &view(500), 499, &limits()), Some(399), "100 KiB stay");
        assert_eq!(retention.purge_upto(TWO, &view(500), 499, &limits()), Some(449), "of two groups each keeps half");
        assert_eq!(retention.purge_upto(ONE, &view(500), 499, &limits()), Some(449));
    }

    #[test]
    fn budget_goes_to_those_who_want_it_and_never_beyond() {
        assert_eq!(share_bytes(vec![], 100), 100);
        assert_eq!(share_bytes(vec![10, 20], 100), 100);
        assert_eq!(share_bytes(vec![10, 500], 100), 90);
        assert_eq!(share_bytes(vec![500, 10, 400], 100), 45);
        let small = MetaLimits { log_segment_bytes: 1 << 20, log_segments_max: 8, ..MetaLimits::default() };
        assert_eq!(budget_bytes(&small), 2 << 20, "a quarter of the log at most");
    }
}
