//! How `bench --to` gets a segment at another machine: a hint on the owner's wake channel, `bench <client> <bytes>`, and
//! the owner's answer in the key [`crate::naming::key::bench`]: `{"shm": "<name>"}` or
//! `{"error": {"kind": "PermissionError", "message": "..."}}`. Older daemons take the hint for one to look for requests.

use crate::error::{Error, Kind};
use crate::limits;
use crate::naming;
use serde_json::{Value, json};

/// What the hint begins with.
pub const HINT: &str = "bench ";
/// Characters of an owner's sentence that are shown.
const SENTENCE_CHARS_MAX: usize = 200;

/// Who asks, and for frames of how many bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Ask {
    pub client: String,
    pub frame_bytes: usize,
}

impl Ask {
    /// The hint.
    pub fn to_hint(&self) -> String {
        format!("{HINT}{} {}", self.client, self.frame_bytes)
    }

    /// Reads what stands behind [`HINT`]. `None`: it makes no sense.
    pub fn parse(text: &str) -> Option<Ask> {
        let (client, bytes) = text.split_once(' ')?;
        let client = naming::host_name(client).ok()?.to_owned();
        Some(Ask { client, frame_bytes: bytes.parse().ok()? })
    }

    /// The name of the segment, if there may be one.
    pub fn segment(&self) -> Result<String, Error> {
        let most = limits::BENCH_FRAME_BYTES_MAX;
        if !(1..=most).contains(&self.frame_bytes) {
            let sentence = format!("A frame to bench with has 1 to {most} bytes, not {}.", self.frame_bytes);
            return Err(Error::new(Kind::Value, sentence));
        }
        naming::bench_name(&self.client, self.frame_bytes).map_err(|why| Error::new(Kind::Value, why))
    }
}

/// The owner's answer as it stands in Redis.
pub fn answer(result: &Result<String, Error>) -> String {
    match result {
        Ok(name) => json!({"shm": name}),
        Err(error) => {
            json!({"error": {"kind": error.kind.python_name(), "message": error.message}})
        }
    }
    .to_string()
}

/// Reads an answer. It is of anybody: only the segment that was asked for is believed. `None`: it is of another question,
/// or makes no sense.
pub fn parse_answer(text: &str, wanted: &str) -> Option<Result<(), Error>> {
    let value: Value = serde_json::from_str(text).ok()?;
    if let Some(name) = value.get("shm") {
        return (name.as_str() == Some(wanted)).then_some(Ok(()));
    }
    let field = |name: &str| value.get("error")?.get(name)?.as_str();
    let one_line = |c: char| if c.is_control() { ' ' } else { c };
    let message: String = field("message")?.chars().take(SENTENCE_CHARS_MAX).map(one_line).collect();
    Some(Err(Error::new(Kind::from_python_name(field("kind")?), message)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_question_and_its_answer_come_back() {
        let ask = Ask { client: "gui1".into(), frame_bytes: 1_024 };
        assert_eq!(ask.to_hint().strip_prefix(HINT).and_then(Ask::parse), Some(ask.clone()));
        let name = ask.segment().unwrap();
        assert_eq!(parse_answer(&answer(&Ok(name.clone())), &name), Some(Ok(())));
        assert_eq!(parse_answer(&answer(&Ok("another".into())), &name), None);
        let error = Error::new(Kind::Permission, "'rts' is read-only.");
        assert_eq!(parse_answer(&answer(&Err(error.clone())), &name), Some(Err(error)));
    }

    #[test]
    fn what_would_leave_its_directory_or_fill_the_memory_is_no_question() {
        for bad in ["", "a", "a b", "../x 1", "a 1 1", "a:b 1", "a -1", "a 99999999999999999999"] {
            assert_eq!(Ask::parse(bad), None, "{bad}");
        }
        for frame_bytes in [0, limits::BENCH_FRAME_BYTES_MAX + 1, usize::MAX] {
            assert!(Ask { client: "a".into(), frame_bytes }.segment().is_err());
        }
    }

    #[test]
    fn a_sentence_of_another_machine_is_one_line_and_not_too_long() {
        let long = Error::new(Kind::Os, format!("a\nb{}", "x".repeat(10_000)));
        let read = parse_answer(&answer(&Err(long)), "n").unwrap().unwrap_err().message;
        assert!(read.starts_with("a bx") && read.len() <= SENTENCE_CHARS_MAX, "{read}");
    }

    proptest! {
        #[test]
        fn no_text_is_too_strange(text in "\\PC*") {
            let _ = Ask::parse(&text).map(|ask| ask.segment());
            let _ = parse_answer(&text, "name");
        }
    }
}
