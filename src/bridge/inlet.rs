//! Where a mirror's messages come from, over either transport.

use crate::bridge::mirror::Source;
use crate::bridge::sockets::SubSocket;
use crate::bridge::tcp_inlet::{Taken, TcpInlet};
use crate::wire::frame::Refused;
use std::time::Duration;

/// What a look gave.
pub enum Received {
    /// Nothing has come.
    Nothing,
    /// A message of so many parts, the topic among them.
    Message(usize),
    /// Something that is no message.
    Refused(Refused),
}

/// A connection to a publisher, made in the background and made again when it breaks.
pub enum Inlet {
    /// Over ZMQ.
    Zmq {
        /// The socket.
        socket: SubSocket,
        /// Second part of the message received last.
        body: zmq::Message,
        /// Its third part.
        keywords: zmq::Message,
    },
    /// Over TCP.
    Tcp(TcpInlet),
}

impl Inlet {
    /// Connects to the source by the transport that it names.
    pub fn connect(
        context: &zmq::Context,
        source: &Source,
        frame_bytes: usize,
        keywords: u16,
    ) -> zmq::Result<Inlet> {
        if let (Some(port), Some(boot_id)) = (source.tcp_port, source.boot_id) {
            return Ok(Inlet::Tcp(TcpInlet::connect(source.ip, port, boot_id, frame_bytes, keywords)));
        }
        let socket = SubSocket::connect(context, source.ip, source.port, source.topic(), frame_bytes)?;
        Ok(Inlet::Zmq { socket, body: zmq::Message::new(), keywords: zmq::Message::new() })
    }

    /// Takes the next message without waiting.
    pub fn receive(&mut self) -> zmq::Result<Received> {
        match self {
            Inlet::Zmq { socket, body, keywords } => {
                Ok(socket.receive(body, keywords)?.map_or(Received::Nothing, Received::Message))
            }
            Inlet::Tcp(inlet) => Ok(match inlet.receive() {
                Taken::Nothing => Received::Nothing,
                Taken::Message => Received::Message(if inlet.keywords().is_empty() { 2 } else { 3 }),
                Taken::Refused(why) => Received::Refused(why),
            }),
        }
    }

    /// Header, room and pixels of the message received last; of Python's wire, its pickle.
    pub fn body(&self) -> &[u8] {
        match self {
            Inlet::Zmq { body, .. } => body,
            Inlet::Tcp(inlet) => inlet.body(),
        }
    }

    /// Its keywords.
    pub fn keywords(&self) -> &[u8] {
        match self {
            Inlet::Zmq { keywords, .. } => keywords,
            Inlet::Tcp(inlet) => inlet.keywords(),
        }
    }

    /// Asks the owner for the current frame.
    pub fn ask_again(&mut self) -> zmq::Result<()> {
        match self {
            Inlet::Zmq { socket, .. } => socket.ask_again(),
            Inlet::Tcp(inlet) => {
                inlet.ask_again();
                Ok(())
            }
        }
    }

    /// Is a message waiting?
    pub fn waiting(&self) -> bool {
        match self {
            Inlet::Zmq { socket, .. } => socket.waiting(),
            Inlet::Tcp(inlet) => inlet.waiting(),
        }
    }

    /// Is a message coming now, part by part?
    pub fn is_under_way(&self, now_ns: i64) -> bool {
        match self {
            Inlet::Zmq { .. } => false, // its parts are libzmq's affair
            Inlet::Tcp(inlet) => inlet.is_under_way(now_ns),
        }
    }

    /// Is there a connection, as far as that is known of a peer that gives no sign of life itself?
    pub fn linked(&mut self) -> bool {
        match self {
            Inlet::Zmq { socket, .. } => socket.linked(),
            Inlet::Tcp(_) => false,
        }
    }

    /// Waits in the kernel for a message, at most this long.
    pub fn wait(&self, time: Duration) {
        match self {
            Inlet::Zmq { socket, .. } => socket.wait(time),
            Inlet::Tcp(inlet) => inlet.wait(time),
        }
    }
}
