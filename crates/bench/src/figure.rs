//! What a bench found.

use serde::Serialize;

use crate::rounds::Spread;

/// One measurement.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// The bench: `kernels`, `yardstick` …
    pub bench: &'static str,
    /// What was measured.
    pub case: String,
    /// The unit of both sides.
    pub unit: &'static str,
    /// Ours.
    pub ours: Spread,
    /// The peer's, measured in turn with ours.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer: Option<Beside>,
    /// The median of ours over the peer's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio: Option<f64>,
}

/// A peer's figures.
#[derive(Clone, Debug, Serialize)]
pub struct Beside {
    /// Its name, and what of it was run where it has several ways.
    pub name: &'static str,
    /// Its measurements.
    #[serde(flatten)]
    pub spread: Spread,
}

/// Measurements, shown as they come.
pub struct Figures {
    all: Vec<Figure>,
    show: bool,
    bench: &'static str,
}

impl Figures {
    /// None yet; `show` prints each as a line of a table.
    pub fn new(show: bool) -> Self {
        Figures { all: Vec::new(), show, bench: "" }
    }

    /// Notes a measurement made once.
    pub fn add(&mut self, bench: &'static str, case: impl Into<String>, value: f64, unit: &'static str) {
        self.beside(bench, case, unit, Spread::of(&[value]), None);
    }

    /// Notes measurements and the peer's.
    pub fn beside(
        &mut self,
        bench: &'static str,
        case: impl Into<String>,
        unit: &'static str,
        ours: Spread,
        peer: Option<(&'static str, Spread)>,
    ) {
        let peer = peer.map(|(name, spread)| Beside { name, spread });
        let ratio = peer.as_ref().map(|p| ours.median / p.spread.median);
        let figure = Figure { bench, case: case.into(), unit, ours, peer, ratio };
        if self.show {
            if self.bench != bench {
                println!("\n{bench}");
                self.bench = bench;
            }
            println!("{}", figure.line());
        }
        self.all.push(figure);
    }

    /// All of them, in order.
    pub fn all(&self) -> &[Figure] {
        &self.all
    }

    /// The median of a figure that was measured before.
    pub fn median(&self, bench: &str, case: &str) -> Option<f64> {
        self.all.iter().find(|f| f.bench == bench && f.case == case).map(|f| f.ours.median)
    }
}

impl Figure {
    /// `  CASE   VALUE (LEAST–MOST) UNIT   PEER VALUE (LEAST–MOST), ours is RATIO of it`.
    fn line(&self) -> String {
        let mut line = format!("  {:<58} {:>9} {}", self.case, self.ours.words(), self.unit);
        if let (Some(peer), Some(ratio)) = (&self.peer, self.ratio) {
            line = format!("{line:<94} {} {}, ours is {ratio:.2} of it", peer.name, peer.spread.words());
        }
        line
    }
}

/// Three digits that mean something.
pub fn digits(x: f64) -> String {
    let before = if x.abs() >= 1.0 { x.abs().log10().floor() as i32 + 1 } else { 1 };
    let after = usize::try_from(3 - before).unwrap_or(0);
    format!("{x:.after$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_digits() {
        let written = [0.1234, 1.0, 12.34, 123.4, 12345.6].map(digits);
        assert_eq!(written, ["0.12", "1.00", "12.3", "123", "12346"]);
    }

    #[test]
    fn a_peer_is_compared_by_medians() {
        let mut figures = Figures::new(false);
        let peer = Some(("PyTorch", Spread::of(&[1.0, 9.0, 2.0])));
        figures.beside("b", "c", "s", Spread::of(&[3.0, 3.0, 100.0]), peer);
        let [figure] = figures.all() else { panic!("one figure") };
        assert_eq!(figure.ratio, Some(1.5));
        assert!(figure.line().ends_with("PyTorch 2.00 (1.00–9.00), ours is 1.50 of it"), "{}", figure.line());
        assert_eq!(figures.median("b", "c"), Some(3.0));
        assert_eq!(figures.median("b", "d"), None);
    }
}
