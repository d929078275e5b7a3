//! A connection to a publisher: made in the background, and made again when it breaks, with pauses that grow; and what has
//! come over it, in a buffer that holds the longest message.

use crate::bridge::sockets::{UNDER_WAY_NS, buffer_bytes, keep_near, touched};
use crate::os::{clock, poll, tcp};
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::ops::Range;
use std::time::{Duration, Instant};

/// Pauses between attempts to connect.
const RECONNECT: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// What came of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Got {
    /// Some bytes.
    Some,
    /// Nothing has come.
    Nothing,
    /// The connection has ended.
    Ended,
}

/// Frames whose pixels do not wait for the rest of their message.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct Pouring {
    pub frame_bytes: usize,
    /// They go so many at a time.
    pub piece_bytes: usize,
    /// Those of this message that are gone.
    pub gone: usize,
}

/// One connection, or none yet.
pub struct Dial {
    to: SocketAddrV4,
    buffer_bytes: usize,
    stream: Option<TcpStream>,
    /// Our greeting has left.
    connected: bool,
    retry_at: Instant,
    pause: Duration,
    /// What has come and was not cut away stands in this part of it.
    buffer: Vec<u8>,
    filled: Range<usize>,
    /// Bytes of the message at its beginning that was given out.
    given: usize,
    /// Something has come in this look.
    moved: bool,
    /// When one ended in which something had.
    moved_ns: i64,
}

impl Dial {
    /// To this port, for frames of so many bytes and messages of at most `longest`.
    pub fn new(ip: Ipv4Addr, port: u16, frame_bytes: usize, longest: usize) -> Dial {
        Dial {
            to: SocketAddrV4::new(ip, port),
            buffer_bytes: buffer_bytes(frame_bytes),
            stream: None,
            connected: false,
            retry_at: Instant::now(),
            pause: RECONNECT.0,
            buffer: touched(longest),
            filled: 0..0,
            given: 0,
            moved: false,
            moved_ns: 0,
        }
    }

    /// Begins a look at what has come: the message that was given out goes. Is there a connection? If not, goes on with
    /// making it, which ends with saying `greeting`. `Some(true)`: just now.
    pub fn look(&mut self, greeting: impl FnOnce() -> Vec<u8>) -> Option<bool> {
        if self.connected {
            self.cut(0..self.given);
            (self.given, self.moved) = (0, false);
            return Some(false);
        }
        if self.stream.is_none() {
            self.begin();
        }
        self.greet(greeting).then_some(true)
    }

    /// Is there one?
    pub fn is_connected(&self) -> bool {
        self.connected
    }

    /// Ends the connection and begins another.
    pub fn reconnect(&mut self) {
        self.end();
        self.retry_at = Instant::now();
        self.begin();
    }

    /// Ends it; another is begun after a pause.
    pub fn end(&mut self) {
        (self.stream, self.connected) = (None, false);
        (self.filled, self.given, self.moved) = (0..0, 0, false);
    }

    /// What has come and was not cut away.
    pub fn bytes(&self) -> &[u8] {
        &self.buffer[self.filled.clone()]
    }

    /// Removes some of that; of a connection that has ended meanwhile nothing is left. The shorter rest is moved: whoever
    /// sends much that is small costs us no more time than it takes to send it.
    pub fn cut(&mut self, range: Range<usize>) {
        if range.is_empty() || range.end > self.filled.len() {
            return;
        }
        let Range { start, end } = self.filled;
        let (cut_from, cut_to) = (start + range.start, start + range.end);
        if range.start <= end - cut_to {
            self.buffer.copy_within(start..cut_from, start + range.len());
            self.filled.start += range.len();
        } else {
            self.buffer.copy_within(cut_to..end, cut_from);
            self.filled.end -= range.len();
        }
    }

    /// Takes the pixels of a frame, which begin at `from`, away piece by piece and gives them to `pour`, with their place in
    /// the frame. `Some`: up to there bytes are wanted. `None`: all are gone.
    pub fn pour(
        &mut self,
        from: usize,
        pouring: &mut Pouring,
        mut pour: impl FnMut(usize, &[u8]),
    ) -> Option<usize> {
        while pouring.gone < pouring.frame_bytes {
            let wanted = from + pouring.piece_bytes.min(pouring.frame_bytes - pouring.gone);
            let Some(piece) = self.bytes().get(from..wanted) else { return Some(wanted) };
            pour(pouring.gone, piece);
            pouring.gone += piece.len();
            self.cut(from..wanted);
        }
        None
    }

    /// So many bytes at the beginning are a message; they stay until the next look. A connection that brings one is good:
    /// the next pause is short again.
    pub fn give(&mut self, bytes: usize) {
        (self.given, self.pause) = (bytes, RECONNECT.0);
    }

