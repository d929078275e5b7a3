//! The stack machine of a pickle, with the opcodes of numeric arrays and no others.

use super::{Array, CODES};
use crate::dtype::{DType, Shape};
use crate::wire::frame::Refused;
use std::borrow::Cow;
use std::ops::Range;

/// Opcodes of one message: a real array has about 60.
const OPS_MAX: usize = 400;
/// Values, memo entries and stack entries of one message.
const VALUES_MAX: usize = 400;
/// Bytes of a global's module and name: the longest real one has 33.
const GLOBAL_BYTES_MAX: usize = 64;

fn dtype_from_code(code: &str) -> Option<DType> {
    CODES.iter().position(|known| *known == code).and_then(|place| DType::from_atype(place as u8 + 1))
}

/// The globals that are known, and what a call of each makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Global {
    Reconstruct,
    FromBuffer,
    NdArray,
    DType,
    CodecsEncode,
}

fn global(module: &[u8], name: &[u8]) -> Result<Global, Refused> {
    match (module, name) {
        (b"numpy.core.multiarray" | b"numpy._core.multiarray", b"_reconstruct") => Ok(Global::Reconstruct),
        (b"numpy.core.numeric" | b"numpy._core.numeric", b"_frombuffer") => Ok(Global::FromBuffer),
        (b"numpy", b"ndarray") => Ok(Global::NdArray),
        (b"numpy", b"dtype") => Ok(Global::DType),
        (b"_codecs", b"encode") => Ok(Global::CodecsEncode),
        _ => Err(Refused::PickleGlobal),
    }
}

/// A value's place in [`Machine::values`].
type Id = usize;

#[derive(Clone, Debug)]
enum Value {
    None,
    Bool(bool),
    Int(i64),
    /// Bytes of the message.
    Bytes(Range<usize>),
    /// Text of the message, valid UTF-8.
    Text(Range<usize>),
    /// Bytes that are one character each in this text: protocol 2 has no other way.
    Latin1(Range<usize>),
    /// A part of [`Machine::items`].
    Tuple(Range<usize>),
    Global(Global),
    DType {
        dtype: DType,
        big_endian: bool,
    },
    /// What `_reconstruct` gives: an array without its state.
    Blank,
    Array {
        shape: Shape,
        dtype: DType,
        big_endian: bool,
        fortran: bool,
        data: Id,
    },
}

struct Machine<'a> {
    message: &'a [u8],
    at: usize,
    values: Vec<Value>,
    /// The members of all tuples.
    items: Vec<Id>,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: Vec<Option<Id>>,
}

/// Runs the opcodes of a message.
pub(super) fn run(message: &[u8]) -> Result<Array<'_>, Refused> {
    let mut machine = Machine {
        message,
        at: 0,
        values: Vec::new(),
        items: Vec::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: Vec::new(),
    };
    for _ in 0..OPS_MAX {
        if machine.step()? {
            return machine.result();
        }
    }
    Err(Refused::PickleTooComplex)
}

impl<'a> Machine<'a> {
    fn take(&mut self, bytes: usize) -> Result<Range<usize>, Refused> {
        let end = self.at.checked_add(bytes).filter(|end| *end <= self.message.len());
        let range = self.at..end.ok_or(Refused::PickleTruncated)?;
        self.at = range.end;
        Ok(range)
    }

    fn number<const N: usize>(&mut self) -> Result<[u8; N], Refused> {
        let range = self.take(N)?;
        self.message[range].try_into().map_err(|_| Refused::PickleTruncated)
    }

    fn byte(&mut self) -> Result<u8, Refused> {
        Ok(self.number::<1>()?[0])
    }

    /// A length of `N` bytes and as many bytes as it says.
    fn counted<const N: usize>(&mut self) -> Result<Range<usize>, Refused> {
        let mut length = [0; 8];
        length[..N].copy_from_slice(&self.number::<N>()?);
        let length = usize::try_from(u64::from_le_bytes(length)).map_err(|_| Refused::PickleTruncated)?;
        self.take(length)
    }

