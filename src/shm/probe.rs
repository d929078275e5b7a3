//! Looking at segments without mapping them, which no file can harm: `probe` one, `scan` a directory.

use super::error::OpenError;
use super::layout::{self, HEAD_BYTES, HeadCopy, Layout, SegmentSpec, at};
use crate::{limits, naming};
use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Which file it was: another one under the same path differs in this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The device it is on.
    pub dev: u64,
    /// Its inode.
    pub ino: u64,
    /// Its length.
    pub bytes: u64,
}

impl Identity {
    fn of(metadata: &Metadata) -> Identity {
        Identity { dev: metadata.dev(), ino: metadata.ino(), bytes: metadata.len() }
    }
}

/// What a segment's file says of itself.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The path that was asked for.
    pub path: PathBuf,
    /// Shape, type, generation, depth and number of keywords.
    pub spec: SegmentSpec,
    /// Which file it was.
    pub identity: Identity,
    /// The counter of the newest frame, 0 while none was written.
    pub counter: u64,
    /// When that was, UTC, nanoseconds since 1970.
    pub atime_ns: i64,
    /// When the segment was created, UTC, seconds since 1970; what a file says, so possibly no number at all.
    pub created_s: f64,
    /// The header's number of semaphores; [`super::semaphore_count`] counts those there are.
    pub semaphores: u16,
    /// Its pixels are on a GPU: it can be listed, and [`super::Segment::open`] refuses it.
    pub on_gpu: bool,
}

/// One file of a directory.
#[derive(Clone, Debug)]
pub struct ScanEntry {
    /// The file's name; what is no UTF-8 in it is replaced.
    pub file_name: String,
    /// The name to register it under, or why it has none.
    pub name: Result<String, String>,
    /// What it says, or why it is no segment.
    pub facts: Result<Facts, OpenError>,
}

impl ScanEntry {
    /// Could nothing at all be opened just then?
    pub fn is_want_of_descriptors(&self) -> bool {
        self.facts.as_ref().is_err_and(OpenError::is_want_of_descriptors)
    }
}

/// Opens a regular file without following a link, waiting for a FIFO's other end or leaking into a child.
pub(super) fn open_file(path: &Path, writable: bool) -> Result<File, OpenError> {
    let mut options = OpenOptions::new();
    // std adds O_CLOEXEC.
    options.read(true).write(writable).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    let file = options.open(path).map_err(|error| OpenError::io("open", &error))?;
    let kind = file.metadata().map_err(|error| OpenError::io("stat", &error))?.file_type();
    if kind.is_file() {
        return Ok(file);
    }
    let what = match () {
        () if kind.is_dir() => "a directory",
        () if kind.is_fifo() => "a FIFO",
        () if kind.is_socket() => "a socket",
        () => "a device",
    };
    Err(OpenError::NotAFile { what })
}

/// Reads exactly so many bytes; `None` where the file ends before.
fn read_at<const N: usize>(file: &File, offset: u64) -> Result<Option<[u8; N]>, OpenError> {
    let mut bytes = [0; N];
    match file.read_exact_at(&mut bytes, offset) {
        Ok(()) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(OpenError::io("read", &error)),
    }
}

/// What the open file says of itself.
pub(super) fn examine(file: &File, path: &Path) -> Result<Facts, OpenError> {
    let metadata = file.metadata().map_err(|error| OpenError::io("stat", &error))?;
    let identity = Identity::of(&metadata);
    if identity.bytes == 0 {
        return Err(OpenError::BeingCreated);
    }
    let Some(head) = read_at::<HEAD_BYTES>(file, 0)? else {
        return Err(OpenError::TooShort { bytes: identity.bytes, needed: HEAD_BYTES as u64 });
    };
    let head = HeadCopy(&head);
    let content = head.content()?;
    let pair = |offset: usize| {
        let bytes = read_at::<8>(file, offset as u64)?;
        Ok(bytes.map(u64::from_le_bytes).map(|both| (both as u32, (both >> 32) as u32)))
    };
    let spec = layout::infer(content, identity.bytes, pair)?;
    let mut facts = Facts {
        path: path.to_owned(),
        identity,
        counter: head.u64(at::CNT0),
        atime_ns: head.u64(at::ATIME) as i64,
        created_s: f64::from_bits(head.u64(at::CREATION_TIME)),
        semaphores: head.u16(at::SEM),
        on_gpu: false,
        spec,
    };
    if facts.spec.layout == Layout::Gpu {
        let magic = read_at::<4>(file, at::GPU_MAGIC as u64)?.ok_or(OpenError::Gone)?;
        facts.on_gpu = magic != [0; 4];
    }
    if facts.spec.depth > 1 {
        let offset = facts.spec.layout.depth_offset().unwrap_or(0);
        let (_, slot) = pair(offset)?.ok_or(OpenError::Gone)?;
        let block = facts.spec.metadata_offset(slot.min(facts.spec.depth - 1));
        let fields = read_at::<HEAD_BYTES>(file, block as u64)?.ok_or(OpenError::Gone)?;
        facts.counter = HeadCopy(&fields).u64(at::CNT0);
        facts.atime_ns = HeadCopy(&fields).u64(at::ATIME) as i64;
    }
    Ok(facts)
}

/// Looks at one file. Only reads it: whatever it holds, and whatever is done to it meanwhile, gives an
/// answer.
pub fn probe(path: &Path) -> Result<Facts, OpenError> {
    examine(&open_file(path, false)?, path)
}

/// Which file a path names now.
pub(super) fn identity_of(path: &Path) -> Option<Identity> {
    path.symlink_metadata().ok().map(|metadata| Identity::of(&metadata))
}

/// Looks at every segment file of a directory that is no mirror, in the order of their names, the first
/// [`limits::SEGMENTS_MAX`] of them. Some eight system calls a file.
pub fn scan(dir: &Path) -> io::Result<Vec<ScanEntry>> {
    let mut files = Vec::new();
    for entry in dir.read_dir()? {
        let file_name = entry?.file_name();
        let shown = file_name.to_string_lossy();
        if let Some(name) = naming::registered_name(&shown) {
            files.push((shown.into_owned(), file_name, name));
        }
    }
    files.sort_by(|a, b| a.1.cmp(&b.1));
    files.truncate(limits::SEGMENTS_MAX);
    let look = |(shown, file_name, name): (String, std::ffi::OsString, _)| {
        let name = match file_name.to_str() {
            Some(_) => name,
            None => Err(format!("'{}' is no segment name: it is no UTF-8", shown.escape_default())),
        };
        ScanEntry { facts: probe(&dir.join(file_name)), file_name: shown, name }
    };
    Ok(files.into_iter().map(look).collect())
}

/// The generation that programs on this host use: that of the local segment created last, as far as we can
/// create it; `Fifo` where there is none.
pub fn newest_layout(dir: &Path) -> Layout {
    let entries = scan(dir).unwrap_or_default();
    let facts = entries.iter().filter_map(|entry| entry.facts.as_ref().ok());
    let dated = facts.filter(|facts| facts.created_s.is_finite());
    let newest = dated.max_by(|a, b| a.created_s.total_cmp(&b.created_s));
    newest.map(|facts| facts.spec.layout).filter(|layout| layout.creatable()).unwrap_or(Layout::Fifo)
}
