//! Waiting for a frame of a quiet segment. Writers that keep to the C library's way post a semaphore after each: who
//! sleeps on that costs nothing and is there within a wake-up. Not all do; where one is found not to, `dao-watch` takes
//! over: one thread that looks at the counters of all such segments of the daemon, and at their publishers' sockets,
//! and wakes who has something to do.
//! A look is a few loads, a wake-up is thousands of times that: fifty sleeping publishers that looked for themselves
//! within a millisecond would take a third of a core.

use crate::os::poll::Many;
use crate::os::scheduling;
use crate::os::threads::{Handle, Stop, lock, spawn};
use crate::shm::{Access, Bell, Segment};
use std::os::fd::RawFd;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, Thread};
use std::time::Duration;

/// Between two looks at each segment: with the wake-up, a frame is seen within a millisecond.
const LOOK_EVERY: Duration = Duration::from_micros(900);
/// Between two looks at the sockets, in looks at the segments: new subscribers are noticed within about 5 ms,
/// and by who sleeps on a semaphore within [`BELL_PARK`].
const LOOKS_A_POLL: u32 = 5;
/// Who sleeps on the semaphore looks at its sockets, and whether there is a frame that it was not told of, so often.
const BELL_PARK: Duration = Duration::from_millis(100);
/// Waits that end sooner are not worth asking for a watch.
pub const WATCH_FROM: Duration = Duration::from_millis(1);

/// One segment and who waits for it.
struct Entry {
    number: u64,
    /// A mapping of our own: a mapping is used by one thread at a time.
    segment: Segment,
    /// The counter that its publisher has seen.
    seen: u64,
    /// Its publisher, while it sleeps.
    sleeper: Option<Thread>,
    /// That one's sockets. They stay open while it sleeps: before it goes on it must have the list.
    descriptors: Vec<RawFd>,
}

impl Entry {
    fn moved(&self) -> bool {
        self.sleeper.is_some() && (self.segment.newest().1 != self.seen || self.segment.lost())
    }
}

#[derive(Default)]
struct List {
    entries: Vec<Entry>,
    next_number: u64,
    sleepers: usize,
}

impl List {
    fn wake(&mut self, place: usize) {
        if let Some(sleeper) = self.entries.get_mut(place).and_then(|entry| entry.sleeper.take()) {
            sleeper.unpark();
            self.sleepers -= 1;
        }
    }
}

#[derive(Default)]
struct Inner {
    list: Mutex<List>,
    somebody_sleeps: Condvar,
}

impl Inner {
    fn list(&self) -> MutexGuard<'_, List> {
        lock(&self.list)
    }

    fn run(&self, stop: &Stop) {
        scheduling::prefer_latency();
        let (mut looks, mut sockets) = (0u32, Many::default());
        while !stop.is_set() {
            let mut list = self.list();
            if list.sleepers == 0 {
                let waited = self.somebody_sleeps.wait_timeout(list, Duration::from_secs(1));
                drop(waited);
                continue;
            }
            for place in 0..list.entries.len() {
                let moved = list.entries.get(place).is_some_and(Entry::moved);
                if moved {
                    list.wake(place);
                }
            }
            looks = looks.wrapping_add(1);
            if looks.is_multiple_of(LOOKS_A_POLL) {
                sockets.clear();
                for (place, entry) in
                    list.entries.iter().enumerate().filter(|(_, entry)| entry.sleeper.is_some())
                {
                    entry.descriptors.iter().for_each(|descriptor| sockets.push(place, *descriptor));
                }
                sockets.ready().for_each(|place| list.wake(place));
            }
            drop(list);
            thread::sleep(LOOK_EVERY);
        }
    }
}

/// The daemon's watcher. Its thread begins with the first segment.
#[derive(Default)]
pub struct Watcher {
    inner: Arc<Inner>,
    thread: Mutex<Option<Handle>>,
}

