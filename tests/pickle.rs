//! The pickle subset: every file that real NumPys wrote is read, what we write is read back, and nothing that a
//! hostile peer sends does more than be refused.
#![allow(clippy::unwrap_used)]

use daoserver::dtype::{DType, Shape, TABLE};
use daoserver::wire::frame::Refused;
use daoserver::wire::pickle::{Frame, PREFIX_BYTES_MAX, SUFFIX_BYTES, decode};
use std::path::{Path, PathBuf};

fn golden_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/pickle")
}

fn golden(name: &str) -> Vec<u8> {
    std::fs::read(golden_dir().join(name)).unwrap()
}

/// Every golden file with its line of the manifest.
fn goldens() -> Vec<(serde_json::Value, Vec<u8>)> {
    let mut all = Vec::new();
    for manifest in ["manifest-numpy1.json", "manifest-numpy2.json"] {
        let entries: serde_json::Value = serde_json::from_slice(&golden(manifest)).unwrap();
        for entry in entries.as_array().unwrap() {
            all.push((entry.clone(), golden(entry["file"].as_str().unwrap())));
        }
    }
    assert_eq!(all.len(), 96);
    all
}

#[test]
fn every_golden_array_is_read_bit_for_bit() {
    for (entry, bytes) in goldens() {
        let array = decode(&bytes).unwrap_or_else(|refused| panic!("{}: {refused}", entry["file"]));
        assert_eq!(array.dtype.name(), entry["dtype"], "{}", entry["file"]);
        let axes: Vec<u64> = array.shape.axes().iter().map(|axis| u64::from(*axis)).collect();
        assert_eq!(serde_json::json!(axes), entry["shape"], "{}", entry["file"]);
        let hex: String = array.pixels().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, entry["frame_hex"].as_str().unwrap(), "{}", entry["file"]);
    }
}

#[test]
fn a_golden_cut_at_any_byte_is_refused() {
    for (entry, bytes) in goldens().into_iter().filter(|(_, bytes)| bytes.len() < 1_100) {
        for length in 0..bytes.len() {
            assert!(decode(&bytes[..length]).is_err(), "{} cut to {length}", entry["file"]);
        }
    }
}

#[test]
fn what_we_write_is_read_back_for_every_type_and_number_of_axes() {
    for (dtype, _, _) in TABLE {
        for axes in [&[7][..], &[5, 3], &[4, 3, 2], &[70_000], &[1, 1]] {
            let shape = Shape::new(axes).unwrap();
            let pixels: Vec<u8> = (0..shape.frame_bytes(dtype)).map(|n| n as u8).collect();
            let frame = Frame::new(&shape, dtype);
            assert!(frame.prefix.len() <= PREFIX_BYTES_MAX && frame.suffix.len() == SUFFIX_BYTES);
            let message = [&frame.prefix, &pixels, frame.suffix].concat();
            let array = decode(&message).unwrap();
            assert_eq!((array.shape, array.dtype), (shape, dtype));
            assert_eq!(*array.pixels(), pixels);
        }
    }
}

/// A pickle of protocol 4 around these opcodes.
fn pickle(opcodes: &[u8]) -> Vec<u8> {
    [b"\x80\x04", opcodes, b"."].concat()
}

#[test]
fn other_globals_are_refused_before_anything_is_made_of_them() {
    for (module, name) in [
        ("os", "system"),
        ("posix", "system"),
        ("builtins", "eval"),
        ("builtins", "exec"),
        ("subprocess", "Popen"),
        ("numpy", "load"),
        ("numpy.core.multiarray", "scalar"),
        ("numpy", "core.multiarray._reconstruct"),
        ("", ""),
    ] {
        let text = pickle(format!("c{module}\n{name}\nX\x02\0\0\0id\u{0}").as_bytes());
        assert_eq!(decode(&text), Err(Refused::PickleGlobal), "{module}.{name}");
        let mut stack = Vec::new();
        for part in [module, name] {
            stack.extend([&[0x8c, part.len() as u8], part.as_bytes()].concat());
        }
        stack.push(0x93);
        assert_eq!(decode(&pickle(&stack)), Err(Refused::PickleGlobal), "{module}.{name}");
    }
    let endless = [b"\x80\x04c".as_slice(), &[b'a'; 10_000]].concat();
    assert_eq!(decode(&endless), Err(Refused::PickleGlobal));
}

