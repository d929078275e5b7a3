//! Into the registry and out of it: what `start`, `register_machine` and `deregister_machine` do.

use crate::control::commands::Command;
use crate::control::loops::Shared;
use crate::control::registry::Registry;
use crate::control::roles;
use crate::error::{Error, Kind, Result};
use crate::limits;
use crate::os::threads::lock;
use crate::settings::Role;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};

/// What an earlier run of this machine has left in Redis.
#[derive(Default)]
pub struct EarlierRun {
    /// Segments that stand there.
    names: BTreeSet<String>,
    /// The ports that they were published on.
    pub ports: BTreeMap<String, u16>,
    /// Living clients by segment.
    pub clients_of: BTreeMap<String, Vec<String>>,
    /// Everybody to be told that we are back.
    clients: BTreeSet<String>,
}

impl EarlierRun {
    /// Reads it, and clears the connection records: they name ports on which nobody listens.
    fn take(registry: &mut Registry, host: &str) -> Result<EarlierRun> {
        let mut earlier = EarlierRun::default();
        for (name, records) in registry.left_behind(host)? {
            if let Some(first) = records.first() {
                earlier.ports.insert(name.clone(), first.port);
                registry.write_records(host, &name, &[])?;
            }
            earlier.clients.extend(records.into_iter().map(|record| record.client_hostname));
            earlier.names.insert(name);
        }
        for (name, ages) in registry.clients_of_all(host)? {
            let living = ages
                .into_iter()
                .filter(|entry| entry.age.is_some_and(|age| age <= limits::CLIENT_SILENT_MAX));
            let living: Vec<String> = living.map(|entry| entry.client).collect();
            earlier.clients.extend(living.iter().cloned());
            earlier.clients_of.insert(name, living);
        }
        Ok(earlier)
    }
}

/// Who this machine is, as `start` and `register_machine` answer.
pub fn identity(shared: &Shared) -> Value {
    let me = lock(&shared.state).me.clone();
    json!({"hostname": me.hostname, "ip": me.ip.to_string(), "role": me.role.name()})
}

/// Puts this machine into the registry; its segments follow within a second. One that stands there stays.
pub fn register(shared: &Shared, registry: &mut Registry) -> Result<Value> {
    let _one_at_a_time = lock(&shared.registering);
    if shared.is_registered() {
        return Ok(identity(shared));
    }
    let host = &shared.settings.hostname;
    let role = roles::choose(registry, host, shared.settings.role)?;
    let entered = enter(shared, registry, role);
    if entered.is_err() {
        // Half in is out: a master would have to clean up.
        let _ = registry.deregister_self(host);
        shared.entered.store(false, Relaxed);
    }
    entered
}

fn enter(shared: &Shared, registry: &mut Registry, role: Role) -> Result<Value> {
    let host = &shared.settings.hostname;
    let mut earlier = EarlierRun::take(registry, host)?;
    let ip = lock(&shared.state).me.ip;
    shared.entered.store(true, Relaxed);
    registry.register_machine(host, ip, role.name())?;
    shared.leave_to_sync(std::mem::take(&mut earlier.names));
    let clients = std::mem::take(&mut earlier.clients);
    let (reply, answer) = sync_channel(1);
    shared.commands.insist(Command::Registered { role, earlier, reply });
    match answer.recv_timeout(limits::COMMAND_REPLY_TIMEOUT) {
        Ok(result) => result?,
        Err(RecvTimeoutError::Disconnected) => return Err(Error::new(Kind::Os, "The daemon is stopping.")),
        Err(RecvTimeoutError::Timeout) => {
            let sentence = "The daemon was too busy to take up what an earlier run has left.";
            return Err(Error::new(Kind::Timeout, sentence));
        }
    }
    // Everybody who was served before learns that we are back.
    for client in &clients {
        registry.wake(client, "records");
    }
    Ok(identity(shared))
}

/// Takes this machine out of the registry: how many keys there were.
pub fn unregister(shared: &Shared, registry: &mut Registry) -> Result<u64> {
    let _one_at_a_time = lock(&shared.registering);
    let (reply, answer) = sync_channel(1);
    shared.commands.insist(Command::Unregister { reply });
    let _ = answer.recv_timeout(limits::COMMAND_REPLY_TIMEOUT); // late or not, the keys go now
    let keys = registry.deregister_self(&shared.settings.hostname)?;
    shared.entered.store(false, Relaxed);
    Ok(keys)
}
