//! Both sides in turn: ours, the peer, ours, the peer …

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::figure::{Figures, digits};

/// The middle of several measurements and how far they lie apart.
#[derive(Clone, Debug, Serialize)]
pub struct Spread {
    /// The middle one; the mean of the two in the middle of an even number.
    pub median: f64,
    /// The smallest.
    pub least: f64,
    /// The largest.
    pub most: f64,
    /// All of them, in the order in which they were made.
    pub runs: Vec<f64>,
}

impl Spread {
    /// Of at least one number.
    pub fn of(runs: &[f64]) -> Self {
        let mut sorted = runs.to_vec();
        sorted.sort_by(f64::total_cmp);
        let n = sorted.len();
        let at = |i: usize| sorted.get(i).copied().unwrap_or(f64::NAN);
        let median = if n % 2 == 1 { at(n / 2) } else { (at((n / 2).saturating_sub(1)) + at(n / 2)) / 2.0 };
        Spread { median, least: at(0), most: at(n.saturating_sub(1)), runs: runs.to_vec() }
    }

    /// `MEDIAN (LEAST–MOST)`, or the one number that there is.
    pub fn words(&self) -> String {
        let median = digits(self.median);
        if self.runs.len() < 2 {
            return median;
        }
        format!("{median} ({}–{})", digits(self.least), digits(self.most))
    }

    /// Each number changed.
    pub fn map(&self, f: impl Fn(f64) -> f64) -> Self {
        Spread::of(&self.runs.iter().copied().map(f).collect::<Vec<_>>())
    }
}

/// What one run found: a number for each of a case's quantities.
pub type Found = Vec<f64>;

/// One side of a case.
pub type Side<'a> = dyn FnMut() -> Result<Found> + 'a;

/// Quantities by number, each over all rounds.
pub struct Rounds {
    /// Ours.
    pub ours: Vec<Spread>,
    /// The peer's, where there is one and it got through.
    pub peer: Option<Vec<Spread>>,
}

/// Runs both sides in turn. A peer that fails is left out with a word, ours is not.
pub fn alternate(rounds: usize, ours: &mut Side<'_>, mut peer: Option<&mut Side<'_>>) -> Result<Rounds> {
    ensure!(rounds > 0, "`--rounds` is 0; it must be at least 1");
    let (mut mine, mut its) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        mine.push(ours()?);
        match peer.as_mut().map(|run| run()) {
            None => {}
            Some(Ok(found)) => its.push(found),
            Some(Err(e)) => {
                eprintln!("the peer is left out of this case: {e:#}");
                peer = None;
            }
        }
    }
    let ours = columns(&mine)?;
    let peer = peer.map(|_| columns(&its)).transpose()?;
    Ok(Rounds { ours, peer })
}

/// Rows to a spread for each column.
fn columns(rows: &[Found]) -> Result<Vec<Spread>> {
    let width = rows.first().map_or(0, Vec::len);
    let column = |i: usize| {
        let numbers: Option<Vec<f64>> = rows.iter().map(|row| row.get(i).copied()).collect();
        numbers.map(|numbers| Spread::of(&numbers)).context("runs found unlike quantities")
    };
    (0..width).map(column).collect()
}

impl Rounds {
    /// Notes the quantities, each with the end of its case's name and its unit.
    pub fn note(
        &self,
        figures: &mut Figures,
        bench: &'static str,
        case: &str,
        peer: &'static str,
        quantities: &[(&str, &'static str)],
    ) {
        for (i, (end, unit)) in quantities.iter().enumerate() {
            let Some(ours) = self.ours.get(i) else { continue };
            let beside = self.peer.as_ref().and_then(|p| p.get(i)).map(|s| (peer, s.clone()));
            figures.beside(bench, format!("{case}{end}"), unit, ours.clone(), beside);
        }
    }
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    #[test]
    fn the_middle_and_the_ends() {
        let odd = Spread::of(&[3.0, 1.0, 2.0]);
        assert_eq!((odd.median, odd.least, odd.most), (2.0, 1.0, 3.0));
        assert_eq!(odd.runs, [3.0, 1.0, 2.0]);
        assert_eq!(Spread::of(&[4.0, 1.0]).median, 2.5);
        assert_eq!(Spread::of(&[4.0]).words(), "4.00");
        assert_eq!(odd.words(), "2.00 (1.00–3.00)");
        assert_eq!(odd.map(|x| 6.0 / x).median, 3.0);
    }

    #[test]
    fn sides_take_turns() {
        let order = std::cell::RefCell::new(String::new());
        let mut ours = || {
            order.borrow_mut().push('o');
            Ok(vec![1.0, order.borrow().len() as f64])
        };
        let mut peer = || {
            order.borrow_mut().push('p');
            Ok(vec![2.0])
        };
        let found = alternate(3, &mut ours, Some(&mut peer)).unwrap();
        assert_eq!(*order.borrow(), "opopop");
        assert_eq!(found.ours[1].runs, [1.0, 3.0, 5.0]);
        assert_eq!(found.peer.unwrap()[0].runs, [2.0; 3]);
    }

    #[test]
    fn a_peer_that_fails_is_left_out() {
        let mut left = 1;
        let mut peer = || {
            if left == 0 {
                bail!("no memory");
            }
            left -= 1;
            Ok(vec![1.0])
        };
        let found = alternate(3, &mut || Ok(vec![1.0]), Some(&mut peer)).unwrap();
        assert!(found.peer.is_none());
        assert_eq!(found.ours[0].runs.len(), 3);
        assert!(alternate(1, &mut || bail!("ours"), None).is_err());
    }
}
