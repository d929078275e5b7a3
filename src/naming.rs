//! Every name is built and parsed here: files, semaphores, mirrors, Redis keys, topics.
//!
//! Names come from file systems, Redis and other machines. [`segment_name`] and [`host_name`] decide what is a name at
//! all; what they accept can go into a path or a key without leaving its directory or its field.

use crate::limits::NAME_CHARS_MAX;
use std::path::{Path, PathBuf};

/// What every segment's file ends with.
pub const SEGMENT_SUFFIX: &str = ".im.shm";
/// What a mirror's file begins with. Such files are never registered.
pub const MIRROR_PREFIX: &str = "remote_";
/// What the name of a segment begins with that a daemon makes for another one's `bench --to`. It removes those that it
/// finds left behind.
pub const BENCH_PREFIX: &str = "daoserver_bench_";
/// The topic that Python peers publish and subscribe.
pub const TOPIC_PYTHON: &str = "frameData";
/// The topic of our own wire. A subscription matches by prefix, so neither topic may begin with the other.
pub const TOPIC_DAO: &str = "daoFrame1";

/// Why a string is no name.
fn refuse(kind: &str, text: &str, why: &str) -> String {
    let shown: String = text.chars().take(60).flat_map(char::escape_default).collect();
    format!("'{shown}' is no {kind} name: {why}")
}

/// Is this the name of a segment, as it stands in a Redis key and in a file name without its ending?
pub fn segment_name(text: &str) -> Result<&str, String> {
    let why = if text.is_empty() {
        "it is empty"
    } else if text.len() > NAME_CHARS_MAX {
        "it is too long"
    } else if text.starts_with('.') {
        "it begins with a dot"
    } else if text.contains('/') {
        "it holds a slash"
    } else if text.chars().any(|c| c.is_control() || c.is_whitespace()) {
        "it holds a space or control character"
    } else {
        return Ok(text);
    };
    Err(refuse("segment", text, why))
}

/// Is this the name of a machine? A colon would break every peer's parsing of the keys.
pub fn host_name(text: &str) -> Result<&str, String> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let why = if text.is_empty() {
        "it is empty"
    } else if text.len() > NAME_CHARS_MAX {
        "it is too long"
    } else if text.starts_with('.') {
        "it begins with a dot"
    } else if !text.chars().all(good) {
        "only letters, digits, '-', '_' and '.' are allowed"
    } else {
        return Ok(text);
    };
    Err(refuse("host", text, why))
}

/// The registry's name of a segment that a user typed: leading slashes dropped, spaces made `_`, ending dropped.
pub fn normalized_segment_name(text: &str) -> Result<String, String> {
    let name = text.trim_start_matches('/').replace(' ', "_");
    let name = name.strip_suffix(SEGMENT_SUFFIX).unwrap_or(&name);
    segment_name(name).map(str::to_owned)
}

/// The registry's name of a file in the segment directory: `None` for what is no segment, or is a mirror.
pub fn registered_name(file_name: &str) -> Option<Result<String, String>> {
    let stem = file_name.strip_suffix(SEGMENT_SUFFIX)?;
    if stem.starts_with(MIRROR_PREFIX) {
        return None;
    }
    Some(segment_name(&stem.replace(' ', "_")).map(str::to_owned))
}

/// The file of a segment.
pub fn segment_path(shm_dir: &Path, name: &str) -> PathBuf {
    shm_dir.join(format!("{name}{SEGMENT_SUFFIX}"))
}

/// The name of the mirror of `name` of `host`. Dots become `_`: the C library cuts a semaphore's name at the first dot.
pub fn mirror_name(host: &str, name: &str) -> String {
    format!("{MIRROR_PREFIX}{host}_{name}").replace('.', "_")
}

/// The segment that an owner makes for the bench of `client`, with frames of so many bytes. Without dots, as a mirror's.
pub fn bench_name(client: &str, frame_bytes: usize) -> Result<String, String> {
    let name = format!("{BENCH_PREFIX}{client}_{frame_bytes}").replace('.', "_");
    segment_name(&name).map(str::to_owned)
}

/// What the C library names a segment's semaphores after: the file's base name up to its first dot.
pub fn semaphore_base(path: &Path) -> Option<String> {
    let base = path.file_name()?.to_str()?.trim_start_matches('.').split('.').next()?;
    (!base.is_empty()).then(|| base.to_owned())
}

/// `<base>_sem00` .. as `sem_open` takes it, with its leading slash.
pub fn semaphore(base: &str, index: usize) -> String {
    format!("/{base}_sem{index:02}")
}

/// `<base>_semlog`, with its leading slash.
pub fn semaphore_log(base: &str) -> String {
    format!("/{base}_semlog")
}

