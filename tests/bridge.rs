//! Streams over ZMQ, and what only ZMQ has to stand.
#![allow(clippy::unwrap_used)]

#[path = "common/bridge.rs"]
mod bridge;
#[path = "common/shm.rs"]
mod common;

use bridge::{LOOPBACK, SHAPE, Stream, port};
use common::{Place, spec};
use daoserver::bridge::mirror::{Mirror, Source};
use daoserver::bridge::stats::MirrorStats;
use daoserver::bridge::worker::Worker;
use daoserver::dtype::DType;
use daoserver::naming::{TOPIC_DAO, TOPIC_PYTHON};
use daoserver::shm::{self, Writer};
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
