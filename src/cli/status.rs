//! `status`: what the local daemon does.

use super::output;
use crate::control::client;
use crate::error::Result;
use crate::settings::Settings;
use crate::wire::control::Op;
use serde_json::{Map, Value};
use std::time::Duration;

/// Prints publishers, mirrors and Redis.
pub fn run(settings: &Settings, json: bool) -> Result<()> {
    let status = client::call(&settings.control_path(), &Op::Status, Duration::from_secs(10))?;
    if json { output::print(&status.to_string()) } else { output::print(&as_text(&status)) }
}

fn as_text(status: &Value) -> String {
    let redis = &status["redis"];
    let mut lines = vec![format!(
        "{} ({}) {}, daoserver {}, Redis {}:{} {}",
        word(&status["hostname"]),
        word(&status["ip"]),
        word(&status["role"]),
        word(&status["version"]),
        word(&redis["host"]),
        redis["port"],
        if redis["connected"] == true { "connected".to_owned() } else { word(&redis["error"]) },
    )];
    for publisher in entries(&status["publishers"]) {
        let clients: Vec<String> = entries(&publisher["clients"]).map(word).collect();
        lines.push(format!(
            "publishes {} on port {} to {}: {} frames, {:.1} Hz, lost {}{}",
            word(&publisher["shm"]),
            publisher["port"].as_u64().map_or("-".to_owned(), |port| port.to_string()),
            clients.join(", "),
            publisher["frames"],
            publisher["rate_hz"].as_f64().unwrap_or(0.0),
            losses(&publisher["lost"]),
            error_of(publisher),
        ));
        for link in entries(&publisher["written_by"]) {
            lines.push(format!(
                "    written by {}: {}, {} frames, last written {}, refused {}{}",
                word(&link["client"]),
                if link["connected"] == true { "connected" } else { "NOT CONNECTED" },
                link["frames"],
                age(&link["age_us"]),
                losses(&link["refused"]),
                if link["client"] == publisher["last_writer"] { "; it wrote last" } else { "" },
            ));
        }
    }
    for mirror in entries(&status["mirrors"]) {
        let latency = &mirror["latency_us"];
        let latency = match (latency["p50"].as_f64(), latency["p99"].as_f64()) {
            (Some(p50), Some(p99)) => {
                format!(", latency p50 {p50:.0} us p99 {p99:.0} us{}", longest_hop(&mirror["hops_us"]))
            }
            _ => String::new(),
        };
        lines.push(format!(
            "mirrors {} of {} at {}: {}{}, {} frames, {:.1} Hz, lost {}{latency}{}",
            word(&mirror["shm"]),
            word(&mirror["hostname"]),
            word(&mirror["path"]),
            if mirror["connected"] == true { "connected" } else { "NOT CONNECTED" },
            if mirror["wire"] == "python" { " over Python's wire" } else { "" },
            mirror["frames"],
            mirror["rate_hz"].as_f64().unwrap_or(0.0),
            match (mirror["lost_known"].as_bool(), losses(&mirror["lost"])) {
                (Some(false), known) if known == "0" => "unknown".to_owned(),
                (Some(false), known) => format!("{known} and unknown"),
                (_, known) => known,
            },
            error_of(mirror),
        ));
        if mirror["bidirectional"] == true {
            let back = &mirror["written_back"];
            lines.push(format!(
                "    writes back: {} frames, {} not sent (the mirror was not up to date), lost {}",
                back["frames"],
                back["stale"],
                losses(&back["lost"]),
            ));
        }
    }
    for (file, why) in status["refused_files"].as_object().into_iter().flatten() {
        lines.push(format!("not served: {file}: {}", word(why)));
    }
    lines.join("\n")
}

fn entries(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// Where most of the time goes.
fn longest_hop(hops_us: &Value) -> String {
    let steps = hops_us.as_object().into_iter().flatten().filter(|(label, _)| *label != "whole");
    let medians = steps.filter_map(|(label, hop)| Some((label, hop["p50"].as_f64()?)));
    medians.max_by(|(_, one), (_, other)| one.total_cmp(other)).map_or_else(String::new, |(label, p50)| {
        format!(" (most of it {}, p50 {p50:.0} us)", label.replace('_', " "))
    })
}

fn age(age_us: &Value) -> String {
    age_us.as_f64().map_or("never".to_owned(), |us| format!("{:.3} s ago", us / 1e6))
}

fn word(value: &Value) -> String {
    value.as_str().map_or_else(|| "-".to_owned(), str::to_owned)
}

fn error_of(entry: &Value) -> String {
    entry["error"].as_str().map_or_else(String::new, |why| format!(" ({why})"))
}

/// `0`, or the causes with their counts.
fn losses(lost: &Value) -> String {
    let none = Map::new();
    let causes = lost.as_object().unwrap_or(&none).iter().filter(|(_, count)| count.as_u64() != Some(0));
    let causes: Vec<String> = causes.map(|(cause, count)| format!("{count} {cause}")).collect();
    if causes.is_empty() { "0".to_owned() } else { causes.join(" + ") }
}
