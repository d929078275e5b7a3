//! The POSIX named semaphores beside a segment: `<base>_sem00` to `_sem09` and `<base>_semlog`.
//!
//! They are the C library's of this host, `sem_open` of glibc: readers in other programs sleep on them.
#![allow(unsafe_code)] // sem_open and its family

use super::layout::SEMAPHORES;
use crate::naming;
use crate::os::clock;
use std::ffi::CString;
use std::io;
use std::path::Path;
use std::time::Duration;

/// A semaphore is posted only below this value: it says "there is news", not how much.
const VALUE_MAX: libc::c_int = 1;
/// Semaphores of a row that are looked for when cleaning up: two digits.
const INDEX_MAX: usize = 100;

struct Semaphore(*mut libc::sem_t);

// SAFETY: a semaphore is made to be used from any thread; the pointer is valid until sem_close in `drop`.
unsafe impl Send for Semaphore {}

/// Where glibc keeps it.
fn file_of(name: &str) -> String {
    format!("/dev/shm/sem.{}", name.trim_start_matches('/'))
}

/// Has the file behind a semaphore the length of one? glibc maps it without looking, and a shorter one would
/// be a fault at the first use. `None`: there is none.
fn is_whole(name: &str) -> Option<bool> {
    let metadata = std::fs::symlink_metadata(file_of(name)).ok()?;
    Some(metadata.is_file() && metadata.len() >= size_of::<libc::sem_t>() as u64)
}

/// Nothing is there, or a file: a link, a FIFO or a directory is nobody's semaphore, and is left alone.
fn check_place(name: &str) -> io::Result<()> {
    let file = file_of(name);
    match std::fs::symlink_metadata(&file) {
        Ok(metadata) if !metadata.is_file() => {
            let what = if metadata.is_symlink() { "a symbolic link" } else { "no file" };
            Err(io::Error::other(format!("{file} is {what}")))
        }
        _ => Ok(()),
    }
}

impl Semaphore {
    fn open(name: &str) -> io::Result<Semaphore> {
        if is_whole(name) != Some(true) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let name = CString::new(name)?;
        // SAFETY: a valid string; without O_CREAT there are no further arguments.
        let semaphore = unsafe { libc::sem_open(name.as_ptr(), 0) };
        if semaphore == libc::SEM_FAILED { Err(io::Error::last_os_error()) } else { Ok(Semaphore(semaphore)) }
    }

    fn create(name: &str) -> io::Result<Semaphore> {
        if is_whole(name) == Some(false) {
            unlink(name)?;
        }
        let name = CString::new(name)?;
        let (mode, value): (libc::c_uint, libc::c_uint) = (0o644, 0);
        // SAFETY: a valid string; O_CREAT takes a mode and a value.
        let semaphore = unsafe { libc::sem_open(name.as_ptr(), libc::O_CREAT, mode, value) };
        if semaphore == libc::SEM_FAILED { Err(io::Error::last_os_error()) } else { Ok(Semaphore(semaphore)) }
    }

    fn post(&self) {
        let mut value = 0;
        // SAFETY: open until drop; `value` is valid for the call. Both calls are atomic towards other
        // processes. If another writer posts between them the value reaches 2, which wakes a reader once more
        // and harms nobody.
        unsafe {
            if libc::sem_getvalue(self.0, &mut value) == 0 && value < VALUE_MAX {
                libc::sem_post(self.0);
            }
        }
    }
}

unsafe extern "C" {
    /// glibc 2.30 and later; the crate `libc` does not declare it for Linux. The time is absolute, of that clock: that of
    /// `sem_timedwait` is the wall clock's, which may be set back while we wait.
    fn sem_clockwait(
        semaphore: *mut libc::sem_t,
        clock: libc::clockid_t,
        until: *const libc::timespec,
    ) -> libc::c_int;
}

/// The log's semaphore, for one who waits. The library posts it after every frame and never waits for it itself, so that
/// whoever takes its post away takes it from no reader.
pub struct Bell(Semaphore);

