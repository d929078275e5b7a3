//! The generations of the format, every offset in one place, and what a header must say to be believed.
//!
//! Source of the offsets: the C library's `IMAGE_METADATA`, little-endian with natural alignment. [`Head`]
//! repeats its common part and is what proves them; `tests/golden_shm.rs` proves them against files that the
//! library wrote.

use super::error::OpenError;
use super::keyword::KEYWORD_BYTES;
use crate::dtype::{DType, Shape};
use crate::limits;
use std::fmt;
use std::mem::offset_of;

#[cfg(not(target_endian = "little"))]
compile_error!("segments are little-endian and are read in place");

/// Bytes of metadata that every generation has in common.
pub(crate) const HEAD_BYTES: usize = 200;
/// Semaphores of a segment, whatever its generation. More overflow the library's heap.
pub(crate) const SEMAPHORES: u16 = 10;

/// The common part of a metadata block. Never laid over shared memory: it exists for its offsets.
#[repr(C)]
#[allow(dead_code)]
struct Head {
    name: [u8; 80],
    naxis: u8,
    size: [u32; 3],
    nelement: u64,
    atype: u8,
    creation_time: f64,
    last_access: f64,
    atime_first: i64,
    atime_second: i64,
    shared: u8,
    status: u8,
    logflag: u8,
    sem: u16,
    cnt0: u64,
    cnt1: u64,
    cnt2: u64,
    write: u8,
    keywords: u16,
    last_pos: u32,
    last_nb: u32,
    packet_nb: u32,
    packet_total: u32,
    last_nb_array: [u64; 0],
}

/// Offsets inside a metadata block, bytes.
pub(crate) mod at {
    #![allow(missing_docs)]
    pub const NAME: usize = 0;
    pub const NAME_BYTES: usize = 80;
    pub const NAXIS: usize = 80;
    pub const SIZE: usize = 84;
    pub const NELEMENT: usize = 96;
    pub const ATYPE: usize = 104;
    pub const CREATION_TIME: usize = 112;
    pub const LAST_ACCESS: usize = 120;
    pub const ATIME: usize = 136;
    pub const SHARED: usize = 144;
    pub const SEM: usize = 148;
    pub const CNT0: usize = 152;
    pub const CNT1: usize = 160;
    pub const CNT2: usize = 168;
    pub const WRITE: usize = 176;
    pub const KEYWORDS: usize = 178;
    pub const LAST_POS: usize = 180;
    pub const LAST_NB: usize = 184;
    pub const PACKET_NB: usize = 188;
    pub const PACKET_TOTAL: usize = 192;
    /// Only in the gpu generation.
    pub const GPU_MAGIC: usize = 16400;
}

const _: () = assert!(offset_of!(Head, name) == at::NAME && at::NAXIS == at::NAME + at::NAME_BYTES);
const _: () = assert!(offset_of!(Head, naxis) == at::NAXIS && offset_of!(Head, size) == at::SIZE);
const _: () = assert!(offset_of!(Head, nelement) == at::NELEMENT && offset_of!(Head, atype) == at::ATYPE);
const _: () = assert!(offset_of!(Head, creation_time) == at::CREATION_TIME);
const _: () = assert!(offset_of!(Head, last_access) == at::LAST_ACCESS);
const _: () = assert!(offset_of!(Head, atime_second) == at::ATIME && offset_of!(Head, shared) == at::SHARED);
const _: () = assert!(offset_of!(Head, sem) == at::SEM && offset_of!(Head, cnt0) == at::CNT0);
const _: () = assert!(offset_of!(Head, cnt1) == at::CNT1 && offset_of!(Head, cnt2) == at::CNT2);
const _: () = assert!(offset_of!(Head, write) == at::WRITE && offset_of!(Head, keywords) == at::KEYWORDS);
const _: () = assert!(offset_of!(Head, last_pos) == at::LAST_POS && offset_of!(Head, last_nb) == at::LAST_NB);
const _: () = assert!(offset_of!(Head, packet_nb) == at::PACKET_NB);
const _: () = assert!(offset_of!(Head, packet_total) == at::PACKET_TOTAL);
const _: () = assert!(offset_of!(Head, last_nb_array) == HEAD_BYTES);
// The depth and the last slot follow lastNbArray, of 512 words in one generation and of 2024 in the next.
const _: () = assert!(HEAD_BYTES + 512 * 8 == 4296 && HEAD_BYTES + 2024 * 8 == 16392);
const _: () = assert!(at::GPU_MAGIC == 16392 + 8);

