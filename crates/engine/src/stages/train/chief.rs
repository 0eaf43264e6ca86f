//! What rank 0 does beside its steps: it checks, measures, writes and says.

use std::time::Instant;

use anyhow::{Context, Result};
use ramekin_core::{UserError, meter};
use ramekin_plan::Share;
use ramekin_store::write_atomic;
use serde_json::{Map, Value as Json};

use super::beside::{Beside, Start, Texts};
use super::rank::Rank;
use crate::audit;
use crate::journal::Journal;
use crate::step::{LabelledBatch, StepReport};

/// The files and the words of a stage.
pub struct Chief<'a> {
    /// Metrics, events, progress.
    pub journal: Journal,
    /// How things stood before step 1.
    pub start: Start,
    /// Texts written on the way.
    pub texts: Texts,
    /// Measuring and writing.
    pub beside: &'a Beside,
}

impl<'a> Chief<'a> {
    /// The audit and the first look, or what is left of them where the stage goes on.
    ///
    /// # Errors
    /// A check that fails; a damaged file.
    pub fn begin(rank: &Rank<'_>, beside: &'a Beside, mut journal: Journal) -> Result<Self> {
        let job = rank.job;
        let file = job.dir.join("start.json");
        let start = if rank.step == 0 {
            let audit = if job.stage.audit { check_first(rank, &journal)? } else { Vec::new() };
            // The audit's own copies of gradients are no part of a step.
            meter::current().reset_peak();
            let objective = &*rank.trainer.objective;
            let start = Start::look(&rank.assembly, objective, beside, audit, &mut journal)?;
            write_atomic(&file, &serde_json::to_vec(&start)?)?;
            start
        } else {
            serde_json::from_slice(&std::fs::read(&file).unwrap_or_default())
                .with_context(|| format!("`{}` is damaged", file.display()))?
        };
        let texts = Texts::open(job.dir, &start, rank.step.min(job.total - 1))?;
        Ok(Chief { journal, start, texts, beside })
    }

    /// Notes a step, and what the other ranks held in it.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn stepped(&mut self, step: u64, report: &StepReport, begun: Instant, others: Share) -> Result<()> {
        self.journal.others(others);
        self.journal.step(step, report, begun)
    }

    /// Measures and writes as is due after a step; the figures.
    ///
    /// # Errors
    /// What goes wrong in it.
    pub fn look(&mut self, rank: &Rank<'_>) -> Result<Map<String, Json>> {
        let step = rank.step;
        let mut figures = Map::new();
        if let Some(e) = self.beside.eval.as_ref().filter(|e| step.is_multiple_of(e.every)) {
            figures = e.run(&rank.assembly, &*rank.trainer.objective)?.0;
            self.journal.eval(step, &figures)?;
        }
        if let Some(w) = self.beside.samples.as_ref().filter(|w| step.is_multiple_of(w.every)) {
            self.texts.add(step, w.run(&rank.assembly)?)?;
            self.journal.observe();
        }
        Ok(figures)
    }
}

/// The audit before step 1.
fn check_first(rank: &Rank<'_>, journal: &Journal) -> Result<Vec<audit::Check>> {
    let begun = Instant::now();
    let first = LabelledBatch::new(rank.job.sampler.batch(0, 0));
    let mut checks = audit::run(&rank.assembly, &rank.trainer, &first).context("the audit before step 1")?;
    checks.extend(text_audit(rank)?);
    for c in &checks {
        journal.say(&format!("audit: {}: {}", c.name, c.result));
    }
    journal.say(&format!("audit passed in {:.1} s", begun.elapsed().as_secs_f64()));
    Ok(checks)
}

/// Looks at real rows: BOS, EOS, masks.
fn text_audit(rank: &Rank<'_>) -> Result<Vec<audit::Check>> {
    let Some(tokenizer) = &rank.assembly.tokenizer else { return Ok(Vec::new()) };
    let (data, vocabulary) = (rank.job.sampler.data(), rank.assembly.model.facts().vocab_size);
    let found = ramekin_data::audit::audit(data, tokenizer, vocabulary, 200, 1, false);
    if let Some(error) = found.errors.first() {
        return Err(UserError::new(format!("audit: {error}")).in_file(&data.name).into());
    }
    Ok(found.lines().into_iter().map(|l| audit::Check { name: "rows".to_owned(), result: l }).collect())
}
