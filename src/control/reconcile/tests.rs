//! Events in any order, and a world that does what it is told: desired and actual must meet.

use super::*;
use crate::bridge::publisher::Started;
use crate::bridge::stats::{MirrorStats, PublisherStats};
use crate::control::registration::EarlierRun;
use crate::control::registry::{ClientAge, RemoteFacts};
use crate::control::state::{BackSocket, Holder, Identity, LinkInfo, MirrorInfo};
use crate::settings::Role;
use crate::wire::record::{RecordExtras, Request};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;

const IP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);

fn state() -> State {
    let mut state = State::new(Identity { hostname: "me".into(), ip: IP, role: Role::Minion });
    state.registered = true;
    state
}

fn shape() -> Shape {
    Shape::new(&[4, 3]).unwrap()
}

fn request(client: &str) -> Request {
    Request {
        boot_id: None,
        tcp_port: None,
        client_hostname: client.into(),
        client_ip: IP,
        transport: "zmq".into(),
        bidirectional: false,
        client_pub_port: None,
    }
}

fn files(names: &[&str]) -> BTreeMap<String, PathBuf> {
    names.iter().map(|name| ((*name).to_owned(), PathBuf::from(name))).collect()
}

fn key() -> StreamKey {
    ("owner".to_owned(), "wfs".to_owned())
}

fn record(client: &str, port: u16, boot_id: u64) -> Record {
    Record {
        server_ip: IP,
        port,
        transport: "zmq".into(),
        client_hostname: client.into(),
        client_ip: IP,
        bidirectional: false,
        client_pub_port: None,
        extras: Some(RecordExtras {
            wire: VERSION,
            boot_id,
            shape: shape(),
            dtype: DType::U16,
            keywords: 0,
            client_boot_id: None,
            read_only: false,
            tcp_port: None,
        }),
    }
}

fn facts(records: &[Record]) -> RemoteFacts {
    RemoteFacts {
        known: true,
        ip: Some(IP),
        spec: Some((shape(), DType::U16)),
        records: records.to_vec(),
        clock: None,
    }
}

/// Does what it is told; a boot id tells one publisher from the next.
#[derive(Default)]
struct World {
    boots: u64,
    redis: BTreeMap<String, Vec<Record>>,
    requests: BTreeMap<String, String>,
    redis_works: bool,
    asked: usize,
}

impl World {
    fn act(&mut self, state: &mut State, action: Action, now: Instant) {
        match action {
            Action::StartPublisher { name, preferred_port, .. } => {
                self.boots += 1;
                let started = Started {
                    tcp_port: None,
                    port: preferred_port.unwrap_or(5560),
                    boot_id: self.boots,
                    shape: shape(),
                    dtype: DType::U16,
                    keywords: 0,
                    stats: Arc::new(PublisherStats::default()),
                };
                state.on_publisher_started(name, started);
            }
            Action::StopPublisher { name } => state.on_publisher_stopped(&name),
            Action::WriteRecords { name, records } if self.redis_works => {
                self.redis.insert(name.clone(), records.clone());
                state.on_records_written(name, records);
            }
            Action::DeleteRequest { name, text } if self.redis_works => {
                assert!(self.redis.get(&name).is_some_and(|records| !records.is_empty()), "answered first");
                self.requests.retain(|_, waiting| *waiting != text);
                state.requests.remove(&name);
            }
            Action::Ask { key } if self.redis_works => {
                self.asked += 1;
                state.on_asked(&key, now);
            }
            Action::StartMirror { key, target } => {
                self.boots += 1;
                let info = MirrorInfo {
                    path: "m".into(),
                    shape: target.shape,
                    dtype: target.dtype,
                    transport: "zmq",
                    stats: Arc::new(MirrorStats::default()),
                    back: None,
                };
                state.on_mirror_started(key, self.boots, target, info, now);
            }
            Action::SetLinks { name, links } => {
                let told = |source| LinkInfo { source, stats: Arc::new(MirrorStats::default()) };
                state.on_links_set(
                    name,
                    links.into_iter().map(|(client, source)| (client, told(source))).collect(),
                );
            }
            Action::OpenBack { key, .. } => {
                self.boots += 1;
                state.on_back_opened(&key, BackSocket { port: 7000, tcp_port: None, boot_id: self.boots });
            }
            Action::StopMirror { key } => state.on_mirror_stopped(&key),
            Action::RefuseMirror { key, target, why } => {
                state.on_mirror_failed(key, why, target, now + Duration::from_secs(2));
            }
            Action::RefuseWrite { key, .. } => state.on_write_refused(&key),
            Action::Forget { key } => state.on_forgotten(&key),
            Action::WriteRecords { .. } | Action::DeleteRequest { .. } | Action::Ask { .. } => {} // Redis is away
        }
    }

