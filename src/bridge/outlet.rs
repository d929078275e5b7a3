//! Where a publisher's frames go: one port, to which mirrors of ours come over a TCP stream, and subscribers over ZMQ, of
//! both wires. One connection a client.
//!
//! A message is written by one system call, from the one buffer that the frame was copied into; a large one that leaves from
//! where it stands by two, since its trailer says whether it stood there to the end ([`crate::wire::frame::spoil`]). What a connection cannot
//! take at once is finished later, and frames that come meanwhile are left out for it: a slow client gets the newest
//! frame, and the others lose nothing.
//!
//! Over a stream a message is a header of 128 bytes, the pixels, the keywords if the header says so, and a trailer; the
//! mirror's side is [`crate::bridge::tcp_inlet`]. Over ZMQ it is the parts that [`crate::wire`] describes, as
//! [`crate::wire::zmtp`] has them; the mirror's side is [`crate::bridge::zmtp_inlet`].

use crate::bridge::guard::{Door, TurnedAway};
use crate::bridge::peer::{Forms, Heard, Manners, Peer};
use crate::bridge::pool::SendPool;
use crate::bridge::sockets::{answers_within, buffer_bytes};
use crate::bridge::unsent::Message;
use crate::limits;
use crate::os::{clock, poll, process, tcp};
use crate::settings::Cidr;
use std::cmp::Reverse;
use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::ops::Range;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

/// When buffers run out, who has taken longer than this for a message, and longer than ten bytes a microsecond take,
/// is ended.
const SLOW: Duration = Duration::from_secs(1);

/// The port of one publisher, bound.
pub struct Outlet {
    listener: TcpListener,
    port: u16,
    manners: Manners,
    door: Door,
    turned_away: TurnedAway,
    peers: Vec<Peer>,
    waiting: poll::Many,
    /// Nobody can be let in, for want of memory or descriptors: then there is no use in waiting at the door.
    deaf: bool,
}

impl Outlet {
    /// Binds the first of these ports that the operating system gives. Who is not one of `allow` is turned away.
    /// `streams`: mirrors of ours may come over TCP.
    pub fn bind(
        ip: Ipv4Addr,
        ports: impl Iterator<Item = u16>,
        frame_bytes: usize,
        streams: bool,
        allow: Vec<Cidr>,
    ) -> Result<Outlet, String> {
        let mut refused = String::from("no port to try");
        for port in ports {
            let bound = TcpListener::bind((ip, port)).and_then(|listener| {
                listener.set_nonblocking(true)?;
                tcp::send_at_once(&listener);
                Ok(listener)
            });
            match bound {
                Ok(listener) => {
                    let manners = Manners {
                        boot_id: clock::random_u64(),
                        streams,
                        answers_within: answers_within(frame_bytes),
                        buffer_bytes: buffer_bytes(frame_bytes),
                    };
                    return Ok(Outlet {
                        listener,
                        port,
                        manners,
                        door: Door::new(allow),
                        turned_away: TurnedAway::new(port),
                        peers: Vec::new(),
                        waiting: poll::Many::default(),
                        deaf: false,
                    });
                }
                Err(error) => refused = format!("port {port}: {error}"),
            }
        }
        Err(format!("no free port on {ip}; the last one tried was {refused}"))
    }

    /// The bound port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The same, where mirrors of ours may come over TCP.
    pub fn tcp_port(&self) -> Option<u16> {
        self.manners.streams.then_some(self.port)
    }

    /// What tells the publisher on this port from an earlier or later one.
    pub fn boot_id(&self) -> u64 {
        self.manners.boot_id
    }

    /// In which forms frames are wanted, as of the last look.
    pub fn subscribed(&self) -> Forms {
        self.peers.iter().fold(Forms::default(), |all, peer| all.or(peer.wants()))
    }

    /// What can be read when a client comes, speaks or goes.
    pub fn descriptors(&self) -> impl Iterator<Item = RawFd> {
        std::iter::once(self.listener.as_raw_fd()).chain(self.peers.iter().map(Peer::descriptor))
    }

    /// Is a message on its way that has not left whole?
    pub fn is_sending(&self) -> bool {
        self.peers.iter().any(Peer::is_sending)
    }

    /// Is everybody who wants frames still being sent one?
    pub fn all_are_sending(&self) -> bool {
        self.peers.iter().all(|peer| peer.is_sending() || !peer.wants().any())
    }

    /// Is there one client alone, a mirror of ours that comes over TCP? Then a frame may leave from where it stands.
    pub fn has_one_stream(&self) -> bool {
        let mut wanting = self.peers.iter().map(Peer::wants).filter(|forms| forms.any());
        wanting.next().is_some_and(|forms| forms.stream) && wanting.next().is_none()
    }

