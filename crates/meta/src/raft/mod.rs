//! The one module that knows openraft.
//!
//! [`words`] is our type configuration and the byte formats of votes, entries and memberships;
//! [`store`] puts openraft's log on [`crate::log`], [`machine`] its state machine on
//! [`crate::state`], in a thread of its own ([`applier`]); [`message`] and [`network`] are the calls between voters; [`snapshot`] moves
//! a database as a folder of files; [`group`] is one running group, as the rest of the crate sees it.

pub(crate) mod applier;
pub(crate) mod fetch;
pub(crate) mod group;
pub(crate) mod machine;
pub(crate) mod message;
pub(crate) mod network;
pub(crate) mod snapshot;
pub(crate) mod store;
pub(crate) mod words;

#[cfg(test)]
mod format;
#[cfg(test)]
mod suite;
