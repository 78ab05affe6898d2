//! Renewal of the node's own certificate while the node serves.
//!
//! At two thirds of its life the node asks a metadata node for another certificate for the same key, writes it over
//! the old one and uses it: new connections show it, the old ones are replaced one by one as calls come. The file is
//! watched, so that what `plinth cert reissue` writes is used without a restart.

use crate::config::Config;
use crate::files;
use crate::identity::{self, authority_pem, ended_text};
use crate::measure::Measures;
use crate::node::wall_clock;
use crate::peers::PeerCheck;
use bytes::Bytes;
use plinth_protocol::map::{ClusterMap, State};
use plinth_protocol::meta::{CertifyReply, CertifyRequest};
use plinth_protocol::wire::Wire;
use plinth_protocol::{Failure, FailureKind, Incarnation, Method, NodeId, Role};
use plinth_transport::authority::{NodeCertificate, NodeKey};
use plinth_transport::certificate::CertificateFacts;
use plinth_transport::{Call, Credentials, Link, Peer, TlsLink};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::watch;
use tokio::time::Instant;

/// How often the node looks at its certificate and its file.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How long one metadata node may take to sign.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(10);
/// Shortest and longest pause after a renewal that failed.
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(3600);
/// How often a node says in its log that its certificate has ended.
const REMIND_EVERY: Duration = Duration::from_secs(60);
/// Nodes of one founding spread their renewals over this part of a certificate's life, before two thirds of it.
const SPREAD_PART: u32 = 20;

/// Returns when a certificate is to be renewed: at two thirds of its life, up to a twentieth of it earlier so that the
/// founders of a cluster do not all come at once.
pub fn due_at(certificate: &CertificateFacts, node: NodeId) -> SystemTime {
    let issued = SystemTime::UNIX_EPOCH + Duration::from_secs(certificate.issued_s());
    let life = Duration::from_secs(certificate.valid_until_s.saturating_sub(certificate.issued_s()));
    // Neighbouring ids end up far apart: the golden ratio's fraction, in 1024ths.
    let share = (node.0.wrapping_mul(633) % 1024) as u32;
    issued + life * 2 / 3 - life / SPREAD_PART * share / 1024
}

/// Returns how long to wait after a renewal failed: a sixtieth of the certificate's life, within bounds.
pub fn retry_after(certificate: &CertificateFacts) -> Duration {
    let life = Duration::from_secs(certificate.valid_until_s.saturating_sub(certificate.issued_s()));
    (life / 60).clamp(RETRY_MIN, RETRY_MAX)
}

/// Uses other credentials from now on.
pub type UseCredentials = Arc<dyn Fn(Arc<Credentials>) + Send + Sync>;

/// The node's certificate and everything that shows it.
pub struct Renewal {
    chain_file: PathBuf,
    key_file: PathBuf,
    ca_pem: String,
    incarnation: Incarnation,
    certificate: NodeCertificate,
    link: Arc<TlsLink>,
    serving: Option<UseCredentials>,
    peers: PeerCheck,
    measures: Arc<Measures>,
    /// Serial number of the certificate that group 0 has written down.
    recorded: Option<u128>,
    retry: Option<Instant>,
    reminded: Option<Instant>,
    /// What the file held when it could not be used.
    refused: Option<String>,
}

impl Renewal {
    /// Takes over the certificate that the node has started with.
    pub fn new(
        config: &Config,
        certificate: NodeCertificate,
        link: Arc<TlsLink>,
        serving: Option<UseCredentials>,
        peers: PeerCheck,
        measures: Arc<Measures>,
    ) -> Self {
        Renewal {
            chain_file: config.security.certificate.clone(),
            key_file: config.security.private_key.clone(),
            ca_pem: authority_pem(&certificate).unwrap_or_default(),
            incarnation: Incarnation(config.node.incarnation),
            certificate,
            link,
            serving,
            peers,
            measures,
            recorded: None,
            retry: None,
            reminded: None,
            refused: None,
        }
    }