/// Backslashes what Redis' `MATCH` patterns would read as a wildcard.
pub fn glob_escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if matches!(c, '*' | '?' | '[' | ']' | '\\' | '^' | '-') {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

/// Keys of the registry. Source: the contract that Python daemons keep.
pub mod key {
    /// Every key of every machine.
    pub const MACHINES: &str = "dao:machines:";
    /// The lease on the master's role, ours alone: Python peers do not know it.
    pub const MASTER_LEASE: &str = "dao:master";

    /// `dao:machines:<host>:<field>`.
    pub fn machine(host: &str, field: &str) -> String {
        format!("{MACHINES}{host}:{field}")
    }

    /// `dao:machines:<host>:shm:<name>:<field>`.
    pub fn segment(host: &str, name: &str, field: &str) -> String {
        format!("{MACHINES}{host}:shm:{name}:{field}")
    }

    /// `dao:connections:<host>:<name>`: a client's request.
    pub fn request(host: &str, name: &str) -> String {
        format!("dao:connections:{host}:{name}")
    }

    /// `dao:heartbeats:<host>:<name>:<client>`.
    pub fn heartbeat(host: &str, name: &str, client: &str) -> String {
        format!("dao:heartbeats:{host}:{name}:{client}")
    }

    /// `dao:bench:<host>:<client>`, ours alone: what the owner says to a client that asked for a segment to bench with.
    pub fn bench(host: &str, client: &str) -> String {
        format!("dao:bench:{host}:{client}")
    }

    /// The pub/sub channel that wakes the daemon of a host, ours alone.
    pub fn wake_channel(host: &str) -> String {
        format!("dao:wake:{host}")
    }

    /// What a key below `dao:machines:` says.
    #[derive(Debug, PartialEq, Eq)]
    pub enum MachineKey<'a> {
        /// `<host>`, and one of `ip`, `hostname`, `role`, `last_connect` or a field we do not know.
        Machine(&'a str, &'a str),
        /// `<host>`, `<name>`, and one of `dimensions`, `dtype`, `connections` or a field we do not know.
        Segment(&'a str, &'a str, &'a str),
    }

    /// Takes a key apart. A host has no colon; a segment's name may have some, so it ends at the last.
    pub fn parse_machine(key: &str) -> Option<MachineKey<'_>> {
        let (host, rest) = key.strip_prefix(MACHINES)?.split_once(':')?;
        match rest.strip_prefix("shm:") {
            Some(segment) => {
                let (name, field) = segment.rsplit_once(':')?;
                Some(MachineKey::Segment(host, name, field))
            }
            None => Some(MachineKey::Machine(host, rest)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use key::MachineKey;

    #[test]
    fn names_that_would_leave_the_directory_are_refused() {
        for bad in ["", "..", "../x", "a/b", ".hidden", "a\nb", "a b", "a\0b", &"x".repeat(200)] {
            assert!(segment_name(bad).is_err(), "{bad:?}");
        }
        for bad in ["", "a:b", "a/b", "..", "höst", "a b", "*"] {
            assert!(host_name(bad).is_err(), "{bad:?}");
        }
        assert_eq!(segment_name("wfs:1").unwrap(), "wfs:1");
        assert_eq!(normalized_segment_name("/my wfs.im.shm").unwrap(), "my_wfs");
    }

    #[test]
    fn mirrors_and_other_files_are_not_registered() {
        assert!(registered_name("remote_a_b.im.shm").is_none());
        assert!(registered_name("notes.txt").is_none());
        assert_eq!(registered_name("a b.im.shm").unwrap().unwrap(), "a_b");
        assert!(registered_name(".im.shm").unwrap().is_err());
    }

    #[test]
    fn a_mirror_of_a_dotted_name_has_no_dot() {
        assert_eq!(mirror_name("rts.lab", "wfs.0"), "remote_rts_lab_wfs_0");
        let path = Path::new("/tmp/remote_rts_lab_wfs_0.im.shm");
        assert_eq!(semaphore_base(path).unwrap(), "remote_rts_lab_wfs_0");
    }

    #[test]
    fn the_segment_of_a_bench_is_a_segment_and_its_name_has_no_dot() {
        assert_eq!(bench_name("gui.lab", 1_024).unwrap(), "daoserver_bench_gui_lab_1024");
        assert!(bench_name("../x", 16).is_err() && bench_name(&"x".repeat(100), 16).is_err());
    }

    #[test]
    fn keys_with_colons_in_a_segments_name_come_apart() {
        assert_eq!(
            key::parse_machine(&key::segment("h", "a:b", "dtype")),
            Some(MachineKey::Segment("h", "a:b", "dtype"))
        );
        assert_eq!(key::parse_machine("dao:machines:h:ip"), Some(MachineKey::Machine("h", "ip")));
        assert_eq!(key::parse_machine("dao:machines:h"), None);
        assert_eq!(key::parse_machine("dao:other:h:ip"), None);
    }

    #[test]
    fn no_topic_is_a_prefix_of_the_other() {
        assert!(!TOPIC_DAO.starts_with(TOPIC_PYTHON) && !TOPIC_PYTHON.starts_with(TOPIC_DAO));
    }
}
