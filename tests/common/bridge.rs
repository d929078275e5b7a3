//! Publishers and mirrors over real sockets on loopback, stepped by hand: the same situations over both transports.

use super::TCP;
use super::common::{Place, spec};
use daoserver::bridge::freshness;
use daoserver::bridge::mirror::Mirror;
use daoserver::bridge::origins::Origins;
use daoserver::bridge::outlet::Outlet;
use daoserver::bridge::publisher::{Publisher, Started};
use daoserver::bridge::source::Source;
use daoserver::bridge::stats::MirrorStats;
use daoserver::bridge::worker::{Ended, Worker};
use daoserver::dtype::DType;
use daoserver::shm::{self, Access, FrameMeta, Keyword, KeywordValue, Segment, Writer};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

pub const LOOPBACK: Ipv4Addr = Ipv4Addr::LOCALHOST;
pub const SHAPE: &str = "16x8";

/// A port that was free a moment ago.
pub fn port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

pub struct Stream {
    place: Place,
    pub writer: Writer,
    pub publisher: Publisher,
    pub started: Started,
}

pub struct Follower {
    pub mirror: Mirror,
    pub stats: Arc<MirrorStats>,
    path: PathBuf,
}

impl Stream {
    pub fn new(depth: u32) -> Stream {
        Stream::with_keywords(depth, &[])
    }

    fn with_keywords(depth: u32, keywords: &[Keyword]) -> Stream {
        Stream::with(SHAPE, depth, keywords)
    }

    pub fn with(shape: &str, depth: u32, keywords: &[Keyword]) -> Stream {
        let place = Place::new();
        let path = place.path("src");
        let mut spec = spec(shape, DType::U16, depth);
        spec.keywords = keywords.len() as u16;
        let writer = Writer::new(shm::create(&path, &spec, keywords).unwrap()).unwrap();
        let outlet =
            Outlet::bind(LOOPBACK, [port()].into_iter(), spec.frame_bytes(), TCP, Vec::new()).unwrap();
        let (publisher, started) = Publisher::new(&path, outlet, Arc::new(Origins::default()), None).unwrap();
        Stream { place, writer, publisher, started }
    }

    pub fn follow(&self, name: &str) -> Follower {
        let mut spec = self.writer.segment().spec().clone();
        spec.depth = 1;
        self.follow_with(name, &spec, self.started.boot_id)
    }

    fn follow_with(&self, name: &str, spec: &shm::SegmentSpec, boot_id: u64) -> Follower {
        let path = self.place.path(name);
        shm::create(&path, spec, &[]).unwrap();
        self.follow_at(path, boot_id)
    }

    fn follow_at(&self, path: PathBuf, boot_id: u64) -> Follower {
        let writer = Writer::new(Segment::open(&path, Access::ReadWrite).unwrap()).unwrap();
        let stats = Arc::new(MirrorStats::default());
        let (port, tcp_port) = (self.started.port, self.started.tcp_port);
        let source = Source { ip: LOOPBACK, port, boot_id: Some(boot_id), tcp_port };
        let mirror = Mirror::new(source, writer, Arc::clone(&stats));
        Follower { mirror, stats, path }
    }

    pub fn write(&mut self, value: u8) {
        self.writer.write(&vec![value; self.writer.segment().spec().frame_bytes()]).unwrap();
    }

    pub fn published(&self) -> u64 {
        self.started.stats.frames.load(Relaxed)
    }

    /// Steps the publisher and these mirrors until the condition holds.
    pub fn pump(
        &mut self,
        followers: &mut [&mut Follower],
        what: &str,
        done: impl Fn(&Stream, &[&mut Follower]) -> bool,
    ) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !done(self, followers) {
            assert!(Instant::now() < deadline, "never happened: {what}");
            let mut work = self.publisher.do_work().unwrap();
            for follower in followers.iter_mut() {
                work += follower.mirror.do_work().unwrap();
            }
            if work == 0 {
                std::thread::yield_now();
            }
        }
    }
}

impl Follower {
    pub fn frames(&self) -> u64 {
        self.stats.frames.load(Relaxed)
    }

    pub fn pixel(&self) -> u8 {
        let mut reader = shm::Reader::new(Segment::open(&self.path, Access::Read).unwrap());
        let mut buffer = vec![0; reader.segment().spec().frame_bytes()];
        assert!(matches!(reader.read_newest(&mut buffer), shm::Outcome::Frame { .. }));
        assert!(buffer.iter().all(|byte| *byte == buffer[0]), "a torn frame");
        buffer[0]
    }

