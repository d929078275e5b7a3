//! What the bench starts: a Redis, and pairs of daemons, each in a private directory. All of it goes when it is
//! dropped, and when this process dies.

use super::plan::{Case, Plan, source_depth};
use crate::control::client;
use crate::dtype::{DType, Shape};
use crate::error::{Error, Kind, Result};
use crate::naming::segment_path;
use crate::os::process;
use crate::os::threads::Stop;
use crate::shm::{self, Access, Layout, Segment, SegmentSpec, Writer};
use crate::wire::control::{Get, Op};
use serde_json::Value;
use std::fmt::Display;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a child may take to answer.
const READY_WITHIN: Duration = Duration::from_secs(10);
/// How long a daemon that was told to stop may take.
const STOPPED_WITHIN: Duration = Duration::from_secs(4);

/// What the bench could not do, in a sentence.
pub fn failed(what: &str) -> impl Fn(&dyn Display) -> Error {
    move |why| Error::new(Kind::Os, format!("The bench cannot {what}: {why}."))
}

/// An error once somebody has pressed Ctrl-C.
pub fn go_on(stop: &Stop) -> Result<()> {
    if stop.is_set() { Err(Error::new(Kind::Os, "The bench was interrupted.")) } else { Ok(()) }
}

/// Asks until it is so, or the time is over, or Ctrl-C.
fn until<T>(stop: &Stop, late: &str, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + READY_WITHIN;
    loop {
        if let Some(found) = ask()? {
            return Ok(found);
        }
        if Instant::now() > deadline {
            return Err(Error::new(Kind::Timeout, late));
        }
        stop.wait(Duration::from_millis(5));
        go_on(stop)?;
    }
}

/// A port that nobody listens on now.
fn free_port() -> Result<u16> {
    let bound = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
    Ok(bound.map_err(|why| failed("find a free port")(&why))?.port())
}

/// A private directory. What lies in it when it goes, segments with their semaphores too, goes with it.
struct Place(PathBuf);

