//! Where streams are made: ports, sockets, segments of mirrors, and the threads that run them.

use crate::bridge::freshness;
use crate::bridge::mirror::Mirror;
use crate::bridge::origins::Origins;
use crate::bridge::outlet::Outlet;
use crate::bridge::pace::{Pace, Role};
use crate::bridge::publisher::{Back, Publisher, Started};
use crate::bridge::stats::{MirrorStats, Wire};
use crate::bridge::streams::{Bidirectional, Link, Owned};
use crate::bridge::watch::Watcher;
use crate::bridge::worker;
use crate::control::commands::{Command, Commands};
use crate::control::places::Places;
use crate::control::state::{BackSocket, MirrorInfo, StreamKey, Target};
use crate::error::{Error, Kind, Result};
use crate::limits;
use crate::naming::{MIRROR_PREFIX, SEGMENT_SUFFIX, mirror_name, segment_path};
use crate::os::locks::FileLock;
use crate::os::process;
use crate::os::threads::Handle;
use crate::settings::{Settings, Transport};
use crate::shm::{self, Access, OpenError, Segment, SegmentSpec, Writer};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};

/// Makes publishers and mirrors. Used by `dao-command` alone.
pub struct Workshop {
    settings: Settings,
    bind_ip: Ipv4Addr,
    commands: Commands,
    descriptor_limit: u64,
    /// Ports are handed out in turn: a client of a segment that has just ended must not find another one at its port.
    next_port: u16,
    mirrors_started: u64,
    /// Looks at quiet segments for all publishers.
    watcher: Arc<Watcher>,
    places: Places,
    /// Bound sockets of write-backs whose mirror has yet to start.
    backs: BTreeMap<StreamKey, Outlet>,
    /// Counts of a stream go on when its mirror is made anew.
    mirror_stats: BTreeMap<StreamKey, Arc<MirrorStats>>,
    /// Our mirrors' files.
    locks: BTreeMap<StreamKey, FileLock>,
}

impl Workshop {
    /// Streams will bind `ip` unless the settings say otherwise; how they end is told to `commands`.
    pub fn new(settings: Settings, ip: Ipv4Addr, commands: Commands) -> Workshop {
        Workshop {
            places: Places::prepare(&settings),
            watcher: Arc::default(),
            bind_ip: settings.bind.unwrap_or(ip),
            next_port: settings.base_pub_port,
            settings,
            commands,
            descriptor_limit: process::raise_descriptor_limit(),
            mirrors_started: 0,
            backs: BTreeMap::new(),
            mirror_stats: BTreeMap::new(),
            locks: BTreeMap::new(),
        }
    }

    /// Where a mirror's file is.
    pub fn mirror_path(&self, key: &StreamKey) -> PathBuf {
        segment_path(&self.settings.shm_dir, &mirror_name(&key.0, &key.1))
    }

    /// A daemon without descriptors cannot look at its segments: a stream is refused before, and a new one sooner than one
    /// that there was.
    fn check_descriptors(&self, known: bool) -> std::result::Result<(), String> {
        let open = process::descriptors_open();
        let spare = if known { limits::DESCRIPTORS_SPARE / 4 } else { limits::DESCRIPTORS_SPARE };
        if open + limits::DESCRIPTORS_PER_STREAM + spare > self.descriptor_limit {
            return Err(format!(
                "{open} of {} descriptors are in use; raise the limit (ulimit -n) to serve more streams",
                self.descriptor_limit
            ));
        }
        Ok(())
    }

    /// Binds the preferred port, or the next free one in turn.
    fn bind(&mut self, preferred: Option<u16>, frame_bytes: usize) -> std::result::Result<Outlet, String> {
        let base = self.settings.base_pub_port;
        let end = base.saturating_add(limits::PORTS_TRIED);
        let start = self.next_port.clamp(base, end);
        let ports = preferred.into_iter().chain(start..end).chain(base..start);
        let streams = self.settings.transport != Transport::Zmq;
        let outlet = Outlet::bind(self.bind_ip, ports, frame_bytes, streams, self.settings.allow.clone())?;
        let port = outlet.port();
        if preferred != Some(port) {
            self.next_port = port.checked_add(1).filter(|port| *port < end).unwrap_or(base);
        }
        Ok(outlet)
    }

