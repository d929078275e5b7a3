//! The registry: what stands in Redis, in the words of the contract. All reading is suspicious, all writing plain.

use crate::control::clocks::ClockOffset;
use crate::control::redis_link::{Health, RedisLink};
use crate::dtype::{DType, Shape};
use crate::error::Result;
use crate::limits;
use crate::log::Repeats;
use crate::metrics;
use crate::naming::key::{self, MachineKey};
use crate::naming::{glob_escape, host_name, segment_name};
use crate::os::clock;
use crate::settings::Settings;
use crate::wire::record::{self, Record, Request};
use crate::wire::time;
use redis::{cmd, pipe};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

/// A value in Redis: absent, or bytes of anybody.
type Bytes = Option<Vec<u8>>;

/// One machine as `list` shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Machine {
    pub hostname: String,
    pub ip: Option<String>,
    pub role: Option<String>,
    /// As it stands in Redis; [`Machine::last_connect_ns`] reads it.
    pub last_connect: Option<String>,
    pub shm_segments: BTreeSet<String>,
}

impl Machine {
    /// Its last heartbeat, UTC ns by its own clock.
    pub fn last_connect_ns(&self) -> Option<i64> {
        time::parse(self.last_connect.as_deref()?)
    }

    /// The JSON of `list --json`.
    pub fn to_json(&self) -> Value {
        json!({
            "hostname": self.hostname, "ip": self.ip, "role": self.role,
            "last_connect": self.last_connect, "shm_segments": self.shm_segments,
        })
    }
}

/// What the registry says of one segment of another machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct RemoteFacts {
    /// The machine is registered at all.
    pub known: bool,
    pub ip: Option<Ipv4Addr>,
    pub spec: Option<(Shape, DType)>,
    pub records: Vec<Record>,
    /// How far Redis' clock is ahead of that machine's; a Python daemon does not say.
    pub clock: Option<ClockOffset>,
}

/// This machine's entry in the registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// As we wrote it.
    Ours,
    /// Not there, or not whole.
    Lost,
    /// Another daemon of the same host name, at this address.
    Contested(Ipv4Addr),
}

/// The age of a client's heartbeat by Redis' clock.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct ClientAge {
    pub client: String,
    /// `None`: there is no heartbeat.
    pub age: Option<Duration>,
}

/// The operations of the contract over one link. Blocks for at most the link's time-outs.
pub struct Registry {
    link: RedisLink,
    refusals: Repeats,
}

impl Registry {
    /// A registry that connects when it is used.
    pub fn new(settings: &Settings, health: Arc<Health>) -> Registry {
        Registry { link: RedisLink::new(settings, health), refusals: Repeats::new(Duration::from_secs(60)) }
    }

    /// The link, for what is no operation of the contract.
    pub fn link(&mut self) -> &mut RedisLink {
        &mut self.link
    }

    /// A warning that names the key; nothing else changes.
    fn refuse(&self, key: &str, why: &str) {
        metrics::REDIS_VALUES_REFUSED.add(1);
        if self.refusals.due(&format!("{key} {why}")).is_some() {
            crate::warn!("the value of Redis key '{}' is ignored: {why}", key.escape_default());
        }
    }

    fn text(&self, key: &str, value: Bytes) -> Option<String> {
        let bytes = value?;
        if bytes.len() > limits::REDIS_VALUE_BYTES_MAX {
            self.refuse(key, "it is too long");
            return None;
        }
        let text = String::from_utf8(bytes).ok();
        if text.is_none() {
            self.refuse(key, "it is no text");
        }
        text
    }

    fn parsed<T>(
        &self,
        key: &str,
        value: Bytes,
        parse: impl Fn(&str) -> std::result::Result<T, String>,
    ) -> Option<T> {
        let text = self.text(key, value)?;
        parse(&text).map_err(|why| self.refuse(key, &why)).ok()
    }

