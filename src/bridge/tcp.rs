//! Frames over TCP, between two daoservers: one connection a stream and client.
//!
//! The mirror connects and says [`hello`]; then the publisher writes messages, each a header of 128 bytes, the pixels,
//! the keywords if the header says so, and a trailer: one system call a message, no copy of ours. Whatever makes no
//! sense ends the connection, and the mirror connects anew. What a connection cannot take at once is finished later,
//! and frames that come meanwhile are left out: a slow client gets the newest frame, and the others lose nothing.

use crate::bridge::guard::Door;
use crate::bridge::sockets::buffer_bytes;
use crate::limits;
use crate::os::clock;
use crate::os::poll;
use crate::os::tcp;
use crate::os::zmq_ext::{Held, SendPool};
use crate::settings::Cidr;
use crate::wire::frame::{
    ASK_AGAIN, HEADER_BYTES, HELLO_BYTES, Refused, TRAILER_BYTES, hello, stream_length, trailer,
};
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::ops::Range;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

/// What is not acknowledged for so long, or no hello for so long, ends a connection.
const UNACKNOWLEDGED: Duration = Duration::from_secs(5);
/// Pauses between attempts to connect.
const RECONNECT: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// A part of a message that has gone, or come, is followed by the rest within this time if both ends are at it.
const UNDER_WAY_NS: i64 = 200_000;

/// A message of which a part is still to be sent.
struct Unsent {
    held: Option<Held>,
    pixels: Range<usize>,
    head: [u8; HEADER_BYTES],
    keywords: Vec<u8>,
    trailer: [u8; TRAILER_BYTES],
    /// Bytes that are gone; all of it: nothing is to be sent.
    sent: usize,
    total: usize,
    /// When the last of them went, if that was not all.
    moved_ns: i64,
}

impl Unsent {
    /// Writes what the kernel takes. `Ok(true)`: that was all.
    fn go(&mut self, mut stream: &TcpStream) -> io::Result<bool> {
        let sent_before = self.sent;
        while self.sent < self.total {
            let pixels = self.held.as_ref().map_or(&[][..], |held| &held.bytes()[self.pixels.clone()]);
            let mut parts = [&self.head[..], pixels, &self.keywords, &self.trailer].map(IoSlice::new);
            let mut rest = &mut parts[..];
            IoSlice::advance_slices(&mut rest, self.sent);
            match stream.write_vectored(rest) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if self.sent > sent_before {
                        self.moved_ns = clock::monotonic_ns();
                    }
                    return Ok(false);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.held = None;
        Ok(true)
    }
}

/// One client.
struct Peer {
    stream: TcpStream,
    since: Instant,
    /// What came of its hello; whole once it is `HELLO_BYTES` long.
    hello: Vec<u8>,
    /// It wants the current frame.
    asks: bool,
    unsent: Unsent,
}

/// A publisher's side: listens, and sends to who has said hello.
pub struct TcpOutlet {
    listener: TcpListener,
    port: u16,
    boot_id: u64,
    buffer_bytes: usize,
    door: Door,
    peers: Vec<Peer>,
}

impl TcpOutlet {
    /// Binds the first of these ports that the operating system gives. Who is not one of `allow` is turned away.
    pub fn bind(
        ip: Ipv4Addr,
        ports: impl Iterator<Item = u16>,
        boot_id: u64,
        frame_bytes: usize,
        allow: Vec<Cidr>,
    ) -> Result<TcpOutlet, String> {
        let mut refused = String::from("no port to try");
        for port in ports {
            match TcpListener::bind((ip, port)).and_then(|listener| {
                listener.set_nonblocking(true)?;
                Ok(listener)
            }) {
                Ok(listener) => {
                    let buffer_bytes = buffer_bytes(frame_bytes);
                    return Ok(TcpOutlet {
                        listener,
                        port,
                        boot_id,
                        buffer_bytes,
                        door: Door::new(allow),
                        peers: Vec::new(),
                    });
                }
                Err(error) => refused = format!("port {port}: {error}"),
            }
        }
        Err(format!("no free port on {ip}; the last one tried was {refused}"))
    }

