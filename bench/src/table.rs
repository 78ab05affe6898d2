//! The table of bench/RESULTS.md: each row with its bar, measured against two fresh clusters of separate processes.

// A tool that writes a page into the repository and asks git for the commit.
#![allow(clippy::disallowed_methods)]

use crate::cluster::Cluster;
use crate::first_fill;
use crate::load::{self, Operation, Plan};
use crate::report::{Report, size};
use std::fmt::Write;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Where the generated part of the page stands; the rest of the page is written by people.
const BEGIN: &str = "<!-- table: begin (written by plinth-bench table) -->";
const END: &str = "<!-- table: end -->";

/// How a table is made.
#[derive(Clone, Debug, clap::Args)]
pub struct TableOptions {
    /// The program under test.
    #[arg(long)]
    pub plinth: PathBuf,
    /// The page to write.
    #[arg(long, default_value = "bench/RESULTS.md")]
    pub page: PathBuf,
    /// Where the two clusters live meanwhile, in folders of this name with an ending each; must not exist. Beside the
    /// program unless told.
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// First port of the first cluster; the second's are a hundred higher.
    #[arg(long, default_value_t = 19_100, value_parser = clap::value_parser!(u16).range(1024..=65_000))]
    pub base_port: u16,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 8)]
    pub seconds: u64,
    /// Measurements of each row; the median counts.
    #[arg(long, default_value_t = 3)]
    pub runs: usize,
    /// Keys of the large bucket.
    #[arg(long, default_value_t = 1_000_000)]
    pub keys: u64,
    /// One short run with a small bucket: shows that the table works, proves nothing.
    #[arg(long)]
    pub quick: bool,
    /// Keeps the clusters' folders and logs.
    #[arg(long)]
    pub keep: bool,
}

/// One row: what is done, and the bar it is held against.
#[derive(Clone, Copy)]
struct Row {
    name: &'static str,
    operation: Operation,
    bucket: &'static str,
    size: u64,
    clients: usize,
    bar: Bar,
}

