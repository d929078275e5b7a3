//! Every parser of outside input against real messages that were spoiled: each is read or refused, in bounded memory and
//! time, and nothing else happens. Here those of bytes, in `fuzz_text.rs` those of text; `scripts/fuzz` runs both for longer.
#![allow(clippy::unwrap_used)]

#[path = "common/memory.rs"]
mod memory;
#[path = "common/mutate.rs"]
mod mutate;
#[path = "common/shm.rs"]
mod shm_common;

use daoserver::bridge::dial::Pouring;
use daoserver::bridge::inlet::{Inlet, Taken};
use daoserver::bridge::mirror::Mirror;
use daoserver::bridge::peer::{Forms, Heard, Manners, Peer};
use daoserver::bridge::source::Source;
use daoserver::bridge::stats::MirrorStats;
use daoserver::bridge::tcp_inlet::TcpInlet;
use daoserver::bridge::worker::Worker;
use daoserver::bridge::zmtp_inlet::ZmtpInlet;
use daoserver::dtype::{DType, Shape};
use daoserver::log;
use daoserver::naming::TOPIC_DAO;
use daoserver::shm::{self, Access, Reader, Segment, Writer};
use daoserver::wire::frame::{
    ASK_AGAIN, FrameHeader, FrameKind, HEADER_BYTES, TRAILER_BYTES, hello, stream_length, trailer,
};
use daoserver::wire::{pickle, zmtp};
use memory::most_allocated;
use mutate::{Mutations, pieces};
use shm_common::{Place, golden_dir, manifest, spec};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// What may be allocated beside what the input itself accounts for.
const CONSTANT_BYTES: usize = 64 * 1024;
#[test]
fn segments() {
    let place = Place::new();
    let path = place.path("fuzz");
    let mut seeds: Vec<Vec<u8>> = manifest()
        .iter()
        .map(|entry| std::fs::read(golden_dir().join(entry["file"].as_str().unwrap())).unwrap())
        .filter(|bytes| bytes.len() < 40_000)
        .collect();
    for (layout, depth) in [("wide", 1), ("wide", 2), ("fifo", 3)] {
        let spec = shm::SegmentSpec {
            layout: shm::Layout::parse(layout).unwrap(),
            keywords: 2,
            ..spec("3x2", DType::U16, depth)
        };
        let mut writer = Writer::new(shm::create(&place.path("seed"), &spec, &[]).unwrap()).unwrap();
        writer.write(&[7; 12]).unwrap();
        seeds.push(std::fs::read(place.path("seed")).unwrap());
    }
    // Semaphores are there for one of the two names: writing posts them.
    shm::create(&path, &spec("2", DType::U8, 1), &[]).unwrap();
    let mutations = Mutations {
        target: "segments",
        seeds,
        pieces: vec![vec![0; 8], vec![0xff; 8], vec![1, 0, 0, 0]],
        bytes_max: 60_000,
    };
    mutations.run(|input| {
        std::fs::write(&path, input).unwrap();
        let cost = most_allocated(|| exercise(&path));
        // Two frames, their keywords twice.
        assert!(cost <= 4 * input.len() + CONSTANT_BYTES, "{cost} bytes for a file of {}", input.len());
    });
}

/// Reads and writes whatever opens, all the ways there are.
fn exercise(path: &Path) {
    let probed = shm::probe(path);
    match Segment::open(path, Access::ReadWrite) {
        Err(refused) => {
            assert!(!refused.to_string().contains('\n'));
            assert!(probed.is_err() || probed.is_ok_and(|facts| facts.on_gpu));
        }
        Ok(segment) => {
            let spec = segment.spec().clone();
            assert_eq!(spec, probed.unwrap().spec);
            assert_eq!(spec.file_bytes(), segment.identity().bytes);
            let mut frame = vec![0; spec.frame_bytes()];
            assert!(segment.newest().0 < spec.depth);
            segment.keywords();
            segment.meta(u32::MAX);
            let mut reader = Reader::new(segment);
            reader.has_news();
            for _ in 0..3 {
                reader.read_next(&mut frame);
                reader.read_newest(&mut frame);
                reader.still_whole();
            }
            let mut writer = Writer::new(Segment::open(path, Access::ReadWrite).unwrap()).unwrap();
            let _ = writer.write(&frame);
            let _ = writer.set_keywords(&[]);
        }
    }
}

const BOOT_ID: u64 = 0x1122_3344_5566_7788;

