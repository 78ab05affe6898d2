//! Decides what an operator's order for the placement groups comes to: nothing, a new plan, or a refusal.
//!
//! Placement is never made anew without need, and never with less redundancy unasked:
//!
//! - Disks that are down, or on nodes that are down, keep their place: they are expected back, and writers avoid
//!   their groups meanwhile. Only an order that says so leaves them out.
//! - The code stays. It follows the table of [`Code::for_domains`] only where it followed it before, failure
//!   domains were added, and the code of the table bears at least as many losses over at least as many domains.
//! - Where the open groups are over these disks with this code already, nothing changes.

use super::placement::{Candidate, PlacementError, plan_over};
use plinth_protocol::map::{ClusterMap, DiskRecord, NodeRecord, PlacementGroup, State};
use plinth_protocol::meta::{ChangePlacement, LayoutOrder, LayoutOutcome};
use plinth_protocol::stripe::{CODE_WIDTH_MAX, Code, MATRIX_VANDERMONDE};
use plinth_protocol::{DiskId, Role};
use std::collections::{BTreeMap, BTreeSet};

/// Share of a disk's memberships, as one part in so many, by which groups may be off balance before they are planned
/// anew.
const IMBALANCE_PARTS: u64 = 10;
/// Memberships by which they may be off in any case.
const IMBALANCE_MIN: u64 = 2;

/// Why an order is refused; each says what would allow it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// The code asked for is none.
    #[error("{0} is not a code that this version knows")]
    Code(Code),
    /// The code bears fewer losses than the present one.
    #[error(
        "code {to} bears {} lost failure domains, the present {from} bears {}: to allow it for new objects, \
         add --less-redundancy", to.m, from.m
    )]
    LessRedundancy {
        /// The present code.
        from: Code,
        /// The one asked for.
        to: Code,
    },
    /// Too few failure domains.
    #[error(
        "code {code} needs {} failure domains and there are {domains}{}: bring the others back, or write new objects \
         with another code: {remedy}", code.width(), without(left_out)
    )]
    Domains {
        /// The code.
        code: Code,
        /// Domains with disks that may be used.
        domains: usize,
        /// Disks that were left out.
        left_out: Vec<String>,
        /// The command that would be carried out.
        remedy: String,
    },
    /// The plan would be too large.
    #[error("{0} placement groups are too many")]
    Groups(u64),
}

fn without(left_out: &[String]) -> String {
    match left_out {
        [] => String::new(),
        names => format!(" without {}", names.join(", ")),
    }
}

/// Decides an order against a map: the change to commit, where there is one, and what to tell.
pub fn arrange(map: &ClusterMap, order: &LayoutOrder) -> Result<(Option<ChangePlacement>, LayoutOutcome), LayoutError> {
    let seats = seats(map, order.skip_down);
    let candidates = || seats.taken.iter().map(|(disk, node)| candidate(disk, node)).collect::<Vec<_>>();
    let code = match order.code {
        Some(code) => checked(code)?,
        None => default_code(map, &candidates()),
    };
    if code.m < map.code.m && !order.less_redundancy {
        return Err(LayoutError::LessRedundancy { from: map.code, to: code });
    }
    let change = plan_over(map, candidates(), code).map_err(|error| refusal(map, order, &seats, error))?;
    let open: Vec<&PlacementGroup> = map.pgs.iter().filter(|pg| !pg.closed).collect();
    let changed = !is_settled(&open, &change, code);
    let names = |disks: &[(&DiskRecord, &NodeRecord)]| disks.iter().map(|(disk, _)| disk.name.clone()).collect();
    let outcome = LayoutOutcome {
        changed,
        added: if changed { change.add.len() as u64 } else { 0 },
        closed: if changed { change.close.len() as u64 } else { 0 },
        code,
        code_before: map.code,
        disks: names(&seats.taken),
        kept_down: seats
            .taken
            .iter()
            .filter(|(disk, node)| !serves(disk, node))
            .map(|seat| seat.0.name.clone())
            .collect(),
        left_out: names(&seats.left_out),
        dry_run: order.dry_run,
    };
    Ok(((changed && !order.dry_run).then_some(change), outcome))
}

