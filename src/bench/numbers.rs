//! Percentiles of several runs.

/// One way, microseconds. NaN: too few frames to say.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Latency {
    pub p50_us: f64,
    pub p90_us: f64,
    pub p99_us: f64,
    pub p99_9_us: f64,
    pub max_us: f64,
    /// Over all runs.
    pub frames: usize,
}

/// The value below which this share of them lies: one of them, the nearest above. NaN of none.
pub fn percentile(sorted: &[f64], share: f64) -> f64 {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied().unwrap_or(f64::NAN)
}

/// The middle one, or the mean of the middle two. NaN of none.
pub fn median(values: &[f64]) -> f64 {
    let sorted = sorted(values);
    match (sorted.get((sorted.len().max(1) - 1) / 2), sorted.get(sorted.len() / 2)) {
        (Some(below), Some(above)) => (below + above) / 2.0,
        _ => f64::NAN,
    }
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

impl Latency {
    /// The median of the runs' percentiles, so that one disturbed run does not decide. Where a run has too few frames for
    /// a percentile, and of p99.9 and the maximum always, that of all runs together.
    pub fn of(runs_us: &[Vec<f64>]) -> Latency {
        let runs: Vec<Vec<f64>> = runs_us.iter().map(|run| sorted(run)).collect();
        let all = sorted(&runs.concat());
        let together = |share: f64| {
            let enough = all.len() as f64 * (1.0 - share) >= 0.999;
            if enough { percentile(&all, share) } else { f64::NAN }
        };
        let each = |share: f64| {
            let enough = runs.iter().all(|run| run.len() as f64 * (1.0 - share) >= 0.999);
            if !enough || runs.is_empty() {
                return together(share);
            }
            median(&runs.iter().map(|run| percentile(run, share)).collect::<Vec<_>>())
        };
        Latency {
            p50_us: each(0.5),
            p90_us: each(0.9),
            p99_us: each(0.99),
            p99_9_us: together(0.999),
            max_us: all.last().copied().unwrap_or(f64::NAN),
            frames: all.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_one_of_the_values() {
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        let at = |share| percentile(&hundred, share);
        assert_eq!((at(0.0), at(0.5), at(0.9), at(0.99), at(1.0)), (1.0, 50.0, 90.0, 99.0, 100.0));
        assert_eq!(percentile(&[7.0], 0.999), 7.0);
        assert!(percentile(&[], 0.5).is_nan() && median(&[]).is_nan());
        assert_eq!((median(&[3.0, 1.0, 2.0]), median(&[4.0, 1.0, 2.0, 3.0])), (2.0, 2.5));
    }

    #[test]
    fn one_disturbed_run_does_not_decide_and_is_in_the_maximum() {
        let quiet: Vec<f64> = (1..=1_000).map(f64::from).collect();
        let disturbed: Vec<f64> = quiet.iter().map(|us| us * 100.0).collect();
        let all = Latency::of(&[quiet.clone(), disturbed, quiet]);
        assert_eq!((all.p50_us, all.p90_us, all.p99_us), (500.0, 900.0, 990.0));
        assert_eq!((all.p99_9_us, all.max_us, all.frames), (99_700.0, 100_000.0, 3_000));
    }

    #[test]
    fn few_frames_are_taken_together_and_too_few_say_nothing() {
        let run = |begin: i32| (begin..begin + 20).map(f64::from).collect::<Vec<_>>();
        let all = Latency::of(&[run(0), run(20), run(40), run(60), run(80)]);
        assert_eq!((all.p50_us, all.p99_us, all.max_us), (49.0, 98.0, 99.0));
        assert!(all.p99_9_us.is_nan());
        let none = Latency::of(&[vec![], vec![]]);
        assert!(none.p50_us.is_nan() && none.max_us.is_nan() && none.frames == 0);
    }
}
