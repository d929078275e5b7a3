//! `bench --to HOST`: frames to another machine and back, between two daemons that run already.
//!
//! The owner makes a segment for it. The bench gets it from the local daemon as a mirror that may be written, and writes:
//! each frame goes to the owner's segment, is published there, and comes back. The local daemon notes when. No clock but
//! this machine's is in a round trip; what goes one way is known as well as the two clocks are compared.

use super::daemons::{failed, go_on};
use super::measure::{Attempt, Pacer, WARM_UP_FRAMES, frames_to_try, highest_rate, paced};
use super::numbers::{Latency, median};
use super::plan::{RemotePlan, paced_hz, size_name};
use super::remote_report::{Clock, Lost, RemoteReport, RemoteSize};
use super::{ATTEMPT_TIME_MAX, report::Machine};
use crate::bridge::echoes::Echo;
use crate::control::client::Connection;
use crate::control::clocks::ClockOffset;
use crate::error::{Error, Kind, Result};
use crate::limits;
use crate::os::threads::Stop;
use crate::os::{clock, scheduling};
use crate::shm::{Access, Segment, Writer};
use crate::wire::control::{Get, Op};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The local daemon's own time-outs, beyond what it is asked to wait for.
const PATIENCE: Duration = Duration::from_secs(15);
/// Both directions of a new stream are there within this time.
const OPEN_WITHIN: Duration = Duration::from_secs(10);
/// Nothing has come back for so long, and twice a round trip: nothing will.
const SETTLED: Duration = Duration::from_millis(250);
/// Longer than from one of an idle owner's `alive` messages to the next: what was lost last is known by then.
const SIGN_OF_LIFE: Duration = Duration::from_millis(1_200);
/// A mirror is gone so soon after its lease.
const RELEASED_WITHIN: Duration = Duration::from_secs(5);
/// Times are taken from the daemon before its queue of them is full.
const TAKEN_EVERY_FRAMES: u64 = limits::ECHOES_MAX as u64 / 4;

pub(super) fn measured(
    plan: &RemotePlan,
    stop: &Stop,
    progress: &mut dyn FnMut(&str),
) -> Result<RemoteReport> {
    scheduling::prefer_latency(); // as the daemons' threads do
    let mut report = RemoteReport::begin(plan, Machine::here());
    for &frame_bytes in &plan.sizes_bytes {
        progress(&format!("{} frames: a segment at {}", size_name(frame_bytes), plan.host));
        let mut stream = Stream::open(plan, frame_bytes, stop)?;
        report.from = stream.from.clone();
        report.sizes.push(size(plan, &mut stream, frame_bytes, progress)?);
    }
    go_on(stop)?;
    Ok(report)
}

fn size(
    plan: &RemotePlan,
    stream: &mut Stream,
    frame_bytes: usize,
    progress: &mut dyn FnMut(&str),
) -> Result<RemoteSize> {
    let what = size_name(frame_bytes);
    // So that one frame is back before the next goes out: on no link does a queue build up.
    let paced_hz = paced_hz(frame_bytes).min(5e5 / stream.lone_round_trip_us()?);
    let mut runs = Runs::default();
    for turn in 1..=plan.runs {
        progress(&format!("{what} frames, run {turn} of {}", plan.runs));
        runs.add(stream.latency(paced_hz, plan.run_time)?);
    }
    progress(&format!("{what} frames: highest rate"));
    let time = plan.run_time.min(ATTEMPT_TIME_MAX);
    let highest = highest_rate(paced_hz, |asked_hz| stream.attempt(asked_hz, time))?;
    Ok(RemoteSize {
        frame_bytes,
        paced_hz,
        transport: stream.transport.clone(),
        round_trip: Latency::of(&runs.round_trip_us),
        out: Latency::of(&runs.out_us),
        at_owner: Latency::of(&runs.at_owner_us),
        back: Latency::of(&runs.back_us),
        clock: Clock::best(&runs.clocks),
        written: runs.written,
        returned: runs.returned,
        lost: runs.lost,
        highest,
    })
}

/// What the runs of one size found.
#[derive(Default)]
struct Runs {
    round_trip_us: Vec<Vec<f64>>,
    out_us: Vec<Vec<f64>>,
    at_owner_us: Vec<Vec<f64>>,
    back_us: Vec<Vec<f64>>,
    clocks: Vec<ClockOffset>,
    written: u64,
    returned: u64,
    lost: Lost,
}