    fn meta(&self) -> FrameMeta {
        let segment = Segment::open(&self.path, Access::Read).unwrap();
        segment.meta(segment.newest().0)
    }

    pub fn lost(&self) -> u64 {
        let stats = &self.stats;
        [&stats.lapped, &stats.queue_full, &stats.transport, &stats.mirror_busy]
            .iter()
            .map(|n| n.load(Relaxed))
            .sum()
    }

    pub fn refused(&self) -> u64 {
        self.stats.refused.iter().map(|count| count.load(Relaxed)).sum()
    }
}

#[test]
fn a_new_subscriber_gets_the_current_frame_at_once_even_if_nothing_is_being_written() {
    let mut stream = Stream::new(1);
    stream.write(42);
    let mut mirror = stream.follow("m");
    stream.pump(&mut [&mut mirror], "a first frame", |_, m| m[0].frames() == 1);
    assert_eq!(mirror.pixel(), 42);
}

#[test]
fn a_segment_that_was_never_written_is_mirrored_as_it_is() {
    let mut stream = Stream::new(1);
    let mut mirror = stream.follow("m");
    stream.pump(&mut [&mut mirror], "a first frame", |_, m| m[0].frames() == 1);
    stream.write(1);
    stream.pump(&mut [&mut mirror], "the next", |_, m| m[0].frames() == 2);
    assert_eq!((mirror.pixel(), mirror.lost()), (1, 0));
}

#[test]
fn every_frame_arrives_in_order_with_the_sources_time_and_counters_grow_by_one() {
    let mut stream = Stream::new(1);
    let mut mirror = stream.follow("m");
    stream.pump(&mut [&mut mirror], "a first frame", |_, m| m[0].frames() == 1);
    for value in 1..=200u8 {
        stream.write(value);
        stream.pump(&mut [&mut mirror], "each frame", |_, m| m[0].frames() == 1 + u64::from(value));
        assert_eq!(mirror.pixel(), value);
    }
    let segment = stream.writer.segment();
    let source = segment.meta(segment.newest().0);
    assert_eq!(mirror.meta(), FrameMeta { cnt0: 201, ..source }, "its own counter, the rest the source's");
    assert_eq!((mirror.lost(), mirror.refused()), (0, 0));
}

#[test]
fn frames_that_wait_in_a_ring_are_all_sent() {
    let mut stream = Stream::new(8);
    let mut mirror = stream.follow("m");
    stream.pump(&mut [&mut mirror], "a first frame", |_, m| m[0].frames() == 1);
    (1..=7).for_each(|value| stream.write(value));
    stream.pump(&mut [&mut mirror], "all seven", |_, m| m[0].frames() == 8);
    assert_eq!((mirror.pixel(), mirror.lost()), (7, 0));
    (1..=30).for_each(|value| stream.write(value));
    stream.pump(&mut [&mut mirror], "the newest", |_, m| m[0].pixel() == 30);
    assert_eq!(mirror.frames() + mirror.lost(), 38, "what was lapped is counted");
}

#[test]
fn a_second_mirror_gets_its_first_frame_and_the_other_sees_no_frame_twice() {
    let mut stream = Stream::new(1);
    stream.write(9);
    let mut first = stream.follow("m1");
    stream.pump(&mut [&mut first], "a first frame", |_, m| m[0].frames() == 1);
    let mut second = stream.follow("m2");
    stream.pump(&mut [&mut first, &mut second], "the second's", |_, m| m[1].frames() == 1);
    stream.write(10);
    stream.pump(&mut [&mut first, &mut second], "both", |_, m| m.iter().all(|m| m.frames() == 2));
    assert_eq!((first.meta().cnt0, second.meta().cnt0), (2, 2));
    assert_eq!((first.lost(), second.lost()), (0, 0));
}

