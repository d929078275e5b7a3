//! The control plane: commands, the central state, the registry, discovery, the control socket. Knows nothing of
//! pixels.
//!
//! A request comes from Redis or the control socket, becomes a [`commands::Command`] on the bounded queue, and is taken
//! by `dao-command`, the one thread that changes [`state::State`]. State holds what is desired and what is actual;
//! [`state::State::reconcile`] names the actions that make them meet; [`executor`] carries them out with the Mutex
//! released and tells the state what came of them.

pub mod askers;
pub mod bench;
pub mod client;
pub mod clocks;
pub mod commands;
pub mod conversation;
pub mod discovery;
pub mod entries;
pub mod executor;
pub mod files;
pub mod holders;
pub mod loops;
pub mod operations;
pub mod persist;
pub mod places;
pub mod reconcile;
pub mod redis_client;
pub mod redis_link;
pub mod registration;
pub mod registry;
pub mod roles;
pub mod socket;
pub mod state;
pub mod workshop;
