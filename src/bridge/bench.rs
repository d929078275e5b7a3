//! What it costs a publisher to send a frame, beside what the copy alone and a bare socket cost: measured in one
//! process, over loopback, in turns, so that a noisy machine is noisy for all of them.

use crate::bridge::origins::Origins;
use crate::bridge::outlet::Outlet;
use crate::bridge::publisher::Publisher;
use crate::bridge::worker::Worker;
use crate::dtype::{DType, Shape};
use crate::error::{Error, Kind, Result};
use crate::naming::{TOPIC_DAO, TOPIC_PYTHON, segment_path};
use crate::os::threads::Stop;
use crate::shm::{self, Access, Layout, Reader, Segment, SegmentSpec, Writer};
use std::fmt::Display;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Turns of each measurement; the median turn counts.
const TURNS: usize = 7;
/// Frames of a turn.
const FRAMES: usize = 400;
/// Between two frames: as of a camera, so that queues are empty.
const PERIOD: Duration = Duration::from_micros(500);
/// How long a subscriber may take to be seen.
const SUBSCRIBED_WITHIN: Duration = Duration::from_secs(10);

/// One row of the table: the publishing thread's time for one frame, microseconds, of the median turn.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct Row {
    pub what: &'static str,
    pub p50_us: f64,
    pub p99_us: f64,
}

fn failed(what: &'static str) -> impl Fn(&dyn Display) -> Error {
    move |why| Error::new(Kind::Os, format!("The benchmark cannot {what}: {why}."))
}

/// A directory and a segment that go when it is dropped.
struct Place {
    directory: PathBuf,
    segment: PathBuf,
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = shm::remove(&self.segment);
        let _ = std::fs::remove_dir(&self.directory);
    }
}

/// Measures frames of this many bytes. Takes about ten seconds, or ends with an error once it is told to stop.
pub fn publishing(frame_bytes: u32, stop: &Stop) -> Result<Vec<Row>> {
    let name = format!("publishing{}", std::process::id());
    let directory = std::env::temp_dir().join(format!("daoserver-{name}"));
    std::fs::create_dir(&directory).map_err(|why| failed("make its directory")(&why))?;
    let place = Place { segment: segment_path(&directory, &name), directory };
    let shape = Shape::new(&[frame_bytes]).map_err(|why| Error::new(Kind::Value, why))?;
    let spec = SegmentSpec { shape, dtype: DType::U8, layout: Layout::Fifo, depth: 1, keywords: 0 };
    let segment = shm::create(&place.segment, &spec, &[]).map_err(|why| failed("make its segment")(&why))?;
    let mut writer = Writer::new(segment).map_err(|why| failed("write its segment")(&why))?;
    let mut turns: [Vec<Row>; 4] = Default::default();
    for _ in 0..TURNS {
        turns[0].push(copy(&place, &mut writer, stop)?);
        turns[1].push(bare_socket(frame_bytes, stop)?);
        turns[2].push(publisher(&place, &mut writer, "our wire, one subscriber", TOPIC_DAO, stop)?);
        turns[3].push(publisher(&place, &mut writer, "Python's wire, one subscriber", TOPIC_PYTHON, stop)?);
    }
    Ok(turns.into_iter().filter_map(median_turn).collect())
}

fn median_turn(mut turns: Vec<Row>) -> Option<Row> {
    turns.sort_by(|a, b| a.p50_us.total_cmp(&b.p50_us));
    turns.get(turns.len() / 2).copied()
}

fn row(what: &'static str, mut times_us: Vec<f64>) -> Row {
    times_us.sort_by(f64::total_cmp);
    let at = |share: f64| times_us.get((times_us.len() as f64 * share) as usize).copied().unwrap_or(f64::NAN);
    Row { what, p50_us: at(0.5), p99_us: at(0.99) }
}

/// Calls `frame` once a period and times what it says it took.
fn paced(what: &'static str, stop: &Stop, mut frame: impl FnMut() -> Result<Duration>) -> Result<Row> {
    let mut times_us = Vec::with_capacity(FRAMES);
    for _ in 0..FRAMES {
        std::thread::sleep(PERIOD);
        if stop.is_set() {
            return Err(Error::new(Kind::Os, "The bench was interrupted."));
        }
        times_us.push(frame()?.as_secs_f64() * 1e6);
    }
    Ok(row(what, times_us))
}

