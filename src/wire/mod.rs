//! Bytes to values and back: our frame, ZMTP, requests, records, control messages, times. Pure: no I/O.

pub mod bench;
pub mod control;
pub mod frame;
pub mod loss;
pub mod pickle;
pub mod record;
pub mod time;
pub mod zmtp;
