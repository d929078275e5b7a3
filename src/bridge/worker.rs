//! The one loop that runs publishers and mirrors: work, else idle, until stopped or ended.

use crate::bridge::backoff::Idle;
use crate::bridge::pace::Pace;
use crate::os::clock;
use crate::os::scheduling::{self, Place};
use crate::os::threads::{Handle, Stop, spawn};
use std::fmt;
use std::time::Duration;

/// Looks between two turns of who spins: some hundreds of nanoseconds.
const PEEKS: u32 = 16;

/// Why a worker ended by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The segment's file was removed, replaced, or cut short.
    SegmentGone,
    /// The segment has another shape or type now.
    ShapeChanged,
    /// The thread panicked.
    Panicked(String),
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ended::SegmentGone => write!(f, "its segment was removed or replaced"),
            Ended::ShapeChanged => write!(f, "its segment changed shape or type"),
            Ended::Panicked(why) => write!(f, "its thread panicked: {why}"),
        }
    }
}

/// Something that is called again and again. Tests call `do_work` by hand.
pub trait Worker: Send {
    /// Does what there is to do without waiting; how many items it was. `Err` ends the worker.
    fn do_work(&mut self) -> Result<usize, Ended>;

    /// Might there be work? A few loads and no system call, for who spins: a whole turn takes many times as long.
    fn peek(&self) -> bool {
        true
    }

    /// Has a part of something come or gone, and the rest of it is to follow at once? It is not worth a sleep then.
    fn is_under_way(&self, _now_ns: i64) -> bool {
        false
    }

    /// Called once when it is stopped, before it goes.
    fn finish(&mut self) {}

    /// Waits where `do_work` had nothing to do: until this time is over, or something has come.
    fn park(&mut self, time: Duration) {
        std::thread::sleep(time);
    }
}

/// Runs a worker on a thread of this name and place until it is stopped or ends. `on_end` hears of an end by itself, on that
/// thread; it is not called for a stop.
pub fn run(
    name: &str,
    mut pace: Pace,
    place: Place,
    mut worker: impl Worker + 'static,
    on_end: impl FnOnce(Ended) + Send + Clone + 'static,
) -> std::io::Result<Handle> {
    let on_panic = on_end.clone();
    let body = move |stop: &Stop| {
        scheduling::prefer_latency();
        if let Err(why) = scheduling::take_place(place) {
            crate::warn!("this thread runs like any other: {why}");
        }
        while !stop.is_set() {
            let begun_ns = clock::monotonic_ns();
            match worker.do_work() {
                Err(ended) => {
                    drop(worker); // its port is free before anybody hears of the end
                    return on_end(ended);
                }
                Ok(0) if pace.may_spin() && worker.is_under_way(begun_ns) => {
                    pace.on_part(begun_ns);
                    std::thread::yield_now();
                }
                Ok(0) => match pace.idle(begun_ns) {
                    Idle::Spin => {
                        for _ in 0..PEEKS {
                            std::hint::spin_loop();
                            if worker.peek() {
                                break;
                            }
                        }
                    }
                    Idle::Yield => std::thread::yield_now(),
                    Idle::Park(time) => worker.park(time),
                },
                Ok(_) => pace.on_work(begun_ns),
            }
        }
        worker.finish();
    };
    spawn(name, Stop::new(), body, move |said| on_panic(Ended::Panicked(said)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bridge::pace::Role;
    use crate::settings::Polling;
    use std::sync::mpsc;

    struct Countdown(usize);

    impl Worker for Countdown {
        fn do_work(&mut self) -> Result<usize, Ended> {
            self.0 = self.0.checked_sub(1).ok_or(Ended::SegmentGone)?;
            assert!(self.0 != 13, "thirteen");
            Ok(1)
        }
    }

    #[test]
    fn an_end_and_a_panic_are_both_told() {
        for (start, expected) in [(5, Ended::SegmentGone), (20, Ended::Panicked("thirteen".into()))] {
            let (sender, receiver) = mpsc::channel();
            let pace = Pace::new(Polling::Adaptive, Role::Mirror);
            let handle = run("w", pace, Place::default(), Countdown(start), move |ended| {
                sender.send(ended).unwrap();
            });
            assert_eq!(receiver.recv().unwrap(), expected);
            handle.unwrap().join_within(Duration::from_secs(10)).unwrap();
        }
    }
}
