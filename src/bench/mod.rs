//! `daoserver bench`: latency, losses, the highest rate and cost of a stream between two real daemons on this machine,
//! beside floors that are measured in the same run, in turns: what disturbs one disturbs the other.
//!
//! | file | holds |
//! |---|---|
//! | `plan` | what is measured |
//! | `daemons` | Redis and the daemons: started, and gone at the end |
//! | `measure` | one pair of daemons |
//! | `floors` | a memory copy, a bare TCP hop, a bare libzmq hop |
//! | `numbers` | percentiles, medians, ratios |
//! | `report` | table and JSON |
//! | `remote`, `remote_report` | `--to`: the same to another machine and back, between two daemons that run already |

mod daemons;
mod floors;
mod measure;
mod numbers;
pub mod plan;
mod remote;
mod remote_report;
mod report;

pub use plan::{Plan, RemotePlan};
pub use remote_report::RemoteReport;
pub use report::Report;

use crate::bridge::bench::publishing;
use crate::error::Result;
use crate::os::threads::{Stop, spawn};
use crate::os::{scheduling, signals};
use daemons::{Ground, failed, go_on};
use floors::{Ask, Hop, Waiting};
use measure::{Attempt, Flow};
use numbers::Latency;
use plan::{Case, paced_hz};
use std::time::Duration;

/// Longest attempt at a rate.
const ATTEMPT_TIME_MAX: Duration = Duration::from_millis(500);

/// Bytes of the frames whose publishing is measured: a 128x256 image of 16 bits.
const PUBLISHED_BYTES: u32 = 64 << 10;

/// One floor, all runs.
pub struct Floor {
    what: &'static str,
    latency: Latency,
    /// Frames a second, one after the other. `None`: not measured.
    flat_out_hz: Option<f64>,
}

/// One transport in one polling mode, all runs.
pub struct Row {
    case: Case,
    latency: Latency,
    flow: Flow,
    highest: Option<Attempt>,
}

/// All of one frame size.
pub struct Size {
    frame_bytes: usize,
    floors: Vec<Floor>,
    rows: Vec<Row>,
}

impl Size {
    fn floor(&self, what: &str) -> Option<&Floor> {
        self.floors.iter().find(|floor| floor.what == what)
    }
}

const COPY: &str = "memory copy";
const TCP_SPINNING: &str = "bare TCP, spinning";
const TCP_BLOCKING: &str = "bare TCP, blocking";
const ZMQ: &str = "bare libzmq";

type Hopper = fn(Ask) -> Result<Hop>;
const FLOORS: [(&str, Hopper); 4] = [
    (COPY, floors::memory_copy),
    (TCP_SPINNING, |ask| floors::tcp_hop(ask, Waiting::Spinning)),
    (TCP_BLOCKING, |ask| floors::tcp_hop(ask, Waiting::Blocking)),
    (ZMQ, floors::zmq_hop),
];

/// Measures all of it, and leaves nothing behind: not after an error, and not after SIGINT, SIGTERM or SIGHUP.
/// `progress` is told what comes next.
pub fn run(plan: &Plan, progress: &mut dyn FnMut(&str)) -> Result<Report> {
    interruptible(|stop| measured(plan, stop, progress))
}

/// The same with another machine, between two daemons that run already: what is written here goes there and comes back.
pub fn run_to(plan: &RemotePlan, progress: &mut dyn FnMut(&str)) -> Result<RemoteReport> {
    interruptible(|stop| remote::measured(plan, stop, progress))
}

/// Sets `stop` at a signal that would end the process.
fn interruptible<T>(measure: impl FnOnce(&Stop) -> Result<T>) -> Result<T> {
    signals::block(); // before the first thread, so that they all do
    let stop = Stop::new();
    let listener = spawn(
        "dao-bench-signals",
        stop.clone(),
        |stop| {
            while !stop.is_set() {
                if signals::wait(Duration::from_millis(100)).is_some() {
                    stop.set();
                }
            }
        },
        |_| (),
    );
    let listener = listener.map_err(|why| failed("start a thread")(&why))?;
    let measured = measure(&stop);
    listener.stop();
    let _ = listener.join_within(Duration::from_secs(1));
    measured
}

fn measured(plan: &Plan, stop: &Stop, progress: &mut dyn FnMut(&str)) -> Result<Report> {
    scheduling::prefer_latency(); // as the daemons' threads do
    let mut report = Report::begin(plan);
    let mut ground = Ground::new(plan, stop)?;
    for &frame_bytes in &plan.sizes_bytes {
        report.sizes.push(size(plan, &mut ground, frame_bytes, stop, progress)?);
    }
    if plan.publishing {
        progress("what publishing costs");
        report.publishing = publishing(PUBLISHED_BYTES, stop)?;
    }
    go_on(stop)?;
    Ok(report)
}

fn size(
    plan: &Plan,
    ground: &mut Ground,
    frame_bytes: usize,
    stop: &Stop,
    progress: &mut dyn FnMut(&str),
) -> Result<Size> {
    let rate_hz = paced_hz(frame_bytes);
    let cases = plan.cases();
    let (mut floor_runs, mut flat_out_hz) = (vec![Vec::new(); FLOORS.len()], Vec::new());
    let mut rows: Vec<(Flow, Option<Attempt>)> = cases.iter().map(|_| Default::default()).collect();
    for turn in 1..=plan.runs {
        progress(&format!("{} frames, run {turn} of {}", plan::size_name(frame_bytes), plan.runs));
        let ask = Ask { frame_bytes, rate_hz, time: plan.run_time, stop };
        for (runs, (_, floor)) in floor_runs.iter_mut().zip(FLOORS) {
            runs.push(floor(ask)?.run_us);
        }
        let flat_out = Ask { rate_hz: f64::INFINITY, time: plan.run_time.min(ATTEMPT_TIME_MAX), ..ask };
        flat_out_hz.push(floors::tcp_hop(flat_out, Waiting::Blocking)?.rate_hz);
        let mut turns: Vec<_> = cases.iter().zip(&mut rows).collect();
        // Each run begins with another: what came before leaves its traces, in caches and kernel threads.
        turns.rotate_left((turn - 1) % cases.len());
        for (&case, row) in turns {
            // Started anew each time: a daemon that idles beside the others would cost them time.
            let mut pair = ground.pair(case, frame_bytes, stop)?;
            row.0.add(measure::latency(&mut pair, rate_hz, plan.run_time, stop)?);
            if turn == plan.runs {
                progress(&format!("{} frames, {}: highest rate", plan::size_name(frame_bytes), case.name()));
                row.1 = measure::highest_rate(rate_hz, |asked_hz| {
                    measure::attempt(&mut pair, asked_hz, flat_out.time, stop)
                })?;
            }
        }
    }
    let floors = FLOORS.iter().zip(floor_runs).map(|((what, _), runs)| Floor {
        what,
        latency: Latency::of(&runs),
        flat_out_hz: (*what == TCP_BLOCKING).then(|| numbers::median(&flat_out_hz)),
    });
    let rows = cases.iter().zip(rows).map(|(&case, (flow, highest))| Row {
        case,
        latency: Latency::of(&flow.runs_us),
        flow,
        highest,
    });
    Ok(Size { frame_bytes, floors: floors.collect(), rows: rows.collect() })
}
