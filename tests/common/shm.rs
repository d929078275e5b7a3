//! What the segment tests share: a directory of their own, semaphores that go when the test does, goldens.
#![allow(dead_code, clippy::unwrap_used)] // each test uses its part; tests may panic

use daoserver::naming;
use daoserver::shm::{self, Layout, SegmentSpec};
use daoserver::{dtype::DType, dtype::Shape};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A directory that goes with its semaphores when it is dropped. Names are unique on the host, since
/// semaphores are the host's.
pub struct Place {
    pub dir: PathBuf,
    tag: String,
}

impl Place {
    pub fn new() -> Place {
        static SERIAL: AtomicU64 = AtomicU64::new(0);
        let tag = format!("dstest{}x{}", std::process::id(), SERIAL.fetch_add(1, Ordering::Relaxed));
        let dir = std::env::temp_dir().join(&tag);
        std::fs::create_dir_all(&dir).unwrap();
        Place { dir, tag }
    }

    /// The path of a segment of this test.
    pub fn path(&self, name: &str) -> PathBuf {
        naming::segment_path(&self.dir, &format!("{}{name}", self.tag))
    }

    /// The path of a mirror of this test, by its name a mirror.
    pub fn mirror_path(&self, name: &str) -> PathBuf {
        naming::segment_path(&self.dir, &format!("{}{}{name}", naming::MIRROR_PREFIX, self.tag))
    }

    pub fn create(&self, name: &str, shape: &str, dtype: DType, depth: u32) -> (PathBuf, shm::Segment) {
        let path = self.path(name);
        let segment = shm::create(&path, &spec(shape, dtype, depth), &[]).unwrap();
        (path, segment)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
        for entry in Path::new("/dev/shm").read_dir().into_iter().flatten().flatten() {
            let name = entry.file_name();
            // The digit after the tag would be another test's.
            let base = name.to_str().and_then(|name| name.strip_prefix("sem."));
            let base = base.map(|base| base.strip_prefix(naming::MIRROR_PREFIX).unwrap_or(base));
            let rest = base.and_then(|base| base.strip_prefix(&self.tag));
            if rest.is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit())) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
}

pub fn spec(shape: &str, dtype: DType, depth: u32) -> SegmentSpec {
    SegmentSpec { shape: Shape::parse(shape).unwrap(), dtype, layout: Layout::Fifo, depth, keywords: 0 }
}

/// Waits for something that must come true.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

pub fn golden_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/shm")
}

/// Every entry of both manifests.
pub fn manifest() -> Vec<serde_json::Value> {
    let mut all = Vec::new();
    for generation in ["classic", "fifo"] {
        let text = std::fs::read_to_string(golden_dir().join(format!("manifest-{generation}.json"))).unwrap();
        let entries: serde_json::Value = serde_json::from_str(&text).unwrap();
        all.extend(entries.as_array().unwrap().iter().cloned());
    }
    assert!(all.len() > 30);
    all
}
