//! The name of a node in its certificate: one URI, `plinth://<cluster>/<role>[+<role>]/<node>`.
//!
//! The cluster is 32 lower-case hexadecimal digits, the roles are named in ascending order without
//! repetition, the node is `n` and a decimal number. Exactly one spelling is valid.

use crate::error::TransportError;
use plinth_protocol::{ClusterId, NodeId, Role};
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Certificate};

/// What a certificate says about a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeName {
    /// The cluster.
    pub cluster: ClusterId,
    /// The roles, ascending, at least one, never `Joining`.
    pub roles: Vec<Role>,
    /// The node.
    pub node: NodeId,
}

const SCHEME: &str = "plinth://";
/// The roles that a certificate can name.
const NAMED_ROLES: [Role; 4] = [Role::Gateway, Role::Meta, Role::Storage, Role::Admin];

impl NodeName {
    /// Makes a name; fails where there is no role or one that no certificate carries.
    pub fn new(cluster: ClusterId, roles: &[Role], node: NodeId) -> Result<Self, TransportError> {
        let mut roles = roles.to_vec();
        roles.sort();
        roles.dedup();
        if roles.is_empty() || roles.contains(&Role::Joining) {
            return Err(refuse("a node has at least one role, and none is `joining`"));
        }
        Ok(NodeName { cluster, roles, node })
    }

    /// Returns the URI.
    pub fn to_uri(&self) -> String {
        let roles: Vec<String> = self.roles.iter().map(Role::to_string).collect();
        format!("{SCHEME}{}/{}/{}", self.cluster, roles.join("+"), self.node)
    }

    /// Reads a URI; any other spelling than [`NodeName::to_uri`]'s is refused.
    pub fn from_uri(uri: &str) -> Result<Self, TransportError> {
        let invalid = || refuse(&format!("name is not {SCHEME}<cluster>/<roles>/<node>"));
        let mut parts = uri.strip_prefix(SCHEME).ok_or_else(invalid)?.split('/');
        let (Some(cluster), Some(roles), Some(node), None) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(invalid());
        };
        let cluster = u128::from_str_radix(cluster, 16).map_err(|_| invalid())?;
        let node = node.strip_prefix('n').and_then(|number| number.parse().ok()).ok_or_else(invalid)?;
        let roles = roles.split('+').map(role_named).collect::<Option<Vec<Role>>>().ok_or_else(invalid)?;
        let name = NodeName::new(ClusterId(cluster), &roles, NodeId(node))?;
        // One spelling only: leading zeros, signs, capitals and repeated roles end here.
        if name.to_uri() == uri { Ok(name) } else { Err(invalid()) }
    }

    /// Reads the name out of a certificate: its subject alternative names must be exactly one URI.
    pub fn from_certificate(der: &[u8]) -> Result<Self, TransportError> {
        let (rest, certificate) =
            X509Certificate::from_der(der).map_err(|error| refuse(&format!("not X.509: {error}")))?;
        if !rest.is_empty() {
            return Err(refuse("bytes behind the certificate"));
        }
        let names = certificate
            .extensions()
            .iter()
            .find_map(|extension| match extension.parsed_extension() {
                ParsedExtension::SubjectAlternativeName(names) => Some(names),
                _ => None,
            })
            .ok_or_else(|| refuse("no subject alternative name"))?;
        match names.general_names.as_slice() {
            [GeneralName::URI(uri)] => NodeName::from_uri(uri),
            _ => Err(refuse("subject alternative names are not exactly one URI")),
        }
    }
}

fn role_named(name: &str) -> Option<Role> {
    NAMED_ROLES.into_iter().find(|role| role.to_string() == name)
}

fn refuse(text: &str) -> TransportError {
    TransportError::Certificate(text.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_one_spelling_is_valid() {
        let name = NodeName::new(ClusterId(0xab), &[Role::Storage, Role::Gateway], NodeId(7)).unwrap();
        let uri = "plinth://000000000000000000000000000000ab/gateway+storage/n7";
        assert_eq!(name.to_uri(), uri);
        assert_eq!(NodeName::from_uri(uri).unwrap(), name);
        for other in [
            "plinth://ab/gateway+storage/n7",
            "plinth://000000000000000000000000000000AB/gateway+storage/n7",
            "plinth://000000000000000000000000000000ab/storage+gateway/n7",
            "plinth://000000000000000000000000000000ab/gateway+gateway/n7",
            "plinth://000000000000000000000000000000ab/gateway+storage/n07",
            "plinth://000000000000000000000000000000ab/gateway+storage/n+7",
            "plinth://000000000000000000000000000000ab/gateway+storage/7",
            "plinth://000000000000000000000000000000ab/joining/n7",
            "plinth://000000000000000000000000000000ab//n7",
            "plinth://000000000000000000000000000000ab/gateway/n7/",
            "spiffe://000000000000000000000000000000ab/gateway/n7",
        ] {
            assert!(NodeName::from_uri(other).is_err(), "{other}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_names_never_panic(uri: String, der: Vec<u8>) {
            let _ = NodeName::from_uri(&uri);
            let _ = NodeName::from_certificate(&der);
        }
    }
}
