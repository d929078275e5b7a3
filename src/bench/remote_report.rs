//! What was measured to another machine and back, as a table and as JSON.

use super::measure::Attempt;
use super::numbers::Latency;
use super::plan::{RemotePlan, size_name};
use super::report::{Machine, cell, hundredths, latency_json, megabytes, tenths};
use crate::control::clocks::ClockOffset;
use serde_json::{Map, Value, json};

/// Why frames did not come back, in the order of [`Lost`].
const CAUSES: [&str; 5] = ["lapped", "stale", "queue_full", "transport", "mirror_busy"];

/// Frames that did not come back, by cause, as the local daemon counts them over both ways.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lost([u64; CAUSES.len()]);

impl Lost {
    /// Out of an object with a field for each cause.
    pub fn of(value: &Value) -> Lost {
        Lost(CAUSES.map(|cause| value[cause].as_u64().unwrap_or(0)))
    }

    /// In the order of the causes.
    #[cfg(test)]
    pub fn counts(&self) -> [u64; CAUSES.len()] {
        self.0
    }

    /// Those since then.
    pub fn since(&self, earlier: &Lost) -> Lost {
        let mut left = *self;
        left.0.iter_mut().zip(earlier.0).for_each(|(count, before)| *count = count.saturating_sub(before));
        left
    }

    /// Takes in those of another run.
    pub fn add(&mut self, more: &Lost) {
        self.0.iter_mut().zip(more.0).for_each(|(count, more)| *count += more);
    }

    /// With those that nobody here can know of: what was lost on the way out, or refused there.
    fn named(&self, missing: u64) -> Vec<(&'static str, u64)> {
        let unknown = missing.saturating_sub(self.0.iter().sum());
        CAUSES.into_iter().zip(self.0).chain([("unknown", unknown)]).collect()
    }
}

/// How the two machines' clocks compare.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Clock {
    /// The other's is so far ahead.
    pub offset_us: f64,
    pub error_us: f64,
}

impl Clock {
    /// Of several comparisons the one that is known best.
    pub fn best(clocks: &[ClockOffset]) -> Option<Clock> {
        let best = clocks.iter().min_by_key(|clock| clock.error_ns)?;
        Some(Clock { offset_us: best.offset_ns as f64 / 1e3, error_us: best.error_ns as f64 / 1e3 })
    }

    fn json(clock: Option<&Clock>) -> Value {
        let us = |of: fn(&Clock) -> f64| hundredths(clock.map_or(f64::NAN, of));
        json!({"offset_us": us(|clock| clock.offset_us), "error_us": us(|clock| clock.error_us)})
    }
}

/// All of one frame size.
#[allow(missing_docs)]
pub struct RemoteSize {
    pub frame_bytes: usize,
    pub paced_hz: f64,
    pub transport: String,
    pub round_trip: Latency,
    pub out: Latency,
    pub at_owner: Latency,
    pub back: Latency,
    pub clock: Option<Clock>,
    pub written: u64,
    pub returned: u64,
    pub lost: Lost,
    pub highest: Option<Attempt>,
}

impl RemoteSize {
    fn error_us(&self) -> f64 {
        self.clock.map_or(f64::NAN, |clock| clock.error_us)
    }

    fn highest_hz(&self) -> f64 {
        self.highest.map_or(f64::NAN, |highest| highest.written_hz)
    }

    fn highest_mb_per_s(&self) -> f64 {
        megabytes(self.highest_hz() * self.frame_bytes as f64)
    }

    fn lost(&self) -> Vec<(&'static str, u64)> {
        self.lost.named(self.written.saturating_sub(self.returned))
    }
}

/// Everything that a bench to another machine found.
pub struct RemoteReport {
    pub(super) from: String,
    pub(super) sizes: Vec<RemoteSize>,
    to: String,
    command: String,
    runs: usize,
    run_time_s: f64,
    machine: Machine,
}

