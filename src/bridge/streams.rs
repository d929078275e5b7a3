//! Streams that go both ways, each on one thread: a mirror with its write-back on the client, a publisher with the
//! write-backs of its clients on the owner. One thread writes into the segment for the daemon, so no two of its own
//! writers meet; a program that writes at the same moment may, and then both sides come to rest at the owner's frame.

use crate::bridge::mirror::Mirror;
use crate::bridge::origins::Origins;
use crate::bridge::publisher::Publisher;
use crate::bridge::source::Source;
use crate::bridge::stats::MirrorStats;
use crate::bridge::worker::{Ended, Worker};
use crate::log::Repeats;
use crate::os::clock;
use crate::shm::{Access, Reader, Segment, Writer};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Duration;

/// After so long without a frame both sides are brought together: longer than a frame takes there and back.
const QUIET_NS: i64 = 400_000_000;
/// Both directions are looked at so often at least, while frames come and when none has come for a while. What comes over
/// the network ends a wait.
const PARK_MAX: Duration = Duration::from_micros(100);
const PARK_MAX_QUIET: Duration = Duration::from_micros(800);

/// A client's frame that was written without knowing one that we sent this long ago, or up to twice as long, is refused:
/// more than a frame takes there and back, so that only a link that stood still has such frames.
const SETTLED_NS: i64 = 250_000_000;

/// A write-back that could not be opened is tried again so often.
const RETRY_NS: i64 = 2_000_000_000;

/// Runs something once when frames have ceased for a while.
struct Quiet {
    since_ns: i64,
    done: bool,
}

impl Quiet {
    fn new() -> Quiet {
        Quiet { since_ns: clock::monotonic_ns(), done: false }
    }

    /// How long may both directions be left alone?
    fn park_max(&self) -> Duration {
        if self.done { PARK_MAX_QUIET } else { PARK_MAX }
    }

    /// `true` once, when nothing has happened for long enough.
    fn is_due(&mut self, work: usize) -> bool {
        let now_ns = clock::monotonic_ns();
        if work > 0 {
            *self = Quiet { since_ns: now_ns, done: false };
        }
        now_ns - self.since_ns >= QUIET_NS
            && !std::mem::replace(&mut self.done, now_ns - self.since_ns >= QUIET_NS)
    }
}

/// The client's side. Runs on its `dao-mir-<name>` thread alone.
pub struct Bidirectional {
    mirror: Mirror,
    back: Publisher,
    checker: Reader,
    scratch: Vec<u8>,
    quiet: Quiet,
}

impl Bidirectional {
    /// A mirror and its write-back, of the segment at `path`.
    pub fn new(mirror: Mirror, back: Publisher, path: &Path) -> Result<Bidirectional, Ended> {
        let segment = Segment::open(path, Access::Read).map_err(|_| Ended::SegmentGone)?;
        Ok(Bidirectional {
            mirror,
            back,
            checker: Reader::new(segment),
            scratch: Vec::new(),
            quiet: Quiet::new(),
        })
    }
}

impl Worker for Bidirectional {
    fn do_work(&mut self) -> Result<usize, Ended> {
        self.mirror.housekeeping(clock::monotonic_ns())?;
        let mut work = 0;
        loop {
            // A local frame goes out before one of the owner's is written over it.
            self.back.set_open(self.mirror.is_fresh(), self.mirror.seq());
            work += self.back.do_work()?;
            if work > 64 || !self.mirror.receive_one(|_| false)? {
                break;
            }
            work += 1;
        }
        if self.quiet.is_due(work) && self.mirror.is_fresh() && !self.back.has_news() {
            if self.back.make_sure()? {
                self.quiet = Quiet::new(); // it has its time to come back
                return Ok(1);
            }
            self.mirror.converge(&mut self.checker, &mut self.scratch)?;
        }
        Ok(work)
    }

    /// A program writes a frame and ends: that frame goes out all the same.
    fn finish(&mut self) {
        if self.back.has_news() {
            let _ = self.do_work(); // its last
        }
        self.back.linger();
        self.mirror.close();
    }

    fn is_under_way(&self, now_ns: i64) -> bool {
        self.mirror.is_under_way(now_ns) || self.back.is_under_way(now_ns)
    }

    fn park(&mut self, time: Duration) {
        self.mirror.wait(time.min(self.quiet.park_max()));
    }
}

/// A client that writes back: where its frames come from.
#[derive(Clone)]
pub struct Link {
    /// Its host name.
    pub client: String,
    /// Its publisher.
    pub source: Source,
    /// The origin of its frames, where its wire does not say.
    pub origin: u64,
    /// What it sent.
    pub stats: Arc<MirrorStats>,
}

