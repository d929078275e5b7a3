//! Where a mirror's messages come from, over either transport.

use crate::bridge::mirror::Source;
use crate::bridge::tcp_inlet::{Taken, TcpInlet};
use crate::bridge::zmtp_inlet::ZmtpInlet;
use std::time::Duration;

/// A connection to a publisher, made in the background and made again when it breaks.
pub enum Inlet {
    /// Over ZMQ.
    Zmq(ZmtpInlet),
    /// Over TCP.
    Tcp(TcpInlet),
}

impl Inlet {
    /// Connects to the source by the transport that it names.
    pub fn connect(source: &Source, frame_bytes: usize, keywords: u16) -> Inlet {
        let ip = source.ip;
        match (source.tcp_port, source.boot_id) {
            (Some(port), Some(boot_id)) => {
                Inlet::Tcp(TcpInlet::connect(ip, port, boot_id, frame_bytes, keywords))
            }
            _ => Inlet::Zmq(ZmtpInlet::connect(ip, source.port, source.topic(), frame_bytes, keywords)),
        }
    }

    /// Ends the connection and begins another.
    pub fn reconnect(&mut self) {
        match self {
            Inlet::Zmq(inlet) => inlet.reconnect(),
            Inlet::Tcp(inlet) => inlet.reconnect(),
        }
    }

    /// Takes the next message without waiting.
    pub fn receive(&mut self) -> Taken {
        match self {
            Inlet::Zmq(inlet) => inlet.receive(),
            Inlet::Tcp(inlet) => inlet.receive(),
        }
    }

    /// How many parts it has, as messages of ZMQ have them: topic, body, perhaps keywords.
    pub fn parts(&self) -> usize {
        match self {
            Inlet::Zmq(inlet) => inlet.parts(),
            Inlet::Tcp(inlet) => 2 + usize::from(!inlet.keywords().is_empty()),
        }
    }

    /// Header, room and pixels of the message received last; of Python's wire, its pickle.
    pub fn body(&self) -> &[u8] {
        match self {
            Inlet::Zmq(inlet) => inlet.body(),
            Inlet::Tcp(inlet) => inlet.body(),
        }
    }

    /// Its keywords.
    pub fn keywords(&self) -> &[u8] {
        match self {
            Inlet::Zmq(inlet) => inlet.keywords(),
            Inlet::Tcp(inlet) => inlet.keywords(),
        }
    }

    /// Asks the owner for the current frame.
    pub fn ask_again(&mut self) {
        match self {
            Inlet::Zmq(inlet) => inlet.ask_again(),
            Inlet::Tcp(inlet) => inlet.ask_again(),
        }
    }

    /// Is a message waiting?
    pub fn waiting(&self) -> bool {
        match self {
            Inlet::Zmq(inlet) => inlet.waiting(),
            Inlet::Tcp(inlet) => inlet.waiting(),
        }
    }

    /// Is a message coming now, part by part?
    pub fn is_under_way(&self, now_ns: i64) -> bool {
        match self {
            Inlet::Zmq(inlet) => inlet.is_under_way(now_ns),
            Inlet::Tcp(inlet) => inlet.is_under_way(now_ns),
        }
    }

    /// Is there a connection, as far as that is known of a peer that sends nothing by itself?
    pub fn linked(&self) -> bool {
        match self {
            Inlet::Zmq(inlet) => inlet.linked(),
            Inlet::Tcp(_) => false,
        }
    }

    /// Waits in the kernel for a message, at most this long.
    pub fn wait(&self, time: Duration) {
        match self {
            Inlet::Zmq(inlet) => inlet.wait(time),
            Inlet::Tcp(inlet) => inlet.wait(time),
        }
    }
}
