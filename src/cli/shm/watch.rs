//! `shm watch`: a line a second.

use super::super::output;
use super::info::age;
use super::{open, values};
use crate::error::Result;
use crate::os::clock;
use crate::shm::{Access, Outcome, Reader};
use std::path::Path;
use std::time::{Duration, Instant};

/// Between two lines.
const PERIOD: Duration = Duration::from_secs(1);

/// Prints until interrupted, until nobody reads on, or until the segment is gone.
pub fn run(path: &Path) -> Result<()> {
    loop {
        let segment = open(path, Access::Read)?;
        output::print(&format!(
            "# {} {} {}",
            path.display(),
            segment.spec().shape,
            segment.spec().dtype.name()
        ))?;
        watch(Reader::new(segment))?;
    }
}

/// Until the segment must be opened again.
fn watch(mut reader: Reader) -> Result<()> {
    let dtype = reader.segment().spec().dtype;
    let mut pixels = vec![0; reader.segment().spec().frame_bytes()];
    let (mut counter, mut since) = (reader.segment().newest().1, Instant::now());
    loop {
        clock::sleep(PERIOD.saturating_sub(since.elapsed()));
        let (now, newest) = (Instant::now(), reader.segment().newest().1);
        let rate_hz = newest.saturating_sub(counter) as f64 / now.duration_since(since).as_secs_f64();
        (counter, since) = (newest, now);
        let line = match reader.read_newest(&mut pixels) {
            Outcome::Frame { meta, .. } => {
                let (mut least, mut most, mut sum, mut count) = (f64::INFINITY, f64::NEG_INFINITY, 0.0, 0.0);
                for value in values::elements(dtype, &pixels) {
                    let value = value.real();
                    (least, most) = (least.min(value), most.max(value));
                    sum += value;
                    count += 1.0;
                }
                let mean = sum / count;
                let (counter, age) = (meta.cnt0, age(meta.atime_ns));
                format!("counter {counter}  {rate_hz:.1} Hz  {age}  min {least} max {most} mean {mean:.6}")
            }
            Outcome::Busy | Outcome::Nothing => format!("counter {newest}  {rate_hz:.1} Hz  being written"),
            Outcome::Changed | Outcome::Lost => return Ok(()),
        };
        output::print(&line)?;
        if reader.segment().replaced() {
            return Ok(());
        }
    }
}
