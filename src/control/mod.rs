//! The control plane: commands, the central state, the registry, discovery, the control socket.

pub mod discovery;
