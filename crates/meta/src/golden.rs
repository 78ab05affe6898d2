//! Byte forms held to the golden files in `tests/format`.
//!
//! `PLINTH_BLESS=1` writes the files anew; a change there is a change of the format.

use plinth_protocol::wire::Wire;
use std::fmt::{Debug, Write};

#[path = "../../../tests/format/golden.rs"]
mod file;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut out, byte| {
        write!(out, "{byte:02x}").unwrap();
        out
    })
}

/// Compares lines of a name and bytes with a golden file.
pub(crate) fn assert_golden(file: &str, lines: &[(&str, Vec<u8>)]) {
    let text: String = lines.iter().map(|(name, bytes)| format!("{name} {}\n", hex(bytes))).collect();
    file::assert_golden(file, &text);
}

/// A line of a golden file: the bytes of a value, which must read back as it was.
pub(crate) fn line<'a, T: Wire + PartialEq + Debug>(name: &'a str, value: &T) -> (&'a str, Vec<u8>) {
    let bytes = value.to_wire();
    assert_eq!(&T::decode(&bytes).unwrap(), value, "{name} reads back as it was");
    (name, bytes)
}
