//! Rounds of drafting and verifying.
//!
//! A drafter proposes up to k tokens y with distributions q; one pass of the target gives p for each and for
//! the one after. Token y_i stays with probability min(1, p(y_i)/q(y_i)); the first that does not is replaced
//! by a draw from max(0, p − q), and where all stay one more is drawn from the last p. So every token has the
//! target's distribution. Without randomness a token stays if it is the target's best.
//!
//! Source: Leviathan et al. 2022, arXiv:2211.17192; transformers' assisted generation.

use anyhow::Result;
use ramekin_core::Draws;
use ramekin_kernels::sampling::{Filters, accept, largest, pick};
use ramekin_slots::{Logits, Session};

use crate::tracked::Tracked;

/// How a token is chosen from logits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Choice {
    /// What may be drawn; `None` takes the best.
    pub sampling: Option<Filters>,
}

impl Choice {
    /// A token, and the distribution that it was drawn from.
    pub fn choose(&self, logits: &[f64], draws: &mut Draws) -> (u32, Vec<f64>) {
        match &self.sampling {
            None => (largest(logits) as u32, Vec::new()),
            Some(filters) => {
                let p = filters.distribution(logits.iter().copied());
                (pick(&p, p.iter().sum(), draws.uniform()) as u32, p)
            }
        }
    }

    /// What stands in the place of a drafted token; `None` if it stays.
    fn verdict(&self, logits: &[f64], drafted: u32, q: &[f64], draws: &mut Draws) -> Option<u32> {
        match &self.sampling {
            None => Some(largest(logits) as u32).filter(|best| *best != drafted),
            Some(filters) => {
                let p = filters.distribution(logits.iter().copied());
                accept(&p, q, drafted as usize, &mut || draws.uniform()).map(|t| t as u32)
            }
        }
    }
}

/// What a drafter proposes for every line.
pub(crate) struct Drafts {
    /// The tokens.
    pub tokens: Vec<Vec<u32>>,
    /// The logits that each was chosen from; one more where the last token was fed too.
    pub logits: Vec<Vec<Vec<f64>>>,
}

/// The last `keep` rows of a line, as f64.
pub(crate) fn last_rows(logits: &Logits, line: usize, keep: usize) -> Result<Vec<Vec<f64>>> {
    let Some(rows) = logits.read()? else { return Ok(Vec::new()) };
    let n = rows.count(line);
    Ok((n.saturating_sub(keep)..n)
        .map(|i| rows.row(line, i).iter().map(|z| f64::from(*z)).collect())
        .collect())
}

/// The target's logits for every line: of each drafted token, and of the one after.
pub(crate) type Verify<'v> =
    dyn FnMut(&mut Session<'_>, &Drafts, &[bool]) -> Result<Option<Vec<Vec<Vec<f64>>>>> + 'v;

/// Drafts `k` tokens a round and verifies them until every line has ended. `whole` feeds the drafter its
/// last token as well. `models` are all that take part.
pub(crate) fn run(
    s: &mut Session<'_>,
    drafter: &Tracked,
    k: usize,
    whole: bool,
    choice: Choice,
    models: &[Tracked],
    verify: &mut Verify<'_>,
) -> Result<()> {
    let (mut drafted, mut accepted, mut rounds, mut made, mut planned) = (0usize, 0usize, 0usize, 0usize, 0);
    let n = s.lines.len();
    let left = |s: &Session<'_>, i: usize| s.lines[i].prompt + s.max_new_tokens - s.lines[i].ids.len();
    while !s.is_done() && s.max_new_tokens > 0 {
        let active: Vec<bool> = s.lines.iter().map(|l| !l.done).collect();
        let wanted: Vec<usize> = (0..n).map(|i| if active[i] { k.min(left(s, i) - 1) } else { 0 }).collect();
        let begun = |s: &Session<'_>, i: usize| s.lines[i].ids.len() - s.lines[i].prompt;
        let mut draws: Vec<Draws> = (0..n).map(|i| s.draws(i, begun(s, i))).collect();
        let mut found = Drafts { tokens: vec![Vec::new(); n], logits: vec![Vec::new(); n] };
        let mut q: Vec<Vec<Vec<f64>>> = vec![Vec::new(); n];
        let most = wanted.iter().copied().max().unwrap_or(0);
        for j in 0..most + usize::from(whole) {
            let on: Vec<bool> = (0..n).map(|i| active[i] && wanted[i] + usize::from(whole) > j).collect();
            let logits = drafter.feed(s, &found.tokens, &on, 1)?;
            let shapes = logits.array.is_shape_only();
            for i in (0..n).filter(|i| on[*i]) {
                let row = last_rows(&logits, i, 1)?.pop().unwrap_or_default();
                if j < wanted[i] {
                    let (token, p) =
                        if shapes { (0, Vec::new()) } else { choice.choose(&row, &mut draws[i]) };
                    found.tokens[i].push(token);
                    q[i].push(p);
                }
                found.logits[i].push(row);
            }
        }
        let Some(targets) = verify(s, &found, &active)? else {
            // A plan sees the prompts with a round of drafts, and a round that begins with a settled token.
            planned += 1;
            (0..n).filter(|i| active[*i]).for_each(|i| s.settle(i, 0));
            for model in models {
                model.roll_back(s, &active)?;
            }
            if planned == 2 {
                return Ok(());
            }
            continue;
        };
        rounds += 1;
        for i in (0..n).filter(|i| active[*i]) {
            let tokens = &found.tokens[i];
            drafted += tokens.len();
            let mut next = None;
            for (at, token) in tokens.iter().enumerate() {
                next = choice.verdict(&targets[i][at], *token, &q[i][at], &mut draws[i]);
                if next.is_some() {
                    break;
                }
                accepted += 1;
                made += 1;
                s.settle(i, *token);
                if s.lines[i].done {
                    break;
                }
            }
            if !s.lines[i].done {
                let last = next.unwrap_or_else(|| choice.choose(&targets[i][tokens.len()], &mut draws[i]).0);
                made += 1;
                s.settle(i, last);
            }
        }
        for model in models {
            model.roll_back(s, &active)?;
        }
    }
    let share = |a: usize, b: usize| if b == 0 { 0.0 } else { a as f64 / b as f64 };
    s.figures.push(("acceptance_rate", share(accepted, drafted)));
    s.figures.push(("tokens_per_pass", share(made, rounds)));
    Ok(())
}
