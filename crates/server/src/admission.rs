//! Certificates from the cluster: admission of new nodes by token, renewal, operators. Lives on metadata nodes that
//! hold the CA's key.
//!
//! A token admits one node, once, before it expires. It carries the fingerprint of the cluster's CA,
//! so that the new node trusts nobody else; the new node draws its own key and sends only a
//! certificate request. The token is used up and the node registered by one commit, which only a request that can
//! succeed causes: guesses cost a read. Every certificate is written down in the system group before it is handed out,
//! so that what exists can be listed and revoked.
//!
//! A renewed certificate keeps its key: the key is what the registry knows the node by.

use crate::config::SecuritySection;
use crate::node::wall_clock;
use crate::registry::address_holder;
use bytes::Bytes;
use plinth_admin::secret::JoinToken;
use plinth_client::Client;
use plinth_protocol::map::{ClusterMap, NodeRecord, State};
use plinth_protocol::meta::*;
use plinth_protocol::wire::Wire;
use plinth_protocol::*;
use plinth_transport::authority::{Authority, NODE_VALIDITY_MAX, key_of_request};
use plinth_transport::certificate::CertificateFacts;
use plinth_transport::{Identity, TransportError};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use zeroize::Zeroizing;

/// Requests that a node works on at once; more wait for their turn.
const DECISIONS_MAX: usize = 4;
/// Join requests at once, those that wait for their refusal among them; more are answered `Busy`.
const JOINS_MAX: usize = 64;
/// How late a refused join request is answered.
const REFUSAL_DELAY: Duration = Duration::from_secs(1);
/// Bytes of a certificate request, PEM, that is looked at.
const CSR_BYTES_MAX: usize = 8 << 10;

/// Signs certificates for those who may have them.
pub struct Admission {
    authority: Authority,
    client: Client,
    /// Handed to joining gateways and metadata nodes.
    wrapping_key: Option<Zeroizing<Vec<u8>>>,
    /// How long nodes' certificates are valid.
    lifetime: Duration,
    /// Bounds what unauthenticated peers can make the cluster do at once.
    decisions: Semaphore,
    /// Bounds what they can make it do in a second.
    joins: Semaphore,
}

impl Admission {
    /// Makes the service of a node that holds the CA's key.
    pub fn new(
        authority: Authority,
        client: Client,
        wrapping_key: Option<Zeroizing<Vec<u8>>>,
        security: &SecuritySection,
    ) -> Self {
        let lifetime = Duration::from_secs(security.certificate_lifetime_seconds);
        let (decisions, joins) = (Semaphore::new(DECISIONS_MAX), Semaphore::new(JOINS_MAX));
        Admission { authority, client, wrapping_key, lifetime, decisions, joins }
    }

    /// Checks the token, registers the node, signs its certificate. A refusal comes late, and its request is counted
    /// meanwhile: guessing is slow whatever the number of connections, and keeps no node from its turn.
    pub async fn admit(&self, header: &[u8], deadline: Instant) -> Result<JoinReply, Failure> {
        let _join = self.joins.try_acquire().map_err(|_| busy())?;
        let decision = tokio::time::timeout_at(deadline, self.decisions.acquire()).await.map_err(|_| busy())?;
        let admitted = self.decide(header, deadline).await;
        drop(decision);
        if admitted.is_err() {
            tokio::time::sleep(REFUSAL_DELAY).await;
        }
        admitted
    }

    async fn decide(&self, header: &[u8], deadline: Instant) -> Result<JoinReply, Failure> {
        let request = JoinRequest::decode(header)?;
        check_request(&request)?;
        let public_key = key_of(&request.csr)?;
        let token = JoinToken::parse(&request.token).ok_or_else(|| denied("the token can't be read"))?;
        if token.ca_fingerprint != self.authority.fingerprint().0 {
            return Err(denied("the token is for another cluster"));
        }
        self.check_token(&token, &request.roles, public_key, deadline).await?;
        self.check_address(&request, public_key, deadline).await?;
        let node = NodeRecord {
            node: NodeId(0),
            name: request.name.clone(),
            roles: request.roles.clone(),
            address: request.address.clone(),
            incarnation: Incarnation(1),
            state: State::Down,
            domain: request.domain.clone().unwrap_or_else(|| request.name.clone()),
            version: Some(env!("CARGO_PKG_VERSION").into()),
            public_key: None,
        };
        let register = RegisterNode { node, public_key: Some(public_key) };
        let admit = Command::AdmitNode(Box::new(AdmitNode { token: token.hash(), register }));
        let node = match self.client.mutate(GROUP_SYSTEM, admit, None, deadline).await? {
            Outcome::Node(node) => node,
            Outcome::Refused(refusal) if refusal.kind == RefusalKind::AlreadyExists => {
                let text = format!("{}; the token is still good", refusal.text);
                return Err(Failure::new(FailureKind::Conflict, text));
            }
            other => return Err(refused(other)),
        };
        let certificate = self.certify(&self.identity_of(&node), None, &request.csr, self.lifetime, deadline).await?;
        let map = self.map(deadline).await?;
        tracing::info!(node = %node.node, name = %node.name, "node admitted");
        Ok(self.reply(node, certificate, map))
    }

