//! `shm read`: whole frames, one or several that follow each other.

use super::super::commands::Read;
use super::super::output;
use super::super::typed::Format;
use super::{LOOK_AGAIN, PATIENCE, open, values};
use crate::error::{Error, Kind, Result};
use crate::os::{clock, scheduling};
use crate::shm::{Access, FrameMeta, Outcome, Reader, SegmentSpec};
use crate::wire::time;
use std::fs::File;
use std::io::Write;
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

/// Prints the newest frame, or with `wait` the next ones that are new.
pub fn run(asked: &Read) -> Result<()> {
    let path = &asked.segment;
    let mut follower = Follower { path, wait: asked.wait, reader: None, opened: 0, lapped: 0, restarts: 0 };
    follower.reader = Some(follower.open()?);
    // Made when what is new is settled: who sees it may write, and the frame will be read.
    let mut times = asked.times.as_deref().map(Times::create).transpose()?;
    let mut first: Option<SegmentSpec> = None;
    if asked.count > 1 {
        scheduling::prefer_latency();
    }
    let mut done = Ok(());
    for number in 0..asked.count {
        done = follower.next().and_then(|frame| {
            let spec = first.get_or_insert_with(|| frame.spec.clone());
            if (&spec.shape, spec.dtype) != (&frame.spec.shape, frame.spec.dtype) {
                return Err(reshaped(path, spec, &frame.spec, number));
            }
            print(path, asked.format, &frame)?;
            // Behind its frame: whoever ends us in between is left with one frame more than times, not less.
            times.as_mut().map_or(Ok(()), |times| times.write(&frame.meta))
        });
        if done.is_err() {
            break;
        }
    }
    // Who asked for one frame has it.
    match (done, follower.losses().filter(|_| asked.count > 1)) {
        (Ok(()), Some(losses)) => {
            output::complain(&Error::new(Kind::Value, losses));
            Ok(())
        }
        // A failure is one line.
        (Err(why), Some(losses)) => Err(Error::new(why.kind, format!("{} {losses}", why.message))),
        (done, None) => done,
    }
}

fn too_late(path: &Path, wait: Option<Duration>) -> Error {
    let path = path.display();
    let sentence = match wait {
        Some(wait) => format!("No new frame of segment '{path}' within {} s.", wait.as_secs_f64()),
        None => format!("No whole frame of segment '{path}' within {} s.", PATIENCE.as_secs_f64()),
    };
    Error::new(Kind::Timeout, sentence)
}

/// Frames of two sizes one after the other could not be told apart.
fn reshaped(path: &Path, old: &SegmentSpec, new: &SegmentSpec, frames: u64) -> Error {
    let (was, is) = (old.dtype.name(), new.dtype.name());
    let (path, before, now) = (path.display(), &old.shape, &new.shape);
    let sentence =
        format!("Segment '{path}' was {before} {was} and is {now} {is} now, after {frames} frames.");
    Error::new(Kind::Value, sentence)
}

/// The file that gets a line a frame: its counter and its time in nanoseconds.
struct Times {
    file: File,
    name: String,
}

impl Times {
    fn create(path: &Path) -> Result<Times> {
        let name = path.display().to_string();
        match File::create(path) {
            Ok(file) => Ok(Times { file, name }),
            Err(why) => Err(Error::new(Kind::Os, format!("Cannot write times to '{name}': {why}."))),
        }
    }

    /// Not buffered: what is there when we are ended is whole lines.
    fn write(&mut self, meta: &FrameMeta) -> Result<()> {
        let line = format!("{} {}\n", meta.cnt0, meta.atime_ns);
        let done = self.file.write_all(line.as_bytes());
        done.map_err(|why| Error::new(Kind::Os, format!("Cannot write times to '{}': {why}.", self.name)))
    }
}

/// One segment after the other of one path.
struct Follower<'a> {
    path: &'a Path,
    /// For new frames, each at most so long; without it the newest is taken.
    wait: Option<Duration>,
    reader: Option<Reader>,
    /// How often the segment was opened.
    opened: u64,
    lapped: u64,
    /// How often it was created anew, or its counter started over, while we followed.
    restarts: u64,
}

impl Follower<'_> {
    fn next(&mut self) -> Result<Frame> {
        let deadline = Instant::now() + self.wait.unwrap_or(PATIENCE);
        loop {
            let mut reader = match self.reader.take() {
                Some(reader) => reader,
                None => self.open()?,
            };
            if let Some(frame) = self.follow(&mut reader, deadline) {
                self.reader = Some(reader);
                return Ok(frame);
            }
            if Instant::now() >= deadline {
                return Err(too_late(self.path, self.wait));
            }
        }
    }

    /// What stands in the segment when we come is old. Every frame of one that replaced it is new.
    fn open(&mut self) -> Result<Reader> {
        let mut reader = Reader::new(open(self.path, Access::Read)?);
        if self.wait.is_some() && self.opened == 0 {
            reader.pass_over();
        }
        self.opened += 1;
        Ok(reader)
    }

    /// A frame; `None` at the deadline, or when the segment must be opened again.
    fn follow(&mut self, reader: &mut Reader, deadline: Instant) -> Option<Frame> {
        let spec = reader.segment().spec().clone();
        let mut pixels = vec![0; spec.frame_bytes()];
        let mut looks = 0;
        loop {
            let outcome = match self.wait {
                Some(_) => reader.read_next(&mut pixels),
                None => reader.read_newest(&mut pixels),
            };
            match outcome {
                Outcome::Frame { meta, lapped, restarted } => {
                    self.lapped += lapped;
                    self.restarts += u64::from(restarted);
                    return Some(Frame { spec, meta, pixels });
                }
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

    /// What was written meanwhile and could not be had.
    fn losses(&self) -> Option<String> {
        let restarts = self.restarts + self.opened.saturating_sub(1);
        match (self.lapped, restarts) {
            (0, 0) => None,
            (lapped, 0) => Some(format!("{lapped} frames were written meanwhile and could not be had.")),
            (lapped, _) => Some(format!(
                "{lapped} frames were written meanwhile and could not be had; how many besides while the segment \
                 was made anew or started over ({restarts} times) is not known."
            )),
        }
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
