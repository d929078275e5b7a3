//! A writer at full speed against a reader: no torn frame may be taken for whole.
//!
//! The writer is not ours but the C library's sequence of stores, with no care for whoever reads.
#![allow(unsafe_code)] // the foreign writer's stores
#![allow(clippy::unwrap_used, clippy::print_stdout)] // helpers of tests

#[path = "common/shm.rs"]
mod common;

use common::Place;
use daoserver::dtype::DType;
use daoserver::shm::{Access, Outcome, Reader, Segment};
use memmap2::MmapRaw;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const METADATA_BYTES: usize = 4304;

/// The library's writer: metadata through volatile stores, pixels through a plain copy, no fences.
struct ForeignWriter {
    map: MmapRaw,
    frame: Vec<u64>,
    depth: usize,
}

impl ForeignWriter {
    fn open(path: &Path, frame_bytes: usize, depth: usize) -> ForeignWriter {
        let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
        let map = MmapRaw::map_raw(&file).unwrap();
        assert_eq!(map.len(), depth * (METADATA_BYTES + frame_bytes));
        ForeignWriter { map, frame: vec![0; frame_bytes / 8], depth }
    }

    fn at<T>(&self, offset: usize) -> *mut T {
        assert!(offset + size_of::<T>() <= self.map.len());
        self.map.as_mut_ptr().wrapping_add(offset).cast()
    }

    fn write(&mut self, value: u64) {
        self.frame.fill(value);
        let bytes = self.frame.len() * 8;
        // SAFETY: every offset lies in the mapping, and is aligned as the format is.
        unsafe {
            let last = self.at::<u32>(4300).read_volatile() as usize;
            let slot = (last + 1) % self.depth;
            let block = slot * METADATA_BYTES;
            let pixels = self.at::<u8>(self.depth * METADATA_BYTES + slot * bytes);
            self.at::<u8>(block + 176).write_volatile(1);
            std::ptr::copy_nonoverlapping(self.frame.as_ptr().cast(), pixels, bytes);
            self.at::<u8>(block + 176).write_volatile(0);
            self.at::<u32>(4300).write_volatile(slot as u32);
            let now = daoserver::os::clock::realtime_ns();
            self.at::<i64>(block + 136).write_volatile(now);
            let previous = self.at::<u64>(last * METADATA_BYTES + 152).read_volatile();
            self.at::<u64>(block + 152).write_volatile(previous + 1);
        }
    }
}

/// Runs `frames` frames of so many bytes through a ring, and checks every one that the reader takes.
fn torture(frame_bytes: usize, depth: u32, frames: u64) {
    let place = Place::new();
    let shape = format!("{}x1", frame_bytes / 8);
    let (path, segment) = place.create("torture", &shape, DType::U64, depth);
    drop(segment);
    let done = AtomicBool::new(false);
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut reader = Reader::new(Segment::open(&path, Access::Read).unwrap());
    let (mut accepted, mut busy, mut lapped_total, mut early) = (0u64, 0u64, 0u64, 0u64);
    let (mut first, mut last) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut writer = ForeignWriter::open(&path, frame_bytes, depth as usize);
            let mut random = 88172645463325252u64;
            for value in 1..=frames {
                writer.write(value);
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                // Now and then a pause, so that a frame can be had of a single slot at all.
                if random.is_multiple_of(64) {
                    std::thread::sleep(Duration::from_micros(random >> 32 & 127));
                }
                if Instant::now() > deadline {
                    break;
                }
            }
            done.store(true, Ordering::Release);
        });
        let mut buffer = vec![0u8; frame_bytes];
        loop {
            let finished = done.load(Ordering::Acquire);
            match reader.read_next(&mut buffer) {
                Outcome::Frame { meta, lapped, restarted } => {
                    let value = u64::from_le_bytes(buffer[..8].try_into().unwrap());
                    let torn = buffer.chunks(8).position(|word| word != value.to_le_bytes());
                    assert_eq!(torn, None, "a torn frame was taken: {} begins with {value}", meta.cnt0);
                    // Its pixels, or those that stand there already while the counter is about to move.
                    assert!(value == meta.cnt0 || value == meta.cnt0 + u64::from(depth), "{value} {meta:?}");
                    early += u64::from(value != meta.cnt0);
                    assert!(meta.cnt0 > last, "{} after {last}", meta.cnt0);
                    assert!(!restarted);
                    if accepted == 0 {
                        first = meta.cnt0;
                    }
                    (accepted, last, lapped_total) = (accepted + 1, meta.cnt0, lapped_total + lapped);
                }
                Outcome::Nothing if finished => break,
                Outcome::Nothing => std::hint::spin_loop(),
                Outcome::Busy => busy += 1,
                other => panic!("{other:?}"),
            }
        }
    });
    println!("{frame_bytes} B, ring of {depth}: {accepted} of {last} frames, {busy} busy, {early} early");
    assert!(accepted > 10, "only {accepted} frames of {last} could be had");
    assert_eq!(accepted + lapped_total, last - first + 1, "frames that went missing uncounted");
}

#[test]
fn a_fast_writer_of_small_frames_in_one_slot() {
    torture(4096, 1, 300_000);
}

#[test]
fn a_fast_writer_of_64_kb_frames_in_one_slot() {
    torture(65536, 1, 30_000);
}

#[test]
fn a_fast_writer_of_small_frames_in_a_ring() {
    torture(4096, 4, 300_000);
}

#[test]
fn a_fast_writer_of_64_kb_frames_in_a_ring() {
    torture(65536, 4, 30_000);
}
