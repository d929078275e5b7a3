//! What other people do to segment files: garbage, truncation, another shape in place, another file of the
//! name.
#![allow(clippy::unwrap_used, unsafe_code)] // helpers of tests; a foreign mapping that must fault

#[path = "common/shm.rs"]
mod common;

use common::{Place, golden_dir, spec, wait_until};
use daoserver::dtype::DType;
use daoserver::shm::{
    self, Access, Advice, FrameMeta, Layout, OpenError, Outcome, Reader, Segment, WriteError, Writer,
};
use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;

fn refused(path: &Path) -> OpenError {
    let probed = shm::probe(path).unwrap_err();
    let opened = Segment::open(path, Access::Read).err().unwrap();
    assert_eq!(probed, opened);
    assert!(!probed.to_string().contains('\n'));
    probed
}

fn reopened_for_writing(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

#[test]
fn files_that_are_no_segments_say_why() {
    let place = Place::new();
    let at = |name: &str| place.path(name);

    assert_eq!(refused(&at("absent")), OpenError::NotThere);

    fs::write(at("empty"), b"").unwrap();
    assert_eq!(refused(&at("empty")), OpenError::BeingCreated);
    fs::write(at("zeros"), vec![0; 8192]).unwrap();
    assert_eq!(refused(&at("zeros")).advice(), Advice::Wait);

    fs::write(at("short"), b"hello").unwrap();
    assert!(matches!(refused(&at("short")), OpenError::TooShort { bytes: 5, .. }));
    fs::write(at("garbage"), vec![0xa5; 9000]).unwrap();
    assert!(matches!(refused(&at("garbage")), OpenError::BadField { field: "naxis", .. }));

    fs::create_dir(at("directory")).unwrap();
    assert!(matches!(refused(&at("directory")), OpenError::NotAFile { .. }));
    std::os::unix::fs::symlink(golden_dir().join("fifo-ring_4.im.shm"), at("link")).unwrap();
    assert!(matches!(refused(&at("link")), OpenError::NotAFile { what: "a symbolic link" }));
    let fifo = CString::new(at("fifo").as_os_str().as_bytes()).unwrap();
    // SAFETY: a valid string.
    assert_eq!(unsafe { libc::mkfifo(fifo.as_ptr(), 0o600) }, 0);
    assert!(matches!(refused(&at("fifo")), OpenError::NotAFile { what: "a FIFO" }));
    assert!(matches!(refused(Path::new("/dev/null")), OpenError::NotAFile { .. }));

    fs::copy(golden_dir().join("fifo-float32_6x4.im.shm"), at("truncated")).unwrap();
    reopened_for_writing(&at("truncated")).set_len(250).unwrap();
    assert!(matches!(refused(&at("truncated")), OpenError::TooShort { bytes: 250, .. }));
    reopened_for_writing(&at("truncated")).set_len(4401).unwrap();
    assert!(matches!(refused(&at("truncated")), OpenError::BadField { field: "file size", .. }));

    // A scan lists them all, and is stopped by none.
    let entries = shm::scan(&place.dir).unwrap();
    assert_eq!(entries.len(), 8);
    assert!(entries.iter().all(|entry| entry.facts.is_err() && entry.name.is_ok()));
    for name in ["directory", "link", "fifo", "garbage"] {
        assert!(shm::remove(&at(name)).is_err(), "{name} was removed");
        assert!(at(name).symlink_metadata().is_ok());
    }
}

#[test]
fn an_unreadable_file_is_reported_once() {
    let place = Place::new();
    let (path, _segment) = place.create("secret", "4x4", DType::U8, 1);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
    // Root reads everything.
    match shm::probe(&path) {
        Ok(_) => {}
        Err(error) => assert_eq!((error.advice(), error), (Advice::ReportOnce, permission_denied())),
    }
}

fn permission_denied() -> OpenError {
    OpenError::Io { what: "open", errno: libc::EACCES }
}

#[test]
fn impossible_fields_are_named() {
    let place = Place::new();
    let golden = fs::read(golden_dir().join("fifo-float32_6x4.im.shm")).unwrap();
    let cases: [(usize, &[u8], &str); 6] = [
        (80, &[4], "naxis"),
        (88, &[0], "size"),
        (104, &[13], "atype"),
        (96, &[25], "nelement"),
        (4296, &[2], "file size"),
        (4300, &[1], "file size"),
    ];
    for (offset, bytes, field) in cases {
        let mut changed = golden.clone();
        changed[offset..offset + bytes.len()].copy_from_slice(bytes);
        fs::write(place.path("bad"), &changed).unwrap();
        match shm::probe(&place.path("bad")) {
            Err(OpenError::BadField { field: named, .. }) => assert_eq!(named, field),
            // A depth that does not fit leaves a file that some later generation may have.
            Ok(facts) => assert_eq!((facts.spec.layout, field), (Layout::Unknown(4304), "file size")),
            other => panic!("{field}: {other:?}"),
        }
    }
    let mut huge = golden.clone();
    huge[178..180].copy_from_slice(&u16::MAX.to_le_bytes());
    fs::write(place.path("bad"), &huge).unwrap();
    assert!(matches!(refused(&place.path("bad")), OpenError::TooLarge { what: "keywords", .. }));
    huge[178..180].fill(0);
    huge[84..92].copy_from_slice(&[0, 0, 1, 0, 0, 0, 1, 0]);
    fs::write(place.path("bad"), &huge).unwrap();
    assert!(matches!(refused(&place.path("bad")), OpenError::BadField { field: "size", .. }));
}

#[test]
fn a_half_created_segment_is_waited_for() {
    let place = Place::new();
    for (name, depth_of_file) in [("fifo-ring_4.im.shm", 4), ("fifo-float32_6x4.im.shm", 1)] {
        let mut bytes = fs::read(golden_dir().join(name)).unwrap();
        // The library writes the depth last.
        bytes[4296..4304].fill(0);
        fs::write(place.path("half"), &bytes).unwrap();
        assert_eq!(refused(&place.path("half")), OpenError::BeingCreated, "{depth_of_file}");
        // And the elements before that.
        bytes[96..104].fill(0);
        bytes[152..160].fill(0);
        fs::write(place.path("half"), &bytes).unwrap();
        assert_eq!(refused(&place.path("half")), OpenError::BeingCreated, "{depth_of_file}");
    }
}

/// A segment of another generation, made of the golden one's common part.
fn other_generation(metadata: usize, depth_offset: Option<usize>, depth: u32, last: u32) -> Vec<u8> {
    let golden = fs::read(golden_dir().join("fifo-float32_6x4.im.shm")).unwrap();
    let mut bytes = vec![0; (metadata + 96) * depth as usize];
    for slot in 0..depth as usize {
        bytes[slot * metadata..slot * metadata + 200].copy_from_slice(&golden[..200]);
        let pixels = metadata * depth as usize + slot * 96;
        bytes[pixels..pixels + 96].fill(slot as u8 + 1);
    }
    if let Some(offset) = depth_offset {
        bytes[offset..offset + 4].copy_from_slice(&depth.to_le_bytes());
        bytes[offset + 4..offset + 8].copy_from_slice(&last.to_le_bytes());
    }
    bytes
}

#[test]
fn every_generation_is_told_by_its_size() {
    let place = Place::new();
    let path = place.path("generation");
    let cases = [
        (4296, None, 1, Layout::Classic),
        (4304, Some(4296), 5, Layout::Fifo),
        (16400, Some(16392), 1, Layout::Wide),
        (16400, Some(16392), 3, Layout::Wide),
        (16448, Some(16392), 2, Layout::Gpu),
        (5344, None, 1, Layout::Registry),
        (5000, None, 1, Layout::Unknown(5000)),
        (200, None, 1, Layout::Unknown(200)),
    ];
    for (metadata, depth_offset, depth, layout) in cases {
        fs::write(&path, other_generation(metadata, depth_offset, depth, depth - 1)).unwrap();
        let facts = shm::probe(&path).unwrap();
        assert_eq!((facts.spec.layout, facts.spec.depth), (layout, depth));
        assert_eq!(Layout::parse(&layout.to_string()), Some(layout));
        let mut reader = Reader::new(Segment::open(&path, Access::Read).unwrap());
        let mut frame = vec![0; 96];
        assert!(matches!(reader.read_next(&mut frame), Outcome::Frame { .. }), "{layout}");
        assert_eq!(frame, vec![depth as u8; 96], "{layout}");
    }
    fs::write(&path, other_generation(4304 + 4, None, 1, 0)).unwrap();
    assert!(shm::probe(&path).is_err(), "metadata is a multiple of 8");
}

#[test]
fn pixels_on_a_gpu_are_listed_and_refused() {
    let place = Place::new();
    let mut bytes = other_generation(16448, Some(16392), 1, 0);
    bytes[16400] = 1;
    fs::write(place.path("gpu"), &bytes).unwrap();
    assert!(shm::probe(&place.path("gpu")).unwrap().on_gpu);
    assert_eq!(Segment::open(&place.path("gpu"), Access::Read).err(), Some(OpenError::OnGpu));
}

#[test]
fn a_file_truncated_under_a_reader_is_lost_not_fatal() {
    for depth in [1, 4] {
        for length in [0, 100, 4096, 40_000] {
            let place = Place::new();
            let (path, segment) = place.create("shrinking", "64x64", DType::F64, depth);
            let mut writer = Writer::new(segment).unwrap();
            let mut frame = vec![1u8; 32768];
            for _ in 0..depth {
                writer.write(&frame).unwrap();
            }
            let mut reader = Reader::new(Segment::open(&path, Access::Read).unwrap());
            assert!(matches!(reader.read_next(&mut frame), Outcome::Frame { .. }));
            if depth > 1 || length < 36_000 {
                reopened_for_writing(&path).set_len(length).unwrap();
                let outcome = reader.read_newest(&mut frame);
                assert!(matches!(outcome, Outcome::Lost | Outcome::Changed), "{outcome:?} at {length}");
                assert!(reader.has_news() && reader.segment().replaced());
                assert!(!matches!(reader.read_next(&mut frame), Outcome::Frame { .. }));
            }
            if length == 0 {
                assert_eq!(reader.read_next(&mut frame), Outcome::Lost);
                assert!(reader.segment().lost() && !reader.still_whole());
                assert_eq!(writer.write(&frame), Err(WriteError::Lost));
                assert!(writer.lost());
            }
        }
    }
}

#[test]
fn a_file_truncated_while_it_is_read_and_written_is_survived() {
    for round in 0..20 {
        let place = Place::new();
        let (path, segment) = place.create("shrinking", "512x128", DType::F64, 1);
        std::thread::scope(|scope| {
            let writer = scope.spawn(move || {
                let mut writer = Writer::new(segment).unwrap();
                let frame = vec![7u8; 512 * 128 * 8];
                loop {
                    match writer.write(&frame) {
                        Ok(_) => {}
                        Err(WriteError::Lost | WriteError::Changed) => break,
                        Err(other) => panic!("{other}"),
                    }
                }
            });
            let reading = Segment::open(&path, Access::Read).unwrap();
            let reader = scope.spawn(move || {
                let mut reader = Reader::new(reading);
                let mut frame = vec![0u8; 512 * 128 * 8];
                loop {
                    match reader.read_next(&mut frame) {
                        Outcome::Frame { .. } => assert!(frame.iter().all(|&byte| byte == 7)),
                        Outcome::Lost | Outcome::Changed => break,
                        _ => {}
                    }
                }
            });
            wait_until("a frame", || shm::probe(&path).is_ok_and(|facts| facts.counter > round));
            reopened_for_writing(&path).set_len(if round % 2 == 0 { 0 } else { 8192 }).unwrap();
            writer.join().unwrap();
            reader.join().unwrap();
        });
    }
}

#[test]
fn a_fault_elsewhere_still_kills() {
    const NAME: &str = "a_fault_elsewhere_still_kills";
    if std::env::var_os("DAOSERVER_TEST_FAULT").is_some() {
        let place = Place::new();
        let (_path, _segment) = place.create("ours", "4x4", DType::U8, 1);
        fs::write(place.dir.join("theirs"), [0; 4096]).unwrap();
        let file = reopened_for_writing(&place.dir.join("theirs"));
        let map = memmap2::MmapRaw::map_raw(&file).unwrap();
        file.set_len(0).unwrap();
        drop(place);
        // SAFETY: mapped; the fault is what is tested.
        unsafe { map.as_ptr().read_volatile() };
        return;
    }
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", NAME])
        .env("DAOSERVER_TEST_FAULT", "1")
        .output()
        .unwrap();
    assert_eq!(output.status.signal(), Some(libc::SIGBUS), "{output:?}");
}

#[test]
fn a_segment_created_again_in_place_with_another_shape_is_changed() {
    let place = Place::new();
    let (path, segment) = place.create("again", "64x64", DType::F32, 1);
    let mut writer = Writer::new(segment).unwrap();
    let mut frame = vec![1u8; 64 * 64 * 4];
    writer.write(&frame).unwrap();
    let mut reader = Reader::new(Segment::open(&path, Access::Read).unwrap());
    assert!(matches!(reader.read_next(&mut frame), Outcome::Frame { .. }));

    let (other, segment) = place.create("other", "32x128", DType::F32, 1);
    drop(segment);
    let bytes = fs::read(other).unwrap();
    // In place, as O_TRUNC on the same inode: fs::write does just that.
    fs::write(&path, bytes).unwrap();
    assert!(reader.has_news() && reader.segment().shape_changed());
    let outcome = reader.read_next(&mut frame);
    assert!(matches!(outcome, Outcome::Changed | Outcome::Lost), "{outcome:?}");
    assert!(matches!(writer.write(&frame), Err(WriteError::Changed | WriteError::Lost)));
    assert_eq!(Segment::open(&path, Access::Read).unwrap().spec().shape.axes(), &[32, 128]);
}

#[test]
fn a_segment_created_again_in_place_with_the_same_shape_restarts() {
    let place = Place::new();
    let (path, segment) = place.create("again", "8x8", DType::U8, 1);
    let empty = fs::read(&path).unwrap();
    let mut writer = Writer::new(segment).unwrap();
    let mut reader = Reader::new(Segment::open(&path, Access::Read).unwrap());
    let mut frame = vec![0u8; 64];
    for value in 1..=3 {
        writer.write(&[value; 64]).unwrap();
    }
    assert!(matches!(reader.read_next(&mut frame), Outcome::Frame { restarted: false, .. }));
    // The same bytes as at creation, over the old ones, on the same inode.
    reopened_for_writing(&path).write_all_at(&empty, 0).unwrap();
    assert!(reader.has_news());
    assert_eq!(reader.read_next(&mut frame), Outcome::Nothing);
    writer.write(&[9; 64]).unwrap();
    let outcome = reader.read_next(&mut frame);
    assert!(
        matches!(outcome, Outcome::Frame { meta: FrameMeta { cnt0: 1, .. }, restarted: true, .. }),
        "{outcome:?}"
    );
    assert_eq!(frame, [9; 64]);
}

#[test]
fn a_file_replaced_by_rename_leaves_the_old_mapping_alone() {
    let place = Place::new();
    let (path, segment) = place.create("replaced", "8x8", DType::U8, 1);
    let mut writer = Writer::new(segment).unwrap();
    writer.write(&[5; 64]).unwrap();
    let mut reader = Reader::new(Segment::open(&path, Access::Read).unwrap());
    assert!(!reader.segment().replaced());
    let newer = shm::create(&path, &spec("8x9", DType::U8, 1), &[]).unwrap();
    assert!(reader.segment().replaced() && !newer.replaced());
    let mut frame = vec![0u8; 64];
    assert!(matches!(reader.read_next(&mut frame), Outcome::Frame { .. }));
    assert_eq!(frame, [5; 64]);
    fs::remove_file(&path).unwrap();
    assert!(newer.replaced());
}

#[test]
fn a_writer_that_died_in_the_middle_is_busy_not_a_hang() {
    let place = Place::new();
    let (path, segment) = place.create("dead", "8x8", DType::U8, 1);
    let mut writer = Writer::new(segment).unwrap();
    writer.write(&[5; 64]).unwrap();
    reopened_for_writing(&path).write_all_at(&[1], 176).unwrap();
    let mut reader = Reader::new(Segment::open(&path, Access::Read).unwrap());
    let mut frame = vec![0u8; 64];
    assert_eq!(reader.read_next(&mut frame), Outcome::Busy);
    assert_eq!(reader.read_newest(&mut frame), Outcome::Busy);
    // The next writer mends it.
    writer.write(&[6; 64]).unwrap();
    assert!(matches!(reader.read_next(&mut frame), Outcome::Frame { meta: FrameMeta { cnt0: 2, .. }, .. }));
}

#[test]
fn a_ring_gives_every_frame_in_order_and_counts_what_it_cannot() {
    let place = Place::new();
    let (path, segment) = place.create("ring", "8x8", DType::U8, 4);
    let mut writer = Writer::new(segment).unwrap();
    let mut reader = Reader::new(Segment::open(&path, Access::Read).unwrap());
    let mut frame = vec![0u8; 64];
    assert_eq!(reader.read_next(&mut frame), Outcome::Nothing);
    assert!(matches!(reader.read_newest(&mut frame), Outcome::Frame { meta: FrameMeta { cnt0: 0, .. }, .. }));
    let mut next = |reader: &mut Reader| match reader.read_next(&mut frame) {
        Outcome::Frame { meta, lapped, restarted: false } => {
            assert_eq!(frame, [meta.cnt0 as u8; 64]);
            Some((meta.cnt0, lapped))
        }
        Outcome::Nothing => None,
        other => panic!("{other:?}"),
    };
    let write = |writer: &mut Writer, range: std::ops::RangeInclusive<u8>| {
        for value in range {
            writer.write(&[value; 64]).unwrap();
        }
    };
    write(&mut writer, 1..=1);
    assert_eq!(next(&mut reader), Some((1, 0)));
    write(&mut writer, 2..=5);
    for counter in 2..=5 {
        assert_eq!(next(&mut reader), Some((counter, 0)));
    }
    assert_eq!(next(&mut reader), None);
    write(&mut writer, 6..=12);
    assert_eq!(next(&mut reader), Some((9, 3)));
    for counter in 10..=12 {
        assert_eq!(next(&mut reader), Some((counter, 0)));
    }
    assert_eq!(next(&mut reader), None);
}

#[test]
fn a_mirror_counts_up_whatever_its_source_does() {
    let place = Place::new();
    let (path, segment) = place.create("mirror", "8x8", DType::U8, 1);
    let mut writer = Writer::new(segment).unwrap();
    for (expected, source) in [500, 501, 0, 1].into_iter().enumerate() {
        let meta = FrameMeta { cnt0: source, cnt1: 3, cnt2: source + 9, atime_ns: 77 };
        assert_eq!(writer.write_mirrored(&[1; 64], &meta), Ok(expected as u64 + 1));
        let facts = Segment::open(&path, Access::Read).unwrap().meta(0);
        assert_eq!(facts, FrameMeta { cnt0: expected as u64 + 1, ..meta });
    }
    assert!(matches!(writer.write(&[1; 63]), Err(WriteError::WrongSize { bytes: 63, expected: 64 })));
    let reading = Segment::open(&path, Access::Read).unwrap();
    assert!(matches!(Writer::new(reading), Err(WriteError::ReadOnly)));
}

#[test]
fn a_semaphore_file_cut_short_is_left_out_and_mended() {
    let place = Place::new();
    let (path, segment) = place.create("cut", "8x8", DType::U8, 1);
    let base = daoserver::naming::semaphore_base(&path).unwrap();
    fs::write(format!("/dev/shm/sem.{base}_sem03"), b"").unwrap();
    let mut writer = Writer::new(segment).unwrap();
    assert_eq!(writer.semaphores(), 3);
    writer.write(&[1; 64]).unwrap();
    let segment = shm::create(&path, &spec("8x8", DType::U8, 1), &[]).unwrap();
    assert_eq!(Writer::new(segment).unwrap().semaphores(), 10);
}

#[test]
fn an_eleventh_semaphore_is_cut_off() {
    let place = Place::new();
    let (path, segment) = place.create("row", "8x8", DType::U8, 1);
    drop(segment);
    let base = daoserver::naming::semaphore_base(&path).unwrap();
    for extra in ["sem10", "sem11"] {
        fs::copy(format!("/dev/shm/sem.{base}_sem00"), format!("/dev/shm/sem.{base}_{extra}")).unwrap();
    }
    assert_eq!(shm::semaphore_count(&base), 12);
    shm::create(&path, &spec("8x8", DType::U8, 1), &[]).unwrap();
    assert_eq!(shm::semaphore_count(&base), 10);
}
