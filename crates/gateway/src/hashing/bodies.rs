//! Which bytes are hashed next: the decisions, without threads or clocks.
//!
//! Each body is a queue of pieces that the connection received, as they are: nothing is copied but
//! what stands across two pieces. A pass takes the bodies that have waited longest and hashes as many
//! blocks of each as the one with the fewest has in one piece. Eight bodies cost hardly more than one, so
//! a pass waits until the lanes are full or somebody needs a digest.
//!
//! Of a large body somebody soon needs room, not the digest. It waits a little for those that were about
//! when the last passes ran: until they have as much waiting as it has, or its patience is over.

use super::lanes::{self, BLOCK_BYTES, INITIAL, LANES, State};
use bytes::{Buf as _, Bytes};
use std::collections::{BTreeMap, VecDeque};

/// Most blocks of a body in one pass, so that bodies that come meanwhile wait at most 0.1 ms: 16 KiB.
const PASS_BLOCKS_MAX: usize = 256;

/// Names a body while it is hashed.
pub type BodyId = u64;

/// A finished MD5.
pub type Digest = [u8; 16];

/// The bodies that are being hashed. `T` travels with a piece and is dropped when it is hashed; `A` is
/// handed back with the digest.
pub struct Bodies<T, A> {
    bodies: BTreeMap<BodyId, Body<T, A>>,
    /// Bodies with something to do, the one that has waited longest first.
    ripe: VecDeque<BodyId>,
    /// How many bodies are crowded.
    crowded: usize,
    /// Counts the times that all that was due has been hashed.
    round: u64,
}

struct Body<T, A> {
    state: State,
    length_bytes: u64,
    /// The beginning of a block whose rest has not come.
    tail: [u8; BLOCK_BYTES],
    tail_bytes: usize,
    pieces: VecDeque<(Bytes, T)>,
    answer: Option<A>,
    is_ripe: bool,
    /// Whether somebody waits for it to be hashed.
    is_due: bool,
    /// Whether so much waits that its connection will find no room soon.
    is_crowded: bool,
    /// The round in which its last piece came.
    round: u64,
}

impl<T, A> Bodies<T, A> {
    /// Starts without bodies.
    pub fn new() -> Self {
        Bodies { bodies: BTreeMap::new(), ripe: VecDeque::new(), crowded: 0, round: 0 }
    }

    /// Takes the next piece of a body; an unknown id begins one.
    pub fn handle_piece(&mut self, id: BodyId, piece: Bytes, travels_along: T) {
        let round = self.round;
        let body = self.bodies.entry(id).or_insert_with(|| Body {
            state: INITIAL,
            length_bytes: 0,
            tail: [0; BLOCK_BYTES],
            tail_bytes: 0,
            pieces: VecDeque::new(),
            answer: None,
            is_ripe: false,
            is_due: false,
            is_crowded: false,
            round,
        });
        body.round = round;
        body.length_bytes += piece.len() as u64;
        body.pieces.push_back((piece, travels_along));
        self.ripen(id);
    }

    /// Takes the end of a body; an unknown id is an empty one.
    pub fn handle_end(&mut self, id: BodyId, answer: A, travels_along: T) {
        if !self.bodies.contains_key(&id) {
            self.handle_piece(id, Bytes::new(), travels_along);
        }
        self.bodies.get_mut(&id).expect("made above").answer = Some(answer);
        self.ripen(id);
    }

    /// Forgets a body whose sender went away.
    pub fn handle_abandoned(&mut self, id: BodyId) {
        let body = self.bodies.remove(&id);
        self.crowded -= usize::from(body.is_some_and(|body| body.is_crowded));
        self.ripe.retain(|ripe| *ripe != id);
    }

    fn ripen(&mut self, id: BodyId) {
        let body = self.bodies.get_mut(&id).expect("callers name a body that is there");
        if !std::mem::replace(&mut body.is_ripe, true) {
            self.ripe.push_back(id);
        }
    }

    /// Takes note that somebody waits for what has come of a body; an unknown id is passed over.
    pub fn handle_due(&mut self, id: BodyId) {
        if let Some(body) = self.bodies.get_mut(&id) {
            body.is_due = true;
        }
    }