    /// Acts until there is nothing to do; the number of rounds is bounded.
    fn settle(&mut self, state: &mut State, now: Instant) {
        for _ in 0..20 {
            let actions = state.reconcile(now);
            if actions.is_empty() || !self.redis_works && actions.iter().all(needs_redis) {
                return;
            }
            actions.into_iter().for_each(|action| self.act(state, action, now));
        }
        panic!("it does not settle: {:?}", state.reconcile(now));
    }
}

fn needs_redis(action: &Action) -> bool {
    matches!(action, Action::WriteRecords { .. } | Action::DeleteRequest { .. } | Action::Ask { .. })
}

fn world() -> World {
    World { redis_works: true, ..World::default() }
}

#[test]
fn a_request_starts_a_publisher_and_is_deleted_only_when_its_record_stands() {
    let (mut state, mut world, now) = (state(), world(), Instant::now());
    state.on_local_segments(files(&["wfs"]));
    state.on_request("wfs".into(), "text".into(), &request("gui"), now).unwrap();
    world.settle(&mut state, now);
    assert_eq!(world.redis["wfs"][0].client_hostname, "gui");
    assert!(state.requests.is_empty());
}

#[test]
fn the_publisher_stops_with_its_last_client_and_its_records_go() {
    let (mut state, mut world, now) = (state(), world(), Instant::now());
    state.on_local_segments(files(&["wfs"]));
    for client in ["a", "b"] {
        state.on_request("wfs".into(), client.into(), &request(client), now).unwrap();
    }
    world.settle(&mut state, now);
    assert_eq!(world.redis["wfs"].len(), 2);
    state.on_client_gone("wfs", "a", Instant::now());
    world.settle(&mut state, now);
    assert_eq!(world.redis["wfs"].len(), 1);
    assert_eq!(state.publishers.len(), 1);
    state.on_client_gone("wfs", "b", Instant::now());
    world.settle(&mut state, now);
    assert!(world.redis["wfs"].is_empty() && state.publishers.is_empty());
}

#[test]
fn a_silent_client_is_evicted_but_one_that_has_just_asked_is_not() {
    let (mut state, now) = (state(), Instant::now());
    state.on_request("wfs".into(), "t".into(), &request("a"), now).unwrap();
    let silent = [ClientAge { client: "a".into(), age: None }];
    assert!(state.on_client_ages("wfs", &silent, false, now + Duration::from_secs(20)).is_empty());
    assert_eq!(state.on_client_ages("wfs", &silent, false, now + Duration::from_secs(26)), ["a"]);
    assert!(state.clients.is_empty());
}

#[test]
fn a_client_in_no_record_keeps_the_stream_alive_by_its_heartbeat() {
    let (mut state, mut world, now) = (state(), world(), Instant::now());
    state.on_local_segments(files(&["wfs"]));
    state.on_request("wfs".into(), "t".into(), &request("a"), now).unwrap();
    world.settle(&mut state, now);
    let later = now + Duration::from_secs(60);
    let ages = [
        ClientAge { client: "a".into(), age: None },
        ClientAge { client: "python".into(), age: Some(Duration::from_secs(3)) },
    ];
    assert_eq!(state.on_client_ages("wfs", &ages, true, later), ["a"]);
    world.settle(&mut state, later);
    assert_eq!(world.boots, 1, "the publisher went on");
    assert_eq!(world.redis["wfs"][0].client_hostname, "python");
}

