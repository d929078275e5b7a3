//! Every limit of the program, with its unit and its reason.

use std::time::Duration;

/// Bytes of the largest frame that is served: far above any camera of the field, far below what would exhaust a host.
pub const FRAME_BYTES_MAX: usize = 1 << 30;
/// Slots of the deepest ring that is believed: a bigger number in a file is garbage.
pub const RING_DEPTH_MAX: u32 = 65_536;
/// Keywords a segment may have and still be mirrored with them: the field is 16 bits wide, real ones have tens.
pub const KEYWORDS_MAX: u16 = 1_024;
/// Segments that one machine registers. The rest is reported and left alone.
pub const SEGMENTS_MAX: usize = 4_096;
/// Characters of a segment's or host's name: file names end at 255, and `remote_<host>_<name>.im.shm` must fit in one.
pub const NAME_CHARS_MAX: usize = 100;
/// Bytes of a value read from Redis that is looked at at all.
pub const REDIS_VALUE_BYTES_MAX: usize = 256 * 1024;
/// Bytes of a file with a password or with certificates: the authorities of a whole operating system are a quarter of it.
pub const SETTINGS_FILE_BYTES_MAX: u64 = 1 << 20;
/// Bytes of one line on the control socket.
pub const CONTROL_LINE_BYTES_MAX: usize = 1 << 20;
/// Connections to the control socket that are served at once.
pub const CONTROL_CONNECTIONS_MAX: usize = 64;
/// Streams and scans that are waited for over one connection at the same time; each has a thread.
pub const CONTROL_LANES_MAX: usize = 64;
/// The same over all connections.
pub const LANES_MAX: usize = 256;
/// Bytes of a request's id, as JSON: it is kept until the answer.
pub const CONTROL_ID_BYTES_MAX: usize = 1_024;
/// A lease from before a restart is kept so long for its holder to ask again.
pub const LEASE_GRACE: Duration = Duration::from_secs(10);
/// Clients of one segment that an owner keeps.
pub const CLIENTS_MAX: usize = 256;
/// Mirrors that one daemon keeps.
pub const MIRRORS_MAX: usize = 1_024;
/// Commands waiting for the command thread; one more is answered "busy".
pub const COMMAND_QUEUE: usize = 256;
/// Cores that can be named: the kernel's `cpu_set_t` has so many.
pub const CORES_MAX: usize = 1_024;
/// Longest wait for the command thread's answer: it may be held up by Redis.
pub const COMMAND_REPLY_TIMEOUT: Duration = Duration::from_secs(10);
/// Ports tried above `--base-pub-port` before giving up.
pub const PORTS_TRIED: u16 = 4_096;

/// Bytes of frames that a one-way mirror holds, where its layout has rings: a reader that is late by a few frames misses
/// none.
pub const MIRROR_RING_BYTES: usize = 1 << 20;
/// Frames in it at least: one that is shown, and one that comes.
pub const MIRROR_DEPTH_MIN: usize = 2;
/// Frames in it at most.
pub const MIRROR_DEPTH_MAX: usize = 64;
/// A frame so large goes into the mirror's ring piece by piece as it comes.
pub const POURED_FROM_BYTES: usize = 256 * 1024;
/// Such a piece: it is still in the core's own cache when it is copied.
pub const PIECE_BYTES: usize = 256 * 1024;

/// Bytes of a frame of `bench --to`: the owner makes room for them because another machine asks.
pub const BENCH_FRAME_BYTES_MAX: usize = 16 << 20;
/// Segments that an owner has at once for the benches of others.
pub const BENCH_SEGMENTS_MAX: usize = 4;
/// Such a segment stays so long for its first client,
pub const BENCH_UNUSED_MAX: Duration = Duration::from_secs(15);
/// and so long when its last one has gone: a daemon that comes back finds it there.
pub const BENCH_DESERTED_MAX: Duration = Duration::from_secs(3);
/// An owner says within this time whether it has one.
pub const BENCH_ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Echoes that a mirror notes until they are taken: some seconds of a bench's frames.
pub const ECHOES_MAX: usize = 4_096;

/// Descriptors kept free: without them nothing can be opened or looked at, so streams and strangers are refused before.
pub const DESCRIPTORS_SPARE: u64 = 64;
/// Control connections beyond [`CONTROL_CONNECTIONS_SURE`] leave so many free: links that break are made anew with them.
pub const DESCRIPTORS_FOR_LINKS: u64 = 40;
/// So many control connections are taken as long as there is a descriptor at all: somebody must be able to ask what is
/// the matter.
pub const CONTROL_CONNECTIONS_SURE: usize = 4;
/// Descriptors that one stream may need: its port, its files, some connections.
pub const DESCRIPTORS_PER_STREAM: u64 = 8;

/// A mirror that woke up late writes so many bytes of the frames that have come, before it skips to the newest.
pub const CATCH_UP_BYTES: usize = 1 << 20;
/// Messages that a mirror takes in one turn: a peer that floods it cannot keep it from being stopped.
pub const MESSAGES_A_TURN_MAX: usize = 256;
/// A frame above this has two send buffers instead of a few.
pub const LARGE_FRAME_BYTES: usize = 64 << 20;
/// Send buffers of one publisher when its clients are stuck at different frames, one each; never fewer than it needs.
pub const POOL_BYTES_MAX: usize = 256 << 20;
/// Smallest and largest kernel buffer of a stream, bytes; between them two frames.
pub const SOCKET_BUFFER_BYTES: (usize, usize) = (128 * 1024, 4 * 1024 * 1024);

