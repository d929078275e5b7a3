//! `shm info` and `shm list`: what segments say of themselves.

use super::super::output;
use super::cannot_open;
use crate::error::{Error, Kind, Result};
use crate::naming;
use crate::os::clock;
use crate::shm::{self, Access, Facts, Keyword, KeywordValue, OpenError, Segment};
use crate::wire::time;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Prints what a segment says of itself.
pub fn info(path: &Path, as_json: bool) -> Result<()> {
    let facts = shm::probe(path).map_err(|why| cannot_open(path, &why))?;
    let keywords = keywords(&facts)?;
    let semaphores = naming::semaphore_base(path).map_or(0, |base| shm::semaphore_count(&base));
    if as_json {
        let mut all = json(&facts);
        all["keywords"] = keywords.iter().map(keyword_json).collect();
        all["semaphores"] = semaphores.into();
        return output::print(&all.to_string());
    }
    let mut out = String::new();
    let mut line = |name: &str, value: String| out.push_str(&format!("{name:<12}{value}\n"));
    line("path", path.display().to_string());
    line("shape", facts.spec.shape.to_string());
    line("dtype", facts.spec.dtype.name().to_owned());
    line("layout", facts.spec.layout.to_string());
    line("depth", facts.spec.depth.to_string());
    line("counter", facts.counter.to_string());
    line("atime", format!("{} ({})", time::format(facts.atime_ns), age(facts.atime_ns)));
    line("semaphores", semaphores.to_string());
    line("keywords", format!("{} of {}", keywords.len(), facts.spec.keywords));
    for keyword in &keywords {
        line(
            "",
            format!("{} = {} {}", keyword.name, value_json(keyword), keyword.comment).trim_end().to_owned(),
        );
    }
    if facts.on_gpu {
        line("pixels", "on a GPU".to_owned());
    }
    output::print(&out)
}

/// The keywords in use. A segment on a GPU cannot be mapped, so its are not read.
fn keywords(facts: &Facts) -> Result<Vec<Keyword>> {
    if facts.spec.keywords == 0 || facts.on_gpu {
        return Ok(Vec::new());
    }
    let segment = Segment::open(&facts.path, Access::Read).map_err(|why| cannot_open(&facts.path, &why))?;
    let used = |keyword: &Keyword| keyword.value != KeywordValue::Unused;
    Ok(segment.keywords().into_iter().filter(used).collect())
}

fn value_json(keyword: &Keyword) -> Value {
    match &keyword.value {
        KeywordValue::Unused => Value::Null,
        KeywordValue::Long(value) => json!(value),
        KeywordValue::Double(value) => json!(value),
        KeywordValue::Text(value) => json!(value),
    }
}

fn keyword_json(keyword: &Keyword) -> Value {
    json!({"name": keyword.name, "value": value_json(keyword), "comment": keyword.comment})
}

/// `atime` in nanoseconds since 1970, as it stands in the segment.
fn json(facts: &Facts) -> Value {
    json!({
        "path": facts.path.to_string_lossy(),
        "shape": facts.spec.shape.axes(),
        "dtype": facts.spec.dtype.name(),
        "layout": facts.spec.layout.to_string(),
        "depth": facts.spec.depth,
        "counter": facts.counter,
        "atime": facts.atime_ns,
    })
}

/// How long ago a frame was written.
pub fn age(atime_ns: i64) -> String {
    if atime_ns == 0 {
        return "never written".to_owned();
    }
    let age_s = clock::realtime_ns().saturating_sub(atime_ns) as f64 * 1e-9;
    match age_s {
        s if s < 0.0 => format!("{:.3} s in the future", -s),
        s if s < 1.0 => format!("{:.1} ms ago", s * 1e3),
        s if s < 120.0 => format!("{s:.1} s ago"),
        s => format!("{:.0} min ago", s / 60.0),
    }
}

/// Every segment file of a directory, mirrors too, in the order of their names.
fn scan(dir: &Path) -> std::io::Result<Vec<(PathBuf, std::result::Result<Facts, OpenError>)>> {
    let mut paths = Vec::new();
    for entry in dir.read_dir()? {
        let path = entry?.path();
        if path.to_string_lossy().ends_with(naming::SEGMENT_SUFFIX) {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths.into_iter().map(|path| (path.clone(), shm::probe(&path))).collect())
}

/// Prints the segments of a directory, and why the bad ones are bad.
pub fn list(dir: &Path, as_json: bool) -> Result<()> {
    let found = scan(dir).map_err(|why| {
        Error::new(Kind::Os, format!("Cannot list segment directory '{}': {why}.", dir.display()))
    })?;
    if as_json {
        let entry = |(path, facts): &(PathBuf, std::result::Result<Facts, OpenError>)| match facts {
            Ok(facts) => json(facts),
            Err(why) => json!({"path": path.to_string_lossy(), "error": why.to_string()}),
        };
        return output::print(&found.iter().map(entry).collect::<Value>().to_string());
    }
    if found.is_empty() {
        return output::print(&format!("No segments in {}.", dir.display()));
    }
    let rows: Vec<[String; 6]> = found.iter().map(|(path, facts)| row(path, facts)).collect();
    let widths: [usize; 5] =
        std::array::from_fn(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0));
    let mut out = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            line.push_str(&format!("{cell:<width$}  "));
        }
        out.push_str(format!("{line}{}", row[5]).trim_end());
        out.push('\n');
    }
    output::print(&out)
}

/// Name, shape, type, layout, counter, age or what is wrong.
fn row(path: &Path, facts: &std::result::Result<Facts, OpenError>) -> [String; 6] {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    // A file's name may hold anything, a terminal's commands too.
    let name = name.trim_end_matches(naming::SEGMENT_SUFFIX).replace(char::is_control, "?");
    match facts {
        Ok(facts) => {
            let spec = &facts.spec;
            let layout = match spec.depth {
                1 => spec.layout.to_string(),
                depth => format!("{}[{depth}]", spec.layout),
            };
            let counter = facts.counter.to_string();
            [name, spec.shape.to_string(), spec.dtype.name().to_owned(), layout, counter, age(facts.atime_ns)]
        }
        Err(why) => {
            let dash = || "-".to_owned();
            [name, dash(), dash(), dash(), dash(), why.to_string()]
        }
    }
}
