//! One segment to the network: watches its counter, copies each frame once, sends that copy to every subscriber. A large
//! frame of a ring, for one mirror alone over TCP, leaves from where it stands, as long as there is time for that.

use crate::bridge::origins::{OWNER, Origins};
use crate::bridge::outlet::Outlet;
use crate::bridge::peer::{Form, Forms};
use crate::bridge::pool::SendPool;
use crate::bridge::stats::{PublisherStats, RateMeter};
use crate::bridge::unsent::{Body, Message};
use crate::bridge::watch::{WATCH_FROM, Watch};
use crate::bridge::worker::{Ended, Worker};
use crate::dtype::{DType, Shape};
use crate::limits;
use crate::naming::{TOPIC_DAO, TOPIC_PYTHON};
use crate::os::clock;
use crate::shm::{Access, FrameMeta, Loan, OpenError, Outcome, Reader, Segment};
use crate::wire::frame::{FrameHeader, FrameKind, HEADER_BYTES, trailer};
use crate::wire::{pickle, zmtp};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// Where the pixels begin in a buffer: behind our header and the pickle's prefix, on a cache line of their own. A frame
/// for a Python peer is a range of the same buffer, from the prefix to the suffix: one copy serves both wires.
const PIXEL_OFFSET: usize = 320;
const _: () =
    assert!(PIXEL_OFFSET >= HEADER_BYTES + pickle::PREFIX_BYTES_MAX && PIXEL_OFFSET.is_multiple_of(64));

/// New subscribers are noticed within this time, however busy the stream.
const SUBSCRIPTION_POLL_NS: i64 = 5_000_000;
/// Who is just saying who it is need not wait for that.
const GREETING_POLL_NS: i64 = 500_000;
/// A sign of life waits so long for the current frame, where somebody wants that.
const FRAME_FIRST_NS: i64 = 20_000_000;
/// Who has no subscriber waits for one so long at a time.
const UNSUBSCRIBED_PARK: Duration = Duration::from_millis(20);
/// So many frames wait in their segment for a client that is still being sent an older one. Of more it gets the newest.
const WAITING_MAX: u64 = 2;
/// Smaller frames leave sooner when they are copied: then all of the message is one system call.
const LEND_FROM_BYTES: usize = 256 << 10;
/// Whether a frame may stay where it stands until it has left is looked at so often.
const LOAN_PARK: Duration = Duration::from_micros(200);
/// The segment's file is looked at, for having been replaced, so often.
const FILE_CHECK_NS: i64 = 200_000_000;

/// What a frame is sent from.
enum Place {
    /// The buffer with this index, which it was copied into.
    Buffer(usize),
    /// The segment.
    Slot(Loan),
}

/// The publisher of one segment. Runs on its `dao-pub-<name>` thread alone.
pub struct Publisher {
    reader: Reader,
    outlet: Outlet,
    pool: SendPool,
    frame_bytes: usize,
    stats: Arc<PublisherStats>,
    /// What every header of this publisher has in common; the rest is of the frame sent last.
    header: FrameHeader,
    /// The part of a buffer that is the pickle of its frame.
    pickle: Range<usize>,
    keywords: Vec<u8>,
    keywords_now: Vec<u8>,
    /// Beginning and end of a message, put together.
    head: Vec<u8>,
    tail: Vec<u8>,
    origins: Arc<Origins>,
    back: Option<Back>,
    /// The pixels of the frame sent last, if they are to be compared; who else writes may have changed them since
    /// without counting.
    sent_hash: Option<u64>,
    compare: bool,
    /// New subscribers wait for the current frame.
    resend: Forms,
    /// Keywords go along with a frame when they have changed, and now and then all the same: a frame may get lost.
    next_keywords_ns: i64,
    /// Nobody has subscribed since the last frame that was copied.
    away: bool,
    /// Since the last frame that was copied there was one that nobody could take, or that no buffer was free for.
    starved: bool,
    /// Looks at the counter while we sleep for long.
    watch: Option<Watch>,
    /// Of a write-back: the owner was still being sent an older frame when there was a newer one.
    maybe_left_out: bool,
    rate: RateMeter,
    next_subscription_poll_ns: i64,
    next_file_check_ns: i64,
    next_alive_ns: i64,
    /// Once, since the last one.
    alive_put_off: bool,
}

