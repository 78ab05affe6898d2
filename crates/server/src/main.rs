//! `plinth`: one binary for every role, for operators, and for a first try.

mod admission;
mod announce;
mod caller;
mod certificates;
mod config;
mod demo;
mod disks;
mod export;
mod files;
mod https;
mod identity;
mod init;
mod join;
mod kept;
mod keyring;
mod logging;
mod measure;
mod node;
mod observe;
mod operate;
mod overview;
mod peers;
mod process;
mod process_metrics;
mod profile;
mod registry;
mod renewal;
mod selftest;
mod service;
mod voters;

use clap::{Args, CommandFactory, Parser, Subcommand};
use config::{Config, RoleName};
use plinth_admin::command::CertCommand;
use plinth_admin::exit::{Exit, Trouble};
use plinth_admin::{OutputFormat, Report};
use serde_json::json;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// Where all memory comes from, RocksDB's too: decision 14 of ARCHITECTURE.md has the figures.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Plinth: an S3-compatible object store with Raft-replicated metadata and erasure-coded data.
#[derive(Debug, Parser)]
#[command(name = "plinth", version, arg_required_else_help = true, after_help = FIRST_MINUTE)]
struct Cli {
    /// How answers are printed; with json, errors too.
    #[arg(long, global = true, value_enum, default_value_t = OutputFormat::Table)]
    output: OutputFormat,
    /// The operator's profile file that `plinth init` wrote.
    #[arg(long, global = true, env = "PLINTH_PROFILE")]
    profile: Option<PathBuf>,
    /// Speaks to the demo that runs on this machine.
    #[arg(long, global = true, conflicts_with = "profile")]
    demo: bool,
    #[command(subcommand)]
    action: Action,
}

/// What stands below every help: how to begin.
const FIRST_MINUTE: &str =
    "First minute:  plinth demo\nTo stay:       plinth init single --data DIR   or   plinth init cluster --dir DIR";

#[derive(Debug, Subcommand)]
enum Action {
    /// Starts a whole cluster in this process, proves that it works, and prints lines to paste.
    Demo(demo::DemoArgs),
    /// Lays out a new cluster: certificates, configuration, founding record, first access key.
    #[command(subcommand)]
    Init(init::InitCommand),
    /// Admits this machine to a running cluster by token and writes its configuration.
    Join(join::JoinArgs),
    /// Runs a node until SIGTERM or Ctrl-C.
    Server(ServerArgs),
    /// Checks and shows configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Shows the version of this binary.
    Version,
    #[command(flatten)]
    Operate(plinth_admin::Command),
}

#[derive(Debug, Args)]
struct ServerArgs {
    /// The node's configuration file.
    #[arg(long)]
    config: PathBuf,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Checks a configuration, what it points at, and, where the cluster answers, that the registry agrees.
    ///
    /// Exit 2: the configuration itself is wrong; file, line and key are named. Exit 8: the configuration is well-formed
    /// but something that it points at is missing or wrong, or the cluster knows the node otherwise.
    Check {
        /// The node's configuration file.
        #[arg(long)]
        config: PathBuf,
    },
    /// Prints every key with its default.
    Default,
    /// Prints a configuration as it holds after all layers.
    Show {
        /// The node's configuration file.
        #[arg(long)]
        config: PathBuf,
    },
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            if error.use_stderr() && wants_json(std::env::args_os()) {
                let text = error.render().to_string();
                return print_trouble(&Trouble::new(Exit::Usage, "E2000", text.trim_end()), OutputFormat::Json);
            }
            let code = if error.use_stderr() { Exit::Usage } else { Exit::Done };
            let _ = error.print();
            return ExitCode::from(code as u8);
        }
    };
    logging::abort_on_panic();
    if let Err(error) = process::forbid_core_dumps() {
        let text = format!("core dumps of this process can't be forbidden: {error}");
        return print_trouble(&Trouble::new(Exit::Failed, "E2031", text), cli.output);
    }
    let output = cli.output;
    match dispatch(cli) {
        Ok(Some(report)) => print_report(&report, output),
        Ok(None) => ExitCode::SUCCESS,
        Err(trouble) => print_trouble(&trouble, output),
    }
}

/// Whether a command line that can't be read asks for JSON: its errors are JSON then, too.
fn wants_json(arguments: impl Iterator<Item = std::ffi::OsString>) -> bool {
    let words: Vec<_> = arguments.collect();
    let is_pair = |pair: &[std::ffi::OsString]| pair[0] == "--output" && pair[1] == "json";
    words.iter().any(|word| word == "--output=json") || words.windows(2).any(is_pair)
}

fn print_report(report: &Report, output: OutputFormat) -> ExitCode {
    let text = report.render(output);
    // A reader that has gone (`| head`) is no failure of the command.
    let _ = std::io::stdout().write_all(text.as_bytes());
    ExitCode::from(report.exit as u8)
}

