//! Elements of all twelve types as text, as JSON, and from what a user types.

use crate::dtype::{DType, Shape};
use std::io::{self, Write};

/// One element.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value {
    /// Any of the integers: each fits.
    Int(i128),
    /// `float32`. Kept apart so that it is printed with its own digits.
    F32(f32),
    /// `float64`.
    F64(f64),
    /// `complex64`.
    C64(f32, f32),
    /// `complex128`.
    C128(f64, f64),
}

/// `N` bytes of an element. Bytes that are missing count as 0; callers hand over whole elements.
fn bytes<const N: usize>(element: &[u8], from: usize) -> [u8; N] {
    std::array::from_fn(|i| element.get(from + i).copied().unwrap_or(0))
}

impl Value {
    /// From the bytes of a segment.
    pub fn decode(dtype: DType, element: &[u8]) -> Value {
        let f32_at = |from| f32::from_le_bytes(bytes(element, from));
        let f64_at = |from| f64::from_le_bytes(bytes(element, from));
        match dtype {
            DType::U8 => Value::Int(u8::from_le_bytes(bytes(element, 0)).into()),
            DType::I8 => Value::Int(i8::from_le_bytes(bytes(element, 0)).into()),
            DType::U16 => Value::Int(u16::from_le_bytes(bytes(element, 0)).into()),
            DType::I16 => Value::Int(i16::from_le_bytes(bytes(element, 0)).into()),
            DType::U32 => Value::Int(u32::from_le_bytes(bytes(element, 0)).into()),
            DType::I32 => Value::Int(i32::from_le_bytes(bytes(element, 0)).into()),
            DType::U64 => Value::Int(u64::from_le_bytes(bytes(element, 0)).into()),
            DType::I64 => Value::Int(i64::from_le_bytes(bytes(element, 0)).into()),
            DType::F32 => Value::F32(f32_at(0)),
            DType::F64 => Value::F64(f64_at(0)),
            DType::C64 => Value::C64(f32_at(0), f32_at(4)),
            DType::C128 => Value::C128(f64_at(0), f64_at(8)),
        }
    }

    /// As one number: the real part of a complex one.
    pub fn real(self) -> f64 {
        match self {
            Value::Int(value) => value as f64,
            Value::F32(value) | Value::C64(value, _) => value.into(),
            Value::F64(value) | Value::C128(value, _) => value,
        }
    }

    /// As NumPy writes and reads it.
    fn write_text(self, out: &mut dyn Write) -> io::Result<()> {
        match self {
            Value::Int(value) => write!(out, "{value}"),
            Value::F32(value) => write!(out, "{value:?}"),
            Value::F64(value) => write!(out, "{value:?}"),
            Value::C64(re, im) => write!(out, "{re:?}{im:+?}j"),
            Value::C128(re, im) => write!(out, "{re:?}{im:+?}j"),
        }
    }

    /// JSON has neither complex numbers nor infinities: pairs, and null.
    fn write_json(self, out: &mut dyn Write) -> io::Result<()> {
        // Through the shortest digits of its own type: 0.1 as float32 is 0.1, not 0.10000000149011612.
        let mut float = |finite: bool, value: &dyn std::fmt::Debug| {
            if finite { write!(out, "{value:?}") } else { out.write_all(b"null") }
        };
        match self {
            Value::F32(value) => return float(value.is_finite(), &value),
            Value::F64(value) => return float(value.is_finite(), &value),
            _ => (),
        }
        let (re, im) = match self {
            Value::C64(re, im) => (Value::F32(re), Value::F32(im)),
            Value::C128(re, im) => (Value::F64(re), Value::F64(im)),
            other => return other.write_text(out),
        };
        out.write_all(b"[")?;
        re.write_json(out)?;
        out.write_all(b",")?;
        im.write_json(out)?;
        out.write_all(b"]")
    }
}

/// The elements of a frame, in its order.
pub fn elements(dtype: DType, frame: &[u8]) -> impl Iterator<Item = Value> {
    frame.chunks_exact(dtype.bytes()).map(move |element| Value::decode(dtype, element))
}

/// The frame in rows along its last axis, an empty line between the planes of three axes.
pub fn write_text(out: &mut dyn Write, dtype: DType, shape: &Shape, frame: &[u8]) -> io::Result<()> {
    let axes = shape.axes();
    let row = axes.last().map_or(1, |&axis| axis as usize);
    let rows_of_plane = if axes.len() == 3 { axes[1] as usize } else { usize::MAX };
    for (position, value) in elements(dtype, frame).enumerate() {
        if position > 0 && position % row == 0 {
            out.write_all(b"\n")?;
            if (position / row).is_multiple_of(rows_of_plane) {
                out.write_all(b"\n")?;
            }
        } else if position > 0 {
            out.write_all(b" ")?;
        }
        value.write_text(out)?;
    }
    out.write_all(b"\n")
}

/// The frame as lists in lists, one level an axis.
pub fn write_json(out: &mut dyn Write, dtype: DType, shape: &Shape, frame: &[u8]) -> io::Result<()> {
    // After how many elements a list of each level ends, innermost first.
    let mut lengths = Vec::new();
    let mut product = 1;
    for &axis in shape.axes().iter().rev() {
        product *= axis as usize;
        lengths.push(product);
    }
    for (position, value) in elements(dtype, frame).enumerate() {
        let edges = lengths.iter().filter(|&&length| position.is_multiple_of(length)).count();
        if position > 0 {
            out.write_all(&b"]]]"[..edges.min(3)])?;
            out.write_all(b",")?;
        }
        out.write_all(&b"[[["[..edges.min(3)])?;
        value.write_json(out)?;
    }
    out.write_all(&b"]]]"[..lengths.len().min(3)])
}

