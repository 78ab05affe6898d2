//! What a verified certificate says beside the node's name: serial number, key, validity, incarnation.
//!
//! The incarnation stands in the subject as an organizational unit, `incarnation 2`, where older
//! versions of this program do not look; certificates that they signed have none. An operator's name
//! is the common name, `Plinth operator <name>`.

use crate::authority::{CLOCK_SKEW_MAX, Fingerprint, parse_certificates, refuse, refuse_x509};
use crate::error::TransportError;
use plinth_protocol::Incarnation;
use plinth_protocol::meta::OPERATOR_NAME_BYTES_MAX;
use rcgen::{DistinguishedName, DnType};
use x509_parser::prelude::{FromDer, X509Certificate};

const INCARNATION_PREFIX: &str = "incarnation ";
const OPERATOR_PREFIX: &str = "Plinth operator ";
/// Longest serial number in bytes (RFC 5280, 4.1.2.2, has 20; the cluster's authority draws 16).
const SERIAL_BYTES_MAX: usize = 16;

/// What a peer's certificate proves beside its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFacts {
    /// The serial number, drawn by the authority: what a revocation names.
    pub serial: u128,
    /// SHA-256 of the public key, by which group 0 knows the node.
    pub public_key: Fingerprint,
    /// First second of validity since 1970, a clock's skew before the certificate was made.
    pub valid_from_s: u64,
    /// Last second of validity since 1970.
    pub valid_until_s: u64,
    /// The node's incarnation, where the certificate names one.
    pub incarnation: Option<Incarnation>,
    /// The operator's name, where the certificate is a named operator's.
    pub operator: Option<String>,
}

impl CertificateFacts {
    /// Reads the first certificate of a PEM text. Whether it verifies is decided elsewhere.
    pub fn from_pem(pem: &str) -> Result<Self, TransportError> {
        Self::from_der(&parse_certificates(pem)?[0])
    }

    /// Returns the second since 1970 in which the certificate was made, as the cluster's authority dates them.
    pub fn issued_s(&self) -> u64 {
        let issued = self.valid_from_s.saturating_add(CLOCK_SKEW_MAX.as_secs());
        if issued < self.valid_until_s { issued } else { self.valid_from_s }
    }

    /// Reads a certificate, DER. Whether it verifies is decided elsewhere.
    pub fn from_der(der: &[u8]) -> Result<Self, TransportError> {
        let (_, certificate) = X509Certificate::from_der(der).map_err(refuse_x509)?;
        let (valid_from_s, valid_until_s) = crate::authority::validity_of(&certificate);
        Ok(CertificateFacts {
            serial: serial_of(certificate.raw_serial())?,
            public_key: Fingerprint::of(certificate.public_key().raw),
            valid_from_s,
            valid_until_s,
            incarnation: incarnation_of(&certificate)?,
            operator: operator_of(&certificate),
        })
    }
}

fn serial_of(raw: &[u8]) -> Result<u128, TransportError> {
    let digits = raw.iter().position(|byte| *byte != 0).map_or(&[][..], |at| &raw[at..]);
    if digits.len() > SERIAL_BYTES_MAX {
        return Err(refuse("a serial number has at most 16 bytes"));
    }
    Ok(digits.iter().fold(0, |serial, byte| serial << 8 | u128::from(*byte)))
}

fn incarnation_of(certificate: &X509Certificate<'_>) -> Result<Option<Incarnation>, TransportError> {
    let mut units = certificate.subject().iter_organizational_unit();
    let Some(unit) = units.next() else { return Ok(None) };
    let invalid = || refuse("the subject's unit is not `incarnation <number>`");
    let number = unit.as_str().ok().and_then(|text| text.strip_prefix(INCARNATION_PREFIX)).ok_or_else(invalid)?;
    let incarnation: u64 = number.parse().map_err(|_| invalid())?;
    // One spelling only, and one unit.
    if incarnation.to_string() != number || units.next().is_some() {
        return Err(invalid());
    }
    Ok(Some(Incarnation(incarnation)))
}

fn operator_of(certificate: &X509Certificate<'_>) -> Option<String> {
    let name = certificate.subject().iter_common_name().next()?.as_str().ok()?;
    name.strip_prefix(OPERATOR_PREFIX).map(str::to_string)
}

/// Returns the subject of a certificate: a common name for people, and the incarnation.
pub(crate) fn subject(common_name: String, incarnation: Incarnation) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, common_name);
    subject.push(DnType::OrganizationalUnitName, format!("{INCARNATION_PREFIX}{}", incarnation.0));
    subject
}

/// Returns the common name of an operator's certificate.
pub(crate) fn operator_common_name(name: &str) -> Result<String, TransportError> {
    let sign = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'@');
    if !(1..=OPERATOR_NAME_BYTES_MAX).contains(&name.len()) || !name.bytes().all(sign) {
        return Err(refuse("an operator's name is 1 to 40 letters, digits, dots, dashes, underlines and @"));
    }
    Ok(format!("{OPERATOR_PREFIX}{name}"))
}