impl Watcher {
    /// Puts the segment at `path` on the list, for as long as the answer lives. `None`: it cannot be watched, and its
    /// publisher has to look for itself.
    pub fn watch(self: &Arc<Self>, path: &Path) -> Option<Watch> {
        let segment = Segment::open(path, Access::Read).ok()?;
        let mut thread = lock(&self.thread);
        if thread.is_none() {
            let inner = Arc::clone(&self.inner);
            *thread = Some(spawn("dao-watch", Stop::new(), move |stop| inner.run(stop), |_| ()).ok()?);
        }
        let mut list = self.inner.list();
        list.next_number += 1;
        let number = list.next_number;
        list.entries.push(Entry { number, segment, seen: 0, sleeper: None, descriptors: Vec::new() });
        let bell = Bell::open(path).map(|bell| Ring { bell, rings: true, rang: false, seen: 0 });
        Some(Watch { watcher: Arc::clone(self), number, ring: bell })
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let thread = self.thread.get_mut().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(thread) = thread.take() {
            thread.stop();
            self.inner.somebody_sleeps.notify_all();
        }
    }
}

/// The semaphore that the segment's writer posts, if it does.
struct Ring {
    bell: Bell,
    /// Taken for true until a frame came without.
    rings: bool,
    /// A post was taken that may be of a frame after `seen`.
    rang: bool,
    /// The counter at the last wait.
    seen: u64,
}

impl Ring {
    /// Can the next frame be waited for? What is left of earlier posts is taken away; so whoever asks has to look for
    /// a frame once more before it waits.
    fn is_quiet(&mut self, seen: u64) -> bool {
        let rang = self.bell.take() | std::mem::take(&mut self.rang);
        if std::mem::replace(&mut self.seen, seen) != seen {
            self.rings = rang;
        }
        self.rings
    }

    fn wait(&mut self, time: Duration) {
        self.rang = self.bell.wait(time.min(BELL_PARK));
    }
}

/// A place on the list.
pub struct Watch {
    watcher: Arc<Watcher>,
    number: u64,
    ring: Option<Ring>,
}

impl Watch {
    /// Sleeps until the segment's counter is another than `seen`, as `has_news` tells as well, or one of the sockets can be
    /// read, at most this long. It may end early.
    pub fn wait(
        &mut self,
        seen: u64,
        has_news: impl Fn() -> bool,
        sockets: impl Iterator<Item = RawFd>,
        time: Duration,
    ) {
        if let Some(ring) = &mut self.ring
            && ring.is_quiet(seen)
        {
            if has_news() {
                ring.rang = true; // its post may be the one that was just taken away
            } else {
                ring.wait(time);
            }
            return;
        }
        self.change(|entry| {
            (entry.seen, entry.sleeper) = (seen, Some(thread::current()));
            entry.descriptors.clear();
            entry.descriptors.extend(sockets);
        });
        thread::park_timeout(time);
        self.change(|entry| entry.sleeper = None);
    }

