//! The cluster's own certificate authority, and the certificates that it gives to nodes.
//!
//! One ECDSA P-256 key signs every node's certificate directly. The authority's key belongs offline
//! or to whoever admits nodes; nodes carry only its certificate. Time is an argument; the only
//! chance is that of keys and serial numbers, drawn from the cryptographic library.
//!
//! Nothing here touches a file: everything goes in and out as PEM text. Text that holds a private
//! key is wiped when it is dropped.

use crate::call::Identity;
use crate::certificate::{CertificateFacts, operator_common_name, subject};
use crate::credentials::verify_signed_by;
use crate::error::TransportError;
use crate::name::NodeName;
use plinth_protocol::{ClusterId, Incarnation, NodeId, Role};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType,
    SerialNumber,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

/// How long an authority's certificate is valid.
pub const AUTHORITY_VALIDITY: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// How long a node's certificate is valid at most.
pub const NODE_VALIDITY_MAX: Duration = Duration::from_secs(400 * 24 * 3600);
/// A certificate is valid from this long before it was made, for clocks that are behind.
pub const CLOCK_SKEW_MAX: Duration = Duration::from_secs(300);
/// Most certificates in one PEM text: a leaf and the authorities of a rotation.
pub const CHAIN_CERTIFICATES_MAX: usize = 8;

/// SHA-256 of a certificate or a public key, spelled as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 32]);

impl Fingerprint {
    /// Returns the fingerprint of DER bytes.
    pub fn of(der: &[u8]) -> Self {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, der);
        Fingerprint(digest.as_ref().try_into().expect("SHA-256 has 32 bytes"))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
impl FromStr for Fingerprint {
    type Err = TransportError;
    fn from_str(text: &str) -> Result<Self, TransportError> {
        let invalid = || refuse("fingerprint is not 64 hexadecimal digits");
        if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(invalid());
        }
        let mut bytes = [0; 32];
        for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
            let digits = std::str::from_utf8(digits).map_err(|_| invalid())?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| invalid())?;
        }
        Ok(Fingerprint(bytes))
    }
}

/// The authority of one cluster.
pub struct Authority {
    cluster: ClusterId,
    certificate: CertificateDer<'static>,
    certificate_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Makes a new key and a certificate for it, valid for [`AUTHORITY_VALIDITY`] from `now`.
    pub fn create(cluster: ClusterId, now: SystemTime) -> Result<Self, TransportError> {
        let key = generate_key()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = authority_name(cluster);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.serial_number = Some(draw_serial()?);
        params.not_before = (now - CLOCK_SKEW_MAX).into();
        params.not_after = (now + AUTHORITY_VALIDITY).into();
        let certificate = params.self_signed(&key).map_err(refuse_rcgen)?;
        let (der, pem) = (certificate.der().clone(), certificate.pem());
        Ok(Authority { cluster, certificate: der, certificate_pem: pem, issuer: Issuer::new(params, key) })
    }

