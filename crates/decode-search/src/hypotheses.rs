//! The books of one prompt's search: running beams, finished ones, and whether a better one can come.
//!
//! A step of transformers' beam search: of all continuations of the running beams the 2B best by summed
//! log-probability (more, where several ids end a sequence). Those among the first B that end are finished,
//! scored Σ log p / length^length_penalty; the best B that do not end run on.

/// When a search is over though beams still run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Stop {
    /// As soon as B have finished.
    Early,
    /// When no running beam, as long as it is now, beats the worst of B finished ones.
    Heuristic,
    /// When none could even at the length that favours it most.
    Never,
}

/// The rules of a search.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// B.
    pub beams: usize,
    /// Exponent of the length.
    pub length_penalty: f64,
    /// When to end.
    pub stop: Stop,
    /// New tokens at most.
    pub longest: usize,
}

/// A continuation: its new ids and the sum of their log-probabilities.
#[derive(Clone, Debug, PartialEq)]
pub struct Running {
    /// New ids.
    pub ids: Vec<u32>,
    /// Σ log p.
    pub sum: f64,
    /// Which running beam of the step before it goes on from.
    pub from: usize,
}

/// One prompt's search.
pub struct Search {
    rules: Rules,
    /// Beams that run, best first.
    pub running: Vec<Running>,
    finished: Vec<(f64, Vec<u32>)>,
    /// Whether it is over.
    pub done: bool,
}

impl Search {
    /// A search that begins with one empty beam.
    pub fn new(rules: Rules) -> Self {
        let start = Running { ids: Vec::new(), sum: 0.0, from: 0 };
        Search { rules, running: vec![start], finished: Vec::new(), done: false }
    }

    /// Takes every running beam's log-probabilities a step on.
    pub fn step(&mut self, log_probs: &[Vec<f64>], eos: &[u32]) {
        let beams = self.rules.beams;
        let mut all: Vec<(f64, usize, u32)> = Vec::new();
        for (i, (beam, lp)) in self.running.iter().zip(log_probs).enumerate() {
            all.extend(lp.iter().enumerate().map(|(t, lp)| (beam.sum + lp, i, t as u32)));
        }
        // Equal sums keep the order of beam and id.
        all.sort_by(|a, b| b.0.total_cmp(&a.0));
        all.truncate(beams * (1 + eos.len()).max(2));
        let length = 1 + self.running.first().map_or(0, |b| b.ids.len());
        let over = length >= self.rules.longest;
        let mut next = Vec::new();
        for (rank, (sum, from, id)) in all.into_iter().enumerate() {
            let ids = [self.running[from].ids.as_slice(), &[id]].concat();
            if over || eos.contains(&id) {
                if rank < beams {
                    self.finished.push((sum / (length as f64).powf(self.rules.length_penalty), ids));
                }
            } else if next.len() < beams {
                next.push(Running { ids, sum, from });
            }
        }
        self.finished.sort_by(|a, b| b.0.total_cmp(&a.0));
        self.finished.truncate(beams);
        self.done =
            over || next.is_empty() || !self.can_improve(length, next.first().map_or(f64::MIN, |b| b.sum));
        self.running = next;
    }

    /// Whether a running beam of this sum may yet be among the best.
    fn can_improve(&self, length: usize, best: f64) -> bool {
        let full = self.finished.len() >= self.rules.beams;
        if self.rules.stop == Stop::Early {
            return !full;
        }
        let favoured = self.rules.stop == Stop::Never && self.rules.length_penalty > 0.0;
        let length = if favoured { self.rules.longest } else { length };
        let best = best / (length as f64).powf(self.rules.length_penalty);
        let worst = if full { self.finished.last().map_or(f64::MIN, |f| f.0) } else { f64::MIN };
        best > worst
    }

    /// The best continuation: of the finished, or where none has finished of the running.
    pub fn best(&self) -> &[u32] {
        let running = || self.running.first().map_or(&[][..], |b| &b.ids);
        self.finished.first().map_or_else(running, |f| &f.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(beams: usize, length_penalty: f64, stop: Stop) -> Rules {
        Rules { beams, length_penalty, stop, longest: 3 }
    }

    fn logs(p: &[f64]) -> Vec<f64> {
        p.iter().map(|p| p.ln()).collect()
    }

    #[test]
    fn a_worse_start_may_end_better() {
        // Greedy takes 1 (0.6) and then 0.4 at best; 2 (0.4) goes on with 0.9.
        let mut s = Search::new(Rules { longest: 2, ..rules(2, 1.0, Stop::Heuristic) });
        s.step(&[logs(&[0.0, 0.6, 0.4])], &[0]);
        assert_eq!(s.running.iter().map(|b| b.ids[0]).collect::<Vec<_>>(), [1, 2]);
        s.step(&[logs(&[0.3, 0.4, 0.3]), logs(&[0.05, 0.05, 0.9])], &[0]);
        assert!(s.done);
        assert_eq!(s.best(), [2, 2]);
    }

    #[test]
    fn length_penalties_and_stops() {
        let run = |penalty: f64, stop: Stop| {
            let mut s = Search::new(rules(1, penalty, stop));
            let mut steps = 0;
            while !s.done {
                // The end is likelier than either way on; a longer text has a lower sum.
                s.step(&[logs(&[0.5, 0.3, 0.2])], &[0]);
                steps += 1;
            }
            (steps, s.best().to_vec())
        };
        assert_eq!(run(1.0, Stop::Early), (1, vec![0]));
        // −1.204 after one token is below −0.693: over at once.
        assert_eq!(run(1.0, Stop::Heuristic), (1, vec![0]));
        // −1.204 over 3 tokens would be −0.401: it may yet win, and does not.
        assert_eq!(run(1.0, Stop::Never).1, vec![0]);
        assert!(run(1.0, Stop::Never).0 > 1);
        // A large penalty favours length.
        assert!(run(8.0, Stop::Never).1.len() == 3);
    }
}
