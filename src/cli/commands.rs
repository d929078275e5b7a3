//! The table of commands, and what each was asked to do once its operands and flags are read.

use super::typed::{Format, Typed};
use crate::dtype::{DType, Shape};
use crate::error::{Error, Result};
use crate::naming;
use std::path::PathBuf;
use std::time::Duration;

/// Which command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Name {
    Daemon,
    List,
    Get,
    Release,
    Status,
    Deregister,
    Cleanup,
    Discover,
    Bench,
    ShmList,
    ShmInfo,
    ShmCreate,
    ShmWrite,
    ShmRead,
    ShmWatch,
    ShmRm,
}

/// One row of the table.
pub struct Row {
    /// Which command.
    pub name: Name,
    /// The word or words that stand for it; the daemon has none.
    pub words: &'static str,
    /// Its operands, as help texts give them; with `...` the last may come again.
    pub operands: &'static [&'static str],
    /// What it does, one sentence without its point.
    pub about: &'static str,
    /// What else one should know; may be empty.
    pub more: &'static str,
    /// Whole command lines.
    pub examples: &'static [&'static str],
}

const fn row(
    name: Name,
    words: &'static str,
    operands: &'static [&'static str],
    about: &'static str,
    more: &'static str,
    examples: &'static [&'static str],
) -> Row {
    Row { name, words, operands, about, more, examples }
}