/// What a row must reach.
#[derive(Clone, Copy)]
enum Bar {
    /// Server processor milliseconds an operation, at most.
    CpuMsMax(f64),
    /// Server processor seconds a GiB, at most.
    CpuPerGibMax(f64),
    /// Operations a second, and operations for a server processor second, as a share of those of the row with this name,
    /// at least.
    NotSlowerThan(&'static str),
    /// Keys listed for a server processor second, at least, and as fast as above.
    ListsAsFastAs(f64, &'static str),
    /// Only shown.
    None,
}

/// How long 64 clients write large objects at least, in seconds.
const CROWD_SECONDS_MIN: u64 = 30;

/// How long a demo rests before its memory is read.
const REST: Duration = Duration::from_secs(5);

/// How much slower than its twin a row may be before it counts as slower: the noise between runs on a shared machine.
const NOISE_SHARE: f64 = 0.10;

/// What is measured, in this order; the rows of one line run by run in turn, so that they share the machine's hour.
const TURNS: [&[Row]; 11] = [
    &[row("PUT 4 KiB", Operation::Put, "bench-small", 4 * KIB, 16, Bar::CpuMsMax(0.5))],
    &[row("GET 4 KiB", Operation::Get, "bench-small", 4 * KIB, 16, Bar::CpuMsMax(0.15))],
    &[row("HEAD", Operation::Head, "bench-small", 4 * KIB, 16, Bar::None)],
    &[row("PUT 1 MiB", Operation::Put, "bench-1m", MIB, 8, Bar::CpuPerGibMax(5.0))],
    &[row("PUT 1 MiB, more clients", Operation::Put, "bench-1m", MIB, 32, Bar::CpuPerGibMax(5.0))],
    &[row("GET 1 MiB", Operation::Get, "bench-1m", MIB, 8, Bar::CpuPerGibMax(2.0))],
    &[row("PUT 64 MiB", Operation::Put, "bench-64m", 64 * MIB, 4, Bar::None)],
    &[row("GET 64 MiB", Operation::Get, "bench-64m", 64 * MIB, 4, Bar::CpuPerGibMax(2.0))],
    &[
        row("PUT 64 B, few keys", Operation::Put, FEW, 64, 16, Bar::None),
        row("PUT 64 B, many keys", Operation::Put, MANY, 64, 16, Bar::NotSlowerThan("PUT 64 B, few keys")),
    ],
    &[
        row("GET 64 B, few keys", Operation::Get, FEW, 64, 16, Bar::None),
        row("GET 64 B, many keys", Operation::Get, MANY, 64, 16, Bar::NotSlowerThan("GET 64 B, few keys")),
    ],
    &[
        row("LIST, few keys", Operation::List, FEW, 0, 4, Bar::None),
        row("LIST, many keys", Operation::List, MANY, 0, 4, Bar::ListsAsFastAs(300_000.0, "LIST, few keys")),
    ],
];

const FEW: &str = "bench-few";
const MANY: &str = "bench-many";

const fn row(
    name: &'static str,
    operation: Operation,
    bucket: &'static str,
    size: u64,
    clients: usize,
    bar: Bar,
) -> Row {
    Row { name, operation, bucket, size, clients, bar }
}

/// The clusters of a table: the large bucket has one of its own, so that the others' databases stay small.
struct Clusters {
    small: Cluster,
    large: Cluster,
}

/// Where the clusters live, each with an ending of its own.
fn folder(options: &TableOptions) -> PathBuf {
    let beside = options.plinth.parent().unwrap_or(Path::new(".")).join(format!("bench-{}", std::process::id()));
    options.dir.clone().unwrap_or(beside)
}

impl Clusters {
    async fn start(options: &TableOptions) -> Result<Clusters, String> {
        let folder = folder(options);
        let name = folder.file_name().ok_or_else(|| format!("{} names no folder", folder.display()))?;
        let named = |ending| folder.with_file_name(format!("{}-{ending}", name.display()));
        let mut small = Cluster::start(&options.plinth, &named("small"), options.base_port).await?;
        if options.keep {
            small.keep_folder();
        }
        let mut large = Cluster::start(&options.plinth, &named("large"), options.base_port + 100).await?;
        if options.keep {
            large.keep_folder();
        }
        Ok(Clusters { small, large })
    }

    fn of(&self, row: &Row) -> &Cluster {
        if row.bucket == MANY { &self.large } else { &self.small }
    }
}

/// Starts two clusters, measures every row and writes the page.
///
/// # Errors
/// When a cluster does not start or the page cannot be written.
pub async fn table(mut options: TableOptions) -> Result<(), String> {
    if options.quick {
        (options.seconds, options.runs, options.keys) = (2, 1, 20_000);
    }
    // First: a demo wants a disk that the rows below have not filled.
    let demo_bytes = demo_at_rest(&options.plinth).await?;
    let fills = first_fill::measure(&options, &folder(&options), if options.quick { GIB / 2 } else { 4 * GIB }).await?;
    let clusters = Clusters::start(&options).await?;
    let mut measured = Vec::new();
    let mut filled: Vec<&str> = Vec::new();
    for rows in TURNS {
        for row in rows.iter().filter(|row| !filled.contains(&row.bucket)) {
            if row.bucket == MANY {
                eprintln!("{} keys are written first; this takes minutes", options.keys);
            }
            let cluster = clusters.of(row);
            let report = load::run(plan(cluster, &options, row, Operation::Fill), &cluster.servers("")).await?;
            eprint!("{} {report}", row.bucket);
        }
        filled.extend(rows.iter().map(|row| row.bucket));
        for (row, report) in rows.iter().zip(in_turn(&clusters, &options, rows).await?) {
            eprint!("{}: {report}", row.name);
            measured.push((row, report));
        }
    }
    let memory = memory_rows(&clusters.small, &options, demo_bytes).await?;
    let text = page_part(&options, &measured, &fills, &memory);
    write_page(&options.page, &text)
}

/// Objects that a bucket holds before it is measured.
fn keys_in(bucket: &str, options: &TableOptions) -> u64 {
    match bucket {
        MANY => options.keys,
        "bench-1m" => 256,
        "bench-64m" => 8,
        _ => options.keys.min(10_000),
    }
}

fn plan(cluster: &Cluster, options: &TableOptions, row: &Row, operation: Operation) -> Plan {
    let many_clients = if row.size <= MIB { 32 } else { row.clients };
    Plan {
        operation,
        endpoints: vec![cluster.endpoint.clone()],
        credentials: (cluster.keys.0.clone(), cluster.keys.1.clone(), "us-east-1".to_string()),
        bucket: row.bucket.to_string(),
        prefix: "k/".to_string(),
        keys: keys_in(row.bucket, options),
        size: if row.bucket == FEW || row.bucket == MANY { 64 } else { row.size },
        part_bytes: 0,
        clients: if operation == Operation::Fill { many_clients } else { row.clients },
        duration: Duration::from_secs(options.seconds),
        warm_up: Duration::from_secs(1),
        count_max: None,
        verify: false,
        signed_payload: false,
        seed: 1,
    }
}

/// Measures each row several times, all of them in turn, and returns of each the run with the median rate.
async fn in_turn(clusters: &Clusters, options: &TableOptions, rows: &[Row]) -> Result<Vec<Report>, String> {
    let mut reports: Vec<Vec<Report>> = rows.iter().map(|_| Vec::new()).collect();
    for run in 0..options.runs.max(1) {
        for (row, reports) in rows.iter().zip(&mut reports) {
            let cluster = clusters.of(row);
            let mut plan = plan(cluster, options, row, row.operation);
            plan.seed += run as u64;
            reports.push(load::run(plan, &cluster.servers("")).await?);
        }
    }
    let median = |mut reports: Vec<Report>| {
        reports.sort_by(|a, b| a.operations_per_second().total_cmp(&b.operations_per_second()));
        reports.swap_remove(reports.len() / 2)
    };
    Ok(reports.into_iter().map(median).collect())
}

/// A statement about memory: what, found, bar, all in MiB.
struct MemoryRow {
    name: String,
    found_mib: f64,
    bar_mib: f64,
}

async fn memory_rows(cluster: &Cluster, options: &TableOptions, demo_bytes: u64) -> Result<Vec<MemoryRow>, String> {
    let (gateway, storage) = (cluster.servers("g"), cluster.servers("s"));
    gateway.forget_peaks();
    storage.forget_peaks();
    let row = row("64 concurrent", Operation::Put, "bench-64m", 64 * MIB, 64, Bar::None);
    let mut crowd = plan(cluster, options, &row, Operation::Put);
    // Each PUT shares two cores with 63 others: a short run would end before any was answered.
    crowd.duration = Duration::from_secs(options.seconds.max(CROWD_SECONDS_MIN));
    let report = load::run(crowd, &cluster.servers("")).await?;
    eprint!("64 concurrent PUTs of 64 MiB: {report}");
    let mib = |bytes: u64| bytes as f64 / MIB as f64;
    let largest = |memory: std::collections::BTreeMap<u32, crate::meter::Memory>| {
        mib(memory.values().map(|one| one.peak_bytes).max().unwrap_or(0))
    };
    let (stored, refused) = (report.operations, report.failed());
    let clients = format!("64 concurrent PUTs of 64 MiB ({stored} stored, {refused} refused)");
    Ok(vec![
        MemoryRow { name: "`plinth demo` at rest".into(), found_mib: mib(demo_bytes), bar_mib: 500.0 },
        MemoryRow {
            name: format!("gateway, peak under {clients}"),
            found_mib: largest(gateway.memory()),
            bar_mib: 768.0,
        },
        MemoryRow {
            name: format!("largest storage process, peak under {clients}"),
            found_mib: largest(storage.memory()),
            bar_mib: 300.0,
        },
    ])
}

/// Resident bytes of a demo some seconds after its self-test.
async fn demo_at_rest(plinth: &Path) -> Result<u64, String> {
    let failed = |error: std::io::Error| format!("plinth demo: {error}");
    let command = &mut Command::new(plinth);
    let mut demo = command.args(["demo", "--output", "json"]).stdout(Stdio::piped()).spawn().map_err(failed)?;
    let mut ready = String::new();
    let output = demo.stdout.take().expect("its output is a pipe");
    BufReader::new(output).read_line(&mut ready).map_err(failed)?;
    tokio::time::sleep(REST).await;
    let memory = crate::meter::Servers::of([demo.id()]).memory();
    let _ = Command::new("kill").args(["-TERM", &demo.id().to_string()]).status();
    demo.wait().map_err(failed)?;
    let resident = memory.values().map(|one| one.resident_bytes).sum();
    if ready.is_empty() || resident == 0 { Err("plinth demo ended before it was ready".into()) } else { Ok(resident) }
}

fn page_part(
    options: &TableOptions,
    measured: &[(&Row, Report)],
    fills: &[first_fill::Row],
    memory: &[MemoryRow],
) -> String {
    let mut text = String::new();
    let asked = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output().ok()?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_string())
    };
    let commit = asked("git", &["describe", "--always", "--dirty"]).unwrap_or_else(|| "unknown".into());
    let kernel = asked("uname", &["-r"]).unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let arguments = format!("--seconds {} --runs {} --keys {}", options.seconds, options.runs, options.keys);
    let _ = writeln!(text, "{BEGIN}\n");
    let _ = writeln!(text, "Commit `{commit}`, {cores} cores, Linux {kernel}, load generator on the same machine.");
    let _ =
        writeln!(text, "Command: `make bench ARGS='{arguments}'`; each row is the median of {} runs.\n", options.runs);
    text += "| row | clients | operations/s | MiB/s or keys/s | p50 ms | p99 ms | server CPU | bar | |\n";
    text += "| --- | --: | --: | --: | --: | --: | --: | --: | --- |\n";
    for (row, report) in measured {
        let (cost, bar, verdict) = judge(row, report, measured);
        let moved = match report.keys {
            0 => format!("{:.1} MiB/s", report.mib_per_second()),
            _ => format!("{:.0} keys/s", report.keys_per_second()),
        };
        let errors = if report.failed() > 0 { format!(" ({} errors!)", report.failed()) } else { String::new() };
        let _ = writeln!(
            text,
            "| {} | {} | {:.0}{errors} | {moved} | {:.2} | {:.2} | {cost} | {bar} | {verdict} |",
            row.name,
            report.clients,
            report.operations_per_second(),
            report.latency.quantile_ms(0.5),
            report.latency.quantile_ms(0.99),
        );
    }
    let (few, many) = (keys_in(FEW, options), keys_in(MANY, options));
    let _ = writeln!(
        text,
        "\nFew keys: {few}; many keys: {many}, objects of {}, in a cluster of their own; each with its twin in turn.\n",
        size(64)
    );
    text += &first_fill::page_part(fills);
    text += "\n| memory | MiB | bar | |\n| --- | --: | --: | --- |\n";
    for row in memory {
        let verdict = if row.found_mib <= row.bar_mib { "holds" } else { "**falls short**" };
        let _ = writeln!(text, "| {} | {:.0} | ≤ {:.0} | {verdict} |", row.name, row.found_mib, row.bar_mib);
    }
    let _ = write!(text, "\n{END}");
    text
}

