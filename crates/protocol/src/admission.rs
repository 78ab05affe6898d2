//! Who belongs to the cluster: join tokens, certificates as group 0 records them, renewal, the deny list.

use crate::ids::{HybridTime, NodeId};
use crate::map::NodeRecord;
use crate::record;
use crate::rpc::Role;

/// Most certificates that are revoked at one time; each goes when it would have ended.
pub const REVOKED_CERTIFICATES_MAX: usize = 4096;
/// Longest name of an operator in bytes: what a certificate's common name holds beside its prefix.
pub const OPERATOR_NAME_BYTES_MAX: usize = 40;
/// First node id of operators: above every node that a registry counts up to.
pub const OPERATOR_NODE_MIN: u64 = 1 << 62;

record! {
    /// A join token: only its hash is kept.
    pub struct JoinTokenRow {
        /// SHA-256 of the token.
        1 => hash: [u8; 32],
        2 => expires: HybridTime,
        3 => roles: Vec<Role>,
        /// The node that it has admitted.
        16 -> used: Option<UsedToken>,
    }
}

record! {
    /// What became of a join token: a node that asks again with the same key, since it did not hear the answer, gets
    /// the same one.
    pub struct UsedToken {
        1 => node: NodeId,
        /// SHA-256 of the public key that the node asked a certificate for.
        2 => public_key: [u8; 32],
    }
}

record! {
    /// Use of a join token. Later versions admit by [`AdmitNode`], which uses a token up for an admission alone.
    pub struct ConsumeJoinToken {
        1 => hash: [u8; 32],
        2 => roles: Vec<Role>,
    }
}

record! {
    /// A node that joins or comes back. Id 0 asks for a new one.
    pub struct RegisterNode {
        1 => node: NodeRecord,
        /// Hash of the node's certificate public key (SHA-256).
        2 => public_key: Option<[u8; 32]>,
    }
}

record! {
    /// Admission of a node: uses its token up and registers it, both or neither.
    pub struct AdmitNode {
        /// SHA-256 of the token.
        1 => token: [u8; 32],
        /// The new node, under id 0, with its public key.
        2 => register: RegisterNode,
    }
}

record! {
    /// All join tokens that have not expired.
    pub struct JoinTokenList {
        1 => tokens: Vec<JoinTokenRow>,
    }
}

record! {
    /// A certificate as group 0 knows it: written down before it is handed out.
    pub struct CertificateRow {
        /// The serial number that the authority drew.
        1 => serial: u128,
        2 => node: NodeId,
        3 => roles: Vec<Role>,
        /// First and last second of validity since 1970.
        4 => valid_from_s: u64,
        5 => valid_until_s: u64,
        /// SHA-256 of the public key.
        6 => public_key: [u8; 32],
        /// The operator's name, where it is a named operator's.
        7 => operator: Option<String>,
    }
}

record! {
    /// A certificate that is refused until it would have ended.
    pub struct RevokedCertificate {
        1 => serial: u128,
        2 => valid_until_s: u64,
    }
}

record! {
    /// Certificates that have not ended, those that are revoked among them.
    pub struct CertificateList {
        1 => certificates: Vec<CertificateRow>,
        2 => revoked: Vec<RevokedCertificate>,
    }
}

record! {
    /// Puts a node on the deny list or takes it off.
    pub struct DenyNode {
        1 => node: NodeId,
        2 => denied: bool,
    }
}

record! {
    /// What a node or an operator asks of the authority under the certificate that it has.
    pub struct CertifyRequest {
        /// Certificate signing request, PEM, for the key of the certificate in use; without one the certificate in
        /// use is only written down.
        1 => csr: Option<String>,
    }
}

record! {
    /// The answer to a [`CertifyRequest`].
    pub struct CertifyReply {
        /// The new certificate and the cluster's CA, PEM, where one was asked for.
        1 => certificate: Option<String>,
    }
}

record! {
    /// An operator's order of a certificate for an operator.
    pub struct CertifyOperator {
        1 => name: String,
        /// Certificate signing request, PEM.
        2 => csr: String,
        3 => days: u64,
    }
}
