//! `plinth config check` against the cluster: does the registry know the node as its configuration describes it?

use crate::config::{Config, parse_meta_peer};
use crate::identity::Secrets;
use crate::node::{client_config, wire_link};
use crate::voters::Voters;
use plinth_client::Client;
use plinth_protocol::map::{ClusterMap, NodeRecord, State};
use plinth_protocol::{Incarnation, NodeId, Role};
use plinth_transport::Credentials;
use std::time::Duration;

/// How long the cluster may take to answer: a check must not hang where there is none.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(5);

/// What came of comparing a configuration with the registry.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    /// What keeps the node from working as configured.
    pub problems: Vec<String>,
    /// What an operator should know.
    pub notes: Vec<String>,
}

/// Compares a node's configuration with the cluster's registry; an `Err` says why it could not be asked.
pub async fn compare(config: &Config, secrets: &Secrets) -> Result<Comparison, String> {
    let credentials = Credentials::new(&secrets.certificate, &secrets.ca_pem, secrets.identity.incarnation)
        .map_err(|error| error.to_string())?;
    let peers = Voters::of_node(&config.node.data).bootstrap(&config.cluster.meta);
    let link = wire_link(std::sync::Arc::new(credentials), None, peers.iter().chain(&config.cluster.meta));
    let mut settings = client_config(secrets.identity.node, &peers, None);
    settings.connect_timeout = CONNECT_TIME_MAX;
    let client = Client::connect(settings, std::sync::Arc::new(link)).await.map_err(|failure| failure.text)?;
    Ok(judge(&client.map(), config, secrets.identity.node))
}

/// Compares a configuration with the registry's map.
fn judge(map: &ClusterMap, config: &Config, own: NodeId) -> Comparison {
    let mut found = Comparison::default();
    let Some(known) = map.node(own).filter(|node| node.state != State::Retired) else {
        found
            .problems
            .push(format!("the cluster {} does not know node {own}: it was never admitted, or is retired", map.name));
        return found;
    };
    judge_identity(known, config, &mut found);
    judge_address(map, known, config, &mut found);
    judge_peers(map, config, &mut found);
    found
}

fn judge_identity(known: &NodeRecord, config: &Config, found: &mut Comparison) {
    if known.name != config.node.name {
        let text = format!("node.name is \"{}\", the registry has \"{}\"", config.node.name, known.name);
        found.problems.push(text);
    }
    if known.incarnation != Incarnation(config.node.incarnation) {
        let (here, there) = (config.node.incarnation, known.incarnation.0);
        found.problems.push(format!("node.incarnation is {here}, the registry has {there}"));
    }
    for role in config.node.roles.iter().map(|&role| Role::from(role)) {
        if !known.roles.contains(&role) {
            found.problems.push(format!("node.roles has {role}, which the registry does not give this node"));
        }
    }
}

fn judge_address(map: &ClusterMap, known: &NodeRecord, config: &Config, found: &mut Comparison) {
    let Some(address) = config.advertised() else {
        let listen = &config.transport.listen;
        found.notes.push(format!(
            "transport.listen {listen} is no address that others can dial and transport.advertise is not set: the \
             registry keeps {}",
            known.address
        ));
        return;
    };
    if let Some(other) = address_holder(map, &address, Some(known.node)) {
        found.problems.push(format!("{address} is the address of {} in the registry", other.name));
    }
    if known.address != address {
        let text = format!("the registry has {}; the node announces {address} when it starts", known.address);
        found.notes.push(text);
    }
}

fn judge_peers(map: &ClusterMap, config: &Config, found: &mut Comparison) {
    let peers: Vec<(NodeId, String)> = config
        .cluster
        .meta
        .iter()
        .filter_map(|line| parse_meta_peer(line))
        .map(|(node, address)| (NodeId(node), address))
        .collect();
    for (node, address) in &peers {
        match map.node(*node).filter(|_| map.voters.contains(node)) {
            Some(voter) if voter.address == *address => {}
            Some(voter) => found
                .notes
                .push(format!("cluster.meta has {} at {address}, the registry at {}", voter.name, voter.address)),
            None => found.notes.push(format!("cluster.meta names {node} at {address}, which is no voter")),
        }
    }
}

/// Returns the node that has an address, where it is another than the one that asks.
pub fn address_holder<'a>(map: &'a ClusterMap, address: &str, own: Option<NodeId>) -> Option<&'a NodeRecord> {
    map.nodes.iter().find(|node| node.address == address && Some(node.node) != own && node.state != State::Retired)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::fake;

    fn config(change: impl FnOnce(&mut Config)) -> Config {
        let mut config: Config = toml::from_str(&crate::config::default_text()).unwrap();
        config.node.name = "m1".into();
        config.node.roles = vec![crate::config::RoleName::Meta];
        config.transport.advertise = None;
        config.transport.listen = "127.0.0.1:1".into();
        config.cluster.meta = vec!["9@127.0.0.1:1".into()];
        change(&mut config);
        config
    }

    fn map() -> ClusterMap {
        let mut map = fake::map(vec![]);
        let other =
            NodeRecord { node: NodeId(5), name: "m2".into(), address: "127.0.0.1:5".into(), ..map.nodes[0].clone() };
        map.nodes.push(other);
        map
    }

    #[test]
    fn a_configuration_that_the_registry_agrees_with_is_sound() {
        assert_eq!(judge(&map(), &config(|_| ()), fake::VOTER), Comparison::default());
    }

    #[test]
    fn each_difference_from_the_registry_is_told() {
        type Change = fn(&mut Config);
        let problems: [(Change, &str); 4] = [
            (|config| config.node.name = "m7".into(), "the registry has \"m1\""),
            (|config| config.node.incarnation = 2, "the registry has 1"),
            (|config| config.node.roles.push(crate::config::RoleName::Storage), "node.roles has storage"),
            (|config| config.transport.listen = "127.0.0.1:5".into(), "127.0.0.1:5 is the address of m2"),
        ];
        for (change, says) in problems {
            let found = judge(&map(), &config(change), fake::VOTER);
            assert!(found.problems.iter().any(|text| text.contains(says)), "{says}: {found:?}");
        }
        let notes: [(Change, &str); 4] = [
            (|config| config.transport.listen = "10.0.0.1:7000".into(), "announces 10.0.0.1:7000 when it starts"),
            (|config| config.transport.listen = "0.0.0.0:7000".into(), "transport.advertise is not set"),
            (|config| config.cluster.meta.push("5@127.0.0.1:5".into()), "which is no voter"),
            (|config| config.cluster.meta = vec!["9@10.0.0.2:1".into()], "the registry at 127.0.0.1:1"),
        ];
        for (change, says) in notes {
            let found = judge(&map(), &config(change), fake::VOTER);
            assert!(found.problems.is_empty(), "{found:?}");
            assert!(found.notes.iter().any(|text| text.contains(says)), "{says}: {found:?}");
        }
        assert_eq!(judge(&map(), &config(|_| ()), NodeId(77)).problems.len(), 1);
    }
}