/// What the central state and the connection records need to know of a publisher that has started.
#[derive(Clone)]
#[allow(missing_docs)]
pub struct Started {
    pub port: u16,
    pub tcp_port: Option<u16>,
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

/// What makes a publisher the write-back of a mirror.
pub struct Back {
    /// The origin of its frames: this daemon.
    pub me: u64,
    /// Frames may be sent.
    pub open: bool,
}

/// Not for keys or for safety: two frames that differ by chance have different hashes.
fn hash(bytes: &[u8]) -> u64 {
    let mut words = bytes.chunks_exact(8);
    let step = |hash: u64, word: u64| (hash.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
    let whole = words
        .by_ref()
        .fold(0, |hash, word| step(hash, u64::from_le_bytes(word.try_into().unwrap_or_default())));
    words.remainder().iter().fold(whole, |hash, byte| step(hash, u64::from(*byte)))
}

impl Publisher {
    /// Opens the segment at `path`; frames go out through `outlet`. `origins` has the frames that this daemon writes into
    /// the segment itself.
    pub fn new(
        path: &Path,
        outlet: Outlet,
        origins: Arc<Origins>,
        back: Option<Back>,
    ) -> Result<(Publisher, Started), StartError> {
        let segment = Segment::open(path, Access::Read).map_err(StartError::Segment)?;
        let spec = segment.spec().clone();
        // Those of a segment are its owner's: a write-back sends frames, not keywords.
        let keywords = if back.is_some() { 0 } else { spec.keywords };
        let frame_bytes = spec.frame_bytes();
        let header = FrameHeader {
            kind: FrameKind::Frame,
            on_subscription: false,
            keywords_follow: false,
            dtype: spec.dtype,
            shape: spec.shape,
            keywords,
            boot_id: outlet.boot_id(),
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
            based_on: 0,
        };
        let stats = Arc::new(PublisherStats::default());
        let started = Started {
            port: outlet.port(),
            tcp_port: outlet.tcp_port(),
            boot_id: header.boot_id,
            shape: spec.shape,
            dtype: spec.dtype,
            keywords,
            stats: Arc::clone(&stats),
        };
        let keyword_bytes = usize::from(keywords) * 120;
        let pickle = pickle::Frame::new(&spec.shape, spec.dtype);
        let suffix_at = PIXEL_OFFSET + frame_bytes;
        let pickle_range = PIXEL_OFFSET - pickle.prefix.len()..suffix_at + pickle.suffix.len();
        // One being filled, and some on their way. More are made when they are needed.
        let buffers = if frame_bytes > limits::LARGE_FRAME_BYTES { 2 } else { 3 };
        let buffers_max =
            (limits::POOL_BYTES_MAX / frame_bytes.max(1)).clamp(buffers, limits::CLIENTS_MAX + buffers);
        let mut reader = Reader::new(segment);
        if back.is_some() {
            // What stands in a mirror already came from its owner, or was written before anybody asked for it.
            reader.pass_over();
        }
        let publisher = Publisher {
            reader,
            outlet,
            pool: SendPool::new(buffers, buffers_max, suffix_at + pickle.suffix.len(), move |buffer| {
                buffer[PIXEL_OFFSET - pickle.prefix.len()..PIXEL_OFFSET].copy_from_slice(&pickle.prefix);
                buffer[suffix_at..].copy_from_slice(pickle.suffix);
            }),
            frame_bytes,
            stats,
            header,
            pickle: pickle_range,
            keywords: vec![0; keyword_bytes],
            keywords_now: vec![0; keyword_bytes],
            head: Vec::with_capacity(PIXEL_OFFSET + 64),
            tail: Vec::with_capacity(keyword_bytes + 64),
            origins,
            back,
            sent_hash: None,
            compare: false,
            resend: Forms::default(),
            next_keywords_ns: 0,
            away: true,
            starved: false,
            watch: None,
            maybe_left_out: false,
            rate: RateMeter::default(),
            next_subscription_poll_ns: 0,
            next_file_check_ns: 0,
            next_alive_ns: 0,
            alive_put_off: false,
        };
        Ok((publisher, started))
    }

    /// Sends the next unseen frame from where it stands, if that is worth it and there is time for it.
    fn lend_and_send(&mut self) -> Result<usize, Ended> {
        let may_lend = self.frame_bytes >= LEND_FROM_BYTES && !self.compare && self.outlet.has_one_stream();
        match if may_lend { self.reader.lend_next() } else { None } {
            Some((frame, loan)) => self.send_outcome(Place::Slot(loan), frame, false),
            None => self.copy_and_send(false),
        }
    }

    /// Copies a frame and sends it. `current`: the newest frame, seen before or not; else the next unseen one.
    fn copy_and_send(&mut self, current: bool) -> Result<usize, Ended> {
        let Some(index) = self.pool.acquire() else {
            // Every buffer is on its way to some stuck client: nobody gets this frame.
            self.starved = true;
            self.outlet.end_slow();
            return Ok(0);
        };
        let buffer = self.pool.buffer_mut(index);
        let pixels = &mut buffer[PIXEL_OFFSET..PIXEL_OFFSET + self.frame_bytes];
        let outcome = if current { self.reader.read_newest(pixels) } else { self.reader.read_next(pixels) };
        if !matches!(outcome, Outcome::Nothing) {
            self.stats.copies.fetch_add(1, Relaxed);
        }
        self.send_outcome(Place::Buffer(index), outcome, current)
    }

    fn send_outcome(&mut self, place: Place, outcome: Outcome, current: bool) -> Result<usize, Ended> {
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
        if restarted {
            self.origins.clear(); // its counters mean other frames now
        }
        if self.back.is_some() && self.origins.of(meta.cnt0).is_some() {
            self.count_missed(lapped); // local frames that one of the owner's was written over
            return Ok(1);
        }
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
        self.send(&place, &meta, seen_ns, seen_before, current)
    }

    /// Books frames that the source wrote and we could not have.
    fn count_missed(&mut self, frames: u64) {
        if std::mem::take(&mut self.starved) {
            self.count_unqueued(frames);
        } else {
            self.header.lapped_total += frames;
            self.stats.lapped.fetch_add(frames, Relaxed);
        }
    }

    /// The same where the queue was to blame: they keep their sequence numbers, so that every receiver can tell.
    fn count_unqueued(&mut self, frames: u64) {
        self.header.seq += frames;
        let forms = self.outlet.subscribed();
        if forms.dao || forms.stream {
            self.count_queue_full(frames);
        }
        if forms.python {
            self.stats.python_queue_full.fetch_add(frames, Relaxed);
        }
    }

    fn send(
        &mut self,
        place: &Place,
        meta: &FrameMeta,
        seen_ns: i64,
        seen_before: bool,
        current: bool,
    ) -> Result<usize, Ended> {
        self.header = FrameHeader {
            kind: FrameKind::Frame,
            on_subscription: current,
            seq: self.header.seq + u64::from(!seen_before),
            cnt0: meta.cnt0,
            cnt1: meta.cnt1,
            cnt2: meta.cnt2,
            atime_ns: meta.atime_ns,
            seen_ns,
            origin: self.origins.of(meta.cnt0).unwrap_or(self.back.as_ref().map_or(OWNER, |back| back.me)),
            ..self.header
        };
        if self.header.origin == OWNER {
            self.stats.last_local_ns.store(clock::monotonic_ns(), Relaxed);
        }
        if let Place::Buffer(index) = place {
            self.note_sent(*index);
        }
        // A frame that was sent before is only for those who have come since.
        let forms = if seen_before { self.resend } else { self.outlet.subscribed() };
        if forms.dao || forms.stream {
            self.send_dao(place, forms, seen_before);
        }
        if let (Place::Buffer(index), true) = (place, forms.python) {
            self.send_python(*index, seen_before);
        }
        (self.resend, self.away) = (Forms::default(), false);
        let count = if seen_before { &self.stats.resent } else { &self.stats.frames };
        count.fetch_add(1, Relaxed);
        Ok(1)
    }

    fn send_dao(&mut self, place: &Place, forms: Forms, only_asking: bool) {
        let now_ns = clock::monotonic_ns();
        self.reader.segment().copy_keywords_raw(&mut self.keywords_now);
        let keywords_due =
            self.keywords != self.keywords_now || self.resend.any() || now_ns >= self.next_keywords_ns;
        self.header.keywords_follow = keywords_due && !self.keywords.is_empty();
        self.header.sent_ns = clock::realtime_ns();
        // What is only for some counts as told to nobody.
        if self.header.keywords_follow && !only_asking {
            self.keywords.copy_from_slice(&self.keywords_now);
            self.next_keywords_ns = now_ns + limits::ALIVE_INTERVAL.as_nanos() as i64;
        }
        // Before anybody holds it.
        if let Place::Buffer(index) = place
            && let Some(head) = self.pool.buffer_mut(*index).first_chunk_mut()
        {
            self.header.encode(head);
        }
        let keywords = if self.header.keywords_follow { &self.keywords_now[..] } else { &[] };
        let end = PIXEL_OFFSET + self.frame_bytes;
        let mut left_out = 0;
        if forms.stream {
            begin_stream(&mut self.head, &self.header);
            self.tail.clear();
            self.tail.extend_from_slice(keywords);
            self.tail.extend_from_slice(&trailer(self.header.seq));
            let body = match place {
                Place::Buffer(index) => Body::Buffer(&self.pool, *index, PIXEL_OFFSET..end),
                Place::Slot(loan) => Body::Lent(loan.clone()),
            };
            let message = Message { form: Form::Stream, head: &self.head, body, tail: &self.tail };
            left_out += self.outlet.send(&message, only_asking);
        }
        if let (Place::Buffer(index), true) = (place, forms.dao) {
            zmtp::begin_message(&mut self.head, TOPIC_DAO, end, !keywords.is_empty());
            self.tail.clear();
            if !keywords.is_empty() {
                zmtp::begin_part(&mut self.tail, keywords.len(), false);
                self.tail.extend_from_slice(keywords);
            }
            let body = Body::Buffer(&self.pool, *index, 0..end);
            let message = Message { form: Form::Dao, head: &self.head, body, tail: &self.tail };
            left_out += self.outlet.send(&message, only_asking);
        }
        if left_out > 0 {
            self.count_queue_full(1);
        }
        if !only_asking {
            self.next_alive_ns = now_ns + limits::ALIVE_INTERVAL.as_nanos() as i64;
        }
    }

    /// The pickle stands in the buffer already, around the pixels: nothing is copied again.
    fn send_python(&mut self, index: usize, only_asking: bool) {
        zmtp::begin_message(&mut self.head, TOPIC_PYTHON, self.pickle.len(), false);
        let body = Body::Buffer(&self.pool, index, self.pickle.clone());
        let message = Message { form: Form::Python, head: &self.head, body, tail: &[] };
        if self.outlet.send(&message, only_asking) > 0 {
            self.stats.python_queue_full.fetch_add(1, Relaxed);
        }
    }

    /// The owner has nothing new, and lives. Whoever is still being sent a frame hears that without.
    fn send_alive(&mut self) {
        self.alive_put_off = false;
        let alive = FrameHeader {
            kind: FrameKind::Alive,
            on_subscription: false,
            keywords_follow: false,
            ..self.header
        };
        begin_stream(&mut self.head, &alive);
        let tail = trailer(self.header.seq);
        self.outlet
            .send(&Message { form: Form::Stream, head: &self.head, body: Body::None, tail: &tail }, false);
        let mut message = [0; PIXEL_OFFSET];
        if let Some(head) = message.first_chunk_mut() {
            alive.encode(head);
        }
        zmtp::begin_message(&mut self.head, TOPIC_DAO, message.len(), false);
        self.outlet
            .send(&Message { form: Form::Dao, head: &self.head, body: Body::None, tail: &message }, false);
    }

    /// The write-back of a mirror: frames that a program on this machine wrote, and no others.
    fn write_back(&mut self) -> Result<usize, Ended> {
        let open = self.back.as_ref().is_some_and(|back| back.open) && self.outlet.subscribed().any();
        self.stats.open.store(open, Relaxed);
        if !self.reader.has_news() {
            return Ok(0);
        }
        let from_owner = self.origins.of(self.reader.segment().newest().1).is_some();
        if !open {
            self.reader.pass_over();
            if !from_owner {
                self.stats.stale.fetch_add(1, Relaxed);
            }
            return Ok(0);
        }
        self.reader.pass_over_while(|counter| self.origins.of(counter).is_some());
        if self.reader.has_news() { self.copy_and_send(false) } else { Ok(0) }
    }

    /// Frames were left out lately: the newest local one is sent again, as a new one, since nothing may come after it and
    /// the owner's older one would win. `false`: there was no need.
    pub fn make_sure(&mut self) -> Result<bool, Ended> {
        if !std::mem::take(&mut self.maybe_left_out) || !self.stats.open.load(Relaxed) {
            return Ok(false);
        }
        let Some(index) = self.pool.acquire() else { return Ok(false) };
        let pixels = &mut self.pool.buffer_mut(index)[PIXEL_OFFSET..PIXEL_OFFSET + self.frame_bytes];
        let Outcome::Frame { meta, .. } = self.reader.read_newest(pixels) else { return Ok(false) };
        if self.origins.of(meta.cnt0).is_some() {
            return Ok(false);
        }
        self.send(&Place::Buffer(index), &meta, clock::realtime_ns(), false, false)?;
        Ok(true)
    }

    /// May frames go back to the owner? Not before the mirror was refreshed from it. They say up to which of the owner's
    /// frames the mirror had come: the owner refuses those that come late, over newer ones of its own.
    pub fn set_open(&mut self, open: bool, owner_seq: u64) {
        if let Some(back) = &mut self.back {
            back.open = open;
            self.header.based_on = owner_seq as u32;
        }
    }

    /// What was sent last is on its way even if this publisher ends now.
    pub fn linger(&mut self) {
        let deadline = clock::monotonic_ns() + limits::WRITE_BACK_LINGER.as_nanos() as i64;
        while self.outlet.progress() && clock::monotonic_ns() < deadline {
            self.outlet.wait(Duration::from_millis(1));
        }
        // What the kernel has taken it sends by itself, if nothing unread makes it break the connection off.
        while self.outlet.hear_out() && clock::monotonic_ns() < deadline {
            self.outlet.wait_for_news(Duration::from_millis(10));
        }
    }

    /// Long waits end with a frame, as this watch sees it; without one they are short.
    pub fn set_watch(&mut self, watch: Option<Watch>) {
        self.watch = watch;
    }

    /// The sequence number of the frame sent last.
    pub fn seq(&self) -> u64 {
        self.header.seq
    }

    /// Others write into this segment too, over the network: what was sent is compared with what stands there.
    pub fn set_compare(&mut self, compare: bool) {
        self.compare = compare;
    }

    /// Is there a frame that nobody was sent yet?
    pub fn has_news(&self) -> bool {
        self.reader.has_news()
    }

    /// Sends the newest frame again as a new one if its pixels are others than those sent under its counter: two
    /// programs have written at the same time and counted once.
    pub fn send_if_changed(&mut self) -> Result<(), Ended> {
        let Some(index) = self.pool.acquire() else { return Ok(()) };
        let pixels = &mut self.pool.buffer_mut(index)[PIXEL_OFFSET..PIXEL_OFFSET + self.frame_bytes];
        let Outcome::Frame { meta, .. } = self.reader.read_newest(pixels) else { return Ok(()) };
        self.stats.copies.fetch_add(1, Relaxed);
        let hash = hash(pixels);
        if self.sent_hash.replace(hash).is_some_and(|sent| sent != hash) && self.outlet.subscribed().any() {
            self.send(&Place::Buffer(index), &meta, clock::realtime_ns(), false, false)?;
        }
        Ok(())
    }

    /// Remembers what was sent last, for [`Publisher::send_if_changed`].
    fn note_sent(&mut self, index: usize) {
        if self.compare {
            let pixels = &self.pool.buffer_mut(index)[PIXEL_OFFSET..PIXEL_OFFSET + self.frame_bytes];
            self.sent_hash = Some(hash(pixels));
        }
    }

    fn count_queue_full(&mut self, frames: u64) {
        self.maybe_left_out |= frames > 0 && self.back.is_some();
        self.header.queue_full_total += frames;
        self.stats.queue_full.fetch_add(frames, Relaxed);
    }

    /// What is due by the clock, whether frames come or not.
    fn housekeeping(&mut self, now_ns: i64) -> Result<(), Ended> {
        if now_ns >= self.next_subscription_poll_ns {
            let new = self.outlet.take_subscriptions();
            let greeting = self.outlet.is_greeting();
            self.next_subscription_poll_ns =
                now_ns + if greeting { GREETING_POLL_NS } else { SUBSCRIPTION_POLL_NS };
            // What stands in a mirror is the owner's own, or older than what it has.
            if self.back.is_none() {
                if new.any() && !self.resend.any() && !std::mem::replace(&mut self.alive_put_off, true) {
                    // The frame comes first: who hears before it that there is one would ask for it again.
                    self.next_alive_ns = self.next_alive_ns.max(now_ns + FRAME_FIRST_NS);
                }
                self.resend = self.resend.or(new);
            }
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
            self.send_alive();
        }
        Ok(())
    }
}

/// The header as it stands in a stream, where the pixels follow at once.
fn begin_stream(out: &mut Vec<u8>, header: &FrameHeader) {
    let mut head = [0; HEADER_BYTES];
    FrameHeader { pixel_offset: HEADER_BYTES as u32, ..*header }.encode(&mut head);
    out.clear();
    out.extend_from_slice(&head);
}

impl Worker for Publisher {
    fn do_work(&mut self) -> Result<usize, Ended> {
        let now_ns = clock::monotonic_ns();
        self.housekeeping(now_ns)?;
        let pixels = PIXEL_OFFSET..PIXEL_OFFSET + self.frame_bytes;
        if self.outlet.end_loan_in_danger(now_ns, &mut self.pool, &pixels) {
            self.stats.copies.fetch_add(1, Relaxed);
        }
        self.outlet.progress();
        let spoilt = self.outlet.take_spoilt();
        self.count_queue_full(spoilt);
        if self.back.is_some() {
            return self.write_back();
        }
        if !self.outlet.subscribed().any() {
            (self.away, self.starved) = (true, false);
            return Ok(0);
        }
        match self.reader.has_news() {
            // Everybody is still being sent an older frame: this one waits where it is, in its segment.
            true if !self.away && self.outlet.all_are_sending() => {
                self.starved = true;
                Ok(0)
            }
            // Unseen frames are for everybody, a new subscriber included; what passed while nobody listened is not.
            true if !self.away => {
                if self.starved {
                    let passed_over = self.reader.catch_up(WAITING_MAX);
                    self.count_unqueued(passed_over);
                }
                self.lend_and_send()
            }
            _ if self.resend.any() => self.copy_and_send(true),
            _ => Ok(0),
        }
    }

    fn peek(&self) -> bool {
        self.reader.has_news() || self.outlet.is_sending()
    }

    fn is_under_way(&self, now_ns: i64) -> bool {
        self.outlet.is_under_way(now_ns)
    }

    fn park(&mut self, time: Duration) {
        // Without a subscriber nothing is urgent but the next subscriber.
        if !self.outlet.subscribed().any() {
            let shortest = Duration::from_nanos(SUBSCRIPTION_POLL_NS as u64);
            self.outlet.wait_for_news(time.clamp(shortest, UNSUBSCRIBED_PARK));
            self.next_subscription_poll_ns = 0;
            return;
        }
        match &mut self.watch {
            Some(watch) if time > WATCH_FROM && !self.outlet.is_sending() && !self.outlet.is_greeting() => {
                let reader = &self.reader;
                watch.wait(reader.seen(), || reader.has_news(), self.outlet.descriptors(), time);
                // What woke us may be a subscriber.
                self.next_subscription_poll_ns = 0;
            }
            _ if self.outlet.has_loan() => self.outlet.wait(time.min(LOAN_PARK)),
            _ => self.outlet.wait(time.min(WATCH_FROM)),
        }
    }
}
