//! Logs: JSON lines for machines, text for a terminal.

use crate::config::LogFormat;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::JsonFields;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Starts logging to standard error; the first call in a process wins.
pub fn start(format: LogFormat, level: &str) -> Result<(), String> {
    let filter = EnvFilter::try_new(level).map_err(|error| format!("log.level: {error}"))?;
    let registry = tracing_subscriber::registry().with(filter);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_target(true);
    let result = match format {
        LogFormat::Json => {
            let json = tracing_subscriber::fmt::format::Format::default().json().flatten_event(true);
            registry.with(lines.event_format(json).fmt_fields(JsonFields::new())).try_init()
        }
        LogFormat::Text => registry.with(lines.with_ansi(false)).try_init(),
    };
    result.map_err(|error| format!("logging: {error}"))
}

/// Ends the process when any task panics: a half-dead node is worse than a restarted one.
pub fn abort_on_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        print(info);
        std::process::abort();
    }));
}
