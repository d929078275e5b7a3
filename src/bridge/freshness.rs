//! Keywords by which a reader of a mirror tells live from stale, behind those of its source. Names, types and order are
//! those that replicas of DAO segments in this field have.
//!
//! | keyword | type | value |
//! |---|---|---|
//! | `NET_REPLICA` | text | the owner's host name, its first 16 characters |
//! | `NET_SRC_CNT` | integer | the source's counter of the newest frame; 0: unknown |
//! | `NET_SRC_TIME` | integer | when that was written, UTC ns by the owner's clock (of a Python owner: when it came); 0: none came |
//! | `NET_AGE_US` | integer | how long ago that was: at its arrival, and then at every look; -1: none came |
//! | `NET_DROPPED` | integer | frames lost so far, whatever the cause |
//! | `NET_LINK` | integer | 1: the owner was heard lately; 0: the mirror is stale |

use crate::bridge::stats::MirrorStats;
use crate::limits;
use crate::naming;
use crate::os::clock;
use crate::shm::{Keyword, KeywordValue, Segment, WriteError, Writer};

/// Without frames they are looked at so often.
const LOOK_NS: i64 = 250_000_000;

/// With the comments that they get. That of the first ends with who keeps the mirror.
const KEYWORDS: [(&str, &str); 6] = [
    ("NET_REPLICA", "mirror of a segment of this machine, kept by daoserver of "),
    ("NET_SRC_CNT", "the source's counter of the newest frame"),
    ("NET_SRC_TIME", "when the source wrote it, UTC ns"),
    ("NET_AGE_US", "its age in us"),
    ("NET_DROPPED", "frames lost so far"),
    ("NET_LINK", "1: live, 0: stale"),
];
const COUNT: u16 = KEYWORDS.len() as u16;

/// How many keywords a mirror has whose source has so many: where there is no room for ours, only the source's.
pub fn with_ours(source_keywords: u16) -> u16 {
    source_keywords.checked_add(COUNT).filter(|all| *all <= limits::KEYWORDS_MAX).unwrap_or(source_keywords)
}

/// What stands in a mirror before its first frame: room for the source's keywords, then ours.
pub fn keywords(source_keywords: u16, owner: &str, keeper: &str) -> Vec<Keyword> {
    let unused = Keyword { name: String::new(), value: KeywordValue::Unused, comment: String::new() };
    let mut all = vec![unused; source_keywords.into()];
    if with_ours(source_keywords) == source_keywords {
        return all;
    }
    all.extend(KEYWORDS.iter().enumerate().map(|(place, (name, comment))| {
        let first = place == 0;
        Keyword {
            name: (*name).to_owned(),
            value: if first { KeywordValue::Text(owner.to_owned()) } else { KeywordValue::Long(0) },
            comment: if first { format!("{comment}{keeper}") } else { (*comment).to_owned() },
        }
    }));
    all
}

/// Ours in a mirror of ours; never in a source, whatever its keywords are called.
fn find(segment: &Segment) -> Option<Vec<Keyword>> {
    let file_name = segment.path().file_name()?.to_str()?;
    let all = segment.keywords();
    let ours = all.get(all.len().checked_sub(COUNT.into())?..)?;
    let names = ours.iter().map(|keyword| keyword.name.as_str());
    let same =
        file_name.starts_with(naming::MIRROR_PREFIX) && names.eq(KEYWORDS.iter().map(|(name, _)| *name));
    same.then(|| ours.to_vec())
}

/// Does this mirror have our keywords, and say that it is the daemon of this name that keeps it?
pub fn is_kept_by(segment: &Segment, keeper: &str) -> bool {
    let wanted = keywords(0, "", keeper);
    find(segment).is_some_and(|ours| {
        // As it is written: a long name is cut.
        let cut = |keyword: &Keyword| Keyword::decode(&keyword.encode()).comment;
        ours.first().map(cut) == wanted.first().map(cut)
    })
}

/// How many of a segment's keywords are those of a mirror's source.
pub fn of_the_source(segment: &Segment) -> u16 {
    let all = segment.spec().keywords;
    if find(segment).is_some() { all.saturating_sub(COUNT) } else { all }
}

/// What the keywords of one mirror say.
pub struct Freshness {
    /// The place of `NET_SRC_CNT`.
    place: u16,
    source_counter: i64,
    source_time_ns: i64,
    next_look_ns: i64,
}

impl Freshness {
    /// Of a mirror that has our keywords. What an earlier daemon wrote there stays true until the next frame.
    pub fn of(segment: &Segment) -> Option<Freshness> {
        let ours = find(segment)?;
        let long = |place: usize| match ours.get(place).map(|keyword| &keyword.value) {
            Some(KeywordValue::Long(value)) => *value,
            _ => 0,
        };
        Some(Freshness {
            place: of_the_source(segment) + 1,
            source_counter: long(1),
            source_time_ns: long(2),
            next_look_ns: 0,
        })
    }

