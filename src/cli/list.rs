//! `list`.

use crate::error::{Error, Kind, Result};
use crate::settings::Settings;

/// Prints the machines and segments that Redis knows.
pub fn run(_settings: &Settings, _json: bool) -> Result<()> {
    Err(Error::new(Kind::NotImplemented, "list is not implemented."))
}
