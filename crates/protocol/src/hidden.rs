//! Values that are never shown: secrets on their way between nodes.

use crate::wire::{Wire, WireError};
use std::fmt;
use std::ops::Deref;

/// A secret inside a record: the same bytes on the wire as `T`, but neither logs nor errors show it.
#[derive(Clone, PartialEq, Eq)]
pub struct Hidden<T>(pub T);

impl<T> fmt::Debug for Hidden<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
}

impl<T> Deref for Hidden<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> From<T> for Hidden<T> {
    fn from(value: T) -> Self {
        Hidden(value)
    }
}

impl<T: Wire> Wire for Hidden<T> {
    const MAY_BE_EMPTY: bool = T::MAY_BE_EMPTY;
    fn encode(&self, out: &mut Vec<u8>) {
        self.0.encode(out);
    }
    fn decode(input: &[u8]) -> Result<Self, WireError> {
        T::decode(input).map(Hidden)
    }
    fn is_absent(&self) -> bool {
        self.0.is_absent()
    }
    fn absent() -> Option<Self> {
        T::absent().map(Hidden)
    }
}

#[cfg(test)]
mod tests {
    use crate::HybridTime;
    use crate::meta::{AccessKeyRow, Answer, Command, JoinRequest, Reply};
    use bytes::Bytes;

    #[test]
    fn records_with_secrets_do_not_show_them() {
        let key = AccessKeyRow {
            id: "PLK1".into(),
            wrapped_secret: Bytes::from_static(b"canary-1").into(),
            account: "a".into(),
            created: HybridTime(1),
            description: None,
        };
        let join = JoinRequest {
            token: String::from("canary-2").into(),
            csr: String::new(),
            name: "n".into(),
            roles: Vec::new(),
            address: String::new(),
            domain: None,
        };
        let answer: Answer<Reply> = Ok(Reply::AccessKey(key.clone()));
        let shown = format!("{answer:?} {:?} {join:?}", Command::CreateAccessKey(key));
        // As text, and as a list of numbers.
        assert!(!shown.contains("canary") && !shown.contains("99, 97, 110"), "{shown}");
        assert!(shown.contains("PLK1") && shown.contains("(hidden)"));
    }
}
