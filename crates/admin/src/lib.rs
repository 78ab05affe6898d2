//! The operator's commands: what `plinth status`, `plinth node list` and their kin do.
//!
//! A command line is a [`command::Command`]; [`run`] carries it out against a cluster through the
//! same client that gateways use, under an operator's certificate, and answers a [`Report`]: one
//! value that prints as a table for people or as JSON for scripts. Failures carry one of the exit
//! codes of [`exit::Exit`] and an error code that stays the same for ever.
//!
//! Secrets pass through here once, on the way to the operator's screen: [`secret`] draws access
//! keys and wraps them for group 0.

pub mod certificates;
pub mod command;
pub mod exit;
pub mod look;
pub mod report;
pub mod run;
pub mod secret;
pub mod verdict;
pub mod view;

pub use command::{Command, OutputFormat};
pub use exit::{Exit, Trouble};
pub use report::Report;
pub use run::run;
