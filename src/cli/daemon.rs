//! No command: the daemon.

use crate::daemon;
use crate::error::Result;
use crate::settings::Settings;

/// Runs the daemon until a signal ends it.
pub fn run(settings: &Settings) -> Result<()> {
    daemon::run(settings.clone())
}
