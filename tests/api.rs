//! The library as programs use it: two machines in one process, each a `DaoServer`, over a real Redis and real streams.
#![allow(clippy::unwrap_used)]

use daoserver::shm::{self, Layout, Segment, SegmentSpec, Writer};
use daoserver::{DaoServer, Get, Kind, Mirror, Role, Settings};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(10);
/// Long enough for any machine, short enough to be waited for in vain.
const SHORT: Duration = Duration::from_millis(200);

/// A Redis and a directory of this test's own.
struct Cluster {
    redis: Child,
    port: u16,
    directory: PathBuf,
    /// Stands in every segment's name: semaphores are the whole machine's.
    tag: String,
}

impl Cluster {
    /// `None`, and a line that says so, where there is no redis-server.
    fn new() -> Option<Cluster> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let tag = format!("api{}x{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let directory = std::env::temp_dir().join(format!("daoserver-{tag}"));
        std::fs::create_dir_all(&directory).unwrap();
        for _ in 0..5 {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let redis = Command::new("redis-server")
                .args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
                .args(["--port", &port.to_string(), "--dir"])
                .arg(&directory)
                .stdout(Stdio::null())
                .spawn();
            let Ok(mut redis) = redis else {
                eprintln!("skipped: redis-server is not installed");
                return None;
            };
            // Another may have been faster to take the port: then ours has ended.
            let ours = format!("process_id:{}\r", redis.id());
            eventually("Redis answers, or ends", || {
                redis.try_wait().unwrap().is_some()
                    || redis_says(port).is_some_and(|says| says.contains(&ours))
            });
            if redis.try_wait().unwrap().is_none() {
                return Some(Cluster { redis, port, directory, tag });
            }
        }
        panic!("no Redis starts");
    }

    fn settings(&self, host: &str) -> Settings {
        let shm_dir = self.directory.join(host);
        std::fs::create_dir_all(&shm_dir).unwrap();
        Settings {
            redis_host: "127.0.0.1".into(),
            redis_port: self.port,
            shm_dir,
            base_pub_port: TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port(),
            ..Settings::named(host)
        }
    }

    /// A machine that stands in the registry with a segment of 140 floats.
    fn owner(&self) -> (DaoServer, Writer) {
        let server = DaoServer::new(Settings { role: Some(Role::Master), ..self.settings("owner") }).unwrap();
        server.register_machine().unwrap();
        let path = self.directory.join("owner").join(format!("{}.im.shm", self.tag));
        let shape = daoserver::dtype::Shape::new(&[140]).unwrap();
        let dtype = daoserver::dtype::DType::F32;
        let spec = SegmentSpec { shape, dtype, layout: Layout::Fifo, depth: 1, keywords: 0 };
        let writer = Writer::new(shm::create(&path, &spec, &[]).unwrap()).unwrap();
        eventually("the segment is registered", || {
            let machines = server.list_machines().unwrap();
            machines.iter().any(|machine| machine.shm_segments.contains(&self.tag))
        });
        (server, writer)
    }

