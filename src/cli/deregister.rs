//! `deregister`: a machine leaves the registry.

use super::output;
use crate::control::client;
use crate::error::Result;
use crate::settings::Settings;
use crate::wire::control::Op;
use serde_json::Value;
use std::time::Duration;

/// Has the local daemon, a master, remove a machine's keys, and prints how many there were.
pub fn run(settings: &Settings, host: &str) -> Result<()> {
    let op = Op::DeregisterMachine { hostname: Some(host.to_owned()) };
    let answer = client::call(&settings.control_path(), &op, Duration::from_secs(30))?;
    let keys = answer.get("keys").and_then(Value::as_u64).unwrap_or(0);
    output::print(&format!("Removed {host} ({keys} keys)."))
}
