//! Streams that go both ways, over real sockets on loopback, stepped by hand: an owner A and its clients B and C.

use super::TCP;
use super::common::{Place, spec};
use daoserver::bridge::mirror::Mirror;
use daoserver::bridge::origins::Origins;
use daoserver::bridge::outlet::Outlet;
use daoserver::bridge::publisher::{Back, Publisher, Started};
use daoserver::bridge::source::Source;
use daoserver::bridge::stats::{MirrorStats, PublisherStats};
use daoserver::bridge::streams::{Bidirectional, Link, Owned};
use daoserver::bridge::worker::Worker;
use daoserver::dtype::DType;
use daoserver::shm::{self, Access, Outcome, Reader, Segment, Writer};
use daoserver::wire::frame::Refused;
use daoserver::wire::pickle::Frame;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

const LOOPBACK: Ipv4Addr = Ipv4Addr::LOCALHOST;
const SHAPE: &str = "140";
const FRAME_BYTES: usize = 140 * 4;

fn bind() -> Outlet {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    Outlet::bind(LOOPBACK, [port].into_iter(), FRAME_BYTES, TCP, Vec::new()).unwrap()
}

/// A program with a segment of its own, or a mirror.
struct Program {
    writer: Writer,
    reader: Reader,
    path: PathBuf,
}

impl Program {
    fn new(path: &Path) -> Program {
        let open = |access| Segment::open(path, access).unwrap();
        let writer = Writer::new(open(Access::ReadWrite)).unwrap();
        Program { writer, reader: Reader::new(open(Access::Read)), path: path.to_owned() }
    }

    fn write(&mut self, value: u32) {
        let pixels: Vec<u8> = value.to_le_bytes().repeat(140);
        self.writer.write(&pixels).unwrap();
    }

    /// The value of the newest frame, `None` while somebody writes it.
    fn value(&mut self) -> Option<u32> {
        let mut pixels = vec![0; FRAME_BYTES];
        let Outcome::Frame { .. } = self.reader.read_newest(&mut pixels) else { return None };
        let value = pixels[..4].try_into().unwrap();
        // Two writers at once may mix their frames; who of them wins is settled afterwards.
        pixels.chunks(4).all(|word| word == value).then(|| u32::from_le_bytes(value))
    }

    fn counter(&self) -> u64 {
        self.writer.segment().newest().1
    }
}

struct Client {
    program: Program,
    worker: Bidirectional,
    stats: Arc<MirrorStats>,
    back: Arc<PublisherStats>,
    link: Link,
}

struct Cluster {
    place: Place,
    context: zmq::Context,
    owner: Owned,
    started: Started,
    orders: Sender<Vec<Link>>,
    program: Program,
    clients: Vec<Client>,
}

impl Cluster {
    fn new(clients: usize) -> Cluster {
        let (context, place) = (zmq::Context::new(), Place::new());
        let path = place.path("a");
        shm::create(&path, &spec(SHAPE, DType::F32, 1), &[]).unwrap();
        let origins = Arc::new(Origins::default());
        let (publisher, started) = Publisher::new(&path, bind(), Arc::clone(&origins), None).unwrap();
        let (orders, receiver) = channel();
        let owner = Owned::new(publisher, origins, path.clone(), receiver);
        let program = Program::new(&path);
        let mut cluster = Cluster { place, context, owner, started, orders, program, clients: Vec::new() };
        for number in 0..clients {
            cluster.join(&format!("c{number}"), SHAPE);
        }
        cluster.pump("everybody is connected", |cluster| {
            cluster.clients.iter().all(|client| client.stats.frames.load(Relaxed) > 0)
        });
        cluster
    }

    /// A client whose write-back has this shape.
    fn join(&mut self, name: &str, shape: &str) {
        self.join_with(name, shape, 1);
    }

