//! What a daemon can be asked for, over the control protocol and by the program that it runs in. Each operation runs
//! on the asker's thread, with a link to Redis of its own; only commands on the queue change the state.

use crate::bridge::publisher::Started;
use crate::control::bench;
use crate::control::commands::Command;
use crate::control::discovery::{Found, Login, discover_redis_as};
use crate::control::loops::Shared;
use crate::control::registration;
use crate::control::registry::Registry;
use crate::control::roles;
use crate::control::state::{Holder, LinkInfo, Mirror, MirrorInfo, Publisher, StreamKey};
use crate::error::{Error, Kind, Result};
use crate::limits;
use crate::metrics;
use crate::naming::{host_name, normalized_segment_name};
use crate::os::process;
use crate::os::threads::Stop;
use crate::os::threads::lock;
use crate::settings::{Role, Transport};
use crate::wire::control::{Get, Op, Scan};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

/// Somebody who asks: a connection, or a program that has the daemon inside. His leases end with him.
pub struct Caller {
    number: u64,
    inside: bool,
    /// Set when he has gone: what he waits for is given up.
    pub gone: Stop,
}

impl Caller {
    /// A caller. `inside`: in the daemon's own process, or at its standard input.
    pub fn new(inside: bool) -> Caller {
        static NUMBERS: AtomicU64 = AtomicU64::new(0);
        Caller { number: NUMBERS.fetch_add(1, Ordering::Relaxed), inside, gone: Stop::new() }
    }

    fn holder(&self, lease: bool) -> Holder {
        match (lease, self.inside) {
            (false, _) => Holder::Kept,
            (true, false) => Holder::Lease(self.number),
            (true, true) => Holder::Inside(self.number),
        }
    }

    /// Ends his leases; returns when their mirrors are gone, if nobody else holds them.
    pub fn leave(&self, shared: &Shared) {
        let answer = self.begin_to_leave(shared);
        let _ = answer.recv_timeout(limits::COMMAND_REPLY_TIMEOUT); // late or not, it is on its way
    }

    fn begin_to_leave(&self, shared: &Shared) -> Receiver<Result<()>> {
        self.gone.set();
        let (reply, answer) = sync_channel(1);
        shared.commands.insist(Command::CallerGone { caller: self.number, reply });
        answer
    }
}

/// Carries out one operation. Blocks for at most its time-out and Redis'.
pub fn run(shared: &Shared, caller: &Caller, op: Op) -> Result<Value> {
    match op {
        Op::Ping => Ok(ping(shared)),
        Op::Start | Op::RegisterMachine => {
            asking(shared, |registry| registration::register(shared, registry))
        }
        Op::Stop => {
            shared.stop_asked.set();
            let _ = caller.begin_to_leave(shared);
            Ok(json!({}))
        }
        Op::Status => Ok(status(shared)),
        Op::ListMachines => {
            let machines = asking(shared, Registry::machines)?;
            Ok(machines.iter().map(|machine| machine.to_json()).collect())
        }
        Op::GetRemoteShm(asked) => {
            let got = get(shared, caller, &asked);
            if caller.gone.is_set() {
                let _ = caller.begin_to_leave(shared); // the lease may have come after he went
            }
            got
        }
        Op::ReleaseRemoteShm { hostname, shm } => release(shared, caller, stream_key(&hostname, &shm)?, true),
        Op::DeregisterMachine { hostname } => {
            asking(shared, |registry| deregister(shared, registry, hostname))
        }
        Op::CleanupStaleMachines { ttl } => asking(shared, |registry| cleanup(shared, registry, ttl)),
        Op::Discover(scan) => discover(shared, caller, scan),
        Op::BenchSegment { hostname, frame_bytes } => {
            bench::ask(shared, &hostname, frame_bytes, &|| caller.gone.is_set())
        }
        Op::Echoes { hostname, shm } => bench::echoes(shared, &stream_key(&hostname, &shm)?),
    }
}

/// Asks Redis now, whatever failed a moment ago.
fn asking<T>(shared: &Shared, work: impl FnOnce(&mut Registry) -> Result<T>) -> Result<T> {
    shared.with_registry(|registry| {
        registry.link().retry_now();
        work(registry)
    })
}

/// Gives up a lease, and nothing but that: how many still hold the mirror.
pub fn release_lease(shared: &Shared, caller: &Caller, hostname: &str, shm: &str) -> Result<Value> {
    release(shared, caller, stream_key(hostname, shm)?, false)
}

