//! Latency, losses, processor time and the highest rate of one pair of daemons.

use super::daemons::{Daemon, Pair, failed, go_on};
use crate::error::Result;
use crate::metrics::Histogram;
use crate::os::threads::Stop;
use crate::os::{clock, process};
use serde_json::Value;
use std::time::{Duration, Instant};

/// Frames at the beginning of a run that do not count: caches, buffers and clocks settle, and who waits learns the pace.
pub const WARM_UP_FRAMES: usize = 20;
/// Before a frame is due, waiting is done awake: a sleep may last so much too long.
const AWAKE_NS: i64 = 200_000;
/// The daemons' source stays awake for so long after a frame. To go to sleep takes a core some ten microseconds: the sender of
/// a bare hop does that when its frame has gone, and a source that shares two cores with two daemons is not to do it while
/// they are at the frame.
const AWAKE_AFTER_NS: i64 = 50_000;
/// A rate is held if no more frames are lost,
const LOST_SHARE_MAX: f64 = 0.01;
/// and if the source kept to it so well.
const KEPT_SHARE_MIN: f64 = 0.95;
/// A rate is tried with so many frames, else a single lost one would decide it,
const ATTEMPT_FRAMES_MIN: f64 = 200.0;
/// unless they take longer than this.
const ATTEMPT_S_MAX: f64 = 4.0;
/// Faster is no pace that a process can keep.
const RATE_HZ_MAX: f64 = 1e6;
/// Steps of the search between the rate that was held and the one that was not.
const BISECTIONS: usize = 4;
/// Longer than from one of an idle owner's `alive` messages to the next.
const SIGN_OF_LIFE: Duration = Duration::from_millis(1_200);
/// Nothing has come for so long: nothing will.
const SETTLED: Duration = Duration::from_millis(50);

/// When the next frame is due.
pub struct Pacer {
    due_ns: i64,
    period_ns: i64,
    /// Between two frames at least.
    spacing_ns: i64,
}

impl Pacer {
    /// The first is due now.
    pub fn new(rate_hz: f64) -> Pacer {
        Pacer { due_ns: clock::monotonic_ns(), period_ns: (1e9 / rate_hz) as i64, spacing_ns: 0 }
    }

    /// The same for a source that holds one frame alone: what is late is caught up with, but never all at once.
    pub fn spaced(rate_hz: f64) -> Pacer {
        let pacer = Pacer::new(rate_hz);
        Pacer { spacing_ns: pacer.period_ns / 2, ..pacer }
    }

    /// Is it due? Then the one after it is next, counted from now if that is over as well.
    pub fn is_due(&mut self) -> bool {
        let now_ns = clock::monotonic_ns();
        if now_ns < self.due_ns {
            return false;
        }
        self.due_ns = (self.due_ns + self.period_ns).max(now_ns + self.spacing_ns);
        true
    }

    /// Sleeps if there is time for it, else lets others run.
    pub fn idle(&self) {
        let left_ns = self.due_ns - clock::monotonic_ns();
        if left_ns > 2 * AWAKE_NS {
            clock::sleep(Duration::from_nanos((left_ns - AWAKE_NS) as u64));
        } else {
            std::thread::yield_now();
        }
    }

    /// Sleeps until it is due, once the frame before is on its way.
    pub fn sleep(&mut self) {
        let written_ns = clock::monotonic_ns();
        while !self.is_due() {
            let now_ns = clock::monotonic_ns();
            if now_ns - written_ns < AWAKE_AFTER_NS {
                std::thread::yield_now();
            } else {
                clock::sleep(Duration::from_nanos((self.due_ns - now_ns).max(0) as u64));
            }
        }
    }

    /// Waits until it is due.
    pub fn wait(&mut self) {
        while !self.is_due() {
            self.idle();
        }
    }
}

/// Frames that did not arrive, by cause, as the daemons count them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Lost {
    pub lapped: u64,
    pub queue_full: u64,
    pub transport: u64,
    pub mirror_busy: u64,
}

impl Lost {
    fn of(status: &Value) -> Lost {
        let count = |cause: &str| status["mirrors"][0]["lost"][cause].as_u64().unwrap_or(0);
        Lost {
            lapped: count("lapped"),
            queue_full: count("queue_full"),
            transport: count("transport"),
            mirror_busy: count("mirror_busy"),
        }
    }

    fn since(self, earlier: Lost) -> Lost {
        Lost {
            lapped: self.lapped.saturating_sub(earlier.lapped),
            queue_full: self.queue_full.saturating_sub(earlier.queue_full),
            transport: self.transport.saturating_sub(earlier.transport),
            mirror_busy: self.mirror_busy.saturating_sub(earlier.mirror_busy),
        }
    }

