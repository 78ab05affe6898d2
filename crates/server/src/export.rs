//! Snapshots as Prometheus families: names, units and labels of the metrics table in the documentation.

use plinth_client::{CALL_TIME_BOUNDS_US, CallTimes, Client};
use plinth_meta::{COMMIT_BUCKETS_MS, GroupStats, MetaStats, ReplicaState};
use plinth_protocol::DiskId;
use plinth_protocol::storage::IoClass;
use plinth_storage::StorageNode;
use plinth_transport::{DURATION_BOUNDS_US, Snapshot};
use prometheus::proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType};

use std::sync::Arc;
use std::time::SystemTime;

/// Label names and values of one metric.
type Labels = Vec<(&'static str, String)>;

fn pair(name: &str, value: &str) -> LabelPair {
    let mut pair = LabelPair::default();
    pair.set_name(name.into());
    pair.set_value(value.into());
    pair
}

fn metric(labels: &Labels) -> Metric {
    let mut metric = Metric::default();
    metric.set_label(labels.iter().map(|(name, value)| pair(name, value)).collect());
    metric
}

fn family(name: &str, help: &str, kind: MetricType, metrics: Vec<Metric>) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(name.into());
    family.set_help(help.into());
    family.set_field_type(kind);
    family.set_metric(metrics);
    family
}

/// Makes a family of gauges.
pub fn gauge(name: &str, help: &str, values: Vec<(Labels, f64)>) -> MetricFamily {
    let metrics = values.iter().map(|(labels, value)| {
        let mut gauge = Gauge::default();
        gauge.set_value(*value);
        let mut metric = metric(labels);
        metric.set_gauge(gauge);
        metric
    });
    family(name, help, MetricType::GAUGE, metrics.collect())
}

fn counter(name: &str, help: &str, values: Vec<(Labels, u64)>) -> MetricFamily {
    let metrics = values.iter().map(|(labels, value)| {
        let mut counter = Counter::default();
        counter.set_value(*value as f64);
        let mut metric = metric(labels);
        metric.set_counter(counter);
        metric
    });
    family(name, help, MetricType::COUNTER, metrics.collect())
}

/// One histogram: upper bounds and counts of each bucket, their sum, and what one unit is worth.
struct Buckets<'a> {
    bounds: &'a [u64],
    counts: &'a [u64],
    sum: u64,
    unit: f64,
}

fn histogram(name: &str, help: &str, values: Vec<(Labels, Buckets<'_>)>) -> MetricFamily {
    let metrics = values.iter().map(|(labels, buckets)| {
        let mut so_far = 0;
        let mut filled = Vec::with_capacity(buckets.bounds.len());
        for (bound, count) in buckets.bounds.iter().zip(buckets.counts) {
            so_far += count;
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(*bound as f64 * buckets.unit);
            bucket.set_cumulative_count(so_far);
            filled.push(bucket);
        }
        // The last count has no bound: what took longer than the largest one.
        let beyond: u64 = buckets.counts.iter().skip(buckets.bounds.len()).sum();
        let mut histogram = Histogram::default();
        histogram.set_sample_count(so_far + beyond);
        histogram.set_sample_sum(buckets.sum as f64 * buckets.unit);
        histogram.set_bucket(filled);
        let mut metric = metric(labels);
        metric.set_histogram(histogram);
        metric
    });
    family(name, help, MetricType::HISTOGRAM, metrics.collect())
}

fn class_name(class: IoClass) -> &'static str {
    match class {
        IoClass::Read => "read",
        IoClass::Write => "write",
        IoClass::DegradedRead => "degraded_read",
        IoClass::Repair => "repair",
        IoClass::Scrub => "scrub",
        IoClass::Background => "background",
    }
}

/// Microseconds in seconds.
const MICROSECOND: f64 = 1e-6;
/// Milliseconds in seconds.
const MILLISECOND: f64 = 1e-3;

/// Makes a family of one counter without labels.
pub fn counter_of(name: &str, help: &str, value: f64) -> MetricFamily {
    let mut counter = Counter::default();
    counter.set_value(value);
    let mut metric = metric(&Vec::new());
    metric.set_counter(counter);
    family(name, help, MetricType::COUNTER, vec![metric])
}

