//! Our frame, between two daoservers: part 1 is the topic [`crate::naming::TOPIC_DAO`], part 2 a header of 128 bytes,
//! room that the receiver ignores up to `pixel_offset`, and the pixels; part 3, if the header says so, the keywords as
//! they stand in the segment (120 bytes each).
//!
//! Little-endian, offsets below. Nothing in it is trusted: [`FrameHeader::decode`] checks what can be checked without
//! the mirror, the mirror checks the rest before a byte is copied.
//!
//! | @ | type | field |
//! |---:|---|---|
//! | 0 | u32 | magic `DAOf` |
//! | 4 | u16 | version, 1 |
//! | 6 | u8 | kind: 1 frame, 2 alive (no pixels: the owner has nothing new) |
//! | 7 | u8 | flags: bit 0 the current frame, for a new subscriber, old or not, bit 1 keywords follow |
//! | 8 | u8 | atype |
//! | 9 | u8 | naxis |
//! | 10 | u16 | keywords of the segment |
//! | 12 | 3 x u32 | size, unused axes 0 |
//! | 24 | u64 | boot id of the publisher |
//! | 32 | u64 | sequence number, from 1; of `alive`: that of the last frame, 0 before the first |
//! | 40, 48, 56 | u64 | cnt0, cnt1, cnt2 of the source |
//! | 64 | i64 | atime of the source, UTC ns |
//! | 72 | i64 | when the owner saw the frame, UTC ns |
//! | 80 | i64 | when the owner sent it, UTC ns |
//! | 88 | u64 | origin: boot id of the daemon whose host wrote it, 0 for the owner's own |
//! | 96 | u64 | frames that the writer overwrote before the owner had them, since its start |
//! | 104 | u64 | frames that some client was left out of, since its start |
//! | 112 | u32 | pixel offset in this part, at least 128 |
//! | 116 | u32 | of a write-back: the owner's sequence number that the mirror stood at, its lower half; else 0 |
//! | 120 | u64 | bytes of the pixels |

use crate::dtype::{DType, Shape};
use std::fmt;

/// Bytes of the header.
pub const HEADER_BYTES: usize = 128;
/// `DAOf`, little-endian.
const MAGIC: u32 = u32::from_le_bytes(*b"DAOf");
/// The only version there is.
pub const VERSION: u16 = 1;
const KIND_FRAME: u8 = 1;
const KIND_ALIVE: u8 = 2;
/// Bytes of [`trailer`].
pub const TRAILER_BYTES: usize = 8;
/// Bytes of [`hello`].
pub const HELLO_BYTES: usize = 16;
/// Asks for the current frame once more.
pub const ASK_AGAIN: u8 = b'A';
const FLAG_ON_SUBSCRIPTION: u8 = 1;
const FLAG_KEYWORDS: u8 = 2;

/// What a message says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameKind {
    /// A frame, with pixels.
    Frame,
    /// The owner lives and has sent nothing new since `seq`.
    Alive,
}

/// The header of a message, checked in itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the table above names them all
pub struct FrameHeader {
    pub kind: FrameKind,
    pub on_subscription: bool,
    pub keywords_follow: bool,
    pub dtype: DType,
    pub shape: Shape,
    pub keywords: u16,
    pub boot_id: u64,
    pub seq: u64,
    pub cnt0: u64,
    pub cnt1: u64,
    pub cnt2: u64,
    pub atime_ns: i64,
    pub seen_ns: i64,
    pub sent_ns: i64,
    pub origin: u64,
    pub lapped_total: u64,
    pub queue_full_total: u64,
    pub pixel_offset: u32,
    pub based_on: u32,
}

/// Why a message was refused. Each has its own counter in `status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Refused {
    TooShort,
    BadMagic,
    UnknownVersion(u16),
    UnknownKind(u8),
    BadType(u8),
    BadShape,
    BadLength {
        expected: u64,
        got: u64,
    },
    /// Another shape or dtype than the mirror's.
    OtherShape,
    /// Of another publisher than the one that the record named.
    OtherPublisher,
    /// Parts are missing, or there are too many.
    BadParts,
    /// A pickle that ends before it is whole.
    PickleTruncated,
    /// A pickle with an opcode (or a protocol) that no numeric array needs.
    PickleOpcode(u8),
    /// A pickle that names something other than NumPy's arrays and types.
    PickleGlobal,
    /// A pickle with more opcodes or values than any array has.
    PickleTooComplex,
    /// A pickle of something else, or put together wrongly.
    PickleStructure,
    /// A pickled array of an element type that no segment has.
    PickleType,
    /// A write-back from a mirror that had not seen what its owner has had for a while.
    Stale,
}

