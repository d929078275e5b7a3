//! `dao-command`: takes commands from the queue, changes the state, carries out what reconciling asks for.

use crate::bridge::mirror::Mirror as MirrorWorker;
use crate::bridge::mirror::Source;
use crate::bridge::origins::Origins;
use crate::bridge::publisher::{Back, Publisher as PublisherWorker, Started};
use crate::bridge::sockets::PubSocket;
use crate::bridge::stats::{MirrorStats, Wire};
use crate::bridge::streams::{Bidirectional, Link, Owned};
use crate::bridge::{backoff, worker};
use crate::control::commands::{Command, Commands, Reply};
use crate::control::persist::Memory;
use crate::control::reconcile::Action;
use crate::control::registry::Registry;
use crate::control::state::{
    BackSocket, LinkInfo, MirrorInfo, REOPEN_AFTER, RETRY_AFTER, State, StreamKey, Target,
};
use crate::error::{Error, Kind, Result};
use crate::limits;
use crate::log::Repeats;
use crate::metrics;
use crate::naming::{mirror_name, segment_path};
use crate::os::threads::Handle;
use crate::os::{process, scheduling};
use crate::settings::Settings;
use crate::shm::{self, Access, OpenError, Segment, SegmentSpec, Writer};
use crate::wire::record::Request;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// Without a command the state is looked at so often: retries come due by time.
const TICK: Duration = Duration::from_millis(250);

/// Locks the state. A poisoned lock holds a state that a panic left half changed; it is pure data, and reconciling
/// starts from whatever it says.
pub fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Everything that `dao-command` alone owns.
pub struct Executor {
    settings: Settings,
    state: Arc<Mutex<State>>,
    registry: Registry,
    commands: Commands,
    memory: Memory,
    context: zmq::Context,
    descriptor_limit: u64,
    /// Ports are handed out in turn: a client of a segment that has just ended must not find another one at its port.
    next_port: u16,
    publishers: BTreeMap<String, Handle>,
    /// Where each publisher hears who writes back.
    orders: BTreeMap<String, Sender<Vec<Link>>>,
    /// Bound sockets of write-backs whose mirror has yet to start.
    backs: BTreeMap<StreamKey, PubSocket>,
    mirrors: BTreeMap<StreamKey, Handle>,
    mirrors_started: u64,
    failures: Repeats,
    /// Counts of a stream go on when its mirror is made anew.
    mirror_stats: BTreeMap<StreamKey, Arc<MirrorStats>>,
    waiting: BTreeMap<StreamKey, Vec<(u64, Reply<MirrorInfo>)>>,
}

impl Executor {
    /// An executor with nothing running. `memory` has what an earlier run was asked for.
    pub fn new(
        settings: Settings,
        state: Arc<Mutex<State>>,
        registry: Registry,
        commands: Commands,
        memory: Memory,
        context: zmq::Context,
    ) -> Executor {
        Executor {
            next_port: settings.base_pub_port,
            settings,
            state,
            registry,
            commands,
            memory,
            context,
            descriptor_limit: process::raise_descriptor_limit(),
            publishers: BTreeMap::new(),
            orders: BTreeMap::new(),
            backs: BTreeMap::new(),
            mirrors: BTreeMap::new(),
            mirrors_started: 0,
            failures: Repeats::new(Duration::from_secs(60)),
            mirror_stats: BTreeMap::new(),
            waiting: BTreeMap::new(),
        }
    }

    /// The body of `dao-command`.
    pub fn run(mut self, queue: &Receiver<Command>) {
        scheduling::prefer_latency(); // libzmq's threads inherit it: they are started from this one
        loop {
            match queue.recv_timeout(TICK) {
                Ok(Command::Stop) | Err(RecvTimeoutError::Disconnected) => return self.stop(),
                Ok(command) => self.on_command(command),
                Err(RecvTimeoutError::Timeout) => {}
            }
            self.reconcile();
        }
    }

