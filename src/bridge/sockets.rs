//! The ZMQ sockets of a stream, with every option set before they bind or connect; the reasons are libzmq's, beside
//! each option.

use crate::limits;
use crate::naming::{TOPIC_DAO, TOPIC_PYTHON};
use crate::os::zmq_ext::{SendPool, set_xpub_nodrop};
use crate::os::{clock, poll};
use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::ops::Range;
use std::os::fd::RawFd;
use std::time::Duration;

/// Frames that may wait for one subscriber: about a megabyte of them, but neither so few that an idle link loses
/// frames nor so many that a slow subscriber gets old ones.
pub fn queue_frames(frame_bytes: usize) -> usize {
    (limits::QUEUE_BYTES / frame_bytes.max(1)).clamp(limits::QUEUE_FRAMES_MIN, limits::QUEUE_FRAMES_MAX)
}

/// The kernel's buffers of a stream: two frames of it, within bounds. Its default ones hold thousands of small frames,
/// all of them old after a stall.
pub fn buffer_bytes(frame_bytes: usize) -> usize {
    let (smallest, largest) = limits::SOCKET_BUFFER_BYTES;
    (2 * frame_bytes).clamp(smallest, largest)
}

fn set_common(socket: &zmq::Socket, frame_bytes: usize) -> zmq::Result<()> {
    let buffer_bytes = buffer_bytes(frame_bytes) as i32;
    let queue = queue_frames(frame_bytes) as i32;
    socket.set_linger(0)?; // what is unsent at close is old
    socket.set_sndhwm(queue)?;
    socket.set_rcvhwm(queue)?;
    socket.set_sndbuf(buffer_bytes)?;
    socket.set_rcvbuf(buffer_bytes)?;
    // The only defence against a half-open link. The time-out runs during a long transfer too.
    socket.set_heartbeat_ivl(1_000)?;
    let transfer_ms = frame_bytes / 10_000; // ten frames at 100 MB/s
    socket.set_heartbeat_timeout(transfer_ms.clamp(3_000, 60_000) as i32)?;
    socket.set_handshake_ivl(5_000)?; // who says nothing keeps a descriptor for so long, not for 30 s
    socket.set_reconnect_ivl(100)?;
    socket.set_reconnect_ivl_max(2_000)?;
    socket.set_tcp_keepalive(1)
}

/// Which of the two wires.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Topics {
    /// Ours.
    pub dao: bool,
    /// The Python daemon's.
    pub python: bool,
    /// Ours over TCP, which has no topics.
    pub tcp: bool,
}

impl Topics {
    /// Is there any?
    pub fn any(self) -> bool {
        self.dao || self.python || self.tcp
    }

    /// Those of both.
    pub fn or(self, other: Topics) -> Topics {
        Topics { dao: self.dao || other.dao, python: self.python || other.python, tcp: self.tcp || other.tcp }
    }
}

/// How a send went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// No queue has filled up since the last message.
    ToAll,
    /// Some subscriber's queue has filled up; the others have the message.
    NotToAll,
}

/// The XPUB socket of one segment.
pub struct PubSocket {
    socket: zmq::Socket,
    port: u16,
    boot_id: u64,
    /// What was subscribed and is a prefix of a topic of ours: bounded by the topics' lengths.
    prefixes: BTreeSet<Vec<u8>>,
    /// What follows from them.
    subscribed: Topics,
}

impl PubSocket {
    /// Binds the first of these ports that the operating system gives. `guarded`: every connection is first shown to
    /// [`crate::bridge::guard`].
    pub fn bind(
        context: &zmq::Context,
        ip: Ipv4Addr,
        ports: impl Iterator<Item = u16>,
        frame_bytes: usize,
        guarded: bool,
    ) -> Result<PubSocket, String> {
        let open = || {
            let mut socket = context.socket(zmq::XPUB)?;
            set_common(&socket, frame_bytes)?;
            socket.set_maxmsgsize(1_024)?; // subscribers send us subscriptions, nothing else
            if guarded {
                socket.set_zap_domain("dao")?;
            }
            socket.set_xpub_verbose(true)?; // tell of every subscriber, not only of a topic's first
            set_xpub_nodrop(&mut socket, true)?;
            Ok(socket)
        };
        let socket = open().map_err(|error: zmq::Error| format!("no socket: {error}"))?;
        let mut refused = String::from("no port to try");
        for port in ports {
            match socket.bind(&format!("tcp://{ip}:{port}")) {
                Ok(()) => {
                    return Ok(PubSocket {
                        socket,
                        port,
                        boot_id: clock::random_u64(),
                        prefixes: BTreeSet::new(),
                        subscribed: Topics::default(),
                    });
                }
                Err(error @ (zmq::Error::EADDRINUSE | zmq::Error::EACCES)) => {
                    refused = format!("port {port}: {error}");
                }
                Err(error) => return Err(format!("{ip}:{port}: {error}")),
            }
        }
        Err(format!("no free port on {ip}; the last one tried was {refused}"))
    }

