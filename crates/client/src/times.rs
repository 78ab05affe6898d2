//! The groups' times as the client has seen them: requests are issued in them, and never by a clock of this machine.

use plinth_protocol::{GroupId, HybridTime};
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::time::Instant;

/// What was last seen of each group's time.
#[derive(Default)]
pub(crate) struct GroupTimes {
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    /// Nothing where the group has answered without telling its time: its voters are older than that.
    groups: HashMap<GroupId, Option<(HybridTime, Instant)>>,
    highest: Option<HybridTime>,
}

impl GroupTimes {
    /// Takes the time that came with a group's answer.
    pub(crate) fn note(&self, group: GroupId, time: Option<HybridTime>) {
        let mut seen = self.lock();
        seen.highest = seen.highest.max(time);
        seen.groups.insert(group, time.map(|time| (time, Instant::now())));
    }

    /// Returns whether the group has answered at all.
    pub(crate) fn knows(&self, group: GroupId) -> bool {
        self.lock().groups.contains_key(&group)
    }

    /// Returns the group's time now: what it was when last seen, and what has gone by since.
    pub(crate) fn now(&self, group: GroupId) -> Option<HybridTime> {
        let (time, at) = (*self.lock().groups.get(&group)?)?;
        Some(time.after(at.elapsed().as_millis() as u64))
    }

    /// Returns the highest time seen in any group, 0 before the first.
    pub(crate) fn highest(&self) -> HybridTime {
        self.lock().highest.unwrap_or(HybridTime(0))
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn a_groups_time_goes_on_from_where_it_was_seen() {
        let times = GroupTimes::default();
        let (group, other) = (GroupId(1), GroupId(2));
        assert!(times.now(group).is_none() && !times.knows(group));
        times.note(group, Some(HybridTime::from_millis(1_000)));
        times.note(other, Some(HybridTime::from_millis(400)));
        tokio::time::advance(Duration::from_millis(250)).await;
        assert_eq!(times.now(group), Some(HybridTime::from_millis(1_250)));
        assert_eq!(times.now(other), Some(HybridTime::from_millis(650)), "each group has its own");
        assert_eq!(times.highest(), HybridTime::from_millis(1_000));
        times.note(group, None);
        assert!(times.now(group).is_none() && times.knows(group), "a voter of an older version");
    }
}
