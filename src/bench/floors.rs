//! What the machine can do without us: a copy in memory, a bare TCP hop, a bare libzmq hop.
//!
//! A hop is two threads of this process on one clock. It does the copies that the daemons do: out of memory into a
//! message, and at the other end out of what was received into memory. Its time runs from before the first copy to after
//! the last. Frames carry their time in their first eight bytes and their number in the next eight.

use super::daemons::{failed, go_on};
use super::measure::{Pacer, WARM_UP_FRAMES};
use crate::error::{Error, Kind, Result};
use crate::limits;
use crate::os::threads::Stop;
use crate::os::{clock, scheduling, tcp};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A header as long as ours stands before each frame.
const HEADER_BYTES: usize = 128;
/// How long a subscriber may take to be seen.
const SUBSCRIBED_WITHIN: Duration = Duration::from_secs(5);

/// What a floor is asked for.
#[derive(Clone, Copy)]
#[allow(missing_docs)]
pub struct Ask<'a> {
    pub frame_bytes: usize,
    /// Frames a second; infinity: one after the other.
    pub rate_hz: f64,
    pub time: Duration,
    pub stop: &'a Stop,
}

/// How the ends of a TCP hop wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Waiting {
    Spinning,
    Blocking,
}

/// What a hop found.
pub struct Hop {
    /// One way, each frame.
    pub run_us: Vec<f64>,
    /// Frames that arrived a second.
    pub rate_hz: f64,
}

fn mark(frame: &mut [u8], number: u64) {
    frame[..8].copy_from_slice(&clock::monotonic_ns().to_ne_bytes());
    frame[8..16].copy_from_slice(&number.to_ne_bytes());
}

/// Time since the frame was marked, and its number.
fn marked(frame: &[u8]) -> (f64, u64) {
    let eight = |at: usize| <[u8; 8]>::try_from(&frame[at..at + 8]).unwrap_or_default();
    let since_ns = clock::monotonic_ns() - i64::from_ne_bytes(eight(0));
    (since_ns as f64 / 1e3, u64::from_ne_bytes(eight(8)))
}

/// Calls `send` with each frame, marked, when it is due. The first ones are not counted and have the number 0.
fn source(ask: Ask, mut send: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let mut frame = vec![1; ask.frame_bytes];
    // Warm-up frames are paced even where the others are not.
    let mut pacer = Pacer::new(ask.rate_hz.min(1_000.0));
    for _ in 0..WARM_UP_FRAMES {
        pacer.wait();
        mark(&mut frame, 0);
        send(&frame)?;
    }
    let mut pacer = Pacer::new(ask.rate_hz);
    let deadline = Instant::now() + ask.time;
    let mut number = 0;
    loop {
        pacer.wait();
        if Instant::now() > deadline {
            return Ok(());
        }
        go_on(ask.stop)?;
        number += 1;
        mark(&mut frame, number);
        send(&frame)?;
    }
}

/// What a receiver has seen.
struct Sink {
    memory: Vec<u8>,
    run_us: Vec<f64>,
    first: Option<Instant>,
    last: Instant,
}

impl Sink {
    fn new(frame_bytes: usize) -> Sink {
        let memory = vec![1; frame_bytes];
        Sink { memory, run_us: Vec::with_capacity(1 << 16), first: None, last: Instant::now() }
    }

    /// The last copy, and the end of the time.
    fn take(&mut self, frame: &[u8]) {
        self.memory.copy_from_slice(frame);
        let (since_us, number) = marked(std::hint::black_box(&self.memory));
        if number > 0 {
            self.last = Instant::now();
            self.first.get_or_insert(self.last);
            self.run_us.push(since_us);
        }
    }

    fn hop(self) -> Hop {
        let spans = self.run_us.len().saturating_sub(1) as f64;
        let elapsed_s = self.first.map_or(0.0, |first| (self.last - first).as_secs_f64());
        Hop { run_us: self.run_us, rate_hz: if spans > 0.0 { spans / elapsed_s } else { 0.0 } }
    }
}