/// The disks of a map, each with its node: those that are planned over, and the others.
struct Seats<'a> {
    taken: Vec<(&'a DiskRecord, &'a NodeRecord)>,
    left_out: Vec<(&'a DiskRecord, &'a NodeRecord)>,
}

fn seats(map: &ClusterMap, skip_down: bool) -> Seats<'_> {
    let mut seats = Seats { taken: Vec::new(), left_out: Vec::new() };
    for disk in &map.disks {
        let Some(node) = map.node(disk.node) else { continue };
        // What an operator or a failure has given up takes nothing new; what is silent is expected back.
        let given_up = |state| matches!(state, State::Failed | State::Draining | State::Retired);
        let is_left_out = given_up(disk.state)
            || given_up(node.state)
            || !node.roles.contains(&Role::Storage)
            || (skip_down && !serves(disk, node));
        match (is_left_out, disk.state == State::Retired || node.state == State::Retired) {
            (false, _) => seats.taken.push((disk, node)),
            (true, false) => seats.left_out.push((disk, node)),
            // Gone for good: nobody needs to hear of it.
            (true, true) => {}
        }
    }
    seats
}

fn serves(disk: &DiskRecord, node: &NodeRecord) -> bool {
    disk.state == State::Up && node.state == State::Up
}

fn candidate(disk: &DiskRecord, node: &NodeRecord) -> Candidate {
    Candidate { disk: disk.disk, domain: node.domain.clone(), weight: disk.size_bytes }
}

fn checked(code: Code) -> Result<Code, LayoutError> {
    let is_known = code.matrix == MATRIX_VANDERMONDE && code.k > 0 && code.width() <= CODE_WIDTH_MAX;
    if is_known { Ok(code) } else { Err(LayoutError::Code(code)) }
}

/// Counts what the table of codes counts: failure domains, or the disks of an only one.
fn count_domains<'a>(domains: impl Iterator<Item = &'a str>) -> usize {
    let (mut distinct, mut disks) = (BTreeSet::new(), 0);
    for domain in domains {
        distinct.insert(domain);
        disks += 1;
    }
    if distinct.len() == 1 { disks } else { distinct.len() }
}

fn default_code(map: &ClusterMap, candidates: &[Candidate]) -> Code {
    let open: BTreeSet<DiskId> = map.pgs.iter().filter(|pg| !pg.closed).flat_map(|pg| pg.disks.clone()).collect();
    let node_of = |disk: &DiskId| map.disk(*disk).and_then(|record| map.node(record.node));
    let before = count_domains(open.iter().filter_map(node_of).map(|node| node.domain.as_str()));
    let table = Code::for_domains(count_domains(candidates.iter().map(|candidate| candidate.domain.as_str())));
    // A code that was chosen by hand is not the cluster's to change.
    let follows = open.is_empty() || map.code == Code::for_domains(before);
    if follows && table.m >= map.code.m && table.width() >= map.code.width() { table } else { map.code }
}

fn refusal(map: &ClusterMap, order: &LayoutOrder, seats: &Seats<'_>, error: PlacementError) -> LayoutError {
    match error {
        PlacementError::Groups(groups) => LayoutError::Groups(groups),
        PlacementError::Domains { code, domains } => {
            let other = Code::for_domains(domains);
            let skip = if order.skip_down { " --skip-down" } else { "" };
            let less = if other.m < map.code.m { " --less-redundancy" } else { "" };
            let remedy = format!("plinth layout apply{skip} --code {other}{less}");
            let left_out = seats.left_out.iter().map(|(disk, _)| disk.name.clone()).collect();
            LayoutError::Domains { code, domains, left_out, remedy }
        }
    }
}

