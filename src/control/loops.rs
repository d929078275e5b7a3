//! The threads that look at something now and then: each is one function here, named as its thread.

use crate::control::bench::Scratches;
use crate::control::commands::{Command, Commands};
use crate::control::files::served;
use crate::control::redis_client::{Refusal, describe, refusal};
use crate::control::redis_link::{Health, open_for_messages};
use crate::control::registry::{Entry, Registry, RemoteFacts};
use crate::control::roles::Watch;
use crate::control::state::{Mirror, State, StreamKey};
use crate::dtype::{DType, Shape};
use crate::error::Result;
use crate::limits;
use crate::log::Repeats;
use crate::metrics;
use crate::naming::{host_name, key, segment_name};
use crate::os::threads::Stop;
use crate::os::threads::lock;
use crate::settings::{Role, Settings};
use crate::wire::bench;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// What every thread of the control plane may use.
pub struct Shared {
    /// What the daemon was told.
    pub settings: Settings,
    /// The central state; only `dao-command` changes it.
    pub state: Arc<Mutex<State>>,
    /// The queue to `dao-command`.
    pub commands: Commands,
    /// How Redis does.
    pub health: Arc<Health>,
    /// Segment files that cannot be served: name of the file, why. For `status`.
    pub refused_files: Mutex<BTreeMap<String, String>>,
    /// Held while this machine goes into the registry or out of it, and by who writes its entries there.
    pub registering: Mutex<()>,
    /// Keys of this machine may stand in the registry.
    pub entered: AtomicBool,
    /// Somebody has asked the daemon to stop.
    pub stop_asked: Stop,
    /// Names of an earlier run that may still stand in the registry, until `dao-shm-sync` takes them.
    leftover: Mutex<BTreeSet<String>>,
    /// Links that no operation uses now.
    idle_registries: Mutex<Vec<Registry>>,
}

/// Links to Redis that are kept open between operations.
const IDLE_REGISTRIES_MAX: usize = 4;

impl Shared {
    /// With nothing done yet.
    pub fn new(settings: Settings, state: State, commands: Commands, health: Arc<Health>) -> Shared {
        Shared {
            settings,
            state: Arc::new(Mutex::new(state)),
            commands,
            health,
            refused_files: Mutex::default(),
            registering: Mutex::default(),
            entered: AtomicBool::new(false),
            stop_asked: Stop::new(),
            leftover: Mutex::default(),
            idle_registries: Mutex::default(),
        }
    }

    /// Does something with a link to Redis that nobody else uses meanwhile.
    pub fn with_registry<T>(&self, work: impl FnOnce(&mut Registry) -> T) -> T {
        let idle = || lock(&self.idle_registries);
        let taken = idle().pop();
        let mut registry = taken.unwrap_or_else(|| self.registry());
        let result = work(&mut registry);
        let mut idle = idle();
        if idle.len() < IDLE_REGISTRIES_MAX {
            idle.push(registry);
        }
        result
    }

    /// Segments that stand in the registry and may be none any more.
    pub fn leave_to_sync(&self, names: BTreeSet<String>) {
        lock(&self.leftover).extend(names);
    }

    fn take_leftover(&self) -> BTreeSet<String> {
        std::mem::take(&mut *lock(&self.leftover))
    }

    /// A registry of the caller's own, not connected yet.
    pub fn registry(&self) -> Registry {
        Registry::new(&self.settings, Arc::clone(&self.health))
    }

    /// Is this machine to stand in the registry?
    pub fn is_registered(&self) -> bool {
        lock(&self.state).registered
    }
}

/// `dao-heartbeat`: rewrites last_connect every interval.
pub fn heartbeat(shared: &Shared, stop: &Stop) {
    let mut registry = shared.registry();
    let interval = shared.settings.heartbeat_interval;
    loop {
        let nobody_leaves = lock(&shared.registering);
        let failed = shared.is_registered() && registry.beat(&shared.settings.hostname).is_err();
        drop(nobody_leaves);
        // After a failure sooner: Redis may be back long before the next beat is due.
        if stop.wait(if failed { interval.min(Duration::from_secs(1)) } else { interval }) {
            return;
        }
    }
}

/// A machine that is put into the registry gets its segments there so soon.
const REGISTERED_POLL: Duration = Duration::from_millis(20);

/// What `dao-shm-sync` knows of the registry's view of our segments.
struct Synchronized {
    /// As they stand in Redis. `None`: unknown, all of it is written again.
    entries: Option<BTreeMap<String, (Shape, DType)>>,
    /// Names of an earlier run that may still stand there.
    leftover: BTreeSet<String>,
    passes: u64,
    repeats: Repeats,
}

