//! Two calls of libzmq that the zmq crate does not wrap: sending from a buffer that is reused, and XPUB_NODROP.
#![allow(unsafe_code)]

use std::cell::UnsafeCell;
use std::os::raw::{c_int, c_void};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Sets ZMQ_XPUB_NODROP: with it a full queue is an EAGAIN that can be counted, without it the frame is dropped for
/// the subscriber whose queue is full, in silence. May be changed at any time by the socket's thread.
pub fn set_xpub_nodrop(socket: &mut zmq::Socket, nodrop: bool) -> zmq::Result<()> {
    let value = c_int::from(nodrop);
    // SAFETY: the socket is alive (borrowed mutably, so no other thread uses it); the option is an int.
    let rc = unsafe {
        zmq_sys::zmq_setsockopt(
            socket.as_mut_ptr(),
            zmq_sys::ZMQ_XPUB_NODROP as c_int,
            (&raw const value).cast(),
            size_of::<c_int>(),
        )
    };
    if rc == 0 { Ok(()) } else { Err(last_error()) }
}

fn last_error() -> zmq::Error {
    // SAFETY: zmq_errno takes nothing and reads a thread-local.
    zmq::Error::from_raw(unsafe { zmq_sys::zmq_errno() })
}

/// One buffer. `in_flight` counts the messages inside libzmq that point into `bytes`.
struct Buffer {
    bytes: UnsafeCell<Box<[u8]>>,
    in_flight: AtomicU32,
}

// SAFETY: `bytes` is written only through `SendPool::buffer_mut`, which needs `&mut SendPool` and in_flight == 0; while
// in_flight > 0, libzmq's threads only read it.
unsafe impl Sync for Buffer {}
// SAFETY: as above; a box of bytes may be freed on any thread.
unsafe impl Send for Buffer {}

/// Called by libzmq, on one of its threads, when it no longer reads a message.
///
/// # Safety
/// `hint` is the pointer that `SendPool::send` made with `Arc::into_raw` for just this message.
unsafe extern "C" fn release(_data: *mut c_void, hint: *mut c_void) {
    // SAFETY: the caller's promise above.
    let buffer = unsafe { Arc::from_raw(hint.cast::<Buffer>()) };
    buffer.in_flight.fetch_sub(1, Ordering::Release); // paired with the Acquire in SendPool::is_free
}

/// A buffer that somebody reads.
pub struct Held(Arc<Buffer>);

impl Held {
    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: nobody writes while in_flight > 0, and it is for as long as `self` lives.
        unsafe { &*self.0.bytes.get() }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Release); // paired with the Acquire in SendPool::is_free
    }
}

/// Writes what is the same in every buffer of a pool.
type Prepare = Box<dyn Fn(&mut [u8]) + Send>;

/// A few equal buffers from which messages are sent without a copy, and which come back when libzmq is done with them.
/// A buffer in flight outlives the pool.
pub struct SendPool {
    buffers: Vec<Arc<Buffer>>,
    buffer_bytes: usize,
    buffers_max: usize,
    prepare: Prepare,
    next: usize,
}

impl SendPool {
    /// `buffers` buffers of `buffer_bytes` bytes, touched now, so that no frame pays for a first page fault. When all
    /// are in flight (several subscribers that are stuck at different frames), up to `buffers_max` are made.
    /// `prepare` writes what is the same in all of them, once in each.
    pub fn new(
        buffers: usize,
        buffers_max: usize,
        buffer_bytes: usize,
        prepare: impl Fn(&mut [u8]) + Send + 'static,
    ) -> SendPool {
        let mut pool = SendPool {
            buffers: Vec::with_capacity(buffers_max),
            buffer_bytes,
            buffers_max,
            prepare: Box::new(prepare),
            next: 0,
        };
        for _ in 0..buffers {
            pool.grow();
        }
        pool
    }

    fn grow(&mut self) {
        // Not `vec![0; n]`, which maps untouched zero pages.
        let mut bytes = Vec::with_capacity(self.buffer_bytes);
        bytes.resize_with(self.buffer_bytes, || std::hint::black_box(0u8));
        (self.prepare)(&mut bytes);
        let buffer = Buffer { bytes: UnsafeCell::new(bytes.into()), in_flight: AtomicU32::new(0) };
        self.buffers.push(Arc::new(buffer));
    }

    fn is_free(&self, index: usize) -> bool {
        self.buffers[index].in_flight.load(Ordering::Acquire) == 0
    }

    /// The index of a buffer that nobody reads, or `None` when all are in flight and no more may be made.
    pub fn acquire(&mut self) -> Option<usize> {
        let count = self.buffers.len();
        // Round robin: the oldest is the likeliest to be back.
        if let Some(index) =
            (0..count).map(|step| (self.next + step) % count).find(|&index| self.is_free(index))
        {
            self.next = (index + 1) % count;
            return Some(index);
        }
        (count < self.buffers_max).then(|| {
            self.grow();
            count
        })
    }