/// Every command, in the order of the help text.
#[rustfmt::skip] // a table
pub static COMMANDS: &[Row] = &[
    row(Name::Daemon, "", &[],
        "run the daemon: register this machine's segments, stream them to whoever asks, keep mirrors",
        "", &["daoserver --redis-host 192.168.64.2", "daoserver --role master --log-level debug"]),
    row(Name::List, "list", &[],
        "print the machines and segments that Redis knows",
        "Asks Redis alone: no daemon need run on this machine.",
        &["daoserver list", "daoserver list --json --redis-host 192.168.64.2"]),
    row(Name::Get, "get", &["HOST", "SHM"],
        "mirror a segment of another machine here and print the mirror's path",
        "The local daemon makes the mirror and keeps it until `release`, over restarts. Returns with the \
         first frame, or after 2 s without one.",
        &["daoserver get rts-machine wfs", "daoserver get rts-machine dm --timeout 5 --json"]),
    row(Name::Release, "release", &["HOST", "SHM"],
        "end a mirror that `get` made",
        "Removes the mirror's file and semaphores. A reader that has it mapped keeps its last frame. HOST and SHM \
         are those of `get`.",
        &["daoserver release rts-machine wfs"]),
    row(Name::Status, "status", &[],
        "print what the local daemon publishes and mirrors",
        "Lost frames have a cause: lapped, the writer overwrote them before the owner had them; queue_full, the \
         network or a mirror was too slow; transport, they went missing on the way; mirror_busy, the mirror \
         skipped them for a newer one.", &["daoserver status", "daoserver status --json"]),
    row(Name::Deregister, "deregister", &["HOST"],
        "remove a machine from Redis",
        "Only the master's daemon may remove another machine.", &["daoserver deregister old-machine"]),
    row(Name::Cleanup, "cleanup", &[],
        "remove the machines that have been silent for too long from Redis",
        "Only the master's daemon may do it; it does so by itself once a minute.",
        &["daoserver cleanup --ttl 60"]),
    row(Name::Discover, "discover", &[],
        "scan the local subnets for Redis servers",
        "Tries every address of the /24 of each network interface that is up.",
        &["daoserver discover", "daoserver discover --timeout 1 --workers 254 --json"]),
    row(Name::Bench, "bench", &[],
        "measure latency, losses and rates of a stream on this machine, beside its floors",
        "Starts two daemons and a redis-server of its own in --shm-dir, and leaves nothing behind; with --redis-host or \
         --redis-port it uses that Redis. Floors are a copy in memory, a bare TCP hop and a bare libzmq hop, measured \
         in turns with the daemons. Takes some minutes, with --quick some ten seconds; the machine should be quiet. \
         With --to it starts nothing: the daemons of this machine and of HOST must run. What the local one writes into a \
         mirror goes to HOST and comes back, so round trips need one clock; one-way times have the error with which the \
         two clocks are compared.",
        &["daoserver bench", "daoserver bench --quick --json", "daoserver bench --sizes 1k,2M --runs 7 --seconds 2",
          "daoserver bench --to rts-machine"]),
    row(Name::ShmList, "shm list", &[],
        "print the segments of this machine, mirrors too, and what is wrong with bad ones",
        "", &["daoserver shm list", "daoserver shm list --json --shm-dir /run/dao"]),
    row(Name::ShmInfo, "shm info", &["NAME"],
        "print what a segment says about itself",
        "NAME is a name in --shm-dir, or a path.",
        &["daoserver shm info wfs", "daoserver shm info /tmp/wfs.im.shm --json"]),
    row(Name::ShmCreate, "shm create", &["NAME"],
        "create a segment with its semaphores",
        "NAME is a name in --shm-dir, or a path. --shape and --dtype must be given. A segment of \
         that name is replaced.",
        &["daoserver shm create wfs --shape 64x64 --dtype uint16",
          "daoserver shm create dm --shape 140 --dtype float32 --depth 4 --keyword gain=0.5"]),
    row(Name::ShmWrite, "shm write", &["NAME"],
        "write frames into a segment",
        "NAME is a name in --shm-dir, or a path. One frame, unless --raw holds more or --rate or --count asks \
         for more.",
        &["daoserver shm write dm --fill 0", "daoserver shm write wfs --rate 1000 --count 5000",
          "daoserver shm write wfs --raw frames.bin --rate 500"]),
    row(Name::ShmRead, "shm read", &["NAME"],
        "print a segment's newest frame, or the next ones",
        "NAME is a name in --shm-dir, or a path. With --count, the frames that were written meanwhile and could not be \
         had are counted on standard error at the end.",
        &["daoserver shm read dm", "daoserver shm read wfs --wait --timeout 5 --raw > frame.bin",
          "daoserver shm read wfs --wait --count 1000 --raw --times times.txt > frames.bin"]),
    row(Name::ShmWatch, "shm watch", &["NAME"],
        "print rate, age, smallest, largest and mean value, once a second until interrupted",
        "NAME is a name in --shm-dir, or a path.", &["daoserver shm watch wfs"]),
    row(Name::ShmRm, "shm rm", &["NAME..."],
        "remove segments with their semaphores",
        "NAME is a name in --shm-dir, or a path.", &["daoserver shm rm wfs dm"]),
];

impl Name {
    /// This command's row.
    pub fn row(self) -> &'static Row {
        // Every name has its row: the test below counts them.
        COMMANDS.iter().find(|row| row.name == self).unwrap_or(&COMMANDS[0])
    }

    /// `daoserver get`, as it is typed.
    pub fn typed(self) -> String {
        format!("daoserver {}", self.row().words).trim_end().to_owned()
    }
}

/// What was asked for.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)] // the fields are the flags and operands of their names
pub enum Command {
    Daemon,
    List { json: bool },
    Get { host: String, shm: String, bidirectional: bool, timeout: Duration, json: bool },
    Release { host: String, shm: String },
    Status { json: bool },
    Bench(Bench),
    Deregister { host: String },
    Cleanup { ttl: Duration },
    Discover(Discover),
    Shm(Shm),
}

/// What a bench is to measure; what is not asked for is the bench's own choice.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Bench {
    pub sizes_bytes: Vec<usize>,
    pub runs: Option<usize>,
    pub seconds: Option<Duration>,
    pub quick: bool,
    /// Another machine, to which and back it is measured.
    pub to: Option<String>,
    /// Longest wait for that one.
    pub timeout: Duration,
    /// Of a Redis that was named.
    pub redis_flags: Vec<String>,
    pub json: bool,
}