/// One copy of the frame from memory to memory.
pub fn memory_copy(ask: Ask) -> Result<Hop> {
    let mut sink = Sink::new(ask.frame_bytes);
    source(ask, |frame| {
        sink.take(frame);
        Ok(())
    })?;
    Ok(sink.hop())
}

/// Runs the receiver on a thread of its own while the sender runs on this one.
fn both(receive: impl FnOnce() -> Result<Hop> + Send, send: impl FnOnce() -> Result<()>) -> Result<Hop> {
    std::thread::scope(|scope| {
        let receiver = std::thread::Builder::new().name("dao-bench-floor".into()).spawn_scoped(scope, || {
            scheduling::prefer_latency();
            receive()
        });
        let receiver = receiver.map_err(|why| failed("start a thread")(&why))?;
        let sent = send();
        let received =
            receiver.join().map_err(|_| Error::new(Kind::Os, "A thread of the bench panicked."))?;
        sent.and(received)
    })
}

/// One TCP connection over loopback.
pub fn tcp_hop(ask: Ask, waiting: Waiting) -> Result<Hop> {
    let wrong = |why: io::Error| failed("measure a bare TCP hop")(&why);
    let listener = TcpListener::bind("127.0.0.1:0").map_err(wrong)?;
    tcp::send_at_once(&listener); // as a publisher's
    let receiver = TcpStream::connect(listener.local_addr().map_err(wrong)?).map_err(wrong)?;
    let sender = listener.accept().map_err(wrong)?.0;
    let (smallest, largest) = limits::SOCKET_BUFFER_BYTES;
    for stream in [&sender, &receiver] {
        tcp::prepare(stream, (2 * ask.frame_bytes).clamp(smallest, largest)).map_err(wrong)?;
        stream.set_nonblocking(waiting == Waiting::Spinning).map_err(wrong)?;
    }
    let receive = move || -> Result<Hop> {
        let mut sink = Sink::new(ask.frame_bytes);
        let mut message = vec![1; HEADER_BYTES + ask.frame_bytes];
        while whole(&mut message, |rest| (&receiver).read(rest)).map_err(wrong)? {
            sink.take(&message[HEADER_BYTES..]);
        }
        Ok(sink.hop())
    };
    let send = move || {
        let mut message = vec![1; HEADER_BYTES + ask.frame_bytes];
        // Dropped at its end, with which the receiver ends.
        let sender = sender;
        source(ask, |frame| {
            message[HEADER_BYTES..].copy_from_slice(frame);
            whole(&mut message, |rest| (&sender).write(rest)).map_err(wrong)?;
            Ok(())
        })
    };
    both(receive, send)
}

/// Reads or writes all of it, spinning where the socket does not block. `false`: the end, before the first byte.
fn whole(bytes: &mut [u8], mut some: impl FnMut(&mut [u8]) -> io::Result<usize>) -> io::Result<bool> {
    let mut done = 0;
    while done < bytes.len() {
        match some(&mut bytes[done..]) {
            Ok(0) if done == 0 => return Ok(false),
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(count) => done += count,
            Err(why) if why.kind() == ErrorKind::WouldBlock => std::hint::spin_loop(),
            Err(why) if why.kind() == ErrorKind::Interrupted => {}
            Err(why) => return Err(why),
        }
    }
    Ok(true)
}