impl Place {
    fn new(parent: &Path, name: &str) -> Result<Place> {
        let path = parent.join(name);
        let what = format!("make the directory {}", path.display());
        fs::create_dir(&path).map_err(|why| failed(&what)(&why))?;
        Ok(Place(path))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for entry in fs::read_dir(&self.0).into_iter().flatten().flatten() {
            let _ = shm::remove(&entry.path()); // refuses what is no segment
        }
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A process that is killed when it is dropped.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// In a process group of its own, so that Ctrl-C reaches the bench alone, which then ends its children in order.
fn start(command: &mut Command, log: &Path) -> std::io::Result<Killed> {
    let log = File::create(log)?;
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
    process::end_with_parent(command);
    Ok(Killed(command.spawn()?))
}

/// The directory of a bench, and the Redis that it uses.
pub struct Ground {
    // Fields are dropped in this order: the process before its directory.
    _redis: Option<Killed>,
    redis_flags: Vec<String>,
    place: Place,
    /// Pairs so far: each has names of its own.
    pairs: u32,
}

impl Ground {
    /// Starts a Redis, unless one was named.
    pub fn new(plan: &Plan, stop: &Stop) -> Result<Ground> {
        let place = Place::new(&plan.shm_dir, &format!("daoserver-bench{}", std::process::id()))?;
        if !plan.redis_flags.is_empty() {
            return Ok(Ground { _redis: None, redis_flags: plan.redis_flags.clone(), place, pairs: 0 });
        }
        let port = free_port()?;
        let mut command = Command::new("redis-server");
        command.args([
            "--bind",
            "127.0.0.1",
            "--port",
            &port.to_string(),
            "--save",
            "",
            "--appendonly",
            "no",
            // Its housekeeping, ten times a second unless told otherwise, takes a core for longer than a small frame is on
            // its way; where it matters, Redis runs on another machine.
            "--hz",
            "1",
        ]);
        command.arg("--dir").arg(&place.0);
        let log = place.0.join("redis.log");
        let mut redis = start(&mut command, &log).map_err(|why| match why.kind() {
            ErrorKind::NotFound => Error::new(
                Kind::Os,
                "The bench needs redis-server, which is not on the PATH: install it (Debian: apt install \
                 redis-server), or name a running Redis with --redis-host.",
            ),
            _ => failed("start redis-server")(&why),
        })?;
        until(stop, "The bench's redis-server does not answer.", || {
            if redis.0.try_wait().ok().flatten().is_some() {
                return Err(failed("start redis-server")(&last_line(&log)));
            }
            Ok(answers(port).then_some(()))
        })?;
        let redis_flags = ["--redis-host", "127.0.0.1", "--redis-port", &port.to_string()].map(str::to_owned);
        Ok(Ground { _redis: Some(redis), redis_flags: redis_flags.into(), place, pairs: 0 })
    }

    /// Two daemons with a stream between them, whose first frame has arrived.
    pub fn pair(&mut self, case: Case, frame_bytes: usize, stop: &Stop) -> Result<Pair> {
        self.pairs += 1;
        let tag = format!("bench{}n{}", std::process::id(), self.pairs);
        let (owner_name, client_name) = (format!("{tag}-owner"), format!("{tag}-client"));
        let owner_place = Place::new(&self.place.0, &owner_name)?;
        let path = segment_path(&owner_place.0, &tag);
        let shape = u32::try_from(frame_bytes).map_err(|why| failed("make its segment")(&why))?;
        let shape = Shape::new(&[shape]).map_err(|why| failed("make its segment")(&why))?;
        let depth = source_depth(frame_bytes);
        let spec = SegmentSpec { shape, dtype: DType::U8, layout: Layout::Fifo, depth, keywords: 0 };
        let segment = shm::create(&path, &spec, &[]).map_err(|why| failed("make its segment")(&why))?;
        let mut source = Writer::new(segment).map_err(|why| failed("write its segment")(&why))?;
        let pixels = vec![1; frame_bytes];
        // The whole ring, so that no page of it is touched for the first time in a measurement.
        for _ in 0..depth {
            source.write(&pixels).map_err(|why| failed("write its segment")(&why))?;
        }
        let owner = self.daemon(owner_place, &owner_name, case, stop)?;
        let client_place = Place::new(&self.place.0, &client_name)?;
        let client = self.daemon(client_place, &client_name, case, stop)?;
        let get = Op::GetRemoteShm(Get { timeout: READY_WITHIN, ..Get::new(&owner_name, &tag) });
        let late = "The bench's owner does not register its segment.";
        let answer = until(stop, late, || match client::call(&client.control, &get, READY_WITHIN * 2) {
            Err(why) if why.kind == Kind::Key => Ok(None), // soon
            Err(why) => Err(failed("get its mirror")(&why)),
            Ok(answer) => Ok(Some(answer)),
        })?;
        let mirror = Path::new(answer["path"].as_str().unwrap_or_default());
        let mirror = Segment::open(mirror, Access::Read).map_err(|why| failed("open its mirror")(&why))?;
        let pair = Pair { source, pixels, mirror, owner, client };
        until(stop, "No frame reaches the bench's mirror.", || {
            Ok((pair.mirror.newest().1 > 0).then_some(()))
        })?;
        let carried = pair.client.status()?["mirrors"][0]["transport"].as_str().map(str::to_owned);
        match carried {
            Some(transport) if transport == case.transport => Ok(pair),
            other => {
                let other = other.unwrap_or_default();
                Err(failed("measure its transport")(&format!(
                    "asked for {}, the mirror has {other}",
                    case.transport
                )))
            }
        }
    }

    fn daemon(&self, place: Place, hostname: &str, case: Case, stop: &Stop) -> Result<Daemon> {
        let binary = std::env::current_exe().map_err(|why| failed("find its own binary")(&why))?;
        let (control, log) = (place.0.join("control"), place.0.join("log"));
        let mut command = Command::new(binary);
        command.args(&self.redis_flags);
        if self._redis.is_some() {
            command.env_remove("REDISCLI_AUTH"); // ours has no password
        }
        command.env_remove("NOTIFY_SOCKET"); // it is no service's main process
        command.args(["--hostname", hostname, "--transport", case.transport, "--role", "minion"]);
        command.args(["--advertise-ip", "127.0.0.1", "--bind", "127.0.0.1", "--log-level", "warn"]);
        command.args(["--base-pub-port", &free_port()?.min(60_000).to_string()]);
        command.args(case.poll.into_iter().flat_map(|poll| ["--poll", poll]));
        command.arg("--shm-dir").arg(&place.0).arg("--control").arg(&control);
        let child = start(&mut command, &log).map_err(|why| failed("start a daemon")(&why))?;
        let mut daemon = Daemon { control, child, _place: place };
        until(stop, "A daemon of the bench does not answer.", || {
            if daemon.child.0.try_wait().ok().flatten().is_some() {
                return Err(failed("start a daemon")(&last_line(&log)));
            }
            let there = client::call(&daemon.control, &Op::Ping, Duration::from_secs(1));
            Ok(there.is_ok_and(|there| there["registered"] == true).then_some(()))
        })?;
        Ok(daemon)
    }
}

/// Does a Redis answer there?
fn answers(port: u16) -> bool {
    let ask = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream.write_all(b"PING\r\n")?;
        let mut answer = [0; 5];
        stream.read_exact(&mut answer)?;
        Ok(&answer == b"+PONG")
    };
    ask().unwrap_or(false)
}

/// What a process that has ended said last.
fn last_line(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it ended without a word").trim().to_owned()
}

/// A daemon of the bench.
pub struct Daemon {
    control: PathBuf,
    child: Killed,
    // Goes after the process.
    _place: Place,
}

impl Daemon {
    /// Its `status --json`.
    pub fn status(&self) -> Result<Value> {
        client::call(&self.control, &Op::Status, READY_WITHIN)
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.0.id()
    }
}

impl Drop for Daemon {
    /// In order, so that its keys go from a Redis that others use, too.
    fn drop(&mut self) {
        let _ = client::call(&self.control, &Op::Stop, Duration::from_secs(2));
        let deadline = Instant::now() + STOPPED_WITHIN;
        while Instant::now() < deadline && matches!(self.child.0.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// An owner, a client, the source and the mirror.
#[allow(missing_docs)]
pub struct Pair {
    pub source: Writer,
    /// What is written.
    pub pixels: Vec<u8>,
    pub mirror: Segment,
    // The client first: else it would wait for its owner.
    pub client: Daemon,
    pub owner: Daemon,
}
