//! The TLS side of the S3 socket: certificate and key from files, read again when they change.

use crate::config::Config;
use crate::files;
use crate::init::file_trouble;
use crate::measure::Measures;
use plinth_admin::exit::{Exit, Trouble};
use plinth_transport::tls_provider;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// The certificate that the next connection is shown.
#[derive(Debug)]
struct Shown(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

/// HTTPS of a gateway.
pub struct Https {
    chain_file: PathBuf,
    key_file: PathBuf,
    read: Files,
    shown: Arc<Shown>,
    config: Arc<ServerConfig>,
}

/// What the two files hold.
#[derive(Clone, PartialEq, Eq)]
struct Files {
    chain_pem: String,
    key_pem: zeroize::Zeroizing<Vec<u8>>,
}

fn failed(error: impl ToString) -> Trouble {
    Trouble::new(Exit::Failed, "E2011", error.to_string())
}

/// Opens HTTPS where the configuration names a certificate.
pub fn open(config: &Config) -> Result<Option<Https>, Trouble> {
    let (Some(chain_file), Some(key_file)) = (&config.gateway.tls_certificate, &config.gateway.tls_private_key) else {
        return Ok(None);
    };
    let (chain_file, key_file) = (chain_file.clone(), key_file.clone());
    let read = read(&chain_file, &key_file)?;
    let shown = Arc::new(Shown(RwLock::new(certified(&read).map_err(|text| at(&chain_file, text))?)));
    // The same suites as between nodes: TLS 1.3 with AES-GCM.
    let mut tls = ServerConfig::builder_with_provider(tls_provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(failed)?
        .with_no_client_auth()
        .with_cert_resolver(shown.clone());
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Some(Https { chain_file, key_file, read, shown, config: Arc::new(tls) }))
}

fn at(file: &std::path::Path, text: String) -> Trouble {
    failed(format!("{}: {text}", file.display()))
}

fn read(chain_file: &std::path::Path, key_file: &std::path::Path) -> Result<Files, Trouble> {
    let chain_pem = files::read_text(chain_file).map_err(|error| file_trouble(chain_file, error))?;
    let key_pem = files::read_secret(key_file).map_err(|error| file_trouble(key_file, error))?;
    Ok(Files { chain_pem, key_pem: key_pem.into() })
}

/// Checks that chain and key go together.
fn certified(read: &Files) -> Result<Arc<CertifiedKey>, String> {
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(read.chain_pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| format!("{error:?}"))?;
    let key = PrivateKeyDer::from_pem_slice(&read.key_pem).map_err(|error| format!("private key: {error:?}"))?;
    CertifiedKey::from_der(chain, key, &tls_provider()).map(Arc::new).map_err(|error| error.to_string())
}

impl Https {
    /// Returns what accepts connections.
    pub fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.config.clone())
    }

    /// Shows what the files hold, and looks at them again and again until the node stops. Files that do not go
    /// together, one of them not replaced yet, say, leave the last good certificate in use.
    pub async fn watch(mut self, measures: Arc<Measures>, mut stop: watch::Receiver<bool>) {
        self.measure(&measures);
        let mut refused = None;
        loop {
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                _ = stop.wait_for(|stop| *stop) => return,
            }
            let (chain_file, key_file) = (self.chain_file.clone(), self.key_file.clone());
            let Ok(found) = tokio::task::spawn_blocking(move || read(&chain_file, &key_file)).await else { return };
            match found.map_err(|trouble| trouble.text).and_then(|found| self.take(found)) {
                Ok(false) => {}
                Ok(true) => {
                    refused = None;
                    self.measure(&measures);
                    tracing::info!(event = "certificate_taken", "another S3 certificate is in use");
                }
                Err(text) if refused.as_ref() == Some(&text) => {}
                Err(text) => {
                    tracing::error!(reason = text, "the S3 certificate's files can't be used; the last good one stays");
                    refused = Some(text);
                }
            }
        }
    }

    /// Uses what the files hold where it is new; returns whether it is.
    fn take(&mut self, found: Files) -> Result<bool, String> {
        if found == self.read {
            return Ok(false);
        }
        let certified = certified(&found)?;
        *self.shown.0.write().unwrap_or_else(PoisonError::into_inner) = certified;
        self.read = found;
        Ok(true)
    }

    fn measure(&self, measures: &Measures) {
        if let Ok((from, until)) = plinth_transport::authority::validity(&self.read.chain_pem) {
            measures.set_certificate("s3", from, until);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use plinth_protocol::{ClusterId, Incarnation, NodeId, Role};
    use plinth_transport::{Authority, Identity};

    fn made() -> Files {
        let now = crate::node::wall_clock();
        let authority = Authority::create(ClusterId(7), now).unwrap();
        let roles = vec![Role::Gateway];
        let identity = Identity { cluster: ClusterId(7), node: NodeId(1), roles, incarnation: Incarnation(1) };
        let certificate = authority.issue(&identity, Duration::from_secs(3600), now).unwrap();
        Files {
            chain_pem: certificate.chain_pem().to_string(),
            key_pem: certificate.key_pem().as_bytes().to_vec().into(),
        }
    }

    #[test]
    fn https_offers_aes_gcm_alone() {
        let folder = tempfile::tempdir().unwrap();
        let (certificate, key) = (folder.path().join("s3.crt"), folder.path().join("s3.key"));
        let authority = Authority::create(ClusterId(7), crate::node::wall_clock()).unwrap();
        files::write_public(&certificate, authority.certificate_pem().as_bytes()).unwrap();
        files::write_secret(&key, authority.key_pem().as_bytes()).unwrap();
        let mut config: Config = toml::from_str(&crate::config::default_text()).unwrap();
        (config.gateway.tls_certificate, config.gateway.tls_private_key) = (Some(certificate), Some(key));
        let acceptor = open(&config).unwrap().expect("a certificate is named").acceptor();
        let suites = &acceptor.config().crypto_provider().cipher_suites;
        let names: Vec<String> = suites.iter().map(|suite| format!("{:?}", suite.suite())).collect();
        assert_eq!(names, ["TLS13_AES_256_GCM_SHA384", "TLS13_AES_128_GCM_SHA256"]);
    }

    #[test]
    fn replaced_files_are_used_and_halves_of_two_pairs_are_not() {
        let (first, second) = (made(), made());
        let shown = Arc::new(Shown(RwLock::new(certified(&first).unwrap())));
        let tls = ServerConfig::builder_with_provider(tls_provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(shown.clone());
        let (chain_file, key_file) = (PathBuf::new(), PathBuf::new());
        let mut https = Https { chain_file, key_file, read: first.clone(), shown, config: Arc::new(tls) };
        let leaf = |https: &Https| https.shown.0.read().unwrap().cert[0].clone();
        let before = leaf(&https);
        assert_eq!(https.take(first.clone()), Ok(false));
        let half = Files { chain_pem: second.chain_pem.clone(), ..first };
        assert!(https.take(half).is_err());
        assert_eq!(leaf(&https), before, "the last good one stays");
        assert_eq!(https.take(second), Ok(true));
        assert_ne!(leaf(&https), before);
    }
}
