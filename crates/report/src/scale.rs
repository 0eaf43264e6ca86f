//! Axes: round ticks, their labels, fewer points, a smoother line.

/// A linear axis over `lo..hi` with ticks at round numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Axis {
    /// Where the axis begins.
    pub lo: f64,
    /// Where it ends; always above `lo`.
    pub hi: f64,
    /// Tick positions inside it, ascending.
    pub ticks: Vec<f64>,
    /// A label for each tick.
    pub labels: Vec<String>,
}

impl Axis {
    /// An axis that covers `lo..hi` with about `count` ticks; widened to the
    /// next ticks if `round`. Equal or non-finite ends get a range around them.
    pub fn new(lo: f64, hi: f64, count: usize, round: bool) -> Axis {
        Self::with_least(lo, hi, count, round, 0.0)
    }

    /// An axis of steps: whole numbers, ends as they are.
    pub fn steps(lo: f64, hi: f64, count: usize) -> Axis {
        Self::with_least(lo, hi, count, false, 1.0)
    }

    fn with_least(lo: f64, hi: f64, count: usize, round: bool, least: f64) -> Axis {
        let (mut lo, mut hi) = match (lo.is_finite(), hi.is_finite()) {
            (true, true) => (lo.min(hi), lo.max(hi)),
            _ => (0.0, 1.0),
        };
        // Too close for f64 to count between them.
        if hi - lo <= lo.abs().max(hi.abs()) * 1e-9 {
            let room = if lo == 0.0 { 1.0 } else { (lo.abs() * 0.1).max(least) };
            (lo, hi) = (if lo >= 0.0 { (lo - room).max(0.0) } else { lo - room }, hi + room);
        }
        let step = nice((hi - lo) / count.max(1) as f64).max(least);
        if round {
            (lo, hi) = ((lo / step + 1e-9).floor() * step, (hi / step - 1e-9).ceil() * step);
        }
        let first = (lo / step - 1e-9).ceil();
        let n = ((hi / step + 1e-9).floor() - first).clamp(0.0, 100.0) as usize;
        let ticks: Vec<f64> = (0..=n).map(|i| (first + i as f64) * step).collect();
        let labels = labels(&ticks, step);
        Axis { lo, hi, ticks, labels }
    }

    /// Where a value lies, from 0 at `lo` to 1 at `hi`.
    pub fn at(&self, value: f64) -> f64 {
        (value - self.lo) / (self.hi - self.lo)
    }
}

/// The next round number at or above `x`: 1, 2, 2.5 or 5 times a power of ten.
fn nice(x: f64) -> f64 {
    let power = 10f64.powf(x.log10().floor());
    let lead = x / power;
    let round = [1.0, 2.0, 2.5, 5.0].into_iter().find(|r| *r >= lead - 1e-9).unwrap_or(10.0);
    round * power
}

/// Labels of ticks `step` apart, all with the same decimals.
fn labels(ticks: &[f64], step: f64) -> Vec<String> {
    let largest = ticks.iter().fold(0f64, |m, t| m.max(t.abs()));
    ticks
        .iter()
        .map(|t| {
            if *t == 0.0 || t.abs() < step * 1e-6 {
                "0".to_owned()
            } else if !(1e-2..1e7).contains(&largest) {
                scientific(*t)
            } else if largest >= 1e4 && step >= 100.0 {
                let thousands = format!("{:.1}", t / 1e3);
                format!("{}k", thousands.trim_end_matches('0').trim_end_matches('.'))
            } else {
                format!("{t:.*}", decimals(step))
            }
        })
        .collect()
}

/// Decimals needed to tell multiples of `step` apart.
fn decimals(step: f64) -> usize {
    (0..9).find(|d| (step * 10f64.powi(*d)).fract().abs() < 1e-6).unwrap_or(9) as usize
}

/// `0.00025` → `2.5e-4`.
fn scientific(x: f64) -> String {
    let text = format!("{x:.2e}");
    let (lead, power) = text.split_once('e').unwrap_or((&text, "0"));
    format!("{}e{power}", lead.trim_end_matches('0').trim_end_matches('.'))
}

/// A number with three or so significant digits, for texts.
pub fn short(x: f64) -> String {
    let size = x.abs();
    match () {
        () if !x.is_finite() => "not a number".to_owned(),
        () if x == 0.0 => "0".to_owned(),
        () if !(1e-3..1e7).contains(&size) => scientific(x),
        () if size >= 1000.0 => ramekin_core::units::count(size.round() as u64)
            .replace(' ', "\u{202f}")
            .replacen("", if x < 0.0 { "−" } else { "" }, 1),
        () if size >= 100.0 => format!("{x:.0}"),
        () if size >= 10.0 => format!("{x:.1}"),
        () if size >= 1.0 => format!("{x:.2}"),
        () => format!("{x:.3}"),
    }
}

