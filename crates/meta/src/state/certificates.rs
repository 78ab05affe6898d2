//! The system group's record of certificates, and the deny list.
//!
//! Nodes and serial numbers on the deny list stand in the map's header: they reach every node with the map. A serial
//! number leaves it once its certificate would have ended.

use super::rows::{self, NodeRow};
use super::store::{Family, KeyRange, View};
use super::work::{Work, decided, refuse};
use super::{StateError, keys};
use plinth_protocol::meta::{
    CertificateRow, DenyNode, OPERATOR_NODE_MIN, Outcome, REVOKED_CERTIFICATES_MAX, RefusalKind, RevokedCertificate,
};

/// Most certificates that have ended removed by one command.
const ENDED_AT_ONCE: usize = 100;

impl<V: View> Work<'_, V> {
    fn now_s(&self) -> u64 {
        self.now.millis() / 1000
    }

    /// Writes a certificate down. The first one of a node also tells its key; one of another key is refused.
    pub(super) fn record_certificate(&mut self, certificate: &CertificateRow) -> Result<Outcome, StateError> {
        let header = decided!(self.header());
        if certificate.node.0 < OPERATOR_NODE_MIN {
            let key = keys::node(certificate.node);
            let Some(mut row) = self.read_kept::<NodeRow>(Family::Registry, &key)? else {
                return Ok(refuse(RefusalKind::NoSuchNode, format!("{} is not registered", certificate.node)));
            };
            match row.record.public_key {
                Some(known) if known != certificate.public_key => {
                    let text = format!("{} is known by another key", certificate.node);
                    return Ok(refuse(RefusalKind::AlreadyExists, text));
                }
                Some(_) => {}
                None => {
                    row.record.public_key = Some(certificate.public_key);
                    self.rewrite(key, &row);
                    self.bump_epoch(header);
                }
            }
        }
        self.drop_ended_certificates()?;
        self.put(Family::Registry, keys::certificate(certificate.serial), certificate);
        Ok(Outcome::Done)
    }

    fn drop_ended_certificates(&mut self) -> Result<(), StateError> {
        let range = KeyRange::of_prefix(&[keys::registry::CERTIFICATE]);
        for (place, row) in self.scan(Family::Registry, &range, ENDED_AT_ONCE)? {
            let certificate: CertificateRow = rows::decode(Family::Registry, &row)?;
            if certificate.valid_until_s < self.now_s() {
                self.batch.delete(Family::Registry, place);
            }
        }
        Ok(())
    }

    pub(super) fn revoke_certificate(&mut self, serial: u128) -> Result<Outcome, StateError> {
        let mut header = decided!(self.header());
        let Some(row) = self.read::<CertificateRow>(Family::Registry, &keys::certificate(serial))? else {
            return Ok(refuse(RefusalKind::NoSuchCertificate, format!("there is no certificate {serial:032x}")));
        };
        let now_s = self.now_s();
        let revoked = &mut header.record.revoked;
        if revoked.iter().any(|known| known.serial == serial) {
            return Ok(Outcome::Done);
        }
        revoked.retain(|known| known.valid_until_s >= now_s);
        if revoked.len() >= REVOKED_CERTIFICATES_MAX {
            return Ok(refuse(RefusalKind::Invalid, "4,096 certificates are revoked already; deny their nodes"));
        }
        revoked.push(RevokedCertificate { serial, valid_until_s: row.valid_until_s });
        self.bump_epoch(header);
        Ok(Outcome::Done)
    }

    /// Puts a node on the deny list or takes it off. Voters are denied only as far as the others can decide alone.
    pub(super) fn deny_node(&mut self, deny: &DenyNode) -> Result<Outcome, StateError> {
        let mut header = decided!(self.header());
        let row = self.read::<NodeRow>(Family::Registry, &keys::node(deny.node))?;
        let Some(row) = row else {
            return Ok(refuse(RefusalKind::NoSuchNode, format!("{} is not registered", deny.node)));
        };
        let denied = &mut header.record.denied;
        let was = denied.len();
        denied.retain(|node| *node != deny.node);
        if deny.denied {
            denied.push(deny.node);
            denied.sort();
            let voters = &header.record.voters;
            let left = voters.iter().filter(|voter| !header.record.denied.contains(voter)).count();
            if voters.contains(&deny.node) && left * 2 <= voters.len() {
                let text = format!("without {} no majority of the voters is left", row.node.name);
                return Ok(refuse(RefusalKind::Invalid, text));
            }
        }
        if header.record.denied.len() != was {
            self.bump_epoch(header);
        }
        Ok(Outcome::Node(row.node))
    }
}
