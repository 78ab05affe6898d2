//! Sending a stripe: all fragments in parallel, answered at the write quorum.

use crate::chart::Site;
use crate::client::Client;
use crate::filling::SealedStripe;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use plinth_protocol::storage::IoClass;
use plinth_protocol::stripe::{FragmentHeader, Owner, StripeRef};
use plinth_protocol::{DiskId, Failure, FailureKind};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How often a stripe is sent, each time to another placement group.
const STRIPE_TRIES_MAX: usize = 4;
/// Shortest time before a stripe is answered without its slowest fragment: an owed fragment is work
/// for later and one loss less that the stripe survives until then.
const WRITE_HEDGE_MIN: Duration = Duration::from_millis(250);
/// Longest such time.
const WRITE_HEDGE_MAX: Duration = Duration::from_secs(2);
/// When a stripe that others of its disks have taken is given up and sent elsewhere: two of its disks
/// are silent. Where no disk at all has answered by then, the whole is slow, and more writes would
/// make it slower.
const WRITE_STALL: Duration = Duration::from_secs(4);
/// The hedge deadline in multiples of the 95th percentile of writes.
const WRITE_HEDGE_FACTOR: u32 = 3;

/// How many fragments must be durable before a stripe of `data` data and `parity` parity fragments
/// is answered: all, or all but one where then still one more than `data` are.
fn quorum(data: usize, parity: usize) -> usize {
    if parity >= 2 { data + parity - 1 } else { data + parity }
}

/// Says of a stripe what its last disk said, in words that hold for the object.
fn about_the_cluster(failure: Failure) -> Failure {
    match failure.kind {
        FailureKind::Full | FailureKind::Busy | FailureKind::Unavailable => failure,
        _ => Failure { kind: FailureKind::Unavailable, ..failure },
    }
}

impl Client {
    /// Makes a stripe durable; returns how a row refers to it. Fails with `Full`, `Busy` or
    /// `Unavailable`: what else a disk may answer says nothing about the object.
    pub(crate) async fn send_stripe(&self, mut sealed: SealedStripe, owner: Owner) -> Result<StripeRef, Failure> {
        let mut shunned: Vec<DiskId> = Vec::new();
        let mut tries = 0;
        loop {
            tries += 1;
            match self.try_stripe(&sealed, &owner, &mut shunned).await {
                Ok(reference) => {
                    self.inner.counters.stripes_written.add(1);
                    self.inner.counters.bytes_written.add(sealed.payload_bytes);
                    return Ok(reference);
                }
                Err(failure) if tries == STRIPE_TRIES_MAX => return Err(about_the_cluster(failure)),
                Err(failure) => {
                    tracing::info!(stripe = %sealed.stripe, %failure, "stripe not durable: sent again elsewhere");
                    self.inner.counters.stripes_resent.add(1);
                    // A new id: of the first one, any subset of fragments may exist.
                    let stripe = self.new_stripe_id().await?;
                    sealed = sealed.renamed(stripe, &self.inner.pool);
                }
            }
        }
    }

    /// Sends a stripe to one placement group. On failure `shunned` has the disks that failed.
    async fn try_stripe(
        &self,
        sealed: &SealedStripe,
        owner: &Owner,
        shunned: &mut Vec<DiskId>,
    ) -> Result<StripeRef, Failure> {
        let chart = self.chart();
        let none = || Failure::new(FailureKind::Unavailable, format!("no placement group of code {}", sealed.code));
        let pg = chart.choose_pg(&self.inner.chance, self.inner.uptime.ms(), shunned).ok_or_else(none)?;
        if pg.code != sealed.code {
            return Err(Failure::new(FailureKind::Unavailable, "the cluster's code changed while the stripe was made"));
        }
        let mut reference = StripeRef {
            stripe: sealed.stripe,
            pg: pg.pg,
            generation: pg.generation,
            code: sealed.code,
            payload_bytes: sealed.payload_bytes,
            fragment_payload_bytes: sealed.fragment_payload_bytes,
            missing: None,
            plain_bytes: None,
            sealing: None,
            pack_offset: None,
        };
        let sites: Vec<Arc<Site>> = (sealed.fragments.iter())
            .map(|(index, _)| chart.site(pg.disks[reference.slot(*index)]).cloned().ok_or_else(none))
            .collect::<Result<_, _>>()?;
        let data = sealed.fragments.iter().filter(|(index, _)| *index < sealed.code.k).count();
        let quorum = quorum(data, sealed.fragments.len() - data);
        let spared = self.spared(&sites, sites.len() - quorum);
        let made = self.made();
        let puts: FuturesUnordered<_> = (sealed.fragments.iter().zip(&sites).enumerate())
            .filter(|(position, _)| spared >> position & 1 == 0)
            .map(|(position, ((index, frames), site))| {
                let header = FragmentHeader {
                    fragment: reference.fragment(*index),
                    stripe: reference.clone(),
                    owner: Some(owner.clone()),
                    made,
                };
                let put = self.put_fragment(site, IoClass::Write, header, frames.clone());
                async move { (position, put.await) }
            })
            .collect();
        let durable = self.await_quorum(puts, quorum, &sites, spared, shunned).await?;
        let owed = (0..sealed.fragments.len()).filter(|position| durable >> position & 1 == 0);
        let missing = owed.fold(0u32, |bits, position| bits | 1 << sealed.fragments[position].0);
        reference.missing = (missing != 0).then_some(missing);
        Ok(reference)
    }

