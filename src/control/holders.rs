//! Who wants which mirror: part of the central state, and as pure. A mirror lasts as long as somebody holds it.

use crate::control::registry::RemoteFacts;
use crate::control::state::{Holder, Mirror, State, StreamKey, Wanted};
use crate::error::{Error, Kind, Result};
use crate::limits;
use crate::naming::mirror_name;
use std::time::Instant;

impl State {
    /// Somebody wants a mirror. Returns whether he is a new holder of it, and whether he is the first who wants to write.
    pub fn on_want(
        &mut self,
        key: StreamKey,
        bidirectional: bool,
        holder: Holder,
        facts: RemoteFacts,
    ) -> Result<(bool, bool)> {
        let path_name = mirror_name(&key.0, &key.1);
        if let Some(other) =
            self.wanted.keys().find(|other| **other != key && mirror_name(&other.0, &other.1) == path_name)
        {
            let sentence = format!(
                "The mirror of '{}' of '{}' has the same file name; release it first.",
                other.1, other.0
            );
            return Err(Error::new(Kind::Value, sentence));
        }
        if self.wanted.len() >= limits::MIRRORS_MAX && !self.wanted.contains_key(&key) {
            return Err(Error::new(Kind::Os, format!("There are {} mirrors already.", self.wanted.len())));
        }
        // One-way and asked for again as bidirectional: it becomes so. Never the other way round: somebody writes.
        let wanted = self.wanted.entry(key.clone()).or_default();
        let raised = bidirectional && !wanted.bidirectional;
        wanted.bidirectional |= bidirectional;
        let new = wanted.holders.insert(holder);
        if new && holder != Holder::Kept {
            wanted.earlier_leases = wanted.earlier_leases.saturating_sub(1); // most likely it is one of those
        }
        self.traces.remove(&key);
        // A failure is tried again for somebody who asks.
        if matches!(self.mirrors.get(&key), Some(Mirror::Failed { .. })) {
            self.mirrors.remove(&key);
        }
        self.remote.insert(key, facts);
        Ok((new, raised))
    }

    /// A mirror of an earlier run, which was kept, or had leases, or both.
    pub fn on_remembered(
        &mut self,
        key: StreamKey,
        bidirectional: bool,
        kept: bool,
        earlier_leases: usize,
        now: Instant,
    ) {
        let holders = kept.then_some(Holder::Kept).into_iter().collect();
        self.earlier_until = Some(now + limits::LEASE_GRACE);
        let wanted =
            Wanted { holders, earlier_leases, bidirectional, established: true, ..Wanted::default() };
        self.wanted.insert(key, wanted);
    }

    /// This holder wants a mirror no more. It ends with the last one.
    pub fn on_abandon(&mut self, key: &StreamKey, holder: Holder) {
        self.let_go(key, |wanted| wanted.holders.retain(|other| *other != holder));
    }

    /// Somebody releases a mirror: his lease if he has one of it, else, if he may, for those without. Returns how many
    /// still hold it; `None`: there is no such mirror.
    pub fn on_release(&mut self, key: &StreamKey, caller: u64, kept_too: bool) -> Option<usize> {
        let holders = &self.wanted.get(key)?.holders;
        let leases = [Holder::Lease(caller), Holder::Inside(caller)];
        match leases.into_iter().find(|lease| holders.contains(lease)) {
            Some(lease) => self.on_abandon(key, lease),
            None if !kept_too => {}
            None => self.let_go(key, |wanted| {
                wanted.holders.remove(&Holder::Kept);
                wanted.earlier_leases = 0; // they have not come back, and cannot release it
            }),
        }
        Some(self.wanted.get(key).map_or(0, |wanted| wanted.holders.len()))
    }

    /// A caller has gone: all that he held ends, unless others hold it.
    pub fn on_caller_gone(&mut self, caller: u64) {
        let his = [Holder::Lease(caller), Holder::Inside(caller)];
        self.all_let_go(|wanted| wanted.holders.retain(|holder| !his.contains(holder)));
    }

    /// The daemon stops. Leases of connections stay remembered, since their holders may ask its successor.
    pub fn on_stop(&mut self) {
        self.all_let_go(|wanted| wanted.holders.retain(|holder| !matches!(holder, Holder::Inside(_))));
    }

    /// Leases of an earlier run have had their time.
    pub fn expire_leases(&mut self, now: Instant) {
        if self.earlier_until.is_some_and(|until| now >= until) {
            self.earlier_until = None;
            self.all_let_go(|wanted| wanted.earlier_leases = 0);
        }
    }

    fn let_go(&mut self, key: &StreamKey, change: impl FnOnce(&mut Wanted)) {
        if let Some(wanted) = self.wanted.get_mut(key) {
            change(wanted);
            if wanted.holders.is_empty() && wanted.earlier_leases == 0 {
                self.forget(key);
            }
        }
    }

    fn all_let_go(&mut self, change: impl Fn(&mut Wanted)) {
        let keys: Vec<StreamKey> = self.wanted.keys().cloned().collect();
        keys.iter().for_each(|key| self.let_go(key, &change));
    }

    pub(super) fn forget(&mut self, key: &StreamKey) {
        if self.wanted.remove(key).is_some() {
            self.traces.insert(key.clone());
        }
        self.remote.remove(key);
    }
}
