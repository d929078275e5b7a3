//! Consistent copies of frames that another process writes without waiting for us.
//!
//! # What is checked
//!
//! The writer sets `write`, copies, clears `write`, and only then stores the time and the counter; there is
//! no lock and no sequence number that moves before the pixels do. A copy is taken for whole when
//!
//! 1. `write` was 0 before it, and the slot's stamp (cnt0, cnt1, cnt2, time, and the fields of partial
//!    writes) the one of the frame that was asked for;
//! 2. `write` was 0 after it, and the stamp the same, with fences so that the pixels are loaded between the
//!    two looks: a writer that was in the slot at either moment is seen, and one that came and went in
//!    between has moved cnt0. In a ring the slot must not be the last one under a counter older than its
//!    neighbour's: so it is between the writer's steps 3 and 4;
//! 3. a second look at the pixels agrees with the copy: the witness. It is for a writer that came *and
//!    cleared `write`* during the copy, but was interrupted before it stored time and counter, so that 2.
//!    sees nothing. Then the slot holds the new pixels throughout, and some of the copy the old
//!    ones. Frames of up to [`WITNESS_LINES`] cache lines are compared whole, larger ones at that many lines,
//!    first and last among them;
//! 4. `write` and the stamp are looked at once more after the witness;
//! 5. the header still says what it said at opening, and no fault happened in the mapping.
//!
//! # What remains
//!
//! With one slot, a copy that begins and ends between the writer's clearing of `write` and its counter: it is
//! whole, and it is the next frame under the last one's counter, so that frame may come twice. In a ring the
//! same holds for the oldest slot between the writer's clearing of `write` and the next store, if it is
//! interrupted there. Then, a frame larger than the witness, whose writer was interrupted in those few
//! instructions after it had overtaken our copy, and which differs from its predecessor only between the
//! lines that are compared. [`Reader::still_whole`], asked later, sees the counter that has moved by then.
//! And frames that arrive in parts (`packetNb`): the format clears `write` after each part, so between two
//! parts the slot holds a mixture under the old counter; a copy in which a part arrived is refused by 2., one
//! that began late and ended between two parts cannot be told.
//!
//! `tests/models/frame.pml` has these steps and those of the writers one by one, and `spin` tries every order of them.
//! Whoever changes an order here changes it there.

use super::layout::at;
use super::loan::{LENT_DEPTH_MIN, Loan};
use super::segment::{FrameMeta, Segment};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

/// Cache lines that the witness compares.
const WITNESS_LINES: usize = 64;
/// Attempts at a copy before the caller is told to ask again.
const ATTEMPTS: u32 = 4;
/// Looks at `write` before a frame is given up for this time: some microseconds, a small frame's copy.
const WRITE_LOOKS: u32 = 200;
/// Spins before the last look at a ring's oldest frame, up to a microsecond: a writer that has just cleared
/// `write` there has said so in `fifo_last_written` by then.
const SETTLE_SPINS: u32 = 32;
/// Bytes copied before looking whether the writer has come: a torn copy need not be finished.
const CHUNK_BYTES: usize = 256 * 1024;

/// What a read gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// No frame that was not returned before.
    Nothing,
    /// A frame is in the buffer.
    Frame {
        /// Its counters and time.
        meta: FrameMeta,
        /// Frames between the last one returned and this one that were written and could not be had. Unknown
        /// over a restart, and 0 then.
        lapped: u64,
        /// The counter went backwards, or the segment was created again in place.
        restarted: bool,
    },
    /// The writer was in the middle each time: ask again. So it stays if it died there.
    Busy,
    /// The segment is not the one that was opened any more: another shape or type, or being created again.
    Changed,
    /// The file shrank under the mapping: open the segment again.
    Lost,
}

/// The fields of a slot that a writer changes with a frame.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    meta: FrameMeta,
    parts: [u32; 4],
}

enum Copied {
    Whole(FrameMeta),
    Torn,
}

/// Follows one segment, on one thread.
pub struct Reader {
    segment: Arc<Segment>,
    /// Counter of the frame returned last, 0 before the first.
    seen: u64,
    /// Was any frame returned? A segment that was never written has one too, with counter 0.
    started: bool,
    creation: u64,
    restarted: bool,
    /// Slot and counter of the frame that is in the caller's buffer.
    held: (u32, u64),
}