/// `dao-shm-sync`: local segments against the registry, once a second while this machine stands there.
pub fn shm_sync(shared: &Shared, stop: &Stop) {
    let mut registry = shared.registry();
    let mut synchronized = Synchronized {
        entries: None,
        leftover: BTreeSet::new(),
        passes: 0,
        repeats: Repeats::new(Duration::from_secs(60)),
    };
    let mut unfinished = BTreeSet::new();
    loop {
        if !shared.is_registered() {
            synchronized.entries = None;
            if stop.wait(REGISTERED_POLL) {
                return;
            }
            continue;
        }
        synchronized.leftover.extend(shared.take_leftover());
        let found = match served(shared, &mut unfinished) {
            Ok(found) => found,
            Err(error) => {
                if synchronized.repeats.due("short").is_some() {
                    crate::warn!("segments cannot be looked at ({error}); what is registered stays so");
                }
                if stop.wait(limits::SHM_SYNC_INTERVAL) {
                    return;
                }
                continue;
            }
        };
        let files: BTreeMap<String, PathBuf> =
            found.iter().map(|(name, (path, _))| (name.clone(), path.clone())).collect();
        // A full queue: the next pass tells again.
        let _ = shared.commands.offer(Command::LocalSegments(files));
        let nobody_leaves = lock(&shared.registering);
        if !shared.is_registered() {
            continue;
        }
        let specs = found.into_iter().map(|(name, (_, spec))| (name, spec)).collect();
        if synchronize(shared, &mut registry, &mut synchronized, specs).is_err() {
            synchronized.entries = None; // who knows what stands there now
        }
        drop(nobody_leaves);
        if stop.wait(limits::SHM_SYNC_INTERVAL) {
            return;
        }
    }
}

fn synchronize(
    shared: &Shared,
    registry: &mut Registry,
    known: &mut Synchronized,
    found: BTreeMap<String, (Shape, DType)>,
) -> Result<()> {
    let me = lock(&shared.state).me.clone();
    let host = &me.hostname;
    known.passes += 1;
    let entry = registry.machine_entry(host, me.ip, me.role.name())?;
    if let Entry::Contested(other) = entry
        && known.repeats.due("contested").is_some()
    {
        crate::error!(
            "another daemon is registered as '{host}', from {other}: give one of them another --hostname"
        );
    }
    let lost = entry == Entry::Lost;
    // The four keys tell of a Redis that was emptied; a key that somebody deleted by hand is found at leisure.
    let leisurely = known.passes.is_multiple_of(30);
    let partly_lost = !lost
        && leisurely
        && match &known.entries {
            Some(entries) => !registry.segments_registered(host, &entries.keys().collect::<Vec<_>>())?,
            None => false,
        };
    if lost {
        crate::info!(
            "the registry does not know this machine (any more): it is registered with all its segments"
        );
        registry.register_machine(host, me.ip, me.role.name())?;
    }
    if lost || partly_lost {
        known.entries = None;
        let _ = shared.commands.offer(Command::RegistryLost);
    }
    let before = known.entries.take();
    let changed: BTreeMap<String, (Shape, DType)> = found
        .iter()
        .filter(|(name, spec)| before.as_ref().and_then(|before| before.get(*name)) != Some(spec))
        .map(|(name, spec)| (name.clone(), *spec))
        .collect();
    let mut gone: BTreeSet<String> = std::mem::take(&mut known.leftover);
    gone.extend(before.unwrap_or_default().into_keys());
    gone.retain(|name| !found.contains_key(name));
    if let Err(error) = registry.update_segments(host, &changed, &gone) {
        known.leftover = gone;
        return Err(error);
    }
    for name in changed.keys() {
        crate::debug!("registered '{name}'");
    }
    known.entries = Some(found);
    Ok(())
}

/// `dao-conn-monitor`: requests to us and records for us, when woken or every two seconds; our heartbeats as a client.
pub fn conn_monitor(shared: &Shared, stop: &Stop) {
    let mut registry = shared.registry();
    let scratches = Scratches::begin(&shared.settings.shm_dir);
    let mut rounds = Rounds { last_poll: None, next_heartbeat: Instant::now(), scratches };
    while !stop.is_set() {
        // A hint is only a hint: without the channel everything still works, at the pace of polling.
        let listened = listen(shared, stop, |hint| rounds.go(shared, &mut registry, hint));
        if let Err(why) = listened {
            crate::debug!("no wake-ups over Redis: {why}");
        }
        rounds.go(shared, &mut registry, None);
        if stop.wait(Duration::from_millis(500)) {
            return;
        }
    }
}

