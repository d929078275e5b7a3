//! What the central state is made of.

use crate::bridge::publisher::Started;
use crate::bridge::source::Source;
use crate::bridge::stats::{MirrorStats, PublisherStats};
use crate::dtype::{DType, Shape};
use crate::error::Error;
use crate::settings::Role;
use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

/// A segment of another machine: its host and its name.
pub type StreamKey = (String, String);

/// Who this daemon is.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Identity {
    pub hostname: String,
    pub ip: Ipv4Addr,
    pub role: Role,
}

/// A client of a segment of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Client {
    /// Unknown for one that only has a heartbeat.
    pub ip: Option<Ipv4Addr>,
    pub bidirectional: bool,
    pub client_pub_port: Option<u16>,
    /// Of its publisher, where it is a daoserver that writes back.
    pub boot_id: Option<u64>,
    pub tcp_port: Option<u16>,
    /// It asked to write and may not.
    pub read_only: bool,
    /// When it asked last: its heartbeat may take a while to come.
    pub asked_at: Instant,
}

/// A publisher as it is.
#[allow(missing_docs)]
pub enum Publisher {
    Running(Started),
    /// Remembered with its reason; tried again then, not on every tick.
    Failed {
        why: String,
        retry_at: Instant,
    },
}

/// What a mirror is made from; another one means another mirror thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Target {
    pub source: Source,
    pub shape: Shape,
    pub dtype: DType,
    pub keywords: u16,
    /// What is written into the mirror goes back to the owner.
    pub bidirectional: bool,
}

/// The socket on which a mirror's write-back goes out, bound before it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct BackSocket {
    pub port: u16,
    pub tcp_port: Option<u16>,
    pub boot_id: u64,
}

/// A client that writes back, as its publisher was told.
#[derive(Clone)]
#[allow(missing_docs)]
pub struct LinkInfo {
    pub source: Source,
    pub stats: Arc<MirrorStats>,
}

/// What `get` answers with.
#[derive(Clone)]
#[allow(missing_docs)]
pub struct MirrorInfo {
    pub path: PathBuf,
    pub shape: Shape,
    pub dtype: DType,
    pub transport: &'static str,
    pub stats: Arc<MirrorStats>,
    /// Of the write-back.
    pub back: Option<Arc<PublisherStats>>,
}

/// A mirror as it is.
#[allow(missing_docs)]
pub enum Mirror {
    Running { number: u64, target: Target, info: MirrorInfo, started_at: Instant },
    Failed { why: Error, target: Target, retry_at: Instant },
}

/// Who wants a mirror. It lasts as long as anybody does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Holder {
    /// Somebody who wants it until it is released.
    Kept,
    /// A caller, by his number, until he ends.
    Lease(u64),
    /// The same, in the process that the daemon runs in, or at its standard input: he does not outlive it.
    Inside(u64),
}

/// A mirror as it is desired.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Wanted {
    pub holders: BTreeSet<Holder>,
    /// Leases of an earlier run whose holders have not asked again yet.
    pub earlier_leases: usize,
    pub bidirectional: bool,
    pub back: Option<BackSocket>,
    /// A mirror of it has run since somebody asked: from then on it is had without Redis, and remembered.
    pub established: bool,
    pub asked_at: Option<Instant>,
}

impl Wanted {
    /// How many want it until they end.
    pub fn leases(&self) -> usize {
        self.holders.iter().filter(|holder| **holder != Holder::Kept).count() + self.earlier_leases
    }
}
