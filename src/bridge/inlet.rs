//! Where a mirror's messages come from, over either transport.

use crate::bridge::dial::{Dial, Pouring};
use crate::bridge::source::Source;
use crate::bridge::tcp_inlet::TcpInlet;
use crate::bridge::zmtp_inlet::ZmtpInlet;
use crate::limits;
use crate::wire::frame::{HEADER_BYTES, Refused};
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

/// Takes pixels that do not wait for the rest of their message: its header, their place in the frame, and they.
pub type Pour<'a> = dyn FnMut(&[u8; HEADER_BYTES], usize, &[u8]) + 'a;

/// A connection to a publisher, made in the background and made again when it breaks.
pub enum Inlet {
    /// Over ZMQ.
    Zmq(ZmtpInlet),
    /// Over TCP.
    Tcp(TcpInlet),
}

impl Inlet {
    /// Connects to the source by the transport that it names. With `may_pour`, pixels of large frames go as they come.
    pub fn connect(source: &Source, frame_bytes: usize, keywords: u16, may_pour: bool) -> Inlet {
        let pours = may_pour && source.boot_id.is_some() && frame_bytes >= limits::POURED_FROM_BYTES;
        let pouring = pours.then_some(Pouring { frame_bytes, piece_bytes: limits::PIECE_BYTES, gone: 0 });
        match (source.tcp_port, source.boot_id) {
            (Some(port), Some(boot_id)) => {
                Inlet::Tcp(TcpInlet::connect((source.ip, port), boot_id, frame_bytes, keywords, pouring))
            }
            _ => {
                let to = (source.ip, source.port);
                Inlet::Zmq(ZmtpInlet::connect(to, source.topic(), frame_bytes, keywords, pouring))
            }
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
    pub fn receive(&mut self, pour: &mut Pour) -> Taken {
        match self {
            Inlet::Zmq(inlet) => inlet.receive(pour),
            Inlet::Tcp(inlet) => inlet.receive(pour),
        }
    }

    /// Are the pixels of the message received last gone?
    pub fn poured(&self) -> bool {
        match self {
            Inlet::Zmq(inlet) => inlet.poured(),
            Inlet::Tcp(inlet) => inlet.poured(),
        }
    }

    /// How many parts it has, as messages of ZMQ have them: topic, body, perhaps keywords.
    pub fn parts(&self) -> usize {
        match self {
            Inlet::Zmq(inlet) => inlet.parts(),
            Inlet::Tcp(inlet) => 2 + usize::from(!inlet.keywords().is_empty()),
        }
    }

    /// Header, room and, if they are not gone, pixels of the message received last; of Python's wire, its pickle.
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
