//! The bill: what a stage will hold, by category, before anything is loaded.
//!
//! A bill is filled by running the stage's own code on shape-only arrays (the
//! engine does that); this crate holds the figures, shows them, and says what
//! does not fit.

use std::fmt::Write as _;

use ramekin_core::units::{bytes, count};
use ramekin_core::{Category, Traffic, Unfit, Usage};
use serde::{Deserialize, Serialize};

/// What one rank holds at its peak.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// The largest total, in bytes.
    pub peak: u64,
    /// Live bytes at that moment.
    pub at_peak: Usage,
}

impl Share {
    /// What several ranks hold together, each at its own peak.
    pub fn sum(shares: &[Share]) -> Share {
        shares.iter().fold(Share::default(), |sum, s| Share {
            peak: sum.peak + s.peak,
            at_peak: sum.at_peak.plus(&s.at_peak),
        })
    }
}

/// What a stage costs.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Bill {
    /// Number and kind of the stage: `0-train`.
    pub stage: String,
    /// Numbers in the model and what is attached to it.
    pub parameters: u64,
    /// Numbers that train.
    pub trainable: u64,
    /// Linears with an adapter, by recipe path of the adapter.
    pub sites: Vec<(String, usize)>,
    /// Tokens of the largest micro-batch, and whether the data was read to know it.
    pub tokens: usize,
    /// Whether `tokens` is exact or the upper bound that the recipe sets.
    pub tokens_exact: bool,
    /// Live bytes at the moment of the largest total.
    pub at_peak: Usage,
    /// The largest total, in bytes.
    pub peak: u64,
    /// The largest total while loading.
    pub load_peak: u64,
    /// Bytes read from disk to load the model.
    pub read: u64,
    /// Bytes of one checkpoint.
    pub checkpoint: u64,
    /// Bytes over each link in one optimizer step of the largest micro-batches, all ranks together.
    #[serde(default)]
    pub traffic: Traffic,
    /// Each rank's share of the peak, where there are several; rank 0's has what is shared.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shares: Vec<Share>,
    /// Bytes of frozen weights that all ranks read from the same memory.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub shared: u64,
    /// Floating-point operations of one optimizer step's products, all ranks together: linears, low-rank
    /// branches, softmax attention.
    pub step_flops: f64,
    /// Tokens of one optimizer step of the largest micro-batches, all ranks together.
    #[serde(default)]
    pub step_tokens: u64,
    /// A guess of the seconds of one optimizer step: its products at the speed of a dense one; 0 where none was made.
    #[serde(default)]
    pub step_seconds: f64,
    /// What the planner changed to fit the budget.
    pub changes: Vec<String>,
    /// What would make it fit, where the budget is too small.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nearest: Option<String>,
}

