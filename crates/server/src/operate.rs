//! Operators' commands: from a profile to a client, and from there to the answer.

use crate::identity;
use crate::profile::Profile;
use crate::voters::Voters;
use plinth_admin::exit::{Exit, Trouble};
use plinth_admin::run::Operator;
use plinth_admin::{Command, Report};
use plinth_client::Client;
use plinth_protocol::Incarnation;
use plinth_transport::{Credentials, Link};
use std::path::Path;
use std::sync::Arc;

/// Carries out an operator's command; `demo` says that the cluster is a demo. The profile follows the voters: where they
/// are now is kept beside it, and those that it names are asked too.
pub async fn run(file: &Path, demo: bool, command: &Command) -> Result<Report, Trouble> {
    let profile = Profile::load(file)?;
    let secrets = |error: identity::SecretsError| Trouble::new(Exit::Usage, "E2004", error.to_string());
    let (certificate, identity) =
        identity::load_certificate(&profile.certificate, &profile.private_key, Incarnation(1)).map_err(secrets)?;
    let ca_pem = identity::authority_pem(&certificate)
        .ok_or_else(|| Trouble::new(Exit::Usage, "E2004", "the operator's certificate lacks its CA"))?;
    let ca_fingerprint = identity::fingerprint(&ca_pem).map_err(|text| Trouble::new(Exit::Usage, "E2004", text))?;
    let wrapping_key = match &profile.wrapping_key {
        Some(path) => Some(identity::load_wrapping_key(path).map_err(secrets)?.to_vec()),
        None => None,
    };
    let credentials = Credentials::new(&certificate, &ca_pem, identity.incarnation)
        .map_err(|error| Trouble::new(Exit::Failed, "E2008", error.to_string()))?;
    let voters = Voters::of_profile(file);
    let known = voters.bootstrap(&profile.meta);
    let link: Arc<dyn Link> =
        Arc::new(crate::node::wire_link(Arc::new(credentials), None, known.iter().chain(&profile.meta)));
    let config = crate::node::client_config(identity.node, &known, None);
    let bootstrap = config.peers.clone();
    // The map is learned by the commands: they say more than that nobody answers.
    let client = Client::unconnected(config, link.clone());
    let now_ms = crate::node::wall_clock_ms();
    let operator = Operator { client: client.clone(), link, bootstrap, demo, wrapping_key, ca_fingerprint, now_ms };
    let done = plinth_admin::run(&operator, command).await;
    // Advice for the next command: a profile that can't be written to, on a medium that is read-only say, works as well.
    let _ = voters.keep_once(&client.map());
    done
}
