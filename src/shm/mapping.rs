//! Checked access to mapped bytes that other processes write at the same time.
//!
//! No reference to the bytes ever leaves this file, except to single atomics: fields are loaded and stored as
//! atomics, pixels are copied between the mapping and private memory, or by the kernel into a descriptor. Offsets are
//! checked; one out of range is a bug of ours.
#![allow(unsafe_code)] // raw pointers into the mapping, writev

use super::error::OpenError;
use super::fault::Guard;
use memmap2::{MmapOptions, MmapRaw};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

/// Bytes that one look of [`Mapping::matches`] compares: a cache line.
const LINE_BYTES: usize = 64;

/// A copy of a large frame goes through so many places of it at a time. What another core has just written comes out of that
/// core's cache, and a processor fetches ahead only so far in each page: 64 kB take 3.4 us so instead of 4.6, 1 MB 44
/// instead of 55. An odd number, since places whose distance is a power of two share the sets of a cache.
const LANES: usize = 7;
/// Smaller frames gain nothing.
const LANES_FROM_BYTES: usize = 48 * 1024;

/// Frames so large are written past the caches, which could not keep them: what stood there need not be fetched first. 16 MB
/// take 1.2 ms so instead of 1.8, and who reads them next, on another core, takes 1.75 instead of 1.55.
pub(super) const PAST_CACHES_FROM_BYTES: usize = 4 << 20;

/// A shared mapping of a whole segment.
pub(super) struct Mapping {
    // Before the memory: fields are dropped in order, and a guard must go before its range is unmapped.
    guard: Guard,
    memory: MmapRaw,
    writable: bool,
}

impl Mapping {
    /// Maps the first `bytes` bytes of the file, which must have been opened for it.
    pub fn new(file: &File, bytes: usize, writable: bool) -> Result<Mapping, OpenError> {
        let mut options = MmapOptions::new();
        options.len(bytes);
        let memory = if writable { options.map_raw(file) } else { options.map_raw_read_only(file) };
        let memory = memory.map_err(|error| OpenError::io("map", &error))?;
        let guard = Guard::new(memory.as_ptr() as usize, bytes)?;
        Ok(Mapping { guard, memory, writable })
    }

    /// Did the file shrink under the mapping? Then what was read is zeros in part, and what was written is
    /// nowhere.
    pub fn lost(&self) -> bool {
        self.guard.lost()
    }

    /// May it be written to?
    pub fn writable(&self) -> bool {
        self.writable
    }

    fn pointer(&self, offset: usize, bytes: usize) -> *mut u8 {
        let end = offset.checked_add(bytes);
        assert!(
            end.is_some_and(|end| end <= self.memory.len()),
            "{bytes} bytes at {offset} of a mapping of {} bytes",
            self.memory.len()
        );
        self.memory.as_mut_ptr().wrapping_add(offset)
    }

    fn field(&self, offset: usize, bytes: usize) -> *mut u8 {
        assert!(offset.is_multiple_of(bytes), "a field of {bytes} bytes at {offset}");
        self.pointer(offset, bytes)
    }

    fn atomic8(&self, offset: usize) -> &AtomicU8 {
        // SAFETY: inside the mapping (checked), which lives as long as `self`. Other processes' stores to it
        // are what the atomic is for. Loads are all that happens where the mapping is read-only: `store*`
        // check it.
        unsafe { AtomicU8::from_ptr(self.field(offset, 1)) }
    }

    fn atomic16(&self, offset: usize) -> &AtomicU16 {
        // SAFETY: as atomic8; aligned (checked, and the mapping begins at a page).
        unsafe { AtomicU16::from_ptr(self.field(offset, 2).cast()) }
    }

    fn atomic32(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: as atomic16.
        unsafe { AtomicU32::from_ptr(self.field(offset, 4).cast()) }
    }

    fn atomic64(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: as atomic16.
        unsafe { AtomicU64::from_ptr(self.field(offset, 8).cast()) }
    }

    // Loads are Acquire and stores Release throughout. Their partners are the plain stores and loads of the C
    // library in another process, which the compilers it is built with keep in order (its metadata is
    // volatile) and which x86 keeps in order too; and our own writer's.

    /// A byte.
    pub fn load8(&self, offset: usize) -> u8 {
        self.atomic8(offset).load(Ordering::Acquire)
    }
    /// Two bytes.
    pub fn load16(&self, offset: usize) -> u16 {
        self.atomic16(offset).load(Ordering::Acquire)
    }
    /// Four bytes.
    pub fn load32(&self, offset: usize) -> u32 {
        self.atomic32(offset).load(Ordering::Acquire)
    }
    /// Eight bytes.
    pub fn load64(&self, offset: usize) -> u64 {
        self.atomic64(offset).load(Ordering::Acquire)
    }

    fn assert_writable(&self) {
        assert!(self.writable, "a store to a mapping that was opened for reading");
    }

