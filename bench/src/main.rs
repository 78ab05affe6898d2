//! A closed-loop load generator for any S3 server, and the bench table of Plinth.
//!
//! `plinth-bench run` keeps a number of clients busy with one operation and prints rates, latencies, errors and what
//! the servers' processes cost meanwhile. `plinth-bench table` starts two clusters of separate processes and measures
//! every row of bench/RESULTS.md. The generator stays cheap: one thread, kept connections, bodies that are slices of
//! one pool of random bytes, a signing key derived once a day.

mod cluster;
mod connection;
mod first_fill;
mod latency;
mod load;
mod meter;
mod payload;
mod report;
mod signer;
mod table;

use clap::{Parser, Subcommand};
use load::{Operation, Plan};
use meter::Servers;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

#[derive(Parser)]
#[command(name = "plinth-bench", version, about = "Load generator for S3 servers, and Plinth's bench table")]
struct Arguments {
    #[command(subcommand)]
    command: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Keeps clients busy with one operation and reports.
    Run(RunOptions),
    /// Starts two clusters, measures every row of the table and writes bench/RESULTS.md.
    Table(table::TableOptions),
}

#[derive(clap::Args)]
struct RunOptions {
    /// What the clients do.
    #[arg(value_enum)]
    operation: Operation,
    /// An S3 endpoint, http://HOST:PORT; several are used in turn.
    #[arg(long, required = true)]
    endpoint: Vec<String>,
    /// Access key id.
    #[arg(long, env = "AWS_ACCESS_KEY_ID")]
    access_key: String,
    /// Secret key.
    #[arg(long, env = "AWS_SECRET_ACCESS_KEY", hide_env_values = true)]
    secret_key: String,
    /// Region to sign for.
    #[arg(long, env = "AWS_DEFAULT_REGION", default_value = "us-east-1")]
    region: String,
    /// Bucket; made when it is missing.
    #[arg(long, default_value = "bench")]
    bucket: String,
    /// What every key begins with.
    #[arg(long, default_value = "k/")]
    prefix: String,
    /// Keys in the key space (`fill` writes each of them once).
    #[arg(long, default_value_t = 1000)]
    keys: u64,
    /// Size of an object: bytes, or with KiB, MiB, GiB.
    #[arg(long, default_value = "4KiB", value_parser = parse_size)]
    size: u64,
    /// Writes objects above this size in parts of it (multipart); 0: never.
    #[arg(long, default_value = "0", value_parser = parse_size)]
    part_size: u64,
    /// Requests under way at a time.
    #[arg(long, default_value_t = 16)]
    clients: usize,
    /// Seconds to measure.
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// Seconds before the measurement begins.
    #[arg(long, default_value_t = 1.0)]
    warm_up: f64,
    /// Ends after this many requests.
    #[arg(long)]
    count: Option<u64>,
    /// Compares every byte read with what `fill` wrote under the same seed.
    #[arg(long)]
    verify: bool,
    /// Signs the SHA-256 of every body instead of UNSIGNED-PAYLOAD.
    #[arg(long)]
    signed_payload: bool,
    /// Decides keys, order and bytes.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// A server process to measure, by id.
    #[arg(long)]
    server_pid: Vec<u32>,
    /// A file with ids of server processes, apart by white space.
    #[arg(long)]
    server_pid_file: Vec<PathBuf>,
    /// Measures every process whose command has this name.
    #[arg(long)]
    server_name: Vec<String>,
    /// Prints one line of JSON instead of text.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // One thread: the generator must leave the cores to the servers that it measures.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime of one thread");
    let outcome = runtime.block_on(async {
        match arguments.command {
            Verb::Run(options) => run(options).await,
            Verb::Table(options) => table::table(options).await,
        }
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("plinth-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(options: RunOptions) -> Result<(), String> {
    let servers = servers(&options)?;
    let json = options.json;
    let plan = Plan {
        operation: options.operation,
        endpoints: options.endpoint,
        credentials: (options.access_key, options.secret_key, options.region),
        bucket: options.bucket,
        prefix: options.prefix,
        keys: options.keys,
        size: options.size,
        part_bytes: options.part_size,
        clients: options.clients.max(1),
        duration: Duration::try_from_secs_f64(options.seconds).map_err(|error| format!("--seconds: {error}"))?,
        warm_up: Duration::try_from_secs_f64(options.warm_up).map_err(|error| format!("--warm-up: {error}"))?,
        count_max: options.count,
        verify: options.verify,
        signed_payload: options.signed_payload,
        seed: options.seed,
    };
    let report = load::run(plan, &servers).await?;
    if json {
        println!("{}", report.json());
    } else {
        print!("{report}");
    }
    match report.failed() {
        0 => Ok(()),
        failed => Err(format!("{failed} requests failed")),
    }
}

// The ids come from files that the operator names.
#[allow(clippy::disallowed_methods)]
fn servers(options: &RunOptions) -> Result<Servers, String> {
    let mut pids = options.server_pid.clone();
    for file in &options.server_pid_file {
        let text = std::fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
        for word in text.split_whitespace() {
            pids.push(word.parse().map_err(|_| format!("{}: `{word}` is not a process id", file.display()))?);
        }
    }
    let mut servers = Servers::of(pids);
    options.server_name.iter().for_each(|name| servers.add_named(name));
    Ok(servers)
}

/// Reads 4096, 4KiB, 64MiB, 1GiB.
fn parse_size(text: &str) -> Result<u64, String> {
    let units = [("KiB", 10), ("MiB", 20), ("GiB", 30)];
    let (digits, shift) =
        units.iter().find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, *shift))).unwrap_or((text, 0));
    let number: u64 =
        digits.trim().parse().map_err(|_| format!("`{text}`: wanted bytes, or a number with KiB, MiB or GiB"))?;
    number.checked_mul(1 << shift).ok_or_else(|| format!("`{text}` is more than 64 bits hold"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        assert_eq!(parse_size("4096"), Ok(4096));
        assert_eq!(parse_size("64MiB"), Ok(64 << 20));
        assert!(parse_size("64MB").is_err());
        assert!(parse_size("99999999999GiB").is_err());
    }
}
