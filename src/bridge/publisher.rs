//! One segment to the network: watches its counter, copies each frame once, sends that copy to every subscriber.

use crate::bridge::sockets::{PubSocket, Sent, queue_frames};
use crate::bridge::stats::{PublisherStats, RateMeter};
use crate::bridge::worker::{Ended, Worker};
use crate::dtype::{DType, Shape};
use crate::limits;
use crate::naming::TOPIC_DAO;
use crate::os::clock;
use crate::os::zmq_ext::SendPool;
use crate::shm::{Access, FrameMeta, OpenError, Outcome, Reader, Segment};
use crate::wire::frame::{FrameHeader, FrameKind, HEADER_BYTES};
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// Where the pixels begin in a buffer: behind the header, on a cache line of their own.
const PIXEL_OFFSET: usize = 192;
const _: () = assert!(PIXEL_OFFSET >= HEADER_BYTES && PIXEL_OFFSET.is_multiple_of(64));

/// New subscribers are noticed within this time, however idle the stream.
const SUBSCRIPTION_POLL_NS: i64 = 5_000_000;
/// The segment's file is looked at, for having been replaced, so often.
const FILE_CHECK_NS: i64 = 200_000_000;

/// The publisher of one segment. Runs on its `dao-pub-<name>` thread alone.
pub struct Publisher {
    reader: Reader,
    socket: PubSocket,
    pool: SendPool,
    stats: Arc<PublisherStats>,
    /// What every header of this publisher has in common; the rest is of the frame sent last.
    header: FrameHeader,
    keywords: Vec<u8>,
    keywords_now: Vec<u8>,
    /// A new subscriber waits for the current frame.
    resend: bool,
    /// Keywords go along with a frame when they have changed, and now and then all the same: a frame may get lost.
    next_keywords_ns: i64,
    /// Nobody has subscribed since the last frame that was copied.
    away: bool,
    /// No buffer was free for a frame since the last that was copied.
    starved: bool,
    rate: RateMeter,
    next_subscription_poll_ns: i64,
    next_file_check_ns: i64,
    next_alive_ns: i64,
}

/// What the central state and the connection records need to know of a publisher that has started.
#[derive(Clone)]
#[allow(missing_docs)]
pub struct Started {
    pub port: u16,
    pub boot_id: u64,
    pub shape: Shape,
    pub dtype: DType,
    pub keywords: u16,
    pub stats: Arc<PublisherStats>,
}

/// Why a publisher could not be made.
#[derive(Debug)]
pub enum StartError {
    /// The segment.
    Segment(OpenError),
    /// The socket, with the ports that were tried.
    Socket(String),
}

impl std::fmt::Display for StartError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            StartError::Segment(error) => error.fmt(f),
            StartError::Socket(why) => f.write_str(why),
        }
    }
}

impl Publisher {
    /// Opens the segment at `path` and binds the first free port.
    pub fn new(
        context: &zmq::Context,
        path: &Path,
        ip: Ipv4Addr,
        ports: impl Iterator<Item = u16>,
    ) -> Result<(Publisher, Started), StartError> {
        let segment = Segment::open(path, Access::Read).map_err(StartError::Segment)?;
        let spec = segment.spec().clone();
        let frame_bytes = spec.frame_bytes();
        let socket = PubSocket::bind(context, ip, ports, frame_bytes).map_err(StartError::Socket)?;
        let queue = queue_frames(frame_bytes);
        let header = FrameHeader {
            kind: FrameKind::Frame,
            on_subscription: false,
            keywords_follow: false,
            dtype: spec.dtype,
            shape: spec.shape,
            keywords: spec.keywords,
            boot_id: clock::random_u64(),
            seq: 0,
            cnt0: 0,
            cnt1: 0,
            cnt2: 0,
            atime_ns: 0,
            seen_ns: 0,
            sent_ns: 0,
            origin: 0,
            lapped_total: 0,
            queue_full_total: 0,
            pixel_offset: PIXEL_OFFSET as u32,
        };
        let stats = Arc::new(PublisherStats::default());
        let started = Started {
            port: socket.port(),
            boot_id: header.boot_id,
            shape: spec.shape,
            dtype: spec.dtype,
            keywords: spec.keywords,
            stats: Arc::clone(&stats),
        };
        let keyword_bytes = usize::from(spec.keywords) * 120;
        let publisher = Publisher {
            reader: Reader::new(segment),
            socket,
            pool: SendPool::new(queue + 2, 4 * (queue + 2), PIXEL_OFFSET + frame_bytes),
            stats,
            header,
            keywords: vec![0; keyword_bytes],
            keywords_now: vec![0; keyword_bytes],
            resend: false,
            next_keywords_ns: 0,
            away: true,
            starved: false,
            rate: RateMeter::default(),
            next_subscription_poll_ns: 0,
            next_file_check_ns: 0,
            next_alive_ns: 0,
        };
        Ok((publisher, started))
    }

