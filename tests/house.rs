//! The repository's own rules. Each test is one rule, and says file and line where it is broken.
#![allow(clippy::unwrap_used)] // a repository that cannot be read fails the test

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// What each room may name. `main` and `lib` are doors, not rooms: `lib.rs` names all of them.
#[rustfmt::skip] // a table
const ROOMS: &[(&str, &[&str])] = &[
    ("main", &["cli"]),
    ("cli", &["api", "bench", "control", "bridge", "wire", "shm", "os"]),
    ("api", &["daemon", "control", "bridge", "wire", "shm", "os"]),
    // Beside the daemon, which it runs as any user does.
    ("bench", &["control", "bridge", "wire", "shm", "os"]),
    ("daemon", &["control", "bridge", "wire", "shm", "os"]),
    ("control", &["bridge", "wire", "shm", "os"]),
    ("bridge", &["wire", "shm", "os"]),
    // The pure room: no clock, no thread, no socket.
    ("wire", &[]),
    ("shm", &["os"]),
    ("os", &[]),
];

/// What anyone may name. Among themselves they name only each other.
const LEAVES: &[&str] = &["limits", "dtype", "naming", "settings", "error", "log", "metrics"];

/// (file, the room or module that it names, why it may all the same)
const ROOM_EXCEPTIONS: &[(&str, &str, &str)] = &[
    ("src/log.rs", "wire::time", "every line begins with a time in the format of the registry"),
    ("src/log.rs", "os::clock", "and that time comes from the clock"),
];

/// (file, why a test needs it)
const UNSAFE_TESTS: &[(&str, &str)] = &[
    ("tests/common/memory.rs", "counts what is allocated: an allocator is an unsafe trait"),
    ("tests/hot_path_memory.rs", "counts allocations: an allocator is an unsafe trait"),
    ("tests/shm_hostile.rs", "makes FIFOs, and a mapping outside ours that must fault"),
    ("tests/shm_torture.rs", "plays the C library's writer, which stores without looking"),
];

/// A longer source file is worth a second look; the ones that have had it stand in [`LONG_FILES`].
const LINES_MAX: usize = 500;

/// (file, most lines, why it is one file). Beyond that number it needs another look.
const LONG_FILES: &[(&str, usize, &str)] = &[
    ("src/bridge/publisher.rs", 665, "a frame's whole way out of a segment, and that of a write-back"),
    ("src/control/registry.rs", 600, "the contract with Redis, whole: every key is read and written here"),
    ("src/control/reconcile/tests.rs", 700, "situations, each a few lines, of one state machine"),
];

/// Run-time dependencies: the six, and those that have their reason beside them in Cargo.toml.
const DEPENDENCIES: &[&str] = &["lexopt", "libc", "memmap2", "redis", "serde_json", "zmq"];
const DEPENDENCIES_WITH_A_REASON: &[&str] = &["rustls"];

/// The top level, and nothing else but what `.gitignore` names.
const TOP_LEVEL: &[&str] = &[
    "Cargo.toml",
    "Cargo.lock",
    "src",
    "tests",
    "scripts",
    "README.md",
    "CHANGELOG.md",
    "LICENSE",
    ".ci",
    ".cargo",
    ".git",
    ".gitattributes",
    ".gitignore",
    "rustfmt.toml",
    "clippy.toml",
];

/// Some file of the repository.
struct Source {
    /// As it is shown: relative to the top level.
    name: String,
    text: String,
}

impl Source {
    /// Its lines, numbered from 1.
    fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text.lines().enumerate().map(|(index, line)| (index + 1, line))
    }

    /// Its lines without comments, the code alone.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        self.lines().map(|(number, line)| (number, without_comment(line)))
    }

    /// `src/shm/reader.rs` is `shm`, `reader`; `src/shm/mod.rs` is `shm`.
    fn module(&self) -> Vec<&str> {
        let path = self.name.strip_prefix("src/").unwrap_or(&self.name);
        path.trim_end_matches(".rs").split('/').filter(|part| *part != "mod").collect()
    }
}

fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// What `.gitignore` names at the top level: `/target`, `/target-*`.
fn ignored(name: &str) -> bool {
    let text = fs::read_to_string(top().join(".gitignore")).unwrap();
    text.lines().filter_map(|line| line.strip_prefix('/')).any(|rule| match rule.strip_suffix('*') {
        Some(begin) => name.starts_with(begin),
        None => name == rule,
    })
}