    /// Loads an authority from its certificate and private key, both PEM. The key must be the
    /// certificate's.
    pub fn load(certificate_pem: &str, key_pem: &str) -> Result<Self, TransportError> {
        let certificate = match parse_certificates(certificate_pem)?.as_slice() {
            [only] => only.clone(),
            _ => return Err(refuse("an authority has exactly one certificate")),
        };
        let (_, parsed) = X509Certificate::from_der(&certificate).map_err(refuse_x509)?;
        if !parsed.is_ca() {
            return Err(refuse("not an authority's certificate"));
        }
        let cluster = cluster_of_authority(&parsed)?;
        let key = KeyPair::from_pem(key_pem).map_err(refuse_rcgen)?;
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Err(refuse("private key is not the authority certificate's"));
        }
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(refuse_rcgen)?;
        Ok(Authority { cluster, certificate, certificate_pem: certificate_pem.to_string(), issuer })
    }

    /// Returns the cluster that the authority signs for.
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// Returns the certificate as PEM; it is public, and every node trusts it.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// Returns the private key as PEM, wiped when dropped.
    pub fn key_pem(&self) -> Zeroizing<String> {
        Zeroizing::new(self.issuer.key().serialize_pem())
    }

    /// Returns the SHA-256 of the certificate, which a join token carries so that a joining node
    /// knows whom to trust.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.certificate)
    }

    /// Draws a fresh key for a node and signs a certificate for it, valid for `validity` from `now`.
    pub fn issue(
        &self,
        identity: &Identity,
        validity: Duration,
        now: SystemTime,
    ) -> Result<NodeCertificate, TransportError> {
        let key = NodeKey::generate()?;
        let chain = self.sign(identity, &key.key, None, validity, now)?;
        NodeCertificate::load(&chain, &key.key_pem())
    }

    /// Signs the public key of a PEM certificate request for a node, valid for `validity` from `now`.
    /// Only the key is taken from the request, after its signature has shown that the node holds the
    /// private half; every name in it is ignored. Returns the chain as PEM: leaf, then authority.
    pub fn issue_for_request(
        &self,
        identity: &Identity,
        request_pem: &str,
        validity: Duration,
        now: SystemTime,
    ) -> Result<String, TransportError> {
        self.sign(identity, &read_request(request_pem)?.public_key, None, validity, now)
    }

    /// Signs the public key of a PEM certificate request for a named operator, otherwise as
    /// [`Authority::issue_for_request`] does.
    pub fn issue_for_operator(
        &self,
        identity: &Identity,
        operator: &str,
        request_pem: &str,
        validity: Duration,
        now: SystemTime,
    ) -> Result<String, TransportError> {
        self.sign(identity, &read_request(request_pem)?.public_key, Some(operator), validity, now)
    }

    /// Signs a key anew for the node, or the operator, that a certificate of this authority names, whether or not
    /// that certificate has ended. Nothing but serial number and validity changes. Returns the chain as PEM.
    pub fn reissue(
        &self,
        certificate: &NodeCertificate,
        incarnation: Incarnation,
        validity: Duration,
        now: SystemTime,
    ) -> Result<String, TransportError> {
        // At its own last moment: that it has ended since is why it is made anew.
        certificate.check_chain(self.fingerprint())?;
        let identity = Identity {
            cluster: certificate.cluster(),
            node: certificate.node(),
            roles: certificate.roles().to_vec(),
            incarnation,
        };
        let key = NodeKey::load(certificate.key_pem())?;
        self.sign(&identity, &key.key, certificate.facts().operator.as_deref(), validity, now)
    }

    fn sign(
        &self,
        identity: &Identity,
        key: &impl PublicKeyData,
        operator: Option<&str>,
        validity: Duration,
        now: SystemTime,
    ) -> Result<String, TransportError> {
        if identity.cluster != self.cluster {
            return Err(refuse("the authority signs for its own cluster only"));
        }
        if validity > NODE_VALIDITY_MAX {
            return Err(refuse("validity exceeds 400 days"));
        }
        let name = NodeName::new(identity.cluster, &identity.roles, identity.node)?;
        let uri = name.to_uri().try_into().map_err(refuse_rcgen)?;
        let common_name = match operator {
            Some(name) => operator_common_name(name)?,
            None => format!("Plinth {}", identity.node),
        };
        let mut params = CertificateParams::default();
        params.distinguished_name = subject(common_name, identity.incarnation);
        params.subject_alt_names = vec![SanType::URI(uri)];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.serial_number = Some(draw_serial()?);
        params.use_authority_key_identifier_extension = true;
        params.not_before = (now - CLOCK_SKEW_MAX).into();
        params.not_after = (now + validity).into();
        let certificate = params.signed_by(key, &self.issuer).map_err(refuse_rcgen)?;
        Ok(format!("{}{}", certificate.pem(), self.certificate_pem))
    }
}

/// A node's private key before it has a certificate.
pub struct NodeKey {
    key: KeyPair,
}

impl NodeKey {
    /// Draws a fresh key.
    pub fn generate() -> Result<Self, TransportError> {
        Ok(NodeKey { key: generate_key()? })
    }

    /// Loads a key from PEM.
    pub fn load(key_pem: &str) -> Result<Self, TransportError> {
        Ok(NodeKey { key: KeyPair::from_pem(key_pem).map_err(refuse_rcgen)? })
    }

