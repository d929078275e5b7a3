//! What was measured, as a table and as JSON.

use super::measure::{Lost, Used};
use super::numbers::Latency;
use super::plan::{Case, Plan, paced_hz, size_name, source_depth};
use super::{Floor, Row, Size, TCP_BLOCKING, TCP_SPINNING, ZMQ};
use crate::bridge::bench as publishing;
use serde_json::{Map, Value, json};
use std::fs;

/// Everything that a bench found.
pub struct Report {
    pub(super) sizes: Vec<Size>,
    /// What publishing costs the publishing thread.
    pub(super) publishing: Vec<publishing::Row>,
    command: String,
    runs: usize,
    run_time_s: f64,
    machine: Machine,
}

pub(super) struct Machine {
    cores: usize,
    kernel: String,
    processor: String,
    /// When the bench began: others' work is in the numbers.
    load: f64,
}

impl Machine {
    pub(super) fn here() -> Machine {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let cpuinfo = read("/proc/cpuinfo");
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
        Machine {
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            processor: model.map_or("unknown", |(_, name)| name.trim()).to_owned(),
            load: read("/proc/loadavg")
                .split(' ')
                .next()
                .and_then(|text| text.parse().ok())
                .unwrap_or(f64::NAN),
        }
    }

    /// One line of a table's head.
    pub(super) fn line(&self) -> String {
        let Machine { cores, kernel, processor, load } = self;
        format!("{cores} cores, {processor}, Linux {kernel}, load {load} at the start")
    }

    pub(super) fn to_json(&self) -> Value {
        json!({
            "cores": self.cores,
            "kernel": self.kernel,
            "processor": self.processor,
            "load_at_start": hundredths(self.load),
        })
    }
}

impl Case {
    pub(super) fn name(&self) -> String {
        self.poll.map_or(self.transport.to_owned(), |poll| format!("{}, {poll}", self.transport))
    }
}

/// As much as such a measurement holds.
pub(super) fn tenths(number: f64) -> Value {
    if number.is_finite() { json!((number * 10.0).round() / 10.0) } else { Value::Null }
}

pub(super) fn hundredths(number: f64) -> Value {
    if number.is_finite() { json!((number * 100.0).round() / 100.0) } else { Value::Null }
}

/// So that it stays narrow: 0.02, 8.4, 123, 12345, and a dash for what is not known.
pub(super) fn cell(number: f64) -> String {
    match number {
        _ if !number.is_finite() => "-".to_owned(),
        _ if number > 0.0 && number < 0.995 => format!("{number:.2}"),
        _ if number < 99.95 => format!("{number:.1}"),
        _ if number < 9_999_999.0 => format!("{number:.0}"),
        _ => format!("{number:.1e}"),
    }
}

fn ratio(number: f64) -> String {
    if number.is_finite() { format!("{number:.2}") } else { "-".to_owned() }
}

pub(super) fn latency_json(latency: &Latency) -> Map<String, Value> {
    let fields = [
        ("p50_us", latency.p50_us),
        ("p90_us", latency.p90_us),
        ("p99_us", latency.p99_us),
        ("p99_9_us", latency.p99_9_us),
        ("max_us", latency.max_us),
    ];
    // The copy of a small frame takes some hundredths.
    fields.into_iter().map(|(name, us)| (name.to_owned(), hundredths(us))).collect()
}

/// A row beside its floors.
struct Ratios {
    p50_to_tcp: f64,
    p50_to_zmq: f64,
    p99_to_tcp: f64,
    rate_to_tcp: f64,
}