/// What one run found.
struct Run {
    echoes: Vec<Echo>,
    written: u64,
    returned: u64,
    lost: Lost,
}

impl Runs {
    fn add(&mut self, run: Run) {
        self.written += run.written;
        self.returned += run.returned;
        self.lost.add(&run.lost);
        let us = |ns: i64| ns as f64 / 1e3;
        self.round_trip_us.push(run.echoes.iter().map(|echo| us(echo.round_trip_ns)).collect());
        self.at_owner_us.push(run.echoes.iter().map(|echo| us(echo.there_ns)).collect());
        // Each run has its own comparison: clocks drift.
        if let Some(clock) = compared(&run.echoes) {
            let ways = || run.echoes.iter().map(|echo| one_way_ns(echo, clock.offset_ns));
            self.out_us.push(ways().map(|(out, _)| us(out)).collect());
            self.back_us.push(ways().map(|(_, back)| us(back)).collect());
            self.clocks.push(clock);
        }
    }
}

/// Time on the way, without that at the owner.
fn delay_ns(echo: &Echo) -> i64 {
    echo.round_trip_ns.saturating_sub(echo.there_ns)
}

/// How far the owner's clock is ahead of ours, by the echo that was on its way for the shortest time: it went out and
/// came back within that, so it is wrong by half of it at most. Echoes that make no sense say nothing.
fn compared(echoes: &[Echo]) -> Option<ClockOffset> {
    let sensible = echoes.iter().filter(|echo| echo.there_ns >= 0 && delay_ns(echo) >= 0);
    let shortest = sensible.min_by_key(|echo| delay_ns(echo))?;
    let error_ns = delay_ns(shortest) / 2;
    Some(ClockOffset { offset_ns: shortest.out_ns.saturating_sub(error_ns), error_ns })
}

/// From here to there, and from there to here, if the owner's clock is so far ahead.
fn one_way_ns(echo: &Echo, offset_ns: i64) -> (i64, i64) {
    let out_ns = echo.out_ns.saturating_sub(offset_ns);
    (out_ns, delay_ns(echo).saturating_sub(out_ns))
}

/// A mirror that may be written, of the segment that the other machine has made for us.
struct Stream<'a> {
    // Closed with it: the lease ends, and the mirror.
    connection: Option<Connection>,
    stop: &'a Stop,
    host: String,
    shm: String,
    from: String,
    transport: String,
    path: PathBuf,
    writer: Option<Writer>,
    pixels: Vec<u8>,
    settled: Duration,
}

/// What the local daemon says of it.
struct Seen {
    returned: u64,
    lost: Lost,
    open: bool,
    echoes: Vec<Echo>,
}

impl Seen {
    fn of(value: &Value) -> Seen {
        let echo = |times: &Value| {
            let ns = |place: usize| times.get(place).and_then(Value::as_i64);
            Some(Echo { round_trip_ns: ns(0)?, out_ns: ns(1)?, there_ns: ns(2)? })
        };
        Seen {
            returned: value["returned"].as_u64().unwrap_or(0),
            lost: Lost::of(&value["lost"]),
            open: value["open"] == true,
            echoes: value["echoes_ns"].as_array().into_iter().flatten().filter_map(echo).collect(),
        }
    }
}