    /// Returns a certificate request for the key as PEM; it names nobody.
    pub fn request_pem(&self) -> Result<String, TransportError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.serialize_request(&self.key).and_then(|request| request.pem()).map_err(refuse_rcgen)
    }

    /// Returns the private key as PEM, wiped when dropped.
    pub fn key_pem(&self) -> Zeroizing<String> {
        Zeroizing::new(self.key.serialize_pem())
    }
}

/// A node's certificate with its chain and private key.
pub struct NodeCertificate {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    name: NodeName,
    chain_pem: String,
    key_pem: Zeroizing<String>,
    facts: CertificateFacts,
}

impl NodeCertificate {
    /// Loads a chain (leaf first, then its authority) and the leaf's private key, both PEM. Whether
    /// the chain verifies is decided where it is used.
    pub fn load(chain_pem: &str, key_pem: &str) -> Result<Self, TransportError> {
        let chain = parse_certificates(chain_pem)?;
        if chain.len() < 2 {
            return Err(refuse("a chain is the node's certificate and its authority's"));
        }
        let name = NodeName::from_certificate(&chain[0])?;
        let (_, leaf) = X509Certificate::from_der(&chain[0]).map_err(refuse_x509)?;
        let key = KeyPair::from_pem(key_pem).map_err(refuse_rcgen)?;
        if leaf.public_key().raw != key.subject_public_key_info() {
            return Err(refuse("private key is not the certificate's"));
        }
        let facts = CertificateFacts::from_der(&chain[0])?;
        let (chain_pem, key_pem) = (chain_pem.to_string(), Zeroizing::new(key_pem.to_string()));
        Ok(NodeCertificate { chain, name, chain_pem, key_pem, facts })
    }

    /// Returns the cluster that the certificate names.
    pub fn cluster(&self) -> ClusterId {
        self.name.cluster
    }

    /// Returns the node that the certificate names.
    pub fn node(&self) -> NodeId {
        self.name.node
    }

    /// Returns the roles that the certificate names, ascending.
    pub fn roles(&self) -> &[Role] {
        &self.name.roles
    }

    /// Returns the chain as PEM.
    pub fn chain_pem(&self) -> &str {
        &self.chain_pem
    }

    /// Returns the private key as PEM.
    pub fn key_pem(&self) -> &Zeroizing<String> {
        &self.key_pem
    }

    /// Returns the first moment of validity.
    pub fn valid_from(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(self.facts.valid_from_s)
    }

    /// Returns the last moment of validity; a node renews well before it.
    pub fn valid_until(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(self.facts.valid_until_s)
    }

    /// Returns the SHA-256 of the public key, by which group 0 knows the node.
    pub fn public_key(&self) -> Fingerprint {
        self.facts.public_key
    }

    /// Fails unless the authority with this fingerprint, which must be the second of the chain, signed the
    /// certificate.
    pub fn check_chain(&self, authority: Fingerprint) -> Result<(), TransportError> {
        if Fingerprint::of(&self.chain[1]) != authority {
            return Err(refuse("the chain ends in another authority"));
        }
        verify_signed_by(&self.chain[0], &self.chain[1], self.facts.valid_until_s)
    }

    /// Returns what the certificate says beside the node's name.
    pub fn facts(&self) -> &CertificateFacts {
        &self.facts
    }
}

/// Returns the first and the last moment of the first certificate of a PEM text, whoever signed it.
pub fn validity(pem: &str) -> Result<(SystemTime, SystemTime), TransportError> {
    let certificates = parse_certificates(pem)?;
    let (_, leaf) = X509Certificate::from_der(&certificates[0]).map_err(refuse_x509)?;
    let (from, until) = validity_of(&leaf);
    Ok((SystemTime::UNIX_EPOCH + Duration::from_secs(from), SystemTime::UNIX_EPOCH + Duration::from_secs(until)))
}

/// Returns the SHA-256 of the public key that a PEM certificate request is for. The request's own signature has shown
/// that its sender holds the private half.
pub fn key_of_request(request_pem: &str) -> Result<Fingerprint, TransportError> {
    Ok(Fingerprint::of(&read_request(request_pem)?.public_key.subject_public_key_info()))
}

