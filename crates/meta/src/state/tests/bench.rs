//! What LIST and PutObject cost here, in processor time of this thread. Run with
//! `cargo test -p plinth-meta state::tests::bench -- --ignored --nocapture`.

use super::*;
use crate::state::{RocksMemory, RocksStore};

const KEYS: u64 = 1_000_000;
const PUTS: u64 = 20_000;

/// Processor time of the calling thread in nanoseconds.
fn cpu_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is that of a live `timespec`.
    assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) }, 0);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

fn key(number: u64) -> String {
    format!("table/part-{:04}/file-{:08}.parquet", number / 1_000, number)
}

fn list_all(reader: &crate::state::Reader<RocksStore>, encoded: bool) -> (u64, u64) {
    let (mut after, mut keys) = (None, 0);
    let start = cpu_ns();
    let mut out = Vec::new();
    loop {
        let query = Query::List(ListQuery {
            bucket: BUCKET,
            prefix: "table/".into(),
            delimiter: None,
            after: after.take(),
            after_prefix: false,
            limit: 1000,
        });
        let reply = if encoded {
            out.clear();
            reader.query_encoded(&query, &mut out).unwrap();
            // Finding the last key is the gateway's part of the work: not counted here.
            keys += 1000;
            after = (keys < KEYS).then(|| key(keys - 1));
            None
        } else {
            Some(reader.query(&query).unwrap())
        };
        if let Some(Reply::List(page)) = reply {
            keys += page.entries.len() as u64;
            after = page.more.then(|| page.entries.last().unwrap().0.clone());
        }
        if after.is_none() {
            return (keys, cpu_ns() - start);
        }
    }
}

fn open(folder: &std::path::Path) -> Replica<RocksStore> {
    let store = RocksStore::open(&folder.join("db"), &RocksMemory::default()).unwrap();
    let mut shard = Replica::new(store, SHARD);
    shard.run(Command::OpenBucket(BUCKET));
    shard
}

#[test]
#[ignore = "a measurement of a minute"]
fn list_costs() {
    let folder = tempfile::tempdir().unwrap();
    let mut shard = open(folder.path());
    let start = cpu_ns();
    for first in (0..KEYS).step_by(1_000) {
        let put = |number| Command::PutObject(put_stripes(&key(number), vec![stripe(number, 1 << 20)]));
        let mutations = (first..first + 1_000).map(|number| shard.mutation(put(number))).collect();
        shard.now_ms += 100;
        shard.apply(mutations);
        shard.log.clear();
    }
    println!("load of {KEYS} keys, 1,000 an entry: {} ns a key", (cpu_ns() - start) / KEYS);
    shard.machine.flush().unwrap();
    let reader = shard.machine.reader();
    for round in ["cold", "warm"] {
        for encoded in [true, false] {
            let (keys, ns) = list_all(&reader, encoded);
            println!(
                "LIST {round}, encoded {encoded}: {} ns a key, {} keys/CPU-s",
                ns / keys,
                keys * 1_000_000_000 / ns
            );
        }
    }
    for (round, body) in [("cold", false), ("cold", true), ("warm", true)] {
        let range = if round == "warm" { 1_000 } else { KEYS };
        let start = cpu_ns();
        for number in 0..PUTS {
            let query = ObjectQuery { bucket: BUCKET, key: key(number * 7_919 % range), body };
            assert!(matches!(reader.query(&Query::Object(query)), Ok(Reply::Object(_))));
        }
        println!("Object {round}, body {body}: {} ns each", (cpu_ns() - start) / PUTS);
    }
}

/// Runs `work` some rounds and returns the best round's processor time in nanoseconds for each of `count` things.
fn best_ns(rounds: u64, count: u64, mut work: impl FnMut(u64)) -> u64 {
    let round = |round| {
        let start = cpu_ns();
        work(round);
        cpu_ns() - start
    };
    (0..rounds).map(round).min().expect("at least one round") / count
}

