//! An operator's profile: where the cluster is and under which certificate to speak to it.

use crate::config::parse_meta_peer;
use crate::files;
use plinth_admin::exit::{Exit, Trouble};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// A profile as its file holds it; relative paths start at the file's folder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// The cluster's name.
    pub cluster: String,
    /// Metadata nodes: `<node id>@<host>:<port>`.
    pub meta: Vec<String>,
    /// The operator's certificate and the cluster's CA behind it, PEM.
    pub certificate: PathBuf,
    /// The operator's private key, PEM.
    pub private_key: PathBuf,
    /// The key that wraps access keys' secrets: needed by `key create` alone.
    pub wrapping_key: Option<PathBuf>,
}

/// Name of the profile file in its folder.
pub const PROFILE_FILE: &str = "profile.toml";

impl Profile {
    /// Reads a profile and makes its paths absolute.
    pub fn load(file: &Path) -> Result<Profile, Trouble> {
        let text = files::read_text(file).map_err(|error| {
            let what = format!("{}: {error}; name a profile with --profile or PLINTH_PROFILE", file.display());
            Trouble::new(Exit::Usage, "E2001", what)
        })?;
        let mut profile: Profile = toml::from_str(&text)
            .map_err(|error| Trouble::new(Exit::Usage, "E2002", format!("{}: {}", file.display(), error.message())))?;
        if let Some(bad) = profile.meta.iter().find(|peer| parse_meta_peer(peer).is_none()) {
            let what = format!("{}: \"{bad}\" is not <node id>@<host>:<port>", file.display());
            return Err(Trouble::new(Exit::Usage, "E2002", what));
        }
        let base = file.parent().unwrap_or(Path::new("."));
        for path in [&mut profile.certificate, &mut profile.private_key] {
            *path = base.join(&*path);
        }
        profile.wrapping_key = profile.wrapping_key.map(|path| base.join(path));
        Ok(profile)
    }

    /// Returns where a profile stands when nobody names one.
    pub fn default_file(environment: &[(String, String)]) -> PathBuf {
        let get = |name: &str| environment.iter().find(|(key, _)| key == name).map(|(_, value)| PathBuf::from(value));
        let home = get("XDG_CONFIG_HOME").or_else(|| get("HOME").map(|home| home.join(".config")));
        home.unwrap_or_else(|| PathBuf::from(".")).join("plinth").join(PROFILE_FILE)
    }

    /// Returns the profile that a running demo left for `plinth --demo`; never one that a stranger may have put there.
    pub fn of_demo(environment: &[(String, String)]) -> Result<PathBuf, Trouble> {
        let folder = Profile::demo_folder(environment);
        let file = folder.join(PROFILE_FILE);
        if !files::exists(&file) {
            let text = "no demo of yours runs on this machine; start one with: plinth demo";
            return Err(Trouble::new(Exit::Unreachable, "E1001", text));
        }
        files::make_own_folder(&folder).map_err(|error| crate::init::file_trouble(&folder, error))?;
        Ok(file)
    }

    /// Returns the folder in which a running demo leaves its profile for `plinth --demo`.
    pub fn demo_folder(environment: &[(String, String)]) -> PathBuf {
        let get = |name: &str| environment.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
        match get("XDG_RUNTIME_DIR") {
            Some(folder) => PathBuf::from(folder).join("plinth-demo"),
            None => std::env::temp_dir().join(format!("plinth-demo-{}", get("USER").unwrap_or_else(|| "user".into()))),
        }
    }
}
