//! Time of the groups: what the leaders stamp, and why one wrong wall clock does not move it.
//!
//! A group's time runs by its leader's monotonic clock. The median of the voters' wall clocks (of two, the lower) says
//! where it should be: it steers the time, by [`SLEW_SHARE`] of the time that goes by at most, and it is taken as it
//! stands only where nothing else is known, after all voters were down. So a wall clock that jumps moves nothing: while
//! the median is more than [`CLOCK_BOUND_MS`] away, that is reported and the time goes on at its own pace. Beyond
//! [`STRAY_MS_MAX`] it is not even steered by.
//!
//! | who | does |
//! | --- | --- |
//! | every voter | tells its wall clock in every Raft message and reply |
//! | leader | [`GroupClock::advance`]s before each stamp; tells the time with every append |
//! | follower | [`GroupClock::follow`]s what the leader tells, so that it goes on from there when it leads itself |
//!
//! Everything here is decided from arguments: monotonic microseconds of this process, and samples of wall clocks.

use plinth_protocol::meta::CLOCK_BOUND_MS;
use plinth_protocol::{GroupId, HybridTime, NodeId};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::time::Instant;

use crate::WallClock;

/// Time may be steered by one part in this many: no interval is longer or shorter by more than 1 %.
const SLEW_SHARE: u64 = 100;
/// A median that is farther away steers nothing: 24 h, in milliseconds.
const STRAY_MS_MAX: u64 = 24 * 60 * 60 * 1000;
/// How long after the first median of a cold start a higher one is still taken, unless all voters are live before:
/// they come up one after the other.
const SETTLE_US: u64 = 10_000_000;
/// Age at which a voter's sample no longer counts: it is not live.
const SAMPLE_US_MAX: u64 = 5_000_000;
/// Age at which a sample gives way to one that was longer on its way.
const SAMPLE_BEST_US: u64 = 2_000_000;
/// How long a median is used before it is computed anew.
const MEDIAN_US_MAX: u64 = 250_000;
/// Later wall clocks are nonsense, and would overflow: the year 6429.
const WALL_MS_MAX: u64 = 1 << 47;

/// The latest wall clocks of the voters, as seen from this process.
#[derive(Debug, Default)]
pub(crate) struct WallSamples {
    samples: BTreeMap<NodeId, Sample>,
}

#[derive(Debug, Clone, Copy)]
struct Sample {
    /// Wall time minus our monotonic time, in microseconds.
    offset_us: i64,
    /// When it was taken, in our monotonic time.
    at_us: u64,
}

impl WallSamples {
    /// Takes a voter's wall clock, as a message that arrives now tells it. Messages are late by what they were on their
    /// way: of the samples of a moment the one that makes the clock latest is nearest to it.
    pub(crate) fn note(&mut self, node: NodeId, now_us: u64, wall_ms: u64) {
        if wall_ms > WALL_MS_MAX {
            return;
        }
        let fresh = Sample { offset_us: (wall_ms * 1000) as i64 - now_us as i64, at_us: now_us };
        let kept = self.samples.get(&node).filter(|kept| now_us.saturating_sub(kept.at_us) < SAMPLE_BEST_US);
        match kept {
            Some(kept) if kept.offset_us > fresh.offset_us && kept.offset_us - fresh.offset_us < BOUND_US => {}
            _ => drop(self.samples.insert(node, fresh)),
        }
    }

    /// Returns the median of the live ones of these voters' wall clocks: the lower one of two. Nothing where no majority
    /// is live: one clock alone says nothing about the others'.
    pub(crate) fn median(&self, now_us: u64, voters: &[NodeId]) -> Option<Median> {
        let live = |node: &NodeId| {
            let sample = self.samples.get(node)?;
            (now_us.saturating_sub(sample.at_us) <= SAMPLE_US_MAX).then_some(sample.offset_us)
        };
        let mut offsets: Vec<i64> = voters.iter().filter_map(live).collect();
        if offsets.len() * 2 <= voters.len() {
            return None;
        }
        offsets.sort_unstable();
        let median = offsets[(offsets.len() - 1) / 2];
        Some(Median { offset_us: median, whole: offsets.len() == voters.len() })
    }
}