    /// The same, with a mirror of so many frames.
    fn join_with(&mut self, name: &str, shape: &str, depth: u32) {
        let path = self.place.path(name);
        let segment = shm::create(&path, &spec(SHAPE, DType::F32, depth), &[]).unwrap();
        let (port, tcp_port) = (self.started.port, self.started.tcp_port);
        let source = Source { ip: LOOPBACK, port, boot_id: Some(self.started.boot_id), tcp_port };
        let stats = Arc::new(MirrorStats::default());
        let writer = Writer::new(segment).unwrap();
        let mut mirror = Mirror::new(source, writer, Arc::clone(&stats));
        let (socket, origins) = (bind(), Arc::new(Origins::default()));
        let (port, tcp_port, me) = (socket.port(), socket.tcp_port(), socket.boot_id());
        mirror.share(Arc::clone(&origins), me);
        let mut back_path = path.clone();
        if shape != SHAPE {
            back_path = self.place.path(&format!("{name}other"));
            shm::create(&back_path, &spec(shape, DType::F32, 1), &[]).unwrap();
        }
        let (back, started) =
            Publisher::new(&back_path, socket, origins, Some(Back { me, open: false })).unwrap();
        let worker = Bidirectional::new(mirror, back, &path).unwrap();
        let link = Link {
            client: name.to_owned(),
            source: Source { ip: LOOPBACK, port, boot_id: Some(me), tcp_port },
            origin: me,
            stats: Arc::new(MirrorStats::default()),
        };
        let program = Program::new(&back_path);
        self.clients.push(Client { program, worker, stats, back: started.stats, link });
        self.orders.send(self.clients.iter().map(|client| client.link.clone()).collect()).unwrap();
    }

    fn step(&mut self) {
        self.owner.do_work().unwrap();
        for client in &mut self.clients {
            client.worker.do_work().unwrap();
        }
    }

    fn pump(&mut self, what: &str, mut done: impl FnMut(&mut Cluster) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !done(self) {
            assert!(Instant::now() < deadline, "never happened: {what}");
            self.step();
        }
    }

    /// Waits until a write of each client's reaches the owner: subscriptions take their time.
    fn warm_up(&mut self) -> u32 {
        let mut value = 1_000_000;
        for client in 0..self.clients.len() {
            let deadline = Instant::now() + Duration::from_secs(30);
            while self.clients[client].link.stats.frames.load(Relaxed) == 0 {
                assert!(Instant::now() < deadline);
                value += 1;
                self.clients[client].program.write(value);
                (0..200).for_each(|_| self.step());
            }
            self.pump("a first write is everywhere", |cluster| cluster.all_have(value));
        }
        value
    }

    fn programs(&mut self) -> impl Iterator<Item = &mut Program> {
        std::iter::once(&mut self.program).chain(self.clients.iter_mut().map(|client| &mut client.program))
    }

    fn all_have(&mut self, value: u32) -> bool {
        self.programs().all(|program| program.value() == Some(value))
    }

    fn counters(&mut self) -> Vec<u64> {
        self.programs().map(|program| program.counter()).collect()
    }
}

#[test]
fn a_burst_of_writes_arrives_or_is_counted_and_in_a_ring_all_of_it_arrives() {
    for depth in [1, 64] {
        let mut cluster = Cluster::new(0);
        cluster.join_with("c", SHAPE, depth);
        cluster.pump("connected", |cluster| cluster.clients[0].stats.frames.load(Relaxed) > 0);
        cluster.warm_up();
        let sent = |cluster: &Cluster| cluster.clients[0].back.frames.load(Relaxed);
        let lapped = |cluster: &Cluster| cluster.clients[0].back.lapped.load(Relaxed);
        let taken = |cluster: &Cluster| cluster.clients[0].link.stats.frames.load(Relaxed);
        let before = (sent(&cluster), lapped(&cluster), taken(&cluster));
        let mut number = 0;
        for burst in 0..200u32 {
            for _ in 0..=burst % 20 {
                number += 1;
                cluster.clients[0].program.write(number);
            }
            cluster.pump("the burst was seen", |cluster| {
                let sent = sent(cluster) - before.0;
                sent + lapped(cluster) - before.1 == u64::from(number) && taken(cluster) - before.2 == sent
            });
            if burst % 7 == 0 {
                // The owner's own come between.
                cluster.program.write(1_000_000 + burst);
                cluster.pump("the owner's is everywhere", |cluster| cluster.all_have(1_000_000 + burst));
            }
        }
        number += 1;
        cluster.clients[0].program.write(number);
        cluster.pump("the last one is everywhere", |cluster| cluster.all_have(number));
        let (sent, lapped) = (sent(&cluster) - before.0, lapped(&cluster) - before.1);
        assert_eq!(sent + lapped, u64::from(number), "depth {depth}: every write is sent or counted");
        assert_eq!(taken(&cluster) - before.2, sent, "depth {depth}: what was sent is there");
        assert!(depth == 1 || lapped == 0, "depth {depth}: {lapped} lapped");
        assert!(depth > 1 || lapped > 0, "the burst was none");
    }
}

