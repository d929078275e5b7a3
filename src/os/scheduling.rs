//! Where and how soon the kernel runs a thread, and what stays in memory.
#![allow(unsafe_code)] // prctl, sched_setattr and their kin, mlockall

use crate::limits::CORES_MAX;
use std::io;

/// Where a thread runs, and before whom.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// On this core alone.
    pub core: Option<usize>,
    /// With this priority of `SCHED_FIFO`.
    pub fifo_priority: Option<u8>,
}

/// `struct sched_attr` of Linux, first version.
#[repr(C)]
struct SchedAttr {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime_ns: u64,
    deadline_ns: u64,
    period_ns: u64,
}

const _: () = assert!(size_of::<SchedAttr>() == 48);

/// The kernel's shortest slice. A thread that asks for less time at once is run sooner when it wakes up.
const SLICE_NS: u64 = 100_000;

/// Tells the kernel that the calling thread, and those that it starts from now on, want to run soon rather than long:
/// sleeps are not bundled with others' (timer slack), and the slice is the shortest (Linux 6.12 and later, without
/// privileges; older kernels ignore it). Beside two busy processes on two cores this halved the frames that a
/// publisher missed.
pub fn prefer_latency() {
    let attributes = SchedAttr {
        size: size_of::<SchedAttr>() as u32,
        policy: libc::SCHED_OTHER as u32,
        flags: 0,
        nice: current_nice(),
        priority: 0,
        runtime_ns: SLICE_NS,
        deadline_ns: 0,
        period_ns: 0,
    };
    // SAFETY: PR_SET_TIMERSLACK takes one integer; sched_setattr reads `size` bytes of a valid struct, of the calling
    // thread (0). Both fail without effect, and then the thread runs as before.
    unsafe {
        libc::prctl(libc::PR_SET_TIMERSLACK, 1usize);
        if libc::sched_getscheduler(0) == libc::SCHED_OTHER {
            libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0);
        }
    }
}

/// The nice value that the thread was started with: it stays.
fn current_nice() -> i32 {
    // SAFETY: no memory is involved. -1 is a valid answer as well as an error, and then as good as any.
    unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) }
}

fn checked(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

const _: () = assert!(CORES_MAX == libc::CPU_SETSIZE as usize);

/// Puts the calling thread in its place. What fails is left as it was, and the rest is done.
pub fn take_place(place: Place) -> io::Result<()> {
    let pinned = place.core.map_or(Ok(()), pin);
    place.fifo_priority.map_or(Ok(()), run_first).and(pinned)
}

fn pin(core: usize) -> io::Result<()> {
    if core >= CORES_MAX {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: a cpu_set_t is an array of integers, for which zeros are valid; `core` is below its size; the call reads
    // the set, for the calling thread (0).
    checked(unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(core, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set)
    })
}

fn run_first(priority: u8) -> io::Result<()> {
    let parameters = libc::sched_param { sched_priority: priority.into() };
    // SAFETY: the call reads one valid struct, for the calling thread (0).
    checked(unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &parameters) })
}

/// Would a thread be given this place? Tried on one that ends at once.
pub fn try_place(place: Place) -> io::Result<()> {
    let tried = std::thread::Builder::new().spawn(move || take_place(place))?.join();
    tried.unwrap_or_else(|_| Err(io::ErrorKind::Other.into()))
}

/// The cores that the kernel gives to nobody who does not ask for them (`isolcpus`).
pub fn isolated_cores() -> Vec<usize> {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/isolated").unwrap_or_default();
    crate::settings::cores(text.trim()).unwrap_or_default()
}

/// Keeps in memory what the process has and will have, so that nothing on a frame's way waits for a page. Refused where
/// a limit would make later mappings fail.
pub fn lock_memory() -> io::Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the call fills one valid struct.
    checked(unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &mut limit) })?;
    if limit.rlim_cur != libc::RLIM_INFINITY && !may_lock_all() {
        let why = format!("the limit is {} kB (ulimit -l)", limit.rlim_cur / 1024);
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    }
    // SAFETY: no memory of ours is passed, and none is moved.
    checked(unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE) })
}

/// CAP_IPC_LOCK, for which there is no limit: bit 14 of the effective capabilities.
fn may_lock_all() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).is_some_and(|bits| bits & 1 << 14 != 0)
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_place_that_no_machine_has_is_refused_and_none_is_always_given() {
        use super::{Place, try_place};
        use crate::limits::CORES_MAX;
        assert!(try_place(Place { core: Some(CORES_MAX - 1), fifo_priority: None }).is_err());
        assert!(try_place(Place { core: Some(CORES_MAX), fifo_priority: None }).is_err());
        assert!(try_place(Place { core: None, fifo_priority: Some(100) }).is_err());
        assert!(try_place(Place::default()).is_ok());
    }

    #[test]
    fn a_thread_goes_on_as_it_was_wherever_the_kernel_does_not_know_the_wish() {
        super::prefer_latency();
        let nice = super::current_nice();
        super::prefer_latency();
        assert_eq!(super::current_nice(), nice);
    }
}
