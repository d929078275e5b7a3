//! Frames into a segment. When one is done it looks as the C library leaves it; on the way the marks are set in a
//! safer order.

use super::keyword::{KEYWORD_BYTES, Keyword, VALUE_OFFSET};
use super::layout::at;
use super::mapping::{Mapping, PAST_CACHES_FROM_BYTES};
use super::segment::{FrameMeta, Segment};
use super::semaphore::Semaphores;
use crate::{naming, os::clock};
use std::fmt;
use std::sync::atomic::{Ordering, fence};

/// So much of the next frame's place is fetched ahead: what a core's own cache has room for, besides all else.
const WARM_BYTES_MAX: usize = 256 * 1024;

/// Why a frame was not written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteError {
    /// The segment was opened for reading.
    ReadOnly,
    /// So many bytes are no frame of this segment.
    WrongSize {
        /// Bytes given.
        bytes: usize,
        /// Bytes of a frame.
        expected: usize,
    },
    /// Somebody creates the segment again in place, or did.
    Changed,
    /// The file shrank under the mapping.
    Lost,
}

impl fmt::Display for WriteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WriteError::ReadOnly => f.write_str("the segment was opened for reading"),
            WriteError::WrongSize { bytes, expected } => {
                write!(f, "{bytes} bytes are no frame of the segment, which has {expected}")
            }
            WriteError::Changed => f.write_str("the segment was created again while it was written"),
            WriteError::Lost => f.write_str("the segment's file was truncated while it was written"),
        }
    }
}

impl std::error::Error for WriteError {}

/// The one writer of a segment: the format has no guard against a second.
pub struct Writer {
    segment: Segment,
    semaphores: Semaphores,
    /// Of a frame that nobody is shown yet: slot and counter of the one before it, and how many of its bytes are there.
    begun: Option<((u32, u64), usize)>,
}

impl Writer {
    /// Takes over a segment that was opened for writing, and opens the semaphores it has.
    pub fn new(segment: Segment) -> Result<Writer, WriteError> {
        if !segment.mapping.writable() {
            return Err(WriteError::ReadOnly);
        }
        let base = naming::semaphore_base(segment.path()).unwrap_or_default();
        Ok(Writer { semaphores: Semaphores::open(&base), segment, begun: None })
    }

    /// The segment.
    pub fn segment(&self) -> &Segment {
        &self.segment
    }

    /// Did the file shrink under the mapping? Stays true.
    pub fn lost(&self) -> bool {
        self.segment.lost()
    }

    /// How many semaphores of the row it posts.
    pub fn semaphores(&self) -> usize {
        self.semaphores.count()
    }

    /// Writes a frame that is new in the world: time and counters are this host's. Gives its cnt0.
    pub fn write(&mut self, pixels: &[u8]) -> Result<u64, WriteError> {
        self.put(pixels, |map, block| map.store64(block + at::ATIME, clock::realtime_ns() as u64))
    }

    /// Writes a frame of another segment: cnt1, cnt2 and time are the source's, and cnt0 grows by 1 whatever
    /// the source's does, since readers wait for it to grow. Gives the cnt0.
    pub fn write_mirrored(&mut self, pixels: &[u8], source: &FrameMeta) -> Result<u64, WriteError> {
        self.put(pixels, |map, block| stamp_mirrored(map, block, source))
    }

    /// Writes a piece of a frame to where no reader is sent yet: for rings, in which the newest frame stands elsewhere.
    /// Pieces come in order; the first begins the frame, and puts an end to one that is not shown. One that follows
    /// nothing goes nowhere, nor does one to where somebody else has put a frame meanwhile.
    pub fn pour(&mut self, at: usize, pixels: &[u8]) -> Result<(), WriteError> {
        if at == 0 {
            self.begun = None;
            self.begun = Some((self.begin()?, 0));
        }
        let spec = self.segment.spec();
        let expected = spec.frame_bytes();
        if pixels.len() > expected - at.min(expected) {
            return Err(WriteError::WrongSize { bytes: at + pixels.len(), expected });
        }
        let last = self.newest()?;
        if let Some((_, there)) = self.begun.filter(|begun| *begun == (last, at)) {
            self.check()?;
            let offset = spec.data_offset((last.0 + 1) % spec.depth) + at;
            self.segment.mapping.copy_in_part(offset, pixels, expected);
            self.begun = Some((last, there + pixels.len()));
        }
        Ok(())
    }