impl Reader {
    /// Starts at the newest frame: that is the first that `read_next` gives.
    pub fn new(segment: Segment) -> Reader {
        let creation = segment.creation();
        Reader {
            segment: Arc::new(segment),
            seen: 0,
            started: false,
            creation,
            restarted: false,
            held: (0, 0),
        }
    }

    /// The segment.
    pub fn segment(&self) -> &Segment {
        &self.segment
    }

    /// Counter of the frame that was returned or passed over last; 0 before the first.
    pub fn seen(&self) -> u64 {
        self.seen
    }

    /// Is it worth calling `read_next`? A handful of loads, and no system call.
    pub fn has_news(&self) -> bool {
        self.segment.newest().1 != self.seen
            || self.segment.creation() != self.creation
            || self.segment.lost()
    }

    /// The next frame that was not returned yet: of a ring the oldest that is still there, else the newest.
    /// The buffer must have the length of a frame; it holds garbage unless a frame is returned.
    pub fn read_next(&mut self, buffer: &mut [u8]) -> Outcome {
        for attempt in 0..ATTEMPTS {
            if let Some(trouble) = self.trouble() {
                return trouble;
            }
            let newest = self.segment.newest();
            self.note_restart(newest.1);
            if newest.1 == self.seen {
                return Outcome::Nothing;
            }
            let (slot, counter) = self.choose(newest, attempt);
            if let Copied::Whole(meta) = self.copy(slot, counter, buffer) {
                return self.deliver(slot, meta);
            }
        }
        self.trouble().unwrap_or(Outcome::Busy)
    }

    /// The next frame as [`Reader::read_next`] has it, where it stands instead of a copy. `None`: there is none, or the writer
    /// will soon be where it stands; then it is to be copied.
    pub fn lend_next(&mut self) -> Option<(Outcome, Loan)> {
        if self.trouble().is_some() || self.segment.spec().depth < LENT_DEPTH_MIN {
            return None;
        }
        let newest = self.segment.newest();
        self.note_restart(newest.1);
        if newest.1 == self.seen {
            return None;
        }
        let (slot, counter) = self.choose(newest, 0);
        let meta = self.segment.meta(slot);
        let loan = Loan::new(Arc::clone(&self.segment), slot, meta);
        if meta.cnt0 != counter || !loan.has_time() {
            return None;
        }
        match self.deliver(slot, meta) {
            frame @ Outcome::Frame { .. } => Some((frame, loan)),
            _ => None,
        }
    }

    /// The newest frame, whether it was returned before or not, and even if none was ever written (cnt0 is 0
    /// and the pixels are as they were created).
    pub fn read_newest(&mut self, buffer: &mut [u8]) -> Outcome {
        for _ in 0..ATTEMPTS {
            if let Some(trouble) = self.trouble() {
                return trouble;
            }
            let (slot, counter) = self.segment.newest();
            self.note_restart(counter);
            if let Copied::Whole(meta) = self.copy(slot, counter, buffer) {
                return self.deliver(slot, meta);
            }
        }
        self.trouble().unwrap_or(Outcome::Busy)
    }

    /// Counts the newest frame as returned, without a copy: for a caller who knows what it holds.
    pub fn pass_over(&mut self) {
        let newest = self.segment.newest().1;
        self.note_restart(newest);
        (self.seen, self.started, self.restarted) = (newest, true, false);
    }

    /// Counts the next frames as returned for as long as `known` says of their counters that nobody needs them.
    pub fn pass_over_while(&mut self, known: impl Fn(u64) -> bool) {
        let newest = self.segment.newest().1;
        self.note_restart(newest);
        while self.started && self.seen < newest && known(self.seen + 1) {
            self.seen += 1;
        }
    }

    /// With more than `most` frames that were not returned yet, counts all but the newest as returned. Gives how many these
    /// are.
    pub fn catch_up(&mut self, most: u64) -> u64 {
        let newest = self.segment.newest().1;
        self.note_restart(newest);
        let unseen = if self.started && !self.restarted { newest.saturating_sub(self.seen) } else { 0 };
        let passed_over = if unseen > most { unseen - 1 } else { 0 };
        self.seen += passed_over;
        passed_over
    }

    /// Is the frame returned last still in its slot, under its counter? To be asked just before the frame is
    /// used: if so, the copy was taken with all of the frame there. `write` is not asked: a writer that has
    /// begun the next frame since has not spoilt our copy, and one that had spoilt it has moved the counter
    /// before it begins another, unless it died in between and its successor is at work already.
    pub fn still_whole(&self) -> bool {
        // The copy before the counter. Partner: the writer's store of the counter.
        fence(Ordering::SeqCst);
        self.segment.cnt0(self.held.0) == self.held.1
            && self.segment.creation() == self.creation
            && !self.segment.lost()
    }

