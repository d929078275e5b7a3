//! The library: what a Rust program uses, and the `daoserver` binary itself.
//!
//! ```no_run
//! use daoserver::{DaoServer, Settings};
//! use std::time::Duration;
//!
//! let mut settings = Settings::here()?;                       // every flag's default, this machine's name
//! settings.redis_host = "192.168.64.2".into();
//! let server = DaoServer::connect(settings)?;                 // the machine's daemon, or one in this program
//! let mut wfs = server.get_remote_shm("machineA", "wfs")?;    // released when it is dropped
//! let frame = wfs.wait_next(Duration::from_secs(1))?;
//! println!("{} {:?}", frame.counter(), frame.shape().axes());
//! # Ok::<(), daoserver::Error>(())
//! ```

mod frame;
mod mirror;
mod settings;

pub use frame::{Element, Frame};
pub use mirror::{Frames, Mirror};

use crate::control::client;
use crate::control::conversation::{Answers, converse};
use crate::control::discovery::{Found, discover_redis};
use crate::control::loops::Shared;
use crate::control::operations::{self, Caller};
use crate::daemon::Daemon;
use crate::error::{Error, Kind, Result};
use crate::limits;
use crate::log;
use crate::os::process;
use crate::os::threads::{Stop, lock};
use crate::settings::Settings;
use crate::wire::control::{Get, Op};
use serde_json::Value;
use std::fs::File;
use std::io::{self, Write};
use std::net::{IpAddr, ToSocketAddrs, UdpSocket};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// Beyond an operation's own time-out: the first frame, and Redis' time-outs.
const PATIENCE: Duration = Duration::from_secs(15);

/// A machine, as [`DaoServer::list_machines`] gives it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// Its name.
    pub hostname: String,
    /// The address that its clients connect to, if the registry has one.
    pub ip: Option<String>,
    /// `master` or `minion`, if the registry says.
    pub role: Option<String>,
    /// Its last sign of life, ISO 8601, UTC, as it stands in the registry.
    pub last_connect: Option<String>,
    /// Its segments, sorted.
    pub shm_segments: Vec<String>,
}

/// Where the work is done.
enum Place {
    /// In this process. `None`: stopped.
    Inside(Mutex<Option<Box<Daemon>>>),
    /// By the machine's daemon, behind this control socket.
    Beside(PathBuf),
}

struct Inner {
    settings: Settings,
    place: Place,
    /// Who asks when this handle itself does.
    caller: Caller,
    /// `stop` was called, since the last start.
    stopped: Mutex<Stop>,
    /// It cannot be started any more.
    over: Stop,
}

/// The machine's place in a cluster: its segments for others, others' segments here.
///
/// All methods may be called from any thread, at the same time. Errors are [`Error`]s whose [`Kind`] is the exception
/// that the Python module would raise. Clones are the same server. The last one that is dropped stops it; mirrors
/// count as clones.
#[derive(Clone)]
pub struct DaoServer(Arc<Inner>);

impl DaoServer {
    /// Makes this process the machine's daemon, with its threads (see `README.md`), its control socket, and the mirrors
    /// that an earlier daemon of the machine was asked for. Nothing is registered before [`DaoServer::start`].
    ///
    /// # Errors
    /// `Connection`: Redis cannot be reached. `Os`: another daemon holds the control socket or the host name, or there
    /// is no segment directory.
    pub fn new(settings: Settings) -> Result<DaoServer> {
        let daemon = Box::new(Daemon::start(settings.clone())?);
        Ok(Self::at(settings, Place::Inside(Mutex::new(Some(daemon)))))
    }