fn header(kind: FrameKind, seq: u64, keywords_follow: bool) -> FrameHeader {
    FrameHeader {
        kind,
        on_subscription: false,
        keywords_follow,
        dtype: DType::U16,
        shape: Shape::new(&[3, 2]).unwrap(),
        keywords: 2,
        boot_id: BOOT_ID,
        seq,
        cnt0: seq,
        cnt1: 2,
        cnt2: 3,
        atime_ns: 4,
        seen_ns: 5,
        sent_ns: 6,
        origin: 7,
        lapped_total: 0,
        queue_full_total: 0,
        pixel_offset: HEADER_BYTES as u32,
        based_on: 11,
    }
}

/// A message as it goes over TCP.
fn streamed(header: &FrameHeader) -> Vec<u8> {
    let mut bytes = vec![0; HEADER_BYTES + header.pixel_bytes()];
    header.encode(bytes.first_chunk_mut().unwrap());
    if header.keywords_follow {
        bytes.extend([b'K'; 240]);
    }
    bytes.extend(trailer(header.seq));
    bytes
}

fn streams() -> Vec<Vec<u8>> {
    let (frame, alive) = (FrameKind::Frame, FrameKind::Alive);
    let one = |kind, seq, keywords| streamed(&header(kind, seq, keywords));
    vec![
        one(frame, 1, false),
        one(frame, 1, true),
        one(alive, 0, false),
        [one(frame, 1, true), one(frame, 2, false), one(alive, 2, false), one(frame, 5, false)].concat(),
        [one(frame, 9, false), one(frame, 9, false), one(frame, 3, true)].concat(),
    ]
}

#[test]
fn headers() {
    let mut seeds: Vec<Vec<u8>> =
        streams().into_iter().map(|bytes| bytes[..bytes.len() - TRAILER_BYTES].to_vec()).collect();
    let mut room = vec![0; 332];
    FrameHeader { pixel_offset: 320, ..header(FrameKind::Frame, 3, false) }
        .encode(room.first_chunk_mut().unwrap());
    seeds.push(room);
    let mutations = Mutations {
        target: "headers",
        seeds,
        pieces: pieces(&["DAOf\x01\0", "\x01", "\x02"]),
        bytes_max: 2_000,
    };
    mutations.run(|input| {
        let cost = most_allocated(|| {
            match FrameHeader::decode(input) {
                Ok(header) => {
                    assert_eq!(header.pixel_offset as usize + header.pixel_bytes(), input.len());
                    let mut again = [0; HEADER_BYTES];
                    header.encode(&mut again);
                    assert_eq!(FrameHeader::decode(&[&again, &input[HEADER_BYTES..]].concat()), Ok(header));
                }
                Err(refused) => assert!(!refused.to_string().contains('\n')),
            }
            if let Some(Ok(length)) = input.first_chunk().map(|head| stream_length(head, 12, 2)) {
                assert!(
                    [
                        HEADER_BYTES + TRAILER_BYTES,
                        HEADER_BYTES + 12 + TRAILER_BYTES,
                        HEADER_BYTES + 252 + TRAILER_BYTES
                    ]
                    .contains(&length)
                );
            }
        });
        assert!(cost <= 2 * input.len() + 1_024, "{cost}");
    });
}

/// The same to an inlet whose pixels go five bytes at a time: whatever comes, they are one frame's, in their order.
fn in_pieces(input: &[u8], listener: &TcpListener, source: &Source) {
    let to = (source.ip, source.port);
    let pouring = Some(Pouring { frame_bytes: 12, piece_bytes: 5, gone: 0 });
    let mut inlet = match source.tcp_port {
        Some(_) => Inlet::Tcp(TcpInlet::connect(to, BOOT_ID, 12, 2, pouring)),
        None => Inlet::Zmq(ZmtpInlet::connect(to, TOPIC_DAO, 12, 2, pouring)),
    };
    let mut gone = 0;
    let mut look = |inlet: &mut Inlet| {
        let taken = inlet.receive(&mut |_, at, pixels| {
            assert!(at == 0 || at == gone);
            gone = at + pixels.len();
            assert!((1..=5).contains(&pixels.len()) && gone <= 12);
        });
        if taken == Taken::Message {
            let body = inlet.body();
            let header = body.first_chunk().filter(|_| inlet.poured()).map(FrameHeader::decode_head);
            assert!(!inlet.poured() || gone == 12);
            // Nothing that was poured is read as if it were still there.
            assert!(
                !header.is_some_and(|header| header.is_ok_and(|h| h.pixel_offset as usize != body.len()))
            );
        }
    };
    said(input, listener, || look(&mut inlet));
}

