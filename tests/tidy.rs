//! House rules as failing tests. Each failure lists file, line and what to do; the reasons are in CONTRIBUTING.md.

use plinth_tests::Source;
use plinth_tests::source::module_without_body;
use plinth_tests::tree::{File, Tree, manifest_keys};
use std::collections::{BTreeMap, BTreeSet};

/// The floors of the crates: an import points to a lower floor, never up or sideways.
const FLOORS: [(&str, u8); 11] = [
    ("protocol", 1),
    ("erasure", 1),
    ("transport", 2),
    ("journal", 2),
    ("client", 3),
    ("meta", 3),
    ("storage", 3),
    ("gateway", 4),
    ("admin", 4),
    ("sim", 4),
    ("server", 5),
];

/// Crates that may take what they wire together, from any floor but the server's.
const WIRES: [&str; 1] = ["sim"];

/// Names that say nothing: a helper lives beside its caller or earns a word of the domain.
const NAMES_FORBIDDEN: [&str; 8] = ["util", "utils", "common", "helper", "helpers", "misc", "core", "types"];

/// Lines of a file, its tests apart.
const FILE_LINES_MAX: usize = 1000;

/// Lines of a function that hold code.
const FUNCTION_LINES_MAX: usize = 70;

/// The only files that may say `unsafe`, each with what it needs it for.
const UNSAFE_FILES: [(&str, &str); 5] = [
    ("crates/protocol/src/buffer.rs", "block-aligned memory"),
    ("crates/gateway/src/hashing/lanes.rs", "a function compiled for processor features that were asked for"),
    ("crates/journal/src/uring.rs", "buffers that the kernel reads and writes"),
    ("crates/server/src/process.rs", "limits of the process that no crate in use wraps"),
    ("crates/meta/src/state/rocks.rs", "RocksDB calls that its crate does not wrap"),
];

/// Lines above an `unsafe` among which its `// SAFETY:` must stand.
const SAFETY_DISTANCE_MAX: usize = 6;

struct RustFile {
    path: String,
    source: Source,
}

fn check(rule: &str, mut broken: Vec<String>) {
    broken.sort();
    assert!(broken.is_empty(), "{rule}\n  {}\n({} places)", broken.join("\n  "), broken.len());
}

fn is_rust_of_ours(path: &str) -> bool {
    path.ends_with(".rs") && ["crates/", "bench/", "tests/", "chaos/"].iter().any(|top| path.starts_with(top))
}

/// Integration tests, examples, benches and the test crate: what they hold never ships.
fn is_test_path(path: &str) -> bool {
    let folders: Vec<&str> = path.split('/').collect();
    path.starts_with("tests/") && !path.starts_with("tests/src/")
        || folders.iter().skip(1).rev().skip(1).any(|folder| ["tests", "examples", "benches"].contains(folder))
        || path.ends_with("/tests.rs")
        || path.ends_with("_test.rs")
        || path.ends_with("_tests.rs")
}

/// All Rust files, lexed; a module declared inside test code makes its file, and what lies under it, test code.
fn rust_files(tree: &Tree) -> Vec<RustFile> {
    let ours: Vec<&File> = tree.files.iter().filter(|file| is_rust_of_ours(&file.path)).collect();
    let mut test_stems = BTreeSet::new();
    for file in &ours {
        let stem = module_folder(&file.path);
        for module in Source::lex(&file.text, is_test_path(&file.path)).test_modules() {
            test_stems.insert(format!("{stem}/{module}"));
        }
    }
    let lexed = ours.iter().map(|file| {
        let stem = file.path.trim_end_matches(".rs").trim_end_matches("/mod");
        let below = test_stems.iter().any(|test| stem == test || stem.starts_with(&format!("{test}/")));
        let source = Source::lex(&file.text, below || is_test_path(&file.path));
        RustFile { path: file.path.clone(), source }
    });
    lexed.collect()
}

/// The folder in which a file's child modules lie.
fn module_folder(path: &str) -> String {
    let stem = path.trim_end_matches(".rs");
    let (folder, name) = stem.rsplit_once('/').unwrap_or(("", stem));
    if ["lib", "main", "mod"].contains(&name) { folder.to_string() } else { stem.to_string() }
}

