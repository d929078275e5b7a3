//! The daemon as a whole: what is started, in which order, and the same list read backwards.

use crate::bridge::guard::Guard;
use crate::control::commands::{Command, Commands};
use crate::control::executor::{Executor, lock};
use crate::control::loops::{self, Shared};
use crate::control::persist::{Memory, Remembered};
use crate::control::redis_link::Health;
use crate::control::registry::Registry;
use crate::control::state::{Identity, State};
use crate::control::workshop::Workshop;
use crate::control::{roles, socket};
use crate::error::{Error, Kind, Result};
use crate::limits;
use crate::os::threads::{Handle, Stop, spawn};
use crate::os::{process, signals};
use crate::settings::{Role, Settings};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Runs the daemon until a signal ends it. Blocks the calling thread, which must be the process' first: the signals
/// are blocked here for all threads to come.
pub fn run(settings: Settings) -> Result<()> {
    signals::block();
    let daemon = Daemon::start(settings)?;
    let signal = loop {
        if let Some(signal) = signals::wait(Duration::from_secs(60)) {
            break signal;
        }
    };
    crate::info!("{signal}: stopping");
    daemon.stop();
    Ok(())
}

/// A running daemon.
struct Daemon {
    shared: Arc<Shared>,
    registry: Registry,
    /// In the order of their start.
    threads: Vec<Handle>,
    command: Handle,
}

impl Daemon {
    fn start(settings: Settings) -> Result<Daemon> {
        if !settings.shm_dir.is_dir() {
            let sentence = format!(
                "There is no segment directory {}; make it, or name another with --shm-dir.",
                settings.shm_dir.display()
            );
            return Err(Error::new(Kind::Os, sentence));
        }
        // 1. The control socket: whoever holds it is this machine's daemon.
        let listener = socket::bind(&settings.control)?;
        let started = Self::start_registered(settings.clone(), listener);
        if started.is_err() {
            let _ = std::fs::remove_file(&settings.control);
        }
        started
    }

    fn start_registered(settings: Settings, listener: std::os::unix::net::UnixListener) -> Result<Daemon> {
        // 2. Redis: who we are, and what an earlier run has left there.
        let health = Arc::new(Health::default());
        let mut registry = Registry::new(&settings, Arc::clone(&health));
        registry.time_ns()?;
        let ip = own_ip(&settings)?;
        let role = roles::choose(&mut registry, &settings.hostname, settings.role)?;
        let me = Identity { hostname: settings.hostname.clone(), ip, role };
        let (memory, remembered) = Memory::open(&settings.control);
        let earlier = EarlierRun::take(&mut registry, &settings.hostname, remembered.ports.clone())?;
        registry.register_machine(&me.hostname, ip, role.name())?;
        // 3. The state, and the one thread that changes it.
        let (commands, queue) = Commands::new();
        let mut state = State::new(me.clone());
        (state.read_only, state.allow) = (settings.read_only, settings.allow.clone());
        restore(&mut state, &earlier, remembered);
        let shared = Arc::new(Shared {
            settings: settings.clone(),
            state: Arc::new(Mutex::new(state)),
            commands: commands.clone(),
            health,
            refused_files: Mutex::new(BTreeMap::new()),
        });
        let context = zmq::Context::new();
        let guard = start_guard(&context, &settings, &shared)?;
        let workshop = Workshop::new(settings, ip, commands, context);
        let executor = Executor::new(Arc::clone(&shared.state), shared.registry(), memory, workshop);
        let command = thread("dao-command", Stop::new(), &shared, move |_, _| executor.run(&queue))?;
        // 4. The threads that feed it.
        let stop = Stop::new();
        let leftover = earlier.names;
        let mut threads: Vec<Handle> = guard.into_iter().collect();
        threads.extend([
            thread("dao-heartbeat", stop.clone(), &shared, loops::heartbeat)?,
            thread("dao-shm-sync", stop.clone(), &shared, move |shared, stop| {
                loops::shm_sync(shared, leftover, stop);
            })?,
            thread("dao-conn-monitor", stop.clone(), &shared, loops::conn_monitor)?,
            thread("dao-client-hb-monitor", stop.clone(), &shared, loops::client_hb_monitor)?,
            thread("dao-stale-cleanup", stop.clone(), &shared, loops::stale_cleanup)?,
            {
                let served = Arc::clone(&shared);
                thread("dao-control", stop, &shared, move |_, stop| socket::serve(&listener, &served, stop))?
            },
        ]);
        // 5. Everybody who was served before learns that we are back.
        for client in &earlier.clients {
            registry.wake(client, "records");
        }
        let hostname = &me.hostname;
        eprintln!("daoserver running on '{hostname}' ({ip}) as {role}");
        Ok(Daemon { shared, registry, threads, command })
    }

