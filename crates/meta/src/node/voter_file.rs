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
    // The folder itself may be new.
    files
        .sync_folder(folder.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new(".")))
        .map_err(io)?;
    Ok(LogPlan::Format(log_id))
}

/// Notes that the log has been formatted.
pub(crate) fn confirm(files: &dyn Files, folder: &Path) -> Result<(), MetaError> {
    let io = |error| MetaError::io(format!("name the voter in {}", folder.display()))(error);
    files.rename(&folder.join(VOTER_NEW), &folder.join(VOTER)).map_err(io)?;
    files.sync_folder(folder).map_err(io)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::sim::{Fate, SimFiles};
    use crate::golden::{assert_golden, line};

    const FOLDER: &str = "/data/meta";
    const LOG: &str = "/data/meta/log";
    const CLUSTER: ClusterId = ClusterId(0x11);
    const NODE: NodeId = NodeId(2);

    #[test]
    fn voter_file_is_that_of_the_golden_file() {
        let voter = VoterFile { cluster: CLUSTER, node: NODE, log: 0x22 };
        assert_golden("meta_voter_file.hex", &[line("voter", &voter)]);
    }

    fn look(files: &SimFiles) -> Result<LogPlan, MetaError> {
        plan(files, Path::new(FOLDER), Path::new(LOG), CLUSTER, NODE, 0x22)
    }

    /// Makes a log as the journal does: durable on return.
    fn format_log(files: &SimFiles) {
        files.create_folder(Path::new(LOG)).unwrap();
        let file = Path::new(LOG).join("segments");
        files.write_at(&file, 0, b"log").unwrap();
        files.sync_file(&file).unwrap();
        files.sync_folder(Path::new(LOG)).unwrap();
        files.sync_folder(Path::new(FOLDER)).unwrap();
    }

    #[test]
    fn no_crash_of_the_first_start_leaves_a_voter_without_its_log() {
        let files = SimFiles::empty();
        files.create_folder(Path::new("/data")).unwrap();
        files.sync_folder(Path::new("/")).unwrap();
        assert!(matches!(look(&files), Ok(LogPlan::Format(0x22))));
        format_log(&files);
        confirm(&files, Path::new(FOLDER)).unwrap();
        files.set_mark(1);
        let mut states = 0;
        for moment in files.take_moments() {
            for bits in 0..1u32 << moment.pending() {
                let fate = |at: usize| if bits >> at & 1 == 1 { Fate::Kept } else { Fate::Lost };
                let crashed = moment.crash(&(0..moment.pending()).map(fate).collect::<Vec<_>>());
                states += 1;
                match look(&crashed) {
                    Ok(LogPlan::Open) => {
                        let log = crashed.read(&Path::new(LOG).join("segments")).unwrap();
                        assert_eq!(log.as_deref(), Some(&b"log"[..]), "a voter that counts has its log");
                    }
                    Ok(LogPlan::Format(_)) => assert_eq!(moment.mark, 0, "a voter that has started is still there"),
                    Err(error) => panic!("fates {bits:b} of {}: {error}", moment.pending()),
                }
            }
        }
        assert!(states > 20, "{states} states");
    }

    #[test]
    fn lost_log_and_lost_voter_file_are_damage() {
        let files = SimFiles::empty();
        look(&files).unwrap();
        format_log(&files);
        confirm(&files, Path::new(FOLDER)).unwrap();
        files.rename(&Path::new(FOLDER).join(VOTER), Path::new("/data/aside")).unwrap();
        assert!(matches!(look(&files), Err(MetaError::Damaged { .. })), "the voter file is gone");
        files.rename(Path::new("/data/aside"), &Path::new(FOLDER).join(VOTER)).unwrap();
        assert!(matches!(look(&files), Ok(LogPlan::Open)));
        files.remove(Path::new(LOG)).unwrap();
        assert!(matches!(look(&files), Err(MetaError::Damaged { .. })), "the log is gone");
        let other = plan(&files, Path::new(FOLDER), Path::new(LOG), ClusterId(9), NODE, 1);
        assert!(matches!(other, Err(MetaError::Invalid(_))));
    }
}
