//! Settings for programs that embed the daemon: every flag's default.

use crate::error::{Error, Kind, Result};
use crate::naming;
use crate::os::interfaces;
use crate::settings::Settings;

impl Settings {
    /// What the daemon has without a flag: Redis on `localhost:6379`, segments in `/tmp`, the role found out, and this
    /// machine's own name.
    ///
    /// # Errors
    /// `Value`: the machine's name can stand in no registry. `Os`: it cannot be asked for.
    pub fn here() -> Result<Settings> {
        let name = interfaces::hostname()
            .map_err(|why| Error::new(Kind::Os, format!("Cannot ask for this machine's name: {why}")))?;
        match naming::host_name(&name) {
            Ok(_) => Ok(Settings::named(name)),
            Err(why) => Err(Error::usage(format!("{why}; give this machine a name with --hostname"))),
        }
    }
}
