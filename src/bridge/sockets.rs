//! The ZMQ socket of a mirror, with every option set before it connects; the reasons are libzmq's, beside each option.

use crate::limits;
use crate::naming::TOPIC_PYTHON;
use crate::os::{clock, poll};
use std::net::Ipv4Addr;
use std::time::Duration;

/// Frames that may wait in a mirror's queue: about a megabyte of them, but neither so few that an idle link loses
/// frames nor so many that a slow one gets old ones.
pub fn queue_frames(frame_bytes: usize) -> usize {
    (limits::QUEUE_BYTES / frame_bytes.max(1)).clamp(limits::QUEUE_FRAMES_MIN, limits::QUEUE_FRAMES_MAX)
}

/// The kernel's buffers of a stream: two frames of it, within bounds. Its default ones hold thousands of small frames,
/// all of them old after a stall.
pub fn buffer_bytes(frame_bytes: usize) -> usize {
    let (smallest, largest) = limits::SOCKET_BUFFER_BYTES;
    (2 * frame_bytes).clamp(smallest, largest)
}

/// Who is asked for a sign of life over ZMQ gives one within this time: a large frame may stand before the answer.
pub fn answers_within(frame_bytes: usize) -> Duration {
    let transfer_ms = frame_bytes as u64 / 10_000; // ten frames at 100 MB/s
    Duration::from_millis(transfer_ms.clamp(3_000, 60_000))
}

fn set_options(socket: &zmq::Socket, frame_bytes: usize) -> zmq::Result<()> {
    let buffer_bytes = buffer_bytes(frame_bytes) as i32;
    let queue = queue_frames(frame_bytes) as i32;
    socket.set_linger(0)?;
    socket.set_rcvhwm(queue)?;
    socket.set_rcvbuf(buffer_bytes)?;
    // The only defence against a half-open link. The time-out runs during a long transfer too.
    socket.set_heartbeat_ivl(1_000)?;
    socket.set_heartbeat_timeout(answers_within(frame_bytes).as_millis() as i32)?;
    socket.set_handshake_ivl(5_000)?; // who says nothing keeps a descriptor for so long, not for 30 s
    socket.set_reconnect_ivl(100)?;
    socket.set_reconnect_ivl_max(2_000)?;
    socket.set_tcp_keepalive(1)
}

/// The SUB socket of one mirror.
pub struct SubSocket {
    socket: zmq::Socket,
    /// Tells of connections made and lost; only for peers that give no sign of life themselves.
    monitor: Option<zmq::Socket>,
    linked: bool,
    topic: &'static str,
    topic_part: zmq::Message,
}

impl SubSocket {
    /// Connects, in the background, to `tcp://<ip>:<port>`, and takes only this topic.
    pub fn connect(
        context: &zmq::Context,
        ip: Ipv4Addr,
        port: u16,
        topic: &'static str,
        frame_bytes: usize,
    ) -> zmq::Result<SubSocket> {
        let socket = context.socket(zmq::SUB)?;
        set_options(&socket, frame_bytes)?;
        // libzmq allocates what a peer's length says: our frame, its header and room, or the keywords.
        let most = frame_bytes + 4_096;
        let keywords = usize::from(limits::KEYWORDS_MAX) * 120;
        socket.set_maxmsgsize(most.max(keywords) as i64)?;
        socket.set_subscribe(topic.as_bytes())?;
        let monitor = if topic == TOPIC_PYTHON { Some(monitor(context, &socket)?) } else { None };
        socket.connect(&format!("tcp://{ip}:{port}"))?;
        Ok(SubSocket { socket, monitor, linked: false, topic, topic_part: zmq::Message::new() })
    }

    /// Is there a connection, as far as the monitor says? Always `false` without one.
    pub fn linked(&mut self) -> bool {
        let Some(monitor) = &self.monitor else { return false };
        // Two parts: event (u16, little-endian) and value, then the address.
        while let Ok(parts) = monitor.recv_multipart(zmq::DONTWAIT) {
            let event =
                parts.first().and_then(|part| part.first_chunk()).map(|bytes| u16::from_le_bytes(*bytes));
            match event.map(zmq::SocketEvent::from_raw) {
                Some(zmq::SocketEvent::HANDSHAKE_SUCCEEDED) => self.linked = true,
                Some(zmq::SocketEvent::DISCONNECTED) => self.linked = false,
                _ => {}
            }
        }
        self.linked
    }

