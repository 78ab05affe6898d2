//! Writing an object.

use crate::client::Client;
use plinth_protocol::Failure;
use plinth_protocol::object::Body;
use plinth_protocol::stripe::Owner;

impl Client {
    /// Starts an object or part. The writer fills in the owner's ordinal and offset; `size_hint` is
    /// the object's size in bytes where it is known.
    pub fn write(&self, owner: Owner, size_hint: Option<u64>) -> ObjectWriter {
        ObjectWriter { client: self.clone(), owner, size_hint }
    }
}

/// Takes an object's bytes and makes them durable.
pub struct ObjectWriter {
    client: Client,
    owner: Owner,
    size_hint: Option<u64>,
}

impl ObjectWriter {
    /// Takes the next bytes; waits while the client's memory for writing is taken or too many of
    /// the object's stripes are on their way.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let _ = (&self.client, &self.owner, self.size_hint, bytes);
        Err(Failure::new(plinth_protocol::FailureKind::Unavailable, "being written"))
    }

    /// Makes the rest durable; returns where the bytes are. Nothing refers to them until the caller
    /// commits a row with this body.
    pub async fn finish(self) -> Result<Body, Failure> {
        Err(Failure::new(plinth_protocol::FailureKind::Unavailable, "being written"))
    }
}
