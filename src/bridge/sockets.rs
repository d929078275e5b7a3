//! What the connections of a stream have in common.

use crate::limits;
use crate::os::tcp;
use std::net::TcpStream;
use std::time::Duration;

/// Who has not said who it is for so long is ended.
pub const GREETED_WITHIN: Duration = Duration::from_secs(5);
/// Who is silent over ZMQ is asked for a sign of life so often.
pub const PING_INTERVAL: Duration = Duration::from_secs(1);
/// A part of a message that has gone, or come, is followed by the rest within this time if both ends are at it.
pub const UNDER_WAY_NS: i64 = 200_000;

/// So many bytes, touched now: no frame should pay for their first page fault, as it would with `vec![0; n]`.
pub fn touched(bytes: usize) -> Vec<u8> {
    let mut touched = Vec::with_capacity(bytes);
    touched.resize_with(bytes, || std::hint::black_box(0u8));
    touched
}

/// The kernel's buffers of a stream: two frames of it, within bounds. Its default ones hold thousands of small frames,
/// all of them old after a stall.
pub fn buffer_bytes(frame_bytes: usize) -> usize {
    let (smallest, largest) = limits::SOCKET_BUFFER_BYTES;
    (2 * frame_bytes).clamp(smallest, largest)
}

/// Of a stream that leads nowhere but to this machine less is on its way at once: to where nothing has to travel, a buffer
/// that is out of the caches only costs time.
pub fn keep_near(stream: &TcpStream, buffer_bytes: usize) {
    if buffer_bytes > limits::NEAR_BUFFER_BYTES && tcp::is_local(stream) {
        let _ = tcp::set_buffers(stream, limits::NEAR_BUFFER_BYTES); // frames come all the same
    }
}

/// Who is asked for a sign of life over ZMQ gives one within this time: a large frame may stand before the answer.
pub fn answers_within(frame_bytes: usize) -> Duration {
    let transfer_ms = frame_bytes as u64 / 10_000; // ten frames at 100 MB/s
    Duration::from_millis(transfer_ms.clamp(3_000, 60_000))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::TcpListener;

    #[test]
    fn within_a_machine_little_is_on_its_way_at_once() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = |near: bool| {
            let mut here = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let there = listener.accept().unwrap().0;
            for stream in [&here, &there] {
                tcp::prepare(stream, 4 << 20).unwrap();
                if near {
                    keep_near(stream, 4 << 20);
                }
            }
            let mut bytes = 0;
            while let Ok(count) = here.write(&[0; 65_536]) {
                bytes += count;
            }
            bytes
        };
        let near = taken(true);
        // The kernel keeps twice what it is asked for, on each side.
        assert!((64 * 1024..=4 * limits::NEAR_BUFFER_BYTES).contains(&near), "{near}");
        assert!(taken(false) >= near);
    }
}