    fn on_command(&mut self, command: Command) {
        let now = Instant::now();
        let mut state = lock(&self.state);
        match command {
            Command::LocalSegments(segments) => state.on_local_segments(segments),
            Command::Requests(requests) => {
                drop(state);
                requests
                    .into_iter()
                    .for_each(|(name, text, request)| self.on_request(name, text, &request, now));
            }
            Command::Remote(found) => found.into_iter().for_each(|(key, facts)| state.on_remote(key, facts)),
            Command::ClientAges { name, ages, all } => {
                for client in state.on_client_ages(&name, &ages, all, now) {
                    metrics::CLIENTS_EVICTED.add(1);
                    crate::info!("{client} is silent and is no client of '{name}' any more");
                }
            }
            Command::ClientGone { name, client } => state.on_client_gone(&name, &client),
            Command::RegistryLost => state.on_registry_lost(),
            Command::Want { key, bidirectional, facts, ticket, reply } => {
                match state.on_want(key.clone(), bidirectional, facts) {
                    Err(error) => answer(&reply, Err(error)),
                    Ok(()) => match running(&state, &key) {
                        Some(info) => answer(&reply, Ok(info)),
                        None => self.waiting.entry(key).or_default().push((ticket, reply)),
                    },
                }
            }
            Command::Abandon { key, ticket } => {
                let others = self.waiting.entry(key.clone()).or_default();
                others.retain(|(waiting, _)| *waiting != ticket);
                if others.is_empty() {
                    self.waiting.remove(&key);
                    state.on_abandon(&key);
                }
            }
            Command::Register { registered, reply } => {
                state.registered = registered;
                drop(state);
                self.reconcile(); // answered when our records are gone
                answer(&reply, Ok(()));
            }
            Command::Release { key, reply } => {
                let known = state.on_release(&key);
                drop(state);
                self.reconcile(); // answered when it is gone
                self.remember();
                let (host, name) = &key;
                let unknown =
                    || Error::new(Kind::Key, format!("No mirror of SHM '{name}' of host '{host}' here."));
                answer(&reply, if known { Ok(()) } else { Err(unknown()) });
            }
            Command::PublisherEnded { name, boot_id, why } => {
                let current = matches!(state.publishers.get(&name),
                    Some(crate::control::state::Publisher::Running(started)) if started.boot_id == boot_id);
                if current {
                    crate::info!("publisher of '{name}' ended: {why}");
                    state.on_publisher_failed(name.clone(), why.to_string(), now + REOPEN_AFTER);
                    drop(state);
                    self.publishers.remove(&name);
                }
            }
            Command::MirrorEnded { key, number, why } => {
                crate::warn!("mirror of '{}' of {} ended: {why}", key.1, key.0);
                state.on_mirror_ended(key, number, why.to_string(), now);
            }
            Command::Stop => {}
        }
    }

    fn on_request(&mut self, name: String, text: String, request: &Request, now: Instant) {
        let mut state = lock(&self.state);
        let (client, ip) = (&request.client_hostname, request.client_ip);
        // One that cannot be answered yet is found again and again.
        if state.requests.get(&name) != Some(&text) {
            crate::info!("{client} ({ip}) asks for '{name}'");
        }
        if let Err(error) = state.on_request(name.clone(), text.clone(), request, now) {
            drop(state);
            if error.kind == Kind::Permission {
                metrics::PEERS_REFUSED.add(1);
            }
            crate::warn!("the request of {client} ({ip}) for '{name}' is refused: {error}");
            let _ = self.registry.delete_request(&self.settings.hostname, &name, &text);
        }
    }

    /// Acts until desired and actual have met, or a few times: what is left then waits for the next tick.
    fn reconcile(&mut self) {
        for _ in 0..8 {
            let actions = lock(&self.state).reconcile(Instant::now());
            if actions.is_empty() {
                return;
            }
            let mut progress = false;
            for action in actions {
                crate::debug!("{action:?}");
                progress |= self.act(action);
            }
            if !progress {
                return;
            }
        }
    }

