//! `daemon`.

use crate::error::{Error, Kind, Result};
use crate::settings::Settings;

/// Runs the daemon until a signal ends it.
pub fn run(_settings: &Settings) -> Result<()> {
    Err(Error::new(Kind::NotImplemented, "daemon is not implemented."))
}
