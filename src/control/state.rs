//! The central state: what is desired and what is actual. Pure: no I/O, no clock of its own; events come in through
//! `on_...`, and [`State::reconcile`] says what to do.

use crate::bridge::publisher::Started;
use crate::bridge::source::Source;
use crate::control::registration::EarlierRun;
use crate::control::registry::{ClientAge, RemoteFacts};
use crate::error::{Error, Kind, Result};
use crate::limits;
use crate::settings::{Cidr, Role, Transport, allows};
use crate::wire::frame::VERSION;
use crate::wire::record::{Record, RecordExtras, Request};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

pub use super::entries::*;

/// All of it.
#[allow(missing_docs)]
pub struct State {
    pub me: Identity,
    /// Does this machine stand in the registry? Not before a start, nor after a deregistration of our own.
    pub registered: bool,
    /// Owner: the local segments that can be served, and their files.
    pub segments: BTreeMap<String, PathBuf>,
    /// Owner: who wants which segment. A segment need not exist to be wanted.
    pub clients: BTreeMap<String, BTreeMap<String, Client>>,
    pub publishers: BTreeMap<String, Publisher>,
    /// Owner: who writes back into which segment, by client, as its publisher was told.
    pub links: BTreeMap<String, BTreeMap<String, LinkInfo>>,
    /// Owner: every write from another machine is refused.
    pub read_only: bool,
    /// Owner: who may be a client.
    pub allow: Vec<Cidr>,
    /// How frames travel to and from other daoservers.
    pub transport: Transport,
    /// Owner: the port that a segment was published on last, kept so that peers find it there again.
    pub ports: BTreeMap<String, u16>,
    /// Owner: the records that stand in Redis; none where there is no entry, who knows which where it is `None`.
    pub written: BTreeMap<String, Option<Vec<Record>>>,
    /// Owner: the text of requests that are to be deleted once they are answered.
    pub requests: BTreeMap<String, String>,
    /// Client: what we want, what the registry says of it, and what there is.
    pub wanted: BTreeMap<StreamKey, Wanted>,
    pub remote: BTreeMap<StreamKey, RemoteFacts>,
    pub mirrors: BTreeMap<StreamKey, Mirror>,
    /// Client: streams that nobody wants any more and whose traces (file, heartbeat) are still there.
    pub traces: BTreeSet<StreamKey>,
    /// Client: until then those who had leases of an earlier run may ask again.
    pub earlier_until: Option<Instant>,
}

/// How long a publisher or a mirror that failed is left alone.
pub const RETRY_AFTER: Duration = Duration::from_secs(2);
/// How long one that lost its segment's file is left alone: it is often there again at once.
pub const REOPEN_AFTER: Duration = Duration::from_millis(200);

impl State {
    /// Nothing desired, nothing actual.
    pub fn new(me: Identity) -> State {
        State {
            me,
            registered: false,
            segments: BTreeMap::new(),
            clients: BTreeMap::new(),
            publishers: BTreeMap::new(),
            links: BTreeMap::new(),
            read_only: false,
            allow: Vec::new(),
            transport: Transport::Auto,
            ports: BTreeMap::new(),
            written: BTreeMap::new(),
            requests: BTreeMap::new(),
            wanted: BTreeMap::new(),
            remote: BTreeMap::new(),
            mirrors: BTreeMap::new(),
            traces: BTreeSet::new(),
            earlier_until: None,
        }
    }

    /// The local segments have been looked at.
    pub fn on_local_segments(&mut self, segments: BTreeMap<String, PathBuf>) {
        // One that was away may be served again at once, whatever failed before.
        self.publishers.retain(|name, publisher| {
            matches!(publisher, Publisher::Running(_))
                || self.segments.contains_key(name)
                || !segments.contains_key(name)
        });
        self.segments = segments;
        // Names come and go; only the ports of those that may be asked for again are kept.
        let (segments, clients) = (&self.segments, &self.clients);
        self.ports.retain(|name, _| segments.contains_key(name) || clients.contains_key(name));
    }