/// A median of wall clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Median {
    /// Wall time minus our monotonic time, in microseconds.
    offset_us: i64,
    /// Whether all voters were live.
    whole: bool,
}

impl Median {
    /// Makes the median that says `wall_ms` now, of all voters.
    pub(crate) fn whole(now_us: u64, wall_ms: u64) -> Self {
        Median { offset_us: (wall_ms.min(WALL_MS_MAX) * 1000) as i64 - now_us as i64, whole: true }
    }

    fn at_us(self, now_us: u64) -> u64 {
        self.offset_us.saturating_add(now_us as i64).max(0) as u64
    }
}

/// [`CLOCK_BOUND_MS`] in microseconds.
const BOUND_US: i64 = (CLOCK_BOUND_MS * 1000) as i64;

/// One group's running time at one voter.
#[derive(Debug, Default)]
pub(crate) struct GroupClock {
    anchor: Option<Anchor>,
    /// Until when a higher median is taken as it stands; none before any median.
    settles_until_us: Option<u64>,
    /// How far the median is from the time, in microseconds, where that is beyond the bound.
    stray_us: i64,
}

/// A moment at which the time was known, in microseconds.
#[derive(Debug, Clone, Copy)]
struct Anchor {
    at_us: u64,
    time_us: u64,
}

/// What an operator should hear of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// The median went out of the bound: by so many milliseconds.
    Strayed(i64),
    /// It is back.
    Returned,
}

impl GroupClock {
    /// Returns the time now, in milliseconds; nothing where none has been told or made yet.
    pub(crate) fn peek_ms(&self, now_us: u64) -> Option<u64> {
        self.anchor.map(|anchor| anchor.at(now_us) / 1000)
    }

    /// Returns by how many milliseconds the voters' median is away, where that is beyond the bound: 0 otherwise.
    pub(crate) fn stray_ms(&self) -> i64 {
        self.stray_us / 1000
    }

    /// Takes the time from the leader.
    pub(crate) fn follow(&mut self, now_us: u64, time: HybridTime) {
        self.anchor = Some(Anchor { at_us: now_us, time_us: time.millis() * 1000 });
        self.settles_until_us = Some(0);
        self.stray_us = 0;
    }

    /// Takes a time that another group gave to a client, within the bound of the median.
    pub(crate) fn merge(&mut self, now_us: u64, seen: HybridTime, median: Option<Median>) {
        let Some(anchor) = &mut self.anchor else { return };
        let within = median.is_some_and(|median| seen.millis() <= median.at_us(now_us) / 1000 + CLOCK_BOUND_MS);
        if within && seen.millis() * 1000 > anchor.at(now_us) {
            *anchor = Anchor { at_us: now_us, time_us: seen.millis() * 1000 };
        }
    }

    /// Moves the time on, as the leader: by the monotonic clock, steered by the median, never below `floor` (the latest
    /// stamp in the log).
    pub(crate) fn advance(&mut self, now_us: u64, median: Option<Median>, floor: HybridTime) -> Option<Turn> {
        let floor_us = floor.millis() * 1000;
        let before = self.anchor.unwrap_or(Anchor { at_us: now_us, time_us: floor_us });
        let mut time_us = before.at(now_us).max(floor_us);
        let strayed = self.stray_us != 0;
        if let Some(median) = median {
            let median_us = median.at_us(now_us);
            let settles_until = *self.settles_until_us.get_or_insert(now_us + SETTLE_US);
            if now_us < settles_until {
                // A cold start: what the log says is from before it, and the voters' clocks are all there is.
                time_us = time_us.max(median_us);
                if median.whole {
                    self.settles_until_us = Some(now_us);
                }
            } else if median_us.abs_diff(time_us) <= STRAY_MS_MAX * 1000 {
                let step = now_us.saturating_sub(before.at_us) / SLEW_SHARE;
                time_us = match median_us > time_us {
                    true => (time_us + step).min(median_us),
                    false => time_us.saturating_sub(step).max(median_us).max(floor_us),
                };
            }
            let stray_us = median_us as i64 - time_us as i64;
            self.stray_us = if stray_us.abs() > BOUND_US { stray_us } else { 0 };
        }
        self.anchor = Some(Anchor { at_us: now_us, time_us });
        match (strayed, self.stray_us != 0) {
            (false, true) => Some(Turn::Strayed(self.stray_ms())),
            (true, false) => Some(Turn::Returned),
            _ => None,
        }
    }
}

