//! A node's secrets: loaded once at start; a server that lacks one refuses to start.

use crate::config::{Config, RoleName};
use crate::files;
use plinth_admin::secret::{WRAPPING_KEY_BYTES, sha256};
use plinth_protocol::Incarnation;
use plinth_transport::Identity;
use plinth_transport::authority::{Authority, NodeCertificate};
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use zeroize::Zeroizing;

/// Why a node's secrets can't be used.
#[derive(Debug, thiserror::Error)]
pub enum SecretsError {
    /// A file is missing, unreadable, or readable by others.
    #[error("{file}: {source}")]
    File {
        /// Which file.
        file: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file holds something else than it should.
    #[error("{file}: {text}")]
    Content {
        /// Which file.
        file: PathBuf,
        /// What is wrong.
        text: String,
    },
}

/// Everything secret that a node holds.
pub struct Secrets {
    /// The node's certificate with its private key and its chain.
    pub certificate: NodeCertificate,
    /// Who the certificate says the node is.
    pub identity: Identity,
    /// The CA's certificate, PEM.
    pub ca_pem: String,
    /// The whole authority, on nodes that admit others.
    pub authority: Option<Authority>,
    /// The key that wraps access keys' secrets.
    pub wrapping_key: Option<Zeroizing<Vec<u8>>>,
}

impl Secrets {
    /// Loads and checks a node's secrets.
    pub fn load(config: &Config) -> Result<Secrets, SecretsError> {
        let security = &config.security;
        let incarnation = Incarnation(config.node.incarnation);
        let (certificate, identity) = load_certificate(&security.certificate, &security.private_key, incarnation)?;
        if let Some(proved) = certificate.facts().incarnation.filter(|proved| *proved != incarnation) {
            let text = format!("node.incarnation is {}, the certificate is of {proved}", incarnation.0);
            return Err(content(&security.certificate, text));
        }
        for role in &config.node.roles {
            if !identity.roles.contains(&(*role).into()) {
                return Err(content(
                    &security.certificate,
                    format!("the certificate does not carry the role {role:?}"),
                ));
            }
        }
        let ca_pem =
            authority_pem(&certificate).ok_or_else(|| content(&security.certificate, "the chain lacks its CA"))?;
        let authority = match &security.ca_private_key {
            Some(file) if config.has_role(RoleName::Meta) => {
                let key = read_secret_text(file)?;
                Some(Authority::load(&ca_pem, &key).map_err(|error| content(file, error))?)
            }
            _ => None,
        };
        let wrapping_key = security.wrapping_key.as_deref().map(load_wrapping_key).transpose()?;
        Ok(Secrets { certificate, identity, ca_pem, authority, wrapping_key })
    }
}

/// Loads a certificate chain and its key; returns whose certificate it is.
pub fn load_certificate(
    chain: &Path,
    private_key: &Path,
    incarnation: Incarnation,
) -> Result<(NodeCertificate, Identity), SecretsError> {
    let chain_pem = files::read_text(chain).map_err(|source| SecretsError::File { file: chain.into(), source })?;
    let key_pem = read_secret_text(private_key)?;
    let loaded = NodeCertificate::load(&chain_pem, &key_pem).map_err(|error| content(chain, error))?;
    let identity =
        Identity { cluster: loaded.cluster(), node: loaded.node(), roles: loaded.roles().to_vec(), incarnation };
    Ok((loaded, identity))
}

/// Returns a moment for people and scripts: RFC 3339 in UTC.
pub fn moment_text(moment: SystemTime) -> String {
    let since = moment.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    plinth_admin::report::time_text(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Says that the node's certificate has ended, and what to do.
pub fn ended_text(until: SystemTime) -> String {
    let ended = moment_text(until);
    format!(
        "this node's certificate ended on {ended}: no other node answers it. On a metadata node run `plinth cert \
         reissue --config ITS_PLINTH_TOML --node THIS_NODES_FOLDER`; the running node takes the new certificate by itself"
    )
}

/// Fails where the node's certificate has ended or is not valid yet.
pub fn check_validity(certificate: &NodeCertificate, now: SystemTime) -> Result<(), String> {
    if now > certificate.valid_until() {
        return Err(ended_text(certificate.valid_until()));
    }
    if now < certificate.valid_from() {
        let from = moment_text(certificate.valid_from());
        return Err(format!("this node's certificate is valid from {from}; is the clock right?"));
    }
    Ok(())
}

/// Loads the key that wraps access keys' secrets.
pub fn load_wrapping_key(file: &Path) -> Result<Zeroizing<Vec<u8>>, SecretsError> {
    let key = files::read_secret(file).map_err(|source| SecretsError::File { file: file.into(), source })?;
    if key.len() != WRAPPING_KEY_BYTES || key.iter().all(|&byte| byte == 0) {
        return Err(content(file, format!("a wrapping key is {WRAPPING_KEY_BYTES} random bytes")));
    }
    Ok(Zeroizing::new(key))
}

/// Returns the CA's certificate, PEM: the second of the chain.
pub fn authority_pem(certificate: &NodeCertificate) -> Option<String> {
    const END: &str = "-----END CERTIFICATE-----\n";
    let chain = certificate.chain_pem();
    let leaf_end = chain.find(END)? + END.len();
    let ca_end = leaf_end + chain[leaf_end..].find(END)? + END.len();
    Some(chain[leaf_end..ca_end].to_string())
}

/// Returns the SHA-256 of a PEM certificate's DER form.
pub fn fingerprint(pem: &str) -> Result<[u8; 32], String> {
    use base64::Engine;
    let body: String = pem.lines().filter(|line| !line.starts_with("-----")).map(str::trim).collect();
    let der = base64::engine::general_purpose::STANDARD.decode(body).map_err(|error| format!("not PEM: {error}"))?;
    Ok(sha256(&der))
}

fn read_secret_text(file: &Path) -> Result<Zeroizing<String>, SecretsError> {
    let bytes = files::read_secret(file).map_err(|source| SecretsError::File { file: file.into(), source })?;
    String::from_utf8(bytes).map(Zeroizing::new).map_err(|_| content(file, "not text"))
}

fn content(file: &Path, text: impl ToString) -> SecretsError {
    SecretsError::Content { file: file.into(), text: text.to_string() }
}
