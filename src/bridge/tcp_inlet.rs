//! The mirror's side of frames over TCP; what goes over the connection stands in [`crate::bridge::outlet`].

use crate::bridge::peer::UNDER_WAY_NS;
use crate::bridge::sockets::buffer_bytes;
use crate::os::clock;
use crate::os::poll;
use crate::os::tcp;
use crate::wire::frame::{
    ASK_AGAIN, HEADER_BYTES, HELLO_BYTES, Refused, TRAILER_BYTES, hello, stream_length, trailer,
};
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::time::{Duration, Instant};

/// Pauses between attempts to connect.
const RECONNECT: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

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