    /// Takes note that much of a body waits; an unknown id is passed over.
    pub fn handle_crowded(&mut self, id: BodyId) {
        if let Some(body) = self.bodies.get_mut(&id).filter(|body| body.is_ripe)
            && !std::mem::replace(&mut body.is_crowded, true)
        {
            self.crowded += 1;
            self.end_patience_with_company();
        }
    }

    /// Returns whether crowded bodies wait for company: somebody should call [`Bodies::handle_patience_over`] soon.
    pub fn has_crowded(&self) -> bool {
        self.crowded > 0
    }

    /// Ends the waiting for company: what is crowded is hashed now.
    pub fn handle_patience_over(&mut self) {
        for body in self.bodies.values_mut().filter(|body| body.is_crowded) {
            (body.is_crowded, body.is_due) = (false, true);
        }
        self.crowded = 0;
    }

    /// Waits no longer where every body that is about is crowded, or waited for anyway.
    fn end_patience_with_company(&mut self) {
        let is_expected = |body: &Body<T, A>| body.round + 1 >= self.round && body.answer.is_none();
        let comes = |body: &Body<T, A>| is_expected(body) && !body.is_crowded && !body.is_due;
        if !self.bodies.values().any(comes) {
            self.handle_patience_over();
        }
    }

    /// Returns whether a pass is worth its cost now: the lanes are full, somebody waits, or there is one
    /// body only, which has no company to wait for.
    pub fn is_pass_due(&self) -> bool {
        let is_due = |id: &BodyId| self.bodies[id].is_due;
        self.ripe.len() >= LANES || (self.bodies.len() == 1 && !self.ripe.is_empty()) || self.ripe.iter().any(is_due)
    }

    /// Hashes for one pass; returns the digests that are complete. Does nothing where nothing is ripe.
    pub fn poll_pass(&mut self) -> Vec<(A, Digest)> {
        let mut done = Vec::new();
        let mut chosen = Vec::with_capacity(LANES);
        while chosen.len() < LANES {
            let Some(id) = self.ripe.pop_front() else { break };
            let mut body = self.bodies.remove(&id).expect("ripe bodies are there");
            body.is_ripe = false;
            self.crowded -= usize::from(std::mem::take(&mut body.is_crowded));
            if body.align() {
                chosen.push((id, body));
            } else if let Some(answer) = body.answer.take() {
                done.push((answer, body.finish()));
            } else {
                body.is_due = false;
                self.bodies.insert(id, body);
            }
        }
        hash_together(&mut chosen);
        for (id, body) in chosen {
            self.bodies.insert(id, body);
            self.ripen(id);
        }
        if !self.is_pass_due() {
            self.round += 1;
        }
        done
    }
}

/// Hashes as many blocks of each body as the one with the fewest has in one piece.
fn hash_together<T, A>(chosen: &mut [(BodyId, Body<T, A>)]) {
    let shortest = chosen.iter().map(|(_, body)| body.blocks()).min().unwrap_or(0);
    let blocks = shortest.min(PASS_BLOCKS_MAX);
    if chosen.len() < lanes::worth_it_from() {
        for (_, body) in chosen.iter_mut() {
            let blocks = body.blocks().min(PASS_BLOCKS_MAX);
            lanes::compress_one(&mut body.state, &body.pieces[0].0[..blocks * BLOCK_BYTES]);
            body.pieces[0].0.advance(blocks * BLOCK_BYTES);
        }
        return;
    }
    let mut messages: Vec<(State, &[u8])> =
        chosen.iter().map(|(_, body)| (body.state, &body.pieces[0].0[..])).collect();
    lanes::compress_many(&mut messages, blocks);
    let states: Vec<State> = messages.into_iter().map(|(state, _)| state).collect();
    for ((_, body), state) in chosen.iter_mut().zip(states) {
        body.state = state;
        body.pieces[0].0.advance(blocks * BLOCK_BYTES);
    }
}

impl<T, A> Body<T, A> {
    /// Whole blocks at the beginning of the first piece.
    fn blocks(&self) -> usize {
        self.pieces.front().map_or(0, |(piece, _)| piece.len() / BLOCK_BYTES)
    }