#[test]
fn a_segment_that_comes_back_is_published_at_once_on_its_old_port() {
    let (mut state, mut world, now) = (state(), world(), Instant::now());
    state.ports.insert("wfs".into(), 6001);
    state.on_local_segments(files(&["wfs"]));
    state.on_request("wfs".into(), "t".into(), &request("a"), now).unwrap();
    world.settle(&mut state, now);
    assert_eq!(world.redis["wfs"][0].port, 6001);
    state.on_publisher_failed("wfs".into(), "gone".into(), now + Duration::from_secs(60));
    state.on_local_segments(files(&[]));
    world.settle(&mut state, now);
    assert!(world.redis["wfs"].is_empty(), "nobody is sent to a port on which nobody listens");
    state.on_local_segments(files(&["wfs"]));
    world.settle(&mut state, now);
    assert_eq!(world.redis["wfs"][0].port, 6001);
}

#[test]
fn a_failed_publisher_is_not_tried_on_every_tick() {
    let (mut state, mut world, now) = (state(), world(), Instant::now());
    state.on_local_segments(files(&["wfs"]));
    state.on_request("wfs".into(), "t".into(), &request("a"), now).unwrap();
    assert!(state.on_publisher_failed("wfs".into(), "no port".into(), now + Duration::from_secs(2)));
    world.settle(&mut state, now);
    assert_eq!(world.boots, 0);
    assert!(
        !state.on_publisher_failed("wfs".into(), "no port".into(), now + Duration::from_secs(2)),
        "no news"
    );
    world.settle(&mut state, now + Duration::from_secs(3));
    assert_eq!(world.boots, 1);
}

#[test]
fn a_wanted_mirror_asks_then_starts_then_follows_the_owners_restart() {
    let (mut state, mut world, now) = (state(), world(), Instant::now());
    state.on_want(key(), false, Holder::Kept, facts(&[])).unwrap();
    world.settle(&mut state, now);
    assert_eq!((world.asked, state.unresolved()), (1, true));
    state.on_remote(key(), facts(&[record("other", 1, 1), record("me", 5560, 7)]));
    world.settle(&mut state, now);
    assert!(!state.unresolved());
    state.on_remote(key(), facts(&[record("me", 5560, 8)]));
    world.settle(&mut state, now);
    let Some(Mirror::Running { target, .. }) = state.mirrors.get(&key()) else { panic!("no mirror") };
    assert_eq!(target.source.boot_id, Some(8));
}

#[test]
fn a_mirror_that_hears_nothing_asks_again_and_goes_on() {
    let (mut state, mut world, now) = (state(), world(), Instant::now());
    state.on_want(key(), false, Holder::Kept, facts(&[record("me", 5560, 7)])).unwrap();
    world.settle(&mut state, now);
    assert_eq!(world.asked, 1, "the record may be one that is about to go");
    world.settle(&mut state, now + Duration::from_secs(6));
    assert_eq!((world.asked, state.unresolved()), (2, false));
}

#[test]
fn a_mirror_of_a_python_owner_that_missed_its_only_frame_asks_again() {
    let (mut state, mut world, now) = (state(), world(), Instant::now());
    state
        .on_want(key(), false, Holder::Kept, facts(&[Record { extras: None, ..record("me", 5560, 0) }]))
        .unwrap();
    world.settle(&mut state, now);
    let Some(Mirror::Running { info, .. }) = state.mirrors.get(&key()) else { panic!("no mirror") };
    let stats = Arc::clone(&info.stats);
    stats.last_heard_ns.store(clock::monotonic_ns() + 60_000_000_000, Relaxed);
    world.settle(&mut state, now + Duration::from_secs(9));
    assert_eq!(world.asked, 0, "connected, and frames have come");
    stats.frameless_since_ns.store(clock::monotonic_ns() - 1_000_000_000, Relaxed);
    world.settle(&mut state, now + Duration::from_secs(9));
    world.settle(&mut state, now + Duration::from_secs(10));
    assert_eq!(world.asked, 1, "not on every tick");
    world.settle(&mut state, now + Duration::from_secs(13));
    assert_eq!(world.asked, 2);
    stats.frameless_since_ns.store(0, Relaxed);
    world.settle(&mut state, now + Duration::from_secs(30));
    assert_eq!(world.asked, 2);
}