/// A scan of the local subnets.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Discover {
    pub port: u16,
    pub timeout: Duration,
    pub workers: usize,
    pub json: bool,
}

/// What is to be done to the segments of this machine.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Shm {
    List { json: bool },
    Info { segment: PathBuf, json: bool },
    Create(Create),
    Write(Write),
    Read(Read),
    Watch { segment: PathBuf },
    Rm { segments: Vec<PathBuf> },
}

/// A new segment.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Create {
    pub segment: PathBuf,
    pub shape: Shape,
    pub dtype: DType,
    pub depth: u32,
    pub layout: Option<String>,
    pub keywords: u16,
    pub keyword: Vec<(String, String)>,
}

/// Frames to write.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Write {
    pub segment: PathBuf,
    pub source: Source,
    pub rate_hz: Option<f64>,
    pub count: Option<u64>,
}

/// Frames to read.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Read {
    pub segment: PathBuf,
    pub format: Format,
    /// For the next new frame, and so for each.
    pub wait: Option<Duration>,
    pub count: u64,
    pub times: Option<PathBuf>,
}

/// Where frames come from.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// Bytes of a file; `-` is standard input.
    Raw(PathBuf),
    /// One value for all elements.
    Fill(String),
    /// Each frame's own number.
    Number,
}

/// Largest frame of `bench --to`.
const BENCH_TO_MAX: usize = crate::limits::BENCH_FRAME_BYTES_MAX;

/// The longest wait of a scan that was asked for with `--discover`, as the table's default of `discover`.
const DISCOVER_TIMEOUT: Duration = Duration::from_millis(300);

fn usage(command: Name, why: impl std::fmt::Display) -> Error {
    Error::usage(format!("{why}; see {} --help", command.typed()))
}

impl Command {
    /// Puts operands and flags together. Which flags may stand with the command has been checked.
    pub fn new(name: Name, operands: &[String], typed: &Typed) -> Result<Command> {
        check_count(name, operands)?;
        let operand = |position: usize| operands.get(position).map_or("", String::as_str);
        let host = || naming::host_name(operand(0)).map(str::to_owned).map_err(|why| usage(name, why));
        let shm = || naming::normalized_segment_name(operand(1)).map_err(|why| usage(name, why));
        let segment = |position: usize| segment_path(name, operand(position), typed);
        let json = typed.json;
        let timeout = typed.timeout.unwrap_or(DISCOVER_TIMEOUT);
        Ok(match name {
            Name::Daemon if typed.discover => Command::Discover(Discover {
                port: typed.redis_port,
                timeout: DISCOVER_TIMEOUT,
                workers: crate::limits::DISCOVERY_WORKERS_MAX,
                json: false,
            }),
            Name::Daemon => Command::Daemon,
            Name::List => Command::List { json },
            Name::Get => {
                Command::Get { host: host()?, shm: shm()?, bidirectional: typed.bidirectional, timeout, json }
            }
            Name::Release => Command::Release { host: host()?, shm: shm()? },
            Name::Status => Command::Status { json },
            Name::Bench
                if typed.to.is_some() && typed.sizes_bytes.iter().any(|&bytes| bytes > BENCH_TO_MAX) =>
            {
                return Err(usage(name, "--to has frames of at most 16M"));
            }
            Name::Bench => Command::Bench(Bench {
                sizes_bytes: typed.sizes_bytes.clone(),
                runs: typed.runs,
                seconds: typed.seconds,
                quick: typed.quick,
                to: typed.to.clone(),
                timeout,
                redis_flags: typed.redis_flags(),
                json,
            }),
            Name::Deregister => Command::Deregister { host: host()? },
            Name::Cleanup => Command::Cleanup { ttl: typed.ttl.unwrap_or(crate::limits::MACHINE_TTL) },
            Name::Discover => Command::Discover(Discover {
                port: typed.port.unwrap_or(typed.redis_port),
                timeout,
                workers: typed.workers,
                json,
            }),
            Name::ShmList => Command::Shm(Shm::List { json }),
            Name::ShmInfo => Command::Shm(Shm::Info { segment: segment(0)?, json }),
            Name::ShmCreate => Command::Shm(Shm::Create(Create {
                segment: segment(0)?,
                shape: typed.shape.ok_or_else(|| usage(name, "shm create needs --shape"))?,
                dtype: typed.dtype.ok_or_else(|| usage(name, "shm create needs --dtype"))?,
                depth: typed.depth,
                layout: typed.layout.clone(),
                keywords: typed.keywords,
                keyword: typed.keyword.clone(),
            })),
            Name::ShmWrite => Command::Shm(Shm::Write(Write {
                segment: segment(0)?,
                source: match (&typed.raw_file, &typed.fill) {
                    (Some(_), Some(_)) => return Err(usage(name, "--raw and --fill exclude each other")),
                    (Some(path), None) => Source::Raw(path.clone()),
                    (None, Some(value)) => Source::Fill(value.clone()),
                    (None, None) => Source::Number,
                },
                rate_hz: typed.rate_hz,
                count: typed.count,
            })),
            Name::ShmRead if typed.count.is_some() && !typed.wait => {
                return Err(usage(name, "--count needs --wait: it is the next so many frames"));
            }
            Name::ShmRead => Command::Shm(Shm::Read(Read {
                segment: segment(0)?,
                format: typed.format,
                wait: typed.wait.then_some(timeout),
                count: typed.count.unwrap_or(1),
                times: typed.times.clone(),
            })),
            Name::ShmWatch => Command::Shm(Shm::Watch { segment: segment(0)? }),
            Name::ShmRm => Command::Shm(Shm::Rm {
                segments: (0..operands.len()).map(segment).collect::<Result<Vec<_>>>()?,
            }),
        })
    }
}

