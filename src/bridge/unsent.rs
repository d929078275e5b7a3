//! A message on its way to one client: what the kernel has not taken yet, and where the pixels of it leave from.

use crate::bridge::peer::Form;
use crate::bridge::pool::{Held, SendPool};
use crate::bridge::sockets::UNDER_WAY_NS;
use crate::os::clock;
use crate::shm::Loan;
use crate::wire::frame::spoil;
use std::io::{self, ErrorKind, IoSlice, Write};
use std::net::TcpStream;
use std::ops::Range;
use std::time::Duration;

/// A client that takes nothing of a frame for so long does not keep it where it stands.
pub const LOAN_STALLED_NS: i64 = 5_000_000;

/// What is not copied for a message.
pub enum Body<'a> {
    /// Nothing: it is no frame.
    None,
    /// Of this pool's buffer this range.
    Buffer(&'a SendPool, usize, Range<usize>),
    /// The frame where it stands, for one client alone. The message ends with a trailer.
    Lent(Loan),
}

/// A message to be sent: a beginning, perhaps a part of a buffer, an end.
pub struct Message<'a> {
    /// In which form.
    pub form: Form,
    /// Comes first.
    pub head: &'a [u8],
    /// Comes in the middle.
    pub body: Body<'a>,
    /// Comes last.
    pub tail: &'a [u8],
}

/// The middle of a message that has not left whole.
#[derive(Default)]
enum Pixels {
    #[default]
    None,
    Kept(Held, Range<usize>),
    Lent(Loan),
}

/// What is to be sent and has not left whole.
#[derive(Default)]
pub struct Unsent {
    head: Vec<u8>,
    body: Pixels,
    tail: Vec<u8>,
    /// Bytes that are gone; all of it: nothing is to be sent.
    sent: usize,
    total: usize,
    begun_ns: i64,
    /// When the last bytes of it went, if that was not all; else when it was begun.
    moved_ns: i64,
    /// Frames whose writer came to where they stood before all of them had left.
    spoilt: u64,
}

impl Unsent {
    /// Is there anything?
    pub fn is_sending(&self) -> bool {
        self.sent < self.total
    }

    /// Do its parts go one soon after the other?
    pub fn is_under_way(&self, now_ns: i64) -> bool {
        self.is_sending() && now_ns - self.moved_ns < UNDER_WAY_NS
    }

    /// Has it been on its way for longer than this, and than ten bytes a microsecond take?
    pub fn is_slow(&self, patience: Duration) -> bool {
        let patience_ns = patience.as_nanos() as i64 + 100 * self.total as i64;
        self.is_sending() && clock::monotonic_ns() - self.begun_ns > patience_ns
    }

    /// Is a frame leaving from where it stands?
    pub fn has_loan(&self) -> bool {
        matches!(self.body, Pixels::Lent(_))
    }

    /// Will its writer be there soon, or has the client taken nothing of it for a while?
    pub fn is_loan_in_danger(&self, now_ns: i64) -> bool {
        let stalled = now_ns - self.moved_ns > LOAN_STALLED_NS;
        matches!(&self.body, Pixels::Lent(loan) if loan.is_in_danger() || stalled && loan.is_whole())
    }

    /// Frames that were spoilt on their way, since the last look.
    pub fn take_spoilt(&mut self) -> u64 {
        std::mem::take(&mut self.spoilt)
    }

    /// In place of what has left.
    pub fn load(&mut self, message: &Message) {
        self.head.clear();
        self.head.extend_from_slice(message.head);
        self.tail.clear();
        self.tail.extend_from_slice(message.tail);
        let body_bytes;
        (self.body, body_bytes) = match &message.body {
            Body::None => (Pixels::None, 0),
            Body::Buffer(pool, index, range) => (Pixels::Kept(pool.hold(*index), range.clone()), range.len()),
            Body::Lent(loan) => (Pixels::Lent(loan.clone()), loan.bytes()),
        };
        self.begin(body_bytes);
    }

    /// What we answer a subscriber; they are taken.
    pub fn load_answers(&mut self, answers: &mut Vec<u8>) {
        std::mem::swap(&mut self.head, answers);
        answers.clear();
        self.tail.clear();
        self.begin(0);
    }

    fn begin(&mut self, body_bytes: usize) {
        (self.sent, self.total) = (0, self.head.len() + body_bytes + self.tail.len());
        self.begun_ns = clock::monotonic_ns();
        self.moved_ns = self.begun_ns;
    }

    /// Writes what the kernel takes. `Ok(true)`: that was all.
    pub fn go(&mut self, mut stream: &TcpStream) -> io::Result<bool> {
        let sent_before = self.sent;
        while self.is_sending() {
            let body = match &self.body {
                Pixels::None => &[][..],
                Pixels::Kept(held, range) => &held.bytes()[range.clone()],
                Pixels::Lent(_) => &[],
            };
            let taken = if let Pixels::Lent(loan) = &self.body {
                let head = self.head.get(self.sent..).unwrap_or_default();
                loan.send(head, self.sent.saturating_sub(self.head.len()), stream)
            } else {
                let mut parts = [&self.head[..], body, &self.tail].map(IoSlice::new);
                let mut rest = &mut parts[..];
                IoSlice::advance_slices(&mut rest, self.sent);
                stream.write_vectored(rest)
            };
            match taken {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => {
                    self.sent += count;
                    self.return_loan();
                }
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
        self.body = Pixels::None;
        Ok(true)
    }

    /// When all of a frame has left from where it stands: the trailer says whether it was one until then.
    fn return_loan(&mut self) {
        let Pixels::Lent(loan) = &self.body else { return };
        if self.sent < self.head.len() + loan.bytes() {
            return;
        }
        if !loan.is_whole() {
            spoil(&mut self.tail);
            self.spoilt += 1;
        }
        self.body = Pixels::None;
        self.head.clear();
        (self.sent, self.total) = (0, self.tail.len());
    }

    /// The rest of a frame that stands where its writer will soon be leaves from a buffer; it is there in the end.
    pub fn keep_rest(&mut self, pool: &mut SendPool, index: usize, range: Range<usize>) {
        let Pixels::Lent(loan) = &self.body else { return };
        let gone = self.sent.saturating_sub(self.head.len());
        let rest = range.start + gone..range.end;
        loan.copy_rest(gone, &mut pool.buffer_mut(index)[rest]);
        if loan.is_whole() {
            self.body = Pixels::Kept(pool.hold(index), range);
        }
    }
}
