//! The mirror's side of frames over TCP; what goes over the connection stands in [`crate::bridge::outlet`].

use crate::bridge::dial::{Dial, Got, Pouring};
use crate::bridge::inlet::{Pour, Taken};
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
    pouring: Option<Pouring>,
}

impl TcpInlet {
    /// Connects in the background, and for as long as it takes.
    pub fn connect(
        (ip, port): (Ipv4Addr, u16),
        boot_id: u64,
        frame_bytes: usize,
        keywords: u16,
        pouring: Option<Pouring>,
    ) -> TcpInlet {
        let pixels = pouring.map_or(frame_bytes, |pouring| pouring.piece_bytes);
        let longest = HEADER_BYTES + pixels + usize::from(keywords) * 120 + TRAILER_BYTES;
        let dial = Dial::new(ip, port, frame_bytes, longest);
        TcpInlet { dial, boot_id, frame_bytes, keywords, pouring }
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
    pub fn receive(&mut self, pour: &mut Pour) -> Taken {
        if self.dial.given_bytes() > 0 {
            self.begin_message();
        }
        match self.dial.look(|| hello(self.boot_id).to_vec()) {
            None => return Taken::Nothing,
            Some(true) => {
                self.dial.keep_near();
                self.begin_message();
            }
            Some(false) => {}
        }
        loop {
            let wanted = match self.wanted(pour) {
                Ok(wanted) => wanted,
                Err(refused) => return self.refuse(refused),
            };
            let there = self.dial.bytes().len();
            if there >= HEADER_BYTES && there >= wanted {
                if let Some(taken) = self.give(wanted) {
                    return taken;
                }
                // One at a time: who sends nothing else does not keep us here.
                self.dial.cut(0..wanted);
                self.begin_message();
                return Taken::Nothing;
            }
            match self.dial.read(wanted) {
                Got::Some => {}
                Got::Nothing | Got::Ended => return Taken::Nothing,
            }
        }
    }

    /// Bytes that are to be here before there is anything to do; of a message whose pixels are gone, all the others.
    fn wanted(&mut self, pour: &mut Pour) -> Result<usize, Refused> {
        let Some(head) = self.dial.bytes().first_chunk().copied() else {
            // Most likely it is a frame without keywords: all of it in one call.
            let pixels = self.pouring.map_or(self.frame_bytes, |pouring| pouring.piece_bytes);
            return Ok(HEADER_BYTES + pixels + TRAILER_BYTES);
        };
        let total = stream_length(&head, self.frame_bytes, self.keywords)?;
        match &mut self.pouring {
            Some(pouring) if total > HEADER_BYTES + TRAILER_BYTES => {
                let pour = |at, pixels: &[u8]| pour(&head, at, pixels);
                let wanted = self.dial.pour(HEADER_BYTES, pouring, pour);
                Ok(wanted.unwrap_or(total - self.frame_bytes))
            }
            _ => Ok(total),
        }
    }

    fn begin_message(&mut self) {
        if let Some(pouring) = &mut self.pouring {
            pouring.gone = 0;
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

    /// Are the pixels of the message that was given out last gone?
    pub fn poured(&self) -> bool {
        self.pouring.is_some_and(|pouring| pouring.gone > 0)
    }

    /// Its header, and its pixels if they are not gone.
    pub fn body(&self) -> &[u8] {
        let pixels = match self.dial.given_bytes() > HEADER_BYTES + TRAILER_BYTES {
            true if self.pouring.is_none() => self.frame_bytes,
            _ => 0,
        };
        self.dial.bytes().get(..HEADER_BYTES + pixels).unwrap_or_default()
    }

    /// Its keywords, if it has some.
    pub fn keywords(&self) -> &[u8] {
        let from = HEADER_BYTES + if self.pouring.is_some() { 0 } else { self.frame_bytes };
        self.dial.bytes().get(from..self.dial.given_bytes().saturating_sub(TRAILER_BYTES)).unwrap_or_default()
    }

    /// Asks the owner for the current frame.
    pub fn ask_again(&mut self) {
        // A byte that does not fit is no loss: so much is under way that frames will come.
        self.dial.say(&[ASK_AGAIN]);
    }
}
