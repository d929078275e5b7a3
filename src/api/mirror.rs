//! A mirror as a program holds it: frames out of it, frames into it, and its end.

use super::frame::{self, Element, Frame};
use super::{DaoServer, PATIENCE, Place};
use crate::bridge::backoff::{Backoff, Idle, Policy};
use crate::control::client::Connection;
use crate::control::operations::{self, Caller};
use crate::dtype::{DType, Shape};
use crate::error::{Error, Kind, Result};
use crate::limits;
use crate::os::clock;
use crate::shm::{Access, FrameMeta, OpenError, Outcome, Reader, Segment, WriteError, Writer};
use crate::wire::control::{Get, Op};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How a program waits for a frame: it should not take the core from the threads that bring it.
const FOLLOW: Policy = Policy {
    spins: 100,
    yields: 10,
    park_shortest: Duration::from_micros(50),
    park_longest: Duration::from_micros(800),
};
/// A segment that was replaced is noticed within so many looks at the counter: a `stat` is dearer than a look.
const LOOKS_A_STAT: u32 = 256;
/// Longest wait for a whole frame of a segment whose writer is at it whenever we look.
const WHOLE_FRAME: Duration = Duration::from_secs(2);
/// Between two looks whether the daemon beside us is still the one that knows our lease.
const LEASE_CHECK: Duration = Duration::from_secs(1);
/// Between two looks for a segment that is being made anew.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// What keeps the mirror there.
enum Lease {
    Inside(Caller),
    /// Ends with the connection, however that ends.
    Beside(Connection),
}

/// A mirror of a segment of another machine. Dropped, it is released: its file and semaphores go, unless others hold it.
///
/// It may be moved to another thread, and is used by one at a time; another one gets the same stream once more. If the
/// source gets another shape or type, so do the frames.
pub struct Mirror {
    server: DaoServer,
    /// `None`: released.
    lease: Option<Lease>,
    hostname: String,
    shm: String,
    path: PathBuf,
    bidirectional: bool,
    reader: Reader,
    writer: Option<Writer>,
    frame: Frame,
    /// The segment was replaced: all of the new one is news.
    replaced: bool,
    next_lease_check: Instant,
}

impl Mirror {
    pub(super) fn get(server: DaoServer, asked: Get) -> Result<Mirror> {
        let mut lease = match &server.0.place {
            Place::Inside(_) => Lease::Inside(Caller::new(true)),
            Place::Beside(control) => Lease::Beside(Connection::open(control)?),
        };
        let (hostname, shm, bidirectional) = (asked.hostname.clone(), asked.shm.clone(), asked.bidirectional);
        let patience = asked.timeout.min(limits::COMMAND_TIMEOUT_MAX) + PATIENCE;
        let there = call(&server, &mut lease, Op::GetRemoteShm(asked), patience)?;
        let path = PathBuf::from(there.get("path").and_then(Value::as_str).unwrap_or_default());
        let mut reader = open(&path, Instant::now() + WHOLE_FRAME).inspect_err(|_| {
            let _ = release(&server, &mut lease, &hostname, &shm);
        })?;
        let frame = blank(&reader);
        // What is there now is the newest frame, and not the next one.
        reader.pass_over();
        let lease = Some(lease);
        Ok(Mirror {
            server,
            lease,
            hostname,
            shm,
            path,
            bidirectional,
            reader,
            writer: None,
            frame,
            replaced: false,
            next_lease_check: Instant::now() + LEASE_CHECK,
        })
    }

    /// The owner of the source.
    pub fn hostname(&self) -> &str {
        &self.hostname
    }

    /// The source's name there.
    pub fn shm(&self) -> &str {
        &self.shm
    }

    /// The mirror's file, for other programs.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its axes in NumPy's order.
    pub fn shape(&self) -> Shape {
        self.reader.segment().spec().shape
    }

    /// The type of its elements.
    pub fn dtype(&self) -> DType {
        self.reader.segment().spec().dtype
    }

    /// The newest frame, seen before or not. Blocks for two seconds at most, and only if its writer is at it whenever we
    /// look.
    ///
    /// # Errors
    /// `Timeout`: no whole frame could be had. `Os`: the mirror is gone.
    pub fn latest(&mut self) -> Result<&Frame> {
        let deadline = Instant::now() + WHOLE_FRAME;
        if self.reader.segment().replaced() {
            self.open_again(deadline)?;
        }
        self.read(deadline, Reader::read_newest)?;
        Ok(&self.frame)
    }

