//! As `fuzz.rs`: the parsers of text, which is most often JSON. Values in Redis, control lines, flags.
#![allow(clippy::unwrap_used)]

#[path = "common/memory.rs"]
mod memory;
#[path = "common/mutate.rs"]
mod mutate;

use daoserver::cli::commands::COMMANDS;
use daoserver::cli::flags::FLAGS;
use daoserver::cli::parse::{Parsed, parse};
use daoserver::control::clocks::ClockOffset;
use daoserver::control::persist;
use daoserver::dtype::{DType, Shape};
use daoserver::error::ExitCode;
use daoserver::naming::{host_name, key, mirror_name, segment_name, segment_path};
use daoserver::wire::control::{Get, Op, Scan, answer, ask, parse_answer, parse_line};
use daoserver::wire::record::{self, Record, RecordExtras, Request};
use daoserver::wire::time;
use daoserver::{Kind, limits};
use memory::most_allocated;
use mutate::{Mutations, pieces};
use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::time::Duration;

/// What may be allocated beside what the input itself accounts for.
const CONSTANT_BYTES: usize = 64 * 1024;
/// A JSON value of two bytes takes a place of thirty-two in a list that grows by doubling, an empty object's member of six
/// a leaf of a tree.
const JSON_BYTES_A_BYTE: usize = 160;

const JSON: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    ":",
    ",",
    "\"",
    "null",
    "true",
    "false",
    "-",
    "1e999",
    "18446744073709551616",
    "\\u0000",
    "\\ud800",
    "\\",
    "../",
    "/",
    "\u{fffd}",
    "\n",
    "\0",
    "[[[[[[[[",
    "{\"a\":",
    "\"dao\":",
    "\"port\":",
    "\"tcp\":",
    "\"shape\":",
    "\"op\":",
    "\"hostname\":",
    "remote_",
];

fn records() -> Vec<Vec<u8>> {
    let extras = RecordExtras {
        wire: 1,
        boot_id: u64::MAX - 3,
        shape: Shape::new(&[8, 6]).unwrap(),
        dtype: DType::C64,
        keywords: 3,
        client_boot_id: Some(7),
        read_only: true,
        tcp_port: Some(5561),
    };
    let record = |extras| Record {
        server_ip: Ipv4Addr::new(192, 168, 64, 2),
        port: 5560,
        transport: "zmq".into(),
        client_hostname: "gui1".into(),
        client_ip: Ipv4Addr::new(192, 168, 64, 3),
        bidirectional: false,
        client_pub_port: None,
        extras,
    };
    let request = Request {
        boot_id: Some(9),
        tcp_port: Some(5_562),
        client_hostname: "gui1".into(),
        client_ip: Ipv4Addr::new(192, 168, 64, 3),
        transport: "zmq".into(),
        bidirectional: true,
        client_pub_port: Some(5_570),
    };
    vec![
        Record::list_to_json(&[record(None), record(Some(extras))]).into_bytes(),
        Record::list_to_json(&vec![record(Some(extras)); 40]).into_bytes(),
        request.to_json().into_bytes(),
        br#"{"client_ip": "192.168.64.3", "client_hostname": "gui1", "transport": "zmq", "bidirectional": false, "client_pub_port": null}"#.to_vec(),
    ]
}

/// Values of every kind, and keys: whatever is read as what.
#[test]
fn redis_values() {
    let mut seeds = records();
    seeds.extend(pieces(&[
        "[512, 512]",
        "float32",
        "[3, 2, 1]",
        "2026-04-27T14:37:28.123456+00:00",
        "2026-04-27T14:37:28Z",
        "[-1234567.891, 12.5]",
        "192.168.64.2",
        "dao:machines:rts:shm:wfs:1:dimensions",
        "dao:machines:rts:last_connect",
        r#"{"mirrors": [{"hostname": "rts", "shm": "wfs", "bidirectional": true, "kept": false, "leases": 2}], "ports": {"dm": 5560}}"#,
    ]));
    let mutations = Mutations { target: "redis_values", seeds, pieces: pieces(JSON), bytes_max: 20_000 };
    mutations.run(|input| {
        let Ok(text) = std::str::from_utf8(input) else { return };
        let cost = most_allocated(|| read_as_everything(text));
        assert!(cost <= JSON_BYTES_A_BYTE * input.len() + CONSTANT_BYTES, "{cost} of {}", input.len());
    });
}

