//! `shm ...`: segments of this machine, without a daemon.

pub mod values;

use super::commands::Shm;
use crate::error::{Error, Kind, Result};
use std::path::Path;

/// Does what was asked for; names were looked up in `_shm_dir` already.
pub fn run(_asked: &Shm, _shm_dir: &Path) -> Result<()> {
    Err(Error::new(Kind::NotImplemented, "shm is not implemented."))
}
