//! Who wrote which frame of a segment, for the frames that this daemon wrote into it. Echo is stopped by this, not by
//! guessing counters.

use std::sync::atomic::{AtomicU64, Ordering};

/// Frames that are remembered: far more than can pass between a write and the look at it, which one thread does.
const FRAMES: usize = 256;

/// The frames that a daemon wrote into one segment: their counters, and the origin of each. One thread writes and looks
/// them up; the atomics only let it be shared between that thread's parts.
pub struct Origins {
    frames: [(AtomicU64, AtomicU64); FRAMES],
}

/// The origin of a frame that a program on the owner's machine wrote.
pub const OWNER: u64 = 0;

impl Default for Origins {
    fn default() -> Origins {
        // No frame has counter u64::MAX.
        Origins { frames: [const { (AtomicU64::new(u64::MAX), AtomicU64::new(OWNER)) }; FRAMES] }
    }
}

impl Origins {
    fn place(&self, counter: u64) -> &(AtomicU64, AtomicU64) {
        &self.frames[counter as usize % FRAMES]
    }

    /// This daemon has written the frame with this counter for `origin`.
    pub fn record(&self, counter: u64, origin: u64) {
        let (known, of) = self.place(counter);
        of.store(origin, Ordering::Relaxed);
        known.store(counter, Ordering::Relaxed);
    }

    /// The segment has started again at another counter.
    pub fn clear(&self) {
        self.frames.iter().for_each(|(known, _)| known.store(u64::MAX, Ordering::Relaxed));
    }

    /// Whose frame this is, if this daemon wrote it; `None`: a program on this machine did.
    pub fn of(&self, counter: u64) -> Option<u64> {
        let (known, of) = self.place(counter);
        (known.load(Ordering::Relaxed) == counter).then(|| of.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_known_by_its_counter_until_many_others_were_written() {
        let origins = Origins::default();
        assert_eq!(origins.of(0), None);
        origins.record(5, 77);
        assert_eq!((origins.of(5), origins.of(6), origins.of(5 + FRAMES as u64)), (Some(77), None, None));
        origins.record(5 + FRAMES as u64, 78);
        assert_eq!(origins.of(5), None);
    }
}