    /// The next frame that was not given yet, waiting for it until a time-out. After [`DaoServer::get_remote_shm`] that is
    /// the first one to come. Polls: a short spin, then sleeps of 50 to 800 us.
    ///
    /// # Errors
    /// `Timeout`: none came. `Os`: the mirror is gone.
    pub fn wait_next(&mut self, timeout: Duration) -> Result<&Frame> {
        let deadline = Instant::now() + timeout.min(limits::COMMAND_TIMEOUT_MAX);
        self.read(deadline, Reader::read_next).map_err(|why| match why.kind {
            Kind::Timeout => {
                let seconds = timeout.as_secs_f64();
                let sentence =
                    format!("No new frame of '{}' of {} within {seconds} s.", self.shm, self.hostname);
                Error::new(Kind::Timeout, sentence)
            }
            _ => why,
        })?;
        Ok(&self.frame)
    }

    /// The frames to come, one after the other, each waited for until this time-out. Ends with the first error.
    pub fn frames(&mut self, timeout: Duration) -> Frames<'_> {
        Frames { mirror: self, timeout, ended: false }
    }

    /// Writes a frame: its elements, the last axis fastest. It goes into the owner's segment, and from there into all
    /// other mirrors of it. Gives its counter here. Does not wait for the owner.
    ///
    /// # Errors
    /// `Permission`: the mirror was not asked for as bidirectional. `Value`: another type or number of elements than
    /// the segment's. `Os`: the mirror is gone.
    pub fn write<T: Element>(&mut self, values: &[T]) -> Result<u64> {
        self.open_to_write()?;
        let dtype = self.writer.as_ref().map_or(self.dtype(), |writer| writer.segment().spec().dtype);
        frame::check::<T>(dtype)?;
        let mut bytes = Vec::with_capacity(values.len() * T::DTYPE.bytes());
        values.iter().for_each(|value| value.put_bytes(&mut bytes));
        self.write_bytes(&bytes)
    }

    /// Writes a frame as its bytes stand in the segment.
    ///
    /// # Errors
    /// As [`Mirror::write`].
    pub fn write_bytes(&mut self, bytes: &[u8]) -> Result<u64> {
        self.open_to_write()?;
        let written = match &mut self.writer {
            Some(writer) => writer.write(bytes),
            None => Err(WriteError::Lost),
        };
        written.map_err(|why| match why {
            WriteError::WrongSize { .. } => Error::new(Kind::Value, format!("Not written: {why}.")),
            why => self.gone(&why.to_string()),
        })
    }

    fn open_to_write(&mut self) -> Result<()> {
        if !self.bidirectional {
            let sentence = format!("The mirror of '{}' of {} goes one way.", self.shm, self.hostname);
            return Err(Error::new(Kind::Permission, sentence));
        }
        if self.writer.as_ref().is_none_or(|writer| writer.segment().replaced()) {
            let segment = Segment::open(&self.path, Access::ReadWrite);
            let writer = Writer::new(segment.map_err(|why| self.gone(&why.to_string()))?);
            self.writer = Some(writer.map_err(|why| self.gone(&why.to_string()))?);
        }
        Ok(())
    }

    /// Releases it and says what came of that, which dropping does not. Returns how many others hold it.
    ///
    /// # Errors
    /// `Connection`: the daemon beside this process does not answer; then the lease has ended with the connection.
    pub fn release(mut self) -> Result<u64> {
        self.give_up()
    }

    fn give_up(&mut self) -> Result<u64> {
        match self.lease.take() {
            Some(mut lease) => release(&self.server, &mut lease, &self.hostname, &self.shm),
            None => Ok(0),
        }
    }

    /// The daemon beside us may have been started anew: our lease is asked for again, before it runs out there.
    fn keep_lease(&mut self) {
        let Some(Lease::Beside(connection)) = &mut self.lease else { return };
        if Instant::now() < self.next_lease_check {
            return;
        }
        self.next_lease_check = Instant::now() + LEASE_CHECK;
        let Place::Beside(control) = &self.server.0.place else { return };
        if connection.is_closed()
            && let Ok(mut again) = Connection::open(control)
        {
            let asked = Get {
                lease: true,
                bidirectional: self.bidirectional,
                timeout: LEASE_CHECK,
                ..Get::new(&self.hostname, &self.shm)
            };
            if again.call(&Op::GetRemoteShm(asked), PATIENCE).is_ok() {
                *connection = again;
            }
        }
    }

    fn gone(&self, why: &str) -> Error {
        Error::new(Kind::Os, format!("Mirror {}: {why}.", self.path.display()))
    }

    /// Reads into our frame, opening the segment again when another one is in its place.
    fn read(&mut self, deadline: Instant, one: fn(&mut Reader, &mut [u8]) -> Outcome) -> Result<()> {
        let mut backoff = Backoff::new(FOLLOW);
        let mut looks = 0;
        loop {
            let read = if self.replaced { Reader::read_newest } else { one };
            match read(&mut self.reader, &mut self.frame.bytes) {
                Outcome::Frame { meta, lapped, .. } => {
                    (self.frame.meta, self.frame.lapped, self.replaced) = (meta, lapped, false);
                    return Ok(());
                }
                Outcome::Changed | Outcome::Lost => self.open_again(deadline)?,
                Outcome::Nothing | Outcome::Busy => {}
            }
            if Instant::now() >= deadline {
                return Err(Error::new(Kind::Timeout, format!("No whole frame of {}.", self.path.display())));
            }
            match backoff.idle() {
                Idle::Spin => std::hint::spin_loop(),
                Idle::Yield => std::thread::yield_now(),
                Idle::Park(time) => clock::sleep(time),
            }
            looks += 1;
            if looks % LOOKS_A_STAT == 0 {
                self.keep_lease();
                if self.reader.segment().replaced() {
                    self.open_again(deadline)?;
                }
            }
        }
    }

    fn open_again(&mut self, deadline: Instant) -> Result<()> {
        self.reader = open(&self.path, deadline)?;
        self.frame = blank(&self.reader);
        self.replaced = true;
        Ok(())
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        // A daemon that does not answer, or has stopped, has ended the lease by itself.
        let _ = self.give_up();
    }
}