    /// The start read backwards. Bounded: what is late is named and left behind.
    fn stop(mut self) {
        let deadline = Instant::now() + limits::STOP_TIMEOUT;
        let left = || deadline.saturating_duration_since(Instant::now());
        let host = self.shared.settings.hostname.clone();
        // 4. The threads that feed the queue, all told first: none of them writes to the registry after this.
        self.threads.iter().for_each(Handle::stop);
        let late_threads: Vec<_> =
            self.threads.drain(..).rev().filter_map(|thread| thread.join_within(left() / 2).err()).collect();
        // 3. Streams end; what is wanted stays remembered.
        self.shared.commands.insist(Command::Stop);
        let late = self.command.join_within(left()).err();
        // 2. Redis forgets us. One that has stopped answering is not waited for (and a thread that is late waits for
        // just that): a master cleans up.
        if self.shared.health.get().is_ok() && late.is_none() && late_threads.is_empty() {
            let forgotten = self.registry.deregister_self(&host);
            let role = lock(&self.shared.state).me.role;
            if let Err(error) = forgotten {
                crate::warn!("this machine stays in the registry: {error}");
            } else if role == Role::Master {
                let _ = self.registry.release_master(&host);
            }
        }
        for late in late.into_iter().chain(late_threads) {
            crate::error!("{late}");
        }
        // 1. The control socket.
        let _ = std::fs::remove_file(&self.shared.settings.control);
        crate::info!("stopped");
    }
}

fn thread(
    name: &str,
    stop: Stop,
    shared: &Arc<Shared>,
    body: impl FnOnce(&Shared, &Stop) + Send + 'static,
) -> Result<Handle> {
    let shared = Arc::clone(shared);
    spawn(name, stop, move |stop| body(&shared, stop), |_| ())
        .map_err(|error| Error::new(Kind::Os, format!("Thread {name} cannot be started: {error}.")))
}

/// Who is not allowed is kept out from before the first publisher on.
fn start_guard(context: &zmq::Context, settings: &Settings, shared: &Arc<Shared>) -> Result<Option<Handle>> {
    if settings.allow.is_empty() {
        return Ok(None);
    }
    let guard = Guard::new(context, settings.allow.clone());
    let guard = guard.map_err(|error| Error::new(Kind::Os, format!("--allow cannot be kept: {error}.")))?;
    thread("dao-zap", Stop::new(), shared, move |_, stop| guard.run(stop)).map(Some)
}

/// The address in the registry: the one given, else the local one of the connection to Redis.
fn own_ip(settings: &Settings) -> Result<Ipv4Addr> {
    if let Some(ip) = settings.advertise_ip {
        return Ok(ip);
    }
    let refused = |why: String| {
        Error::new(
            Kind::Os,
            format!("No address of this machine found ({why}); give one with --advertise-ip."),
        )
    };
    let (host, port) = (settings.redis_host.as_str(), settings.redis_port);
    let redis: Vec<SocketAddr> =
        (host, port).to_socket_addrs().map_err(|error| refused(error.to_string()))?.collect();
    let redis = redis
        .iter()
        .find(|address| address.is_ipv4())
        .ok_or_else(|| refused(format!("{host} has no IPv4")))?;
    match process::local_address_towards(*redis) {
        Ok(IpAddr::V4(ip)) => {
            if ip.is_loopback() {
                crate::warn!(
                    "Redis is on this machine, so {ip} is registered and other machines cannot reach its segments; \
                     give the address they know with --advertise-ip"
                );
            }
            Ok(ip)
        }
        Ok(IpAddr::V6(ip)) => Err(refused(format!("{ip} is no IPv4 address"))),
        Err(error) => Err(refused(error.to_string())),
    }
}

/// What a run of this machine that was killed has left in Redis.
struct EarlierRun {
    names: BTreeSet<String>,
    ports: BTreeMap<String, u16>,
    /// Living clients by segment.
    clients_of: BTreeMap<String, Vec<String>>,
    /// Everybody to be told that we are back.
    clients: BTreeSet<String>,
}

impl EarlierRun {
    /// Reads it, and clears the connection records: they name ports on which nobody listens.
    fn take(registry: &mut Registry, host: &str, ports: BTreeMap<String, u16>) -> Result<EarlierRun> {
        let left = registry.left_behind(host)?;
        let mut earlier = EarlierRun {
            names: BTreeSet::new(),
            ports,
            clients_of: BTreeMap::new(),
            clients: BTreeSet::new(),
        };
        for (name, records) in left {
            if let Some(first) = records.first() {
                earlier.ports.insert(name.clone(), first.port);
                registry.write_records(host, &name, &[])?;
            }
            earlier.clients.extend(records.into_iter().map(|record| record.client_hostname));
            earlier.names.insert(name);
        }
        for (name, ages) in registry.clients_of_all(host)? {
            let living = ages
                .into_iter()
                .filter(|entry| entry.age.is_some_and(|age| age <= limits::CLIENT_SILENT_MAX));
            let living: Vec<String> = living.map(|entry| entry.client).collect();
            earlier.clients.extend(living.iter().cloned());
            earlier.clients_of.insert(name, living);
        }
        Ok(earlier)
    }
}

/// Puts into the state what was there before: clients that are alive, ports they know, mirrors that were asked for.
fn restore(state: &mut State, earlier: &EarlierRun, remembered: Remembered) {
    let now = Instant::now();
    for (name, port) in &earlier.ports {
        state.on_adopt(name.clone(), Some(*port), Vec::new(), now);
    }
    for (name, clients) in &earlier.clients_of {
        state.on_adopt(name.clone(), None, clients.clone(), now);
    }
    for (key, bidirectional) in remembered.mirrors {
        crate::info!("the mirror of '{}' of {} is wanted from before", key.1, key.0);
        state.on_remembered(key, bidirectional);
    }
}
