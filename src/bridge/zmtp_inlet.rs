//! The mirror's side of frames over ZMQ: a subscriber to one topic of one publisher, ours or a Python daemon's. What goes
//! over the connection is in [`crate::wire::zmtp`]; a message is its topic, a body, and perhaps the keywords.

use crate::bridge::dial::{Dial, Got, Pouring};
use crate::bridge::inlet::{Pour, Taken};
use crate::bridge::sockets::{GREETED_WITHIN, PING_INTERVAL, answers_within};
use crate::os::clock;
use crate::wire::frame::{HEADER_BYTES, Refused, pixels_at};
use crate::wire::zmtp::{self, Command, GREETING, GREETING_BYTES, PART_HEAD_BYTES_MAX, Part, Step};
use std::net::Ipv4Addr;
use std::ops::Range;

const GREETED_WITHIN_NS: i64 = GREETED_WITHIN.as_nanos() as i64;
const PING_INTERVAL_NS: i64 = PING_INTERVAL.as_nanos() as i64;
/// Longest topic, and longest command; longest part that nobody wants.
const SMALL_BYTES_MAX: usize = 1_024;
/// Commands, messages of other topics and parts too many that come at once: no publisher sends us so many.
const UNWANTED_MAX: usize = 64;
/// What stands around the pixels: our header and its room, a pickle.
const AROUND_PIXELS_BYTES: usize = 4_096;

/// A mirror's side.
pub struct ZmtpInlet {
    dial: Dial,
    topic: &'static str,
    step: Step,
    /// Bytes at the beginning of what has come that are whole parts of the message.
    parsed: usize,
    /// Parts of the message that have come.
    parts: usize,
    /// It is of another topic.
    foreign: bool,
    /// Pieces that were no part of a message of ours, since the last one or the last look in vain.
    unwanted: usize,
    body: Range<usize>,
    keywords: Range<usize>,
    pouring: Option<Pouring>,
    /// Bytes of the message before: so many are read at once.
    usual: usize,
    body_bytes_max: usize,
    keyword_bytes_max: usize,
    answers_within_ns: i64,
    /// Something has come since the clock was looked at.
    heard: bool,
    heard_ns: i64,
    /// When a sign of life was asked for; 0: it has come.
    pinged_ns: i64,
    /// What we say, put together.
    words: Vec<u8>,
}

impl ZmtpInlet {
    /// Connects in the background, and for as long as it takes; subscribes to this topic.
    pub fn connect(
        (ip, port): (Ipv4Addr, u16),
        topic: &'static str,
        frame_bytes: usize,
        keywords: u16,
        pouring: Option<Pouring>,
    ) -> ZmtpInlet {
        let pixels = pouring.map_or(frame_bytes, |pouring| pouring.piece_bytes);
        let body_bytes_max = pixels + AROUND_PIXELS_BYTES;
        let keyword_bytes_max = (usize::from(keywords) * 120).max(SMALL_BYTES_MAX);
        // A message of three parts, and between them a command or what nobody wants.
        let longest = 4 * PART_HEAD_BYTES_MAX + body_bytes_max + keyword_bytes_max + 2 * SMALL_BYTES_MAX;
        ZmtpInlet {
            dial: Dial::new(ip, port, frame_bytes, longest),
            topic,
            step: Step::Greeting,
            parsed: 0,
            parts: 0,
            foreign: false,
            unwanted: 0,
            body: 0..0,
            keywords: 0..0,
            pouring,
            usual: GREETING_BYTES,
            body_bytes_max,
            keyword_bytes_max,
            answers_within_ns: answers_within(frame_bytes).as_nanos() as i64,
            heard: false,
            heard_ns: 0,
            pinged_ns: 0,
            words: Vec::with_capacity(64),
        }
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
        match self.dial.look(|| GREETING.to_vec()) {
            None => return Taken::Nothing,
            Some(true) => {
                (self.step, self.usual) = (Step::Greeting, GREETING_BYTES);
                (self.heard, self.heard_ns, self.pinged_ns) = (false, clock::monotonic_ns(), 0);
                self.begin_message();
            }
            Some(false) => {}
        }
        loop {
            let wanted = match self.parse(pour) {
                Ok(None) => {
                    (self.usual, self.unwanted) = (self.parsed, 0);
                    self.dial.give(self.parsed);
                    return Taken::Message;
                }
                Ok(Some(wanted)) => {
                    wanted.max(self.usual).clamp(self.dial.bytes().len() + 1, self.dial.room())
                }
                Err(refused) => {
                    self.end();
                    return Taken::Refused(refused);
                }
            };
            match self.dial.read(wanted) {
                Got::Some => self.heard = true,
                Got::Nothing => {
                    self.unwanted = 0;
                    self.look_at_the_clock();
                    return Taken::Nothing;
                }
                Got::Ended => {
                    self.end();
                    return Taken::Nothing;
                }
            }
        }
    }