#[test]
fn the_newest_write_arrives_though_queues_were_full() {
    let mut cluster = Cluster::new(1);
    cluster.warm_up();
    let mut number = 0;
    // The owner stands still while the client goes on: its queues fill up.
    let deadline = Instant::now() + Duration::from_secs(30);
    while cluster.clients[0].back.queue_full.load(Relaxed) == 0 {
        assert!(Instant::now() < deadline, "no queue was ever full");
        number += 1;
        cluster.clients[0].program.write(number);
        cluster.clients[0].worker.do_work().unwrap();
    }
    for _ in 0..50 {
        number += 1;
        cluster.clients[0].program.write(number);
        cluster.clients[0].worker.do_work().unwrap();
    }
    cluster.pump("the newest is everywhere", |cluster| cluster.all_have(number));
}

#[test]
fn ten_thousand_writes_from_three_machines_in_turn_arrive_once_everywhere_and_counters_add_up() {
    let mut cluster = Cluster::new(2);
    cluster.warm_up();
    let before = cluster.counters();
    for number in 1..=10_000u32 {
        cluster.programs().nth(number as usize % 3).unwrap().write(number);
        cluster.pump("each write is everywhere", |cluster| cluster.all_have(number));
        let wanted: Vec<u64> = before.iter().map(|counter| counter + u64::from(number)).collect();
        assert_eq!(cluster.counters(), wanted, "write {number} counts once on each side");
    }
    for client in &cluster.clients {
        assert_eq!(client.stats.converged.load(Relaxed), 0);
        assert_eq!(
            client.back.stale.load(Relaxed) + client.back.lapped.load(Relaxed),
            client.back.stale.load(Relaxed)
        );
    }
}

#[test]
fn writers_that_never_wait_for_each_other_come_to_rest_at_one_frame() {
    let mut cluster = Cluster::new(2);
    cluster.warm_up();
    let mut random = 0x9e37_79b9_7f4a_7c15u64;
    for number in 1..=6_000u32 {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        cluster.programs().nth((random % 3) as usize).unwrap().write(number);
        (0..random >> 60).for_each(|_| cluster.step());
    }
    let at_rest = |cluster: &mut Cluster| {
        let first = cluster.program.value();
        first.is_some_and(|value| cluster.all_have(value))
    };
    cluster.pump("all sides have one frame", at_rest);
    let (before, still_until) = (cluster.counters(), Instant::now() + Duration::from_millis(1_500));
    while Instant::now() < still_until {
        cluster.step();
    }
    assert!(at_rest(&mut cluster), "and keep it");
    let after = cluster.counters();
    // Bringing them together may have taken a frame more on a side, not a stream of them.
    assert!(before.iter().zip(&after).all(|(before, after)| after - before <= 2), "{before:?} {after:?}");
}