    /// The machine's daemon if one runs for this host name, control socket and Redis; else [`DaoServer::new`].
    ///
    /// # Errors
    /// As [`DaoServer::new`]; `Os` also if the daemon behind the control socket uses another Redis.
    pub fn connect(settings: Settings) -> Result<DaoServer> {
        let mut there = client::ping(&settings.control_path());
        if there.is_err() {
            // Nobody, or one that hangs: then binding says so. Or another program is just as far.
            match Self::new(settings.clone()) {
                Err(why) if why.kind == Kind::Os => {
                    there = Ok(client::ping(&settings.control_path()).map_err(|_| why)?);
                }
                made => return made,
            }
        }
        match there {
            Err(why) => Err(why),
            Ok(there) if same_redis(&there, &settings) => {
                let control = settings.control_path();
                Ok(Self::at(settings, Place::Beside(control)))
            }
            Ok(there) => {
                let (control, pid) = (settings.control_path(), there.pid);
                let sentence = format!(
                    "The daemon behind {} (process {pid}) uses Redis at {}:{}, not {}; choose another control socket.",
                    control.display(),
                    there.redis_host,
                    there.redis_port,
                    settings.redis_address()
                );
                Err(Error::new(Kind::Os, sentence))
            }
        }
    }

    fn at(settings: Settings, place: Place) -> DaoServer {
        DaoServer(Arc::new(Inner {
            settings,
            place,
            caller: Caller::new(true),
            stopped: Mutex::default(),
            over: Stop::new(),
        }))
    }

    /// What it was told.
    pub fn settings(&self) -> &Settings {
        &self.0.settings
    }

    /// Registers the machine and serves its segments. Blocks until [`DaoServer::stop`]; then everything has ended. After
    /// a stop it may be started again. With a daemon beside this process it only waits, since that one serves.
    ///
    /// # Errors
    /// `Connection`: Redis cannot be reached.
    pub fn start(&self) -> Result<()> {
        self.0.begin()?;
        let stopped = self.0.end_of_start()?;
        while !stopped.wait(Duration::from_secs(3_600)) {}
        self.0.end();
        Ok(())
    }

    /// [`DaoServer::stop`] for good: it cannot be started again. For a process that ends, whatever it is at.
    pub fn shut_down(&self) {
        self.0.over.set();
        self.stop();
    }

    /// Has it been shut down?
    pub fn is_shut_down(&self) -> bool {
        self.0.over.is_set()
    }

    /// Ends everything within 3 s: streams, mirrors of this program, the machine's entry in the registry; mirrors that
    /// others asked for without a lease stay remembered. `start` returns. A daemon beside this process goes on.
    pub fn stop(&self) {
        self.0.ask_to_stop();
        self.0.end();
    }

    /// Every registered machine, sorted by name.
    ///
    /// # Errors
    /// `Connection`: Redis cannot be reached.
    pub fn list_machines(&self) -> Result<Vec<Machine>> {
        Ok(elements(&self.0.call(Op::ListMachines)?).map(Machine::of).collect())
    }

    /// A mirror of a segment of another machine: one way, the owner has 30 s to publish. Returns with the first frame, or
    /// two seconds after the owner has answered.
    ///
    /// # Errors
    /// `Key`: no such machine or segment. `Timeout`: its owner does not publish. `NotImplemented`: it offers a transport
    /// that we do not have. `Connection`: Redis cannot be reached.
    pub fn get_remote_shm(&self, hostname: &str, shm: &str) -> Result<Mirror> {
        self.get(Get::new(hostname, shm))
    }

    /// The same for a mirror that can be written: see [`Mirror::write`].
    ///
    /// # Errors
    /// As [`DaoServer::get_remote_shm`], and `Permission`: the owner lets nobody write.
    pub fn get_remote_shm_bidirectional(&self, hostname: &str, shm: &str) -> Result<Mirror> {
        self.get(Get { bidirectional: true, ..Get::new(hostname, shm) })
    }

    /// The same with every choice open. Whatever `lease` says, the mirror is released with the last [`Mirror`] of it.
    ///
    /// # Errors
    /// As [`DaoServer::get_remote_shm_bidirectional`].
    pub fn get(&self, asked: Get) -> Result<Mirror> {
        Mirror::get(self.clone(), Get { lease: true, ..asked })
    }

    /// Ends a mirror that was asked for without a lease: by the command `get`, or an earlier program. A [`Mirror`]
    /// releases itself. Returns how many still hold it: it ends with the last.
    ///
    /// # Errors
    /// `Key`: there is no such mirror here.
    pub fn release_remote_shm(&self, hostname: &str, shm: &str) -> Result<u64> {
        let op = Op::ReleaseRemoteShm { hostname: hostname.to_owned(), shm: shm.to_owned() };
        Ok(self.0.call(op)?.get("held_by").and_then(Value::as_u64).unwrap_or(0))
    }