    fn reply(&self, node: NodeRecord, certificate: String, map: ClusterMap) -> JoinReply {
        let wraps = node.roles.iter().any(|role| matches!(role, Role::Gateway | Role::Meta));
        let wrapping_key = self.wrapping_key.as_ref().filter(|_| wraps).map(|key| Bytes::copy_from_slice(key).into());
        let admits = node.roles.contains(&Role::Meta);
        let ca_private_key = admits.then(|| Bytes::copy_from_slice(self.authority.key_pem().as_bytes()).into());
        let certificate_lifetime_s = admits.then_some(self.lifetime.as_secs());
        let ca = self.authority.certificate_pem().to_string();
        JoinReply { node, certificate, ca, map, wrapping_key, ca_private_key, certificate_lifetime_s }
    }

    /// Fails unless the commit that is to use the token can succeed, as far as a read tells.
    async fn check_token(
        &self,
        token: &JoinToken,
        roles: &[Role],
        public_key: [u8; 32],
        deadline: Instant,
    ) -> Result<(), Failure> {
        let row = match self.client.query(GROUP_SYSTEM, Query::JoinToken(token.hash()), deadline).await? {
            Reply::JoinToken(row) => row,
            Reply::Absent(_) => return Err(denied("the token is unknown, withdrawn or expired")),
            other => return Err(unexpected(&other)),
        };
        if row.used.is_some_and(|used| used.public_key != public_key) {
            return Err(denied("the token has admitted another node"));
        }
        if !roles.iter().all(|role| row.roles.contains(role)) {
            let names: Vec<String> = row.roles.iter().map(Role::to_string).collect();
            return Err(denied(&format!("the token is for the roles {}", names.join(", "))));
        }
        Ok(())
    }

    /// Refuses an address that another node has.
    async fn check_address(&self, request: &JoinRequest, key: [u8; 32], deadline: Instant) -> Result<(), Failure> {
        let map = self.map(deadline).await?;
        let address = &request.address;
        match address_holder(&map, address, None) {
            // The node itself, whose answer was lost.
            Some(other) if other.public_key != Some(key) => {
                let text = format!("{address} is the address of node {}: choose another --listen", other.name);
                Err(Failure::new(FailureKind::Conflict, text))
            }
            _ => Ok(()),
        }
    }

    /// Renews the certificate of a node or an operator, or writes the one in use down. The caller has proved the
    /// certificate that it has.
    pub async fn renew(
        &self,
        caller: &Identity,
        certificate: Option<&CertificateFacts>,
        header: &[u8],
        deadline: Instant,
    ) -> Result<CertifyReply, Failure> {
        let request = CertifyRequest::decode(header)?;
        let certificate =
            certificate.ok_or_else(|| Failure::new(FailureKind::Invalid, "certificates are renewed over TLS alone"))?;
        let _decision = tokio::time::timeout_at(deadline, self.decisions.acquire()).await.map_err(|_| busy())?;
        let Some(csr) = request.csr else {
            self.write_down(caller, certificate, deadline).await?;
            return Ok(CertifyReply { certificate: None });
        };
        if key_of(&csr)? != certificate.public_key.0 {
            return Err(denied("a certificate is renewed for the key that it has"));
        }
        let operator = caller.roles == [Role::Admin];
        let (identity, lifetime) = match operator {
            true => (caller.clone(), life_of(certificate)),
            false => (self.identity_of(&self.registered(caller, deadline).await?), self.lifetime),
        };
        let name = certificate.operator.as_deref();
        let renewed = self.certify(&identity, name, &csr, lifetime, deadline).await?;
        tracing::info!(event = "certificate_renewed", node = %caller.node, "certificate renewed");
        Ok(CertifyReply { certificate: Some(renewed) })
    }

    /// Returns what the registry has of a node that may go on being one.
    async fn registered(&self, caller: &Identity, deadline: Instant) -> Result<NodeRecord, Failure> {
        let map = self.map(deadline).await?;
        let node = map.node(caller.node).ok_or_else(|| denied("the node is not registered"))?;
        if map.denied_nodes.contains(&caller.node) || node.state == State::Retired {
            return Err(denied("the node is denied or retired"));
        }
        if node.incarnation != caller.incarnation {
            return Err(denied(&format!("the registry knows the node as {}", node.incarnation)));
        }
        Ok(node.clone())
    }

    /// Certifies an operator under a name.
    pub async fn certify_operator(&self, order: &CertifyOperator, deadline: Instant) -> Result<String, Failure> {
        key_of(&order.csr)?;
        let lifetime = Duration::from_secs(order.days.saturating_mul(24 * 3600)).min(NODE_VALIDITY_MAX);
        let identity = Identity {
            cluster: self.authority.cluster(),
            node: operator_id(&order.name),
            roles: vec![Role::Admin],
            incarnation: Incarnation(1),
        };
        let certificate = self.certify(&identity, Some(&order.name), &order.csr, lifetime, deadline).await?;
        tracing::info!(event = "operator_certified", operator = order.name, "operator certified");
        Ok(certificate)
    }

