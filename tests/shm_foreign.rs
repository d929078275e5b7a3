//! What may stand where a segment or its semaphores are to be made, and is somebody else's.
#![allow(clippy::unwrap_used)]

#[path = "common/shm.rs"]
mod common;

use common::{Place, golden_dir, spec};
use daoserver::dtype::DType;
use daoserver::shm;
use std::fs::{self, OpenOptions};

#[test]
fn what_is_no_semaphore_is_named_and_left_alone() {
    let place = Place::new();
    let target = place.dir.join("target");
    for (name, makes) in [("long", 4096), ("short", 0)] {
        let path = place.path(name);
        let base = daoserver::naming::semaphore_base(&path).unwrap();
        let link = format!("/dev/shm/sem.{base}_sem04");
        fs::write(&target, vec![7; makes]).unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        let why = shm::create(&path, &spec("8x8", DType::U8, 1), &[]).err().unwrap().to_string();
        assert!(why.ends_with(&format!("{link} is a symbolic link")), "{why}");
        assert!(path.symlink_metadata().is_err() && shm::semaphore_count(&base) == 0);
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read(&target).unwrap(), vec![7; makes]);
        fs::remove_file(&link).unwrap();
        // A dangling one would be made into a file elsewhere.
        std::os::unix::fs::symlink(place.dir.join("nowhere"), &link).unwrap();
        assert!(shm::create(&path, &spec("8x8", DType::U8, 1), &[]).is_err());
        assert!(!place.dir.join("nowhere").exists());
        fs::remove_file(&link).unwrap();
        shm::create(&path, &spec("8x8", DType::U8, 1), &[]).unwrap();
    }
    // Nothing half made stays in the directory.
    let left = |entry: &fs::DirEntry| !entry.file_name().to_string_lossy().ends_with(".im.shm");
    assert_eq!(fs::read_dir(&place.dir).unwrap().flatten().filter(left).count(), 1);
}

#[test]
fn only_a_segment_that_bears_its_own_name_may_be_written_over() {
    let place = Place::new();
    let at = |name: &str| place.path(name);
    let own = |name: &str| shm::check_own(&place.path(name));
    let (_, _segment) = place.create("own", "8x8", DType::U8, 1);
    for good in ["own", "absent"] {
        assert_eq!(own(good), Ok(()), "{good}");
    }
    OpenOptions::new().write(true).open(at("own")).unwrap().set_len(100).unwrap();
    assert_eq!(own("own"), Ok(()), "cut short");
    fs::write(at("empty"), b"").unwrap();
    fs::write(at("zeros"), [0; 5000]).unwrap();
    assert_eq!((own("empty"), own("zeros")), (Ok(()), Ok(())), "the library is making it");

    fs::copy(golden_dir().join("fifo-float32_6x4.im.shm"), at("copied")).unwrap();
    fs::write(at("notes"), "do not lose me").unwrap();
    fs::create_dir(at("directory")).unwrap();
    std::os::unix::fs::symlink(at("own"), at("link")).unwrap();
    std::os::unix::fs::symlink(at("nowhere"), at("dangling")).unwrap();
    for (bad, why) in [
        ("copied", "no segment of this name"),
        ("notes", "no segment of this name"),
        ("directory", "a directory"),
        ("link", "a symbolic link"),
        ("dangling", "a symbolic link"),
    ] {
        assert!(own(bad).is_err_and(|said| said.contains(why)), "{bad}: {:?}", own(bad));
    }
    // A path longer than the field for it.
    let deep = place.dir.join("a".repeat(90));
    fs::create_dir(&deep).unwrap();
    let path = deep.join(at("deep").file_name().unwrap());
    shm::create(&path, &spec("8x8", DType::U8, 1), &[]).unwrap();
    assert_eq!(shm::check_own(&path), Ok(()));
    // Only root may give files away.
    if std::os::unix::fs::chown(at("empty"), Some(65_534), Some(65_534)).is_ok() {
        assert!(own("empty").is_err_and(|said| said.contains("another user, 65534")));
    }
}
