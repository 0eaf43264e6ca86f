//! What a bench found.

use serde::Serialize;

/// One measurement.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// The bench: `kernels`, `yardstick` …
    pub bench: &'static str,
    /// What was measured.
    pub case: String,
    /// The number.
    pub value: f64,
    /// Its unit.
    pub unit: &'static str,
    /// The same of the peer, measured in this run.
    pub peer: Option<f64>,
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

    /// Notes a measurement.
    pub fn add(&mut self, bench: &'static str, case: impl Into<String>, value: f64, unit: &'static str) {
        self.beside(bench, case, value, unit, None);
    }

    /// Notes a measurement and the peer's.
    pub fn beside(
        &mut self,
        bench: &'static str,
        case: impl Into<String>,
        value: f64,
        unit: &'static str,
        peer: Option<f64>,
    ) {
        let figure = Figure { bench, case: case.into(), value, unit, peer };
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
}

impl Figure {
    /// `  CASE   VALUE UNIT   PyTorch PEER   ratio`.
    fn line(&self) -> String {
        let mut line = format!("  {:<58} {:>9} {}", self.case, digits(self.value), self.unit);
        if let Some(peer) = self.peer {
            line = format!("{line:<82} PyTorch {:>8}, ours is {:.2} of it", digits(peer), self.value / peer);
        }
        line
    }
}

/// Three digits that mean something.
fn digits(x: f64) -> String {
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
    fn a_peer_is_compared() {
        let figure = Figure { bench: "b", case: "c".into(), value: 3.0, unit: "s", peer: Some(2.0) };
        assert!(figure.line().ends_with("PyTorch     2.00, ours is 1.50 of it"), "{}", figure.line());
    }
}
