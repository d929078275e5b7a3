//! Named threads with a stop, a bounded join and a report of how they ended.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Locks plain data, from which its next user goes on however a panic of another thread has left it (reconciling starts
/// from whatever the central state says): so a Mutex's poison is ignored.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Tells threads to stop, and wakes those that wait. Clones share one flag; it is never taken back.
#[derive(Clone, Default)]
pub struct Stop(Arc<StopInner>);

#[derive(Default)]
struct StopInner {
    flag: AtomicBool,
    lock: Mutex<()>,
    changed: Condvar,
}

impl Stop {
    /// A flag that is not set.
    pub fn new() -> Stop {
        Stop::default()
    }

    /// Sets the flag and wakes every waiter.
    pub fn set(&self) {
        let _guard = lock(&self.0.lock);
        self.0.flag.store(true, Ordering::Release); // paired with the load in is_set
        self.0.changed.notify_all();
    }

    /// One relaxed-cost load: for hot loops.
    pub fn is_set(&self) -> bool {
        self.0.flag.load(Ordering::Acquire)
    }

    /// Waits for this long or until the flag is set; says whether it is.
    pub fn wait(&self, time: Duration) -> bool {
        let deadline = Instant::now() + time;
        let mut guard = lock(&self.0.lock);
        while !self.is_set() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = self.0.changed.wait_timeout(guard, left);
            guard = waited.unwrap_or_else(|poisoned| poisoned.into_inner()).0;
        }
        true
    }
}

/// A thread that did not end in time: its name.
#[derive(Debug)]
pub struct Late(pub String);

impl fmt::Display for Late {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "thread {} has not stopped in time and is left behind", self.0)
    }
}

/// A running thread.
pub struct Handle {
    name: String,
    stop: Stop,
    ended: mpsc::Receiver<()>,
    join: JoinHandle<()>,
}

impl Handle {
    /// Asks the thread to stop; does not wait.
    pub fn stop(&self) {
        self.stop.set();
    }

    /// Its name, once it has ended.
    pub fn ended(&self) -> Option<&str> {
        self.join.is_finished().then_some(&self.name)
    }

    /// Waits for the thread to end, at most this long.
    pub fn join_within(self, time: Duration) -> Result<(), Late> {
        // A disconnect is an end as well: the sender lives as long as the thread's body.
        match self.ended.recv_timeout(time) {
            Err(mpsc::RecvTimeoutError::Timeout) => Err(Late(self.name)),
            _ => self.join.join().map_err(|_| Late(self.name)),
        }
    }
}

/// Starts a thread of this name. `body` gets the stop flag; `on_panic` gets what a panic said, on the dying thread,
/// after it was logged: a panic never goes unseen and never takes the process.
///
/// Linux shows the first 15 characters of a name; Rust and our log show all of it.
pub fn spawn(
    name: &str,
    stop: Stop,
    body: impl FnOnce(&Stop) + Send + 'static,
    on_panic: impl FnOnce(String) + Send + 'static,
) -> std::io::Result<Handle> {
    let (sender, ended) = mpsc::channel();
    let thread_stop = stop.clone();
    let join = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        let _sender = sender;
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| body(&thread_stop))) {
            let said = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("a panic without words")
                .to_owned();
            crate::metrics::THREAD_PANICS.add(1);
            crate::error!("the thread panicked: {said}");
            on_panic(said);
        }
    })?;
    Ok(Handle { name: name.to_owned(), stop, ended, join })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_waiting_thread_wakes_when_told_to_stop() {
        let handle =
            spawn("t", Stop::new(), |stop| assert!(stop.wait(Duration::from_secs(60))), |_| ()).unwrap();
        handle.stop();
        handle.join_within(Duration::from_secs(10)).unwrap();
    }

    #[test]
    fn a_panic_is_reported_and_the_join_still_works() {
        let (sender, receiver) = mpsc::channel();
        let handle =
            spawn("t", Stop::new(), |_| panic!("boom {}", 1), move |said| sender.send(said).unwrap());
        let handle = handle.unwrap();
        while handle.ended().is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(handle.ended(), Some("t"));
        handle.join_within(Duration::from_secs(10)).unwrap();
        assert_eq!(receiver.recv().unwrap(), "boom 1");
    }

    #[test]
    fn a_late_thread_is_named() {
        let (sender, receiver) = mpsc::channel::<()>();
        let handle = spawn("slow", Stop::new(), move |_| receiver.recv().unwrap_or(()), |_| ()).unwrap();
        assert_eq!(handle.join_within(Duration::from_millis(1)).unwrap_err().0, "slow");
        drop(sender);
    }
}
