//! Streams over TCP, and what only TCP has to stand.
#![allow(clippy::unwrap_used)]

#[path = "common/bridge.rs"]
mod bridge;
#[path = "common/shm.rs"]
mod common;
#[path = "common/pieces.rs"]
mod pieces;

use bridge::{LOOPBACK, SHAPE, Stream};
use common::{Place, spec};
use daoserver::bridge::mirror::Mirror;
use daoserver::bridge::source::Source;
use daoserver::bridge::stats::MirrorStats;
use daoserver::bridge::unsent::LOAN_STALLED_NS;
use daoserver::bridge::worker::Worker;
use daoserver::dtype::DType;
use daoserver::shm::{self, Writer};
use daoserver::wire::frame::{HEADER_BYTES, HELLO_BYTES, hello};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

const TCP: bool = true;
const FRAME_BYTES: usize = 16 * 8 * 2;

fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "never happened: {what}");
    }
}

/// A connection to a publisher that is none of ours.
fn stranger(stream: &Stream, says: &[u8]) -> TcpStream {
    let mut peer = TcpStream::connect((LOOPBACK, stream.started.tcp_port.unwrap())).unwrap();
    peer.set_nonblocking(true).unwrap();
    peer.write_all(says).unwrap();
    peer
}

/// Has the other side ended it?
fn ended(peer: &mut TcpStream) -> bool {
    let mut bytes = [0; 4096];
    match peer.read(&mut bytes) {
        Ok(0) => true,
        Ok(_) => false,
        Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
    }
}

#[test]
fn who_says_anything_but_hello_is_turned_away_and_nobody_else_notices() {
    let mut stream = Stream::new(1);
    let mut follower = stream.follow("m");
    let mut strangers = vec![
        stranger(&stream, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
        stranger(&stream, &hello(stream.started.boot_id ^ 1)),
        stranger(&stream, &[hello(stream.started.boot_id).as_slice(), b"AAAAB"].concat()),
    ];
    let mut silent = stranger(&stream, &hello(stream.started.boot_id)[..HELLO_BYTES - 1]);
    for number in 1..200u8 {
        stream.write(number);
        stream.pump(&mut [&mut follower], "the frame", |_, m| m[0].pixel() == number);
    }
    assert_eq!(follower.lost(), 0);
    for peer in &mut strangers {
        eventually("the stranger is turned away", || {
            stream.publisher.do_work().unwrap();
            ended(peer)
        });
    }
    assert!(!ended(&mut silent), "he may still say it");
    eventually("who never says it is turned away, too", || {
        stream.publisher.do_work().unwrap();
        ended(&mut silent)
    });
}

#[test]
fn a_thousand_connections_take_no_frame_from_anybody() {
    let mut stream = Stream::new(1);
    let mut follower = stream.follow("m");
    let mut crowd = Vec::new();
    for number in 0..1_000u32 {
        let address = (LOOPBACK, stream.started.tcp_port.unwrap()).into();
        if let Ok(mut peer) = TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
            // A third of them reads nothing of what it asks for.
            if number % 3 == 0 {
                let _ = peer.write_all(&hello(stream.started.boot_id));
            }
            crowd.push(peer);
        }
        if number % 10 == 0 {
            let value = (number / 10) as u8;
            stream.write(value);
            stream.pump(&mut [&mut follower], "the frame", |_, m| m[0].frames() > 0 && m[0].pixel() == value);
        }
    }
    assert!(crowd.len() > 100);
    assert_eq!(follower.stats.transport.load(Relaxed), 0);
}