/// Cost, bar and verdict of a row, in words.
fn judge(row: &Row, report: &Report, measured: &[(&Row, Report)]) -> (String, String, &'static str) {
    let (per_operation, per_gib) = (report.cpu_seconds_per_thousand(), report.cpu_seconds_per_gib());
    let own_cost = if report.keys > 0 {
        format!("{:.0} keys/CPU-s", report.keys_per_cpu_second())
    } else if report.size >= MIB && report.bytes > 0 {
        format!("{per_gib:.2} CPU-s/GiB")
    } else {
        format!("{per_operation:.3} ms")
    };
    let as_fast_as = |name: &str| {
        // Both: what one cluster does behind its answers slows its twin's clients as well, but shows in its own cost.
        let holds = measured.iter().find(|(row, _)| row.name == name).is_some_and(|(_, twin)| {
            let is_near = |own: f64, other: f64| own >= other * (1.0 - NOISE_SHARE);
            is_near(report.operations_per_second(), twin.operations_per_second())
                && is_near(twin.cpu_seconds_per_thousand(), per_operation)
        });
        (format!("as fast and as cheap as {name}, ± {:.0} %", NOISE_SHARE * 100.0), holds)
    };
    let (bar, holds) = match row.bar {
        Bar::CpuMsMax(max) => (format!("≤ {max} ms"), Some(per_operation <= max)),
        Bar::CpuPerGibMax(max) => (format!("≤ {max} CPU-s/GiB"), Some(per_gib <= max)),
        Bar::NotSlowerThan(name) => {
            let (bar, holds) = as_fast_as(name);
            (bar, Some(holds))
        }
        Bar::ListsAsFastAs(min, name) => {
            let (bar, holds) = as_fast_as(name);
            (format!("≥ {min:.0} keys/CPU-s, {bar}"), Some(holds && report.keys_per_cpu_second() >= min))
        }
        Bar::None => ("–".to_string(), None),
    };
    // A rate with errors in it proves nothing.
    let holds = holds.map(|holds| holds && report.failed() == 0 && report.operations > 0);
    let verdict = match holds {
        Some(true) => "holds",
        Some(false) => "**falls short**",
        None => "",
    };
    (own_cost, bar, verdict)
}

/// Replaces the generated part of the page, or appends it.
fn write_page(page: &Path, part: &str) -> Result<(), String> {
    let old = std::fs::read_to_string(page).unwrap_or_else(|_| "# Bench results\n".to_string());
    let new = match (old.find(BEGIN), old.find(END)) {
        (Some(begin), Some(end)) if begin < end => format!("{}{part}{}", &old[..begin], &old[end + END.len()..]),
        _ => format!("{old}\n{part}\n"),
    };
    std::fs::write(page, new).map_err(|error| format!("{}: {error}", page.display()))
}
