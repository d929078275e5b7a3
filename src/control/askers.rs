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
    /// He wants to write.
    pub bidirectional: bool,
    /// Nobody wanted to before: if he fails nobody does.
    pub raised: bool,
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

    /// One has waited long enough. Returns him, with what ends with him: if another asker wants the same, nothing yet.
    pub fn abandon(&mut self, key: &StreamKey, ticket: u64) -> Option<Asker> {
        let waiting = self.0.get_mut(key)?;
        let mut gone = waiting.remove(waiting.iter().position(|one| one.ticket == ticket)?);
        if let Some(other) = waiting.iter_mut().find(|other| other.holder == gone.holder) {
            other.new |= std::mem::take(&mut gone.new);
        }
        if let Some(other) = waiting.iter_mut().find(|other| other.bidirectional) {
            other.raised |= std::mem::take(&mut gone.raised);
        }
        if waiting.is_empty() {
            self.0.remove(key);
        }
        Some(gone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::sync_channel;

    fn asker(ticket: u64, holder: Holder, new: bool) -> Asker {
        let raised = new;
        Asker { ticket, holder, new, bidirectional: true, raised, reply: sync_channel(1).0 }
    }

    #[test]
    fn the_last_asker_takes_his_hold_with_him_if_it_came_with_one() {
        let (mut askers, key) = (Askers::default(), ("a".to_owned(), "b".to_owned()));
        askers.add(key.clone(), asker(1, Holder::Kept, true));
        askers.add(key.clone(), asker(2, Holder::Kept, false));
        askers.add(key.clone(), asker(3, Holder::Lease(7), false));
        let ends = |askers: &mut Askers, ticket| {
            askers.abandon(&key, ticket).map(|gone| (gone.new.then_some(gone.holder), gone.raised))
        };
        assert_eq!(
            ends(&mut askers, 1),
            Some((None, false)),
            "the second wants it to be kept, and to write, as well"
        );
        assert_eq!(ends(&mut askers, 3), Some((None, false)), "he held it before");
        assert_eq!(ends(&mut askers, 9), None, "nobody");
        assert_eq!(ends(&mut askers, 2), Some((Some(Holder::Kept), true)));
        assert!(askers.take(&key).is_empty() && askers.0.is_empty());
    }
}
