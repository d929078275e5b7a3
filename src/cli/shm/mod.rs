//! `shm ...`: segments of this machine, without a daemon.

mod create;
mod info;
mod read;
pub mod values;
mod watch;
mod write;

use super::commands::Shm;
use super::output;
use crate::error::{Error, Kind, Result};
use crate::os::clock;
use crate::shm::{Access, Advice, OpenError, Segment};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a segment may be half created, or in the middle of a frame, before that is a failure.
const PATIENCE: Duration = Duration::from_secs(1);
/// Between two looks at a counter or at a half created segment.
const LOOK_AGAIN: Duration = Duration::from_micros(200);

/// Does what was asked for.
pub fn run(asked: &Shm, shm_dir: &Path) -> Result<()> {
    match asked {
        Shm::List { json } => info::list(shm_dir, *json),
        Shm::Info { segment, json } => info::info(segment, *json),
        Shm::Create(asked) => create::run(asked),
        Shm::Write(asked) => write::run(asked),
        Shm::Read(asked) => read::run(asked),
        Shm::Watch { segment } => watch::run(segment),
        Shm::Rm { segments } => remove(segments),
    }
}

/// The sentence for a segment that cannot be opened.
fn cannot_open(path: &Path, why: &OpenError) -> Error {
    match why {
        OpenError::NotThere => Error::new(Kind::Key, format!("No segment '{}'.", path.display())),
        _ => Error::new(kind_of(why), format!("Cannot open segment '{}': {why}.", path.display())),
    }
}

fn kind_of(why: &OpenError) -> Kind {
    match why {
        OpenError::NotThere => Kind::Key,
        OpenError::Io { errno: libc::EACCES | libc::EPERM, .. } => Kind::Permission,
        OpenError::Io { .. } => Kind::Os,
        _ => Kind::Value,
    }
}

fn kind_of_io(why: &io::Error) -> Kind {
    match why.kind() {
        io::ErrorKind::PermissionDenied => Kind::Permission,
        io::ErrorKind::NotFound => Kind::Key,
        io::ErrorKind::InvalidInput => Kind::Value,
        _ => Kind::Os,
    }
}

/// Opens a segment; waits a little for one that is just being created.
fn open(path: &Path, access: Access) -> Result<Segment> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match Segment::open(path, access) {
            Ok(segment) => return Ok(segment),
            Err(why) if why.advice() == Advice::Wait && Instant::now() < deadline => clock::sleep(LOOK_AGAIN),
            Err(why) => return Err(cannot_open(path, &why)),
        }
    }
}

/// Removes all that can be removed; each failure is said, and the last one is the command's.
fn remove(segments: &[PathBuf]) -> Result<()> {
    let mut failed: Option<Error> = None;
    for path in segments {
        let Err(why) = crate::shm::remove(path) else { continue };
        let sentence = match why.kind() {
            io::ErrorKind::NotFound => format!("No segment '{}'.", path.display()),
            _ => format!("Cannot remove '{}': {why}.", path.display()),
        };
        if let Some(earlier) = failed.replace(Error::new(kind_of_io(&why), sentence)) {
            output::complain(&earlier);
        }
    }
    failed.map_or(Ok(()), Err)
}