/// The owner's side. Runs on its `dao-pub-<name>` thread alone.
pub struct Owned {
    publisher: Publisher,
    origins: Arc<Origins>,
    path: PathBuf,
    links: Vec<(Link, Mirror)>,
    /// Those that should be in `links`.
    wanted: Vec<Link>,
    failures: Repeats,
    next_retry_ns: i64,
    last_turn_ns: i64,
    orders: Receiver<Vec<Link>>,
    next_orders_ns: i64,
    /// Our sequence numbers: at the last look, and at the one before.
    settled: [u64; 2],
    next_settled_ns: i64,
    quiet: Quiet,
}

impl Owned {
    /// A publisher of the segment at `path`, and the clients that write back, as `orders` names them from time to time.
    pub fn new(
        publisher: Publisher,
        origins: Arc<Origins>,
        path: PathBuf,
        orders: Receiver<Vec<Link>>,
    ) -> Owned {
        Owned {
            publisher,
            origins,
            path,
            links: Vec::new(),
            wanted: Vec::new(),
            failures: Repeats::new(Duration::from_secs(60)),
            next_retry_ns: 0,
            last_turn_ns: clock::monotonic_ns(),
            orders,
            next_orders_ns: 0,
            settled: [0; 2],
            next_settled_ns: 0,
            quiet: Quiet::new(),
        }
    }

    fn take_orders(&mut self) {
        let now_ns = clock::monotonic_ns();
        if now_ns < self.next_orders_ns {
            return;
        }
        self.next_orders_ns = now_ns + 5_000_000;
        if let Some(wanted) = self.orders.try_iter().last() {
            self.wanted = wanted;
        } else if self.links.len() == self.wanted.len() || now_ns < self.next_retry_ns {
            return;
        }
        self.next_retry_ns = now_ns + RETRY_NS;
        let wanted = self.wanted.clone();
        self.links.retain(|(link, _)| {
            wanted.iter().any(|other| other.client == link.client && other.source == link.source)
        });
        for link in wanted {
            if self.links.iter().any(|(known, _)| known.client == link.client) {
                continue;
            }
            match self.open(&link) {
                Ok(mirror) => self.links.push((link, mirror)),
                Err(why) => {
                    if self.failures.due(&why).is_some() {
                        crate::error!("no write-back from {}: {why}; it is tried again", link.client);
                    }
                }
            }
        }
        self.publisher.set_compare(!self.links.is_empty());
    }

    fn open(&self, link: &Link) -> Result<Mirror, String> {
        let segment = Segment::open(&self.path, Access::ReadWrite).map_err(|error| error.to_string())?;
        let writer = Writer::new(segment).map_err(|error| error.to_string())?;
        let mut mirror = Mirror::new(link.source, writer, Arc::clone(&link.stats));
        mirror.take_back(Arc::clone(&self.origins), link.origin);
        Ok(mirror)
    }
}

impl Worker for Owned {
    fn do_work(&mut self) -> Result<usize, Ended> {
        self.take_orders();
        let mut work = self.publisher.do_work()?;
        let now_ns = clock::monotonic_ns();
        if now_ns - self.last_turn_ns > SETTLED_NS {
            // We were stopped ourselves. What was written here meanwhile has just been published; what clients sent
            // without knowing it waits for us, and is old.
            self.settled = [self.publisher.seq(); 2];
        }
        self.last_turn_ns = now_ns;
        if now_ns >= self.next_settled_ns {
            self.next_settled_ns = now_ns + SETTLED_NS;
            self.settled = [self.publisher.seq(), self.settled[0]];
        }
        for (_, mirror) in &mut self.links {
            mirror.housekeeping(clock::monotonic_ns())?;
            mirror.refuse_before(self.settled[1]);
            // Bounded, so that one client's flood does not keep the others waiting.
            for _ in 0..64 {
                if !mirror.receive_one(|_| false)? {
                    break;
                }
                // What was written is published before the next frame is written over it.
                work += 1 + self.publisher.do_work()?;
            }
        }
        if !self.links.is_empty() && self.quiet.is_due(work) && !self.publisher.has_news() {
            self.publisher.send_if_changed()?;
        }
        Ok(work)
    }

    fn peek(&self) -> bool {
        !self.links.is_empty() || self.publisher.peek()
    }

    fn is_under_way(&self, now_ns: i64) -> bool {
        self.publisher.is_under_way(now_ns)
            || self.links.iter().any(|(_, mirror)| mirror.is_under_way(now_ns))
    }

    fn park(&mut self, time: Duration) {
        let time_both = time.min(self.quiet.park_max());
        match &self.links[..] {
            [] => self.publisher.park(time),
            [(_, mirror)] => mirror.wait(time_both),
            _ => clock::sleep(time_both),
        }
    }
}