    /// A byte.
    pub fn store8(&self, offset: usize, value: u8) {
        self.assert_writable();
        self.atomic8(offset).store(value, Ordering::Release);
    }
    /// Four bytes.
    pub fn store32(&self, offset: usize, value: u32) {
        self.assert_writable();
        self.atomic32(offset).store(value, Ordering::Release);
    }
    /// Eight bytes.
    pub fn store64(&self, offset: usize, value: u64) {
        self.assert_writable();
        self.atomic64(offset).store(value, Ordering::Release);
    }

    /// Copies bytes out. They may change meanwhile: whether they did is the caller's to find out.
    pub fn copy_out(&self, offset: usize, to: &mut [u8]) {
        let from = self.pointer(offset, to.len());
        let lane_bytes = match to.len() {
            LANES_FROM_BYTES.. => to.len() / LANES / LINE_BYTES * LINE_BYTES,
            _ => 0,
        };
        let (lanes, rest) = to.split_at_mut(lane_bytes * LANES);
        let lanes_bytes = lanes.len();
        // SAFETY: all ranges are valid for their length (the mapping's is checked; each line of a lane ends within it,
        // and all lanes within what was split off for them), and private memory does not overlap a mapping. Bytes that
        // change during the copy give a mixture, and every mixture of bytes is a `u8`.
        unsafe {
            for line in (0..lane_bytes).step_by(LINE_BYTES) {
                for lane in 0..LANES {
                    let at = lane * lane_bytes + line;
                    std::ptr::copy_nonoverlapping(from.add(at), lanes.as_mut_ptr().add(at), LINE_BYTES);
                }
            }
            std::ptr::copy_nonoverlapping(from.add(lanes_bytes), rest.as_mut_ptr(), rest.len());
        }
    }

    /// Has the kernel take `before` and then these bytes, as many of them as it does in one call. They may change meanwhile,
    /// as in [`Mapping::copy_out`]; where the file shrank it takes those before, or refuses.
    pub fn write_out(
        &self,
        offset: usize,
        bytes: usize,
        before: &[u8],
        to: &impl AsRawFd,
    ) -> std::io::Result<usize> {
        let parts = [
            libc::iovec { iov_base: before.as_ptr().cast_mut().cast(), iov_len: before.len() },
            libc::iovec { iov_base: self.pointer(offset, bytes).cast(), iov_len: bytes },
        ];
        // SAFETY: an open descriptor, and two ranges that are valid for their length (the mapping's is checked), from which
        // the kernel only reads; a page of it that is gone is an error of the call, not a signal.
        let taken = unsafe { libc::writev(to.as_raw_fd(), parts.as_ptr(), parts.len() as libc::c_int) };
        usize::try_from(taken).map_err(|_| std::io::Error::last_os_error())
    }

    /// Copies bytes in.
    pub fn copy_in(&self, offset: usize, from: &[u8]) {
        self.copy_in_part(offset, from, from.len());
    }

    /// Copies in a piece of something that has so many bytes.
    pub fn copy_in_part(&self, offset: usize, from: &[u8], whole_bytes: usize) {
        self.assert_writable();
        let to = self.pointer(offset, from.len());
        let (head, past_caches) = match whole_bytes {
            PAST_CACHES_FROM_BYTES.. => {
                let head = to.align_offset(LINE_BYTES).min(from.len());
                (head, (from.len() - head) / LINE_BYTES * LINE_BYTES)
            }
            _ => (0, 0),
        };
        let rest = head + past_caches;
        // SAFETY: as copy_out, the other way. Readers in other processes know that it may change under them. What goes past
        // the caches begins at a line and is whole lines; head, lines and rest are `from`.
        unsafe {
            std::ptr::copy_nonoverlapping(from.as_ptr(), to, head);
            store_past_caches(from.as_ptr().add(head), to.add(head), past_caches);
            std::ptr::copy_nonoverlapping(from.as_ptr().add(rest), to.add(rest), from.len() - rest);
        }
    }

    /// Has the processor fetch these bytes for stores, into this core's cache. Changes nothing, and faults nowhere.
    pub fn warm(&self, offset: usize, bytes: usize) {
        let from = self.pointer(offset, bytes);
        for line in (0..bytes).step_by(LINE_BYTES) {
            // What the compiler has for this fetches for loads alone, unless old processors are left out; to them this
            // says nothing.
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a hint, whatever the address.
            unsafe {
                std::arch::asm!("prefetchw [{}]", in(reg) from.wrapping_add(line), options(nostack, preserves_flags));
            }
            #[cfg(not(target_arch = "x86_64"))]
            let _ = (from, line);
        }
    }

    /// Do the bytes at `offset` still equal the copy? Looks at all of them up to `lines` cache lines, else at
    /// so many lines evenly spread, with the first and the last among them.
    pub fn matches(&self, offset: usize, copy: &[u8], lines: usize) -> bool {
        let all = copy.len().div_ceil(LINE_BYTES);
        let looks = all.min(lines.max(2));
        let mut line = [0u8; LINE_BYTES];
        (0..looks).all(|look| {
            let position = if looks < 2 { 0 } else { look * (all - 1) / (looks - 1) } * LINE_BYTES;
            let part = &copy[position..copy.len().min(position + LINE_BYTES)];
            let now = &mut line[..part.len()];
            self.copy_out(offset + position, now);
            // Without this the compiler could take the second look for the first: nothing it knows of wrote
            // between.
            std::sync::atomic::compiler_fence(Ordering::SeqCst);
            now == part
        })
    }
}

