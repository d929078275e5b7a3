//! Streams over ZMQ, and what only ZMQ has to stand.
#![allow(clippy::unwrap_used)]

#[path = "common/bridge.rs"]
mod bridge;
#[path = "common/shm.rs"]
mod common;
#[path = "common/pieces.rs"]
mod pieces;

use bridge::{LOOPBACK, SHAPE, Stream, port};
use common::{Place, spec};
use daoserver::bridge::mirror::Mirror;
use daoserver::bridge::source::Source;
use daoserver::bridge::stats::MirrorStats;
use daoserver::bridge::worker::Worker;
use daoserver::dtype::DType;
use daoserver::naming::{TOPIC_DAO, TOPIC_PYTHON};
use daoserver::shm::{self, Writer};
use daoserver::wire::pickle::Frame;
use daoserver::wire::zmtp;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

const TCP: bool = false;

#[test]
fn garbage_on_the_port_is_counted_by_cause_and_the_mirror_lives() {
    let stream = Stream::new(1);
    let place = Place::new();
    let context = zmq::Context::new();
    let hostile = context.socket(zmq::PUB).unwrap();
    let port = port();
    hostile.bind(&format!("tcp://127.0.0.1:{port}")).unwrap();
    let path = place.path("m");
    let stats = Arc::new(MirrorStats::default());
    let writer = Writer::new(shm::create(&path, &spec(SHAPE, DType::U16, 1), &[]).unwrap()).unwrap();
    let source = Source { ip: LOOPBACK, port, boot_id: Some(stream.started.boot_id), tcp_port: None };
    let mut mirror = Mirror::new(source, writer, Arc::clone(&stats));
    let deadline = Instant::now() + Duration::from_secs(20);
    let refused = |label: &str| {
        let index = daoserver::wire::frame::Refused::LABELS.iter().position(|known| *known == label).unwrap();
        stats.refused[index].load(Relaxed)
    };
    while refused("too_short") == 0 || refused("bad_magic") == 0 || refused("bad_parts") == 0 {
        assert!(Instant::now() < deadline);
        let magic = [b"DAOf".as_slice(), &[0xff; 200]].concat();
        for parts in [vec![], vec![vec![0; 3]], vec![vec![0; 300]], vec![magic], vec![vec![0; 200]; 9]] {
            let message: Vec<Vec<u8>> = std::iter::once(TOPIC_DAO.as_bytes().to_vec()).chain(parts).collect();
            hostile.send_multipart(message, 0).unwrap();
        }
        mirror.do_work().unwrap();
    }
    assert_eq!(stats.frames.load(Relaxed), 0);
}

#[test]
fn a_publisher_is_understood_however_its_bytes_are_cut_and_whatever_it_says_between() {
    let (place, listener) = (Place::new(), TcpListener::bind("127.0.0.1:0").unwrap());
    let port = listener.local_addr().unwrap().port();
    let spec = spec(SHAPE, DType::U16, 1);
    let writer = Writer::new(shm::create(&place.path("m"), &spec, &[]).unwrap()).unwrap();
    let stats = Arc::new(MirrorStats::default());
    let source = Source { ip: LOOPBACK, port, boot_id: None, tcp_port: None };
    let mut mirror = Mirror::new(source, writer, Arc::clone(&stats));
    let part = |bytes: &[u8], more| {
        let mut part = Vec::new();
        zmtp::begin_part(&mut part, bytes.len(), more);
        [&part[..], bytes].concat()
    };
    let pickle = Frame::new(&spec.shape, spec.dtype);
    let frame =
        |value: u8| [pickle.prefix.as_slice(), &vec![value; spec.frame_bytes()], pickle.suffix].concat();
    let topic = part(TOPIC_PYTHON.as_bytes(), true);
    let ping = b"\x04\x09\x04PING\0\0ab";
    let says = [
        &zmtp::GREETING[..],
        zmtp::READY,
        &topic,
        &part(&frame(1), false),
        &part(b"another", true),
        &part(&frame(2), false), // a topic that nobody has asked for
        ping,
        &topic,
        ping,
        &part(&frame(3), false), // libzmq says it between the parts of a message, too
        &topic,
        &part(b"x", true),
        &part(b"y", true),
        &part(b"z", true),
        &part(b"", false),
        &topic,
        &part(&frame(4), false),
    ]
    .concat();
    mirror.do_work().unwrap();
    let (mut peer, _) = listener.accept().unwrap();
    peer.set_nonblocking(true).unwrap();
    peer.set_nodelay(true).unwrap();
    let (mut heard, mut buffer) = (Vec::new(), [0; 256]);
    for bytes in says.chunks(1).take(400).chain(says[400..].chunks(100)) {
        peer.write_all(bytes).unwrap();
        mirror.do_work().unwrap();
        let count = peer.read(&mut buffer).unwrap_or(0);
        heard.extend_from_slice(&buffer[..count]);
    }
    let deadline = Instant::now() + Duration::from_secs(20);
    let has = |heard: &[u8], words: &[u8]| heard.windows(words.len()).filter(|at| *at == words).count();
    while has(&heard, b"\x04\x07\x04PONGab") < 2 || stats.frames.load(Relaxed) < 3 {
        assert!(Instant::now() < deadline, "{} frames, {heard:?}", stats.frames.load(Relaxed));
        mirror.do_work().unwrap();
        let count = peer.read(&mut buffer).unwrap_or(0);
        heard.extend_from_slice(&buffer[..count]);
    }
    assert!(
        heard.starts_with(&[&zmtp::GREETING[..], zmtp::SUBSCRIBER_READY, b"\0\x0a\x01frameData"].concat())
    );
    assert_eq!(stats.frames.load(Relaxed), 3, "1, 3 and 4");
    assert_eq!(stats.refused.iter().map(|count| count.load(Relaxed)).sum::<u64>(), 1, "of five parts");
}