fn read_request(request_pem: &str) -> Result<CertificateSigningRequestParams, TransportError> {
    let request = CertificateSigningRequestParams::from_pem(request_pem).map_err(refuse_rcgen)?;
    if request.public_key.algorithm() != &PKCS_ECDSA_P256_SHA256 {
        return Err(refuse("only ECDSA P-256 keys are signed"));
    }
    Ok(request)
}

pub(crate) fn validity_of(certificate: &X509Certificate<'_>) -> (u64, u64) {
    let seconds = |timestamp: i64| u64::try_from(timestamp).unwrap_or(0);
    let validity = certificate.validity();
    (seconds(validity.not_before.timestamp()), seconds(validity.not_after.timestamp()))
}

/// Reads the certificates of a PEM text, at least one and at most [`CHAIN_CERTIFICATES_MAX`].
pub(crate) fn parse_certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, TransportError> {
    let certificates = CertificateDer::pem_slice_iter(pem.as_bytes())
        .take(CHAIN_CERTIFICATES_MAX + 1)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| refuse(&format!("not PEM: {error}")))?;
    match certificates.len() {
        0 => Err(refuse("no certificate in the text")),
        count if count > CHAIN_CERTIFICATES_MAX => Err(refuse("more than 8 certificates in the text")),
        _ => Ok(certificates),
    }
}

const AUTHORITY_PREFIX: &str = "Plinth cluster ";

fn authority_name(cluster: ClusterId) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, format!("{AUTHORITY_PREFIX}{cluster}"));
    name
}

fn cluster_of_authority(certificate: &X509Certificate<'_>) -> Result<ClusterId, TransportError> {
    let name = certificate.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
    name.and_then(|name| name.strip_prefix(AUTHORITY_PREFIX))
        .and_then(|digits| u128::from_str_radix(digits, 16).ok())
        .map(ClusterId)
        .ok_or_else(|| refuse("the authority's name carries no cluster id"))
}

fn generate_key() -> Result<KeyPair, TransportError> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(refuse_rcgen)
}

fn draw_serial() -> Result<SerialNumber, TransportError> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| refuse("no random bytes"))?;
    // RFC 5280, 4.1.2.2: a positive integer.
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