    /// Is a frame leaving from where it stands?
    pub fn has_loan(&self) -> bool {
        self.peers.iter().any(Peer::has_loan)
    }

    /// If it cannot stay there until all of it has left, its rest leaves from this range of a buffer of the pool. `true`: so
    /// it was.
    pub fn end_loan_in_danger(&mut self, now_ns: i64, pool: &mut SendPool, range: &Range<usize>) -> bool {
        let Some(peer) = self.peers.iter_mut().find(|peer| peer.is_loan_in_danger(now_ns)) else {
            return false;
        };
        let Some(index) = pool.acquire() else { return false };
        peer.keep_rest(pool, index, range.clone());
        true
    }

    /// Frames that were spoilt on their way, since the last look.
    pub fn take_spoilt(&mut self) -> u64 {
        self.peers.iter_mut().map(Peer::take_spoilt).sum()
    }

    /// Is one leaving now, part by part?
    pub fn is_under_way(&self, now_ns: i64) -> bool {
        self.peers.iter().any(|peer| peer.is_under_way(now_ns))
    }

    /// Is somebody just saying who it is?
    pub fn is_greeting(&self) -> bool {
        self.peers.iter().any(Peer::is_greeting)
    }

    /// Takes connections and what they say. In which forms does somebody want the current frame?
    pub fn take_subscriptions(&mut self) -> Forms {
        // Bounded, so that a crowd at the door costs nobody a frame.
        for _ in 0..64 {
            let (stream, from) = match self.listener.accept() {
                Ok(come) => come,
                Err(error) => match error.kind() {
                    ErrorKind::Interrupted | ErrorKind::ConnectionAborted => continue,
                    kind => {
                        self.deaf = kind != ErrorKind::WouldBlock;
                        break;
                    }
                },
            };
            if !self.door.lets_in(&from.ip().to_string()) {
                continue;
            }
            // The lowest free number: so many are in use.
            let free = process::descriptor_limit().saturating_sub(stream.as_raw_fd() as u64);
            if free < limits::DESCRIPTORS_SPARE {
                self.turned_away.count(from.ip(), "descriptors run out");
                continue;
            }
            if self.peers.len() >= limits::CLIENTS_MAX {
                let gone = self.whose_place(from.ip()).map(|index| self.peers.remove(index));
                self.turned_away.count(gone.as_ref().map_or(from.ip(), Peer::ip), "there are too many");
                if gone.is_none() {
                    continue;
                }
            }
            if tcp::prepare(&stream, self.manners.buffer_bytes).is_ok() {
                self.peers.push(Peer::new(stream, from.ip()));
            }
        }
        let Outlet { manners, turned_away, peers, .. } = self;
        let mut asks = Forms::default();
        peers.retain_mut(|peer| match peer.listen(manners) {
            Heard::Fine => {
                asks = asks.or(peer.asks());
                true
            }
            Heard::Gone => false,
            Heard::Nonsense(why) => {
                turned_away.count(peer.ip(), why);
                false
            }
        });
        asks
    }

    /// With no place left: whose does a newcomer from there get? A crowd at one address keeps nobody else out, and strangers
    /// who say nothing push nobody out who has said who it is.
    fn whose_place(&self, newcomer: IpAddr) -> Option<usize> {
        let mut held = HashMap::new();
        for peer in &self.peers {
            *held.entry(peer.ip()).or_insert(0) += 1;
        }
        let count = |ip| held.get(&ip).copied().unwrap_or(0);
        let own = count(newcomer);
        // Of one that has not said who it is: of the address that holds most of all, the oldest.
        let silent = |least| {
            let silent =
                self.peers.iter().enumerate().filter(|(_, peer)| {
                    !peer.is_known() && (peer.ip() == newcomer || count(peer.ip()) >= least)
                });
            silent.max_by_key(|(index, peer)| (count(peer.ip()), Reverse(*index)))
        };
        let youngest = self.peers.iter().enumerate().max_by_key(|(index, peer)| (count(peer.ip()), *index));
        let place = silent(own + 2)
            .or_else(|| youngest.filter(|(_, peer)| count(peer.ip()) >= own + 2))
            .or_else(|| silent(own + 1));
        place.map(|(index, _)| index)
    }

    /// Ends those that have been at one message for too long: each keeps a buffer, and there are no more.
    pub fn end_slow(&mut self) {
        let turned_away = &self.turned_away;
        self.peers.retain(|peer| {
            let slow = peer.is_slow(SLOW);
            if slow {
                turned_away.count(peer.ip(), "it is slow, and buffers run out");
            }
            !slow
        });
    }

