//! Logs: JSON lines for machines, text for a terminal.
//!
//! A line is one object: `ts` (RFC 3339, UTC), `level`, `msg`, `target`, `node`, `role`, then the event's own fields,
//! among them `event`, a name that stays the same, and `request_id` where a request is spoken of.

use crate::config::{Config, LogFormat};
use serde_json::Value;
use std::fmt;
use time::format_description::well_known::Rfc3339;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::{FmtContext, layer};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

/// Words for how much is said.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// Starts the logs of a node on standard error; the first call in a process wins.
pub fn start_node(config: &Config) -> Result<(), String> {
    let mut roles: Vec<String> =
        config.node.roles.iter().map(|&role| plinth_protocol::Role::from(role).to_string()).collect();
    roles.sort();
    let lines = JsonLines { node: config.node.name.clone(), role: roles.join("+") };
    match config.log.format {
        LogFormat::Json => {
            let registry = tracing_subscriber::registry().with(filter(&config.log.level)?);
            let lines = layer().with_writer(std::io::stderr).event_format(lines);
            registry.with(lines).try_init().map_err(|error| format!("logging: {error}"))
        }
        LogFormat::Text => start_text(&config.log.level),
    }
}

/// Starts logs for people on standard error; the first call in a process wins.
pub fn start_text(level: &str) -> Result<(), String> {
    let registry = tracing_subscriber::registry().with(filter(level)?);
    let lines = layer().with_writer(std::io::stderr).with_target(true).with_ansi(false);
    registry.with(lines).try_init().map_err(|error| format!("logging: {error}"))
}

/// Checks a level or filter.
pub fn check(level: &str) -> Result<(), String> {
    filter(level).map(drop)
}

fn filter(level: &str) -> Result<EnvFilter, String> {
    for part in level.split(',') {
        check_part(part)?;
    }
    // openraft tells at info what only its developers read; who wants it names it.
    let level = if level.contains("openraft") { level.to_string() } else { format!("{level},openraft=warn") };
    EnvFilter::try_new(&level).map_err(|error| format!("log.level: {error}"))
}

/// Refuses what the filter would take for the name of a module that never speaks: `inof` turns all logs off.
fn check_part(part: &str) -> Result<(), String> {
    let is_level = |word: &str| LEVELS.iter().any(|level| level.eq_ignore_ascii_case(word));
    // Spans, `[request{id=7}]=debug`, are the filter's own to judge, their levels apart.
    let (target, level) = match part.rsplit_once(']') {
        Some((span, rest)) => (span, if rest.is_empty() { Some("trace") } else { rest.strip_prefix('=') }),
        None => match part.split_once('=') {
            Some((target, level)) => (target, Some(level)),
            None => ("all", Some(part)),
        },
    };
    if !target.is_empty() && !target.starts_with(' ') && level.is_some_and(is_level) {
        return Ok(());
    }
    let levels = LEVELS.join(", ");
    Err(format!("log.level: \"{part}\" is neither a level ({levels}) nor <module>=<level>"))
}

/// Ends the process when any task panics: a half-dead node is worse than a restarted one.
pub fn abort_on_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        print(info);
        std::process::abort();
    }));
}

/// One JSON object a line.
struct JsonLines {
    node: String,
    role: String,
}

/// An event's fields, in the order in which they were given.
#[derive(Default)]
struct Fields {
    message: Option<Value>,
    others: Vec<(String, Value)>,
}

impl Fields {
    fn add(&mut self, field: &Field, value: Value) {
        match field.name() {
            "message" => self.message = Some(value),
            // The line's own `node` and `role` say who speaks.
            name @ ("ts" | "level" | "msg" | "target" | "node" | "role") => {
                self.others.push((format!("of_{name}"), value));
            }
            name => self.others.push((name.to_string(), value)),
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, Value::String(format!("{value:?}")));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field, value.into());
    }
}

impl<S, N> FormatEvent<S, N> for JsonLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let now = time::OffsetDateTime::from(crate::node::wall_clock());
        let first = [
            ("ts", now.format(&Rfc3339).unwrap_or_default().into()),
            ("level", event.metadata().level().as_str().to_lowercase().into()),
            ("msg", fields.message.take().unwrap_or_default()),
            ("target", event.metadata().target().into()),
            ("node", self.node.as_str().into()),
            ("role", self.role.as_str().into()),
        ];
        let first: [(&str, Value); 6] = first;
        let others = fields.others.iter().map(|(name, value)| (name.as_str(), value));
        let mut before = '{';
        for (name, value) in first.iter().map(|(name, value)| (*name, value)).chain(others) {
            write!(writer, "{before}{}:{value}", Value::from(name))?;
            before = ',';
        }
        writeln!(writer, "}}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Page(Arc<Mutex<Vec<u8>>>);

    impl Write for Page {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_level_that_would_turn_logging_off_unseen_is_refused() {
        for good in [
            "info",
            "OFF",
            "warn,plinth_meta=debug",
            "info,openraft::core=trace",
            "error,[put]",
            "error,[put{id=7}]=debug",
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for bad in ["", "inof", "warning", "info,", "info, plinth_meta=debug", "info,plinth_meta", "plinth_meta=inof"]
            .into_iter()
            .chain(["=info", "a=b=c", "[put]=inof", "[put]x", "[put", "3"])
        {
            assert!(check(bad).is_err_and(|text| text.starts_with("log.level")), "{bad}");
        }
    }

    #[test]
    fn a_line_says_when_who_and_what() {
        let page = Page::default();
        let (lines, writer) = (JsonLines { node: "g1".into(), role: "gateway".into() }, page.clone());
        let subscriber =
            tracing_subscriber::registry().with(layer().with_writer(move || writer.clone()).event_format(lines));
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(event = "s3_request", request_id = "AB12", status = 200, node = %7, "a \"quoted\"\nline");
        });
        let text = String::from_utf8(page.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.starts_with("{\"ts\":\"20"), "{text}");
        let line: Value = serde_json::from_str(&text).unwrap();
        for (key, value) in [("level", "warn"), ("node", "g1"), ("role", "gateway"), ("request_id", "AB12")] {
            assert_eq!(line[key], value, "{text}");
        }
        assert_eq!((&line["msg"], &line["status"]), (&Value::from("a \"quoted\"\nline"), &Value::from(200)));
        assert_eq!(line["of_node"], "7");
    }
}