    /// Keeps the certificate alive until the node stops.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) {
        loop {
            self.look().await;
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                _ = stop.wait_for(|stop| *stop) => return,
            }
        }
    }

    async fn look(&mut self) {
        self.take_file().await;
        self.remind();
        if self.peers.client().is_none() || self.retry.is_some_and(|at| Instant::now() < at) {
            return;
        }
        let facts = self.certificate.facts();
        let due = wall_clock() >= due_at(facts, self.certificate.node());
        if !due && self.recorded == Some(facts.serial) {
            return;
        }
        let pause = retry_after(facts);
        if let Err(failure) = self.ask(due).await {
            let ends = crate::identity::moment_text(self.certificate.valid_until());
            tracing::warn!(event = "certificate_not_renewed", %failure, ends, due, "no metadata node signs");
            self.retry = Some(Instant::now() + pause);
        }
    }

    /// Asks the metadata nodes one by one to renew the certificate, or to write it down as it is.
    async fn ask(&mut self, renew: bool) -> Result<(), Failure> {
        let map = self.peers.client().map(plinth_client::Client::map);
        let signers = map.map(|map| signers(&map, self.certificate.node())).unwrap_or_default();
        let csr = match renew {
            true => Some(NodeKey::load(self.certificate.key_pem())?.request_pem()?),
            false => None,
        };
        let header = CertifyRequest { csr }.to_bytes();
        let mut last = Failure::new(FailureKind::Unavailable, "the map has no metadata node");
        for peer in signers {
            match call_signer(&*self.link, &peer, header.clone()).await {
                Ok(CertifyReply { certificate: Some(chain) }) => match self.take(chain).await {
                    Ok(()) => return Ok(()),
                    // Another signer's clock may be right.
                    Err(failure) => last = failure,
                },
                Ok(_) => {
                    self.recorded = Some(self.certificate.facts().serial);
                    return Ok(());
                }
                Err(failure) => last = failure,
            }
        }
        Err(last)
    }

    /// Checks a new certificate, writes it over the old one, and uses it.
    async fn take(&mut self, chain: String) -> Result<(), Failure> {
        let renewed = NodeCertificate::load(&chain, self.certificate.key_pem())?;
        let fits = self.check(&renewed).and_then(|()| identity::check_validity(&renewed, wall_clock()));
        fits.map_err(|text| Failure::new(FailureKind::Internal, text))?;
        let file = self.chain_file.clone();
        let writing = tokio::task::spawn_blocking(move || files::write_public(&file, chain.as_bytes()));
        let written = writing.await.unwrap_or_else(|error| Err(std::io::Error::other(error)));
        // What is signed is used even where it cannot be kept: the next start then finds the old one.
        if let Err(error) = written {
            tracing::error!(%error, file = %self.chain_file.display(), "the renewed certificate can't be written");
        }
        self.recorded = Some(renewed.facts().serial);
        self.adopt(renewed)
    }

    fn check(&self, renewed: &NodeCertificate) -> Result<(), String> {
        let same = renewed.node() == self.certificate.node()
            && renewed.cluster() == self.certificate.cluster()
            && renewed.roles() == self.certificate.roles();
        if !same || authority_pem(renewed).as_deref() != Some(&self.ca_pem) {
            return Err("the certificate is for another node, for other roles or of another CA".into());
        }
        Ok(())
    }

    /// Shows another certificate from now on.
    fn adopt(&mut self, renewed: NodeCertificate) -> Result<(), Failure> {
        let credentials = Arc::new(Credentials::new(&renewed, &self.ca_pem, self.incarnation)?);
        if let Some(serving) = &self.serving {
            serving(credentials.clone());
        }
        self.link.set_credentials(credentials);
        self.measures.set_certificate("node", renewed.valid_from(), renewed.valid_until());
        let ends = identity::moment_text(renewed.valid_until());
        let serial = format!("{:032x}", renewed.facts().serial);
        tracing::info!(event = "certificate_taken", ends, serial, "a new certificate is in use");
        self.certificate = renewed;
        (self.retry, self.reminded) = (None, None);
        Ok(())
    }

    /// Takes a certificate that somebody has put in place of the old one.
    async fn take_file(&mut self) {
        let file = self.chain_file.clone();
        let Ok(Ok(chain)) = tokio::task::spawn_blocking(move || files::read_text(&file)).await else { return };
        if chain == self.certificate.chain_pem() || self.refused.as_ref() == Some(&chain) {
            return;
        }
        let loaded = identity::load_certificate(&self.chain_file, &self.key_file, self.incarnation);
        let taken = loaded.map_err(|error| error.to_string()).and_then(|(renewed, _)| {
            self.check(&renewed)?;
            self.adopt(renewed).map_err(|failure| failure.to_string())
        });
        if let Err(reason) = taken {
            tracing::error!(file = %self.chain_file.display(), reason, "the certificate's file can't be used");
            self.refused = Some(chain);
        }
    }

    fn remind(&mut self) {
        let ended = wall_clock() > self.certificate.valid_until();
        if ended && self.reminded.is_none_or(|at| at.elapsed() >= REMIND_EVERY) {
            self.reminded = Some(Instant::now());
            tracing::error!(event = "certificate_ended", "{}", ended_text(self.certificate.valid_until()));
        }
    }
}

