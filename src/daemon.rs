//! The daemon as a whole: what is started, in which order, and the same list read backwards.

use crate::control::commands::{Command, Commands};
use crate::control::executor::Executor;
use crate::control::loops::{self, Shared};
use crate::control::persist::{Memory, Remembered};
use crate::control::redis_link::Health;
use crate::control::registry::{Entry, Registry};
use crate::control::state::{Identity, State};
use crate::control::workshop::Workshop;
use crate::control::{roles, socket};
use crate::error::{Error, Kind, Result};
use crate::limits;
use crate::os::locks::NameLock;
use crate::os::process;
use crate::os::threads::{Handle, Stop, lock, spawn};
use crate::settings::{Role, Settings};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// A running daemon. It stands in the registry once somebody asks for it.
pub struct Daemon {
    shared: Arc<Shared>,
    registry: Registry,
    /// In the order of their start.
    threads: Vec<Handle>,
    command: Handle,
    /// Held to the end: one daemon of this name, of this Redis, on this machine.
    _name: NameLock,
}

impl Daemon {
    /// Starts it: its control socket answers, mirrors of an earlier run come back, and nothing is registered yet.
    pub fn start(settings: Settings) -> Result<Daemon> {
        if !settings.shm_dir.is_dir() {
            let sentence = format!(
                "There is no segment directory {}; make it, or name another with --shm-dir.",
                settings.shm_dir.display()
            );
            return Err(Error::new(Kind::Os, sentence));
        }
        // 1. The name and the control socket: whoever holds them is this machine's daemon.
        socket::check_free(&settings.control_path())?;
        let redis = redis_socket(&settings)?;
        let name = take_name(&settings, redis)?;
        let listener = socket::bind(&settings.control_path())?;
        let started = Self::start_bound(settings.clone(), redis, name, listener);
        if started.is_err() {
            let _ = std::fs::remove_file(settings.control_path());
        }
        started
    }

    fn start_bound(
        settings: Settings,
        redis: SocketAddr,
        name: NameLock,
        listener: UnixListener,
    ) -> Result<Daemon> {
        // 2. Redis: who we are.
        let health = Arc::new(Health::default());
        let mut registry = Registry::new(&settings, Arc::clone(&health));
        registry.time_ns()?;
        let ip = own_ip(&settings, redis)?;
        if let Entry::Contested(other) = registry.machine_entry(&settings.hostname, ip, "")? {
            // After a reboot with another address this is how it should be.
            crate::warn!(
                "a daemon is registered as '{}', from {other}: if it still runs, give one of them another --hostname",
                settings.hostname
            );
        }
        let role = roles::expected(&mut registry, &settings.hostname, settings.role)?;
        let (memory, remembered) = Memory::open(&settings.control_path());
        // 3. The state, and the one thread that changes it.
        let (commands, queue) = Commands::new();
        let mut state = State::new(Identity { hostname: settings.hostname.clone(), ip, role });
        (state.read_only, state.allow) = (settings.read_only, settings.allow.clone());
        state.transport = settings.transport;
        restore(&mut state, remembered);
        let shared = Arc::new(Shared::new(settings.clone(), state, commands.clone(), health));
        let workshop = Workshop::new(settings, ip, commands);
        let executor = Executor::new(Arc::clone(&shared.state), shared.registry(), memory, workshop);
        let command = thread("dao-command", Stop::new(), &shared, move |_, _| executor.run(&queue))?;
        // 4. The threads that feed it.
        let stop = Stop::new();
        let mut threads: Vec<Handle> = Vec::new();
        threads.extend([
            thread("dao-heartbeat", stop.clone(), &shared, loops::heartbeat)?,
            thread("dao-shm-sync", stop.clone(), &shared, loops::shm_sync)?,
            thread("dao-conn-monitor", stop.clone(), &shared, loops::conn_monitor)?,
            thread("dao-client-hb-monitor", stop.clone(), &shared, loops::client_hb_monitor)?,
            thread("dao-stale-cleanup", stop.clone(), &shared, loops::stale_cleanup)?,
            {
                let served = Arc::clone(&shared);
                thread("dao-control", stop, &shared, move |_, stop| socket::serve(listener, &served, stop))?
            },
        ]);
        Ok(Daemon { shared, registry, threads, command, _name: name })
    }

    /// What its threads share, and operations work with.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// A thread that has ended though nobody told it to: its name.
    pub fn dead_thread(&self) -> Option<&str> {
        self.threads.iter().chain([&self.command]).find_map(Handle::ended)
    }

    /// The start read backwards. Bounded: what is late is named and left behind.
    pub fn stop(mut self) {
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
        let registered = self.shared.entered.load(Relaxed);
        if registered && self.shared.health.get().is_ok() && late.is_none() && late_threads.is_empty() {
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
        let _ = std::fs::remove_file(self.shared.settings.control_path());
        crate::info!("stopped");
    }
}

/// Two daemons of one name would take each other's entries in the registry for their own. One that is just stopping is
/// waited for.
fn take_name(settings: &Settings, redis: SocketAddr) -> Result<NameLock> {
    let host = &settings.hostname;
    let deadline = Instant::now() + limits::STOP_TIMEOUT;
    let mut taken = NameLock::take(&format!("daoserver:{host}:{redis}"));
    while matches!(taken, Ok(None)) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
        taken = NameLock::take(&format!("daoserver:{host}:{redis}"));
    }
    match taken {
        Ok(Some(name)) => Ok(name),
        Ok(None) => {
            let address = settings.redis_address();
            let sentence = format!(
                "Another daemon of this machine is '{host}' for Redis at {address} already, with another control \
                 socket; use that one, or give this one another --hostname."
            );
            Err(Error::new(Kind::Os, sentence))
        }
        Err(error) => Err(Error::new(Kind::Os, format!("The name '{host}' cannot be locked: {error}."))),
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

/// Redis' IPv4 address.
fn redis_socket(settings: &Settings) -> Result<SocketAddr> {
    let found = (settings.redis_host.as_str(), settings.redis_port).to_socket_addrs();
    let address = found.ok().and_then(|mut addresses| addresses.find(SocketAddr::is_ipv4));
    address.ok_or_else(|| {
        let redis = settings.redis_address();
        Error::new(
            Kind::Connection,
            format!("Cannot connect to Redis at {redis}: the host has no IPv4 address."),
        )
    })
}

/// The address in the registry: the one given, else the local one of the connection to Redis.
fn own_ip(settings: &Settings, redis: SocketAddr) -> Result<Ipv4Addr> {
    if let Some(ip) = settings.advertise_ip {
        return Ok(ip);
    }
    let refused = |why: String| {
        let sentence = format!("No address of this machine found ({why}); give one with --advertise-ip.");
        Error::new(Kind::Os, sentence)
    };
    match process::local_address_towards(redis) {
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

/// Puts into the state what was there before: ports that peers know, mirrors that were asked for.
fn restore(state: &mut State, remembered: Remembered) {
    let now = Instant::now();
    for (name, port) in remembered.ports {
        state.on_adopt(name, Some(port), Vec::new(), now);
    }
    for mirror in remembered.mirrors {
        crate::info!("the mirror of '{}' of {} is wanted from before", mirror.key.1, mirror.key.0);
        state.on_remembered(mirror.key, mirror.bidirectional, mirror.kept, mirror.leases, now);
    }
}
