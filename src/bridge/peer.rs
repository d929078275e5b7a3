//! One connection to a publisher: what its other end says, over either transport, and a message that is on its way to it.
//!
//! Who connects speaks first. A mirror of ours says [`hello`] and then nothing but [`ASK_AGAIN`]; a subscriber over ZMQ
//! begins with the greeting of [`crate::wire::zmtp`].

use crate::bridge::pool::SendPool;
use crate::bridge::sockets::{GREETED_WITHIN, PING_INTERVAL, keep_near};
use crate::bridge::unsent::{Body, Message, Unsent};
use crate::naming::{TOPIC_DAO, TOPIC_PYTHON};
use crate::wire::frame::{ASK_AGAIN, HEADER_BYTES, HELLO_BYTES, hello};
use crate::wire::zmtp::{self, Conversation, Said};
use std::io::{self, ErrorKind, Read};
use std::net::{IpAddr, Shutdown, TcpStream};
use std::ops::Range;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

/// A mirror asks four times a second at most, so nobody of ours ever has so many questions waiting.
const ASKS_MAX: usize = 64;
/// So much no subscriber has to say at once, and not four times as much in a second.
const SAID_AT_ONCE_BYTES_MAX: usize = 4_096;
/// Answers that wait to be sent: nobody of good will lets so many come together.
const ANSWERS_BYTES_MAX: usize = 512;

/// In what form a frame goes out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Our wire, over a TCP stream.
    Stream,
    /// Our wire, as a message of ZMQ.
    Dao,
    /// The Python daemon's.
    Python,
}

/// A choice of forms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Forms {
    pub stream: bool,
    pub dao: bool,
    pub python: bool,
}

impl Forms {
    /// Is there any?
    pub fn any(self) -> bool {
        self.stream || self.dao || self.python
    }

    /// Those of both.
    pub fn or(self, other: Forms) -> Forms {
        Forms {
            stream: self.stream || other.stream,
            dao: self.dao || other.dao,
            python: self.python || other.python,
        }
    }

    /// Is this one of them?
    pub fn has(self, form: Form) -> bool {
        match form {
            Form::Stream => self.stream,
            Form::Dao => self.dao,
            Form::Python => self.python,
        }
    }

    fn without(mut self, form: Form) -> Forms {
        match form {
            Form::Stream => self.stream = false,
            Form::Dao => self.dao = false,
            Form::Python => self.python = false,
        }
        self
    }

    /// Those whose topics begin so.
    fn beginning(prefix: &[u8]) -> Forms {
        let begins = |topic: &str| topic.as_bytes().starts_with(prefix);
        Forms { stream: false, dao: begins(TOPIC_DAO), python: begins(TOPIC_PYTHON) }
    }
}

/// A subscriber over ZMQ.
#[derive(Default)]
struct Subscriber {
    conversation: Conversation,
    /// What it has subscribed and is a prefix of a topic of ours: bounded by the topics' lengths.
    prefixes: Vec<Vec<u8>>,
    /// What follows from them.
    wants: Forms,
    /// What we answer, as soon as the message before has left.
    answers: Vec<u8>,
    /// When it was asked for a sign of life.
    pinged: Option<Instant>,
    /// It has given none since.
    silent: bool,
    /// What it has said in the second that began then.
    said_bytes: usize,
    said_since: Option<Instant>,
}

impl Subscriber {
    /// Takes what it says. Gives the forms that it wants the current frame in.
    fn hear(&mut self, bytes: &[u8]) -> Result<Forms, &'static str> {
        if self.said_since.is_none_or(|since| since.elapsed() >= Duration::from_secs(1)) {
            (self.said_bytes, self.said_since) = (0, Some(Instant::now()));
        }
        self.said_bytes += bytes.len();
        if bytes.len() == SAID_AT_ONCE_BYTES_MAX || self.said_bytes > 4 * SAID_AT_ONCE_BYTES_MAX {
            return Err("it talks without end");
        }
        let Subscriber { conversation, prefixes, answers, .. } = self;
        let (mut asks, mut talks) = (Forms::default(), false);
        conversation.hear(bytes, |said| match said {
            Said::Greeting => answers.extend_from_slice(zmtp::READY),
            Said::Subscribe(prefix) => {
                let forms = Forms::beginning(prefix);
                asks = asks.or(forms);
                if forms.any() && !prefixes.iter().any(|known| known == prefix) {
                    prefixes.push(prefix.to_vec());
                }
            }
            Said::Cancel(prefix) => prefixes.retain(|known| known != prefix),
            Said::Ping(context) if answers.len() < ANSWERS_BYTES_MAX => zmtp::pong(answers, context),
            Said::Ping(_) => talks = true,
            Said::Ready | Said::Something => {}
        })?;
        self.wants =
            self.prefixes.iter().fold(Forms::default(), |all, prefix| all.or(Forms::beginning(prefix)));
        self.silent = false;
        if talks { Err("it asks for signs of life without end") } else { Ok(asks) }
    }
}

