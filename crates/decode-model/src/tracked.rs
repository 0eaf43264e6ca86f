//! A model of a session that follows the lines: it is fed what it has not seen, and rolled back.

use anyhow::{Context, Result};
use ramekin_slots::{Line, Logits, Session};

/// The model in work (`None`) or another by its name.
#[derive(Clone, Debug)]
pub(crate) struct Tracked(pub Option<String>);

impl Tracked {
    /// Feeds every active line what this model has not seen of it, `drafted` tokens behind it included, and
    /// gives logits of the last `keep` of them.
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
        model.feed(&new.iter().map(Vec::as_slice).collect::<Vec<_>>(), keep)
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