    fn begin_message(&mut self) {
        (self.parsed, self.parts, self.foreign) = (0, 0, false);
        (self.body, self.keywords) = (0..0, 0..0);
        if let Some(pouring) = &mut self.pouring {
            pouring.gone = 0;
        }
    }

    fn end(&mut self) {
        self.dial.end();
        self.step = Step::Greeting;
        self.begin_message();
    }

    /// Removes what nobody asked for.
    fn cut_unwanted(&mut self, range: Range<usize>) -> Result<(), Refused> {
        self.dial.cut(range);
        self.unwanted += 1;
        if self.unwanted > UNWANTED_MAX { Err(Refused::BadParts) } else { Ok(()) }
    }

    /// Goes through what has come. `None`: a message is whole. `Some`: up to there bytes are wanted.
    fn parse(&mut self, pour: &mut Pour) -> Result<Option<usize>, Refused> {
        if self.step == Step::Greeting {
            zmtp::check_greeting(self.dial.bytes()).map_err(|_| Refused::BadMagic)?;
            if self.dial.bytes().len() < GREETING_BYTES {
                return Ok(Some(GREETING_BYTES));
            }
            self.dial.cut(0..GREETING_BYTES);
            self.step = Step::Ready;
            self.dial.say_whole(zmtp::SUBSCRIBER_READY);
        }
        loop {
            let bytes = self.dial.bytes();
            let rest = bytes.get(self.parsed..).unwrap_or_default(); // none of a connection that has just ended
            let Some(part) = Part::parse(rest).map_err(|_| Refused::BadParts)? else {
                return Ok(Some(self.parsed + PART_HEAD_BYTES_MAX));
            };
            let longest = match self.parts {
                1 if !part.command => self.body_bytes_max,
                2 if !part.command => self.keyword_bytes_max,
                _ => SMALL_BYTES_MAX,
            };
            let body_at = self.parsed + part.head_bytes;
            let mut body_bytes = part.body_bytes;
            if self.parts == 1 && !part.command {
                match self.pour(body_at, body_bytes, pour) {
                    Ok(gone) => body_bytes -= gone as u64,
                    Err(wanted) => return Ok(Some(wanted)),
                }
            }
            if body_bytes > longest as u64 {
                return Err(Refused::BadLength { expected: longest as u64, got: part.body_bytes });
            }
            let bytes = self.dial.bytes();
            let end = body_at + body_bytes as usize;
            if bytes.len() < end {
                return Ok(Some(end));
            }
            if part.command {
                self.on_command(body_at..end)?;
                self.cut_unwanted(self.parsed..end)?;
                continue;
            }
            if self.step != Step::Open {
                return Err(Refused::BadMagic);
            }
            match self.parts {
                0 => self.foreign = !bytes[body_at..end].starts_with(self.topic.as_bytes()),
                1 => self.body = body_at..end,
                2 => self.keywords = body_at..end,
                _ => {}
            }
            if self.parts < 3 {
                self.parsed = end;
            } else {
                self.cut_unwanted(self.parsed..end)?;
            }
            self.parts += 1;
            if !part.more {
                if !self.foreign {
                    return Ok(None);
                }
                self.cut_unwanted(0..self.parsed)?;
                self.begin_message();
            }
        }
    }

