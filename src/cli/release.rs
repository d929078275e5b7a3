//! `release`.

use crate::error::{Error, Kind, Result};
use crate::settings::Settings;

/// Ends a mirror.
pub fn run(_settings: &Settings, _host: &str, _shm: &str) -> Result<()> {
    Err(Error::new(Kind::NotImplemented, "release is not implemented."))
}
