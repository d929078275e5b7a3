//! What a frame's way costs in memory: nothing is allocated for it, and it is copied out of the segment once, however
//! many mirrors it goes to.
#![allow(clippy::unwrap_used)]
#![allow(unsafe_code)] // an allocator is an unsafe trait; this one only counts

#[path = "common/shm.rs"]
mod common;

use common::{Place, spec};
use daoserver::bridge::echoes::{Echo, Echoes};
use daoserver::bridge::freshness;
use daoserver::bridge::mirror::Mirror;
use daoserver::bridge::origins::Origins;
use daoserver::bridge::outlet::Outlet;
use daoserver::bridge::publisher::{Publisher, Started};
use daoserver::bridge::source::Source;
use daoserver::bridge::stats::MirrorStats;
use daoserver::bridge::worker::Worker;
use daoserver::dtype::DType;
use daoserver::shm::{self, Keyword, KeywordValue, Writer};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promise is handed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is handed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const LOOPBACK: Ipv4Addr = Ipv4Addr::LOCALHOST;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Transport {
    Zmq,
    Tcp,
}

/// One publisher and its mirrors, all stepped by this thread.
struct Stream {
    _place: Place,
    writer: Writer,
    frame: Vec<u8>,
    publisher: Publisher,
    started: Started,
    mirrors: Vec<(Mirror, Arc<MirrorStats>)>,
    /// Allocations in `do_work` of the publisher and of the mirrors.
    allocated: [u64; 2],
}

fn port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn counted<T>(work: impl FnOnce() -> T) -> (T, u64) {
    let before = ALLOCATIONS.get();
    let result = work();
    (result, ALLOCATIONS.get() - before)
}

impl Stream {
    fn new(transport: Transport, shape: &str, mirrors: usize) -> Stream {
        let place = Place::new();
        let keywords =
            [Keyword { name: "gain".into(), value: KeywordValue::Double(0.5), comment: "".into() }];
        let mut spec = spec(shape, DType::U16, 4);
        spec.keywords = 1;
        let frame_bytes = spec.frame_bytes();
        let path = place.path("src");
        let writer = Writer::new(shm::create(&path, &spec, &keywords).unwrap()).unwrap();
        let streams = transport == Transport::Tcp;
        let outlet = Outlet::bind(LOOPBACK, [port()].into_iter(), frame_bytes, streams, Vec::new()).unwrap();
        let (publisher, started) = Publisher::new(&path, outlet, Arc::new(Origins::default()), None).unwrap();
        let mirrors = (0..mirrors)
            .map(|number| {
                let path = place.mirror_path(&format!("m{number}"));
                let mut spec = spec.clone();
                spec.keywords = freshness::with_ours(1);
                let keywords = freshness::keywords(1, "owner", "me");
                let writer = Writer::new(shm::create(&path, &spec, &keywords).unwrap()).unwrap();
                let source = Source {
                    ip: LOOPBACK,
                    port: started.port,
                    boot_id: Some(started.boot_id),
                    tcp_port: started.tcp_port,
                };
                let stats = Arc::new(MirrorStats::default());
                (Mirror::new(source, writer, Arc::clone(&stats)), stats)
            })
            .collect();
        let frame = vec![0; frame_bytes];
        Stream { _place: place, writer, frame, publisher, started, mirrors, allocated: [0; 2] }
    }

    /// Writes a frame and steps everybody until all mirrors have it.
    fn pass_one(&mut self) {
        let value = self.frame[0].wrapping_add(1);
        self.frame.fill(value);
        self.writer.write(&self.frame).unwrap();
        let counter = self.writer.segment().newest().1;
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.mirrors.iter().any(|(_, stats)| stats.source_counter.load(Relaxed) != counter) {
            assert!(Instant::now() < deadline, "frame {counter} never came");
            let (work, allocated) = counted(|| self.publisher.do_work().unwrap());
            self.allocated[0] += allocated;
            let mut all_work = work;
            for (mirror, _) in &mut self.mirrors {
                let (work, allocated) = counted(|| mirror.do_work().unwrap());
                self.allocated[1] += allocated;
                all_work += work;
            }
            if all_work == 0 {
                std::thread::yield_now();
            }
        }
    }

    fn copies(&self) -> u64 {
        self.started.stats.copies.load(Relaxed)
    }
}

#[test]
fn an_allocation_would_be_seen() {
    assert_eq!(counted(|| drop(std::hint::black_box(vec![1u8; 10]))).1, 1);
}

#[test]
fn noting_an_echo_allocates_nothing() {
    let (echoes, echo) = (Echoes::default(), Echo { round_trip_ns: 3, out_ns: 1, there_ns: 1 });
    let noted = counted(|| (0..10_000).for_each(|_| echoes.note(echo)));
    assert_eq!((noted.1, echoes.take().len()), (0, daoserver::limits::ECHOES_MAX));
}

#[test]
fn no_frame_allocates_on_either_side_over_either_transport() {
    let (small, large) = (("64x64", 2), ("1024x512", 1)); // the large one's pixels are lent, and poured
    for (transport, (shape, mirrors)) in [Transport::Zmq, Transport::Tcp]
        .into_iter()
        .flat_map(|transport| [small, large].map(|size| (transport, size)))
    {
        let mut stream = Stream::new(transport, shape, mirrors);
        // The first frames, and with them the first keywords and connections.
        for _ in 0..100 {
            stream.pass_one();
        }
        stream.allocated = [0; 2];
        // Longer than what is due by the clock takes to come round: file checks, keywords again, signs of life.
        let end = Instant::now() + Duration::from_millis(2_500);
        let mut frames = 0;
        while Instant::now() < end {
            stream.pass_one();
            frames += 1;
        }
        assert_eq!(
            stream.allocated, [0; 2],
            "of publisher and {mirrors} mirrors, over {transport:?}, in {frames} frames of {shape}"
        );
        println!("{transport:?}: {frames} frames of {shape} to {mirrors} mirrors without an allocation");
    }
}

#[test]
fn a_frame_for_eight_mirrors_is_copied_out_of_the_segment_once() {
    for transport in [Transport::Zmq, Transport::Tcp] {
        let mut stream = Stream::new(transport, "1024x512", 8);
        for _ in 0..10 {
            stream.pass_one();
        }
        let (copies, frames) = (stream.copies(), stream.started.stats.frames.load(Relaxed));
        for _ in 0..50 {
            stream.pass_one();
        }
        assert_eq!(stream.started.stats.frames.load(Relaxed) - frames, 50, "{transport:?}");
        assert_eq!(stream.copies() - copies, 50, "{transport:?}");
        for (_, stats) in &stream.mirrors {
            assert_eq!(stats.lost(), Default::default(), "{transport:?}");
        }
    }
}
