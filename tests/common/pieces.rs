//! Large frames that come in pieces, from a publisher whose every byte is given by hand: the same situations over both
//! transports.

use super::TCP;
use super::bridge::LOOPBACK;
use super::common::{Place, spec};
use daoserver::bridge::mirror::Mirror;
use daoserver::bridge::source::Source;
use daoserver::bridge::stats::MirrorStats;
use daoserver::bridge::worker::Worker;
use daoserver::dtype::DType;
use daoserver::naming::TOPIC_DAO;
use daoserver::shm::{self, Access, Outcome, Reader, Segment, SegmentSpec, Writer};
use daoserver::wire::frame::{FrameHeader, FrameKind, HEADER_BYTES, trailer};
use daoserver::wire::zmtp;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

const BOOT_ID: u64 = 7;
/// Over ZMQ there is room before the pixels.
const PIXEL_OFFSET: usize = if TCP { HEADER_BYTES } else { 320 };

/// A mirror, with a ring of two and one keyword, and the other end of its connection.
struct Scene {
    _place: Place,
    path: PathBuf,
    spec: SegmentSpec,
    listener: TcpListener,
    peer: TcpStream,
    mirror: Mirror,
    stats: Arc<MirrorStats>,
}

fn accept(listener: &TcpListener, mirror: &mut Mirror) -> TcpStream {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        assert!(Instant::now() < deadline, "the mirror never comes");
        mirror.do_work().unwrap();
        if let Ok((mut peer, _)) = listener.accept() {
            peer.set_nonblocking(true).unwrap();
            if !TCP {
                peer.write_all(&[&zmtp::GREETING[..], zmtp::READY].concat()).unwrap();
            }
            return peer;
        }
    }
}