/// Whether the open groups are what the plan would make anew: the same disks, each with about as many memberships.
fn is_settled(open: &[&PlacementGroup], plan: &ChangePlacement, code: Code) -> bool {
    let count = |groups: &mut dyn Iterator<Item = &PlacementGroup>| {
        let mut counts: BTreeMap<DiskId, u64> = BTreeMap::new();
        for disk in groups.flat_map(|pg| &pg.disks) {
            *counts.entry(*disk).or_default() += 1;
        }
        counts
    };
    let (now, wanted) = (count(&mut open.iter().copied()), count(&mut plan.add.iter()));
    let is_near = |(disk, wanted): (&DiskId, &u64)| {
        now.get(disk).is_some_and(|now| now.abs_diff(*wanted) <= (wanted / IMBALANCE_PARTS).max(IMBALANCE_MIN))
    };
    !open.is_empty() && open.iter().all(|pg| pg.code == code) && now.len() == wanted.len() && wanted.iter().all(is_near)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::placement;
    use plinth_protocol::{ClusterId, Epoch, Incarnation, NodeId};

    fn node(id: u64) -> NodeRecord {
        NodeRecord {
            node: NodeId(id),
            name: format!("s{id}"),
            roles: vec![Role::Storage],
            address: format!("10.0.0.{id}:7000"),
            incarnation: Incarnation(1),
            state: State::Up,
            domain: format!("s{id}"),
            version: None,
            public_key: None,
        }
    }

    fn disk(id: u64, number: u64) -> DiskRecord {
        DiskRecord {
            disk: DiskId(u128::from(id) << 8 | u128::from(number)),
            node: NodeId(id),
            incarnation: Incarnation(1),
            state: State::Up,
            name: format!("s{id}/d{number}"),
            size_bytes: 1 << 40,
            used_bytes: None,
            quarantined: None,
            write_stop_bytes: None,
        }
    }

    /// As `plinth init` lays it out: `nodes` storage nodes of `disks` disks each.
    fn founded(nodes: u64, disks: u64, code: Code) -> ClusterMap {
        let mut map = ClusterMap {
            cluster: ClusterId(1),
            epoch: Epoch(1),
            nodes: (1..=nodes).map(node).collect(),
            disks: (1..=nodes).flat_map(|id| (0..disks).map(move |number| disk(id, number))).collect(),
            pgs: vec![],
            shards: vec![],
            code,
            fragment_bytes_max: 1 << 20,
            name: "test".into(),
            voters: vec![NodeId(1)],
            feature_level: 1,
            denied_nodes: vec![],
            revoked_certificates: vec![],
        };
        map.pgs = placement::plan(&map, code).unwrap().add;
        map
    }

    fn by_default() -> LayoutOrder {
        LayoutOrder { code: None, skip_down: false, less_redundancy: false, dry_run: false }
    }

    fn told(map: &ClusterMap, order: &LayoutOrder) -> (bool, String, Vec<String>, Vec<String>) {
        let (change, outcome) = arrange(map, order).unwrap();
        assert_eq!(change.is_some(), outcome.changed && !order.dry_run);
        (outcome.changed, outcome.code.to_string(), outcome.kept_down, outcome.left_out)
    }

    fn apply(map: &mut ClusterMap, order: &LayoutOrder) {
        let change = arrange(map, order).unwrap().0.expect("a change");
        map.pgs.iter_mut().filter(|pg| change.close.contains(&pg.pg)).for_each(|pg| pg.closed = true);
        map.pgs.extend(change.add);
        map.code = change.code.unwrap_or(map.code);
    }

    #[test]
    fn an_unchanged_cluster_is_left_alone_whatever_its_code() {
        for (nodes, disks, code) in
            [(5, 1, "3+2"), (6, 1, "2+1"), (6, 4, "3+2"), (1, 1, "1+0"), (1, 4, "2+2"), (12, 2, "8+3")]
        {
            let mut map = founded(nodes, disks, code.parse().unwrap());
            assert_eq!(told(&map, &by_default()), (false, code.into(), vec![], vec![]), "{nodes} × {disks}");
            // Sizes as the nodes report them differ a little from those at the founding.
            map.disks.iter_mut().enumerate().for_each(|(at, disk)| disk.size_bytes -= (at as u64 % 7) << 30);
            assert!(!told(&map, &by_default()).0, "{nodes} × {disks} with sizes as measured");
        }
    }

    #[test]
    fn a_node_that_is_down_changes_neither_the_code_nor_the_plan() {
        for state in [State::Suspect, State::Down] {
            let mut map = founded(5, 1, Code::new(3, 2));
            map.nodes[4].state = state;
            assert_eq!(told(&map, &by_default()), (false, "3+2".into(), vec!["s5/d0".into()], vec![]));
        }
        // The same for a disk whose folder is not mounted.
        let mut map = founded(6, 2, Code::new(3, 2));
        map.disks[3].state = State::Down;
        assert_eq!(told(&map, &by_default()), (false, "3+2".into(), vec!["s2/d1".into()], vec![]));
        // Growth beside it goes on.
        map.nodes.push(node(7));
        map.disks.push(disk(7, 0));
        assert_eq!(told(&map, &by_default()), (true, "4+2".into(), vec!["s2/d1".into()], vec![]));
    }

    #[test]
    fn fewer_domains_are_used_only_when_the_order_names_the_code() {
        let mut map = founded(5, 1, Code::new(3, 2));
        map.nodes[4].state = State::Down;
        let skip = LayoutOrder { skip_down: true, ..by_default() };
        let error = arrange(&map, &skip).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("needs 5 failure domains and there are 4 without s5/d0"), "{text}");
        assert!(text.ends_with("plinth layout apply --skip-down --code 2+2"), "{text}");
        let named = LayoutOrder { code: Some(Code::new(2, 2)), ..skip.clone() };
        assert_eq!(told(&map, &named), (true, "2+2".into(), vec![], vec!["s5/d0".into()]));
        // Two gone: what is left bears one loss less, which takes one more word.
        map.nodes[3].state = State::Down;
        map.nodes[2].state = State::Down;
        let text = arrange(&map, &skip).unwrap_err().to_string();
        assert!(text.ends_with("plinth layout apply --skip-down --code 1+1 --less-redundancy"), "{text}");
        let less = LayoutOrder { code: Some(Code::new(1, 1)), ..skip };
        assert!(matches!(arrange(&map, &less), Err(LayoutError::LessRedundancy { .. })));
        assert!(told(&map, &LayoutOrder { less_redundancy: true, ..less }).0);
    }

    #[test]
    fn a_failed_disk_is_left_out_without_asking_but_not_at_the_cost_of_the_code() {
        let mut map = founded(6, 2, Code::new(3, 2));
        map.disks[0].state = State::Failed;
        assert_eq!(told(&map, &by_default()), (true, "3+2".into(), vec![], vec!["s1/d0".into()]));
        apply(&mut map, &by_default());
        assert!(!told(&map, &by_default()).0, "once is enough");
        let mut narrow = founded(5, 1, Code::new(3, 2));
        narrow.disks[0].state = State::Failed;
        assert!(matches!(arrange(&narrow, &by_default()), Err(LayoutError::Domains { domains: 4, .. })));
    }

    #[test]
    fn added_nodes_take_the_cluster_up_the_table_and_a_code_of_ones_own_stays() {
        let mut map = founded(1, 1, Code::new(1, 0));
        for (nodes, code) in [(3, "1+2"), (4, "2+2"), (6, "3+2"), (7, "4+2"), (12, "8+3")] {
            for id in map.nodes.len() as u64 + 1..=nodes {
                map.nodes.push(node(id));
                map.disks.push(disk(id, 0));
            }
            assert_eq!(told(&map, &by_default()), (true, code.into(), vec![], vec![]), "{nodes} nodes");
            apply(&mut map, &by_default());
            assert!(!told(&map, &by_default()).0);
        }
        let mut own = founded(6, 1, Code::new(2, 1));
        own.nodes.push(node(7));
        own.disks.push(disk(7, 0));
        assert_eq!(told(&own, &by_default()), (true, "2+1".into(), vec![], vec![]));
    }

    #[test]
    fn a_dry_run_tells_and_changes_nothing() {
        let mut map = founded(3, 1, Code::new(1, 2));
        map.nodes.push(node(4));
        map.disks.push(disk(4, 0));
        let (change, outcome) = arrange(&map, &LayoutOrder { dry_run: true, ..by_default() }).unwrap();
        assert!(change.is_none() && outcome.changed && outcome.added > 0 && outcome.dry_run);
    }

    #[test]
    fn a_code_that_does_not_exist_is_refused() {
        let map = founded(6, 1, Code::new(3, 2));
        for code in [Code { matrix: 9, k: 3, m: 2 }, Code::new(0, 2), Code::new(200, 100)] {
            let order = LayoutOrder { code: Some(code), ..by_default() };
            assert_eq!(arrange(&map, &order).unwrap_err(), LayoutError::Code(code));
        }
    }
}