    /// Shows the frame that was poured, as [`Writer::write_mirrored`] does. `None`: not all of it is there, or somebody else
    /// has written meanwhile.
    pub fn show_poured(&mut self, source: &FrameMeta) -> Result<Option<u64>, WriteError> {
        self.check()?;
        let (frame_bytes, last) = (self.segment.spec().frame_bytes(), self.newest()?);
        match self.begun.take() {
            Some(begun) if begun == (last, frame_bytes) => {
                self.show(last.0, |map, block| stamp_mirrored(map, block, source)).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// For whoever has nothing else to do: fetches the place of the next frame into the cache, which it left long ago.
    /// Only in a ring: in one slot stands what others read.
    pub fn warm_next(&self) {
        let spec = self.segment.spec();
        let last = self.segment.last_written();
        if spec.depth > 1 && last < spec.depth && spec.frame_bytes() < PAST_CACHES_FROM_BYTES {
            let next = (last + 1) % spec.depth;
            self.segment.mapping.warm(spec.data_offset(next), spec.frame_bytes().min(WARM_BYTES_MAX));
        }
    }

    /// Are these the pixels of the newest frame?
    pub fn holds(&self, pixels: &[u8]) -> bool {
        let spec = self.segment.spec();
        let last = self.segment.last_written();
        last < spec.depth
            && pixels.len() == spec.frame_bytes()
            && self.segment.mapping.matches(spec.data_offset(last), pixels, usize::MAX)
    }

    fn check(&self) -> Result<(), WriteError> {
        if self.segment.lost() {
            Err(WriteError::Lost)
        } else if self.segment.shape_changed() {
            // The loads of that check may have been what faulted.
            Err(if self.segment.lost() { WriteError::Lost } else { WriteError::Changed })
        } else {
            Ok(())
        }
    }

    fn put(&mut self, pixels: &[u8], stamp: impl FnOnce(&Mapping, usize)) -> Result<u64, WriteError> {
        let expected = self.segment.spec().frame_bytes();
        if pixels.len() != expected {
            return Err(WriteError::WrongSize { bytes: pixels.len(), expected });
        }
        self.begun = None;
        let (last, _) = self.begin()?;
        let spec = self.segment.spec();
        self.segment.mapping.copy_in(spec.data_offset((last + 1) % spec.depth), pixels);
        self.show(last, stamp)
    }

    /// Slot and counter of the newest frame as they stand there: one writer alone is never half done, as
    /// [`Segment::newest`] must expect.
    fn newest(&self) -> Result<(u32, u64), WriteError> {
        let last = self.segment.last_written();
        let there = last < self.segment.spec().depth;
        if there { Ok((last, self.segment.cnt0(last))) } else { Err(WriteError::Changed) }
    }

    /// Marks the slot of the next frame as being written. Gives slot and counter of the newest.
    fn begin(&self) -> Result<(u32, u64), WriteError> {
        self.check()?;
        let spec = self.segment.spec();
        let last = self.newest()?;
        let block = spec.metadata_offset((last.0 + 1) % spec.depth);
        self.segment.mapping.store8(block + at::WRITE, 1);
        // The flag before the pixels. Partner: the fence of a reader between its copy and its second look at
        // the flag.
        fence(Ordering::SeqCst);
        Ok(last)
    }

    /// Makes the frame whose pixels stand in the slot after this one the newest.
    fn show(&self, last: u32, stamp: impl FnOnce(&Mapping, usize)) -> Result<u64, WriteError> {
        let spec = self.segment.spec();
        let map = &self.segment.mapping;
        let slot = (last + 1) % spec.depth;
        let block = spec.metadata_offset(slot);
        // The library clears the flag and names the slot first. Then, for a moment, there are new pixels under an
        // old counter, in a ring that of a turn ago, which its own polling readers take for the newest.
        stamp(map, block);
        let counter = self.segment.cnt0(last).wrapping_add(1);
        // Each is a Release, so after what comes before it. Partners: the reader's looks at counter, flag, slot.
        map.store64(block + at::CNT0, counter);
        map.store8(block + at::WRITE, 0);
        if let Some(offset) = spec.layout.depth_offset() {
            map.store32(offset + 4, slot);
        }
        self.semaphores.post_all();
        if self.segment.lost() { Err(WriteError::Lost) } else { Ok(counter) }
    }

    /// Writes the keywords; what is beyond the segment's number of them is left out, and the rest becomes
    /// unused.
    pub fn set_keywords(&mut self, keywords: &[Keyword]) -> Result<(), WriteError> {
        let unused = super::create::UNUSED_KEYWORD;
        let count = usize::from(self.segment.spec().keywords);
        let given = keywords.iter().map(Keyword::encode).chain(std::iter::repeat(unused));
        let bytes: Vec<u8> = given.take(count).flatten().collect();
        self.set_keywords_raw(&bytes)
    }

    /// Sets the numbers of keywords that stand in a row from this place on, whose type is that already. One that does not
    /// lie at a multiple of eight may be read half.
    pub fn set_keyword_values(&mut self, place: u16, values: &[i64]) -> Result<(), WriteError> {
        self.check()?;
        let spec = self.segment.spec();
        for (keyword, value) in (usize::from(place)..usize::from(spec.keywords)).zip(values) {
            let offset = spec.keywords_offset() + keyword * KEYWORD_BYTES + VALUE_OFFSET;
            self.segment.mapping.copy_in(offset, &value.to_le_bytes());
        }
        Ok(())
    }

    /// Writes the keywords as they stand in another segment, whole ones only, as many as this one has.
    pub fn set_keywords_raw(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        self.check()?;
        let room = bytes.len().min(self.segment.keywords_bytes());
        let whole = room - room % KEYWORD_BYTES;
        self.segment.mapping.copy_in(self.segment.spec().keywords_offset(), &bytes[..whole]);
        if self.segment.lost() { Err(WriteError::Lost) } else { Ok(()) }
    }
}

fn stamp_mirrored(map: &Mapping, block: usize, source: &FrameMeta) {
    map.store64(block + at::ATIME, source.atime_ns as u64);
    map.store64(block + at::CNT1, source.cnt1);
    map.store64(block + at::CNT2, source.cnt2);
}