    /// The buffer's bytes.
    ///
    /// # Panics
    /// If it is in flight: a fault of the caller, who got the index from [`SendPool::acquire`] and has sent it since.
    pub fn buffer_mut(&mut self, index: usize) -> &mut [u8] {
        assert!(self.is_free(index), "buffer {index} is in flight");
        // SAFETY: nobody else reads (in_flight is 0) or writes (we hold `&mut self`) for the borrow's length.
        unsafe { &mut *self.buffers[index].bytes.get() }
    }

    /// Keeps the buffer from being written for as long as what this gives lives.
    pub fn hold(&self, index: usize) -> Held {
        let buffer = Arc::clone(&self.buffers[index]);
        buffer.in_flight.fetch_add(1, Ordering::Relaxed); // the same thread writes to it next
        Held(buffer)
    }

    /// Sends `range` of the buffer as one message part. The buffer is in flight from now on; several parts may be.
    pub fn send(
        &self,
        socket: &mut zmq::Socket,
        index: usize,
        range: std::ops::Range<usize>,
        flags: i32,
    ) -> zmq::Result<()> {
        let buffer = &self.buffers[index];
        assert!(
            range.start <= range.end && range.end <= self.buffer_bytes,
            "{range:?} is outside the buffer"
        );
        buffer.in_flight.fetch_add(1, Ordering::Relaxed); // the message handed over below carries the order
        let hint = Arc::into_raw(Arc::clone(buffer)).cast_mut().cast::<c_void>();
        let mut message = zmq_sys::zmq_msg_t::default();
        // SAFETY: the range is inside the box, whose address never changes; the box lives until `release` has dropped
        // the Arc behind `hint`; nobody writes to it while in_flight > 0.
        let rc = unsafe {
            let data = (*buffer.bytes.get()).as_mut_ptr().add(range.start).cast::<c_void>();
            zmq_sys::zmq_msg_init_data(&mut message, data, range.len(), Some(release), hint)
        };
        if rc != 0 {
            // Only for want of memory. SAFETY: libzmq has not taken the message, so `hint` is still ours.
            unsafe { release(std::ptr::null_mut(), hint) };
            return Err(last_error());
        }
        // SAFETY: the message was initialised above; libzmq takes it over when the send succeeds, else we close it,
        // which calls `release`.
        unsafe {
            if zmq_sys::zmq_msg_send(&mut message, socket.as_mut_ptr(), flags as c_int) >= 0 {
                return Ok(());
            }
            let error = last_error();
            zmq_sys::zmq_msg_close(&mut message);
            Err(error)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_when_the_message_is_gone() {
        let context = zmq::Context::new();
        let mut sender = context.socket(zmq::PAIR).unwrap();
        let receiver = context.socket(zmq::PAIR).unwrap();
        sender.bind("inproc://pool").unwrap();
        receiver.connect("inproc://pool").unwrap();
        let mut pool = SendPool::new(1, 2, 1_000, |_| ());
        let index = pool.acquire().unwrap();
        pool.buffer_mut(index).fill(7);
        pool.send(&mut sender, index, 100..900, 0).unwrap();
        assert!(!pool.is_free(index));
        assert_eq!(pool.acquire(), Some(1), "the pool grows to its limit");
        pool.send(&mut sender, 1, 0..1_000, 0).unwrap();
        assert_eq!(pool.acquire(), None);
        let message = receiver.recv_msg(0).unwrap();
        assert_eq!((message.len(), message[0]), (800, 7));
        drop(message);
        assert!(pool.is_free(index));
        drop(pool);
        assert_eq!(receiver.recv_msg(0).unwrap().len(), 1_000, "a buffer in flight outlives the pool");
    }

    #[test]
    fn our_build_of_libzmq_names_its_threads_and_uses_eventfd() {
        let context = zmq::Context::new();
        let socket = context.socket(zmq::PUB).unwrap();
        socket.set_tcp_keepalive(1).unwrap();
        socket.bind("tcp://127.0.0.1:*").unwrap();
        // The thread names itself once it runs.
        let named = || {
            let tasks = std::fs::read_dir("/proc/self/task").unwrap();
            let names = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
            names.into_iter().any(|name| name.starts_with("ZMQbg"))
        };
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while !named() {
            assert!(std::time::Instant::now() < deadline, "no thread named ZMQbg: see .cargo/config.toml");
            std::thread::yield_now();
        }
        let eventfd = std::fs::read_dir("/proc/self/fd")
            .unwrap()
            .filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok())
            .any(|target| target.to_string_lossy().contains("eventfd"));
        assert!(eventfd, "the defines in .cargo/config.toml did not take");
    }
}
