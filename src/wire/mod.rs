//! Bytes to values and back: our frame, requests, records, control messages, times. Pure: no I/O.

pub mod time;