    /// The pixels go, if this part is a frame's. Gives how many of its bytes that are, or up to where more are wanted first.
    fn pour(&mut self, body_at: usize, body_bytes: u64, pour: &mut Pour) -> Result<usize, usize> {
        let Some(pouring) = self.pouring.as_mut().filter(|_| self.step == Step::Open && !self.foreign) else {
            return Ok(0);
        };
        let frame_bytes = pouring.frame_bytes as u64;
        if body_bytes < HEADER_BYTES as u64 + frame_bytes {
            return Ok(0);
        }
        let Some(head) = self.dial.bytes().get(body_at..).and_then(|body| body.first_chunk()).copied() else {
            return Err(body_at + HEADER_BYTES);
        };
        let (offset, pixel_bytes) = pixels_at(&head);
        if !(HEADER_BYTES..=AROUND_PIXELS_BYTES).contains(&offset)
            || pixel_bytes != frame_bytes
            || body_bytes != offset as u64 + frame_bytes
        {
            return Ok(0);
        }
        let pour = |at, pixels: &[u8]| pour(&head, at, pixels);
        self.dial.pour(body_at + offset, pouring, pour).map_or(Ok(pouring.frame_bytes), Err)
    }

    fn on_command(&mut self, body: Range<usize>) -> Result<(), Refused> {
        let words = &mut self.words;
        words.clear();
        match Command::parse(&self.dial.bytes()[body]).map_err(|_| Refused::BadParts)? {
            Command::Ready if self.step == Step::Ready => {
                self.step = Step::Open;
                zmtp::subscribe(words, self.topic, true);
            }
            Command::Ping(context) => zmtp::pong(words, context),
            Command::Ready | Command::Something => return Ok(()),
        }
        self.dial.say_whole(&self.words);
        Ok(())
    }

    /// Nothing more has come: is the other end there?
    fn look_at_the_clock(&mut self) {
        let now_ns = clock::monotonic_ns();
        if std::mem::take(&mut self.heard) {
            (self.heard_ns, self.pinged_ns) = (now_ns, 0);
        } else if self.step != Step::Open {
            if now_ns - self.heard_ns > GREETED_WITHIN_NS {
                self.end();
            }
        } else if self.pinged_ns == 0 {
            if now_ns - self.heard_ns >= PING_INTERVAL_NS {
                self.pinged_ns = now_ns;
                self.dial.say_whole(zmtp::PING);
            }
        } else if now_ns - self.pinged_ns > self.answers_within_ns {
            self.end();
        }
    }

    /// Parts of the message that was given out last, the topic among them.
    pub fn parts(&self) -> usize {
        self.parts
    }

    /// Are its pixels gone?
    pub fn poured(&self) -> bool {
        self.pouring.is_some_and(|pouring| pouring.gone > 0)
    }

    /// Its second part, without pixels that are gone.
    pub fn body(&self) -> &[u8] {
        self.dial.bytes().get(self.body.clone()).unwrap_or_default()
    }

    /// Its third part.
    pub fn keywords(&self) -> &[u8] {
        self.dial.bytes().get(self.keywords.clone()).unwrap_or_default()
    }

    /// Is there a connection, over which the publisher gives signs of life?
    pub fn linked(&self) -> bool {
        self.step == Step::Open && self.dial.is_connected()
    }

    /// Asks the owner for the current frame: it sends it to every new subscriber.
    pub fn ask_again(&mut self) {
        if self.linked() {
            self.words.clear();
            zmtp::subscribe(&mut self.words, self.topic, false);
            zmtp::subscribe(&mut self.words, self.topic, true);
            self.dial.say_whole(&self.words);
        }
    }

    /// When something was heard last, or the connection was made; monotonic.
    pub fn heard_ns(&self) -> i64 {
        self.heard_ns
    }
}
