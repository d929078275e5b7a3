//! The network to one mirror segment: receives privately, checks, then writes as the library writes.

use crate::bridge::echoes::Echo;
use crate::bridge::freshness::{self, Freshness};
use crate::bridge::inlet::{Inlet, Taken};
use crate::bridge::origins::{OWNER, Origins};
use crate::bridge::source::Source;
use crate::bridge::stats::{MirrorStats, RateMeter};
use crate::bridge::worker::{Ended, Worker};
use crate::limits;
use crate::log::Repeats;
use crate::os::clock;
use crate::shm::{FrameMeta, Outcome, Reader, Writer};
use crate::wire::frame::{FrameHeader, FrameKind, HEADER_BYTES, Refused};
use crate::wire::loss::{Arrival, Ledger};
use crate::wire::pickle;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// A mirror that woke up late writes what has queued, in order, for so long, and a megabyte of it however long that takes
/// (it may be put to sleep again); then only the newest.
const CATCH_UP_NS: i64 = 2_000_000;
/// The mirror's own file is looked at so often: somebody may have removed it.
const FILE_CHECK_NS: i64 = 500_000_000;
/// A connection without a sign of life is made anew after this time, and that of ten frames at 100 MB/s.
const DEAD_AFTER_NS: i64 = 4_000_000_000;
/// The current frame is asked for again at most so often.
const ASK_AGAIN_NS: i64 = 250_000_000;

/// An origin that no daemon has.
const NOBODY: u64 = u64::MAX;

/// Is it of the mirror's publisher, and as the mirror is?
fn fits(header: &FrameHeader, source: &Source, writer: &Writer) -> Result<(), Refused> {
    let spec = writer.segment().spec();
    if Some(header.boot_id) != source.boot_id {
        Err(Refused::OtherPublisher)
    } else if header.shape != spec.shape || header.dtype != spec.dtype {
        Err(Refused::OtherShape)
    } else {
        Ok(())
    }
}

fn meta_of(header: &FrameHeader) -> FrameMeta {
    FrameMeta { cnt0: header.cnt0, cnt1: header.cnt1, cnt2: header.cnt2, atime_ns: header.atime_ns }
}

/// One mirror. Runs on its `dao-mir-<name>` thread alone.
pub struct Mirror {
    inlet: Inlet,
    source: Source,
    writer: Writer,
    /// The source's, which the segment may have more than.
    keywords: u16,
    fresh: Option<Freshness>,
    ledger: Ledger,
    stats: Arc<MirrorStats>,
    /// Of a Python owner, to tell repeated frames; of a bidirectional one, what the owner has now.
    last_pixels: Vec<u8>,
    /// Counters and time of that frame, as the owner has them.
    last_meta: FrameMeta,
    /// Where others write too: which frames this mirror wrote, and which origin is our own.
    shared: Option<(Arc<Origins>, u64)>,
    /// On the owner's side, whose frames these are.
    link_origin: Option<u64>,
    /// On the owner's side, which of our frames a client must have known.
    must_know: u64,
    /// A frame has come since the link was made: the mirror is as the owner is.
    refreshed: bool,
    rate: RateMeter,
    refusals: Repeats,
    /// When the message that is looked at was received whole, UTC.
    received_ns: i64,
    /// At the last check.
    linked: bool,
    frames_at_check: u64,
    connected_anew_ns: i64,
    next_check_ns: i64,
    next_ask_ns: i64,
    /// The place of the next frame is at hand already.
    warm: bool,
}

impl Mirror {
    /// Connects, in the background, to the source; frames go to `writer`.
    pub fn new(source: Source, writer: Writer, stats: Arc<MirrorStats>) -> Mirror {
        let frame_bytes = writer.segment().spec().frame_bytes();
        let keywords = freshness::of_the_source(writer.segment());
        stats.frameless_since_ns.store(0, Relaxed); // of another connection
        Mirror {
            inlet: Inlet::connect(&source, frame_bytes, keywords, writer.segment().spec().depth > 1),
            keywords,
            fresh: Freshness::of(writer.segment()),
            source,
            writer,
            ledger: Ledger::continuing(stats.lost()),
            frames_at_check: stats.frames.load(Relaxed),
            stats,
            last_pixels: Vec::new(),
            last_meta: FrameMeta::default(),
            shared: None,
            link_origin: None,
            must_know: 0,
            refreshed: false,
            rate: RateMeter::default(),
            refusals: Repeats::new(Duration::from_secs(60)),
            received_ns: 0,
            linked: false,
            connected_anew_ns: clock::monotonic_ns(),
            next_check_ns: 0,
            next_ask_ns: 0,
            warm: false,
        }
    }