#[test]
fn a_local_frame_that_collided_with_the_owners_gives_way_to_it() {
    let mut cluster = Cluster::new(1);
    cluster.warm_up();
    // The program's pixels land in the mirror, but its counter is lost to the daemon's write at the same moment.
    let path = cluster.clients[0].program.path.clone();
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    let offset = file.metadata().unwrap().len() - FRAME_BYTES as u64;
    std::os::unix::fs::FileExt::write_all_at(&file, &[0xab; FRAME_BYTES], offset).unwrap();
    let value = cluster.program.value().unwrap();
    assert_ne!(cluster.clients[0].program.value(), Some(value));
    cluster.program.write(7);
    cluster.pump("the owner's next frame", |cluster| cluster.all_have(7));
    std::os::unix::fs::FileExt::write_all_at(&file, &[0xab; FRAME_BYTES], offset).unwrap();
    cluster.program.write(8);
    cluster.pump("again", |cluster| cluster.all_have(8));
}

#[test]
fn nothing_goes_back_before_the_mirror_was_refreshed_from_its_owner() {
    let mut cluster = Cluster::new(1);
    cluster.warm_up();
    // The owner falls silent for longer than a link may be; meanwhile both sides write.
    let silent_until = Instant::now() + daoserver::limits::LINK_SILENT_MAX + Duration::from_secs(2);
    let before = cluster.program.counter();
    let stale = cluster.clients[0].back.stale.load(Relaxed); // the first writes of all may have come too early
    while Instant::now() < silent_until {
        cluster.clients[0].worker.do_work().unwrap();
        std::thread::sleep(Duration::from_millis(5));
    }
    cluster.clients[0].program.write(666);
    cluster.clients[0].worker.do_work().unwrap();
    assert_eq!(cluster.clients[0].back.stale.load(Relaxed), stale + 1, "not sent");
    cluster.program.write(42);
    cluster.pump("both have the owner's", |cluster| cluster.all_have(42));
    assert_eq!(cluster.program.counter(), before + 1);
    cluster.pump("the owner listens again", |cluster| cluster.clients[0].back.open.load(Relaxed));
    cluster.clients[0].program.write(43);
    cluster.pump("and then writes go back again", |cluster| cluster.all_have(43));
}

/// A publisher of Python's.
struct Python {
    socket: zmq::Socket,
    source: Source,
}

impl Python {
    fn new(context: &zmq::Context) -> Python {
        let socket = context.socket(zmq::PUB).unwrap();
        socket.bind("tcp://127.0.0.1:*").unwrap();
        let endpoint = socket.get_last_endpoint().unwrap().unwrap();
        let port = endpoint.rsplit(':').next().unwrap().parse().unwrap();
        Python { socket, source: Source { ip: LOOPBACK, port, boot_id: None, tcp_port: None } }
    }

    fn send(&self, value: u32) {
        let frame = Frame::new(&spec(SHAPE, DType::F32, 1).shape, DType::F32);
        let pixels = value.to_le_bytes().repeat(140);
        let message = [frame.prefix.as_slice(), &pixels, frame.suffix].concat();
        self.socket.send_multipart([b"frameData".to_vec(), message], 0).unwrap();
    }
}

#[test]
fn a_python_client_that_sends_back_what_it_gets_sets_no_frame_going_round() {
    let mut cluster = Cluster::new(0);
    let python = Python::new(&cluster.context);
    let stats = Arc::new(MirrorStats::default());
    let link = Link { client: "py".to_owned(), source: python.source, origin: 77, stats: Arc::clone(&stats) };
    cluster.orders.send(vec![link]).unwrap();
    cluster.pump("its first frame", |_| {
        python.send(1);
        std::thread::sleep(Duration::from_millis(5));
        stats.frames.load(Relaxed) == 1
    });
    let (before, echoes) = (cluster.program.counter(), stats.echoes.load(Relaxed));
    python.send(1);
    cluster.pump("it is known", |_| stats.echoes.load(Relaxed) > echoes);
    assert_eq!(cluster.program.counter(), before, "and not written again");
    python.send(2);
    cluster.pump("another frame", |cluster| cluster.program.value() == Some(2));
    assert_eq!(cluster.program.counter(), before + 1);
}

