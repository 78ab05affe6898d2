//! What holds for the process as a whole: its memory holds keys, so it leaves no image of itself.

use std::io;

/// Forbids core dumps of this process, also those that the kernel hands to a program, and that other processes of the
/// same user read its memory.
pub fn forbid_core_dumps() -> io::Result<()> {
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls change properties of this process alone; `none` is a live rlimit.
    let (limited, undumpable) =
        unsafe { (libc::setrlimit(libc::RLIMIT_CORE, &none), libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0)) };
    if limited == 0 && undumpable == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_holds_keys_leaves_no_core() {
        forbid_core_dumps().expect("allowed to everybody");
        let limits = crate::files::read_text(std::path::Path::new("/proc/self/limits")).expect("Linux");
        let line = limits.lines().find(|line| line.starts_with("Max core file size")).expect("a line");
        let bounds: Vec<&str> = line["Max core file size".len()..].split_whitespace().take(2).collect();
        assert_eq!(bounds, ["0", "0"]);
        // SAFETY: asks for a property of this process.
        assert_eq!(unsafe { libc::prctl(libc::PR_GET_DUMPABLE, 0, 0, 0, 0) }, 0);
    }
}