/// Exports the disks of a storage node, each by its name.
pub fn disk_families(storage: &StorageNode, name: impl Fn(DiskId) -> String) -> Vec<MetricFamily> {
    let stats = storage.disks();
    let metrics = storage.metrics();
    let disk = |id: DiskId| vec![("disk", name(id))];
    let info = metrics.iter().map(|one| {
        let (id, path) = (one.disk.to_string(), one.path.display().to_string());
        ([disk(one.disk), vec![("id", id), ("path", path)]].concat(), 1.0)
    });
    let with = |id, name, value: &str| [disk(id), vec![(name, value.to_string())]].concat();
    let mut syncs = Vec::new();
    let mut batches = Vec::new();
    let mut operations = Vec::new();
    let (mut errors, mut bytes, mut refused) = (Vec::new(), Vec::new(), Vec::new());
    for one in &metrics {
        syncs.push((disk(one.disk), buckets(&one.stats.sync, MICROSECOND)));
        batches.push((disk(one.disk), buckets(&one.stats.batch_records, 1.0)));
        for (class, snapshot) in IoClass::ALL.iter().zip(&one.stats.operations) {
            operations.push((with(one.disk, "class", class_name(*class)), buckets(snapshot, MICROSECOND)));
        }
        errors.push((with(one.disk, "kind", "eio"), one.stats.errors_eio));
        errors.push((with(one.disk, "kind", "timeout"), one.stats.errors_timeout));
        errors.push((with(one.disk, "kind", "checksum"), one.stats.errors_checksum));
        bytes.push((with(one.disk, "direction", "written"), one.stats.written_bytes));
        bytes.push((with(one.disk, "direction", "read"), one.stats.read_bytes));
        bytes.push((with(one.disk, "direction", "moved"), one.stats.moved_bytes));
        refused.push((with(one.disk, "reason", "busy"), one.stats.refused_busy));
        refused.push((with(one.disk, "reason", "full"), one.stats.refused_full));
    }
    let gauges = |value: fn(&plinth_protocol::storage::DiskStat) -> f64| {
        stats.iter().map(|stat| (disk(stat.disk), value(stat))).collect()
    };
    let states = stats.iter().flat_map(|stat| {
        let fenced = stat.fenced.is_some();
        [("up", !fenced), ("fenced", fenced)]
            .map(|(state, holds)| (with(stat.disk, "state", state), f64::from(u8::from(holds))))
    });
    vec![
        gauge("plinth_disk_info", "Id and folder of each disk; always 1.", info.collect()),
        gauge("plinth_disk_state", "State of each disk: 1 for the one that holds.", states.collect()),
        gauge("plinth_disk_size_bytes", "Bytes that a disk may use.", gauges(|stat| stat.size_bytes as f64)),
        gauge(
            "plinth_disk_write_stop_bytes",
            "Used bytes from which on a disk takes no new objects.",
            gauges(|stat| stat.write_stop_bytes.unwrap_or(0) as f64),
        ),
        gauge("plinth_disk_used_bytes", "Bytes of live records.", gauges(|stat| stat.used_bytes as f64)),
        gauge("plinth_disk_fragments", "Live fragments.", gauges(|stat| stat.fragments as f64)),
        gauge(
            "plinth_disk_quarantined_fragments",
            "Fragments kept aside as damaged.",
            gauges(|stat| stat.quarantined as f64),
        ),
        histogram("plinth_journal_sync_duration_seconds", "Time of a batch from submission to durable.", syncs),
        histogram("plinth_journal_batch_records", "Records in a durable batch.", batches),
        histogram("plinth_disk_operation_duration_seconds", "Time from arrival to answer.", operations),
        counter("plinth_disk_errors_total", "Errors by kind.", errors),
        counter("plinth_disk_bytes_total", "Bytes of frames stored, returned and moved by compaction.", bytes),
        counter("plinth_disk_refused_requests_total", "Requests refused by reason.", refused),
        gauge(
            "plinth_storage_in_flight_bytes",
            "Bytes of requests and answers in flight.",
            vec![(vec![], storage.bytes_in_flight() as f64)],
        ),
    ]
}

fn buckets(snapshot: &plinth_storage::HistogramSnapshot, unit: f64) -> Buckets<'_> {
    Buckets { bounds: &snapshot.bounds, counts: &snapshot.counts, sum: snapshot.sum, unit }
}

