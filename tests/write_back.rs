//! Streams that go both ways, over ZMQ.
#![allow(clippy::unwrap_used)]

#[path = "common/shm.rs"]
mod common;
#[path = "common/write_back.rs"]
mod write_back;

const TCP: bool = false;