/// Pages, reads and writes at a table of `keys` keys.
fn costs_at(keys: u64) {
    const OPERATIONS: u64 = 5_000;
    let folder = tempfile::tempdir().unwrap();
    let mut shard = open(folder.path());
    for first in (0..keys).step_by(1_000) {
        let put = |number| Command::PutObject(put_stripes(&key(number), vec![stripe(number, 1 << 20)]));
        let mutations = (first..first + 1_000).map(|number| shard.mutation(put(number))).collect();
        shard.now_ms += 100;
        shard.apply(mutations);
        shard.log.clear();
    }
    shard.machine.flush().unwrap();
    let reader = shard.machine.reader();
    let scattered = |number: u64| number * 7_919_000_013 % keys;
    let list = best_ns(5, 100 * 1_000, |round| {
        for page in 0..100 {
            let after = key(scattered(round * 100 + page) % (keys - 1_000));
            let query = ListQuery {
                bucket: BUCKET,
                prefix: "table/".into(),
                delimiter: None,
                after: Some(after),
                after_prefix: false,
                limit: 1000,
            };
            let mut out = Vec::new();
            reader.query_encoded(&Query::List(query), &mut out).unwrap();
        }
    });
    let get = |range: u64| {
        best_ns(5, OPERATIONS, |round| {
            for number in 0..OPERATIONS {
                let key = key(scattered(round * OPERATIONS + number) % range);
                let query = Query::Object(ObjectQuery { bucket: BUCKET, key, body: true });
                assert!(matches!(reader.query(&query), Ok(Reply::Object(_))));
            }
        })
    };
    let (get_any, get_hot) = (get(keys), get(1_000));
    let body: &'static [u8] = vec![0x5a; 4096].leak();
    let mut entries: Vec<Vec<Mutation>> = Vec::new();
    for number in (0..5 * OPERATIONS).step_by(16) {
        let name = |at: u64| format!("{}.new", key(scattered(number + at)));
        entries.push((0..16).map(|at| shard.mutation(Command::PutObject(put_inline(&name(at), body)))).collect());
    }
    let mut entries = entries.into_iter();
    let put = best_ns(4, OPERATIONS, |_| {
        for mutations in entries.by_ref().take(OPERATIONS as usize / 16) {
            shard.now_ms += 1;
            shard.apply(mutations);
        }
    });
    println!(
        "{keys:9} keys: LIST {list} ns a key ({} keys/CPU-s), GET of any {get_any} ns, of 1,000 {get_hot} ns, PUT of 4 KiB {put} ns",
        1_000_000_000 / list
    );
}

#[test]
#[ignore = "a measurement of two minutes"]
fn costs_grow_little_from_ten_thousand_to_a_million_keys() {
    let chosen = std::env::var("PLINTH_KEYS").ok().and_then(|text| text.parse().ok());
    for keys in chosen.map_or(vec![10_000, 100_000, 1_000_000], |keys: u64| vec![keys]) {
        costs_at(keys);
    }
}

/// Inline bodies that pack well fill a file with so many rows that its index outgrows a part of the cache.
#[test]
#[ignore = "a measurement of a minute"]
fn reads_among_many_inline_objects_cost_the_same() {
    const READERS: u64 = 64;
    let folder = tempfile::tempdir().unwrap();
    let mut shard = open(folder.path());
    let body: &'static [u8] = vec![0x5a; 4096].leak();
    let name = |number: u64| format!("bench/{:03}/{:06}", number % READERS, number / READERS);
    let mut loaded = 0;
    for objects in [10_000, 50_000, 100_000, 200_000] {
        for first in (loaded..objects).step_by(100) {
            let put = |number| Command::PutObject(put_inline(&name(number), body));
            let mutations = (first..first + 100).map(|number| shard.mutation(put(number))).collect();
            shard.now_ms += 100;
            shard.apply(mutations);
            shard.log.clear();
        }
        loaded = objects;
        shard.machine.flush().unwrap();
        let reader = shard.machine.reader();
        let get = best_ns(5, 2_000, |round| {
            for number in 0..2_000 {
                // Each reader in its turn, each over a hundred keys of its own.
                let (of, at) = (number % READERS, (round * 31 + number / READERS) % 100);
                let query = ObjectQuery { bucket: BUCKET, key: format!("bench/{of:03}/{at:06}"), body: true };
                assert!(matches!(reader.query(&Query::Object(query)), Ok(Reply::Object(_))));
            }
        });
        println!("{objects:7} inline objects: GET {get} ns");
    }
}

