//! The control protocol: one JSON object a line, each way, on the Unix socket and on `--stdio` alike.
//!
//! `{"id": 1, "op": "ping"}` is answered by `{"id": 1, "ok": ...}` or
//! `{"id": 1, "error": {"kind": "KeyError", "message": "..."}}`; `id` may be any JSON value and comes back as it was.
//! Fields that an operation does not know are ignored. `null` is as good as a field that is not there.

use crate::error::{Error, Kind};
use crate::limits;
use serde_json::{Map, Value, json};
use std::time::Duration;

/// What is asked for.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Op {
    Ping,
    Start,
    Stop,
    Status,
    ListMachines,
    GetRemoteShm(Get),
    ReleaseRemoteShm {
        hostname: String,
        shm: String,
    },
    RegisterMachine,
    DeregisterMachine {
        hostname: Option<String>,
    },
    CleanupStaleMachines {
        ttl: Duration,
    },
    Discover(Scan),
    /// A segment at another machine, to bench with: `bench --to`.
    BenchSegment {
        hostname: String,
        frame_bytes: usize,
    },
    /// When what was written into a mirror came back, since the last time it was asked; the first time begins it.
    Echoes {
        hostname: String,
        shm: String,
    },
}

/// What `get_remote_shm` is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Get {
    /// The owner.
    pub hostname: String,
    /// The segment's name there.
    pub shm: String,
    /// What is written into the mirror goes back to the owner.
    pub bidirectional: bool,
    /// The mirror ends with who asks for it, not with a release alone.
    pub lease: bool,
    /// `zmq`, `tcp` or `auto`, which all mean what the two daemons agree on; another one is a `NotImplementedError`.
    pub transport: String,
    /// Longest wait for the owner to publish.
    pub timeout: Duration,
}

impl Get {
    /// One way, until it is released, 30 s at most until the owner publishes.
    pub fn new(hostname: impl Into<String>, shm: impl Into<String>) -> Get {
        Get {
            hostname: hostname.into(),
            shm: shm.into(),
            bidirectional: false,
            lease: false,
            transport: "zmq".to_owned(),
            timeout: limits::RECORD_TIMEOUT,
        }
    }
}

/// What `discover` is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scan {
    /// The port that is tried on every address.
    pub port: u16,
    /// Longest wait for one address.
    pub timeout: Duration,
    /// Addresses tried at the same time.
    pub max_workers: usize,
}

/// One line from a client: its id, echoed as it came, and the operation or why it is none.
pub struct Asked {
    /// Echoed; null where the line had none.
    pub id: Value,
    /// The operation.
    pub op: Result<Op, Error>,
}

fn text(map: &Map<String, Value>, field: &str) -> Result<String, Error> {
    let value = map.get(field).and_then(Value::as_str);
    value
        .map(str::to_owned)
        .ok_or_else(|| Error::new(Kind::Value, format!("'{field}' is missing or no string.")))
}

fn flag(map: &Map<String, Value>, field: &str) -> Result<bool, Error> {
    match map.get(field) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(value)) => Ok(*value),
        Some(_) => Err(Error::new(Kind::Value, format!("'{field}' is neither true nor false."))),
    }
}

fn whole(map: &Map<String, Value>, field: &str, default: u64, most: u64) -> Result<u64, Error> {
    match map.get(field) {
        None | Some(Value::Null) => Ok(default),
        Some(value) => value.as_u64().filter(|number| (1..=most).contains(number)).ok_or_else(|| {
            Error::new(Kind::Value, format!("'{field}' is no whole number from 1 to {most}."))
        }),
    }
}

fn optional_text(map: &Map<String, Value>, field: &str) -> Result<Option<String>, Error> {
    map.get(field).filter(|value| !value.is_null()).map(|_| text(map, field)).transpose()
}

fn seconds(map: &Map<String, Value>, field: &str, default: Duration) -> Result<Duration, Error> {
    match map.get(field) {
        None | Some(Value::Null) => Ok(default),
        Some(value) => value
            .as_f64()
            .filter(|seconds| (0.0..=86_400.0 * 366.0).contains(seconds))
            .map(Duration::from_secs_f64)
            .ok_or_else(|| Error::new(Kind::Value, format!("'{field}' is no number of seconds."))),
    }
}

