//! What `bench --to` needs of two daemons: at the owner a segment that may be written, which is made because another
//! machine asks for it and goes when that one does not use it any more; at the client the times of its echoes.

use crate::control::loops::Shared;
use crate::control::registry::Registry;
use crate::control::state::{Mirror, StreamKey};
use crate::dtype::{DType, Shape};
use crate::error::{Error, Kind, Result};
use crate::limits;
use crate::metrics;
use crate::naming::{BENCH_PREFIX, SEGMENT_SUFFIX, host_name, key, segment_path};
use crate::os::locks::FileLock;
use crate::os::threads::lock;
use crate::settings::allows;
use crate::shm::{self, SegmentSpec};
use crate::wire::bench::{Ask, answer, parse_answer};
use redis::cmd;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// The hint is given again so often: it may have come while nobody listened.
const HINT_INTERVAL: Duration = Duration::from_secs(1);
/// Between two looks for the answer.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// An answer that nobody fetches goes by itself.
const ANSWER_EXPIRY_S: u64 = 10;

/// Client: asks `host` for a segment with frames of so many bytes. Returns when it stands in the registry; `given_up` is
/// asked whether anybody still waits.
pub fn ask(shared: &Shared, host: &str, frame_bytes: usize, given_up: &dyn Fn() -> bool) -> Result<Value> {
    let host = host_name(host).map_err(|why| Error::new(Kind::Value, why))?;
    let me = &shared.settings.hostname;
    if host == me {
        let sentence =
            format!("'{host}' is this machine: `daoserver bench` without --to measures within one.");
        return Err(Error::new(Kind::Value, sentence));
    }
    let ask = Ask { client: me.clone(), frame_bytes };
    let stream: StreamKey = (host.to_owned(), ask.segment()?);
    shared.with_registry(|registry| {
        registry.link().retry_now();
        let looked_up = registry.remote_facts(std::slice::from_ref(&stream))?;
        if !looked_up.iter().any(|facts| facts.known) {
            return Err(Error::new(Kind::Key, format!("No machine '{host}' registered in Redis.")));
        }
        let made = wait_for_answer(registry, &ask, &stream, given_up);
        let answer_key = key::bench(host, me);
        let _ = registry.link().run(|c| cmd("DEL").arg(&answer_key).query::<()>(c)); // or it expires
        made.map(|()| json!({"shm": stream.1}))
    })
}

fn wait_for_answer(
    registry: &mut Registry,
    ask: &Ask,
    stream: &StreamKey,
    given_up: &dyn Fn() -> bool,
) -> Result<()> {
    let (host, name) = stream;
    let (answer_key, channel) = (key::bench(host, &ask.client), key::wake_channel(host));
    // One of an earlier question.
    registry.link().run(|c| cmd("DEL").arg(&answer_key).query::<()>(c))?;
    let deadline = Instant::now() + limits::BENCH_ANSWER_TIMEOUT;
    let (mut next_hint, mut made, mut unheard) = (Instant::now(), false, false);
    while Instant::now() < deadline {
        if given_up() {
            return Err(Error::new(Kind::Os, "Nobody waits for it any more."));
        }
        if !made && Instant::now() >= next_hint {
            next_hint = Instant::now() + HINT_INTERVAL;
            let hint = ask.to_hint();
            let listeners: i64 = registry.link().run(|c| cmd("PUBLISH").arg(&channel).arg(&hint).query(c))?;
            // Twice: a daemon that has just started, or has lost Redis for a moment, will listen soon.
            if std::mem::replace(&mut unheard, listeners == 0) && listeners == 0 {
                let sentence = format!(
                    "Host '{host}' has no segment to bench with: no daoserver listens there (a Python daemon does \
                     not offer one)."
                );
                return Err(Error::new(Kind::NotImplemented, sentence));
            }
        }
        if !made {
            let text: Option<Vec<u8>> = registry.link().run(|c| cmd("GET").arg(&answer_key).query(c))?;
            let text = text.filter(|text| text.len() <= limits::REDIS_VALUE_BYTES_MAX);
            let said = text.and_then(|text| parse_answer(&String::from_utf8(text).ok()?, name));
            made = said.transpose()?.is_some();
        }
        if made {
            let facts = registry.remote_facts(std::slice::from_ref(stream))?;
            if facts.iter().any(|facts| facts.spec.is_some()) {
                return Ok(());
            }
        }
        std::thread::sleep(LOOK_INTERVAL);
    }
    let seconds = limits::BENCH_ANSWER_TIMEOUT.as_secs();
    if made {
        let sentence = format!("Host '{host}' did not register SHM '{name}' within {seconds} s.");
        return Err(Error::new(Kind::Timeout, sentence));
    }
    let sentence = format!(
        "Host '{host}' did not offer a segment to bench with within {seconds} s: its daoserver may be an older one."
    );
    Err(Error::new(Kind::NotImplemented, sentence))
}