#[test]
fn a_mirror_that_stands_still_loses_what_the_queue_cannot_hold_and_then_gets_the_newest() {
    let mut stream = Stream::new(1);
    let (mut slow, mut quick) = (stream.follow("slow"), stream.follow("quick"));
    stream.pump(&mut [&mut slow, &mut quick], "first frames", |_, m| m.iter().all(|m| m.frames() >= 1));
    let before = stream.published();
    // Far more than queues and kernel buffers hold: the slow one is not stepped.
    const FRAMES: u64 = 20_000;
    for number in 0..FRAMES {
        stream.write(number as u8);
        stream.pump(&mut [&mut quick], "the quick one follows", |s, m| {
            s.published() + s.started.stats.lapped.load(Relaxed) > before + number
                && m[0].frames() > number / 2
        });
    }
    stream.pump(&mut [&mut slow, &mut quick], "both have the newest", |s, m| {
        let newest = s.writer.segment().newest().1;
        m.iter().all(|m| m.stats.source_counter.load(Relaxed) == newest)
    });
    assert!(slow.stats.queue_full.load(Relaxed) > 0, "the cause is named");
    assert_eq!(slow.frames() + slow.lost(), quick.frames() + quick.lost(), "no frame is unaccounted for");
    assert_eq!(quick.stats.transport.load(Relaxed), 0);
}

/// Writes until the kernel's buffers are full and the publisher leaves a frame where it is, since its only mirror does not
/// read. Gives how many frames were written.
fn stuff(stream: &mut Stream) -> u64 {
    for written in 1.. {
        let before = stream.published();
        stream.write(written as u8);
        (0..10).for_each(|_| _ = stream.publisher.do_work().unwrap());
        if stream.published() == before {
            return written;
        }
    }
    0
}

#[test]
fn a_frame_waits_in_its_ring_while_everybody_is_still_being_sent_an_older_one() {
    let mut stream = Stream::new(8);
    let mut mirror = stream.follow("m");
    stream.pump(&mut [&mut mirror], "a first frame", |_, m| m[0].frames() == 1);
    let written = stuff(&mut stream) + 1;
    stream.write(77);
    stream.pump(&mut [&mut mirror], "the newest", |_, m| m[0].stats.source_counter.load(Relaxed) == written);
    let skipped = mirror.stats.mirror_busy.load(Relaxed);
    assert_eq!((mirror.pixel(), mirror.lost()), (77, skipped), "none was left out");
    assert_eq!(stream.started.stats.queue_full.load(Relaxed), 0);
}

#[test]
fn a_mirror_that_stood_still_for_long_gets_the_newest_frame_without_another_being_written() {
    let mut stream = Stream::new(8);
    let mut mirror = stream.follow("m");
    stream.pump(&mut [&mut mirror], "a first frame", |_, m| m[0].frames() == 1);
    let written = stuff(&mut stream) + 20;
    (0..20).for_each(|_| stream.write(88));
    stream.pump(&mut [&mut mirror], "the newest", |_, m| m[0].stats.source_counter.load(Relaxed) == written);
    assert_eq!(
        (mirror.pixel(), mirror.stats.queue_full.load(Relaxed)),
        (88, 20),
        "all that waited but the newest"
    );
    assert_eq!(stream.started.stats.lapped.load(Relaxed), 0);
    assert_eq!(mirror.frames() + mirror.lost(), written + 1, "no frame is unaccounted for");
}

#[test]
fn what_was_written_while_nobody_listened_is_not_lost_and_its_age_is_no_latency() {
    let mut stream = Stream::new(1);
    let mut first = stream.follow("m1");
    stream.pump(&mut [&mut first], "a first frame", |_, m| m[0].frames() == 1);
    drop(first);
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut published = u64::MAX;
    // Until a frame that was written is not sent, since nobody is there.
    while published != stream.published() {
        assert!(Instant::now() < deadline);
        published = stream.published();
        stream.write(1);
        std::thread::sleep(Duration::from_millis(10));
        for _ in 0..100 {
            stream.publisher.do_work().unwrap();
        }
    }
    (0..50).for_each(|_| stream.write(2));
    stream.write(3);
    let mut second = stream.follow("m2");
    stream.pump(&mut [&mut second], "the current frame", |_, m| m[0].frames() == 1);
    assert_eq!((second.pixel(), second.lost()), (3, 0));
    assert_eq!(stream.started.stats.lapped.load(Relaxed), 0);
    assert_eq!(second.stats.hops.whole().iter().sum::<u64>(), 0);
}

#[test]
fn keywords_follow_the_source() {
    let keyword = |value| Keyword {
        name: "GAIN".into(),
        value: KeywordValue::Double(value),
        comment: "of the loop".into(),
    };
    let mut stream = Stream::with_keywords(1, &[keyword(0.5)]);
    let mut mirror = stream.follow("m");
    stream.pump(&mut [&mut mirror], "a first frame", |_, m| m[0].frames() == 1);
    let keywords = |m: &Follower| Segment::open(&m.path, Access::Read).unwrap().keywords();
    assert_eq!(keywords(&mirror), [keyword(0.5)]);
    stream.writer.set_keywords(&[keyword(0.75)]).unwrap();
    stream.write(1);
    stream.pump(&mut [&mut mirror], "the next frame", |_, m| m[0].frames() == 2);
    assert_eq!(keywords(&mirror), [keyword(0.75)]);
}

