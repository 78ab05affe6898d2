//! What a node shows and what it trusts: TLS 1.3 alone, AES-GCM alone, the cluster's authority alone.
//!
//! Neither side looks at names of hosts. The caller insists on the node that it dialled, the callee
//! reads the caller's name out of its certificate; a callee without certificate does not exist, a
//! caller without one may only ask for admission.

use crate::authority::{Fingerprint, NODE_VALIDITY_MAX, NodeCertificate, parse_certificates};
use crate::call::Identity;
use crate::certificate::CertificateFacts;
use crate::error::TransportError;
use crate::name::NodeName;
use plinth_protocol::{ClusterId, Incarnation, NodeId, Role};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::time_provider::{DefaultTimeProvider, TimeProvider};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use std::sync::Arc;
use std::time::Duration;

/// The only signatures in certificates and handshakes: ECDSA over P-256 with SHA-256.
const SCHEMES: [SignatureScheme; 1] = [SignatureScheme::ECDSA_NISTP256_SHA256];

/// What one node shows to others and whom it trusts, ready for use.
pub struct Credentials {
    identity: Identity,
    valid_until_s: u64,
    pub(crate) client: Arc<ClientConfig>,
    pub(crate) server: Arc<ServerConfig>,
}

impl Credentials {
    /// Puts together a node's certificate, the authorities that it trusts (PEM, more than one during a
    /// rotation) and its incarnation.
    pub fn new(
        certificate: &NodeCertificate,
        authorities_pem: &str,
        incarnation: Incarnation,
    ) -> Result<Self, TransportError> {
        let mut roots = RootCertStore::empty();
        for authority in parse_certificates(authorities_pem)? {
            roots.add(authority)?;
        }
        let roots = Arc::new(roots);
        let any_node = certificate.roles() == [Role::Admin];
        let provider = provider();
        let chain = certificate.chain.clone();
        let key = || {
            PrivateKeyDer::from_pem_slice(certificate.key_pem().as_bytes())
                .map_err(|error| TransportError::Certificate(format!("private key: {error}")))
        };
        let verifier = NodeVerifier {
            trust: Trust::Roots(roots.clone()),
            cluster: Some(certificate.cluster()),
            any_node,
            role: None,
        };
        let mut client = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_auth_cert(chain.clone(), key()?)?;
        harden_client(&mut client);
        let mut server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(caller_verifier(roots, &provider)?)
            .with_single_cert(chain, key()?)?;
        // No session resumption: every connection proves its certificates anew.
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        let identity = Identity {
            cluster: certificate.cluster(),
            node: certificate.node(),
            roles: certificate.roles().to_vec(),
            incarnation,
        };
        let valid_until_s = certificate.facts().valid_until_s;
        Ok(Credentials { identity, valid_until_s, client: Arc::new(client), server: Arc::new(server) })
    }

    /// Returns who the node is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Returns for how long the node's own certificate is still valid.
    pub(crate) fn lifetime(&self) -> Duration {
        left_until(self.valid_until_s)
    }
}

/// Returns the TLS side of a node that joins: it shows nothing and trusts metadata nodes alone, under the
/// authority with this fingerprint, which came with the join token.
pub(crate) fn joining_config(
    authority: Fingerprint,
    cluster: Option<ClusterId>,
) -> Result<Arc<ClientConfig>, TransportError> {
    let verifier = NodeVerifier { trust: Trust::Pinned(authority), cluster, any_node: true, role: Some(Role::Meta) };
    let mut client = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    harden_client(&mut client);
    Ok(Arc::new(client))
}

/// Returns the cryptography in use: AES-GCM suites only (QCVN 15:2023 knows no ChaCha20).
pub fn provider() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites =
        vec![aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384, aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256];
    Arc::new(provider)
}

fn harden_client(client: &mut ClientConfig) {
    client.resumption = rustls::client::Resumption::disabled();
    // The name that a caller verifies is a node id; it need not be readable on the wire.
    client.enable_sni = false;
}

fn caller_verifier(
    roots: Arc<RootCertStore>,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, TransportError> {
    WebPkiClientVerifier::builder_with_provider(roots, provider.clone())
        .allow_unauthenticated()
        .clear_root_hint_subjects()
        .build()
        .map_err(|error| TransportError::Certificate(error.to_string()))
}

/// Returns the name under which rustls hands the dialled node to the verifier.
pub(crate) fn name_of(node: NodeId) -> ServerName<'static> {
    ServerName::try_from(format!("n{}.plinth", node.0)).expect("a letter and digits are a DNS label")
}