    fn change(&self, change: impl FnOnce(&mut Entry)) {
        let inner = &self.watcher.inner;
        let mut list = inner.list();
        let List { entries, sleepers, .. } = &mut *list;
        let Some(entry) = entries.iter_mut().find(|entry| entry.number == self.number) else { return };
        let slept = usize::from(entry.sleeper.is_some());
        change(entry);
        *sleepers = *sleepers - slept + usize::from(entry.sleeper.is_some());
        if *sleepers == 1 && slept == 0 {
            inner.somebody_sleeps.notify_one();
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.change(|entry| entry.sleeper = None);
        self.watcher.inner.list().entries.retain(|entry| entry.number != self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::{DType, Shape};
    use crate::shm::{self, Layout, SegmentSpec, Writer};
    use std::io::Write as _;
    use std::iter::empty as none;
    use std::os::fd::AsRawFd as _;
    use std::time::Instant;

    /// A segment of four bytes of its own; its semaphores too.
    fn segment(name: &str) -> (std::path::PathBuf, Writer) {
        let name = format!("watch{}{name}", std::process::id());
        let path = crate::naming::segment_path(&std::env::temp_dir(), &name);
        let spec = SegmentSpec {
            shape: Shape::new(&[4]).unwrap(),
            dtype: DType::U8,
            layout: Layout::Fifo,
            depth: 1,
            keywords: 0,
        };
        let writer = Writer::new(shm::create(&path, &spec, &[]).unwrap()).unwrap();
        (path, writer)
    }

    fn silence(path: &Path) {
        let base = crate::naming::semaphore_base(path).unwrap();
        std::fs::remove_file(format!("/dev/shm/sem.{base}_semlog")).unwrap();
    }

    /// Waits for the frame that `write` writes in a moment.
    fn wait_for(watch: &mut Watch, path: &Path, seen: u64, write: impl FnOnce() + Send) {
        let newest = Segment::open(path, Access::Read).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(Duration::from_millis(20));
                write();
            });
            let begun = Instant::now();
            while newest.newest().1 == seen {
                watch.wait(seen, || newest.newest().1 != seen, none(), Duration::from_secs(60));
            }
            assert!(begun.elapsed() < Duration::from_secs(30), "the frame woke it");
        });
    }

    #[test]
    fn a_sleeper_is_woken_by_a_frame_and_by_nothing_else() {
        let (path, mut writer) = segment("a");
        silence(&path);
        let watcher = Arc::new(Watcher::default());
        let mut watch = watcher.watch(&path).unwrap();
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(20) {
            watch.wait(0, || false, none(), Duration::from_millis(20)); // nothing: the whole time
        }
        wait_for(&mut watch, &path, 0, || _ = writer.write(&[1; 4]).unwrap());
        watch.wait(0, || true, none(), Duration::from_secs(60)); // it has come already: at once
        let (mut there, here) = std::os::unix::net::UnixStream::pair().unwrap();
        there.write_all(b"x").unwrap();
        let begun = Instant::now();
        watch.wait(1, || false, std::iter::once(here.as_raw_fd()), Duration::from_secs(60)); // a socket: at once
        assert!(begun.elapsed() < Duration::from_secs(30), "nobody slept a minute");
        shm::remove(&path).unwrap();
        assert!(watcher.watch(&path).is_none(), "a segment that is not there");
    }

    #[test]
    fn a_frame_whose_writer_posts_is_waited_for_without_looking() {
        let (path, mut writer) = segment("b");
        let watcher = Arc::new(Watcher::default());
        let mut watch = watcher.watch(&path).unwrap();
        for seen in 0..3 {
            wait_for(&mut watch, &path, seen, || _ = writer.write(&[1; 4]).unwrap());
            assert!(watch.ring.as_ref().unwrap().rings);
        }
        writer.write(&[2; 4]).unwrap(); // its post is there before anybody waits for it
        watch.wait(3, || true, none(), Duration::from_secs(60)); // at once
        watch.wait(4, || false, none(), Duration::from_millis(1));
        assert!(watch.ring.as_ref().unwrap().rings);
        shm::remove(&path).unwrap();
    }

    #[test]
    fn a_writer_that_does_not_post_is_found_out_and_watched_from_then_on() {
        let (path, writer) = segment("c");
        drop(writer);
        let watcher = Arc::new(Watcher::default());
        let mut watch = watcher.watch(&path).unwrap();
        silence(&path); // after it was opened: this writer finds none
        let mut writer = Writer::new(Segment::open(&path, Access::ReadWrite).unwrap()).unwrap();
        wait_for(&mut watch, &path, 0, || _ = writer.write(&[1; 4]).unwrap());
        watch.wait(1, || false, none(), Duration::from_millis(1));
        assert!(!watch.ring.as_ref().unwrap().rings);
        wait_for(&mut watch, &path, 1, || _ = writer.write(&[1; 4]).unwrap());
        shm::remove(&path).unwrap();
    }
}
