//! The process's own figures under the names that every Prometheus client library uses.

use crate::export::{counter_of, gauge};
use crate::files;
use prometheus::proto::MetricFamily;
use std::path::Path;

/// Clock ticks a second in `/proc`: the same on every Linux that this runs on.
const TICKS_PER_SECOND: f64 = 100.0;
/// Bytes of a page, as `/proc/self/stat` counts resident memory.
const PAGE_BYTES: f64 = 4096.0;

/// What `/proc` says of this process.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Figures {
    cpu_seconds: f64,
    threads: f64,
    start_ticks: f64,
    virtual_bytes: f64,
    resident_bytes: f64,
}

/// Exports the process, as far as `/proc` can be read.
pub fn families() -> Vec<MetricFamily> {
    let read = |file: &str| files::read_text(Path::new(file)).unwrap_or_default();
    let one = |value: f64| vec![(vec![], value)];
    let mut families = Vec::new();
    if let Some(figures) = figures(&read("/proc/self/stat")) {
        families.push(counter_of("process_cpu_seconds_total", "Processor time.", figures.cpu_seconds));
        families.push(gauge("process_threads", "Threads.", one(figures.threads)));
        families.push(gauge("process_virtual_memory_bytes", "Virtual memory.", one(figures.virtual_bytes)));
        families.push(gauge("process_resident_memory_bytes", "Resident memory.", one(figures.resident_bytes)));
        if let Some(boot) = boot_seconds(&read("/proc/stat")) {
            let start = boot + figures.start_ticks / TICKS_PER_SECOND;
            families.push(gauge("process_start_time_seconds", "When the process started, since 1970.", one(start)));
        }
    }
    if let Ok(open) = files::list(Path::new("/proc/self/fd")) {
        families.push(gauge("process_open_fds", "Open file descriptors.", one(open.len() as f64)));
    }
    if let Some(most) = fds_max(&read("/proc/self/limits")) {
        families.push(gauge("process_max_fds", "Most file descriptors that may be open.", one(most)));
    }
    families
}

/// Reads `/proc/self/stat` (proc(5)): fields are counted behind the name, which may hold anything.
fn figures(stat: &str) -> Option<Figures> {
    let (_, behind) = stat.rsplit_once(") ")?;
    let fields: Vec<&str> = behind.split_whitespace().collect();
    // Field 3 of the page is the first behind the name.
    let field = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
    Some(Figures {
        cpu_seconds: (field(14)? + field(15)?) / TICKS_PER_SECOND,
        threads: field(20)?,
        start_ticks: field(22)?,
        virtual_bytes: field(23)?,
        resident_bytes: field(24)? * PAGE_BYTES,
    })
}

fn boot_seconds(stat: &str) -> Option<f64> {
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

fn fds_max(limits: &str) -> Option<f64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_is_read_as_its_manual_says() {
        let stat = "7 (a ) b) S 1 2 3 4 5 6 7 8 9 10 250 50 0 0 20 0 12 0 4000 1048576 256 0";
        let expected = Figures {
            cpu_seconds: 3.0,
            threads: 12.0,
            start_ticks: 4000.0,
            virtual_bytes: 1_048_576.0,
            resident_bytes: 1_048_576.0,
        };
        assert_eq!(figures(stat), Some(expected));
        assert_eq!(figures("7 (x"), None);
        assert_eq!(boot_seconds("cpu 1 2\nbtime 1700000000\n"), Some(1.7e9));
        assert_eq!(
            fds_max("Max open files            1024                 4096                 files\n"),
            Some(1024.0)
        );
        assert_eq!(fds_max("Max open files            unlimited            unlimited            files\n"), None);
    }

    #[test]
    fn this_process_has_figures() {
        let names: Vec<String> = families().iter().map(|family| family.name().to_string()).collect();
        for name in [
            "process_cpu_seconds_total",
            "process_resident_memory_bytes",
            "process_open_fds",
            "process_start_time_seconds",
        ] {
            assert!(names.iter().any(|found| found == name), "{name} of {names:?}");
        }
    }
}
