//! Waiting for a descriptor with a bound, and asking whether anybody is at its other end.
#![allow(unsafe_code)] // ppoll

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::Duration;

fn timeout(time: Duration) -> libc::timespec {
    let time = time.min(Duration::from_secs(60));
    libc::timespec { tv_sec: time.as_secs() as libc::time_t, tv_nsec: time.subsec_nanos().into() }
}

fn poll(descriptor: &impl AsRawFd, events: libc::c_short, time: Duration) -> io::Result<libc::c_short> {
    let mut entry = libc::pollfd { fd: descriptor.as_raw_fd(), events, revents: 0 };
    let timeout = timeout(time);
    // SAFETY: one valid entry and a valid time for the call's length, and no signal mask; a descriptor that is none is
    // answered with an event.
    match unsafe { libc::ppoll(&mut entry, 1, &timeout, std::ptr::null()) } {
        -1 => match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::Interrupted => Ok(0),
            error => Err(error),
        },
        _ => Ok(entry.revents),
    }
}

/// Waits until a read would not block: there are bytes, or the end, or an error to be told. `false`: not in this time.
pub fn readable(descriptor: &impl AsFd, time: Duration) -> io::Result<bool> {
    Ok(poll(&descriptor.as_fd(), libc::POLLIN, time)? != 0)
}

/// Descriptors that are looked at together, each under its owner's number.
#[derive(Default)]
pub struct Many {
    entries: Vec<libc::pollfd>,
    owners: Vec<usize>,
}

impl Many {
    /// None of them.
    pub fn clear(&mut self) {
        self.entries.clear();
        self.owners.clear();
    }

    /// One more.
    pub fn push(&mut self, owner: usize, descriptor: RawFd) {
        self.entries.push(libc::pollfd { fd: descriptor, events: libc::POLLIN, revents: 0 });
        self.owners.push(owner);
    }

    /// Waits until one of them can be read, at most this long.
    pub fn wait(&mut self, time: Duration) {
        let timeout = timeout(time);
        let count = self.entries.len() as libc::nfds_t;
        // SAFETY: valid entries and a valid time for the call's length, and no signal mask; a descriptor that is none
        // is answered with an event. An interrupted wait is a short wait.
        unsafe { libc::ppoll(self.entries.as_mut_ptr(), count, &timeout, std::ptr::null()) };
    }

    /// Whose can be read now, without waiting: one system call.
    pub fn ready(&mut self) -> impl Iterator<Item = usize> {
        // SAFETY: valid entries for the call's length; a descriptor that is none is answered with an event.
        let ready = unsafe { libc::poll(self.entries.as_mut_ptr(), self.entries.len() as libc::nfds_t, 0) };
        let both = self.entries.iter().zip(&self.owners);
        both.filter(move |(entry, _)| ready > 0 && entry.revents != 0).map(|(_, owner)| *owner)
    }
}

/// Waits until a write would not block, or a connection is made or refused. `false`: not in this time.
pub fn writable(descriptor: &impl AsFd, time: Duration) -> io::Result<bool> {
    Ok(poll(&descriptor.as_fd(), libc::POLLOUT, time)? != 0)
}

/// Can nobody read any more what is written here? One that has only ended its own sending can.
pub fn deserted(descriptor: &impl AsFd) -> bool {
    poll(&descriptor.as_fd(), 0, Duration::ZERO)
        .is_ok_and(|events| events & (libc::POLLHUP | libc::POLLERR) != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::Shutdown;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_socket_whose_peer_only_stopped_sending_is_not_deserted() {
        let (mut here, mut there) = UnixStream::pair().unwrap();
        assert!(!readable(&here, Duration::ZERO).unwrap());
        there.write_all(b"x").unwrap();
        assert!(readable(&here, Duration::from_secs(10)).unwrap());
        there.shutdown(Shutdown::Write).unwrap();
        assert_eq!(here.read(&mut [0; 9]).unwrap(), 1);
        assert!(readable(&here, Duration::from_secs(10)).unwrap(), "the end can be read");
        assert!(!deserted(&here));
        drop(there);
        assert!(deserted(&here));
    }
}
