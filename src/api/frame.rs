//! One frame, owned: its elements, counters and time.

use crate::dtype::{DType, Shape};
use crate::error::{Error, Kind, Result};
use crate::shm::FrameMeta;

/// A type that a segment's elements can have in Rust. Complex ones are `[real, imaginary]`.
pub trait Element: Copy {
    /// Its name in the segment.
    const DTYPE: DType;
    /// From as many bytes as it has, little-endian.
    fn from_bytes(bytes: &[u8]) -> Self;
    /// Adds its bytes, little-endian.
    fn put_bytes(self, to: &mut Vec<u8>);
}

macro_rules! numbers {
    ($($number:ty, $dtype:ident;)*) => {$(
        impl Element for $number {
            const DTYPE: DType = DType::$dtype;
            fn from_bytes(bytes: &[u8]) -> Self {
                let mut array = [0; size_of::<$number>()];
                array.copy_from_slice(bytes);
                <$number>::from_le_bytes(array)
            }
            fn put_bytes(self, to: &mut Vec<u8>) {
                to.extend_from_slice(&self.to_le_bytes());
            }
        }
    )*};
}

numbers! { u8, U8; i8, I8; u16, U16; i16, I16; u32, U32; i32, I32; u64, U64; i64, I64; f32, F32; f64, F64; }

macro_rules! complex {
    ($($part:ty, $dtype:ident;)*) => {$(
        impl Element for [$part; 2] {
            const DTYPE: DType = DType::$dtype;
            fn from_bytes(bytes: &[u8]) -> Self {
                let (real, imaginary) = bytes.split_at(size_of::<$part>());
                [<$part>::from_bytes(real), <$part>::from_bytes(imaginary)]
            }
            fn put_bytes(self, to: &mut Vec<u8>) {
                self.into_iter().for_each(|part| part.put_bytes(to));
            }
        }
    )*};
}

complex! { f32, C64; f64, C128; }

/// A whole frame of a segment, copied.
#[derive(Clone, Debug, PartialEq)]
pub struct Frame {
    pub(super) shape: Shape,
    pub(super) dtype: DType,
    pub(super) meta: FrameMeta,
    pub(super) lapped: u64,
    pub(super) bytes: Vec<u8>,
}

impl Frame {
    /// Its axes in NumPy's order.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The type of its elements.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Its elements as they stand in the segment: little-endian, the last axis fastest.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Its elements, the last axis fastest.
    ///
    /// # Errors
    /// `Value`: they are of another type.
    pub fn values<T: Element>(&self) -> Result<Vec<T>> {
        check::<T>(self.dtype)?;
        Ok(self.bytes.chunks_exact(T::DTYPE.bytes()).map(T::from_bytes).collect())
    }

    /// The counter of the segment (`cnt0`): grows by one with each frame of a mirror.
    pub fn counter(&self) -> u64 {
        self.meta.cnt0
    }

    /// The frame id that its writer gave (`cnt2`), carried over from the source.
    pub fn frame_id(&self) -> u64 {
        self.meta.cnt2
    }

    /// When it was written at its source, UTC, nanoseconds since 1970. 0: it never was.
    pub fn written_ns(&self) -> i64 {
        self.meta.atime_ns
    }

    /// Frames that were in the segment before this one and after the last one read, and could not be had.
    pub fn lapped(&self) -> u64 {
        self.lapped
    }
}

/// Are these elements of that type?
pub(super) fn check<T: Element>(dtype: DType) -> Result<()> {
    if T::DTYPE == dtype {
        return Ok(());
    }
    let sentence = format!("The segment's elements are {}, not {}.", dtype.name(), T::DTYPE.name());
    Err(Error::new(Kind::Value, sentence))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame<T: Element>(values: &[T]) -> Frame {
        let mut bytes = Vec::new();
        values.iter().for_each(|value| value.put_bytes(&mut bytes));
        let shape = Shape::new(&[values.len() as u32]).unwrap();
        Frame { shape, dtype: T::DTYPE, meta: FrameMeta::default(), lapped: 0, bytes }
    }

    #[test]
    fn elements_of_every_width_come_back() {
        assert_eq!(frame(&[-1i8, 5]).values::<i8>().unwrap(), [-1, 5]);
        assert_eq!(frame(&[u16::MAX, 5]).values::<u16>().unwrap(), [u16::MAX, 5]);
        assert_eq!(frame(&[1.5f32, -2.0]).values::<f32>().unwrap(), [1.5, -2.0]);
        assert_eq!(frame(&[i64::MIN]).values::<i64>().unwrap(), [i64::MIN]);
        assert_eq!(frame(&[[1.0f64, -0.5]]).values::<[f64; 2]>().unwrap(), [[1.0, -0.5]]);
        assert_eq!(frame(&[[1.0f32, -0.5]]).bytes().len(), 8);
    }

    #[test]
    fn another_type_is_refused_with_both_names() {
        let error = frame(&[1u16]).values::<f32>().unwrap_err();
        assert_eq!(error.kind, Kind::Value);
        assert_eq!(error.message, "The segment's elements are uint16, not float32.");
    }
}
