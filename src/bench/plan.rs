//! What is measured: sizes, rates, transports, polling modes.

use std::path::PathBuf;
use std::time::Duration;

/// Sizes that are measured unless others are asked for.
pub const SIZES_BYTES: [usize; 4] = [1 << 10, 64 << 10, 1 << 20, 16 << 20];
/// The same of a bench to another machine.
pub const REMOTE_SIZES_BYTES: [usize; 3] = [1 << 10, 64 << 10, 1 << 20];
/// The one of a quick bench.
pub const QUICK_SIZE_BYTES: usize = 64 << 10;
/// Largest frame: one takes some ten milliseconds, and five copies of it are held.
pub const SIZE_BYTES_MAX: usize = 64 << 20;
/// The transports, as `--transport` names them.
pub const TRANSPORTS: [&str; 2] = ["tcp", "zmq"];
/// Between two frames of a latency run a second has at most so many bytes, so that no queue builds up.
const PACED_BYTES_PER_S: f64 = 640e6;
/// And at most so many frames, as of a fast camera.
const PACED_HZ: f64 = 1_000.0;
/// Sources are rings of about so many bytes, as mirrors are, so that a burst is no loss by itself.
const RING_BYTES: usize = 1 << 20;

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Bytes of a frame.
    pub sizes_bytes: Vec<usize>,
    /// Runs of each measurement, taken in turns.
    pub runs: usize,
    /// Of one run.
    pub run_time: Duration,
    /// Values of the daemon's `--poll`; `None`: it is not given.
    pub polls: Vec<Option<&'static str>>,
    /// Is what publishing costs to be measured, too?
    pub publishing: bool,
    /// Flags that name a Redis which runs already. Empty: the bench starts its own.
    pub redis_flags: Vec<String>,
    /// Private directories are made here.
    pub shm_dir: PathBuf,
}

/// What is to be done to another machine and back.
#[derive(Clone, Debug, PartialEq)]
pub struct RemotePlan {
    /// The other machine, in whose daemon's memory it is done.
    pub host: String,
    /// Bytes of a frame.
    pub sizes_bytes: Vec<usize>,
    /// Runs of each measurement.
    pub runs: usize,
    /// Of one run.
    pub run_time: Duration,
    /// The local daemon.
    pub control: PathBuf,
    /// Longest wait for the other machine to publish.
    pub timeout: Duration,
}

/// One transport in one polling mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Case {
    pub transport: &'static str,
    pub poll: Option<&'static str>,
}

impl Plan {
    /// Every pair of transport and polling mode.
    pub fn cases(&self) -> Vec<Case> {
        let of = |transport| self.polls.iter().map(move |&poll| Case { transport, poll });
        TRANSPORTS.into_iter().flat_map(of).collect()
    }
}

/// Frames a second in a latency run.
pub fn paced_hz(frame_bytes: usize) -> f64 {
    PACED_HZ.min(PACED_BYTES_PER_S / frame_bytes as f64)
}

/// Frames in the source's ring.
pub fn source_depth(frame_bytes: usize) -> u32 {
    (RING_BYTES / frame_bytes).clamp(8, 64) as u32
}

/// `64k`, `1M`, `1000`: bytes of a frame.
pub fn parse_size(text: &str) -> Result<usize, String> {
    let (digits, unit) = match text.strip_suffix(['k', 'K']) {
        Some(digits) => (digits, 1 << 10),
        None => text.strip_suffix('M').map_or((text, 1), |digits| (digits, 1 << 20)),
    };
    let bytes = digits.parse::<usize>().ok().and_then(|number| number.checked_mul(unit));
    // A frame of the floors holds a time and a number.
    bytes
        .filter(|bytes| (16..=SIZE_BYTES_MAX).contains(bytes))
        .ok_or_else(|| "it is no list of sizes from 16 bytes to 64M, such as 1k,64k,1M".into())
}

/// `64k`, as [`parse_size`] reads it.
pub fn size_name(bytes: usize) -> String {
    match bytes {
        _ if bytes.is_multiple_of(1 << 20) => format!("{}M", bytes >> 20),
        _ if bytes.is_multiple_of(1 << 10) => format!("{}k", bytes >> 10),
        _ => bytes.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_they_are_named() {
        for bytes in SIZES_BYTES.into_iter().chain([16, 1_000, 3 << 10]) {
            assert_eq!(parse_size(&size_name(bytes)), Ok(bytes));
        }
        for bad in ["", "k", "0", "15", "65M", "1G", "-1", "99999999999999999999k", "18446744073709551615k"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn large_frames_come_more_slowly_and_rings_are_shorter() {
        assert_eq!((paced_hz(1 << 10), paced_hz(64 << 10)), (1_000.0, 1_000.0));
        assert!((38.0..39.0).contains(&paced_hz(16 << 20)));
        assert_eq!((source_depth(1 << 10), source_depth(64 << 10), source_depth(16 << 20)), (64, 16, 8));
    }
}