/// Client: when what was written into a mirror came back, since the last time this was asked.
pub fn echoes(shared: &Shared, stream: &StreamKey) -> Result<Value> {
    let state = lock(&shared.state);
    let Some(Mirror::Running { info, .. }) = state.mirrors.get(stream) else {
        let (host, name) = stream;
        return Err(Error::new(Kind::Key, format!("No mirror of SHM '{name}' of host '{host}' runs here.")));
    };
    let (stats, back) = (&info.stats, info.back.as_deref());
    let of_back = |count: fn(&crate::bridge::stats::PublisherStats) -> u64| back.map_or(0, count);
    // The count first: the times of all these are there.
    let returned = stats.echoes.load(Relaxed);
    // With the state held, so by one at a time.
    let times = stats.echo_times.get_or_init(Default::default).take();
    Ok(json!({
        "returned": returned,
        "lost": {
            "lapped": of_back(|back| back.lapped.load(Relaxed)) + stats.lapped.load(Relaxed),
            "stale": of_back(|back| back.stale.load(Relaxed)),
            "queue_full": of_back(|back| back.queue_full.load(Relaxed)) + stats.queue_full.load(Relaxed),
            "transport": stats.transport.load(Relaxed),
            "mirror_busy": stats.mirror_busy.load(Relaxed),
        },
        "open": back.is_some_and(|back| back.open.load(Relaxed)),
        "transport": info.transport,
        "echoes_ns": times
            .iter()
            .map(|echo| [echo.round_trip_ns, echo.out_ns, echo.there_ns])
            .collect::<Vec<_>>(),
    }))
}

/// A segment for the bench of a client.
struct Scratch {
    client: String,
    path: PathBuf,
    /// Another daemon that shares the directory leaves the file alone while this is held.
    _lock: FileLock,
    /// Stays until then, whether anybody uses it or not.
    until: Instant,
}

/// Owner: all of them. They go with their clients, and with this.
pub struct Scratches {
    directory: PathBuf,
    entries: BTreeMap<String, Scratch>,
}

