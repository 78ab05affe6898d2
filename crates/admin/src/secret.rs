//! Access keys and tokens: drawn at random, shown once, kept wrapped or hashed.

use aws_lc_rs::digest;
use aws_lc_rs::key_wrap::{AES_256, AesKek, KeyWrapPadded};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use plinth_protocol::Hidden;

/// Bytes of the key that wraps secrets (AES-256-KWP, RFC 5649).
pub const WRAPPING_KEY_BYTES: usize = 32;
/// Longest secret that is unwrapped, in bytes.
const SECRET_BYTES_MAX: usize = 256;

/// A fresh access key, as shown to its owner once.
pub struct FreshKey {
    /// The public id: `PLK` and 17 letters and digits.
    pub id: String,
    /// The secret: 40 characters of base64.
    pub secret: String,
}

/// Why a secret can't be wrapped or unwrapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// The wrapping key has the wrong length.
    #[error("the wrapping key must hold {WRAPPING_KEY_BYTES} bytes")]
    KeyLength,
    /// The bytes were not wrapped under this key.
    #[error("the secret was not wrapped under this key")]
    Unwrap,
}

/// Draws an access key: 85 random bits in the id, 240 in the secret.
pub fn draw_access_key() -> FreshKey {
    const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let random: [u8; 17] = draw();
    let id: String = random.iter().map(|byte| ALPHABET[usize::from(byte % 32)] as char).collect();
    FreshKey { id: format!("PLK{id}"), secret: STANDARD.encode(draw::<30>()) }
}

/// Draws random bytes from the system's generator.
pub fn draw<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).expect("the system's random generator never fails once seeded");
    bytes
}

/// Wraps a secret for storage in group 0.
pub fn wrap(wrapping_key: &[u8], secret: &str) -> Result<Bytes, SecretError> {
    let kek = AesKek::new(&AES_256, wrapping_key).map_err(|_| SecretError::KeyLength)?;
    let mut out = vec![0; secret.len() + 16];
    let wrapped = kek.wrap_with_padding(secret.as_bytes(), &mut out).map_err(|_| SecretError::Unwrap)?;
    Ok(Bytes::copy_from_slice(wrapped))
}

/// Unwraps a secret from group 0.
pub fn unwrap(wrapping_key: &[u8], wrapped: &[u8]) -> Result<String, SecretError> {
    if wrapped.len() > SECRET_BYTES_MAX {
        return Err(SecretError::Unwrap);
    }
    let kek = AesKek::new(&AES_256, wrapping_key).map_err(|_| SecretError::KeyLength)?;
    let mut out = vec![0; wrapped.len() + 8];
    let secret = kek.unwrap_with_padding(wrapped, &mut out).map_err(|_| SecretError::Unwrap)?;
    String::from_utf8(secret.to_vec()).map_err(|_| SecretError::Unwrap)
}

/// A join token as an operator carries it: `plj1.<secret>.<CA fingerprint>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinToken {
    secret: Hidden<[u8; 24]>,
    /// SHA-256 of the CA certificate's DER form: the joining node trusts only this CA.
    pub ca_fingerprint: [u8; 32],
}

impl JoinToken {
    /// Draws a token for the cluster with this CA.
    pub fn new(ca_fingerprint: [u8; 32]) -> Self {
        JoinToken { secret: Hidden(draw()), ca_fingerprint }
    }

    /// Reads a token's text.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.trim().split('.');
        if parts.next()? != "plj1" {
            return None;
        }
        let secret: [u8; 24] = URL_SAFE_NO_PAD.decode(parts.next()?).ok()?.try_into().ok()?;
        let ca_fingerprint = URL_SAFE_NO_PAD.decode(parts.next()?).ok()?.try_into().ok()?;
        parts.next().is_none().then_some(JoinToken { secret: Hidden(secret), ca_fingerprint })
    }

    /// Returns the token's text.
    pub fn text(&self) -> String {
        format!("plj1.{}.{}", URL_SAFE_NO_PAD.encode(*self.secret), URL_SAFE_NO_PAD.encode(self.ca_fingerprint))
    }

    /// Returns what group 0 keeps of the token.
    pub fn hash(&self) -> [u8; 32] {
        sha256(self.text().as_bytes())
    }
}

/// Returns the SHA-256 of some bytes.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let sum = digest::digest(&digest::SHA256, bytes);
    sum.as_ref().try_into().expect("SHA-256 has 32 bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrapped_secret_opens_only_under_its_key() {
        let (key, other) = (draw::<32>(), draw::<32>());
        let fresh = draw_access_key();
        let wrapped = wrap(&key, &fresh.secret).unwrap();
        assert_eq!(unwrap(&key, &wrapped).unwrap(), fresh.secret);
        assert_eq!(unwrap(&other, &wrapped), Err(SecretError::Unwrap));
        assert_eq!(wrap(&key[..5], "x"), Err(SecretError::KeyLength));
        assert!(!wrapped.windows(8).any(|window| fresh.secret.as_bytes().starts_with(window)));
    }

    #[test]
    fn token_text_reads_back() {
        let token = JoinToken::new([7; 32]);
        assert_eq!(JoinToken::parse(&token.text()), Some(token.clone()));
        assert_eq!(JoinToken::parse("plj1.abc"), None);
        assert_ne!(JoinToken::new([7; 32]).hash(), token.hash());
    }
}
