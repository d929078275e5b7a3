//! `shm write`: frames from a value, a file or standard input.

use super::super::commands::{Source, Write};
use super::{kind_of_io, open, values};
use crate::error::{Error, Kind, Result};
use crate::os::{clock, scheduling, signals};
use crate::shm::{Access, SegmentSpec, Writer};
use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::Path;
use std::time::{Duration, Instant};

/// Writes as many frames as were asked for, at their pace.
pub fn run(asked: &Write) -> Result<()> {
    let path = &asked.segment;
    let failed = |why| Error::new(Kind::Os, format!("Cannot write segment '{}': {why}.", path.display()));
    let segment = open(path, Access::ReadWrite)?;
    let spec = segment.spec().clone();
    let mut frames = Frames::new(&asked.source, &spec, asked.count.is_some())?;
    let mut writer = Writer::new(segment).map_err(failed)?;
    let most = match (asked.count, &asked.source, asked.rate_hz) {
        (Some(count), ..) => count,
        (None, Source::Raw(_), _) | (None, _, Some(_)) => u64::MAX,
        (None, _, None) => 1,
    };
    // A signal ends it between two frames, so that none is left half written. Not where the next frame may
    // never come: there nobody would look.
    let between_frames = frames.never_wait();
    if between_frames {
        signals::block();
    }
    let mut pace = asked.rate_hz.map(Pace::new);
    let mut pixels = vec![0; spec.frame_bytes()];
    for _ in 0..most {
        let counter = writer.segment().newest().1.wrapping_add(1);
        if !frames.next(counter, &mut pixels)? {
            return Ok(());
        }
        let left = pace.as_mut().map_or(Duration::ZERO, Pace::next);
        if !between_frames {
            clock::sleep(left);
        } else if signals::wait(left).is_some() {
            return Ok(());
        }
        writer.write(&pixels).map_err(failed)?;
    }
    Ok(())
}

/// Deadlines a period apart, so that one late frame does not make all later ones late. But however late, no frame
/// follows another in less than half a period: a camera does not do that either, and its readers would miss one.
struct Pace {
    due: Instant,
    period: Duration,
}

impl Pace {
    fn new(rate_hz: f64) -> Pace {
        scheduling::prefer_latency();
        Pace { due: Instant::now(), period: Duration::from_secs_f64(1.0 / rate_hz) }
    }

    /// How long it is until the next frame is due; the first is at once.
    fn next(&mut self) -> Duration {
        let now = Instant::now();
        let wait = self.due.saturating_duration_since(now);
        self.due = (self.due + self.period).max(now + self.period / 2);
        wait
    }
}

/// Where the next frame comes from.
enum Frames {
    /// The same bytes each time.
    Same(Vec<u8>),
    /// Elements that hold the frame's counter.
    Numbered(SegmentSpec),
    /// A file's, from its beginning again at its end if there is a count to reach. A pipe has no beginning.
    File { file: File, name: String, again: bool, regular: bool },
    /// Standard input's.
    Input(io::Stdin),
}

impl Frames {
    fn new(source: &Source, spec: &SegmentSpec, again: bool) -> Result<Frames> {
        Ok(match source {
            Source::Number => Frames::Numbered(spec.clone()),
            Source::Fill(value) => {
                let element =
                    values::parse(spec.dtype, value).map_err(|why| Error::usage(format!("--fill: {why}")))?;
                Frames::Same(element.repeat(spec.shape.elements()))
            }
            Source::Raw(path) if path.as_os_str() == "-" => Frames::Input(io::stdin()),
            Source::Raw(path) => Frames::file(path, spec, again)?,
        })
    }

    fn file(path: &Path, spec: &SegmentSpec, again: bool) -> Result<Frames> {
        let name = path.display().to_string();
        let failed = |why: io::Error| {
            // A missing file of frames is no missing segment.
            let kind = if why.kind() == io::ErrorKind::NotFound { Kind::Os } else { kind_of_io(&why) };
            Error::new(kind, format!("Cannot read frames from '{name}': {why}."))
        };
        let file = File::open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        let frame = spec.frame_bytes() as u64;
        // Looked at before anything is written. Pipes and devices have no length.
        if metadata.is_file() && (metadata.len() == 0 || metadata.len() % frame != 0) {
            let bytes = metadata.len();
            let why = format!("'{name}' has {bytes} bytes, not a whole number of frames of {frame}.");
            return Err(Error::new(Kind::Value, why));
        }
        let regular = metadata.is_file();
        Ok(Frames::File { file, name, again: again && regular, regular })
    }

    /// Is the next frame always there at once?
    fn never_wait(&self) -> bool {
        matches!(self, Frames::Same(_) | Frames::Numbered(_) | Frames::File { regular: true, .. })
    }

    /// Puts the next frame into the buffer; false: there is none.
    fn next(&mut self, counter: u64, pixels: &mut [u8]) -> Result<bool> {
        match self {
            Frames::Same(frame) => pixels.copy_from_slice(frame),
            Frames::Numbered(spec) => {
                let element = values::numbered(spec.dtype, counter);
                pixels.chunks_exact_mut(element.len()).for_each(|pixel| pixel.copy_from_slice(&element));
            }
            Frames::Input(input) => return read_frame(input, "standard input", pixels),
            Frames::File { file, name, again, .. } => {
                if read_frame(file, name, pixels)? {
                    return Ok(true);
                }
                if !*again {
                    return Ok(false);
                }
                let failed =
                    |why| Error::new(Kind::Os, format!("Cannot read '{name}' from its beginning: {why}."));
                file.rewind().map_err(failed)?;
                return read_frame(file, name, pixels);
            }
        }
        Ok(true)
    }
}

/// Reads one frame; false at the end of the input. A part of a frame at the end is an error.
fn read_frame(input: &mut impl Read, name: &str, pixels: &mut [u8]) -> Result<bool> {
    let mut have = 0;
    while have < pixels.len() {
        match input.read(&mut pixels[have..]) {
            Ok(0) if have == 0 => return Ok(false),
            Ok(0) => {
                let why = format!("'{name}' ends with {have} of a frame's {} bytes.", pixels.len());
                return Err(Error::new(Kind::Value, why));
            }
            Ok(got) => have += got,
            Err(why) if why.kind() == io::ErrorKind::Interrupted => (),
            Err(why) => {
                return Err(Error::new(
                    kind_of_io(&why),
                    format!("Cannot read frames from '{name}': {why}."),
                ));
            }
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_last_frame_is_an_error_and_an_end_between_frames_is_not() {
        let mut input: &[u8] = &[1, 2, 3, 4, 5];
        let mut pixels = [0; 2];
        assert!(read_frame(&mut input, "x", &mut pixels).unwrap());
        assert!(read_frame(&mut input, "x", &mut pixels).unwrap());
        assert!(
            read_frame(&mut input, "x", &mut pixels).unwrap_err().message.contains("1 of a frame's 2 bytes")
        );
        assert!(!read_frame(&mut io::empty(), "x", &mut pixels).unwrap());
    }
}
