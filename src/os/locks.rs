//! Locks that the kernel gives back when their holder dies, however it dies.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;

/// A name that one process of this machine holds: an abstract Unix socket to which nobody connects.
pub struct NameLock(#[allow(dead_code)] UnixListener); // held, never used

impl NameLock {
    /// Takes a name; `None`: another process has it.
    pub fn take(name: &str) -> io::Result<Option<NameLock>> {
        // Such addresses are shorter than names may be: FNV-1a of it.
        let hash = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        let hash = name.as_bytes().iter().fold(0xcbf2_9ce4_8422_2325, hash);
        let address = SocketAddr::from_abstract_name(format!("daoserver-{hash:016x}"))?;
        match UnixListener::bind_addr(&address) {
            Ok(listener) => Ok(Some(NameLock(listener))),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// A file that one process holds, as `flock` does: among those that ask.
pub struct FileLock(File);

impl FileLock {
    /// Locks the file at this path; `None`: another process has it. Follows no symbolic link.
    pub fn take(path: &Path) -> io::Result<Option<FileLock>> {
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(FileLock(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Is the file at this path the locked one?
    pub fn is_of(&self, path: &Path) -> bool {
        let identity = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
        match (self.0.metadata(), std::fs::symlink_metadata(path)) {
            (Ok(ours), Ok(there)) => identity(ours) == identity(there),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_held_once_and_given_back() {
        let name = format!("daoserver-test-{}-{}", std::process::id(), "x".repeat(300));
        let held = NameLock::take(&name).unwrap();
        assert!(held.is_some());
        assert!(NameLock::take(&name).unwrap().is_none());
        drop(held);
        assert!(NameLock::take(&name).unwrap().is_some());
    }

    #[test]
    fn a_file_is_held_once_and_one_in_its_place_is_another() {
        let path = std::env::temp_dir().join(format!("daoserver-lock-{}", std::process::id()));
        std::fs::write(&path, "").unwrap();
        let held = FileLock::take(&path).unwrap().unwrap();
        assert!(FileLock::take(&path).unwrap().is_none());
        assert!(held.is_of(&path));
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "").unwrap();
        assert!(!held.is_of(&path));
        assert!(FileLock::take(&path).unwrap().is_some());
        std::fs::remove_file(&path).unwrap();
    }
}
