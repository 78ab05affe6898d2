//! Logs: JSON lines for machines, text for a terminal.
//!
//! A line is one object: `ts` (RFC 3339, UTC), `level`, `msg`, `target`, `node`, `role`, then the event's own fields,
//! among them `event`, a name that stays the same, and `request_id` where a request is spoken of. Nodes have the names
//! that tables show. Lines that repeat themselves are counted ([`repeats`]): `repeated` says how many were not told.

pub mod names;
mod repeats;

use crate::config::{Config, LogFormat};
use repeats::{Kind, Repeats};
use serde_json::Value;
use std::borrow::Cow;
use std::fmt::{self, Write as _};
use std::io::Write;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Duration;
use time::format_description::well_known::Rfc3339;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
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
    let lines = Lines { form: Form::Json { node: config.node.name.clone(), role: roles.join("+") } };
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
    let lines = layer().with_writer(std::io::stderr).event_format(Lines { form: Form::Text });
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

/// How often windows of repeated lines are looked at.
const REPEATS_LOOKED_AT_EVERY: Duration = Duration::from_secs(1);

/// What this process has said lately.
static REPEATS: LazyLock<Mutex<Repeats>> = LazyLock::new(Mutex::default);

/// Tells of lines that were held, for as long as the process lives.
pub async fn tell_repeats() {
    loop {
        tokio::time::sleep(REPEATS_LOOKED_AT_EVERY).await;
        tell_due(false);
    }
}

/// Tells of all lines that are held: before a process ends.
pub fn tell_last_repeats() {
    tell_due(true);
}

fn tell_due(all: bool) {
    let due = REPEATS.lock().unwrap_or_else(PoisonError::into_inner).take_due(tokio::time::Instant::now(), all);
    for (line, held) in due {
        // Nowhere to say that standard error is gone.
        let _ = std::io::stderr().write_all(with_count(&line, held).as_bytes());
    }
}

/// Adds to a line how many like it were held.
fn with_count(line: &str, held: u64) -> String {
    match line.trim_end().strip_suffix('}').filter(|line| line.starts_with('{')) {
        Some(object) => format!("{object},\"repeated\":{held}}}\n"),
        None => format!("{} repeated={held}\n", line.trim_end()),
    }
}

/// How a line looks.
enum Form {
    /// One JSON object, with the name and roles of the node that speaks.
    Json { node: String, role: String },
    /// For people.
    Text,
}

/// Makes lines of events, and holds those that repeat others.
struct Lines {
    form: Form,
}

/// An event's fields, in the order in which they were given.
#[derive(Default)]
struct Fields {
    message: Option<Value>,
    others: Vec<(Cow<'static, str>, Value)>,
}

/// Bytes that most lines fit into.
const LINE_BYTES: usize = 512;

/// Fields that say what a line is about.
const SUBJECTS: [&str; 8] = ["peer", "of_node", "voter", "disk", "group", "path", "bucket", "source"];

/// Fields that hold what clients chose.
const OF_CLIENTS: [&str; 3] = ["key", "bucket", "access_key"];

impl Fields {
    fn add(&mut self, field: &Field, value: Value) {
        match field.name() {
            "message" => self.message = Some(value),
            // The line's own `node` and `role` say who speaks.
            name @ ("ts" | "level" | "msg" | "target" | "node" | "role") => {
                self.others.push((format!("of_{name}").into(), value));
            }
            name => self.others.push((name.into(), value)),
        }
    }

    /// Whether the line is one of a log of requests: each is told.
    fn is_of_a_request(&self) -> bool {
        let is_s3 = |value: &Value| value.as_str().is_some_and(|event| event.starts_with("s3_"));
        self.others.iter().any(|(name, value)| name == "event" && is_s3(value))
    }

    /// Names nodes as tables do. What clients chose, as the keys of objects, is left alone.
    fn name_nodes(&mut self) {
        let others = self.others.iter_mut().filter(|(name, _)| !OF_CLIENTS.contains(&&**name));
        for value in self.message.iter_mut().chain(others.map(|(_, value)| value)) {
            if let Value::String(text) = value {
                *text = names::in_place_of_ids(std::mem::take(text));
            }
        }
    }

    fn subject(&self) -> String {
        let about = self.others.iter().filter(|(name, _)| SUBJECTS.contains(&&**name));
        about.map(|(_, value)| value.to_string()).collect::<Vec<_>>().join(" ")
    }

