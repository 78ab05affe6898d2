//! The index: which fragment lies where, in RAM, in id order.
//!
//! Entries of 28 bytes stand in sorted chunks of at most [`CHUNK_ENTRIES_MAX`]; an ordered map of
//! the chunks' lower bounds finds the chunk. Writers count their ids upwards, so most inserts go
//! behind the last entry: a full last chunk is left full and a new one begun, a full inner one is
//! cut in halves. Measured (`index_costs_at_most_40_bytes_a_fragment`): 29 bytes a fragment for
//! ascending ids, 36 for random ones.

use plinth_protocol::{FragmentId, StripeId};
use std::collections::BTreeMap;
use std::ops::Bound;

/// Most entries of one chunk.
pub const CHUNK_ENTRIES_MAX: usize = 256;
/// A chunk's memory grows by this many entries at a time, so that little of it lies idle.
const CHUNK_GROWTH_ENTRIES: usize = 32;

/// Where a record lies on its disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Place {
    /// The segment's number.
    pub segment: u32,
    /// First block of the record in its segment.
    pub block: u16,
    /// Bytes of the record's body (the fragment header).
    pub body_bytes: u16,
    /// Blocks of the record's payload (the frames).
    pub payload_blocks: u16,
}

/// What the index knows of a fragment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexEntry {
    /// The fragment.
    pub fragment: FragmentId,
    /// Its current record.
    pub place: Place,
    /// Whether its bytes failed a check: never returned, never moved, kept for inspection.
    pub quarantined: bool,
}

/// An entry as it lies in memory: 28 bytes, no padding.
#[derive(Clone, Copy)]
#[repr(C)]
struct Packed {
    stripe: [u32; 4],
    segment: u32,
    block: u16,
    body_bytes: u16,
    payload_blocks: u16,
    index: u8,
    flags: u8,
}

const FLAG_QUARANTINED: u8 = 1;

impl Packed {
    fn pack(entry: &IndexEntry) -> Self {
        let id = entry.fragment.stripe.0;
        Packed {
            stripe: [(id >> 96) as u32, (id >> 64) as u32, (id >> 32) as u32, id as u32],
            segment: entry.place.segment,
            block: entry.place.block,
            body_bytes: entry.place.body_bytes,
            payload_blocks: entry.place.payload_blocks,
            index: entry.fragment.index,
            flags: if entry.quarantined { FLAG_QUARANTINED } else { 0 },
        }
    }

    fn fragment(&self) -> FragmentId {
        let [a, b, c, d] = self.stripe.map(u128::from);
        FragmentId { stripe: StripeId(a << 96 | b << 64 | c << 32 | d), index: self.index }
    }

    fn unpack(&self) -> IndexEntry {
        IndexEntry {
            fragment: self.fragment(),
            place: Place {
                segment: self.segment,
                block: self.block,
                body_bytes: self.body_bytes,
                payload_blocks: self.payload_blocks,
            },
            quarantined: self.flags & FLAG_QUARANTINED != 0,
        }
    }
}

/// The lower bound of the first chunk: no id is smaller.
const LOWEST: FragmentId = FragmentId { stripe: StripeId(0), index: 0 };

/// Fragment id to place, ordered by id.
pub struct Index {
    /// Chunks by a lower bound of their ids. The first one stands at [`LOWEST`] and never goes.
    chunks: BTreeMap<FragmentId, Vec<Packed>>,
    count: usize,
    quarantined: usize,
    /// Entries that all chunks together have memory for: kept as they change, because it is asked for in every turn.
    capacity: usize,
}

impl Default for Index {
    fn default() -> Self {
        Index { chunks: BTreeMap::from([(LOWEST, Vec::new())]), count: 0, quarantined: 0, capacity: 0 }
    }
}

impl Index {
    /// Returns how many fragments the index holds.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Returns how many of them are quarantined.
    pub fn quarantined(&self) -> usize {
        self.quarantined
    }

    /// Returns the bytes of memory that the index takes, the allocator's own apart.
    pub fn memory_bytes(&self) -> usize {
        let entries = self.capacity * size_of::<Packed>();
        // A B-tree node is about two thirds full: one and a half slots a chunk.
        let slot = size_of::<FragmentId>() + size_of::<Vec<Packed>>();
        entries + self.chunks.len() * slot * 3 / 2
    }