/// Copies whole lines to where a line begins, and has them there before any later store.
///
/// # Safety
/// As `copy_nonoverlapping`; `to` and `bytes` are multiples of [`LINE_BYTES`].
unsafe fn store_past_caches(from: *const u8, to: *mut u8, bytes: usize) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the caller's; SSE2 is part of x86-64, and its stores have the alignment that they need.
    unsafe {
        use std::arch::x86_64::{_mm_loadu_si128, _mm_sfence, _mm_stream_si128};
        if bytes > 0 {
            for at in (0..bytes).step_by(16) {
                _mm_stream_si128(to.add(at).cast(), _mm_loadu_si128(from.add(at).cast()));
            }
            _mm_sfence();
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    // SAFETY: the caller's.
    unsafe {
        std::ptr::copy_nonoverlapping(from, to, bytes);
    }
}

/// Extends the file with zeros that have their place on the device.
pub(super) fn allocate(file: &File, bytes: u64) -> std::io::Result<()> {
    let bytes = libc::off_t::try_from(bytes).map_err(std::io::Error::other)?;
    // SAFETY: takes a descriptor, which `file` keeps open, and numbers.
    match unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, bytes) } {
        0 => Ok(()),
        errno => Err(std::io::Error::from_raw_os_error(errno)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_look_finds_what_changed_since_the_copy() {
        let path = std::env::temp_dir().join(format!("dstest-mapping-{}", std::process::id()));
        let bytes = 10_000;
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        allocate(&file, bytes as u64).unwrap();
        let mapping = Mapping::new(&file, bytes, true).unwrap();
        for length in [0, 1, 63, 64, 65, 128, 9_999] {
            let mut copy = vec![1; length];
            mapping.copy_out(1, &mut copy);
            assert!(mapping.matches(1, &copy, 64), "{length}");
            // First and last bytes are always looked at; all of them while the lines suffice.
            for changed in [0, length / 2, length.saturating_sub(1)] {
                if length > 0 && (length <= 64 * LINE_BYTES || changed != length / 2) {
                    mapping.store8(1 + changed, 9);
                    assert!(!mapping.matches(1, &copy, 64), "{changed} of {length}");
                    mapping.store8(1 + changed, 0);
                }
            }
        }
    }

    #[test]
    fn a_copy_has_every_byte_at_its_place_whatever_its_length() {
        let path = std::env::temp_dir().join(format!("dstest-lanes-{}", std::process::id()));
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let most = 2 * LANES_FROM_BYTES;
        let bytes: Vec<u8> = (0..most + 8).map(|at| (at % 251) as u8).collect();
        allocate(&file, bytes.len() as u64).unwrap();
        let mapping = Mapping::new(&file, bytes.len(), true).unwrap();
        mapping.copy_in(0, &bytes);
        let near = LANES_FROM_BYTES - 2..LANES_FROM_BYTES + 2 * LANES * LINE_BYTES;
        for length in (0..3).chain(near.step_by(29)).chain(most - 3..=most) {
            let mut copy = vec![0; length + 1];
            mapping.copy_out(5, &mut copy[..length]);
            assert!(copy[..length] == bytes[5..5 + length] && copy[length] == 0, "{length}");
        }
    }

    #[test]
    fn what_goes_past_the_caches_has_every_byte_at_its_place_and_touches_no_other() {
        let path = std::env::temp_dir().join(format!("dstest-past-caches-{}", std::process::id()));
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let most = PAST_CACHES_FROM_BYTES + 200;
        let bytes: Vec<u8> = (0..most).map(|at| (at % 251) as u8).collect();
        let (empty, mut copy) = (vec![0; most + 400], vec![0; most + 400]);
        allocate(&file, copy.len() as u64).unwrap();
        let mapping = Mapping::new(&file, copy.len(), true).unwrap();
        for (offset, length) in [(0, most), (1, most), (63, most - 64), (64, most - 137), (200, most - 200)] {
            mapping.copy_in(0, &empty);
            mapping.copy_in(offset, &bytes[..length]);
            mapping.copy_out(0, &mut copy);
            assert!(copy[offset..offset + length] == bytes[..length], "{length} at {offset}");
            let (before, after) = (&copy[..offset], &copy[offset + length..]);
            assert!(before.iter().chain(after).all(|byte| *byte == 0), "{length} at {offset}");
        }
    }

    #[test]
    #[should_panic(expected = "2 bytes at 15")]
    fn an_offset_past_the_end_is_our_own_mistake() {
        let path = std::env::temp_dir().join(format!("dstest-offset-{}", std::process::id()));
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        allocate(&file, 16).unwrap();
        Mapping::new(&file, 16, false).unwrap().copy_out(15, &mut [0; 2]);
    }
}
