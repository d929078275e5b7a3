//! Surviving a file that shrinks below a mapping.
//!
//! Reading a mapped page past the file's end raises SIGBUS, and anybody may truncate a segment at any time:
//! the library itself does when it creates one again. One handler for the process finds the mapping that
//! holds the faulting address, lays zeros over it from that page to its end, and marks it lost; the
//! interrupted copy goes on and its owner finds the mark. A SIGBUS anywhere else takes the course it would
//! have taken without us.
//!
//! The handler touches only the static table below (atomics), `mmap` and `sigaction`, all of which may be
//! used in a signal handler. Threads that use segments must not block SIGBUS.
#![allow(unsafe_code)] // a signal handler, and mmap inside it

use super::error::OpenError;
use crate::limits;
use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Mappings that can be watched: every segment published, once by its publisher and once by the watcher of quiet
/// segments, and every mirror once as a mirror and once more while it is replaced.
const MAPPINGS_MAX: usize = 2 * limits::SEGMENTS_MAX + 2 * limits::MIRRORS_MAX;

const FREE: usize = 0;
/// Taken, but not filled in: page 0 is never mapped, so no address lies here.
const CLAIMED: usize = 1;

struct Entry {
    start: AtomicUsize,
    end: AtomicUsize,
    lost: AtomicBool,
}

static TABLE: [Entry; MAPPINGS_MAX] = [const {
    Entry { start: AtomicUsize::new(FREE), end: AtomicUsize::new(0), lost: AtomicBool::new(false) }
}; MAPPINGS_MAX];

/// Entries below this one may be in use; above it none ever was. Keeps the handler's search short.
static USED: AtomicUsize = AtomicUsize::new(0);

static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();
static PAGE_BYTES: OnceLock<usize> = OnceLock::new();
static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();

/// An address range whose faults are survived; until it is dropped, which must be before the range is
/// unmapped.
pub(super) struct Guard(&'static Entry);

impl Guard {
    /// Watches `bytes` bytes from `start`. Installs the handler the first time.
    pub fn new(start: usize, bytes: usize) -> Result<Guard, OpenError> {
        if let Err(errno) = INSTALLED.get_or_init(install) {
            return Err(OpenError::Io { what: "survive faults in", errno: *errno });
        }
        for (position, entry) in TABLE.iter().enumerate() {
            let claim = entry.start.compare_exchange(FREE, CLAIMED, Ordering::Acquire, Ordering::Relaxed);
            if claim.is_ok() {
                USED.fetch_max(position + 1, Ordering::SeqCst);
                entry.lost.store(false, Ordering::Relaxed);
                entry.end.store(start + bytes, Ordering::Relaxed);
                // Partner: the handler's load of `start`. It must see `end` and `lost` of this mapping.
                entry.start.store(start, Ordering::Release);
                return Ok(Guard(entry));
            }
        }
        Err(OpenError::TooManyMapped { max: MAPPINGS_MAX })
    }

    /// Did a fault happen in the range?
    pub fn lost(&self) -> bool {
        // Partner: the handler's store, which ran in the thread that faulted.
        self.0.lost.load(Ordering::Acquire)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // Partner: the claim in `new`. The range's last access came before this.
        self.0.start.store(FREE, Ordering::Release);
    }
}

fn install() -> Result<(), i32> {
    let errno = || io::Error::last_os_error().raw_os_error().unwrap_or(0);
    // SAFETY: sysconf takes a number; sigaction reads or fills structs that live on this stack, zero is a
    // valid value for them, and the handler has the signature that SA_SIGINFO asks for.
    unsafe {
        PAGE_BYTES.get_or_init(|| libc::sysconf(libc::_SC_PAGESIZE).max(4096) as usize);
        let mut previous: libc::sigaction = std::mem::zeroed();
        if libc::sigaction(libc::SIGBUS, std::ptr::null(), &mut previous) != 0 {
            return Err(errno());
        }
        // Before the handler can run: it reads this.
        PREVIOUS.get_or_init(|| previous);
        let mut action: libc::sigaction = std::mem::zeroed();
        let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = on_sigbus;
        action.sa_sigaction = handler as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigemptyset(&mut action.sa_mask);
        if libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut()) != 0 {
            return Err(errno());
        }
    }
    Ok(())
}

extern "C" fn on_sigbus(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel hands a valid siginfo to a SA_SIGINFO handler; errno belongs to this thread.
    let (address, sent, errno) =
        unsafe { ((*info).si_addr() as usize, (*info).si_code <= 0, *libc::__errno_location()) };
    let survived = !sent && survive(address);
    // SAFETY: errno belongs to this thread; the interrupted code must find it as it was.
    unsafe { *libc::__errno_location() = errno };
    if !survived {
        pass_on(signal, info, context, sent);
    }
}

/// Lays zeros over the rest of the mapping that holds the address.
fn survive(address: usize) -> bool {
    let used = USED.load(Ordering::SeqCst).min(MAPPINGS_MAX);
    let page = address & !(PAGE_BYTES.get().copied().unwrap_or(4096) - 1);
    for entry in &TABLE[..used] {
        // Partner: the store at the end of `Guard::new`, in the thread that faulted or one that handed it
        // over.
        let start = entry.start.load(Ordering::Acquire);
        let end = entry.end.load(Ordering::Relaxed);
        if start <= CLAIMED || address < start || address >= end {
            continue;
        }
        // SAFETY: the pages from `page` to `end` belong to the mapping of this entry: it faulted, so its
        // owner is inside an access to it and cannot unmap it. All of it past the fault is past the file's
        // end.
        let zeros = unsafe {
            libc::mmap(
                page as *mut libc::c_void,
                end - page,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if zeros == libc::MAP_FAILED {
            return false;
        }
        // Partner: `Guard::lost`.
        entry.lost.store(true, Ordering::Release);
        return true;
    }
    false
}

/// Somebody else's fault: what was installed before us decides, and where that is nothing the process dies of
/// it.
fn pass_on(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void, sent: bool) {
    if let Some(previous) = PREVIOUS.get() {
        let handler = previous.sa_sigaction;
        if handler != libc::SIG_DFL && handler != libc::SIG_IGN {
            // SAFETY: sigaction gave this address as a handler, with the signature that its flags say.
            unsafe {
                if previous.sa_flags & libc::SA_SIGINFO != 0 {
                    let call: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                        std::mem::transmute(handler);
                    call(signal, info, context);
                } else {
                    let call: extern "C" fn(libc::c_int) = std::mem::transmute(handler);
                    call(signal);
                }
            }
            return;
        }
        if sent && handler == libc::SIG_IGN {
            return;
        }
    }
    // SAFETY: restores the default; the faulting instruction runs again when we return, or the raised signal
    // is delivered then.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        if sent {
            libc::raise(signal);
        }
    }
}
