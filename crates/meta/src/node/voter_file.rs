//! The file that says which voter a folder is, and which log belongs to it.
//!
//! | tag | field                                             |
//! |-----|---------------------------------------------------|
//! | 1   | cluster (16 bytes, little-endian)                 |
//! | 2   | node                                              |
//! | 3   | log id (16 bytes, little-endian), drawn at random |
//!
//! It is written as `voter.new` before the log is formatted and renamed to `voter` after: a crash in
//! between leaves a log that was never used, which is made again. A folder with a `voter` file but
//! without its log has lost it, and must not vote again.

use crate::MetaError;
use crate::files::Files;
use plinth_protocol::wire::Wire;
use plinth_protocol::{ClusterId, NodeId, record};
use std::path::Path;

const VOTER: &str = "voter";
const VOTER_NEW: &str = "voter.new";

record! {
    /// Which voter a folder is.
    pub struct VoterFile {
        1 => cluster: ClusterId,
        2 => node: NodeId,
        3 => log: u128,
    }
}

/// What is to be done with the log.
pub(crate) enum LogPlan {
    /// It exists.
    Open,
    /// It is to be formatted under this id.
    Format(u128),
}

/// Looks at a folder: whether it is this voter's, and whether its log exists.
pub(crate) fn plan(
    files: &dyn Files,
    folder: &Path,
    log_folder: &Path,
    cluster: ClusterId,
    node: NodeId,
    log_id: u128,
) -> Result<LogPlan, MetaError> {
    let io = |error| MetaError::io(format!("look at {}", folder.display()))(error);
    files.create_folder(folder).map_err(io)?;
    let has_log = !files.list(log_folder).map_err(io)?.is_empty();
    if let Some(bytes) = files.read(&folder.join(VOTER)).map_err(io)? {
        let voter = VoterFile::decode(&bytes)?;
        if (voter.cluster, voter.node) != (cluster, node) {
            let text = format!("{} belongs to {} of cluster {}", folder.display(), voter.node, voter.cluster);
            return Err(MetaError::Invalid(text));
        }
        if !has_log {
            return Err(MetaError::Damaged { node, reason: format!("{} is empty", log_folder.display()) });
        }
        return Ok(LogPlan::Open);
    }
    let begun = files.read(&folder.join(VOTER_NEW)).map_err(io)?.is_some();
    if has_log && !begun {
        let reason = format!("{} holds a log, but the voter file beside it is gone", log_folder.display());
        return Err(MetaError::Damaged { node, reason });
    }
    files.remove(log_folder).map_err(io)?;
    let voter = VoterFile { cluster, node, log: log_id };
    let path = folder.join(VOTER_NEW);
    files.write_at(&path, 0, &voter.to_wire()).map_err(io)?;
    files.sync_file(&path).map_err(io)?;
    files.sync_folder(folder).map_err(io)?;
    Ok(LogPlan::Format(log_id))
}

/// Notes that the log has been formatted.
pub(crate) fn confirm(files: &dyn Files, folder: &Path) -> Result<(), MetaError> {
    let io = |error| MetaError::io(format!("name the voter in {}", folder.display()))(error);
    files.rename(&folder.join(VOTER_NEW), &folder.join(VOTER)).map_err(io)?;
    files.sync_folder(folder).map_err(io)
}