    /// Returns what is known of a fragment.
    pub fn get(&self, fragment: FragmentId) -> Option<IndexEntry> {
        let (_, chunk) = self.chunks.range(..=fragment).next_back()?;
        let at = find(chunk, fragment).ok()?;
        Some(chunk[at].unpack())
    }

    /// Puts an entry in; returns the one that it replaced.
    pub fn insert(&mut self, entry: IndexEntry) -> Option<IndexEntry> {
        let is_last = self.chunks.range((Bound::Excluded(entry.fragment), Bound::Unbounded)).next().is_none();
        let (_, chunk) =
            self.chunks.range_mut(..=entry.fragment).next_back().expect("the first chunk stands at the lowest id");
        let packed = Packed::pack(&entry);
        self.quarantined += usize::from(entry.quarantined);
        let before = chunk.capacity();
        match find(chunk, entry.fragment) {
            Ok(at) => {
                let old = std::mem::replace(&mut chunk[at], packed).unpack();
                self.quarantined -= usize::from(old.quarantined);
                return Some(old);
            }
            Err(at) if chunk.len() < CHUNK_ENTRIES_MAX => {
                insert_at(chunk, at, packed);
                self.capacity = self.capacity + chunk.capacity() - before;
            }
            Err(at) if at == chunk.len() && is_last => {
                let mut next = Vec::new();
                insert_at(&mut next, 0, packed);
                self.capacity += next.capacity();
                self.chunks.insert(entry.fragment, next);
            }
            Err(at) => {
                let mut upper = chunk.split_off(CHUNK_ENTRIES_MAX / 2);
                chunk.shrink_to(CHUNK_ENTRIES_MAX / 2 + CHUNK_GROWTH_ENTRIES);
                let bound = upper[0].fragment();
                match at.checked_sub(chunk.len()) {
                    Some(at) if at > 0 => insert_at(&mut upper, at, packed),
                    _ => insert_at(chunk, at, packed),
                }
                self.capacity = self.capacity + chunk.capacity() + upper.capacity() - before;
                self.chunks.insert(bound, upper);
            }
        }
        self.count += 1;
        None
    }

    /// Takes an entry out.
    pub fn remove(&mut self, fragment: FragmentId) -> Option<IndexEntry> {
        let (&bound, chunk) = self.chunks.range_mut(..=fragment).next_back()?;
        let at = find(chunk, fragment).ok()?;
        let old = chunk.remove(at).unpack();
        self.count -= 1;
        self.quarantined -= usize::from(old.quarantined);
        let before = chunk.capacity();
        if chunk.len() + CHUNK_GROWTH_ENTRIES * 2 <= before {
            chunk.shrink_to(chunk.len() + CHUNK_GROWTH_ENTRIES / 2);
            self.capacity = self.capacity + chunk.capacity() - before;
        }
        if chunk.len() < CHUNK_ENTRIES_MAX / 4 {
            self.merge(bound);
        }
        Some(old)
    }

    /// Joins a small chunk with the one behind it, or with the one before it where it is the last.
    fn merge(&mut self, bound: FragmentId) {
        let next = self.chunks.range((Bound::Excluded(bound), Bound::Unbounded)).next().map(|(&next, _)| next);
        let previous = self.chunks.range(..bound).next_back().map(|(&previous, _)| previous);
        let (into, from) = match (previous, next) {
            (_, Some(next)) => (bound, next),
            (Some(previous), None) => (previous, bound),
            (None, None) => return,
        };
        let total = self.chunks[&into].len() + self.chunks[&from].len();
        if total > CHUNK_ENTRIES_MAX / 2 {
            return;
        }
        let tail = self.chunks.remove(&from).expect("the chunk was found above");
        let chunk = self.chunks.get_mut(&into).expect("the chunk was found above");
        let before = chunk.capacity() + tail.capacity();
        chunk.reserve_exact(tail.len());
        chunk.extend(tail);
        self.capacity = self.capacity + chunk.capacity() - before;
    }

