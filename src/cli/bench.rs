//! `bench`: what a stream costs on this machine, beside what the machine can do; or to another machine and back.

use super::commands::{Bench, Name};
use super::{flags, output};
use crate::bench::plan::{QUICK_SIZE_BYTES, REMOTE_SIZES_BYTES, SIZES_BYTES};
use crate::bench::{self, Plan, RemotePlan};
use crate::error::Result;
use crate::settings::Settings;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

/// The polling modes, once the daemon has them.
const POLLS: [&str; 3] = ["adaptive", "spin", "sleep"];

/// Runs, and the time of each, unless others are asked for.
const USUAL: (usize, Duration) = (5, Duration::from_secs(1));
const QUICK: (usize, Duration) = (2, Duration::from_millis(300));

/// Sizes, runs, and the time of a run: what was asked for, or these sizes and the usual rest.
fn what(asked: &Bench, usual_bytes: &[usize]) -> (Vec<usize>, usize, Duration) {
    let (runs, run_time) = if asked.quick { QUICK } else { USUAL };
    let sizes_bytes = match (&asked.sizes_bytes[..], asked.quick) {
        ([], true) => vec![QUICK_SIZE_BYTES],
        ([], false) => usual_bytes.to_vec(),
        (sizes, _) => sizes.to_vec(),
    };
    (sizes_bytes, asked.runs.unwrap_or(runs), asked.seconds.unwrap_or(run_time))
}

/// On standard error; one that is gone changes nothing.
fn progress(what: &str) {
    drop(std::io::stderr().write_all(format!("bench: {what}\n").as_bytes()));
}

/// Measures, telling on standard error what it is at, and prints a table, or JSON.
pub fn run(asked: &Bench, shm_dir: &Path) -> Result<()> {
    let (sizes_bytes, runs, run_time) = what(asked, &SIZES_BYTES);
    let has_polls = flags::named("poll").any(|flag| flag.commands.contains(&Name::Daemon));
    let plan = Plan {
        sizes_bytes,
        runs,
        run_time,
        polls: if has_polls { POLLS.map(Some).to_vec() } else { vec![None] },
        publishing: !asked.quick,
        redis_flags: asked.redis_flags.clone(),
        shm_dir: shm_dir.to_owned(),
    };
    let report = bench::run(&plan, &mut progress)?;
    if asked.json { output::print(&report.json().to_string()) } else { output::print(&report.table()) }
}

/// The same to another machine and back.
pub fn run_to(asked: &Bench, settings: &Settings) -> Result<()> {
    let (sizes_bytes, runs, run_time) = what(asked, &REMOTE_SIZES_BYTES);
    let plan = RemotePlan {
        host: asked.to.clone().unwrap_or_default(),
        sizes_bytes,
        runs,
        run_time,
        control: settings.control_path(),
        timeout: asked.timeout,
    };
    let report = bench::run_to(&plan, &mut progress)?;
    if asked.json { output::print(&report.json().to_string()) } else { output::print(&report.table()) }
}