#[test]
#[ignore = "a measurement of some seconds"]
fn put_costs() {
    let folder = tempfile::tempdir().unwrap();
    let mut shard = open(folder.path());
    let body: &'static [u8] = vec![0x5a; 4096].leak();
    for (entry, overwrite) in [(1, false), (16, false), (64, false), (16, true)] {
        let mut entries = Vec::new();
        for first in (0..PUTS).step_by(entry) {
            let name = |number: u64| format!("small/{entry}/{:08}", if overwrite { number % 100 } else { number });
            let put = |number| Command::PutObject(put_inline(&name(number), body));
            entries.push((first..first + entry as u64).map(|number| shard.mutation(put(number))).collect::<Vec<_>>());
        }
        let start = cpu_ns();
        for mutations in entries {
            shard.index += 1;
            shard.now_ms += 1;
            let now = HybridTime::from_millis(shard.now_ms);
            shard.machine.apply(position(shard.index), now, &mutations).unwrap();
        }
        println!("PutObject 4 KiB, {entry} an entry, overwrite {overwrite}: {} ns each", (cpu_ns() - start) / PUTS);
    }
}

/// Bytes that this process has written to files.
fn written_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/io").unwrap();
    text.lines().find_map(|line| line.strip_prefix("wchar: ")).unwrap().parse().unwrap()
}

/// Processor time of the whole process in nanoseconds: flushes and compactions have threads of their own.
fn process_cpu_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is that of a live `timespec`.
    assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) }, 0);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// How often a body is written until it rests: bodies that do not pack, in no order, `PLINTH_KEYS` of them (400,000).
#[test]
#[ignore = "a measurement of minutes that fills gigabytes"]
fn inline_bodies_are_seldom_written_again() {
    const ENTRY: u64 = 16;
    let keys = std::env::var("PLINTH_KEYS").ok().and_then(|text| text.parse().ok()).unwrap_or(400_000u64);
    let folder = tempfile::tempdir().unwrap();
    let mut shard = open(folder.path());
    let mut seed = 1u64;
    let mut body = || {
        let mut bytes = Vec::with_capacity(4096);
        while bytes.len() < 4096 {
            // xorshift64 (Marsaglia 2003).
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            bytes.extend_from_slice(&seed.to_le_bytes());
        }
        ObjectBody { headers: headers(), body: Body::Inline(Bytes::from(bytes)) }
    };
    let (mut stalls, mut before) = (0, (written_bytes(), process_cpu_ns()));
    for first in (0..keys).step_by(ENTRY as usize) {
        let mut put = |number: u64| {
            let name = format!("{:016x}", number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            Command::PutObject(PutObject { size_bytes: 4096, body: body(), ..put_inline(&name, b"") })
        };
        let commands: Vec<_> = (first..first + ENTRY).map(&mut put).collect();
        let mutations: Vec<_> = commands.into_iter().map(|command| shard.mutation(command)).collect();
        (shard.index, shard.now_ms) = (shard.index + 1, shard.now_ms + 1);
        let (at, now) = (position(shard.index), HybridTime::from_millis(shard.now_ms));
        while let Err(error) = shard.machine.apply(at.clone(), now, &mutations) {
            assert!(matches!(error, crate::state::StateError::Stalled), "{error}");
            std::thread::sleep(std::time::Duration::from_millis(5));
            stalls += 1;
        }
        let done = first + ENTRY;
        if done % (keys / 4) < ENTRY {
            let now = (written_bytes(), process_cpu_ns());
            let written = (now.0 - before.0) as f64 / (keys / 4 * 4096) as f64;
            let ns = (now.1 - before.1) / (keys / 4);
            println!("{done:8} inline bodies: written {written:.2} times, {ns} ns each, {stalls} stalls");
            before = now;
        }
    }
}