    /// Carries out one action, and tells the state. `false`: it has to be tried again later.
    fn act(&mut self, action: Action) -> bool {
        match action {
            Action::StartPublisher { name, path, preferred_port } => {
                self.start_publisher(name, &path, preferred_port)
            }
            Action::StopPublisher { name } => {
                if let Some(handle) = self.publishers.remove(&name) {
                    join(handle);
                }
                crate::info!("'{name}' is published no more: it has no client");
                lock(&self.state).on_publisher_stopped(&name);
                true
            }
            Action::WriteRecords { name, records } => self.write_records(name, records),
            Action::DeleteRequest { name, text } => {
                let done = self.registry.delete_request(&self.settings.hostname, &name, &text).is_ok();
                if done {
                    lock(&self.state).requests.remove(&name);
                }
                done
            }
            Action::Ask { key } => self.ask(&key),
            Action::SetLinks { name, links } => {
                self.set_links(name, links);
                true
            }
            Action::OpenBack { key, frame_bytes } => self.open_back(&key, frame_bytes),
            Action::StartMirror { key, target } => self.start_mirror(key, target),
            Action::StopMirror { key } => {
                if let Some(handle) = self.mirrors.remove(&key) {
                    join(handle);
                }
                lock(&self.state).on_mirror_stopped(&key);
                true
            }
            Action::RefuseMirror { key, target, why } => {
                self.mirror_failed(key, target, why, RETRY_AFTER);
                true
            }
            Action::Forget { key } => {
                self.forget(&key);
                true
            }
        }
    }

    /// libzmq aborts the process when descriptors run out: a stream is refused before.
    fn check_descriptors(&self) -> std::result::Result<(), String> {
        let open = process::descriptors_open();
        if open + limits::DESCRIPTORS_PER_STREAM + limits::DESCRIPTORS_SPARE > self.descriptor_limit {
            return Err(format!(
                "{open} of {} descriptors are in use; raise the limit (ulimit -n) to serve more streams",
                self.descriptor_limit
            ));
        }
        Ok(())
    }

    fn bind_ip(&self) -> Ipv4Addr {
        self.settings.bind.unwrap_or_else(|| lock(&self.state).me.ip)
    }

    fn start_publisher(&mut self, name: String, path: &Path, preferred_port: Option<u16>) -> bool {
        let started = self.make_publisher(&name, path, preferred_port);
        let mut state = lock(&self.state);
        match started {
            Ok((handle, started)) => {
                crate::info!("'{name}' is published on port {}", started.port);
                self.publishers.insert(name.clone(), handle);
                state.on_publisher_started(name, started);
                drop(state);
                self.remember();
                true
            }
            Err(why) => {
                if state.on_publisher_failed(name.clone(), why.clone(), Instant::now() + RETRY_AFTER) {
                    if path.exists() {
                        crate::error!("'{name}' cannot be published: {why}");
                    } else {
                        crate::info!("'{name}' is gone; it is published again when it comes back");
                    }
                }
                false
            }
        }
    }

    fn make_publisher(
        &mut self,
        name: &str,
        path: &Path,
        preferred_port: Option<u16>,
    ) -> std::result::Result<(Handle, Started), String> {
        self.check_descriptors()?;
        let facts = shm::probe(path).map_err(|error| error.to_string())?;
        let socket = self.bind(preferred_port, facts.spec.frame_bytes())?;
        let origins = Arc::new(Origins::default());
        let (publisher, started) = PublisherWorker::new(path, socket, Arc::clone(&origins), None)
            .map_err(|error| error.to_string())?;
        let (orders, receiver) = channel();
        let owned = Owned::new(publisher, origins, self.context.clone(), path.to_owned(), receiver);
        let commands = self.commands.clone();
        let (ended_name, boot_id) = (name.to_owned(), started.boot_id);
        let handle = worker::run(&format!("dao-pub-{name}"), backoff::PUBLISHER, owned, move |why| {
            commands.insist(Command::PublisherEnded { name: ended_name, boot_id, why });
        });
        let handle = handle.map_err(|error| format!("no thread: {error}"))?;
        self.orders.insert(name.to_owned(), orders);
        Ok((handle, started))
    }

