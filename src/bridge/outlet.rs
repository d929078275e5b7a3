//! Where a publisher's frames go: to all subscribers over ZMQ, of both wires, and to those over TCP.

use crate::bridge::sockets::{PubSocket, Topics};
use crate::bridge::tcp::TcpOutlet;
use crate::os::zmq_ext::SendPool;
use std::ops::Range;
use std::os::fd::RawFd;
use std::time::Duration;

/// The sockets of one publisher, bound.
pub struct Outlet {
    /// Always there: Python peers know nothing else.
    pub zmq: PubSocket,
    /// Where it is offered.
    pub tcp: Option<TcpOutlet>,
}

/// Over ZMQ alone.
impl From<PubSocket> for Outlet {
    fn from(zmq: PubSocket) -> Outlet {
        Outlet { zmq, tcp: None }
    }
}

impl Outlet {
    /// The port of TCP, where it is offered.
    pub fn tcp_port(&self) -> Option<u16> {
        self.tcp.as_ref().map(TcpOutlet::port)
    }

    /// Who takes frames, as of the last look.
    pub fn subscribed(&self) -> Topics {
        Topics { tcp: self.tcp.as_ref().is_some_and(TcpOutlet::has_peers), ..self.zmq.subscribed() }
    }

    /// Looks who has come; says where somebody wants the current frame.
    pub fn take_subscriptions(&mut self) -> Topics {
        let asked = self.tcp.as_mut().is_some_and(TcpOutlet::take_subscriptions);
        Topics { tcp: asked, ..self.zmq.take_subscriptions() }
    }

    /// Sends over TCP: to all, or to those alone who want the current frame. How many are still at an older one.
    pub fn send_tcp(
        &mut self,
        head: &[u8; crate::wire::frame::HEADER_BYTES],
        seq: u64,
        pixels: Option<(&SendPool, usize, Range<usize>)>,
        keywords: Option<&[u8]>,
        only_asking: bool,
    ) -> usize {
        self.tcp.as_mut().map_or(0, |tcp| tcp.send(head, seq, pixels, keywords, only_asking))
    }

    /// No buffer is free: who keeps one for too long over TCP is ended.
    pub fn end_slow(&mut self) {
        self.tcp.iter_mut().for_each(TcpOutlet::end_slow);
    }

    /// Goes on with what has not left whole. Is there any?
    pub fn progress(&mut self) -> bool {
        let Some(tcp) = self.tcp.as_mut().filter(|tcp| tcp.is_sending()) else { return false };
        tcp.progress();
        tcp.is_sending()
    }

    /// What can be read when a subscriber comes, speaks or goes.
    pub fn descriptors(&self) -> impl Iterator<Item = RawFd> {
        self.zmq.descriptor().into_iter().chain(self.tcp.iter().flat_map(TcpOutlet::descriptors))
    }

    /// Is a frame on its way that has not left whole?
    pub fn is_sending(&self) -> bool {
        self.tcp.as_ref().is_some_and(TcpOutlet::is_sending)
    }

    /// Is one leaving now, part by part?
    pub fn is_under_way(&self, now_ns: i64) -> bool {
        self.tcp.as_ref().is_some_and(|tcp| tcp.is_under_way(now_ns))
    }

    /// Waits, at most this long, and less if a client that is still being sent to takes more.
    pub fn wait(&self, time: Duration) {
        match self.tcp.as_ref().filter(|tcp| tcp.is_sending()) {
            Some(tcp) => tcp.wait(time),
            None => std::thread::sleep(time),
        }
    }
}
