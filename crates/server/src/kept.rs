//! The folder of a demo that was kept: `plinth demo --keep DIR` finds its cluster there again.

use crate::config::{Config, RoleName};
use crate::files;
use crate::init::{self, Laid, Plan, PlannedNode};
use crate::profile::{PROFILE_FILE, Profile};
use plinth_admin::exit::{Exit, Trouble};
use plinth_protocol::meta::Founding;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// A demo's cluster as an earlier run laid it out.
pub struct Kept {
    /// Its nodes, as a plan.
    pub plan: Plan,
    /// Their files; the access key is yet to be made.
    pub laid: Laid,
}

/// Finds a kept demo in a folder; nothing where the folder is empty or absent. Fails where it holds something else: a
/// cluster of real nodes is not to be started here.
pub fn find(folder: &Path) -> Result<Option<Kept>, Trouble> {
    let folder = std::path::absolute(folder).unwrap_or_else(|_| folder.to_path_buf());
    let profile = folder.join("admin").join(PROFILE_FILE);
    if !files::exists(&profile) {
        return Ok(None);
    }
    let other = |what: &str| {
        let text = format!("{} holds {what}, not a kept demo; name another folder", folder.display());
        Trouble::new(Exit::Conflict, "E2005", text)
    };
    if Profile::load(&profile)?.cluster != crate::demo::NAME {
        return Err(other("another cluster"));
    }
    let mut nodes = Vec::new();
    for file in files::list(&folder).map_err(|error| init::file_trouble(&folder, error))? {
        let file = file.join("plinth.toml");
        if files::exists(&file) {
            nodes.push((planned(&file)?, file));
        }
    }
    // Only a demo's storage nodes have no socket of their own.
    let is_demo =
        |(node, _): &(PlannedNode, PathBuf)| !node.roles.contains(&RoleName::Storage) || node.listen.port() == 0;
    if nodes.is_empty() || !nodes.iter().all(is_demo) {
        return Err(other("another cluster"));
    }
    let founding = founding(&nodes).ok_or_else(|| other("a cluster without its founding record"))??;
    let plan = Plan {
        name: founding.map.name,
        folder,
        nodes: nodes.iter().map(|(node, _)| node.clone()).collect(),
        code: founding.map.code,
        fragment_bytes_max: founding.map.fragment_bytes_max,
        cache_bytes: crate::config::MetaSection::CACHE_BYTES_EMBEDDED,
        segment_bytes: init::SEGMENT_BYTES_EMBEDDED,
        capacity_bytes: 0,
        deferred_delete_seconds: crate::demo::DEFERRED_DELETE_SECONDS,
        certificate_life: crate::demo::CERTIFICATE_LIFE,
    };
    Ok(Some(Kept { plan, laid: Laid { nodes, profile, access_key: String::new(), secret_key: String::new().into() } }))
}

fn founding(nodes: &[(PlannedNode, PathBuf)]) -> Option<Result<Founding, Trouble>> {
    let files = nodes.iter().filter_map(|(_, file)| Some(file.parent()?.join("founding")));
    files.filter(|file| files::exists(file)).map(|file| init::read_founding(&file)).next()
}

/// Reads a node as it was planned from its configuration.
fn planned(file: &Path) -> Result<PlannedNode, Trouble> {
    let config = Config::load(file, &[]).map_err(|error| Trouble::new(Exit::Usage, "E2002", error.to_string()))?;
    let socket = |text: &str| {
        text.parse::<SocketAddr>()
            .map_err(|_| Trouble::new(Exit::Usage, "E2002", format!("{}: {text} is no address", file.display())))
    };
    let s3 = config.has_role(RoleName::Gateway).then(|| socket(&config.gateway.listen)).transpose()?;
    Ok(PlannedNode {
        name: config.node.name.clone(),
        listen: socket(&config.transport.listen)?,
        s3,
        health: socket(&config.observability.listen)?,
        roles: config.node.roles,
        disks: config.storage.disks,
    })
}