impl Ratios {
    fn of(row: &Row, size: &Size) -> Ratios {
        let floor = |what| size.floor(what).map(|floor: &Floor| floor.latency);
        let (tcp, zmq) = (floor(TCP_SPINNING), floor(ZMQ));
        let to = |ours: f64, floor: Option<f64>| floor.map_or(f64::NAN, |floor| ours / floor);
        let flat_out_hz = size.floor(TCP_BLOCKING).and_then(|floor| floor.flat_out_hz);
        Ratios {
            p50_to_tcp: to(row.latency.p50_us, tcp.map(|tcp| tcp.p50_us)),
            p50_to_zmq: to(row.latency.p50_us, zmq.map(|zmq| zmq.p50_us)),
            p99_to_tcp: to(row.latency.p99_us, tcp.map(|tcp| tcp.p99_us)),
            rate_to_tcp: to(row.highest.map_or(f64::NAN, |highest| highest.written_hz), flat_out_hz),
        }
    }
}

/// `0`, or the causes with their counts; what no daemon has counted is `unknown`.
fn losses(row: &Row) -> String {
    let Lost { lapped, queue_full, transport, mirror_busy } = row.flow.lost;
    let missing = row.flow.written.saturating_sub(row.flow.delivered);
    let unknown = missing.saturating_sub(lapped + queue_full + transport + mirror_busy);
    let causes = [
        (lapped, "lapped"),
        (queue_full, "queue_full"),
        (transport, "transport"),
        (mirror_busy, "mirror_busy"),
        (unknown, "unknown"),
    ];
    let causes: Vec<String> = causes
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, cause)| format!("{count} {cause}"))
        .collect();
    if causes.is_empty() { "0".to_owned() } else { causes.join(" + ") }
}

pub(super) fn megabytes(bytes: f64) -> f64 {
    bytes / 1e6
}

impl Report {
    pub(super) fn begin(plan: &Plan) -> Report {
        let sizes: Vec<String> = plan.sizes_bytes.iter().map(|&bytes| size_name(bytes)).collect();
        let run_time_s = plan.run_time.as_secs_f64();
        let command = format!(
            "daoserver bench --sizes {} --runs {} --seconds {run_time_s}",
            sizes.join(","),
            plan.runs
        );
        let machine = Machine::here();
        Report { sizes: Vec::new(), publishing: Vec::new(), command, runs: plan.runs, run_time_s, machine }
    }

    /// For people.
    pub fn table(&self) -> String {
        let mut lines = vec![
            format!("{} (medians of {} runs of {} s, in turns)", self.command, self.runs, self.run_time_s),
            self.machine.line(),
            "Latency is one way, us. For daemons: from the source's time stamp to the frame's publication in the mirror.".into(),
            "x TCP, x zmq: to the bare hops (TCP: spinning) of the same run. %: of one core.".into(),
        ];
        for size in &self.sizes {
            self.size_lines(size, &mut lines);
        }
        if !self.publishing.is_empty() {
            lines.push(format!("\n{:34}{:>8}{:>8}", "the publishing thread, 64k frames", "p50", "p99"));
        }
        for row in &self.publishing {
            lines.push(format!("{:34}{:>8}{:>8}", row.what, cell(row.p50_us), cell(row.p99_us)));
        }
        lines.join("\n")
    }

