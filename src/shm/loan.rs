//! A ring's frame that is sent from where it stands: of a large one the copy would take as long as the sending.
//!
//! A writer goes from slot to slot. It begins to write into this one after it has counted `depth - 1` frames more; until
//! that is seen, whatever was read here was the frame. So there is time as long as the ring's next turn is not near, and
//! whether there was enough is known afterwards (`tests/models/frame.pml`, `LENT`). While little is left, the rest is to be copied.

use super::segment::{FrameMeta, Segment};
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

/// In a smaller ring the writer is always near.
pub(super) const LENT_DEPTH_MIN: u32 = 4;

/// Where a frame stands. The mapping stays for as long as this lives.
#[derive(Clone)]
pub struct Loan {
    segment: Arc<Segment>,
    slot: u32,
    meta: FrameMeta,
    creation: u64,
}

impl Loan {
    pub(super) fn new(segment: Arc<Segment>, slot: u32, meta: FrameMeta) -> Loan {
        let creation = segment.creation();
        Loan { segment, slot, meta, creation }
    }

    /// Frames that the writer has finished since. `None`: it may have begun to write here, or the segment is another.
    fn since(&self) -> Option<u64> {
        // What was read before the counters. Partner: the writer's fence between its flag and its pixels.
        fence(Ordering::SeqCst);
        let segment = &self.segment;
        let since = segment.newest().1.checked_sub(self.meta.cnt0)?;
        // What has been counted tells how far the writer is, but for the first turn after one died before it counted: its
        // successor gives counters that were given before. Flag and time tell them apart.
        let same = !segment.writing(self.slot)
            && segment.meta(self.slot) == self.meta
            && segment.creation() == self.creation
            && !segment.shape_changed()
            && !segment.lost();
        (same && since + 1 < u64::from(segment.spec().depth)).then_some(since)
    }

    /// So many frames after this one there is still time to copy it.
    fn unhurried(&self) -> u64 {
        let depth = u64::from(self.segment.spec().depth);
        depth.saturating_sub((depth / 4).max(2))
    }

    /// Is what was read until now the frame, and will the writer not be here soon?
    pub fn has_time(&self) -> bool {
        self.since().is_some_and(|since| since < self.unhurried())
    }

    /// Is it, and will the writer be here soon?
    pub fn is_in_danger(&self) -> bool {
        self.since().is_some_and(|since| since >= self.unhurried())
    }

    /// Is what was read until now the frame?
    pub fn is_whole(&self) -> bool {
        self.since().is_some()
    }

    /// Bytes of the frame.
    pub fn bytes(&self) -> usize {
        self.segment.spec().frame_bytes()
    }

    /// Has the kernel take `head`, and the frame from its byte `from` on. Gives how many bytes it took.
    pub fn send(&self, head: &[u8], from: usize, to: &impl AsRawFd) -> io::Result<usize> {
        let offset = self.segment.spec().data_offset(self.slot);
        self.segment.mapping.write_out(offset + from, self.bytes() - from, head, to)
    }

    /// Copies the frame out, from its byte `from` on. Whether that was the frame, [`Loan::is_whole`] says.
    pub fn copy_rest(&self, from: usize, to: &mut [u8]) {
        let offset = self.segment.spec().data_offset(self.slot);
        self.segment.mapping.copy_out(offset + from, to);
    }
}
