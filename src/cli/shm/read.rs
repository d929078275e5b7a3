//! `shm read`: one whole frame.

use super::super::output;
use super::super::typed::Format;
use super::{LOOK_AGAIN, PATIENCE, open, values};
use crate::error::{Error, Kind, Result};
use crate::os::clock;
use crate::shm::{Access, FrameMeta, Outcome, Reader, SegmentSpec};
use crate::wire::time;
use std::path::Path;
use std::time::{Duration, Instant};

/// A file that was replaced is noticed within so many looks at the counter: a `stat` is dearer than a look.
const LOOKS_A_STAT: u32 = 256;

/// A frame and what it is.
struct Frame {
    spec: SegmentSpec,
    meta: FrameMeta,
    pixels: Vec<u8>,
}

/// Prints the newest frame, or with `wait` the next one that is new.
pub fn run(path: &Path, format: Format, wait: Option<Duration>) -> Result<()> {
    let deadline = Instant::now() + wait.unwrap_or(PATIENCE);
    let mut replaced = false;
    let frame = loop {
        let reader = Reader::new(open(path, Access::Read)?);
        match follow(reader, wait.is_some(), replaced, deadline) {
            Some(frame) => break frame,
            None if Instant::now() < deadline => replaced = true,
            None => return Err(too_late(path, wait)),
        }
    };
    print(path, format, &frame)
}

fn too_late(path: &Path, wait: Option<Duration>) -> Error {
    let path = path.display();
    let sentence = match wait {
        Some(wait) => format!("No new frame of segment '{path}' within {} s.", wait.as_secs_f64()),
        None => format!("No whole frame of segment '{path}' within {} s.", PATIENCE.as_secs_f64()),
    };
    Error::new(Kind::Timeout, sentence)
}

/// A frame; `None` at the deadline, or when the segment must be opened again. Every frame of a segment that
/// replaced the one we waited at is new.
fn follow(mut reader: Reader, new_only: bool, replaced: bool, deadline: Instant) -> Option<Frame> {
    let spec = reader.segment().spec().clone();
    let mut pixels = vec![0; spec.frame_bytes()];
    let mut old_seen = !new_only || replaced;
    let mut looks = 0;
    loop {
        let outcome = if new_only && old_seen {
            reader.read_next(&mut pixels)
        } else {
            reader.read_newest(&mut pixels)
        };
        match outcome {
            Outcome::Frame { .. } if !old_seen => {
                old_seen = true;
                continue;
            }
            Outcome::Frame { meta, .. } => return Some(Frame { spec, meta, pixels }),
            Outcome::Nothing | Outcome::Busy => (),
            Outcome::Changed | Outcome::Lost => {
                clock::sleep(LOOK_AGAIN);
                return None;
            }
        }
        looks += 1;
        if Instant::now() >= deadline || (looks % LOOKS_A_STAT == 0 && reader.segment().replaced()) {
            return None;
        }
        clock::sleep(LOOK_AGAIN);
    }
}

fn print(path: &Path, format: Format, frame: &Frame) -> Result<()> {
    let Frame { spec, meta, pixels } = frame;
    let (shape, dtype) = (&spec.shape, spec.dtype);
    output::write(|out| match format {
        Format::Raw => out.write_all(pixels),
        Format::Text => {
            let (counter, written) = (meta.cnt0, time::format(meta.atime_ns));
            writeln!(out, "# {} {shape} {} counter {counter} at {written}", path.display(), dtype.name())?;
            values::write_text(out, dtype, shape, pixels)
        }
        Format::Json => {
            let head = serde_json::json!({
                "path": path.to_string_lossy(),
                "shape": shape.axes(),
                "dtype": dtype.name(),
                "counter": meta.cnt0,
                "atime": meta.atime_ns,
            })
            .to_string();
            // The object is left open for the data, which may be too much to be held as JSON values.
            out.write_all(head.trim_end_matches('}').as_bytes())?;
            out.write_all(b",\"data\":")?;
            values::write_json(out, dtype, shape, pixels)?;
            out.write_all(b"}\n")
        }
    })
}