impl Scratches {
    /// None yet. Removes those that a daemon has left that was killed.
    pub fn begin(directory: &Path) -> Scratches {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            let (file_name, path) = (entry.file_name(), entry.path());
            let ours = file_name
                .to_str()
                .is_some_and(|name| name.starts_with(BENCH_PREFIX) && name.ends_with(SEGMENT_SUFFIX));
            if ours
                && shm::check_own(&path).is_ok()
                && let Ok(Some(_nobody_elses)) = FileLock::take(&path)
            {
                remove(&path);
            }
        }
        Scratches { directory: directory.to_owned(), entries: BTreeMap::new() }
    }

    /// Somebody asks, in these words behind the hint's beginning: makes a segment, or says why not.
    pub fn on_hint(&mut self, shared: &Shared, registry: &mut Registry, words: &str) -> Result<()> {
        let Some(ask) = Ask::parse(words).filter(|_| shared.is_registered()) else { return Ok(()) };
        let ip_key = key::machine(&ask.client, "ip");
        let ip: Option<Vec<u8>> = registry.link().run(|c| cmd("GET").arg(&ip_key).query(c))?;
        let ip = ip.and_then(|bytes| String::from_utf8(bytes).ok()?.parse().ok());
        let used = |name: &str| lock(&shared.state).clients.contains_key(name);
        let made = may_write(shared, ip).and_then(|()| self.make(&ask, &used, Instant::now()));
        if let Err(why) = &made {
            if why.kind == Kind::Permission {
                metrics::PEERS_REFUSED.add(1);
            }
            crate::warn!("{} gets no segment to bench with: {why}", ask.client);
        }
        let answer_key = key::bench(&shared.settings.hostname, &ask.client);
        let text = answer(&made);
        registry
            .link()
            .run(|c| cmd("SET").arg(&answer_key).arg(&text).arg("EX").arg(ANSWER_EXPIRY_S).query(c))
    }

    fn make(&mut self, ask: &Ask, used: &dyn Fn(&str) -> bool, now: Instant) -> Result<String> {
        let name = ask.segment()?;
        // A client has one at a time, but for those that it still uses.
        self.entries.retain(|other, entry| entry.client != ask.client || *other == name || used(other));
        let until = now + limits::BENCH_UNUSED_MAX;
        if let Some(entry) = self.entries.get_mut(&name).filter(|entry| entry.path.exists()) {
            entry.until = until;
            return Ok(name);
        }
        self.entries.remove(&name);
        if self.entries.len() >= limits::BENCH_SEGMENTS_MAX {
            let sentence =
                format!("Others bench with {} segments of this machine already.", self.entries.len());
            return Err(Error::new(Kind::Os, sentence));
        }
        let refused = |why: String| Error::new(Kind::Os, format!("SHM '{name}' cannot be made: {why}."));
        let path = segment_path(&self.directory, &name);
        shm::check_own(&path).map_err(&refused)?;
        if path.exists() && !matches!(FileLock::take(&path), Ok(Some(_))) {
            return Err(refused("another daemon has one of this name".to_owned()));
        }
        let axis = u32::try_from(ask.frame_bytes).map_err(|why| refused(why.to_string()))?;
        let shape = Shape::new(&[axis]).map_err(&refused)?;
        let layout = shm::newest_layout(&self.directory);
        let spec = SegmentSpec { shape, dtype: DType::U8, layout, depth: 1, keywords: 0 };
        shm::create(&path, &spec, &[]).map_err(|why| refused(why.to_string()))?;
        let kept = FileLock::take(&path).ok().flatten();
        let Some(kept) = kept else {
            remove(&path);
            return Err(refused("its file cannot be locked".to_owned()));
        };
        crate::info!("'{name}' is made for a bench of {}", ask.client);
        let entry = Scratch { client: ask.client.clone(), path, _lock: kept, until };
        self.entries.insert(name.clone(), entry);
        Ok(name)
    }

    /// Removes those that nobody uses any more. `used`: is it a client's now?
    pub fn look(&mut self, used: &dyn Fn(&str) -> bool, now: Instant) {
        self.entries.retain(|name, entry| {
            if used(name) {
                entry.until = now + limits::BENCH_DESERTED_MAX;
            }
            now < entry.until
        });
    }

    /// The same, by what the state says.
    pub fn look_at(&mut self, shared: &Shared) {
        if !self.entries.is_empty() {
            self.look(&|name| lock(&shared.state).clients.contains_key(name), Instant::now());
        }
    }
}

