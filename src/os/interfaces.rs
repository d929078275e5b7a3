//! This machine on the network: its name, and the IPv4 addresses of its interfaces.
#![allow(unsafe_code)] // getifaddrs and gethostname

use std::io;
use std::net::Ipv4Addr;

/// The host's name as the kernel reports it, whole. Bytes that are no UTF-8 become `U+FFFD`.
pub fn hostname() -> io::Result<String> {
    // Linux' names end at 64 bytes; one more stays 0, because a name that just fits is not terminated.
    let mut name = [0u8; 256];
    // SAFETY: the buffer is valid and writable for the length given, which is one less than it has.
    let failed = unsafe { libc::gethostname(name.as_mut_ptr().cast(), name.len() - 1) } != 0;
    if failed {
        return Err(io::Error::last_os_error());
    }
    let end = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
    Ok(String::from_utf8_lossy(&name[..end]).into_owned())
}

/// Frees the kernel's list when it goes out of scope, on every way out.
struct List(*mut libc::ifaddrs);

impl Drop for List {
    fn drop(&mut self) {
        // SAFETY: the pointer came from a getifaddrs that succeeded, and is freed only here.
        unsafe { libc::freeifaddrs(self.0) };
    }
}

/// The IPv4 addresses of all interfaces that are up and are not loopbacks, in the kernel's order.
pub fn ipv4_addresses() -> io::Result<Vec<Ipv4Addr>> {
    let mut head = std::ptr::null_mut();
    // SAFETY: `head` is a valid place for the pointer that the call writes.
    if unsafe { libc::getifaddrs(&mut head) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let list = List(head);
    let mut addresses = Vec::new();
    let mut next = list.0;
    while !next.is_null() {
        // SAFETY: not null, so it is an entry of the list, which lives until `list` is dropped.
        let entry = unsafe { &*next };
        next = entry.ifa_next;
        let up = entry.ifa_flags & libc::IFF_UP as u32 != 0;
        let loopback = entry.ifa_flags & libc::IFF_LOOPBACK as u32 != 0;
        if !up || loopback || entry.ifa_addr.is_null() {
            continue;
        }
        // SAFETY: not null; every sockaddr begins with its family.
        if i32::from(unsafe { (*entry.ifa_addr).sa_family }) != libc::AF_INET {
            continue;
        }
        // SAFETY: the family says that this is a sockaddr_in; it may stand unaligned for us, so it is copied.
        let address = unsafe { entry.ifa_addr.cast::<libc::sockaddr_in>().read_unaligned() };
        let address = Ipv4Addr::from(u32::from_be(address.sin_addr.s_addr));
        if !address.is_loopback() {
            addresses.push(address);
        }
    }
    Ok(addresses)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_has_a_name() {
        assert!(!hostname().unwrap().is_empty());
    }

    #[test]
    fn loopback_addresses_are_left_out() {
        assert!(ipv4_addresses().unwrap().iter().all(|address| !address.is_loopback()));
    }
}