pub(crate) fn refuse(text: &str) -> TransportError {
    TransportError::Certificate(text.to_string())
}
fn refuse_rcgen(error: rcgen::Error) -> TransportError {
    TransportError::Certificate(error.to_string())
}
pub(crate) fn refuse_x509(error: impl fmt::Display) -> TransportError {
    TransportError::Certificate(format!("not X.509: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: ClusterId = ClusterId(0x5eed);
    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    fn identity(roles: &[Role]) -> Identity {
        Identity { cluster: CLUSTER, node: NodeId(3), roles: roles.to_vec(), incarnation: Incarnation(1) }
    }

    #[test]
    fn certificates_name_their_node_and_survive_text() {
        let authority = Authority::create(CLUSTER, now()).unwrap();
        let made = authority.issue(&identity(&[Role::Storage, Role::Meta]), DAY, now()).unwrap();
        let loaded = NodeCertificate::load(made.chain_pem(), made.key_pem()).unwrap();
        assert_eq!((loaded.cluster(), loaded.node()), (CLUSTER, NodeId(3)));
        assert_eq!(loaded.roles(), [Role::Meta, Role::Storage]);
        assert_eq!(loaded.valid_until(), now() + DAY);
        assert_eq!(loaded.valid_from(), now() - CLOCK_SKEW_MAX);
        assert_eq!(loaded.public_key(), made.public_key());
    }

    #[test]
    fn loaded_authority_signs_requests_under_the_same_name() {
        let made = Authority::create(CLUSTER, now()).unwrap();
        let authority = Authority::load(made.certificate_pem(), &made.key_pem()).unwrap();
        assert_eq!((authority.cluster(), authority.fingerprint()), (CLUSTER, made.fingerprint()));
        assert_eq!(authority.fingerprint().to_string().parse::<Fingerprint>().unwrap(), made.fingerprint());
        let key = NodeKey::generate().unwrap();
        let chain =
            authority.issue_for_request(&identity(&[Role::Meta]), &key.request_pem().unwrap(), DAY, now()).unwrap();
        let certificate = NodeCertificate::load(&chain, &key.key_pem()).unwrap();
        assert_eq!(certificate.node(), NodeId(3));
        let other = NodeKey::generate().unwrap();
        assert!(NodeCertificate::load(&chain, &other.key_pem()).is_err());
    }

    #[test]
    fn certificates_name_incarnation_and_operator_and_are_told_apart_by_serial() {
        let authority = Authority::create(CLUSTER, now()).unwrap();
        let third = Identity { incarnation: Incarnation(3), ..identity(&[Role::Storage]) };
        let made = authority.issue(&third, DAY, now()).unwrap();
        assert_eq!(made.facts().incarnation, Some(Incarnation(3)));
        assert_eq!((made.facts().operator.as_deref(), made.facts().serial >> 120), (None, made.facts().serial >> 120));
        let key = NodeKey::generate().unwrap();
        let request = key.request_pem().unwrap();
        let admin = identity(&[Role::Admin]);
        let chain = authority.issue_for_operator(&admin, "mai.le@site-2", &request, DAY, now()).unwrap();
        let operator = NodeCertificate::load(&chain, &key.key_pem()).unwrap();
        assert_eq!(operator.facts().operator.as_deref(), Some("mai.le@site-2"));
        assert_eq!(key_of_request(&request).unwrap(), operator.public_key());
        assert_ne!(operator.facts().serial, made.facts().serial);
        for bad in ["", "a b", "x/y", &"n".repeat(41)] {
            assert!(authority.issue_for_operator(&admin, bad, &request, DAY, now()).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_ended_certificate_is_made_anew_for_the_same_key() {
        let authority = Authority::create(CLUSTER, now()).unwrap();
        let old = authority.issue(&identity(&[Role::Meta, Role::Storage]), DAY, now() - 10 * DAY).unwrap();
        let chain = authority.reissue(&old, Incarnation(1), DAY, now()).unwrap();
        let new = NodeCertificate::load(&chain, old.key_pem()).unwrap();
        assert_eq!((new.node(), new.roles(), new.public_key()), (old.node(), old.roles(), old.public_key()));
        assert_eq!(new.valid_until(), now() + DAY);
        assert_ne!(new.facts().serial, old.facts().serial);
        let other = Authority::create(CLUSTER, now()).unwrap();
        assert!(other.reissue(&old, Incarnation(1), DAY, now()).is_err(), "another authority's");
    }

    #[test]
    fn authority_refuses_what_it_must_not_sign() {
        let authority = Authority::create(CLUSTER, now()).unwrap();
        let foreign = Identity { cluster: ClusterId(1), ..identity(&[Role::Meta]) };
        assert!(authority.issue(&foreign, DAY, now()).is_err());
        assert!(authority.issue(&identity(&[]), DAY, now()).is_err());
        assert!(authority.issue(&identity(&[Role::Joining]), DAY, now()).is_err());
        assert!(authority.issue(&identity(&[Role::Meta]), NODE_VALIDITY_MAX + DAY, now()).is_err());
        assert!(authority.issue_for_request(&identity(&[Role::Meta]), "garbage", DAY, now()).is_err());
        let mut tampered = NodeKey::generate().unwrap().request_pem().unwrap().into_bytes();
        let middle = tampered.len() / 2;
        tampered[middle] = if tampered[middle] == b'A' { b'B' } else { b'A' };
        let tampered = String::from_utf8(tampered).unwrap();
        assert!(authority.issue_for_request(&identity(&[Role::Meta]), &tampered, DAY, now()).is_err());
    }

    #[test]
    fn authority_refuses_text_that_is_not_its_own() {
        let (one, other) = (Authority::create(CLUSTER, now()).unwrap(), Authority::create(CLUSTER, now()).unwrap());
        assert!(Authority::load(one.certificate_pem(), &other.key_pem()).is_err());
        let node = one.issue(&identity(&[Role::Meta]), DAY, now()).unwrap();
        let leaf = node.chain_pem().split_inclusive("-----END CERTIFICATE-----\r\n").next().unwrap();
        assert!(Authority::load(leaf, node.key_pem()).is_err());
        assert!(Authority::load("", "").is_err());
    }
}
