//! What a measurement found, for people and for programs.

use crate::latency::Histogram;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt;

const MIB: f64 = (1u64 << 20) as f64;
const GIB: f64 = (1u64 << 30) as f64;

/// The result of one plan.
#[derive(Clone)]
pub struct Report {
    /// What the clients did.
    pub operation: String,
    /// Bytes of an object.
    pub size: u64,
    /// Requests under way at a time.
    pub clients: usize,
    /// How many endpoints they used.
    pub endpoints: usize,
    /// How long was measured.
    pub seconds: f64,
    /// Requests that succeeded.
    pub operations: u64,
    /// Bytes of objects moved.
    pub bytes: u64,
    /// Keys listed.
    pub keys: u64,
    /// Failed requests by S3 code or kind of transport error.
    pub errors: BTreeMap<String, u64>,
    /// Latencies of the requests that succeeded.
    pub latency: Histogram,
    /// Processor seconds of all servers, user and system.
    pub server_cpu_seconds: f64,
    /// Bytes that the servers have had written to devices.
    pub server_written_bytes: u64,
    /// How many server processes were measured.
    pub server_processes: usize,
    /// Sum of the processes' memory peaks.
    pub server_peak_bytes: u64,
    /// The largest memory peak of one process.
    pub server_peak_bytes_largest: u64,
    /// Memory resident at the end, all processes.
    pub server_resident_bytes: u64,
}

impl Report {
    /// Requests a second.
    pub fn operations_per_second(&self) -> f64 {
        ratio(self.operations as f64, self.seconds)
    }

    /// MiB of objects a second.
    pub fn mib_per_second(&self) -> f64 {
        ratio(self.bytes as f64 / MIB, self.seconds)
    }

    /// Keys listed a second.
    pub fn keys_per_second(&self) -> f64 {
        ratio(self.keys as f64, self.seconds)
    }

    /// Server processor seconds for a thousand requests, which is milliseconds a request.
    pub fn cpu_seconds_per_thousand(&self) -> f64 {
        ratio(self.server_cpu_seconds * 1000.0, self.operations as f64)
    }

    /// Server processor seconds for a GiB of objects.
    pub fn cpu_seconds_per_gib(&self) -> f64 {
        ratio(self.server_cpu_seconds, self.bytes as f64 / GIB)
    }

    /// Keys listed for a processor second of the servers.
    pub fn keys_per_cpu_second(&self) -> f64 {
        ratio(self.keys as f64, self.server_cpu_seconds)
    }

    /// Bytes that the servers have had written for each byte of objects moved.
    pub fn written_per_byte(&self) -> f64 {
        ratio(self.server_written_bytes as f64, self.bytes as f64)
    }

    /// Failed requests.
    pub fn failed(&self) -> u64 {
        self.errors.values().sum()
    }

    /// The report as JSON; sizes in bytes, latencies in milliseconds.
    pub fn json(&self) -> Value {
        json!({
            "operation": self.operation, "size": self.size, "clients": self.clients, "endpoints": self.endpoints,
            "seconds": self.seconds, "operations": self.operations, "errors": self.errors,
            "operations_per_second": self.operations_per_second(), "mib_per_second": self.mib_per_second(),
            "keys_per_second": self.keys_per_second(),
            "latency_ms": {
                "p50": self.latency.quantile_ms(0.5), "p99": self.latency.quantile_ms(0.99), "max": self.latency.max_ms(),
            },
            "servers": {
                "processes": self.server_processes, "cpu_seconds": self.server_cpu_seconds,
                "cpu_seconds_per_gib": self.cpu_seconds_per_gib(),
                "cpu_seconds_per_thousand_operations": self.cpu_seconds_per_thousand(),
                "keys_per_cpu_second": self.keys_per_cpu_second(), "written_bytes": self.server_written_bytes,
                "peak_bytes": self.server_peak_bytes, "peak_bytes_largest": self.server_peak_bytes_largest,
                "resident_bytes": self.server_resident_bytes,
            },
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (operation, clients, seconds) = (&self.operation, self.clients, self.seconds);
        writeln!(
            out,
            "{operation} {}, {clients} clients, {} endpoint(s), {seconds:.1} s",
            size(self.size),
            self.endpoints
        )?;
        write!(out, "  {:.0} operations/s   {:.1} MiB/s", self.operations_per_second(), self.mib_per_second())?;
        if self.keys > 0 {
            write!(out, "   {:.0} keys/s", self.keys_per_second())?;
        }
        writeln!(out, "   {} operations, {} errors", self.operations, self.failed())?;
        for (error, count) in &self.errors {
            writeln!(out, "  error {error}: {count}")?;
        }
        let (p50, p99) = (self.latency.quantile_ms(0.5), self.latency.quantile_ms(0.99));
        writeln!(out, "  latency p50 {p50:.2} ms   p99 {p99:.2} ms   max {:.2} ms", self.latency.max_ms())?;
        if self.server_processes == 0 {
            return writeln!(out, "  servers not measured (--server-name, --server-pid or --server-pid-file)");
        }
        write!(out, "  {} server processes: {:.2} CPU-s", self.server_processes, self.server_cpu_seconds)?;
        write!(out, " = {:.3} per thousand operations", self.cpu_seconds_per_thousand())?;
        if self.bytes > 0 {
            write!(out, ", {:.2} per GiB", self.cpu_seconds_per_gib())?;
            write!(out, ", {:.2} bytes written per byte", self.written_per_byte())?;
        }
        if self.keys > 0 {
            write!(out, ", {:.0} keys per CPU-s", self.keys_per_cpu_second())?;
        }
        let (peak, largest) = (self.server_peak_bytes as f64 / MIB, self.server_peak_bytes_largest as f64 / MIB);
        writeln!(out, "; memory peak {peak:.0} MiB (largest process {largest:.0} MiB)")
    }
}

/// A size as people write it.
pub fn size(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{} KiB", bytes as f64 / 1024.0),
        _ => format!("{} MiB", bytes as f64 / MIB),
    }
}

fn ratio(value: f64, by: f64) -> f64 {
    if by > 0.0 { value / by } else { 0.0 }
}