/// Listens on our wake channel until stopped or cut off. `on_turn` is called with each hint, and several times a
/// second without.
fn listen(
    shared: &Shared,
    stop: &Stop,
    mut on_turn: impl FnMut(Option<&str>),
) -> std::result::Result<(), String> {
    let settings = &shared.settings;
    let text = |error: redis::RedisError| {
        let why = describe(&error, settings);
        if refusal(&error) == Some(Refusal::NotPermitted) {
            // Only hints go this way, and nobody would miss them; so it is said here.
            shared
                .health
                .not_permitted(&format!("No wake-ups from Redis at {}: {why}", settings.redis_address()));
        }
        why
    };
    let mut connection = open_for_messages(settings).map_err(text)?;
    // As an ordinary command: `PubSub::subscribe` takes a refusal for a yes.
    redis::cmd("SUBSCRIBE").arg(key::wake_channel(&settings.hostname)).exec(&mut connection).map_err(text)?;
    let mut messages = connection.as_pubsub();
    messages.set_read_timeout(Some(Duration::from_millis(100))).map_err(text)?;
    let mut silent_since = Instant::now();
    while !stop.is_set() {
        match messages.get_message() {
            Ok(message) => {
                silent_since = Instant::now();
                on_turn(Some(&String::from_utf8_lossy(message.get_payload_bytes())));
            }
            Err(error) if error.is_timeout() => {
                on_turn(None);
                // A dead link never says so by itself.
                if silent_since.elapsed() > Duration::from_secs(5) {
                    silent_since = Instant::now();
                    messages.set_read_timeout(Some(limits::REDIS_IO_TIMEOUT)).map_err(text)?;
                    messages.ping::<redis::Value>().map_err(text)?;
                    messages.set_read_timeout(Some(Duration::from_millis(100))).map_err(text)?;
                }
            }
            Err(error) => return Err(text(error)),
        }
    }
    Ok(())
}

struct Rounds {
    last_poll: Option<Instant>,
    next_heartbeat: Instant,
    scratches: Scratches,
}

impl Rounds {
    fn go(&mut self, shared: &Shared, registry: &mut Registry, hint: Option<&str>) {
        let now = Instant::now();
        if let Some(release) = hint.and_then(|hint| hint.strip_prefix("release ")) {
            let _ = on_release_hint(shared, registry, release);
        }
        if let Some(words) = hint.and_then(|hint| hint.strip_prefix(bench::HINT)) {
            let _ = self.scratches.on_hint(shared, registry, words); // who asks asks again
        }
        self.scratches.look_at(shared);
        if now >= self.next_heartbeat {
            let wanted: Vec<StreamKey> = lock(&shared.state).wanted.keys().cloned().collect();
            if registry.client_heartbeats(&wanted, &shared.settings.hostname).is_ok() {
                self.next_heartbeat = now + limits::CLIENT_HEARTBEAT_INTERVAL;
            }
        }
        // Asked anew at every turn: somebody may have begun to wait since the last poll.
        let unresolved = lock(&shared.state).unresolved();
        let interval = if unresolved { limits::RECORD_POLL_INTERVAL } else { limits::REQUEST_POLL_INTERVAL };
        if hint.is_some() || self.last_poll.is_none_or(|last| now.duration_since(last) >= interval) {
            self.last_poll = Some(now);
            // Redis away: the link has said so, the next round asks again.
            let _ = poll(shared, registry);
        }
    }
}

fn poll(shared: &Shared, registry: &mut Registry) -> Result<()> {
    let state = lock(&shared.state);
    let names: Vec<String> = state.segments.keys().cloned().collect();
    let wanted: Vec<StreamKey> = state.wanted.keys().cloned().collect();
    drop(state);
    if shared.is_registered() {
        let requests = registry.requests(&shared.settings.hostname, &names)?;
        if !requests.is_empty() {
            let _ = shared.commands.offer(Command::Requests(requests));
        }
    }
    if !wanted.is_empty() {
        let facts = registry.remote_facts(&wanted)?;
        compare_clocks(shared, &wanted, &facts);
        let _ = shared.commands.offer(Command::Remote(wanted.into_iter().zip(facts).collect()));
    }
    Ok(())
}

/// Tells each mirror how far its owner's clock is ahead of ours.
fn compare_clocks(shared: &Shared, wanted: &[StreamKey], facts: &[RemoteFacts]) {
    let Some(ours) = shared.health.clock() else { return };
    let state = lock(&shared.state);
    for (key, facts) in wanted.iter().zip(facts) {
        if let (Some(theirs), Some(Mirror::Running { info, .. })) = (facts.clock, state.mirrors.get(key)) {
            let ahead = ours.ahead_of_us(&theirs);
            info.stats.hops.clock.set(ahead.offset_ns, ahead.error_ns);
        }
    }
}

