//! A replica's rows from a peer, on the replica's own demand: how a damaged database is rebuilt.
//!
//! The peer makes a checkpoint and keeps it while pieces of it are asked for; the asker checks sizes, the transport each
//! piece, and RocksDB every file against the checksum in its manifest, before the copy counts. Raft has no part in it:
//! what a peer has applied is committed, so its rows are right for every replica whose log goes on from there.

use super::group::RaftGroup;
use super::machine::{SnapshotFolder, blocking, drop_blocking};
use super::message::{FetchBegin, FetchFile, FetchOffer, FetchPiece, RaftCall, SnapshotWords};
use super::network::{PIECE_RETRY, PIECE_TRIES_MAX, PIECES_IN_FLIGHT};
use super::snapshot::{FolderGuard, Incoming};
use super::words::SnapshotMeta;
use crate::MetaError;
use crate::state::{Fault, RocksStore};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use plinth_protocol::wire::Wire;
use plinth_protocol::{Failure, FailureKind, NodeId};
use plinth_transport::Peer;
use std::time::Duration;
use tokio::time::Instant;

/// How long a checkpoint is kept although nothing of it is asked for.
const OFFER_IDLE_MAX: Duration = Duration::from_secs(60);
/// Most bytes of one piece.
const PIECE_BYTES_MAX: u64 = 4 << 20;
/// A checkpoint that a peer fetches.
pub(crate) struct Outgoing {
    transfer: u128,
    folder: FolderGuard,
    used: Instant,
}

/// Giving.
impl RaftGroup {
    /// Makes a checkpoint for a peer. One at a time: an earlier one goes.
    pub(super) async fn handle_fetch_begin(&self, begin: FetchBegin) -> Result<Bytes, Failure> {
        if self.shard().damage().is_some() {
            return Err(Failure::new(FailureKind::Unavailable, "this replica is damaged itself"));
        }
        let shard = self.shard().clone();
        let (meta, folder) = blocking(move || shard.checkpoint()).await?;
        let (files, path) = (self.wires.files.clone(), folder.path().to_owned());
        let listed = blocking(move || {
            let io = |error| MetaError::io("list a checkpoint")(error);
            let names = files.list(&path).map_err(io)?;
            let sized = names.into_iter().map(|name| {
                let size_bytes = files.file_bytes(&path.join(&name)).map_err(io)?;
                Ok(FetchFile { name, size_bytes })
            });
            sized.collect::<Result<Vec<_>, MetaError>>()
        });
        let files = listed.await?;
        let outgoing = Outgoing { transfer: begin.transfer, folder, used: Instant::now() };
        let before = self.outgoing.lock().await.replace(outgoing);
        drop_blocking(before).await?;
        Ok(FetchOffer { snapshot: SnapshotWords::from_raft(&meta), files }.to_bytes())
    }

    /// Reads a piece of a checkpoint.
    pub(super) async fn handle_fetch_piece(&self, piece: FetchPiece) -> Result<Bytes, Failure> {
        let path = {
            let mut slot = self.outgoing.lock().await;
            let Some(outgoing) = slot.as_mut().filter(|outgoing| outgoing.transfer == piece.transfer) else {
                return Err(Failure::new(FailureKind::Conflict, "the checkpoint has gone"));
            };
            outgoing.used = Instant::now();
            outgoing.folder.path().to_owned()
        };
        let (files, length) = (self.wires.files.clone(), piece.length.min(PIECE_BYTES_MAX) as usize);
        let read = move || {
            let io = |error| MetaError::io("read a checkpoint")(error);
            // Only what was offered: a name from outside is no path.
            if !files.list(&path).map_err(io)?.contains(&piece.name) {
                return Err(MetaError::Invalid("the checkpoint has no such file".into()));
            }
            files.read_at(&path.join(&piece.name), piece.offset, length).map_err(io)
        };
        Ok(Bytes::from(blocking(read).await?))
    }

    /// Lets a checkpoint go that nobody asks for any more, or whose asker is done.
    pub(crate) async fn drop_offer(&self, transfer: Option<u128>) -> Result<(), Failure> {
        let gone = self.outgoing.lock().await.take_if(|outgoing| match transfer {
            Some(transfer) => outgoing.transfer == transfer,
            None => outgoing.used.elapsed() >= OFFER_IDLE_MAX,
        });
        if gone.is_some() {
            drop_blocking(gone).await?;
        }
        Ok(())
    }
}