#[test]
fn imports_point_down_the_floors() {
    let tree = Tree::read();
    let floors: BTreeMap<&str, u8> = FLOORS.into_iter().collect();
    let mut broken = Vec::new();
    for file in tree.ending("/Cargo.toml") {
        let Some(name) = file.path.strip_prefix("crates/").and_then(|rest| rest.strip_suffix("/Cargo.toml")) else {
            continue;
        };
        let Some(&floor) = floors.get(name) else {
            broken.push(format!("{}: the crate has no floor; give it one in FLOORS and in ARCHITECTURE.md", file.path));
            continue;
        };
        let every_dependency = |header: &str| header.ends_with("dependencies");
        for (key, line) in manifest_keys(&file.text, every_dependency) {
            let Some(taken) = key.strip_prefix("plinth-") else { continue };
            let lower = floors.get(taken).is_some_and(|&below| below < floor);
            let wired = WIRES.contains(&name) && taken != "server";
            if !lower && !wired {
                broken.push(format!("{}:{line}: {name} (floor {floor}) must not take {taken}", file.path));
            }
        }
    }
    check("Imports point to a lower floor:", broken);
}

#[test]
fn nothing_is_named_after_nothing() {
    let tree = Tree::read();
    let mut broken = Vec::new();
    for file in &tree.files {
        let parts = file.path.split('/').map(|part| part.split('.').next().unwrap_or_default());
        for part in parts.filter(|part| NAMES_FORBIDDEN.contains(part)) {
            broken.push(format!("{}: `{part}` says nothing; name it after what it hides", file.path));
        }
    }
    for file in rust_files(&tree) {
        for (index, line) in file.source.lines.iter().enumerate() {
            let code = line.code.trim().trim_start_matches("pub(crate) ").trim_start_matches("pub ");
            let Some(rest) = code.strip_prefix("mod ") else { continue };
            let name = rest.trim_end_matches([' ', '{', ';', '}']).trim();
            if NAMES_FORBIDDEN.contains(&name) {
                broken.push(format!("{}:{}: module `{name}` says nothing", file.path, index + 1));
            }
        }
    }
    check("Names come from the domain:", broken);
}

#[test]
fn files_stay_short() {
    let mut broken = Vec::new();
    for file in rust_files(&Tree::read()) {
        let lines = file.source.lines_outside_tests();
        if lines >= FILE_LINES_MAX {
            broken.push(format!("{}: {lines} lines outside tests; split it where one decision ends", file.path));
        }
    }
    check(&format!("Files stay under {FILE_LINES_MAX} lines, tests apart:"), broken);
}

#[test]
fn functions_stay_short() {
    let mut broken = Vec::new();
    for file in rust_files(&Tree::read()) {
        for function in file.source.functions() {
            if function.lines_of_code > FUNCTION_LINES_MAX && !file.source.lines[function.line].test {
                let (line, name, count) = (function.line + 1, &function.name, function.lines_of_code);
                broken.push(format!("{}:{line}: fn {name} has {count} lines of code", file.path));
            }
        }
    }
    check(&format!("Functions stay within {FUNCTION_LINES_MAX} lines of code:"), broken);
}

#[test]
fn unsafe_is_rare_and_explained() {
    let mut broken = Vec::new();
    for file in rust_files(&Tree::read()) {
        let listed = UNSAFE_FILES.iter().any(|(path, _)| *path == file.path);
        for (index, line) in file.source.lines.iter().enumerate() {
            if !line.has_word("unsafe") || line.code.trim().starts_with("#![") {
                continue;
            }
            if !listed && !line.test {
                broken.push(format!("{}:{}: this file may not say `unsafe` (UNSAFE_FILES)", file.path, index + 1));
            }
            let above = file.source.lines[index.saturating_sub(SAFETY_DISTANCE_MAX)..=index].iter();
            if !above.into_iter().any(|near| near.text.contains("SAFETY:") || near.text.contains("# Safety")) {
                broken.push(format!("{}:{}: no `// SAFETY:` says why this holds", file.path, index + 1));
            }
        }
    }
    check("`unsafe` lives in listed files, each block with its reason:", broken);
}

#[test]
fn listed_unsafe_files_exist_and_need_it() {
    let files = rust_files(&Tree::read());
    let broken = UNSAFE_FILES.iter().filter(|(path, _)| {
        let found = files.iter().find(|file| file.path == *path);
        !found.is_some_and(|file| file.source.lines.iter().any(|line| line.has_word("unsafe")))
    });
    check("UNSAFE_FILES names a file without `unsafe`:", broken.map(|(path, _)| path.to_string()).collect());
}