#[test]
fn a_publisher_that_sends_garbage_or_half_a_message_is_left_and_met_again() {
    let place = Place::new();
    let listener = TcpListener::bind((LOOPBACK, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let writer = shm::create(&place.path("m"), &spec(SHAPE, DType::U16, 1), &[]).unwrap();
    let stats = Arc::new(MirrorStats::default());
    let source = Source { ip: LOOPBACK, port, boot_id: Some(7), tcp_port: Some(port) };
    let writer = Writer::new(writer).unwrap();
    let mut mirror = Mirror::new(source, writer, Arc::clone(&stats));
    listener.set_nonblocking(true).unwrap();
    let huge = {
        let mut head = [0u8; HEADER_BYTES];
        head[..8].copy_from_slice(b"DAOf\x01\0\x01\0");
        head[112..116].copy_from_slice(&(HEADER_BYTES as u32).to_le_bytes());
        head[120..].copy_from_slice(&u64::MAX.to_le_bytes());
        head
    };
    for said in [vec![0xff; 4096], huge.to_vec(), huge[..60].to_vec(), Vec::new()] {
        let mut peer = None;
        eventually("the mirror comes", || {
            mirror.do_work().unwrap();
            peer = listener.accept().ok();
            peer.is_some()
        });
        let (mut peer, _) = peer.unwrap();
        peer.set_nonblocking(false).unwrap();
        let mut said_hello = [0; HELLO_BYTES];
        eventually("its hello", || {
            mirror.do_work().unwrap();
            peer.peek(&mut said_hello).is_ok_and(|count| count == HELLO_BYTES)
        });
        assert_eq!(said_hello, hello(7));
        let _ = peer.write_all(&said);
        if !said.is_empty() {
            peer.set_nonblocking(true).unwrap();
            peer.read_exact(&mut said_hello).unwrap();
            // Of half a message it waits for the rest, but not for ever.
            eventually("it leaves", || {
                mirror.do_work().unwrap();
                ended(&mut peer)
            });
        }
    }
    assert_eq!(stats.frames.load(Relaxed), 0);
    assert!(stats.refused.iter().map(|count| count.load(Relaxed)).sum::<u64>() >= 2);
    assert_eq!(FRAME_BYTES, 256);
}

#[test]
fn questions_without_end_take_no_frame_from_anybody() {
    let mut stream = Stream::new(1);
    let mut follower = stream.follow("m");
    let port = stream.started.tcp_port.unwrap();
    let greeting = hello(stream.started.boot_id);
    let asking = std::thread::spawn(move || {
        let mut peer = TcpStream::connect((LOOPBACK, port)).unwrap();
        peer.write_all(&greeting).unwrap();
        // As fast as they go: the publisher never sees the end of them, and hangs up.
        while peer.write_all(&[b'A'; 65_536]).is_ok() {}
    });
    let mut number = 0u8;
    eventually("it is turned away", || {
        number = number.wrapping_add(1);
        stream.write(number);
        stream.pump(&mut [&mut follower], "the frame", |_, m| m[0].pixel() == number);
        asking.is_finished()
    });
    asking.join().unwrap();
    assert_eq!(follower.lost(), 0);
}

/// A megabyte a frame, so that frames leave from where they stand, and its only mirror, which has the first of them.
fn large(depth: u32) -> (Stream, bridge::Follower) {
    let mut stream = Stream::with("1024x512", depth, &[]);
    stream.write(1);
    let mut mirror = stream.follow("m");
    stream.pump(&mut [&mut mirror], "a first frame", |_, m| m[0].frames() == 1);
    (stream, mirror)
}

fn copies(stream: &Stream) -> u64 {
    stream.started.stats.copies.load(Relaxed)
}

/// Writes until a frame is on its way that the kernel does not take all of, since the mirror does not read.
fn fill(stream: &mut Stream) -> u8 {
    for value in 2.. {
        stream.write(value);
        stream.publisher.do_work().unwrap();
        if stream.publisher.is_under_way(daoserver::os::clock::monotonic_ns()) {
            return value;
        }
    }
    unreachable!("a mirror that does not read takes everything")
}

#[test]
fn a_large_frame_of_a_ring_leaves_from_where_it_stands_and_nothing_is_copied_but_at_the_mirror() {
    let (mut stream, mut mirror) = large(8);
    let (mut value, mut in_time) = (1u8, 0);
    eventually("ten frames that nobody was held up in", || {
        value = value.wrapping_add(1);
        stream.write(value);
        let (copied, frames, begun) = (copies(&stream), mirror.frames(), Instant::now());
        stream.pump(&mut [&mut mirror], "each frame", |_, m| m[0].frames() > frames);
        // Where this thread waits for its core, its client seems to stand still: of that frame the rest may be copied.
        if begun.elapsed() < Duration::from_nanos(LOAN_STALLED_NS as u64) {
            assert_eq!(copies(&stream) - copied, 0, "frame {value}");
            in_time += 1;
        }
        assert_eq!(mirror.pixel(), value);
        in_time == 10
    });
    assert_eq!((mirror.lost(), mirror.refused()), (0, 0));
}

#[test]
fn a_large_frame_of_one_slot_or_for_two_mirrors_is_copied_once() {
    let (mut stream, mut mirror) = large(1);
    let before = copies(&stream);
    stream.write(2);
    stream.pump(&mut [&mut mirror], "the next", |_, m| m[0].frames() == 2);
    assert_eq!(copies(&stream) - before, 1, "one slot");
    let (mut stream, mut first) = large(8);
    let mut second = stream.follow("n");
    stream.pump(&mut [&mut first, &mut second], "the second's", |_, m| m[1].frames() == 1);
    let before = copies(&stream);
    stream.write(2);
    stream.pump(&mut [&mut first, &mut second], "both", |_, m| m.iter().all(|m| m.pixel() == 2));
    assert_eq!(copies(&stream) - before, 1, "two mirrors");
}

#[test]
fn what_has_not_left_of_a_large_frame_is_copied_before_its_writer_comes_back_to_it() {
    let (mut stream, mut mirror) = large(8);
    let last = fill(&mut stream);
    let before = copies(&stream);
    for more in 1..=20 {
        stream.write(last + more);
        stream.publisher.do_work().unwrap();
    }
    assert_eq!(copies(&stream) - before, 1, "the rest of one frame");
    // Whichever come are whole: `pixel` looks at all of them.
    let newest = last + 20;
    stream.pump(&mut [&mut mirror], "the newest", |_, m| m[0].pixel() == newest);
    assert_eq!((mirror.stats.transport.load(Relaxed), mirror.refused()), (0, 0));
    assert_eq!(mirror.frames() + mirror.lost(), u64::from(newest), "no frame is unaccounted for");
}

#[test]
fn what_has_not_left_of_a_large_frame_is_copied_when_its_client_takes_nothing() {
    let (mut stream, mut mirror) = large(8);
    let last = fill(&mut stream);
    let before = copies(&stream);
    eventually("a copy", || {
        stream.publisher.do_work().unwrap();
        copies(&stream) - before == 1
    });
    stream.pump(&mut [&mut mirror], "the frame", |_, m| m[0].pixel() == last);
    assert_eq!((mirror.lost(), mirror.refused()), (0, 0));
}

#[test]
fn a_large_frame_that_its_writer_came_back_to_while_it_left_is_dropped_and_counted_and_the_stream_goes_on() {
    let (mut stream, mut mirror) = large(4);
    let last = fill(&mut stream);
    // The publisher does not run meanwhile: nothing could be saved.
    for more in 1..=4 {
        stream.write(last + more);
    }
    let newest = last + 4;
    eventually("the newest", || {
        stream.publisher.do_work().unwrap();
        // Message by message: each frame that it writes is whole.
        mirror.mirror.receive_one(|_| false).unwrap();
        mirror.pixel() == newest
    });
    assert!(stream.started.stats.queue_full.load(Relaxed) > 0, "the cause is named");
    assert_eq!((mirror.stats.transport.load(Relaxed), mirror.refused()), (0, 0), "the connection stands");
    assert_eq!(mirror.frames() + mirror.lost(), u64::from(newest), "no frame is unaccounted for");
    stream.write(newest + 1);
    stream.pump(&mut [&mut mirror], "the next", |_, m| m[0].pixel() == newest + 1);
}

#[test]
fn a_segment_that_is_cut_short_while_a_frame_leaves_from_it_ends_its_publisher_and_no_more() {
    let (mut stream, mut mirror) = large(8);
    let last = fill(&mut stream);
    let file = std::fs::File::options().write(true).open(stream.writer.segment().path()).unwrap();
    file.set_len(0).unwrap();
    let mut ended = Ok(0);
    eventually("the publisher's end", || {
        mirror.mirror.do_work().unwrap();
        ended = stream.publisher.do_work();
        ended.is_err()
    });
    assert_eq!(ended, Err(daoserver::bridge::worker::Ended::SegmentGone));
    for _ in 0..1_000 {
        mirror.mirror.do_work().unwrap();
    }
    assert!(mirror.pixel() < last, "what could not leave whole is nowhere");
}