    /// What was sent has so long to leave when the socket closes, where it would be dropped.
    pub fn linger(&self, time: Duration) {
        // Refused only when the context ends, and then nothing leaves.
        let _ = self.socket.set_linger(time.as_millis() as i32);
    }

    /// What tells the publisher on this socket from an earlier or later one on the same port.
    pub fn boot_id(&self) -> u64 {
        self.boot_id
    }

    /// The bound port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What somebody subscribed to when subscriptions were taken last.
    pub fn subscribed(&self) -> Topics {
        self.subscribed
    }

    /// Takes the subscriptions that have come, and says which topics have a new subscriber. A PUB socket learns of
    /// subscribers, dead peers and freed queues only when it is asked or sends.
    pub fn take_subscriptions(&mut self) -> Topics {
        let mut new = Topics::default();
        let waiting = self.socket.get_events().unwrap_or(zmq::PollEvents::empty());
        if !waiting.contains(zmq::POLLIN) {
            return new;
        }
        // Bounded, so that a peer that floods us costs us no frame.
        for _ in 0..64 {
            let Ok(message) = self.socket.recv_msg(zmq::DONTWAIT) else { break };
            let Some((&subscribes, prefix)) = message.split_first() else { continue };
            let dao = TOPIC_DAO.as_bytes().starts_with(prefix);
            let python = TOPIC_PYTHON.as_bytes().starts_with(prefix);
            if !dao && !python {
                continue;
            }
            if subscribes == 1 {
                self.prefixes.insert(prefix.to_vec());
                new = new.or(Topics { dao, python, tcp: false });
            } else {
                self.prefixes.remove(prefix);
            }
        }
        let any = |topic: &str| self.prefixes.iter().any(|prefix| topic.as_bytes().starts_with(prefix));
        self.subscribed = Topics { dao: any(TOPIC_DAO), python: any(TOPIC_PYTHON), tcp: false };
        new
    }

    /// Has something to read when there is news since the last look.
    pub fn descriptor(&self) -> Option<RawFd> {
        self.socket.get_fd().ok()
    }

    /// Sends one message: topic, a range of the pool's buffer, and perhaps a third part. Never waits.
    pub fn send(
        &mut self,
        topic: &str,
        pool: &SendPool,
        buffer: usize,
        range: Range<usize>,
        third: Option<&[u8]>,
    ) -> zmq::Result<Sent> {
        let sent = self.begin(topic)?;
        // Behind the first part the message is let through whole, whatever the queues.
        let body_flags = if third.is_some() { zmq::DONTWAIT | zmq::SNDMORE } else { zmq::DONTWAIT };
        pool.send(&mut self.socket, buffer, range, body_flags)?;
        if let Some(bytes) = third {
            self.socket.send(bytes, zmq::DONTWAIT)?;
        }
        self.end(sent)
    }

    /// Sends a message of two parts, copied by libzmq. Never waits.
    pub fn send_small(&mut self, topic: &str, body: &[u8]) -> zmq::Result<Sent> {
        let sent = self.begin(topic)?;
        self.socket.send(body, zmq::DONTWAIT)?;
        self.end(sent)
    }

    /// Sends a message's first part to everybody whose queue has room.
    fn begin(&mut self, topic: &str) -> zmq::Result<Sent> {
        // Credit for what subscribers have taken comes back only when asked for; without this call a short queue
        // drops half of the frames of an idle link.
        self.socket.get_events()?;
        match self.socket.send(topic, zmq::DONTWAIT | zmq::SNDMORE) {
            Err(zmq::Error::EAGAIN) => {
                // Somebody's queue has filled up. Said once: from now on libzmq leaves that subscriber out in
                // silence, until its queue has drained. The others get the message all the same.
                set_xpub_nodrop(&mut self.socket, false)?;
                self.socket.send(topic, zmq::DONTWAIT | zmq::SNDMORE)?;
                Ok(Sent::NotToAll)
            }
            other => other.map(|()| Sent::ToAll),
        }
    }

    fn end(&mut self, sent: Sent) -> zmq::Result<Sent> {
        if sent == Sent::NotToAll {
            set_xpub_nodrop(&mut self.socket, true)?;
        }
        Ok(sent)
    }
}

/// The SUB socket of one mirror.
pub struct SubSocket {
    socket: zmq::Socket,
    /// Tells of connections made and lost; only for peers that give no sign of life themselves.
    monitor: Option<zmq::Socket>,
    linked: bool,
    topic: &'static str,
    topic_part: zmq::Message,
}

