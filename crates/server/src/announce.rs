//! A node tells the cluster where it is reached.
//!
//! Nodes move to other machines and addresses. At its start a node compares what the registry holds with its own
//! configuration, and announces the new address under its certificate: the registry takes it from the node itself and
//! from nobody else. It does so once a start. Where the registry names another address later on, a second process
//! runs under the same certificate: the node says so and does not fight over the entry.

use plinth_client::Client;
use plinth_protocol::meta::{Command, NodeAddress, Outcome};
use plinth_protocol::{Failure, FailureKind, GROUP_SYSTEM, NodeId};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// How often a node looks at its own entry.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long one announcement may take.
const ANNOUNCE_TIME_MAX: Duration = Duration::from_secs(10);
/// Looks at which the registry must name another address before it is believed: a map may be a moment old.
const ELSEWHERE_LOOKS: u32 = 5;

/// Announces a node's address.
pub struct Announcer {
    /// The node's client.
    pub client: Client,
    /// The node.
    pub node: NodeId,
    /// Where others reach it.
    pub address: String,
}

/// What has been done so far.
#[derive(Debug, Default)]
struct Progress {
    is_announced: bool,
    elsewhere: u32,
}

/// What a look at the registry asks for.
#[derive(Debug, PartialEq, Eq)]
enum Deed {
    Nothing,
    Announce,
    TellElsewhere,
}

impl Progress {
    fn judge(&mut self, registered: Option<&str>, own: &str) -> Deed {
        match registered {
            // Not in the map yet.
            None => Deed::Nothing,
            Some(address) if address == own => {
                (self.is_announced, self.elsewhere) = (true, 0);
                Deed::Nothing
            }
            Some(_) if !self.is_announced => Deed::Announce,
            Some(_) => {
                self.elsewhere = self.elsewhere.saturating_add(1);
                if self.elsewhere == ELSEWHERE_LOOKS { Deed::TellElsewhere } else { Deed::Nothing }
            }
        }
    }
}

impl Announcer {
    /// Sees to the node's entry until the node stops.
    pub async fn run(self, mut stop: watch::Receiver<bool>) {
        let mut progress = Progress::default();
        loop {
            self.look(&mut progress).await;
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                _ = stop.wait_for(|stop| *stop) => return,
            }
        }
    }

    async fn look(&self, progress: &mut Progress) {
        let map = self.client.map();
        let registered = map.node(self.node).map(|node| node.address.as_str());
        match progress.judge(registered, &self.address) {
            Deed::Nothing => {}
            Deed::Announce => match self.announce().await {
                Ok(()) => {
                    progress.is_announced = true;
                    tracing::info!(from = registered, to = self.address, "address announced");
                }
                Err(failure) => {
                    tracing::error!(from = registered, to = self.address, %failure, "address not announced")
                }
            },
            Deed::TellElsewhere => tracing::error!(
                here = self.address,
                registered,
                "another process announced this node at another address: is one configuration started twice?"
            ),
        }
    }

    async fn announce(&self) -> Result<(), Failure> {
        let announced = NodeAddress { node: self.node, address: self.address.clone() };
        let deadline = Instant::now() + ANNOUNCE_TIME_MAX;
        match self.client.mutate(GROUP_SYSTEM, Command::AnnounceAddress(announced), None, deadline).await? {
            Outcome::Refused(refusal) => Err(Failure::new(FailureKind::Conflict, refusal.text)),
            // The map that follows is only a little later than this.
            _ => self.client.refresh_map().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::fake;
    use std::sync::{Arc, Mutex};

    #[test]
    fn an_address_is_announced_once_a_start_and_another_process_is_told_of() {
        let mut progress = Progress::default();
        assert_eq!(progress.judge(None, "b:1"), Deed::Nothing, "no map yet");
        assert_eq!(progress.judge(Some("a:1"), "b:1"), Deed::Announce);
        assert_eq!(progress.judge(Some("a:1"), "b:1"), Deed::Announce, "again where it failed");
        assert_eq!(progress.judge(Some("b:1"), "b:1"), Deed::Nothing);
        for _ in 1..ELSEWHERE_LOOKS {
            assert_eq!(progress.judge(Some("c:1"), "b:1"), Deed::Nothing);
        }
        assert_eq!(progress.judge(Some("c:1"), "b:1"), Deed::TellElsewhere);
        assert_eq!(progress.judge(Some("c:1"), "b:1"), Deed::Nothing, "told once");
    }

    #[tokio::test]
    async fn a_node_whose_entry_differs_announces_its_own_address() {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let taken = heard.clone();
        let client = fake::client(vec![], move |command| {
            taken.lock().unwrap().push(command);
            Ok(Outcome::Done)
        });
        let announcer = Announcer { client: client.await, node: fake::VOTER, address: "10.0.0.9:7000".into() };
        let mut progress = Progress::default();
        announcer.look(&mut progress).await;
        let expected = NodeAddress { node: fake::VOTER, address: "10.0.0.9:7000".into() };
        assert_eq!(*heard.lock().unwrap(), [Command::AnnounceAddress(expected)]);
        assert!(progress.is_announced);
    }
}
