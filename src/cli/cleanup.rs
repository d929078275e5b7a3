//! `cleanup`: silent machines leave the registry.

use super::output;
use crate::control::client;
use crate::error::Result;
use crate::settings::Settings;
use crate::wire::control::Op;
use serde_json::Value;
use std::time::Duration;

/// Has the local daemon, a master, remove machines with an old heartbeat, and prints which.
pub fn run(settings: &Settings, ttl: Duration) -> Result<()> {
    let answer =
        client::call(&settings.control_path(), &Op::CleanupStaleMachines { ttl }, Duration::from_secs(60))?;
    let removed: Vec<&str> = answer
        .get("removed")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    if removed.is_empty() {
        return output::print(&format!("No machine is silent for more than {} s.", ttl.as_secs_f64()));
    }
    output::print(&format!("Removed {}.", removed.join(", ")))
}
