//! `release`: ends a mirror.

use crate::control::client;
use crate::error::Result;
use crate::settings::Settings;
use crate::wire::control::Op;
use std::time::Duration;

/// Ends the mirror and removes its file and semaphores.
pub fn run(settings: &Settings, host: &str, shm: &str) -> Result<()> {
    let op = Op::ReleaseRemoteShm { hostname: host.to_owned(), shm: shm.to_owned() };
    client::call(&settings.control_path(), &op, Duration::from_secs(15)).map(|_| ())
}
