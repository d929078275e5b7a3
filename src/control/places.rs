//! Where the threads of streams run, as `--cpu`, `--rt-priority` and `--lock-memory` ask. What the host does not allow
//! is said once and left out: a stream that runs like any other thread is better than none.

use crate::os::scheduling::{self, Place};
use crate::settings::{Polling, Settings};

/// Hands out places in turn.
pub struct Places {
    cores: Vec<usize>,
    fifo_priority: Option<u8>,
    given: usize,
}

impl Places {
    /// Tries what is asked for, and locks the memory.
    pub fn prepare(settings: &Settings) -> Places {
        let gets = |place: Place, what: String| match scheduling::try_place(place) {
            Ok(()) => true,
            Err(why) => {
                crate::warn!("{what} is left out: {why}");
                false
            }
        };
        let mut cores = settings.cores.clone();
        cores.retain(|core| {
            gets(Place { core: Some(*core), ..Place::default() }, format!("core {core} of --cpu"))
        });
        let fifo_priority = settings.rt_priority.filter(|priority| {
            let place = Place { fifo_priority: Some(*priority), ..Place::default() };
            gets(place, format!("--rt-priority {priority}"))
        });
        if fifo_priority.is_some() && settings.poll == Polling::Spin {
            let isolated = scheduling::isolated_cores();
            if cores.is_empty() || cores.iter().any(|core| !isolated.contains(core)) {
                crate::warn!(
                    "--rt-priority with --poll spin keeps all others from its cores, and they are not isolated: frames \
                     will be late by tens of milliseconds; name isolated cores with --cpu, or use --poll adaptive"
                );
            }
        }
        if settings.lock_memory
            && let Err(why) = scheduling::lock_memory()
        {
            crate::warn!("--lock-memory is left out: {why}");
        }
        Places { cores, fifo_priority, given: 0 }
    }

    /// The next stream's.
    pub fn take(&mut self) -> Place {
        let core = self.cores.get(self.given % self.cores.len().max(1)).copied();
        self.given += 1;
        Place { core, fifo_priority: self.fifo_priority }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_take_the_cores_in_turn() {
        let mut places = Places { cores: vec![2, 5], fifo_priority: None, given: 0 };
        let cores: Vec<_> = (0..3).map(|_| places.take().core).collect();
        assert_eq!(cores, [Some(2), Some(5), Some(2)]);
        let mut anywhere = Places { cores: vec![], fifo_priority: Some(3), given: 0 };
        assert_eq!(anywhere.take(), Place { core: None, fifo_priority: Some(3) });
    }

    #[test]
    fn cores_that_the_machine_does_not_have_are_left_out() {
        let settings = Settings { cores: vec![1_023], ..Settings::named("h") };
        assert_eq!(Places::prepare(&settings).take(), Place::default());
    }
}