/// `release <name> <client>`: believed only if that client's heartbeat is gone. Who else is there is looked up first,
/// so that its stream goes on.
fn on_release_hint(shared: &Shared, registry: &mut Registry, hint: &str) -> Result<()> {
    let Some((name, client)) = hint.split_once(' ') else { return Ok(()) };
    if segment_name(name).is_err() || host_name(client).is_err() {
        return Ok(());
    }
    let (host, known_at) = (&shared.settings.hostname, Instant::now());
    let ages = registry.clients_with_heartbeat(host, name)?;
    if ages.iter().any(|entry| entry.client == client) {
        return Ok(());
    }
    shared.commands.offer(Command::ClientAges { name: name.to_owned(), ages, all: true })?;
    shared.commands.offer(Command::ClientGone { name: name.to_owned(), client: client.to_owned(), known_at })
}

/// `dao-client-hb-monitor`: the heartbeats of our clients, every fifteen seconds.
pub fn client_hb_monitor(shared: &Shared, stop: &Stop) {
    let mut registry = shared.registry();
    while !stop.wait(limits::CLIENT_CHECK_INTERVAL) {
        let clients: Vec<(String, Vec<String>)> = lock(&shared.state)
            .clients
            .iter()
            .map(|(name, clients)| (name.clone(), clients.keys().cloned().collect()))
            .collect();
        for (name, clients) in clients {
            let Ok(mut ages) = registry.client_ages(&shared.settings.hostname, &name, &clients) else {
                break;
            };
            let alive =
                ages.iter().any(|entry| entry.age.is_some_and(|age| age <= limits::CLIENT_SILENT_MAX));
            if !alive {
                // Before a stream ends: somebody in no record may keep it alive.
                let Ok(everybody) = registry.clients_with_heartbeat(&shared.settings.hostname, &name) else {
                    break;
                };
                ages.retain(|entry| !everybody.iter().any(|other| other.client == entry.client));
                ages.extend(everybody);
            }
            let _ = shared.commands.offer(Command::ClientAges { name, ages, all: !alive });
        }
    }
}

/// `dao-stale-cleanup`: on the master, machines past their time; also keeps the lease on the master's role.
pub fn stale_cleanup(shared: &Shared, stop: &Stop) {
    let is_master = || {
        let state = lock(&shared.state);
        state.registered && state.me.role == Role::Master
    };
    let me = lock(&shared.state).me.clone();
    let mut registry = shared.registry();
    let mut watch = Watch::default();
    let mut next_removal = Instant::now() + limits::STALE_CLEANUP_INTERVAL;
    let mut warned = false;
    loop {
        if !is_master() {
            watch = Watch::default();
            next_removal = Instant::now() + limits::STALE_CLEANUP_INTERVAL;
            if stop.wait(Duration::from_millis(500)) {
                return;
            }
            continue;
        }
        let ours = registry.lease_master(&me.hostname);
        if matches!(ours, Ok(false)) && !std::mem::replace(&mut warned, true) {
            crate::warn!(
                "two masters: another machine holds the master's lease; give one of them --role minion"
            );
        }
        if let Err(error) = cleanup_round(&mut registry, &mut watch, &me.hostname, &mut next_removal) {
            crate::debug!("no clean-up: {error}");
            // What was seen before an outage says nothing of who lives after it: everybody gets time to beat again.
            watch = Watch::default();
            next_removal = Instant::now() + limits::STALE_CLEANUP_INTERVAL;
        }
        if stop.wait(limits::STALE_CLEANUP_INTERVAL / 3) {
            return;
        }
    }
}

fn cleanup_round(registry: &mut Registry, watch: &mut Watch, me: &str, next: &mut Instant) -> Result<()> {
    let machines = registry.machines()?;
    let (now, redis_now_ns) = (Instant::now(), registry.time_ns()?);
    watch.observe(&machines, now);
    if now < *next {
        return Ok(());
    }
    *next = now + limits::STALE_CLEANUP_INTERVAL;
    for host in watch.dead(&machines, now, redis_now_ns, limits::MACHINE_TTL) {
        if host != me {
            let keys = registry.remove_machine(&host)?;
            metrics::MACHINES_REMOVED.add(1);
            crate::info!("{host} is silent and was removed from the registry ({keys} keys)");
        }
    }
    Ok(())
}
