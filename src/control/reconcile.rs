//! Desired against actual: what is to be done so that they meet. Pure. A start, a lost Redis, a vanished file and a
//! dead thread are all the same code here. `tests/models/stream.pml` has what the two sides do step by step, and `spin`
//! tries every order of it.

use crate::bridge::source::Source;
use crate::control::state::{Mirror, Publisher, State, StreamKey, Target, Wanted};
use crate::dtype::{DType, Shape};
use crate::error::{Error, Kind};
use crate::limits;
use crate::os::clock;
use crate::settings::Transport;
use crate::wire::frame::VERSION;
use crate::wire::record::Record;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// One thing to do, with the Mutex released.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Action {
    StartPublisher { name: String, path: PathBuf, preferred_port: Option<u16> },
    StopPublisher { name: String },
    WriteRecords { name: String, records: Vec<Record> },
    DeleteRequest { name: String, text: String },
    Ask { key: StreamKey },
    SetLinks { name: String, links: BTreeMap<String, Source> },
    OpenBack { key: StreamKey, frame_bytes: usize },
    StartMirror { key: StreamKey, target: Target },
    StopMirror { key: StreamKey },
    RefuseWrite { key: StreamKey, why: Error },
    RefuseMirror { key: StreamKey, target: Target, why: Error },
    Forget { key: StreamKey },
}

/// A client asks at most so often while it has no record.
const ASK_INTERVAL: Duration = Duration::from_secs(1);
/// A mirror that hears nothing for so long asks again: the port in its record may be a dead one's.
const SILENT_BEFORE_ASKING: Duration = Duration::from_secs(5);
/// A mirror of a Python owner that has been connected for so long without a frame asks again: the owner sends one unasked,
/// once, 150 ms after a request, which may have been before the connection.
const FRAMELESS_BEFORE_ASKING: Duration = Duration::from_millis(500);
/// But at most so often: the owner looks for requests every 2 s.
const FRAMELESS_ASK_INTERVAL: Duration = Duration::from_secs(3);

impl State {
    /// What is to be done now.
    pub fn reconcile(&self, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        self.reconcile_publishers(now, &mut actions);
        self.reconcile_links(&mut actions);
        self.reconcile_records(&mut actions);
        self.reconcile_mirrors(now, &mut actions);
        actions
    }

    fn reconcile_publishers(&self, now: Instant, actions: &mut Vec<Action>) {
        for name in self.publishers.keys() {
            // Running or failed. One whose file is gone notices by itself, and sooner than the scan.
            if !self.clients.contains_key(name) {
                actions.push(Action::StopPublisher { name: name.clone() });
            }
        }
        for name in self.clients.keys() {
            let Some(path) = self.segments.get(name) else { continue };
            let due = match self.publishers.get(name) {
                None => true,
                Some(Publisher::Running(_)) => false,
                Some(Publisher::Failed { retry_at, .. }) => now >= *retry_at,
            };
            if due {
                let preferred_port = self.ports.get(name).copied();
                actions.push(Action::StartPublisher {
                    name: name.clone(),
                    path: path.clone(),
                    preferred_port,
                });
            }
        }
    }

    fn reconcile_links(&self, actions: &mut Vec<Action>) {
        for (name, publisher) in &self.publishers {
            let links = self.desired_links(name);
            let told = self.links.get(name);
            let same = told.map_or(links.is_empty(), |told| {
                told.len() == links.len()
                    && links
                        .iter()
                        .all(|(client, source)| told.get(client).is_some_and(|link| link.source == *source))
            });
            if !same && matches!(publisher, Publisher::Running(_)) {
                actions.push(Action::SetLinks { name: name.clone(), links });
            }
        }
    }

    fn reconcile_records(&self, actions: &mut Vec<Action>) {
        let names: BTreeSet<&String> = self.written.keys().chain(self.publishers.keys()).collect();
        for name in names {
            let records = self.desired_records(name);
            let stands = match self.written.get(name) {
                None => records.is_empty(),
                Some(written) => written.as_ref() == Some(&records),
            };
            if !stands {
                actions.push(Action::WriteRecords { name: name.clone(), records });
            }
        }
        for (name, text) in &self.requests {
            // Deleted once it is answered, so that a client that sees it gone finds its record.
            let records = self.desired_records(name);
            if !records.is_empty() && self.written.get(name).and_then(Option::as_ref) == Some(&records) {
                actions.push(Action::DeleteRequest { name: name.clone(), text: text.clone() });
            }
        }
    }