fn parse_op(map: &Map<String, Value>) -> Result<Op, Error> {
    Ok(match text(map, "op")?.as_str() {
        "ping" => Op::Ping,
        "start" => Op::Start,
        "stop" => Op::Stop,
        "status" => Op::Status,
        "list_machines" => Op::ListMachines,
        "get_remote_shm" => Op::GetRemoteShm(Get {
            hostname: text(map, "hostname")?,
            shm: text(map, "shm")?,
            bidirectional: flag(map, "bidirectional")?,
            lease: flag(map, "lease")?,
            transport: optional_text(map, "transport")?.unwrap_or_else(|| "zmq".to_owned()),
            timeout: seconds(map, "timeout_s", limits::RECORD_TIMEOUT)?,
        }),
        "release_remote_shm" => {
            Op::ReleaseRemoteShm { hostname: text(map, "hostname")?, shm: text(map, "shm")? }
        }
        "register_machine" => Op::RegisterMachine,
        "deregister_machine" => Op::DeregisterMachine { hostname: optional_text(map, "hostname")? },
        "cleanup_stale_machines" => {
            Op::CleanupStaleMachines { ttl: seconds(map, "ttl_seconds", limits::MACHINE_TTL)? }
        }
        "discover" => Op::Discover(Scan {
            port: whole(map, "port", 6_379, u16::MAX.into())? as u16,
            timeout: seconds(map, "timeout", limits::DISCOVERY_TIMEOUT)?,
            max_workers: {
                let most = limits::DISCOVERY_WORKERS_MAX as u64;
                whole(map, "max_workers", most, most)? as usize
            },
        }),
        "bench_segment" => Op::BenchSegment {
            hostname: text(map, "hostname")?,
            frame_bytes: {
                let most = limits::BENCH_FRAME_BYTES_MAX as u64;
                whole(map, "frame_bytes", 1_024, most)? as usize
            },
        },
        "echoes" => Op::Echoes { hostname: text(map, "hostname")?, shm: text(map, "shm")? },
        other => {
            let shown: String = other.chars().take(40).flat_map(char::escape_debug).collect();
            return Err(Error::new(Kind::Value, format!("Unknown op '{shown}'.")));
        }
    })
}

/// Reads one line.
pub fn parse_line(line: &str) -> Asked {
    match serde_json::from_str::<Value>(line) {
        Ok(Value::Object(mut map)) => {
            let id = map.remove("id").unwrap_or(Value::Null);
            let most = limits::CONTROL_ID_BYTES_MAX;
            if id.to_string().len() > most {
                let error = Error::new(Kind::Value, format!("An id has at most {most} bytes."));
                return Asked { id: Value::Null, op: Err(error) };
            }
            Asked { id, op: parse_op(&map) }
        }
        Ok(_) => Asked { id: Value::Null, op: Err(Error::new(Kind::Value, "A line must be a JSON object.")) },
        Err(error) => Asked {
            id: Value::Null,
            op: Err(Error::new(Kind::Value, format!("No JSON at column {}: {error}", error.column()))),
        },
    }
}

/// The line that asks for an operation, without its line break.
pub fn ask(id: u64, op: &Op) -> String {
    let mut value = match op {
        Op::Ping => json!({"op": "ping"}),
        Op::Start => json!({"op": "start"}),
        Op::Stop => json!({"op": "stop"}),
        Op::Status => json!({"op": "status"}),
        Op::ListMachines => json!({"op": "list_machines"}),
        Op::GetRemoteShm(get) => json!({
            "op": "get_remote_shm", "hostname": get.hostname, "shm": get.shm, "bidirectional": get.bidirectional,
            "lease": get.lease, "transport": get.transport, "timeout_s": get.timeout.as_secs_f64(),
        }),
        Op::ReleaseRemoteShm { hostname, shm } => {
            json!({"op": "release_remote_shm", "hostname": hostname, "shm": shm})
        }
        Op::RegisterMachine => json!({"op": "register_machine"}),
        Op::DeregisterMachine { hostname } => json!({"op": "deregister_machine", "hostname": hostname}),
        Op::CleanupStaleMachines { ttl } => {
            json!({"op": "cleanup_stale_machines", "ttl_seconds": ttl.as_secs_f64()})
        }
        Op::Discover(scan) => json!({
            "op": "discover", "port": scan.port, "timeout": scan.timeout.as_secs_f64(), "max_workers": scan.max_workers,
        }),
        Op::BenchSegment { hostname, frame_bytes } => {
            json!({"op": "bench_segment", "hostname": hostname, "frame_bytes": frame_bytes})
        }
        Op::Echoes { hostname, shm } => json!({"op": "echoes", "hostname": hostname, "shm": shm}),
    };
    value["id"] = json!(id);
    value.to_string()
}

