//! `bench`: what a stream costs on this machine, beside what the machine can do.

use super::commands::{Bench, Name};
use super::{flags, output};
use crate::bench::plan::{QUICK_SIZE_BYTES, SIZES_BYTES};
use crate::bench::{self, Plan};
use crate::error::Result;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

/// The polling modes, once the daemon has them.
const POLLS: [&str; 3] = ["adaptive", "spin", "sleep"];

/// Runs, and the time of each, unless others are asked for.
const USUAL: (usize, Duration) = (5, Duration::from_secs(1));
const QUICK: (usize, Duration) = (2, Duration::from_millis(300));

/// Measures, telling on standard error what it is at, and prints a table, or JSON.
pub fn run(asked: &Bench, shm_dir: &Path) -> Result<()> {
    let (runs, run_time) = if asked.quick { QUICK } else { USUAL };
    let sizes_bytes = match (&asked.sizes_bytes[..], asked.quick) {
        ([], true) => vec![QUICK_SIZE_BYTES],
        ([], false) => SIZES_BYTES.to_vec(),
        (sizes, _) => sizes.to_vec(),
    };
    let has_polls = flags::named("poll").any(|flag| flag.commands.contains(&Name::Daemon));
    let plan = Plan {
        sizes_bytes,
        runs: asked.runs.unwrap_or(runs),
        run_time: asked.seconds.unwrap_or(run_time),
        polls: if has_polls { POLLS.map(Some).to_vec() } else { vec![None] },
        publishing: !asked.quick,
        redis_flags: asked.redis_flags.clone(),
        shm_dir: shm_dir.to_owned(),
    };
    // A standard error that is gone changes nothing.
    let mut progress = |what: &str| drop(std::io::stderr().write_all(format!("bench: {what}\n").as_bytes()));
    let report = bench::run(&plan, &mut progress)?;
    if asked.json { output::print(&report.json().to_string()) } else { output::print(&report.table()) }
}
