//! Access keys, and the signing keys derived from them.

use aws_lc_rs::hmac;
use plinth_protocol::Failure;
use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, RwLock};
use zeroize::Zeroizing;

/// Most derived keys kept; when full, all are forgotten and derived anew.
const DERIVED_KEYS_MAX: usize = 1024;

/// An access key with its secret. The secret is wiped when dropped, and never shown.
pub struct Credential {
    /// The access key id.
    pub access_key: String,
    /// The account that the key acts for.
    pub account: Arc<str>,
    secret: Zeroizing<String>,
}

impl Credential {
    /// Puts a credential together.
    pub fn new(access_key: impl Into<String>, secret: impl Into<String>, account: impl Into<Arc<str>>) -> Self {
        Credential { access_key: access_key.into(), account: account.into(), secret: Zeroizing::new(secret.into()) }
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential").field("access_key", &self.access_key).finish_non_exhaustive()
    }
}

/// A future that a trait object returns.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Where access keys come from: the system group, in a running cluster.
pub trait KeyRing: Send + Sync + 'static {
    /// Finds an access key by its id. The same `Arc` for the same key spares comparing secrets.
    fn find<'a>(&'a self, access_key: &'a str) -> BoxFuture<'a, Result<Option<Arc<Credential>>, Failure>>;
}

/// A fixed set of access keys.
#[derive(Default)]
pub struct StaticKeys {
    keys: HashMap<String, Arc<Credential>>,
}

impl StaticKeys {
    /// Makes a key ring of these credentials.
    pub fn new(credentials: impl IntoIterator<Item = Credential>) -> Self {
        let keys = credentials.into_iter().map(|known| (known.access_key.clone(), Arc::new(known))).collect();
        StaticKeys { keys }
    }
}

impl KeyRing for StaticKeys {
    fn find<'a>(&'a self, access_key: &'a str) -> BoxFuture<'a, Result<Option<Arc<Credential>>, Failure>> {
        let found = self.keys.get(access_key).cloned();
        Box::pin(async move { Ok(found) })
    }
}

/// Signing keys by `access-key/date/region`: deriving one costs four HMACs, finding it none.
#[derive(Default)]
pub struct DerivedKeys {
    known: RwLock<HashMap<String, Derived>>,
}

struct Derived {
    credential: Arc<Credential>,
    key: Arc<hmac::Key>,
}

impl Derived {
    /// A rotated secret under the same id must not be served by its predecessor's key.
    fn belongs_to(&self, credential: &Arc<Credential>) -> bool {
        Arc::ptr_eq(&self.credential, credential) || *self.credential.secret == *credential.secret
    }
}

impl DerivedKeys {
    /// Returns the signing key of a credential for a day and region.
    pub fn get(&self, credential: &Arc<Credential>, name: &str, date: &str, region: &str) -> Arc<hmac::Key> {
        {
            let known = self.known.read().expect("no holder of this lock panics");
            if let Some(found) = known.get(name).filter(|found| found.belongs_to(credential)) {
                return Arc::clone(&found.key);
            }
        }
        let key = Arc::new(derive(&credential.secret, date, region));
        let mut known = self.known.write().expect("no holder of this lock panics");
        if known.len() >= DERIVED_KEYS_MAX {
            known.clear();
        }
        known.insert(name.to_owned(), Derived { credential: Arc::clone(credential), key: Arc::clone(&key) });
        key
    }
}

fn derive(secret: &str, date: &str, region: &str) -> hmac::Key {
    let start = Zeroizing::new(format!("AWS4{secret}"));
    let step = |key: &[u8], text: &str| hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes());
    let day = step(start.as_bytes(), date);
    let place = step(day.as_ref(), region);
    let service = step(place.as_ref(), "s3");
    let last = step(service.as_ref(), "aws4_request");
    hmac::Key::new(hmac::HMAC_SHA256, last.as_ref())
}