    /// Signs a request and writes the certificate down before anyone gets it.
    async fn certify(
        &self,
        identity: &Identity,
        operator: Option<&str>,
        csr: &str,
        lifetime: Duration,
        deadline: Instant,
    ) -> Result<String, Failure> {
        let now = wall_clock();
        let invalid = |error: TransportError| Failure::new(FailureKind::Invalid, error.to_string());
        let chain = match operator {
            Some(name) => self.authority.issue_for_operator(identity, name, csr, lifetime, now),
            None => self.authority.issue_for_request(identity, csr, lifetime, now),
        };
        let chain = chain.map_err(invalid)?;
        let facts = CertificateFacts::from_pem(&chain).map_err(invalid)?;
        self.write_down(identity, &facts, deadline).await?;
        Ok(chain)
    }

    async fn write_down(&self, owner: &Identity, facts: &CertificateFacts, deadline: Instant) -> Result<(), Failure> {
        let row = CertificateRow {
            serial: facts.serial,
            node: owner.node,
            roles: owner.roles.clone(),
            valid_from_s: facts.valid_from_s,
            valid_until_s: facts.valid_until_s,
            public_key: facts.public_key.0,
            operator: facts.operator.clone(),
        };
        match self.client.mutate(GROUP_SYSTEM, Command::RecordCertificate(row), None, deadline).await? {
            Outcome::Done => Ok(()),
            other => Err(refused(other)),
        }
    }

    fn identity_of(&self, node: &NodeRecord) -> Identity {
        Identity {
            cluster: self.authority.cluster(),
            node: node.node,
            roles: node.roles.clone(),
            incarnation: node.incarnation,
        }
    }

    async fn map(&self, deadline: Instant) -> Result<ClusterMap, Failure> {
        match self.client.query(GROUP_SYSTEM, Query::Map(None), deadline).await? {
            Reply::Map(map) => Ok(map),
            other => Err(unexpected(&other)),
        }
    }
}

/// Returns the node id of an operator: the same for each certificate of the same name.
fn operator_id(name: &str) -> NodeId {
    let hash = plinth_admin::secret::sha256(name.as_bytes());
    let number = hash[..8].iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
    NodeId(OPERATOR_NODE_MIN | number >> 2)
}

/// Returns for how long a certificate was made valid.
fn life_of(certificate: &CertificateFacts) -> Duration {
    let seconds = certificate.valid_until_s.saturating_sub(certificate.issued_s());
    Duration::from_secs(seconds).min(NODE_VALIDITY_MAX)
}

/// Returns the SHA-256 of the public key that a certificate request is for.
fn key_of(csr: &str) -> Result<[u8; 32], Failure> {
    if csr.len() > CSR_BYTES_MAX {
        return Err(Failure::new(FailureKind::Invalid, "a certificate request has at most 8 KiB"));
    }
    key_of_request(csr).map(|key| key.0).map_err(|error| Failure::new(FailureKind::Invalid, error.to_string()))
}

/// Checks what an unauthenticated peer sends before anything is asked of the cluster.
fn check_request(request: &JoinRequest) -> Result<(), Failure> {
    let name_ok = (1..=63).contains(&request.name.len())
        && request.name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    if !name_ok {
        return Err(Failure::new(FailureKind::Invalid, "a node's name is 1 to 63 letters, digits and dashes"));
    }
    let domain_ok = request.domain.as_ref().is_none_or(|domain| {
        let sign = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        (1..=63).contains(&domain.len()) && domain.bytes().all(sign)
    });
    if !domain_ok {
        return Err(Failure::new(
            FailureKind::Invalid,
            "a failure domain is 1 to 63 letters, digits, dots, dashes and underlines",
        ));
    }
    let roles_ok = !request.roles.is_empty()
        && request.roles.iter().all(|role| matches!(role, Role::Gateway | Role::Meta | Role::Storage));
    if !roles_ok {
        return Err(denied("a node may be gateway, meta or storage"));
    }
    if request.address.parse::<SocketAddr>().is_err() {
        return Err(Failure::new(FailureKind::Invalid, "the address is not HOST:PORT"));
    }
    Ok(())
}

fn denied(text: &str) -> Failure {
    Failure::new(FailureKind::Denied, text)
}

fn busy() -> Failure {
    Failure::new(FailureKind::Busy, "other nodes are being admitted; try again")
}

/// Returns the failure of an outcome that is not the wanted one.
fn refused(outcome: Outcome) -> Failure {
    match outcome {
        Outcome::Refused(refusal) => denied(&refusal.text),
        other => Failure::new(FailureKind::Internal, format!("unexpected outcome {other:?}")),
    }
}

fn unexpected(reply: &Reply) -> Failure {
    Failure::new(FailureKind::Internal, format!("unexpected reply {reply:?}"))
}

#[cfg(test)]
mod tests;