impl Refused {
    /// Every cause's name in `status`, in the order of [`Refused::index`].
    pub const LABELS: [&'static str; 17] = [
        "too_short",
        "bad_magic",
        "unknown_version",
        "unknown_kind",
        "bad_type",
        "bad_shape",
        "bad_length",
        "other_shape",
        "other_publisher",
        "bad_parts",
        "pickle_truncated",
        "pickle_opcode",
        "pickle_global",
        "pickle_too_complex",
        "pickle_structure",
        "pickle_type",
        "stale",
    ];

    /// Its name in `status`.
    pub fn label(self) -> &'static str {
        Self::LABELS[self.index()]
    }

    /// Its place in [`Refused::LABELS`].
    pub fn index(self) -> usize {
        match self {
            Refused::TooShort => 0,
            Refused::BadMagic => 1,
            Refused::UnknownVersion(_) => 2,
            Refused::UnknownKind(_) => 3,
            Refused::BadType(_) => 4,
            Refused::BadShape => 5,
            Refused::BadLength { .. } => 6,
            Refused::OtherShape => 7,
            Refused::OtherPublisher => 8,
            Refused::BadParts => 9,
            Refused::PickleTruncated => 10,
            Refused::PickleOpcode(_) => 11,
            Refused::PickleGlobal => 12,
            Refused::PickleTooComplex => 13,
            Refused::PickleStructure => 14,
            Refused::PickleType => 15,
            Refused::Stale => 16,
        }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refused::TooShort => write!(f, "the message is shorter than a header"),
            Refused::BadMagic => write!(f, "the message does not begin with 'DAOf'"),
            Refused::UnknownVersion(version) => write!(f, "wire version {version} is unknown"),
            Refused::UnknownKind(kind) => write!(f, "message kind {kind} is unknown"),
            Refused::BadType(atype) => write!(f, "element type {atype} is unknown"),
            Refused::BadShape => write!(f, "the shape makes no sense"),
            Refused::BadLength { expected, got } => write!(f, "{expected} bytes expected, {got} came"),
            Refused::OtherShape => write!(f, "shape or type are not the mirror's"),
            Refused::OtherPublisher => write!(f, "it comes from another publisher"),
            Refused::BadParts => write!(f, "the number of message parts is wrong"),
            Refused::PickleTruncated => write!(f, "the pickle ends before it is whole"),
            Refused::PickleOpcode(code) => write!(f, "the pickle has opcode or protocol {code:#04x}"),
            Refused::PickleGlobal => write!(f, "the pickle names something that is no NumPy array"),
            Refused::PickleTooComplex => write!(f, "the pickle has more parts than any array"),
            Refused::PickleStructure => write!(f, "the pickle is of something other than an array"),
            Refused::PickleType => write!(f, "the pickled array's element type is not one of a segment's"),
            Refused::Stale => write!(f, "it was written without knowing newer frames of ours"),
        }
    }
}

/// How long a message is on a TCP stream: header, pixels, keywords if they follow, trailer. `frame_bytes` and `keywords`
/// are the mirror's: others are refused before a byte of them is awaited.
pub fn stream_length(head: &[u8; HEADER_BYTES], frame_bytes: usize, keywords: u16) -> Result<usize, Refused> {
    let fields = Fields(head);
    match (fields.u32(0), fields.u16(4), head[6]) {
        (magic, ..) if magic != MAGIC => return Err(Refused::BadMagic),
        (_, version, _) if version != VERSION => return Err(Refused::UnknownVersion(version)),
        (.., KIND_ALIVE) => return Ok(HEADER_BYTES + TRAILER_BYTES),
        (.., KIND_FRAME) => {}
        (.., kind) => return Err(Refused::UnknownKind(kind)),
    }
    let pixels = u64::from_le_bytes(fields.array(120));
    if pixels != frame_bytes as u64 || fields.u32(112) as usize != HEADER_BYTES {
        return Err(Refused::BadLength { expected: frame_bytes as u64, got: pixels });
    }
    let follow = if head[7] & FLAG_KEYWORDS == 0 { 0 } else { usize::from(keywords) * 120 };
    Ok(HEADER_BYTES + frame_bytes + follow + TRAILER_BYTES)
}

