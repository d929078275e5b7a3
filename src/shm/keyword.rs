//! Keywords: named values behind the frames of a segment, 120 bytes each.

/// Bytes of one keyword.
pub const KEYWORD_BYTES: usize = 120;

const NAME: std::ops::Range<usize> = 0..16;
const TYPE: usize = 16;
const VALUE: std::ops::Range<usize> = 24..40;
/// Where a keyword's value begins.
pub(super) const VALUE_OFFSET: usize = VALUE.start;
const COMMENT: std::ops::Range<usize> = 40..120;

#[repr(C)]
#[allow(dead_code)]
struct Raw {
    name: [u8; 16],
    kind: u8,
    value: [u64; 2],
    comment: [u8; 80],
}
const _: () = assert!(size_of::<Raw>() == KEYWORD_BYTES && std::mem::offset_of!(Raw, kind) == TYPE);
const _: () = assert!(std::mem::offset_of!(Raw, value) == VALUE.start);
const _: () = assert!(std::mem::offset_of!(Raw, comment) == COMMENT.start && COMMENT.end == KEYWORD_BYTES);

/// What a keyword holds.
#[derive(Clone, Debug, PartialEq)]
pub enum KeywordValue {
    /// Nothing (`N`, or a type that no library writes).
    Unused,
    /// `L`.
    Long(i64),
    /// `D`.
    Double(f64),
    /// `S`: up to 16 bytes.
    Text(String),
}

/// A keyword.
#[derive(Clone, Debug, PartialEq)]
pub struct Keyword {
    /// Up to 16 bytes.
    pub name: String,
    /// Its value.
    pub value: KeywordValue,
    /// Up to 80 bytes.
    pub comment: String,
}

/// Up to the first NUL, which the library leaves out where the text fills its field.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// Cuts at a character's edge; leaves room for a NUL, which C programs expect.
fn put(field: &mut [u8], text: &str, room: usize) {
    let mut end = text.len().min(room);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    field[..end].copy_from_slice(&text.as_bytes()[..end]);
}

impl Keyword {
    /// From the bytes of a segment; bytes that are no text are replaced, never refused.
    pub fn decode(bytes: &[u8; KEYWORD_BYTES]) -> Keyword {
        let number: [u8; 8] = std::array::from_fn(|i| bytes[VALUE.start + i]);
        let value = match bytes[TYPE] {
            b'L' => KeywordValue::Long(i64::from_le_bytes(number)),
            b'D' => KeywordValue::Double(f64::from_le_bytes(number)),
            b'S' => KeywordValue::Text(text(&bytes[VALUE])),
            _ => KeywordValue::Unused,
        };
        Keyword { name: text(&bytes[NAME]), value, comment: text(&bytes[COMMENT]) }
    }

    /// To the bytes of a segment. What is too long is cut.
    pub fn encode(&self) -> [u8; KEYWORD_BYTES] {
        let mut bytes = [0; KEYWORD_BYTES];
        put(&mut bytes[NAME], &self.name, NAME.len() - 1);
        put(&mut bytes[COMMENT], &self.comment, COMMENT.len() - 1);
        let number = VALUE.start..VALUE.start + 8;
        bytes[TYPE] = match &self.value {
            KeywordValue::Unused => b'N',
            KeywordValue::Long(value) => {
                bytes[number].copy_from_slice(&value.to_le_bytes());
                b'L'
            }
            KeywordValue::Double(value) => {
                bytes[number].copy_from_slice(&value.to_le_bytes());
                b'D'
            }
            KeywordValue::Text(value) => {
                put(&mut bytes[VALUE], value, VALUE.len());
                b'S'
            }
        };
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keywords_come_back_as_they_went() {
        let values = [
            KeywordValue::Unused,
            KeywordValue::Long(-42),
            KeywordValue::Double(0.35),
            KeywordValue::Text("sixteen letters!".into()),
        ];
        for value in values {
            let keyword = Keyword { name: "GAIN".into(), value, comment: "loop gain".into() };
            assert_eq!(Keyword::decode(&keyword.encode()), keyword);
        }
    }

    #[test]
    fn what_is_too_long_is_cut_between_characters() {
        let long = Keyword {
            name: "x".repeat(14) + "éé",
            value: KeywordValue::Text("y".repeat(40)),
            comment: "z".repeat(300),
        };
        let back = Keyword::decode(&long.encode());
        assert_eq!(back.name, "x".repeat(14));
        assert_eq!(back.value, KeywordValue::Text("y".repeat(16)));
        assert_eq!(back.comment.len(), 79);
    }

    #[test]
    fn garbage_is_shown_not_refused() {
        let keyword = Keyword::decode(&[0xff; KEYWORD_BYTES]);
        assert_eq!(keyword.value, KeywordValue::Unused);
    }
}