    fn text(&mut self, range: Range<usize>) -> Result<(), Refused> {
        std::str::from_utf8(&self.message[range.clone()]).map_err(|_| Refused::PickleStructure)?;
        self.push(Value::Text(range))
    }

    fn line(&mut self) -> Result<&'a [u8], Refused> {
        let rest = &self.message[self.at..];
        let window = &rest[..rest.len().min(GLOBAL_BYTES_MAX + 1)];
        match window.iter().position(|byte| *byte == b'\n') {
            Some(length) => {
                self.at += length + 1;
                Ok(&rest[..length])
            }
            None if rest.len() <= GLOBAL_BYTES_MAX => Err(Refused::PickleTruncated),
            None => Err(Refused::PickleGlobal),
        }
    }

    fn push(&mut self, value: Value) -> Result<(), Refused> {
        if self.values.len() >= VALUES_MAX {
            return Err(Refused::PickleTooComplex);
        }
        self.values.push(value);
        self.push_id(self.values.len() - 1)
    }

    fn push_id(&mut self, id: Id) -> Result<(), Refused> {
        if self.stack.len() >= VALUES_MAX {
            return Err(Refused::PickleTooComplex);
        }
        self.stack.push(id);
        Ok(())
    }

    /// Takes the top of the stack, not from below the last mark.
    fn pop(&mut self) -> Result<Id, Refused> {
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= floor {
            return Err(Refused::PickleStructure);
        }
        self.stack.pop().ok_or(Refused::PickleStructure)
    }

    fn top(&self) -> Result<Id, Refused> {
        self.stack.last().copied().ok_or(Refused::PickleStructure)
    }

    fn tuple(&mut self, length: usize) -> Result<(), Refused> {
        let floor = self.marks.last().copied().unwrap_or(0);
        let start = self.stack.len().checked_sub(length).filter(|start| *start >= floor);
        let members = self.stack.split_off(start.ok_or(Refused::PickleStructure)?);
        if self.items.len() + members.len() > VALUES_MAX {
            return Err(Refused::PickleTooComplex);
        }
        let first = self.items.len();
        self.items.extend(members);
        self.push(Value::Tuple(first..self.items.len()))
    }

    fn remember(&mut self, place: usize) -> Result<(), Refused> {
        let id = self.top()?;
        if place >= VALUES_MAX {
            return Err(Refused::PickleTooComplex);
        }
        if self.memo.len() <= place {
            self.memo.resize(place + 1, None);
        }
        self.memo[place] = Some(id);
        Ok(())
    }

    fn recall(&mut self, place: usize) -> Result<(), Refused> {
        let id = self.memo.get(place).copied().flatten().ok_or(Refused::PickleStructure)?;
        self.push_id(id)
    }

    /// One opcode; `true` at the end.
    fn step(&mut self) -> Result<bool, Refused> {
        match self.byte()? {
            0x80 => {
                // PROTO
                let protocol = self.byte()?;
                if !(2..=5).contains(&protocol) {
                    return Err(Refused::PickleOpcode(protocol));
                }
            }
            0x95 => {
                // FRAME: only a hint for readers of files
                self.take(8)?;
            }
            b'.' => return Ok(true),
            b'(' if self.marks.len() < VALUES_MAX => self.marks.push(self.stack.len()),
            b'(' => return Err(Refused::PickleTooComplex),
            b'N' => self.push(Value::None)?,
            0x88 => self.push(Value::Bool(true))?,
            0x89 => self.push(Value::Bool(false))?,
            b'K' => {
                let value = self.byte()?;
                self.push(Value::Int(value.into()))?;
            }
            b'M' => {
                let value = u16::from_le_bytes(self.number()?);
                self.push(Value::Int(value.into()))?;
            }
            b'J' => {
                let value = i32::from_le_bytes(self.number()?);
                self.push(Value::Int(value.into()))?;
            }
            0x8a => {
                let range = self.counted::<1>()?;
                self.long(range)?;
            }
            b'C' => {
                let range = self.counted::<1>()?;
                self.push(Value::Bytes(range))?;
            }
            b'B' => {
                let range = self.counted::<4>()?;
                self.push(Value::Bytes(range))?;
            }
            0x8e | 0x96 => {
                // BINBYTES8, BYTEARRAY8
                let range = self.counted::<8>()?;
                self.push(Value::Bytes(range))?;
            }
            0x8c => {
                let range = self.counted::<1>()?;
                self.text(range)?;
            }
            b'X' => {
                let range = self.counted::<4>()?;
                self.text(range)?;
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.push(Value::Global(global(module, name)?))?;
            }
            0x93 => {
                // STACK_GLOBAL
                let (name, module) = (self.pop()?, self.pop()?);
                let found = match (&self.values[module], &self.values[name]) {
                    (Value::Text(module), Value::Text(name)) => {
                        global(&self.message[module.clone()], &self.message[name.clone()])?
                    }
                    _ => return Err(Refused::PickleStructure),
                };
                self.push(Value::Global(found))?;
            }
            b')' => self.tuple(0)?,
            0x85 => self.tuple(1)?,
            0x86 => self.tuple(2)?,
            0x87 => self.tuple(3)?,
            b't' => {
                let mark = self.marks.pop().ok_or(Refused::PickleStructure)?;
                // `pop` and `tuple` never go below a mark.
                self.tuple(self.stack.len() - mark)?;
            }
            0x94 => self.remember(self.memo.len())?, // MEMOIZE
            b'q' => {
                let place = self.byte()?;
                self.remember(place.into())?;
            }
            b'r' => {
                let place = u32::from_le_bytes(self.number()?);
                self.remember(place as usize)?;
            }
            b'h' => {
                let place = self.byte()?;
                self.recall(place.into())?;
            }
            b'j' => {
                let place = u32::from_le_bytes(self.number()?);
                self.recall(place as usize)?;
            }
            b'R' => {
                let (arguments, callee) = (self.pop()?, self.pop()?);
                let made = self.call(callee, arguments)?;
                self.push(made)?;
            }
            b'b' => {
                let state = self.pop()?;
                let object = self.top()?;
                self.build(object, state)?;
            }
            other => return Err(Refused::PickleOpcode(other)),
        }
        Ok(false)
    }

    /// LONG1: little-endian, two's complement.
    fn long(&mut self, range: Range<usize>) -> Result<(), Refused> {
        let bytes = &self.message[range];
        if bytes.len() > 8 {
            return Err(Refused::PickleStructure);
        }
        let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
        let mut all = [if negative { 0xff } else { 0 }; 8];
        all[..bytes.len()].copy_from_slice(bytes);
        self.push(Value::Int(i64::from_le_bytes(all)))
    }

    fn members(&self, tuple: Id) -> Result<&[Id], Refused> {
        match &self.values[tuple] {
            Value::Tuple(range) => Ok(&self.items[range.clone()]),
            _ => Err(Refused::PickleStructure),
        }
    }

    fn str_of(&self, id: Id) -> Option<&str> {
        match &self.values[id] {
            // No word that matters is longer; a long text that is named again and again is not read each time.
            Value::Text(range) if range.len() <= GLOBAL_BYTES_MAX => {
                std::str::from_utf8(&self.message[range.clone()]).ok()
            }
            _ => None,
        }
    }

    /// What a call of a known global makes.
    fn call(&self, callee: Id, arguments: Id) -> Result<Value, Refused> {
        let Value::Global(callee) = self.values[callee] else { return Err(Refused::PickleStructure) };
        match (callee, self.members(arguments)?) {
            (Global::Reconstruct, [class, _shape, _kind])
                if matches!(self.values[*class], Value::Global(Global::NdArray)) =>
            {
                Ok(Value::Blank)
            }
            (Global::DType, [code, ..]) => {
                let dtype = self.str_of(*code).and_then(dtype_from_code).ok_or(Refused::PickleType)?;
                Ok(Value::DType { dtype, big_endian: false })
            }
            (Global::CodecsEncode, [text, encoding]) if self.str_of(*encoding) == Some("latin1") => {
                match &self.values[*text] {
                    Value::Text(range) => Ok(Value::Latin1(range.clone())),
                    _ => Err(Refused::PickleStructure),
                }
            }
            (Global::FromBuffer, [data, dtype, shape, order]) => {
                let fortran = match self.str_of(*order) {
                    Some("C") => false,
                    Some("F") => true,
                    _ => return Err(Refused::PickleStructure),
                };
                self.array(*shape, *dtype, fortran, *data)
            }
            _ => Err(Refused::PickleStructure),
        }
    }

    /// The state of a dtype or of an array takes effect.
    fn build(&mut self, object: Id, state: Id) -> Result<(), Refused> {
        let built = match (&self.values[object], self.members(state)?) {
            // (version, byte order, subdtype, names, fields, itemsize, alignment, flags)
            (Value::DType { dtype, .. }, [_, order, subdtype, names, fields, ..]) => {
                let plain =
                    [subdtype, names, fields].iter().all(|id| matches!(self.values[**id], Value::None));
                let big_endian = match self.str_of(*order) {
                    Some("<" | "|" | "=") => false,
                    Some(">") => true,
                    _ => return Err(Refused::PickleType),
                };
                if !plain {
                    return Err(Refused::PickleType);
                }
                Value::DType { dtype: *dtype, big_endian }
            }
            // (version, shape, dtype, Fortran order, data)
            (Value::Blank, [_, shape, dtype, fortran, data]) => {
                let Value::Bool(fortran) = self.values[*fortran] else {
                    return Err(Refused::PickleStructure);
                };
                self.array(*shape, *dtype, fortran, *data)?
            }
            _ => return Err(Refused::PickleStructure),
        };
        self.values[object] = built;
        Ok(())
    }

    fn array(&self, shape: Id, dtype: Id, fortran: bool, data: Id) -> Result<Value, Refused> {
        let axis = |id: &Id| match self.values[*id] {
            Value::Int(axis) => u32::try_from(axis).ok(),
            _ => None,
        };
        let axes: Option<Vec<u32>> = self.members(shape)?.iter().take(4).map(axis).collect();
        let shape = Shape::new(&axes.ok_or(Refused::BadShape)?).map_err(|_| Refused::BadShape)?;
        let Value::DType { dtype, big_endian } = self.values[dtype] else {
            return Err(Refused::PickleStructure);
        };
        Ok(Value::Array { shape, dtype, big_endian, fortran, data })
    }

    /// The one value that is left must be an array, and its bytes as many as its shape says.
    fn result(mut self) -> Result<Array<'a>, Refused> {
        let id = self.pop()?;
        let Value::Array { shape, dtype, big_endian, fortran, data } = self.values[id] else {
            return Err(Refused::PickleStructure);
        };
        if !self.stack.is_empty() || self.at != self.message.len() {
            return Err(Refused::PickleStructure);
        }
        let expected = shape.frame_bytes(dtype);
        let bytes = match &self.values[data] {
            Value::Bytes(range) => Cow::Borrowed(&self.message[range.clone()]),
            // Two bytes a character at most: never more than the message, so never allocated for a lie.
            Value::Latin1(range) if range.len() <= expected.saturating_mul(2) => {
                let text = std::str::from_utf8(&self.message[range.clone()]).unwrap_or_default();
                let characters = text.chars().count();
                if characters != expected {
                    return Err(Refused::BadLength { expected: expected as u64, got: characters as u64 });
                }
                let mut bytes = Vec::with_capacity(expected); // exactly the frame
                for character in text.chars() {
                    bytes.push(u8::try_from(u32::from(character)).map_err(|_| Refused::PickleStructure)?);
                }
                Cow::Owned(bytes)
            }
            Value::Latin1(range) => {
                return Err(Refused::BadLength { expected: expected as u64, got: range.len() as u64 });
            }
            _ => return Err(Refused::PickleStructure),
        };
        if bytes.len() != expected {
            return Err(Refused::BadLength { expected: expected as u64, got: bytes.len() as u64 });
        }
        Ok(Array { shape, dtype, big_endian, fortran, bytes })
    }
}