    /// Others write into this segment too. Frames that this mirror writes are recorded; those whose origin is `me` are
    /// our own and are not written again.
    pub fn share(&mut self, origins: Arc<Origins>, me: u64) {
        self.shared = Some((origins, me));
        // Nothing has come yet, and what will come is compared before it is written.
        let frame_bytes = self.writer.segment().spec().frame_bytes();
        self.inlet = Inlet::connect(&self.source, frame_bytes, self.keywords, false);
    }

    /// The owner's side of a write-back: frames of a client go into the segment itself, and are recorded as those of
    /// `origin`. None of them is our own.
    pub fn take_back(&mut self, origins: Arc<Origins>, origin: u64) {
        self.share(origins, NOBODY);
        self.link_origin = Some(origin);
    }

    /// Is the mirror as its owner is, as far as can be known? Of a Python owner only that there is a connection.
    pub fn is_fresh(&self) -> bool {
        self.stats.connected() && (self.refreshed || self.source.boot_id.is_none())
    }

    /// The owner's sequence number that the mirror has come to.
    pub fn seq(&self) -> u64 {
        self.ledger.seq()
    }

    /// The owner's side: frames that were written without knowing this one of ours are refused from now on.
    pub fn refuse_before(&mut self, seq: u64) {
        self.must_know = seq;
    }

    fn is_stale(&self, header: &FrameHeader) -> bool {
        // The header has the lower half: numbers that are near each other compare all the same.
        self.link_origin.is_some() && (self.must_know as u32).wrapping_sub(header.based_on) as i32 > 0
    }

    /// Takes one message, if there is one.
    pub fn receive_one(&mut self, skip: impl FnOnce(&Inlet) -> bool) -> Result<bool, Ended> {
        let (writer, source) = (&mut self.writer, &self.source);
        let mut pour = |head: &[u8; HEADER_BYTES], at: usize, pixels: &[u8]| {
            let header = if at > 0 { Ok(None) } else { FrameHeader::decode_head(head).map(Some) };
            if header.is_ok_and(|header| header.is_none_or(|header| fits(&header, source, writer).is_ok())) {
                // What cannot be written is not shown either, and says so then.
                let _ = writer.pour(at, pixels);
            }
        };
        match self.inlet.receive(&mut pour) {
            Taken::Message => {
                self.received_ns = clock::realtime_ns();
                self.on_message(self.inlet.parts(), skip).map(|()| true)
            }
            Taken::Refused(why) => {
                self.refuse(why);
                Ok(true)
            }
            Taken::Nothing => Ok(false),
        }
    }

    /// Writes the owner's frame over what stands in the mirror, if that is another: a local frame that got lost.
    pub fn converge(&mut self, checker: &mut Reader, scratch: &mut Vec<u8>) -> Result<(), Ended> {
        if self.source.boot_id.is_none() {
            return Ok(()); // a Python owner need not send our own frames back
        }
        scratch.resize(self.writer.segment().spec().frame_bytes(), 0);
        let Outcome::Frame { meta, .. } = checker.read_newest(scratch) else { return Ok(()) };
        // A local frame that has come since is no lost one.
        let newest = self.writer.segment().newest().1;
        if meta.cnt0 == newest && self.last_pixels.len() == scratch.len() && self.last_pixels != *scratch {
            let written = self.writer.write_mirrored(&self.last_pixels, &self.last_meta);
            let counter = written.map_err(|_| Ended::SegmentGone)?;
            self.record(counter, OWNER);
            self.stats.converged.fetch_add(1, Relaxed);
        }
        Ok(())
    }

