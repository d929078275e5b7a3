//! ZMTP, what ZeroMQ speaks over TCP, as a publisher and a subscriber need it: greetings, what subscribers say, and how a
//! message's parts begin. Version 3.0 (RFC 23 of ZeroMQ) without security, as libzmq has it, and so every Python peer; of
//! 3.1 (RFC 37) the subscriptions and signs of life that are commands. Nothing that comes is trusted: it is read a piece at
//! a time, into a bounded buffer, and whatever makes no sense ends the connection.
//!
//! Both sides say 64 bytes of greeting, then `READY`. Then there are frames: one byte of flags, a length of one byte or
//! eight (big-endian), and as many bytes. A message is one frame or several, all but the last with the flag `MORE`.

/// Bytes of a greeting.
pub const GREETING_BYTES: usize = 64;
/// The first byte of every greeting.
pub const FIRST_BYTE: u8 = 0xff;
/// Longest frame that a subscriber may send.
const SAID_BYTES_MAX: usize = 1_024;
/// Longest beginning of a part.
pub const PART_HEAD_BYTES_MAX: usize = 9;
/// Longest context of a `PING`, which its answer repeats.
const CONTEXT_BYTES_MAX: usize = 16;

const MORE: u8 = 1;
const LONG: u8 = 2;
const COMMAND: u8 = 4;

/// Says that we are a subscriber.
pub const SUBSCRIBER_READY: &[u8] = b"\x04\x19\x05READY\x0bSocket-Type\0\0\0\x03SUB";
/// Says that we are a publisher.
pub const READY: &[u8] = b"\x04\x19\x05READY\x0bSocket-Type\0\0\0\x03PUB";
/// Asks for a sign of life; the answer is [`Said::Something`].
pub const PING: &[u8] = b"\x04\x07\x04PING\0\0";

/// What we say first: signature, version 3.0, no security.
pub const GREETING: [u8; GREETING_BYTES] = {
    let mut greeting = [0; GREETING_BYTES];
    (greeting[0], greeting[9], greeting[10]) = (FIRST_BYTE, 0x7f, 3);
    (greeting[12], greeting[13], greeting[14], greeting[15]) = (b'N', b'U', b'L', b'L');
    greeting
};

/// Appends the beginning of a part of so many bytes.
pub fn begin_part(out: &mut Vec<u8>, bytes: usize, more: bool) {
    let more = if more { MORE } else { 0 };
    match u8::try_from(bytes) {
        Ok(short) => out.extend_from_slice(&[more, short]),
        Err(_) => {
            out.push(more | LONG);
            out.extend_from_slice(&(bytes as u64).to_be_bytes());
        }
    }
}

/// Makes it a message up to its second part, which has so many bytes: the first one is the topic.
pub fn begin_message(out: &mut Vec<u8>, topic: &str, bytes: usize, more: bool) {
    out.clear();
    begin_part(out, topic.len(), true);
    out.extend_from_slice(topic.as_bytes());
    begin_part(out, bytes, more);
}

/// Appends what subscribes to a topic, or ends that.
pub fn subscribe(out: &mut Vec<u8>, topic: &str, wanted: bool) {
    begin_part(out, 1 + topic.len(), false);
    out.push(u8::from(wanted));
    out.extend_from_slice(topic.as_bytes());
}

/// What a frame's first bytes say of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// So many bytes they are.
    pub head_bytes: usize,
    /// So many follow.
    pub body_bytes: u64,
    /// Another one belongs to the same message.
    pub more: bool,
    /// It is no message, but meant for the connection.
    pub command: bool,
}

impl Part {
    /// What stands at the beginning; `None`: it is not whole yet.
    pub fn parse(bytes: &[u8]) -> Result<Option<Part>, &'static str> {
        let Some((flags, rest)) = bytes.split_first() else { return Ok(None) };
        if flags & !(MORE | LONG | COMMAND) != 0 {
            return Err("it sends what is no frame of ZMTP");
        }
        let (head_bytes, body_bytes) = if flags & LONG == 0 {
            let Some(short) = rest.first() else { return Ok(None) };
            (2, u64::from(*short))
        } else {
            let Some(long) = rest.first_chunk() else { return Ok(None) };
            (PART_HEAD_BYTES_MAX, u64::from_be_bytes(*long))
        };
        let (more, command) = (flags & MORE != 0, flags & COMMAND != 0);
        Ok(Some(Part { head_bytes, body_bytes, more, command }))
    }
}

