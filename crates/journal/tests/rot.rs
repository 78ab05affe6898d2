//! Random damage: recovery never panics, never returns wrong bytes, and never passes over a
//! durable record in silence.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

mod harness;

use harness::{IDENTITY, World, formatted, options};
use plinth_journal::sim::Chance;
use plinth_journal::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

/// Damaged disks where `PLINTH_SEQUENCES` says nothing else.
const CASES: u32 = 400;

/// Flips bits or fills blocks with noise at random places.
fn damage(disk: &mut SimDisk, chance: &mut Chance) {
    let segments = disk.segments();
    for _ in 0..1 + chance.below(4) {
        let (area, bytes) = match chance.below(8) {
            0 => (Area::Super, SUPER_BYTES),
            _ => {
                let (segment, bytes) = segments[chance.below(segments.len() as u64) as usize];
                (Area::Segment(segment), bytes)
            }
        };
        // Mostly at the front of a block, where heads are.
        let block = chance.below(bytes / 4096) * 4096;
        let within = if chance.below(3) == 0 { chance.below(4096) } else { chance.below(200) };
        for byte in 0..[1, 1, 64][chance.below(3) as usize] {
            disk.rot(area, (block + within + byte).min(bytes - 1), chance.draw() as u8);
        }
    }
}

fn check(seed: u64, steps: &[harness::Step]) -> Result<(), String> {
    let mut world = World::new(formatted(seed), seed)?;
    world.run(steps)?;
    let records = world.records.clone();
    let mut disk = world.disk.take().unwrap();
    world.journal = None;
    let floor = Recovery::start(disk.clone(), Some(IDENTITY)).map_err(|error| error.to_string())?.floor();
    damage(&mut disk, &mut Chance::new(seed ^ 0xbad));
    // Two rotten superblocks may outvote nothing: a refusal is an answer too.
    let Ok(mut recovery) = Recovery::start(disk, Some(IDENTITY)) else { return Ok(()) };
    let mut found = BTreeMap::new();
    while let Some(record) = recovery.next() {
        let Some(known) = records.get(&record.sequence) else {
            return Err(format!("{} was never durable", record.sequence));
        };
        if record.body != known.body || record.kind != known.kind {
            return Err(format!("{} came back with another body", record.sequence));
        }
        if let Ok((_, payload)) = recovery.read(record.position)
            && payload != known.payload
        {
            return Err(format!("{} came back with another payload", record.sequence));
        }
        found.insert(record.sequence, record);
    }
    let silent = records.keys().find(|sequence| **sequence <= floor && !found.contains_key(sequence));
    if let Some(sequence) = silent
        && recovery.damage().is_empty()
    {
        return Err(format!("{sequence} is gone and nothing was reported; floor {floor}"));
    }
    // Whatever the damage, a consumer that accepts it can go on.
    match recovery.resume(world.now, options()) {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("resume over damage: {error}")),
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: std::env::var("PLINTH_SEQUENCES").ok().and_then(|text| text.parse().ok()).unwrap_or(CASES),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn damage_is_never_returned_and_never_silent(seed: u64, steps in harness::steps()) {
        check(seed, &steps).map_err(TestCaseError::fail)?;
    }
}
