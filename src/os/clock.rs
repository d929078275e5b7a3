//! Clocks: UTC for what others read, monotonic for what we wait for.
#![allow(unsafe_code)] // clock_gettime and nanosleep

use std::time::Duration;

fn read(clock: libc::clockid_t) -> i64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid timespec for the call's length; both clocks exist on every Linux.
    unsafe { libc::clock_gettime(clock, &mut time) };
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}

/// UTC, nanoseconds since 1970: what a segment's `atime` holds.
pub fn realtime_ns() -> i64 {
    read(libc::CLOCK_REALTIME)
}

/// Nanoseconds since some point in the past; never steps.
pub fn monotonic_ns() -> i64 {
    read(libc::CLOCK_MONOTONIC)
}

/// Sleeps, as exactly as the thread's timer slack allows.
pub fn sleep(time: Duration) {
    std::thread::sleep(time);
}

/// Bytes nobody can guess, for ids that tell one run of a program from the next. Falls back on the clock and the
/// process' number where the kernel has no randomness yet.
pub fn random_u64() -> u64 {
    let mut bytes = [0u8; 8];
    // SAFETY: the buffer is valid for its length; a short or failed read is handled below.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), libc::GRND_NONBLOCK) };
    if got == bytes.len() as isize {
        u64::from_le_bytes(bytes)
    } else {
        (realtime_ns() as u64).rotate_left(17) ^ u64::from(std::process::id())
    }
}