    /// Copies a frame and sends it. `current`: the newest frame, seen before or not; else the next unseen one.
    fn copy_and_send(&mut self, current: bool) -> Result<usize, Ended> {
        let Some(index) = self.pool.acquire() else {
            // Every buffer is in some stuck subscriber's queue: nobody gets this frame.
            self.starved = true;
            return Ok(0);
        };
        let buffer = self.pool.buffer_mut(index);
        let pixels = &mut buffer[PIXEL_OFFSET..];
        let outcome = if current { self.reader.read_newest(pixels) } else { self.reader.read_next(pixels) };
        let (meta, lapped, restarted) = match outcome {
            Outcome::Frame { meta, lapped, restarted } => (meta, lapped, restarted),
            Outcome::Nothing => return Ok(0),
            Outcome::Busy => {
                self.stats.busy.fetch_add(1, Relaxed);
                return Ok(0);
            }
            Outcome::Changed => return Err(Ended::ShapeChanged),
            Outcome::Lost => return Err(Ended::SegmentGone),
        };
        let seen_ns = clock::realtime_ns();
        let seen_before = current && self.header.seq > 0 && !restarted && meta.cnt0 == self.header.cnt0;
        if current {
            // What was written while nobody listened has its numbers all the same: who was cut off can tell.
            self.header.seq += lapped;
        } else {
            self.count_missed(lapped);
        }
        // The last look, a little later: a writer that overtook the copy and was stopped between its two marks may
        // have gone on by now. Rather a frame too few than one that is torn.
        if !self.reader.still_whole() {
            self.stats.busy.fetch_add(1, Relaxed);
            if !current {
                self.count_missed(1);
            }
            return Ok(0);
        }
        self.send(index, &meta, seen_ns, seen_before, current)
    }

    /// Books frames that the source wrote and we could not have. Where the queue was to blame they keep their
    /// sequence numbers, so that every receiver can tell.
    fn count_missed(&mut self, frames: u64) {
        if std::mem::take(&mut self.starved) {
            self.header.seq += frames;
            self.count_queue_full(frames);
        } else {
            self.header.lapped_total += frames;
            self.stats.lapped.fetch_add(frames, Relaxed);
        }
    }