impl Bell {
    /// That of the segment at `path`; `None`: there is none, or it is somebody else's.
    pub fn open(path: &Path) -> Option<Bell> {
        let base = naming::semaphore_base(path)?;
        Semaphore::open(&naming::semaphore_log(&base)).ok().map(Bell)
    }

    /// Has it been posted since it was last taken?
    pub fn take(&self) -> bool {
        // SAFETY: open until drop.
        unsafe { libc::sem_trywait(self.0.0) == 0 }
    }

    /// Waits for a post, at most this long, and takes it. It may end early.
    pub fn wait(&self, time: Duration) -> bool {
        let until = clock::monotonic_ns().saturating_add(time.as_nanos().min(i64::MAX as u128) as i64);
        let until = libc::timespec {
            tv_sec: until / 1_000_000_000,
            tv_nsec: (until % 1_000_000_000) as libc::c_long,
        };
        // SAFETY: open until drop; a valid time for the call.
        unsafe { sem_clockwait(self.0.0, libc::CLOCK_MONOTONIC, &raw const until) == 0 }
    }
}

impl Drop for Semaphore {
    fn drop(&mut self) {
        // SAFETY: open, and not used again.
        unsafe { libc::sem_close(self.0) };
    }
}

fn unlink(name: &str) -> io::Result<()> {
    let name = CString::new(name)?;
    // SAFETY: a valid string.
    match unsafe { libc::sem_unlink(name.as_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The semaphores that a writer posts after every frame.
pub(super) struct Semaphores {
    row: Vec<Semaphore>,
    log: Option<Semaphore>,
}

impl Semaphores {
    /// Opens those there are, at most ten of the row: missing ones are left out, since a segment without
    /// readers that wait needs none.
    pub fn open(base: &str) -> Semaphores {
        let row = (0..usize::from(SEMAPHORES)).map_while(|index| {
            let name = naming::semaphore(base, index);
            Semaphore::open(&name).ok()
        });
        Semaphores { row: row.collect(), log: Semaphore::open(&naming::semaphore_log(base)).ok() }
    }

    /// Wakes whoever waits: each semaphore that has not been posted since it was last waited for, then the
    /// log's.
    pub fn post_all(&self) {
        for semaphore in self.row.iter().chain(&self.log) {
            semaphore.post();
        }
    }

    /// How many of the row are open.
    pub fn count(&self) -> usize {
        self.row.len()
    }
}

/// Makes exactly ten and the log's; those that exist are kept, for readers may wait on them, and a row that
/// goes on is cut, for the library overflows its heap with an eleventh.
pub(super) fn create(base: &str) -> io::Result<()> {
    let row = (0..usize::from(SEMAPHORES)).map(|index| naming::semaphore(base, index));
    let names: Vec<String> = row.chain([naming::semaphore_log(base)]).collect();
    // All of them before the first is made: what is refused leaves nothing behind.
    names.iter().try_for_each(|name| check_place(name))?;
    names.iter().try_for_each(|name| Semaphore::create(name).map(drop))?;
    unlink_row(base, SEMAPHORES.into());
    Ok(())
}

/// Takes away what [`create`] made before it failed, and nothing that is no semaphore.
pub(super) fn undo(base: &str) {
    let row = (0..usize::from(SEMAPHORES)).map(|index| naming::semaphore(base, index));
    for name in row.chain([naming::semaphore_log(base)]).filter(|name| check_place(name).is_ok()) {
        let _ = unlink(&name); // there may be none
    }
}

fn unlink_row(base: &str, from: usize) {
    for index in from..INDEX_MAX {
        if unlink(&naming::semaphore(base, index)).is_err() && index >= usize::from(SEMAPHORES) {
            break;
        }
    }
}

/// Removes them all. Who has one open keeps it.
pub(super) fn remove(base: &str) {
    unlink_row(base, 0);
    // There may be none.
    let _ = unlink(&naming::semaphore_log(base));
}

/// How many semaphores `<base>_semNN` exist in a row from 00.
pub fn semaphore_count(base: &str) -> usize {
    (0..INDEX_MAX).take_while(|&index| Semaphore::open(&naming::semaphore(base, index)).is_ok()).count()
}
