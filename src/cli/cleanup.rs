//! `cleanup`.

use crate::error::{Error, Kind, Result};
use crate::settings::Settings;

/// Removes silent machines from Redis.
pub fn run(_settings: &Settings, _ttl: std::time::Duration) -> Result<()> {
    Err(Error::new(Kind::NotImplemented, "cleanup is not implemented."))
}