/// Returns who the peer of a finished handshake is; `None` where it showed no certificate.
pub(crate) fn peer_name(chain: Option<&[CertificateDer<'_>]>) -> Result<Option<NodeName>, TransportError> {
    chain.and_then(|chain| chain.first()).map(|leaf| NodeName::from_certificate(leaf)).transpose()
}

/// Returns what else the peer's certificate says; `None` where it showed none.
pub(crate) fn peer_facts(chain: Option<&[CertificateDer<'_>]>) -> Result<Option<CertificateFacts>, TransportError> {
    chain.and_then(|chain| chain.first()).map(|leaf| CertificateFacts::from_der(leaf)).transpose()
}

/// Returns for how long a certificate is still valid.
pub(crate) fn lifetime(certificate: &CertificateFacts) -> Duration {
    left_until(certificate.valid_until_s)
}

/// The wall clock is read by rustls' own time provider, the one that verified the certificate.
fn left_until(second: u64) -> Duration {
    let now = DefaultTimeProvider.current_time().map_or(0, |now| now.as_secs());
    Duration::from_secs(second.saturating_sub(now)).min(NODE_VALIDITY_MAX)
}

/// Fails unless this authority signed the certificate, looked at in a second since 1970.
pub(crate) fn verify_signed_by(
    certificate: &CertificateDer<'_>,
    authority: &CertificateDer<'_>,
    second: u64,
) -> Result<(), TransportError> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.clone().into_owned())?;
    let at = UnixTime::since_unix_epoch(Duration::from_secs(second));
    let parsed = ParsedCertificate::try_from(certificate)?;
    let algorithms = provider().signature_verification_algorithms;
    Ok(verify_server_cert_signed_by_trust_anchor(&parsed, &roots, &[], at, algorithms.all)?)
}

#[derive(Debug)]
enum Trust {
    /// The cluster's authorities.
    Roots(Arc<RootCertStore>),
    /// The one authority with this fingerprint, which the callee sends along.
    Pinned(Fingerprint),
}

/// The caller's check of the callee: chain, cluster, node.
#[derive(Debug)]
struct NodeVerifier {
    trust: Trust,
    /// The cluster that must be named, where it is known.
    cluster: Option<ClusterId>,
    /// Whether node 0 stands for every node: for joining nodes and operators' tools, which know an
    /// address and no node ids. Everyone else insists on the node that was dialled.
    any_node: bool,
    /// The role that the callee must have, where only one kind of node may answer: whoever admits a node
    /// hands it keys and its map.
    role: Option<Role>,
}

impl NodeVerifier {
    fn roots(&self, intermediates: &[CertificateDer<'_>]) -> Result<Arc<RootCertStore>, rustls::Error> {
        match &self.trust {
            Trust::Roots(roots) => Ok(roots.clone()),
            Trust::Pinned(fingerprint) => {
                let pinned = intermediates
                    .iter()
                    .find(|certificate| Fingerprint::of(certificate) == *fingerprint)
                    .ok_or(CertificateError::UnknownIssuer)?;
                let mut roots = RootCertStore::empty();
                roots.add(pinned.clone().into_owned())?;
                Ok(Arc::new(roots))
            }
        }
    }
}

impl ServerCertVerifier for NodeVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let roots = self.roots(intermediates)?;
        let algorithms = provider().signature_verification_algorithms;
        let parsed = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(&parsed, &roots, intermediates, now, algorithms.all)?;
        let name = NodeName::from_certificate(end_entity).map_err(|_| CertificateError::BadEncoding)?;
        if self.cluster.is_some_and(|cluster| cluster != name.cluster) {
            return Err(rustls::Error::General(format!("peer belongs to cluster {}", name.cluster)));
        }
        if let Some(role) = self.role.filter(|role| !name.roles.contains(role)) {
            return Err(rustls::Error::General(format!("peer is no {role} node")));
        }
        let any = self.any_node && *server_name == name_of(NodeId(0));
        if !any && *server_name != name_of(name.node) {
            return Err(rustls::Error::General(format!("peer is node {}, not the one that was dialled", name.node)));
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken".to_string()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        SCHEMES.to_vec()
    }
}