/// Largest one of a stream over TCP within a machine: what is on its way is still in a core's own cache when it is read.
pub const NEAR_BUFFER_BYTES: usize = 256 * 1024;

/// Connecting to Redis.
pub const REDIS_CONNECT_TIMEOUT: Duration = Duration::from_millis(2_000);
/// One command to Redis.
pub const REDIS_IO_TIMEOUT: Duration = Duration::from_millis(2_000);
/// Longest pause between two attempts to reach Redis again.
pub const REDIS_RETRY_MAX: Duration = Duration::from_secs(2);

/// Longest `--heartbeat-interval`: a machine must survive one lost heartbeat before [`MACHINE_TTL`] is over.
pub const HEARTBEAT_INTERVAL_MAX: Duration = Duration::from_secs(60);
/// Shortest one: more often is only load on Redis.
pub const HEARTBEAT_INTERVAL_MIN: Duration = Duration::from_millis(10);
/// Longest wait that a command can be asked for.
pub const COMMAND_TIMEOUT_MAX: Duration = Duration::from_secs(86_400);

/// Wait for one address of a subnet scan, unless another is asked for.
pub const DISCOVERY_TIMEOUT: Duration = Duration::from_millis(300);
/// Longest wait for one address of a subnet scan.
pub const DISCOVERY_TIMEOUT_MAX: Duration = Duration::from_secs(10);
/// Threads of a subnet scan: each has one descriptor, and a process has often only 1024.
pub const DISCOVERY_WORKERS_MAX: usize = 256;
/// Subnets of 254 addresses that one scan visits: a host of many containers has hundreds.
pub const DISCOVERY_SUBNETS_MAX: usize = 64;
/// Asking a Redis that was found for its machines.
pub const DISCOVERY_KEYS_TIMEOUT: Duration = Duration::from_secs(2);
/// Machines believed of one Redis that was found.
pub const DISCOVERY_MACHINES_MAX: usize = 1_024;
/// Bytes read from one address: it may be anything that listens there.
pub const DISCOVERY_BYTES_MAX: usize = 4 << 20;

/// Local segments against the registry.
pub const SHM_SYNC_INTERVAL: Duration = Duration::from_secs(1);
/// The owner looks for requests, the client for records, when nobody wakes them.
pub const REQUEST_POLL_INTERVAL: Duration = Duration::from_secs(2);
/// A client that waits for a record looks at every turn of its thread, 100 ms, that comes after this time: a Python owner
/// wakes nobody, and sends an idle segment's frame once, 150 ms after it has written the record.
pub const RECORD_POLL_INTERVAL: Duration = Duration::from_millis(50);
/// `get` waits for a connection record.
pub const RECORD_TIMEOUT: Duration = Duration::from_secs(30);
/// `get` waits for the first frame after the record.
pub const FIRST_FRAME_TIMEOUT: Duration = Duration::from_secs(2);
/// A client rewrites its heartbeat.
pub const CLIENT_HEARTBEAT_INTERVAL: Duration = Duration::from_secs(10);
/// A client's heartbeat key expires: `CLIENT_HEARTBEAT_EXPIRY - PTTL` is its age by Redis' clock.
pub const CLIENT_HEARTBEAT_EXPIRY: Duration = Duration::from_secs(75);
/// A client with an older heartbeat is evicted.
pub const CLIENT_SILENT_MAX: Duration = Duration::from_secs(25);
/// The owner looks for silent clients.
pub const CLIENT_CHECK_INTERVAL: Duration = Duration::from_secs(15);
/// The master removes machines with an older heartbeat.
pub const MACHINE_TTL: Duration = Duration::from_secs(120);
/// Questions to Redis' clock each time that ours is compared with it.
pub const CLOCK_QUESTIONS: u32 = 8;
/// The master looks for them.
pub const STALE_CLEANUP_INTERVAL: Duration = Duration::from_secs(60);
/// The lease on the master's role runs out without renewal.
pub const MASTER_LEASE: Duration = Duration::from_secs(90);

/// A publisher without news says that it is alive.
pub const ALIVE_INTERVAL: Duration = Duration::from_millis(1_000);
/// A mirror that hears nothing for so long is not connected.
pub const LINK_SILENT_MAX: Duration = Duration::from_millis(3_500);
/// A frame written just before its mirror ends has so long to leave.
pub const WRITE_BACK_LINGER: Duration = Duration::from_millis(500);
/// A thread that is told to stop has so long to do it before it is named in the log.
pub const THREAD_STOP_TIMEOUT: Duration = Duration::from_millis(1_000);
/// The whole daemon stops within this time of a signal.
pub const STOP_TIMEOUT: Duration = Duration::from_millis(2_500);

const _: () =
    assert!(DESCRIPTORS_SPARE / 4 < DESCRIPTORS_FOR_LINKS && DESCRIPTORS_FOR_LINKS < DESCRIPTORS_SPARE);
const _: () = assert!(CONTROL_CONNECTIONS_SURE < CONTROL_CONNECTIONS_MAX);
const _: () = assert!(CLIENT_HEARTBEAT_INTERVAL.as_millis() * 2 < CLIENT_SILENT_MAX.as_millis());
const _: () = assert!(CLIENT_SILENT_MAX.as_millis() < CLIENT_HEARTBEAT_EXPIRY.as_millis());
const _: () = assert!(ALIVE_INTERVAL.as_millis() * 3 < LINK_SILENT_MAX.as_millis());
const _: () = assert!(HEARTBEAT_INTERVAL_MAX.as_millis() * 2 <= MACHINE_TTL.as_millis());
const _: () = assert!(STALE_CLEANUP_INTERVAL.as_millis() < MACHINE_TTL.as_millis());
