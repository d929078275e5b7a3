//! An open segment: a mapping whose header was checked, with its fields by name.

use super::error::OpenError;
use super::keyword::{KEYWORD_BYTES, Keyword};
use super::layout::{SegmentSpec, at};
use super::mapping::Mapping;
use super::probe::{self, Identity};
use std::path::{Path, PathBuf};

/// What a segment is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reading. The file need not be writable, and nothing of it changes.
    Read,
    /// Reading and writing.
    ReadWrite,
}

/// The counters and the time of one frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrameMeta {
    /// Frame counter of the segment it came from.
    pub cnt0: u64,
    /// Slice last written, in rolling cubes.
    pub cnt1: u64,
    /// Frame id that the writer gave.
    pub cnt2: u64,
    /// When it was written, UTC, nanoseconds since 1970.
    pub atime_ns: i64,
}

/// An open segment. One thread uses it at a time.
pub struct Segment {
    pub(super) mapping: Mapping,
    spec: SegmentSpec,
    path: PathBuf,
    identity: Identity,
    /// What the header said at opening.
    header: [u64; 5],
}

impl Segment {
    /// Opens and maps a segment. Never follows a symbolic link, never waits for a FIFO's other end, and
    /// refuses what [`probe::probe`] refuses; besides, pixels on a GPU.
    pub fn open(path: &Path, access: Access) -> Result<Segment, OpenError> {
        let file = probe::open_file(path, access == Access::ReadWrite)?;
        let facts = probe::examine(&file, path)?;
        if facts.on_gpu {
            return Err(OpenError::OnGpu);
        }
        let bytes = facts.identity.bytes as usize;
        let mapping = Mapping::new(&file, bytes, access == Access::ReadWrite)?;
        let mut segment = Segment {
            mapping,
            spec: facts.spec,
            path: path.to_owned(),
            identity: facts.identity,
            header: [0; 5],
        };
        segment.header = segment.read_header();
        // The file may have changed since it was examined: the mapping is what counts from here on.
        let mut head = [0; super::layout::HEAD_BYTES];
        segment.mapping.copy_out(0, &mut head);
        let (shape, dtype, keywords) = super::layout::HeadCopy(&head).content()?;
        let spec = &segment.spec;
        let depth = spec.layout.depth_offset().map_or(1, |offset| segment.mapping.load32(offset));
        if segment.lost()
            || (shape, dtype, keywords, depth) != (spec.shape, spec.dtype, spec.keywords, spec.depth)
        {
            return Err(OpenError::Gone);
        }
        Ok(segment)
    }

