//! The payload of an ordinary log entry: mutations that were merged, under one time stamp.
//!
//! | offset | bytes | content                                                          |
//! |--------|-------|------------------------------------------------------------------|
//! | 0      | 1     | version: 1                                                       |
//! | 1      | 8     | hybrid logical time, little-endian                               |
//! | 9      | rest  | mutations, each behind its length (`protocol::wire`, list form)  |

use crate::MetaError;
use bytes::Bytes;
use plinth_protocol::HybridTime;
use plinth_protocol::meta::Mutation;
use plinth_protocol::wire::{Wire, encode_counted};

const VERSION: u8 = 1;
const HEAD_BYTES: usize = 9;

/// Merges mutations into the payload of one entry.
pub(crate) struct BatchBuilder {
    bytes: Vec<u8>,
}

impl BatchBuilder {
    /// Starts an empty batch with room for `capacity` bytes.
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        let mut bytes = Vec::with_capacity(HEAD_BYTES + capacity);
        bytes.push(VERSION);
        bytes.extend_from_slice(&[0; 8]);
        BatchBuilder { bytes }
    }

    /// Adds one mutation, as [`encode_mutation`] has made it, behind those before it.
    pub(crate) fn push(&mut self, encoded: &[u8]) {
        self.bytes.extend_from_slice(encoded);
    }

    /// Stamps the batch and closes it.
    pub(crate) fn finish(mut self, time: HybridTime) -> Bytes {
        self.bytes[1..HEAD_BYTES].copy_from_slice(&time.0.to_le_bytes());
        Bytes::from(self.bytes)
    }
}

/// Returns a mutation's bytes behind their length, ready for a batch.
pub(crate) fn encode_mutation(mutation: &Mutation) -> Vec<u8> {
    let mut out = Vec::with_capacity(512);
    encode_counted(mutation, &mut out);
    out
}

/// Reads the time stamp of a batch without its mutations.
pub(crate) fn batch_time(payload: &[u8]) -> Result<HybridTime, MetaError> {
    match payload {
        [VERSION, rest @ ..] if rest.len() >= 8 => {
            let mut time = [0; 8];
            time.copy_from_slice(&rest[..8]);
            Ok(HybridTime(u64::from_le_bytes(time)))
        }
        [VERSION, ..] => Err(MetaError::Corrupt("batch ends inside its head".into())),
        [version, ..] => Err(MetaError::Corrupt(format!("batch version {version} is not known here"))),
        [] => Err(MetaError::Corrupt("empty batch".into())),
    }
}

/// Reads a batch.
pub(crate) fn decode_batch(payload: &[u8]) -> Result<(HybridTime, Vec<Mutation>), MetaError> {
    let time = batch_time(payload)?;
    Ok((time, Vec::<Mutation>::decode(&payload[HEAD_BYTES..])?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use plinth_protocol::meta::Command;
    use plinth_protocol::{BucketId, GroupId, RequestId};

    fn mutation(request: u128) -> Mutation {
        Mutation {
            group: GroupId(1),
            request: RequestId(request),
            writer: None,
            token: None,
            command: Command::OpenBucket(BucketId(9)),
            issued: None,
            seen: None,
        }
    }

    #[test]
    fn batch_round_trips_with_its_time() {
        let mut builder = BatchBuilder::with_capacity(0);
        builder.push(&encode_mutation(&mutation(1)));
        builder.push(&encode_mutation(&mutation(2)));
        let payload = builder.finish(HybridTime(77));
        assert_eq!(batch_time(&payload).unwrap(), HybridTime(77));
        assert_eq!(decode_batch(&payload).unwrap(), (HybridTime(77), vec![mutation(1), mutation(2)]));
    }

    #[test]
    fn newer_or_cut_batches_are_refused() {
        let payload = BatchBuilder::with_capacity(0).finish(HybridTime(1));
        assert!(decode_batch(&payload[..5]).is_err());
        assert!(decode_batch(&[]).is_err());
        let mut newer = payload.to_vec();
        newer[0] = 2;
        assert!(decode_batch(&newer).unwrap_err().to_string().contains("version 2"));
    }
}
