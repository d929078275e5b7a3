//! `shm ...` from outside: segments of this machine, made, written and read by the binary alone.
#![allow(clippy::unwrap_used)] // helpers of tests, too

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

const DTYPES: [(&str, usize); 12] = [
    ("uint8", 1),
    ("int8", 1),
    ("uint16", 2),
    ("int16", 2),
    ("uint32", 4),
    ("int32", 4),
    ("uint64", 8),
    ("int64", 8),
    ("float32", 4),
    ("float64", 8),
    ("complex64", 8),
    ("complex128", 16),
];

/// A directory of its own, and names that no other test has: semaphores are the host's. Cleans both up.
struct Place {
    dir: PathBuf,
    prefix: String,
}

impl Place {
    fn new() -> Place {
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        let prefix = format!("clitest{}n{}", std::process::id(), SERIAL.fetch_add(1, Ordering::Relaxed));
        let dir = std::env::temp_dir().join(&prefix);
        fs::create_dir(&dir).unwrap();
        Place { dir, prefix }
    }

    fn name(&self, name: &str) -> String {
        format!("{}_{name}", self.prefix)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{}.im.shm", self.name(name)))
    }

    /// `shm <line>` in this directory; `@x` in it stands for this place's name of `x`.
    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_daoserver"));
        command.arg("shm");
        for word in line.split(' ') {
            match word.strip_prefix('@') {
                Some(name) => command.arg(self.name(name)),
                None => command.arg(word),
            };
        }
        command.arg("--shm-dir").arg(&self.dir).stdin(Stdio::null());
        command
    }

    fn run(&self, line: &str) -> Output {
        self.command(line).output().unwrap()
    }

    fn ok(&self, line: &str) -> Vec<u8> {
        let output = self.run(line);
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    fn text(&self, line: &str) -> String {
        String::from_utf8(self.ok(line)).unwrap()
    }

    fn json(&self, line: &str) -> serde_json::Value {
        serde_json::from_slice(&self.ok(line)).unwrap()
    }

    /// Fails with this code and one sentence, which is returned.
    fn fails(&self, line: &str, code: i32) -> String {
        failed(self.run(line), code)
    }

    fn feed(&self, line: &str, input: &[u8]) -> Output {
        let mut command = self.command(line);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        child.wait_with_output().unwrap()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
        for entry in fs::read_dir("/dev/shm").unwrap().flatten() {
            if entry.file_name().to_string_lossy().starts_with(&format!("sem.{}_", self.prefix)) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

/// Ends a child that a test leaves, however it leaves.
struct Ending(Child);

impl Drop for Ending {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn failed(output: Output, code: i32) -> String {
    let why = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{why}");
    assert!(why.starts_with("daoserver: ") && why.lines().count() == 1, "{why:?}");
    why
}

#[test]
fn every_type_goes_in_and_comes_out_as_bytes_as_text_and_as_json() {
    let place = Place::new();
    for (dtype, bytes) in DTYPES {
        place.ok(&format!("create @{dtype} --shape 2x3 --dtype {dtype}"));
        place.ok(&format!("write @{dtype} --fill 5"));
        let read = place.json(&format!("read @{dtype} --json"));
        assert_eq!((&read["shape"], &read["counter"]), (&serde_json::json!([2, 3]), &serde_json::json!(1)));
        let last = &read["data"][1][2];
        let last = if last.is_array() { &last[0] } else { last };
        assert_eq!((last.as_f64(), read["dtype"].as_str()), (Some(5.0), Some(dtype)));
        assert!(place.text(&format!("read @{dtype}")).lines().nth(2).unwrap().starts_with('5'));

        let frame: Vec<u8> = (0..6 * bytes).map(|i| (i % 50) as u8).collect();
        assert!(place.feed(&format!("write @{dtype} --raw -"), &frame).status.success());
        assert_eq!(place.ok(&format!("read @{dtype} --raw")), frame);
        assert_eq!(place.json(&format!("info @{dtype} --json"))["counter"], 2);
        place.ok(&format!("rm @{dtype}"));
        assert!(!place.file(dtype).exists());
    }
}

#[test]
fn info_says_what_create_was_told() {
    let place = Place::new();
    let path = place.text(
        "create @a --shape 4x3x2 --dtype int16 --depth 3 --layout wide --keyword gain=0.5 --keyword n=7",
    );
    assert_eq!(Path::new(path.trim()), place.file("a"));
    let info = place.json("info @a --json");
    assert_eq!(info["shape"], serde_json::json!([4, 3, 2]));
    let fields = (info["dtype"].as_str(), info["layout"].as_str(), info["depth"].as_u64());
    assert_eq!(fields, (Some("int16"), Some("wide"), Some(3)));
    assert_eq!((info["counter"].as_u64(), info["semaphores"].as_u64()), (Some(0), Some(10)));
    assert_eq!((&info["keywords"][0]["name"], &info["keywords"][0]["value"]), (&"gain".into(), &0.5.into()));
    assert_eq!(info["keywords"][1]["value"], 7);
    assert!(info["path"].as_str().unwrap().ends_with("_a.im.shm") && info["atime"].is_i64());
    // The newest local segment decides for the next one, and a path is as good as a name.
    place.ok(&format!("create {} --shape 5 --dtype float64", place.file("b").display()));
    assert_eq!(place.json("info @b --json")["layout"], "wide");
    assert!(place.text("info @b").contains("semaphores  10"));
}

#[test]
fn many_frames_come_from_a_file_a_pipe_or_a_counter() {
    let place = Place::new();
    place.ok("create @a --shape 2 --dtype uint8");
    assert!(place.feed("write @a --raw -", &[1, 2, 3, 4, 5, 6]).status.success());
    assert_eq!(
        (place.ok("read @a --raw"), &place.json("read @a --json")["counter"]),
        (vec![5, 6], &3.into())
    );
    let file = place.dir.join("frames");
    fs::write(&file, [7, 8, 9, 10]).unwrap();
    place.ok(&format!("write @a --raw {} --rate 10000", file.display()));
    assert_eq!(
        (place.ok("read @a --raw"), &place.json("read @a --json")["counter"]),
        (vec![9, 10], &5.into())
    );
    place.ok(&format!("write @a --raw {} --count 5", file.display()));
    assert_eq!(
        (place.ok("read @a --raw"), &place.json("read @a --json")["counter"]),
        (vec![7, 8], &10.into())
    );
    place.ok("write @a --count 20 --rate 5000");
    assert_eq!(place.ok("read @a --raw"), [30, 30]);
}

#[test]
fn a_writer_that_is_told_to_end_does_so_between_two_frames() {
    let place = Place::new();
    place.ok("create @a --shape 1000x1000 --dtype float64");
    let mut writer = Ending(place.command("write @a --rate 1000").spawn().unwrap());
    // One that was started late would still have its default signal actions: it must have written first.
    while place.json("info @a --json")["counter"].as_u64() < Some(3) {
        assert!(writer.0.try_wait().unwrap().is_none());
    }
    let told = Command::new("sh").args(["-c", &format!("kill {}", writer.0.id())]).status().unwrap();
    assert!(told.success());
    assert_eq!(writer.0.wait().unwrap().code(), Some(0));
    let (info, read) = (place.json("info @a --json"), place.ok("read @a --raw"));
    let counter = info["counter"].as_u64().unwrap() as f64;
    assert!(read.chunks_exact(8).all(|element| element == counter.to_le_bytes()));
}

#[test]
fn a_part_of_a_frame_is_refused() {
    let place = Place::new();
    place.ok("create @a --shape 4 --dtype uint8");
    assert!(failed(place.feed("write @a --raw -", &[1; 6]), 1).contains("2 of a frame's 4 bytes"));
    assert_eq!(place.json("read @a --json")["counter"], 1);
    let file = place.dir.join("frames");
    fs::write(&file, [9; 7]).unwrap();
    assert!(place.fails(&format!("write @a --raw {}", file.display()), 1).contains("7 bytes"));
    assert_eq!(place.ok("read @a --raw"), [1; 4]);
    place.fails("write @a --raw /nonexistent/frames", 1);
    assert!(place.fails("write @a --fill 300", 2).contains("uint8"));
}

#[test]
fn what_is_no_segment_gets_a_sentence_and_its_code() {
    let place = Place::new();
    for line in ["info @x", "read @x", "write @x --fill 1", "watch @x", "rm @x"] {
        assert!(place.fails(line, 3).contains("_x.im.shm"), "{line}");
    }
    fs::write(place.file("bad"), "garbage").unwrap();
    fs::write(place.file("empty"), "").unwrap();
    fs::create_dir(place.file("dir")).unwrap();
    for name in ["bad", "empty", "dir"] {
        for line in ["info", "read", "write"] {
            place.fails(&format!("{line} @{name}"), 1);
        }
    }
    place.fails("rm @bad", 1);
    assert!(place.file("bad").exists());
    place.ok("create @good --shape 2 --dtype int8");
    let list = place.json("list --json");
    let errors = list.as_array().unwrap().iter().filter(|entry| entry["error"].is_string()).count();
    assert_eq!((list.as_array().unwrap().len(), errors), (4, 3));
    assert!(place.text("list").contains("int8"));
    place.fails("create @x --shape 2 --dtype int8 --layout baroque", 2);
    place.fails("create @x --shape 2 --dtype int8 --layout classic --depth 2", 2);
    place.fails("create /nonexistent/x.im.shm --shape 2 --dtype int8", 1);
    place.fails("create /tmp/x.txt --shape 2 --dtype int8", 2);
    assert!(!place.file("x").exists());
}

#[test]
fn one_bad_name_does_not_keep_rm_from_the_others() {
    let place = Place::new();
    place.ok("create @a --shape 2 --dtype int8");
    place.ok("create @b --shape 2 --dtype int8");
    place.fails("rm @a @x @b", 3);
    assert!(!place.file("a").exists() && !place.file("b").exists());
    let left = fs::read_dir("/dev/shm").unwrap().flatten();
    let semaphore = format!("sem.{}_", place.prefix);
    assert_eq!(left.filter(|entry| entry.file_name().to_string_lossy().starts_with(&semaphore)).count(), 0);
}

#[test]
fn a_frame_that_never_comes_is_a_time_out() {
    let place = Place::new();
    place.ok("create @a --shape 2 --dtype int8");
    place.ok("write @a --fill 1");
    let why = place.fails("read @a --wait --timeout 0.05", 4);
    assert!(why.contains("No new frame of segment") && why.contains("within 0.05 s"), "{why}");
}

#[test]
fn a_frame_that_comes_ends_the_wait_also_in_a_segment_that_was_replaced_meanwhile() {
    let place = Place::new();
    place.ok("create @a --shape 2 --dtype uint8");
    place.ok("write @a --fill 1");
    let wait = |line: &str| place.command(line).stdout(Stdio::piped()).spawn().unwrap();
    // The waiting process may start late: write until it has got its frame.
    let mut child = wait("read @a --wait --timeout 30 --raw");
    while child.try_wait().unwrap().is_none() {
        place.ok("write @a --fill 2");
    }
    assert_eq!(child.wait_with_output().unwrap().stdout, [2, 2]);
    let mut child = wait("read @a --wait --timeout 30 --raw");
    while child.try_wait().unwrap().is_none() {
        place.ok("create @a --shape 3 --dtype uint8");
        place.ok("write @a --fill 3");
    }
    assert_eq!(child.wait_with_output().unwrap().stdout, [3, 3, 3]);
}

/// A reader that has begun: it makes the file of its times when it has taken its first look.
fn reader_of(place: &Place, line: &str) -> Child {
    let times = place.dir.join("times");
    let _ = fs::remove_file(&times);
    let mut command = place.command(&format!("{line} --times {}", times.display()));
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    while !times.exists() {
        std::thread::yield_now();
    }
    child
}

#[test]
fn many_new_frames_come_one_after_the_other_with_their_times() {
    let place = Place::new();
    // A ring, so that a reader that is late misses nothing.
    place.ok("create @a --shape 3 --dtype uint32 --depth 1000");
    place.ok("write @a --fill 7");
    let child = reader_of(&place, "read @a --wait --count 200 --raw --timeout 20");
    let mut writer = Ending(place.command("write @a --rate 2000").spawn().unwrap());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), String::from_utf8(output.stderr).unwrap()), (Some(0), String::new()));
    let counters: Vec<u32> =
        output.stdout.chunks(4).map(|c| u32::from_le_bytes(c.try_into().unwrap())).collect();
    assert_eq!(counters.len(), 600);
    let frames: Vec<u32> = counters.chunks(3).map(|frame| frame[0]).collect();
    assert!(counters.chunks(3).all(|frame| frame.iter().all(|pixel| *pixel == frame[0])));
    assert!(frames[0] >= 2 && frames.windows(2).all(|pair| pair[1] == pair[0] + 1), "{frames:?}");
    let times = fs::read_to_string(place.dir.join("times")).unwrap();
    let times: Vec<(u32, i64)> = times
        .lines()
        .map(|line| line.split_once(' ').unwrap())
        .map(|(counter, time)| (counter.parse().unwrap(), time.parse().unwrap()))
        .collect();
    assert_eq!(times.iter().map(|row| row.0).collect::<Vec<_>>(), frames);
    assert!(times.windows(2).all(|pair| pair[0].1 <= pair[1].1) && times[0].1 > 1_500_000_000_000_000_000);

    let lines = place.text("read @a --wait --count 3 --json");
    let counters: Vec<u64> = lines
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["counter"].as_u64().unwrap())
        .collect();
    assert!(counters.len() == 3 && counters[1] == counters[0] + 1, "{counters:?}");
    assert_eq!(
        place.text("read @a --wait --count 2").lines().filter(|line| line.starts_with('#')).count(),
        2
    );
    assert!(writer.0.try_wait().unwrap().is_none());
}