/// Do the flags of this daemon let that machine write?
fn may_write(shared: &Shared, ip: Option<Ipv4Addr>) -> Result<()> {
    let settings = &shared.settings;
    let host = &settings.hostname;
    let refused = |why: &str| Err(Error::new(Kind::Permission, format!("'{host}' {why}.")));
    match ip {
        _ if settings.read_only => {
            refused("is read-only: it has no segment that another machine may bench with")
        }
        Some(ip) if allows(&settings.allow, ip) => Ok(()),
        Some(_) => refused("does not let this machine in (--allow)"),
        None => refused("does not know this machine: it has no address in Redis"),
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

fn remove(path: &Path) {
    match shm::remove(path) {
        Ok(()) => crate::info!("{} was for a bench and is removed", path.display()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => crate::warn!("{} cannot be removed: {error}", path.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Directory(PathBuf);

    impl Directory {
        fn new(name: &str) -> Directory {
            let path = std::env::temp_dir().join(format!("daoserver-bench-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&path).unwrap();
            Directory(path)
        }

        fn segments(&self) -> usize {
            std::fs::read_dir(&self.0).unwrap().count()
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn ask(number: u32, frame_bytes: usize) -> Ask {
        Ask { client: format!("t{}c{number}", std::process::id()), frame_bytes }
    }

    #[test]
    fn a_segment_stays_for_its_client_and_a_little_longer() {
        let directory = Directory::new("stays");
        let mut scratches = Scratches::begin(&directory.0);
        let begun = Instant::now();
        let after = |s: u64| begun + Duration::from_secs(s);
        let name = scratches.make(&ask(1, 64), &|_| false, begun).unwrap();
        assert_eq!(shm::probe(&segment_path(&directory.0, &name)).unwrap().spec.frame_bytes(), 64);
        scratches.look(&|_| false, after(14));
        assert_eq!(directory.segments(), 1, "its client may still come");
        scratches.look(&|used| used == name, after(60));
        scratches.look(&|_| false, after(62));
        assert_eq!(directory.segments(), 1, "it may come back");
        scratches.look(&|_| false, after(64));
        assert_eq!(directory.segments(), 0);
    }

    #[test]
    fn what_is_no_segment_of_ours_stays() {
        let directory = Directory::new("foreign");
        let foreign = segment_path(&directory.0, &ask(1, 64).segment().unwrap());
        std::fs::write(&foreign, "somebody's notes").unwrap();
        let mut scratches = Scratches::begin(&directory.0);
        let refused = scratches.make(&ask(1, 64), &|_| false, Instant::now()).unwrap_err();
        assert!(refused.message.contains("it is no segment of this name"), "{refused}");
        assert_eq!(std::fs::read(&foreign).unwrap(), b"somebody's notes");
    }

    #[test]
    fn a_client_has_one_at_a_time_and_all_together_a_few() {
        let directory = Directory::new("few");
        let mut scratches = Scratches::begin(&directory.0);
        let now = Instant::now();
        for frame_bytes in [16, 32, 64, 64] {
            scratches.make(&ask(1, frame_bytes), &|_| false, now).unwrap();
            assert_eq!(directory.segments(), 1);
        }
        for number in 2..=limits::BENCH_SEGMENTS_MAX as u32 {
            scratches.make(&ask(number, 16), &|_| true, now).unwrap();
        }
        assert_eq!(scratches.make(&ask(99, 16), &|_| true, now).unwrap_err().kind, Kind::Os);
        assert!(scratches.make(&ask(1, 1 << 30), &|_| true, now).is_err());
        drop(scratches);
        assert_eq!(directory.segments(), 0);
    }

    #[test]
    fn what_a_killed_daemon_has_left_is_removed_and_anothers_is_not() {
        let directory = Directory::new("left");
        let mut killed = Scratches::begin(&directory.0);
        let name = killed.make(&ask(7, 16), &|_| false, Instant::now()).unwrap();
        drop(Scratches::begin(&directory.0));
        assert_eq!(directory.segments(), 1, "its daemon lives");
        // As the kernel does when it dies: the lock goes, the file stays.
        let path = segment_path(&directory.0, &name);
        let copy = std::fs::read(&path).unwrap();
        drop(killed);
        std::fs::write(&path, copy).unwrap();
        drop(Scratches::begin(&directory.0));
        assert_eq!(directory.segments(), 0);
    }
}