/// What a publisher's command says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command<'a> {
    /// It is a publisher.
    Ready,
    /// It wants a [`pong`] with this context.
    Ping(&'a [u8]),
    /// It is there.
    Something,
}

impl<'a> Command<'a> {
    /// Of a command's body.
    pub fn parse(body: &'a [u8]) -> Result<Command<'a>, &'static str> {
        let (name, rest) = name_and_rest(body).ok_or("it sends a command without a name")?;
        match name {
            b"READY" if socket_type_is(rest, [b"PUB", b"XPUB"]) => Ok(Command::Ready),
            b"READY" => Err("it is no publisher"),
            b"PING" => ping_context(rest).map(Command::Ping),
            b"ERROR" => Err("it lets nobody in"),
            _ => Ok(Command::Something),
        }
    }
}

/// Appends the answer to a `PING`.
pub fn pong(out: &mut Vec<u8>, context: &[u8]) {
    out.extend_from_slice(&[COMMAND, 5 + context.len() as u8, 4]);
    out.extend_from_slice(b"PONG");
    out.extend_from_slice(context);
}

/// What a subscriber has said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said<'a> {
    /// Its greeting is whole and good: it waits for [`READY`].
    Greeting,
    /// It is a subscriber, and waits for nothing more.
    Ready,
    /// It wants what begins so.
    Subscribe(&'a [u8]),
    /// It does not want it any more.
    Cancel(&'a [u8]),
    /// It wants a [`pong`] with this context.
    Ping(&'a [u8]),
    /// It is there.
    Something,
}

/// How far a conversation has come: what the other end is to say next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Its greeting.
    Greeting,
    /// `READY`.
    Ready,
    /// What it likes.
    Open,
}

/// One subscriber's side of a conversation.
#[derive(Debug)]
pub struct Conversation {
    step: Step,
    /// What came and is not understood yet: less than a frame.
    pending: Vec<u8>,
}

impl Default for Conversation {
    fn default() -> Conversation {
        Conversation { step: Step::Greeting, pending: Vec::new() }
    }
}

impl Conversation {
    /// Are greeting and `READY` behind us?
    pub fn is_open(&self) -> bool {
        self.step == Step::Open
    }

    /// Takes what has come, and hands out what it says, in order. The error says what no subscriber would do.
    pub fn hear(&mut self, bytes: &[u8], mut on: impl FnMut(Said)) -> Result<(), &'static str> {
        self.pending.extend_from_slice(bytes);
        let mut used = 0;
        while let Some(length) = self.next(&self.pending[used..])? {
            let piece = &self.pending[used..used + length];
            let (step, said) = understand(self.step, piece)?;
            self.step = step;
            on(said);
            used += length;
        }
        self.pending.drain(..used);
        Ok(())
    }

    /// The length of what stands at the beginning; `None`: it is not whole yet.
    fn next(&self, bytes: &[u8]) -> Result<Option<usize>, &'static str> {
        let length = match self.step {
            Step::Greeting => {
                check_greeting(bytes)?;
                GREETING_BYTES
            }
            Step::Ready | Step::Open => {
                let Some(part) = Part::parse(bytes)? else { return Ok(None) };
                if part.body_bytes > SAID_BYTES_MAX as u64 {
                    return Err("it sends more than a subscriber would");
                }
                part.head_bytes + part.body_bytes as usize
            }
        };
        Ok((bytes.len() >= length).then_some(length))
    }
}

