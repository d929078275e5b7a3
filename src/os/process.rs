//! Limits of this process, the address with which it reaches others, and what its children use.
#![allow(unsafe_code)] // getrlimit, setrlimit, geteuid, prctl

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// The unit of the times in `/proc/<pid>/stat`: the same on every Linux of this architecture.
const TICKS_PER_S: f64 = 100.0;

/// Raises the soft limit of open descriptors to the hard one: many streams need many.
/// Returns the limit that holds now.
pub fn raise_descriptor_limit() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid rlimit for both calls.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) != 0 {
            return 1_024;
        }
        if limit.rlim_cur < limit.rlim_max {
            let raised = libc::rlimit { rlim_cur: limit.rlim_max.min(65_536), rlim_max: limit.rlim_max };
            if libc::setrlimit(libc::RLIMIT_NOFILE, &raised) == 0 {
                return raised.rlim_cur;
            }
        }
    }
    limit.rlim_cur
}

/// The limit of open descriptors that holds now.
pub fn descriptor_limit() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid rlimit for the call.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } == 0 { limit.rlim_cur } else { 1_024 }
}

/// The user that this process acts as, by number.
pub fn user() -> u32 {
    // SAFETY: takes nothing and cannot fail.
    unsafe { libc::geteuid() }
}

/// Who started this process; another one, or 1, once that one is gone.
pub fn parent() -> u32 {
    std::os::unix::process::parent_id()
}

/// Does something under this file mode mask, which is the whole process': for the time before threads are started.
pub fn with_umask<T>(mask: u32, work: impl FnOnce() -> T) -> T {
    // SAFETY: umask takes and returns a number and cannot fail.
    let old = unsafe { libc::umask(mask) };
    let result = work();
    // SAFETY: as above.
    unsafe { libc::umask(old) };
    result
}

/// How many descriptors are open now.
pub fn descriptors_open() -> u64 {
    std::fs::read_dir("/proc/self/fd").map(|entries| entries.count() as u64).unwrap_or(0)
}

/// The local address from which packets to `peer` leave. Nothing is sent: connecting a UDP socket only asks the
/// routing table, so this works on an isolated network without a default route as well.
pub fn local_address_towards(peer: SocketAddr) -> io::Result<IpAddr> {
    let any: SocketAddr = if peer.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(any)?;
    socket.connect(peer)?;
    Ok(socket.local_addr()?.ip())
}

/// The child gets a SIGTERM when the thread that starts it ends, however that ends. It blocks no signal, whatever we do.
pub fn end_with_parent(command: &mut Command) {
    // SAFETY: between fork and exec only calls are allowed that are safe in a signal handler, and these are; the set is
    // initialised before it is used.
    unsafe {
        command.pre_exec(|| {
            let mut none = std::mem::zeroed();
            libc::sigemptyset(&mut none);
            let unblocked = libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut()) == 0;
            if unblocked && libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) == 0 {
                Ok(())
            } else {
                Err(io::Error::last_os_error())
            }
        });
    }
}

/// The processor time that a process has used so far, all threads, seconds in hundredths.
pub fn cpu_seconds(pid: u32) -> Option<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Its name, in brackets, may hold anything.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |index: usize| fields.get(index)?.parse::<u64>().ok();
    Some((ticks(11)? + ticks(12)?) as f64 / TICKS_PER_S)
}

/// The memory of a process that is in memory now, shared pages among it.
pub fn resident_bytes(pid: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()? * 1_024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_uses_time_and_memory() {
        let me = std::process::id();
        assert!(cpu_seconds(me).unwrap() >= 0.0 && resident_bytes(me).unwrap() > 100_000);
        assert_eq!((cpu_seconds(u32::MAX), resident_bytes(u32::MAX)), (None, None));
    }

    #[test]
    fn a_child_that_is_to_end_with_us_runs() {
        let mut command = Command::new("true");
        end_with_parent(&mut command);
        assert!(command.status().unwrap().success());
    }

    #[test]
    fn towards_loopback_we_are_loopback() {
        assert_eq!(local_address_towards(([127, 0, 0, 1], 6379).into()).unwrap().to_string(), "127.0.0.1");
        assert!(descriptors_open() > 2);
        assert!(raise_descriptor_limit() > 2);
    }
}