    /// Starts a publisher of the segment at `path`, on the port that it had before if that is free. The sender tells it
    /// who writes back.
    pub fn publisher(
        &mut self,
        name: &str,
        path: &Path,
        preferred_port: Option<u16>,
    ) -> std::result::Result<(Handle, Started, Sender<Vec<Link>>), String> {
        self.check_descriptors(preferred_port.is_some())?;
        let facts = shm::probe(path).map_err(|error| error.to_string())?;
        let socket = self.bind(preferred_port, facts.spec.frame_bytes())?;
        let origins = Arc::new(Origins::default());
        let (mut publisher, started) =
            Publisher::new(path, socket, Arc::clone(&origins), None).map_err(|error| error.to_string())?;
        publisher.set_watch(self.watcher.watch(path));
        let (orders, receiver) = channel();
        let owned = Owned::new(publisher, origins, path.to_owned(), receiver);
        let commands = self.commands.clone();
        let (ended_name, boot_id) = (name.to_owned(), started.boot_id);
        let (pace, place) = (Pace::new(self.settings.poll, Role::Publisher), self.places.take());
        let handle = worker::run(&format!("dao-pub-{name}"), pace, place, owned, move |why| {
            commands.insist(Command::PublisherEnded { name: ended_name, boot_id, why });
        });
        let handle = handle.map_err(|error| format!("no thread: {error}"))?;
        Ok((handle, started, orders))
    }

    /// Binds the socket on which a mirror's write-back will go out: its port stands in the request.
    pub fn open_back(
        &mut self,
        key: &StreamKey,
        frame_bytes: usize,
    ) -> std::result::Result<BackSocket, String> {
        let known = self.mirror_stats.contains_key(key);
        self.check_descriptors(known)?;
        let socket = self.bind(None, frame_bytes)?;
        let back = BackSocket { port: socket.port(), tcp_port: socket.tcp_port(), boot_id: socket.boot_id() };
        self.backs.insert(key.clone(), socket);
        Ok(back)
    }

    /// Starts a mirror, with its write-back where the target is bidirectional. The number tells this one from others of
    /// the same stream.
    pub fn mirror(&mut self, key: &StreamKey, target: Target) -> Result<(u64, Handle, MirrorInfo)> {
        self.mirrors_started += 1;
        let number = self.mirrors_started;
        let refused = |why: String| Error::new(Kind::Os, why);
        let known = self.mirror_stats.contains_key(key);
        self.check_descriptors(known).map_err(refused)?;
        let path = self.mirror_path(key);
        self.check_own(key, &path)?;
        self.lock(key, &path)?;
        let segment = open_mirror(&path, &self.settings, &key.0, &target)?;
        self.lock(key, &path)?; // it may be another file now
        let writer = Writer::new(segment).map_err(|error| refused(error.to_string()))?;
        let stats = Arc::clone(self.mirror_stats.entry(key.clone()).or_default());
        let mut mirror = Mirror::new(target.source, writer, Arc::clone(&stats));
        let commands = self.commands.clone();
        let ended = key.clone();
        let on_end = move |why| commands.insist(Command::MirrorEnded { key: ended, number, why });
        let thread = format!("dao-mir-{}", key.1);
        let (poll, place) = (self.settings.poll, self.places.take());
        let (handle, back) = if target.bidirectional {
            let no_socket = || refused("the socket of its write-back is gone".to_owned());
            let socket = self.backs.remove(key).ok_or_else(no_socket)?;
            let (origins, me) = (Arc::new(Origins::default()), socket.boot_id());
            mirror.share(Arc::clone(&origins), me);
            let (back, started) = Publisher::new(&path, socket, origins, Some(Back { me, open: false }))
                .map_err(|error| refused(error.to_string()))?;
            let both = Bidirectional::new(mirror, back, &path).map_err(|ended| refused(ended.to_string()))?;
            (worker::run(&thread, Pace::new(poll, Role::Publisher), place, both, on_end), Some(started.stats))
        } else {
            (worker::run(&thread, Pace::new(poll, Role::Mirror), place, mirror, on_end), None)
        };
        let handle = handle.map_err(|error| refused(format!("no thread: {error}")))?;
        let (shape, dtype) = (target.shape, target.dtype);
        Ok((
            number,
            handle,
            MirrorInfo { path, shape, dtype, transport: target.source.transport(), stats, back },
        ))
    }

    /// A mirror has one writer: another daemon that shares the directory is kept out.
    pub fn lock(&mut self, key: &StreamKey, path: &Path) -> Result<()> {
        if self.locks.get(key).is_some_and(|lock| lock.is_of(path)) {
            return Ok(());
        }
        match FileLock::take(path) {
            Ok(Some(lock)) => drop(self.locks.insert(key.clone(), lock)),
            Ok(None) => {
                let sentence = format!(
                    "Mirror {} is kept by another daemon of this machine; use that one.",
                    path.display()
                );
                return Err(Error::new(Kind::Os, sentence));
            }
            // Not there yet, or nothing that can be kept: making it says so.
            Err(_) => {}
        }
        Ok(())
    }

