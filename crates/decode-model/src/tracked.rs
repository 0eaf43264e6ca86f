//! A model of a session that follows the lines: it is fed what it has not seen, and rolled back.

use anyhow::{Context, Result};
use ramekin_core::{Array, Category};
use ramekin_slots::{Line, Logits, Session};

/// The model in work (`None`) or another by its name.
#[derive(Clone, Debug)]
pub(crate) struct Tracked(pub Option<String>);

impl Tracked {
    /// Feeds every active line what this model has not seen of it, `drafted` tokens behind it included, and
    /// gives logits of the last `keep` of them. A prompt goes in alone, as caches that choose what to keep of
    /// it must not see drafts with it.
    pub fn feed(
        &self,
        s: &mut Session<'_>,
        drafted: &[Vec<u32>],
        active: &[bool],
        keep: usize,
    ) -> Result<Logits> {
        let (model, prompts) = match &self.0 {
            None => (&mut s.model, None),
            Some(name) => {
                let other =
                    s.others.get_mut(name).with_context(|| format!("no model `{name}` was loaded"))?;
                (&mut other.model, Some(&other.prompts))
            }
        };
        let fresh = |(i, l): (usize, &Line)| -> Vec<u32> {
            if !active[i] {
                return Vec::new();
            }
            let prompt = prompts.map_or(&l.ids[..l.prompt], |p| &p[i]);
            let all = prompt.iter().chain(&l.ids[l.prompt..]).chain(&drafted[i]);
            all.skip(model.seen(i)).copied().collect()
        };
        let new: Vec<Vec<u32>> = s.lines.iter().enumerate().map(fresh).collect();
        let prompt = |(i, new): (usize, &Vec<u32>)| match model.seen(i) {
            0 => new.len().saturating_sub(drafted[i].len()),
            _ => 0,
        };
        let ahead: Vec<usize> = new.iter().enumerate().map(prompt).collect();
        let together = new.iter().zip(&ahead).all(|(new, n)| *n == 0 || *n == new.len());
        if together {
            return model.feed(&new.iter().map(Vec::as_slice).collect::<Vec<_>>(), keep);
        }
        let first = model.feed(&new.iter().zip(&ahead).map(|(new, n)| &new[..*n]).collect::<Vec<_>>(), 1)?;
        let second =
            model.feed(&new.iter().zip(&ahead).map(|(new, n)| &new[*n..]).collect::<Vec<_>>(), keep)?;
        behind(&first, &second, keep)
    }

    /// Takes back what is no part of the lines; a line's newest token is fed again with what follows it.
    pub fn roll_back(&self, s: &mut Session<'_>, active: &[bool]) -> Result<()> {
        let (model, prompts) = match &self.0 {
            None => (&mut s.model, None),
            Some(name) => {
                let other =
                    s.others.get_mut(name).with_context(|| format!("no model `{name}` was loaded"))?;
                (&mut other.model, Some(&other.prompts))
            }
        };
        for (i, l) in s.lines.iter().enumerate().filter(|(i, _)| active[*i]) {
            let prompt = prompts.map_or(l.prompt, |p| p[i].len());
            let settled = prompt + l.ids.len() - l.prompt - 1;
            if model.seen(i) > settled {
                model.truncate(i, settled)?;
            }
        }
        Ok(())
    }
}

/// Each lane's rows of one feed and of the next, the last `keep` of them.
fn behind(a: &Logits, b: &Logits, keep: usize) -> Result<Logits> {
    let lanes = a.first.len() - 1;
    let count = |of: &Logits, lane: usize| of.first[lane + 1] - of.first[lane];
    let mut first = vec![0];
    for lane in 0..lanes {
        first.push(first[lane] + keep.min(count(a, lane) + count(b, lane)));
    }
    let vocabulary = b.array.rows().1;
    let dims = [first[lanes], vocabulary];
    let array = Array::build::<f32>(&dims, b.array.is_shape_only(), Category::Workspace, |out| {
        let (Some(x), Some(y)) = (a.read()?, b.read()?) else { return Ok(()) };
        let mut rows = out.chunks_mut(vocabulary);
        for lane in 0..lanes {
            let (n, m) = (x.count(lane), y.count(lane));
            for (i, row) in (n + m - (first[lane + 1] - first[lane])..n + m).zip(&mut rows) {
                row.copy_from_slice(if i < n { x.row(lane, i) } else { y.row(lane, i - n) });
            }
        }
        Ok(())
    })?;
    Ok(Logits { array, first })
}