    fn size_lines(&self, size: &Size, lines: &mut Vec<String>) {
        let rate_hz = paced_hz(size.frame_bytes);
        let title = format!("{} at {} Hz", size_name(size.frame_bytes), cell(rate_hz));
        let heads = [
            "p50", "p90", "p99", "p99.9", "max", "p50xTCP", "p50xzmq", "p99xTCP", "max Hz", "MB/s", "own %",
            "cli %", "own MB", "cli MB",
        ];
        let head: String = heads.iter().map(|head| format!("{head:>8}")).collect();
        lines.push(format!("\n{title:22}{head}  lost"));
        let times = |latency: &Latency| {
            let Latency { p50_us, p90_us, p99_us, p99_9_us, max_us, .. } = *latency;
            [p50_us, p90_us, p99_us, p99_9_us, max_us].map(cell).to_vec()
        };
        let line = |what: &str, cells: Vec<String>| {
            let cells: String = cells.iter().map(|cell| format!("{cell:>8}")).collect();
            format!("{what:22}{cells}")
        };
        for floor in &size.floors {
            let mut cells = times(&floor.latency);
            if let Some(hz) = floor.flat_out_hz {
                cells.extend([String::new(), String::new(), String::new()]);
                cells.extend([cell(hz), cell(megabytes(hz * size.frame_bytes as f64))]);
            }
            lines.push(line(floor.what, cells));
        }
        for row in &size.rows {
            let ratios = Ratios::of(row, size);
            let mut cells = times(&row.latency);
            cells.extend([ratios.p50_to_tcp, ratios.p50_to_zmq, ratios.p99_to_tcp].map(ratio));
            let hz = row.highest.map_or(f64::NAN, |highest| highest.written_hz);
            cells.extend([cell(hz), cell(megabytes(hz * size.frame_bytes as f64))]);
            let (owner, client) = (&row.flow.owner, &row.flow.client);
            cells.extend([owner.cpu_percent(), client.cpu_percent()].map(cell));
            cells.extend([owner, client].map(|used| cell(megabytes(used.resident_bytes as f64))));
            lines.push(format!(
                "{}  {}",
                line(&format!("daoserver {}", row.case.name()), cells),
                losses(row)
            ));
        }
    }

    /// For programs: units last in names.
    pub fn json(&self) -> Value {
        let publishing: Vec<Value> = self
            .publishing
            .iter()
            .map(|row| json!({"what": row.what, "p50_us": tenths(row.p50_us), "p99_us": tenths(row.p99_us)}))
            .collect();
        json!({
            "command": self.command,
            "machine": self.machine.to_json(),
            "runs": self.runs,
            "run_time_s": self.run_time_s,
            "sizes": self.sizes.iter().map(size_json).collect::<Vec<_>>(),
            "publishing_64k": publishing,
        })
    }
}

fn size_json(size: &Size) -> Value {
    let floors: Map<String, Value> = size
        .floors
        .iter()
        .map(|floor| {
            let mut entry = latency_json(&floor.latency);
            entry.insert("frames".into(), json!(floor.latency.frames));
            if let Some(hz) = floor.flat_out_hz {
                entry.insert("flat_out_hz".into(), tenths(hz));
                entry.insert("flat_out_mb_per_s".into(), tenths(megabytes(hz * size.frame_bytes as f64)));
            }
            (floor.what.replace([',', ' '], "_").replace("__", "_").to_lowercase(), Value::Object(entry))
        })
        .collect();
    json!({
        "frame_bytes": size.frame_bytes,
        "paced_hz": tenths(paced_hz(size.frame_bytes)),
        "source_depth_frames": source_depth(size.frame_bytes),
        "floors": floors,
        "daoserver": size.rows.iter().map(|row| row_json(row, size)).collect::<Vec<_>>(),
    })
}

fn row_json(row: &Row, size: &Size) -> Value {
    let ratios = Ratios::of(row, size);
    let Lost { lapped, queue_full, transport, mirror_busy } = row.flow.lost;
    let used = |used: &Used| json!({"cpu_percent": tenths(used.cpu_percent()), "resident_bytes": used.resident_bytes});
    let hz = row.highest.map_or(f64::NAN, |highest| highest.written_hz);
    let mut entry = latency_json(&row.latency);
    let rest = json!({
        "transport": row.case.transport,
        "poll": row.case.poll,
        "p50_to_bare_tcp": hundredths(ratios.p50_to_tcp),
        "p50_to_bare_zmq": hundredths(ratios.p50_to_zmq),
        "p99_to_bare_tcp": hundredths(ratios.p99_to_tcp),
        "highest_rate_to_bare_tcp": hundredths(ratios.rate_to_tcp),
        "frames_seen": row.latency.frames,
        "frames_written": row.flow.written,
        "frames_delivered": row.flow.delivered,
        "lost": {"lapped": lapped, "queue_full": queue_full, "transport": transport, "mirror_busy": mirror_busy},
        "highest_rate_hz": tenths(hz),
        "highest_rate_mb_per_s": tenths(megabytes(hz * size.frame_bytes as f64)),
        "owner": used(&row.flow.owner),
        "client": used(&row.flow.client),
    });
    if let Value::Object(rest) = rest {
        entry.extend(rest);
    }
    Value::Object(entry)
}

