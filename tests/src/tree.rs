//! The project's files, and what the rules ask about them.

use std::path::{Path, PathBuf};

/// One text file of the project.
#[derive(Debug, Clone)]
pub struct File {
    /// Path from the project's root, with `/`.
    pub path: String,
    /// Its text.
    pub text: String,
}

/// The project's text files, sorted by path; build output, version control and binary files are left out.
#[derive(Debug, Clone)]
pub struct Tree {
    /// Where the project lies.
    pub root: PathBuf,
    /// All files.
    pub files: Vec<File>,
}

/// What is not the project's: its history (a folder, or a file in a second work tree), and what was built.
const LEFT_OUT: [&str; 4] = [".git", "target", "__pycache__", "proptest-regressions"];

impl Tree {
    /// Reads the project that this crate belongs to.
    ///
    /// # Panics
    /// When a folder cannot be read: a rule must not pass because nothing was looked at.
    pub fn read() -> Tree {
        // Asked when the test runs: a build folder that clones share may hold a test that was compiled in another.
        let member = std::env::var("CARGO_MANIFEST_DIR").expect("cargo tells its tests");
        let root = Path::new(&member).parent().expect("tests/ lies in the project").to_path_buf();
        let mut files = Vec::new();
        walk(&root, &root, &mut files);
        files.sort_by(|a, b| a.path.cmp(&b.path));
        assert!(files.len() > 20, "the project's files are where they are looked for");
        Tree { root, files }
    }

    /// Files whose path ends so.
    pub fn ending(&self, suffix: &str) -> impl Iterator<Item = &File> {
        self.files.iter().filter(move |file| file.path.ends_with(suffix))
    }

    /// The text of one file; `None` when it is missing.
    pub fn text(&self, path: &str) -> Option<&str> {
        self.files.iter().find(|file| file.path == path).map(|file| file.text.as_str())
    }
}

// Reading the project is this crate's whole purpose.
#[allow(clippy::disallowed_methods)]
fn walk(root: &Path, folder: &Path, files: &mut Vec<File>) {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    for entry in entries {
        let path = entry.unwrap_or_else(|error| panic!("{}: {error}", folder.display())).path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if LEFT_OUT.contains(&name) {
            continue;
        }
        if path.is_dir() {
            walk(root, &path, files);
            continue;
        }
        // A file that is not UTF-8 (a binary golden file) has no words to judge.
        if let Ok(text) = std::fs::read_to_string(&path) {
            let inside = path.strip_prefix(root).expect("the walk started at the root");
            files.push(File { path: inside.to_string_lossy().replace('\\', "/"), text });
        }
    }
}

/// Keys of the tables of a `Cargo.toml` whose header passes `wanted`, each with its line from 1.
pub fn manifest_keys(text: &str, wanted: impl Fn(&str) -> bool) -> Vec<(String, usize)> {
    let mut keys = Vec::new();
    let mut inside = false;
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if let Some(header) = line.strip_prefix('[') {
            inside = wanted(header.trim_end_matches(']'));
        } else if inside && let Some((key, _)) = line.split_once('=') {
            let name = key.trim().split('.').next().unwrap_or_default();
            let plain = !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || c == '-' || c == '_');
            if plain {
                keys.push((name.to_string(), index + 1));
            }
        }
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifest_keys_come_from_the_asked_tables_only() {
        let text = "[package]\nname = \"x\"\n[dependencies]\nplinth-a.workspace = true\nb = { version = \"1\" }\n# c = 1\n[lints]\nworkspace = true\n";
        let keys = manifest_keys(text, |header| header == "dependencies");
        assert_eq!(keys, [("plinth-a".to_string(), 4), ("b".to_string(), 5)]);
    }
}
