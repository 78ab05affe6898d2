//! Plans placement groups: explicit lists of disks in distinct failure domains.
//!
//! Pure and deterministic, in integers: the same disks give the same groups everywhere. Every disk
//! gets memberships in proportion to its weight, about [`MEMBERSHIPS`] on average; a domain whose
//! weight would want more than one slot of a group gets exactly one. Among the disks that are due,
//! those are taken that have met the group's other disks least often, so that the loss of a disk
//! spreads its repair over many others.

use plinth_protocol::map::{ClusterMap, PlacementGroup, State};
use plinth_protocol::meta::ChangePlacement;
use plinth_protocol::stripe::Code;
use plinth_protocol::{DiskId, PgId, Role};
use std::collections::BTreeMap;

/// Placement groups that a disk of average weight is a member of.
pub const MEMBERSHIPS: u64 = 100;
/// Most placement groups in one plan.
pub const GROUPS_MAX: u64 = 1 << 20;
/// Domains weighed against each other for one slot.
const WINDOW: usize = 16;
/// One slot, in the fixed-point units of shares.
const SLOT: i64 = 1 << 32;

/// Why no placement can be planned.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlacementError {
    /// The code needs a failure domain for each fragment.
    #[error("code {code} needs {} failure domains, there are {domains}", code.width())]
    Domains {
        /// The code asked for.
        code: Code,
        /// Domains with usable disks.
        domains: usize,
    },
    /// The plan would be larger than [`GROUPS_MAX`].
    #[error("{0} placement groups are too many")]
    Groups(u64),
}

/// A disk that may take fragments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The disk.
    pub disk: DiskId,
    /// What fails together.
    pub domain: String,
    /// Its share, usually its bytes; 0 leaves it out.
    pub weight: u64,
}

/// Plans placement over the disks of a map that are up, on nodes that are up, with this code; closes the groups that
/// are open.
pub fn plan(map: &ClusterMap, code: Code) -> Result<ChangePlacement, PlacementError> {
    plan_over(map, candidates(map), code)
}

/// As [`plan`], over disks that the caller chose.
pub fn plan_over(map: &ClusterMap, candidates: Vec<Candidate>, code: Code) -> Result<ChangePlacement, PlacementError> {
    let candidates = with_disks_as_domains(candidates, code);
    let first = map.pgs.iter().map(|pg| pg.pg.0.saturating_add(1)).max().unwrap_or(0);
    let add = build(&candidates, code, PgId(first))?;
    let close = map.pgs.iter().filter(|pg| !pg.closed).map(|pg| pg.pg).collect();
    let code = (code != map.code).then_some(code);
    Ok(ChangePlacement { planned_on: map.epoch, add, close, code })
}

/// In a cluster of one node its disks are the failure domains.
fn with_disks_as_domains(mut candidates: Vec<Candidate>, code: Code) -> Vec<Candidate> {
    if code.width() > 1 && candidates.windows(2).all(|pair| pair[0].domain == pair[1].domain) {
        for candidate in &mut candidates {
            candidate.domain = candidate.disk.to_string();
        }
    }
    candidates
}

/// Returns the disks of a map that may take new stripes.
pub fn candidates(map: &ClusterMap) -> Vec<Candidate> {
    let usable = map.disks.iter().filter(|disk| disk.state == State::Up);
    usable
        .filter_map(|disk| {
            let node = map.node(disk.node)?;
            let serves = node.state == State::Up && node.roles.contains(&Role::Storage);
            serves.then(|| Candidate { disk: disk.disk, domain: node.domain.clone(), weight: disk.size_bytes })
        })
        .collect()
}

/// Builds placement groups numbered from `first` over the candidates.
pub fn build(candidates: &[Candidate], code: Code, first: PgId) -> Result<Vec<PlacementGroup>, PlacementError> {
    let mut planner = Planner::new(candidates, code)?;
    let disks = planner.disks.len() as u64;
    let groups = (MEMBERSHIPS * disks).div_ceil(code.width() as u64);
    if groups > GROUPS_MAX || u64::from(first.0) + groups > u64::from(u32::MAX) {
        return Err(PlacementError::Groups(groups));
    }
    Ok((0..groups)
        .map(|number| PlacementGroup {
            pg: PgId(first.0 + number as u32),
            generation: 1,
            code,
            disks: planner.next_group(number),
            closed: false,
        })
        .collect())
}

