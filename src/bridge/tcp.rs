//! Frames over TCP, between two daoservers: one connection a stream and client. The publisher's side; the mirror's is
//! [`crate::bridge::tcp_inlet`].
//!
//! The mirror connects and says [`hello`]; then the publisher writes messages, each a header of 128 bytes, the pixels,
//! the keywords if the header says so, and a trailer: one system call a message, no copy of ours. Whatever makes no
//! sense ends the connection, and the mirror connects anew. What a connection cannot take at once is finished later,
//! and frames that come meanwhile are left out: a slow client gets the newest frame, and the others lose nothing.

use crate::bridge::guard::{Door, TurnedAway};
use crate::bridge::sockets::buffer_bytes;
use crate::limits;
use crate::os::clock;
use crate::os::tcp;
use crate::os::zmq_ext::{Held, SendPool};
use crate::os::{poll, process};
use crate::settings::Cidr;
use crate::wire::frame::{ASK_AGAIN, HEADER_BYTES, HELLO_BYTES, TRAILER_BYTES, hello, trailer};
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};
use std::ops::Range;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

/// What is not acknowledged for so long, or no hello for so long, ends a connection.
const UNACKNOWLEDGED: Duration = Duration::from_secs(5);
/// A mirror asks four times a second at most, so nobody of ours ever has so many questions waiting.
const ASKS_MAX: usize = 64;
/// When buffers run out, who has taken longer than this for a message, and longer than ten bytes a microsecond take,
/// is ended.
const SLOW: Duration = Duration::from_secs(1);

/// A part of a message that has gone, or come, is followed by the rest within this time if both ends are at it.
pub const UNDER_WAY_NS: i64 = 200_000;

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
    begun: Instant,
    /// When the last bytes of it went, if that was not all.
    moved_ns: i64,
}

impl Unsent {
    fn is_sending(&self) -> bool {
        self.sent < self.total
    }

    /// Its parts go one soon after the other.
    fn is_under_way(&self, now_ns: i64) -> bool {
        self.is_sending() && now_ns - self.moved_ns < UNDER_WAY_NS
    }

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
    turned_away: TurnedAway,
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
                        turned_away: TurnedAway::new(port),
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
        self.peers.iter().any(|peer| peer.unsent.is_sending())
    }

    /// Is one leaving now, part by part?
    pub fn is_under_way(&self, now_ns: i64) -> bool {
        self.peers.iter().map(|peer| &peer.unsent).any(|unsent| unsent.is_under_way(now_ns))
    }

    /// Takes connections and what they say. Does anybody want the current frame?
    pub fn take_subscriptions(&mut self) -> bool {
        // Bounded, so that a crowd at the door costs nobody a frame.
        for _ in 0..64 {
            let Ok((stream, from)) = self.listener.accept() else { break };
            if !self.door.lets_in(&from.ip().to_string()) {
                continue;
            }
            // The lowest free number: so many are in use. libzmq ends the process when none is left.
            let free = process::descriptor_limit().saturating_sub(stream.as_raw_fd() as u64);
            if free < limits::DESCRIPTORS_SPARE {
                self.turned_away.count(Some(from.ip()), "descriptors run out");
                continue;
            }
            if self.peers.len() >= limits::CLIENTS_MAX {
                self.turned_away.count(Some(from.ip()), "there are too many");
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
        let (boot_id, turned_away) = (self.boot_id, &self.turned_away);
        self.peers.retain_mut(|peer| match peer.listen(boot_id) {
            Heard::Fine => true,
            Heard::Gone => false,
            Heard::Nonsense(why) => {
                turned_away.count(peer.ip(), why);
                false
            }
        });
        // Who cannot take it yet is asked again when it can.
        self.peers.iter().any(|peer| peer.asks && !peer.unsent.is_sending())
    }

    /// Ends those that have been at one message for too long: each keeps a buffer, and there are no more.
    pub fn end_slow(&mut self) {
        let turned_away = &self.turned_away;
        self.peers.retain(|peer| {
            let unsent = &peer.unsent;
            let patience = SLOW + Duration::from_nanos(100 * unsent.total as u64);
            let slow = unsent.is_sending() && unsent.begun.elapsed() > patience;
            if slow {
                turned_away.count(peer.ip(), "it is slow, and buffers run out");
            }
            !slow
        });
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
        let begun = Instant::now();
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
            (unsent.sent, unsent.begun) = (0, begun);
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
        let sending = self.peers.iter().find(|peer| peer.unsent.is_sending());
        if sending.is_some_and(|peer| poll::writable(&peer.stream, time).is_err()) {
            std::thread::sleep(time);
        }
    }
}

/// What a client has said.
enum Heard {
    Fine,
    Gone,
    /// What nobody of ours would.
    Nonsense(&'static str),
}

impl Peer {
    fn ip(&self) -> Option<IpAddr> {
        self.stream.peer_addr().ok().map(|address| address.ip())
    }

    fn new(stream: TcpStream) -> Peer {
        let unsent = Unsent {
            held: None,
            pixels: 0..0,
            head: [0; HEADER_BYTES],
            keywords: Vec::new(),
            trailer: [0; TRAILER_BYTES],
            sent: 0,
            total: 0,
            begun: Instant::now(),
            moved_ns: 0,
        };
        Peer { stream, since: Instant::now(), hello: Vec::with_capacity(HELLO_BYTES), asks: false, unsent }
    }

    /// Reads what it says, a bounded part of it at a time: nobody can keep the publisher from its frames by talking.
    fn listen(&mut self, boot_id: u64) -> Heard {
        let mut said = [0; ASKS_MAX];
        // The hello, perhaps in two pieces, what follows, and that nothing does.
        for _ in 0..4 {
            let whole = self.hello.len() == HELLO_BYTES;
            let room = if whole { said.len() } else { HELLO_BYTES - self.hello.len() };
            let heard = match self.stream.read(&mut said[..room]) {
                Ok(0) => return Heard::Gone,
                Ok(count) => &said[..count],
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let patient = whole || self.since.elapsed() < UNACKNOWLEDGED;
                    return if patient {
                        Heard::Fine
                    } else {
                        Heard::Nonsense("it never says what it wants")
                    };
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => return Heard::Gone,
            };
            if whole && heard.iter().any(|byte| *byte != ASK_AGAIN) {
                return Heard::Nonsense("it says something else than a mirror would");
            }
            if heard.len() == ASKS_MAX {
                return Heard::Nonsense("it asks without end");
            }
            if !whole {
                self.hello.extend_from_slice(heard);
                let good = hello(boot_id);
                if !good.starts_with(&self.hello) {
                    // A mirror that knows an earlier publisher at this port is no stranger.
                    return if self.hello.starts_with(&good[..8.min(self.hello.len())]) {
                        Heard::Gone
                    } else {
                        Heard::Nonsense("it is no mirror of ours")
                    };
                }
            }
            self.asks |= self.hello.len() == HELLO_BYTES;
        }
        Heard::Fine
    }
}