impl Scene {
    fn new() -> Scene {
        let place = Place::new();
        let path = place.path("m");
        let spec = SegmentSpec { keywords: 1, ..spec("1024x512", DType::U16, 2) };
        let writer = Writer::new(shm::create(&path, &spec, &[]).unwrap()).unwrap();
        let listener = TcpListener::bind((LOOPBACK, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let source = Source { ip: LOOPBACK, port, boot_id: Some(BOOT_ID), tcp_port: TCP.then_some(port) };
        let stats = Arc::new(MirrorStats::default());
        let mut mirror = Mirror::new(source, writer, Arc::clone(&stats));
        let peer = accept(&listener, &mut mirror);
        Scene { _place: place, path, spec, listener, peer, mirror, stats }
    }

    fn header(&self, seq: u64) -> FrameHeader {
        FrameHeader {
            kind: FrameKind::Frame,
            on_subscription: false,
            keywords_follow: true,
            dtype: self.spec.dtype,
            shape: self.spec.shape,
            keywords: 1,
            boot_id: BOOT_ID,
            seq,
            cnt0: 100 + seq,
            cnt1: 2,
            cnt2: 3,
            atime_ns: 4,
            seen_ns: 5,
            sent_ns: 6,
            origin: 0,
            lapped_total: 0,
            queue_full_total: 0,
            pixel_offset: PIXEL_OFFSET as u32,
            based_on: 0,
        }
    }

    /// A message of pixels that all have this value, as it goes over the connection.
    fn message(&self, header: &FrameHeader, value: u8) -> Vec<u8> {
        let mut body = vec![0; PIXEL_OFFSET];
        header.encode(body.first_chunk_mut().unwrap());
        body.resize(PIXEL_OFFSET + self.spec.frame_bytes(), value);
        let keywords = [value; 120];
        if TCP {
            return [body.as_slice(), &keywords, &trailer(header.seq)].concat();
        }
        let mut message = Vec::new();
        zmtp::begin_message(&mut message, TOPIC_DAO, body.len(), true);
        message.extend(body);
        zmtp::begin_part(&mut message, keywords.len(), false);
        message.extend(keywords);
        message
    }

    fn frame(&self, seq: u64) -> Vec<u8> {
        self.message(&self.header(seq), seq as u8)
    }

    /// Says it all, while the mirror takes what has come.
    fn say(&mut self, mut bytes: &[u8]) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !bytes.is_empty() {
            assert!(Instant::now() < deadline, "the mirror takes nothing");
            bytes = &bytes[self.peer.write(bytes).unwrap_or(0)..];
            self.mirror.do_work().unwrap();
        }
    }

    fn until(&mut self, what: &str, condition: impl Fn(&Scene) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !condition(self) {
            assert!(Instant::now() < deadline, "never happened: {what}");
            self.mirror.do_work().unwrap();
        }
    }

    fn frames(&self) -> u64 {
        self.stats.frames.load(Relaxed)
    }

    fn refused(&self) -> u64 {
        self.stats.refused.iter().map(|count| count.load(Relaxed)).sum()
    }

    /// Value and counter of the newest frame, which must be whole.
    fn newest(&self) -> (u8, u64) {
        let mut reader = Reader::new(Segment::open(&self.path, Access::Read).unwrap());
        let mut buffer = vec![0; self.spec.frame_bytes()];
        let Outcome::Frame { meta, .. } = reader.read_newest(&mut buffer) else { panic!("no frame") };
        assert!(buffer.iter().all(|byte| *byte == buffer[0]), "a torn frame");
        (buffer[0], meta.cnt0)
    }

    /// The first byte of the place that the next frame will stand in.
    fn next_place(&self) -> u8 {
        self.next_place_at(0)
    }

    fn next_place_at(&self, at: usize) -> u8 {
        let segment = Segment::open(&self.path, Access::Read).unwrap();
        let slot = (segment.newest().0 as usize + 1) % 2;
        std::fs::read(&self.path).unwrap()
            [2 * self.spec.layout.metadata_bytes() + slot * self.spec.frame_bytes() + at]
    }
}

#[test]
fn a_large_frame_is_copied_as_it_comes_and_the_one_before_stays_whole_until_all_of_it_is_there() {
    let mut scene = Scene::new();
    for seq in 1..=5 {
        let before = scene.newest();
        let frame = scene.frame(seq);
        let (all_but_one, last) = frame.split_at(frame.len() - 1);
        let (half, rest) = all_but_one.split_at(frame.len() / 2);
        scene.say(half);
        scene.until("its first piece stands there", |scene| scene.next_place() == seq as u8);
        assert_eq!((scene.frames(), scene.newest()), (seq - 1, before));
        scene.say(rest);
        assert_eq!((scene.frames(), scene.newest()), (seq - 1, before));
        scene.say(last);
        scene.until("the frame", |scene| scene.frames() == seq);
        assert_eq!(scene.newest(), (seq as u8, seq));
        assert_eq!(scene.stats.source_counter.load(Relaxed), 100 + seq);
        let mut keywords = [0; 120];
        Segment::open(&scene.path, Access::Read).unwrap().copy_keywords_raw(&mut keywords);
        assert_eq!(keywords, [seq as u8; 120]);
    }
    assert_eq!((scene.stats.lost(), scene.refused()), (Default::default(), 0));
}

#[test]
fn a_connection_that_breaks_in_the_middle_of_a_large_frame_leaves_the_one_before_and_the_next_is_whole() {
    let mut scene = Scene::new();
    let first = scene.frame(1);
    scene.say(&first);
    scene.until("the frame", |scene| scene.frames() == 1);
    let second = scene.frame(2);
    scene.say(&second[..second.len() * 3 / 4]);
    scene.until("its first piece stands there", |scene| scene.next_place() == 2);
    scene.peer = accept_again(&mut scene);
    assert_eq!((scene.frames(), scene.newest()), (1, (1, 1)));
    let third = scene.frame(3);
    scene.say(&third);
    scene.until("the frame", |scene| scene.frames() == 2);
    assert_eq!((scene.newest(), scene.refused()), ((3, 2), 0));
    assert_eq!(scene.stats.transport.load(Relaxed), 1, "the second");
}

/// Ends the connection and waits for the next.
fn accept_again(scene: &mut Scene) -> TcpStream {
    scene.peer.shutdown(std::net::Shutdown::Both).unwrap();
    accept(&scene.listener, &mut scene.mirror)
}

#[test]
fn a_large_frame_of_another_publisher_or_shape_is_refused_and_no_byte_of_it_is_copied() {
    let mut scene = Scene::new();
    let first = scene.frame(1);
    scene.say(&first);
    scene.until("the frame", |scene| scene.frames() == 1);
    let header = scene.header(2);
    let other = daoserver::dtype::Shape::new(&[512, 1024]).unwrap();
    let wrong = [FrameHeader { boot_id: 8, ..header }, FrameHeader { shape: other, ..header }];
    for (count, header) in (1..).zip(wrong) {
        let message = scene.message(&header, 99);
        scene.say(&message);
        scene.until("it is refused", |scene| scene.refused() == count);
        assert_eq!((scene.newest(), scene.next_place()), ((1, 1), 0));
    }
    let third = scene.frame(3);
    scene.say(&third);
    scene.until("the frame", |scene| scene.frames() == 2);
    assert_eq!(scene.newest(), (3, 2));
}

#[test]
fn a_large_frame_into_which_somebody_else_wrote_is_not_shown_but_counted_and_takes_no_byte_of_theirs() {
    let pixels = Scene::new().spec.frame_bytes();
    // In the midst of its pixels, and after the last of them; twice is once round the ring.
    for (come, times) in [(pixels / 2, 1), (pixels / 2, 2), (pixels, 1), (pixels, 2)] {
        let mut scene = Scene::new();
        let first = scene.frame(1);
        let come_bytes = if come < pixels { come + PIXEL_OFFSET } else { first.len() - 1 };
        scene.say(&first[..come_bytes]);
        scene.until("they stand there", |scene| scene.next_place_at(come / 4) == 1);
        scene.until("all of them", |scene| come < pixels || scene.next_place_at(come - 1) == 1);
        let mut intruder = Writer::new(Segment::open(&scene.path, Access::ReadWrite).unwrap()).unwrap();
        for _ in 0..times {
            intruder.write(&vec![50; scene.spec.frame_bytes()]).unwrap();
        }
        scene.say(&first[come_bytes..]);
        scene.until("it is counted", |scene| scene.stats.mirror_busy.load(Relaxed) == 1);
        assert_eq!((scene.frames(), scene.newest()), (0, (50, times)));
        let second = scene.frame(2);
        scene.say(&second);
        scene.until("the frame", |scene| scene.frames() == 1);
        assert_eq!(scene.newest(), (2, times + 1));
    }
}
