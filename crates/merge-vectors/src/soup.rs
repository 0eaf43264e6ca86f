//! Soups: averages of models tuned for one task.
//!
//! uniform: all of them. greedy: sorted by their score on held rows, the best first; each next model joins
//! the average if that does not lower the score.
//!
//! Source: Wortsman et al. 2022, arXiv:2203.05482; sheet `lines`, rule 9.

use anyhow::Result;
use ramekin_core::BadSetting;
use ramekin_slots::{Held, Judge, Piece, TaskVectors};

/// The models that joined the average.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Soup {
    /// Their numbers, in the order in which they joined.
    pub members: Vec<usize>,
}

impl Soup {
    /// All models.
    pub fn uniform(vectors: &dyn TaskVectors) -> Self {
        Soup { members: (0..vectors.count()).collect() }
    }

    /// Those that help, by the mean score over the tasks' held rows.
    ///
    /// # Errors
    /// If there are no held rows.
    pub fn greedy(vectors: &dyn TaskVectors, judge: &mut dyn Judge, metric: &str) -> Result<Self> {
        let held: Vec<Held> = judge.held().into_iter().filter(|h| matches!(h, Held::Task(_))).collect();
        if held.is_empty() {
            let why = "is `soup_greedy`, which chooses on held rows; give the models their `data`";
            return Err(BadSetting::new("merger", why).into());
        }
        let mut score = |soup: &Soup| -> Result<f64> {
            let mut sum = 0.0;
            for h in &held {
                sum += judge.score(*h, metric, &|piece, out| {
                    for (i, (o, base)) in out.iter_mut().zip(piece.base).enumerate() {
                        *o = base + soup.entry(piece, i);
                    }
                    Ok(())
                })?;
            }
            Ok(sum / held.len() as f64)
        };
        let mut alone = Vec::new();
        for t in 0..vectors.count() {
            alone.push((t, score(&Soup { members: vec![t] })?));
        }
        alone.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let mut soup = Soup { members: vec![alone[0].0] };
        let mut best = alone[0].1;
        for (t, _) in &alone[1..] {
            let mut larger = soup.clone();
            larger.members.push(*t);
            let found = score(&larger)?;
            if found >= best {
                (soup, best) = (larger, found);
            }
        }
        Ok(soup)
    }

    /// The average's entry.
    pub fn entry(&self, piece: &Piece<'_>, i: usize) -> f64 {
        self.members.iter().map(|t| piece.deltas[*t][i]).sum::<f64>() / self.members.len().max(1) as f64
    }
}
