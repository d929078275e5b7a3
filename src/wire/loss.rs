//! What a receiver can tell from the sequence numbers and totals in the headers: frames lost, and why.

use crate::wire::frame::{FrameHeader, FrameKind};

/// Frames that a mirror did not get, by cause. A frame is counted once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    /// The source's writer overwrote them before the owner had copied them.
    pub lapped: u64,
    /// The owner left us out, since an older one was still on its way: this mirror, or the link, was too slow.
    pub queue_full: u64,
    /// Gone between the owner and us: the link was cut, or a peer restarted.
    pub transport: u64,
}

/// What a message is to the receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// A new frame: to be written to the mirror.
    New,
    /// A frame that was here before.
    Repeated,
    /// No frame, and none is missing.
    Quiet,
    /// No frame, and at least the newest is missing: worth asking for it again.
    Behind,
}

/// Keeps the books of one stream.
#[derive(Debug, Default)]
pub struct Ledger {
    last: Option<FrameHeader>,
    /// Frames that `Behind` has already counted, by the sequence number up to which it has.
    counted_to: u64,
    /// What the last missing frames were booked under.
    queue_was_full: bool,
    /// The losses so far, over all publishers of the stream.
    pub lost: Lost,
}

impl Ledger {
    /// New books that go on from these losses.
    pub fn continuing(lost: Lost) -> Ledger {
        Ledger { lost, ..Ledger::default() }
    }

    fn cause(&mut self) -> &mut u64 {
        if self.queue_was_full { &mut self.lost.queue_full } else { &mut self.lost.transport }
    }

    /// The sequence number of the newest message, 0 before the first.
    pub fn seq(&self) -> u64 {
        self.last.as_ref().map_or(0, |last| last.seq)
    }