fn print_trouble(trouble: &Trouble, output: OutputFormat) -> ExitCode {
    match output {
        OutputFormat::Table => eprintln!("{trouble}"),
        OutputFormat::Json => eprintln!("{}", trouble.to_json()),
    }
    ExitCode::from(trouble.exit as u8)
}

fn environment() -> Vec<(String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

fn dispatch(cli: Cli) -> Result<Option<Report>, Trouble> {
    match cli.action {
        Action::Demo(args) => runtime(processors())?.block_on(demo::run(args, cli.output)).map(|()| None),
        Action::Init(command) => init::run(command).map(Some),
        Action::Join(args) => runtime(processors())?.block_on(join::run(args)).map(Some),
        Action::Server(args) => {
            let config = load(&args.config)?;
            logging::start_node(&config).map_err(usage)?;
            runtime(workers_of(&config))?.block_on(node::run_until_signal(config)).map(|()| None)
        }
        Action::Config(command) => configure(command).map(Some),
        Action::Version => Ok(Some(version())),
        Action::Operate(plinth_admin::Command::Cert(CertCommand::Reissue { config, node, days })) => {
            certificates::reissue(&config, &node, days).map(Some)
        }
        Action::Operate(command) => {
            let file = match (cli.demo, cli.profile) {
                (true, _) => profile::Profile::of_demo(&environment())?,
                (false, Some(file)) => file,
                (false, None) => profile::Profile::default_file(&environment()),
            };
            runtime(processors())?.block_on(operate::run(&file, cli.demo, &command)).map(Some)
        }
    }
}

fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Returns how many threads carry a node's tasks: one for each processor where the node is a gateway; else half as
/// many, since disks, Raft log and databases have threads of their own, and each idle worker costs wake-ups.
fn workers_of(config: &Config) -> usize {
    if config.has_role(RoleName::Gateway) { processors() } else { (processors() / 2).max(1) }
}

fn runtime(workers: usize) -> Result<tokio::runtime::Runtime, Trouble> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        .enable_all()
        .build()
        .map_err(|error| Trouble::new(Exit::Failed, "E2003", format!("the async runtime does not start: {error}")))
}

fn usage(text: String) -> Trouble {
    Trouble::new(Exit::Usage, "E2002", text)
}

fn load(file: &std::path::Path) -> Result<Config, Trouble> {
    Config::load(file, &environment()).map_err(|error| usage(error.to_string()))
}

fn configure(command: ConfigCommand) -> Result<Report, Trouble> {
    match command {
        ConfigCommand::Check { config: file } => check_config(&file),
        ConfigCommand::Default => {
            let text = config::default_text();
            Ok(Report::done("Config", json!({ "toml": text }), text.clone()))
        }
        ConfigCommand::Show { config: file } => {
            let config = load(&file)?;
            let text = toml::to_string_pretty(&config).expect("the configuration's types all have a TOML form");
            let value = serde_json::to_value(&config).expect("the configuration's types all have a JSON form");
            Ok(Report::done("Config", value, text))
        }
    }
}

/// Checks a configuration: its files first, then against the cluster's registry where that can be asked.
fn check_config(file: &std::path::Path) -> Result<Report, Trouble> {
    let config = load(file)?;
    let problem = |error: String| Trouble::new(Exit::Problem, "E2004", error);
    let secrets = identity::Secrets::load(&config).map_err(|error| problem(error.to_string()))?;
    identity::check_validity(&secrets.certificate, node::wall_clock()).map_err(problem)?;
    identity::check_validity(&secrets.certificate, node::wall_clock()).map_err(problem)?;
    identity::check_validity(&secrets.certificate, node::wall_clock()).map_err(problem)?;
    node::check(&config).map_err(|trouble| problem(trouble.text))?;
    let mut text = format!("{} is sound: node {}\n", file.display(), config.node.name);
    let asked = runtime(1)?.block_on(registry::compare(&config, &secrets));
    let registry = match asked {
        Ok(found) if !found.problems.is_empty() => {
            return Err(problem(format!("{}: {}", file.display(), found.problems.join("; "))));
        }
        Ok(found) => {
            text.push_str("the cluster's registry agrees\n");
            found.notes.iter().for_each(|note| text.push_str(&format!("  note: {note}\n")));
            json!({"asked": true, "notes": found.notes})
        }
        Err(reason) => {
            text.push_str(&format!("not compared with the cluster, which does not answer: {reason}\n"));
            json!({"asked": false, "reason": reason})
        }
    };
    let value = json!({"file": file, "node": config.node.name, "ok": true, "registry": registry});
    Ok(Report::done("ConfigCheck", value, text))
}

fn version() -> Report {
    let version = Cli::command().get_version().unwrap_or_default().to_string();
    let text = format!("plinth {version}, feature level {}", init::FEATURE_LEVEL);
    Report::done("Version", json!({"version": version, "feature_level": init::FEATURE_LEVEL}), text)
}