impl RemoteReport {
    pub(super) fn begin(plan: &RemotePlan, machine: Machine) -> RemoteReport {
        let sizes: Vec<String> = plan.sizes_bytes.iter().map(|&bytes| size_name(bytes)).collect();
        let run_time_s = plan.run_time.as_secs_f64();
        let command = format!(
            "daoserver bench --to {} --sizes {} --runs {} --seconds {run_time_s}",
            plan.host,
            sizes.join(","),
            plan.runs
        );
        let (from, to) = (String::new(), plan.host.clone());
        RemoteReport { from, sizes: Vec::new(), to, command, runs: plan.runs, run_time_s, machine }
    }

    /// Over all sizes.
    fn clock(&self) -> Option<Clock> {
        let known = self.sizes.iter().filter_map(|size| size.clock);
        known.min_by(|one, other| one.error_us.total_cmp(&other.error_us))
    }

    /// For people.
    pub fn table(&self) -> String {
        let RemoteReport { command, runs, run_time_s, from, to, .. } = self;
        let mut lines = vec![
            format!("{command} (medians of {runs} runs of {run_time_s} s)"),
            self.machine.line(),
            format!("From {from}: what is written into a mirror of {to} goes there and comes back. us."),
            "Out: from the frame's time stamp to when the owner sees it. Back: from when it sends it.".into(),
        ];
        if let Some(Clock { offset_us, error_us }) = self.clock() {
            let way = if offset_us < 0.0 { "behind" } else { "ahead of" };
            let offset = cell(offset_us.abs());
            lines.push(format!("The clock of {to} is {offset} us {way} this one, +- {} us.", cell(error_us)));
        }
        for size in &self.sizes {
            self.size_lines(size, &mut lines);
        }
        lines.join("\n")
    }

    fn size_lines(&self, size: &RemoteSize, lines: &mut Vec<String>) {
        let title =
            format!("{} at {} Hz, {}", size_name(size.frame_bytes), cell(size.paced_hz), size.transport);
        let heads = ["p50", "p90", "p99", "p99.9", "max", "+-"].map(|head| format!("{head:>9}"));
        lines.push(format!("\n{title:28}{}", heads.concat()));
        let error_us = size.error_us();
        let ways = [
            ("there and back", &size.round_trip, f64::NAN),
            ("out", &size.out, error_us),
            ("at the owner", &size.at_owner, f64::NAN),
            ("back", &size.back, error_us),
        ];
        for (what, latency, error_us) in ways {
            let Latency { p50_us, p90_us, p99_us, p99_9_us, max_us, .. } = *latency;
            let times = [p50_us, p90_us, p99_us, p99_9_us, max_us, error_us];
            let cells = times.map(|us| format!("{:>9}", cell_of_way(us)));
            lines.push(format!("{what:28}{}", cells.concat().trim_end()));
        }
        let causes: Vec<String> = size
            .lost()
            .iter()
            .filter(|(_, count)| *count > 0)
            .map(|(cause, count)| format!("{count} {cause}"))
            .collect();
        let lost = if causes.is_empty() { "0".to_owned() } else { causes.join(" + ") };
        lines.push(format!("{:28}{lost} of {}", "lost", size.written));
        let highest = match size.highest {
            Some(_) => {
                format!("{} Hz, {} MB/s each way", cell(size.highest_hz()), cell(size.highest_mb_per_s()))
            }
            None => "-".to_owned(),
        };
        lines.push(format!("{:28}{highest}", "highest rate"));
    }

    /// For programs: units last in names.
    pub fn json(&self) -> Value {
        json!({
            "command": self.command,
            "machine": self.machine.to_json(),
            "from": self.from,
            "to": self.to,
            "runs": self.runs,
            "run_time_s": self.run_time_s,
            "clock": Clock::json(self.clock().as_ref()),
            "sizes": self.sizes.iter().map(size_json).collect::<Vec<_>>(),
        })
    }
}

/// The clocks' error may make a short way negative.
fn cell_of_way(us: f64) -> String {
    if us < 0.0 { format!("-{}", cell(-us)) } else { cell(us) }
}

