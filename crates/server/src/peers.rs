//! Which peers a node speaks with: those whose certificate fits what the registry has of them, and whom no operator
//! has denied. Registry and deny list come with the map.

use plinth_client::Client;
use plinth_protocol::map::{ClusterMap, State};
use plinth_protocol::meta::OPERATOR_NODE_MIN;
use plinth_protocol::{NodeId, Role};
use plinth_transport::certificate::CertificateFacts;
use plinth_transport::{Allowed, Identity};
use std::sync::{Arc, OnceLock};

/// Judges peers by the map, once the node knows it. Until then a valid certificate is enough: the first connections
/// fetch the map, and every connection is judged again within seconds.
#[derive(Clone, Default)]
pub struct PeerCheck {
    client: Arc<OnceLock<Client>>,
}

impl PeerCheck {
    /// Takes the client that keeps the map fresh.
    pub fn set_client(&self, client: Client) {
        let _ = self.client.set(client);
    }

    /// Returns the client, once the node knows the cluster.
    pub fn client(&self) -> Option<&Client> {
        self.client.get()
    }

    /// Returns the check for servers and links.
    pub fn allowed(&self) -> Allowed {
        let client = self.client.clone();
        Arc::new(move |peer, certificate| match client.get() {
            Some(client) => judge(&client.map(), peer, certificate),
            None => Ok(()),
        })
    }
}

/// Says why a peer is not spoken with.
fn judge(map: &ClusterMap, peer: &Identity, certificate: Option<&CertificateFacts>) -> Result<(), String> {
    // Without certificate it may ask for admission and nothing else.
    let Some(certificate) = certificate else { return Ok(()) };
    if map.revoked_certificates.contains(&certificate.serial) {
        return Err("its certificate is revoked".into());
    }
    if peer.node >= NodeId(OPERATOR_NODE_MIN) || peer.roles == [Role::Admin] {
        let is_operator = peer.node >= NodeId(OPERATOR_NODE_MIN) && peer.roles == [Role::Admin];
        return if is_operator { Ok(()) } else { Err("an operator is no node".into()) };
    }
    if map.denied_nodes.contains(&peer.node) {
        return Err("denied by an operator".into());
    }
    // A node that joined after this map was taken: the authority wrote its certificate down.
    let Some(record) = map.node(peer.node) else { return Ok(()) };
    if record.state == State::Retired {
        return Err("it is retired".into());
    }
    if record.public_key.is_some_and(|known| known != certificate.public_key.0) {
        return Err("the registry knows it by another key".into());
    }
    if let Some(role) = peer.roles.iter().find(|role| !record.roles.contains(role)) {
        return Err(format!("the registry does not have it as {role}"));
    }
    // A certificate may prove an incarnation that this map does not have yet.
    let newer = peer.incarnation > record.incarnation && certificate.incarnation.is_some();
    if peer.incarnation != record.incarnation && !newer {
        return Err(format!("the registry has it as {}, not {}", record.incarnation, peer.incarnation));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use plinth_protocol::map::NodeRecord;
    use plinth_protocol::stripe::Code;
    use plinth_protocol::{ClusterId, Epoch, Incarnation};
    use plinth_transport::Fingerprint;

    const KEY: [u8; 32] = [4; 32];

    fn map() -> ClusterMap {
        let node = NodeRecord {
            node: NodeId(3),
            name: "s3".into(),
            roles: vec![Role::Storage, Role::Gateway],
            address: "127.0.0.1:1".into(),
            incarnation: Incarnation(2),
            state: State::Up,
            domain: "s3".into(),
            version: None,
            public_key: Some(KEY),
        };
        ClusterMap {
            cluster: ClusterId(7),
            epoch: Epoch(1),
            nodes: vec![node],
            disks: Vec::new(),
            pgs: Vec::new(),
            shards: Vec::new(),
            code: Code::new(1, 0),
            fragment_bytes_max: 1 << 20,
            name: "test".into(),
            voters: Vec::new(),
            feature_level: 1,
            denied_nodes: Vec::new(),
            revoked_certificates: Vec::new(),
        }
    }

    fn peer(node: u64, roles: &[Role]) -> Identity {
        Identity { cluster: ClusterId(7), node: NodeId(node), roles: roles.to_vec(), incarnation: Incarnation(2) }
    }

    fn certificate() -> CertificateFacts {
        CertificateFacts {
            serial: 9,
            public_key: Fingerprint(KEY),
            valid_from_s: 1,
            valid_until_s: 2,
            incarnation: Some(Incarnation(2)),
            operator: None,
        }
    }

    #[test]
    fn a_peer_is_what_the_registry_has_of_it() {
        let good = peer(3, &[Role::Storage]);
        let judged = |map: &ClusterMap, peer: &Identity, certificate: &CertificateFacts| {
            judge(map, peer, Some(certificate)).err().unwrap_or_default()
        };
        assert_eq!(judged(&map(), &good, &certificate()), "");
        assert_eq!(judge(&map(), &Identity::anonymous(ClusterId(7)), None), Ok(()));
        assert_eq!(judged(&map(), &peer(4, &[Role::Meta]), &certificate()), "", "newer than the map");
        let denied = ClusterMap { denied_nodes: vec![NodeId(3)], ..map() };
        assert_eq!(judged(&denied, &good, &certificate()), "denied by an operator");
        let revoked = ClusterMap { revoked_certificates: vec![9], ..map() };
        assert!(judged(&revoked, &good, &certificate()).contains("revoked"));
        let other_key = CertificateFacts { public_key: Fingerprint([5; 32]), ..certificate() };
        assert!(judged(&map(), &good, &other_key).contains("another key"));
        assert!(judged(&map(), &peer(3, &[Role::Meta]), &certificate()).contains("as meta"));
        let mut retired = map();
        retired.nodes[0].state = State::Retired;
        assert!(judged(&retired, &good, &certificate()).contains("retired"));
    }

    #[test]
    fn an_incarnation_is_the_registrys_or_a_newer_one_that_the_certificate_proves() {
        let of = |number| Identity { incarnation: Incarnation(number), ..peer(3, &[Role::Storage]) };
        let unnamed = CertificateFacts { incarnation: None, ..certificate() };
        assert_eq!(judge(&map(), &of(2), Some(&unnamed)), Ok(()));
        assert!(judge(&map(), &of(3), Some(&unnamed)).is_err(), "claimed, not proved");
        assert!(judge(&map(), &of(1), Some(&unnamed)).is_err());
        let proved = |number| CertificateFacts { incarnation: Some(Incarnation(number)), ..certificate() };
        assert!(judge(&map(), &of(1), Some(&proved(1))).is_err(), "an incarnation that is gone");
        assert_eq!(judge(&map(), &of(3), Some(&proved(3))), Ok(()), "the map is behind");
    }

    #[test]
    fn operators_are_judged_by_their_serial_number() {
        let operator = peer(OPERATOR_NODE_MIN + 5, &[Role::Admin]);
        assert_eq!(judge(&map(), &operator, Some(&certificate())), Ok(()));
        let revoked = ClusterMap { revoked_certificates: vec![9], ..map() };
        assert!(judge(&revoked, &operator, Some(&certificate())).is_err());
        assert!(judge(&map(), &peer(OPERATOR_NODE_MIN + 5, &[Role::Meta]), Some(&certificate())).is_err());
        assert!(judge(&map(), &peer(3, &[Role::Admin]), Some(&certificate())).is_err());
    }
}