/// Every file of the repository, without git's own and what is ignored.
fn all_files() -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![top().to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            if folder == top() && (name == ".git" || ignored(&name)) {
                continue;
            }
            let kind = entry.file_type().unwrap();
            if kind.is_dir() { folders.push(entry.path()) } else { files.push(entry.path()) }
        }
    }
    files.sort();
    files
}

fn shown(path: &Path) -> String {
    path.strip_prefix(top()).unwrap_or(path).display().to_string()
}

/// The Rust files whose name begins so.
fn rust_files(begin: &str) -> Vec<Source> {
    let files = all_files().into_iter().filter(|path| path.extension().is_some_and(|end| end == "rs"));
    let sources = files.map(|path| Source { name: shown(&path), text: fs::read_to_string(&path).unwrap() });
    let sources: Vec<Source> = sources.filter(|source| source.name.starts_with(begin)).collect();
    assert!(!sources.is_empty(), "no Rust files below {begin}");
    sources
}

fn read(name: &str) -> String {
    fs::read_to_string(top().join(name)).unwrap_or_else(|why| panic!("{name}: {why}"))
}

/// `//` begins a comment at the start of a line or behind a space; in `tcp://` it does not.
fn without_comment(line: &str) -> &str {
    if line.trim_start().starts_with("//") {
        return "";
    }
    line.split_once(" //").map_or(line, |(code, _)| code)
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The places in `text` where `word` stands, as a word.
fn words<'a>(text: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    text.match_indices(word).map(|found| found.0).filter(move |&at| {
        let before = text[..at].chars().next_back();
        let after = text[at + word.len()..].chars().next();
        !before.is_some_and(is_word) && !after.is_some_and(is_word)
    })
}

