//! What a service manager is told: systemd's protocol (`man sd_notify`), lines in a datagram to a Unix socket.
//!
//! Nothing happens where nobody listens: without `NOTIFY_SOCKET` there is no [`Notifier`].

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// A manager that does not read its messages must not hold us up.
const PATIENCE: Duration = Duration::from_millis(200);

/// Where the manager listens.
pub struct Notifier {
    socket: UnixDatagram,
    address: SocketAddr,
}

impl Notifier {
    /// The manager that started this process, if it wants to be told.
    pub fn from_environment() -> Option<Notifier> {
        let address = std::env::var_os("NOTIFY_SOCKET")?;
        let made = Notifier::new(&address);
        if let Err(why) = &made {
            crate::warn!("the service manager cannot be told at NOTIFY_SOCKET={}: {why}", address.display());
        }
        made.ok()
    }

    /// `/path` of a socket, or `@name` of one in the abstract namespace.
    pub fn new(address: &OsStr) -> io::Result<Notifier> {
        let address = match address.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            [b'/', ..] => SocketAddr::from_pathname(address)?,
            _ => return Err(io::ErrorKind::InvalidInput.into()),
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_write_timeout(Some(PATIENCE))?;
        Ok(Notifier { socket, address })
    }

    /// Sends assignments such as `READY=1`, one a line. One that cannot be sent is lost: the manager draws its own
    /// conclusions.
    pub fn tell(&self, lines: &str) {
        if let Err(why) = self.socket.send_to_addr(lines.as_bytes(), &self.address) {
            crate::debug!("the service manager was not told: {why}");
        }
    }
}

/// Within which time the manager wants a sign of life from this process, if it does.
pub fn watchdog() -> Option<Duration> {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
    // Inherited from a service that has started us, it is not meant for us.
    if number("WATCHDOG_PID").is_some_and(|pid| pid != u64::from(std::process::id())) {
        return None;
    }
    number("WATCHDOG_USEC").filter(|us| *us > 0).map(Duration::from_micros)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_addresses_are_told() {
        let path = std::env::temp_dir().join(format!("daoserver-notify-{}", std::process::id()));
        let name = format!("daoserver-notify-{}", std::process::id());
        let abstract_address = SocketAddr::from_abstract_name(&name).unwrap();
        for (receiver, address) in [
            (UnixDatagram::bind(&path).unwrap(), path.clone().into_os_string()),
            (UnixDatagram::bind_addr(&abstract_address).unwrap(), format!("@{name}").into()),
        ] {
            receiver.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            Notifier::new(&address).unwrap().tell("READY=1");
            let mut got = [0; 64];
            let length = receiver.recv(&mut got).unwrap();
            assert_eq!(&got[..length], b"READY=1");
        }
        std::fs::remove_file(&path).unwrap();
        Notifier::new(path.as_os_str()).unwrap().tell("READY=1"); // nobody there: nothing happens
        assert!(Notifier::new("relative".as_ref()).is_err() && Notifier::new("".as_ref()).is_err());
    }
}