/// The frames of a [`Mirror`] as they come.
pub struct Frames<'a> {
    mirror: &'a mut Mirror,
    timeout: Duration,
    ended: bool,
}

impl Iterator for Frames<'_> {
    type Item = Result<Frame>;

    fn next(&mut self) -> Option<Result<Frame>> {
        if self.ended {
            return None;
        }
        let next = self.mirror.wait_next(self.timeout).cloned();
        self.ended = next.is_err();
        Some(next)
    }
}

fn call(server: &DaoServer, lease: &mut Lease, op: Op, patience: Duration) -> Result<Value> {
    match lease {
        Lease::Inside(caller) => operations::run(&*server.0.shared()?, caller, op),
        Lease::Beside(connection) => connection.call(&op, patience),
    }
}

fn release(server: &DaoServer, lease: &mut Lease, hostname: &str, shm: &str) -> Result<u64> {
    let answer = match lease {
        Lease::Inside(caller) => operations::release_lease(&*server.0.shared()?, caller, hostname, shm)?,
        Lease::Beside(connection) => {
            let op = Op::ReleaseRemoteShm { hostname: hostname.to_owned(), shm: shm.to_owned() };
            connection.call(&op, PATIENCE)?
        }
    };
    Ok(answer.get("held_by").and_then(Value::as_u64).unwrap_or(0))
}

/// Opens the mirror, which may be about to be made anew.
fn open(path: &Path, deadline: Instant) -> Result<Reader> {
    loop {
        match Segment::open(path, Access::Read) {
            Ok(segment) => return Ok(Reader::new(segment)),
            Err(why) if Instant::now() >= deadline => {
                let kind = if why == OpenError::NotThere { Kind::Os } else { Kind::Timeout };
                return Err(Error::new(kind, format!("Mirror {}: {why}.", path.display())));
            }
            Err(_) => clock::sleep(LOOK_AGAIN),
        }
    }
}

/// No frame yet, with room for one.
fn blank(reader: &Reader) -> Frame {
    let spec = reader.segment().spec();
    let (shape, dtype) = (spec.shape, spec.dtype);
    Frame { shape, dtype, meta: FrameMeta::default(), lapped: 0, bytes: vec![0; spec.frame_bytes()] }
}