    /// Shape, type, generation, depth and number of keywords, as at opening.
    pub fn spec(&self) -> &SegmentSpec {
        &self.spec
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Which file is mapped.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Did the file shrink under the mapping? Stays true.
    pub fn lost(&self) -> bool {
        self.mapping.lost()
    }

    /// Does the path now name another file, one of another size, or none? One `stat`.
    pub fn replaced(&self) -> bool {
        probe::identity_of(&self.path) != Some(self.identity)
    }

    /// Naxis and sizes, elements, type, keywords and depth, whatever their values: five loads or six.
    fn read_header(&self) -> [u64; 5] {
        let map = &self.mapping;
        let depth = self.spec.layout.depth_offset().map_or(1, |offset| map.load32(offset));
        let (naxis, atype) = (map.load8(at::NAXIS), map.load8(at::ATYPE));
        let size = |axis: usize| u64::from(map.load32(at::SIZE + 4 * axis));
        [
            u64::from(naxis) | u64::from(atype) << 8 | u64::from(map.load16(at::KEYWORDS)) << 16,
            size(0) | size(1) << 32,
            size(2),
            map.load64(at::NELEMENT),
            depth.into(),
        ]
    }

    /// Does the header no longer say what it said at opening? So it is when somebody creates the segment
    /// again in place, with another shape or not, until he has finished.
    pub fn shape_changed(&self) -> bool {
        self.read_header() != self.header
    }

    /// The creation time, as bits: only ever compared.
    pub(super) fn creation(&self) -> u64 {
        self.mapping.load64(at::CREATION_TIME)
    }

    pub(super) fn cnt0(&self, slot: u32) -> u64 {
        self.mapping.load64(self.spec.metadata_offset(slot) + at::CNT0)
    }

    /// Is `write` set in this slot?
    pub(super) fn writing(&self, slot: u32) -> bool {
        self.mapping.load8(self.spec.metadata_offset(slot) + at::WRITE) != 0
    }

    /// The slot that was last written, as the header says: may be out of range if somebody writes garbage.
    pub(super) fn last_written(&self) -> u32 {
        self.spec.layout.depth_offset().map_or(0, |offset| self.mapping.load32(offset + 4))
    }

    /// The slot before, in the order in which they are written.
    pub(super) fn slot_before(&self, slot: u32, steps: u64) -> u32 {
        let depth = u64::from(self.spec.depth);
        ((u64::from(slot) + depth - steps % depth) % depth) as u32
    }

    /// The slot and the counter of the newest finished frame; the counter is 0 while none was written.
    pub fn newest(&self) -> (u32, u64) {
        let slot = self.last_written();
        if slot >= self.spec.depth {
            return (0, 0);
        }
        let counter = self.cnt0(slot);
        if self.spec.depth == 1 {
            return (0, counter);
        }
        // Between the library's steps 3 and 4 the slot is the last one already and still has its old counter,
        // which is that of a frame `depth` earlier: then the frame before is the newest that is finished.
        let before = self.slot_before(slot, 1);
        let counter_before = self.cnt0(before);
        if counter < counter_before { (before, counter_before) } else { (slot, counter) }
    }

    /// Is a slot of a ring the last one already, and still under the counter that it had a turn ago?
    pub(super) fn unfinished(&self, slot: u32) -> bool {
        self.spec.depth > 1
            && self.last_written() == slot
            && self.cnt0(slot) < self.cnt0(self.slot_before(slot, 1))
    }

    /// Is a slot of a ring the one that the writer goes to next?
    pub(super) fn next_to_write(&self, slot: u32) -> bool {
        self.spec.depth > 1 && self.slot_before(slot, 1) == self.last_written()
    }

    /// Counters and time of a slot, whatever state it is in. A slot that the ring does not have gives zeros.
    pub fn meta(&self, slot: u32) -> FrameMeta {
        if slot >= self.spec.depth {
            return FrameMeta::default();
        }
        let block = self.spec.metadata_offset(slot);
        FrameMeta {
            cnt0: self.mapping.load64(block + at::CNT0),
            cnt1: self.mapping.load64(block + at::CNT1),
            cnt2: self.mapping.load64(block + at::CNT2),
            atime_ns: self.mapping.load64(block + at::ATIME) as i64,
        }
    }

    /// The `sem` field: how many semaphores the creator made.
    pub fn semaphores(&self) -> u16 {
        self.mapping.load16(at::SEM)
    }

    /// Bytes of all keywords.
    pub fn keywords_bytes(&self) -> usize {
        usize::from(self.spec.keywords) * KEYWORD_BYTES
    }

    /// Copies as many bytes of the keywords as both sides have; gives how many. A keyword that is being
    /// written at the moment may be torn: the format has no guard for them.
    pub fn copy_keywords_raw(&self, to: &mut [u8]) -> usize {
        let bytes = to.len().min(self.keywords_bytes());
        self.mapping.copy_out(self.spec.keywords_offset(), &mut to[..bytes]);
        bytes
    }

    /// All keywords, unused ones among them.
    pub fn keywords(&self) -> Vec<Keyword> {
        let mut bytes = vec![0; self.keywords_bytes()];
        self.copy_keywords_raw(&mut bytes);
        bytes.as_chunks::<KEYWORD_BYTES>().0.iter().map(Keyword::decode).collect()
    }
}