/// The line that answers, without its line break.
pub fn answer(id: &Value, result: &Result<Value, Error>) -> String {
    match result {
        Ok(value) => json!({"id": id, "ok": value}),
        Err(error) => {
            json!({"id": id, "error": {"kind": error.kind.python_name(), "message": error.message}})
        }
    }
    .to_string()
}

/// Reads an answer: its id and what it says.
pub fn parse_answer(line: &str) -> Result<(Value, Result<Value, Error>), String> {
    let mut map = match serde_json::from_str::<Value>(line) {
        Ok(Value::Object(map)) => map,
        _ => return Err("the daemon's answer is no JSON object".to_owned()),
    };
    let id = map.remove("id").unwrap_or(Value::Null);
    if let Some(value) = map.remove("ok") {
        return Ok((id, Ok(value)));
    }
    let error =
        map.get("error").and_then(Value::as_object).ok_or("the daemon's answer has neither ok nor error")?;
    let field = |name: &str| error.get(name).and_then(Value::as_str).unwrap_or("unknown");
    Ok((id, Err(Error::new(Kind::from_python_name(field("kind")), field("message")))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_op_comes_back_as_it_was_asked() {
        let ops = [
            Op::Ping,
            Op::Start,
            Op::Stop,
            Op::Status,
            Op::ListMachines,
            Op::GetRemoteShm(Get {
                bidirectional: true,
                lease: true,
                timeout: Duration::from_millis(1_500),
                ..Get::new("a", "b")
            }),
            Op::RegisterMachine,
            Op::Discover(Scan { port: 1, timeout: Duration::from_millis(250), max_workers: 3 }),
            Op::ReleaseRemoteShm { hostname: "a".into(), shm: "b".into() },
            Op::DeregisterMachine { hostname: None },
            Op::DeregisterMachine { hostname: Some("a".into()) },
            Op::CleanupStaleMachines { ttl: Duration::from_secs(7) },
            Op::BenchSegment { hostname: "a".into(), frame_bytes: 16 },
            Op::Echoes { hostname: "a".into(), shm: "b".into() },
        ];
        for op in ops {
            let asked = parse_line(&ask(3, &op));
            assert_eq!(asked.id, json!(3));
            assert_eq!(asked.op, Ok(op));
        }
    }

    #[test]
    fn an_answer_comes_back_as_it_was_given() {
        for result in
            [Ok(json!({"path": "x"})), Err(Error::new(Kind::Key, "No machine 'x' registered in Redis."))]
        {
            assert_eq!(parse_answer(&answer(&json!(1), &result)), Ok((json!(1), result)));
        }
    }

    #[test]
    fn a_malformed_line_names_its_position() {
        let error = parse_line("{\"id\": 1,,}").op.unwrap_err();
        assert!(error.message.contains("column 10"), "{error}");
        assert!(parse_line("{\"op\": \"get_remote_shm\", \"hostname\": 3}").op.is_err());
        assert!(parse_line("{\"op\": \"fly\"}").op.unwrap_err().message.contains("'fly'"));
        for bad in [
            r#"{"op": "get_remote_shm", "hostname": "a", "shm": "b", "lease": 1}"#,
            r#"{"op": "get_remote_shm", "hostname": "a", "shm": "b", "timeout_s": -1}"#,
            r#"{"op": "discover", "port": 65536}"#,
            r#"{"op": "discover", "max_workers": 0}"#,
            r#"{"op": "deregister_machine", "hostname": 3}"#,
        ] {
            assert_eq!(parse_line(bad).op.unwrap_err().kind, Kind::Value, "{bad}");
        }
    }

    #[test]
    fn what_is_left_out_has_its_default() {
        let asked = parse_line(r#"{"op": "get_remote_shm", "hostname": "a", "shm": "b", "transport": null}"#);
        assert_eq!((asked.id, asked.op), (Value::Null, Ok(Op::GetRemoteShm(Get::new("a", "b")))));
    }

    #[test]
    fn an_id_of_many_digits_comes_back_as_it_was() {
        for id in ["4.29496718446744e+29", "1732299132.1234567", "[0.30000000000000004]"] {
            let asked = parse_line(&format!("{{\"id\": {id}, \"op\": \"ping\"}}"));
            assert!(answer(&asked.id, &Ok(Value::Null)).contains(&format!("\"id\":{id}")), "{id}");
        }
    }

    #[test]
    fn deep_nesting_ends_soon() {
        for line in
            ["[".repeat(1 << 20), "{\"a\":".repeat(200_000), format!("{{\"id\": {}", "[".repeat(100_000))]
        {
            assert!(parse_line(&line).op.unwrap_err().message.starts_with("No JSON at column "));
        }
    }
}