/// At most `2 · buckets` points that keep every peak and dip: of each bucket of
/// neighbours the lowest and the highest. Gaps (NaN) stay gaps.
pub fn thin(points: &[(f64, f64)], buckets: usize) -> Vec<(f64, f64)> {
    if points.len() <= 2 * buckets.max(1) {
        return points.to_vec();
    }
    let size = points.len().div_ceil(buckets.max(1));
    let mut out = Vec::with_capacity(2 * buckets);
    for part in points.chunks(size) {
        let finite = || part.iter().enumerate().filter(|(_, p)| p.1.is_finite());
        let low = finite().min_by(|a, b| a.1.1.total_cmp(&b.1.1));
        let high = finite().max_by(|a, b| a.1.1.total_cmp(&b.1.1));
        match (low, high) {
            (Some((i, _)), Some((j, _))) => {
                out.push(part[i.min(j)]);
                if i != j {
                    out.push(part[i.max(j)]);
                }
            }
            _ => out.push((part[0].0, f64::NAN)),
        }
    }
    out
}

/// A mean over neighbours on both sides, so that it does not lag behind; fewer
/// of them towards the ends. Gaps are skipped.
pub fn smooth(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let finite: Vec<(f64, f64)> = points.iter().copied().filter(|p| p.1.is_finite()).collect();
    let half = (finite.len() / 40).max(2);
    // Sums from the start make each mean one difference.
    let mut sums = vec![0.0];
    for (_, y) in &finite {
        sums.push(sums[sums.len() - 1] + y);
    }
    let last = finite.len().saturating_sub(1);
    let mean = |(i, (x, _)): (usize, &(f64, f64))| {
        let reach = half.min(i.min(last - i)).max(half / 3);
        let (from, to) = (i.saturating_sub(reach), (i + reach).min(last) + 1);
        (*x, (sums[to] - sums[from]) / (to - from) as f64)
    };
    finite.iter().enumerate().map(mean).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn labels_of(lo: f64, hi: f64) -> Vec<String> {
        Axis::new(lo, hi, 5, true).labels
    }

    #[test]
    fn ticks_are_round() {
        assert_eq!(labels_of(0.13, 2.07), ["0", "0.5", "1.0", "1.5", "2.0", "2.5"]);
        assert_eq!(labels_of(0.0, 2e-4), ["0", "5e-5", "1e-4", "1.5e-4", "2e-4"]);
        assert_eq!(labels_of(0.0, 30000.0), ["0", "10k", "20k", "30k"]);
        assert_eq!(labels_of(0.0, 1100.0), ["0", "250", "500", "750", "1000", "1250"]);
        assert_eq!(Axis::steps(1.0, 3.0, 6).labels, ["1", "2", "3"]);
        assert_eq!(Axis::steps(1.0, 400.0, 5).labels, ["100", "200", "300", "400"]);
        assert_eq!(Axis::steps(1.0, 1e5, 5).labels, ["20k", "40k", "60k", "80k", "100k"]);
    }

    #[test]
    fn one_value_gets_room() {
        let axis = Axis::new(3.0, 3.0, 5, true);
        assert!(axis.lo < 3.0 && axis.hi > 3.0 && axis.ticks.len() > 2, "{axis:?}");
        let zero = Axis::new(0.0, 0.0, 5, true);
        assert_eq!((zero.lo, zero.hi), (0.0, 1.0));
        assert_eq!(Axis::steps(1.0, 1.0, 5).labels, ["0", "1", "2"]);
        assert_eq!(Axis::new(f64::NAN, 1.0, 5, true).hi, 1.0);
    }

    #[test]
    fn short_numbers() {
        let all = [0.0, 0.4123, 1.236, 12.34, 512.3, 1234.5, 2e-4, -1234.0, f64::NAN];
        let texts: Vec<_> = all.iter().map(|x| short(*x)).collect();
        assert_eq!(
            texts,
            ["0", "0.412", "1.24", "12.3", "512", "1\u{202f}235", "2e-4", "−1\u{202f}234", "not a number"]
        );
    }

    #[test]
    fn thinning_keeps_spikes() {
        let mut points: Vec<_> = (0..100_000).map(|i| (i as f64, 1.0)).collect();
        points[77_777].1 = 50.0;
        points[3].1 = -2.0;
        let few = thin(&points, 300);
        assert!(few.len() <= 600);
        assert!(few.contains(&(77_777.0, 50.0)) && few.contains(&(3.0, -2.0)));
        assert!(few.windows(2).all(|w| w[0].0 < w[1].0));
    }

    #[test]
    fn smoothing_neither_lags_nor_bends() {
        let line: Vec<_> = (0..400).map(|i| (i as f64, 3.0 - i as f64 / 100.0)).collect();
        let smoothed = smooth(&line);
        assert!(smoothed[10..390].iter().zip(&line[10..]).all(|(a, b)| (a.1 - b.1).abs() < 1e-9));
        let noisy: Vec<_> = (0..400).map(|i| (i as f64, (i % 2) as f64)).collect();
        assert!(smooth(&noisy)[10..390].iter().all(|p| (p.1 - 0.5).abs() < 0.05));
        assert!(smooth(&[(0.0, f64::NAN)]).is_empty());
        assert_eq!(smooth(&[(0.0, f64::NAN), (1.0, 2.0)]), [(1.0, 2.0)]);
    }

    proptest! {
        #[test]
        fn axes_cover_what_they_show(a in -1e12f64..1e12, b in -1e12f64..1e12, n in 1usize..9) {
            let axis = Axis::new(a, b, n, true);
            prop_assert!(axis.lo <= a.min(b) && axis.hi >= a.max(b), "{:?}", axis);
            prop_assert!(axis.ticks.len() <= 2 * n + 4 && axis.ticks.len() == axis.labels.len());
            prop_assert!(axis.lo < axis.hi);
        }
    }
}