    /// Asks the owner for the current frame: it sends it to every new subscriber.
    pub fn ask_again(&self) -> zmq::Result<()> {
        self.socket.set_unsubscribe(self.topic.as_bytes())?;
        self.socket.set_subscribe(self.topic.as_bytes())
    }

    /// Is a message waiting?
    pub fn waiting(&self) -> bool {
        self.socket.get_events().is_ok_and(|events| events.contains(zmq::POLLIN))
    }

    /// Takes the next message without waiting: `body` and, where there is one, `third`. `None`: nothing has come.
    /// `Some(n)`: a message of `n` parts, of which more than three are read and dropped.
    pub fn receive(
        &mut self,
        body: &mut zmq::Message,
        third: &mut zmq::Message,
    ) -> zmq::Result<Option<usize>> {
        match self.socket.recv(&mut self.topic_part, zmq::DONTWAIT) {
            Err(zmq::Error::EAGAIN | zmq::Error::EINTR) => return Ok(None),
            other => other?,
        }
        let mut parts = 1;
        let mut more = self.topic_part.get_more();
        let mut rest = zmq::Message::new();
        while more {
            let part = match parts {
                1 => &mut *body,
                2 => &mut *third,
                _ => &mut rest,
            };
            // The parts of a message arrive together.
            self.socket.recv(part, zmq::DONTWAIT)?;
            more = part.get_more();
            parts += 1;
        }
        Ok(Some(parts))
    }

    /// Waits in the kernel for a message, at most this long.
    pub fn wait(&self, time: Duration) {
        // `zmq_poll` counts in milliseconds. The descriptor tells of events since the last `receive` that found nothing,
        // so it may be waited for after one. An interrupted wait is a short wait.
        let _ = poll::news(&self.socket, time.min(Duration::from_secs(1)));
    }
}

/// A socket that hears of this one's connections.
fn monitor(context: &zmq::Context, socket: &zmq::Socket) -> zmq::Result<zmq::Socket> {
    let address = format!("inproc://monitor-{:016x}", clock::random_u64());
    let events = zmq::SocketEvent::HANDSHAKE_SUCCEEDED.to_raw() | zmq::SocketEvent::DISCONNECTED.to_raw();
    socket.monitor(&address, i32::from(events))?;
    let monitor = context.socket(zmq::PAIR)?;
    monitor.set_linger(0)?;
    monitor.connect(&address)?;
    Ok(monitor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queues_hold_about_a_megabyte_within_their_bounds() {
        assert_eq!(queue_frames(64), limits::QUEUE_FRAMES_MAX);
        assert_eq!(queue_frames(64 * 1024), 16);
        assert_eq!(queue_frames(16 << 20), limits::QUEUE_FRAMES_MIN);
    }

    #[test]
    fn our_build_of_libzmq_names_its_threads_and_uses_eventfd() {
        let context = zmq::Context::new();
        let socket = context.socket(zmq::PUB).unwrap();
        socket.set_tcp_keepalive(1).unwrap();
        socket.bind("tcp://127.0.0.1:*").unwrap();
        // The thread names itself once it runs.
        let named = || {
            let tasks = std::fs::read_dir("/proc/self/task").unwrap();
            let names = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
            names.into_iter().any(|name| name.starts_with("ZMQbg"))
        };
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while !named() {
            assert!(std::time::Instant::now() < deadline, "no thread named ZMQbg: see .cargo/config.toml");
            std::thread::yield_now();
        }
        let eventfd = std::fs::read_dir("/proc/self/fd")
            .unwrap()
            .filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok())
            .any(|target| target.to_string_lossy().contains("eventfd"));
        assert!(eventfd, "the defines in .cargo/config.toml did not take");
    }
}