/// Exports a voter.
pub fn meta_families(stats: &MetaStats, at_risk: usize) -> Vec<MetricFamily> {
    let count =
        |holds: fn(&plinth_meta::GroupStats) -> bool| stats.groups.iter().filter(|group| holds(group)).count() as f64;
    let states = [
        ("led", count(|group| group.state == ReplicaState::Leader)),
        ("leaderless", count(|group| group.leader.is_none())),
        ("at_risk", at_risk as f64),
        ("stopped", count(|group| group.state == ReplicaState::Stopped)),
    ];
    let groups = states.map(|(state, value)| (vec![("state", state.to_string())], value)).to_vec();
    let label = |group: &plinth_meta::GroupStats| {
        vec![("kind", if group.group.0 == 0 { "system" } else { "shards" }.to_string())]
    };
    let mut kinds: Vec<(Labels, [u64; 13], [u64; 7])> = Vec::new();
    // No label per shard: all shards of a voter are one line.
    for group in &stats.groups {
        let figures = [
            group.commit_us_total,
            group.leader_changes,
            group.failed_proposals,
            group.mutations,
            group.entries,
            group.reads,
            group.read_rounds,
        ];
        let labels = label(group);
        let at = kinds.iter().position(|(known, ..)| *known == labels).unwrap_or_else(|| {
            kinds.push((labels, [0; 13], [0; 7]));
            kinds.len() - 1
        });
        kinds[at].1.iter_mut().zip(group.commit_buckets).for_each(|(sum, part)| *sum += part);
        kinds[at].2.iter_mut().zip(figures).for_each(|(sum, part)| *sum += part);
    }
    let of = |at: usize| kinds.iter().map(|(labels, _, figures)| (labels.clone(), figures[at])).collect::<Vec<_>>();
    let commits = kinds.iter().map(|(labels, counts, figures)| {
        let sum = figures[0] / 1000;
        (labels.clone(), Buckets { bounds: &COMMIT_BUCKETS_MS, counts, sum, unit: MILLISECOND })
    });
    let database: u64 = stats.groups.iter().map(|group| group.database_bytes).sum();
    let mut families = vec![
        gauge("plinth_raft_groups", "Groups of this voter by state.", groups),
        histogram(
            "plinth_raft_commit_duration_seconds",
            "Time of a proposal from queue to applied.",
            commits.collect(),
        ),
        counter("plinth_raft_leader_changes_total", "Changes of leader seen.", of(1)),
        counter("plinth_raft_failed_proposals_total", "Proposals that failed or whose outcome is unknown.", of(2)),
        counter("plinth_meta_mutations_total", "Mutations answered.", of(3)),
        counter("plinth_raft_entries_total", "Entries proposed.", of(4)),
        counter("plinth_meta_reads_total", "Linearizable reads answered.", of(5)),
        counter("plinth_raft_read_rounds_total", "Confirmations of leadership for reads.", of(6)),
        counter(
            "plinth_raft_refused_messages_total",
            "Messages of voters that group 0 does not know.",
            vec![(vec![], stats.refused_messages)],
        ),
        clock_jumps(stats),
        gauge("plinth_meta_database_bytes", "Bytes of the databases' files.", vec![(vec![], database as f64)]),
        gauge(
            "plinth_meta_free_bytes",
            "Bytes that the log can still take.",
            vec![(vec![], stats.log_free_bytes as f64)],
        ),
    ];
    families.extend(log_families(stats));
    families
}

/// What a metadata node's log does.
fn log_families(stats: &MetaStats) -> [MetricFamily; 3] {
    [
        counter("plinth_raft_log_syncs_total", "Syncs of the log.", vec![(vec![], stats.log_syncs)]),
        counter("plinth_raft_log_records_total", "Records of the log made durable.", vec![(vec![], stats.log_records)]),
        gauge(
            "plinth_raft_log_damaged_records",
            "Records of the log with entries that are needed and can't be read back.",
            vec![(vec![], stats.log_damaged as f64)],
        ),
    ]
}

fn clock_jumps(stats: &MetaStats) -> MetricFamily {
    let led = stats.groups.iter().filter(|group| group.state == ReplicaState::Leader);
    let jump =
        |group: &GroupStats| (vec![("group", group.group.to_string())], group.clock_stray_ms as f64 * MILLISECOND);
    gauge(
        "plinth_raft_clock_jump_seconds",
        "How far the median of the voters' clocks is from the time of a group led here, where beyond the bound.",
        led.map(jump).collect(),
    )
}

