//! New segments, and their removal.

use super::error::OpenError;
use super::keyword::{KEYWORD_BYTES, Keyword};
use super::layout::{self, SEMAPHORES, SegmentSpec, at};
use super::mapping;
use super::probe;
use super::segment::{Access, Segment};
use super::semaphore;
use crate::os::{clock, process};
use crate::{limits, naming};
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What the library leaves where a keyword was never set.
pub(super) const UNUSED_KEYWORD: [u8; KEYWORD_BYTES] = {
    let mut bytes = [0; KEYWORD_BYTES];
    bytes[16] = b'N';
    bytes
};

/// Why a segment was not created.
#[derive(Debug)]
pub enum CreateError {
    /// The path has no name that a segment can have.
    BadPath(PathBuf, String),
    /// No segment can be made so.
    BadSpec(String),
    /// The operating system refused.
    Io {
        /// The operation.
        what: &'static str,
        /// Its error.
        error: io::Error,
    },
    /// It was created, and somebody else changed it before it could be opened.
    Open(OpenError),
}

impl fmt::Display for CreateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CreateError::BadPath(path, why) => write!(f, "cannot create {}: {why}", path.display()),
            CreateError::BadSpec(why) => write!(f, "no such segment can be created: {why}"),
            CreateError::Io { what, error } => write!(f, "cannot {what}: {error}"),
            CreateError::Open(error) => write!(f, "it was created, but cannot be opened: {error}"),
        }
    }
}

impl std::error::Error for CreateError {}

fn failed(what: &'static str) -> impl Fn(io::Error) -> CreateError {
    move |error| CreateError::Io { what, error }
}

fn check(spec: &SegmentSpec) -> Result<(), String> {
    if !spec.layout.creatable() {
        return Err(format!("the layout {} can only be read", spec.layout));
    }
    if spec.depth == 0 || spec.depth > limits::RING_DEPTH_MAX {
        return Err(format!("a ring has 1 to {} frames, not {}", limits::RING_DEPTH_MAX, spec.depth));
    }
    if spec.depth > 1 && spec.layout.depth_offset().is_none() {
        return Err(format!("the layout {} has one frame, not {}", spec.layout, spec.depth));
    }
    if spec.keywords > limits::KEYWORDS_MAX {
        return Err(format!(
            "a segment has at most {} keywords, not {}",
            limits::KEYWORDS_MAX,
            spec.keywords
        ));
    }
    if spec.frame_bytes() > limits::FRAME_BYTES_MAX {
        return Err(format!(
            "a frame has at most {} bytes, not {}",
            limits::FRAME_BYTES_MAX,
            spec.frame_bytes()
        ));
    }
    Ok(())
}

/// The metadata block of one slot.
fn metadata(path: &Path, spec: &SegmentSpec, slot: u32, now_s: f64) -> Vec<u8> {
    let mut block = vec![0; spec.layout.metadata_bytes()];
    let mut put = |offset: usize, bytes: &[u8]| block[offset..offset + bytes.len()].copy_from_slice(bytes);
    let name = path.as_os_str().as_bytes();
    // A NUL must follow.
    put(at::NAME, &name[..name.len().min(at::NAME_BYTES - 1)]);
    put(at::NAXIS, &[spec.shape.naxis()]);
    for (axis, size) in spec.shape.axes().iter().enumerate() {
        put(at::SIZE + 4 * axis, &size.to_le_bytes());
    }
    if spec.shape.naxis() == 1 {
        // The one intended difference to the library: it leaves 0 here, and ends the program that opens such
        // a segment with it.
        put(at::SIZE + 4, &1u32.to_le_bytes());
    }
    put(at::NELEMENT, &(spec.shape.elements() as u64).to_le_bytes());
    put(at::ATYPE, &[spec.dtype.atype()]);
    put(at::CREATION_TIME, &now_s.to_le_bytes());
    put(at::LAST_ACCESS, &now_s.to_le_bytes());
    put(at::SHARED, &[1]);
    put(at::KEYWORDS, &spec.keywords.to_le_bytes());
    if slot == 0 {
        put(at::SEM, &SEMAPHORES.to_le_bytes());
        if let Some(offset) = spec.layout.depth_offset() {
            put(offset, &spec.depth.to_le_bytes());
            // So that the first frame goes into slot 0.
            put(offset + 4, &(spec.depth - 1).to_le_bytes());
        }
    }
    block
}