    fn record(&self, counter: u64, origin: u64) {
        let origin = self.link_origin.unwrap_or(origin);
        if let Some((origins, _)) = &self.shared {
            origins.record(counter, origin);
        }
    }

    /// Checks a message of `parts` parts against itself and the mirror.
    fn check(&self, parts: usize) -> Result<FrameHeader, Refused> {
        if parts < 2 {
            return Err(Refused::BadParts);
        }
        let body = self.inlet.body();
        let header = match body.first_chunk().filter(|_| self.inlet.poured()) {
            Some(head) => FrameHeader::decode_head(head)?,
            None => FrameHeader::decode(body)?,
        };
        fits(&header, &self.source, &self.writer)?;
        if parts != if header.keywords_follow { 3 } else { 2 } {
            return Err(Refused::BadParts);
        }
        let keyword_bytes = usize::from(self.keywords) * 120;
        let got = self.inlet.keywords().len();
        if header.keywords_follow && got != keyword_bytes {
            return Err(Refused::BadLength { expected: keyword_bytes as u64, got: got as u64 });
        }
        Ok(header)
    }

    fn on_message(&mut self, parts: usize, skip: impl FnOnce(&Inlet) -> bool) -> Result<(), Ended> {
        let taken = match self.source.boot_id {
            Some(_) => self.check(parts).and_then(|header| self.on_dao(&header, skip)),
            None => self.on_python(parts, skip),
        };
        taken.unwrap_or_else(|refused| {
            self.refuse(refused);
            Ok(())
        })
    }

    fn refuse(&mut self, refused: Refused) {
        if let Some(count) = self.stats.refused.get(refused.index()) {
            count.fetch_add(1, Relaxed);
        }
        if let Some(left_out) = self.refusals.due(refused.label()) {
            crate::warn!(
                "a message was refused: {refused} ({left_out} more of this kind since the last line)"
            );
        }
    }

    fn on_dao(
        &mut self,
        header: &FrameHeader,
        skip: impl FnOnce(&Inlet) -> bool,
    ) -> Result<Result<(), Ended>, Refused> {
        let now_ns = clock::monotonic_ns();
        self.stats.last_heard_ns.store(now_ns, Relaxed);
        let arrival = self.ledger.on_message(header);
        self.stats.set_lost(&self.ledger.lost);
        // The first frame of a link brings the mirror to the owner's state, whatever stands there.
        let arrival = match arrival {
            Arrival::Repeated if !self.refreshed && self.shared.is_some() => Arrival::New,
            other => other,
        };
        let mine = self.refreshed && self.shared.as_ref().is_some_and(|(_, me)| *me == header.origin);
        if arrival == Arrival::New && self.is_stale(header) {
            return Err(Refused::Stale);
        }
        Ok(match arrival {
            Arrival::New if mine => {
                if let Some(times) = self.stats.echo_times.get() {
                    times.note(Echo::of(header, self.received_ns));
                }
                self.stats.echoes.fetch_add(1, Relaxed); // last: whoever sees the count finds its time
                self.keep(header);
                self.freshen(header.cnt0, header.atime_ns).and_then(|()| self.take_keywords(header))
            }
            Arrival::New if skip(&self.inlet) => {
                self.stats.mirror_busy.fetch_add(1, Relaxed);
                self.take_keywords(header)
            }
            Arrival::New => self.publish(header),
            Arrival::Repeated => {
                // Meant for a newer subscriber; its keywords may be news to us as well.
                self.stats.repeated.fetch_add(1, Relaxed);
                self.take_keywords(header)
            }
            // A write-back sends nothing twice.
            Arrival::Behind if now_ns >= self.next_ask_ns && self.link_origin.is_none() => {
                self.next_ask_ns = now_ns + ASK_AGAIN_NS;
                self.inlet.ask_again();
                Ok(())
            }
            Arrival::Quiet => {
                self.refreshed = true;
                Ok(())
            }
            Arrival::Behind => Ok(()),
        })
    }