#[test]
fn nobody_is_asked_for_a_segment_that_is_not_registered() {
    let (mut state, now) = (state(), Instant::now());
    state.on_remembered(key(), false, true, 0, Instant::now());
    assert!(state.reconcile(now).is_empty(), "nothing is known yet");
    state.on_remote(key(), RemoteFacts::default());
    assert!(state.reconcile(now).is_empty());
}

#[test]
fn an_unknown_transport_is_refused_by_its_name_and_once() {
    let (mut state, mut world, now) = (state(), world(), Instant::now());
    let rdma = Record { transport: "rdma".into(), ..record("me", 5560, 7) };
    state.on_want(key(), false, Holder::Kept, facts(&[rdma])).unwrap();
    world.settle(&mut state, now);
    let Some(Mirror::Failed { why, .. }) = state.mirrors.get(&key()) else { panic!("not refused") };
    assert_eq!(why.message, "rdma connector not implemented.");
}

#[test]
fn a_one_way_mirror_that_is_asked_for_as_bidirectional_becomes_so_once_the_owner_agrees() {
    let (mut state, mut world, now) = (state(), world(), Instant::now());
    state.on_want(key(), false, Holder::Kept, facts(&[record("me", 5560, 7)])).unwrap();
    world.settle(&mut state, now);
    assert_eq!(world.asked, 1);
    state.on_want(key(), true, Holder::Kept, facts(&[record("me", 5560, 7)])).unwrap();
    world.settle(&mut state, now);
    let back = state.wanted[&key()].back.unwrap();
    assert_eq!(world.asked, 2);
    assert!(
        matches!(&state.mirrors[&key()], Mirror::Running { target, .. } if !target.bidirectional),
        "frames go on"
    );
    let mut agreed = record("me", 5560, 7);
    (agreed.bidirectional, agreed.client_pub_port) = (true, Some(back.port));
    agreed.extras.as_mut().unwrap().client_boot_id = Some(back.boot_id);
    state.on_remote(key(), facts(std::slice::from_ref(&agreed)));
    world.settle(&mut state, now);
    assert!(matches!(&state.mirrors[&key()], Mirror::Running { target, .. } if target.bidirectional));
    assert_eq!(state.wanted[&key()].back, Some(back));
    assert!(!state.unresolved());
}

#[test]
fn an_owner_that_is_read_only_refuses_by_name_and_a_one_way_mirror_stays() {
    let (mut state, mut world, now) = (state(), world(), Instant::now());
    state.on_want(key(), true, Holder::Kept, facts(&[])).unwrap();
    world.settle(&mut state, now);
    let back = state.wanted[&key()].back.unwrap();
    let mut refused = record("me", 5560, 7);
    refused.client_pub_port = Some(back.port);
    let extras = refused.extras.as_mut().unwrap();
    (extras.client_boot_id, extras.read_only) = (Some(back.boot_id), true);
    state.on_remote(key(), facts(&[refused]));
    let actions = state.reconcile(now);
    let [Action::RefuseWrite { why, .. }] = actions.as_slice() else { panic!("{actions:?}") };
    assert!(why.kind == Kind::Permission && why.message.contains("'owner'"), "{why}");
    world.settle(&mut state, now);
    assert!(state.wanted.is_empty(), "what never ran leaves nothing behind");
    // One that was there before goes on as it was.
    state.on_want(key(), false, Holder::Kept, facts(&[record("me", 5560, 7)])).unwrap();
    world.settle(&mut state, now);
    state.on_want(key(), true, Holder::Kept, facts(&[record("me", 5560, 7)])).unwrap();
    world.settle(&mut state, now);
    let back = state.wanted[&key()].back.unwrap();
    let mut refused = record("me", 5560, 7);
    refused.client_pub_port = Some(back.port);
    let extras = refused.extras.as_mut().unwrap();
    (extras.client_boot_id, extras.read_only) = (Some(back.boot_id), true);
    state.on_remote(key(), facts(&[refused]));
    world.settle(&mut state, now);
    assert!(matches!(&state.mirrors[&key()], Mirror::Running { target, .. } if !target.bidirectional));
    assert!(!state.wanted[&key()].bidirectional && !state.unresolved());
}

