//! Planted bugs: mistakes on order, so that a suite can prove that it would notice them.
//!
//! Compiled only with the feature `planted-bugs`; the environment variable `PLINTH_BUG` picks one.
//! Without the feature [`is`] is `false` at compile time.

/// Names that this crate knows: what each breaks stands where it is asked for.
#[cfg(feature = "planted-bugs")]
pub const NAMES: &[&str] =
    &["vote-before-durable", "ack-before-durable", "skip-log-sync", "apply-without-index", "rename-before-sync"];

/// Returns whether the named bug is switched on.
#[cfg(feature = "planted-bugs")]
pub(crate) fn is(name: &str) -> bool {
    debug_assert!(NAMES.contains(&name), "unknown planted bug {name}");
    std::env::var("PLINTH_BUG").is_ok_and(|chosen| chosen == name)
}

/// Returns whether the named bug is switched on: never, in a build that ships.
#[cfg(not(feature = "planted-bugs"))]
#[inline(always)]
pub(crate) const fn is(_name: &str) -> bool {
    false
}