    fn take_keywords(&mut self, header: &FrameHeader) -> Result<(), Ended> {
        // Those of a segment are its owner's: a client sends frames back, not keywords.
        if !header.keywords_follow || self.link_origin.is_some() {
            return Ok(());
        }
        self.writer.set_keywords_raw(self.inlet.keywords()).map_err(|_| Ended::SegmentGone)
    }

    /// A frame of a Python owner: pixels and nothing else. Its time is that of its arrival; whether frames are missing
    /// nobody can tell. The same pixels again may be the same frame again, sent for another client, or one that looks
    /// alike: it is written, since a frame too many harms less than one too few, and counted as repeated.
    fn on_python(
        &mut self,
        parts: usize,
        skip: impl FnOnce(&Inlet) -> bool,
    ) -> Result<Result<(), Ended>, Refused> {
        if parts != 2 {
            return Err(Refused::BadParts);
        }
        let array = pickle::decode(self.inlet.body())?;
        let spec = self.writer.segment().spec();
        if !array.shape.same_frame(&spec.shape) || array.dtype != spec.dtype {
            return Err(Refused::OtherShape);
        }
        if skip(&self.inlet) {
            self.stats.mirror_busy.fetch_add(1, Relaxed);
            return Ok(Ok(()));
        }
        let pixels = array.pixels();
        // A Python owner sends our own frames back, and a Python client what it was sent: neither can say whose it is.
        // What stands in the segment already is taken for that; without this a frame could go round for ever.
        if self.shared.is_some() && self.writer.holds(&pixels) {
            self.stats.echoes.fetch_add(1, Relaxed);
            self.stats.frameless_since_ns.store(0, Relaxed);
            return Ok(Ok(()));
        }
        if *pixels == *self.last_pixels {
            self.stats.repeated.fetch_add(1, Relaxed);
        } else {
            self.last_pixels.clear();
            self.last_pixels.extend_from_slice(&pixels);
        }
        let Ok(counter) = self.writer.write(&pixels) else { return Ok(Err(Ended::SegmentGone)) };
        drop(pixels);
        if let Err(ended) = self.freshen(0, self.received_ns) {
            return Ok(Err(ended));
        }
        self.record(counter, self.shared.as_ref().map_or(OWNER, |(_, me)| *me));
        self.count_frame();
        Ok(Ok(()))
    }

    /// Keeps what the owner has now, where a local program may write over it.
    fn keep(&mut self, header: &FrameHeader) {
        if self.shared.is_none() {
            return;
        }
        if let Some(pixels) = self.inlet.body().get(header.pixel_offset as usize..) {
            self.last_pixels.clear();
            self.last_pixels.extend_from_slice(pixels);
            self.last_meta = meta_of(header);
        }
    }

    fn count_frame(&self) {
        self.stats.last_frame_ns.store(clock::monotonic_ns(), Relaxed);
        self.stats.frameless_since_ns.store(0, Relaxed);
        self.stats.frames.fetch_add(1, Relaxed); // last: whoever sees the count may read the mirror
    }

    /// The frame becomes visible, whole: pixels under `write = 1`, then the marks, then the semaphores.
    fn publish(&mut self, header: &FrameHeader) -> Result<(), Ended> {
        let FrameKind::Frame = header.kind else { return Ok(()) };
        self.take_keywords(header)?;
        self.freshen(header.cnt0, header.atime_ns)?;
        let meta = meta_of(header);
        let written = match self.inlet.body().get(header.pixel_offset as usize..) {
            _ if self.inlet.poured() => self.writer.show_poured(&meta),
            Some(pixels) => self.writer.write_mirrored(pixels, &meta).map(Some),
            None => return Ok(()),
        };
        let Some(counter) = written.map_err(|_| Ended::SegmentGone)? else {
            self.stats.mirror_busy.fetch_add(1, Relaxed);
            return Ok(());
        };
        self.record(counter, header.origin);
        self.refreshed = true;
        self.keep(header);
        // A frame for a new subscriber may be old.
        if !header.on_subscription {
            self.stats.hops.record(header, self.received_ns, clock::realtime_ns());
        }
        self.stats.source_counter.store(header.cnt0, Relaxed);
        self.count_frame();
        Ok(())
    }