fn size_json(size: &RemoteSize) -> Value {
    let way = |latency: &Latency, error_us: Option<f64>| {
        let mut entry = latency_json(latency);
        entry.insert("frames".into(), json!(latency.frames));
        if let Some(error_us) = error_us {
            entry.insert("error_us".into(), hundredths(error_us));
        }
        Value::Object(entry)
    };
    let error_us = Some(size.error_us());
    let lost: Map<String, Value> =
        size.lost().into_iter().map(|(cause, count)| (cause.to_owned(), json!(count))).collect();
    json!({
        "frame_bytes": size.frame_bytes,
        "paced_hz": tenths(size.paced_hz),
        "transport": size.transport,
        "round_trip": way(&size.round_trip, None),
        "out": way(&size.out, error_us),
        "at_owner": way(&size.at_owner, None),
        "back": way(&size.back, error_us),
        "clock": Clock::json(size.clock.as_ref()),
        "frames_written": size.written,
        "frames_returned": size.returned,
        "lost": lost,
        "highest_rate_hz": tenths(size.highest_hz()),
        "highest_rate_mb_per_s": tenths(size.highest_mb_per_s()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn report() -> RemoteReport {
        let plan = RemotePlan {
            host: "beta".into(),
            sizes_bytes: vec![1 << 10],
            runs: 2,
            run_time: Duration::from_millis(300),
            control: "/nowhere".into(),
            timeout: Duration::from_secs(1),
        };
        let of = |us: f64| Latency::of(&[vec![us; 2_000], vec![us; 2_000]]);
        let mut report = RemoteReport::begin(&plan, Machine::here());
        report.from = "alpha".into();
        report.sizes.push(RemoteSize {
            frame_bytes: 1 << 10,
            paced_hz: 1_000.0,
            transport: "tcp".into(),
            round_trip: of(150.0),
            out: of(90.0),
            at_owner: of(62.0),
            back: of(-2.0),
            clock: Some(Clock { offset_us: -12.5, error_us: 40.0 }),
            written: 4_000,
            returned: 3_990,
            lost: Lost::of(&json!({"lapped": 4, "transport": 1})),
            highest: Some(Attempt { asked_hz: 8e3, written_hz: 8e3, written: 4_000, delivered: 4_000 }),
        });
        report
    }

    #[test]
    fn the_table_has_the_error_beside_what_goes_one_way() {
        let table = report().table();
        let line = |begin: &str| table.lines().find(|line| line.starts_with(begin)).unwrap().to_owned();
        assert!(line("The clock of beta").contains("12.5 us behind this one, +- 40.0 us"), "{table}");
        assert!(line("out").ends_with("40.0") && line("at the owner").ends_with("-"), "{table}");
        assert!(line("back").contains("-2.0"), "{table}");
        assert!(line("lost").ends_with("4 lapped + 1 transport + 5 unknown of 4000"), "{table}");
        assert!(line("highest").ends_with("8000 Hz, 8.2 MB/s each way"), "{table}");
    }

    #[test]
    fn json_has_the_same_and_what_is_not_known_is_null() {
        let json = report().json();
        let size = &json["sizes"][0];
        assert_eq!((&size["out"]["error_us"], &size["round_trip"]["p99_us"]), (&json!(40.0), &json!(150.0)));
        assert_eq!((&json["from"], &json["to"]), (&json!("alpha"), &json!("beta")));
        assert_eq!(size["lost"]["unknown"], 5);
        assert_eq!(json["clock"], json!({"offset_us": -12.5, "error_us": 40.0}));
        assert_eq!(json["command"], "daoserver bench --to beta --sizes 1k --runs 2 --seconds 0.3");
        let mut report = report();
        (report.sizes[0].clock, report.sizes[0].highest) = (None, None);
        let json = report.json();
        assert!(json["clock"]["offset_us"].is_null() && json["sizes"][0]["highest_rate_hz"].is_null());
        assert!(!report.table().contains("The clock"));
    }
}
