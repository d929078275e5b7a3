//! What the operating system gives: clocks, threads, signals, interfaces. Knows nothing of DAO.

pub mod clock;
pub mod interfaces;