/// A generation of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layout {
    /// To early 2026: one frame, no FIFO fields.
    Classic,
    /// Spring 2026: a ring of `depth` frames.
    Fifo,
    /// Mid 2026: as `Fifo`, with a longer packet table.
    Wide,
    /// Mid 2026: as `Wide`, with a reference to memory on a GPU.
    Gpu,
    /// A branch of the library that keeps a table of semaphore owners: one frame.
    Registry,
    /// One frame behind so many bytes of metadata, of which only the common part is understood.
    Unknown(u32),
}

/// The known generations in the order in which a file is compared with them.
const KNOWN: [(Layout, &str, u32); 5] = [
    (Layout::Classic, "classic", 4296),
    (Layout::Fifo, "fifo", 4304),
    (Layout::Wide, "wide", 16400),
    (Layout::Gpu, "gpu", 16448),
    (Layout::Registry, "registry", 5344),
];

impl Layout {
    /// Bytes of one metadata block.
    pub fn metadata_bytes(self) -> usize {
        match self {
            Layout::Classic => 4296,
            Layout::Fifo => 4304,
            Layout::Wide => 16400,
            Layout::Gpu => 16448,
            Layout::Registry => 5344,
            Layout::Unknown(bytes) => bytes as usize,
        }
    }

    /// Where block 0 holds the ring's depth (u32); the slot last written (u32) follows. `None`: always one
    /// frame.
    pub(crate) fn depth_offset(self) -> Option<usize> {
        match self {
            Layout::Fifo => Some(4296),
            Layout::Wide | Layout::Gpu => Some(16392),
            Layout::Classic | Layout::Registry | Layout::Unknown(_) => None,
        }
    }

    /// Can [`super::create`] make one?
    pub fn creatable(self) -> bool {
        matches!(self, Layout::Classic | Layout::Fifo | Layout::Wide)
    }

    /// From the name that `Display` gives.
    pub fn parse(text: &str) -> Option<Layout> {
        if let Some(row) = KNOWN.iter().find(|row| row.1 == text) {
            return Some(row.0);
        }
        let bytes: u32 = text.strip_prefix("unknown-")?.parse().ok()?;
        (bytes as usize >= HEAD_BYTES && bytes.is_multiple_of(8)).then_some(Layout::Unknown(bytes))
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match KNOWN.iter().find(|row| row.0 == *self) {
            Some(row) => f.write_str(row.1),
            None => write!(f, "unknown-{}", self.metadata_bytes()),
        }
    }
}

/// What makes a segment: everything that decides its file's size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentSpec {
    /// Axes of a frame, NumPy order.
    pub shape: Shape,
    /// Type of an element.
    pub dtype: DType,
    /// Generation of the format.
    pub layout: Layout,
    /// Frames in the ring, 1 where there is none.
    pub depth: u32,
    /// Keywords behind the frames.
    pub keywords: u16,
}

impl SegmentSpec {
    /// Bytes of one frame.
    pub fn frame_bytes(&self) -> usize {
        self.shape.frame_bytes(self.dtype)
    }

    /// Bytes of the whole file. A depth within the limits cannot overflow it.
    pub fn file_bytes(&self) -> u64 {
        let block = (self.layout.metadata_bytes() + self.frame_bytes()) as u64;
        u64::from(self.depth) * block + keyword_bytes(self.keywords)
    }

    /// Where the metadata block of a slot begins.
    pub(crate) fn metadata_offset(&self, slot: u32) -> usize {
        slot as usize * self.layout.metadata_bytes()
    }

    /// Where the pixels of a slot begin.
    pub(crate) fn data_offset(&self, slot: u32) -> usize {
        self.metadata_offset(self.depth) + slot as usize * self.frame_bytes()
    }

    /// Where the keywords begin.
    pub(crate) fn keywords_offset(&self) -> usize {
        self.data_offset(self.depth)
    }
}

// 64-bit hosts only: the largest segment that is believed must be addressable.
const _: () = assert!(usize::BITS == 64);
const _: () = assert!(
    (limits::RING_DEPTH_MAX as u64).checked_mul(limits::FRAME_BYTES_MAX as u64 + u32::MAX as u64).is_some()
);

fn keyword_bytes(keywords: u16) -> u64 {
    u64::from(keywords) * KEYWORD_BYTES as u64
}

/// Block 0 up to byte [`HEAD_BYTES`], as a private copy.
pub(crate) struct HeadCopy<'a>(pub &'a [u8; HEAD_BYTES]);