    fn get(&self, server: &DaoServer) -> Mirror {
        server.get_remote_shm("owner", &self.tag).unwrap()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = self.redis.kill();
        let _ = self.redis.wait();
        for entry in std::fs::read_dir("/dev/shm").unwrap().flatten() {
            if entry.file_name().to_string_lossy().contains(&self.tag) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn redis_says(port: u16) -> Option<String> {
    let mut peer = TcpStream::connect(("127.0.0.1", port)).ok()?;
    peer.set_read_timeout(Some(SHORT)).ok()?;
    peer.write_all(b"INFO server\r\n").ok()?;
    let mut says = vec![0; 16_384];
    let count = peer.read(&mut says).ok()?;
    Some(String::from_utf8_lossy(&says[..count]).into_owned())
}

fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn put(writer: &mut Writer, value: f32) {
    writer.write(&value.to_le_bytes().repeat(140)).unwrap();
}

fn value(path: &Path) -> f32 {
    let mut reader = shm::Reader::new(Segment::open(path, shm::Access::Read).unwrap());
    let mut pixels = vec![0; 560];
    reader.read_newest(&mut pixels);
    f32::from_le_bytes(pixels[..4].try_into().unwrap())
}

#[test]
fn a_wavefront_sensor_is_followed_frame_by_frame() {
    let Some(cluster) = Cluster::new() else { return };
    let (_owner, mut source) = cluster.owner();
    put(&mut source, 1.0);
    let client = DaoServer::new(cluster.settings("client")).unwrap();
    let mut wfs = cluster.get(&client);
    assert_eq!((wfs.shape().axes(), wfs.dtype().name()), (&[140][..], "float32"));
    assert_eq!(wfs.latest().unwrap().values::<f32>().unwrap(), [1.0; 140]);
    assert_eq!(wfs.latest().unwrap().values::<u16>().unwrap_err().kind, Kind::Value);
    let before = wfs.latest().unwrap().counter();
    assert_eq!(wfs.wait_next(SHORT).unwrap_err().kind, Kind::Timeout, "nothing new");
    for number in 2..20u16 {
        put(&mut source, number.into());
        let frame = wfs.wait_next(PATIENCE).unwrap();
        assert_eq!((frame.counter(), frame.lapped()), (before + u64::from(number) - 1, 0));
        assert_eq!(frame.values::<f32>().unwrap()[139], f32::from(number));
        assert!(frame.written_ns() > 0);
    }
    let writes = std::thread::spawn(move || {
        for number in 20..70u16 {
            put(&mut source, number.into());
            std::thread::sleep(Duration::from_millis(5));
        }
        source
    });
    let mut last = 19.0;
    for frame in wfs.frames(PATIENCE) {
        let now = frame.unwrap().values::<f32>().unwrap()[0];
        assert!(now > last, "{now} after {last}");
        last = now;
        if last == 69.0 {
            break;
        }
    }
    writes.join().unwrap();
    let error = wfs.frames(SHORT).next().unwrap().unwrap_err();
    assert_eq!(error.kind, Kind::Timeout);
    assert!(error.message.contains("of owner within 0.2 s"), "{error}");
}

#[test]
fn mirror_commands_are_written_and_the_last_one_arrives_though_the_mirror_ends_at_once() {
    let Some(cluster) = Cluster::new() else { return };
    let (_owner, source) = cluster.owner();
    let client = DaoServer::new(cluster.settings("client")).unwrap();
    let there = source.segment().path();
    for number in 1..6u8 {
        let mut dm = client.get_remote_shm_bidirectional("owner", &cluster.tag).unwrap();
        assert_eq!(dm.write(&[1u16; 140]).unwrap_err().kind, Kind::Value);
        assert_eq!(dm.write(&[1f32; 139]).unwrap_err().kind, Kind::Value);
        dm.write(&[f32::from(number); 140]).unwrap();
        drop(dm);
        eventually("the command arrives", || value(there) == f32::from(number));
    }
    let mut one_way = cluster.get(&client);
    assert_eq!(one_way.write(&[1f32; 140]).unwrap_err().kind, Kind::Permission);
}

#[test]
fn a_mirror_ends_with_the_last_program_that_holds_it() {
    let Some(cluster) = Cluster::new() else { return };
    let (_owner, _source) = cluster.owner();
    let inside = DaoServer::new(cluster.settings("client")).unwrap();
    let beside = DaoServer::connect(cluster.settings("client")).unwrap();
    let (one, two) = (cluster.get(&inside), cluster.get(&beside));
    let path = one.path().to_owned();
    assert_eq!(path, two.path());
    assert_eq!(one.release().unwrap(), 1);
    assert!(path.exists());
    drop(two);
    eventually("it is gone", || !path.exists());
    let mirror = cluster.get(&beside);
    assert_eq!(mirror.release().unwrap(), 0);
    assert!(!path.exists());
    // The command `get` makes one that nobody's end ends.
    let lasting = beside.get(Get { lease: false, ..Get::new("owner", &cluster.tag) }).unwrap();
    drop(lasting);
    eventually("a program's mirror is always a lease", || !path.exists());
    assert_eq!(inside.release_remote_shm("owner", &cluster.tag).unwrap_err().kind, Kind::Key);
}

#[test]
fn errors_are_those_of_the_python_module() {
    let Some(cluster) = Cluster::new() else { return };
    let (owner, _source) = cluster.owner();
    let client = DaoServer::new(cluster.settings("client")).unwrap();
    let kind = |asked: Get| client.get(asked).map(|_| ()).unwrap_err().kind;
    assert_eq!(kind(Get::new("nobody", "x")), Kind::Key);
    assert_eq!(kind(Get::new("owner", "nosuch")), Kind::Key);
    assert_eq!(kind(Get::new("../x", "x")), Kind::Value);
    assert_eq!(
        kind(Get { transport: "rdma".into(), ..Get::new("owner", &cluster.tag) }),
        Kind::NotImplemented
    );
    assert_eq!(client.deregister_machine(Some("owner")).unwrap_err().kind, Kind::Permission);
    assert_eq!(client.cleanup_stale_machines(PATIENCE).unwrap_err().kind, Kind::Permission);
    assert_eq!(owner.deregister_machine(Some("nobody")).unwrap_err().kind, Kind::Key);
    assert!(owner.cleanup_stale_machines(PATIENCE).unwrap().is_empty());
    // Removed while it is stopped, its owner does not publish.
    assert!(owner.deregister_machine(None).unwrap() > 0);
    assert_eq!(kind(Get::new("owner", &cluster.tag)), Kind::Key);
    assert_eq!(owner.register_machine().unwrap().role.as_deref(), Some("master"));
    let nowhere = Settings { redis_port: 1, ..cluster.settings("other") };
    let error = DaoServer::connect(nowhere).map(|_| ()).unwrap_err();
    assert_eq!(error.kind, Kind::Connection);
    assert!(error.message.starts_with("Cannot connect to Redis at 127.0.0.1:1: "), "{error}");
    let error = DaoServer::new(cluster.settings("client")).map(|_| ()).unwrap_err();
    assert!(error.message.contains("is held by the running daemon of 'client'"), "{error}");
    let other_redis = Settings { redis_port: 1, ..cluster.settings("client") };
    let error = DaoServer::connect(other_redis).map(|_| ()).unwrap_err();
    assert!(error.message.contains("uses Redis at"), "{error}");
}

#[test]
fn start_blocks_until_stop_and_may_come_again() {
    let Some(cluster) = Cluster::new() else { return };
    let (observer, _source) = cluster.owner();
    let server = DaoServer::new(cluster.settings("client")).unwrap();
    let there = || observer.list_machines().unwrap().iter().any(|machine| machine.hostname == "client");
    assert!(!there(), "nothing is registered before the start");
    for _ in 0..2 {
        let started = server.clone();
        let thread = std::thread::spawn(move || started.start());
        eventually("it is registered", there);
        let mut mirror = cluster.get(&server);
        mirror.latest().unwrap();
        assert!(!thread.is_finished());
        server.stop();
        thread.join().unwrap().unwrap();
        assert!(!there(), "start returns when all has ended");
        assert!(!mirror.path().exists(), "and so have the mirrors");
        assert_eq!(server.list_machines().unwrap_err().kind, Kind::Os);
    }
    let beside = DaoServer::connect(cluster.settings("owner")).unwrap();
    let started = beside.clone();
    let thread = std::thread::spawn(move || started.start());
    while !thread.is_finished() {
        beside.stop();
        std::thread::sleep(Duration::from_millis(1));
    }
    thread.join().unwrap().unwrap();
    assert_eq!(observer.list_machines().unwrap().len(), 1, "who is only attached ends nobody else");
}

#[test]
fn frames_follow_a_source_that_gets_another_shape() {
    let Some(cluster) = Cluster::new() else { return };
    let (_owner, mut source) = cluster.owner();
    put(&mut source, 1.0);
    let client = DaoServer::new(cluster.settings("client")).unwrap();
    let mut wfs = cluster.get(&client);
    wfs.latest().unwrap();
    let path = source.segment().path().to_owned();
    let spec = SegmentSpec {
        shape: daoserver::dtype::Shape::new(&[4, 3]).unwrap(),
        dtype: daoserver::dtype::DType::U16,
        ..source.segment().spec().clone()
    };
    drop(source);
    let mut source = Writer::new(shm::create(&path, &spec, &[]).unwrap()).unwrap();
    source.write(&7u16.to_le_bytes().repeat(12)).unwrap();
    eventually("the new shape", || wfs.latest().is_ok_and(|frame| frame.shape().axes() == [4, 3]));
    eventually("the new frame", || wfs.latest().unwrap().values::<u16>().unwrap() == [7; 12]);
    assert_eq!(wfs.dtype().name(), "uint16");
}