    fn write_records(&mut self, name: String, records: Vec<crate::wire::record::Record>) -> bool {
        let host = self.settings.hostname.clone();
        if self.registry.write_records(&host, &name, &records).is_err() {
            lock(&self.state).on_records_unknown(name);
            return false;
        }
        for record in &records {
            self.registry.wake(&record.client_hostname, "records");
        }
        lock(&self.state).on_records_written(name, records);
        true
    }

    fn ask(&mut self, key: &StreamKey) -> bool {
        let state = lock(&self.state);
        let me = state.me.clone();
        let back = state.wanted.get(key).filter(|wanted| wanted.bidirectional).and_then(|wanted| wanted.back);
        drop(state);
        let request = Request {
            client_hostname: me.hostname,
            client_ip: me.ip,
            transport: "zmq".to_owned(),
            bidirectional: back.is_some(),
            client_pub_port: back.map(|back| back.port),
            boot_id: back.map(|back| back.boot_id),
        };
        match self.registry.ask(&key.0, &key.1, &request) {
            Ok(written) => {
                if !written {
                    crate::debug!("another request for '{}' waits at {}; ours comes later", key.1, key.0);
                }
                lock(&self.state).on_asked(key, Instant::now());
                true
            }
            Err(_) => false,
        }
    }

    /// Tells a publisher who writes back into its segment.
    fn set_links(&mut self, name: String, links: BTreeMap<String, Source>) {
        let mut state = lock(&self.state);
        let known = state.links.remove(&name).unwrap_or_default();
        let mut told = BTreeMap::new();
        for (client, source) in links {
            let stats = match known.get(&client) {
                Some(link) => Arc::clone(&link.stats),
                None => {
                    crate::info!("{client} ({}:{}) writes back into '{name}'", source.ip, source.port);
                    Arc::default()
                }
            };
            told.insert(client, LinkInfo { source, stats });
        }
        let orders = told.iter().map(|(client, link)| Link {
            client: client.clone(),
            source: link.source,
            // A daoserver knows its own frames by this when they come back; a Python peer knows nothing.
            origin: link.source.boot_id.unwrap_or(u64::MAX - 1),
            stats: Arc::clone(&link.stats),
        });
        if let Some(sender) = self.orders.get(&name) {
            // Gone only with its thread, and then the publisher starts anew.
            let _ = sender.send(orders.collect());
        }
        state.on_links_set(name, told);
    }

    /// Binds the socket on which a mirror's write-back will go out.
    fn open_back(&mut self, key: &StreamKey, frame_bytes: usize) -> bool {
        let bound = self.check_descriptors().and_then(|()| self.bind(None, frame_bytes));
        match bound {
            Ok(socket) => {
                let back = BackSocket { port: socket.port(), boot_id: socket.boot_id() };
                self.backs.insert(key.clone(), socket);
                lock(&self.state).on_back_opened(key, back);
                true
            }
            Err(why) => {
                if self.failures.due(&why).is_some() {
                    crate::error!("no write-back of '{}' of {}: {why}", key.1, key.0);
                }
                false
            }
        }
    }

    /// Binds the preferred port, or the next free one in turn.
    fn bind(&mut self, preferred: Option<u16>, frame_bytes: usize) -> std::result::Result<PubSocket, String> {
        let base = self.settings.base_pub_port;
        let end = base.saturating_add(limits::PORTS_TRIED);
        let start = self.next_port.clamp(base, end);
        let ports = preferred.into_iter().chain(start..end).chain(base..start);
        let guarded = !self.settings.allow.is_empty();
        let socket = PubSocket::bind(&self.context, self.bind_ip(), ports, frame_bytes, guarded)?;
        if preferred != Some(socket.port()) {
            self.next_port = socket.port().checked_add(1).filter(|port| *port < end).unwrap_or(base);
        }
        Ok(socket)
    }