/// One PUB and one SUB socket over TCP and loopback.
pub fn zmq_hop(ask: Ask) -> Result<Hop> {
    let wrong = |why: zmq::Error| failed("measure a bare libzmq hop")(&why);
    let context = zmq::Context::new();
    let (smallest, largest) = limits::SOCKET_BUFFER_BYTES;
    let buffer_bytes = (2 * ask.frame_bytes).clamp(smallest, largest) as i32;
    let socket = |kind| -> std::result::Result<zmq::Socket, zmq::Error> {
        let socket = context.socket(kind)?;
        socket.set_linger(0)?;
        socket.set_sndhwm(16)?;
        socket.set_rcvhwm(16)?;
        socket.set_sndbuf(buffer_bytes)?;
        socket.set_rcvbuf(buffer_bytes)?;
        Ok(socket)
    };
    let sender = socket(zmq::PUB).map_err(wrong)?;
    sender.bind("tcp://127.0.0.1:*").map_err(wrong)?;
    let endpoint = sender.get_last_endpoint().map_err(wrong)?.unwrap_or_default();
    let receiver = socket(zmq::SUB).map_err(wrong)?;
    receiver.set_rcvtimeo(20).map_err(wrong)?;
    receiver.set_subscribe(b"").map_err(wrong)?;
    receiver.connect(endpoint.trim_end_matches('\0')).map_err(wrong)?;
    let (subscribed, over) = (AtomicBool::new(false), AtomicBool::new(false));
    let receive = || -> Result<Hop> {
        // Moved, since a socket is one thread's.
        let receiver = receiver;
        let mut sink = Sink::new(ask.frame_bytes);
        let mut message = zmq::Message::new();
        loop {
            match receiver.recv(&mut message, 0) {
                Ok(()) if message.len() == ask.frame_bytes => {
                    subscribed.store(true, Ordering::Relaxed);
                    sink.take(&message);
                }
                Ok(()) | Err(zmq::Error::EINTR) => {}
                Err(zmq::Error::EAGAIN) if over.load(Ordering::Relaxed) => return Ok(sink.hop()),
                Err(zmq::Error::EAGAIN) => {}
                Err(why) => return Err(wrong(why)),
            }
        }
    };
    let send = || -> Result<()> {
        let send = |frame: &[u8]| sender.send(frame, 0).map_err(wrong); // copies it into a message
        let sent = (|| {
            // A PUB socket does not say who has subscribed.
            let deadline = Instant::now() + SUBSCRIBED_WITHIN;
            while !subscribed.load(Ordering::Relaxed) {
                send(&vec![0; ask.frame_bytes])?;
                ask.stop.wait(Duration::from_millis(2));
                go_on(ask.stop)?;
                if Instant::now() > deadline {
                    return Err(Error::new(Kind::Timeout, "The bench's libzmq subscriber gets nothing."));
                }
            }
            source(ask, send)
        })();
        over.store(true, Ordering::Relaxed);
        sent
    };
    both(receive, send)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_floor_is_measured_and_ends_when_told() {
        let stop = Stop::new();
        let ask = Ask { frame_bytes: 3_000, rate_hz: 1_000.0, time: Duration::from_millis(50), stop: &stop };
        for (_, floor) in crate::bench::FLOORS {
            let hop = floor(ask).unwrap();
            assert!(!hop.run_us.is_empty() && hop.run_us.iter().all(|us| *us > 0.0));
            assert!(hop.rate_hz <= 1_500.0);
        }
        let flat_out = tcp_hop(Ask { rate_hz: f64::INFINITY, ..ask }, Waiting::Blocking).unwrap();
        assert!(flat_out.run_us.len() > 50);
        stop.set();
        for (_, floor) in crate::bench::FLOORS {
            assert!(floor(ask).is_err());
        }
    }

    #[test]
    fn our_build_of_libzmq_names_its_threads_and_uses_eventfd() {
        let context = zmq::Context::new();
        let socket = context.socket(zmq::PUB).unwrap();
        socket.set_tcp_keepalive(1).unwrap();
        socket.bind("tcp://127.0.0.1:*").unwrap();
        // The thread names itself once it runs.
        let named = || {
            let tasks = std::fs::read_dir("/proc/self/task").unwrap();
            let names = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
            names.into_iter().any(|name| name.starts_with("ZMQbg"))
        };
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while !named() {
            assert!(std::time::Instant::now() < deadline, "no thread named ZMQbg: see .cargo/config.toml");
            std::thread::yield_now();
        }
        let eventfd = std::fs::read_dir("/proc/self/fd")
            .unwrap()
            .filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok())
            .any(|target| target.to_string_lossy().contains("eventfd"));
        assert!(eventfd, "the defines in .cargo/config.toml did not take");
    }
}
