//! `dao-command`: takes commands from the queue, changes the state, carries out what reconciling asks for.

use crate::bridge::source::Source;
use crate::bridge::streams::Link;
use crate::control::askers::{Asker, Askers};
use crate::control::commands::{Command, Reply};
use crate::control::persist::{Memory, MirrorMemory};
use crate::control::reconcile::Action;
use crate::control::registry::Registry;
use crate::control::state::{Holder, LinkInfo, REOPEN_AFTER, RETRY_AFTER, State, StreamKey, Target, Wanted};
use crate::control::workshop::Workshop;
use crate::error::{Error, Kind, Result};
use crate::limits;
use crate::log::Repeats;
use crate::metrics;
use crate::os::threads::{Handle, lock};
use crate::shm;
use crate::wire::record::Request;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Without a command the state is looked at so often: retries come due by time.
const TICK: Duration = Duration::from_millis(250);

/// Everything that `dao-command` alone owns.
pub struct Executor {
    hostname: String,
    state: Arc<Mutex<State>>,
    registry: Registry,
    memory: Memory,
    workshop: Workshop,
    publishers: BTreeMap<String, Handle>,
    /// Where each publisher hears who writes back.
    orders: BTreeMap<String, Sender<Vec<Link>>>,
    mirrors: BTreeMap<StreamKey, Handle>,
    askers: Askers,
    failures: Repeats,
}

impl Executor {
    /// An executor with nothing running. `memory` has what an earlier run was asked for.
    pub fn new(state: Arc<Mutex<State>>, registry: Registry, memory: Memory, workshop: Workshop) -> Executor {
        let hostname = lock(&state).me.hostname.clone();
        Executor {
            hostname,
            state,
            registry,
            memory,
            workshop,
            publishers: BTreeMap::new(),
            orders: BTreeMap::new(),
            mirrors: BTreeMap::new(),
            askers: Askers::default(),
            failures: Repeats::new(Duration::from_secs(60)),
        }
    }

    /// The body of `dao-command`.
    pub fn run(mut self, queue: &Receiver<Command>) {
        let known: Vec<StreamKey> = lock(&self.state).wanted.keys().cloned().collect();
        self.workshop.remove_orphans(known.into_iter());
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
            Command::ClientGone { name, client, known_at } => state.on_client_gone(&name, &client, known_at),
            Command::RegistryLost => state.on_registry_lost(),
            Command::Want { key, bidirectional, holder, facts, ticket, reply } => {
                match state.on_want(key.clone(), bidirectional, holder, facts) {
                    Err(error) => answer(&reply, Err(error)),
                    Ok((new, raised)) => match state.running_mirror(&key) {
                        Some(info) => {
                            drop(state);
                            self.remember();
                            answer(&reply, Ok(info));
                        }
                        None => {
                            self.askers.add(key, Asker { ticket, holder, new, bidirectional, raised, reply });
                        }
                    },
                }
            }
            Command::Abandon { key, ticket } => {
                drop(state);
                if let Some(gone) = self.askers.abandon(&key, ticket) {
                    self.undo(&key, &gone);
                }
            }
            Command::Registered { role, earlier, reply } => {
                state.on_registered(role, earlier, now);
                drop(state);
                self.reconcile();
                answer(&reply, Ok(()));
            }
            Command::Unregister { reply } => {
                state.registered = false;
                drop(state);
                self.reconcile(); // answered when our records are gone
                answer(&reply, Ok(()));
            }
            Command::Release { key, caller, kept_too, reply } => {
                let left = state.on_release(&key, caller, kept_too);
                drop(state);
                self.reconcile(); // answered when it is gone
                self.remember();
                let (host, name) = &key;
                let unknown =
                    || Error::new(Kind::Key, format!("No mirror of SHM '{name}' of host '{host}' here."));
                answer(&reply, left.ok_or_else(unknown));
            }
            Command::CallerGone { caller, reply } => {
                state.on_caller_gone(caller);
                drop(state);
                self.reconcile();
                self.remember();
                answer(&reply, Ok(()));
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
            Command::Pulse { reply } => answer(&reply, Ok(())),
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
            let _ = self.registry.delete_request(&self.hostname, &name, &text);
        }
    }

