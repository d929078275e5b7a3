//! The buffers from which a publisher sends: a frame is copied into one of them once, and leaves from there to everybody.

use crate::bridge::sockets::touched;
use std::sync::Arc;

/// A buffer that somebody is still being sent.
pub struct Held(Arc<Box<[u8]>>);

impl Held {
    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Writes what is the same in every buffer of a pool.
type Prepare = Box<dyn Fn(&mut [u8]) + Send>;

/// A few equal buffers. One is free when nobody holds it, and outlives the pool if somebody does.
pub struct SendPool {
    buffers: Vec<Arc<Box<[u8]>>>,
    buffer_bytes: usize,
    buffers_max: usize,
    prepare: Prepare,
}

impl SendPool {
    /// `buffers` buffers of `buffer_bytes` bytes, touched now, so that no frame pays for a first page fault. When all
    /// are held (several subscribers that are stuck at different frames), up to `buffers_max` are made. `prepare` writes
    /// what is the same in all of them, once in each.
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
        };
        for _ in 0..buffers {
            pool.grow();
        }
        pool
    }

    fn grow(&mut self) {
        let mut bytes = touched(self.buffer_bytes);
        (self.prepare)(&mut bytes);
        self.buffers.push(Arc::new(bytes.into()));
    }

    /// The index of a buffer that nobody holds, or `None` when all are held and no more may be made.
    pub fn acquire(&mut self) -> Option<usize> {
        // The same one each time, if it is back: the caches still have it. A megabyte into one of three buffers in turn took
        // 1.7 times as long.
        let free = self.buffers.iter_mut().position(|buffer| Arc::get_mut(buffer).is_some());
        free.or_else(|| {
            (self.buffers.len() < self.buffers_max).then(|| {
                self.grow();
                self.buffers.len() - 1
            })
        })
    }

    /// The buffer's bytes.
    ///
    /// # Panics
    /// If it is held: a fault of the caller, who got the index from [`SendPool::acquire`] and has sent it since.
    pub fn buffer_mut(&mut self, index: usize) -> &mut [u8] {
        match Arc::get_mut(&mut self.buffers[index]) {
            Some(bytes) => bytes,
            None => panic!("buffer {index} is being sent"),
        }
    }

    /// Keeps the buffer from being written for as long as what this gives lives.
    pub fn hold(&self, index: usize) -> Held {
        Held(Arc::clone(&self.buffers[index]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_when_nobody_is_sent_it_any_more() {
        let mut pool = SendPool::new(1, 2, 10, |buffer| buffer[9] = 1);
        let index = pool.acquire().unwrap();
        pool.buffer_mut(index)[..9].fill(7);
        let (first, again) = (pool.hold(index), pool.hold(index));
        assert_eq!(pool.acquire(), Some(1), "the pool grows to its limit");
        let second = pool.hold(1);
        assert_eq!(pool.acquire(), None);
        drop(first);
        assert_eq!(pool.acquire(), None, "one of two holds it still");
        assert_eq!(again.bytes(), [7, 7, 7, 7, 7, 7, 7, 7, 7, 1]);
        drop(again);
        assert_eq!(pool.acquire(), Some(index));
        drop(pool);
        assert_eq!(second.bytes()[9], 1, "a buffer that is held outlives the pool");
    }
}
