//! The golden files of this folder: what stands on disks and on the wire, as text. Each crate's tests take this
//! file in by its path.
//!
//! `PLINTH_BLESS=1` writes the files anew; a change there is a change of a format.

use std::sync::{Mutex, PoisonError};

/// Where the crate under test lies. Asked when the test runs: a build folder that clones share may hold a test that was
/// compiled in another.
fn folder() -> String {
    let member = std::env::var("CARGO_MANIFEST_DIR").expect("cargo tells its tests");
    format!("{member}/../../tests/format")
}

/// Returns a golden file's text; first of all writes what was found where that is asked for.
pub fn golden(file: &str, found: &str) -> String {
    static WRITING: Mutex<()> = Mutex::new(());
    let _alone = WRITING.lock().unwrap_or_else(PoisonError::into_inner);
    let path = format!("{}/{file}", folder());
    if std::env::var_os("PLINTH_BLESS").is_some() {
        std::fs::write(&path, found).unwrap_or_else(|error| panic!("{file} can't be written: {error}"));
    }
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// Compares what was found with a golden file.
pub fn assert_golden(file: &str, found: &str) {
    let golden = golden(file, found);
    for (number, (line, wanted)) in found.lines().zip(golden.lines()).enumerate() {
        assert_eq!(line, wanted, "{file}, line {}: the format has changed", number + 1);
    }
    assert_eq!(found, golden, "{file}: the format has changed");
}