    fn send(
        &mut self,
        index: usize,
        meta: &FrameMeta,
        seen_ns: i64,
        seen_before: bool,
        current: bool,
    ) -> Result<usize, Ended> {
        let segment = self.reader.segment();
        segment.copy_keywords_raw(&mut self.keywords_now);
        let now_ns = clock::monotonic_ns();
        let keywords_due =
            self.keywords != self.keywords_now || self.resend || now_ns >= self.next_keywords_ns;
        self.header = FrameHeader {
            kind: FrameKind::Frame,
            on_subscription: current,
            keywords_follow: keywords_due && !self.keywords.is_empty(),
            seq: self.header.seq + u64::from(!seen_before),
            cnt0: meta.cnt0,
            cnt1: meta.cnt1,
            cnt2: meta.cnt2,
            atime_ns: meta.atime_ns,
            seen_ns,
            sent_ns: clock::realtime_ns(),
            ..self.header
        };
        let buffer = self.pool.buffer_mut(index);
        if let Some(head) = buffer.first_chunk_mut() {
            self.header.encode(head);
        }
        let end = PIXEL_OFFSET + self.header.pixel_bytes();
        let keywords = if self.header.keywords_follow {
            self.keywords.copy_from_slice(&self.keywords_now);
            self.next_keywords_ns = now_ns + limits::ALIVE_INTERVAL.as_nanos() as i64;
            Some(self.keywords.as_slice())
        } else {
            None
        };
        let sent = self.socket.send(TOPIC_DAO, &self.pool, index, 0..end, keywords);
        match sent.map_err(|error| Ended::Socket(error.to_string()))? {
            Sent::ToAll => {}
            Sent::NotToAll => self.count_queue_full(1),
        }
        (self.resend, self.away) = (false, false);
        self.next_alive_ns = now_ns + limits::ALIVE_INTERVAL.as_nanos() as i64;
        if seen_before {
            self.stats.resent.fetch_add(1, Relaxed);
        } else {
            self.stats.frames.fetch_add(1, Relaxed);
        }
        Ok(1)
    }

    fn count_queue_full(&mut self, frames: u64) {
        self.header.queue_full_total += frames;
        self.stats.queue_full.fetch_add(frames, Relaxed);
    }

    /// What is due by the clock, whether frames come or not.
    fn housekeeping(&mut self, now_ns: i64) -> Result<(), Ended> {
        if now_ns >= self.next_subscription_poll_ns {
            self.next_subscription_poll_ns = now_ns + SUBSCRIPTION_POLL_NS;
            self.resend |= self.socket.take_subscriptions().dao;
        }
        if now_ns >= self.next_file_check_ns {
            self.next_file_check_ns = now_ns + FILE_CHECK_NS;
            let segment = self.reader.segment();
            if segment.lost() || segment.replaced() {
                return Err(Ended::SegmentGone);
            }
            if segment.shape_changed() {
                return Err(Ended::ShapeChanged);
            }
            self.rate.tick(now_ns, self.stats.frames.load(Relaxed), &self.stats.rate);
        }
        if now_ns >= self.next_alive_ns {
            self.next_alive_ns = now_ns + limits::ALIVE_INTERVAL.as_nanos() as i64;
            if self.socket.subscribed().dao {
                let alive = FrameHeader {
                    kind: FrameKind::Alive,
                    on_subscription: false,
                    keywords_follow: false,
                    ..self.header
                };
                let mut message = [0; PIXEL_OFFSET];
                if let Some(head) = message.first_chunk_mut() {
                    alive.encode(head);
                }
                let sent = self.socket.send_small(TOPIC_DAO, &message);
                sent.map_err(|error| Ended::Socket(error.to_string()))?;
            }
        }
        Ok(())
    }
}

impl Worker for Publisher {
    fn do_work(&mut self) -> Result<usize, Ended> {
        self.housekeeping(clock::monotonic_ns())?;
        if !self.socket.subscribed().dao {
            self.away = true;
            return Ok(0);
        }
        match self.reader.has_news() {
            // Unseen frames are for everybody, a new subscriber included; what passed while nobody listened is not.
            true if !self.away => self.copy_and_send(false),
            _ if self.resend => self.copy_and_send(true),
            _ => Ok(0),
        }
    }

    fn park(&mut self, time: Duration) {
        // Without a subscriber nothing is urgent but the next subscriber.
        let idle = !self.socket.subscribed().dao;
        clock::sleep(if idle { Duration::from_nanos(SUBSCRIPTION_POLL_NS as u64) } else { time });
    }
}