enum Speaks {
    /// It has said nothing yet.
    Nothing,
    /// A mirror of ours; what came of its hello.
    Stream(Vec<u8>),
    Zmtp(Box<Subscriber>),
}

/// What has become of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// It stands.
    Fine,
    /// The other end has ended it.
    Gone,
    /// It says what nobody of ours would, or is silent.
    Nonsense(&'static str),
}

/// What a publisher expects of who connects.
#[derive(Clone, Copy, Debug)]
pub struct Manners {
    /// Mirrors of ours want this publisher.
    pub boot_id: u64,
    /// They may come over a TCP stream.
    pub streams: bool,
    /// A subscriber over ZMQ that was asked for a sign of life gives one within this time.
    pub answers_within: Duration,
    /// The kernel's buffers of a connection.
    pub buffer_bytes: usize,
}

/// One connection.
pub struct Peer {
    stream: TcpStream,
    ip: IpAddr,
    since: Instant,
    speaks: Speaks,
    /// It wants the current frame.
    asks: Forms,
    unsent: Unsent,
}

impl Peer {
    /// It has just come from there.
    pub fn new(stream: TcpStream, ip: IpAddr) -> Peer {
        Peer {
            stream,
            ip,
            since: Instant::now(),
            speaks: Speaks::Nothing,
            asks: Forms::default(),
            unsent: Unsent::default(),
        }
    }

    /// Of its other end.
    pub fn ip(&self) -> IpAddr {
        self.ip
    }

    /// To be waited for.
    pub fn descriptor(&self) -> RawFd {
        self.stream.as_raw_fd()
    }

    /// Nothing more will be sent; what it still says is read, and nobody listens. Is it there?
    pub fn hear_out(&mut self) -> bool {
        let _ = self.stream.shutdown(Shutdown::Write); // of one that is gone
        // Bounded, so that nobody can hold us by talking.
        for _ in 0..64 {
            match self.stream.read(&mut [0; 1_024]) {
                Ok(0) => return false,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return error.kind() == ErrorKind::WouldBlock,
            }
        }
        true
    }

    /// The connection.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Has it said who it is?
    pub fn is_known(&self) -> bool {
        match &self.speaks {
            Speaks::Nothing => false,
            Speaks::Stream(hello) => hello.len() == HELLO_BYTES,
            Speaks::Zmtp(subscriber) => subscriber.conversation.is_open(),
        }
    }

    /// Has it begun to say so, just now?
    pub fn is_greeting(&self) -> bool {
        !self.is_known()
            && !matches!(self.speaks, Speaks::Nothing)
            && self.since.elapsed() < Duration::from_secs(1)
    }

    /// In which forms it takes frames.
    pub fn wants(&self) -> Forms {
        match &self.speaks {
            Speaks::Zmtp(subscriber) => subscriber.wants,
            _ => Forms { stream: self.is_known(), ..Forms::default() },
        }
    }

    /// In which forms it wants the current frame. Who cannot take it yet is asked again when it can.
    pub fn asks(&self) -> Forms {
        if self.is_sending() { Forms::default() } else { self.asks }
    }

    /// Is a message on its way that has not left whole?
    pub fn is_sending(&self) -> bool {
        self.unsent.is_sending()
    }

    /// Do its parts go one soon after the other?
    pub fn is_under_way(&self, now_ns: i64) -> bool {
        self.unsent.is_under_way(now_ns)
    }

    /// Has a message been on its way for longer than it may be when buffers run out?
    pub fn is_slow(&self, patience: Duration) -> bool {
        self.unsent.is_slow(patience)
    }

    /// Is a frame leaving from where it stands?
    pub fn has_loan(&self) -> bool {
        self.unsent.has_loan()
    }

    /// Will its writer be there soon, or has the client taken nothing of it for a while?
    pub fn is_loan_in_danger(&self, now_ns: i64) -> bool {
        self.unsent.is_loan_in_danger(now_ns)
    }

    /// Its rest leaves from this range of a buffer that nobody holds.
    pub fn keep_rest(&mut self, pool: &mut SendPool, index: usize, range: Range<usize>) {
        self.unsent.keep_rest(pool, index, range);
    }

    /// Frames that were spoilt on their way, since the last look.
    pub fn take_spoilt(&mut self) -> u64 {
        self.unsent.take_spoilt()
    }

    /// Goes on with what has not left whole, and with our answers behind it. `Ok(true)`: all has left.
    pub fn progress(&mut self) -> io::Result<bool> {
        if !self.unsent.go(&self.stream)? {
            return Ok(false);
        }
        let Speaks::Zmtp(subscriber) = &mut self.speaks else { return Ok(true) };
        if subscriber.answers.is_empty() {
            return Ok(true);
        }
        self.unsent.load_answers(&mut subscriber.answers);
        self.unsent.go(&self.stream)
    }

