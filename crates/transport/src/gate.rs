//! Who may begin a handshake: a TLS handshake costs the callee about a millisecond of CPU before it knows anybody,
//! so a listener begins only so many a second and works on only so many at once. One address gets a part of both,
//! so that a flood from one place, or connections that it leaves half open, keep nobody else out.
//!
//! Refused connections are closed unread: callers try again after their own pause. No I/O in here.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::time::Instant;

/// Handshakes that a listener begins per second, all addresses together; as many may come at once.
pub const HANDSHAKES_PER_SECOND_MAX: u32 = 200;
/// Handshakes that a listener works on at once.
pub const HANDSHAKES_MAX: u32 = 256;
/// Part of both that one address may take, in percent.
const SOURCE_PERCENT: u32 = 75;
/// Addresses that are counted one by one; those beyond share one count.
const SOURCES_MAX: usize = 4096;

/// The gate of one listener.
pub struct HandshakeGate {
    per_second_max: u32,
    at_once_max: u32,
    state: Mutex<State>,
}

struct State {
    all: Account,
    sources: HashMap<IpAddr, Account>,
}

/// Handshakes of one address, or of all.
struct Account {
    /// Handshakes that may begin now, and when that was so.
    left: f64,
    at: Instant,
    under_way: u32,
}

impl Account {
    fn new(per_second_max: u32, now: Instant) -> Self {
        Account { left: f64::from(per_second_max), at: now, under_way: 0 }
    }

    fn refill(&mut self, per_second_max: u32, now: Instant) {
        let passed = now.saturating_duration_since(self.at);
        self.left = (self.left + passed.as_secs_f64() * f64::from(per_second_max)).min(f64::from(per_second_max));
        self.at = now.max(self.at);
    }

    fn admits(&mut self, per_second_max: u32, at_once_max: u32, now: Instant) -> bool {
        self.refill(per_second_max, now);
        self.left >= 1.0 && self.under_way < at_once_max
    }

    fn begin(&mut self) {
        self.left -= 1.0;
        self.under_way += 1;
    }

    fn is_forgettable(&mut self, per_second_max: u32, now: Instant) -> bool {
        self.refill(per_second_max, now);
        self.under_way == 0 && self.left + 1.0 > f64::from(per_second_max)
    }
}

/// A handshake under way. Dropping it ends the handshake's share of the gate.
pub struct Pass {
    gate: Arc<HandshakeGate>,
    source: IpAddr,
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut state = self.gate.lock();
        state.all.under_way -= 1;
        if let Some(account) = state.sources.get_mut(&self.source) {
            account.under_way -= 1;
        }
    }
}

impl HandshakeGate {
    /// Makes the gate of a listener with the bounds above.
    pub fn new() -> Arc<Self> {
        HandshakeGate::with_bounds(HANDSHAKES_PER_SECOND_MAX, HANDSHAKES_MAX)
    }

    /// Makes a gate that begins so many handshakes per second and works on so many at once, each at least 2.
    pub fn with_bounds(per_second_max: u32, at_once_max: u32) -> Arc<Self> {
        let (per_second_max, at_once_max) = (per_second_max.max(2), at_once_max.max(2));
        let all = Account::new(per_second_max, Instant::now());
        let state = Mutex::new(State { all, sources: HashMap::new() });
        Arc::new(HandshakeGate { per_second_max, at_once_max, state })
    }

    /// Lets a connection from an address begin its handshake, or not.
    pub fn admit(self: &Arc<Self>, address: IpAddr, now: Instant) -> Option<Pass> {
        let source_max = |of_all: u32| (of_all * SOURCE_PERCENT / 100).max(1);
        let (second_max, once_max) = (source_max(self.per_second_max), source_max(self.at_once_max));
        let mut state = self.lock();
        let State { all, sources } = &mut *state;
        if !all.admits(self.per_second_max, self.at_once_max, now) {
            return None;
        }
        let mut source = source_of(address);
        if sources.len() >= SOURCES_MAX && !sources.contains_key(&source) {
            sources.retain(|_, account| !account.is_forgettable(second_max, now));
            if sources.len() >= SOURCES_MAX {
                source = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
            }
        }
        let account = sources.entry(source).or_insert_with(|| Account::new(second_max, now));
        if !account.admits(second_max, once_max, now) {
            return None;
        }
        account.begin();
        all.begin();
        Some(Pass { gate: self.clone(), source })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What counts as one place: an IPv4 address, or the 64 bits in front of an IPv6 address, behind which one host can
/// have as many addresses as it likes.
pub fn source_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn v4(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    fn count(gate: &Arc<HandshakeGate>, address: IpAddr, now: Instant) -> usize {
        (0..1000).filter(|_| gate.admit(address, now).is_some()).count()
    }

    #[tokio::test]
    async fn one_address_gets_its_part_and_leaves_the_others_theirs() {
        let gate = HandshakeGate::new();
        let now = Instant::now();
        assert_eq!(count(&gate, v4(1), now), 150);
        assert_eq!(count(&gate, v4(2), now), 50, "what the flood of one address leaves");
        assert_eq!(count(&gate, v4(3), now), 0);
        let later = now + Duration::from_millis(500);
        assert_eq!(count(&gate, v4(1), later), 75);
        assert_eq!(count(&gate, v4(3), later), 25);
    }

    #[tokio::test]
    async fn half_open_handshakes_of_one_address_leave_room_for_others() {
        let gate = HandshakeGate::with_bounds(10_000, 8);
        let now = Instant::now();
        let held: Vec<_> = std::iter::from_fn(|| gate.admit(v4(1), now)).collect();
        assert_eq!(held.len(), 6);
        let other = gate.admit(v4(2), now).expect("another address gets in");
        drop(held);
        assert!(gate.admit(v4(1), now).is_some());
        drop(other);
    }

    #[tokio::test]
    async fn a_host_is_one_place_whatever_its_lower_64_bits_say() {
        let gate = HandshakeGate::with_bounds(100, 1000);
        let now = Instant::now();
        let address = |low: u128| IpAddr::V6(Ipv6Addr::from_bits(0x2001_0db8 << 96 | low));
        let admitted = (0..1000).filter(|low| gate.admit(address(*low), now).is_some()).count();
        assert_eq!(admitted, 75);
    }

    #[tokio::test]
    async fn the_table_of_addresses_is_bounded() {
        let gate = HandshakeGate::with_bounds(u32::MAX / 100, u32::MAX / 100);
        let now = Instant::now();
        let held: Vec<_> =
            (0..10_000u32).filter_map(|number| gate.admit(IpAddr::from(number.to_be_bytes()), now)).collect();
        assert_eq!(held.len(), 10_000);
        assert!(gate.lock().sources.len() <= SOURCES_MAX + 1);
    }
}
