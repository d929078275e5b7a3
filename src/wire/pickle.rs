//! The Python wire: a pickle of one numeric NumPy array.
//!
//! Writing: [`Frame`] gives the constant bytes before and after the pixels. Reading: [`decode`] knows the few opcodes
//! and globals that such an array needs, in protocols 2 to 5, and refuses everything else. Nothing is executed: a
//! "call" of a known global makes a value of ours. Nothing recurses: values stand in one list and name each other by
//! their place in it. The work is linear in the message, the values are few, and no byte of the
//! pixels is copied here.
//!
//! Source: Python's `pickletools`, and what NumPy's `ndarray.__reduce__` and `__reduce_ex__(5)` give.

mod machine;

use crate::dtype::{DType, Shape};
use crate::wire::frame::Refused;
use std::borrow::Cow;

/// The bytes around the pixels of every frame of one segment: prefix, pixels (C order, little-endian), suffix.
///
/// Protocol 3 and `numpy.core.multiarray._reconstruct`, which every NumPy from 1.16 on loads without a warning, as a
/// writable array.
pub struct Frame {
    /// Before the pixels.
    pub prefix: Vec<u8>,
    /// After them.
    pub suffix: &'static [u8],
}

/// Bytes of the longest prefix.
pub const PREFIX_BYTES_MAX: usize = 192;
/// Bytes of the suffix.
pub const SUFFIX_BYTES: usize = 3;

impl Frame {
    /// For frames of this shape and type.
    pub fn new(shape: &Shape, dtype: DType) -> Frame {
        let mut prefix = Vec::with_capacity(PREFIX_BYTES_MAX);
        let mut put = |bytes: &[u8]| prefix.extend_from_slice(bytes);
        put(b"\x80\x03cnumpy.core.multiarray\n_reconstruct\n"); // PROTO 3, GLOBAL
        put(b"cnumpy\nndarray\nK\x00\x85C\x01b\x87R"); // (ndarray, (0,), b'b'), REDUCE
        put(b"(K\x01"); // MARK: the state begins with its version
        for axis in shape.axes() {
            put(b"\x8a\x05"); // LONG1 of five bytes: any u32 is positive in it
            put(&axis.to_le_bytes());
            put(&[0]);
        }
        put(&[[0x85, 0x86, 0x87][shape.axes().len() - 1]]); // TUPLE1 to TUPLE3
        let code = CODES[dtype as usize - 1];
        put(b"cnumpy\ndtype\nX"); // GLOBAL, BINUNICODE
        put(&(code.len() as u32).to_le_bytes());
        put(code.as_bytes());
        put(b"\x89\x88\x87R(K\x03X\x01\x00\x00\x00"); // (code, False, True), REDUCE, MARK, version, BINUNICODE of one
        put(if dtype.bytes() == 1 { b"|" } else { b"<" });
        put(b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"); // the rest of a plain dtype's state, TUPLE, BUILD
        put(b"\x89B"); // not Fortran order, BINBYTES
        put(&(shape.frame_bytes(dtype) as u32).to_le_bytes());
        Frame { prefix, suffix: b"tb." }
    }
}

const _: () = assert!(crate::limits::FRAME_BYTES_MAX <= u32::MAX as usize);

/// NumPy's short name of each type, without byte order, in the order of `atype`.
const CODES: [&str; 12] = ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8", "c8", "c16"];

/// An array as the message holds it.
#[derive(Debug, PartialEq, Eq)]
pub struct Array<'a> {
    /// Its shape.
    pub shape: Shape,
    /// Its type.
    pub dtype: DType,
    /// Elements are big-endian in `bytes`.
    pub big_endian: bool,
    /// Elements are in Fortran's order in `bytes`.
    pub fortran: bool,
    /// The elements. Owned only where protocol 2 wrapped them into text.
    pub bytes: Cow<'a, [u8]>,
}

impl Array<'_> {
    /// The elements in C order, little-endian: as they are where they are so already.
    pub fn pixels(&self) -> Cow<'_, [u8]> {
        let swap = self.big_endian && self.dtype.bytes() > 1;
        let reorder = self.fortran && self.shape.axes().len() > 1;
        if !swap && !reorder {
            return Cow::Borrowed(&self.bytes);
        }
        let element = self.dtype.bytes();
        // The two parts of a complex number are swapped each for itself.
        let part = if matches!(self.dtype, DType::C64 | DType::C128) { element / 2 } else { element };
        let mut pixels = Vec::with_capacity(self.bytes.len());
        for index in 0..self.shape.elements() {
            let from = if reorder { self.fortran_index(index) } else { index } * element;
            let Some(bytes) = self.bytes.get(from..from + element) else { break };
            for part in bytes.chunks(part) {
                if swap { pixels.extend(part.iter().rev()) } else { pixels.extend_from_slice(part) }
            }
        }
        Cow::Owned(pixels)
    }

    /// Where the element with this C index stands in Fortran order.
    fn fortran_index(&self, mut c_index: usize) -> usize {
        let axes = self.shape.axes();
        let mut position = [0usize; 3];
        for (axis, place) in axes.iter().zip(&mut position).rev() {
            *place = c_index % *axis as usize;
            c_index /= *axis as usize;
        }
        let mut stride = 1;
        let mut index = 0;
        for (axis, place) in axes.iter().zip(position) {
            index += place * stride;
            stride *= *axis as usize;
        }
        index
    }
}

/// Reads the array that a message is. Bounded in time and space whatever the message says.
pub fn decode(message: &[u8]) -> Result<Array<'_>, Refused> {
    machine::run(message)
}