/// Where in a message of ZMQ the pixels begin, and how many bytes they are, as its header has it. Neither is checked.
pub fn pixels_at(head: &[u8; HEADER_BYTES]) -> (usize, u64) {
    (Fields(head).u32(112) as usize, Fields(head).u64(120))
}

/// What ends a message on a TCP stream: whoever has lost count of the bytes finds something else here.
pub fn trailer(seq: u64) -> [u8; TRAILER_BYTES] {
    (seq ^ u64::from_le_bytes(*b"DAOfDAOf")).to_le_bytes()
}

/// Makes the trailer that ends a message say that its pixels are no frame: the writer came to where they stood before all
/// of them had left.
pub fn spoil(message: &mut [u8]) {
    message.iter_mut().rev().take(TRAILER_BYTES).for_each(|byte| *byte = !*byte);
}

/// What a mirror says first on a TCP stream: `DAOt`, version, two bytes 0, the boot id of the publisher that it wants.
/// Then nothing but [`ASK_AGAIN`].
pub fn hello(boot_id: u64) -> [u8; HELLO_BYTES] {
    let mut hello = [0; HELLO_BYTES];
    hello[..4].copy_from_slice(b"DAOt");
    hello[4..6].copy_from_slice(&VERSION.to_le_bytes());
    hello[8..].copy_from_slice(&boot_id.to_le_bytes());
    hello
}

/// Little-endian fields of a slice whose length was checked.
struct Fields<'a>(&'a [u8; HEADER_BYTES]);

impl Fields<'_> {
    fn array<const N: usize>(&self, at: usize) -> [u8; N] {
        std::array::from_fn(|position| self.0[at + position])
    }
    fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.array(at))
    }
    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.array(at))
    }
    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.array(at))
    }
    fn i64(&self, at: usize) -> i64 {
        i64::from_le_bytes(self.array(at))
    }
}

impl FrameHeader {
    /// Bytes of the pixels that this header announces.
    pub fn pixel_bytes(&self) -> usize {
        match self.kind {
            FrameKind::Frame => self.shape.frame_bytes(self.dtype),
            FrameKind::Alive => 0,
        }
    }

