//! What a command answers: one value, printed as a table for people or as JSON for scripts.

use crate::command::OutputFormat;
use crate::exit::Exit;
use serde_json::{Value, json};

/// The answer to a command.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// What kind of value it is: `Status`, `NodeList` …
    pub kind: &'static str,
    /// The value itself; byte counts are integers, times RFC 3339 in UTC, ids whole.
    pub value: Value,
    /// The same for people.
    pub text: String,
    /// The exit code that goes with it.
    pub exit: Exit,
}

impl Report {
    /// Makes a report of something done.
    pub fn done(kind: &'static str, value: Value, text: impl Into<String>) -> Self {
        Report { kind, value, text: text.into(), exit: Exit::Done }
    }

    /// Returns the report as it is printed, with a newline at its end.
    pub fn render(&self, format: OutputFormat) -> String {
        match format {
            OutputFormat::Table => with_newline(self.text.clone()),
            OutputFormat::Json => {
                let mut whole = json!({"apiVersion": "plinth/v1", "kind": self.kind});
                match &self.value {
                    Value::Object(fields) => {
                        whole.as_object_mut().expect("just made as an object").extend(fields.clone())
                    }
                    other => whole["items"] = other.clone(),
                }
                with_newline(serde_json::to_string_pretty(&whole).expect("a JSON value always prints"))
            }
        }
    }
}

fn with_newline(mut text: String) -> String {
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text
}

/// Lays rows out in columns, two blanks apart, under a header.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = header.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: Vec<&str>| {
        let padded: Vec<String> = cells.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}")).collect();
        format!("{}\n", padded.join("  ").trim_end())
    };
    let mut text = line(header.to_vec());
    for row in rows {
        text.push_str(&line(row.iter().map(String::as_str).collect()));
    }
    text
}

/// Returns bytes for people: `812 TiB`.
pub fn bytes_text(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut unit = 0;
    let mut value = bytes as f64;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// Returns a time for scripts and people: RFC 3339 in UTC, whole seconds.
pub fn time_text(milliseconds: u64) -> String {
    let moment = time::OffsetDateTime::from_unix_timestamp((milliseconds / 1000) as i64)
        .unwrap_or(time::OffsetDateTime::UNIX_EPOCH);
    moment.format(&time::format_description::well_known::Rfc3339).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_carries_version_and_kind() {
        let report = Report::done("Thing", json!({"size_bytes": 5}), "five");
        let value: Value = serde_json::from_str(&report.render(OutputFormat::Json)).unwrap();
        assert_eq!((value["apiVersion"].as_str(), value["kind"].as_str()), (Some("plinth/v1"), Some("Thing")));
        assert_eq!(value["size_bytes"], 5);
        assert_eq!(report.render(OutputFormat::Table), "five\n");
    }

    #[test]
    fn columns_line_up() {
        let text =
            table(&["NODE", "STATE"], &[vec!["m1".into(), "UP".into()], vec!["storage-7".into(), "DOWN".into()]]);
        assert_eq!(text, "NODE       STATE\nm1         UP\nstorage-7  DOWN\n");
    }

    #[test]
    fn sizes_and_times_read_well() {
        assert_eq!((bytes_text(1023), bytes_text(1536)), ("1023 B".into(), "1.5 KiB".into()));
        assert_eq!(time_text(0), "1970-01-01T00:00:00Z");
    }
}