/// Says all this to who connects at his first look, and lets him look until he has noticed its end.
fn said(input: &[u8], listener: &TcpListener, mut look: impl FnMut()) {
    look();
    let (mut peer, _) = listener.accept().unwrap();
    // Who has had enough hangs up: then the rest finds nobody.
    let _ = peer.write_all(input);
    let _ = peer.shutdown(std::net::Shutdown::Write);
    peer.set_nonblocking(true).unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while !hung_up(&mut peer) {
        look();
        assert!(Instant::now() < deadline, "nobody notices the end");
    }
}

/// A publisher's bytes to a mirror, over a real connection.
fn publishers(mutations: &Mutations, over_tcp: bool) {
    log::set_level(log::Level::Error);
    let place = Place::new();
    let path = place.path("mirror");
    shm::create(&path, &shm::SegmentSpec { keywords: 2, ..spec("3x2", DType::U16, 4) }, &[]).unwrap();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let tcp_port = over_tcp.then_some(port);
    let source = Source { ip: Ipv4Addr::LOCALHOST, port, tcp_port, boot_id: Some(BOOT_ID) };
    mutations.run(|input| {
        let before = shm::probe(&path).unwrap().counter;
        let stats = Arc::new(MirrorStats::default());
        let writer = Writer::new(Segment::open(&path, Access::ReadWrite).unwrap()).unwrap();
        let mut mirror = Mirror::new(source, writer, Arc::clone(&stats));
        let cost = most_allocated(|| said(input, &listener, || _ = mirror.do_work().unwrap()));
        assert!(cost <= CONSTANT_BYTES, "{cost}");
        let frames = stats.frames.load(Relaxed);
        assert_eq!(shm::probe(&path).unwrap().counter, before + frames);
        assert!(frames as usize <= input.len() / (HEADER_BYTES + 12));
        in_pieces(input, &listener, &source);
    });
}

#[test]
fn streams_over_tcp() {
    let mutations = Mutations {
        target: "streams_over_tcp",
        seeds: streams(),
        pieces: pieces(&["DAOf\x01\0\x01\0", "DAOf\x01\0\x02\0"]),
        bytes_max: 4_000,
    };
    publishers(&mutations, true);
}

#[test]
fn streams_over_zmq() {
    let open = [&zmtp::GREETING[..], zmtp::READY].concat();
    let part = |bytes: &[u8], more| {
        let mut part = Vec::new();
        zmtp::begin_part(&mut part, bytes.len(), more);
        [&part[..], bytes].concat()
    };
    let message = |bytes: &[u8], keywords: &[u8]| {
        let rest = [part(bytes, !keywords.is_empty()), part(keywords, false)].concat();
        let rest = if keywords.is_empty() { part(bytes, false) } else { rest };
        [part(TOPIC_DAO.as_bytes(), true), rest].concat()
    };
    let mut seeds = vec![[&open[..], zmtp::PING, &part(b"other", true), &part(b"x", false)].concat()];
    for bytes in streams() {
        let whole = HEADER_BYTES + if bytes.len() > HEADER_BYTES + TRAILER_BYTES { 12 } else { 0 };
        let keywords = &bytes[whole..bytes.len() - TRAILER_BYTES];
        let one = message(&bytes[..whole], keywords);
        seeds.push([&open[..], &one, zmtp::PING, &one].concat());
    }
    let mutations = Mutations {
        target: "streams_over_zmq",
        seeds,
        pieces: pieces(&["\x01\x09daoFrame1", "\x04\x07\x04PING\0\0", "\x00\x01x", "\x02\0\0\0\0\0\0\x04\0"]),
        bytes_max: 4_000,
    };
    publishers(&mutations, false);
}

fn hung_up(peer: &mut TcpStream) -> bool {
    match peer.read(&mut [0; 256]) {
        Ok(count) => count == 0,
        Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
    }
}

