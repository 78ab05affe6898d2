//! Nodes by the names that tables show: `m3` where the code knows `n4`.

use plinth_protocol::map::ClusterMap;
use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock};

/// The names of the cluster's nodes, as this process last learned them.
static NAMES: RwLock<BTreeMap<u64, String>> = RwLock::new(BTreeMap::new());

/// Takes over the names of a map's nodes.
pub fn learn(map: &ClusterMap) {
    for node in &map.nodes {
        learn_one(node.node.0, &node.name);
    }
}

/// Takes over one node's name.
pub fn learn_one(node: u64, name: &str) {
    let knows = |names: &BTreeMap<u64, String>| names.get(&node).is_some_and(|known| known == name);
    if !knows(&NAMES.read().unwrap_or_else(PoisonError::into_inner)) {
        NAMES.write().unwrap_or_else(PoisonError::into_inner).insert(node, name.to_string());
    }
}

/// Writes the names of nodes in the place of their ids, where they are known.
pub fn in_place_of_ids(text: String) -> String {
    let names = NAMES.read().unwrap_or_else(PoisonError::into_inner);
    if names.is_empty() || !text.contains('n') { text } else { replace(&text, &names) }
}

fn replace(text: &str, names: &BTreeMap<u64, String>) -> String {
    let is_part_of_a_word = |sign: char| sign.is_alphanumeric() || matches!(sign, '_' | '-' | '.' | '/' | '@');
    let (mut out, mut rest, mut before) = (String::with_capacity(text.len()), text, None::<char>);
    while let Some(at) = rest.find('n') {
        let (head, tail) = rest.split_at(at);
        out.push_str(head);
        before = head.chars().next_back().or(before);
        let digits = tail[1..].bytes().take_while(u8::is_ascii_digit).count();
        let after = tail[1 + digits..].chars();
        // A full stop at the end of a sentence belongs to no host name.
        let mut after = after.take(2);
        let ends = match (after.next(), after.next()) {
            (Some('.'), None | Some(' ')) | (None, _) => true,
            (Some(next), _) => !is_part_of_a_word(next),
        };
        let name = (digits > 0 && ends && !before.is_some_and(is_part_of_a_word))
            .then(|| tail[1..1 + digits].parse().ok().and_then(|id: u64| names.get(&id)))
            .flatten();
        match name {
            Some(name) => out.push_str(name),
            None => out.push_str(&tail[..1 + digits]),
        }
        before = tail[..1 + digits].chars().next_back();
        rest = &tail[1 + digits..];
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_become_names_and_nothing_else_does() {
        let names = BTreeMap::from([(4, "m3".to_string()), (12, "s1".to_string())]);
        for (text, expected) in [
            ("n4", "m3"),
            ("voter n4 refused: boot 3 is not newer than n12.", "voter m3 refused: boot 3 is not newer than s1."),
            (
                "cannot connect to n4 at 127.0.0.1:9104: n5 answered",
                "cannot connect to m3 at 127.0.0.1:9104: n5 answered",
            ),
            ("(n4,n12)", "(m3,s1)"),
            (
                "n4.example:7000 and host-n4 and n4x and xn4 and 1@n4",
                "n4.example:7000 and host-n4 and n4x and xn4 and 1@n4",
            ),
            ("none of n of nn4", "none of n of nn4"),
            ("né n4 ü", "né m3 ü"),
            ("n99999999999999999999999", "n99999999999999999999999"),
        ] {
            assert_eq!(replace(text, &names), expected);
        }
    }
}
