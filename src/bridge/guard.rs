//! Who may connect to our publishers, and what is said of those who are turned away.

use crate::log::Repeats;
use crate::metrics;
use crate::settings::{Cidr, allows};
use std::net::IpAddr;
use std::time::Duration;

/// Who may come in.
pub struct Door {
    allow: Vec<Cidr>,
    refusals: Repeats,
}

impl Door {
    /// For these; nobody named: for all.
    pub fn new(allow: Vec<Cidr>) -> Door {
        Door { allow, refusals: Repeats::new(Duration::from_secs(60)) }
    }

    /// May this address come in? One that may not is counted, and named now and then.
    pub fn lets_in(&self, address: &str) -> bool {
        let good = address.parse().is_ok_and(|address| allows(&self.allow, address));
        if !good {
            metrics::PEERS_REFUSED.add(1);
            if let Some(left_out) = self.refusals.due(address) {
                crate::warn!(
                    "{address} wants to connect and is not one of --allow's ({left_out} more times since the last line)"
                );
            }
        }
        good
    }
}

/// Counts a connection that is ended for what it does, and says so now and then.
pub struct TurnedAway {
    port: u16,
    said: Repeats,
}

impl TurnedAway {
    /// At this port of ours.
    pub fn new(port: u16) -> TurnedAway {
        TurnedAway { port, said: Repeats::new(Duration::from_secs(60)) }
    }

    /// One more, for this reason.
    pub fn count(&self, from: IpAddr, why: &str) {
        metrics::CONNECTIONS_REFUSED.add(1);
        if let Some(left_out) = self.said.due(why) {
            crate::warn!(
                "a connection from {from} to port {} is ended: {why} ({left_out} more of this kind since the last line)",
                self.port
            );
        }
    }
}