/// As far as it has come.
pub fn check_greeting(bytes: &[u8]) -> Result<(), &'static str> {
    let wrong = |place: usize, good: fn(u8) -> bool| bytes.get(place).is_some_and(|byte| !good(*byte));
    if wrong(0, |byte| byte == FIRST_BYTE) || wrong(9, |byte| byte & 1 == 1) {
        return Err("it speaks no ZMTP");
    }
    if wrong(10, |major| major >= 3) {
        return Err("its ZMTP is older than 3.0 (libzmq 4)");
    }
    match bytes.get(12..32) {
        Some(mechanism) if mechanism != b"NULL\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0" => {
            Err("it wants a security mechanism of ZMTP, and there is none")
        }
        _ => Ok(()),
    }
}

fn understand(step: Step, piece: &[u8]) -> Result<(Step, Said<'_>), &'static str> {
    if step == Step::Greeting {
        return Ok((Step::Ready, Said::Greeting));
    }
    let Some(part) = Part::parse(piece)? else { return Ok((step, Said::Something)) };
    let body = piece.get(part.head_bytes..).unwrap_or_default();
    if !part.command {
        if step == Step::Ready {
            return Err("it begins without READY");
        }
        return Ok(match body.split_first() {
            Some((1, topic)) => (step, Said::Subscribe(topic)),
            Some((0, topic)) => (step, Said::Cancel(topic)),
            _ => (step, Said::Something), // a message of its own, which nobody reads
        });
    }
    let (name, rest) = name_and_rest(body).ok_or("it sends a command without a name")?;
    match (step, name) {
        (Step::Ready, b"READY") if socket_type_is(rest, [b"SUB", b"XSUB"]) => Ok((Step::Open, Said::Ready)),
        (Step::Ready, b"READY") => Err("it is no subscriber"),
        (Step::Ready, _) => Err("it begins without READY"),
        (_, b"SUBSCRIBE") => Ok((step, Said::Subscribe(rest))),
        (_, b"CANCEL") => Ok((step, Said::Cancel(rest))),
        (_, b"PING") => ping_context(rest).map(|context| (step, Said::Ping(context))),
        _ => Ok((step, Said::Something)),
    }
}

fn name_and_rest(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first()?;
    rest.split_at_checked(usize::from(*length))
}

/// Two bytes: how long we may be silent, which we are not. Then the context.
fn ping_context(rest: &[u8]) -> Result<&[u8], &'static str> {
    let context = rest.get(2..).filter(|context| context.len() <= CONTEXT_BYTES_MAX);
    context.ok_or("it sends a PING that is none")
}