/// What a host and a segment are called stays in the segment directory, whatever is made of it.
fn inside(host: &str, name: &str) {
    assert!(host_name(host).is_ok() && segment_name(name).is_ok());
    let dir = Path::new("/segments");
    for path in [segment_path(dir, name), segment_path(dir, &mirror_name(host, name))] {
        assert_eq!(path.parent(), Some(dir), "{host:?} {name:?}");
        assert!(path.file_name().is_some_and(|name| name.len() < 256));
        assert!(!path.as_os_str().as_encoded_bytes().contains(&0));
    }
}

fn said(why: &str) {
    assert!(!why.contains(['\n', '\0']) && why.len() < 700, "{why}");
}

fn read_as_everything(text: &str) {
    // What the daemon remembers is a file, and JSON as well.
    if let Some(remembered) = persist::parse(text) {
        remembered.mirrors.iter().for_each(|mirror| inside(&mirror.key.0, &mirror.key.1));
        remembered.ports.keys().for_each(|name| inside("rts", name));
    }
    match Request::parse(text) {
        Ok(request) => {
            assert!(host_name(&request.client_hostname).is_ok() && request.transport.len() <= 128);
            assert!(request.client_pub_port != Some(0) && request.tcp_port != Some(0));
            // A port without a publisher's number is nobody's.
            let tcp_port = request.boot_id.and(request.tcp_port);
            assert_eq!(Request::parse(&request.to_json()), Ok(Request { tcp_port, ..request }));
        }
        Err(why) => said(&why),
    }
    match Record::parse_list(text) {
        Ok((records, refused)) => {
            assert!(records.len() + refused.len() <= limits::CLIENTS_MAX);
            refused.iter().for_each(|why| said(why));
            for record in &records {
                assert!(record.port > 0 && host_name(&record.client_hostname).is_ok());
                let extras = record.extras.as_ref();
                assert!(
                    extras.is_none_or(|dao| dao.keywords <= limits::KEYWORDS_MAX && dao.tcp_port != Some(0))
                );
            }
            assert_eq!(Record::parse_list(&Record::list_to_json(&records)), Ok((records, vec![])));
        }
        Err(why) => said(&why),
    }
    match record::parse_dimensions(text) {
        Ok(shape) => assert_eq!(record::parse_dimensions(&record::dimensions_to_json(&shape)), Ok(shape)),
        Err(why) => said(&why),
    }
    if let Err(why) = record::parse_dtype(text) {
        said(&why);
    }
    if let Err(why) = ClockOffset::parse(text) {
        said(&why);
    }
    if let Some(ns) = time::parse(text) {
        assert_eq!(time::parse(&time::format(ns)).map(|again| again / 1_000), Some(ns.div_euclid(1_000)));
    }
    if let (Ok(host), Ok(name)) = (host_name(text).or(Ok::<_, ()>("rts")), segment_name(text)) {
        inside(host, name);
    }
    match key::parse_machine(text) {
        Some(key::MachineKey::Machine(host, field)) => assert_eq!(key::machine(host, field), text),
        Some(key::MachineKey::Segment(host, name, field)) => {
            assert_eq!(key::segment(host, name, field), text)
        }
        None => {}
    }
}