    /// Acts until desired and actual have met, or a few times: what is left then waits for the next tick.
    fn reconcile(&mut self) {
        lock(&self.state).expire_leases(Instant::now());
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
                self.orders.remove(&name);
                if let Some(handle) = self.publishers.remove(&name) {
                    join(handle);
                    crate::info!("'{name}' is published no more: it has no client");
                }
                lock(&self.state).on_publisher_stopped(&name);
                true
            }
            Action::WriteRecords { name, records } => self.write_records(name, records),
            Action::DeleteRequest { name, text } => {
                let done = self.registry.delete_request(&self.hostname, &name, &text).is_ok();
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
            Action::OpenBack { key, frame_bytes } => match self.workshop.open_back(&key, frame_bytes) {
                Ok(back) => {
                    lock(&self.state).on_back_opened(&key, back);
                    true
                }
                Err(why) => {
                    if self.failures.due(&why).is_some() {
                        crate::error!("no write-back of '{}' of {}: {why}", key.1, key.0);
                    }
                    false
                }
            },
            Action::StartMirror { key, target } => self.start_mirror(key, target),
            Action::StopMirror { key } => {
                if let Some(handle) = self.mirrors.remove(&key) {
                    join(handle);
                }
                lock(&self.state).on_mirror_stopped(&key);
                true
            }
            Action::RefuseWrite { key, why } => {
                crate::error!("no write-back of '{}' of {}: {why}", key.1, key.0);
                lock(&self.state).on_write_refused(&key);
                self.workshop.forget_back(&key);
                self.refuse_askers(&key, &why);
                self.remember();
                true
            }
            Action::RefuseMirror { key, target, why } => {
                if let Some(handle) = self.mirrors.remove(&key) {
                    join(handle);
                }
                self.mirror_failed(key, target, why, RETRY_AFTER);
                true
            }
            Action::Forget { key } => {
                self.forget(&key);
                true
            }
        }
    }

    fn start_publisher(&mut self, name: String, path: &Path, preferred_port: Option<u16>) -> bool {
        let started = self.workshop.publisher(&name, path, preferred_port);
        let mut state = lock(&self.state);
        match started {
            Ok((handle, started, orders)) => {
                crate::info!("'{name}' is published on port {}", started.port);
                self.publishers.insert(name.clone(), handle);
                self.orders.insert(name.clone(), orders);
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

    fn write_records(&mut self, name: String, records: Vec<crate::wire::record::Record>) -> bool {
        let host = self.hostname.clone();
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
            tcp_port: back.and_then(|back| back.tcp_port),
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

    fn mirror_failed(&mut self, key: StreamKey, target: Target, why: Error, retry_after: Duration) {
        let retry_at = Instant::now() + retry_after;
        if lock(&self.state).on_mirror_failed(key.clone(), why.clone(), target, retry_at) {
            crate::error!("no mirror of '{}' of {}: {why}", key.1, key.0);
        }
        self.refuse_askers(&key, &why);
    }

    /// They are told, and may ask again: nothing stays behind of what they asked for.
    fn refuse_askers(&mut self, key: &StreamKey, why: &Error) {
        for asker in self.askers.take(key) {
            self.undo(key, &asker);
            answer(&asker.reply, Err(why.clone()));
        }
    }

    /// Takes back what an asker has changed who gets nothing.
    fn undo(&mut self, key: &StreamKey, asker: &Asker) {
        let mut state = lock(&self.state);
        if asker.raised && state.on_write_given_up(key) {
            self.workshop.forget_back(key);
        }
        if asker.new {
            state.on_abandon(key, asker.holder);
        }
    }

    fn start_mirror(&mut self, key: StreamKey, target: Target) -> bool {
        if let Some(ended) = self.mirrors.remove(&key) {
            join(ended);
        }
        match self.workshop.mirror(&key, target) {
            Ok((number, handle, info)) => {
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
                for asker in self.askers.take(&key) {
                    answer(&asker.reply, Ok(info.clone()));
                }
                true
            }
            Err(why) => {
                // The socket of its write-back, if it had one, went with it: another is bound.
                self.workshop.forget_back(&key);
                lock(&self.state).on_back_lost(&key);
                self.mirror_failed(key, target, why, RETRY_AFTER);
                false
            }
        }
    }

    /// Takes away what a mirror leaves: its file, its semaphores, our heartbeat at the owner.
    fn forget(&mut self, key: &StreamKey) {
        let path = self.workshop.mirror_path(key);
        // Not one that another daemon keeps, nor what is no mirror.
        if self.workshop.check_own(key, &path).is_ok()
            && self.workshop.lock(key, &path).is_ok()
            && let Err(error) = shm::remove(&path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            crate::warn!("{} cannot be removed: {error}", path.display());
        }
        // Without Redis the heartbeat runs out by itself, and the owner evicts us.
        let _ = self.registry.release(&key.0, &key.1, &self.hostname);
        let gone = Error::new(Kind::Key, "The mirror was released while it was waited for.");
        self.refuse_askers(key, &gone);
        self.workshop.forget(key);
        lock(&self.state).on_forgotten(key);
        self.remember();
    }

    fn remember(&mut self) {
        let state = lock(&self.state);
        let established = state.wanted.iter().filter(|(_, wanted)| wanted.established);
        let mirror = |(key, wanted): (&StreamKey, &Wanted)| MirrorMemory {
            key: key.clone(),
            bidirectional: wanted.bidirectional,
            kept: wanted.holders.contains(&Holder::Kept),
            leases: wanted.leases(),
        };
        let mirrors: Vec<MirrorMemory> = established.map(mirror).collect();
        let ports = state.ports.clone();
        drop(state);
        self.memory.write(&mirrors, &ports);
    }

    /// Everything told first, then everything joined: the bound is one thread's, not the sum of all.
    fn stop(mut self) {
        self.publishers.values().chain(self.mirrors.values()).for_each(Handle::stop);
        lock(&self.state).on_stop();
        self.reconcile();
        self.remember();
        let handles: Vec<Handle> = std::mem::take(&mut self.publishers)
            .into_values()
            .chain(std::mem::take(&mut self.mirrors).into_values())
            .collect();
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