#[test]
fn a_python_owner_that_does_not_send_back_what_it_took_undoes_no_write() {
    let (context, place) = (zmq::Context::new(), Place::new());
    let python = Python::new(&context);
    let path = place.path("m");
    let segment = shm::create(&path, &spec(SHAPE, DType::F32, 1), &[]).unwrap();
    let (stats, origins) = (Arc::new(MirrorStats::default()), Arc::new(Origins::default()));
    let writer = Writer::new(segment).unwrap();
    let mut mirror = Mirror::new(python.source, writer, Arc::clone(&stats));
    let socket = bind();
    let me = socket.boot_id();
    mirror.share(Arc::clone(&origins), me);
    let (back, _) = Publisher::new(&path, socket, origins, Some(Back { me, open: false })).unwrap();
    let mut worker = Bidirectional::new(mirror, back, &path).unwrap();
    let mut program = Program::new(&path);
    let deadline = Instant::now() + Duration::from_secs(30);
    while stats.frames.load(Relaxed) == 0 {
        assert!(Instant::now() < deadline);
        python.send(1);
        std::thread::sleep(Duration::from_millis(5));
        worker.do_work().unwrap();
    }
    let settled = Instant::now() + Duration::from_millis(300);
    while Instant::now() < settled {
        worker.do_work().unwrap();
    }
    program.write(5);
    let still_until = Instant::now() + Duration::from_millis(1_000);
    while Instant::now() < still_until {
        worker.do_work().unwrap();
    }
    assert_eq!(program.value(), Some(5));
}

#[test]
fn what_stood_in_a_mirror_before_it_became_bidirectional_is_no_write() {
    let cluster = Cluster::new(0);
    let path = cluster.place.path("before");
    shm::create(&path, &spec(SHAPE, DType::F32, 1), &[]).unwrap();
    let mut program = Program::new(&path);
    program.write(5);
    let (socket, origins) = (bind(), Arc::new(Origins::default()));
    let back = Back { me: socket.boot_id(), open: false };
    let (mut publisher, started) = Publisher::new(&path, socket, origins, Some(back)).unwrap();
    publisher.do_work().unwrap();
    assert_eq!(started.stats.stale.load(Relaxed), 0);
    program.write(6);
    publisher.do_work().unwrap();
    assert_eq!(started.stats.stale.load(Relaxed), 1, "nobody takes it yet");
}

#[test]
fn a_write_that_comes_late_over_newer_frames_of_the_owner_is_refused() {
    let mut cluster = Cluster::new(1);
    cluster.warm_up();
    let before = cluster.program.counter();
    cluster.program.write(42);
    // The link stands still, for less time than it takes to notice.
    let standing_until = Instant::now() + Duration::from_millis(700);
    while Instant::now() < standing_until {
        cluster.owner.do_work().unwrap();
    }
    // A mirror sends before it receives.
    cluster.clients[0].program.write(666);
    let refused =
        |cluster: &Cluster| cluster.clients[0].link.stats.refused[Refused::Stale.index()].load(Relaxed);
    cluster.pump("it is refused", |cluster| refused(cluster) == 1);
    cluster.pump("both have the owner's", |cluster| cluster.all_have(42));
    assert_eq!((refused(&cluster), cluster.program.counter()), (1, before + 1));
    cluster.clients[0].program.write(43);
    cluster.pump("and then writes go back again", |cluster| cluster.all_have(43));
}

#[test]
fn a_write_of_another_shape_is_refused_and_counted() {
    let mut cluster = Cluster::new(0);
    cluster.program.write(1);
    cluster.join("odd", "70");
    let deadline = Instant::now() + Duration::from_secs(30);
    while cluster.clients[0].link.stats.refused.iter().all(|count| count.load(Relaxed) == 0) {
        assert!(Instant::now() < deadline);
        let pixels = vec![9; FRAME_BYTES / 2];
        cluster.clients[0].program.writer.write(&pixels).unwrap();
        (0..50).for_each(|_| cluster.step());
    }
    assert_eq!((cluster.program.value(), cluster.program.counter()), (Some(1), 1));
}
