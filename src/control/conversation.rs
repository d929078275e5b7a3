//! One conversation in the control protocol, over a Unix socket or standard input and output.
//!
//! What may take long (a stream, a scan) runs on a *lane*: a thread for each stream that is asked about at the moment,
//! so that it holds up nothing else, and what is asked of one stream is done in the order of asking. Everything else
//! is done at once, on the conversation's own thread.

use crate::control::operations::Caller;
use crate::error::{Error, Kind, Result};
use crate::limits;
use crate::metrics;
use crate::naming::{BENCH_PREFIX, normalized_segment_name};
use crate::os::poll;
use crate::os::threads::{lock, spawn};
use crate::wire::control::{Asked, Op, answer, parse_line};
use serde_json::Value;
use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// Who answers: a daemon.
pub trait Answers: Send + Sync + 'static {
    /// Carries out one operation.
    fn run(&self, caller: &Caller, op: Op) -> Result<Value>;
}

/// Between two looks at whether the conversation is over.
const TURN: Duration = Duration::from_millis(100);
/// Lanes of a caller who has gone end within this time, unless they wait for Redis: they look up ten times a second.
const LANES_END: Duration = Duration::from_secs(1);
/// Whoever takes no byte of an answer for so long has gone.
const ANSWER_STUCK: Duration = Duration::from_secs(5);
/// A pipe that is ready takes so much without waiting (PIPE_BUF).
const PIECE_BYTES: usize = 4_096;
/// Of the whole daemon: each is a thread.
static LANES_RUNNING: AtomicUsize = AtomicUsize::new(0);

/// What must be done in turn: everything about one stream, and scans.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Lane {
    Stream(String, String),
    Scan,
}

fn lane_of(op: &Op) -> Option<Lane> {
    // One stream has several spellings.
    let stream = |host: &str, shm: &str| {
        let name = normalized_segment_name(shm).unwrap_or_else(|_| shm.to_owned());
        Some(Lane::Stream(host.to_owned(), name))
    };
    match op {
        Op::GetRemoteShm(get) => stream(&get.hostname, &get.shm),
        Op::ReleaseRemoteShm { hostname, shm } => stream(hostname, shm),
        Op::BenchSegment { hostname, .. } => stream(hostname, BENCH_PREFIX),
        Op::Discover(_) => Some(Lane::Scan),
        _ => None,
    }
}

/// What waits behind the operation that a lane is at.
type Lanes = BTreeMap<Lane, VecDeque<(Value, Op)>>;

/// What the conversation and its lanes share.
struct Inner<A, W> {
    answers: Arc<A>,
    caller: Arc<Caller>,
    output: Mutex<W>,
    over: Box<dyn Fn() -> bool + Send + Sync>,
    lanes: Mutex<Lanes>,
}

