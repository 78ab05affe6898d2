//! The tombstone record: which fragments are deleted.
//!
//! Kind [`KIND_TOMBSTONE`], no payload. The body is a wire record:
//!
//! | tag | value                                                                        |
//! |-----|------------------------------------------------------------------------------|
//! | 1   | fragments: 1 to [`TOMBSTONE_FRAGMENTS_MAX`] counted fragment ids of 17 bytes  |

use plinth_protocol::{FragmentId, record};

/// Record kind of a fragment: body is a `FragmentHeader`, payload its frames.
pub const KIND_FRAGMENT: u8 = 16;
/// Record kind of a tombstone.
pub const KIND_TOMBSTONE: u8 = 17;
/// Most fragments in one tombstone record.
pub const TOMBSTONE_FRAGMENTS_MAX: usize = 208;

record! {
    /// Fragments that are deleted: no older record of theirs lives.
    pub struct TombstoneBody {
        1 => fragments: Vec<FragmentId>,
    }
}