/// Returns the metadata nodes that may sign: voters that are up first, each node beginning with another.
pub fn signers(map: &ClusterMap, asker: NodeId) -> Vec<Peer> {
    let mut metas: Vec<_> = map.nodes.iter().filter(|node| node.roles.contains(&Role::Meta)).collect();
    if !metas.is_empty() {
        let turn = (asker.0 % metas.len() as u64) as usize;
        metas.rotate_left(turn);
    }
    metas.retain(|node| node.state != State::Retired && !map.denied_nodes.contains(&node.node));
    metas.sort_by_key(|node| node.state != State::Up || !map.voters.contains(&node.node));
    let peer = |node: &plinth_protocol::map::NodeRecord| Peer {
        node: node.node,
        incarnation: Some(node.incarnation),
        address: node.address.clone(),
    };
    metas.into_iter().map(peer).collect()
}

/// Asks one metadata node.
pub async fn call_signer(link: &dyn Link, peer: &Peer, header: Bytes) -> Result<CertifyReply, Failure> {
    let call = Call { method: Method::Certify, header, payload: Vec::new(), deadline: ANSWER_TIME_MAX };
    Ok(CertifyReply::decode(&link.call(peer, call).await?.header)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use plinth_transport::Fingerprint;
    use plinth_transport::authority::CLOCK_SKEW_MAX;

    const ISSUED_S: u64 = 1_800_000_000;

    fn certificate(life_s: u64) -> CertificateFacts {
        CertificateFacts {
            serial: 1,
            public_key: Fingerprint([0; 32]),
            valid_from_s: ISSUED_S - CLOCK_SKEW_MAX.as_secs(),
            valid_until_s: ISSUED_S + life_s,
            incarnation: None,
            operator: None,
        }
    }

    fn due_after_s(life_s: u64, node: u64) -> f64 {
        let due = due_at(&certificate(life_s), NodeId(node)).duration_since(SystemTime::UNIX_EPOCH).unwrap();
        due.as_secs_f64() - ISSUED_S as f64
    }

    #[test]
    fn certificates_are_renewed_shortly_before_two_thirds_of_their_life() {
        for life_s in [20, 300, 24 * 3600, 90 * 24 * 3600, 365 * 24 * 3600] {
            for node in 0..2000 {
                let part = due_after_s(life_s, node) / life_s as f64;
                assert!((0.6166..=0.66667).contains(&part), "node {node}, {life_s} s: {part}");
            }
        }
    }

    #[test]
    fn founders_of_one_moment_renew_at_different_ones() {
        let day = 24 * 3600;
        let mut dues: Vec<f64> = (1..=15).map(|node| due_after_s(90 * day, node)).collect();
        dues.sort_by(f64::total_cmp);
        let least = dues.windows(2).map(|pair| pair[1] - pair[0]).fold(f64::MAX, f64::min);
        assert!(least > 3600.0, "two of fifteen founders come within {least} s of each other");
    }

    #[test]
    fn a_failed_renewal_is_tried_often_enough_to_succeed_before_the_end() {
        for life_s in [20, 300, 24 * 3600, 90 * 24 * 3600, 365 * 24 * 3600] {
            let pause = retry_after(&certificate(life_s)).as_secs();
            assert!((1..=3600).contains(&pause));
            assert!(life_s / 3 / pause >= 6, "{life_s} s: tries of {pause} s");
        }
    }
}