/// The bytes of the element that a user typed.
pub fn parse(dtype: DType, text: &str) -> Result<Vec<u8>, String> {
    let no_number = || format!("'{text}' is no number");
    let real = || text.parse::<f64>().map_err(|_| no_number());
    let single = || match text.parse::<f32>() {
        Ok(value) if value.is_infinite() && real()?.is_finite() => {
            Err(format!("'{text}' does not fit {}", dtype.name()))
        }
        other => other.map_err(|_| no_number()),
    };
    Ok(match dtype {
        DType::F32 => single()?.to_le_bytes().to_vec(),
        DType::F64 => real()?.to_le_bytes().to_vec(),
        DType::C64 => [single()?.to_le_bytes(), [0; 4]].concat(),
        DType::C128 => [real()?.to_le_bytes(), [0; 8]].concat(),
        _ => {
            let value = match text.parse::<i128>() {
                Ok(value) => value,
                // 1e3 and 2.0 are whole numbers too; beyond 2^53 they would not be what was typed.
                Err(_) => match real()? {
                    value if value.fract() == 0.0 && value.abs() <= 9_007_199_254_740_992.0 => value as i128,
                    _ => return Err(format!("'{text}' is no whole number, as {} needs", dtype.name())),
                },
            };
            let bytes = value.to_le_bytes()[..dtype.bytes()].to_vec();
            if Value::decode(dtype, &bytes) != Value::Int(value) {
                return Err(format!("'{text}' does not fit {}", dtype.name()));
            }
            bytes
        }
    })
}

/// The bytes of an element that holds a frame's number; small integers begin again at 0.
pub fn numbered(dtype: DType, number: u64) -> Vec<u8> {
    match dtype {
        DType::F32 => (number as f32).to_le_bytes().to_vec(),
        DType::F64 => (number as f64).to_le_bytes().to_vec(),
        DType::C64 => [(number as f32).to_le_bytes(), [0; 4]].concat(),
        DType::C128 => [(number as f64).to_le_bytes(), [0; 8]].concat(),
        _ => number.to_le_bytes()[..dtype.bytes()].to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::TABLE;

    fn text(dtype: DType, axes: &[u32], frame: &[u8]) -> String {
        let mut out = Vec::new();
        write_text(&mut out, dtype, &Shape::new(axes).unwrap(), frame).unwrap();
        String::from_utf8(out).unwrap()
    }

    fn json(dtype: DType, axes: &[u32], frame: &[u8]) -> String {
        let mut out = Vec::new();
        write_json(&mut out, dtype, &Shape::new(axes).unwrap(), frame).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn what_is_typed_for_any_type_is_what_is_printed() {
        for (dtype, name, bytes) in TABLE {
            let seven = parse(dtype, "7").unwrap();
            assert_eq!((seven.len(), Value::decode(dtype, &seven).real()), (bytes, 7.0), "{name}");
            assert_eq!(numbered(dtype, 7), seven, "{name}");
            let wanted = match dtype {
                DType::C64 | DType::C128 => "7.0+0.0j\n",
                DType::F32 | DType::F64 => "7.0\n",
                _ => "7\n",
            };
            assert_eq!(text(dtype, &[1], &seven), wanted, "{name}");
        }
    }

    #[test]
    fn extremes_fit_and_one_more_does_not() {
        for (dtype, good, bad) in [
            (DType::U8, "255", "256"),
            (DType::I8, "-128", "-129"),
            (DType::U64, "18446744073709551615", "18446744073709551616"),
            (DType::I64, "-9223372036854775808", "9223372036854775808"),
            (DType::U16, "1e3", "1.5"),
            (DType::F32, "1e38", "1e39"),
            (DType::F64, "-inf", "many"),
            (DType::C64, "2.5", "1+2j"),
        ] {
            assert!(parse(dtype, good).is_ok(), "{good}");
            assert!(parse(dtype, bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn frames_are_printed_in_their_shape() {
        let frame: Vec<u8> = (0..12).collect();
        assert_eq!(text(DType::U8, &[12], &frame), "0 1 2 3 4 5 6 7 8 9 10 11\n");
        assert_eq!(text(DType::U8, &[2, 6], &frame), "0 1 2 3 4 5\n6 7 8 9 10 11\n");
        assert_eq!(text(DType::U8, &[2, 3, 2], &frame), "0 1\n2 3\n4 5\n\n6 7\n8 9\n10 11\n");
        assert_eq!(json(DType::U8, &[3], &frame[..3]), "[0,1,2]");
        assert_eq!(json(DType::U8, &[2, 1], &frame[..2]), "[[0],[1]]");
        assert_eq!(json(DType::U8, &[2, 2, 2], &frame[..8]), "[[[0,1],[2,3]],[[4,5],[6,7]]]");
    }

    #[test]
    fn json_has_pairs_and_null_where_it_has_no_numbers() {
        let frame = [1.5f32.to_le_bytes(), (-2f32).to_le_bytes()].concat();
        assert_eq!(json(DType::C64, &[1], &frame), "[[1.5,-2.0]]");
        assert_eq!(text(DType::C64, &[1], &frame), "1.5-2.0j\n");
        let frame = [f64::NAN.to_le_bytes(), 1e300f64.to_le_bytes()].concat();
        assert_eq!(json(DType::F64, &[2], &frame), "[null,1e300]");
        assert_eq!(json(DType::F32, &[1], &0.1f32.to_le_bytes()), "[0.1]");
    }
}