#[test]
fn writers_are_told_to_the_publisher_and_again_when_one_comes_back() {
    let (mut state, mut world, now) = (state(), world(), Instant::now());
    state.on_local_segments(files(&["wfs"]));
    let ask = |port, boot_id| Request {
        bidirectional: true,
        client_pub_port: Some(port),
        boot_id: Some(boot_id),
        ..request("gui")
    };
    state.on_request("wfs".into(), "t".into(), &ask(7000, 1), now).unwrap();
    world.settle(&mut state, now);
    assert_eq!(
        state.links["wfs"]["gui"].source,
        Source { ip: IP, port: 7000, boot_id: Some(1), tcp_port: None }
    );
    state.on_request("wfs".into(), "t".into(), &ask(7001, 2), now).unwrap();
    world.settle(&mut state, now);
    assert_eq!(state.links["wfs"]["gui"].source.port, 7001);
    assert_eq!(world.redis["wfs"][0].extras.unwrap().client_boot_id, Some(2));
    state.on_client_gone("wfs", "gui", Instant::now());
    state.on_request("wfs".into(), "t".into(), &request("other"), now).unwrap();
    world.settle(&mut state, now);
    assert!(state.links["wfs"].is_empty());
    state.read_only = true;
    state.on_request("wfs".into(), "t".into(), &ask(7000, 3), now).unwrap();
    world.settle(&mut state, now);
    assert!(state.links["wfs"].is_empty() && world.redis["wfs"][0].extras.unwrap().read_only);
}

#[test]
fn a_record_left_of_a_bidirectional_mirror_is_no_answer_for_a_one_way_one() {
    let (mut state, mut world, now) = (state(), world(), Instant::now());
    let left = Record { bidirectional: true, client_pub_port: Some(7000), ..record("me", 5560, 7) };
    state.on_want(key(), false, Holder::Kept, facts(&[left])).unwrap();
    world.settle(&mut state, now);
    assert_eq!((world.asked, state.mirrors.len()), (1, 0));
    state.on_remote(key(), facts(&[record("me", 5560, 7)]));
    world.settle(&mut state, now);
    assert!(state.running_mirror(&key()).is_some());
}

#[test]
fn who_asks_again_just_after_he_left_stays_a_client() {
    let (mut state, left) = (state(), Instant::now());
    let asked = left + Duration::from_millis(1);
    state.on_request("wfs".into(), "text".into(), &request("c"), asked).unwrap();
    state.on_client_gone("wfs", "c", left);
    assert!(state.clients["wfs"].contains_key("c"));
    state.on_client_gone("wfs", "c", asked);
    assert!(state.clients.is_empty());
}

#[test]
fn two_streams_never_share_a_mirrors_file() {
    let mut state = state();
    state.on_want(("a.b".into(), "c".into()), false, Holder::Kept, facts(&[])).unwrap();
    assert_eq!(
        state.on_want(("a_b".into(), "c".into()), false, Holder::Kept, facts(&[])).unwrap_err().kind,
        Kind::Value
    );
}

#[test]
fn a_mirror_that_never_ran_is_forgotten_with_its_asker() {
    let (mut state, mut world, now) = (state(), world(), Instant::now());
    assert_eq!(state.on_want(key(), false, Holder::Kept, facts(&[])), Ok((true, false)));
    state.on_abandon(&key(), Holder::Kept);
    assert!(state.wanted.is_empty());
    world.settle(&mut state, now);
    assert!(state.traces.is_empty());
}

#[test]
fn a_shared_mirror_ends_with_its_last_holder() {
    let (mut state, mut world, now) = (state(), world(), Instant::now());
    let ours = || facts(&[record("me", 5560, 7)]);
    for (holder, new) in [(Holder::Lease(1), true), (Holder::Lease(2), true), (Holder::Lease(1), false)] {
        assert_eq!(state.on_want(key(), false, holder, ours()), Ok((new, false)));
    }
    world.settle(&mut state, now);
    assert_eq!(state.on_release(&key(), 1, true), Some(1));
    assert_eq!(state.on_release(&key(), 1, true), Some(1), "he has no lease of it any more");
    assert_eq!(state.on_release(&key(), 3, true), Some(1), "nor has he");
    assert!(state.mirrors.contains_key(&key()));
    state.on_caller_gone(2);
    world.settle(&mut state, now);
    assert!(state.mirrors.is_empty() && state.traces.is_empty());
    assert_eq!(state.on_release(&key(), 2, true), None);
}