    fn add(&mut self, more: Lost) {
        self.lapped += more.lapped;
        self.queue_full += more.queue_full;
        self.transport += more.transport;
        self.mirror_busy += more.mirror_busy;
    }
}

/// What one daemon used.
#[derive(Clone, Copy, Debug, Default)]
pub struct Used {
    /// Processor time.
    pub cpu_s: f64,
    /// In this time.
    pub elapsed_s: f64,
    /// At the end; of several runs the most.
    pub resident_bytes: u64,
}

impl Used {
    fn begin(daemon: &Daemon) -> Used {
        let cpu_s = process::cpu_seconds(daemon.pid()).unwrap_or(f64::NAN);
        Used { cpu_s: -cpu_s, elapsed_s: -(clock::monotonic_ns() as f64) / 1e9, resident_bytes: 0 }
    }

    fn end(&mut self, daemon: &Daemon) {
        self.cpu_s += process::cpu_seconds(daemon.pid()).unwrap_or(f64::NAN);
        self.elapsed_s += clock::monotonic_ns() as f64 / 1e9;
        self.resident_bytes = process::resident_bytes(daemon.pid()).unwrap_or(0);
    }

    fn add(&mut self, more: Used) {
        self.cpu_s += more.cpu_s;
        self.elapsed_s += more.elapsed_s;
        self.resident_bytes = self.resident_bytes.max(more.resident_bytes);
    }

    /// Per cent of one core.
    pub fn cpu_percent(&self) -> f64 {
        100.0 * self.cpu_s / self.elapsed_s
    }
}

/// What latency runs of one case found.
#[derive(Clone, Debug, Default)]
pub struct Flow {
    /// Of each run, from the source's time stamp to the frame's publication in the mirror.
    pub runs_us: Vec<Vec<f64>>,
    /// Frames written.
    pub written: u64,
    /// And those that reached the mirror.
    pub delivered: u64,
    /// By cause.
    pub lost: Lost,
    /// By the owner's daemon.
    pub owner: Used,
    /// By the client's.
    pub client: Used,
}

impl Flow {
    /// Takes in another run.
    pub fn add(&mut self, more: Flow) {
        self.runs_us.extend(more.runs_us);
        self.written += more.written;
        self.delivered += more.delivered;
        self.lost.add(more.lost);
        self.owner.add(more.owner);
        self.client.add(more.client);
    }
}

/// Writes at this rate, asleep between two frames as a camera's program is. The times are those that the mirror's daemon
/// counts, from the source's time stamp to the end of the frame's publication: nobody has to watch, which on two cores
/// would be most of what is measured. They are its histogram's, so up to 3 % too high or low.
pub fn latency(pair: &mut Pair, rate_hz: f64, time: Duration, stop: &Stop) -> Result<Flow> {
    let mut pacer = Pacer::new(rate_hz);
    let mut write_frames = |pair: &mut Pair, frames: u64| -> Result<()> {
        for _ in 0..frames {
            pacer.sleep();
            go_on(stop)?;
            write(pair)?;
        }
        Ok(())
    };
    let warm = pair.mirror.newest().1 + WARM_UP_FRAMES as u64;
    write_frames(pair, WARM_UP_FRAMES as u64)?;
    // Between two frames, so that the pace goes on: after a pause the first frames would be another measurement.
    let arrived = Instant::now() + SETTLED;
    while pair.mirror.newest().1 < warm && Instant::now() < arrived {
        std::thread::yield_now();
    }
    let before = pair.client.status()?;
    let (mut owner, mut client) = (Used::begin(&pair.owner), Used::begin(&pair.client));
    let begun = pair.mirror.newest().1;
    let written = ((time.as_secs_f64() * rate_hz) as u64).max(1);
    write_frames(pair, written)?;
    owner.end(&pair.owner);
    client.end(&pair.client);
    settle(pair)?;
    if pair.mirror.newest().1 - begun < written {
        // What was lost last is known, and may come again, with the owner's next sign of life.
        clock::sleep(SIGN_OF_LIFE);
    }
    let after = pair.client.status()?;
    let lost = Lost::of(&after).since(Lost::of(&before));
    let delivered = pair.mirror.newest().1 - begun;
    Ok(Flow { runs_us: vec![counted_since(&before, &after)], written, delivered, lost, owner, client })
}

