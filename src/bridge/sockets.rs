//! What the connections of a stream have in common.

use crate::limits;
use std::time::Duration;

/// The kernel's buffers of a stream: two frames of it, within bounds. Its default ones hold thousands of small frames,
/// all of them old after a stall.
pub fn buffer_bytes(frame_bytes: usize) -> usize {
    let (smallest, largest) = limits::SOCKET_BUFFER_BYTES;
    (2 * frame_bytes).clamp(smallest, largest)
}

/// Who is asked for a sign of life over ZMQ gives one within this time: a large frame may stand before the answer.
pub fn answers_within(frame_bytes: usize) -> Duration {
    let transfer_ms = frame_bytes as u64 / 10_000; // ten frames at 100 MB/s
    Duration::from_millis(transfer_ms.clamp(3_000, 60_000))
}
