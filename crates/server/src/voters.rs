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

/// Name of the file in the node's data folder; beside an operator's profile, the ending of its name.
const FILE: &str = "voters";
/// How often the file is compared with the map. A node that stops or dies soon after the voters moved must still know
/// where they are: where all have moved since, nobody else could tell it.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// The voters that a node, or an operator's profile, last knew.
pub struct Voters {
    file: PathBuf,
    lines: Vec<String>,
}

impl Voters {
    /// Reads what a node with this data folder last knew.
    pub fn of_node(data: &Path) -> Voters {
        Voters::load(data.join(FILE))
    }

    /// Reads what was last known under a profile.
    pub fn of_profile(profile: &Path) -> Voters {
        Voters::load(profile.with_extension(FILE))
    }

    fn load(file: PathBuf) -> Voters {
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

    /// Writes the voters of a map down, where they are others than those last known.
    pub fn keep_once(&self, map: &ClusterMap) -> std::io::Result<()> {
        let lines = lines_of(map);
        if lines.is_empty() || lines == self.lines {
            return Ok(());
        }
        files::write_public(&self.file, (lines.join("\n") + "\n").as_bytes())
    }

    /// Keeps the file up to date until the node stops, and looks once more then.
    pub async fn keep(&self, client: Client, mut stop: watch::Receiver<bool>) {
        let mut written = self.lines.clone();
        let mut is_last = false;
        loop {
            let map = client.map();
            crate::logging::names::learn(&map);
            let lines = lines_of(&map);
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
            if is_last {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                _ = stop.wait_for(|stop| *stop) => is_last = true,
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
        assert_eq!(Voters::of_node(folder.path()).bootstrap(&configured), configured);
        files::write_public(&folder.path().join(FILE), b"2@10.0.0.9:7000\n4@10.0.0.4:7000\nnonsense\n").unwrap();
        let bootstrap = Voters::of_node(folder.path()).bootstrap(&configured);
        let profile = folder.path().join("profile.toml");
        Voters::of_profile(&profile).keep_once(&crate::service::fake::map(vec![])).unwrap();
        assert_eq!(Voters::of_profile(&profile).bootstrap(&[]), ["9@127.0.0.1:1"]);
        assert_eq!(bootstrap, ["2@10.0.0.9:7000", "4@10.0.0.4:7000", "1@10.0.0.1:7000"]);
    }
}