    /// The bound port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Does anybody take frames?
    pub fn has_peers(&self) -> bool {
        self.peers.iter().any(|peer| peer.hello.len() == HELLO_BYTES)
    }

    /// What can be read when a client comes, speaks or goes.
    pub fn descriptors(&self) -> impl Iterator<Item = RawFd> {
        std::iter::once(self.listener.as_raw_fd())
            .chain(self.peers.iter().map(|peer| peer.stream.as_raw_fd()))
    }

    /// Is a message on its way that has not left whole?
    pub fn is_sending(&self) -> bool {
        self.peers.iter().any(|peer| peer.unsent.sent < peer.unsent.total)
    }

    /// Is one leaving now, part by part?
    pub fn is_under_way(&self, now_ns: i64) -> bool {
        self.peers
            .iter()
            .any(|peer| peer.unsent.sent < peer.unsent.total && now_ns - peer.unsent.moved_ns < UNDER_WAY_NS)
    }

    /// Takes connections and what they say. Does anybody want the current frame?
    pub fn take_subscriptions(&mut self) -> bool {
        // Bounded, so that a crowd at the door costs nobody a frame.
        for _ in 0..64 {
            let Ok((stream, from)) = self.listener.accept() else { break };
            if !self.door.lets_in(&from.ip().to_string()) {
                continue;
            }
            if self.peers.len() >= limits::CLIENTS_MAX {
                // Who has said nothing yet makes room.
                match self.peers.iter().position(|peer| peer.hello.len() < HELLO_BYTES) {
                    Some(silent) => drop(self.peers.remove(silent)),
                    None => continue,
                }
            }
            let ready = tcp::prepare(&stream, self.buffer_bytes)
                .and_then(|()| tcp::set_user_timeout(&stream, UNACKNOWLEDGED));
            if ready.is_ok() {
                self.peers.push(Peer::new(stream));
            }
        }
        let boot_id = self.boot_id;
        self.peers.retain_mut(|peer| peer.listen(boot_id));
        self.peers.iter().any(|peer| peer.asks)
    }

    /// Sends a message to all, or to those alone who want the current frame. `head` is the header for a TCP stream.
    /// Gives how many could not take it, since they are still at an older one.
    pub fn send(
        &mut self,
        head: &[u8; HEADER_BYTES],
        seq: u64,
        pixels: Option<(&SendPool, usize, Range<usize>)>,
        keywords: Option<&[u8]>,
        only_asking: bool,
    ) -> usize {
        let mut left_out = 0;
        self.peers.retain_mut(|peer| {
            if peer.hello.len() < HELLO_BYTES || only_asking && !peer.asks {
                return true;
            }
            match peer.unsent.go(&peer.stream) {
                Ok(true) => {}
                Ok(false) => {
                    left_out += 1;
                    return true;
                }
                Err(_) => return false,
            }
            if pixels.is_some() {
                peer.asks = false;
            }
            let unsent = &mut peer.unsent;
            unsent.head = *head;
            unsent.trailer = trailer(seq);
            unsent.keywords.clear();
            unsent.keywords.extend_from_slice(keywords.unwrap_or_default());
            unsent.pixels = pixels.as_ref().map_or(0..0, |(.., range)| range.clone());
            unsent.held = pixels.as_ref().map(|(pool, index, _)| pool.hold(*index));
            unsent.total = HEADER_BYTES + unsent.pixels.len() + unsent.keywords.len() + TRAILER_BYTES;
            unsent.sent = 0;
            unsent.go(&peer.stream).is_ok()
        });
        left_out
    }

    /// Goes on with what has not left whole.
    pub fn progress(&mut self) {
        self.peers.retain_mut(|peer| peer.unsent.go(&peer.stream).is_ok());
    }

