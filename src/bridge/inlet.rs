//! Where a mirror's messages come from, over either transport.

use crate::bridge::dial::Dial;
use crate::bridge::mirror::Source;
use crate::bridge::tcp_inlet::TcpInlet;
use crate::bridge::zmtp_inlet::ZmtpInlet;
use crate::wire::frame::Refused;
use std::time::Duration;

/// Longer than any of them, over either transport.
const SIGN_OF_LIFE_BYTES_MAX: usize = 512;

/// What a look gave.
#[derive(Debug, PartialEq, Eq)]
pub enum Taken {
    /// No whole message yet.
    Nothing,
    /// One is there.
    Message,
    /// Something that is none; the connection has ended.
    Refused(Refused),
}

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

    fn dial(&self) -> &Dial {
        match self {
            Inlet::Zmq(inlet) => inlet.dial(),
            Inlet::Tcp(inlet) => inlet.dial(),
        }
    }

    /// Ends the connection and begins another.
    pub fn reconnect(&mut self) {
        match self {
            Inlet::Zmq(inlet) => inlet.dial_mut().reconnect(),
            Inlet::Tcp(inlet) => inlet.dial_mut().reconnect(),
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

    /// Is a frame of so many bytes waiting, all of it? Of one that has yet to come nobody knows when. A sign of life is none.
    pub fn waiting(&self, frame_bytes: usize) -> bool {
        self.dial().pending_bytes() + self.unread_bytes() > frame_bytes.max(SIGN_OF_LIFE_BYTES_MAX)
    }

    /// Bytes that the kernel has for us.
    pub fn unread_bytes(&self) -> usize {
        self.dial().unread_bytes()
    }

    /// When a part of a message came last that is not whole yet; monotonic.
    pub fn moved_ns(&self) -> i64 {
        self.dial().moved_ns()
    }

    /// Of a peer that sends nothing by itself: while there is a connection, when it was heard last; monotonic.
    pub fn heard_ns(&self) -> Option<i64> {
        match self {
            Inlet::Zmq(inlet) => inlet.linked().then(|| inlet.heard_ns()),
            Inlet::Tcp(_) => None,
        }
    }

    /// Is a message coming now, part by part?
    pub fn is_under_way(&self, now_ns: i64) -> bool {
        self.dial().is_under_way(now_ns)
    }

    /// To be called now and then.
    pub fn remind(&self) {
        self.dial().remind();
    }

    /// Waits in the kernel for a message, at most this long.
    pub fn wait(&self, time: Duration) {
        self.dial().wait(time);
    }
}
