//! What the operating system gives: clocks, threads, signals, interfaces.
//! Knows nothing of DAO.

pub mod clock;
pub mod interfaces;
pub mod locks;
pub mod notify;
pub mod poll;
pub mod process;
pub mod scheduling;
pub mod signals;
pub mod tcp;
pub mod threads;