    /// Books one message. Another boot id starts a new count: what was lost between two publishers is unknown.
    pub fn on_message(&mut self, header: &FrameHeader) -> Arrival {
        let Some(last) = self.last.filter(|last| last.boot_id == header.boot_id) else {
            // A stream that begins with `alive` has yet to see its first frame: its sequence number is not ours.
            let begun = FrameHeader {
                seq: header.seq - u64::from(header.kind == FrameKind::Alive).min(header.seq),
                ..*header
            };
            self.last = Some(begun);
            self.counted_to = header.seq;
            return match header.kind {
                FrameKind::Frame => Arrival::New,
                FrameKind::Alive if header.seq == 0 => Arrival::Quiet,
                FrameKind::Alive => Arrival::Behind,
            };
        };
        // Frames with a number that passed us by: all before a frame; up to and with the number of an `alive`.
        let reached = header.seq.saturating_sub(u64::from(header.kind == FrameKind::Frame));
        let missing = reached.saturating_sub(self.counted_to.max(last.seq));
        // A link delivers in order or breaks. The owner counts the frames that it left somebody out of, and not whom: a gap
        // over which it did is that queue's, all of it.
        if missing > 0 {
            self.queue_was_full = header.queue_full_total > last.queue_full_total;
            *self.cause() += missing;
        }
        self.lost.lapped += header.lapped_total.saturating_sub(last.lapped_total);
        self.counted_to = self.counted_to.max(reached);
        let arrival = match header.kind {
            FrameKind::Alive if header.seq > last.seq => Arrival::Behind,
            FrameKind::Alive => Arrival::Quiet,
            FrameKind::Frame if header.seq > last.seq => Arrival::New,
            FrameKind::Frame => Arrival::Repeated,
        };
        if arrival == Arrival::New {
            // A frame that `alive` had given up for lost came after all: sent again because we asked.
            if header.seq <= self.counted_to {
                let booked = self.cause();
                *booked = booked.saturating_sub(1);
            }
            self.counted_to = self.counted_to.max(header.seq);
            self.last = Some(*header);
        } else {
            // The totals are newer even where the frame is not.
            self.last = Some(FrameHeader {
                lapped_total: header.lapped_total.max(last.lapped_total),
                queue_full_total: header.queue_full_total.max(last.queue_full_total),
                ..last
            });
        }
        arrival
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::frame::tests::header;

    fn alive(seq: u64) -> FrameHeader {
        FrameHeader { kind: FrameKind::Alive, ..header(seq) }
    }

    #[test]
    fn frames_in_a_row_lose_nothing() {
        let mut ledger = Ledger::default();
        for seq in 41..60 {
            assert_eq!(ledger.on_message(&header(seq)), Arrival::New);
        }
        assert_eq!(ledger.on_message(&alive(59)), Arrival::Quiet);
        assert_eq!(ledger.lost, Lost::default());
    }

    #[test]
    fn a_frame_sent_again_for_somebody_else_is_a_repeat() {
        let mut ledger = Ledger::default();
        ledger.on_message(&header(5));
        assert_eq!(ledger.on_message(&FrameHeader { on_subscription: true, ..header(5) }), Arrival::Repeated);
        assert_eq!(ledger.lost, Lost::default());
    }

    #[test]
    fn a_gap_is_the_queues_if_a_queue_was_full_meanwhile_and_else_the_links() {
        let mut ledger = Ledger::default();
        ledger.on_message(&header(1));
        ledger.on_message(&FrameHeader { queue_full_total: 1, ..header(5) });
        assert_eq!(ledger.lost, Lost { lapped: 0, queue_full: 3, transport: 0 });
        ledger.on_message(&FrameHeader { queue_full_total: 9, lapped_total: 4, ..header(6) });
        assert_eq!(ledger.lost, Lost { lapped: 4, queue_full: 3, transport: 0 });
        ledger.on_message(&FrameHeader { queue_full_total: 9, lapped_total: 4, ..header(8) });
        assert_eq!(ledger.lost, Lost { lapped: 4, queue_full: 3, transport: 1 });
    }

    #[test]
    fn the_last_frame_of_a_burst_that_is_lost_is_noticed_and_not_counted_when_it_comes_again() {
        let mut ledger = Ledger::default();
        ledger.on_message(&header(1));
        assert_eq!(ledger.on_message(&alive(3)), Arrival::Behind);
        assert_eq!(ledger.lost.transport, 2);
        assert_eq!(ledger.on_message(&alive(3)), Arrival::Behind);
        assert_eq!(ledger.lost.transport, 2, "counted once");
        assert_eq!(ledger.on_message(&FrameHeader { on_subscription: true, ..header(3) }), Arrival::New);
        assert_eq!(ledger.lost.transport, 1, "frame 2 stays lost");
        assert_eq!(ledger.on_message(&header(4)), Arrival::New);
        assert_eq!(ledger.lost.transport, 1);
        assert_eq!(ledger.on_message(&FrameHeader { queue_full_total: 1, ..alive(6) }), Arrival::Behind);
        ledger.on_message(&FrameHeader { queue_full_total: 1, on_subscription: true, ..header(6) });
        assert_eq!(ledger.lost, Lost { lapped: 0, queue_full: 1, transport: 1 });
    }

    #[test]
    fn a_restarted_publisher_starts_a_new_count() {
        let mut ledger = Ledger::default();
        ledger.on_message(&header(1_000));
        assert_eq!(ledger.on_message(&FrameHeader { boot_id: 10, ..header(1) }), Arrival::New);
        assert_eq!(ledger.on_message(&FrameHeader { boot_id: 10, ..header(2) }), Arrival::New);
        assert_eq!(ledger.lost, Lost::default());
    }

    #[test]
    fn a_stream_that_begins_with_alive_counts_from_there() {
        let mut ledger = Ledger::default();
        assert_eq!(ledger.on_message(&alive(0)), Arrival::Quiet);
        assert_eq!(ledger.on_message(&header(1)), Arrival::New);
        let mut ledger = Ledger::default();
        assert_eq!(ledger.on_message(&alive(7)), Arrival::Behind);
        assert_eq!(ledger.on_message(&FrameHeader { on_subscription: true, ..header(7) }), Arrival::New);
        assert_eq!(ledger.on_message(&header(8)), Arrival::New);
        assert_eq!(ledger.lost, Lost::default());
    }
}
