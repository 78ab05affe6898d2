//! How a connection knows that its peer still lives: both sides send something at least every
//! interval, and a side that hears nothing for several gives the connection up. A half-open or
//! black-holed connection thus ends after [`SILENCE_MAX`], also in one direction only.

use crate::channel::Channel;
use crate::error::TransportError;
use crate::frame::OutFrame;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

/// A side that has sent nothing for this long sends a ping.
pub(crate) const PING_INTERVAL: Duration = Duration::from_secs(2);
/// A connection on which nothing arrives for this long is given up.
pub(crate) const SILENCE_MAX: Duration = Duration::from_secs(8);
/// A connection whose peer takes no bytes for this long, though some wait, is given up.
pub(crate) const STALL_MAX: Duration = Duration::from_secs(30);

/// The heartbeat of one connection. It counts its own ticks, so that a process that was paused does
/// not mistake its own absence for its peer's.
pub(crate) struct Pulse {
    interval: Interval,
    silent: u32,
    stalled: u32,
}

impl Pulse {
    pub(crate) fn new() -> Self {
        let mut interval = interval_at(Instant::now() + PING_INTERVAL, PING_INTERVAL);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Pulse { interval, silent: 0, stalled: 0 }
    }

    /// Ready at each tick, after its work is done; fails when the peer is gone. A side that has paused
    /// reading cannot hear and does not judge.
    pub(crate) fn poll_tick(
        &mut self,
        cx: &mut Context<'_>,
        channel: &mut Channel,
        paused: bool,
    ) -> Poll<Result<(), TransportError>> {
        if self.interval.poll_tick(cx).is_pending() {
            return Poll::Pending;
        }
        let activity = channel.take_activity(Instant::now());
        self.silent = if activity.heard || paused { 0 } else { self.silent + 1 };
        self.stalled = if activity.wrote || !channel.has_output() { 0 } else { self.stalled + 1 };
        if self.silent * PING_INTERVAL > SILENCE_MAX {
            return Poll::Ready(Err(TransportError::Silent("peer sent nothing")));
        }
        if self.stalled * PING_INTERVAL > STALL_MAX {
            return Poll::Ready(Err(TransportError::Silent("peer took nothing")));
        }
        if !activity.sent && channel.wants_frame() {
            channel.push(OutFrame::ping())?;
        }
        Poll::Ready(Ok(()))
    }
}
