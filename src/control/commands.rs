//! The bounded queue to `dao-command`, the one thread that changes the central state.

use crate::bridge::worker::Ended;
use crate::control::registration::EarlierRun;
use crate::control::registry::{ClientAge, RemoteFacts};
use crate::control::state::{Holder, MirrorInfo, StreamKey};
use crate::error::{Error, Kind, Result};
use crate::metrics;
use crate::settings::Role;
use crate::wire::record::Request;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Instant;

/// Where an answer goes: a channel of the command's own.
pub type Reply<T> = SyncSender<Result<T>>;

/// What happened, or what is asked for.
#[allow(missing_docs)]
pub enum Command {
    /// The local segments that can be served and their files, as `dao-shm-sync` found them.
    LocalSegments(BTreeMap<String, PathBuf>),
    /// Requests that wait in Redis: name, the text there, what it says.
    Requests(Vec<(String, String, Request)>),
    /// What the registry says of the streams that we want.
    Remote(Vec<(StreamKey, RemoteFacts)>),
    /// Heartbeats of a segment's clients; `all`: of everybody who has one, not only of those we know.
    ClientAges { name: String, ages: Vec<ClientAge>, all: bool },
    /// A client has said that it leaves, and had no heartbeat any more at that time.
    ClientGone { name: String, client: String, known_at: Instant },
    /// The registry has lost what we wrote: all of it is to be written again.
    RegistryLost,
    /// Somebody wants a mirror; answered when it runs, or with why it cannot. The ticket tells askers apart.
    Want {
        key: StreamKey,
        bidirectional: bool,
        holder: Holder,
        facts: RemoteFacts,
        ticket: u64,
        reply: Reply<MirrorInfo>,
    },
    /// The one with this ticket has waited long enough.
    Abandon { key: StreamKey, ticket: u64 },
    /// A caller wants a mirror no more; answered with how many still do. `kept_too`: without a lease of his it is for
    /// those who asked for it to stay.
    Release { key: StreamKey, caller: u64, kept_too: bool, reply: Reply<usize> },
    /// A caller has gone, and with him his leases.
    CallerGone { caller: u64, reply: Reply<()> },
    /// This machine stands in the registry, in this role, with what an earlier run has left there.
    Registered { role: Role, earlier: EarlierRun, reply: Reply<()> },
    /// It is to stand there no more.
    Unregister { reply: Reply<()> },
    /// A publisher ended by itself.
    PublisherEnded { name: String, boot_id: u64, why: Ended },
    /// A mirror ended by itself.
    MirrorEnded { key: StreamKey, number: u64, why: Ended },
    /// Is `dao-command` at work? Answered in its turn.
    Pulse { reply: Reply<()> },
    /// The daemon stops: streams end, mirrors that are wanted stay remembered.
    Stop,
}

/// The sending side of the queue.
#[derive(Clone)]
pub struct Commands(SyncSender<Command>);

impl Commands {
    /// The queue, with room for [`crate::limits::COMMAND_QUEUE`] commands.
    pub fn new() -> (Commands, Receiver<Command>) {
        let (sender, receiver) = sync_channel(crate::limits::COMMAND_QUEUE);
        (Commands(sender), receiver)
    }

    /// Offers a command; refused, and counted, when the queue is full or the daemon stops. What threads report from
    /// time to time they report again; who waits for an answer is told "busy".
    pub fn offer(&self, command: Command) -> Result<()> {
        self.0.try_send(command).map_err(|error| match error {
            TrySendError::Full(_) => {
                metrics::COMMANDS_BUSY.add(1);
                Error::new(Kind::Os, "The daemon is busy; try again.")
            }
            TrySendError::Disconnected(_) => Error::new(Kind::Os, "The daemon is stopping."),
        })
    }

    /// Hands over a command that must not get lost, waiting for room: the end of a worker, the stop.
    pub fn insist(&self, command: Command) {
        // Refused only when nobody takes commands any more, and then nobody needs this one.
        let _ = self.0.send(command);
    }
}
