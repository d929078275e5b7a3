//! A connection to a publisher: made in the background, and made again when it breaks, with pauses that grow.

use crate::os::{poll, tcp};
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::time::{Duration, Instant};

/// Pauses between attempts to connect.
const RECONNECT: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// What we said and is not acknowledged for so long ends a connection.
const UNACKNOWLEDGED: Duration = Duration::from_secs(5);

/// What came of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Got {
    /// So many bytes.
    Some(usize),
    /// Nothing has come.
    Nothing,
    /// The connection has ended.
    Ended,
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
}

impl Dial {
    /// To this port, with kernel buffers of so many bytes.
    pub fn new(ip: Ipv4Addr, port: u16, buffer_bytes: usize) -> Dial {
        Dial {
            to: SocketAddrV4::new(ip, port),
            buffer_bytes,
            stream: None,
            connected: false,
            retry_at: Instant::now(),
            pause: RECONNECT.0,
        }
    }

    /// Is there one? If not, goes on with making it, which ends with saying `greeting`. `Some(true)`: just now.
    pub fn stands(&mut self, greeting: &[u8]) -> Option<bool> {
        if self.connected {
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
    }

    /// It has come to something: the next pause is short again.
    pub fn is_good(&mut self) {
        self.pause = RECONNECT.0;
    }

    fn begin(&mut self) {
        if Instant::now() < self.retry_at {
            return;
        }
        self.connected = false;
        let connecting = tcp::connect(self.to, self.buffer_bytes);
        self.stream = connecting
            .and_then(|stream| tcp::set_user_timeout(&stream, UNACKNOWLEDGED).map(|()| stream))
            .ok();
        self.retry_at = Instant::now() + self.pause;
        self.pause = (2 * self.pause).min(RECONNECT.1);
    }

    /// Connecting: has it come to something?
    fn greet(&mut self, greeting: &[u8]) -> bool {
        let Some(stream) = &mut self.stream else { return false };
        if !poll::writable(stream, Duration::ZERO).unwrap_or(false) {
            if Instant::now() >= self.retry_at + RECONNECT.1 {
                self.end();
            }
            return false;
        }
        // A new connection takes these few bytes, or has failed.
        let greeted = stream.take_error().is_ok_and(|error| error.is_none())
            && stream.write(greeting).is_ok_and(|count| count == greeting.len());
        if !greeted {
            self.end();
            return false;
        }
        self.connected = true;
        true
    }

    /// Says a few bytes. `false`: there was no room for all of them.
    pub fn say(&mut self, bytes: &[u8]) -> bool {
        let Some(stream) = self.stream.as_mut().filter(|_| self.connected) else { return false };
        stream.write(bytes).is_ok_and(|count| count == bytes.len())
    }

    /// Reads what has come, without waiting.
    pub fn read(&mut self, into: &mut [u8]) -> Got {
        let Some(stream) = &mut self.stream else { return Got::Ended };
        loop {
            return match stream.read(into) {
                Ok(count) if count > 0 => Got::Some(count),
                Err(error) if error.kind() == ErrorKind::WouldBlock => Got::Nothing,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                _ => {
                    self.end();
                    Got::Ended
                }
            };
        }
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