    /// Writes the header to the first 128 bytes of a message.
    pub fn encode(&self, out: &mut [u8; HEADER_BYTES]) {
        let flags = if self.on_subscription { FLAG_ON_SUBSCRIPTION } else { 0 }
            | if self.keywords_follow { FLAG_KEYWORDS } else { 0 };
        let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &MAGIC.to_le_bytes());
        put(4, &VERSION.to_le_bytes());
        put(
            6,
            &[
                if self.kind == FrameKind::Frame { KIND_FRAME } else { KIND_ALIVE },
                flags,
                self.dtype.atype(),
                self.shape.naxis(),
            ],
        );
        put(10, &self.keywords.to_le_bytes());
        for axis in 0..3 {
            let size = self.shape.axes().get(axis).copied().unwrap_or(0);
            put(12 + 4 * axis, &size.to_le_bytes());
        }
        let words = [
            self.boot_id,
            self.seq,
            self.cnt0,
            self.cnt1,
            self.cnt2,
            self.atime_ns as u64,
            self.seen_ns as u64,
            self.sent_ns as u64,
            self.origin,
            self.lapped_total,
            self.queue_full_total,
        ];
        for (position, word) in words.iter().enumerate() {
            put(24 + 8 * position, &word.to_le_bytes());
        }
        put(112, &self.pixel_offset.to_le_bytes());
        put(116, &self.based_on.to_le_bytes());
        put(120, &(self.pixel_bytes() as u64).to_le_bytes());
    }

    /// Reads and checks a message's header against itself and the message's length.
    pub fn decode(message: &[u8]) -> Result<FrameHeader, Refused> {
        let header = FrameHeader::decode_head(message.first_chunk().ok_or(Refused::TooShort)?)?;
        let expected = u64::from(header.pixel_offset) + header.pixel_bytes() as u64;
        if message.len() as u64 != expected {
            return Err(Refused::BadLength { expected, got: message.len() as u64 });
        }
        Ok(header)
    }

    /// Reads a header and checks it against itself.
    pub fn decode_head(message: &[u8; HEADER_BYTES]) -> Result<FrameHeader, Refused> {
        let fields = Fields(message);
        if fields.u32(0) != MAGIC {
            return Err(Refused::BadMagic);
        }
        if fields.u16(4) != VERSION {
            return Err(Refused::UnknownVersion(fields.u16(4)));
        }
        let kind = match message[6] {
            KIND_FRAME => FrameKind::Frame,
            KIND_ALIVE => FrameKind::Alive,
            other => return Err(Refused::UnknownKind(other)),
        };
        let dtype = DType::from_atype(message[8]).ok_or(Refused::BadType(message[8]))?;
        let axes = [fields.u32(12), fields.u32(16), fields.u32(20)];
        let used = axes.get(..usize::from(message[9])).ok_or(Refused::BadShape)?;
        let shape = Shape::new(used).map_err(|_| Refused::BadShape)?;
        let header = FrameHeader {
            kind,
            on_subscription: message[7] & FLAG_ON_SUBSCRIPTION != 0,
            keywords_follow: message[7] & FLAG_KEYWORDS != 0,
            dtype,
            shape,
            keywords: fields.u16(10),
            boot_id: fields.u64(24),
            seq: fields.u64(32),
            cnt0: fields.u64(40),
            cnt1: fields.u64(48),
            cnt2: fields.u64(56),
            atime_ns: fields.i64(64),
            seen_ns: fields.i64(72),
            sent_ns: fields.i64(80),
            origin: fields.u64(88),
            lapped_total: fields.u64(96),
            queue_full_total: fields.u64(104),
            pixel_offset: fields.u32(112),
            based_on: fields.u32(116),
        };
        let expected = header.pixel_bytes() as u64;
        if fields.u64(120) != expected {
            return Err(Refused::BadLength { expected, got: fields.u64(120) });
        }
        if (header.pixel_offset as usize) < HEADER_BYTES {
            return Err(Refused::BadLength {
                expected: HEADER_BYTES as u64,
                got: u64::from(header.pixel_offset),
            });
        }
        Ok(header)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn header(seq: u64) -> FrameHeader {
        FrameHeader {
            kind: FrameKind::Frame,
            on_subscription: false,
            keywords_follow: false,
            dtype: DType::U16,
            shape: Shape::new(&[3, 2]).unwrap(),
            keywords: 2,
            boot_id: 9,
            seq,
            cnt0: 1,
            cnt1: 2,
            cnt2: 3,
            atime_ns: -4,
            seen_ns: 5,
            sent_ns: 6,
            origin: 7,
            lapped_total: 0,
            queue_full_total: 0,
            pixel_offset: 192,
            based_on: 11,
        }
    }

    pub(crate) fn message(header: &FrameHeader) -> Vec<u8> {
        let mut bytes = vec![0; header.pixel_offset as usize + header.pixel_bytes()];
        header.encode(bytes.first_chunk_mut().unwrap());
        bytes
    }

    #[test]
    fn a_header_comes_back_as_it_was() {
        for kind in [FrameKind::Frame, FrameKind::Alive] {
            let header = FrameHeader { kind, on_subscription: true, keywords_follow: true, ..header(1) };
            assert_eq!(FrameHeader::decode(&message(&header)), Ok(header));
        }
    }

    #[test]
    fn a_message_cut_at_any_byte_is_refused() {
        let bytes = message(&header(1));
        for length in 0..bytes.len() {
            assert!(FrameHeader::decode(&bytes[..length]).is_err(), "{length}");
        }
        let longer = [bytes.as_slice(), &[0]].concat();
        assert!(FrameHeader::decode(&longer).is_err());
    }

    #[test]
    fn a_shape_whose_product_overflows_is_refused() {
        let mut bytes = message(&header(1));
        bytes[9] = 3;
        bytes[12..24].fill(0xff);
        assert_eq!(FrameHeader::decode(&bytes), Err(Refused::BadShape));
        bytes[9] = 200;
        assert_eq!(FrameHeader::decode(&bytes), Err(Refused::BadShape));
    }

    proptest! {
        #[test]
        fn mutated_messages_never_panic_and_never_announce_more_than_they_hold(
            changes in prop::collection::vec((0usize..204, any::<u8>()), 1..8), length in 0usize..204,
        ) {
            let mut bytes = message(&header(1));
            for (at, value) in changes {
                bytes[at] = value;
            }
            bytes.truncate(length.max(128));
            if let Ok(header) = FrameHeader::decode(&bytes) {
                prop_assert_eq!(header.pixel_offset as usize + header.pixel_bytes(), bytes.len());
            }
        }
    }
}
