//! Operators' commands: from a profile to a client, and from there to the answer.

use crate::identity::{self, SecretsError};
use crate::profile::Profile;
use crate::voters::Voters;
use crate::{certificates, files, renewal};
use plinth_admin::command::CertCommand;
use plinth_admin::exit::{Exit, Trouble};
use plinth_admin::run::Operator;
use plinth_admin::{Command, Report};
use plinth_client::Client;
use plinth_protocol::Incarnation;
use plinth_protocol::meta::CertifyRequest;
use plinth_protocol::wire::Wire;
use plinth_transport::authority::{NodeCertificate, NodeKey};
use plinth_transport::{Credentials, Link};
use std::path::Path;
use std::sync::Arc;

/// Carries out an operator's command; `demo` says that the cluster is a demo. The profile follows the voters: where they
/// are now is kept beside it, and those that it names are asked too.
pub async fn run(file: &Path, demo: bool, command: &Command) -> Result<Report, Trouble> {
    let profile = Profile::load(file)?;
    let usage = |text: String| Trouble::new(Exit::Usage, "E2004", text);
    let secrets = |error: SecretsError| usage(error.to_string());
    let (certificate, identity) =
        identity::load_certificate(&profile.certificate, &profile.private_key, Incarnation(1)).map_err(secrets)?;
    if crate::node::wall_clock() > certificate.valid_until() {
        let ended = identity::moment_text(certificate.valid_until());
        let text = "ask another operator for `plinth cert operator`, or on a metadata node run `plinth cert reissue`";
        return Err(usage(format!("{}: it ended on {ended}; {text}", profile.certificate.display())));
    }
    let ca_pem =
        identity::authority_pem(&certificate).ok_or_else(|| usage("the operator's certificate lacks its CA".into()))?;
    let ca_fingerprint = identity::fingerprint(&ca_pem).map_err(usage)?;
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
    let serial = certificate.facts().serial;
    let operator = Operator {
        client: client.clone(),
        link: link.clone(),
        bootstrap,
        demo,
        wrapping_key,
        ca_fingerprint,
        serial,
        now_ms,
    };
    let done = match command {
        Command::Cert(CertCommand::Operator { name, dir, days, with_wrapping_key }) => {
            certificates::operator(&operator, &profile, name, dir, *days, *with_wrapping_key).await
        }
        other => plinth_admin::run(&operator, other).await,
    };
    // Now that the map is known.
    renew(&certificate, &profile, &client, &*link).await;
    // Advice for the next command: a profile that can't be written to, on a medium that is read-only say, works as well.
    let _ = voters.keep_once(&client.map());
    done
}

/// Renews the operator's own certificate past two thirds of its life. What fails is tried again with the next command.
async fn renew(certificate: &NodeCertificate, profile: &Profile, client: &Client, link: &dyn Link) {
    if crate::node::wall_clock() < renewal::due_at(certificate.facts(), certificate.node()) {
        return;
    }
    let Ok(csr) = NodeKey::load(certificate.key_pem()).and_then(|key| key.request_pem()) else { return };
    let header = CertifyRequest { csr: Some(csr) }.to_bytes();
    for peer in renewal::signers(&client.map(), certificate.node()) {
        let Ok(reply) = renewal::call_signer(link, &peer, header.clone()).await else { continue };
        let Some(chain) = reply.certificate else { return };
        let fits =
            NodeCertificate::load(&chain, certificate.key_pem()).is_ok_and(|new| new.node() == certificate.node());
        if fits && let Err(error) = files::write_public(&profile.certificate, chain.as_bytes()) {
            let file = profile.certificate.display();
            eprintln!("note: the renewed certificate can't be written to {file}: {error}");
        }
        return;
    }
}
