//! What the control socket can be asked for. Each runs on the asking connection's thread, with that connection's own
//! link to Redis; only commands on the queue change the state.

use crate::bridge::publisher::Started;
use crate::control::commands::Command;
use crate::control::executor::lock;
use crate::control::loops::Shared;
use crate::control::registry::Registry;
use crate::control::roles;
use crate::control::state::{LinkInfo, Mirror, MirrorInfo, Publisher, StreamKey};
use crate::error::{Error, Kind, Result};
use crate::limits;
use crate::metrics;
use crate::naming::{host_name, normalized_segment_name};
use crate::settings::Role;
use crate::wire::control::Op;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

/// Carries out one operation. Blocks for at most its time-out and Redis'.
pub fn run(shared: &Shared, registry: &mut Registry, op: Op) -> Result<Value> {
    registry.link().retry_now();
    match op {
        Op::Ping => Ok(json!({"hostname": shared.settings.hostname, "pid": std::process::id()})),
        Op::Status => Ok(status(shared)),
        Op::ListMachines => Ok(registry.machines()?.iter().map(|machine| machine.to_json()).collect()),
        Op::GetRemoteShm { hostname, shm, bidirectional, timeout } => {
            get(shared, registry, stream_key(&hostname, &shm)?, bidirectional, timeout)
        }
        Op::ReleaseRemoteShm { hostname, shm } => release(shared, stream_key(&hostname, &shm)?),
        Op::DeregisterMachine { hostname } => deregister(shared, registry, hostname),
        Op::CleanupStaleMachines { ttl } => cleanup(shared, registry, ttl),
    }
}

fn stream_key(hostname: &str, shm: &str) -> Result<StreamKey> {
    let refused = |why| Error::new(Kind::Value, why);
    Ok((host_name(hostname).map_err(refused)?.to_owned(), normalized_segment_name(shm).map_err(refused)?))
}

/// The sentence for a machine that Redis does not know.
fn unknown_machine(host: &str) -> Error {
    Error::new(Kind::Key, format!("No machine '{host}' registered in Redis."))
}

fn get(
    shared: &Shared,
    registry: &mut Registry,
    key: StreamKey,
    bidirectional: bool,
    timeout: Duration,
) -> Result<Value> {
    let (host, name) = &key;
    let deadline = Instant::now() + timeout;
    let known = lock(&shared.state).wanted.get(&key).is_some_and(|wanted| wanted.established);
    let facts = match registry.remote_facts(std::slice::from_ref(&key)) {
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
    shared.commands.offer(Command::Want { key: key.clone(), bidirectional, facts, ticket, reply })?;
    let info = match answer.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        Ok(result) => result?,
        Err(RecvTimeoutError::Disconnected) => return Err(Error::new(Kind::Os, "The daemon is stopping.")),
        Err(RecvTimeoutError::Timeout) => {
            let _ = shared.commands.offer(Command::Abandon { key: key.clone(), ticket });
            let seconds = timeout.as_secs_f64();
            let sentence =
                format!("Remote server '{host}' did not start publishing SHM '{name}' within {seconds} s.");
            return Err(Error::new(Kind::Timeout, sentence));
        }
    };
    Ok(mirror_json(&key, &info, wait_for_first_frame(&info)))
}

/// Up to two seconds, or until a frame is in. The number of frames then.
fn wait_for_first_frame(info: &MirrorInfo) -> u64 {
    let deadline = Instant::now() + limits::FIRST_FRAME_TIMEOUT;
    loop {
        let frames = info.stats.frames.load(Ordering::Relaxed);
        if frames > 0 || Instant::now() >= deadline {
            return frames;
        }
        std::thread::sleep(Duration::from_millis(1));
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

fn release(shared: &Shared, key: StreamKey) -> Result<Value> {
    let (reply, answer) = sync_channel(1);
    shared.commands.offer(Command::Release { key, reply })?;
    match answer.recv_timeout(Duration::from_secs(10)) {
        Ok(result) => result.map(|()| json!({})),
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
        let (reply, answer) = sync_channel(1);
        shared.commands.offer(Command::Register { registered: false, reply })?;
        let _ = answer.recv_timeout(Duration::from_secs(10)); // late or not, the keys go now
        return Ok(json!({"hostname": host, "keys": registry.deregister_self(me)?}));
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

/// The JSON of `status --json`.
fn status(shared: &Shared) -> Value {
    let health = shared.health.get();
    let refused = shared.refused_files.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone();
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
        .keys()
        .map(|key| {
            let mut entry = match state.mirrors.get(key) {
                Some(Mirror::Running { info, target, .. }) => {
                    let mut entry = info.stats.to_json(target.source.wire());
                    entry.insert("path".into(), json!(info.path.display().to_string()));
                    entry.insert("transport".into(), json!(info.transport));
                    entry.insert("port".into(), json!(target.source.port));
                    entry.insert("bidirectional".into(), json!(target.bidirectional));
                    if let Some(back) = &info.back {
                        entry.insert("written_back".into(), Value::Object(back.to_json()));
                    }
                    entry
                }
                Some(Mirror::Failed { why, .. }) => failed(&why.message),
                None => failed("it waits for its owner"),
            };
            entry.insert("hostname".into(), json!(key.0));
            entry.insert("shm".into(), json!(key.1));
            Value::Object(entry)
        })
        .collect();
    let counters: Map<String, Value> =
        metrics::TABLE.iter().map(|counter| (counter.label().to_owned(), json!(counter.get()))).collect();
    json!({
        "hostname": state.me.hostname,
        "ip": state.me.ip.to_string(),
        "role": state.me.role.name(),
        "version": env!("CARGO_PKG_VERSION"),
        "redis": {
            "connected": health.is_ok(),
            "host": shared.settings.redis_host,
            "port": shared.settings.redis_port,
            "error": health.err(),
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
