//! The data plane: publishers (segment to network), mirrors (network to segment), and the loop that runs them.
//! Knows nothing of Redis or of the central state.
//!
//! On a frame's way there is no lock, no allocation of ours, no log line, and at most one copy of ours on each side.

pub mod backoff;
pub mod bench;
pub mod dial;
pub mod echoes;
pub mod freshness;
pub mod guard;
pub mod hops;
pub mod inlet;
pub mod mirror;
pub mod origins;
pub mod outlet;
pub mod pace;
pub mod peer;
pub mod pool;
pub mod publisher;
pub mod sockets;
pub mod source;
pub mod stats;
pub mod streams;
pub mod tcp_inlet;
pub mod unsent;
pub mod watch;
pub mod worker;
pub mod zmtp_inlet;
