//! Those who wait for a mirror to run.

use crate::control::commands::Reply;
use crate::control::state::{Holder, MirrorInfo, StreamKey};
use std::collections::BTreeMap;

/// One who waits.
pub struct Asker {
    /// Tells him from others.
    pub ticket: u64,
    /// What he is to the mirror.
    pub holder: Holder,
    /// He was no holder of it before he asked: if he fails he is none.
    pub new: bool,
    /// Where he is answered.
    pub reply: Reply<MirrorInfo>,
}

/// All of them, by stream, in the order of asking.
#[derive(Default)]
pub struct Askers(BTreeMap<StreamKey, Vec<Asker>>);

impl Askers {
    /// Another one.
    pub fn add(&mut self, key: StreamKey, asker: Asker) {
        self.0.entry(key).or_default().push(asker);
    }

    /// All who wait for this mirror, to be answered.
    pub fn take(&mut self, key: &StreamKey) -> Vec<Asker> {
        self.0.remove(key).unwrap_or_default()
    }

    /// One has waited long enough. Returns what is no holder of the mirror any more: if another asker is the same holder,
    /// nothing yet.
    pub fn abandon(&mut self, key: &StreamKey, ticket: u64) -> Option<Holder> {
        let waiting = self.0.get_mut(key)?;
        let gone = waiting.remove(waiting.iter().position(|one| one.ticket == ticket)?);
        match waiting.iter_mut().find(|other| other.holder == gone.holder) {
            Some(other) => {
                other.new |= gone.new;
                None
            }
            None => {
                if waiting.is_empty() {
                    self.0.remove(key);
                }
                gone.new.then_some(gone.holder)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::sync_channel;

    fn asker(ticket: u64, holder: Holder, new: bool) -> Asker {
        Asker { ticket, holder, new, reply: sync_channel(1).0 }
    }

    #[test]
    fn the_last_asker_takes_his_hold_with_him_if_it_came_with_one() {
        let (mut askers, key) = (Askers::default(), ("a".to_owned(), "b".to_owned()));
        askers.add(key.clone(), asker(1, Holder::Kept, true));
        askers.add(key.clone(), asker(2, Holder::Kept, false));
        askers.add(key.clone(), asker(3, Holder::Lease(7), false));
        assert_eq!(askers.abandon(&key, 1), None, "the second wants it to be kept as well");
        assert_eq!(askers.abandon(&key, 3), None, "he held it before");
        assert_eq!(askers.abandon(&key, 9), None, "nobody");
        assert_eq!(askers.abandon(&key, 2), Some(Holder::Kept));
        assert!(askers.take(&key).is_empty() && askers.0.is_empty());
    }
}
