//! `get`: the local daemon mirrors a segment of another machine.

use super::output;
use crate::control::client;
use crate::error::Result;
use crate::settings::Settings;
use crate::wire::control::{Get, Op};
use std::time::Duration;

/// Prints the mirror's path, or all that is known of it.
pub fn run(
    settings: &Settings,
    host: &str,
    shm: &str,
    bidirectional: bool,
    timeout: Duration,
    json: bool,
) -> Result<()> {
    let op = Op::GetRemoteShm(Get { bidirectional, timeout, ..Get::new(host, shm) });
    // Beyond the wait for the record: the first frame, and Redis' time-outs.
    let mirror = client::call(&settings.control_path(), &op, timeout + Duration::from_secs(15))?;
    if json {
        return output::print(&mirror.to_string());
    }
    output::print(mirror.get("path").and_then(serde_json::Value::as_str).unwrap_or_default())
}
