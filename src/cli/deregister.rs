//! `deregister`.

use crate::error::{Error, Kind, Result};
use crate::settings::Settings;

/// Removes a machine from Redis.
pub fn run(_settings: &Settings, _host: &str) -> Result<()> {
    Err(Error::new(Kind::NotImplemented, "deregister is not implemented."))
}
