//! Limits of this process, and the address with which it reaches others.
#![allow(unsafe_code)] // getrlimit, setrlimit

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};

/// Raises the soft limit of open descriptors to the hard one: libzmq aborts the process when they run out.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn towards_loopback_we_are_loopback() {
        assert_eq!(local_address_towards(([127, 0, 0, 1], 6379).into()).unwrap().to_string(), "127.0.0.1");
        assert!(descriptors_open() > 2);
        assert!(raise_descriptor_limit() > 2);
    }
}
