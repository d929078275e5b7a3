//! `status`.

use crate::error::{Error, Kind, Result};
use crate::settings::Settings;

/// Prints what the local daemon publishes and mirrors.
pub fn run(_settings: &Settings, _json: bool) -> Result<()> {
    Err(Error::new(Kind::NotImplemented, "status is not implemented."))
}
