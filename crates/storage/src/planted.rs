//! Planted bugs: deliberate mistakes that the suites must catch. Compiled only with the feature
//! `planted-bugs`, picked by the variable `PLINTH_BUG`; otherwise every question is a constant no.

/// Returns whether this mistake is planted.
#[cfg(not(feature = "planted-bugs"))]
pub(crate) const fn planted(_: &str) -> bool {
    false
}

#[cfg(feature = "planted-bugs")]
pub(crate) use switched::planted;
#[cfg(feature = "planted-bugs")]
pub use switched::{BUGS, plant};

#[cfg(feature = "planted-bugs")]
mod switched {
    use std::cell::RefCell;

    /// The mistakes that can be planted in the storage engine.
    pub const BUGS: [&str; 5] = [
        "ignore-frame-checksum",
        "ack-before-durable",
        "delete-without-tombstone-sync",
        "drop-tombstone-early",
        "checkpoint-mark-late",
    ];

    thread_local! {
        static PLANTED: RefCell<Option<String>> = RefCell::new(std::env::var("PLINTH_BUG").ok());
    }

    pub(crate) fn planted(name: &str) -> bool {
        PLANTED.with_borrow(|planted| planted.as_deref() == Some(name))
    }

    /// Plants a bug, or none, for this thread.
    pub fn plant(name: Option<&str>) {
        PLANTED.set(name.map(str::to_owned));
    }
}
