//! Where the voters are, over restarts.
//!
//! A node's configuration names the metadata nodes of the day on which it was written. Voters come and go;
//! so that a node finds its cluster even when all of those are gone, it keeps the present ones in a file of its
//! data folder, `voters`, one `<node id>@<host>:<port>` a line. The file is advice: without it, or with a damaged one,
//! the configuration holds.

use crate::config::parse_meta_peer;
use crate::files;
use plinth_client::Client;
use plinth_protocol::map::ClusterMap;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::watch;

/// Name of the file in the node's data folder.
const FILE: &str = "voters";
/// How often the file is compared with the map.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// The voters that a node last knew.
pub struct Voters {
    file: PathBuf,
    lines: Vec<String>,
}

impl Voters {
    /// Reads what the node last knew.
    pub fn load(data: &Path) -> Voters {
        let file = data.join(FILE);
        let text = files::read_text(&file).unwrap_or_default();
        let lines = text.lines().filter(|line| parse_meta_peer(line).is_some()).map(str::to_string).collect();
        Voters { file, lines }
    }

    /// Returns the metadata nodes to ask first: those last known, and those of the configuration beside them.
    pub fn bootstrap(&self, configured: &[String]) -> Vec<String> {
        let id = |line: &String| parse_meta_peer(line).map(|(node, _)| node);
        let known: Vec<_> = self.lines.iter().map(id).collect();
        let others = configured.iter().filter(|line| !known.contains(&id(line)));
        self.lines.iter().chain(others).cloned().collect()
    }

    /// Keeps the file up to date until the node stops.
    pub async fn keep(&self, client: Client, mut stop: watch::Receiver<bool>) {
        let mut written = self.lines.clone();
        loop {
            let lines = lines_of(&client.map());
            if !lines.is_empty() && lines != written {
                let (file, text) = (self.file.clone(), lines.join("\n") + "\n");
                let writing = tokio::task::spawn_blocking(move || files::write_public(&file, text.as_bytes()));
                match writing.await {
                    Ok(Ok(())) => written = lines,
                    Ok(Err(error)) => tracing::warn!(%error, "the list of voters could not be kept"),
                    // The runtime ends.
                    Err(_) => return,
                }
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                _ = stop.wait_for(|stop| *stop) => return,
            }
        }
    }
}

fn lines_of(map: &ClusterMap) -> Vec<String> {
    let voters = map.voters.iter().filter_map(|voter| map.node(*voter));
    voters.map(|node| format!("{}@{}", node.node.0, node.address)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn present_voters_come_before_those_of_the_configuration() {
        let folder = tempfile::tempdir().unwrap();
        let configured = ["1@10.0.0.1:7000".to_string(), "2@10.0.0.2:7000".to_string()];
        assert_eq!(Voters::load(folder.path()).bootstrap(&configured), configured);
        files::write_public(&folder.path().join(FILE), b"2@10.0.0.9:7000\n4@10.0.0.4:7000\nnonsense\n").unwrap();
        let bootstrap = Voters::load(folder.path()).bootstrap(&configured);
        assert_eq!(bootstrap, ["2@10.0.0.9:7000", "4@10.0.0.4:7000", "1@10.0.0.1:7000"]);
    }
}
