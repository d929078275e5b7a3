//! What of the segment directory can be served.

use crate::control::loops::Shared;
use crate::dtype::{DType, Shape};
use crate::metrics;
use crate::os::threads::lock;
use crate::shm::{self, Advice, OpenError};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// Segments by name: file, shape and type.
pub type Segments = BTreeMap<String, (PathBuf, (Shape, DType))>;

/// The segments that can be served. What cannot is said once for each reason; a file that somebody is about to finish
/// only if it was unfinished in the last pass already. `Err`: this process has nothing left to look with.
pub fn served(shared: &Shared, unfinished: &mut BTreeSet<String>) -> std::io::Result<Segments> {
    let directory = &shared.settings.shm_dir;
    let mut good = BTreeMap::new();
    let mut waited_for = BTreeSet::new();
    let mut bad = BTreeMap::new();
    match shm::scan(directory) {
        Err(error) if shm::short(&error) => return Err(error),
        Err(error) => {
            drop(bad.insert(directory.display().to_string(), format!("it cannot be read: {error}")))
        }
        Ok(entries) => {
            for entry in entries {
                if entry.facts.as_ref().is_err_and(|error| error.advice() == Advice::Wait)
                    && waited_for.insert(entry.file_name.clone())
                    && !unfinished.contains(&entry.file_name)
                {
                    continue;
                }
                let usable = entry.name.and_then(|name| match entry.facts {
                    Ok(facts) if facts.on_gpu => Err(OpenError::OnGpu.to_string()),
                    Ok(facts) => Ok((name, facts)),
                    Err(error) => Err(error.to_string()),
                });
                match usable {
                    Ok((name, _)) if good.contains_key(&name) => {
                        bad.insert(
                            entry.file_name,
                            format!("another file is registered as '{name}' already"),
                        );
                    }
                    Ok((name, facts)) => {
                        good.insert(name, (facts.path, (facts.spec.shape, facts.spec.dtype)));
                    }
                    Err(why) => drop(bad.insert(entry.file_name, why)),
                }
            }
        }
    }
    *unfinished = waited_for;
    let mut said = lock(&shared.refused_files);
    for (file, why) in &bad {
        if said.get(file) != Some(why) {
            metrics::SEGMENT_FILES_REFUSED.add(1);
            crate::warn!("{} is not served: {why}", file.escape_debug());
        }
    }
    *said = bad;
    Ok(good)
}