impl<A: Answers, W: Write + AsFd + Send + 'static> Inner<A, W> {
    fn lanes(&self) -> MutexGuard<'_, Lanes> {
        lock(&self.lanes)
    }

    /// One line, whole: if it cannot be, the conversation ends.
    fn say(&self, id: &Value, result: &Result<Value>) -> io::Result<()> {
        let line = format!("{}\n", answer(id, result));
        let mut output = lock(&self.output);
        let said = self.write(&mut *output, line.as_bytes());
        if said.is_err() {
            self.caller.gone.set();
        }
        said
    }

    fn write(&self, output: &mut W, mut rest: &[u8]) -> io::Result<()> {
        let mut deadline = Instant::now() + ANSWER_STUCK;
        while !rest.is_empty() {
            if !poll::writable(output, TURN)? {
                if (self.over)() {
                    deadline = deadline.min(Instant::now()); // a daemon that stops waits for nobody who does not read
                }
                if self.caller.gone.is_set() || Instant::now() >= deadline {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                continue;
            }
            match output.write(&rest[..rest.len().min(PIECE_BYTES)]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => (rest, deadline) = (&rest[count..], Instant::now() + ANSWER_STUCK),
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn do_now(&self, id: &Value, op: Op) -> io::Result<()> {
        self.say(id, &self.answers.run(&self.caller, op))
    }

    /// Does it on its lane, after what is there already.
    fn do_later(self: &Arc<Self>, lane: Lane, id: Value, op: Op) -> io::Result<()> {
        let mut lanes = self.lanes();
        let waiting: usize = lanes.values().map(|queue| queue.len() + 1).sum();
        if waiting >= limits::CONTROL_LANES_MAX || LANES_RUNNING.load(Relaxed) >= limits::LANES_MAX {
            drop(lanes);
            let sentence = "Too many requests are not answered yet; wait for them.";
            return self.say(&id, &Err(Error::new(Kind::Os, sentence)));
        }
        if let Some(queue) = lanes.get_mut(&lane) {
            queue.push_back((id, op));
            return Ok(());
        }
        lanes.insert(lane.clone(), VecDeque::new());
        drop(lanes);
        let (inner, driven, first) = (Arc::clone(self), lane.clone(), (id.clone(), op));
        let (ending, ended) = (Arc::clone(self), lane.clone());
        let started = spawn(
            "dao-control-lane",
            self.caller.gone.clone(),
            move |_| inner.drive(&driven, first),
            move |said| ending.close(&ended, &format!("It failed: {said}.")),
        );
        match started {
            Ok(_) => Ok(()),
            Err(error) => {
                let why = format!("No thread for it: {error}.");
                self.close(&lane, &why);
                self.say(&id, &Err(Error::new(Kind::Os, why)))
            }
        }
    }

    /// A lane has ended by itself: what waits on it is told.
    fn close(&self, lane: &Lane, why: &str) {
        let waiting = self.lanes().remove(lane).unwrap_or_default();
        for (id, _) in waiting {
            let _ = self.say(&id, &Err(Error::new(Kind::Os, why)));
        }
    }

    fn drive(&self, lane: &Lane, first: (Value, Op)) {
        LANES_RUNNING.fetch_add(1, Relaxed);
        let _one_less = OneLess(&LANES_RUNNING);
        let mut next = Some(first);
        while let Some((id, op)) = next {
            if !self.caller.gone.is_set() {
                let _ = self.do_now(&id, op); // a failure has set `gone`
            }
            let mut lanes = self.lanes();
            next = lanes.get_mut(lane).and_then(VecDeque::pop_front);
            if next.is_none() {
                lanes.remove(lane);
            }
        }
    }

    /// Waits until every lane has ended, or for this long, or until `enough`.
    fn wait_for_lanes(&self, time: Option<Duration>, enough: impl Fn() -> bool) {
        let deadline = time.map(|time| Instant::now() + time);
        while !self.lanes().is_empty() && !enough() && deadline.is_none_or(|at| Instant::now() < at) {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Counts down when it goes, in a panic, too.
pub struct OneLess<'a>(pub &'a AtomicUsize);

impl Drop for OneLess<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// Reads lines and answers them until the other side ends, or `over` says so. What was asked before the other side
/// stopped sending is answered as long as it reads. Returns with no operation of this caller under way; his leases are
/// for who called this to end.
pub fn converse<A: Answers, R: Read + AsFd, W: Write + AsFd + Send + 'static>(
    mut input: R,
    output: W,
    reads_answers: &impl AsFd,
    answers: Arc<A>,
    caller: &Arc<Caller>,
    over: impl Fn() -> bool + Send + Sync + 'static,
) -> io::Result<()> {
    let over = Box::new(over);
    let inner = Arc::new(Inner {
        answers,
        caller: Arc::clone(caller),
        output: Mutex::new(output),
        over,
        lanes: Mutex::default(),
    });
    let result = listen(&inner, &mut input);
    if result.is_ok() {
        inner
            .wait_for_lanes(None, || (inner.over)() || caller.gone.is_set() || poll::deserted(reads_answers));
    }
    caller.gone.set();
    inner.wait_for_lanes(Some(LANES_END), || false);
    result
}

fn listen<A: Answers, R: Read + AsFd, W: Write + AsFd + Send + 'static>(
    inner: &Arc<Inner<A, W>>,
    input: &mut R,
) -> io::Result<()> {
    let mut line = Vec::new();
    let mut chunk = vec![0; 64 * 1024];
    let over = || (inner.over)() || inner.caller.gone.is_set();
    while !over() {
        if !poll::readable(input, TURN)? {
            continue;
        }
        let bytes = match input.read(&mut chunk) {
            Ok(0) if line.is_empty() => return Ok(()),
            Ok(0) => return on_line(inner, &line),
            Ok(count) => &chunk[..count],
            Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {
                continue;
            }
            Err(error) => return Err(error),
        };
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            line.extend_from_slice(part);
            if line.len() > limits::CONTROL_LINE_BYTES_MAX {
                metrics::CONTROL_LINES_REFUSED.add(1);
                let most = limits::CONTROL_LINE_BYTES_MAX;
                let sentence = format!("A line is longer than {most} bytes; the connection ends.");
                inner.say(&Value::Null, &Err(Error::new(Kind::Value, sentence)))?;
                return Err(io::ErrorKind::InvalidData.into());
            }
            if part.ends_with(b"\n") {
                if over() {
                    return Ok(());
                }
                on_line(inner, &line)?;
                line.clear();
            }
        }
    }
    Ok(())
}

fn on_line<A: Answers, W: Write + AsFd + Send + 'static>(
    inner: &Arc<Inner<A, W>>,
    line: &[u8],
) -> io::Result<()> {
    let text = String::from_utf8_lossy(line);
    if text.trim().is_empty() {
        return Ok(());
    }
    let Asked { id, op } = parse_line(text.trim());
    match op {
        Err(error) => {
            metrics::CONTROL_LINES_REFUSED.add(1);
            inner.say(&id, &Err(error))
        }
        Ok(op) => match lane_of(&op) {
            Some(lane) => inner.do_later(lane, id, op),
            None => inner.do_now(&id, op),
        },
    }
}
