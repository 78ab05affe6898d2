//! What the servers cost: processor time, memory and bytes written of their processes, from `/proc`.

// Reading /proc is this module's one purpose; nothing else in the bench meets a file through it.
#![allow(clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::fs;

/// The unit of times in `/proc/PID/stat`: USER_HZ, which Linux keeps at 100 for programs whatever the kernel's own is.
const TICKS_PER_SECOND: f64 = 100.0;

/// The processes of the servers under test.
#[derive(Clone, Debug, Default)]
pub struct Servers {
    pids: Vec<u32>,
}

/// One reading of all processes.
#[derive(Clone, Debug, Default)]
pub struct Reading {
    /// Processor time since each process began, user and system, in ticks.
    ticks: BTreeMap<u32, u64>,
    /// Bytes that each process has had written to devices since it began; the file system's own records are not among
    /// them. Needs the rights of the processes' owner.
    written: BTreeMap<u32, u64>,
}

/// Memory of one process in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// The most that was resident since the process began, or since [`Servers::forget_peaks`].
    pub peak_bytes: u64,
    /// Resident now.
    pub resident_bytes: u64,
}

impl Servers {
    /// Names processes by id.
    pub fn of(pids: impl IntoIterator<Item = u32>) -> Servers {
        Servers { pids: pids.into_iter().collect() }
    }

    /// Adds every running process whose command is called `name`.
    pub fn add_named(&mut self, name: &str) {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        for pid in pids.filter(|pid| comm(*pid).as_deref() == Some(name)) {
            if !self.pids.contains(&pid) {
                self.pids.push(pid);
            }
        }
    }

    /// How many processes are measured.
    pub fn count(&self) -> usize {
        self.pids.len()
    }

    /// Reads the processor time of all processes; one that is gone counts as it was read last, that is: not at all.
    pub fn read(&self) -> Reading {
        let ticks = self.pids.iter().filter_map(|pid| Some((*pid, ticks_in(&proc_file(*pid, "stat")?)?)));
        let written = self.pids.iter().filter_map(|pid| Some((*pid, written_in(&proc_file(*pid, "io")?)?)));
        Reading { ticks: ticks.collect(), written: written.collect() }
    }

    /// Reads the memory of each process.
    pub fn memory(&self) -> BTreeMap<u32, Memory> {
        let read = self.pids.iter().filter_map(|pid| Some((*pid, memory_in(&proc_file(*pid, "status")?)?)));
        read.collect()
    }

    /// Makes the kernel count memory peaks anew; needs the rights of the processes' owner and is best effort.
    pub fn forget_peaks(&self) {
        for pid in &self.pids {
            let _ = fs::write(format!("/proc/{pid}/clear_refs"), "5");
        }
    }
}

impl Reading {
    /// Processor seconds between an earlier reading and this one, summed over processes seen in both.
    pub fn seconds_since(&self, earlier: &Reading) -> f64 {
        let both = self.ticks.iter().filter_map(|(pid, now)| Some(now.saturating_sub(*earlier.ticks.get(pid)?)));
        both.sum::<u64>() as f64 / TICKS_PER_SECOND
    }

    /// Bytes written between an earlier reading and this one, summed over processes seen in both.
    pub fn written_since(&self, earlier: &Reading) -> u64 {
        let both = self.written.iter().filter_map(|(pid, now)| Some(now.saturating_sub(*earlier.written.get(pid)?)));
        both.sum()
    }
}

fn proc_file(pid: u32, name: &str) -> Option<String> {
    fs::read_to_string(format!("/proc/{pid}/{name}")).ok()
}

fn comm(pid: u32) -> Option<String> {
    Some(proc_file(pid, "comm")?.trim_end().to_string())
}

/// utime + stime; the command's name, in brackets, may itself hold spaces and brackets.
fn ticks_in(stat: &str) -> Option<u64> {
    let behind_name = stat.rsplit_once(')')?.1;
    let mut fields = behind_name.split_ascii_whitespace().skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

fn written_in(io: &str) -> Option<u64> {
    io.lines().find_map(|line| line.strip_prefix("write_bytes: "))?.parse().ok()
}

fn memory_in(status: &str) -> Option<Memory> {
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name))?;
        line.split_ascii_whitespace().nth(1)?.parse::<u64>().ok().map(|kibibytes| kibibytes * 1024)
    };
    Some(Memory { peak_bytes: field("VmHWM:")?, resident_bytes: field("VmRSS:")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_found_behind_an_odd_name() {
        let stat = "42 (a) b (c) S 1 42 42 0 -1 4194560 1 2 3 4 700 50 9 9 20 0 3 0 100 1 1";
        assert_eq!(ticks_in(stat), Some(750));
    }

    #[test]
    fn bytes_written_are_those_of_devices() {
        let io = "rchar: 1\nwchar: 2\nread_bytes: 3\nwrite_bytes: 4096\ncancelled_write_bytes: 5\n";
        assert_eq!(written_in(io), Some(4096));
    }

    #[test]
    fn memory_is_in_bytes() {
        let status = "Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n";
        assert_eq!(memory_in(status), Some(Memory { peak_bytes: 2 << 20, resident_bytes: 1 << 20 }));
    }

    #[test]
    fn our_own_process_costs_something() {
        let servers = Servers::of([std::process::id()]);
        let before = servers.read();
        let mut sum = 0u64;
        while servers.read().seconds_since(&before) < 0.02 {
            sum = (0..100_000u64).fold(sum, |sum, x| sum ^ x.wrapping_mul(sum | 1));
        }
        assert!(servers.memory().values().all(|memory| memory.peak_bytes > 1 << 20), "{sum}");
    }
}
