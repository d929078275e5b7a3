//! TCP sockets as streams need them: connecting without waiting, buffers, and a bound on what is not acknowledged.
#![allow(unsafe_code)] // socket, connect, setsockopt, ioctl

use std::io;
use std::net::{SocketAddr, SocketAddrV4, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

fn set(stream: &impl AsRawFd, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    // SAFETY: an open descriptor, and an int of that length for the call.
    let code = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if code == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Begins to connect and returns at once: the socket becomes writable when it is connected or has failed, and
/// [`TcpStream::take_error`] says which.
pub fn connect(to: SocketAddrV4, buffer_bytes: usize) -> io::Result<TcpStream> {
    // SAFETY: no pointers; the descriptor is checked below.
    let descriptor = unsafe {
        libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC, 0)
    };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just opened, and nobody else's.
    let stream = TcpStream::from(unsafe { OwnedFd::from_raw_fd(descriptor) });
    prepare(&stream, buffer_bytes)?;
    let address = libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: to.port().to_be(),
        sin_addr: libc::in_addr { s_addr: to.ip().to_bits().to_be() },
        sin_zero: [0; 8],
    };
    // SAFETY: a valid address of that length for the call.
    let code = unsafe {
        libc::connect(
            stream.as_raw_fd(),
            (&raw const address).cast(),
            size_of::<libc::sockaddr_in>() as libc::socklen_t,
        )
    };
    match io::Error::last_os_error() {
        _ if code == 0 => Ok(stream),
        error if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(stream),
        error => Err(error),
    }
}

/// What was sent and is not acknowledged for so long ends a connection: the only way to notice a peer that vanished.
const UNACKNOWLEDGED: Duration = Duration::from_secs(5);

/// Ways to control congestion that send what may be sent at once, the better one first.
const UNPACED: [&str; 2] = ["cubic", "reno"];

/// A frame leaves as soon as the other end takes it. Where a host has BBR for all (`net.ipv4.tcp_congestion_control`), the
/// kernel spreads a frame over time, at a rate that it has to find out. To be said before there is a connection; of a
/// listener those have it that come to it. Where the kernel refuses, frames leave as it likes.
pub fn send_at_once(socket: &impl AsRawFd) {
    for name in UNPACED {
        // SAFETY: an open descriptor, and a text of that length for the call.
        let code = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_CONGESTION,
                name.as_ptr().cast(),
                name.len() as libc::socklen_t,
            )
        };
        if code == 0 {
            return;
        }
    }
}

/// No waiting, no delay, buffers of this many bytes, and an end when nothing is acknowledged any more.
pub fn prepare(stream: &TcpStream, buffer_bytes: usize) -> io::Result<()> {
    stream.set_nonblocking(true)?;
    stream.set_nodelay(true)?;
    set_buffers(stream, buffer_bytes)?;
    set(stream, libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, UNACKNOWLEDGED.as_millis() as libc::c_int)
}

/// Buffers of this many bytes; the kernel takes less where its limit is lower.
pub fn set_buffers(stream: &TcpStream, bytes: usize) -> io::Result<()> {
    let bytes = bytes.min(libc::c_int::MAX as usize) as libc::c_int;
    set(stream, libc::SOL_SOCKET, libc::SO_SNDBUF, bytes)?;
    set(stream, libc::SOL_SOCKET, libc::SO_RCVBUF, bytes)
}

/// Is its other end on this machine?
pub fn is_local(stream: &TcpStream) -> bool {
    let ip = |end: io::Result<SocketAddr>| end.ok().map(|address| address.ip());
    let other = ip(stream.peer_addr());
    other.is_some() && other == ip(stream.local_addr())
}

/// What comes is acknowledged by the way, not at once: else the kernel does that whenever the last of it is read, before it
/// hands it out, which takes some microseconds. It forgets this when acknowledging became overdue, as after a pause.
pub fn acknowledge_late(stream: &TcpStream) -> io::Result<()> {
    set(stream, libc::IPPROTO_TCP, libc::TCP_QUICKACK, 0)
}

/// Bytes that have come and were not read.
pub fn unread_bytes(stream: &TcpStream) -> usize {
    let mut bytes: libc::c_int = 0;
    // SAFETY: an open descriptor, and an int for the answer.
    let code = unsafe { libc::ioctl(stream.as_raw_fd(), libc::FIONREAD, &raw mut bytes) };
    if code == 0 { usize::try_from(bytes).unwrap_or(0) } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::poll;
    use std::io::{Read, Write};
    use std::net::{Ipv4Addr, TcpListener};

    #[test]
    fn who_comes_to_a_listener_that_sends_at_once_is_sent_to_at_once() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        send_at_once(&listener);
        let _other_end = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (stream, _) = listener.accept().unwrap();
        let mut name = [0u8; 16];
        let mut length = name.len() as libc::socklen_t;
        // SAFETY: an open descriptor, and a buffer of that length for the answer.
        let code = unsafe {
            libc::getsockopt(
                stream.as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_CONGESTION,
                name.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        assert_eq!(code, 0);
        let name = std::str::from_utf8(&name).unwrap().trim_end_matches('\0');
        assert!(UNPACED.contains(&name), "{name}");
    }

    #[test]
    fn a_connection_is_made_without_waiting_and_a_refused_one_says_so() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = SocketAddrV4::new(Ipv4Addr::LOCALHOST, listener.local_addr().unwrap().port());
        let mut stream = connect(to, 100_000).unwrap();
        assert!(poll::writable(&stream, Duration::from_secs(10)).unwrap());
        assert!(stream.take_error().unwrap().is_none());
        let (mut there, _) = listener.accept().unwrap();
        prepare(&there, 100_000).unwrap();
        stream.write_all(b"xyz").unwrap();
        assert!(poll::readable(&there, Duration::from_secs(10)).unwrap());
        assert_eq!(unread_bytes(&there), 3);
        there.read_exact(&mut [0; 3]).unwrap();
        assert_eq!(unread_bytes(&there), 0);
        assert!(is_local(&there) && is_local(&stream));
        drop((there, listener));
        let refused = connect(to, 100_000).and_then(|stream| {
            poll::writable(&stream, Duration::from_secs(10)).unwrap();
            stream.take_error().unwrap().map_or(Ok(()), Err)
        });
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }
}