impl Anchor {
    fn at(self, now_us: u64) -> u64 {
        self.time_us + now_us.saturating_sub(self.at_us)
    }
}

/// The clocks of one voter: its own, what it has heard of the others', and the groups' times.
pub(crate) struct NodeClock {
    node: NodeId,
    wall: WallClock,
    started: Instant,
    shared: Mutex<Shared>,
}

#[derive(Default)]
struct Shared {
    samples: WallSamples,
    groups: BTreeMap<GroupId, GroupTime>,
}

/// A group's clock, the median that steers it and its last stamp.
#[derive(Default)]
struct GroupTime {
    clock: GroupClock,
    /// The last median, and when it was computed.
    median: Option<(Median, u64)>,
    stamped: Option<HybridTime>,
}

impl NodeClock {
    /// Makes the clock of a voter that has just started.
    pub(crate) fn new(node: NodeId, wall: WallClock) -> Self {
        NodeClock { node, wall, started: Instant::now(), shared: Mutex::default() }
    }

    /// Returns this voter's own wall clock, for messages to the others.
    pub(crate) fn wall_ms(&self) -> u64 {
        (self.wall)()
    }

    /// Takes another voter's wall clock.
    pub(crate) fn note(&self, node: NodeId, wall_ms: Option<u64>) {
        if let Some(wall_ms) = wall_ms {
            self.lock().samples.note(node, self.now_us(), wall_ms);
        }
    }

    /// Takes a group's time from its leader.
    pub(crate) fn follow(&self, group: GroupId, time: HybridTime) {
        let now_us = self.now_us();
        self.lock().groups.entry(group).or_default().clock.follow(now_us, time);
    }

    /// Returns a group's time as this voter knows it.
    pub(crate) fn peek(&self, group: GroupId) -> Option<HybridTime> {
        let now_us = self.now_us();
        let shared = self.lock();
        shared.groups.get(&group)?.clock.peek_ms(now_us).map(HybridTime::from_millis)
    }

    /// Returns by how much the voters' median is away from a group's time, in milliseconds, where beyond the bound.
    pub(crate) fn stray_ms(&self, group: GroupId) -> i64 {
        self.lock().groups.get(&group).map_or(0, |time| time.clock.stray_ms())
    }

    /// Moves a group's time on, as its leader, and returns it. `floor` is the latest stamp in the log, `voters` says who
    /// votes; `seen` is what a client saw elsewhere.
    pub(crate) fn now(
        &self,
        group: GroupId,
        floor: HybridTime,
        voters: impl FnOnce() -> Vec<NodeId>,
        seen: Option<HybridTime>,
    ) -> HybridTime {
        let now_us = self.now_us();
        let mut shared = self.lock();
        let Shared { samples, groups } = &mut *shared;
        let time = groups.entry(group).or_default();
        let fresh = time.median.filter(|(_, at_us)| now_us.saturating_sub(*at_us) < MEDIAN_US_MAX);
        if fresh.is_none() {
            samples.note(self.node, now_us, (self.wall)());
            time.median = samples.median(now_us, &voters()).map(|median| (median, now_us));
        }
        let mut median = time.median.map(|(median, _)| median);
        if median.is_none() && floor == HybridTime(0) {
            // An empty log: nothing can expire yet.
            median = Some(Median { whole: false, ..Median::whole(now_us, (self.wall)()) });
        }
        if let Some(turn) = time.clock.advance(now_us, median, floor) {
            report(group, turn);
        }
        if let Some(seen) = seen {
            time.clock.merge(now_us, seen, median);
        }
        HybridTime::from_millis(time.clock.peek_ms(now_us).unwrap_or(0)).max(floor)
    }