impl<'a> Stream<'a> {
    fn open(plan: &RemotePlan, frame_bytes: usize, stop: &'a Stop) -> Result<Stream<'a>> {
        let mut connection = Connection::open(&plan.control)?;
        let ask = Op::BenchSegment { hostname: plan.host.clone(), frame_bytes };
        let mut call = |op: &Op, patience: Duration| {
            go_on(stop)?;
            let said = connection.call_until(op, patience, stop);
            go_on(stop)?;
            said
        };
        let from = text(&call(&Op::Ping, PATIENCE)?, "hostname");
        let shm = text(&call(&ask, limits::BENCH_ANSWER_TIMEOUT + PATIENCE)?, "shm");
        let get =
            Get { bidirectional: true, lease: true, timeout: plan.timeout, ..Get::new(&plan.host, &shm) };
        let there = call(&Op::GetRemoteShm(get), plan.timeout + PATIENCE)?;
        let path = PathBuf::from(text(&there, "path"));
        let mut stream = Stream {
            connection: Some(connection),
            stop,
            host: plan.host.clone(),
            shm,
            from,
            transport: text(&there, "transport"),
            writer: Some(open_to_write(&path, frame_bytes)?),
            path,
            pixels: vec![1; frame_bytes],
            settled: SETTLED,
        };
        stream.wait_until_open()?;
        Ok(stream)
    }

    fn look(&mut self) -> Result<Seen> {
        let op = Op::Echoes { hostname: self.host.clone(), shm: self.shm.clone() };
        let connection = self.connection.as_mut().ok_or_else(|| failed("ask its daemon")(&"it hung up"))?;
        let said = connection.call_until(&op, PATIENCE, self.stop);
        go_on(self.stop)?;
        Ok(Seen::of(&said?))
    }

    fn write(&mut self) -> Result<()> {
        let writer = self.writer.as_mut().ok_or_else(|| failed("write its mirror")(&"it is gone"))?;
        writer.write(&self.pixels).map_err(|why| failed("write its mirror")(&why))?;
        Ok(())
    }

    /// Both ways: a frame that is written comes back.
    fn wait_until_open(&mut self) -> Result<()> {
        let deadline = Instant::now() + OPEN_WITHIN;
        let begun = self.look()?.returned;
        loop {
            let seen = self.look()?;
            if seen.returned > begun {
                return self.settle().map(drop);
            }
            if Instant::now() > deadline {
                return Err(self.nothing_returns());
            }
            if seen.open {
                self.write()?;
            }
            self.stop.wait(Duration::from_millis(50));
        }
    }

    /// Until nothing comes back any more; what there is then.
    fn settle(&mut self) -> Result<Seen> {
        let mut seen = self.look()?;
        for _ in 0..40 {
            self.stop.wait(self.settled);
            let next = self.look()?;
            let quiet = next.returned == seen.returned;
            let mut echoes = std::mem::take(&mut seen.echoes);
            echoes.extend_from_slice(&next.echoes);
            seen = Seen { echoes, ..next };
            if quiet {
                return Ok(seen);
            }
        }
        Err(failed("wait for its echoes")(&"frames come back though none is written"))
    }

    /// One frame after the other, each written when the one before has come back, or will not: the median.
    fn lone_round_trip_us(&mut self) -> Result<f64> {
        let mut found_us = Vec::new();
        self.look()?;
        for _ in 0..2 * WARM_UP_FRAMES {
            self.write()?;
            let deadline = Instant::now() + Duration::from_secs(1);
            while Instant::now() < deadline {
                clock::sleep(Duration::from_millis(1));
                let echoes = self.look()?.echoes;
                if !echoes.is_empty() {
                    found_us.extend(echoes.iter().map(|echo| echo.round_trip_ns as f64 / 1e3));
                    break;
                }
            }
        }
        if found_us.is_empty() {
            return Err(self.nothing_returns());
        }
        let round_trip_us = median(&found_us).max(1.0);
        self.settled = SETTLED + 2 * Duration::from_micros(round_trip_us as u64);
        Ok(round_trip_us)
    }

    fn nothing_returns(&self) -> Error {
        Error::new(
            Kind::Timeout,
            format!("What is written for '{}' does not come back from there.", self.host),
        )
    }

    fn latency(&mut self, rate_hz: f64, time: Duration) -> Result<Run> {
        paced(Pacer::spaced(rate_hz), WARM_UP_FRAMES as u64, self.stop, || self.write())?;
        let before = self.settle()?;
        let frames = ((time.as_secs_f64() * rate_hz) as u64).max(1);
        let (mut pacer, mut echoes) = (Pacer::spaced(rate_hz), Vec::new());
        for number in 1..=frames {
            pacer.wait();
            go_on(self.stop)?;
            self.write()?;
            if number % TAKEN_EVERY_FRAMES == 0 {
                echoes.extend(self.look()?.echoes);
            }
        }
        let mut after = self.settle()?;
        echoes.append(&mut after.echoes);
        if after.returned.saturating_sub(before.returned) < frames {
            self.stop.wait(SIGN_OF_LIFE);
            after = self.look()?;
            echoes.append(&mut after.echoes);
        }
        let returned = after.returned.saturating_sub(before.returned);
        if returned == 0 {
            return Err(self.nothing_returns());
        }
        Ok(Run { echoes, written: frames, returned, lost: after.lost.since(&before.lost) })
    }

    fn attempt(&mut self, asked_hz: f64, time: Duration) -> Result<Attempt> {
        let before = self.settle()?.returned;
        let written = frames_to_try(asked_hz, time);
        let written_hz = paced(Pacer::spaced(asked_hz), written, self.stop, || self.write())?;
        let delivered = self.settle()?.returned.saturating_sub(before);
        Ok(Attempt { asked_hz, written_hz, written, delivered })
    }
}

impl Drop for Stream<'_> {
    /// Returns when nothing is left of it here: with the connection the lease ends, and with the lease the mirror.
    fn drop(&mut self) {
        self.writer = None;
        self.connection = None;
        let deadline = Instant::now() + RELEASED_WITHIN;
        while self.path.exists() && Instant::now() < deadline {
            clock::sleep(Duration::from_millis(5));
        }
    }
}

