//! Segments: layouts, opening and creating, consistent reads, writes, semaphores. Knows nothing of the
//! network.
//!
//! The file format is the C library's (daoBase): `<dir>/<name>.im.shm`, mapped shared by every process of the
//! host. Nothing in such a file is trusted: other people's programs write it, truncate it and replace it
//! while we look.
//!
//! | file | holds |
//! |---|---|
//! | `layout` | the generations of the format, every offset, what a header says and whether it can be |
//! | `error` | what opening can fail with, and whether to wait, retry or report |
//! | `probe` | looking at a file without mapping it; scanning a directory |
//! | `fault` | surviving a file that shrinks below a mapping |
//! | `mapping` | checked, atomic and volatile access to mapped bytes |
//! | `segment` | an open segment |
//! | `reader` | consistent copies of frames |
//! | `loan` | a ring's frame that leaves from where it stands |
//! | `writer` | frames in, in the library's order |
//! | `semaphore` | the named semaphores beside a segment |
//! | `create` | new segments, and their removal |
//! | `keyword` | the 120-byte keywords |

mod create;
mod error;
mod fault;
mod keyword;
mod layout;
mod loan;
mod mapping;
mod probe;
mod reader;
mod segment;
mod semaphore;
mod writer;

pub use create::{CreateError, check_own, create, remove, remove_unfinished};
pub use error::{Advice, OpenError};
pub use keyword::{KEYWORD_BYTES, Keyword, KeywordValue};
pub use layout::{Layout, SegmentSpec};
pub use loan::Loan;
pub use probe::{Facts, Identity, ScanEntry, newest_layout, probe, scan, short};
pub use reader::{Outcome, Reader};
pub use segment::{Access, FrameMeta, Segment};
pub use semaphore::{Bell, semaphore_count};
pub use writer::{WriteError, Writer};