/// Taking.
impl RaftGroup {
    /// Fetches a peer's rows into a folder beside the database, durable and verified on return.
    pub(crate) async fn fetch(&self, peer: NodeId) -> Result<(SnapshotMeta, SnapshotFolder), Failure> {
        let address = self.wires.ledger.address(peer).unwrap_or_default();
        let peer = Peer { node: peer, incarnation: None, address };
        let (transfer, deadline) = (self.wires.transfer(), Duration::from_millis(self.wires.limits.snapshot_chunk_ms));
        let begin = FetchBegin { transfer }.to_bytes();
        let (offer, _) = self.wires.exchange(&peer, self.group, RaftCall::FetchBegin, begin, deadline).await?;
        let fetched = self.fetch_files(&peer, transfer, FetchOffer::decode(&offer)?).await;
        let end = FetchBegin { transfer }.to_bytes();
        // Where the peer does not hear it, it lets go by itself.
        let _ = self.wires.exchange(&peer, self.group, RaftCall::FetchEnd, end, deadline).await;
        fetched
    }

    async fn fetch_files(
        &self,
        peer: &Peer,
        transfer: u128,
        offer: FetchOffer,
    ) -> Result<(SnapshotMeta, SnapshotFolder), Failure> {
        let meta = offer.snapshot.to_raft()?;
        let (files, folder) = (self.wires.files.clone(), self.folder.clone());
        let mut incoming = blocking(move || Incoming::begin(files, &folder, transfer)).await?;
        let chunk = self.wires.limits.snapshot_chunk_bytes as u64;
        // The last piece of a file is one that is not full, if only an empty one.
        let offsets = |file: &FetchFile| (0..=file.size_bytes / chunk).map(move |number| number * chunk);
        let wanted = offer.files.iter().flat_map(|file| {
            let name = file.name.clone();
            offsets(file).map(move |offset| FetchPiece { transfer, name: name.clone(), offset, length: chunk })
        });
        let mut pieces = stream::iter(wanted.collect::<Vec<_>>())
            .map(|piece| async move { Ok::<_, Failure>((self.fetch_piece(peer, &piece).await?, piece)) })
            .buffered(PIECES_IN_FLIGHT);
        while let Some((bytes, piece)) = pieces.try_next().await? {
            let taken = blocking(move || {
                incoming.take(&piece.name, piece.offset, bytes)?;
                Ok(incoming)
            });
            incoming = taken.await?;
        }
        drop(pieces);
        let folder = blocking(move || {
            let folder = incoming.finish_sizes(&offer.files)?;
            RocksStore::verify_checkpoint(folder.path())?;
            Ok(folder)
        });
        Ok((meta, SnapshotFolder::Files(folder.await?)))
    }

    /// Asks for a piece, again where the call fails: a connection that breaks does not cost what has come.
    async fn fetch_piece(&self, peer: &Peer, piece: &FetchPiece) -> Result<Bytes, Failure> {
        let deadline = Duration::from_millis(self.wires.limits.snapshot_chunk_ms);
        let mut tries = 0;
        loop {
            let asked = self.wires.exchange(peer, self.group, RaftCall::FetchPiece, piece.to_bytes(), deadline).await;
            tries += 1;
            match asked {
                Ok((_, bytes)) => return Ok(bytes),
                Err(failure) if tries >= PIECE_TRIES_MAX || failure.kind == FailureKind::Conflict => {
                    return Err(failure);
                }
                Err(_) => tokio::time::sleep(PIECE_RETRY).await,
            }
        }
    }
}

impl super::machine::Shard {
    /// Returns why the database must not answer reads any longer, where that has shown.
    pub(crate) fn damage(&self) -> Option<String> {
        match self.reader().store().fault() {
            Some(Fault::Damaged(text)) => Some(text.clone()),
            _ => None,
        }
    }

    /// Returns whether the database has stopped for want of space.
    pub(crate) fn lacks_space(&self) -> bool {
        matches!(self.reader().store().fault(), Some(Fault::NoSpace(_)))
    }
}
