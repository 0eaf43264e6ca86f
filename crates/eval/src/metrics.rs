//! The metrics by name, fed together.

use anyhow::Result;
use ramekin_core::{BadSetting, suggest};
use serde_json::{Map, Value, json};

use crate::answer::{Compare, ExactMatch};

/// The names that an evaluation's `metrics` may list.
pub const NAMES: &[&str] =
    &["loss", "perplexity", "exact_match", "final_number", "accuracy", "number", "letter", "choice"];

/// Mean negative log likelihood of the active tokens, in nats.
#[derive(Clone, Copy, Debug, Default)]
pub struct Loss {
    sum: f64,
    tokens: u64,
}

impl Loss {
    /// Adds a batch: the sum of its tokens' losses and how many they are.
    pub fn update(&mut self, sum: f64, tokens: u64) {
        self.sum += sum;
        self.tokens += tokens;
    }

    /// The mean over all tokens; `None` if there were none.
    pub fn finish(&self) -> Option<f64> {
        (self.tokens > 0).then(|| self.sum / self.tokens as f64)
    }

    /// How many tokens were counted.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }
}

/// The exponential of the mean loss.
#[derive(Clone, Copy, Debug, Default)]
pub struct Perplexity(Loss);

impl Perplexity {
    /// Adds a batch: the sum of its tokens' losses and how many they are.
    pub fn update(&mut self, sum: f64, tokens: u64) {
        self.0.update(sum, tokens);
    }

    /// The perplexity over all tokens; `None` if there were none.
    pub fn finish(&self) -> Option<f64> {
        self.0.finish().map(f64::exp)
    }
}

#[derive(Clone, Copy, Debug)]
enum One {
    Loss(Loss),
    Perplexity(Perplexity),
    ExactMatch(ExactMatch),
    Accuracy { right: f64, count: f64 },
}

