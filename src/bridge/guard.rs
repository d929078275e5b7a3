//! `dao-zap`: who may connect to our publishers. libzmq shows it every connection before its handshake ends (ZAP, RFC 27
//! of ZeroMQ), with the peer's address; peers notice nothing of it but that they are let in or not.

use crate::log::Repeats;
use crate::metrics;
use crate::os::threads::Stop;
use crate::settings::{Cidr, allows};
use std::net::IpAddr;
use std::time::Duration;

/// Who may come in, over either transport.
pub struct Door {
    allow: Vec<Cidr>,
    refusals: Repeats,
}

impl Door {
    /// For these; nobody named: for all.
    pub fn new(allow: Vec<Cidr>) -> Door {
        Door { allow, refusals: Repeats::new(Duration::from_secs(60)) }
    }

    /// May this address come in? One that may not is counted, and named now and then.
    pub fn lets_in(&self, address: &str) -> bool {
        let good = address.parse().is_ok_and(|address| allows(&self.allow, address));
        if !good {
            metrics::PEERS_REFUSED.add(1);
            if let Some(left_out) = self.refusals.due(address) {
                crate::warn!(
                    "{address} wants to connect and is not one of --allow's ({left_out} more times since the last line)"
                );
            }
        }
        good
    }
}

/// Counts a connection that is ended for what it does, and says so now and then.
pub struct TurnedAway {
    port: u16,
    said: Repeats,
}

impl TurnedAway {
    /// At this port of ours.
    pub fn new(port: u16) -> TurnedAway {
        TurnedAway { port, said: Repeats::new(Duration::from_secs(60)) }
    }

    /// One more, for this reason.
    pub fn count(&self, from: Option<IpAddr>, why: &str) {
        metrics::CONNECTIONS_REFUSED.add(1);
        if let Some(left_out) = self.said.due(why) {
            let from = from.map_or_else(|| "somewhere".to_owned(), |ip| ip.to_string());
            crate::warn!(
                "a connection from {from} to port {} is ended: {why} ({left_out} more of this kind since the last line)",
                self.port
            );
        }
    }
}

/// Answers libzmq's questions.
pub struct Guard {
    socket: zmq::Socket,
    door: Door,
}

impl Guard {
    /// Stands at the door of every guarded socket of this context from now on.
    pub fn new(context: &zmq::Context, allow: Vec<Cidr>) -> zmq::Result<Guard> {
        let socket = context.socket(zmq::REP)?;
        socket.set_linger(0)?;
        socket.bind("inproc://zeromq.zap.01")?;
        Ok(Guard { socket, door: Door::new(allow) })
    }

    /// The body of `dao-zap`.
    pub fn run(&self, stop: &Stop) {
        while !stop.is_set() {
            match self.socket.poll(zmq::POLLIN, 200) {
                Ok(0) | Err(zmq::Error::EINTR) => {}
                Ok(_) => {
                    if let Err(error) = self.answer() {
                        crate::debug!("a connection went away before it was judged: {error}");
                    }
                }
                Err(error) => {
                    crate::error!("nobody is let in any more: {error}");
                    return;
                }
            }
        }
    }

    /// version, request id, domain, address, identity, mechanism -> version, request id, status, text, user, metadata
    fn answer(&self) -> zmq::Result<()> {
        let question = self.socket.recv_multipart(zmq::DONTWAIT)?;
        let part = |place: usize| question.get(place).map_or(&b""[..], Vec::as_slice);
        let address = String::from_utf8_lossy(part(3)).into_owned();
        let good = self.door.lets_in(&address);
        let (status, text): (&[u8], &[u8]) =
            if good { (b"200", b"OK") } else { (b"400", b"address not allowed") };
        self.socket.send_multipart([part(0), part(1), status, text, b"", b""], zmq::DONTWAIT)
    }
}