/// Do these properties (name, a length of four bytes, value) say that its socket is one of these?
fn socket_type_is(mut properties: &[u8], one_of: [&[u8]; 2]) -> bool {
    while let Some((name, rest)) = name_and_rest(properties) {
        let Some((length, rest)) = rest.split_first_chunk() else { return false };
        let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
        let Some((value, rest)) = rest.split_at_checked(length) else { return false };
        if name.eq_ignore_ascii_case(b"Socket-Type") {
            return one_of.contains(&value);
        }
        properties = rest;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What is said when these bytes come, in pieces of so many.
    fn heard(bytes: &[u8], piece: usize) -> Result<Vec<String>, &'static str> {
        let (mut conversation, mut all) = (Conversation::default(), Vec::new());
        for bytes in bytes.chunks(piece) {
            conversation.hear(bytes, |said| all.push(format!("{said:?}")))?;
            assert!(conversation.pending.len() < PART_HEAD_BYTES_MAX + SAID_BYTES_MAX);
        }
        Ok(all)
    }

    fn opened(rest: &[u8]) -> Vec<u8> {
        [&GREETING[..], SUBSCRIBER_READY, rest].concat()
    }

    #[test]
    fn a_subscriber_is_understood_however_its_bytes_are_cut() {
        let bytes = opened(b"\x00\x03\x01da\x04\x0c\x09SUBSCRIBEfr\x04\x09\x06CANCELfr\x00\x03\x00da\x04\x09\x04PING\0\x0aab\x04\x05\x04PONG");
        let wanted = [
            "Greeting",
            "Ready",
            "Subscribe([100, 97])",
            "Subscribe([102, 114])",
            "Cancel([102, 114])",
            "Cancel([100, 97])",
            "Ping([97, 98])",
            "Something",
        ];
        for piece in 1..=bytes.len() {
            assert_eq!(heard(&bytes, piece).unwrap(), wanted);
        }
        let long = opened(&[b"\x02\0\0\0\0\0\0\x01\0\x01".as_slice(), &[b'x'; 255]].concat());
        assert!(heard(&long, 7).unwrap()[2].starts_with("Subscribe([120, "));
    }

    #[test]
    fn who_is_no_subscriber_is_told_why() {
        let old = |mut bytes: [u8; GREETING_BYTES]| {
            bytes[10] = 1;
            bytes.to_vec()
        };
        let mut curve = GREETING;
        curve[12..17].copy_from_slice(b"CURVE");
        for (bytes, why) in [
            (b"GET / HTTP/1.1\r\n".to_vec(), "it speaks no ZMTP"),
            (b"\xff\0\xa5\xff\0\xa5\xff\0\xa5\xfe".to_vec(), "it speaks no ZMTP"),
            (old(GREETING), "its ZMTP is older than 3.0 (libzmq 4)"),
            (curve.to_vec(), "it wants a security mechanism of ZMTP, and there is none"),
            ([&GREETING[..], READY].concat(), "it is no subscriber"),
            ([&GREETING[..], b"\x00\x01\x01"].concat(), "it begins without READY"),
            ([&GREETING[..], PING].concat(), "it begins without READY"),
            ([&GREETING[..], b"\x04\x06\x05READY"].concat(), "it is no subscriber"),
            (opened(b"\x08\x00"), "it sends what is no frame of ZMTP"),
            (opened(b"\x02\0\0\0\x7f\xff\xff\xff\xff"), "it sends more than a subscriber would"),
            (opened(b"\x02\xff\xff\xff\xff\xff\xff\xff\xff"), "it sends more than a subscriber would"),
            (opened(b"\x04\x00"), "it sends a command without a name"),
            (opened(b"\x04\x02\x05R"), "it sends a command without a name"),
            (opened(b"\x04\x05\x04PING"), "it sends a PING that is none"),
        ] {
            for piece in [1, 5, 1_000] {
                assert_eq!(heard(&bytes, piece), Err(why), "{bytes:?}");
            }
        }
    }

    #[test]
    fn parts_and_answers_are_as_the_protocol_has_them() {
        let part = |bytes, more| {
            let mut out = Vec::new();
            begin_part(&mut out, bytes, more);
            out
        };
        assert_eq!(part(9, true), [1, 9]);
        assert_eq!(part(255, false), [0, 255]);
        assert_eq!(part(256, false), [2, 0, 0, 0, 0, 0, 0, 1, 0]);
        assert_eq!(part(1 << 24, true), [3, 0, 0, 0, 0, 1, 0, 0, 0]);
        let mut out = Vec::new();
        pong(&mut out, b"ab");
        assert_eq!(out, b"\x04\x07\x04PONGab");
        for command in [READY, SUBSCRIBER_READY, PING] {
            let part = Part::parse(command).unwrap().unwrap();
            assert_eq!((part.command, part.head_bytes + part.body_bytes as usize), (true, command.len()));
        }
        assert_eq!(Command::parse(&READY[2..]), Ok(Command::Ready));
        assert_eq!(Command::parse(&SUBSCRIBER_READY[2..]), Err("it is no publisher"));
        assert_eq!(Command::parse(&PING[2..]), Ok(Command::Ping(b"")));
        out.clear();
        subscribe(&mut out, "abc", true);
        assert_eq!(out, b"\0\x04\x01abc");
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken_the_same_in_one_piece_and_in_many(
            rest in proptest::collection::vec(any::<u8>(), 0..200), piece in 1usize..50,
        ) {
            let bytes = opened(&rest);
            prop_assert_eq!(heard(&bytes, piece).is_err(), heard(&bytes, bytes.len()).is_err());
        }
    }
}