#[test]
fn frames_that_could_not_be_had_are_counted_and_said() {
    let place = Place::new();
    // No ring, and a frame that no pipe holds: while nobody takes the first one, its reader waits.
    place.ok("create @a --shape 500x500 --dtype float64");
    let mut child = reader_of(&place, "read @a --wait --count 2 --raw --timeout 20");
    let mut out = child.stdout.take().unwrap();
    place.ok("write @a");
    let mut frames = vec![0; 1];
    out.read_exact(&mut frames).unwrap();
    place.ok("write @a --count 10");
    out.read_to_end(&mut frames).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), frames.len()), (Some(0), 2 * 500 * 500 * 8));
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(said, "daoserver: 9 frames were written meanwhile and could not be had.\n");
    let times = fs::read_to_string(place.dir.join("times")).unwrap();
    let counters: Vec<&str> = times.lines().map(|line| line.split(' ').next().unwrap()).collect();
    assert_eq!(counters, ["1", "11"]);
}

#[test]
fn a_recording_ends_where_frames_stop_or_change_their_size_and_says_so() {
    let place = Place::new();
    place.ok("create @a --shape 2 --dtype uint8");
    let why = place.fails("read @a --count 2", 2);
    assert!(why.contains("--count needs --wait"), "{why}");
    place.fails("read @a --wait --count 0", 2);
    let why = place.fails("read @a --times /nonexistent/times", 1);
    assert!(why.contains("Cannot write times to '/nonexistent/times'"), "{why}");

    let mut child = reader_of(&place, "read @a --wait --count 1000000 --raw --timeout 1");
    let mut first = [0; 2];
    let mut out = child.stdout.take().unwrap();
    while fs::read(place.dir.join("times")).unwrap().is_empty() {
        place.ok("write @a --fill 9");
    }
    out.read_exact(&mut first).unwrap();
    let why = failed(child.wait_with_output().unwrap(), 4);
    assert!(first == [9, 9] && why.contains("No new frame"), "{why}");

    let child = reader_of(&place, "read @a --wait --count 1000000 --raw --timeout 30");
    while fs::read(place.dir.join("times")).unwrap().is_empty() {
        place.ok("write @a --fill 9");
    }
    place.ok("create @a --shape 3 --dtype uint8");
    place.ok("write @a --fill 9");
    let why = failed(child.wait_with_output().unwrap(), 1);
    assert!(why.contains("was 2 uint8 and is 3 uint8 now, after "), "{why}");
}