    /// Walks over the entries behind `after`, in id order, from the first one where it is absent.
    pub fn iter_after(&self, after: Option<FragmentId>) -> impl Iterator<Item = IndexEntry> + '_ {
        let start = after.unwrap_or(LOWEST);
        let (&bound, first) = self.chunks.range(..=start).next_back().expect("the first chunk stands at the lowest id");
        let skip = match (after, find(first, start)) {
            (None, _) => 0,
            (Some(_), Ok(at)) => at + 1,
            (Some(_), Err(at)) => at,
        };
        let rest = self.chunks.range((Bound::Excluded(bound), Bound::Unbounded)).flat_map(|(_, chunk)| chunk);
        first[skip..].iter().chain(rest).map(Packed::unpack)
    }
}

fn find(chunk: &[Packed], fragment: FragmentId) -> Result<usize, usize> {
    match chunk.last() {
        // Ids count upwards: most searches of an insert end here.
        Some(last) if last.fragment() < fragment => Err(chunk.len()),
        _ => chunk.binary_search_by(|packed| packed.fragment().cmp(&fragment)),
    }
}

fn insert_at(chunk: &mut Vec<Packed>, at: usize, packed: Packed) {
    if chunk.len() == chunk.capacity() {
        chunk.reserve_exact(CHUNK_GROWTH_ENTRIES);
    }
    chunk.insert(at, packed);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry(stripe: u128, index: u8, segment: u32) -> IndexEntry {
        IndexEntry {
            fragment: FragmentId { stripe: StripeId(stripe), index },
            place: Place { segment, block: 7, body_bytes: 99, payload_blocks: 17 },
            quarantined: segment.is_multiple_of(5),
        }
    }

    fn scrambled(number: u64) -> u128 {
        u128::from(number.wrapping_mul(0x9e37_79b9_7f4a_7c15)) << 64 | u128::from(number)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn index_agrees_with_a_map(ops in prop::collection::vec((0u8..4, 0u64..900, 0u8..3, 0u32..9), 0..3000)) {
            let mut index = Index::default();
            let mut model = BTreeMap::new();
            for (op, stripe, number, segment) in ops {
                let entry = entry(scrambled(stripe), number, segment);
                if op == 0 {
                    prop_assert_eq!(index.remove(entry.fragment), model.remove(&entry.fragment));
                } else {
                    prop_assert_eq!(index.insert(entry), model.insert(entry.fragment, entry));
                }
                prop_assert_eq!(index.get(entry.fragment), model.get(&entry.fragment).copied());
                let capacity: usize = index.chunks.values().map(Vec::capacity).sum();
                prop_assert_eq!(index.capacity, capacity, "counted as it changes");
            }
            prop_assert_eq!(index.count(), model.len());
            prop_assert_eq!(index.quarantined(), model.values().filter(|entry| entry.quarantined).count());
            prop_assert!(index.iter_after(None).eq(model.values().copied()));
            for stripe in [0, 17, 500] {
                let after = FragmentId { stripe: StripeId(scrambled(stripe)), index: 1 };
                let rest = model.range((Bound::Excluded(after), Bound::Unbounded)).map(|(_, entry)| *entry);
                prop_assert!(index.iter_after(Some(after)).eq(rest));
            }
        }
    }

    #[test]
    fn index_costs_at_most_40_bytes_a_fragment() {
        assert_eq!(size_of::<Packed>(), 28);
        let count = 200_000u64;
        let mut ascending = Index::default();
        let mut random = Index::default();
        for number in 0..count {
            ascending.insert(entry(u128::from(number) << 24, 0, 1));
            random.insert(entry(scrambled(number), 0, 1));
        }
        let each = |index: &Index| index.memory_bytes() as f64 / count as f64;
        println!("bytes a fragment: ascending {:.1}, random {:.1}", each(&ascending), each(&random));
        assert!(each(&ascending) < 30.0 && each(&random) < 40.0);
    }

    #[test]
    fn emptied_index_gives_its_memory_back() {
        let mut index = Index::default();
        for number in 0..50_000 {
            index.insert(entry(scrambled(number), 0, 1));
        }
        for number in 0..50_000 {
            index.remove(entry(scrambled(number), 0, 1).fragment);
        }
        assert_eq!(index.count(), 0);
        assert!(index.memory_bytes() < 20_000, "{}", index.memory_bytes());
    }
}