#[test]
fn who_waited_in_vain_to_write_leaves_the_mirror_as_it_was() {
    let (mut state, mut world, now) = (state(), world(), Instant::now());
    let ours = || facts(&[record("me", 5560, 7)]);
    state.on_want(key(), false, Holder::Kept, ours()).unwrap();
    world.settle(&mut state, now);
    assert_eq!(state.on_want(key(), true, Holder::Kept, ours()), Ok((false, true)));
    assert_eq!(
        state.on_want(key(), true, Holder::Kept, ours()),
        Ok((false, false)),
        "the second does not raise it"
    );
    world.settle(&mut state, now);
    assert!(state.running_mirror(&key()).is_none(), "nobody may write yet");
    assert!(state.on_write_given_up(&key()));
    assert!(state.running_mirror(&key()).is_some());
    assert_eq!(state.on_release(&key(), 5, false), Some(1), "only his lease, and he has none");
}

#[test]
fn a_kept_mirror_outlives_leases_and_a_leased_one_outlives_its_release() {
    let mut state = state();
    state.on_want(key(), false, Holder::Kept, facts(&[])).unwrap();
    state.on_want(key(), false, Holder::Lease(1), facts(&[])).unwrap();
    state.on_caller_gone(1);
    assert!(state.wanted.contains_key(&key()));
    state.on_want(key(), false, Holder::Lease(2), facts(&[])).unwrap();
    assert_eq!(state.on_release(&key(), 9, true), Some(1), "the command's");
    state.on_caller_gone(2);
    assert!(state.wanted.is_empty());
}

#[test]
fn leases_of_an_earlier_run_end_unless_somebody_asks_again() {
    let (mut state, now) = (state(), Instant::now());
    let other = ("owner".to_owned(), "dm".to_owned());
    state.on_remembered(key(), false, false, 1, now);
    state.on_remembered(other.clone(), true, false, 1, now);
    assert_eq!(state.on_want(key(), false, Holder::Lease(1), facts(&[])), Ok((true, false)));
    state.expire_leases(now + limits::LEASE_GRACE / 2);
    assert_eq!(state.wanted.len(), 2);
    state.expire_leases(now + limits::LEASE_GRACE);
    assert_eq!(state.wanted.keys().collect::<Vec<_>>(), [&key()]);
    assert_eq!(state.traces, BTreeSet::from([other]));
}

#[test]
fn a_lease_that_is_taken_up_again_ends_when_its_holder_does() {
    let (mut state, now) = (state(), Instant::now());
    state.on_remembered(key(), false, false, 2, now);
    state.on_want(key(), false, Holder::Lease(1), facts(&[])).unwrap();
    state.on_caller_gone(1);
    assert_eq!(state.wanted[&key()].leases(), 1, "the other may still come");
    state.on_want(key(), false, Holder::Lease(2), facts(&[])).unwrap();
    state.on_caller_gone(2);
    assert!(state.wanted.is_empty());
}

#[test]
fn what_is_held_inside_the_daemon_ends_with_it_and_the_rest_is_remembered() {
    let mut state = state();
    let other = ("owner".to_owned(), "dm".to_owned());
    state.on_want(key(), false, Holder::Inside(1), facts(&[])).unwrap();
    state.on_want(other.clone(), false, Holder::Inside(1), facts(&[])).unwrap();
    state.on_want(other.clone(), false, Holder::Lease(2), facts(&[])).unwrap();
    state.on_stop();
    assert_eq!(state.wanted.keys().collect::<Vec<_>>(), [&other]);
}