#[test]
fn a_file_that_may_not_be_read_is_a_permission_error() {
    let place = Place::new();
    place.ok("create @a --shape 2 --dtype int8");
    fs::set_permissions(place.file("a"), std::os::unix::fs::PermissionsExt::from_mode(0o000)).unwrap();
    if fs::File::open(place.file("a")).is_ok() {
        println!("skipped: this user may read everything");
        return;
    }
    place.fails("read @a", 6);
    place.fails("write @a --fill 1", 6);
}

#[test]
fn a_reader_that_leaves_ends_watch_and_read_quietly() {
    let place = Place::new();
    place.ok("create @a --shape 500x500 --dtype float64");
    let mut watch = Ending(place.command("watch @a").stdout(Stdio::piped()).spawn().unwrap());
    let mut line = String::new();
    BufReader::new(watch.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.contains("500x500 float64"), "{line}");
    assert_eq!(watch.0.wait().unwrap().code(), Some(0));
    let mut read =
        place.command("read @a --json").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(read.stdout.take());
    let output = read.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr), (Some(0), Vec::new()));
    // One that has had enough of many frames.
    place.ok("create @b --shape 2 --dtype uint8");
    let mut child = reader_of(&place, "read @b --wait --count 1000000 --raw --timeout 30");
    drop(child.stdout.take());
    let _writer = Ending(place.command("write @b --rate 1000").spawn().unwrap());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr), (Some(0), Vec::new()));
}