    fn begin(&mut self) {
        if Instant::now() < self.retry_at {
            return;
        }
        self.connected = false;
        self.stream = tcp::connect(self.to, self.buffer_bytes).ok();
        self.retry_at = Instant::now() + self.pause;
        self.pause = (2 * self.pause).min(RECONNECT.1);
    }

    /// Connecting: has it come to something?
    fn greet(&mut self, greeting: impl FnOnce() -> Vec<u8>) -> bool {
        let Some(stream) = &mut self.stream else { return false };
        if !poll::writable(stream, Duration::ZERO).unwrap_or(false) {
            if Instant::now() >= self.retry_at + RECONNECT.1 {
                self.end();
            }
            return false;
        }
        let greeting = greeting();
        // A new connection takes these few bytes, or has failed.
        let greeted = stream.take_error().is_ok_and(|error| error.is_none())
            && stream.write(&greeting).is_ok_and(|count| count == greeting.len());
        if !greeted {
            self.end();
            return false;
        }
        self.connected = true;
        self.remind();
        true
    }

    /// Within this machine, keeps little on its way: for an other end that does so, too.
    pub fn keep_near(&self) {
        if let Some(stream) = &self.stream {
            keep_near(stream, self.buffer_bytes);
        }
    }

    /// To be called now and then: tells the kernel what it forgets.
    pub fn remind(&self) {
        if let Some(stream) = &self.stream {
            let _ = tcp::acknowledge_late(stream); // without it frames come all the same
        }
    }

    /// Says a few bytes. `false`: there was no room for all of them.
    pub fn say(&mut self, bytes: &[u8]) -> bool {
        let Some(stream) = self.stream.as_mut().filter(|_| self.connected) else { return false };
        stream.write(bytes).is_ok_and(|count| count == bytes.len())
    }

    /// The same; if there is no room the connection ends, for half a word is worse than none.
    pub fn say_whole(&mut self, bytes: &[u8]) {
        if !self.say(bytes) {
            self.end();
        }
    }

    /// Reads what has come, up to so many bytes that are not cut away, without waiting.
    pub fn read(&mut self, up_to: usize) -> Got {
        let Some(stream) = &mut self.stream else { return Got::Ended };
        if self.filled.is_empty() || self.filled.start + up_to > self.buffer.len() {
            self.buffer.copy_within(self.filled.clone(), 0);
            self.filled = 0..self.filled.len();
        }
        loop {
            return match stream.read(&mut self.buffer[self.filled.end..self.filled.start + up_to]) {
                Ok(count) if count > 0 => {
                    self.filled.end += count;
                    self.moved = true;
                    Got::Some
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if self.moved {
                        self.moved_ns = clock::monotonic_ns();
                    }
                    Got::Nothing
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                _ => {
                    self.end();
                    Got::Ended
                }
            };
        }
    }

    /// When a part of a message came last that is not whole yet; monotonic.
    pub fn moved_ns(&self) -> i64 {
        self.moved_ns
    }

    /// Is a message coming now, part by part?
    pub fn is_under_way(&self, now_ns: i64) -> bool {
        self.pending_bytes() > 0 && now_ns - self.moved_ns < UNDER_WAY_NS
    }

    /// Bytes of the message that was given out.
    pub fn given_bytes(&self) -> usize {
        self.given
    }

    /// Bytes that were read and not given out.
    pub fn pending_bytes(&self) -> usize {
        self.filled.len() - self.given
    }

    /// Room for a message, bytes.
    pub fn room(&self) -> usize {
        self.buffer.len()
    }

    /// Bytes that the kernel has for us.
    pub fn unread_bytes(&self) -> usize {
        self.stream.as_ref().map_or(0, tcp::unread_bytes)
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::TcpListener;

    proptest! {
        #[test]
        fn what_was_not_cut_away_is_there_whatever_was_and_there_is_room_for_the_longest_again(
            cuts in prop::collection::vec((0usize..70, 0usize..70, 0usize..=100), 0..40),
        ) {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            let mut dial = Dial::new(Ipv4Addr::LOCALHOST, listener.local_addr().unwrap().port(), 100, 100);
            while dial.look(Vec::new).is_none() {}
            let (mut there, _) = listener.accept().unwrap();
            let (mut expected, mut next) = (Vec::new(), 0u8);
            for (from, bytes, up_to) in cuts {
                let more: Vec<u8> = (expected.len()..up_to).map(|_| { next = next.wrapping_add(1); next }).collect();
                there.write_all(&more).unwrap();
                expected.extend_from_slice(&more);
                while dial.bytes().len() < up_to {
                    prop_assert!(dial.read(up_to) != Got::Ended);
                }
                prop_assert_eq!(dial.bytes(), &expected);
                dial.cut(from..from + bytes);
                if from + bytes <= expected.len() {
                    expected.drain(from..from + bytes);
                }
                prop_assert_eq!(dial.bytes(), &expected);
            }
        }
    }
}