#[test]
fn public_items_say_what_they_are() {
    let tree = Tree::read();
    let mut broken = Vec::new();
    for file in rust_files(&tree) {
        for (index, line) in file.source.lines.iter().enumerate() {
            if line.test || !declares_public_item(&line.code) || documented(&file.source, index) {
                continue;
            }
            if module_without_body(&line.code).is_some_and(|module| module_has_story(&tree, &file.path, &module)) {
                continue;
            }
            broken.push(format!("{}:{}: no doc line above `{}`", file.path, index + 1, line.code.trim()));
        }
    }
    check("Every public item has a doc line:", broken);
}

fn declares_public_item(code: &str) -> bool {
    let Some(rest) = code.trim().strip_prefix("pub ") else { return false };
    let rest = ["async ", "unsafe ", "const ", "extern "].iter().fold(rest, |rest, word| {
        let shorter = rest.trim_start_matches(word);
        // `pub const NAME` is an item itself; `pub const fn` is a function.
        if *word == "const " && !shorter.starts_with("fn ") && !shorter.starts_with("unsafe ") { rest } else { shorter }
    });
    ["fn ", "struct ", "enum ", "trait ", "const ", "static ", "type ", "mod ", "union "]
        .iter()
        // A `$` stands in a macro: the item's documentation comes from whoever calls it.
        .any(|word| rest.strip_prefix(word).is_some_and(|name| !name.starts_with('$')))
}

/// Looks upward over attributes for a doc comment.
fn documented(source: &Source, index: usize) -> bool {
    for line in source.lines[..index].iter().rev() {
        let text = line.text.trim();
        if text.starts_with("///") || text.starts_with("#[doc") {
            return true;
        }
        let part_of_attribute = text.starts_with("#[") || text.ends_with(")]") || text.starts_with("//");
        if !part_of_attribute {
            return false;
        }
    }
    false
}

fn module_has_story(tree: &Tree, parent: &str, module: &str) -> bool {
    let folder = module_folder(parent);
    let texts = [format!("{folder}/{module}.rs"), format!("{folder}/{module}/mod.rs")];
    texts.iter().any(|path| tree.text(path).is_some_and(|text| text.trim_start().starts_with("//!")))
}

#[test]
fn crates_begin_with_their_story() {
    let tree = Tree::read();
    let mut broken = Vec::new();
    for file in tree.files.iter().filter(|file| file.path.starts_with("crates/")) {
        let front = file.path.ends_with("/src/lib.rs") || file.path.ends_with("/src/main.rs");
        if front && !file.text.starts_with("//!") {
            broken.push(format!("{}:1: the front door begins with `//!` and the crate's story", file.path));
        }
    }
    check("Every crate tells its story first:", broken);
}

#[test]
fn nothing_is_unwrapped_outside_tests() {
    let mut broken = Vec::new();
    for file in rust_files(&Tree::read()) {
        for (index, line) in file.source.lines.iter().enumerate().filter(|(_, line)| !line.test) {
            if line.code.contains(".unwrap()") {
                broken.push(format!(
                    "{}:{}: unwrap(); return the error, or expect(\"why it holds\")",
                    file.path,
                    index + 1
                ));
            }
            if line.text.contains(".expect(\"\")") {
                broken.push(format!("{}:{}: expect(\"\") gives no reason", file.path, index + 1));
            }
        }
    }
    check("No unwrap outside tests:", broken);
}

#[test]
fn nothing_is_left_unfinished() {
    let unfinished = ["todo", "unimplemented"];
    // Put together, so that this file does not break its own rule.
    let marks = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X:")];
    let mut broken = Vec::new();
    for file in rust_files(&Tree::read()) {
        for (index, line) in file.source.lines.iter().enumerate() {
            let called = unfinished.iter().any(|name| line.code.contains(&format!("{name}!(")));
            if called || marks.iter().any(|mark| line.text.contains(mark)) {
                broken.push(format!("{}:{}: {}", file.path, index + 1, line.text.trim()));
            }
            if line.code.trim() == "#[ignore]" {
                broken.push(format!("{}:{}: #[ignore = \"reason\"]", file.path, index + 1));
            }
        }
    }
    check("Nothing unfinished is left in the code:", broken);
}