    fn reconcile_mirrors(&self, now: Instant, actions: &mut Vec<Action>) {
        for key in self.mirrors.keys().filter(|key| !self.wanted.contains_key(*key)) {
            actions.push(Action::StopMirror { key: key.clone() });
        }
        for key in self.traces.iter().filter(|key| !self.mirrors.contains_key(*key)) {
            actions.push(Action::Forget { key: key.clone() });
        }
        for (key, wanted) in &self.wanted {
            let Some(facts) = self.remote.get(key) else { continue };
            let asked_before = |time| wanted.asked_at.is_none_or(|at| now.duration_since(at) >= time);
            if let (true, None, Some((shape, dtype))) = (wanted.bidirectional, wanted.back, facts.spec) {
                // Its port stands in the request.
                actions.push(Action::OpenBack { key: key.clone(), frame_bytes: shape.frame_bytes(dtype) });
                continue;
            }
            // The newest record of ours, if a daemon that was killed has left an older one. A Python owner that serves
            // somebody already may never write one for us: any of its records will do, as for its own clients.
            let mine = facts.records.iter().rfind(|record| record.client_hostname == self.me.hostname);
            let mine = mine.filter(|record| answers(record, wanted));
            let of_python =
                facts.records.first().filter(|record| record.extras.is_none() && !wanted.bidirectional);
            // A record that we have not asked for may be about to go: its owner is just learning that we released it.
            // A Python owner is left alone: it would make another publisher.
            let unasked = wanted.asked_at.is_none() && mine.is_some_and(|record| record.extras.is_some());
            if mine.is_none() || unasked {
                let interval = if of_python.is_some() { limits::RECORD_TIMEOUT } else { ASK_INTERVAL };
                // There is somebody to ask only while the segment is registered.
                if facts.spec.is_some() && asked_before(interval) {
                    actions.push(Action::Ask { key: key.clone() });
                }
            }
            let (Some(record), Some(ip)) = (mine.or(of_python), facts.ip) else { continue };
            if wanted.bidirectional && record.extras.is_some_and(|extras| extras.read_only) {
                let (host, name) = key;
                let why =
                    format!("'{host}' is read-only: SHM '{name}' cannot be written from another machine.");
                actions
                    .push(Action::RefuseWrite { key: key.clone(), why: Error::new(Kind::Permission, why) });
                continue;
            }
            let Some(target) = Target::of(record, ip, facts.spec, self.transport) else { continue };
            let no_tcp = self.transport == Transport::Tcp && target.source.tcp_port.is_none();
            if record.transport != "zmq" || no_tcp {
                let why = if no_tcp {
                    format!("'{}' offers no TCP, and nothing else is wanted here (--transport).", key.0)
                } else {
                    format!("{} connector not implemented.", record.transport)
                };
                let why = Error::new(Kind::NotImplemented, why);
                if !matches!(self.mirrors.get(key), Some(Mirror::Failed { why: old, .. }) if *old == why) {
                    actions.push(Action::RefuseMirror { key: key.clone(), target, why });
                }
                continue;
            }
            match self.mirrors.get(key) {
                None => actions.push(Action::StartMirror { key: key.clone(), target }),
                Some(Mirror::Failed { target: failed, retry_at, .. }) => {
                    if *failed != target || now >= *retry_at {
                        actions.push(Action::StartMirror { key: key.clone(), target });
                    }
                }
                Some(Mirror::Running { target: running, .. }) if *running != target => {
                    actions.push(Action::StopMirror { key: key.clone() });
                }
                Some(Mirror::Running { info, started_at, .. }) => {
                    let frameless_ns = info.stats.frameless_since_ns.load(Relaxed);
                    if frameless_ns != 0
                        && clock::monotonic_ns() - frameless_ns >= FRAMELESS_BEFORE_ASKING.as_nanos() as i64
                        && asked_before(FRAMELESS_ASK_INTERVAL)
                    {
                        actions.push(Action::Ask { key: key.clone() });
                        continue;
                    }
                    let heard_ns = info.stats.last_heard_ns.load(Relaxed);
                    let silent = if heard_ns == 0 {
                        now.duration_since(*started_at)
                    } else {
                        Duration::from_nanos((clock::monotonic_ns() - heard_ns).max(0) as u64)
                    };
                    if silent >= SILENT_BEFORE_ASKING && asked_before(SILENT_BEFORE_ASKING) {
                        actions.push(Action::Ask { key: key.clone() });
                    }
                }
            }
        }
    }
}

/// Does a record of ours answer what we ask for now? A bidirectional one names the socket that we have bound; one that
/// is left of an earlier, bidirectional mirror is none for a one-way one.
fn answers(record: &Record, wanted: &Wanted) -> bool {
    let Some(back) = wanted.back.filter(|_| wanted.bidirectional) else { return !record.bidirectional };
    let refused = record.extras.is_some_and(|extras| extras.read_only);
    let boot_id = record.extras.map_or(Some(back.boot_id), |extras| extras.client_boot_id);
    (record.bidirectional || refused)
        && record.client_pub_port == Some(back.port)
        && boot_id == Some(back.boot_id)
}

impl Target {
    /// What a record offers. A daoserver with another wire than ours still serves Python's.
    fn of(
        record: &Record,
        ip: Ipv4Addr,
        registered: Option<(Shape, DType)>,
        transport: Transport,
    ) -> Option<Target> {
        let (shape, dtype) = record.extras.map(|extras| (extras.shape, extras.dtype)).or(registered)?;
        let ours = record.extras.filter(|extras| extras.wire == VERSION);
        let tcp_port = ours.and_then(|extras| extras.tcp_port).filter(|_| transport != Transport::Zmq);
        let source = Source { ip, port: record.port, boot_id: ours.map(|extras| extras.boot_id), tcp_port };
        let keywords = ours.map_or(0, |extras| extras.keywords);
        Some(Target { source, shape, dtype, keywords, bidirectional: record.bidirectional })
    }
}

#[cfg(test)]
mod tests;