    /// A request was found in Redis.
    pub fn on_request(&mut self, name: String, text: String, request: &Request, now: Instant) -> Result<()> {
        if request.transport != "zmq" {
            let transport = &request.transport;
            return Err(Error::new(Kind::NotImplemented, format!("{transport} connector not implemented.")));
        }
        if !allows(&self.allow, request.client_ip) {
            return Err(Error::new(Kind::Permission, "its address is not one of --allow's"));
        }
        let clients = self.clients.entry(name.clone()).or_default();
        if clients.len() >= limits::CLIENTS_MAX && !clients.contains_key(&request.client_hostname) {
            return Err(Error::new(
                Kind::Os,
                format!("segment '{name}' has {} clients already", clients.len()),
            ));
        }
        self.requests.insert(name.clone(), text);
        let client = Client {
            ip: Some(request.client_ip),
            bidirectional: request.bidirectional && !self.read_only,
            client_pub_port: request.client_pub_port,
            boot_id: request.boot_id,
            tcp_port: request.tcp_port,
            read_only: request.bidirectional && self.read_only,
            asked_at: now,
        };
        clients.insert(request.client_hostname.clone(), client);
        // Whoever asks although its record stands may have lost sight of it: it is written again.
        self.written.insert(name, None);
        Ok(())
    }

    /// An earlier run's port of a segment, and clients of it that are alive by their heartbeats.
    pub fn on_adopt(&mut self, name: String, port: Option<u16>, clients: Vec<String>, now: Instant) {
        if let Some(port) = port {
            self.ports.insert(name.clone(), port);
        }
        for client in clients {
            self.on_heartbeat_of_stranger(&name, client, now);
        }
    }

    fn on_heartbeat_of_stranger(&mut self, name: &str, client: String, now: Instant) {
        let clients = self.clients.entry(name.to_owned()).or_default();
        if clients.len() < limits::CLIENTS_MAX {
            // Its heartbeat is all that is known of it.
            let stranger = Client {
                ip: None,
                bidirectional: false,
                client_pub_port: None,
                boot_id: None,
                tcp_port: None,
                read_only: false,
                asked_at: now,
            };
            clients.entry(client).or_insert(stranger);
        }
    }

    /// Heartbeats were looked at. Returns who was evicted.
    pub fn on_client_ages(&mut self, name: &str, ages: &[ClientAge], all: bool, now: Instant) -> Vec<String> {
        for living in
            ages.iter().filter(|entry| entry.age.is_some_and(|age| age <= limits::CLIENT_SILENT_MAX))
        {
            if all {
                self.on_heartbeat_of_stranger(name, living.client.clone(), now);
            }
        }
        let Some(clients) = self.clients.get_mut(name) else { return Vec::new() };
        let mut evicted = Vec::new();
        clients.retain(|client, known| {
            let Some(entry) = ages.iter().find(|entry| entry.client == *client) else { return true };
            let silent = entry.age.is_none_or(|age| age > limits::CLIENT_SILENT_MAX);
            let recent = now.duration_since(known.asked_at) <= limits::CLIENT_SILENT_MAX;
            let keep = !silent || recent;
            if !keep {
                evicted.push(client.clone());
            }
            keep
        });
        if clients.is_empty() {
            self.clients.remove(name);
        }
        evicted
    }

    /// A client has left by itself, as far as was known then. It may have asked again since.
    pub fn on_client_gone(&mut self, name: &str, client: &str, known_at: Instant) {
        if let Some(clients) = self.clients.get_mut(name) {
            clients.retain(|other, known| other != client || known.asked_at > known_at);
            if clients.is_empty() {
                self.clients.remove(name);
            }
        }
    }

    /// Redis has lost our keys, or some of them.
    pub fn on_registry_lost(&mut self) {
        self.written.values_mut().for_each(|records| *records = None);
    }

    /// Writing records failed: they may stand there or not.
    pub fn on_records_unknown(&mut self, name: String) {
        self.written.insert(name, None);
    }