#[test]
fn a_publisher_that_talks_of_other_things_without_end_is_left() {
    for says in [&b"\x00\x00"[..], b"\x04\x01\x00", b"\x01\x00"] {
        let (place, listener) = (Place::new(), TcpListener::bind("127.0.0.1:0").unwrap());
        let port = listener.local_addr().unwrap().port();
        let segment = shm::create(&place.path("m"), &spec(SHAPE, DType::U16, 1), &[]).unwrap();
        let stats = Arc::new(MirrorStats::default());
        let source = Source { ip: LOOPBACK, port, boot_id: None, tcp_port: None };
        let mut mirror = Mirror::new(source, Writer::new(segment).unwrap(), Arc::clone(&stats));
        mirror.do_work().unwrap();
        let (mut peer, _) = listener.accept().unwrap();
        peer.set_nonblocking(true).unwrap();
        let open = [&zmtp::GREETING[..], zmtp::READY].concat();
        peer.write_all(&open).unwrap();
        let flood = says.repeat(20_000);
        let (mut sent, deadline) = (0, Instant::now() + Duration::from_secs(20));
        while stats.refused.iter().all(|count| count.load(Relaxed) == 0) {
            assert!(Instant::now() < deadline, "{says:?}");
            sent += peer.write(&flood[sent..]).unwrap_or(0);
            mirror.do_work().unwrap();
        }
        assert_eq!(stats.frames.load(Relaxed), 0);
    }
}

#[test]
fn a_message_above_the_size_limit_does_not_end_the_stream() {
    for (topic, boot_id) in [(TOPIC_DAO, Some(7)), (TOPIC_PYTHON, None)] {
        let (context, place, port) = (zmq::Context::new(), Place::new(), port());
        let hostile = context.socket(zmq::XPUB).unwrap();
        hostile.bind(&format!("tcp://127.0.0.1:{port}")).unwrap();
        let writer = shm::create(&place.path("m"), &spec(SHAPE, DType::U16, 1), &[]).unwrap();
        let stats = Arc::new(MirrorStats::default());
        let source = Source { ip: LOOPBACK, port, boot_id, tcp_port: None };
        let writer = Writer::new(writer).unwrap();
        let mut mirror = Mirror::new(source, writer, Arc::clone(&stats));
        let deadline = Instant::now() + Duration::from_secs(30);
        while hostile.recv_bytes(zmq::DONTWAIT).is_err() {
            assert!(Instant::now() < deadline, "it never subscribes to {topic}");
            mirror.do_work().unwrap();
        }
        hostile.send_multipart([topic.as_bytes(), &[0; 1 << 20]], 0).unwrap();
        // It is refused, and whatever is sent from now on is heard of, even if it is refused as well.
        while stats.refused.iter().map(|count| count.load(Relaxed)).sum::<u64>() < 3 {
            assert!(Instant::now() < deadline, "the mirror never came back on {topic}");
            hostile.send_multipart([topic.as_bytes(), b"small"], 0).unwrap();
            mirror.do_work().unwrap();
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