#[test]
fn keywords_of_its_own_stand_behind_those_of_the_source() {
    let keyword = Keyword { name: "GAIN".into(), value: KeywordValue::Double(0.5), comment: "".into() };
    let mut stream = Stream::with_keywords(1, std::slice::from_ref(&keyword));
    let ours = freshness::keywords(1, "alpha", "beta");
    let mut spec = spec(SHAPE, DType::U16, 1);
    spec.keywords = ours.len() as u16;
    let path = stream.place.mirror_path("m");
    shm::create(&path, &spec, &ours).unwrap();
    let mut mirror = stream.follow_at(path, stream.started.boot_id);
    stream.write(1);
    stream.write(2);
    stream.pump(&mut [&mut mirror], "the newest frame", |_, m| m[0].pixel() == 2);
    let keywords = Segment::open(&mirror.path, Access::Read).unwrap().keywords();
    assert_eq!(keywords[0], keyword);
    let long = |place: usize| match keywords[place].value {
        KeywordValue::Long(value) => value,
        _ => panic!("no integer"),
    };
    assert_eq!(keywords[1].value, KeywordValue::Text("alpha".into()));
    assert_eq!((long(2), long(3)), (2, mirror.meta().atime_ns));
    assert!((0..60_000_000).contains(&long(4)), "an age of {} us", long(4));
    assert_eq!((long(5), long(6)), (0, 1));
    mirror.mirror.finish();
    let keywords = Segment::open(&mirror.path, Access::Read).unwrap().keywords();
    assert_eq!(keywords[6].value, KeywordValue::Long(0), "nobody keeps it");
}

#[test]
fn a_source_that_starts_again_at_zero_does_not_turn_the_mirrors_counter_back() {
    let mut stream = Stream::new(1);
    let mut mirror = stream.follow("m");
    (1..=5).for_each(|value| stream.write(value));
    stream.pump(&mut [&mut mirror], "a first frame", |_, m| m[0].frames() == 1);
    let before = mirror.meta().cnt0;
    // The library re-creates in place: the same file, the counter at 0 again.
    let path = stream.place.path("src");
    let bytes = std::fs::read(&path).unwrap();
    let zeroed = [&bytes[..152], &[0; 8], &bytes[160..]].concat();
    std::os::unix::fs::FileExt::write_all_at(
        &std::fs::OpenOptions::new().write(true).open(&path).unwrap(),
        &zeroed[152..160],
        152,
    )
    .unwrap();
    stream.write(77);
    stream.pump(&mut [&mut mirror], "frames go on", |_, m| m[0].pixel() == 77);
    assert!(mirror.meta().cnt0 > before);
}

#[test]
fn a_publisher_whose_file_is_replaced_or_cut_short_ends_with_the_reason() {
    for replace in [true, false] {
        let mut stream = Stream::new(1);
        let mut mirror = stream.follow("m");
        stream.pump(&mut [&mut mirror], "a first frame", |_, m| m[0].frames() == 1);
        let path = stream.place.path("src");
        if replace {
            std::fs::rename(&path, stream.place.path("old")).unwrap();
        } else {
            std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(0).unwrap();
        }
        let deadline = Instant::now() + Duration::from_secs(20);
        let ended = loop {
            assert!(Instant::now() < deadline);
            if let Err(ended) = stream.publisher.do_work() {
                break ended;
            }
        };
        assert!(matches!(ended, Ended::SegmentGone | Ended::ShapeChanged), "{ended}");
    }
}

#[test]
fn frames_of_another_publisher_or_shape_are_refused_and_counted() {
    let mut stream = Stream::new(1);
    let mut stranger = stream.follow_with("m1", &spec(SHAPE, DType::U16, 1), stream.started.boot_id ^ 1);
    let mut other = stream.follow_with("m2", &spec("8x16", DType::U16, 1), stream.started.boot_id);
    // Over TCP a stranger is turned away before a frame is sent.
    stream.pump(&mut [&mut stranger, &mut other], "refusals", |_, m| {
        (TCP || m[0].refused() > 0) && m[1].refused() > 0
    });
    assert_eq!((stranger.frames(), other.frames()), (0, 0));
}
