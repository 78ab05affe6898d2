//! Reads this repository's own source, so that house rules are failing tests.
//!
//! [`source`] turns a Rust file into lines whose comments and strings are told from code, knows
//! which lines belong to tests, and finds functions. [`tree`] walks the project's files and reads
//! the few facts of a `Cargo.toml` that the floors need. The rules themselves are in `tidy.rs`;
//! the suites against running clusters (`s3/`, `faults/`) are Python programs beside it.

pub mod source;
pub mod tree;

pub use source::Source;
pub use tree::Tree;