/// The paths behind a `crate::`: `limits::X` gives it back, `{limits, os::clock}` gives both.
fn paths(rest: &str) -> Vec<String> {
    let path = |text: &str| -> String {
        text.trim().chars().take_while(|&c| is_word(c) || c == ':' || c == '!').collect()
    };
    let Some(group) = rest.strip_prefix('{') else { return vec![path(rest)] };
    let (mut depth, mut found, mut begin) = (0, Vec::new(), 0);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            '}' | ',' if depth == 0 => {
                found.push(path(&group[begin..at]));
                begin = at + 1;
                if c == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    found.retain(|path| !path.is_empty());
    found
}

/// The modules of this crate that a file names, from the crate's root, with their lines.
fn named_modules(source: &Source) -> Vec<(usize, String)> {
    // One text, so that a group may go over several lines, with the line of each byte.
    let (mut code, mut line_of) = (String::new(), Vec::new());
    let (mut inline, mut inline_at) = (false, Vec::new());
    for (number, line) in source.code() {
        inline |= line.starts_with("mod ") && line.ends_with('{')
            || line.starts_with("pub(crate) mod ") && line.ends_with('{');
        code.push_str(line);
        code.push('\n');
        line_of.resize(code.len(), number);
        inline_at.resize(code.len(), inline);
        inline &= line != "}";
    }
    let mut found = Vec::new();
    for root in ["crate", "daoserver"] {
        for at in words(&code, root) {
            if let Some(rest) = code[at..].strip_prefix(root).and_then(|rest| rest.strip_prefix("::")) {
                found.extend(paths(rest).into_iter().map(|path| (line_of[at], path)));
            }
        }
    }
    let module = source.module();
    let mut next = 0;
    for at in words(&code, "super") {
        if at < next {
            continue; // the second of `super::super` was read with the first
        }
        let (mut rest, mut ups) = (&code[at..], 0);
        while let Some(behind) = rest.strip_prefix("super::") {
            (rest, ups) = (behind, ups + 1);
        }
        next = code.len() - rest.len();
        let depth = module.len() + usize::from(inline_at[at]);
        if ups > 0 && ups >= depth {
            found.extend(paths(rest).into_iter().map(|path| (line_of[at], path)));
        }
    }
    found
}

/// The room or leaf that a path begins with. Macros are of the log.
fn room_of(path: &str) -> &str {
    let first = path.split("::").next().unwrap_or(path);
    match first.strip_suffix('!') {
        Some("error" | "warn" | "info" | "debug") => "log",
        _ => first,
    }
}

#[test]
fn rooms_name_only_the_rooms_below_them() {
    let mut wrong = Vec::new();
    let mut exceptions_met = BTreeSet::new();
    for source in rust_files("src/") {
        let room = source.module().first().map_or(String::new(), |part| (*part).to_owned());
        if room == "lib" {
            continue;
        }
        let leaf = LEAVES.contains(&room.as_str());
        let below: &[&str] = match ROOMS.iter().find(|row| row.0 == room) {
            Some(row) => row.1,
            None if leaf => &[],
            None => panic!("{}: '{room}' is neither a room nor a leaf of tests/house.rs", source.name),
        };
        for (line, path) in named_modules(&source) {
            let named = room_of(&path);
            if named == room || LEAVES.contains(&named) || below.contains(&named) {
                continue;
            }
            let excepted = ROOM_EXCEPTIONS.iter().position(|(file, begin, why)| {
                *file == source.name && path.starts_with(begin) && !why.is_empty()
            });
            match excepted {
                Some(position) => drop(exceptions_met.insert(position)),
                None => wrong.push(format!("{}:{line}: {room} names {path}", source.name)),
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "the way is main -> cli -> daemon -> control -> bridge -> {{wire, shm}} -> os:\n{}",
        wrong.join("\n")
    );
    assert_eq!(
        exceptions_met.len(),
        ROOM_EXCEPTIONS.len(),
        "an exception of tests/house.rs is not needed any more"
    );
}

#[test]
fn unsafe_stands_only_where_it_belongs_under_an_allow_at_the_head_of_its_file() {
    let keyword = concat!("un", "safe");
    let allow = format!("{keyword}_code");
    let mut wrong = Vec::new();
    for source in rust_files("") {
        let home = source.name.starts_with("src/os/")
            || source.name.starts_with("src/shm/")
            || UNSAFE_TESTS.iter().any(|row| row.0 == source.name && !row.1.is_empty());
        let first = source.code().find(|(_, line)| words(&strings_emptied(line), keyword).next().is_some());
        let allowed = source
            .lines()
            .find(|(_, line)| line.starts_with("#![allow(") && words(line, &allow).next().is_some());
        // The head: comments, blank lines and attributes.
        let head = source.lines().find(|(_, line)| {
            let line = line.trim_start();
            !(line.is_empty() || line.starts_with("//") || line.starts_with("#!["))
        });
        let head_end = head.map_or(usize::MAX, |(number, _)| number);
        let name = &source.name;
        match (first, allowed) {
            (Some((line, _)), _) if !home => wrong
                .push(format!("{name}:{line}: {keyword} outside src/os, src/shm and the tests listed here")),
            (Some((line, _)), None) => {
                wrong.push(format!("{name}:{line}: {keyword} without an allow of {allow}"))
            }
            (None, Some((line, _))) => {
                wrong.push(format!("{name}:{line}: allows {allow}, and nothing needs it"))
            }
            (_, Some((line, _))) if line > head_end => {
                wrong.push(format!("{name}:{line}: its allow of {allow} is not at the head"))
            }
            _ => {}
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The line without what stands between its double quotes.
fn strings_emptied(line: &str) -> String {
    line.split('"').step_by(2).collect::<Vec<_>>().join("\"\"")
}

#[test]
fn long_source_files_are_long_on_purpose() {
    let mut wrong = Vec::new();
    for source in rust_files("") {
        let lines = source.text.lines().count();
        let row = LONG_FILES.iter().find(|row| row.0 == source.name && !row.2.is_empty());
        match row {
            None if lines > LINES_MAX => {
                wrong.push(format!(
                    "{}:{LINES_MAX}: {lines} lines: part it, or give a reason in LONG_FILES",
                    source.name
                ));
            }
            Some(row) if lines > row.1 => {
                wrong.push(format!(
                    "{}:{}: {lines} lines: it has grown past its reason in LONG_FILES",
                    source.name, row.1
                ));
            }
            Some(_) if lines <= LINES_MAX => {
                wrong.push(format!(
                    "{}:1: {lines} lines: it needs no place in LONG_FILES any more",
                    source.name
                ));
            }
            _ => {}
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// `dao-pub-{name}` in the code is `dao-pub-<...>` here, and so is the README's `dao-pub-<name>`.
fn thread_pattern(name: &str) -> String {
    match name.find(['{', '<']) {
        Some(at) => format!("{}<...>", &name[..at]),
        None => name.to_owned(),
    }
}

#[test]
fn the_readmes_thread_table_is_the_codes() {
    let mut in_code: BTreeMap<String, String> = BTreeMap::new();
    for source in rust_files("src/") {
        for (line, code) in source.code() {
            for string in code.split('"').skip(1).step_by(2).filter(|string| string.starts_with("dao-")) {
                in_code.insert(thread_pattern(string), format!("{}:{line}", source.name));
            }
        }
    }
    let readme = read("README.md");
    let mut in_readme: BTreeMap<String, usize> = BTreeMap::new();
    for (index, line) in readme.lines().enumerate() {
        let Some(cell) = line.strip_prefix("| `dao-").and_then(|rest| rest.split_once(" |")) else {
            continue;
        };
        for name in format!("`dao-{}", cell.0).split('`').filter(|name| name.starts_with("dao-")) {
            in_readme.insert(thread_pattern(name), index + 1);
        }
    }
    let missing = in_code.iter().filter(|(name, _)| !in_readme.contains_key(*name));
    let missing = missing.map(|(name, place)| format!("{place}: {name} is not in README.md's thread table"));
    let stale = in_readme.iter().filter(|(name, _)| !in_code.contains_key(*name));
    let stale = stale.map(|(name, line)| format!("README.md:{line}: no thread is named {name}"));
    let wrong: Vec<String> = missing.chain(stale).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_metric_is_counted_somewhere() {
    let table = Source { name: "src/metrics.rs".into(), text: read("src/metrics.rs") };
    let names: Vec<(usize, &str)> = table
        .code()
        .filter_map(|(number, line)| {
            let (name, value) = line.trim().split_once(" = \"")?;
            let upper = name.chars().all(|c| c.is_ascii_uppercase() || c == '_');
            (upper && value.ends_with("\";")).then_some((number, name))
        })
        .collect();
    assert_eq!(names.len(), daoserver::metrics::TABLE.len(), "src/metrics.rs:1: the table could not be read");
    let others: Vec<Source> =
        rust_files("src/").into_iter().filter(|source| source.name != table.name).collect();
    let counted = |name: &str| {
        let call = format!("{name}.add(");
        others.iter().any(|source| source.code().any(|(_, line)| line.contains(&call)))
    };
    let wrong = names.iter().filter(|(_, name)| !counted(name));
    let wrong: Vec<String> =
        wrong.map(|(line, name)| format!("{}:{line}: nobody counts {name}", table.name)).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_file_holds_a_path_of_a_workplace() {
    // In pieces, so that this file may stay where it looks.
    let forbidden =
        [concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/ho", "me/"), concat!("../sha", "red/")];
    let mut wrong = Vec::new();
    for path in all_files() {
        let bytes = fs::read(&path).unwrap();
        for text in forbidden {
            let Some(at) = bytes.windows(text.len()).position(|window| window == text.as_bytes()) else {
                continue;
            };
            let line = 1 + bytes[..at].iter().filter(|byte| **byte == b'\n').count();
            wrong.push(format!("{}:{line}: it holds {text}", shown(&path)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_top_level_holds_what_it_may_and_no_more() {
    let entries = fs::read_dir(top()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let strange: Vec<String> =
        entries.filter(|name| !TOP_LEVEL.contains(&name.as_str()) && !ignored(name)).collect();
    assert!(strange.is_empty(), "not for the top level: {}", strange.join(", "));
}

#[test]
fn the_run_time_dependencies_are_the_ones_that_were_decided() {
    let manifest = Source { name: "Cargo.toml".into(), text: read("Cargo.toml") };
    let (mut section, mut before) = (String::new(), String::new());
    let (mut found, mut wrong) = (BTreeSet::new(), Vec::new());
    for (number, line) in manifest.lines() {
        if line.starts_with('[') {
            section = line.trim_matches(['[', ']']).to_owned();
            let run_time = section.contains("dependencies") && section != "dev-dependencies";
            if run_time && section != "dependencies" {
                wrong.push(format!("Cargo.toml:{number}: dependencies of another kind: [{section}]"));
            }
        } else if let (true, Some((name, _))) = (section == "dependencies", line.split_once('=')) {
            let name = name.trim().trim_matches('"');
            found.insert(name.to_owned());
            let needs_reason = DEPENDENCIES_WITH_A_REASON.contains(&name);
            if !needs_reason && !DEPENDENCIES.contains(&name) {
                wrong.push(format!("Cargo.toml:{number}: {name} was not decided on"));
            }
            if needs_reason && !before.starts_with('#') {
                wrong.push(format!("Cargo.toml:{number}: {name} needs its reason in a comment above it"));
            }
        }
        before = line.to_owned();
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let decided = DEPENDENCIES.iter().chain(DEPENDENCIES_WITH_A_REASON);
    let gone: Vec<&&str> = decided.filter(|name| !found.contains(**name)).collect();
    assert!(gone.is_empty(), "Cargo.toml:1: decided on and not there: {gone:?}");
}
