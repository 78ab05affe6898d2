//! Certificate commands that work on files: a new operator's folder, and certificates that have ended.

use crate::config::Config;
use crate::files;
use crate::identity::{self, Secrets, authority_pem, load_certificate, moment_text};
use crate::init::file_trouble;
use crate::node::wall_clock;
use crate::profile::{PROFILE_FILE, Profile};
use plinth_admin::Report;
use plinth_admin::exit::{Exit, Trouble};
use plinth_admin::run::Operator;
use plinth_protocol::Incarnation;
use plinth_protocol::meta::CertifyOperator;
use plinth_transport::authority::{Authority, NodeCertificate, NodeKey};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::Duration;

fn failed(error: impl ToString) -> Trouble {
    Trouble::new(Exit::Failed, "E2008", error.to_string())
}

fn usage(text: String) -> Trouble {
    Trouble::new(Exit::Usage, "E2004", text)
}

/// Makes a folder for an operator: certificate, key and profile.
pub async fn operator(
    operator: &Operator,
    own: &Profile,
    name: &str,
    folder: &Path,
    days: u64,
    with_wrapping_key: bool,
) -> Result<Report, Trouble> {
    if files::list(folder).is_ok_and(|entries| !entries.is_empty()) {
        return Err(Trouble::new(Exit::Conflict, "E2005", format!("{} is not empty", folder.display())));
    }
    let wrapping_key = match (with_wrapping_key, &operator.wrapping_key) {
        (true, None) => return Err(usage("your own profile has no wrapping key to copy".into())),
        (true, Some(key)) => Some(key),
        (false, _) => None,
    };
    let key = NodeKey::generate().map_err(failed)?;
    let order = CertifyOperator { name: name.to_string(), csr: key.request_pem().map_err(failed)?, days };
    let chain = plinth_admin::certificates::certify_operator(operator, order).await?;
    let certificate = NodeCertificate::load(&chain, &key.key_pem()).map_err(failed)?;
    files::make_folder(folder).map_err(|error| file_trouble(folder, error))?;
    let write = |file: &str, content: &[u8], secret: bool| {
        let path = folder.join(file);
        let written = if secret { files::write_secret(&path, content) } else { files::write_public(&path, content) };
        written.map_err(|error| file_trouble(&path, error)).map(|()| path)
    };
    write("admin.key", key.key_pem().as_bytes(), true)?;
    write("admin.crt", chain.as_bytes(), false)?;
    if let Some(wrapping_key) = wrapping_key {
        write("wrapping.key", wrapping_key, true)?;
    }
    let profile = Profile {
        cluster: own.cluster.clone(),
        meta: own.meta.clone(),
        certificate: "admin.crt".into(),
        private_key: "admin.key".into(),
        wrapping_key: wrapping_key.map(|_| "wrapping.key".into()),
    };
    let text = toml::to_string_pretty(&profile).map_err(failed)?;
    let file = write(PROFILE_FILE, text.as_bytes(), false)?;
    let (ends, serial) = (moment_text(certificate.valid_until()), format!("{:032x}", certificate.facts().serial));
    let text = format!(
        "Operator {name}, until {ends}. Hand over {}:\n  plinth --profile {} status\n",
        folder.display(),
        file.display()
    );
    Ok(Report::done("Operator", json!({"operator": name, "profile": file, "ends": ends, "serial": serial}), text))
}

/// What a certificate is made anew for.
struct Target {
    chain: PathBuf,
    key: PathBuf,
    incarnation: Incarnation,
}

/// Makes certificates anew that have ended, with the CA's key in a metadata node's folder. Asks no other node.
pub fn reissue(config_file: &Path, nodes: &[PathBuf], days: Option<u64>) -> Result<Report, Trouble> {
    let config = Config::load(config_file, &[]).map_err(|error| usage(error.to_string()))?;
    let secrets = Secrets::load(&config).map_err(|error| usage(error.to_string()))?;
    let authority = secrets.authority.ok_or_else(|| {
        usage(format!("{} is no metadata node with the CA's key (security.ca_private_key)", config_file.display()))
    })?;
    let seconds = days.map_or(config.security.certificate_lifetime_seconds, |days| days * 24 * 3600);
    let own = [config_file.to_path_buf()];
    let targets = if nodes.is_empty() { &own[..] } else { nodes };
    let (mut text, mut items) = (String::new(), Vec::new());
    for path in targets {
        let target = target_of(path)?;
        let renewed = reissue_one(&authority, &target, Duration::from_secs(seconds))?;
        let ends = moment_text(renewed.valid_until());
        text.push_str(&format!("{}: until {ends}\n", target.chain.display()));
        items.push(json!({"certificate": target.chain, "node": renewed.node().0, "ends": ends,
            "serial": format!("{:032x}", renewed.facts().serial)}));
    }
    text.push_str(
        "Nodes that run take theirs within seconds. Copy the files of folders that live on other machines.\n",
    );
    Ok(Report::done("CertificatesReissued", json!({ "items": items }), text))
}

/// Finds the files of a node's or an operator's folder, or of its configuration file.
fn target_of(path: &Path) -> Result<Target, Trouble> {
    let is_folder = files::list(path).is_ok();
    let in_folder = |name: &str| if is_folder { path.join(name) } else { path.to_path_buf() };
    let profile = in_folder(PROFILE_FILE);
    if profile.file_name().is_some_and(|name| name == PROFILE_FILE) && files::exists(&profile) {
        let profile = Profile::load(&profile)?;
        let incarnation = Incarnation(1);
        return Ok(Target { chain: profile.certificate, key: profile.private_key, incarnation });
    }
    let config = Config::load(&in_folder("plinth.toml"), &[]).map_err(|error| usage(error.to_string()))?;
    let security = config.security;
    Ok(Target {
        chain: security.certificate,
        key: security.private_key,
        incarnation: Incarnation(config.node.incarnation),
    })
}

fn reissue_one(authority: &Authority, target: &Target, lifetime: Duration) -> Result<NodeCertificate, Trouble> {
    let (certificate, _) = load_certificate(&target.chain, &target.key, target.incarnation)
        .map_err(|error: identity::SecretsError| usage(error.to_string()))?;
    let at = |error: String| failed(format!("{}: {error}", target.chain.display()));
    if authority_pem(&certificate).is_none() {
        return Err(at("the chain lacks its CA".into()));
    }
    let chain = authority
        .reissue(&certificate, target.incarnation, lifetime, wall_clock())
        .map_err(|error| at(error.to_string()))?;
    let renewed = NodeCertificate::load(&chain, certificate.key_pem()).map_err(|error| at(error.to_string()))?;
    files::write_public(&target.chain, chain.as_bytes()).map_err(|error| file_trouble(&target.chain, error))?;
    Ok(renewed)
}

#[cfg(test)]
mod tests;