fn ping(shared: &Shared) -> Value {
    let settings = &shared.settings;
    json!({
        "hostname": settings.hostname,
        "pid": std::process::id(),
        "version": env!("CARGO_PKG_VERSION"),
        "redis_host": settings.redis_host,
        "redis_port": settings.redis_port,
        "shm_dir": settings.shm_dir.display().to_string(),
        "control": settings.control_path().display().to_string(),
        "registered": shared.is_registered(),
    })
}

fn stream_key(hostname: &str, shm: &str) -> Result<StreamKey> {
    let refused = |why| Error::new(Kind::Value, why);
    Ok((host_name(hostname).map_err(refused)?.to_owned(), normalized_segment_name(shm).map_err(refused)?))
}

/// The sentence for a machine that Redis does not know.
fn unknown_machine(host: &str) -> Error {
    Error::new(Kind::Key, format!("No machine '{host}' registered in Redis."))
}

fn get(shared: &Shared, caller: &Caller, asked: &Get) -> Result<Value> {
    let key = stream_key(&asked.hostname, &asked.shm)?;
    // How frames travel is for the two daemons to agree on; what neither has is refused.
    if Transport::parse(&asked.transport).is_none() {
        let sentence = format!("{} connector not implemented.", asked.transport);
        return Err(Error::new(Kind::NotImplemented, sentence));
    }
    let (host, name) = &key;
    let deadline = Instant::now() + asked.timeout.min(limits::COMMAND_TIMEOUT_MAX);
    let known = lock(&shared.state).wanted.get(&key).is_some_and(|wanted| wanted.established);
    let facts = match asking(shared, |registry| registry.remote_facts(std::slice::from_ref(&key))) {
        Ok(mut facts) => facts.pop().unwrap_or_default(),
        // A mirror that is there is had without Redis.
        Err(_) if known => lock(&shared.state).remote.get(&key).cloned().unwrap_or_default(),
        Err(error) => return Err(error),
    };
    if !known {
        if !facts.known {
            return Err(unknown_machine(host));
        }
        if facts.spec.is_none() {
            return Err(Error::new(Kind::Key, format!("No SHM '{name}' registered for host '{host}'.")));
        }
    }
    static TICKETS: AtomicU64 = AtomicU64::new(0);
    let ticket = TICKETS.fetch_add(1, Ordering::Relaxed);
    let (reply, answer) = sync_channel(1);
    shared.commands.offer(Command::Want {
        key: key.clone(),
        bidirectional: asked.bidirectional,
        holder: caller.holder(asked.lease),
        facts,
        ticket,
        reply,
    })?;
    let info = loop {
        // In slices: a caller who has gone waits for nothing.
        let left = deadline.saturating_duration_since(Instant::now());
        match answer.recv_timeout(left.min(Duration::from_millis(100))) {
            Ok(result) => break result?,
            Err(RecvTimeoutError::Disconnected) => {
                return Err(Error::new(Kind::Os, "The daemon is stopping."));
            }
            Err(RecvTimeoutError::Timeout) if left.is_zero() || caller.gone.is_set() => {
                shared.commands.insist(Command::Abandon { key: key.clone(), ticket });
                if caller.gone.is_set() {
                    return Err(Error::new(Kind::Os, "Nobody waits for it any more."));
                }
                let seconds = asked.timeout.as_secs_f64();
                let sentence = format!(
                    "Remote server '{host}' did not start publishing SHM '{name}' within {seconds} s."
                );
                return Err(Error::new(Kind::Timeout, sentence));
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
    };
    Ok(mirror_json(&key, &info, wait_for_first_frame(&info, caller)))
}

/// Up to two seconds, or until a frame is in, and what is written goes back where that was asked for. The number of
/// frames then.
fn wait_for_first_frame(info: &MirrorInfo, caller: &Caller) -> u64 {
    let deadline = Instant::now() + limits::FIRST_FRAME_TIMEOUT;
    loop {
        let frames = info.stats.frames.load(Ordering::Relaxed);
        let open = info.back.as_ref().is_none_or(|back| back.open.load(Ordering::Relaxed));
        if frames > 0 && open || Instant::now() >= deadline || caller.gone.wait(Duration::from_millis(1)) {
            return frames;
        }
    }
}

fn mirror_json(key: &StreamKey, info: &MirrorInfo, frames: u64) -> Value {
    json!({
        "path": info.path.display().to_string(),
        "hostname": key.0,
        "shm": key.1,
        "shape": info.shape.axes(),
        "dtype": info.dtype.name(),
        "transport": info.transport,
        "frames": frames,
    })
}

fn release(shared: &Shared, caller: &Caller, key: StreamKey, kept_too: bool) -> Result<Value> {
    let (reply, answer) = sync_channel(1);
    shared.commands.offer(Command::Release { key, caller: caller.number, kept_too, reply })?;
    match answer.recv_timeout(limits::COMMAND_REPLY_TIMEOUT) {
        Ok(result) => result.map(|held_by| json!({"held_by": held_by})),
        Err(_) => Err(Error::new(Kind::Timeout, "The daemon did not release the mirror within 10 s.")),
    }
}

fn require_master(shared: &Shared, sentence: &str) -> Result<()> {
    if lock(&shared.state).me.role == Role::Master {
        Ok(())
    } else {
        Err(Error::new(Kind::Permission, sentence))
    }
}

fn deregister(shared: &Shared, registry: &mut Registry, hostname: Option<String>) -> Result<Value> {
    let me = &shared.settings.hostname;
    let host = hostname.unwrap_or_else(|| me.clone());
    host_name(&host).map_err(|why| Error::new(Kind::Value, why))?;
    if host == *me {
        return Ok(json!({"hostname": host, "keys": registration::unregister(shared, registry)?}));
    }
    require_master(shared, "Only master may deregister other machines.")?;
    match registry.remove_machine(&host)? {
        0 => Err(unknown_machine(&host)),
        keys => Ok(json!({"hostname": host, "keys": keys})),
    }
}

fn cleanup(shared: &Shared, registry: &mut Registry, ttl: Duration) -> Result<Value> {
    require_master(shared, "Only master may clean up stale machines.")?;
    let machines = registry.machines()?;
    let now_ns = registry.time_ns()?;
    let mut removed = Vec::new();
    for host in roles::older_than(&machines, now_ns, ttl) {
        if host != shared.settings.hostname {
            registry.remove_machine(&host)?;
            metrics::MACHINES_REMOVED.add(1);
            removed.push(host);
        }
    }
    Ok(json!({"removed": removed}))
}

/// One scan at a time: each takes threads and descriptors.
fn discover(shared: &Shared, caller: &Caller, scan: Scan) -> Result<Value> {
    static SCANNING: Mutex<()> = Mutex::new(());
    let Ok(_one_at_a_time) = SCANNING.try_lock() else {
        return Err(Error::new(Kind::Os, "Another scan is under way; try again when it is done."));
    };
    let free =
        process::descriptor_limit().saturating_sub(process::descriptors_open() + limits::DESCRIPTORS_SPARE);
    let workers = scan.max_workers.min(free as usize);
    if workers == 0 {
        return Err(Error::new(Kind::Os, "No descriptors are left for a scan; raise the limit (ulimit -n)."));
    }
    let login = Login::of(&shared.settings);
    let found =
        discover_redis_as(scan.port, scan.timeout, workers, login.as_ref(), &|| caller.gone.is_set())?;
    Ok(found.iter().map(Found::to_json).collect())
}

/// `dao-command` answers within this time: then a line on how the daemon does.
pub fn pulse(shared: &Shared, patience: Duration) -> Result<String> {
    let (reply, answered) = sync_channel(1);
    shared.commands.offer(Command::Pulse { reply })?;
    let late =
        |_| Error::new(Kind::Timeout, format!("The command thread does not answer within {patience:?}."));
    answered.recv_timeout(patience).map_err(late)??;
    let redis = if shared.health.get().is_ok() { "Redis answers" } else { "Redis is away" };
    let state = lock(&shared.state);
    let (role, published, mirrors) = (state.me.role, state.publishers.len(), state.mirrors.len());
    Ok(format!("{role}; {redis}; publishers: {published}; mirrors: {mirrors}"))
}

/// The JSON of `status --json`.
fn status(shared: &Shared) -> Value {
    let health = shared.health.get();
    let refused = lock(&shared.refused_files).clone();
    let state = lock(&shared.state);
    let publishers: Vec<Value> = state
        .publishers
        .iter()
        .map(|(name, publisher)| {
            let clients: Vec<&String> =
                state.clients.get(name).map(|map| map.keys().collect()).unwrap_or_default();
            let mut entry = match publisher {
                Publisher::Running(started) => {
                    let mut entry = started.stats.to_json();
                    entry.insert("port".into(), json!(started.port));
                    entry.insert("tcp_port".into(), json!(started.tcp_port));
                    entry
                }
                Publisher::Failed { why, .. } => failed(why),
            };
            if let (Some(links), Publisher::Running(started)) = (state.links.get(name), publisher) {
                entry.insert("written_by".into(), written_by(links));
                entry.insert("last_writer".into(), json!(last_writer(links, started, &state.me.hostname)));
            }
            entry.insert("shm".into(), json!(name));
            entry.insert("clients".into(), json!(clients));
            Value::Object(entry)
        })
        .collect();
    let mirrors: Vec<Value> = state
        .wanted
        .iter()
        .map(|(key, wanted)| {
            let mut entry = match state.mirrors.get(key) {
                Some(Mirror::Running { info, target, .. }) => {
                    let mut entry = info.stats.to_json(target.source.wire());
                    entry.insert("path".into(), json!(info.path.display().to_string()));
                    entry.insert("transport".into(), json!(info.transport));
                    entry.insert("port".into(), json!(target.source.port));
                    entry.insert("bidirectional".into(), json!(target.bidirectional));
                    if let Some(back) = &info.back {
                        let mut written = back.to_json();
                        written.insert("open".into(), json!(back.open.load(Ordering::Relaxed)));
                        entry.insert("written_back".into(), Value::Object(written));
                    }
                    entry
                }
                Some(Mirror::Failed { why, .. }) => failed(&why.message),
                None => failed("it waits for its owner"),
            };
            entry.insert("hostname".into(), json!(key.0));
            entry.insert("shm".into(), json!(key.1));
            entry.insert("kept".into(), json!(wanted.holders.contains(&Holder::Kept)));
            entry.insert("leases".into(), json!(wanted.leases()));
            Value::Object(entry)
        })
        .collect();
    let counters: Map<String, Value> =
        metrics::TABLE.iter().map(|counter| (counter.label().to_owned(), json!(counter.get()))).collect();
    json!({
        "hostname": state.me.hostname,
        "ip": state.me.ip.to_string(),
        "role": state.me.role.name(),
        "registered": state.registered,
        "version": env!("CARGO_PKG_VERSION"),
        "redis": {
            "connected": health.is_ok(),
            "host": shared.settings.redis_host,
            "port": shared.settings.redis_port,
            "error": health.err().or_else(|| shared.health.why_no_writes()),
        },
        "segments": state.segments.keys().collect::<Vec<_>>(),
        "refused_files": refused,
        "publishers": publishers,
        "mirrors": mirrors,
        "counters": counters,
    })
}

/// What each client wrote back into a segment of ours.
fn written_by(links: &BTreeMap<String, LinkInfo>) -> Value {
    links
        .iter()
        .map(|(client, link)| {
            let mut entry = link.stats.to_json(link.source.wire());
            entry.insert("client".into(), json!(client));
            Value::Object(entry)
        })
        .collect()
}

/// Who wrote the newest frame: a client, or this machine.
fn last_writer<'a>(links: &'a BTreeMap<String, LinkInfo>, started: &Started, me: &'a str) -> Option<&'a str> {
    let local = (started.stats.last_local_ns.load(Ordering::Relaxed), me);
    let clients = links
        .iter()
        .map(|(client, link)| (link.stats.last_frame_ns.load(Ordering::Relaxed), client.as_str()));
    clients.chain([local]).max().filter(|(at_ns, _)| *at_ns != 0).map(|(_, name)| name)
}

/// The fields of a stream that does not run, so that every reader finds those it looks for.
fn failed(why: &str) -> Map<String, Value> {
    let entry = json!({
        "error": why, "port": null, "path": null, "connected": false, "wire": null, "frames": 0, "lost": {},
        "lost_known": null, "rate_hz": 0.0, "age_us": null,
    });
    if let Value::Object(map) = entry { map } else { Map::new() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::commands::Commands;
    use crate::control::redis_link::Health;
    use crate::control::state::{Identity, State};
    use crate::settings::Settings;
    use std::net::Ipv4Addr;
    use std::sync::Arc;

    #[test]
    fn a_command_thread_that_hangs_has_no_pulse() {
        let me = Identity { hostname: "m".into(), ip: Ipv4Addr::LOCALHOST, role: Role::Minion };
        let (commands, queue) = Commands::new();
        let shared = Shared::new(Settings::named("m"), State::new(me), commands, Arc::<Health>::default());
        let why = pulse(&shared, Duration::from_millis(20)).unwrap_err();
        assert_eq!(why.kind, Kind::Timeout);
        let answers = std::thread::spawn(move || {
            while let Ok(Command::Pulse { reply }) = queue.recv() {
                let _ = reply.try_send(Ok(()));
            }
        });
        let status = pulse(&shared, Duration::from_secs(10)).unwrap();
        assert_eq!(status, "minion; Redis is away; publishers: 0; mirrors: 0");
        drop(shared);
        answers.join().unwrap();
    }
}