#[test]
fn dependencies_are_named_in_the_architecture() {
    let tree = Tree::read();
    let manifest = tree.text("Cargo.toml").expect("the workspace has a manifest");
    let architecture = tree.text("ARCHITECTURE.md").unwrap_or_default();
    let mut broken = Vec::new();
    for (name, line) in manifest_keys(manifest, |header| header == "workspace.dependencies") {
        if !name.starts_with("plinth-") && !architecture.contains(&format!("`{name}`")) {
            broken.push(format!("Cargo.toml:{line}: ARCHITECTURE.md does not say what `{name}` is for"));
        }
    }
    check("Every dependency is named, with its purpose, in ARCHITECTURE.md:", broken);
}

#[test]
fn dependencies_come_from_the_workspace() {
    let tree = Tree::read();
    let mut broken = Vec::new();
    for file in
        tree.ending("Cargo.toml").filter(|file| file.path.starts_with("crates/") || file.path.starts_with("bench/"))
    {
        for (name, line) in manifest_keys(&file.text, |header| header.ends_with("dependencies")) {
            let written = file.text.lines().nth(line - 1).unwrap_or_default();
            if !written.contains("workspace = true") {
                broken.push(format!("{}:{line}: take {name} from [workspace.dependencies]", file.path));
            }
        }
        if !file.text.contains("[lints]\nworkspace = true") {
            broken.push(format!("{}: [lints] workspace = true is missing", file.path));
        }
    }
    check("Versions and lints are those of the workspace:", broken);
}

#[test]
fn no_file_knows_this_machine() {
    let places = [concat!("/ro", "ot/"), concat!("/wo", "rk/"), concat!("/ho", "me/")];
    let mut broken = Vec::new();
    for file in &Tree::read().files {
        for (index, line) in file.text.lines().enumerate() {
            if places.iter().any(|place| line.contains(place)) {
                broken.push(format!("{}:{}: {}", file.path, index + 1, line.trim()));
            }
        }
    }
    check("No absolute path of one machine stands in the project:", broken);
}

#[test]
fn documented_make_targets_exist() {
    let tree = Tree::read();
    let makefile = tree.text("Makefile").expect("the project has a Makefile");
    let readme = tree.text("README.md").unwrap_or_default();
    let mut broken = Vec::new();
    for command in ["make demo", "make test"] {
        if !readme.contains(command) {
            broken.push(format!("README.md: does not show `{command}`"));
        }
    }
    for file in tree.ending(".md") {
        for (index, line) in file.text.lines().enumerate() {
            for target in make_targets(line).filter(|target| !makefile.contains(&format!("\n{target}:"))) {
                broken.push(format!("{}:{}: the Makefile has no target `{target}`", file.path, index + 1));
            }
        }
    }
    check("Every documented make target exists:", broken);
}

/// Targets of `make` in code spans and at the start of console lines.
fn make_targets(line: &str) -> impl Iterator<Item = &str> {
    let starts = ["`make ", "$ make "];
    let found = starts.into_iter().flat_map(move |start| line.split(start).skip(1));
    found
        .filter_map(|rest| rest.split(|c: char| !(c.is_ascii_lowercase() || c == '-')).next())
        .filter(|t| !t.is_empty())
}

#[test]
fn every_golden_file_is_read_by_a_test() {
    let tree = Tree::read();
    let sources: Vec<&str> = tree.ending(".rs").map(|file| file.text.as_str()).collect();
    let mut broken = Vec::new();
    for golden in golden_names(&tree) {
        let stem = golden.rsplit_once('.').map_or(golden.as_str(), |(stem, _)| stem);
        if !sources.iter().any(|text| text.contains(&golden) || text.contains(&format!("\"{stem}\""))) {
            broken.push(format!("tests/format/{golden}: no test reads it"));
        }
    }
    check("Every golden file is read by a test:", broken);
}

/// Names in tests/format, binary files included.
#[allow(clippy::disallowed_methods)]
fn golden_names(tree: &Tree) -> Vec<String> {
    let folder = tree.root.join("tests/format");
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let names = entries.map(|entry| entry.expect("a readable folder").file_name().to_string_lossy().into_owned());
    names.filter(|name| !name.ends_with(".md")).collect()
}
