//! `shm create`.

use super::super::commands::Create;
use super::super::output;
use crate::error::{Error, Kind, Result};
use crate::shm::{self, CreateError, Keyword, KeywordValue, Layout, SegmentSpec};
use std::path::Path;

/// Creates a segment and prints its path.
pub fn run(asked: &Create) -> Result<()> {
    let usage = |why: String| Error::usage(why);
    let path = &asked.segment;
    let layout = match &asked.layout {
        Some(name) => Layout::parse(name)
            .ok_or_else(|| usage(format!("--layout '{name}': it is none of classic, fifo, wide")))?,
        None => shm::newest_layout(directory(path)),
    };
    let keywords = asked.keyword.iter().map(|(name, value)| keyword(name, value));
    let keywords = keywords.collect::<std::result::Result<Vec<_>, _>>().map_err(usage)?;
    let spec = SegmentSpec {
        shape: asked.shape,
        dtype: asked.dtype,
        layout,
        depth: asked.depth,
        keywords: asked.keywords.max(u16::try_from(keywords.len()).unwrap_or(u16::MAX)),
    };
    shm::create(path, &spec, &keywords).map_err(|why| {
        let sentence = format!("Cannot create segment '{}': {why}.", path.display());
        match &why {
            CreateError::BadPath(..) | CreateError::BadSpec(_) => Error::usage(sentence),
            CreateError::Io { error, .. } if error.kind() == std::io::ErrorKind::PermissionDenied => {
                Error::new(Kind::Permission, sentence)
            }
            CreateError::Io { .. } | CreateError::Open(_) => Error::new(Kind::Os, sentence),
        }
    })?;
    output::print(&path.display().to_string())
}

/// Where the segment will be: a bare name's directory is the current one.
fn directory(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A keyword of the type that its value looks like.
fn keyword(name: &str, value: &str) -> std::result::Result<Keyword, String> {
    // The fields of the format, less the NUL that C programs expect behind a name.
    if name.len() > 15 || value.len() > 16 && value.parse::<f64>().is_err() {
        return Err(format!("--keyword '{name}={value}': a name has at most 15 bytes and a text at most 16"));
    }
    let value = match (value.parse(), value.parse()) {
        (Ok(whole), _) => KeywordValue::Long(whole),
        (_, Ok(float)) => KeywordValue::Double(float),
        _ => KeywordValue::Text(value.to_owned()),
    };
    Ok(Keyword { name: name.to_owned(), value, comment: String::new() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_keyword_has_the_type_that_its_value_looks_like() {
        let value = |text| keyword("k", text).unwrap().value;
        assert_eq!(value("-3"), KeywordValue::Long(-3));
        assert_eq!(value("0.5"), KeywordValue::Double(0.5));
        assert_eq!(value("loop open"), KeywordValue::Text("loop open".into()));
        assert!(keyword("k", "seventeen letters").is_err());
        assert!(keyword("sixteen_letters_", "1").is_err());
    }
}