#[test]
fn opcodes_that_no_array_needs_are_refused() {
    // INST, OBJ, NEWOBJ, NEWOBJ_EX, PERSID, BINPERSID, EXT1, DICT, LIST, APPENDS, SETITEM, DUP, INT, NEXT_BUFFER
    for opcode in [b'i', b'o', 0x81, 0x92, b'P', b'Q', 0x82, b'd', b'l', b'e', b's', b'2', b'I', 0x97] {
        assert_eq!(decode(&pickle(&[opcode])), Err(Refused::PickleOpcode(opcode)));
    }
    assert_eq!(decode(b"\x80\x09."), Err(Refused::PickleOpcode(9)));
}

#[test]
fn lengths_that_lie_are_refused_without_being_believed() {
    for opcodes in [
        &b"B\xff\xff\xff\xff"[..],
        b"\x8e\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x96\xff\xff\xff\xff\xff\xff\xff\x7f",
        b"X\xff\xff\xff\x7f",
        b"\x8a\xff",
        b"C\xff",
    ] {
        assert_eq!(decode(&pickle(opcodes)), Err(Refused::PickleTruncated), "{opcodes:x?}");
    }
    // A shape that promises a terabyte, around six bytes.
    let shape = Shape::new(&[3, 2]).unwrap();
    let frame = Frame::new(&shape, DType::U8);
    let small = [&frame.prefix[..], &[0; 6], frame.suffix].concat();
    let place = small.windows(7).position(|window| window == b"\x8a\x05\x03\0\0\0\0").unwrap();
    let mut huge = small.clone();
    huge[place + 4] = 0xff;
    assert!(matches!(decode(&huge), Err(Refused::BadShape | Refused::BadLength { .. })));
    let mut negative = small;
    negative[place + 6] = 0xff;
    assert_eq!(decode(&negative), Err(Refused::BadShape));
}

#[test]
fn deep_nesting_and_memo_tricks_end_soon() {
    let nested = pickle(&[b")".as_slice(), &[0x85; 100_000]].concat());
    assert_eq!(decode(&nested), Err(Refused::PickleTooComplex));
    assert_eq!(decode(&pickle(&[b'('; 100_000])), Err(Refused::PickleTooComplex));
    // Each tuple holds the last one twice: 2^100 members, if anybody counted.
    let doubling = [b")\x94".as_slice(), &b"h\x00h\x00\x86q\x00".repeat(100)].concat();
    assert!(decode(&pickle(&doubling)).is_err());
    assert_eq!(decode(&pickle(b"h\x05")), Err(Refused::PickleStructure));
    assert_eq!(decode(&pickle(b"Nr\xff\xff\xff\xff")), Err(Refused::PickleTooComplex));
    assert_eq!(decode(&pickle(b"Nj\xff\xff\xff\xff")), Err(Refused::PickleStructure));
    // A dtype whose state names itself, an array that is its own data.
    let frame = Frame::new(&Shape::new(&[1]).unwrap(), DType::U8);
    let own_data = [&frame.prefix[..frame.prefix.len() - 5], b"q\x00h\x00tb."].concat();
    assert!(decode(&own_data).is_err());
}

#[test]
fn a_stack_that_runs_dry_is_refused() {
    for opcodes in [&b""[..], b"R", b"b", b"\x93", b"t", b"\x87", b"(R", b"N(\x85", b"NN"] {
        assert_eq!(decode(&pickle(opcodes)), Err(Refused::PickleStructure), "{opcodes:?}");
    }
}

#[test]
fn other_things_than_numeric_arrays_are_refused() {
    let text = String::from_utf8_lossy(&golden("numpy2-p4-float32.pickle")).into_owned();
    assert!(text.contains("f4"));
    for code in ["O8", "S4", "U1", "V8", "M8", "f2", "b1", "xx"] {
        let bytes = golden("numpy2-p4-float32.pickle");
        let place = bytes.windows(2).position(|window| window == b"f4").unwrap();
        let mut changed = bytes;
        changed[place..place + 2].copy_from_slice(code.as_bytes());
        assert_eq!(decode(&changed), Err(Refused::PickleType), "{code}");
    }
    assert_eq!(decode(&pickle(b"K\x01")), Err(Refused::PickleStructure));
    let trailing = [golden("numpy2-p4-float32.pickle"), b"x".to_vec()].concat();
    assert_eq!(decode(&trailing), Err(Refused::PickleStructure));
}