    /// Removes the mirrors of an earlier daemon of this name that nobody knows of any more, with their semaphores. Only
    /// what says that it is one, and no other daemon keeps.
    pub fn remove_orphans(&self, known: impl Iterator<Item = StreamKey>) {
        let Settings { shm_dir, hostname, .. } = &self.settings;
        let unfinished = shm::remove_unfinished(shm_dir);
        if unfinished > 0 {
            crate::info!(
                "{unfinished} segments are removed that were never finished: who made them was killed"
            );
        }
        // What is remembered beside a control socket elsewhere is not known here.
        if self.settings.control_path().parent() != Some(shm_dir) {
            return;
        }
        let known: Vec<PathBuf> = known.map(|key| self.mirror_path(&key)).collect();
        let entries = std::fs::read_dir(shm_dir).into_iter().flatten().flatten();
        for path in entries.map(|entry| entry.path()).filter(|path| !known.contains(path)) {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if !name.starts_with(MIRROR_PREFIX) || !name.ends_with(SEGMENT_SUFFIX) {
                continue;
            }
            let Ok(segment) = Segment::open(&path, Access::Read) else { continue };
            if !freshness::is_kept_by(&segment, hostname) {
                continue;
            }
            let Ok(Some(_lock)) = FileLock::take(&path) else { continue };
            match shm::remove(&path) {
                Ok(()) => crate::info!(
                    "{} is removed: a daemon of this name left it, and nobody asked for it to stay",
                    path.display()
                ),
                Err(error) => crate::warn!("{} cannot be removed: {error}", path.display()),
            }
        }
    }

    /// Is what stands under a mirror's name a mirror of ours, or nothing? Whatever else it is stays as it is.
    pub fn check_own(&self, key: &StreamKey, path: &Path) -> Result<()> {
        // One that we have written until now is ours, whatever was done to it since.
        if self.locks.get(key).is_some_and(|lock| lock.is_of(path)) {
            return Ok(());
        }
        shm::check_own(path).map_err(|why| {
            let sentence = format!("Mirror {} is not made over a file that is none: {why}.", path.display());
            Error::new(Kind::Os, sentence)
        })
    }

    /// The write-back of this stream will not be.
    pub fn forget_back(&mut self, key: &StreamKey) {
        self.backs.remove(key);
    }

    /// Nobody wants this stream any more.
    pub fn forget(&mut self, key: &StreamKey) {
        self.mirror_stats.remove(key);
        self.locks.remove(key);
        self.forget_back(key);
    }
}

/// Opens the mirror's segment: the one that is there, if shape, type and keywords are the same, so that readers that
/// have it mapped go on; else a new one in its place.
fn open_mirror(path: &Path, settings: &Settings, owner: &str, target: &Target) -> Result<Segment> {
    // Python's wire has no keywords: those of a mirror that was ours before stay as they are.
    let any_keywords = target.source.wire() == Wire::Python;
    let keywords = freshness::with_ours(target.keywords);
    let fits = |segment: &Segment| {
        let spec = segment.spec();
        spec.shape == target.shape
            && spec.dtype == target.dtype
            && (any_keywords || spec.keywords == keywords)
            && (keywords == target.keywords || freshness::is_kept_by(segment, &settings.hostname))
    };
    match Segment::open(path, Access::ReadWrite) {
        Ok(segment) if fits(&segment) => return Ok(segment),
        Ok(_) | Err(OpenError::NotThere) => {}
        Err(error) => crate::info!("{} is made anew: {error}", path.display()),
    }
    let layout = shm::newest_layout(&settings.shm_dir);
    // Where programs write, too, the newest frame is what counts.
    let ring = layout.depth_offset().is_some() && !target.bidirectional;
    let frame_bytes = target.shape.frame_bytes(target.dtype);
    let fill =
        (limits::MIRROR_RING_BYTES / frame_bytes).clamp(limits::MIRROR_DEPTH_MIN, limits::MIRROR_DEPTH_MAX);
    let depth = if ring { fill } else { 1 };
    let spec =
        SegmentSpec { shape: target.shape, dtype: target.dtype, layout, depth: depth as u32, keywords };
    let all = freshness::keywords(target.keywords, owner, &settings.hostname);
    shm::create(path, &spec, &all).map_err(|error| Error::new(Kind::Os, error.to_string()))
}