    /// Waits until one of those that are still being sent to takes more, at most this long.
    pub fn wait(&self, time: Duration) {
        let sending = self.peers.iter().find(|peer| peer.unsent.sent < peer.unsent.total);
        if sending.is_some_and(|peer| poll::writable(&peer.stream, time).is_err()) {
            std::thread::sleep(time);
        }
    }
}

impl Peer {
    fn new(stream: TcpStream) -> Peer {
        let unsent = Unsent {
            held: None,
            pixels: 0..0,
            head: [0; HEADER_BYTES],
            keywords: Vec::new(),
            trailer: [0; TRAILER_BYTES],
            sent: 0,
            total: 0,
            moved_ns: 0,
        };
        Peer { stream, since: Instant::now(), hello: Vec::with_capacity(HELLO_BYTES), asks: false, unsent }
    }

    /// Reads what it says. `false`: it has gone, or says what nobody of ours would.
    fn listen(&mut self, boot_id: u64) -> bool {
        let mut said = [0; 64];
        loop {
            let room =
                if self.hello.len() < HELLO_BYTES { HELLO_BYTES - self.hello.len() } else { said.len() };
            match self.stream.read(&mut said[..room]) {
                Ok(0) => return false,
                Ok(count) if self.hello.len() < HELLO_BYTES => {
                    self.hello.extend_from_slice(&said[..count]);
                    if self.hello.len() == HELLO_BYTES {
                        if self.hello != hello(boot_id) {
                            return false; // for an earlier or later publisher at this port
                        }
                        self.asks = true;
                    }
                }
                Ok(count) => {
                    if said[..count].iter().any(|byte| *byte != ASK_AGAIN) {
                        return false;
                    }
                    self.asks = true;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    return self.hello.len() == HELLO_BYTES || self.since.elapsed() < UNACKNOWLEDGED;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
    }
}

/// What a read gave.
#[derive(Debug, PartialEq, Eq)]
pub enum Taken {
    /// No whole message yet.
    Nothing,
    /// One is in the buffer.
    Message,
    /// Something that is none; the connection has ended.
    Refused(Refused),
}

/// A mirror's side.
pub struct TcpInlet {
    to: SocketAddrV4,
    boot_id: u64,
    frame_bytes: usize,
    keywords: u16,
    stream: Option<TcpStream>,
    /// Our hello has left.
    connected: bool,
    retry_at: Instant,
    pause: Duration,
    buffer: Vec<u8>,
    /// Bytes in the buffer.
    have: usize,
    /// When the last of them came, if the message was not whole then.
    moved_ns: i64,
    /// Bytes of the message at its beginning that was given out.
    given: usize,
}

impl TcpInlet {
    /// Connects in the background, and for as long as it takes.
    pub fn connect(ip: Ipv4Addr, port: u16, boot_id: u64, frame_bytes: usize, keywords: u16) -> TcpInlet {
        let longest = HEADER_BYTES + frame_bytes + usize::from(keywords) * 120 + TRAILER_BYTES;
        let mut buffer = Vec::with_capacity(longest);
        // Not `vec![0; n]`, which maps untouched pages: no frame should pay for their first touch.
        buffer.resize_with(longest, || std::hint::black_box(0u8));
        TcpInlet {
            to: SocketAddrV4::new(ip, port),
            boot_id,
            frame_bytes,
            keywords,
            stream: None,
            connected: false,
            retry_at: Instant::now(),
            pause: RECONNECT.0,
            buffer,
            have: 0,
            moved_ns: 0,
            given: 0,
        }
    }

    /// Ends the connection and begins another.
    pub fn reconnect(&mut self) {
        self.stream = None;
        self.retry_at = Instant::now();
        self.begin();
    }

    fn begin(&mut self) {
        if Instant::now() < self.retry_at {
            return;
        }
        (self.have, self.given, self.connected) = (0, 0, false);
        self.stream = tcp::connect(self.to, buffer_bytes(self.frame_bytes)).ok();
        self.retry_at = Instant::now() + self.pause;
        self.pause = (2 * self.pause).min(RECONNECT.1);
    }

    fn end(&mut self) {
        (self.stream, self.connected) = (None, false);
    }

    /// Connecting: has it come to something?
    fn greet(&mut self) -> bool {
        let Some(stream) = &mut self.stream else { return false };
        if !poll::writable(stream, Duration::ZERO).unwrap_or(false) {
            if Instant::now() >= self.retry_at + RECONNECT.1 {
                self.end();
            }
            return false;
        }
        // A new connection takes these few bytes, or has failed.
        let greeted = stream.take_error().is_ok_and(|error| error.is_none())
            && stream.write(&hello(self.boot_id)).is_ok_and(|count| count == HELLO_BYTES);
        if !greeted {
            self.end();
            return false;
        }
        self.connected = true;
        true
    }

    /// Takes the next message without waiting.
    pub fn receive(&mut self) -> Taken {
        if self.stream.is_none() {
            self.begin();
        }
        if !self.connected && !self.greet() {
            return Taken::Nothing;
        }
        if self.given > 0 {
            self.buffer.copy_within(self.given..self.have, 0);
            self.have -= self.given;
            self.given = 0;
        }
        let had = self.have;
        loop {
            let wanted = match self.buffer.first_chunk() {
                Some(head) if self.have >= HEADER_BYTES => {
                    match stream_length(head, self.frame_bytes, self.keywords) {
                        Ok(total) => total,
                        Err(refused) => return self.refuse(refused),
                    }
                }
                // Most likely it is a frame without keywords: all of it in one call.
                _ => HEADER_BYTES + self.frame_bytes + TRAILER_BYTES,
            };
            if self.have >= HEADER_BYTES && self.have >= wanted {
                return self.give(wanted);
            }
            let Some(stream) = &mut self.stream else { return Taken::Nothing };
            match stream.read(&mut self.buffer[self.have..wanted]) {
                Ok(0) => {
                    self.end();
                    return Taken::Nothing;
                }
                Ok(count) => self.have += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if self.have > had {
                        self.moved_ns = clock::monotonic_ns();
                    }
                    return Taken::Nothing;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => {
                    self.end();
                    return Taken::Nothing;
                }
            }
        }
    }

    fn give(&mut self, total: usize) -> Taken {
        let seq = self.buffer[32..40].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        if self.buffer[total - TRAILER_BYTES..total] != trailer(seq) {
            return self.refuse(Refused::BadParts);
        }
        self.pause = RECONNECT.0;
        self.given = total;
        Taken::Message
    }

    fn refuse(&mut self, why: Refused) -> Taken {
        self.end();
        Taken::Refused(why)
    }

    /// Header and pixels of the message that was given out last.
    pub fn body(&self) -> &[u8] {
        let pixels = if self.given > HEADER_BYTES + TRAILER_BYTES { self.frame_bytes } else { 0 };
        self.buffer.get(..HEADER_BYTES + pixels).unwrap_or_default()
    }

    /// Its keywords, if it has some.
    pub fn keywords(&self) -> &[u8] {
        let from = HEADER_BYTES + self.frame_bytes;
        self.buffer.get(from..self.given.saturating_sub(TRAILER_BYTES)).unwrap_or_default()
    }

    /// Asks the owner for the current frame.
    pub fn ask_again(&mut self) {
        if let Some(stream) = self.stream.as_mut().filter(|_| self.connected) {
            // A byte that does not fit is no loss: so much is under way that frames will come.
            let _ = stream.write(&[ASK_AGAIN]);
        }
    }

    /// Is a message coming now, part by part?
    pub fn is_under_way(&self, now_ns: i64) -> bool {
        self.have > self.given && now_ns - self.moved_ns < UNDER_WAY_NS
    }

    /// Is there more to be had at once?
    pub fn waiting(&self) -> bool {
        self.have > self.given
            || self
                .stream
                .as_ref()
                .is_some_and(|stream| poll::readable(stream, Duration::ZERO).unwrap_or(false))
    }

    /// Waits in the kernel for bytes, at most this long.
    pub fn wait(&self, time: Duration) {
        match &self.stream {
            Some(stream) if self.connected => drop(poll::readable(stream, time)),
            Some(stream) => drop(poll::writable(stream, time.min(RECONNECT.0))),
            None => std::thread::sleep(time.min(Duration::from_millis(20))),
        }
    }
}