    fn trouble(&self) -> Option<Outcome> {
        let changed =
            self.segment.shape_changed() || self.segment.last_written() >= self.segment.spec().depth;
        if self.segment.lost() {
            Some(Outcome::Lost)
        } else if changed {
            Some(Outcome::Changed)
        } else {
            None
        }
    }

    fn note_restart(&mut self, counter: u64) {
        let creation = self.segment.creation();
        if counter < self.seen || creation != self.creation {
            self.creation = creation;
            self.restarted = true;
            self.seen = 0;
        }
    }

    /// Slot and counter of the frame to copy. The first attempt is at the oldest frame of the ring, which the
    /// writer goes to next; if that fails, at the one after it; if that fails too the writer is faster than
    /// us, and only the newest is worth an attempt.
    fn choose(&self, (slot, counter): (u32, u64), attempt: u32) -> (u32, u64) {
        let depth = u64::from(self.segment.spec().depth);
        let kept = depth.saturating_sub(attempt.into());
        if kept <= 1 || attempt >= 2 || !self.started && !self.restarted {
            return (slot, counter);
        }
        let oldest = (self.seen + 1).max((counter + 1).saturating_sub(kept));
        let chosen = self.segment.slot_before(slot, counter - oldest);
        // A writer that does not count by ones: only the newest is certain.
        if self.segment.cnt0(chosen) == oldest { (chosen, oldest) } else { (slot, counter) }
    }

    fn deliver(&mut self, slot: u32, meta: FrameMeta) -> Outcome {
        // Loads of the copy may have faulted, and the header may have changed during it.
        if let Some(trouble) = self.trouble() {
            return trouble;
        }
        let restarted = std::mem::take(&mut self.restarted);
        let unknown = restarted || !std::mem::replace(&mut self.started, true);
        let lapped = if unknown { 0 } else { meta.cnt0.saturating_sub(self.seen).saturating_sub(1) };
        self.seen = meta.cnt0;
        self.held = (slot, meta.cnt0);
        Outcome::Frame { meta, lapped, restarted }
    }

    fn stamp(&self, slot: u32) -> Stamp {
        let block = self.segment.spec().metadata_offset(slot);
        let part = |offset| self.segment.mapping.load32(block + offset);
        let parts = [part(at::LAST_POS), part(at::LAST_NB), part(at::PACKET_NB), part(at::PACKET_TOTAL)];
        Stamp { meta: self.segment.meta(slot), parts }
    }

    /// Copies the frame with this counter out of a slot, with the checks at the head of this file.
    fn copy(&self, slot: u32, counter: u64, buffer: &mut [u8]) -> Copied {
        // The caller's mistake, not the file's: it has the spec.
        assert_eq!(buffer.len(), self.segment.spec().frame_bytes(), "the buffer is no frame");
        let mut looks = 0;
        while self.segment.writing(slot) {
            looks += 1;
            if looks == WRITE_LOOKS {
                return Copied::Torn;
            }
            std::hint::spin_loop();
        }
        // With the pixels of the next frame and the counter of the last: in a ring that can be told.
        if self.segment.unfinished(slot) {
            return Copied::Torn;
        }
        let stamp = self.stamp(slot);
        if counter != stamp.meta.cnt0 {
            return Copied::Torn;
        }
        let offset = self.segment.spec().data_offset(slot);
        let untouched = || {
            // The pixels before the flag and the stamp. Partner: the writer's fence between its flag and its
            // pixels.
            fence(Ordering::SeqCst);
            // A ring's slot before its stamp: a writer that finishes between the two looks has changed the stamp.
            !self.segment.writing(slot) && !self.segment.unfinished(slot) && self.stamp(slot) == stamp
        };
        let mut done = 0;
        for chunk in buffer.chunks_mut(CHUNK_BYTES) {
            self.segment.mapping.copy_out(offset + done, chunk);
            done += chunk.len();
            if !untouched() {
                return Copied::Torn;
            }
        }
        let witness = self.segment.mapping.matches(offset, buffer, WITNESS_LINES);
        if self.segment.next_to_write(slot) {
            for _ in 0..SETTLE_SPINS {
                std::hint::spin_loop();
            }
        }
        if witness && untouched() { Copied::Whole(stamp.meta) } else { Copied::Torn }
    }
}