/// The metrics of one evaluation, in the order asked for.
#[derive(Clone, Debug)]
pub struct Metrics {
    all: Vec<(&'static str, One)>,
}

impl Metrics {
    /// The metrics of these names, each of [`NAMES`].
    ///
    /// # Errors
    /// [`BadSetting`] of `metrics`, with the nearest name, if one is unknown or there twice.
    pub fn new<S: AsRef<str>>(names: &[S]) -> Result<Self, BadSetting> {
        let mut all: Vec<(&'static str, One)> = Vec::new();
        for given in names {
            let given = given.as_ref();
            let Some(name) = NAMES.iter().find(|n| **n == given) else {
                let near = suggest(given, NAMES.iter().copied())
                    .map(|n| format!("did you mean `{n}`? "))
                    .unwrap_or_default();
                let why = format!("has no metric `{given}`: {near}there are {}", list());
                return Err(BadSetting::new("metrics", why));
            };
            if all.iter().any(|(n, _)| n == name) {
                return Err(BadSetting::new("metrics", format!("names `{name}` twice")));
            }
            let one = match *name {
                "loss" => One::Loss(Loss::default()),
                "perplexity" => One::Perplexity(Perplexity::default()),
                "exact_match" => One::ExactMatch(ExactMatch::new(Compare::Text)),
                "accuracy" => One::Accuracy { right: 0.0, count: 0.0 },
                "number" => One::ExactMatch(ExactMatch::new(Compare::Number)),
                "letter" => One::ExactMatch(ExactMatch::new(Compare::Letter)),
                "choice" => One::ExactMatch(ExactMatch::new(Compare::Choice)),
                _ => One::ExactMatch(ExactMatch::new(Compare::FinalNumber)),
            };
            all.push((name, one));
        }
        Ok(Metrics { all })
    }

    /// Whether the losses of held-out rows are wanted.
    pub fn needs_loss(&self) -> bool {
        self.all.iter().any(|(_, m)| matches!(m, One::Loss(_) | One::Perplexity(_)))
    }

    /// Whether the cross-entropy of held-out tokens is wanted.
    pub fn needs_cross_entropy(&self) -> bool {
        self.all.iter().any(|(_, m)| matches!(m, One::Perplexity(_)))
    }

    /// Whether it is wanted how many held-out rows the objective gets right.
    pub fn needs_accuracy(&self) -> bool {
        self.all.iter().any(|(_, m)| matches!(m, One::Accuracy { .. }))
    }

    /// Whether written answers are wanted, so that the model has to generate.
    pub fn needs_answers(&self) -> bool {
        self.all.iter().any(|(_, m)| matches!(m, One::ExactMatch(_)))
    }

    /// Adds a batch: the sum of its losses and how many they are.
    pub fn add_loss(&mut self, sum: f64, count: u64) {
        for (_, metric) in &mut self.all {
            if let One::Loss(m) = metric {
                m.update(sum, count);
            }
        }
    }

    /// Adds a batch: the sum of its active tokens' negative log likelihoods and how many they are.
    pub fn add_cross_entropy(&mut self, sum: f64, tokens: u64) {
        for (_, metric) in &mut self.all {
            if let One::Perplexity(m) = metric {
                m.update(sum, tokens);
            }
        }
    }

    /// Adds a batch: how many rows were right, and of how many.
    pub fn add_accuracy(&mut self, more: f64, of: f64) {
        for (_, metric) in &mut self.all {
            if let One::Accuracy { right, count } = metric {
                *right += more;
                *count += of;
            }
        }
    }

    /// Adds a written answer; tells whether every text metric takes it for right.
    ///
    /// # Errors
    /// If the expected text cannot be judged by (`final_number` without a number).
    pub fn add_answer(&mut self, answer: &str, expected: &str) -> Result<bool> {
        let mut right = true;
        for (_, metric) in &mut self.all {
            if let One::ExactMatch(m) = metric {
                right &= m.update(answer, expected)?;
            }
        }
        Ok(right)
    }

    /// Name and value of each metric; null where nothing was counted.
    pub fn finish(&self) -> Map<String, Value> {
        let value = |m: &One| match m {
            One::Loss(m) => m.finish(),
            One::Perplexity(m) => m.finish(),
            One::ExactMatch(m) => m.finish(),
            One::Accuracy { right, count } => (*count > 0.0).then(|| right / count),
        };
        self.all.iter().map(|(n, m)| ((*n).to_owned(), json!(value(m)))).collect()
    }
}

fn list() -> String {
    NAMES.iter().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fed_together() {
        let mut all = Metrics::new(&NAMES[..6]).unwrap();
        assert!(all.needs_loss() && all.needs_answers());
        all.add_loss(6.0, 2);
        all.add_loss(0.0, 1);
        all.add_cross_entropy(6.0, 3);
        all.add_accuracy(3.0, 4.0);
        assert!(all.needs_cross_entropy() && all.needs_accuracy());
        assert!(all.add_answer("#### 4", "#### 4").unwrap());
        assert!(!all.add_answer("it is 4", "#### 4").unwrap());
        let out = Value::Object(all.finish());
        let want = json!({
            "loss": 2.0, "perplexity": 2f64.exp(), "exact_match": 0.5, "final_number": 1.0, "accuracy": 0.75,
            "number": 1.0
        });
        assert_eq!(out, want);
    }

    #[test]
    fn nothing_counted_is_null() {
        let all = Metrics::new(&["loss", "exact_match"]).unwrap();
        assert_eq!(Value::Object(all.finish()), json!({"loss": null, "exact_match": null}));
    }

    #[test]
    fn unknown_names_offer_the_nearest() {
        let error = Metrics::new(&["exact_mach"]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "`metrics` has no metric `exact_mach`: did you mean `exact_match`? there are `loss`, \
             `perplexity`, `exact_match`, `final_number`, `accuracy`, `number`, `letter`, `choice`"
        );
        assert!(Metrics::new(&["loss", "loss"]).unwrap_err().to_string().contains("`loss` twice"));
        let only = Metrics::new(&["final_number"]).unwrap();
        assert!(only.needs_answers() && !only.needs_loss());
    }
}