    /// Puts this machine into the registry and serves its segments, without blocking; its segments follow within a second.
    ///
    /// # Errors
    /// `Connection`: Redis cannot be reached.
    pub fn register_machine(&self) -> Result<Machine> {
        Ok(Machine::of(&self.0.begin()?))
    }

    /// Takes a machine out of the registry; `None`: this one, until it is registered again. How many keys it had.
    ///
    /// # Errors
    /// `Permission`: another machine, and this one is not the master. `Key`: there is no such machine.
    pub fn deregister_machine(&self, hostname: Option<&str>) -> Result<u64> {
        let answer = self.0.call(Op::DeregisterMachine { hostname: hostname.map(str::to_owned) })?;
        Ok(answer.get("keys").and_then(Value::as_u64).unwrap_or(0))
    }

    /// Removes the machines that have been silent for longer than `ttl`: their names.
    ///
    /// # Errors
    /// `Permission`: this machine is not the master.
    pub fn cleanup_stale_machines(&self, ttl: Duration) -> Result<Vec<String>> {
        let answer = self.0.call(Op::CleanupStaleMachines { ttl })?;
        Ok(answer.get("removed").map(texts).unwrap_or_default())
    }

    /// Publishers, mirrors and counters: the JSON of `daoserver status --json`.
    ///
    /// # Errors
    /// `Connection`: the daemon beside this process does not answer.
    pub fn status(&self) -> Result<Value> {
        self.0.call(Op::Status)
    }

    /// For whoever watches over this process: all threads of the daemon in it run, and the one through which everything
    /// goes has answered just now. Gives a line on how it does, else what is wrong.
    pub(crate) fn pulse(&self, patience: Duration) -> Result<String> {
        let wrong = |what: String| Error::new(Kind::Os, what);
        let daemon = self.0.daemon();
        if let Some(name) = daemon.as_deref().and_then(Option::as_ref).and_then(|daemon| daemon.dead_thread())
        {
            return Err(wrong(format!("Thread {name} has ended.")));
        }
        drop(daemon);
        operations::pulse(&*self.0.shared()?, patience)
    }

    /// The Redis servers on port 6379 of the local subnets: see [`discover_redis`].
    ///
    /// # Errors
    /// `Os`: the interfaces cannot be listed, or descriptors run out.
    pub fn discover() -> Result<Vec<Found>> {
        discover_redis(6_379, limits::DISCOVERY_TIMEOUT, 64)
    }

    /// Serves the control protocol on standard input and output, too, until standard input ends or the process that
    /// started this one does. Blocks; then everything has ended. For [`DaoServer::new`].
    ///
    /// # Errors
    /// `Os`: standard input or output cannot be used.
    pub fn serve_stdio(&self) -> Result<()> {
        let refused = |why: io::Error| Error::new(Kind::Os, format!("Standard input and output: {why}."));
        let input = File::from(io::stdin().as_fd().try_clone_to_owned().map_err(refused)?);
        let output = File::from(io::stdout().as_fd().try_clone_to_owned().map_err(refused)?);
        let watched = output.try_clone().map_err(refused)?;
        let parent = process::parent();
        let inner = Arc::clone(&self.0);
        let over = move || process::parent() != parent || inner.over.is_set() || inner.stop_asked();
        let caller = Arc::new(Caller::new(true));
        let talked = converse(input, output, &watched, Arc::clone(&self.0), &caller, over);
        self.0.end();
        talked.map_err(refused)
    }
}

