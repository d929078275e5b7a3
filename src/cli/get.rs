//! `get`.

use crate::error::{Error, Kind, Result};
use crate::settings::Settings;

/// Has the local daemon mirror a segment, and prints the mirror's path.
pub fn run(
    _settings: &Settings,
    _host: &str,
    _shm: &str,
    _bidirectional: bool,
    _timeout: std::time::Duration,
    _json: bool,
) -> Result<()> {
    Err(Error::new(Kind::NotImplemented, "get is not implemented."))
}