/// What the name of a file begins and ends with that is to become a segment; its maker's process id stands between.
const UNFINISHED_BEGIN: &str = ".daoserver-";
const UNFINISHED_END: &str = ".new";
/// A file of a maker whom we cannot see, in another container, changes more often than this.
const UNFINISHED_AGE: Duration = Duration::from_secs(10);

/// Removes what makers that were killed have left in a directory: frames may be large. Returns how many files.
pub fn remove_unfinished(dir: &Path) -> usize {
    let left = |entry: &fs::DirEntry| {
        let name = entry.file_name();
        let name = name.to_str()?.strip_prefix(UNFINISHED_BEGIN)?.strip_suffix(UNFINISHED_END)?;
        let maker: u32 = name.split_once('-')?.0.parse().ok()?;
        let age = entry.metadata().ok()?.modified().ok()?.elapsed().ok()?;
        (age >= UNFINISHED_AGE && !Path::new(&format!("/proc/{maker}")).exists()).then_some(())
    };
    let entries = dir.read_dir().into_iter().flatten().flatten().filter(|entry| left(entry).is_some());
    entries.filter(|entry| fs::remove_file(entry.path()).is_ok()).count()
}

/// Deletes what was begun, unless it was finished.
struct Unfinished(PathBuf);

impl Drop for Unfinished {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn fill(file: &mut File, path: &Path, spec: &SegmentSpec, keywords: &[Keyword]) -> io::Result<()> {
    // Not sparse: a full file system is an error here, not a SIGBUS at some frame.
    mapping::allocate(file, spec.file_bytes())?;
    let now_s = clock::realtime_ns() as f64 * 1e-9;
    for slot in 0..spec.depth {
        file.write_all(&metadata(path, spec, slot, now_s))?;
    }
    let given = keywords.iter().map(Keyword::encode).chain(std::iter::repeat(UNUSED_KEYWORD));
    let bytes: Vec<u8> = given.take(spec.keywords.into()).flatten().collect();
    file.write_all_at(&bytes, spec.keywords_offset() as u64)
}

/// Creates a segment and opens it for writing: with no frame yet, these keywords (unused ones follow), and
/// ten semaphores and the log's beside it.
///
/// It is made under another name and then renamed, so nobody sees it half done, and who has an older file of
/// this name mapped keeps it. Mode 0600, less what the umask takes.
pub fn create(path: &Path, spec: &SegmentSpec, keywords: &[Keyword]) -> Result<Segment, CreateError> {
    static SERIAL: AtomicU64 = AtomicU64::new(0);
    let bad_path = |why: &str| CreateError::BadPath(path.to_owned(), why.to_owned());
    let file_name = path.file_name().and_then(|name| name.to_str());
    let file_name = file_name.ok_or_else(|| bad_path("its name is no UTF-8"))?;
    if !file_name.ends_with(naming::SEGMENT_SUFFIX) {
        return Err(bad_path("its name must end with .im.shm"));
    }
    let base = naming::semaphore_base(path).filter(|_| !file_name.starts_with('.'));
    let base = base.ok_or_else(|| bad_path("its name begins with a dot"))?;
    check(spec).map_err(CreateError::BadSpec)?;
    if keywords.len() > usize::from(spec.keywords) {
        let why = format!("{} keywords do not fit into {}", keywords.len(), spec.keywords);
        return Err(CreateError::BadSpec(why));
    }
    if path.is_dir() {
        return Err(bad_path("it is a directory"));
    }

    let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
    // Begins with a dot and ends with no segment's ending: no scan takes it for one.
    let unfinished =
        path.with_file_name(format!("{UNFINISHED_BEGIN}{}-{serial}{UNFINISHED_END}", std::process::id()));
    // Left by a process of the same number that was killed.
    let _ = fs::remove_file(&unfinished);
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    let mut file = options.open(&unfinished).map_err(failed("create the segment's file"))?;
    let unfinished = Unfinished(unfinished);
    fill(&mut file, path, spec, keywords).map_err(failed("fill the segment's file"))?;
    if let Err(error) = semaphore::create(&base) {
        // Those of a segment that is to be replaced are still in use.
        if path.symlink_metadata().is_err() {
            semaphore::undo(&base);
        }
        return Err(failed("create the segment's semaphores")(error));
    }
    fs::rename(&unfinished.0, path).map_err(failed("rename the segment's file"))?;
    Segment::open(path, Access::ReadWrite).map_err(CreateError::Open)
}

/// May who knows nothing of the file at this path, but keeps segments of this name there, put one in its place? Nothing is
/// there, or a segment of this user that bears its own name: whole, cut short or half made. The error says what it is.
pub fn check_own(path: &Path) -> Result<(), String> {
    let file = match probe::open_file(path, false) {
        Ok(file) => file,
        Err(OpenError::NotThere) => return Ok(()),
        Err(why) => return Err(why.to_string()),
    };
    let metadata = file.metadata().map_err(|error| error.to_string())?;
    if metadata.uid() != process::user() {
        return Err(format!("it belongs to another user, {}", metadata.uid()));
    }
    let mut head = [0; layout::HEAD_BYTES];
    let length = file.read_at(&mut head, 0).map_err(|error| error.to_string())?;
    let name = head.get(at::NAME..at::NAME + at::NAME_BYTES).unwrap_or_default();
    // Made by the library, which writes the name after it has made the file long.
    if length == 0 || head.iter().all(|byte| *byte == 0) || bears_name(name, path) {
        return Ok(());
    }
    Err("it is no segment of this name".to_owned())
}

/// Is this what a segment at `path` has as its name: the path, however it was written, and cut where the field ends?
fn bears_name(field: &[u8], path: &Path) -> bool {
    let name = field.split(|byte| *byte == 0).next().unwrap_or_default();
    let whole = path.as_os_str().as_bytes();
    let Some(file_name) = path.file_name().map(OsStrExt::as_bytes) else { return false };
    if name.len() + 1 == at::NAME_BYTES && whole.starts_with(name) {
        return true;
    }
    name.rsplit(|byte| *byte == b'/').next() == Some(file_name)
}

/// Removes a segment: its file and its semaphores. Refuses what is no segment's file. Who has it mapped keeps
/// it.
pub fn remove(path: &Path) -> io::Result<()> {
    let refuse = |why: String| io::Error::new(io::ErrorKind::InvalidInput, why);
    let base =
        naming::semaphore_base(path).filter(|_| path.to_string_lossy().ends_with(naming::SEGMENT_SUFFIX));
    let base = base.ok_or_else(|| refuse("its name must end with .im.shm".into()))?;
    match probe::probe(path) {
        // Half a segment may stay behind when its creator is killed.
        Ok(_) | Err(OpenError::BeingCreated) => {}
        Err(OpenError::NotThere) => return Err(io::ErrorKind::NotFound.into()),
        Err(OpenError::Io { errno, .. }) => return Err(io::Error::from_raw_os_error(errno)),
        Err(why) => return Err(refuse(why.to_string())),
    }
    fs::remove_file(path)?;
    semaphore::remove(&base);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;

    #[test]
    fn what_a_killed_maker_left_goes_and_nothing_else() {
        let dir = std::env::temp_dir().join(format!("daoserver-unfinished-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        // No process has such a number.
        let nobody = u32::MAX;
        let names = [
            format!(".daoserver-{nobody}-0.new"),
            format!(".daoserver-{}-0.new", std::process::id()),
            format!(".daoserver-{nobody}-young.new"),
            ".daoserver-host.sock.memory.new".to_owned(),
            format!("daoserver-{nobody}-0.new"),
        ];
        for name in &names {
            let file = File::create(dir.join(name)).unwrap();
            if !name.contains("young") {
                file.set_modified(SystemTime::now() - 2 * UNFINISHED_AGE).unwrap();
            }
        }
        assert_eq!(remove_unfinished(&dir), 1);
        assert!(!dir.join(&names[0]).exists() && names[1..].iter().all(|name| dir.join(name).exists()));
        fs::remove_dir_all(&dir).unwrap();
    }
}
