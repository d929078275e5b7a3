//! The mirror's side of frames over TCP; what goes over the connection stands in [`crate::bridge::outlet`].

use crate::bridge::dial::{Dial, Got};
use crate::bridge::inlet::Taken;
use crate::wire::frame::{
    ASK_AGAIN, HEADER_BYTES, Refused, TRAILER_BYTES, hello, spoil, stream_length, trailer,
};
use std::net::Ipv4Addr;

/// A mirror's side.
pub struct TcpInlet {
    dial: Dial,
    boot_id: u64,
    frame_bytes: usize,
    keywords: u16,
}

impl TcpInlet {
    /// Connects in the background, and for as long as it takes.
    pub fn connect(ip: Ipv4Addr, port: u16, boot_id: u64, frame_bytes: usize, keywords: u16) -> TcpInlet {
        let longest = HEADER_BYTES + frame_bytes + usize::from(keywords) * 120 + TRAILER_BYTES;
        let dial = Dial::new(ip, port, frame_bytes, longest);
        TcpInlet { dial, boot_id, frame_bytes, keywords }
    }

    /// The connection.
    pub fn dial(&self) -> &Dial {
        &self.dial
    }

    /// The same.
    pub fn dial_mut(&mut self) -> &mut Dial {
        &mut self.dial
    }

    /// Takes the next message without waiting.
    pub fn receive(&mut self) -> Taken {
        if self.dial.look(|| hello(self.boot_id).to_vec()).is_none() {
            return Taken::Nothing;
        }
        loop {
            let bytes = self.dial.bytes();
            let wanted = match bytes.first_chunk() {
                Some(head) => match stream_length(head, self.frame_bytes, self.keywords) {
                    Ok(total) => total,
                    Err(refused) => return self.refuse(refused),
                },
                // Most likely it is a frame without keywords: all of it in one call.
                None => HEADER_BYTES + self.frame_bytes + TRAILER_BYTES,
            };
            if bytes.len() >= HEADER_BYTES && bytes.len() >= wanted {
                if let Some(taken) = self.give(wanted) {
                    return taken;
                }
                // One at a time: who sends nothing else does not keep us here.
                self.dial.cut(0..wanted);
                return Taken::Nothing;
            }
            match self.dial.read(wanted) {
                Got::Some => {}
                Got::Nothing | Got::Ended => return Taken::Nothing,
            }
        }
    }

    /// `None`: of a frame that was spoilt on its way nothing is left.
    fn give(&mut self, total: usize) -> Option<Taken> {
        let bytes = self.dial.bytes();
        let seq = bytes[32..40].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        let (end, whole) = (&bytes[total - TRAILER_BYTES..total], trailer(seq));
        let mut spoilt = whole;
        spoil(&mut spoilt);
        if *end != whole && *end != spoilt {
            return Some(self.refuse(Refused::BadParts));
        }
        if *end == spoilt {
            return None;
        }
        self.dial.give(total);
        Some(Taken::Message)
    }

    fn refuse(&mut self, why: Refused) -> Taken {
        self.dial.end();
        Taken::Refused(why)
    }

    /// Header and pixels of the message that was given out last.
    pub fn body(&self) -> &[u8] {
        let pixels =
            if self.dial.given_bytes() > HEADER_BYTES + TRAILER_BYTES { self.frame_bytes } else { 0 };
        self.dial.bytes().get(..HEADER_BYTES + pixels).unwrap_or_default()
    }

    /// Its keywords, if it has some.
    pub fn keywords(&self) -> &[u8] {
        let from = HEADER_BYTES + self.frame_bytes;
        self.dial.bytes().get(from..self.dial.given_bytes().saturating_sub(TRAILER_BYTES)).unwrap_or_default()
    }

    /// Asks the owner for the current frame.
    pub fn ask_again(&mut self) {
        // A byte that does not fit is no loss: so much is under way that frames will come.
        self.dial.say(&[ASK_AGAIN]);
    }
}
