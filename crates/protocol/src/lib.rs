//! The words that two Plinth processes must agree on, byte for byte.
//!
//! Everything that crosses a process boundary or outlives a process is spelled here: ids, the
//! cluster map, stripe references, the frame geometry of a fragment, requests and replies. The
//! crate does no I/O and holds no policy; whoever changes a word here changes the format.
//!
//! Start at [`wire`] for how a record becomes bytes, then [`ids`], [`stripe`] and [`frame`] for
//! the data path, [`object`] and [`meta`] for the namespace, [`map`] for the cluster. Beside the words
//! stands the memory in which they travel: [`buffer`] and [`pool`], which change no format.

#![cfg_attr(test, allow(clippy::disallowed_methods))]

mod admission;
pub mod buffer;
pub mod frame;
#[doc(hidden)]
pub mod fuzz;
mod hidden;
pub mod ids;
pub mod map;
pub mod meta;
pub mod object;
pub mod pool;
mod rights;
pub mod rpc;
pub mod storage;
pub mod stripe;
pub mod wire;

pub use hidden::Hidden;
pub use ids::*;
pub use rpc::{Failure, FailureKind, Method, Role};
