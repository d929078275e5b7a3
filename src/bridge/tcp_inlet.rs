//! The mirror's side of frames over TCP; what goes over the connection stands in [`crate::bridge::outlet`].

use crate::bridge::dial::{Dial, Got};
use crate::bridge::peer::UNDER_WAY_NS;
use crate::bridge::sockets::buffer_bytes;
use crate::os::clock;
use crate::wire::frame::{ASK_AGAIN, HEADER_BYTES, Refused, TRAILER_BYTES, hello, stream_length, trailer};
use std::net::Ipv4Addr;
use std::time::Duration;

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
    dial: Dial,
    boot_id: u64,
    frame_bytes: usize,
    keywords: u16,
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
        let dial = Dial::new(ip, port, buffer_bytes(frame_bytes));
        TcpInlet { dial, boot_id, frame_bytes, keywords, buffer, have: 0, moved_ns: 0, given: 0 }
    }

    /// Ends the connection and begins another.
    pub fn reconnect(&mut self) {
        self.dial.reconnect();
    }

    /// Takes the next message without waiting.
    pub fn receive(&mut self) -> Taken {
        match self.dial.stands(&hello(self.boot_id)) {
            None => return Taken::Nothing,
            Some(true) => (self.have, self.given) = (0, 0),
            Some(false) => {}
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
            match self.dial.read(&mut self.buffer[self.have..wanted]) {
                Got::Some(count) => self.have += count,
                Got::Nothing => {
                    if self.have > had {
                        self.moved_ns = clock::monotonic_ns();
                    }
                    return Taken::Nothing;
                }
                Got::Ended => {
                    self.have = 0;
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
        self.dial.is_good();
        self.given = total;
        Taken::Message
    }

    fn refuse(&mut self, why: Refused) -> Taken {
        self.dial.end();
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
        // A byte that does not fit is no loss: so much is under way that frames will come.
        self.dial.say(&[ASK_AGAIN]);
    }

    /// Is a message coming now, part by part?
    pub fn is_under_way(&self, now_ns: i64) -> bool {
        self.have > self.given && now_ns - self.moved_ns < UNDER_WAY_NS
    }

    /// When a part of a message came last that is not whole yet; monotonic.
    pub fn moved_ns(&self) -> i64 {
        self.moved_ns
    }

    /// Bytes that the kernel has for us.
    pub fn unread_bytes(&self) -> usize {
        self.dial.unread_bytes()
    }

    /// Bytes that were read and not given out.
    pub fn pending_bytes(&self) -> usize {
        self.have - self.given
    }

    /// Waits in the kernel for bytes, at most this long.
    pub fn wait(&self, time: Duration) {
        self.dial.wait(time);
    }
}