#[cfg(test)]
mod tests {
    use super::super::measure::{Attempt, Flow};
    use super::*;
    use std::time::Duration;

    fn report() -> Report {
        let plan = Plan {
            sizes_bytes: vec![64 << 10],
            runs: 2,
            run_time: Duration::from_millis(1_500),
            polls: vec![None],
            publishing: false,
            redis_flags: Vec::new(),
            shm_dir: "/nowhere".into(),
        };
        let floor = |what, us: f64, flat_out_hz| {
            let latency = Latency::of(&[vec![us; 2_000], vec![us; 2_000]]);
            Floor { what, latency, flat_out_hz }
        };
        let used = Used { cpu_s: 0.5, elapsed_s: 2.0, resident_bytes: 8_000_000 };
        let flow = Flow {
            runs_us: vec![vec![25.0; 1_500], vec![35.0; 1_490]],
            written: 3_000,
            delivered: 2_990,
            lost: Lost { lapped: 4, queue_full: 0, transport: 1, mirror_busy: 0 },
            owner: used,
            client: used,
        };
        let highest = Attempt { asked_hz: 8_000.0, written_hz: 8_000.0, written: 4_000, delivered: 4_000 };
        let case = Case { transport: "tcp", poll: None };
        let row = Row { case, latency: Latency::of(&flow.runs_us), flow, highest: Some(highest) };
        let floors = vec![
            floor(TCP_SPINNING, 20.0, None),
            floor(TCP_BLOCKING, 40.0, Some(10_000.0)),
            floor(ZMQ, 60.0, None),
        ];
        let mut report = Report::begin(&plan);
        report.sizes.push(Size { frame_bytes: 64 << 10, floors, rows: vec![row] });
        report
    }

    #[test]
    fn json_has_the_ratios_to_the_floors() {
        let json = report().json();
        let row = &json["sizes"][0]["daoserver"][0];
        let number = |field: &str| row[field].as_f64().unwrap();
        assert_eq!(
            (number("p50_us"), number("p50_to_bare_tcp"), number("p50_to_bare_zmq")),
            (30.0, 1.5, 0.5)
        );
        assert_eq!((number("highest_rate_hz"), number("highest_rate_to_bare_tcp")), (8_000.0, 0.8));
        assert_eq!(number("highest_rate_mb_per_s"), 524.3);
        assert_eq!(row["owner"]["cpu_percent"], 25.0);
        assert_eq!(row["lost"]["lapped"], 4);
        assert!(json["sizes"][0]["floors"]["bare_tcp_spinning"]["p99_us"] == 20.0, "{json}");
        assert_eq!(json["command"], "daoserver bench --sizes 64k --runs 2 --seconds 1.5");
    }

    #[test]
    fn the_table_names_what_was_lost_and_what_nobody_knows() {
        let table = report().table();
        let row = table.lines().find(|line| line.starts_with("daoserver tcp")).unwrap();
        assert!(row.ends_with("4 lapped + 1 transport + 5 unknown"), "{row}");
        assert!(row.contains(" 1.50    0.50    1.50 "), "{row}");
    }

    #[test]
    fn what_is_not_known_is_a_dash_and_null() {
        let mut report = report();
        let row = &mut report.sizes[0].rows[0];
        (row.highest, row.latency) = (None, Latency::of(&[]));
        let json = report.json();
        let row = &json["sizes"][0]["daoserver"][0];
        assert!(
            row["p50_us"].is_null() && row["highest_rate_hz"].is_null() && row["p50_to_bare_tcp"].is_null()
        );
        assert!(report.table().contains(" - "));
    }
}