fn open(place: &Place) -> Result<Reader> {
    let segment =
        Segment::open(&place.segment, Access::Read).map_err(|why| failed("open its segment")(&why))?;
    Ok(Reader::new(segment))
}

/// The floor: one checked copy out of the segment.
fn copy(place: &Place, writer: &mut Writer, stop: &Stop) -> Result<Row> {
    let mut reader = open(place)?;
    let mut buffer = vec![0; reader.segment().spec().frame_bytes()];
    let pixels = buffer.clone();
    paced("one copy out of the segment", stop, || {
        writer.write(&pixels).map_err(|why| failed("write a frame")(&why))?;
        let begun = Instant::now();
        reader.read_next(&mut buffer);
        Ok(begun.elapsed())
    })
}

/// Takes everything that comes, on a thread of its own, until dropped.
struct Subscriber {
    stop: Stop,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Subscriber {
    fn new(context: &zmq::Context, port: u16, topic: &'static str) -> Result<Subscriber> {
        let socket = context.socket(zmq::SUB).map_err(|why| failed("open a socket")(&why))?;
        let connected = socket
            .set_subscribe(topic.as_bytes())
            .and_then(|()| socket.set_rcvtimeo(100))
            .and_then(|()| socket.connect(&format!("tcp://127.0.0.1:{port}")));
        connected.map_err(|why| failed("connect")(&why))?;
        let stop = Stop::new();
        let told = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut message = zmq::Message::new();
            while !told.is_set() {
                let _ = socket.recv(&mut message, 0); // nothing for a while is no fault
            }
        });
        Ok(Subscriber { stop, thread: Some(thread) })
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        self.stop.set();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A bare PUB socket that sends as many bytes, which libzmq copies.
fn bare_socket(frame_bytes: u32, stop: &Stop) -> Result<Row> {
    let context = zmq::Context::new();
    let socket = context.socket(zmq::PUB).map_err(|why| failed("open a socket")(&why))?;
    socket.bind("tcp://127.0.0.1:*").map_err(|why| failed("bind a port")(&why))?;
    let endpoint = socket.get_last_endpoint().ok().and_then(|text| text.ok()).unwrap_or_default();
    let port = endpoint.rsplit(':').next().and_then(|text| text.trim_end_matches('\0').parse().ok());
    let _subscriber = Subscriber::new(&context, port.unwrap_or(0), "")?;
    std::thread::sleep(Duration::from_millis(200)); // a PUB socket does not say who has subscribed
    let bytes = vec![0u8; frame_bytes as usize];
    paced("bare libzmq PUB, one subscriber", stop, || {
        let begun = Instant::now();
        socket.send(bytes.as_slice(), 0).map_err(|why| failed("send")(&why))?;
        Ok(begun.elapsed())
    })
}

/// Our publisher, from the frame in the segment to the end of the send.
fn publisher(
    place: &Place,
    writer: &mut Writer,
    what: &'static str,
    topic: &'static str,
    stop: &Stop,
) -> Result<Row> {
    let context = zmq::Context::new();
    let frame_bytes = writer.segment().spec().frame_bytes();
    let outlet = Outlet::bind(Ipv4Addr::LOCALHOST, 20_000..32_000, frame_bytes, false, Vec::new())
        .map_err(|why| failed("bind a port")(&why))?;
    let (mut publisher, started) = Publisher::new(&place.segment, outlet, Arc::new(Origins::default()), None)
        .map_err(|why| failed("open its segment")(&why))?;
    let _subscriber = Subscriber::new(&context, started.port, topic)?;
    let work = |publisher: &mut Publisher| publisher.do_work().map_err(|why| failed("publish")(&why));
    let deadline = Instant::now() + SUBSCRIBED_WITHIN;
    while work(&mut publisher)? == 0 {
        if Instant::now() > deadline {
            return Err(Error::new(Kind::Timeout, "The benchmark's subscriber was not seen."));
        }
        std::thread::yield_now();
    }
    let pixels = vec![0; frame_bytes];
    paced(what, stop, || {
        writer.write(&pixels).map_err(|why| failed("write a frame")(&why))?;
        let begun = Instant::now();
        while work(&mut publisher)? == 0 {}
        Ok(begun.elapsed())
    })
}