    /// What makes the line the same as another one.
    fn text(&self) -> String {
        format!("{:?} {:?}", self.message, self.others)
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

impl Form {
    fn line(&self, event: &Event<'_>, fields: &Fields) -> String {
        let now = time::OffsetDateTime::from(crate::node::wall_clock()).format(&Rfc3339).unwrap_or_default();
        let (level, target) = (event.metadata().level().as_str(), event.metadata().target());
        let message = fields.message.as_ref().unwrap_or(&Value::Null);
        match self {
            Form::Json { node, role } => {
                let first: [(&str, &Value); 6] = [
                    ("ts", &now.into()),
                    ("level", &level.to_lowercase().into()),
                    ("msg", message),
                    ("target", &target.into()),
                    ("node", &node.as_str().into()),
                    ("role", &role.as_str().into()),
                ];
                let others = fields.others.iter().map(|(name, value)| (&**name, value));
                let mut line = String::with_capacity(LINE_BYTES);
                for (name, value) in first.into_iter().chain(others) {
                    let before = if line.is_empty() { '{' } else { ',' };
                    // Names of fields are words of the code: nothing in them needs an escape. Writing to a string cannot fail.
                    let _ = write!(line, "{before}\"{name}\":{value}");
                }
                line.push_str("}\n");
                line
            }
            Form::Text => {
                let plain = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_string);
                let fields: String = fields.others.iter().map(|(name, value)| format!(" {name}={value}")).collect();
                format!("{now} {level:>5} {target}: {}{fields}\n", plain(message))
            }
        }
    }
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        // These come with every request, and name no nodes.
        if fields.is_of_a_request() && *event.metadata().level() == Level::INFO {
            return writer.write_str(&self.form.line(event, &fields));
        }
        fields.name_nodes();
        if fields.is_of_a_request() {
            return writer.write_str(&self.form.line(event, &fields));
        }
        let line = self.form.line(event, &fields);
        let kind = Kind { callsite: event.metadata().callsite(), subject: fields.subject() };
        let now = tokio::time::Instant::now();
        let is_told = REPEATS.lock().unwrap_or_else(PoisonError::into_inner).judge(now, kind, fields.text(), &line);
        if is_told { writer.write_str(&line) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

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
        let form = Form::Json { node: "g1".into(), role: "gateway".into() };
        let (lines, writer) = (Lines { form }, page.clone());
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

    fn page_of(form: Form, say: impl FnOnce()) -> Vec<String> {
        let page = Page::default();
        let writer = page.clone();
        let layer = layer().with_writer(move || writer.clone()).event_format(Lines { form });
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), say);
        let text = String::from_utf8(page.0.lock().unwrap().clone()).unwrap();
        text.lines().map(str::to_string).collect()
    }

    fn json() -> Form {
        Form::Json { node: "m1".into(), role: "meta".into() }
    }

    #[test]
    fn a_voter_that_is_down_fills_no_log_and_requests_are_all_told() {
        let lines = page_of(json(), || {
            for number in 0..400 {
                tracing::error!(peer = "n777", failure = "cannot connect", "a voter of this test is not heard");
                tracing::info!(event = "s3_request", request_id = number, "request");
            }
        });
        let about = |word: &str| lines.iter().filter(|line| line.contains(word)).count();
        assert_eq!((about("not heard"), about("s3_request")), (1, 400));
        let counted = with_count(lines[0].as_str(), 399);
        assert_eq!(serde_json::from_str::<Value>(&counted).unwrap()["repeated"], 399, "{counted}");
        assert_eq!(with_count("text\n", 3), "text repeated=3\n");
    }

    #[test]
    fn nodes_are_named_as_in_tables() {
        names::learn_one(778, "m3");
        let say = || {
            tracing::warn!(voter = %plinth_protocol::NodeId(778), reason = "n778 was wiped", "voter {} refused", "n778");
            tracing::info!(event = "s3_request", key = "n778", "request");
        };
        let lines = page_of(json(), say);
        let line: Value = serde_json::from_str(&lines[0]).unwrap();
        assert_eq!((&line["voter"], &line["reason"]), (&Value::from("m3"), &Value::from("m3 was wiped")));
        assert_eq!(line["msg"], "voter m3 refused");
        assert!(lines[1].contains("\"key\":\"n778\""), "an object's key is the client's: {}", lines[1]);
        let text = page_of(Form::Text, || tracing::warn!(voter = %plinth_protocol::NodeId(778), "another line"));
        assert!(text[0].ends_with("plinth::logging::tests: another line voter=\"m3\""), "{text:?}");
    }
}
