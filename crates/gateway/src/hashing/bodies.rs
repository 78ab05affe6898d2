//! Which bytes are hashed next: the decisions, without threads or clocks.
//!
//! Each body is a queue of pieces that the connection received, as they are: nothing is copied but
//! what stands across two pieces. A pass takes the bodies that have waited longest and hashes as many
//! blocks of each as the one with the fewest has in one piece. Eight bodies cost hardly more than one, so
//! a pass waits until the lanes are full or somebody needs a digest.

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
}

impl<T, A> Bodies<T, A> {
    /// Starts without bodies.
    pub fn new() -> Self {
        Bodies { bodies: BTreeMap::new(), ripe: VecDeque::new() }
    }

    /// Takes the next piece of a body; an unknown id begins one.
    pub fn handle_piece(&mut self, id: BodyId, piece: Bytes, travels_along: T) {
        let body = self.bodies.entry(id).or_insert_with(|| Body {
            state: INITIAL,
            length_bytes: 0,
            tail: [0; BLOCK_BYTES],
            tail_bytes: 0,
            pieces: VecDeque::new(),
            answer: None,
            is_ripe: false,
            is_due: false,
        });
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
        self.bodies.remove(&id);
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
        Pass,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let body = 0u64..12;
        let step = prop_oneof![
            6 => (body.clone(), prop_oneof![0usize..200, 0usize..40_000]).prop_map(|(id, size)| Step::Piece(id, size)),
            2 => body.clone().prop_map(Step::End),
            1 => body.clone().prop_map(Step::Abandon),
            1 => body.prop_map(Step::Due),
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
                    Step::Pass => found.extend(bodies.poll_pass()),
                }
            }
            (1..=next).for_each(|id| bodies.handle_due(id));
            while bodies.is_pass_due() {
                found.extend(bodies.poll_pass());
            }
            prop_assert_eq!(found, ended);
            prop_assert!(bodies.ripe.is_empty(), "who is waited for gets its turn");
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
