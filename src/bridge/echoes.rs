//! When a bidirectional mirror's own frames came back: for who measures that (`bench --to`), and noted only from when
//! somebody has asked. A queue of fixed size: the mirror's worker puts in, one at a time takes out.

use crate::limits;
use crate::wire::frame::FrameHeader;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

/// A frame that was written here, went to its owner and came back, ns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Echo {
    /// From the frame's time stamp to its coming back, by this machine's clock alone.
    pub round_trip_ns: i64,
    /// From the frame's time stamp, by this machine's clock, to when the owner saw it, by the owner's.
    pub out_ns: i64,
    /// From then to when the owner sent it, by the owner's clock alone.
    pub there_ns: i64,
}

impl Echo {
    /// By the header of a frame that came back, and when. All of it is of anybody: nothing may overflow.
    pub fn of(header: &FrameHeader, received_ns: i64) -> Echo {
        Echo {
            round_trip_ns: received_ns.saturating_sub(header.atime_ns),
            out_ns: header.seen_ns.saturating_sub(header.atime_ns),
            there_ns: header.sent_ns.saturating_sub(header.seen_ns),
        }
    }
}

/// Those that nobody has taken yet. What comes while it is full is left out.
pub struct Echoes {
    slots: Box<[[AtomicI64; 3]]>,
    noted: AtomicU64,
    taken: AtomicU64,
}

impl Default for Echoes {
    fn default() -> Echoes {
        let slots = (0..limits::ECHOES_MAX).map(|_| Default::default()).collect();
        Echoes { slots, noted: AtomicU64::new(0), taken: AtomicU64::new(0) }
    }
}

impl Echoes {
    fn slot(&self, number: u64) -> Option<&[AtomicI64; 3]> {
        self.slots.get(number as usize % self.slots.len())
    }

    /// Notes one. On the mirror's thread alone; allocates nothing.
    pub fn note(&self, echo: Echo) {
        let number = self.noted.load(Ordering::Relaxed);
        // Partner: the Release of `take`, which is done with the slot.
        if number - self.taken.load(Ordering::Acquire) >= self.slots.len() as u64 {
            return;
        }
        if let Some([round_trip, out, there]) = self.slot(number) {
            round_trip.store(echo.round_trip_ns, Ordering::Relaxed);
            out.store(echo.out_ns, Ordering::Relaxed);
            there.store(echo.there_ns, Ordering::Relaxed);
        }
        // Partner: the Acquire of `take`.
        self.noted.store(number + 1, Ordering::Release);
    }

    /// Takes all that were noted. One caller at a time.
    pub fn take(&self) -> Vec<Echo> {
        let (from, to) = (self.taken.load(Ordering::Relaxed), self.noted.load(Ordering::Acquire));
        let echo = |[round_trip, out, there]: &[AtomicI64; 3]| Echo {
            round_trip_ns: round_trip.load(Ordering::Relaxed),
            out_ns: out.load(Ordering::Relaxed),
            there_ns: there.load(Ordering::Relaxed),
        };
        let echoes = (from..to).filter_map(|number| self.slot(number).map(echo)).collect();
        self.taken.store(to, Ordering::Release);
        echoes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::frame::tests::header;

    fn echo(number: i64) -> Echo {
        Echo { round_trip_ns: number, out_ns: -number, there_ns: 1 }
    }

    #[test]
    fn each_is_taken_once_and_what_finds_no_room_is_left_out() {
        let echoes = Echoes::default();
        assert_eq!(echoes.take(), []);
        (1..=3).for_each(|number| echoes.note(echo(number)));
        assert_eq!(echoes.take(), [echo(1), echo(2), echo(3)]);
        let more = limits::ECHOES_MAX as i64 + 5;
        (1..=more).for_each(|number| echoes.note(echo(number)));
        let taken = echoes.take();
        assert_eq!((taken.len(), taken.last()), (limits::ECHOES_MAX, Some(&echo(more - 5))));
        echoes.note(echo(7));
        assert_eq!(echoes.take(), [echo(7)]);
    }

    #[test]
    fn no_time_is_too_strange() {
        for ns in [i64::MIN, i64::MAX] {
            Echo::of(&FrameHeader { atime_ns: ns, seen_ns: -ns.max(1), sent_ns: ns, ..header(1) }, ns);
        }
    }
}