/// One side of the node transport, for metrics.
pub type WireSide = (&'static str, Arc<dyn Fn() -> Snapshot + Send + Sync>);

/// Exports the node transport: calls by method, failures by peer, connections.
pub fn wire_families(sides: &[WireSide]) -> Vec<MetricFamily> {
    let (mut durations, mut errors, mut bytes) = (Vec::new(), Vec::new(), Vec::new());
    let (mut connections, mut events) = (Vec::new(), Vec::new());
    let snapshots: Vec<(&str, Snapshot)> = sides.iter().map(|(side, read)| (*side, read())).collect();
    for (side, now) in &snapshots {
        let with = |name, value: String| vec![("side", side.to_string()), (name, value)];
        for (method, calls) in now.methods.iter().filter(|(_, calls)| calls.calls > 0) {
            let (bounds, counts) = (&DURATION_BOUNDS_US[..], &calls.buckets[..]);
            let filled = Buckets { bounds, counts, sum: calls.duration_us, unit: MICROSECOND };
            durations.push((with("method", format!("{method:?}").to_lowercase()), filled));
        }
        let (mut sent, mut received) = (0, 0);
        for (peer, calls) in &now.peers {
            (sent, received) = (sent + calls.sent_bytes, received + calls.received_bytes);
            for (kind, count) in &calls.failures {
                let mut labels = with("peer", peer.to_string());
                labels.push(("kind", format!("{kind:?}").to_lowercase()));
                errors.push((labels, *count));
            }
        }
        bytes.extend([(with("direction", "sent".into()), sent), (with("direction", "received".into()), received)]);
        let event = |name: &str| with("event", name.into());
        connections.extend([
            (event("opened"), now.connections_opened),
            (event("closed"), now.connections_closed),
            (event("refused"), now.handshakes_refused),
            (event("throttled"), now.handshakes_throttled),
        ]);
        events.extend([
            (event("cancelled"), now.cancelled),
            (event("checksum_mismatch"), now.checksum_mismatches),
            (event("reading_paused"), now.reading_paused),
        ]);
    }
    vec![
        histogram("plinth_rpc_duration_seconds", "Time of calls that ended, failed ones included.", durations),
        counter("plinth_rpc_errors_total", "Calls that failed, by peer and kind of failure.", errors),
        counter("plinth_rpc_bytes_total", "Bytes of headers and payloads.", bytes),
        counter("plinth_rpc_connections_total", "Connections between nodes by what became of them.", connections),
        counter("plinth_rpc_events_total", "Calls given up, damaged frames, pauses for want of memory.", events),
    ]
}

/// Exports the lives of certificates: purpose, and when each began and ends.
pub fn certificate_families(
    certificates: &[(&'static str, SystemTime, SystemTime)],
    now: SystemTime,
) -> Vec<MetricFamily> {
    let seconds =
        |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
    let label = |purpose: &str| vec![("purpose", purpose.to_string())];
    let ends = certificates.iter().map(|(purpose, _, until)| (label(purpose), seconds(*until).floor()));
    let ratios = certificates.iter().map(|(purpose, from, until)| {
        let whole = (seconds(*until) - seconds(*from)).max(1.0);
        (label(purpose), (seconds(now) - seconds(*from)) / whole)
    });
    vec![
        gauge("plinth_certificate_expiry_timestamp_seconds", "When a certificate ends.", ends.collect()),
        gauge("plinth_certificate_life_ratio", "Part of a certificate's life that has passed.", ratios.collect()),
    ]
}

/// Exports a client of the cluster.
pub fn client_families(client: &Client) -> Vec<MetricFamily> {
    let now = client.counters();
    let kind = |name: &str| vec![("kind", name.to_string())];
    let one = |value: u64| vec![(vec![], value)];
    let calls: [(&str, &CallTimes); 4] = [
        ("meta", &now.meta_calls),
        ("read", &now.read_calls),
        ("write", &now.write_calls),
        ("other", &now.other_calls),
    ];
    let durations = calls.map(|(name, times)| {
        let (bounds, counts) = (&CALL_TIME_BOUNDS_US[..], &times.classes[..]);
        (kind(name), Buckets { bounds, counts, sum: times.sum_us, unit: MICROSECOND })
    });
    let offset = client.clock_offset_ms().map(|offset| (vec![], offset as f64 * MILLISECOND));
    let offset = gauge(
        "plinth_clock_offset_seconds",
        "How far this node's wall clock is ahead of the cluster's time.",
        offset.into_iter().collect(),
    );
    vec![
        offset,
        histogram("plinth_client_call_duration_seconds", "Time of answered calls by what was asked.", durations.into()),
        counter(
            "plinth_fragment_reads_total",
            "Reads of fragments: plain, rebuilt from others, rebuilt because the plain one was slow.",
            vec![
                (kind("plain"), now.fragment_reads_plain),
                (kind("degraded"), now.fragment_reads_degraded),
                (kind("hedged"), now.fragment_reads_hedged),
            ],
        ),
        counter("plinth_stripes_written_total", "Stripes made durable.", one(now.stripes_written)),
        counter(
            "plinth_stripes_resent_total",
            "Stripes sent again to another placement group.",
            one(now.stripes_resent),
        ),
        counter(
            "plinth_stripes_short_total",
            "Stripes acknowledged with a fragment owed.",
            one(now.quorums_hedged + now.quorums_short),
        ),
        counter("plinth_fragments_corrupt_total", "Fragments whose frames did not verify.", one(now.fragments_corrupt)),
        counter("plinth_fill_in_fragments_total", "Owed fragments rebuilt and stored.", one(now.fragments_filled_in)),
        counter(
            "plinth_fragments_deleted_total",
            "Fragments that disks acknowledged as deleted.",
            one(now.fragments_deleted),
        ),
        gauge(
            "plinth_client_write_bytes_held",
            "Bytes of stripe buffers held by writers.",
            vec![(vec![], now.write_bytes_held as f64)],
        ),
        gauge(
            "plinth_client_read_bytes_held",
            "Bytes held or asked for by readers.",
            vec![(vec![], now.read_bytes_held as f64)],
        ),
    ]
}
