//! `bench`: what publishing costs on this machine, beside its floors.

use super::output;
use crate::bridge::bench::{self, Row};
use crate::error::Result;
use serde_json::{Value, json};

/// Bytes of the frames: a 128x256 image of 16 bits.
const FRAME_BYTES: u32 = 64 * 1024;

/// Measures and prints a table, or JSON.
pub fn run(json: bool) -> Result<()> {
    let rows = bench::publishing(FRAME_BYTES)?;
    let floor_us = rows.first().map_or(f64::NAN, |row| row.p50_us);
    let ours_us = rows.iter().find(|row| row.what.starts_with("our wire")).map_or(f64::NAN, |row| row.p50_us);
    if json {
        let rows: Vec<Value> = rows
            .iter()
            .map(|row| {
                json!({
                    "what": row.what, "frame_bytes": FRAME_BYTES, "p50_us": row.p50_us, "p99_us": row.p99_us,
                    "of_copy": row.p50_us / floor_us, "of_ours": row.p50_us / ours_us,
                })
            })
            .collect();
        return output::print(&Value::Array(rows).to_string());
    }
    let line = |row: &Row| {
        let (of_copy, of_ours) = (row.p50_us / floor_us, row.p50_us / ours_us);
        format!("{:34}{:>8.1}{:>8.1}{of_copy:>10.1}{of_ours:>10.2}", row.what, row.p50_us, row.p99_us)
    };
    let head =
        format!("{:34}{:>8}{:>8}{:>10}{:>10}", "a frame of 64 kB", "p50 us", "p99 us", "x a copy", "x ours");
    let lines: Vec<String> = std::iter::once(head).chain(rows.iter().map(line)).collect();
    output::print(&lines.join("\n"))
}