    /// A publisher runs.
    pub fn on_publisher_started(&mut self, name: String, started: Started) {
        self.ports.insert(name.clone(), started.port);
        self.links.remove(&name);
        self.publishers.insert(name, Publisher::Running(started));
    }

    /// A publisher could not start, or ended. Returns whether that is news.
    pub fn on_publisher_failed(&mut self, name: String, why: String, retry_at: Instant) -> bool {
        let old = self.publishers.insert(name, Publisher::Failed { why: why.clone(), retry_at });
        !matches!(old, Some(Publisher::Failed { why: old, .. }) if old == why)
    }

    /// A publisher was stopped.
    pub fn on_publisher_stopped(&mut self, name: &str) {
        self.publishers.remove(name);
        self.links.remove(name);
    }

    /// Records stand in Redis as given.
    pub fn on_records_written(&mut self, name: String, records: Vec<Record>) {
        if records.is_empty() {
            self.written.remove(&name);
        } else {
            self.written.insert(name, Some(records));
        }
    }

    /// The registry was asked about a stream that we want.
    pub fn on_remote(&mut self, key: StreamKey, facts: RemoteFacts) {
        if self.wanted.contains_key(&key) {
            self.remote.insert(key, facts);
        }
    }

    /// This machine stands in the registry, in this role.
    pub fn on_registered(&mut self, role: Role, earlier: EarlierRun, now: Instant) {
        self.registered = true;
        self.me.role = role;
        for (name, port) in earlier.ports {
            self.on_adopt(name, Some(port), Vec::new(), now);
        }
        for (name, clients) in earlier.clients_of {
            self.on_adopt(name, None, clients, now);
        }
    }

    /// The traces of a stream are gone.
    pub fn on_forgotten(&mut self, key: &StreamKey) {
        self.traces.remove(key);
    }

    /// The socket of a write-back is bound.
    pub fn on_back_opened(&mut self, key: &StreamKey, back: BackSocket) {
        if let Some(wanted) = self.wanted.get_mut(key) {
            wanted.back = Some(back);
            wanted.asked_at = None; // there is something new to say
        }
    }

    /// The owner does not let us write. A mirror that was there before stays, or comes back, as a one-way one.
    pub fn on_write_refused(&mut self, key: &StreamKey) {
        match self.wanted.get_mut(key) {
            Some(wanted) if wanted.established => {
                wanted.bidirectional = false;
                wanted.back = None;
                wanted.asked_at = None; // the request on record still says otherwise
            }
            _ => self.forget(key),
        }
    }

    /// Whoever wanted to write wants it no more. A mirror that runs so stays so. Returns whether it was given up.
    pub fn on_write_given_up(&mut self, key: &StreamKey) -> bool {
        let runs =
            matches!(self.mirrors.get(key), Some(Mirror::Running { target, .. }) if target.bidirectional);
        match self.wanted.get_mut(key) {
            Some(wanted) if !runs => {
                (wanted.bidirectional, wanted.back) = (false, None);
                wanted.asked_at = None; // the request on record says otherwise
                true
            }
            _ => false,
        }
    }

    /// The clients that should write back into a segment.
    pub fn desired_links(&self, name: &str) -> BTreeMap<String, Source> {
        let clients = self.clients.get(name).into_iter().flatten();
        clients
            .filter_map(|(client, known)| {
                let (ip, port) = (known.ip?, known.client_pub_port?);
                known.bidirectional.then(|| {
                    (
                        client.clone(),
                        Source {
                            ip,
                            port,
                            boot_id: known.boot_id,
                            tcp_port: known.tcp_port.filter(|_| self.transport != Transport::Zmq),
                        },
                    )
                })
            })
            .collect()
    }

    /// A publisher was told who writes back.
    pub fn on_links_set(&mut self, name: String, links: BTreeMap<String, LinkInfo>) {
        self.links.insert(name, links);
    }

    /// We have asked the owner.
    pub fn on_asked(&mut self, key: &StreamKey, now: Instant) {
        if let Some(wanted) = self.wanted.get_mut(key) {
            wanted.asked_at = Some(now);
        }
    }

