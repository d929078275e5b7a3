//! What a daemon remembers beside its control socket: the mirrors it was asked for and the ports it published on.
//!
//! `<control>.memory`, JSON, mode 0600, replaced as a whole:
//! `{"mirrors": [{"hostname": .., "shm": .., "bidirectional": .., "kept": .., "leases": ..}], "ports": {"wfs": 5560}}`.

use crate::control::state::StreamKey;
use crate::naming::{host_name, segment_name};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The file, and what was written to it last.
pub struct Memory {
    path: PathBuf,
    last: String,
}

/// What an earlier run has left.
#[derive(Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Remembered {
    pub mirrors: Vec<MirrorMemory>,
    pub ports: BTreeMap<String, u16>,
}

/// A mirror that there was.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct MirrorMemory {
    pub key: StreamKey,
    pub bidirectional: bool,
    /// Somebody wanted it until it is released.
    pub kept: bool,
    /// How many wanted it until they end.
    pub leases: usize,
}

impl Memory {
    /// Reads what is remembered beside this control socket. A file that makes no sense is warned of and not believed.
    pub fn open(control: &Path) -> (Memory, Remembered) {
        let mut path = control.as_os_str().to_owned();
        path.push(".memory");
        let memory = Memory { path: path.into(), last: String::new() };
        let remembered = match fs::read_to_string(&memory.path) {
            Ok(text) => parse(&text).unwrap_or_else(|| {
                crate::warn!("{} makes no sense and is ignored", memory.path.display());
                Remembered::default()
            }),
            Err(_) => Remembered::default(),
        };
        (memory, remembered)
    }

    /// Writes what is to be remembered, if it is not what stands there. A full disk is warned of: streams go on.
    pub fn write(&mut self, mirrors: &[MirrorMemory], ports: &BTreeMap<String, u16>) {
        let mirror = |one: &MirrorMemory| {
            let (host, name) = &one.key;
            json!({"hostname": host, "shm": name, "bidirectional": one.bidirectional, "kept": one.kept, "leases": one.leases})
        };
        let mirrors: Vec<Value> = mirrors.iter().map(mirror).collect();
        let text = json!({"mirrors": mirrors, "ports": ports}).to_string();
        if text == self.last && self.path.exists() {
            return;
        }
        match replace(&self.path, &text) {
            Ok(()) => self.last = text,
            Err(error) => crate::warn!(
                "{} cannot be written ({error}): after a restart this daemon will not know its mirrors",
                self.path.display()
            ),
        }
    }
}

fn replace(path: &Path, text: &str) -> std::io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    // A leftover, or somebody's link: made anew, never followed.
    let _ = fs::remove_file(&temporary);
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    file.write_all(text.as_bytes())?;
    fs::rename(&temporary, path)
}

/// Reads the file's text; what makes no sense in it is left out.
pub fn parse(text: &str) -> Option<Remembered> {
    let value: Value = serde_json::from_str(text).ok()?;
    let mirror = |entry: &Value| {
        let field = |name: &str| entry.get(name).and_then(Value::as_str);
        let host = host_name(field("hostname")?).ok()?;
        let flag = |name: &str| entry.get(name).and_then(Value::as_bool).unwrap_or(false);
        let key = (host.to_owned(), segment_name(field("shm")?).ok()?.to_owned());
        // Earlier versions knew no leases.
        let kept = entry.get("kept").and_then(Value::as_bool).unwrap_or(true);
        let leases = entry.get("leases").and_then(Value::as_u64).unwrap_or(0).min(u16::MAX.into()) as usize;
        Some(MirrorMemory { key, bidirectional: flag("bidirectional"), kept, leases })
    };
    let port = |(name, port): (&String, &Value)| {
        Some((
            segment_name(name).ok()?.to_owned(),
            u16::try_from(port.as_u64()?).ok().filter(|port| *port > 0)?,
        ))
    };
    Some(Remembered {
        mirrors: value.get("mirrors")?.as_array()?.iter().filter_map(mirror).collect(),
        ports: value.get("ports")?.as_object()?.iter().filter_map(port).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_remembered_and_garbage_is_not_believed() {
        let dir = std::env::temp_dir().join(format!("daoserver-persist-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let control = dir.join("c.sock");
        let (mut memory, nothing) = Memory::open(&control);
        assert_eq!(nothing, Remembered::default());
        let key = ("a".to_owned(), "wfs".to_owned());
        let mirrors = vec![MirrorMemory { key, bidirectional: true, kept: false, leases: 3 }];
        let ports = BTreeMap::from([("dm".to_owned(), 5560)]);
        memory.write(&mirrors, &ports);
        assert_eq!(Memory::open(&control).1, Remembered { mirrors, ports });
        for garbage in [
            "",
            "[]",
            "{\"mirrors\": 3}",
            "{\"mirrors\": [{\"hostname\": \"../x\", \"shm\": 1}], \"ports\": {\"a\": 0}}",
        ] {
            fs::write(dir.join("c.sock.memory"), garbage).unwrap();
            assert_eq!(Memory::open(&control).1, Remembered::default(), "{garbage}");
        }
        fs::remove_dir_all(&dir).unwrap();
    }
}
