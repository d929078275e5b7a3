//! What decoding a message may cost, whatever the message says: one frame and a small constant of memory.
#![allow(clippy::unwrap_used)]

#[path = "common/memory.rs"]
mod memory;

use daoserver::dtype::{DType, Shape};
use daoserver::wire::pickle::{Frame, decode};
use memory::most_allocated;

/// Values, tuples, stack and memo of the most complex message that is looked at to its end.
const CONSTANT_BYTES: usize = 64 * 1024;

/// Decodes as a mirror of `frame_bytes` does: pixels are asked for only if shape and type are the mirror's.
fn cost(message: &[u8], shape: &Shape, dtype: DType) -> usize {
    most_allocated(|| {
        if let Ok(array) = decode(message)
            && array.dtype == dtype
            && array.shape.same_frame(shape)
        {
            std::hint::black_box(array.pixels());
        }
    })
}

const SIDE: u32 = 512;

fn shape() -> Shape {
    Shape::new(&[SIDE, SIDE]).unwrap()
}

/// A message of the pieces around a quarter of a million pixels, as protocol 2 has them: text of two bytes a character.
fn text_message(characters: usize, byte: u8) -> Vec<u8> {
    let frame = Frame::new(&shape(), DType::U8);
    let text: String = std::iter::repeat_n(char::from(byte), characters).collect();
    let bytes_at = frame.prefix.len() - 5; // BINBYTES and its length
    let mut message = frame.prefix[..bytes_at].to_vec();
    message.extend(b"c_codecs\nencode\nX");
    message.extend((text.len() as u32).to_le_bytes());
    message.extend(text.as_bytes());
    message.extend(b"X\x06\0\0\0latin1\x86R");
    message.extend(frame.suffix);
    message
}

#[test]
fn an_array_in_c_order_costs_no_frame_at_all() {
    let frame_bytes = shape().frame_bytes(DType::U8);
    let frame = Frame::new(&shape(), DType::U8);
    let message = [&frame.prefix[..], &vec![7; frame_bytes], frame.suffix].concat();
    assert!(decode(&message).is_ok());
    assert!(cost(&message, &shape(), DType::U8) <= CONSTANT_BYTES);
}

#[test]
fn an_array_that_comes_as_text_or_turned_around_costs_one_frame() {
    let frame_bytes = shape().frame_bytes(DType::U8);
    for byte in [7, 0xff] {
        let message = text_message(frame_bytes, byte);
        assert!(decode(&message).is_ok());
        let cost = cost(&message, &shape(), DType::U8);
        assert!((frame_bytes..=frame_bytes + CONSTANT_BYTES).contains(&cost), "{cost} of {frame_bytes}");
    }
    let pixels = Shape::new(&[256, 256]).unwrap();
    let frame = Frame::new(&pixels, DType::F32);
    let frame_bytes = pixels.frame_bytes(DType::F32);
    let mut message = [&frame.prefix[..], &vec![7; frame_bytes], frame.suffix].concat();
    let order = message.windows(2).position(|window| window == b"<N").unwrap();
    message[order] = b'>';
    assert!(decode(&message).unwrap().big_endian);
    let cost = cost(&message, &pixels, DType::F32);
    assert!((frame_bytes..=frame_bytes + CONSTANT_BYTES).contains(&cost), "{cost} of {frame_bytes}");
}

#[test]
fn a_hostile_message_costs_no_more_than_the_frame_that_is_expected() {
    let frame_bytes = shape().frame_bytes(DType::U8);
    let limit = frame_bytes + CONSTANT_BYTES;
    let nothing = Shape::new(&[1]).unwrap();
    let mut messages = vec![
        text_message(frame_bytes * 2, b'x'),
        text_message(frame_bytes - 1, b'x'),
        text_message(1, b'x'),
        [b"\x80\x04".as_slice(), &[b'('; 1 << 20]].concat(),
        [b"\x80\x04".as_slice(), &b"N\x85".repeat(1 << 19)].concat(),
        [b"\x80\x04N".as_slice(), &b"\x94".repeat(1 << 20)].concat(),
        b"\x80\x04Nr\xff\xff\xff\x7f.".to_vec(),
        b"\x80\x04B\xff\xff\xff\xff.".to_vec(),
        b"\x80\x04X\xff\xff\xff\xff.".to_vec(),
        b"\x80\x05\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.".to_vec(),
        b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\xff.".to_vec(),
    ];
    // Tuples of tuples that double: N, then (x, x) of the last one, memoized, as often as there is room.
    messages.push([b"\x80\x04N\x94".as_slice(), &b"h\x00h\x00\x86q\x00".repeat(200)].concat());
    // A shape of four billion by four billion over a message of nothing.
    let mut huge = Frame::new(&shape(), DType::C128);
    for at in 0..huge.prefix.len() - 6 {
        if huge.prefix[at..].starts_with(b"\x8a\x05") {
            huge.prefix[at + 2..at + 6].fill(0xff);
        }
    }
    messages.push([&huge.prefix[..], huge.suffix].concat());
    for message in &messages {
        for expected in [shape(), nothing] {
            let cost = cost(message, &expected, DType::U8);
            assert!(
                cost <= limit,
                "{cost} bytes for a message that begins {:?}",
                &message[..16.min(message.len())]
            );
        }
    }
}
