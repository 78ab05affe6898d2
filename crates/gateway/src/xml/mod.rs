//! XML as S3 speaks it: written by hand straight into a buffer, read with limits.

mod read;
mod write;

pub use read::{Element, XmlLimits, parse};
pub use write::{UrlEncoded, Writer};