struct PlannedDisk {
    disk: DiskId,
    /// Slots due per group, in units of [`SLOT`].
    share: i64,
    /// Slots due and not given yet.
    due: i64,
    /// How often this disk met others, by their number.
    met: BTreeMap<usize, u32>,
}

struct Domain {
    disks: Vec<usize>,
    share: i64,
    due: i64,
}

struct Planner {
    width: usize,
    disks: Vec<PlannedDisk>,
    domains: Vec<Domain>,
}

impl Planner {
    fn new(candidates: &[Candidate], code: Code) -> Result<Self, PlacementError> {
        let mut by_domain: BTreeMap<&str, BTreeMap<DiskId, u64>> = BTreeMap::new();
        for candidate in candidates.iter().filter(|candidate| candidate.weight > 0) {
            by_domain.entry(&candidate.domain).or_default().insert(candidate.disk, candidate.weight);
        }
        let width = code.width();
        if by_domain.len() < width {
            return Err(PlacementError::Domains { code, domains: by_domain.len() });
        }
        let weights: Vec<u64> =
            by_domain.values().map(|disks| disks.values().fold(0, |sum: u64, own| sum.saturating_add(*own))).collect();
        let shares = domain_shares(&weights, width);
        let mut planner = Planner { width, disks: Vec::new(), domains: Vec::new() };
        for ((members, weight), share) in by_domain.into_values().zip(weights).zip(shares) {
            let start = planner.disks.len();
            for (disk, own) in members {
                let share = (share as i128 * own as i128 / weight.max(1) as i128) as i64;
                planner.disks.push(PlannedDisk { disk, share, due: 0, met: BTreeMap::new() });
            }
            planner.domains.push(Domain { disks: (start..planner.disks.len()).collect(), share, due: 0 });
        }
        Ok(planner)
    }

    fn next_group(&mut self, number: u64) -> Vec<DiskId> {
        for domain in &mut self.domains {
            domain.due += domain.share;
        }
        for disk in &mut self.disks {
            disk.due += disk.share;
        }
        let mut chosen: Vec<usize> = Vec::with_capacity(self.width);
        let mut taken = vec![false; self.domains.len()];
        for slot in 0..self.width {
            let (domain, disk) = self.choose(&chosen, &taken, number, slot);
            taken[domain] = true;
            self.domains[domain].due -= SLOT;
            self.disks[disk].due -= SLOT;
            chosen.push(disk);
        }
        for &disk in &chosen {
            for &other in chosen.iter().filter(|other| **other != disk) {
                *self.disks[disk].met.entry(other).or_default() += 1;
            }
        }
        // Domains that are in every group come first above: turn the list, so that no slot is theirs alone.
        chosen.rotate_left(number as usize % self.width);
        chosen.into_iter().map(|disk| self.disks[disk].disk).collect()
    }

    /// Picks the next slot's disk: of the domains most due, the disk that met the chosen ones least.
    fn choose(&self, chosen: &[usize], taken: &[bool], group: u64, slot: usize) -> (usize, usize) {
        // A domain that is due a slot of every group can't catch up later.
        let full = (0..self.domains.len()).find(|domain| !taken[*domain] && self.domains[*domain].share == SLOT);
        if let Some(domain) = full {
            return (domain, self.most_due(domain, group));
        }
        let free = (0..self.domains.len()).filter(|domain| !taken[*domain]);
        let mut due: Vec<(i64, u64, usize)> =
            free.map(|domain| (-self.domains[domain].due, mix(group, slot, domain), domain)).collect();
        due.sort_unstable();
        let most = due[0].0;
        // A domain may wait for another's sake, but never for more than half a slot.
        let window = due.into_iter().take(WINDOW).take_while(|(owed, _, _)| owed - most <= SLOT / 2);
        window
            .map(|(_, chance, domain)| {
                let disk = self.most_due(domain, group);
                let met: u32 = chosen.iter().map(|other| self.disks[disk].met.get(other).copied().unwrap_or(0)).sum();
                (met, chance, domain, disk)
            })
            .min()
            .map(|(_, _, domain, disk)| (domain, disk))
            .expect("there are at least as many domains as slots")
    }

