//! `list`: machines and segments, from Redis alone.

use super::output;
use crate::control::redis_link::Health;
use crate::control::registry::Registry;
use crate::error::Result;
use crate::settings::Settings;
use serde_json::Value;
use std::sync::Arc;

/// Prints every registered machine with its segments.
pub fn run(settings: &Settings, json: bool) -> Result<()> {
    let mut registry = Registry::new(settings, Arc::new(Health::silent()));
    let machines = registry.machines()?;
    if json {
        let array: Value = machines.iter().map(|machine| machine.to_json()).collect();
        return output::print(&array.to_string());
    }
    if machines.is_empty() {
        return output::print(&format!("No machine is registered in Redis at {}.", settings.redis_address()));
    }
    let now_ns = registry.time_ns()?;
    let mut lines = Vec::new();
    for machine in &machines {
        let field = |value: &Option<String>| value.clone().unwrap_or_else(|| "?".to_owned());
        let age = machine
            .last_connect_ns()
            .map_or("never".to_owned(), |at| format!("{:.0} s ago", (now_ns - at).max(0) as f64 / 1e9));
        lines.push(format!(
            "{}  {}  {}  last heard {age}",
            machine.hostname,
            field(&machine.ip),
            field(&machine.role)
        ));
        lines.extend(machine.shm_segments.iter().map(|name| format!("    {name}")));
    }
    output::print(&lines.join("\n"))
}
