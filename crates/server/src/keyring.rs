//! Access keys for the gateway: asked of the system group, unwrapped, kept for seconds.

use bytes::Bytes;
use plinth_admin::secret;
use plinth_client::Client;
use plinth_gateway::{Credential, KeyRing};
use plinth_protocol::meta::{ACCESS_KEY_ID_BYTES_MAX, AccessKeyRow, Query, Reply, is_access_key_id};
use plinth_protocol::{Failure, FailureKind, GROUP_SYSTEM};
use plinth_transport::BoxFuture;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;
use zeroize::Zeroizing;

/// How long a key is believed without asking again: the bound on how late a revocation is felt.
const BELIEF_TIME_MAX: Duration = Duration::from_secs(3);
/// How long the system group may take to answer.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(10);
/// Most keys kept at once: with the longest ids and secrets 6 MiB at most.
const KEYS_KEPT_MAX: usize = 10_000;
const _: () = assert!(KEYS_KEPT_MAX * (2 * ACCESS_KEY_ID_BYTES_MAX + WRAPPED_BYTES_MAX) <= 6 << 20);
/// Most bytes of a wrapped secret.
const WRAPPED_BYTES_MAX: usize = 256;

/// The keys of the cluster's accounts.
pub struct ClusterKeys {
    client: Client,
    wrapping_key: Zeroizing<Vec<u8>>,
    kept: Mutex<BTreeMap<String, Kept>>,
}

struct Kept {
    key: Option<Arc<Credential>>,
    wrapped: Bytes,
    asked: Instant,
}

impl ClusterKeys {
    /// Makes a key ring over the system group.
    pub fn new(client: Client, wrapping_key: Zeroizing<Vec<u8>>) -> Self {
        ClusterKeys { client, wrapping_key, kept: Mutex::new(BTreeMap::new()) }
    }

    fn kept(&self, id: &str) -> Option<Option<Arc<Credential>>> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.get(id).filter(|kept| kept.asked.elapsed() < BELIEF_TIME_MAX).map(|kept| kept.key.clone())
    }

    fn unwrap(&self, row: &AccessKeyRow) -> Result<Credential, Failure> {
        let secret = secret::unwrap(&self.wrapping_key, &row.wrapped_secret)
            .map_err(|error| Failure::new(FailureKind::Internal, error.to_string()))?;
        Ok(Credential::new(row.id.clone(), secret, row.account.clone()))
    }

    async fn ask(&self, id: &str) -> Result<Option<Arc<Credential>>, Failure> {
        let asked = Instant::now();
        let reply = self.client.query(GROUP_SYSTEM, Query::AccessKey(id.to_string()), asked + ANSWER_TIME_MAX).await?;
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let (key, wrapped) = match reply {
            Reply::AccessKey(row) => {
                // The same row gives the same credential, so that keys derived from it stay known.
                let known =
                    kept.get(id).filter(|kept| kept.wrapped == *row.wrapped_secret).and_then(|kept| kept.key.clone());
                let key = match known {
                    Some(key) => key,
                    None => Arc::new(self.unwrap(&row)?),
                };
                (Some(key), row.wrapped_secret.0)
            }
            Reply::Absent(_) => (None, Bytes::new()),
            other => return Err(Failure::new(FailureKind::Internal, format!("unexpected reply {other:?}"))),
        };
        if kept.len() >= KEYS_KEPT_MAX {
            // A scan with made-up ids must not grow the ring: what is stale goes, and if nothing is, everything.
            kept.retain(|_, kept| kept.asked.elapsed() < BELIEF_TIME_MAX);
            if kept.len() >= KEYS_KEPT_MAX {
                kept.clear();
            }
        }
        kept.insert(id.to_string(), Kept { key: key.clone(), wrapped, asked });
        Ok(key)
    }
}

impl KeyRing for ClusterKeys {
    fn find<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Option<Arc<Credential>>, Failure>> {
        Box::pin(async move {
            // Such an id is nobody's: it costs neither a question nor a place in the memory of answers.
            if !is_access_key_id(id) {
                return Ok(None);
            }
            match self.kept(id) {
                Some(key) => Ok(key),
                None => self.ask(id).await,
            }
        })
    }
}
