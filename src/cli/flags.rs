//! The one table of flags. Parsing, defaults, `--help`, the README's table and the tests all come from it.

use super::commands::Name;
use super::typed::{self, Format, Typed, on, put, some};
use crate::bench::plan::parse_size;
use crate::dtype::{DType, Shape};
use crate::limits;
use crate::log::Level;
use crate::naming;
use crate::settings::{Cidr, Polling, Role, Transport, cores};
use std::time::Duration;

/// What a flag's value is when nobody typed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Default {
    /// There is none.
    None,
    /// This text, read by the flag's own setter.
    Value(&'static str),
    /// Found out later; this text says how.
    Text(&'static str),
}

/// One row.
pub struct Flag {
    /// Its name, without the dashes.
    pub long: &'static str,
    /// What stands for its value in help texts; `None`: it is a switch.
    pub value: Option<&'static str>,
    /// Without it.
    pub default: Default,
    /// The commands whose help lists it. A daemon's flags are accepted by every command, so that one set of
    /// options can be handed to all of them.
    pub commands: &'static [Name],
    /// One sentence.
    pub help: &'static str,
    /// Reads a value, typed or default. The error says what is wrong, without naming flag or value.
    pub set: fn(&mut Typed, &str) -> std::result::Result<(), String>,
}

impl Flag {
    /// May this command have it?
    pub fn accepted_by(&self, command: Name) -> bool {
        self.commands.contains(&command) || self.commands.contains(&Name::Daemon)
    }
}

use Name::*;

const REDIS: &[Name] = &[Daemon, List, Get, Release, Status, Deregister, Cleanup, Bench];
const LOGIN: &[Name] = &[Daemon, Discover, List, Get, Release, Status, Deregister, Cleanup, Bench];
const LOCAL: &[Name] = &[Daemon, Get, Release, Status, Deregister, Cleanup, Bench];
const FILES: &[Name] = &[
    Daemon, Get, Release, Status, Deregister, Cleanup, Bench, ShmList, ShmInfo, ShmCreate, ShmWrite, ShmRead,
    ShmWatch, ShmRm,
];
const ALL: &[Name] = &[
    Daemon, Discover, List, Get, Release, Status, Deregister, Cleanup, Bench, ShmList, ShmInfo, ShmCreate,
    ShmWrite, ShmRead, ShmWatch, ShmRm,
];

const fn row(
    long: &'static str,
    value: Option<&'static str>,
    default: Default,
    commands: &'static [Name],
    help: &'static str,
    set: fn(&mut Typed, &str) -> std::result::Result<(), String>,
) -> Flag {
    Flag { long, value, default, commands, help, set }
}

/// Every flag, in the order of the help texts.
#[rustfmt::skip] // a table
pub static FLAGS: &[Flag] = &[
    row("redis-host", Some("HOST"), Default::Value("localhost"), REDIS,
        "Redis' host name or address",
        |t, v| put(&mut t.redis_host, typed::word(v))),
    row("redis-port", Some("PORT"), Default::Value("6379"), REDIS,
        "Redis' port",
        |t, v| put(&mut t.redis_port, typed::port(v))),
    row("redis-username", Some("NAME"), Default::None, LOGIN,
        "Redis' user, for servers with access lists",
        |t, v| some(&mut t.redis_username, typed::word(v))),
    row("redis-password-file", Some("FILE"), Default::Text("$REDISCLI_AUTH"), LOGIN,
        "file whose first line is Redis' password, which never stands on a command line",
        |t, v| some(&mut t.redis_password_file, typed::path(v))),
    row("redis-tls", None, Default::None, LOGIN,
        "speak TLS with Redis and verify its certificate; the static binary has it, others if built with --features redis-tls",
        |t, _| on(&mut t.redis_tls)),
    row("redis-ca", Some("FILE"), Default::Text("the authorities of this machine"), LOGIN,
        "certificates (PEM) of the authorities that may have signed Redis' certificate",
        |t, v| some(&mut t.redis_ca, typed::path(v))),
    row("redis-cert", Some("FILE"), Default::None, LOGIN,
        "our own certificate (PEM), for a Redis that asks for one, with its chain",
        |t, v| some(&mut t.redis_cert, typed::path(v))),
    row("redis-key", Some("FILE"), Default::None, LOGIN,
        "the private key (PEM) of that certificate",
        |t, v| some(&mut t.redis_key, typed::path(v))),
    row("role", Some("master|minion"), Default::Value("auto"), &[Daemon],
        "this machine's role; auto: master if Redis knows no live master, else minion",
        |t, v| put(&mut t.role, role(v))),
    row("heartbeat-interval", Some("SECONDS"), Default::Value("30"), &[Daemon],
        "between two signs of life in the registry, fractions allowed",
        |t, v| put(&mut t.heartbeat_interval,
            typed::seconds(v, limits::HEARTBEAT_INTERVAL_MIN, limits::HEARTBEAT_INTERVAL_MAX))),
    row("base-pub-port", Some("PORT"), Default::Value("5560"), &[Daemon],
        "first port tried for a publisher; each published segment has its own",
        |t, v| put(&mut t.base_pub_port, typed::port(v))),
    row("discover", None, Default::None, &[Daemon],
        "scan the local subnets for Redis servers, print them and end",
        |t, _| on(&mut t.discover)),
    row("shm-dir", Some("DIR"), Default::Value("/tmp"), FILES,
        "directory of the segments and mirrors; it must exist",
        |t, v| put(&mut t.shm_dir, typed::path(v))),
    row("hostname", Some("NAME"), Default::Text("the host's"), LOCAL,
        "this machine's name in the registry and in the name of the control socket",
        |t, v| some(&mut t.hostname, naming::host_name(v).map(str::to_owned))),
    row("advertise-ip", Some("IP"), Default::Text("the local address of the connection to Redis"), &[Daemon],
        "this machine's address in the registry: the one that other machines connect to",
        |t, v| some(&mut t.advertise_ip, typed::own_ip(v))),
    row("bind", Some("ADDR"), Default::Text("the advertised IP"), &[Daemon],
        "where publishers listen; 0.0.0.0 for all interfaces",
        |t, v| some(&mut t.bind, typed::ip(v))),
    row("control", Some("PATH"), Default::Text("<shm-dir>/.daoserver-<hostname>.sock"), LOCAL,
        "the daemon's control socket",
        |t, v| some(&mut t.control, typed::path(v))),
    row("read-only", None, Default::None, &[Daemon],
        "refuse every write from another machine",
        |t, _| on(&mut t.read_only)),
    row("allow", Some("CIDR"), Default::Text("all"), &[Daemon],
        "who may subscribe or write, such as 192.168.64.0/24 or one address; repeatable",
        |t, v| { t.allow.push(Cidr::parse(v)?); Ok(()) }),
    row("transport", Some("auto|zmq|tcp"), Default::Value("auto"), &[Daemon],
        "how frames travel between two daoservers; auto: TCP where the other side offers it",
        |t, v| put(&mut t.transport, Transport::parse(v).ok_or("it is none of auto, zmq, tcp".into()))),
    row("poll", Some("spin|adaptive|sleep"), Default::Value("adaptive"), &[Daemon],
        "how a stream waits; spin: always awake, takes a core a stream; adaptive: sleeps until a frame is due; sleep: cheapest",
        |t, v| put(&mut t.poll, Polling::parse(v).ok_or("it is none of spin, adaptive, sleep".into()))),
    row("cpu", Some("LIST"), Default::None, &[Daemon],
        "cores such as 2,3,5-7 to which the threads of streams are pinned, one each in turn",
        |t, v| put(&mut t.cores, cores(v))),
    row("rt-priority", Some("N"), Default::None, &[Daemon],
        "priority of these threads, 1 to 99: SCHED_FIFO, before everything that has none",
        |t, v| some(&mut t.rt_priority, typed::whole(v, 1, 99))),
    row("lock-memory", None, Default::None, &[Daemon],
        "keep the daemon in memory and touch its pages before they are needed",
        |t, _| on(&mut t.lock_memory)),
    row("stdio", None, Default::None, &[Daemon],
        "the control protocol on standard input and output; nothing is registered before its start, and all ends with it",
        |t, _| on(&mut t.stdio)),
    row("log-level", Some("error|warn|info|debug"), Default::Value("info"), ALL,
        "least serious lines that are logged, on standard error",
        |t, v| some(&mut t.log_level, Level::parse(v).ok_or_else(log_levels))),

    row("bidirectional", None, Default::None, &[Get],
        "what is written into the mirror goes back to the owner's segment as well",
        |t, _| on(&mut t.bidirectional)),
    row("timeout", Some("S"), Default::Value("30"), &[Get],
        "longest wait for the owner to publish, seconds",
        |t, v| some(&mut t.timeout, typed::wait(v))),
    row("ttl", Some("S"), Default::Value("120"), &[Cleanup],
        "machines silent for longer are removed, seconds",
        |t, v| some(&mut t.ttl, typed::seconds(v, Duration::ZERO, limits::COMMAND_TIMEOUT_MAX))),
    row("port", Some("P"), Default::Text("--redis-port's"), &[Discover],
        "the port that is tried on every address",
        |t, v| some(&mut t.port, typed::port(v))),
    row("timeout", Some("S"), Default::Value("0.3"), &[Discover],
        "longest wait for one address, seconds",
        |t, v| some(&mut t.timeout,
            typed::seconds(v, Duration::from_millis(1), limits::DISCOVERY_TIMEOUT_MAX))),
    row("workers", Some("N"), Default::Value("256"), &[Discover],
        "addresses tried at the same time, at most 256: a /24 at once",
        |t, v| put(&mut t.workers, typed::whole(v, 1, limits::DISCOVERY_WORKERS_MAX))),

    row("to", Some("HOST"), Default::None, &[Bench],
        "measure to another machine and back, between the daemons that run",
        |t, v| some(&mut t.to, naming::host_name(v).map(str::to_owned))),
    row("timeout", Some("S"), Default::Value("30"), &[Bench],
        "with --to: longest wait for HOST to publish, seconds",
        |t, v| some(&mut t.timeout, typed::wait(v))),
    row("sizes", Some("LIST"), Default::Text("1k,64k,1M,16M; with --to to 1M"), &[Bench],
        "bytes of the frames, from 16 to 64M, with --to to 16M, with commas between",
        |t, v| put(&mut t.sizes_bytes, v.split(',').map(parse_size).collect())),
    row("runs", Some("N"), Default::Text("5"), &[Bench],
        "runs of each measurement; their median counts",
        |t, v| some(&mut t.runs, typed::whole(v, 1, 100))),
    row("seconds", Some("S"), Default::Text("1"), &[Bench],
        "of each run",
        |t, v| some(&mut t.seconds, typed::seconds(v, Duration::from_millis(10), Duration::from_secs(60)))),
    row("quick", None, Default::None, &[Bench],
        "64k frames alone and two short runs, unless asked for otherwise",
        |t, _| on(&mut t.quick)),

    row("shape", Some("AxB"), Default::None, &[ShmCreate],
        "axes in NumPy's order, 1 to 3 of them",
        |t, v| some(&mut t.shape, Shape::parse(v))),
    row("dtype", Some("TYPE"), Default::None, &[ShmCreate],
        "NumPy's name of the element type: (u)int8 to (u)int64, float32, float64, complex64, complex128",
        |t, v| some(&mut t.dtype, DType::from_name(v).ok_or_else(dtypes))),
    row("depth", Some("N"), Default::Value("1"), &[ShmCreate],
        "frames in the ring; 1 is no ring",
        |t, v| put(&mut t.depth, typed::whole(v, 1, limits::RING_DEPTH_MAX))),
    row("layout", Some("NAME"), Default::Text("the newest local segment's, else fifo"), &[ShmCreate],
        "generation of the file format",
        |t, v| some(&mut t.layout, typed::word(v))),
    row("keywords", Some("N"), Default::Value("0"), &[ShmCreate],
        "keywords to make room for, at least those given",
        |t, v| put(&mut t.keywords, typed::whole(v, 0, limits::KEYWORDS_MAX))),
    row("keyword", Some("NAME=VALUE"), Default::None, &[ShmCreate],
        "a keyword: integer, float or text of at most 16 bytes; repeatable",
        |t, v| { t.keyword.push(typed::keyword(v)?); Ok(()) }),
    row("raw", Some("FILE|-"), Default::None, &[ShmWrite],
        "frames as bytes, one after the other; - is standard input",
        |t, v| some(&mut t.raw_file, typed::path(v))),
    row("fill", Some("V"), Default::Text("each frame's counter"), &[ShmWrite],
        "one value for all elements; the real part of complex ones",
        |t, v| some(&mut t.fill, typed::word(v))),
    row("rate", Some("HZ"), Default::None, &[ShmWrite],
        "frames a second; without --count until interrupted, or to the end of --raw",
        |t, v| some(&mut t.rate_hz, typed::rate(v))),
    row("count", Some("N"), Default::None, &[ShmWrite],
        "frames to write; a file begins again at its end",
        |t, v| some(&mut t.count, typed::whole(v, 1, u64::MAX))),
    row("text", None, Default::None, &[ShmRead],
        "numbers in rows, as NumPy's loadtxt reads them; this is what is printed without a flag",
        |t, _| { t.format = Format::Text; Ok(()) }),
    row("raw", None, Default::None, &[ShmRead],
        "the frame's bytes, nothing else",
        |t, _| { t.format = Format::Raw; Ok(()) }),
    row("json", None, Default::None, &[ShmRead],
        "an object with the frame as nested lists; complex elements are [re, im]; NaN and infinity are null",
        |t, _| { t.format = Format::Json; Ok(()) }),
    row("wait", None, Default::None, &[ShmRead],
        "wait for the next new frame",
        |t, _| on(&mut t.wait)),
    row("count", Some("N"), Default::Text("1"), &[ShmRead],
        "with --wait: the next N new frames, one after the other; with --json, a line each",
        |t, v| some(&mut t.count, typed::whole(v, 1, u64::MAX))),
    // The slot of `shm write --raw FILE`, which no reading command has.
    row("times", Some("FILE"), Default::None, &[ShmRead],
        "writes a line a frame: its counter, and when it was written, in ns since 1970",
        |t, v| some(&mut t.times, typed::path(v))),
    row("timeout", Some("S"), Default::Value("30"), &[ShmRead],
        "longest wait for each of these frames, seconds",
        |t, v| some(&mut t.timeout, typed::wait(v))),

    row("json", None, Default::None, &[Discover, List, Get, Status, Bench, ShmList, ShmInfo],
        "print JSON",
        |t, _| on(&mut t.json)),
    row("help", None, Default::None, ALL,
        "print this help",
        |t, _| on(&mut t.help)),
    row("version", None, Default::None, &[Daemon],
        "print the version",
        |t, _| on(&mut t.version)),
];

fn log_levels() -> String {
    "it is none of error, warn, info, debug".into()
}

fn dtypes() -> String {
    format!("it is none of {}", DType::names())
}

fn role(text: &str) -> std::result::Result<Option<Role>, String> {
    match text {
        "auto" => Ok(None),
        _ => Role::parse(text).map(Some).ok_or("it is none of master, minion, auto".into()),
    }
}

/// The rows of this name: one, or several of different commands.
pub fn named(long: &str) -> impl Iterator<Item = &'static Flag> {
    FLAGS.iter().filter(move |flag| flag.long == long)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_goes_through_its_own_setter() {
        for flag in FLAGS {
            if let Default::Value(text) = flag.default {
                assert_eq!((flag.set)(&mut Typed::default(), text), Ok(()), "--{}", flag.long);
            }
        }
    }

    #[test]
    fn no_command_has_two_flags_of_one_name() {
        for &command in ALL {
            for flag in FLAGS {
                let rows = named(flag.long).filter(|row| row.accepted_by(command)).count();
                assert!(rows <= 1, "--{} of {command:?}", flag.long);
            }
        }
    }

    #[test]
    fn every_flag_of_the_daemon_is_there() {
        let mut wanted: Vec<&str> = "redis-host redis-port role heartbeat-interval base-pub-port discover \
            redis-username redis-password-file redis-tls redis-ca redis-cert redis-key shm-dir hostname advertise-ip bind read-only allow transport poll cpu rt-priority lock-memory control stdio log-level help \
            version"
            .split_whitespace()
            .collect();
        let mut has: Vec<&str> =
            FLAGS.iter().filter(|flag| flag.commands.contains(&Daemon)).map(|flag| flag.long).collect();
        wanted.sort_unstable();
        has.sort_unstable();
        assert_eq!(has, wanted);
    }

    #[test]
    fn values_out_of_bounds_are_refused_by_their_setters() {
        let bad = [
            ("redis-port", "0"),
            ("redis-port", "65536"),
            ("redis-host", ""),
            ("redis-host", "a b"),
            ("role", "king"),
            ("heartbeat-interval", "0"),
            ("heartbeat-interval", "-1"),
            ("heartbeat-interval", "nan"),
            ("heartbeat-interval", "1e300"),
            ("hostname", "a/b"),
            ("advertise-ip", "0.0.0.0"),
            ("bind", "localhost"),
            ("log-level", "loud"),
            ("poll", "busy"),
            ("cpu", "1,x"),
            ("rt-priority", "0"),
            ("rt-priority", "100"),
            ("workers", "257"),
            ("shape", "8x0"),
            ("dtype", "float16"),
            ("depth", "0"),
            ("keyword", "=1"),
            ("rate", "0"),
            ("rate", "inf"),
            ("count", "0"),
        ];
        for (long, value) in bad {
            let flag = named(long).next().unwrap();
            assert!((flag.set)(&mut Typed::default(), value).is_err(), "--{long} {value}");
        }
    }
}