    fn mget(&mut self, keys: &[String]) -> Result<Vec<Bytes>> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let mut values = Vec::with_capacity(keys.len());
        for chunk in keys.chunks(1_000) {
            values.extend(self.link.run(|c| cmd("MGET").arg(chunk).query::<Vec<Bytes>>(c))?);
        }
        values.resize(keys.len(), None);
        let absent: Vec<&String> =
            keys.iter().zip(&values).filter(|(_, value)| value.is_none()).map(|(key, _)| key).collect();
        self.warn_of_other_types(&absent)?;
        Ok(values)
    }

    /// MGET gives nothing for a key of another type, as if it were not there: nobody would ever hear of it.
    fn warn_of_other_types(&mut self, absent: &[&String]) -> Result<()> {
        for chunk in absent.chunks(1_000) {
            if self.link.run(|c| cmd("EXISTS").arg(chunk).query::<u64>(c))? == 0 {
                continue;
            }
            let mut batch = pipe();
            for key in chunk {
                batch.cmd("TYPE").arg(key);
            }
            let types: Vec<String> = self.link.run(|c| batch.query(c))?;
            for (key, kind) in chunk.iter().zip(types) {
                // One that has come since is a string.
                if kind != "string" && kind != "none" {
                    self.refuse(key, &format!("it is a {kind}, not a string"));
                }
            }
        }
        Ok(())
    }

    /// Every key that matches. SCAN in large steps, never KEYS; a key may come twice, so it is a set.
    fn scan(&mut self, pattern: &str) -> Result<BTreeSet<String>> {
        let mut keys = BTreeSet::new();
        let mut cursor = 0u64;
        loop {
            let (next, found): (u64, Vec<Vec<u8>>) = self.link.run(|c| {
                cmd("SCAN").arg(cursor).arg("MATCH").arg(pattern).arg("COUNT").arg(1_000).query(c)
            })?;
            keys.extend(found.into_iter().filter_map(|key| String::from_utf8(key).ok()));
            cursor = next;
            if cursor == 0 {
                return Ok(keys);
            }
        }
    }

    fn delete(&mut self, keys: &BTreeSet<String>) -> Result<u64> {
        let all: Vec<&String> = keys.iter().collect();
        let mut removed = 0;
        for chunk in all.chunks(1_000) {
            removed += self.link.run(|c| cmd("DEL").arg(chunk).query::<u64>(c))?;
        }
        Ok(removed)
    }

    /// Redis' clock, UTC ns: the one that all machines share.
    pub fn time_ns(&mut self) -> Result<i64> {
        let (seconds, micros): (i64, i64) = self.link.run(|c| cmd("TIME").query(c))?;
        Ok(seconds.saturating_mul(1_000_000_000).saturating_add(micros.saturating_mul(1_000)))
    }

    /// Compares this machine's clock with Redis': of a few questions the one that was answered fastest counts.
    fn measure_clock(&mut self) -> Result<i64> {
        let mut best: Option<ClockOffset> = None;
        let mut redis_ns = 0;
        for _ in 0..limits::CLOCK_QUESTIONS {
            let asked_ns = clock::realtime_ns();
            redis_ns = self.time_ns()?;
            let offset = ClockOffset::from_answer(asked_ns, redis_ns, clock::realtime_ns());
            best = best.filter(|best| best.error_ns <= offset.error_ns).or(Some(offset));
        }
        if let Some(best) = best {
            self.link.health().set_clock(best);
        }
        Ok(redis_ns)
    }

    /// Writes the keys of this machine: the four of the contract, and what its clock says.
    pub fn register_machine(&mut self, host: &str, ip: Ipv4Addr, role: &str) -> Result<()> {
        let now = time::format(self.measure_clock()?);
        let clock = self.link.health().clock().map_or_else(String::new, ClockOffset::to_text);
        self.link.run(|c| {
            pipe()
                .set(key::machine(host, "clock"), &clock)
                .set(key::machine(host, "ip"), ip.to_string())
                .set(key::machine(host, "hostname"), host)
                .set(key::machine(host, "role"), role)
                .set(key::machine(host, "last_connect"), &now)
                .ignore()
                .query(c)
        })
    }

    /// Do ip, hostname, role and last_connect stand in Redis as they should?
    pub fn machine_entry(&mut self, host: &str, ip: Ipv4Addr, role: &str) -> Result<Entry> {
        let keys = ["ip", "hostname", "role", "last_connect"].map(|field| key::machine(host, field));
        let values = self.mget(&keys)?;
        let value = |place: usize| values.get(place).and_then(Option::as_deref);
        let other_ip = value(0)
            .and_then(|bytes| std::str::from_utf8(bytes).ok()?.parse().ok())
            .filter(|other| *other != ip);
        let same = value(0) == Some(ip.to_string().as_bytes())
            && value(1) == Some(host.as_bytes())
            && value(2) == Some(role.as_bytes());
        Ok(match (other_ip, value(3)) {
            (Some(other), Some(_)) => Entry::Contested(other),
            (_, Some(_)) if same => Entry::Ours,
            _ => Entry::Lost,
        })
    }

    /// Rewrites last_connect, in Redis' own time, and what this machine's clock says.
    pub fn beat(&mut self, host: &str) -> Result<()> {
        let now = time::format(self.measure_clock()?);
        let clock = self.link.health().clock().map_or_else(String::new, ClockOffset::to_text);
        self.link.run(|c| {
            pipe()
                .set(key::machine(host, "last_connect"), &now)
                .ignore()
                .set(key::machine(host, "clock"), &clock)
                .ignore()
                .query(c)
        })
    }

    /// Writes and removes entries of this machine's segments in one round trip.
    pub fn update_segments(
        &mut self,
        host: &str,
        changed: &BTreeMap<String, (Shape, DType)>,
        gone: &BTreeSet<String>,
    ) -> Result<()> {
        if changed.is_empty() && gone.is_empty() {
            return Ok(());
        }
        let mut batch = pipe();
        for (name, (shape, dtype)) in changed {
            batch.set(key::segment(host, name, "dimensions"), record::dimensions_to_json(shape)).ignore();
            batch.set(key::segment(host, name, "dtype"), dtype.name()).ignore();
        }
        for name in gone {
            for field in ["dimensions", "dtype", "connections"] {
                batch.del(key::segment(host, name, field)).ignore();
            }
        }
        self.link.run(|c| batch.query(c))
    }

    /// How many of these segments have both their keys.
    pub fn segments_registered(&mut self, host: &str, names: &[&String]) -> Result<bool> {
        let keys: Vec<String> = names
            .iter()
            .flat_map(|name| ["dimensions", "dtype"].map(|field| key::segment(host, name, field)))
            .collect();
        let mut found = 0;
        for chunk in keys.chunks(1_000) {
            found += self.link.run(|c| cmd("EXISTS").arg(chunk).query::<usize>(c))?;
        }
        Ok(found == keys.len())
    }

    /// The names and records that an earlier run of this machine left in Redis.
    pub fn left_behind(&mut self, host: &str) -> Result<BTreeMap<String, Vec<Record>>> {
        let keys = self.scan(&format!("{}*", key::machine(&glob_escape(host), "shm:")))?;
        let mut left: BTreeMap<String, Vec<Record>> = BTreeMap::new();
        for found in &keys {
            if let Some(MachineKey::Segment(_, name, _)) = key::parse_machine(found) {
                left.entry(name.to_owned()).or_default();
            }
        }
        let names: Vec<String> = left.keys().cloned().collect();
        let keys: Vec<String> = names.iter().map(|name| key::segment(host, name, "connections")).collect();
        for ((name, key), value) in names.into_iter().zip(&keys).zip(self.mget(&keys)?) {
            if let Some(records) = self.records(key, value) {
                left.insert(name, records);
            }
        }
        Ok(left)
    }

    fn records(&self, key: &str, value: Bytes) -> Option<Vec<Record>> {
        let (records, refused) = self.parsed(key, value, Record::parse_list)?;
        for why in refused {
            self.refuse(key, &why);
        }
        Some(records)
    }

    /// Writes the connection records of a segment, or removes the key where there are none.
    pub fn write_records(&mut self, host: &str, name: &str, records: &[Record]) -> Result<()> {
        let key = key::segment(host, name, "connections");
        self.link.run(|c| match records {
            [] => cmd("DEL").arg(&key).query(c),
            _ => cmd("SET").arg(&key).arg(Record::list_to_json(records)).query(c),
        })
    }

    /// The requests that wait for these segments of ours: name, the text as it stands there, what it says. A request
    /// that makes no sense is warned of and removed: its key would be in the way of the next.
    pub fn requests(&mut self, host: &str, names: &[String]) -> Result<Vec<(String, String, Request)>> {
        let keys: Vec<String> = names.iter().map(|name| key::request(host, name)).collect();
        let values = self.mget(&keys)?;
        let mut requests = Vec::new();
        for ((name, key), value) in names.iter().zip(&keys).zip(values) {
            let Some(bytes) = value else { continue };
            let parsed = self.text(key, Some(bytes.clone())).map(|text| (Request::parse(&text), text));
            match parsed {
                Some((Ok(request), text)) => requests.push((name.clone(), text, request)),
                Some((Err(why), _)) => {
                    self.refuse(key, &why);
                    self.delete_if_same(key, &bytes)?;
                }
                None => self.delete_if_same(key, &bytes)?,
            }
        }
        Ok(requests)
    }

    /// Removes a request that was answered, unless somebody has written another one since.
    pub fn delete_request(&mut self, host: &str, name: &str, text: &str) -> Result<()> {
        self.delete_if_same(&key::request(host, name), text.as_bytes())
    }

    fn delete_if_same(&mut self, key: &str, value: &[u8]) -> Result<()> {
        self.link.run(|c| {
            cmd("WATCH").arg(key).query::<()>(c)?;
            if cmd("GET").arg(key).query::<Bytes>(c)?.as_deref() != Some(value) {
                return cmd("UNWATCH").query(c);
            }
            // Nil when the key changed meanwhile: then it stays, which is what we want.
            pipe().atomic().del(key).ignore().query::<Option<()>>(c).map(|_| ())
        })
    }

    /// Asks for a segment: our heartbeat first, so that the owner finds us alive, then the request. `false`: somebody
    /// else's request waits there, ours must come later.
    pub fn ask(&mut self, host: &str, name: &str, request: &Request) -> Result<bool> {
        self.client_heartbeats(&[(host.to_owned(), name.to_owned())], &request.client_hostname)?;
        let expiry_s = limits::CLIENT_HEARTBEAT_EXPIRY.as_secs();
        let key = key::request(host, name);
        let set: Option<String> = self.link.run(|c| {
            cmd("SET").arg(&key).arg(request.to_json()).arg("NX").arg("EX").arg(expiry_s).query(c)
        })?;
        // A list or a hash under that name is nil to every MGET, the owner's as well: nobody else would ever clear it.
        if set.is_none() {
            let kind: String = self.link.run(|c| cmd("TYPE").arg(&key).query(c))?;
            if kind != "string" && kind != "none" {
                self.refuse(&key, &format!("it is a {kind}, no string, and is removed"));
                self.link.run(|c| cmd("DEL").arg(&key).query::<()>(c))?;
            }
        }
        self.wake(host, "request");
        Ok(set.is_some())
    }

    /// Rewrites our heartbeat for each of these segments of other machines.
    pub fn client_heartbeats(&mut self, streams: &[(String, String)], client: &str) -> Result<()> {
        if streams.is_empty() {
            return Ok(());
        }
        let now = time::format(self.time_ns()?);
        let mut batch = pipe();
        for (host, name) in streams {
            let expiry_s = limits::CLIENT_HEARTBEAT_EXPIRY.as_secs();
            batch.set_ex(key::heartbeat(host, name, client), &now, expiry_s).ignore();
        }
        self.link.run(|c| batch.query(c))
    }

    /// Ends our interest in a segment: heartbeat away, owner told.
    pub fn release(&mut self, host: &str, name: &str, client: &str) -> Result<()> {
        self.link.run(|c| cmd("DEL").arg(key::heartbeat(host, name, client)).query::<()>(c))?;
        self.wake(host, &format!("release {name} {client}"));
        Ok(())
    }

    /// Wakes the daemon of a host, if it listens: a hint, nothing depends on it.
    pub fn wake(&mut self, host: &str, hint: &str) {
        let told = self.link.run(|c| cmd("PUBLISH").arg(key::wake_channel(host)).arg(hint).query::<i64>(c));
        if let Err(error) = told {
            crate::debug!("no wake-up for {host}: {error}");
        }
    }

    /// Heartbeat ages of these clients of a segment of ours.
    pub fn client_ages(&mut self, host: &str, name: &str, clients: &[String]) -> Result<Vec<ClientAge>> {
        if clients.is_empty() {
            return Ok(Vec::new());
        }
        let mut batch = pipe();
        for client in clients {
            batch.cmd("PTTL").arg(key::heartbeat(host, name, client));
        }
        let ttls: Vec<i64> = self.link.run(|c| batch.query(c))?;
        let expiry_ms = limits::CLIENT_HEARTBEAT_EXPIRY.as_millis() as i64;
        Ok(clients
            .iter()
            .zip(ttls)
            .map(|(client, ttl_ms)| ClientAge {
                client: client.clone(),
                // -2: no such key. -1: a key without expiry, which nobody of the contract writes: as old as can be.
                age: (ttl_ms >= 0).then(|| Duration::from_millis((expiry_ms - ttl_ms).max(0) as u64)),
            })
            .collect())
    }

    /// Everybody with a heartbeat for a segment of ours, with or without a record: a scan, so only for when it matters.
    pub fn clients_with_heartbeat(&mut self, host: &str, name: &str) -> Result<Vec<ClientAge>> {
        let prefix = key::heartbeat(host, name, "");
        let pattern = format!("{}*", glob_escape(&prefix));
        let found = self.scan(&pattern)?;
        let clients: Vec<String> = found
            .iter()
            .filter_map(|key| key.strip_prefix(&prefix))
            .filter(|client| host_name(client).is_ok())
            .map(str::to_owned)
            .take(limits::CLIENTS_MAX)
            .collect();
        self.client_ages(host, name, &clients)
    }

    /// The same for all our segments at once, by name: for the start.
    pub fn clients_of_all(&mut self, host: &str) -> Result<BTreeMap<String, Vec<ClientAge>>> {
        let prefix = format!("dao:heartbeats:{host}:");
        let found = self.scan(&format!("{}*", glob_escape(&prefix)))?;
        let mut clients: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for key in &found {
            let Some((name, client)) = key.strip_prefix(&prefix).and_then(|rest| rest.rsplit_once(':'))
            else {
                continue;
            };
            if segment_name(name).is_ok() && host_name(client).is_ok() {
                clients.entry(name.to_owned()).or_default().push(client.to_owned());
            }
        }
        let mut ages = BTreeMap::new();
        for (name, clients) in clients {
            let of_name = self.client_ages(host, &name, &clients)?;
            ages.insert(name, of_name);
        }
        Ok(ages)
    }

    /// What the registry says of these segments of other machines, in one round trip.
    pub fn remote_facts(&mut self, streams: &[(String, String)]) -> Result<Vec<RemoteFacts>> {
        let keys: Vec<String> = streams
            .iter()
            .flat_map(|(host, name)| {
                let segment = |field| key::segment(host, name, field);
                [
                    key::machine(host, "hostname"),
                    key::machine(host, "ip"),
                    segment("dimensions"),
                    segment("dtype"),
                    segment("connections"),
                    key::machine(host, "clock"),
                ]
            })
            .collect();
        let mut values = self.mget(&keys)?;
        Ok(keys
            .chunks(6)
            .zip(values.chunks_mut(6))
            .map(|(keys, values)| {
                let mut take = |position: usize| values.get_mut(position).and_then(Option::take);
                let (known, ip, dimensions, dtype) = (take(0), take(1), take(2), take(3));
                let shape = self.parsed(&keys[2], dimensions, record::parse_dimensions);
                let dtype = self.parsed(&keys[3], dtype, record::parse_dtype);
                RemoteFacts {
                    known: known.is_some(),
                    ip: self.parsed(&keys[1], ip, |text| {
                        text.parse().map_err(|_| "it is no IPv4 address".to_owned())
                    }),
                    spec: shape.zip(dtype),
                    records: self.records(&keys[4], take(4)).unwrap_or_default(),
                    clock: self.parsed(&keys[5], take(5), ClockOffset::parse),
                }
            })
            .collect())
    }

    /// Every registered machine with its segments, sorted by name.
    pub fn machines(&mut self) -> Result<Vec<Machine>> {
        let keys = self.scan(&format!("{}*", key::MACHINES))?;
        let mut machines: BTreeMap<String, Machine> = BTreeMap::new();
        for found in &keys {
            let (host, segment) = match key::parse_machine(found) {
                Some(MachineKey::Machine(host, _)) => (host, None),
                Some(MachineKey::Segment(host, name, "dimensions")) => (host, Some(name)),
                _ => continue,
            };
            if let Err(why) = host_name(host) {
                self.refuse(found, &why);
                continue;
            }
            let entry = machines.entry(host.to_owned());
            let machine =
                entry.or_insert_with(|| Machine { hostname: host.to_owned(), ..Machine::default() });
            match segment.map(segment_name) {
                Some(Ok(name)) => drop(machine.shm_segments.insert(name.to_owned())),
                Some(Err(why)) => self.refuse(found, &why),
                None => {}
            }
        }
        let fields: Vec<String> = machines
            .keys()
            .flat_map(|host| ["ip", "role", "last_connect"].map(|field| key::machine(host, field)))
            .collect();
        let mut values = self.mget(&fields)?.into_iter().zip(&fields);
        for machine in machines.values_mut() {
            let mut next = || values.next().and_then(|(value, key)| self.text(key, value));
            (machine.ip, machine.role, machine.last_connect) = (next(), next(), next());
        }
        Ok(machines.into_values().collect())
    }

    /// Removes every key of a machine: its own, requests to it, heartbeats for it. How many there were.
    pub fn remove_machine(&mut self, host: &str) -> Result<u64> {
        self.remove_keys_of(host, &[key::MACHINES, "dao:connections:", "dao:heartbeats:"])
    }

    /// Removes this machine's keys and the requests to it. Heartbeats of its clients stay: they say who is to be
    /// served again when it comes back.
    pub fn deregister_self(&mut self, host: &str) -> Result<u64> {
        self.remove_keys_of(host, &[key::MACHINES, "dao:connections:"])
    }

    fn remove_keys_of(&mut self, host: &str, prefixes: &[&str]) -> Result<u64> {
        let mut keys = BTreeSet::new();
        for prefix in prefixes {
            keys.extend(self.scan(&format!("{prefix}{}:*", glob_escape(host)))?);
        }
        self.delete(&keys)
    }

    /// Takes or renews the lease on the master's role: `true` if it is ours now. Its value is our host name, so that a
    /// daemon that was killed takes up its own lease.
    pub fn lease_master(&mut self, host: &str) -> Result<bool> {
        let lease_ms = limits::MASTER_LEASE.as_millis() as u64;
        let taken: Option<String> = self.link.run(|c| {
            cmd("SET").arg(key::MASTER_LEASE).arg(host).arg("NX").arg("PX").arg(lease_ms).query(c)
        })?;
        if taken.is_some() {
            return Ok(true);
        }
        let holder: Bytes = self.link.run(|c| cmd("GET").arg(key::MASTER_LEASE).query(c))?;
        if holder.as_deref() != Some(host.as_bytes()) {
            return Ok(false);
        }
        self.link.run(|c| cmd("PEXPIRE").arg(key::MASTER_LEASE).arg(lease_ms).query::<()>(c))?;
        Ok(true)
    }

    /// Gives the lease back, if it is ours.
    pub fn release_master(&mut self, host: &str) -> Result<()> {
        self.delete_if_same(key::MASTER_LEASE, host.as_bytes())
    }
}