#[test]
fn a_machine_that_is_not_registered_answers_nobody_with_a_record() {
    let (mut state, mut world, now) = (state(), world(), Instant::now());
    state.registered = false;
    state.on_local_segments(files(&["wfs"]));
    state.on_adopt("wfs".into(), None, vec!["c".into()], now);
    world.settle(&mut state, now);
    assert!(!world.redis.contains_key("wfs"));
    state.on_registered(Role::Master, EarlierRun::default(), now);
    world.settle(&mut state, now);
    assert_eq!((world.redis["wfs"].len(), state.me.role), (1, Role::Master));
}

#[derive(Clone, Debug)]
enum Event {
    Segments(bool),
    Request(u8),
    Gone(u8),
    Silent(u8),
    PublisherDies,
    RegistryLost,
    Redis(bool),
    Want(u64),
    Release(u64),
    CallerGone(u64),
    Remote(Option<u64>),
    MirrorDies,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        any::<bool>().prop_map(Event::Segments),
        (0u8..3).prop_map(Event::Request),
        (0u8..3).prop_map(Event::Gone),
        (0u8..3).prop_map(Event::Silent),
        Just(Event::PublisherDies),
        Just(Event::RegistryLost),
        any::<bool>().prop_map(Event::Redis),
        (0u64..3).prop_map(Event::Want),
        (0u64..3).prop_map(Event::Release),
        (0u64..3).prop_map(Event::CallerGone),
        prop::option::of(0u64..3).prop_map(Event::Remote),
        Just(Event::MirrorDies),
    ]
}

proptest! {
    #[test]
    fn whatever_happens_in_whatever_order_desired_and_actual_meet(events in prop::collection::vec(event(), 0..40)) {
        let (mut state, mut world) = (state(), world());
        let mut now = Instant::now();
        for event in events {
            now += Duration::from_secs(3);
            match event {
                Event::Segments(there) => state.on_local_segments(files(if there { &["wfs"] } else { &[] })),
                Event::Request(client) => {
                    let client = format!("c{client}");
                    state.on_request("wfs".into(), client.clone(), &request(&client), now).unwrap();
                }
                Event::Gone(client) => state.on_client_gone("wfs", &format!("c{client}"), now),
                Event::Silent(client) => {
                    state.on_client_ages("wfs", &[ClientAge { client: format!("c{client}"), age: None }], false, now);
                }
                Event::PublisherDies => {
                    if state.publishers.contains_key("wfs") {
                        state.on_publisher_failed("wfs".into(), "died".into(), now + Duration::from_millis(200));
                    }
                }
                Event::RegistryLost => {
                    world.redis.clear();
                    state.on_registry_lost();
                }
                Event::Redis(works) => world.redis_works = works,
                Event::Want(caller) => {
                    let holder = if caller == 0 { Holder::Kept } else { Holder::Lease(caller) };
                    let _new = state.on_want(key(), false, holder, facts(&[])).unwrap();
                }
                Event::Release(caller) => {
                    let _left = state.on_release(&key(), caller, true);
                }
                Event::CallerGone(caller) => state.on_caller_gone(caller),
                Event::Remote(boot) => {
                    let records: Vec<Record> = boot.into_iter().map(|boot| record("me", 5560, boot)).collect();
                    state.on_remote(key(), facts(&records));
                }
                Event::MirrorDies => {
                    if let Some(Mirror::Running { number, .. }) = state.mirrors.get(&key()) {
                        state.on_mirror_ended(key(), *number, "died".into(), now);
                    }
                }
            }
            world.settle(&mut state, now);
        }
        world.redis_works = true;
        now += Duration::from_secs(10);
        world.settle(&mut state, now);
        let wanted = state.clients.contains_key("wfs") && state.segments.contains_key("wfs");
        let running = matches!(state.publishers.get("wfs"), Some(Publisher::Running(_)));
        // One that runs while its file is away ends by itself; the state waits for that.
        prop_assert!(running == wanted || running && state.clients.contains_key("wfs"));
        let standing = world.redis.get("wfs").map_or(0, Vec::len);
        prop_assert_eq!(standing, if running { state.clients["wfs"].len() } else { 0 });
        prop_assert!(state.mirrors.keys().all(|key| state.wanted.contains_key(key)));
        prop_assert!(state.traces.is_empty());
        prop_assert!(state.wanted.values().all(|wanted| !wanted.holders.is_empty()));
    }
}
