//! Bodies that cost the generator nothing: slices of one pool of random bytes.
//!
//! The body of a key is the pool from an offset that the key's number decides, repeated as long as needed.
//! Whoever knows the number can check every byte that comes back.

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::convert::Infallible;

/// Bytes of the pool.
const POOL_BYTES: usize = 16 << 20;

/// The longest slice handed out at once, in bytes.
const SLICE_BYTES_MAX: usize = 1 << 20;

/// What hyper sends.
pub type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Random bytes, made once.
#[derive(Clone)]
pub struct Pool {
    bytes: Bytes,
}

/// A stretch of the endless body of one key.
#[derive(Clone)]
pub struct Stretch {
    pool: Bytes,
    at: usize,
    left: u64,
}

impl Pool {
    /// Fills the pool from a seed.
    pub fn new(seed: u64) -> Pool {
        let mut bytes = vec![0; POOL_BYTES];
        StdRng::seed_from_u64(seed).fill_bytes(&mut bytes);
        Pool { bytes: bytes.into() }
    }

    /// Returns bytes `from..from + length` of the body of key `number`.
    pub fn stretch(&self, number: u64, from: u64, length: u64) -> Stretch {
        // A prime step spreads neighbours over the pool.
        let start = number.wrapping_mul(1_048_573).wrapping_add(from) % POOL_BYTES as u64;
        Stretch { pool: self.bytes.clone(), at: start as usize, left: length }
    }
}

impl Iterator for Stretch {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        let length = self.left.min(SLICE_BYTES_MAX as u64).min((POOL_BYTES - self.at) as u64) as usize;
        if length == 0 {
            return None;
        }
        let slice = self.pool.slice(self.at..self.at + length);
        self.at = (self.at + length) % POOL_BYTES;
        self.left -= length as u64;
        Some(slice)
    }
}

impl Stretch {
    /// Turns the stretch into a request body; its length must be told in `content-length`.
    pub fn into_body(mut self) -> Body {
        if self.left <= SLICE_BYTES_MAX as u64 && self.left <= (POOL_BYTES - self.at) as u64 {
            return whole(self.next().unwrap_or_default());
        }
        let frames = futures_util::stream::iter(self.map(|slice| Ok(Frame::data(slice))));
        StreamBody::new(frames).boxed_unsync()
    }

    /// Takes what the peer sent next and tells whether it is what was expected.
    pub fn matches(&mut self, mut received: &[u8]) -> bool {
        while !received.is_empty() {
            let length = received.len().min(POOL_BYTES - self.at).min(self.left.min(usize::MAX as u64) as usize);
            if length == 0 || received[..length] != self.pool[self.at..self.at + length] {
                return false;
            }
            received = &received[length..];
            self.at = (self.at + length) % POOL_BYTES;
            self.left -= length as u64;
        }
        true
    }

    /// Bytes not yet handed out or compared.
    pub fn left(&self) -> u64 {
        self.left
    }
}

/// A request body that is there as a whole.
pub fn whole(bytes: Bytes) -> Body {
    Full::new(bytes).boxed_unsync()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stretch_is_told_from_any_other() {
        let pool = Pool::new(1);
        let length = (POOL_BYTES + 12345) as u64;
        let body: Vec<u8> = pool.stretch(7, 100, length).flatten().collect();
        assert_eq!(body.len() as u64, length);
        let mut expected = pool.stretch(7, 100, length);
        assert!(body.chunks(77_777).all(|part| expected.matches(part)));
        assert_eq!(expected.left(), 0);
        assert!(!expected.matches(&body[..1]), "more than the object's bytes is a mismatch");
        assert!(!pool.stretch(8, 100, length).matches(&body[..64]));
        assert!(!pool.stretch(7, 101, length).matches(&body[..64]));
    }
}
