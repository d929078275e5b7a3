//! How soon the kernel runs a thread that wakes up.
#![allow(unsafe_code)] // prctl and sched_setattr

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

#[cfg(test)]
mod tests {
    #[test]
    fn a_thread_goes_on_as_it_was_wherever_the_kernel_does_not_know_the_wish() {
        super::prefer_latency();
        let nice = super::current_nice();
        super::prefer_latency();
        assert_eq!(super::current_nice(), nice);
    }
}
