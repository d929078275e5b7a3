//! The control protocol's parser against lines of anybody: each is an operation within its bounds, or refused with one
//! short line, and never more.
#![allow(clippy::unwrap_used)]

use daoserver::Kind;
use daoserver::limits;
use daoserver::wire::control::{Get, Op, Scan, answer, ask, parse_answer, parse_line};
use proptest::prelude::*;
use std::time::Duration;

fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(20_000)
}

fn lines() -> Vec<Vec<u8>> {
    let ops = [
        Op::Ping,
        Op::Start,
        Op::Stop,
        Op::Status,
        Op::ListMachines,
        Op::GetRemoteShm(Get { bidirectional: true, lease: true, ..Get::new("rts", "wfs") }),
        Op::ReleaseRemoteShm { hostname: "rts".into(), shm: "wfs".into() },
        Op::RegisterMachine,
        Op::DeregisterMachine { hostname: Some("rts".into()) },
        Op::CleanupStaleMachines { ttl: Duration::from_secs(120) },
        Op::Discover(Scan { port: 6379, timeout: Duration::from_millis(300), max_workers: 64 }),
    ];
    ops.iter().map(|op| ask(7, op).into_bytes()).collect()
}

fn judge(bytes: &[u8]) -> Result<(), TestCaseError> {
    let asked = parse_line(&String::from_utf8_lossy(bytes));
    match &asked.op {
        Ok(Op::GetRemoteShm(get)) => prop_assert!(get.timeout <= Duration::from_secs(366 * 86_400)),
        Ok(Op::Discover(scan)) => {
            prop_assert!(scan.port > 0 && (1..=limits::DISCOVERY_WORKERS_MAX).contains(&scan.max_workers));
        }
        Ok(_) => {}
        Err(error) => {
            prop_assert_eq!(error.kind, Kind::Value);
            prop_assert!(!error.message.contains('\n') && error.message.len() < 200, "{}", error);
        }
    }
    // Whatever the id is, the answer is one line, which the other side reads, with the id as it came.
    let line = answer(&asked.id, &asked.op.map(|op| ask(1, &op).into()));
    prop_assert!(!line.contains('\n'));
    prop_assert_eq!(parse_answer(&line).unwrap().0, asked.id);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), ..ProptestConfig::default() })]

    #[test]
    fn mutated_requests_are_operations_or_refused(
        which in 0usize..11,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0u8..4), 1..6),
        cut in any::<prop::sample::Index>(),
        keep in any::<bool>(),
    ) {
        thread_local!(static LINES: Vec<Vec<u8>> = lines());
        let mut bytes = LINES.with(|lines| lines[which].clone());
        for (at, value, what) in changes {
            let at = at.index(bytes.len());
            match what {
                0 => bytes[at] = value,
                1 => bytes.insert(at, value),
                2 => bytes[at] = b"{}[]\":,0-e\\"[usize::from(value) % 11],
                _ => bytes.extend_from_within(at..),
            }
            bytes.truncate(4_096);
        }
        if !keep {
            bytes.truncate(cut.index(bytes.len()));
        }
        judge(&bytes)?;
    }

    #[test]
    fn random_tokens_are_refused_or_harmless(tokens in prop::collection::vec(
        prop::sample::select(vec![
            "{", "}", "[", "]", ":", ",", "\"", "\"op\"", "\"id\"", "\"ping\"", "\"hostname\"", "null", "true", "-", "0", "1e999",
            "18446744073709551616", "\\u0000", "\\ud800", " ", "\u{fffd}",
        ]),
        0..60,
    )) {
        judge(tokens.concat().as_bytes())?;
    }
}

#[test]
fn deep_nesting_ends_soon() {
    for line in ["[".repeat(1 << 20), "{\"a\":".repeat(200_000), format!("{{\"id\": {}", "[".repeat(100_000))]
    {
        assert!(parse_line(&line).op.unwrap_err().message.starts_with("No JSON at column "));
    }
}
