//! Repeated log lines: the first ones are told, the others counted.
//!
//! A voter that is down, a wiped disk or a configuration that is started twice make a node say the same tens of times
//! a second. Lines of one kind, which is the place in the code and what the line is about, are told [`LINES_MAX`] times
//! within [`WINDOW`], each text once; the others are held. When the window has passed, the last held one is told
//! with their number.

use std::collections::HashMap;
use std::time::Duration;
use tokio::time::Instant;
use tracing::callsite::Identifier;

/// How long lines of one kind are counted together.
pub const WINDOW: Duration = Duration::from_secs(10);
/// Lines of one kind, each with a text of its own, that are told within a window.
pub const LINES_MAX: usize = 3;
/// Kinds that are counted at once; lines of further ones are told.
const KINDS_MAX: usize = 1024;

/// What lines have in common.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Kind {
    /// The place in the code.
    pub callsite: Identifier,
    /// What the line is about: a node, a disk, a group.
    pub subject: String,
}

/// What has been said of one kind in its window.
struct Told {
    since: Instant,
    texts: Vec<String>,
    held: u64,
    /// The last held line, whole.
    last: String,
}

/// Counts lines by kind.
#[derive(Default)]
pub struct Repeats {
    kinds: HashMap<Kind, Told>,
}

impl Repeats {
    /// Decides whether a line is told now. `text` is what makes it the same as another one; `line` is what is printed.
    pub fn judge(&mut self, now: Instant, kind: Kind, text: String, line: &str) -> bool {
        if let Some(told) = self.kinds.get_mut(&kind) {
            let is_new = !told.texts.contains(&text) && told.texts.len() < LINES_MAX;
            if is_new {
                told.texts.push(text);
            } else {
                told.held += 1;
                told.last.clear();
                told.last.push_str(line);
            }
            return is_new;
        }
        if self.kinds.len() < KINDS_MAX {
            self.kinds.insert(kind, Told { since: now, texts: vec![text], held: 0, last: String::new() });
        }
        true
    }

    /// Ends the windows that have passed, all of them where `all`: returns the last held line of each kind and how many
    /// were held.
    pub fn take_due(&mut self, now: Instant, all: bool) -> Vec<(String, u64)> {
        let mut due = Vec::new();
        self.kinds.retain(|_, told| {
            let is_over = all || now.duration_since(told.since) >= WINDOW;
            if !is_over {
                return true;
            }
            if told.held == 0 {
                return false;
            }
            due.push((std::mem::take(&mut told.last), told.held));
            // What goes on repeating stays one line a window.
            (told.since, told.held) = (now, 0);
            true
        });
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Place;

    impl tracing::Callsite for Place {
        fn set_interest(&self, _: tracing::subscriber::Interest) {}
        fn metadata(&self) -> &tracing::Metadata<'_> {
            unreachable!("nobody asks a test's place")
        }
    }

    fn kind(subject: &str) -> Kind {
        Kind { callsite: Identifier(&Place), subject: subject.into() }
    }

    #[test]
    fn the_same_line_is_told_once_a_window_with_the_number_of_the_others() {
        let (mut repeats, start) = (Repeats::default(), Instant::now());
        let mut told = 0;
        // 36 lines a second for 25 s.
        for at in 0..900u64 {
            let now = start + Duration::from_millis(at * 28);
            told += usize::from(repeats.judge(now, kind("m3"), "m3 is not heard".into(), "line"));
            told += repeats.take_due(now, false).len();
        }
        let rest = repeats.take_due(start + Duration::from_secs(60), false);
        assert_eq!((told, rest.len()), (3, 1), "one at once, then one for each ten seconds");
        assert!(repeats.take_due(start + Duration::from_secs(75), false).is_empty(), "silence is not told of");
        assert!(repeats.judge(start + Duration::from_secs(80), kind("m3"), "m3 is not heard".into(), "line"));
    }

    #[test]
    fn other_subjects_and_other_texts_are_told_within_bounds() {
        let (mut repeats, now) = (Repeats::default(), Instant::now());
        assert!(repeats.judge(now, kind("m3"), "a".into(), "a"));
        assert!(repeats.judge(now, kind("m2"), "a".into(), "a"), "another node");
        assert!(repeats.judge(now, kind("m3"), "b".into(), "b"), "another reason");
        assert!(repeats.judge(now, kind("m3"), "c".into(), "c"));
        assert!(!repeats.judge(now, kind("m3"), "d".into(), "d"), "a fourth");
        assert!(!repeats.judge(now, kind("m3"), "a".into(), "a"));
        assert_eq!(repeats.take_due(now, true), [("a".to_string(), 2)]);
        for number in 0..2 * KINDS_MAX {
            assert!(repeats.judge(now, kind(&number.to_string()), "x".into(), "x"));
        }
        assert!(repeats.kinds.len() <= KINDS_MAX);
    }
}
