//! daoserver takes DAO shared-memory segments across machines: it registers a machine's segments in Redis, streams
//! them over ZMQ to whoever asks, and keeps local mirror segments of what others own.
//!
//! # The rooms
//!
//! ```text
//! main -> cli -> daemon -> control -> bridge -> { wire, shm } -> os
//! ```
//!
//! Arrows point one way; `limits`, `dtype`, `naming`, `settings`, `error`, `log` and `metrics` are leaves that anyone
//! may use. `tests/house.rs` checks it.

pub mod cli;
pub mod control;
pub mod dtype;
pub mod error;
pub mod limits;
pub mod log;
pub mod metrics;
pub mod naming;
pub mod os;
pub mod settings;
pub mod shm;
pub mod wire;

pub use control::discovery::discover_redis;
