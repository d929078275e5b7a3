//! daoserver takes DAO shared-memory segments across machines: it registers a machine's segments in Redis, streams
//! them over ZMQ to whoever asks, and keeps local mirror segments of what others own.
//!
//! # The rooms
//!
//! ```text
//! main -> cli -> api -> daemon -> control -> bridge -> { wire, shm } -> os
//! ```
//!
//! `bench` stands beside `api`: it starts daemons, and is none. Arrows point one way; `limits`, `dtype`, `naming`,
//! `settings`, `error`, `log` and `metrics` are leaves that anyone may use. `tests/house.rs` checks it.

pub mod api;
pub mod bench;
pub mod bridge;
pub mod cli;
pub mod control;
pub mod daemon;
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

pub use api::{DaoServer, Element, Frame, Frames, Machine, Mirror};
pub use control::discovery::{Found, discover_redis};
pub use error::{Error, Kind, Result};
pub use settings::{Role, Settings};
pub use wire::control::Get;
