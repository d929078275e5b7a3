//! Files that the real C library wrote, read and written again.

#![allow(clippy::unwrap_used)] // helpers of tests, which may panic

#[path = "common/shm.rs"]
mod common;

use common::{Place, golden_dir, manifest};
use daoserver::dtype::{DType, Shape};
use daoserver::shm::{
    self, Access, FrameMeta, Keyword, KeywordValue, Layout, Outcome, Reader, Segment, SegmentSpec, Writer,
};
use serde_json::Value;
use std::path::Path;

fn number(entry: &Value, key: &str) -> u64 {
    entry[key].as_u64().unwrap()
}

fn hex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

fn golden_spec(entry: &Value) -> SegmentSpec {
    let axes: Vec<u32> =
        entry["shape"].as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect();
    SegmentSpec {
        shape: Shape::new(&axes).unwrap(),
        dtype: DType::from_name(entry["dtype"].as_str().unwrap()).unwrap(),
        layout: Layout::parse(entry["layout"].as_str().unwrap()).unwrap(),
        depth: number(entry, "depth") as u32,
        keywords: entry["keywords"].as_array().unwrap().len() as u16,
    }
}

fn golden_keywords(entry: &Value) -> Vec<Keyword> {
    let keyword = |k: &Value| {
        let value = match k["type"].as_str().unwrap() {
            "L" => KeywordValue::Long(k["value"].as_i64().unwrap()),
            "D" => KeywordValue::Double(k["value"].as_f64().unwrap()),
            "S" => KeywordValue::Text(k["value"].as_str().unwrap().to_owned()),
            _ => KeywordValue::Unused,
        };
        let text = |key: &str| k[key].as_str().unwrap().to_owned();
        Keyword { name: text("name"), value, comment: text("comment") }
    };
    entry["keywords"].as_array().unwrap().iter().map(keyword).collect()
}

#[test]
fn every_golden_reads_as_its_manifest_says() {
    for entry in manifest() {
        let file = entry["file"].as_str().unwrap();
        let path = golden_dir().join(file);
        let facts = shm::probe(&path).unwrap();
        assert_eq!(facts.spec, golden_spec(&entry), "{file}");
        assert_eq!(facts.spec.layout.metadata_bytes() as u64, number(&entry, "metadata_bytes"));
        assert_eq!(facts.spec.file_bytes(), std::fs::metadata(&path).unwrap().len());
        assert_eq!(facts.counter, number(&entry, "cnt0"), "{file}");
        assert_eq!(facts.atime_ns as u64, number(&entry, "atime_ns"), "{file}");
        assert_eq!(u64::from(facts.semaphores), number(&entry, "sem"), "{file}");
        assert!(!facts.on_gpu && facts.created_s > 1e9);

        let segment = Segment::open(&path, Access::Read).unwrap();
        assert_eq!(
            segment.newest(),
            (number(&entry, "last_written") as u32, number(&entry, "cnt0")),
            "{file}"
        );
        assert_eq!(segment.keywords(), golden_keywords(&entry), "{file}");
        let mut frame = vec![0; facts.spec.frame_bytes()];
        let mut reader = Reader::new(segment);
        assert!(reader.has_news());
        let Outcome::Frame { meta, lapped: 0, restarted: false } = reader.read_next(&mut frame) else {
            panic!("{file} gave no frame");
        };
        assert_eq!(frame, hex(entry["newest_frame_hex"].as_str().unwrap()), "{file}");
        assert_eq!((meta.cnt0, meta.atime_ns), (facts.counter, facts.atime_ns));
        assert!(reader.still_whole() && !reader.has_news());
        assert_eq!(reader.read_next(&mut frame), Outcome::Nothing);
    }
}

/// What differs by design, as zeros: the times, and size[1] of a one-axis segment, which the library leaves 0
/// and then refuses.
fn masked(bytes: &[u8], spec: &SegmentSpec) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for slot in 0..spec.depth as usize {
        let block = &mut bytes[slot * spec.layout.metadata_bytes()..];
        for range in [112..128, 128..144] {
            block[range].fill(0);
        }
        if spec.shape.naxis() == 1 {
            block[88..92].fill(0);
        }
    }
    bytes
}

fn frame_of_slot(bytes: &[u8], spec: &SegmentSpec, slot: usize) -> Vec<u8> {
    let frame = spec.frame_bytes();
    let start = spec.depth as usize * spec.layout.metadata_bytes() + slot * frame;
    bytes[start..start + frame].to_vec()
}

#[test]
fn what_we_create_and_write_is_what_the_library_wrote() {
    for entry in manifest() {
        let file = entry["file"].as_str().unwrap();
        let golden = std::fs::read(golden_dir().join(file)).unwrap();
        let spec = golden_spec(&entry);
        let place = Place::new();
        // The name field is the path: it must be as long as the library's, and is compared on its own.
        let path = place.path("golden");
        let segment = shm::create(&path, &spec, &golden_keywords(&entry)).unwrap();
        let mut writer = Writer::new(segment).unwrap();
        let depth = u64::from(spec.depth);
        for counter in 1..=number(&entry, "cnt0") {
            // Slots that were overwritten since hold later frames in the golden: so does ours in the end.
            let frame = frame_of_slot(&golden, &spec, ((counter - 1) % depth) as usize);
            let meta = FrameMeta { cnt0: 7, cnt1: 0, cnt2: 0, atime_ns: number(&entry, "atime_ns") as i64 };
            assert_eq!(writer.write_mirrored(&frame, &meta).unwrap(), counter);
        }
        let mut ours = std::fs::read(&path).unwrap();
        for slot in 0..spec.depth as usize {
            let name = &mut ours[slot * spec.layout.metadata_bytes()..][..80];
            let text = path.to_str().unwrap().as_bytes();
            let kept = text.len().min(79);
            assert_eq!(name[..kept], text[..kept]);
            assert!(name[kept..].iter().all(|&byte| byte == 0));
            name.copy_from_slice(&golden[slot * spec.layout.metadata_bytes()..][..80]);
        }
        assert_eq!(masked(&ours, &spec), masked(&golden, &spec), "{file}");
        if spec.shape.naxis() == 1 {
            assert_eq!((golden[88], ours[88]), (0, 1), "{file}");
        }
    }
}

#[test]
fn a_segment_of_ours_has_ten_semaphores_and_private_permissions() {
    use std::os::unix::fs::PermissionsExt;
    let place = Place::new();
    let (path, segment) = place.create("sems", "4x4", DType::F32, 1);
    let base = daoserver::naming::semaphore_base(&path).unwrap();
    assert_eq!(shm::semaphore_count(&base), 10);
    assert!(Path::new(&format!("/dev/shm/sem.{base}_semlog")).exists());
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    drop(segment);
    shm::remove(&path).unwrap();
    assert_eq!(shm::semaphore_count(&base), 0);
    assert!(!path.exists() && !Path::new(&format!("/dev/shm/sem.{base}_semlog")).exists());
}

#[test]
fn scanning_the_goldens_finds_all_of_them() {
    let entries = shm::scan(&golden_dir()).unwrap();
    assert_eq!(entries.len(), manifest().len());
    assert!(entries.iter().all(|entry| entry.facts.is_ok() && entry.name.is_ok()));
    assert!(entries.is_sorted_by_key(|entry| &entry.file_name));
    assert_eq!(shm::newest_layout(&golden_dir()), Layout::Classic);
}