/// What a client says to a publisher, over a real connection. `understood`: what it then wants, where that is known.
fn clients(mutations: &Mutations, understood: impl Fn(&[u8]) -> Option<Forms>) {
    log::set_level(log::Level::Error);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let manners = Manners {
        boot_id: BOOT_ID,
        streams: true,
        answers_within: Duration::from_secs(3),
        buffer_bytes: 128 * 1024,
    };
    mutations.run(|input| {
        let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        let (stream, _) = listener.accept().unwrap();
        stream.set_nonblocking(true).unwrap();
        let mut peer = Peer::new(stream, Ipv4Addr::LOCALHOST.into());
        client.write_all(input).unwrap();
        let mut heard = Heard::Fine;
        let cost = most_allocated(|| {
            // As much as it has sent, a bounded part at each look.
            for _ in 0..input.len() / 64 + 2 {
                if heard == Heard::Fine {
                    heard = peer.listen(&manners);
                }
            }
        });
        assert!(cost <= 8 * 1_024 + 2 * input.len(), "{cost}");
        if let Some(wanted) = understood(input) {
            assert_eq!((heard, peer.wants()), (Heard::Fine, wanted));
        }
        drop(client);
        for _ in 0..1_000 {
            if heard != Heard::Fine {
                return;
            }
            heard = peer.listen(&manners);
        }
        panic!("who has gone stays");
    });
}

/// Mirrors of ours, over a TCP stream.
#[test]
fn hellos() {
    let good = hello(BOOT_ID);
    let asks = [&good[..], &[ASK_AGAIN; 5]].concat();
    let seeds = vec![good.to_vec(), asks, hello(1).to_vec(), b"GET / HTTP/1.1\r\n\r\n".to_vec()];
    let mutations = Mutations {
        target: "hellos",
        seeds,
        pieces: pieces(&["A", "DAOt\x01\0", "AAAAAAAAAAAAAAAA"]),
        bytes_max: 2_000,
    };
    clients(&mutations, |input| {
        let asks = input.strip_prefix(&good)?;
        // Many questions at once are none of a mirror's.
        let few = asks.len() < 16 && asks.iter().all(|byte| *byte == ASK_AGAIN);
        few.then_some(Forms { stream: true, ..Forms::default() })
    });
}

/// Subscribers over ZMQ.
#[test]
fn subscribers() {
    let ready = b"\x04\x19\x05READY\x0bSocket-Type\0\0\0\x03SUB";
    let open = [&zmtp::GREETING[..], ready].concat();
    let says = |rest: &[u8]| [&open[..], rest].concat();
    let python = says(b"\x00\x0a\x01frameData");
    let seeds = vec![
        python.clone(),
        says(b"\x04\x13\x09SUBSCRIBEdaoFrame1\x04\x09\x04PING\0\x0aab\x04\x07\x04PONGab"),
        says(b"\x00\x01\x01\x00\x04\x00dao\x02\0\0\0\0\0\0\0\x02\x01d"),
    ];
    let mutations = Mutations {
        target: "subscribers",
        seeds,
        pieces: pieces(&["\x04\x07\x04PING\0\0", "\x00\x01\x01", "\x00\x01\x00", "\x02\0\0\0\0\0\0\x04\0"]),
        bytes_max: 4_000,
    };
    clients(&mutations, |input| (input == python).then_some(Forms { python: true, ..Forms::default() }));
}

#[test]
fn pickles() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/pickle");
    let mut seeds = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|end| end == "pickle") {
            seeds.push(std::fs::read(path).unwrap());
        }
    }
    assert_eq!(seeds.len(), 96);
    seeds.sort();
    seeds.sort_by_key(Vec::len);
    let opcodes =
        b"(NKMJC BXctqrhjRb.)\x80\x88\x89\x8a\x8c\x8e\x93\x94\x95\x96\x85\x86\x87".map(|code| vec![code]);
    let mut pieces = pieces(&[
        "cos\nsystem\n",
        "cnumpy\nndarray\n",
        "cnumpy\ndtype\n",
        "c_codecs\nencode\n",
        "X\x02\0\0\0f8",
    ]);
    pieces.extend(opcodes);
    let mutations = Mutations { target: "pickles", seeds, pieces, bytes_max: 100_000 };
    mutations.run(|input| {
        let cost = most_allocated(|| match pickle::decode(input) {
            Ok(array) => {
                assert_eq!(array.pixels().len(), array.shape.frame_bytes(array.dtype));
                assert!(array.bytes.len() <= input.len());
            }
            Err(refused) => assert!(!refused.to_string().contains('\n')),
        });
        // The text of protocol 2 turned to bytes, and those in our order.
        assert!(cost <= 2 * input.len() + CONSTANT_BYTES, "{cost} bytes for a message of {}", input.len());
    });
}