    fn mirror_failed(&mut self, key: StreamKey, target: Target, why: Error, retry_after: Duration) {
        let retry_at = Instant::now() + retry_after;
        if lock(&self.state).on_mirror_failed(key.clone(), why.clone(), target, retry_at) {
            crate::error!("no mirror of '{}' of {}: {why}", key.1, key.0);
        }
        let waiting = self.waiting.remove(&key).unwrap_or_default();
        if !waiting.is_empty() {
            // They are told, and may ask again: nothing stays behind of a mirror that never ran.
            let mut state = lock(&self.state);
            state.on_abandon(&key);
            if why.kind == Kind::Permission {
                state.on_write_refused(&key);
            }
        }
        for (_, reply) in waiting {
            answer(&reply, Err(why.clone()));
        }
    }

    fn start_mirror(&mut self, key: StreamKey, target: Target) -> bool {
        if let Some(ended) = self.mirrors.remove(&key) {
            join(ended);
        }
        self.mirrors_started += 1;
        let number = self.mirrors_started;
        match self.make_mirror(&key, target, number) {
            Ok((handle, info)) => {
                crate::info!(
                    "mirror of '{}' of {} ({}:{}) at {}",
                    key.1,
                    key.0,
                    target.source.ip,
                    target.source.port,
                    info.path.display()
                );
                self.mirrors.insert(key.clone(), handle);
                lock(&self.state).on_mirror_started(
                    key.clone(),
                    number,
                    target,
                    info.clone(),
                    Instant::now(),
                );
                self.remember();
                for (_, reply) in self.waiting.remove(&key).unwrap_or_default() {
                    answer(&reply, Ok(info.clone()));
                }
                true
            }
            Err(why) => {
                self.mirror_failed(key, target, why, RETRY_AFTER);
                false
            }
        }
    }

    fn make_mirror(&mut self, key: &StreamKey, target: Target, number: u64) -> Result<(Handle, MirrorInfo)> {
        let refused = |why: String| Error::new(Kind::Os, why);
        self.check_descriptors().map_err(refused)?;
        let path = segment_path(&self.settings.shm_dir, &mirror_name(&key.0, &key.1));
        let segment = open_mirror(&path, &self.settings.shm_dir, &target)?;
        let writer = Writer::new(segment).map_err(|error| refused(error.to_string()))?;
        let stats = Arc::clone(self.mirror_stats.entry(key.clone()).or_default());
        let mut mirror = MirrorWorker::new(&self.context, target.source, writer, Arc::clone(&stats))
            .map_err(|error| refused(format!("no connection to {}: {error}", target.source.ip)))?;
        let commands = self.commands.clone();
        let ended = key.clone();
        let on_end = move |why| commands.insist(Command::MirrorEnded { key: ended, number, why });
        let thread = format!("dao-mir-{}", key.1);
        let (handle, back) = if target.bidirectional {
            let no_socket = || refused("the socket of its write-back is gone".to_owned());
            let socket = self.backs.remove(key).ok_or_else(no_socket)?;
            let (origins, me) = (Arc::new(Origins::default()), socket.boot_id());
            mirror.share(Arc::clone(&origins), me);
            let (back, started) =
                PublisherWorker::new(&path, socket, origins, Some(Back { me, open: false }))
                    .map_err(|error| refused(error.to_string()))?;
            let both = Bidirectional::new(mirror, back, &path).map_err(|ended| refused(ended.to_string()))?;
            (worker::run(&thread, backoff::PUBLISHER, both, on_end), Some(started.stats))
        } else {
            (worker::run(&thread, backoff::MIRROR, mirror, on_end), None)
        };
        let handle = handle.map_err(|error| refused(format!("no thread: {error}")))?;
        Ok((
            handle,
            MirrorInfo { path, shape: target.shape, dtype: target.dtype, transport: "zmq", stats, back },
        ))
    }

