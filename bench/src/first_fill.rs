//! First fill: what a fresh cluster writes for each byte that it is given. Segments that have been used before are
//! written once; the first use of a disk is what a new cluster is measured by.

use crate::cluster::Cluster;
use crate::load::{self, Operation, Plan};
use crate::report::Report;
use crate::table::TableOptions;
use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

const MIB: u64 = 1 << 20;

/// Bytes on disk per byte of a large object: the share of code 3+2, which clusters of six storage nodes get.
const CODE_SHARE: f64 = 5.0 / 3.0;
/// Ports between the tables' own clusters and the first one here.
const PORTS_APART: u16 = 200;

/// What is written, into a cluster of its own.
struct Fill {
    name: &'static str,
    size: u64,
    clients: usize,
    /// Bytes written per byte, as a multiple of the code's share, at most.
    share_max: f64,
}

const FILLS: [Fill; 2] = [
    Fill { name: "PUT 1 MiB", size: MIB, clients: 8, share_max: 1.25 },
    Fill { name: "PUT 64 MiB", size: 64 * MIB, clients: 4, share_max: 1.1 },
];

/// A row of the page.
pub struct Row {
    fill: &'static Fill,
    report: Report,
}

/// Fills a fresh cluster of separate processes for each row.
///
/// # Errors
/// When a cluster does not start.
pub async fn measure(options: &TableOptions, folder: &Path, bytes: u64) -> Result<Vec<Row>, String> {
    let mut rows = Vec::new();
    for (fill, number) in FILLS.iter().zip(0u16..) {
        let port = options.base_port + PORTS_APART + 100 * number;
        let cluster = Cluster::start(&options.plinth, &folder.with_extension(format!("fill{number}")), port).await?;
        let plan = Plan {
            operation: Operation::Fill,
            endpoints: vec![cluster.endpoint.clone()],
            credentials: (cluster.keys.0.clone(), cluster.keys.1.clone(), "us-east-1".to_string()),
            bucket: "first-fill".to_string(),
            prefix: "k/".to_string(),
            keys: bytes / fill.size,
            size: fill.size,
            part_bytes: 0,
            clients: fill.clients,
            duration: Duration::ZERO,
            warm_up: Duration::ZERO,
            count_max: None,
            verify: false,
            signed_payload: false,
            seed: 1,
        };
        let report = load::run(plan, &cluster.servers("")).await?;
        eprint!("first fill, {}: {report}", fill.name);
        rows.push(Row { fill, report });
    }
    Ok(rows)
}

/// Returns the rows as a table of the page.
pub fn page_part(rows: &[Row]) -> String {
    let mut text = String::from(
        "| first fill of a fresh cluster | clients | GiB | MiB/s | server CPU | written per byte | bar | |\n",
    );
    text += "| --- | --: | --: | --: | --: | --: | --: | --- |\n";
    for Row { fill, report } in rows {
        let (found, bar) = (report.written_per_byte(), CODE_SHARE * fill.share_max);
        let holds = report.failed() == 0 && found > 0.0 && found <= bar;
        let _ = writeln!(
            text,
            "| {} | {} | {:.1} | {:.1} | {:.2} CPU-s/GiB | {found:.2} | ≤ {bar:.2} | {} |",
            fill.name,
            fill.clients,
            report.bytes as f64 / (1u64 << 30) as f64,
            report.mib_per_second(),
            report.cpu_seconds_per_gib(),
            if holds { "holds" } else { "**falls short**" },
        );
    }
    text
}