    /// Writes what is true of the newest frame.
    fn write(&self, writer: &mut Writer, stats: &MirrorStats, link: bool) -> Result<(), WriteError> {
        // Of a Python owner's frame the time is that of its arrival, by our clock.
        let ahead_ns = if self.source_counter == 0 { 0 } else { stats.hops.clock.ahead_ns() };
        let now_ns = clock::realtime_ns().saturating_add(ahead_ns);
        let age_us = match self.source_time_ns {
            0 => -1,
            written_ns => now_ns.saturating_sub(written_ns).max(0) / 1_000,
        };
        let lost = i64::try_from(stats.lost_total()).unwrap_or(i64::MAX);
        let values = [self.source_counter, self.source_time_ns, age_us, lost, i64::from(link)];
        writer.set_keyword_values(self.place, &values)
    }

    /// A frame is about to become visible.
    pub fn on_frame(
        &mut self,
        writer: &mut Writer,
        (source_counter, source_time_ns): (u64, i64),
        stats: &MirrorStats,
    ) -> Result<(), WriteError> {
        (self.source_counter, self.source_time_ns) = (source_counter as i64, source_time_ns);
        self.write(writer, stats, true)
    }

    /// Is it time to look again?
    pub fn is_due(&self, now_ns: i64) -> bool {
        now_ns >= self.next_look_ns
    }

    /// Then, whether frames come or not.
    pub fn on_time(
        &mut self,
        writer: &mut Writer,
        now_ns: i64,
        stats: &MirrorStats,
    ) -> Result<(), WriteError> {
        self.next_look_ns = now_ns + LOOK_NS;
        self.write(writer, stats, stats.connected())
    }

    /// Nobody keeps the mirror from now on.
    pub fn on_end(&mut self, writer: &mut Writer, stats: &MirrorStats) {
        let _ = self.write(writer, stats, false); // a segment that is gone has no reader to be told
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::{DType, Shape};
    use crate::shm::{self, Layout, SegmentSpec};
    use std::sync::atomic::Ordering::Relaxed;

    fn made(name: &str, keywords: &[Keyword]) -> Writer {
        let path = naming::segment_path(&std::env::temp_dir(), &format!("{name}{}", std::process::id()));
        let (shape, dtype) = (Shape::new(&[3]).unwrap(), DType::U8); // no value stands at a multiple of eight
        let count = keywords.len() as u16;
        let spec = SegmentSpec { shape, dtype, layout: Layout::Fifo, depth: 1, keywords: count };
        Writer::new(shm::create(&path, &spec, keywords).unwrap()).unwrap()
    }

    fn values(writer: &Writer) -> Vec<KeywordValue> {
        writer.segment().keywords().into_iter().map(|keyword| keyword.value).collect()
    }

    #[test]
    fn a_mirror_says_whose_it_is_and_how_old_its_frame() {
        let owner = "a-host-of-more-than-sixteen";
        let mut writer = made("remote_freshness_a", &keywords(1, owner, "beta"));
        assert_eq!(of_the_source(writer.segment()), 1);
        assert!(is_kept_by(writer.segment(), "beta") && !is_kept_by(writer.segment(), "beta2"));
        let mut fresh = Freshness::of(writer.segment()).unwrap();
        let stats = MirrorStats::default();
        fresh.on_time(&mut writer, 1, &stats).unwrap();
        let long = KeywordValue::Long;
        assert_eq!(values(&writer)[1], KeywordValue::Text("a-host-of-more-t".into()));
        assert_eq!(values(&writer)[2..], [0, 0, -1, 0, 0].map(long));

        let written_ns = clock::realtime_ns() + 600_000_000_000; // the owner's clock is ten minutes ahead
        stats.hops.clock.set(600_000_000_000, 1_000);
        stats.mirror_busy.store(3, Relaxed);
        fresh.on_frame(&mut writer, (7, written_ns), &stats).unwrap();
        assert_eq!(values(&writer)[2..4], [7, written_ns].map(long));
        assert_eq!(values(&writer)[5..], [3, 1].map(long));
        let KeywordValue::Long(age_us) = values(&writer)[4] else { panic!("no integer") };
        assert!((0..60_000_000).contains(&age_us), "{age_us}");
        assert!(!fresh.is_due(2) && fresh.is_due(LOOK_NS + 1));
        fresh.on_time(&mut writer, LOOK_NS + 1, &stats).unwrap(); // nothing was heard
        assert_eq!(values(&writer)[6], KeywordValue::Long(0));
        let again = Freshness::of(writer.segment()).unwrap();
        assert_eq!((again.source_counter, again.source_time_ns), (7, written_ns));
        shm::remove(writer.segment().path()).unwrap();
    }

    #[test]
    fn a_source_is_left_alone_and_a_full_one_has_a_mirror_all_the_same() {
        let writer = made("freshness_b", &keywords(0, "alpha", "beta"));
        assert!(Freshness::of(writer.segment()).is_none() && !is_kept_by(writer.segment(), "beta"));
        assert_eq!(of_the_source(writer.segment()), 6);
        shm::remove(writer.segment().path()).unwrap();
        assert_eq!(with_ours(limits::KEYWORDS_MAX - 5), limits::KEYWORDS_MAX - 5);
        assert_eq!(keywords(limits::KEYWORDS_MAX, "", "").len(), usize::from(limits::KEYWORDS_MAX));
    }
}
