//! The one table of element types: DAO's `atype` number, NumPy's name, bytes an element.
//!
//! Source: `_DATATYPE_*` in the C library's `daoShm.h`.

/// The type of a segment's elements. The discriminant is the `atype` byte of the segment's metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
#[allow(missing_docs)] // the names say it all
pub enum DType {
    U8 = 1,
    I8 = 2,
    U16 = 3,
    I16 = 4,
    U32 = 5,
    I32 = 6,
    U64 = 7,
    I64 = 8,
    F32 = 9,
    F64 = 10,
    C64 = 11,
    C128 = 12,
}

/// Every type with its NumPy name and its size in bytes, in the order of `atype`.
pub const TABLE: [(DType, &str, usize); 12] = [
    (DType::U8, "uint8", 1),
    (DType::I8, "int8", 1),
    (DType::U16, "uint16", 2),
    (DType::I16, "int16", 2),
    (DType::U32, "uint32", 4),
    (DType::I32, "int32", 4),
    (DType::U64, "uint64", 8),
    (DType::I64, "int64", 8),
    (DType::F32, "float32", 4),
    (DType::F64, "float64", 8),
    (DType::C64, "complex64", 8),
    (DType::C128, "complex128", 16),
];

impl DType {
    fn row(self) -> &'static (DType, &'static str, usize) {
        &TABLE[self as usize - 1]
    }

    /// The type behind an `atype` byte, `None` if no library writes it.
    pub fn from_atype(atype: u8) -> Option<DType> {
        TABLE.get(usize::from(atype).checked_sub(1)?).map(|row| row.0)
    }

    /// The `atype` byte of the segment's metadata.
    pub fn atype(self) -> u8 {
        self as u8
    }

    /// The type behind a NumPy name such as `float32`.
    pub fn from_name(name: &str) -> Option<DType> {
        TABLE.iter().find(|row| row.1 == name).map(|row| row.0)
    }

    /// NumPy's name, as it stands in Redis.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// Bytes an element.
    pub fn bytes(self) -> usize {
        self.row().2
    }

    /// All names, for help texts and error sentences.
    pub fn names() -> String {
        TABLE.iter().map(|row| row.1).collect::<Vec<_>>().join(", ")
    }
}

/// The shape of a frame in NumPy's order: 1 to 3 axes, none of them 0, and few enough elements to be addressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    axes: [u32; 3],
    naxis: u8,
}

impl Shape {
    /// A shape from its axes; the error names what is wrong with them.
    pub fn new(axes: &[u32]) -> Result<Shape, String> {
        if axes.is_empty() || axes.len() > 3 {
            return Err(format!("{} axes, but a segment has 1 to 3", axes.len()));
        }
        if let Some(position) = axes.iter().position(|&axis| axis == 0) {
            return Err(format!("axis {position} is 0"));
        }
        let elements = axes.iter().try_fold(1u64, |product, &axis| product.checked_mul(u64::from(axis)));
        // 16 bytes is the largest element, and the frame must fit the limit.
        if elements.is_none_or(|n| n > crate::limits::FRAME_BYTES_MAX as u64) {
            return Err(format!("{axes:?} has more elements than a segment may hold"));
        }
        let mut all = [0; 3];
        all[..axes.len()].copy_from_slice(axes);
        Ok(Shape { axes: all, naxis: axes.len() as u8 })
    }

    /// The used axes.
    pub fn axes(&self) -> &[u32] {
        &self.axes[..usize::from(self.naxis)]
    }

    /// How many axes are used, 1 to 3.
    pub fn naxis(&self) -> u8 {
        self.naxis
    }

    /// The product of the axes.
    pub fn elements(&self) -> usize {
        self.axes().iter().map(|&axis| axis as usize).product()
    }

    /// Bytes of one frame of this shape.
    pub fn frame_bytes(&self, dtype: DType) -> usize {
        self.elements() * dtype.bytes()
    }

    /// Do frames of both shapes hold the same elements in the same order? Axes of length 1 at the end say nothing:
    /// `(140,)` and `(140, 1)` are the same vector.
    pub fn same_frame(&self, other: &Shape) -> bool {
        let significant =
            |shape: &Shape| shape.axes().iter().rposition(|&axis| axis != 1).map_or(0, |last| last + 1);
        self.axes[..significant(self)] == other.axes[..significant(other)]
    }

    /// From `8x6`, as the command line takes it.
    pub fn parse(text: &str) -> Result<Shape, String> {
        let axes: Result<Vec<u32>, _> = text.split('x').map(str::parse).collect();
        Shape::new(&axes.map_err(|_| format!("'{text}' is no shape such as 64x64"))?)
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let axes: Vec<String> = self.axes().iter().map(u32::to_string).collect();
        f.write_str(&axes.join("x"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_atype() {
        for (position, row) in TABLE.iter().enumerate() {
            assert_eq!(row.0.atype() as usize, position + 1);
            assert_eq!(DType::from_atype(row.0.atype()), Some(row.0));
            assert_eq!(DType::from_name(row.1), Some(row.0));
        }
        assert_eq!(DType::from_atype(0), None);
        assert_eq!(DType::from_atype(13), None);
    }

    #[test]
    fn a_shape_with_a_zero_axis_or_too_many_elements_is_refused() {
        assert!(Shape::new(&[8, 6]).is_ok());
        assert!(Shape::new(&[]).is_err());
        assert!(Shape::new(&[1, 2, 3, 4]).is_err());
        assert!(Shape::new(&[8, 0]).is_err());
        assert!(Shape::new(&[u32::MAX, u32::MAX, u32::MAX]).is_err());
        assert_eq!(Shape::parse("8x6").unwrap().axes(), &[8, 6]);
        assert!(Shape::parse("8x").is_err());
    }

    #[test]
    fn axes_of_one_at_the_end_make_no_other_frame() {
        let shape = |text| Shape::parse(text).unwrap();
        assert!(shape("140").same_frame(&shape("140x1")) && shape("1").same_frame(&shape("1x1x1")));
        assert!(!shape("140").same_frame(&shape("1x140")) && !shape("8x6").same_frame(&shape("6x8")));
    }
}