/// Times of the frames that were counted between two looks at `status`, each the middle of its bucket.
fn counted_since(before: &Value, after: &Value) -> Vec<f64> {
    let pairs = |status: &Value| -> Vec<(f64, u64)> {
        let counts = &status["mirrors"][0]["hops_us"]["whole"]["counts"];
        let pairs = counts.as_array().into_iter().flatten();
        pairs.filter_map(|pair| Some((pair[0].as_f64()?, pair[1].as_u64()?))).collect()
    };
    let before = pairs(before);
    let of_before = |edge_us: f64| {
        before.iter().find(|(other_us, _)| *other_us == edge_us).map_or(0, |(_, count)| *count)
    };
    let since = pairs(after).into_iter().map(|(edge_us, count)| {
        let middle_us = edge_us - Histogram::width_us(edge_us) / 2.0;
        std::iter::repeat_n(middle_us, count.saturating_sub(of_before(edge_us)) as usize)
    });
    since.flatten().collect()
}

fn write(pair: &mut Pair) -> Result<()> {
    pair.source.write(&pair.pixels).map_err(|why| failed("write its segment")(&why))?;
    Ok(())
}

/// Writes so many frames at this pace; how many a second it were.
pub fn paced(
    mut pacer: Pacer,
    frames: u64,
    stop: &Stop,
    mut write: impl FnMut() -> Result<()>,
) -> Result<f64> {
    let begun_ns = clock::monotonic_ns();
    for _ in 0..frames {
        pacer.wait();
        go_on(stop)?;
        write()?;
    }
    Ok(frames as f64 * 1e9 / (clock::monotonic_ns() - begun_ns) as f64)
}

/// Until nothing comes any more.
fn settle(pair: &Pair) -> Result<()> {
    let mut seen = pair.mirror.newest().1;
    for _ in 0..40 {
        clock::sleep(SETTLED);
        let now = pair.mirror.newest().1;
        if now == seen {
            return Ok(());
        }
        seen = now;
    }
    Err(failed("wait for its mirror")(&"frames come though none is written"))
}

/// One attempt at a rate.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Attempt {
    pub asked_hz: f64,
    pub written_hz: f64,
    pub written: u64,
    pub delivered: u64,
}

impl Attempt {
    fn held(&self) -> bool {
        let lost = self.written.saturating_sub(self.delivered) as f64;
        lost < LOST_SHARE_MAX * self.written as f64 && self.written_hz >= KEPT_SHARE_MIN * self.asked_hz
    }
}

/// So many frames say whether a rate is held, in this time if that is enough.
pub fn frames_to_try(asked_hz: f64, time: Duration) -> u64 {
    let time_s = time.as_secs_f64().max((ATTEMPT_FRAMES_MIN / asked_hz).min(ATTEMPT_S_MAX));
    ((time_s * asked_hz) as u64).max(10)
}

/// Writes at this rate for a moment, and counts what arrives.
pub fn attempt(pair: &mut Pair, asked_hz: f64, time: Duration, stop: &Stop) -> Result<Attempt> {
    let begun = pair.mirror.newest().1;
    let written = frames_to_try(asked_hz, time);
    let written_hz = paced(Pacer::spaced(asked_hz), written, stop, || write(pair))?;
    settle(pair)?;
    Ok(Attempt { asked_hz, written_hz, written, delivered: pair.mirror.newest().1 - begun })
}