    /// Begins to send a message. `Ok(false)`: it is still at an older one.
    pub fn send(&mut self, message: &Message) -> io::Result<bool> {
        if !self.progress()? {
            return Ok(false);
        }
        if !matches!(message.body, Body::None) {
            self.asks = self.asks.without(message.form);
        }
        self.unsent.load(message);
        self.unsent.go(&self.stream)?;
        Ok(true)
    }

    /// Reads what it says, a bounded part of it at a time: nobody can keep the publisher from its frames by talking.
    pub fn listen(&mut self, manners: &Manners) -> Heard {
        let mut said = [0; SAID_AT_ONCE_BYTES_MAX];
        // A hello or greeting, perhaps in two pieces, what follows, and that nothing does.
        for _ in 0..4 {
            let room = match &self.speaks {
                Speaks::Nothing => HELLO_BYTES,
                Speaks::Stream(hello) if hello.len() < HELLO_BYTES => HELLO_BYTES - hello.len(),
                Speaks::Stream(_) => ASKS_MAX,
                Speaks::Zmtp(_) => said.len(),
            };
            let heard = match self.stream.read(&mut said[..room]) {
                Ok(0) => return Heard::Gone,
                Ok(count) => &said[..count],
                Err(error) if error.kind() == ErrorKind::WouldBlock => return self.heard_nothing(manners),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => return Heard::Gone,
            };
            if matches!(self.speaks, Speaks::Nothing) {
                self.speaks = if heard.first() == Some(&zmtp::FIRST_BYTE) {
                    let mut subscriber = Subscriber::default();
                    subscriber.answers.reserve(HEADER_BYTES);
                    subscriber.answers.extend_from_slice(&zmtp::GREETING);
                    Speaks::Zmtp(Box::new(subscriber))
                } else {
                    Speaks::Stream(Vec::with_capacity(HELLO_BYTES))
                };
            }
            let stranger = !self.is_known();
            let asks = match &mut self.speaks {
                Speaks::Nothing => return Heard::Gone,
                Speaks::Zmtp(subscriber) => match subscriber.hear(heard) {
                    Ok(asks) => asks,
                    Err(why) => return Heard::Nonsense(why),
                },
                Speaks::Stream(so_far) => match hear_mirror(so_far, heard, manners) {
                    Ok(asks) => Forms { stream: asks, ..Forms::default() },
                    Err(end) => return end,
                },
            };
            if asks.stream && stranger {
                keep_near(&self.stream, manners.buffer_bytes);
            }
            self.asks = self.asks.or(asks);
            if self.progress().is_err() {
                return Heard::Gone;
            }
        }
        Heard::Fine
    }

    fn heard_nothing(&mut self, manners: &Manners) -> Heard {
        if !self.is_known() {
            let patient = self.since.elapsed() < GREETED_WITHIN;
            return if patient { Heard::Fine } else { Heard::Nonsense("it never says what it wants") };
        }
        // Who takes a frame, however slowly, lives.
        let sending = self.is_sending();
        let Speaks::Zmtp(subscriber) = &mut self.speaks else { return Heard::Fine };
        if sending || !subscriber.answers.is_empty() {
            return Heard::Fine;
        }
        let since_ping = subscriber.pinged.map(|pinged| pinged.elapsed());
        if subscriber.silent {
            let patient = since_ping.is_none_or(|time| time < manners.answers_within);
            return if patient { Heard::Fine } else { Heard::Nonsense("it gives no sign of life") };
        }
        if since_ping.is_none_or(|time| time >= PING_INTERVAL) {
            (subscriber.pinged, subscriber.silent) = (Some(Instant::now()), true);
            subscriber.answers.extend_from_slice(zmtp::PING);
            return if self.progress().is_ok() { Heard::Fine } else { Heard::Gone };
        }
        Heard::Fine
    }
}

/// Takes what a mirror of ours says. Does it want the current frame?
fn hear_mirror(so_far: &mut Vec<u8>, heard: &[u8], manners: &Manners) -> Result<bool, Heard> {
    if so_far.len() == HELLO_BYTES {
        if heard.iter().any(|byte| *byte != ASK_AGAIN) {
            return Err(Heard::Nonsense("it says something else than a mirror would"));
        }
        if heard.len() == ASKS_MAX {
            return Err(Heard::Nonsense("it asks without end"));
        }
        return Ok(true);
    }
    so_far.extend_from_slice(heard);
    let good = hello(manners.boot_id);
    if !manners.streams || !good[..8].starts_with(&so_far[..8.min(so_far.len())]) {
        return Err(Heard::Nonsense("it is no mirror of ours"));
    }
    if !good.starts_with(so_far) {
        // A mirror that knows an earlier publisher at this port is no stranger.
        return Err(Heard::Gone);
    }
    Ok(so_far.len() == HELLO_BYTES)
}
