//! The signals that end a daemon, taken by one thread that waits for them.
#![allow(unsafe_code)] // sigset and sigtimedwait

use std::time::Duration;

const ENDING: [libc::c_int; 3] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];

fn set() -> libc::sigset_t {
    // SAFETY: sigemptyset initialises the set before it is read; the signal numbers are valid.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        for signal in ENDING {
            libc::sigaddset(&mut set, signal);
        }
        set
    }
}

/// Blocks SIGINT, SIGTERM and SIGHUP in this thread and all that it starts from now on; [`wait`] takes them.
pub fn block() {
    // SAFETY: a valid set; the old mask is not asked for.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set(), std::ptr::null_mut()) };
}

/// Waits for one of them, at most this long: its name, or `None`.
pub fn wait(time: Duration) -> Option<&'static str> {
    let timeout =
        libc::timespec { tv_sec: time.as_secs() as libc::time_t, tv_nsec: i64::from(time.subsec_nanos()) };
    // SAFETY: valid pointers for the call's length; no siginfo is asked for.
    match unsafe { libc::sigtimedwait(&set(), std::ptr::null_mut(), &timeout) } {
        libc::SIGINT => Some("SIGINT"),
        libc::SIGTERM => Some("SIGTERM"),
        libc::SIGHUP => Some("SIGHUP"),
        _ => None,
    }
}