impl HeadCopy<'_> {
    fn bytes<const N: usize>(&self, offset: usize) -> [u8; N] {
        std::array::from_fn(|i| self.0[offset + i])
    }
    pub fn u16(&self, offset: usize) -> u16 {
        u16::from_le_bytes(self.bytes(offset))
    }
    pub fn u32(&self, offset: usize) -> u32 {
        u32::from_le_bytes(self.bytes(offset))
    }
    pub fn u64(&self, offset: usize) -> u64 {
        u64::from_le_bytes(self.bytes(offset))
    }

    /// Shape, type and number of keywords; refuses what cannot be.
    pub fn content(&self) -> Result<(Shape, DType, u16), OpenError> {
        // A DAO segment begins with its path, an ImageStreamIO one with a version such as "2.00".
        if self.0[0].is_ascii_digit() && self.0[1] == b'.' {
            return Err(OpenError::bad(
                "name",
                "a version",
                "it is a stream of milk/cacao, which is not served",
            ));
        }
        let (naxis, atype) = (self.0[at::NAXIS], self.0[at::ATYPE]);
        let (first_axis, nelement) = (self.u32(at::SIZE), self.u64(at::NELEMENT));
        // The library extends the file first and fills these in one after the other, `nelement` last.
        if (naxis == 0 || first_axis == 0 || atype == 0 || nelement == 0) && self.u64(at::CNT0) == 0 {
            return Err(OpenError::BeingCreated);
        }
        if !(1..=3).contains(&naxis) {
            return Err(OpenError::bad("naxis", naxis, "a frame has 1 to 3 axes"));
        }
        let axes: [u32; 3] = std::array::from_fn(|axis| self.u32(at::SIZE + 4 * axis));
        let axes = &axes[..usize::from(naxis)];
        let shape = Shape::new(axes).map_err(|why| OpenError::bad("size", format_args!("{axes:?}"), why))?;
        let dtype = DType::from_atype(atype)
            .ok_or_else(|| OpenError::bad("atype", atype, "no type has this number"))?;
        if nelement != shape.elements() as u64 {
            let why = format!("a frame of {shape} has {} elements", shape.elements());
            return Err(OpenError::bad("nelement", nelement, why));
        }
        if shape.frame_bytes(dtype) > limits::FRAME_BYTES_MAX {
            let bytes = shape.frame_bytes(dtype) as u64;
            return Err(OpenError::TooLarge {
                what: "bytes a frame",
                value: bytes,
                max: limits::FRAME_BYTES_MAX as u64,
            });
        }
        let keywords = self.u16(at::KEYWORDS);
        if keywords > limits::KEYWORDS_MAX {
            return Err(OpenError::TooLarge {
                what: "keywords",
                value: keywords.into(),
                max: limits::KEYWORDS_MAX.into(),
            });
        }
        Ok((shape, dtype, keywords))
    }
}

/// Works out the generation of a file of `file_bytes` bytes, which no file says. `pair(offset)` gives the two
/// u32 at an offset of block 0 (depth and last slot), `None` past the file's end.
pub(crate) fn infer(
    (shape, dtype, keywords): (Shape, DType, u16),
    file_bytes: u64,
    mut pair: impl FnMut(usize) -> Result<Option<(u32, u32)>, OpenError>,
) -> Result<SegmentSpec, OpenError> {
    let mut being_created = false;
    for (layout, _, metadata_bytes) in KNOWN {
        let mut spec = SegmentSpec { shape, dtype, layout, depth: 1, keywords };
        if let Some(offset) = layout.depth_offset() {
            let Some((depth, last)) = pair(offset)? else { continue };
            if depth == 0 {
                // The library writes the depth last: a file that would fit with some depth is not finished.
                let block = u64::from(metadata_bytes) + spec.frame_bytes() as u64;
                let blocks = file_bytes.saturating_sub(keyword_bytes(keywords));
                being_created |= blocks >= block && blocks.is_multiple_of(block);
                continue;
            }
            if depth > limits::RING_DEPTH_MAX || last >= depth {
                continue;
            }
            spec.depth = depth;
        }
        if spec.file_bytes() == file_bytes {
            return Ok(spec);
        }
    }
    if being_created {
        return Err(OpenError::BeingCreated);
    }
    let mut spec = SegmentSpec { shape, dtype, layout: Layout::Unknown(0), depth: 1, keywords };
    let needed = spec.file_bytes() + HEAD_BYTES as u64;
    let Some(spare) = file_bytes.checked_sub(needed) else {
        return Err(OpenError::TooShort { bytes: file_bytes, needed });
    };
    let metadata = spare + HEAD_BYTES as u64;
    // A megabyte of metadata is garbage, not a generation to come.
    if !metadata.is_multiple_of(8) || metadata > 1 << 20 {
        return Err(OpenError::bad(
            "file size",
            file_bytes,
            "no generation of the format has it for this shape",
        ));
    }
    spec.layout = Layout::Unknown(metadata as u32);
    Ok(spec)
}