#[test]
fn control_lines() {
    let ops = [
        Op::Ping,
        Op::Start,
        Op::Stop,
        Op::Status,
        Op::ListMachines,
        Op::GetRemoteShm(Get { bidirectional: true, lease: true, ..Get::new("rts", "wfs") }),
        Op::ReleaseRemoteShm { hostname: "rts".into(), shm: "wfs".into() },
        Op::RegisterMachine,
        Op::DeregisterMachine { hostname: Some("rts".into()) },
        Op::CleanupStaleMachines { ttl: Duration::from_secs(120) },
        Op::Discover(Scan { port: 6379, timeout: Duration::from_millis(300), max_workers: 64 }),
    ];
    let mut seeds: Vec<Vec<u8>> = ops.iter().map(|op| ask(7, op).into_bytes()).collect();
    seeds.push(
        br#"{"id": [1, {"a": null}], "error": {"kind": "KeyError", "message": "No machine 'x'."}}"#.to_vec(),
    );
    seeds.push(br#"{"id": 1, "ok": {"path": "/tmp/remote_rts_wfs.im.shm", "shape": [8, 6]}}"#.to_vec());
    let mutations = Mutations { target: "control_lines", seeds, pieces: pieces(JSON), bytes_max: 20_000 };
    mutations.run(|input| {
        let line = String::from_utf8_lossy(input);
        let cost = most_allocated(|| {
            let _ = parse_answer(&line);
            judge_line(&line);
        });
        assert!(cost <= JSON_BYTES_A_BYTE * line.len() + CONSTANT_BYTES, "{cost} of {}", line.len());
    });
}

fn judge_line(line: &str) {
    let asked = parse_line(line);
    match &asked.op {
        Ok(Op::GetRemoteShm(get)) => assert!(get.timeout <= Duration::from_secs(366 * 86_400)),
        Ok(Op::Discover(scan)) => {
            assert!(scan.port > 0 && (1..=limits::DISCOVERY_WORKERS_MAX).contains(&scan.max_workers));
        }
        Ok(_) => {}
        Err(error) => {
            assert_eq!(error.kind, Kind::Value);
            assert!(!error.message.contains('\n') && error.message.len() < 200, "{error}");
        }
    }
    // Whatever the id is, the answer is one line, which the other side reads, with the id as it came.
    let line = answer(&asked.id, &asked.op.map(|op| ask(1, &op).into()));
    assert!(!line.contains('\n'));
    assert_eq!(parse_answer(&line).unwrap().0, asked.id);
}

/// The words of a command line, with NUL between them.
#[test]
fn flags() {
    let lines = [
        "",
        "--redis-host r --redis-port 6380 --role master --heartbeat-interval 0.5 --base-pub-port 5560 --shm-dir /d",
        "--hostname h --advertise-ip 10.0.0.1 --bind 0.0.0.0 --control /c --read-only --allow 10.0.0.0/8 --allow 10.1.2.3",
        "--poll spin --cpu 0,2-3 --rt-priority 5 --lock-memory --log-level debug --stdio --transport tcp",
        "list --json",
        "get rts wfs --bidirectional --timeout 2.5 --json",
        "release rts wfs",
        "cleanup --ttl 60",
        "discover --port 6379 --timeout 0.3 --workers 64 --json",
        "shm create a --shape 8x6 --dtype float32 --depth 4 --keywords 3 --keyword gain=0.5",
        "shm write a --fill -1.5 --rate 100 --count 10",
        "shm read a --raw - --wait --timeout 1",
        "bench --json",
        "shm --help",
    ];
    let words = |line: &str| line.split(' ').collect::<Vec<_>>().join("\0").into_bytes();
    let mut known: Vec<Vec<u8>> =
        FLAGS.iter().map(|flag| format!("\0--{}\0", flag.long).into_bytes()).collect();
    known.extend(COMMANDS.iter().map(|row| [b"\0", &words(row.words)[..], b"\0"].concat()));
    known.extend(pieces(&["\0", "=", "--", "-", "x", "/", "..", "é", "\n", "1e400", "-1", "inf", "NaN"]));
    known.push(b"\xff\xfe".to_vec());
    let seeds = lines.iter().map(|line| words(line)).collect();
    let mutations = Mutations { target: "flags", seeds, pieces: known, bytes_max: 2_000 };
    mutations.run(|input| {
        let words: Vec<OsString> =
            input.split(|byte| *byte == 0).map(|word| OsString::from_vec(word.to_vec())).collect();
        let cost = most_allocated(|| match parse(words) {
            Ok(Parsed::Run(mut typed, _)) => {
                typed.redis_password_file = None; // would be read, whatever it is
                if let Err(why) = typed.settings(None) {
                    // A flag may be of what this build has not.
                    let left_out = !cfg!(feature = "redis-tls") && typed.redis_tls;
                    let wanted = if left_out { ExitCode::NotImplemented } else { ExitCode::Usage };
                    assert!([wanted, ExitCode::Usage].contains(&why.exit_code()), "{why}");
                }
            }
            Ok(_) => {}
            Err(why) => assert_eq!(why.exit_code(), ExitCode::Usage, "{why}"),
        });
        assert!(cost <= 64 * input.len() + CONSTANT_BYTES, "{cost} of {}", input.len());
    });
}