/// `350 ms`, `2.4 s`, `130 s`.
fn seconds(s: f64) -> String {
    match s {
        _ if s < 1.0 => format!("{:.0} ms", 1e3 * s),
        _ if s < 10.0 => format!("{s:.1} s"),
        _ => format!("{s:.0} s"),
    }
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

impl Bill {
    /// The bill of one rank, which is rank 0's, as that of several; the others hold `rest` each.
    pub fn shared_out(self, ranks: usize, rest: Share, shared: u64) -> Self {
        if ranks < 2 {
            return self;
        }
        let mut shares = vec![rest; ranks];
        shares[0] = Share { peak: self.peak, at_peak: self.at_peak };
        let Share { peak, at_peak } = Share::sum(&shares);
        Bill {
            peak,
            at_peak,
            load_peak: self.load_peak + (ranks as u64 - 1) * self.load_peak.saturating_sub(shared),
            shares,
            shared,
            ..self
        }
    }

    /// The larger of loading and stepping.
    pub fn total(&self) -> u64 {
        self.peak.max(self.load_peak)
    }

    /// The bill as a table for a terminal.
    pub fn table(&self) -> String {
        let mut out = String::new();
        let _ = writeln!(out, "stage {}", self.stage);
        let _ = writeln!(
            out,
            "  parameters   {} ({} trainable, {:.2} %)",
            count(self.parameters),
            count(self.trainable),
            100.0 * self.trainable as f64 / self.parameters.max(1) as f64
        );
        for (part, n) in &self.sites {
            let _ = writeln!(out, "  {part:<12} {n} linears");
        }
        let exact = match (self.trainable > 0, self.tokens_exact) {
            (false, _) => "at once",
            (true, true) => "longest micro-batch",
            (true, false) => "upper bound",
        };
        let _ = writeln!(out, "  tokens       {} ({exact})", count(self.tokens as u64));
        for c in Category::ALL {
            let n = self.at_peak.get(c);
            if n > 0 {
                let _ = writeln!(out, "  {:<12} {:>11}", c.name(), bytes(n));
            }
        }
        let _ = writeln!(
            out,
            "  {:<12} {:>11}   (while loading {})",
            "peak",
            bytes(self.peak),
            bytes(self.load_peak)
        );
        let checkpoint = match self.checkpoint {
            0 => String::new(),
            n => format!(", {} a checkpoint", bytes(n)),
        };
        let _ = writeln!(out, "  disk         {} read{checkpoint}", bytes(self.read));
        for (link, bytes_of) in self.traffic.links().into_iter().filter(|(_, l)| !l.is_idle()) {
            let (sent, fetched) = (bytes(bytes_of.sent), bytes(bytes_of.fetched));
            let _ = writeln!(out, "  traffic      {link}: {sent} sent and {fetched} fetched a step");
        }
        if self.step_seconds > 0.0 {
            let _ = writeln!(
                out,
                "  time         at least {} a step: {:.3} GFLOP of products at the {:.0} GFLOP/s of a dense f32 one here",
                seconds(self.step_seconds),
                self.step_flops / 1e9,
                self.step_flops / self.step_seconds / 1e9
            );
        }
        if let [first, rest, ..] = &self.shares[..] {
            let _ = writeln!(
                out,
                "  ranks        {}: rank 0 holds {}, each other {}; {}",
                self.shares.len(),
                bytes(first.peak),
                bytes(rest.peak),
                match self.shared {
                    0 => "no weights are shared, every rank has its own".to_owned(),
                    n => format!("{} of frozen weights are shared", bytes(n)),
                }
            );
        }
        for c in &self.changes {
            let _ = writeln!(out, "  changed to fit: {c}");
        }
        out
    }

    /// Refuses a bill beyond the budget and names the nearest way that fits, if one is known.
    pub fn check(&self, budget: u64) -> Result<(), Unfit> {
        if self.total() <= budget {
            return Ok(());
        }
        let mut message = format!("needs {} and the budget is {}", bytes(self.total()), bytes(budget));
        match &self.nearest {
            Some(change) => {
                let _ = write!(message, "\n  help: {change}");
            }
            None => {
                let largest = Category::ALL.into_iter().max_by_key(|c| self.at_peak.get(*c));
                if let Some(c) = largest {
                    let _ = write!(
                        message,
                        "\n  help: the largest part is {} with {}",
                        c.name(),
                        bytes(self.at_peak.get(c))
                    );
                }
            }
        }
        Err(Unfit(message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_and_names_the_way_out() {
        let nearest = Some("`activation = { kind = \"checkpoint\" }` needs 1.0 MiB".to_owned());
        let bill = Bill { stage: "0-train".into(), peak: 3 << 20, nearest, ..Default::default() };
        assert!(bill.check(4 << 20).is_ok());
        let e = bill.check(2 << 20).unwrap_err();
        assert_eq!(
            e.to_string(),
            "needs 3.0 MiB and the budget is 2.0 MiB\n  help: `activation = { kind = \"checkpoint\" }` needs 1.0 MiB"
        );
    }
}