    fn most_due(&self, domain: usize, group: u64) -> usize {
        let disks = self.domains[domain].disks.iter().copied();
        disks
            .min_by_key(|disk| (-self.disks[*disk].due, mix(group, domain, *disk)))
            .expect("a domain is made of its disks")
    }
}

/// Returns each domain's slots per group, in units of [`SLOT`]: in proportion to weight, at most one.
fn domain_shares(weights: &[u64], width: usize) -> Vec<i64> {
    let mut shares = vec![0i64; weights.len()];
    let mut full = vec![false; weights.len()];
    loop {
        let left: u128 = weights.iter().zip(&full).filter(|(_, full)| !**full).map(|(w, _)| u128::from(*w)).sum();
        let slots = (width - full.iter().filter(|full| **full).count()) as u128;
        let mut capped = false;
        for (domain, weight) in weights.iter().enumerate() {
            if full[domain] {
                continue;
            }
            let share = (u128::from(*weight) * slots * SLOT as u128 / left.max(1)) as i64;
            if share >= SLOT {
                (shares[domain], full[domain], capped) = (SLOT, true, true);
            } else {
                shares[domain] = share;
            }
        }
        if !capped {
            return shares;
        }
    }
}

/// Mixes three numbers into one (SplitMix64's finish): breaks ties without favouring anyone.
fn mix(a: u64, b: usize, c: usize) -> u64 {
    let mut z = a.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (b as u64).wrapping_mul(0xbf58_476d_1ce4_e5b9) ^ (c as u64);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn disks(domains: &[&[u64]]) -> Vec<Candidate> {
        let mut candidates = Vec::new();
        for (number, weights) in domains.iter().enumerate() {
            for &weight in *weights {
                let disk = DiskId(candidates.len() as u128 + 1);
                candidates.push(Candidate { disk, domain: format!("n{number}"), weight });
            }
        }
        candidates
    }

    fn memberships(groups: &[PlacementGroup]) -> BTreeMap<DiskId, u64> {
        let mut counts = BTreeMap::new();
        for disk in groups.iter().flat_map(|group| &group.disks) {
            *counts.entry(*disk).or_default() += 1;
        }
        counts
    }

    fn assert_distinct_domains(candidates: &[Candidate], groups: &[PlacementGroup]) {
        let domain: BTreeMap<DiskId, &str> = candidates.iter().map(|c| (c.disk, c.domain.as_str())).collect();
        for group in groups {
            let domains: BTreeSet<&str> = group.disks.iter().map(|disk| domain[disk]).collect();
            assert_eq!(domains.len(), group.code.width(), "{group:?}");
        }
    }

    #[test]
    fn demo_of_six_disks_gets_even_groups() {
        let candidates = disks(&[&[1], &[1], &[1], &[1], &[1], &[1]]);
        let groups = build(&candidates, Code::new(3, 2), PgId(0)).unwrap();
        assert_eq!(groups.len(), 120);
        assert!(memberships(&groups).values().all(|count| *count == 100));
        assert_distinct_domains(&candidates, &groups);
        let left_out: BTreeSet<Vec<DiskId>> = groups
            .iter()
            .map(|group| {
                let mut disks = group.disks.clone();
                disks.sort();
                disks
            })
            .collect();
        assert_eq!(left_out.len(), 6, "every disk is left out by some groups");
    }

    #[test]
    fn overlap_of_two_disks_is_bounded() {
        let weights: Vec<u64> = vec![1; 4];
        let nodes: Vec<&[u64]> = vec![&weights; 20];
        let candidates = disks(&nodes);
        let groups = build(&candidates, Code::new(8, 3), PgId(0)).unwrap();
        let mut pairs: BTreeMap<(DiskId, DiskId), u32> = BTreeMap::new();
        for group in &groups {
            for one in &group.disks {
                for other in group.disks.iter().filter(|other| *other > one) {
                    *pairs.entry((*one, *other)).or_default() += 1;
                }
            }
        }
        // 80 disks, 100 memberships of 10 neighbours each, 76 possible partners: 13 on average.
        assert_eq!(pairs.len(), 80 * 76 / 2, "every possible pair meets");
        assert!(pairs.values().all(|met| *met <= 26), "{:?}", pairs.values().max());
    }

    #[test]
    fn heavy_domain_gets_one_slot_of_every_group() {
        let candidates = disks(&[&[1000], &[10], &[10], &[10], &[10], &[10]]);
        let groups = build(&candidates, Code::new(2, 2), PgId(5)).unwrap();
        assert_eq!(groups[0].pg, PgId(5));
        assert!(groups.iter().all(|group| group.disks.contains(&DiskId(1))));
        assert_distinct_domains(&candidates, &groups);
    }

    #[test]
    fn the_disks_of_an_only_node_keep_their_code() {
        use plinth_protocol::map::{DiskRecord, NodeRecord};
        use plinth_protocol::{ClusterId, Epoch, Incarnation, NodeId};
        let node = NodeRecord {
            node: NodeId(1),
            name: "n1".into(),
            roles: vec![Role::Storage],
            address: String::new(),
            incarnation: Incarnation(1),
            state: State::Up,
            domain: "n1".into(),
            version: None,
            public_key: None,
        };
        let disk = |number: u128| DiskRecord {
            disk: DiskId(number),
            node: NodeId(1),
            incarnation: Incarnation(1),
            state: State::Up,
            name: format!("n1/d{number}"),
            size_bytes: 1 << 30,
            used_bytes: None,
            quarantined: None,
            write_stop_bytes: None,
        };
        let map = ClusterMap {
            cluster: ClusterId(1),
            epoch: Epoch(1),
            nodes: vec![node],
            disks: (0..3).map(disk).collect(),
            pgs: vec![],
            shards: vec![],
            code: Code::new(1, 2),
            fragment_bytes_max: 1 << 20,
            name: "one".into(),
            voters: vec![NodeId(1)],
            feature_level: 1,
            denied_nodes: vec![],
            revoked_certificates: vec![],
        };
        let plan = plan(&map, Code::new(1, 2)).unwrap();
        assert_eq!((plan.code, plan.add[0].code, plan.add[0].disks.len()), (None, Code::new(1, 2), 3));
    }

    #[test]
    fn too_few_domains_are_refused() {
        let candidates = disks(&[&[1, 1], &[1], &[0]]);
        let refused = build(&candidates, Code::new(2, 1), PgId(0));
        assert_eq!(refused, Err(PlacementError::Domains { code: Code::new(2, 1), domains: 2 }));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn domains_are_distinct_and_balance_holds(
            nodes in proptest::collection::vec(proptest::collection::vec(500u64..2_000, 1..5), 5..14),
            k in 1u8..4, m in 0u8..3,
        ) {
            let nodes: Vec<&[u64]> = nodes.iter().map(Vec::as_slice).collect();
            let candidates = disks(&nodes);
            let code = Code::new(k, m);
            let groups = build(&candidates, code, PgId(0)).unwrap();
            prop_assert_eq!(&groups, &build(&candidates, code, PgId(0)).unwrap());
            assert_distinct_domains(&candidates, &groups);
            let planner = Planner::new(&candidates, code).unwrap();
            let counts = memberships(&groups);
            for disk in &planner.disks {
                let wanted = disk.share as f64 * groups.len() as f64 / SLOT as f64;
                let got = counts.get(&disk.disk).copied().unwrap_or(0) as f64;
                prop_assert!((got - wanted).abs() <= (wanted * 0.1).max(2.0), "{} of {}", got, wanted);
            }
        }
    }
}