    /// Brings the first piece to a block's beginning, through the tail; returns whether it has a whole block.
    fn align(&mut self) -> bool {
        while let Some((piece, _)) = self.pieces.front_mut() {
            if self.tail_bytes == 0 && piece.len() >= BLOCK_BYTES {
                return true;
            }
            let count = piece.len().min(BLOCK_BYTES - self.tail_bytes);
            self.tail[self.tail_bytes..self.tail_bytes + count].copy_from_slice(&piece[..count]);
            self.tail_bytes += count;
            piece.advance(count);
            if self.tail_bytes == BLOCK_BYTES {
                lanes::compress_one(&mut self.state, &self.tail);
                self.tail_bytes = 0;
            }
            if piece.is_empty() {
                self.pieces.pop_front();
            }
        }
        false
    }

    /// Pads the message as RFC 1321, section 3.1 and 3.2, has it.
    fn finish(mut self) -> Digest {
        let mut end = [0; 2 * BLOCK_BYTES];
        end[..self.tail_bytes].copy_from_slice(&self.tail[..self.tail_bytes]);
        end[self.tail_bytes] = 0x80;
        let length = if self.tail_bytes + 9 <= BLOCK_BYTES { BLOCK_BYTES } else { 2 * BLOCK_BYTES };
        end[length - 8..length].copy_from_slice(&(self.length_bytes * 8).to_le_bytes());
        lanes::compress_one(&mut self.state, &end[..length]);
        let mut digest = [0; 16];
        for (bytes, word) in digest.chunks_exact_mut(4).zip(self.state) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        digest
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use md5::Digest as _;
    use proptest::prelude::*;
    use std::sync::Arc;

    #[derive(Clone, Debug)]
    enum Step {
        Piece(u64, usize),
        End(u64),
        Abandon(u64),
        Due(u64),
        Crowded(u64),
        PatienceOver,
        Pass,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let body = 0u64..12;
        let step = prop_oneof![
            6 => (body.clone(), prop_oneof![0usize..200, 0usize..40_000]).prop_map(|(id, size)| Step::Piece(id, size)),
            2 => body.clone().prop_map(Step::End),
            1 => body.clone().prop_map(Step::Abandon),
            1 => body.clone().prop_map(Step::Due),
            2 => body.prop_map(Step::Crowded),
            1 => Just(Step::PatienceOver),
            3 => Just(Step::Pass),
        ];
        proptest::collection::vec(step, 1..80)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn every_digest_is_that_of_the_bytes_in_order(steps in steps()) {
            let mut bodies: Bodies<(), u64> = Bodies::new();
            // A body that has ended takes nothing more: its id goes on under a new number.
            let mut names: BTreeMap<u64, u64> = BTreeMap::new();
            let mut want: BTreeMap<u64, md5::Md5> = BTreeMap::new();
            let (mut next, mut ended, mut found) = (0u64, BTreeMap::new(), BTreeMap::new());
            for step in steps {
                match step {
                    Step::Piece(id, size) => {
                        let id = *names.entry(id).or_insert_with(|| { next += 1; next });
                        let piece: Vec<u8> = (0..size).map(|i| (i as u64 * 13 + id) as u8).collect();
                        want.entry(id).or_default().update(&piece);
                        bodies.handle_piece(id, piece.into(), ());
                    }
                    Step::End(id) => {
                        let id = names.remove(&id).unwrap_or_else(|| { next += 1; next });
                        ended.insert(id, Digest::from(want.remove(&id).unwrap_or_default().finalize()));
                        bodies.handle_end(id, id, ());
                    }
                    Step::Abandon(id) => if let Some(id) = names.remove(&id) {
                        want.remove(&id);
                        bodies.handle_abandoned(id);
                    }
                    Step::Due(id) => if let Some(id) = names.get(&id) {
                        bodies.handle_due(*id);
                    }
                    Step::Crowded(id) => if let Some(id) = names.get(&id) {
                        bodies.handle_crowded(*id);
                    }
                    Step::PatienceOver => bodies.handle_patience_over(),
                    Step::Pass => found.extend(bodies.poll_pass()),
                }
            }
            (1..=next).for_each(|id| bodies.handle_due(id));
            while bodies.is_pass_due() {
                found.extend(bodies.poll_pass());
            }
            prop_assert_eq!(found, ended);
            prop_assert!(bodies.ripe.is_empty(), "who is waited for gets its turn");
            prop_assert_eq!(bodies.crowded, 0);
        }
    }

    #[test]
    fn a_pass_waits_for_full_lanes_or_for_somebody_who_waits() {
        let mut bodies: Bodies<(), ()> = Bodies::new();
        bodies.handle_piece(0, vec![1; 6400].into(), ());
        assert!(bodies.is_pass_due(), "a body alone has nobody to wait for");
        for id in 1..LANES as u64 {
            bodies.handle_piece(id, vec![1; 6400].into(), ());
            assert_eq!(bodies.is_pass_due(), id == LANES as u64 - 1);
        }
        assert!(bodies.poll_pass().is_empty());
        bodies.handle_piece(3, vec![1; 6400].into(), ());
        assert_eq!(bodies.ripe.len(), LANES, "a body is asked once more after a pass");
        bodies.poll_pass();
        assert!(!bodies.is_pass_due());
        bodies.handle_due(5);
        assert!(!bodies.is_pass_due(), "nothing of it has come");
        bodies.handle_piece(5, vec![1; 64].into(), ());
        assert!(bodies.is_pass_due());
    }

    /// Sends `bytes` of each body, the one after the other, as few workers do; returns how many lanes each pass had.
    fn lanes_of_rounds(bodies: &mut Bodies<(), ()>, ids: &[u64], rounds: usize) -> Vec<usize> {
        let mut lanes = Vec::new();
        for _ in 0..rounds {
            for id in ids {
                bodies.handle_piece(*id, vec![1; 64 << 10].into(), ());
                bodies.handle_crowded(*id);
                while bodies.is_pass_due() {
                    lanes.push(bodies.ripe.len());
                    bodies.poll_pass();
                }
            }
        }
        lanes
    }

    #[test]
    fn large_bodies_wait_for_those_that_are_about() {
        let mut bodies: Bodies<(), ()> = Bodies::new();
        lanes_of_rounds(&mut bodies, &[1, 2, 3, 4], 2);
        let lanes = lanes_of_rounds(&mut bodies, &[1, 2, 3, 4], 10);
        let full = lanes.iter().filter(|&&lanes| lanes == 4).count();
        assert!(full * 10 >= lanes.len() * 7, "{lanes:?}");
    }

    #[test]
    fn a_body_whose_sender_is_silent_is_waited_for_no_longer() {
        let mut bodies: Bodies<(), ()> = Bodies::new();
        lanes_of_rounds(&mut bodies, &[1, 2], 3);
        bodies.handle_patience_over();
        while bodies.is_pass_due() {
            bodies.poll_pass();
        }
        // The second one stalls: at first its company is hoped for, until patience is over.
        bodies.handle_piece(1, vec![1; 6400].into(), ());
        bodies.handle_crowded(1);
        assert!(bodies.has_crowded() && !bodies.is_pass_due());
        bodies.handle_patience_over();
        for _ in 0..3 {
            while bodies.is_pass_due() {
                bodies.poll_pass();
            }
            bodies.handle_piece(1, vec![1; 6400].into(), ());
            bodies.handle_crowded(1);
        }
        assert!(bodies.is_pass_due(), "nobody is expected any more");
    }

    #[test]
    fn a_body_that_is_abandoned_after_its_end_leaves_nothing() {
        let mut bodies: Bodies<Arc<()>, u64> = Bodies::new();
        let room = Arc::new(());
        for id in [1, 2] {
            bodies.handle_piece(id, vec![id as u8; 6400].into(), Arc::clone(&room));
        }
        bodies.handle_end(1, 1, Arc::clone(&room));
        assert!(!bodies.is_pass_due(), "two bodies wait for company");
        bodies.handle_abandoned(1);
        assert_eq!(Arc::strong_count(&room), 2, "the first one's room is free");
        assert!(bodies.is_pass_due(), "the other is alone now, and waits for nobody");
        // Its caller waited, in vain, and says so as it goes.
        bodies.handle_due(1);
        bodies.handle_end(2, 2, room);
        let mut found = Vec::new();
        while bodies.is_pass_due() {
            found.extend(bodies.poll_pass());
        }
        assert_eq!(found, [(2, md5::Md5::digest([2; 6400]).into())]);
        assert!(bodies.bodies.is_empty() && bodies.ripe.is_empty());
    }
}
