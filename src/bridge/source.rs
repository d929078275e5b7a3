//! Which publisher a mirror's frames come from, and over which wire.

use crate::bridge::stats::Wire;
use crate::naming::{TOPIC_DAO, TOPIC_PYTHON};
use std::net::Ipv4Addr;

/// Where a mirror gets its frames from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// The owner's address, from `dao:machines:<host>:ip`.
    pub ip: Ipv4Addr,
    /// The port of our connection record.
    pub port: u16,
    /// The port for TCP, if the owner offers it and we want it.
    pub tcp_port: Option<u16>,
    /// The publisher that the record names: frames of another one at the same port are not for us. `None`: a Python
    /// daemon's record names none, and it has no other wire than [`TOPIC_PYTHON`].
    pub boot_id: Option<u64>,
}

impl Source {
    /// The wire that the frames come over.
    pub fn wire(&self) -> Wire {
        if self.boot_id.is_some() { Wire::Dao } else { Wire::Python }
    }

    /// The transport's name in `status`.
    pub fn transport(&self) -> &'static str {
        if self.tcp_port.is_some() { "tcp" } else { "zmq" }
    }

    /// The ZMQ topic that the frames have.
    pub fn topic(&self) -> &'static str {
        match self.wire() {
            Wire::Dao => TOPIC_DAO,
            Wire::Python => TOPIC_PYTHON,
        }
    }
}