/// The highest rate that is held: doubled until one is not, then between the two; below the first if that is not held.
/// A rate has two attempts, since the machine may have been at something else. `None`: not even a 64th is held.
pub fn highest_rate(
    first_hz: f64,
    mut attempt: impl FnMut(f64) -> Result<Attempt>,
) -> Result<Option<Attempt>> {
    let mut held = |rate_hz: f64| -> Result<Option<Attempt>> {
        let once = attempt(rate_hz)?;
        if once.held() {
            return Ok(Some(once));
        }
        Ok(Some(attempt(rate_hz)?).filter(Attempt::held))
    };
    let mut best = held(first_hz)?;
    let mut bad_hz = first_hz;
    while best.is_none() && bad_hz > first_hz / 60.0 {
        best = held(bad_hz / 2.0)?;
        if best.is_none() {
            bad_hz /= 2.0;
        }
    }
    let Some(mut best) = best else { return Ok(None) };
    if best.asked_hz >= first_hz {
        loop {
            if best.asked_hz >= RATE_HZ_MAX {
                return Ok(Some(best));
            }
            bad_hz = (best.asked_hz * 2.0).min(RATE_HZ_MAX);
            match held(bad_hz)? {
                Some(better) => best = better,
                None => break,
            }
        }
    }
    for _ in 0..BISECTIONS {
        let between_hz = (best.asked_hz * bad_hz).sqrt();
        match held(between_hz)? {
            Some(better) => best = better,
            None => bad_hz = between_hz,
        }
    }
    Ok(Some(best))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine that holds so much.
    fn machine(limit_hz: f64, asked: &mut usize) -> impl FnMut(f64) -> Result<Attempt> {
        move |asked_hz| {
            *asked += 1;
            let delivered = if asked_hz <= limit_hz { 1_000 } else { 990 };
            Ok(Attempt { asked_hz, written_hz: asked_hz, written: 1_000, delivered })
        }
    }

    #[test]
    fn the_highest_rate_is_found_from_below_and_from_above_in_a_bounded_number_of_attempts() {
        for limit_hz in [20.0, 333.0, 1_000.0, 1_001.0, 77_777.0, 900_000.0] {
            let mut asked = 0;
            let found = highest_rate(1_000.0, machine(limit_hz, &mut asked)).unwrap().unwrap().asked_hz;
            assert!(found <= limit_hz && found > 0.95 * limit_hz, "{found} of {limit_hz}");
            assert!(asked < 30, "{asked}");
        }
        let mut asked = 0;
        assert_eq!(highest_rate(1_000.0, machine(1.0, &mut asked)).unwrap(), None);
        assert!(asked < 20);
        let found = highest_rate(1_000.0, machine(f64::MAX, &mut asked)).unwrap().unwrap().asked_hz;
        assert_eq!(found, RATE_HZ_MAX);
    }

    #[test]
    fn a_rate_has_two_attempts_and_one_that_the_source_cannot_keep_is_not_held() {
        let mut turn = 0;
        let found = highest_rate(1_000.0, |asked_hz| {
            turn += 1;
            let written_hz = asked_hz.min(4_100.0);
            Ok(Attempt {
                asked_hz,
                written_hz,
                written: 1_000,
                delivered: if turn % 2 == 1 { 0 } else { 1_000 },
            })
        });
        let found = found.unwrap().unwrap().asked_hz;
        assert!((4_000.0..4_400.0).contains(&found), "{found}");
    }

    #[test]
    fn a_rate_is_tried_with_enough_frames_that_one_does_not_decide_it_but_not_for_ever() {
        let half_a_second = Duration::from_millis(500);
        assert_eq!(frames_to_try(1_000.0, half_a_second), 500);
        assert_eq!(frames_to_try(100.0, half_a_second), 200);
        assert_eq!(frames_to_try(10.0, half_a_second), 40);
        assert_eq!(frames_to_try(0.1, half_a_second), 10);
    }

    #[test]
    fn a_pacer_keeps_its_pace_and_forgives_lateness() {
        let mut pacer = Pacer::new(10_000.0);
        let begun_ns = clock::monotonic_ns();
        for _ in 0..21 {
            pacer.wait();
        }
        assert!(clock::monotonic_ns() - begun_ns >= 1_990_000);
        clock::sleep(Duration::from_millis(5));
        assert!(pacer.is_due());
        assert!(pacer.due_ns + 1_000_000_000 > clock::monotonic_ns() && pacer.due_ns + 4_000_000 > begun_ns);
    }

    #[test]
    fn times_are_those_counted_between_two_looks() {
        let status =
            |counts: Value| serde_json::json!({"mirrors": [{"hops_us": {"whole": {"counts": counts}}}]});
        // Upper edges of buckets that are 64, 128 and 512 ns wide.
        let before = status(serde_json::json!([[1.536, 3], [2.56, 1]]));
        let after = status(serde_json::json!([[1.536, 3], [2.56, 3], [9.216, 1]]));
        let since = |before, after| -> Vec<i64> {
            counted_since(before, after).iter().map(|us| (us * 1_000.0).round() as i64).collect()
        };
        assert_eq!(since(&before, &after), [2_496, 2_496, 8_960]);
        assert_eq!(since(&Value::Null, &before), [1_504, 1_504, 1_504, 2_496]);
    }

    #[test]
    fn a_spaced_pacer_never_has_two_frames_at_once() {
        let mut pacer = Pacer::spaced(10_000.0);
        let late_ns = clock::monotonic_ns();
        pacer.due_ns = late_ns - 5_000_000;
        assert!(pacer.is_due() && pacer.due_ns >= late_ns + 50_000, "half a period at least");
    }

    #[test]
    fn losses_are_those_since_the_beginning() {
        let status = serde_json::json!({"mirrors": [{"lost": {"lapped": 5, "transport": 2}}]});
        let before = Lost { lapped: 3, ..Lost::default() };
        assert_eq!(Lost::of(&status).since(before), Lost { lapped: 2, transport: 2, ..Lost::default() });
    }
}
