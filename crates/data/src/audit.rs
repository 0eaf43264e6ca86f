//! What a person checks before training: begin and end tokens, masks, a look at real rows.

use ramekin_slots::Rows;
use serde::Serialize;

use crate::dataset::Dataset;
use crate::example::{Example, IGNORED};
use crate::mask_view::mask_view;
use crate::tokenizer::Tokenizer;

/// Counts over examples of a data set, and what follows from them.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Audit {
    /// Examples looked at, spread evenly over the data.
    pub examples: usize,
    /// Examples that begin with BOS.
    pub begin_with_bos: usize,
    /// Examples that begin with two BOS.
    pub doubled_bos: usize,
    /// Examples with BOS somewhere else than at the start.
    pub inner_bos: usize,
    /// Examples in which an end token is a target.
    pub eos_targets: usize,
    /// Examples that end in more than one end token.
    pub doubled_eos: usize,
    /// Tokens of those examples.
    pub tokens: usize,
    /// Of them, the share that is masked, 0 to 1.
    pub masked_share: f64,
    /// A few examples, masked text in brackets.
    pub views: Vec<String>,
    /// What may be meant and may not.
    pub warnings: Vec<String>,
    /// What makes training senseless.
    pub errors: Vec<String>,
}

/// Looks at up to `most` examples and shows `views` of them. `vocab_size` is the model's.
pub fn audit(
    data: &Dataset,
    tokenizer: &Tokenizer,
    vocab_size: usize,
    most: usize,
    views: usize,
    coloured: bool,
) -> Audit {
    let mut audit = Audit::default();
    let count = most.min(data.examples.len());
    let picked: Vec<&Example> = (0..count).map(|i| &data.examples[i * data.examples.len() / count]).collect();
    let mut masked = 0;
    for example in &picked {
        audit.look(example, tokenizer);
        masked += example.labels.iter().filter(|l| **l == IGNORED).count();
    }
    audit.masked_share = masked as f64 / audit.tokens.max(1) as f64;
    let shown = views.min(count);
    audit.views =
        (0..shown).map(|i| mask_view(tokenizer, picked[i * count / shown], 600, coloured)).collect();
    audit.judge(data, tokenizer, vocab_size);
    audit
}

impl Audit {
    fn look(&mut self, example: &Example, tokenizer: &Tokenizer) {
        self.examples += 1;
        self.tokens += example.len();
        if let Some(bos) = tokenizer.bos_id() {
            // Where one token is both, only its place at the start says which it is.
            let both = tokenizer.eos_ids().contains(&bos);
            let opening = example.ids.iter().take_while(|id| **id == bos).count();
            self.begin_with_bos += usize::from(opening > 0);
            self.doubled_bos += usize::from(opening > 1);
            self.inner_bos += usize::from(!both && example.ids[opening..].contains(&bos));
        }
        let ends = |id: &u32| tokenizer.eos_ids().contains(id);
        let target = example.ids.iter().zip(&example.labels).skip(1).any(|(id, l)| *l != IGNORED && ends(id));
        self.eos_targets += usize::from(target);
        let closing = example.ids.iter().rev().take_while(|id| ends(id)).count();
        self.doubled_eos += usize::from(closing > 1 && closing < example.len());
    }

    fn judge(&mut self, data: &Dataset, tokenizer: &Tokenizer, vocab_size: usize) {
        let n = self.examples;
        if n == 0 {
            self.errors.push("there is no example".to_owned());
            return;
        }
        if let Some(largest) = data.largest_id().filter(|id| *id >= vocab_size as i64) {
            self.errors.push(format!(
                "token id {largest} is in the data and the model knows ids below {vocab_size}; \
                 is this the model's tokenizer?"
            ));
        }
        // Where whole texts have labels no token is a target, and none has to end anything.
        let of_tokens = data.kind != Rows::Targets;
        if of_tokens && data.report.active_tokens == 0 {
            self.errors.push("no token is a target".to_owned());
        }
        if self.doubled_bos > 0 {
            self.errors.push(format!(
                "{} of {n} examples begin with two `{}`; the text holds one and the tokenizer adds one",
                self.doubled_bos,
                name(tokenizer, tokenizer.bos_id())
            ));
        }
        if self.begin_with_bos > 0 && self.begin_with_bos < n {
            self.warnings.push(format!("only {} of {n} examples begin with BOS", self.begin_with_bos));
        }
        if self.doubled_eos > 0 {
            self.warnings
                .push(format!("{} of {n} examples end in more than one end token", self.doubled_eos));
        }
        if let Some(eos) = tokenizer.eos_id().filter(|_| of_tokens) {
            let missing = n - self.eos_targets;
            let cut = data.report.truncated.min(missing);
            if missing > cut {
                self.warnings.push(format!(
                    "in {missing} of {n} examples no end token (`{}`) is a target; the model will not learn to stop there",
                    name(tokenizer, Some(eos))
                ));
            }
            if tokenizer.pad_id() == Some(eos) {
                self.warnings.push(format!(
                    "`{}` is both padding and end; nothing is padded here, so it stays a target",
                    name(tokenizer, Some(eos))
                ));
            }
        }
        if of_tokens && self.masked_share > 0.98 {
            self.warnings.push(format!(
                "{:.1} % of the tokens are masked; few are left to learn from",
                100.0 * self.masked_share
            ));
        }
    }

    /// The audit in lines for a terminal.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!(
            "{} examples looked at: BOS at the start of {}, an end token learned in {}, {:.1} % of {} tokens masked",
            self.examples,
            self.begin_with_bos,
            self.eos_targets,
            100.0 * self.masked_share,
            self.tokens
        )];
        lines.extend(self.views.iter().map(|v| format!("  {v}")));
        lines.extend(self.warnings.iter().map(|w| format!("warning: {w}")));
        lines.extend(self.errors.iter().map(|e| format!("error: {e}")));
        lines
    }
}

fn name(tokenizer: &Tokenizer, id: Option<u32>) -> String {
    id.and_then(|id| tokenizer.token(id)).unwrap_or_default()
}