    /// As [`NodeClock::now`], later than every stamp before.
    pub(crate) fn stamp(&self, group: GroupId, floor: HybridTime, voters: impl FnOnce() -> Vec<NodeId>) -> HybridTime {
        let now = self.now(group, floor, voters, None);
        let mut shared = self.lock();
        let stamped = &mut shared.groups.entry(group).or_default().stamped;
        let last = stamped.unwrap_or(HybridTime(0)).max(floor);
        let stamp = now.max(last.next());
        *stamped = Some(stamp);
        stamp
    }

    fn now_us(&self) -> u64 {
        self.started.elapsed().as_micros() as u64
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn report(group: GroupId, turn: Turn) {
    match turn {
        Turn::Strayed(ms) => tracing::error!(
            event = "clock_jump",
            %group,
            offset_ms = ms,
            "the median of the voters' clocks is away from the group's time: the jump is not followed, set the clocks right"
        ),
        Turn::Returned => {
            tracing::info!(event = "clock_returned", %group, "the voters' clocks agree with the group's time again")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;
    const NOON_MS: u64 = 1_800_000_000_000;
    const MINUTES_20: u64 = 20 * 60 * 1000;
    const VOTERS: [NodeId; 3] = [NodeId(1), NodeId(2), NodeId(3)];

    /// Samples of clocks that are off by so many milliseconds from noon, all taken at monotonic `now_us`.
    fn samples(now_us: u64, offsets_ms: &[i64]) -> WallSamples {
        let mut samples = WallSamples::default();
        for (node, offset) in VOTERS.iter().zip(offsets_ms) {
            samples.note(*node, now_us, (NOON_MS as i64 + offset) as u64);
        }
        samples
    }

    /// A clock that leads since long, whose median agreed with it.
    fn settled() -> GroupClock {
        let mut clock = GroupClock::default();
        clock.follow(0, HybridTime::from_millis(NOON_MS));
        clock
    }

    fn advance(clock: &mut GroupClock, now_us: u64, median_ms: u64) -> Option<Turn> {
        clock.advance(now_us, Some(Median::whole(now_us, median_ms)), HybridTime(0))
    }

    fn median_ms(samples: &WallSamples, now_us: u64, voters: &[NodeId]) -> Option<u64> {
        samples.median(now_us, voters).map(|median| median.at_us(now_us) / 1000)
    }

    #[test]
    fn one_fast_clock_of_three_is_not_the_median() {
        let minutes_20 = MINUTES_20 as i64;
        assert_eq!(median_ms(&samples(0, &[minutes_20, 0, 3]), 0, &VOTERS), Some(NOON_MS + 3));
        assert_eq!(median_ms(&samples(0, &[0, -minutes_20, 3]), 0, &VOTERS), Some(NOON_MS));
    }

    #[test]
    fn of_two_live_voters_the_lower_counts_and_one_of_three_says_nothing() {
        assert_eq!(median_ms(&samples(0, &[MINUTES_20 as i64, 0]), 0, &VOTERS), Some(NOON_MS));
        assert_eq!(median_ms(&samples(0, &[0]), 0, &VOTERS), None);
        assert_eq!(median_ms(&samples(0, &[0]), 0, &VOTERS[..1]), Some(NOON_MS), "alone in its group");
        let later = SAMPLE_US_MAX + 1;
        let mut some = samples(0, &[0, 0, 0]);
        assert_eq!(median_ms(&some, later, &VOTERS), None, "a sample of long ago is no live voter");
        some.note(VOTERS[0], later, NOON_MS + 7_000);
        some.note(VOTERS[1], later, NOON_MS + 6_000);
        assert_eq!(median_ms(&some, later, &VOTERS), Some(NOON_MS + 6_000));
    }

    #[test]
    fn a_message_that_was_long_on_its_way_does_not_set_a_clock_back() {
        let mut samples = samples(0, &[0, 0, 0]);
        // Sent at the same moment as another, and 300 ms later here.
        samples.note(VOTERS[1], 300_000, NOON_MS);
        assert_eq!(median_ms(&samples, 300_000, &VOTERS[1..2]), Some(NOON_MS + 300));
        samples.note(VOTERS[1], SAMPLE_BEST_US, NOON_MS + 1_900);
        assert_eq!(median_ms(&samples, SAMPLE_BEST_US, &VOTERS[1..2]), Some(NOON_MS + 1_900), "the best one grows old");
        samples.note(VOTERS[1], SAMPLE_BEST_US, NOON_MS - MINUTES_20);
        assert_eq!(
            median_ms(&samples, SAMPLE_BEST_US, &VOTERS[1..2]),
            Some(NOON_MS - MINUTES_20),
            "a clock that was set back"
        );
        samples.note(VOTERS[1], SAMPLE_BEST_US, u64::MAX);
        assert_eq!(median_ms(&samples, SAMPLE_BEST_US, &VOTERS[1..2]), Some(NOON_MS - MINUTES_20), "nonsense");
    }

    #[test]
    fn time_runs_by_the_monotonic_clock_and_does_not_follow_a_jump() {
        let mut clock = settled();
        for second in 1..=60 {
            advance(&mut clock, second * SECOND, NOON_MS + second * 1000);
        }
        assert_eq!(clock.peek_ms(60 * SECOND), Some(NOON_MS + 60_000));
        let mut turns = Vec::new();
        for second in 61..=120 {
            turns.extend(advance(&mut clock, second * SECOND, NOON_MS + second * 1000 + MINUTES_20));
        }
        assert!(matches!(turns[..], [Turn::Strayed(ms)] if ms.abs_diff(MINUTES_20 as i64) < 100), "{turns:?}");
        let ahead = clock.peek_ms(120 * SECOND).unwrap() - (NOON_MS + 120_000);
        assert!(ahead <= 600, "a minute is longer by 1 % at most, not by {ahead} ms");
        assert!(clock.stray_ms() > MINUTES_20 as i64 - 1000);
        let back = advance(&mut clock, 121 * SECOND, NOON_MS + 121_000);
        assert!(back.is_none() && clock.stray_ms() < 0, "600 ms ahead is beyond the bound, too");
        for second in 122..=200 {
            turns.extend(advance(&mut clock, second * SECOND, NOON_MS + second * 1000));
        }
        assert_eq!((turns.last(), clock.stray_ms()), (Some(&Turn::Returned), 0));
        assert_eq!(clock.peek_ms(200 * SECOND), Some(NOON_MS + 200_000));
    }

    #[test]
    fn time_never_runs_backwards_and_clocks_set_back_slow_it_by_one_percent() {
        let mut clock = settled();
        let mut last = 0;
        for step in 1..=600 {
            let now_us = step * SECOND / 10;
            advance(&mut clock, now_us, NOON_MS + now_us / 1000 - MINUTES_20);
            let time = clock.peek_ms(now_us).unwrap();
            assert!(time > last);
            last = time;
        }
        let behind = NOON_MS + 60_000 - last;
        assert!((590..=600).contains(&behind), "{behind} ms in a minute");
    }

    #[test]
    fn a_median_a_day_away_steers_nothing() {
        let mut clock = settled();
        advance(&mut clock, 60 * SECOND, NOON_MS + 60_000 + 2 * STRAY_MS_MAX);
        assert_eq!(clock.peek_ms(60 * SECOND), Some(NOON_MS + 60_000));
        assert!(clock.stray_ms() > STRAY_MS_MAX as i64);
    }

    #[test]
    fn after_a_cold_start_the_median_holds() {
        let mut clock = GroupClock::default();
        let floor = HybridTime::from_millis(NOON_MS - MINUTES_20);
        let some = |now_us: u64, wall_ms: u64| Some(Median { whole: false, ..Median::whole(now_us, wall_ms) });
        assert_eq!(clock.advance(0, None, floor), None);
        assert_eq!(clock.advance(SECOND, None, floor), None);
        assert_eq!(clock.peek_ms(SECOND), Some(floor.millis() + 1_000), "no median: on from the log");
        clock.advance(2 * SECOND, some(2 * SECOND, NOON_MS), floor);
        assert_eq!(clock.peek_ms(2 * SECOND), Some(NOON_MS));
        // The third voter comes up, and shows that the lower of two was behind.
        clock.advance(5 * SECOND, Some(Median::whole(5 * SECOND, NOON_MS + MINUTES_20)), floor);
        assert_eq!(clock.peek_ms(5 * SECOND), Some(NOON_MS + MINUTES_20));
        advance(&mut clock, 6 * SECOND, NOON_MS + 2 * MINUTES_20);
        let time = clock.peek_ms(6 * SECOND).unwrap();
        assert!(time < NOON_MS + MINUTES_20 + 1_100, "all voters are there: no jump is followed any more");
    }

    #[test]
    fn a_log_ahead_of_the_clocks_goes_on_from_where_it_is() {
        let mut clock = GroupClock::default();
        let floor = HybridTime::from_millis(NOON_MS + MINUTES_20);
        let turn = clock.advance(0, Some(Median::whole(0, NOON_MS)), floor);
        assert_eq!(turn, Some(Turn::Strayed(-(MINUTES_20 as i64))));
        clock.advance(60 * SECOND, Some(Median::whole(60 * SECOND, NOON_MS + 60_000)), floor);
        let time = clock.peek_ms(60 * SECOND).unwrap() - floor.millis();
        assert!((59_000..=60_000).contains(&time), "it does not stand still: {time} ms in a minute");
    }

    #[test]
    fn a_follower_leads_on_from_the_leaders_time() {
        let mut clock = GroupClock::default();
        clock.follow(SECOND, HybridTime::from_millis(NOON_MS));
        assert_eq!(clock.peek_ms(3 * SECOND), Some(NOON_MS + 2_000));
        advance(&mut clock, 4 * SECOND, NOON_MS + 3_000 + MINUTES_20);
        let time = clock.peek_ms(4 * SECOND).unwrap();
        assert!(time <= NOON_MS + 3_030, "the new leader's majority is off by 20 minutes");
        clock.advance(4 * SECOND, None, HybridTime::from_millis(NOON_MS + 9_000));
        assert_eq!(clock.peek_ms(4 * SECOND), Some(NOON_MS + 9_000), "never below the log");
    }

    #[test]
    fn times_seen_elsewhere_are_merged_within_the_bound() {
        let (mut clock, noon) = (settled(), Median::whole(0, NOON_MS));
        clock.merge(0, HybridTime::from_millis(NOON_MS + 501), Some(noon));
        assert_eq!(clock.peek_ms(0), Some(NOON_MS));
        clock.merge(0, HybridTime::from_millis(NOON_MS + 400), None);
        assert_eq!(clock.peek_ms(0), Some(NOON_MS), "nobody knows whether it is within");
        clock.merge(0, HybridTime::from_millis(NOON_MS + 400), Some(noon));
        assert_eq!(clock.peek_ms(0), Some(NOON_MS + 400));
        clock.merge(0, HybridTime::from_millis(NOON_MS + 100), Some(noon));
        assert_eq!(clock.peek_ms(0), Some(NOON_MS + 400), "and never back");
        clock.merge(0, HybridTime(u64::MAX), Some(noon));
        assert_eq!(clock.peek_ms(0), Some(NOON_MS + 400));
    }

    #[test]
    fn stamps_are_later_than_each_other_and_than_the_log() {
        let clock = NodeClock::new(NodeId(1), std::sync::Arc::new(|| NOON_MS));
        let voters = || vec![NodeId(1)];
        let first = clock.stamp(GroupId(1), HybridTime(0), voters);
        assert!(first >= HybridTime::from_millis(NOON_MS));
        let mut last = first;
        for _ in 0..1_000 {
            let stamp = clock.stamp(GroupId(1), HybridTime(0), voters);
            assert!(stamp > last);
            last = stamp;
        }
        let floor = last.after(60_000).next();
        assert!(clock.stamp(GroupId(1), floor, voters) > floor);
        assert!(clock.peek(GroupId(2)).is_none(), "each group has its own time");
    }
}