impl SubSocket {
    /// Connects, in the background, to `tcp://<ip>:<port>`, and takes only this topic.
    pub fn connect(
        context: &zmq::Context,
        ip: Ipv4Addr,
        port: u16,
        topic: &'static str,
        frame_bytes: usize,
    ) -> zmq::Result<SubSocket> {
        let socket = context.socket(zmq::SUB)?;
        set_common(&socket, frame_bytes)?;
        // libzmq allocates what a peer's length says: our frame, its header and room, or the keywords.
        let most = frame_bytes + 4_096;
        let keywords = usize::from(limits::KEYWORDS_MAX) * 120;
        socket.set_maxmsgsize(most.max(keywords) as i64)?;
        socket.set_subscribe(topic.as_bytes())?;
        let monitor = if topic == TOPIC_PYTHON { Some(monitor(context, &socket)?) } else { None };
        socket.connect(&format!("tcp://{ip}:{port}"))?;
        Ok(SubSocket { socket, monitor, linked: false, topic, topic_part: zmq::Message::new() })
    }

    /// Is there a connection, as far as the monitor says? Always `false` without one.
    pub fn linked(&mut self) -> bool {
        let Some(monitor) = &self.monitor else { return false };
        // Two parts: event (u16, little-endian) and value, then the address.
        while let Ok(parts) = monitor.recv_multipart(zmq::DONTWAIT) {
            let event =
                parts.first().and_then(|part| part.first_chunk()).map(|bytes| u16::from_le_bytes(*bytes));
            match event.map(zmq::SocketEvent::from_raw) {
                Some(zmq::SocketEvent::HANDSHAKE_SUCCEEDED) => self.linked = true,
                Some(zmq::SocketEvent::DISCONNECTED) => self.linked = false,
                _ => {}
            }
        }
        self.linked
    }

    /// Asks the owner for the current frame: it sends it to every new subscriber.
    pub fn ask_again(&self) -> zmq::Result<()> {
        self.socket.set_unsubscribe(self.topic.as_bytes())?;
        self.socket.set_subscribe(self.topic.as_bytes())
    }

    /// Is a message waiting?
    pub fn waiting(&self) -> bool {
        self.socket.get_events().is_ok_and(|events| events.contains(zmq::POLLIN))
    }

    /// Takes the next message without waiting: `body` and, where there is one, `third`. `None`: nothing has come.
    /// `Some(n)`: a message of `n` parts, of which more than three are read and dropped.
    pub fn receive(
        &mut self,
        body: &mut zmq::Message,
        third: &mut zmq::Message,
    ) -> zmq::Result<Option<usize>> {
        match self.socket.recv(&mut self.topic_part, zmq::DONTWAIT) {
            Err(zmq::Error::EAGAIN | zmq::Error::EINTR) => return Ok(None),
            other => other?,
        }
        let mut parts = 1;
        let mut more = self.topic_part.get_more();
        let mut rest = zmq::Message::new();
        while more {
            let part = match parts {
                1 => &mut *body,
                2 => &mut *third,
                _ => &mut rest,
            };
            // The parts of a message arrive together.
            self.socket.recv(part, zmq::DONTWAIT)?;
            more = part.get_more();
            parts += 1;
        }
        Ok(Some(parts))
    }

    /// Waits in the kernel for a message, at most this long.
    pub fn wait(&self, time: Duration) {
        // `zmq_poll` counts in milliseconds. The descriptor tells of events since the last `receive` that found nothing,
        // so it may be waited for after one. An interrupted wait is a short wait.
        let _ = poll::news(&self.socket, time.min(Duration::from_secs(1)));
    }
}

/// A socket that hears of this one's connections.
fn monitor(context: &zmq::Context, socket: &zmq::Socket) -> zmq::Result<zmq::Socket> {
    let address = format!("inproc://monitor-{:016x}", clock::random_u64());
    let events = zmq::SocketEvent::HANDSHAKE_SUCCEEDED.to_raw() | zmq::SocketEvent::DISCONNECTED.to_raw();
    socket.monitor(&address, i32::from(events))?;
    let monitor = context.socket(zmq::PAIR)?;
    monitor.set_linger(0)?;
    monitor.connect(&address)?;
    Ok(monitor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_in_use_is_skipped() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let context = zmq::Context::new();
        let ports =
            [port, port.checked_add(1).unwrap_or(20_000), 0].into_iter().take(2).chain(30_000..31_000);
        let socket = PubSocket::bind(&context, Ipv4Addr::LOCALHOST, ports, 100, false).unwrap();
        assert_ne!(socket.port(), port);
        let error =
            PubSocket::bind(&context, Ipv4Addr::LOCALHOST, [port].into_iter(), 100, false).err().unwrap();
        assert!(error.contains(&port.to_string()), "{error}");
    }

    #[test]
    fn queues_hold_about_a_megabyte_within_their_bounds() {
        assert_eq!(queue_frames(64), limits::QUEUE_FRAMES_MAX);
        assert_eq!(queue_frames(64 * 1024), 16);
        assert_eq!(queue_frames(16 << 20), limits::QUEUE_FRAMES_MIN);
    }
}