    /// A mirror runs.
    pub fn on_mirror_started(
        &mut self,
        key: StreamKey,
        number: u64,
        target: Target,
        info: MirrorInfo,
        now: Instant,
    ) {
        if let Some(wanted) = self.wanted.get_mut(&key) {
            wanted.established = true;
        }
        self.mirrors.insert(key, Mirror::Running { number, target, info, started_at: now });
    }

    /// A mirror could not start, or ended by itself. Returns whether that is news.
    pub fn on_mirror_failed(
        &mut self,
        key: StreamKey,
        why: Error,
        target: Target,
        retry_at: Instant,
    ) -> bool {
        self.close_back(&key);
        let old = self.mirrors.insert(key, Mirror::Failed { why: why.clone(), target, retry_at });
        !matches!(old, Some(Mirror::Failed { why: old, .. }) if old == why)
    }

    /// A mirror's thread has ended by itself; a later one of the same stream is not meant.
    pub fn on_mirror_ended(&mut self, key: StreamKey, number: u64, why: String, now: Instant) {
        if let Some(Mirror::Running { number: running, target, .. }) = self.mirrors.get(&key)
            && *running == number
        {
            let target = *target;
            self.on_mirror_failed(key, Error::new(Kind::Os, why), target, now + REOPEN_AFTER);
        }
    }

    /// A mirror was stopped.
    pub fn on_mirror_stopped(&mut self, key: &StreamKey) {
        self.close_back(key);
        self.mirrors.remove(key);
    }

    /// The socket of a write-back is gone, whatever became of its mirror.
    pub fn on_back_lost(&mut self, key: &StreamKey) {
        if let Some(wanted) = self.wanted.get_mut(key) {
            wanted.back = None;
        }
    }

    /// The socket of a write-back has ended with its mirror.
    fn close_back(&mut self, key: &StreamKey) {
        let used =
            matches!(self.mirrors.get(key), Some(Mirror::Running { target, .. }) if target.bidirectional);
        if let Some(wanted) = self.wanted.get_mut(key).filter(|_| used) {
            wanted.back = None;
        }
    }

    /// The mirror that runs and does what is wanted of it.
    pub fn running_mirror(&self, key: &StreamKey) -> Option<MirrorInfo> {
        match self.mirrors.get(key)? {
            Mirror::Running { info, target, .. } => {
                let wanted = self.wanted.get(key)?;
                (target.bidirectional || !wanted.bidirectional).then(|| info.clone())
            }
            Mirror::Failed { .. } => None,
        }
    }

    /// Does anything wait for news from the registry? Then it is worth looking more often.
    pub fn unresolved(&self) -> bool {
        self.wanted.iter().any(|(key, wanted)| match self.mirrors.get(key) {
            Some(Mirror::Running { target, .. }) => wanted.bidirectional && !target.bidirectional,
            _ => true,
        })
    }

    /// The records that should stand in Redis for a segment.
    pub fn desired_records(&self, name: &str) -> Vec<Record> {
        let (Some(Publisher::Running(started)), Some(clients)) =
            (self.publishers.get(name), self.clients.get(name))
        else {
            return Vec::new();
        };
        if !self.registered {
            return Vec::new();
        }
        let record = |(client, known): (&String, &Client)| Record {
            server_ip: self.me.ip,
            port: started.port,
            transport: "zmq".to_owned(),
            client_hostname: client.clone(),
            client_ip: known.ip.unwrap_or(Ipv4Addr::UNSPECIFIED),
            bidirectional: known.bidirectional,
            client_pub_port: known.client_pub_port,
            extras: Some(RecordExtras {
                wire: VERSION,
                boot_id: started.boot_id,
                shape: started.shape,
                dtype: started.dtype,
                keywords: started.keywords,
                client_boot_id: known.boot_id,
                read_only: known.read_only,
                tcp_port: started.tcp_port,
            }),
        };
        clients.iter().map(record).collect()
    }
}