    /// Takes away what a mirror leaves: its file, its semaphores, our heartbeat at the owner.
    fn forget(&mut self, key: &StreamKey) {
        let path = segment_path(&self.settings.shm_dir, &mirror_name(&key.0, &key.1));
        if let Err(error) = shm::remove(&path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            crate::warn!("{} cannot be removed: {error}", path.display());
        }
        // Without Redis the heartbeat runs out by itself, and the owner evicts us.
        let _ = self.registry.release(&key.0, &key.1, &self.settings.hostname);
        let gone = Error::new(Kind::Key, "The mirror was released while it was waited for.");
        for (_, reply) in self.waiting.remove(key).unwrap_or_default() {
            answer(&reply, Err(gone.clone()));
        }
        self.mirror_stats.remove(key);
        self.backs.remove(key);
        lock(&self.state).on_forgotten(key);
    }

    fn remember(&mut self) {
        let state = lock(&self.state);
        let established = state.wanted.iter().filter(|(_, wanted)| wanted.established);
        let mirrors: Vec<(StreamKey, bool)> =
            established.map(|(key, wanted)| (key.clone(), wanted.bidirectional)).collect();
        let ports = state.ports.clone();
        drop(state);
        self.memory.write(&mirrors, &ports);
    }

    /// Everything told first, then everything joined: the bound is one thread's, not the sum of all.
    fn stop(mut self) {
        let handles: Vec<Handle> = std::mem::take(&mut self.publishers)
            .into_values()
            .chain(std::mem::take(&mut self.mirrors).into_values())
            .collect();
        handles.iter().for_each(Handle::stop);
        handles.into_iter().for_each(join);
    }
}

/// Ends a worker within its bound.
fn join(handle: Handle) {
    handle.stop();
    if let Err(late) = handle.join_within(limits::THREAD_STOP_TIMEOUT) {
        crate::error!("{late}");
    }
}

/// Whoever asked may have gone meanwhile: no matter.
fn answer<T>(reply: &Reply<T>, result: Result<T>) {
    let _ = reply.try_send(result);
}

fn running(state: &State, key: &StreamKey) -> Option<MirrorInfo> {
    match state.mirrors.get(key)? {
        crate::control::state::Mirror::Running { info, target, .. } => {
            let wanted = state.wanted.get(key)?;
            (target.bidirectional || !wanted.bidirectional).then(|| info.clone())
        }
        crate::control::state::Mirror::Failed { .. } => None,
    }
}

/// Opens the mirror's segment: the one that is there, if shape, type and keywords are the same, so that readers that
/// have it mapped go on; else a new one in its place.
fn open_mirror(path: &Path, shm_dir: &Path, target: &Target) -> Result<Segment> {
    // Python's wire has no keywords: those of a mirror that was ours before stay as they are.
    let any_keywords = target.source.wire() == Wire::Python;
    let fits = |spec: &SegmentSpec| {
        spec.shape == target.shape
            && spec.dtype == target.dtype
            && (any_keywords || spec.keywords == target.keywords)
    };
    match Segment::open(path, Access::ReadWrite) {
        Ok(segment) if fits(segment.spec()) => return Ok(segment),
        Ok(_) | Err(OpenError::NotThere) => {}
        Err(error) => crate::info!("{} is made anew: {error}", path.display()),
    }
    let layout = shm::newest_layout(shm_dir);
    let spec =
        SegmentSpec { shape: target.shape, dtype: target.dtype, layout, depth: 1, keywords: target.keywords };
    shm::create(path, &spec, &[]).map_err(|error| Error::new(Kind::Os, error.to_string()))
}