impl Inner {
    fn daemon(&self) -> Option<MutexGuard<'_, Option<Box<Daemon>>>> {
        match &self.place {
            Place::Inside(daemon) => Some(lock(daemon)),
            Place::Beside(_) => None,
        }
    }

    /// What the daemon in this process shares with its threads.
    fn shared(&self) -> Result<Arc<Shared>> {
        let daemon = self.daemon();
        let shared = daemon.as_deref().and_then(Option::as_ref).map(|daemon| Arc::clone(daemon.shared()));
        shared.ok_or_else(|| Error::new(Kind::Os, "The server is stopped; start it first."))
    }

    /// Registered and serving, whatever it was before. Returns who this machine is.
    fn begin(&self) -> Result<Value> {
        let mut stopped = self.stopped();
        if stopped.is_set() {
            *stopped = Stop::new(); // whoever waits for the old one has his answer
        }
        drop(stopped);
        if let Some(mut daemon) = self.daemon() {
            if self.over.is_set() {
                return Err(Error::new(Kind::Os, "The server is shut down."));
            }
            if daemon.is_none() {
                *daemon = Some(Box::new(Daemon::start(self.settings.clone())?));
            }
        }
        self.call(Op::Start)
    }

    /// What `start` waits for.
    fn end_of_start(&self) -> Result<Stop> {
        match &self.place {
            Place::Inside(_) => Ok(self.shared()?.stop_asked.clone()),
            Place::Beside(_) => Ok(self.stopped().clone()),
        }
    }

    /// Tells `start` to return.
    fn ask_to_stop(&self) {
        self.stopped().set();
        if let Ok(shared) = self.shared() {
            shared.stop_asked.set();
        }
    }

    fn stop_asked(&self) -> bool {
        self.shared().is_ok_and(|shared| shared.stop_asked.is_set())
    }

    fn stopped(&self) -> MutexGuard<'_, Stop> {
        lock(&self.stopped)
    }

    /// Ends the daemon in this process. Whoever comes second waits for the first.
    fn end(&self) {
        if let Some(mut daemon) = self.daemon()
            && let Some(running) = daemon.take()
        {
            running.stop();
        }
    }

    fn call(&self, op: Op) -> Result<Value> {
        match &self.place {
            Place::Inside(_) => operations::run(&*self.shared()?, &self.caller, op),
            Place::Beside(control) => client::call(control, &op, PATIENCE),
        }
    }
}

/// Whoever is at standard input starts and stops the daemon, and not the process.
impl Answers for Inner {
    fn run(&self, caller: &Caller, op: Op) -> Result<Value> {
        match op {
            Op::Start | Op::RegisterMachine => {
                let me = self.begin()?;
                if log::enabled(log::Level::Info) {
                    Machine::of(&me).announce();
                }
                Ok(me)
            }
            Op::Stop => {
                self.end();
                Ok(Value::Object(serde_json::Map::new()))
            }
            op => operations::run(&*self.shared()?, caller, op),
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.end();
    }
}

impl Machine {
    /// Says on standard error, if anybody reads there, that it is registered and its control socket answers.
    pub fn announce(&self) {
        let field = |value: &Option<String>| value.clone().unwrap_or_default();
        let line = format!(
            "daoserver running on '{}' ({}) as {}",
            self.hostname,
            field(&self.ip),
            field(&self.role)
        );
        let _ = writeln!(io::stderr(), "{line}");
    }

    fn of(value: &Value) -> Machine {
        let text = |field: &str| value.get(field).and_then(Value::as_str).map(str::to_owned);
        Machine {
            hostname: text("hostname").unwrap_or_default(),
            ip: text("ip"),
            role: text("role"),
            last_connect: text("last_connect"),
            shm_segments: value.get("shm_segments").map(texts).unwrap_or_default(),
        }
    }
}

fn texts(array: &Value) -> Vec<String> {
    elements(array).filter_map(|value| value.as_str().map(str::to_owned)).collect()
}

fn elements(array: &Value) -> impl Iterator<Item = &Value> {
    array.as_array().into_iter().flatten()
}

/// Do a daemon and these settings mean the same Redis? `localhost`, 127.0.0.1 and this machine's own address do.
fn same_redis(there: &client::Daemon, settings: &Settings) -> bool {
    let addresses = |host: &str, port: u16| -> Vec<IpAddr> {
        (host, port).to_socket_addrs().map(|found| found.map(|one| one.ip()).collect()).unwrap_or_default()
    };
    // Only an address of this machine can be bound.
    let local = |address: &IpAddr| UdpSocket::bind((*address, 0)).is_ok();
    let theirs = addresses(&there.redis_host, there.redis_port);
    let ours = addresses(&settings.redis_host, settings.redis_port);
    there.redis_port == settings.redis_port
        && (there.redis_host == settings.redis_host
            || theirs.iter().any(|address| ours.contains(address))
            || theirs.iter().any(local) && ours.iter().any(local))
}