    /// Returns the positions, as bits, whose disks get no fragment: known not to answer, and no more of them than the
    /// quorum can do without. They are owed their fragments; nobody waits for them.
    fn spared(&self, sites: &[Arc<Site>], most: usize) -> u32 {
        let now_ms = self.inner.uptime.ms();
        let bad = |site: &Site| !site.readable || !site.health.takes_stripes(now_ms);
        let spared = sites.iter().enumerate().filter(|(_, site)| bad(site));
        let spared = spared.fold(0u32, |bits, (position, _)| bits | 1 << position);
        // Where the quorum needs one of them, each gets its chance.
        if spared.count_ones() as usize <= most { spared } else { 0 }
    }

    /// How long a stripe waits for its slowest fragment.
    pub(crate) fn write_patience(&self) -> Duration {
        (self.inner.write_latency.get() * WRITE_HEDGE_FACTOR).clamp(WRITE_HEDGE_MIN, WRITE_HEDGE_MAX)
    }

    /// Waits until the stripe can be answered; `spared` are the positions that were not sent. Returns the positions that are durable as bits.
    async fn await_quorum<F>(
        &self,
        mut puts: FuturesUnordered<F>,
        quorum: usize,
        sites: &[Arc<Site>],
        spared: u32,
        shunned: &mut Vec<DiskId>,
    ) -> Result<u32, Failure>
    where
        F: Future<Output = (usize, Result<(), Failure>)>,
    {
        let started = Instant::now();
        let hedge = tokio::time::sleep_until(started + self.write_patience());
        let stall = tokio::time::sleep_until(started + WRITE_STALL);
        tokio::pin!(hedge, stall);
        let (mut stall_due, mut stalled) = (true, false);
        let (mut durable, mut hedged, mut failed) = (0u32, false, spared.count_ones() as usize);
        let mut last_failure = None;
        loop {
            let count = durable.count_ones() as usize;
            if count + failed == sites.len() && count >= quorum {
                self.inner.counters.quorums_short.add(u64::from(failed > 0));
                return Ok(durable);
            }
            if hedged && count >= quorum {
                self.inner.counters.quorums_hedged.add(1);
                self.strike_slow(sites, durable | spared);
                return Ok(durable);
            }
            if stalled {
                shunned.extend(self.strike_slow(sites, durable | spared));
                return Err(Failure::new(FailureKind::Unavailable, "several disks are silent"));
            }
            if sites.len() - failed < quorum {
                return Err(last_failure.expect("something failed, else all can still become durable"));
            }
            tokio::select! {
                biased;
                Some((position, outcome)) = puts.next() => match outcome {
                    Ok(()) => {
                        self.inner.write_latency.note(started.elapsed());
                        durable |= 1 << position;
                    }
                    Err(failure) => {
                        failed += 1;
                        shunned.push(sites[position].disk);
                        last_failure = Some(failure);
                    }
                },
                () = &mut hedge, if !hedged => hedged = true,
                () = &mut stall, if stall_due => (stall_due, stalled) = (false, durable != 0),
            }
        }
    }

    /// Gives a strike to the disks whose fragment was waited for in vain; returns them.
    fn strike_slow(&self, sites: &[Arc<Site>], excused: u32) -> Vec<DiskId> {
        let slow = sites.iter().enumerate().filter(|(position, _)| excused >> position & 1 == 0);
        let struck = slow.map(|(_, site)| {
            self.strike(site);
            site.disk
        });
        struck.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quorum_is_all_but_one_and_never_below_one_more_than_the_data() {
        assert_eq!((quorum(1, 0), quorum(1, 1), quorum(2, 1)), (1, 2, 3));
        assert_eq!((quorum(1, 2), quorum(3, 2), quorum(1, 4), quorum(8, 3)), (2, 4, 4, 10));
    }
}