    /// Sends a message to all who want its form, or to those alone who want the current frame in it. Gives how many could
    /// not take it, since they are still at an older one.
    pub fn send(&mut self, message: &Message, only_asking: bool) -> usize {
        let mut left_out = 0;
        self.peers.retain_mut(|peer| {
            let whom = if only_asking { peer.asks() } else { peer.wants() };
            if !whom.has(message.form) {
                return true;
            }
            let sent = peer.send(message);
            left_out += usize::from(matches!(sent, Ok(false)));
            sent.is_ok()
        });
        left_out
    }

    /// Goes on with what has not left whole. Is there any?
    pub fn progress(&mut self) -> bool {
        if !self.is_sending() {
            return false;
        }
        self.peers.retain_mut(|peer| peer.progress().is_ok());
        self.is_sending()
    }

    /// Nothing more will be sent, and nobody be let in. Is anybody left who has not gone too?
    pub fn hear_out(&mut self) -> bool {
        self.deaf = true;
        self.peers.retain_mut(Peer::hear_out);
        !self.peers.is_empty()
    }

    /// Waits, at most this long, and less if a client that is still being sent to takes more.
    pub fn wait(&self, time: Duration) {
        let sending = self.peers.iter().find(|peer| peer.is_sending());
        if sending.is_none_or(|peer| poll::writable(peer.stream(), time).is_err()) {
            std::thread::sleep(time);
        }
    }

    /// Waits until a client comes, speaks or goes, at most this long.
    pub fn wait_for_news(&mut self, time: Duration) {
        let mut waiting = std::mem::take(&mut self.waiting);
        waiting.clear();
        let door = usize::from(self.deaf);
        self.descriptors().skip(door).for_each(|descriptor| waiting.push(0, descriptor));
        waiting.wait(time);
        self.waiting = waiting;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::frame::hello;
    use std::io::Write;
    use std::net::TcpStream;

    /// An outlet with these clients, by the last byte of their address; those below zero have not said who they are.
    fn outlet(clients: &[i8]) -> (Outlet, Vec<TcpStream>) {
        let mut outlet = Outlet::bind(Ipv4Addr::LOCALHOST, [0].into_iter(), 100, true, Vec::new()).unwrap();
        let to = outlet.listener.local_addr().unwrap();
        let mut other_ends = Vec::new();
        for client in clients {
            let mut other_end = TcpStream::connect(to).unwrap();
            if *client > 0 {
                other_end.write_all(&hello(outlet.boot_id())).unwrap();
            }
            let (stream, _) =
                std::iter::repeat_with(|| outlet.listener.accept()).find_map(Result::ok).unwrap();
            tcp::prepare(&stream, 10_000).unwrap();
            let mut peer = Peer::new(stream, address(client.unsigned_abs()));
            while *client > 0 && !peer.is_known() {
                assert_eq!(peer.listen(&outlet.manners), Heard::Fine);
            }
            outlet.peers.push(peer);
            other_ends.push(other_end);
        }
        (outlet, other_ends)
    }

    fn address(last: u8) -> IpAddr {
        Ipv4Addr::new(10, 0, 0, last).into()
    }

    #[test]
    fn a_crowd_from_one_address_makes_room_for_newcomers_from_others_and_for_nobody_else() {
        let (crowded, _ends) = outlet(&[1, 2, 3, 2, 2, 1]);
        assert_eq!(crowded.whose_place(address(9)), Some(4), "the youngest of the crowd");
        assert_eq!(crowded.whose_place(address(3)), Some(4));
        assert_eq!(crowded.whose_place(address(1)), None, "no fairer than before");
        assert_eq!(crowded.whose_place(address(2)), None, "its own");
        let (equal, _ends) = outlet(&[1, 2, 3]);
        assert_eq!(equal.whose_place(address(9)), None);
    }

    #[test]
    fn who_has_not_said_who_it_is_makes_room_first_but_not_a_newcomer_for_a_crowd() {
        let (crowded, _ends) = outlet(&[2, -2, 3, -2, -1]);
        assert_eq!(crowded.whose_place(address(9)), Some(1), "the crowd's oldest");
        assert_eq!(crowded.whose_place(address(2)), Some(1), "its own, and not that from elsewhere");
        let (crowded, _ends) = outlet(&[2, 2, 2, -1]);
        assert_eq!(crowded.whose_place(address(2)), None, "who has just come from elsewhere stays");
        assert_eq!(crowded.whose_place(address(9)), Some(2), "for another newcomer, too");
        let (known, _ends) = outlet(&[1, 1, 1, 1, -2, -2, -3, -3]);
        assert_eq!(known.whose_place(address(2)), Some(4), "not one of four who have said who they are");
        let (equal, _ends) = outlet(&[1, 2, -3]);
        assert_eq!(equal.whose_place(address(9)), Some(2));
        assert_eq!(equal.whose_place(address(1)), None);
    }
}