fn text(value: &Value, field: &str) -> String {
    value.get(field).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn open_to_write(path: &Path, frame_bytes: usize) -> Result<Writer> {
    let segment = Segment::open(path, Access::ReadWrite).map_err(|why| failed("open its mirror")(&why))?;
    let bytes = segment.spec().frame_bytes();
    if bytes != frame_bytes {
        return Err(failed("use its mirror")(&format!("it has frames of {bytes} bytes, not {frame_bytes}")));
    }
    Writer::new(segment).map_err(|why| failed("write its mirror")(&why))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Written at 0 by our clock, on a machine whose clock is so far ahead.
    fn echo(out_ns: i64, there_ns: i64, back_ns: i64, ahead_ns: i64) -> Echo {
        Echo { round_trip_ns: out_ns + there_ns + back_ns, out_ns: out_ns + ahead_ns, there_ns }
    }

    #[test]
    fn the_shortest_way_compares_the_clocks_and_its_error_holds_the_truth() {
        for ahead_ns in [0, 5_000_000_000, -7_000_000_000] {
            let echoes = [
                echo(900, 50, 100, ahead_ns),
                echo(120, 5_000, 80, ahead_ns), // long there, short on its way
                echo(300, 10, 300, ahead_ns),
            ];
            let clock = compared(&echoes).unwrap();
            assert_eq!(clock, ClockOffset { offset_ns: ahead_ns + 20, error_ns: 100 });
            let (out_ns, back_ns) = one_way_ns(&echoes[0], clock.offset_ns);
            assert_eq!((out_ns, back_ns), (880, 120));
            assert!((out_ns - 900).abs() <= clock.error_ns && (back_ns - 100).abs() <= clock.error_ns);
        }
    }

    #[test]
    fn echoes_that_make_no_sense_compare_nothing() {
        assert_eq!(compared(&[]), None);
        let strange = [
            Echo { round_trip_ns: i64::MIN, out_ns: i64::MAX, there_ns: i64::MAX },
            Echo { round_trip_ns: 5, out_ns: 1, there_ns: -1 },
            Echo { round_trip_ns: 5, out_ns: 1, there_ns: 6 },
        ];
        assert_eq!(compared(&strange), None);
        one_way_ns(&strange[0], i64::MIN);
        let mut runs = Runs::default();
        runs.add(Run { echoes: strange.into(), written: 3, returned: 3, lost: Lost::default() });
        assert!(Clock::best(&runs.clocks).is_none() && Latency::of(&runs.out_us).p50_us.is_nan());
    }

    #[test]
    fn what_the_daemon_says_is_read_and_what_is_missing_is_nothing() {
        let said = json!({
            "returned": 7, "open": true, "lost": {"lapped": 2, "queue_full": 1},
            "echoes_ns": [[30, -5, 1], [1, 2], "x", [40, -6, 2]],
        });
        let seen = Seen::of(&said);
        assert_eq!((seen.returned, seen.open, seen.echoes.len()), (7, true, 2));
        assert_eq!(seen.echoes[1], Echo { round_trip_ns: 40, out_ns: -6, there_ns: 2 });
        assert_eq!(seen.lost.counts(), [2, 0, 1, 0, 0]);
        assert!(!Seen::of(&Value::Null).open);
    }
}