/// Are there as many operands as the table says?
fn check_count(name: Name, operands: &[String]) -> Result<()> {
    let row = name.row();
    let repeats = row.operands.last().is_some_and(|last| last.ends_with("..."));
    if operands.len() < row.operands.len() {
        return Err(usage(name, format_args!("{} needs {}", row.words, row.operands.join(" "))));
    }
    match operands.get(row.operands.len()) {
        Some(extra) if !repeats && row.operands.is_empty() => {
            Err(usage(name, format_args!("{} takes no operand, not '{extra}'", row.words)))
        }
        Some(extra) if !repeats => {
            let all = row.operands.join(" ");
            Err(usage(name, format_args!("{} takes {all}, and '{extra}' is too much", row.words)))
        }
        _ => Ok(()),
    }
}

/// The file that an operand means: a path if it has a slash, else a name in the segment directory.
fn segment_path(command: Name, operand: &str, typed: &Typed) -> Result<PathBuf> {
    if operand.contains('/') {
        return Ok(PathBuf::from(operand));
    }
    let name = operand.strip_suffix(naming::SEGMENT_SUFFIX).unwrap_or(operand);
    let name = naming::segment_name(name).map_err(|why| usage(command, why))?;
    Ok(naming::segment_path(&typed.shm_dir, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_finds_its_own_row() {
        for row in COMMANDS {
            assert_eq!(row.name.row().words, row.words);
            assert!(!row.examples.is_empty() && !row.about.ends_with('.'), "{}", row.words);
            assert!(row.examples.iter().all(|line| line.starts_with(&row.name.typed())), "{}", row.words);
        }
    }

    #[test]
    fn the_scan_has_the_same_defaults_as_a_flag_and_as_a_command() {
        let parse = |line: &str| super::super::parse::parse(line.split(' ').map(Into::into)).unwrap();
        let (super::super::parse::Parsed::Run(_, a), super::super::parse::Parsed::Run(_, b)) =
            (parse("--discover"), parse("discover"))
        else {
            panic!("both are commands")
        };
        assert_eq!(a, b);
    }
}