    fn connect_anew_if_dead(&mut self, now_ns: i64) {
        let frame_bytes = self.writer.segment().spec().frame_bytes();
        let heard_ns = self.stats.last_heard_ns.load(Relaxed).max(self.inlet.moved_ns());
        let alive_ns = heard_ns.max(self.connected_anew_ns);
        // With bytes waiting, it was we who slept.
        if now_ns - alive_ns < DEAD_AFTER_NS + 100 * frame_bytes as i64 || self.inlet.unread_bytes() > 0 {
            return;
        }
        self.connected_anew_ns = now_ns;
        self.inlet.reconnect();
    }

    /// The mirror's keywords tell of a frame that is about to stand there.
    fn freshen(&mut self, counter: u64, time_ns: i64) -> Result<(), Ended> {
        let Some(fresh) = &mut self.fresh else { return Ok(()) };
        fresh.on_frame(&mut self.writer, (counter, time_ns), &self.stats).map_err(|_| Ended::SegmentGone)
    }

    /// The mirror's keywords say that nobody keeps it any more.
    pub fn close(&mut self) {
        if let Some(fresh) = &mut self.fresh {
            fresh.on_end(&mut self.writer, &self.stats);
        }
    }

    /// Waits for bytes, at most this long.
    pub fn wait(&self, time: Duration) {
        self.inlet.wait(time);
    }

    /// What is due by the clock, whether frames come or not.
    pub fn housekeeping(&mut self, now_ns: i64) -> Result<(), Ended> {
        if now_ns >= self.next_check_ns {
            self.next_check_ns = now_ns + FILE_CHECK_NS;
            if !self.stats.connected() {
                self.refreshed = false;
            }
            // A Python owner without new frames is silent; the connection is its only sign of life.
            let heard_ns = if self.source.boot_id.is_none() { self.inlet.heard_ns() } else { None };
            let linked = heard_ns.is_some();
            if let Some(heard_ns) = heard_ns {
                self.stats.last_heard_ns.fetch_max(heard_ns, Relaxed);
            }
            // It sends a frame unasked once, shortly after a request: that may have been before we were connected.
            if linked && !self.linked && self.frames_at_check == self.stats.frames.load(Relaxed) {
                self.stats.frameless_since_ns.store(now_ns, Relaxed);
            }
            (self.linked, self.frames_at_check) = (linked, self.stats.frames.load(Relaxed));
            self.connect_anew_if_dead(now_ns);
            self.inlet.remind();
            let segment = self.writer.segment();
            if segment.lost() || segment.replaced() {
                return Err(Ended::SegmentGone);
            }
            self.rate.tick(now_ns, self.stats.frames.load(Relaxed), &self.stats.rate);
        }
        let Some(fresh) = self.fresh.as_mut().filter(|fresh| fresh.is_due(now_ns)) else { return Ok(()) };
        fresh.on_time(&mut self.writer, now_ns, &self.stats).map_err(|_| Ended::SegmentGone)
    }
}

impl Worker for Mirror {
    fn do_work(&mut self) -> Result<usize, Ended> {
        let begun_ns = clock::monotonic_ns();
        self.housekeeping(begun_ns)?;
        // A ring has room for all of them.
        let (ring, frame_bytes) = {
            let spec = self.writer.segment().spec();
            (spec.depth > 1, spec.frame_bytes())
        };
        let mut messages = 0;
        while messages < limits::MESSAGES_A_TURN_MAX {
            let late = !ring
                && messages * frame_bytes >= limits::CATCH_UP_BYTES
                && clock::monotonic_ns() - begun_ns > CATCH_UP_NS;
            if !self.receive_one(|inlet| late && inlet.waiting(frame_bytes))? {
                break;
            }
            messages += 1;
        }
        if messages > 0 {
            self.warm = false;
        } else if !std::mem::replace(&mut self.warm, true) {
            self.writer.warm_next();
        }
        Ok(messages)
    }

    fn is_under_way(&self, now_ns: i64) -> bool {
        self.inlet.is_under_way(now_ns)
    }

    fn finish(&mut self) {
        self.close();
    }

    fn park(&mut self, time: Duration) {
        self.inlet.wait(time);
    }
}
