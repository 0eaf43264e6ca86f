//! What is checked before step 1, in seconds: a run that would train nonsense
//! stops here.
//!
//! * masks and BOS/EOS counts of real rows (the data crate's audit);
//! * leak probe: another token in one segment must leave every other segment's
//!   hidden states bit-identical;
//! * accumulation: two micro-batches must give the gradient of the one big batch;
//! * every trainable tensor must receive a gradient that is not zero.
//!
//! The last two are left out where the estimator walks nothing back.

use std::rc::Rc;

use anyhow::{Result, bail};
use ramekin_core::Array;
use ramekin_kernels::bf16;
use ramekin_slots::{FlatBatch, Forward, Mode, Rows};
use ramekin_tape::{GradStore, Tape};
use serde::{Deserialize, Serialize};

use crate::assembly::Assembly;
use crate::hidden::hidden;
use crate::step::{LabelledBatch, Trainer};

/// One check with its outcome.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Check {
    /// What was checked.
    pub name: String,
    /// What was seen.
    pub result: String,
}

/// Segments are cut to this length: a check needs no more.
const PROBE_TOKENS: usize = 48;

/// Runs the checks on the first segments of a real micro-batch.
///
/// # Errors
/// The check that failed, with what it means.
pub fn run(assembly: &Assembly, trainer: &Trainer, batch: &LabelledBatch) -> Result<Vec<Check>> {
    let parts = probes(batch, trainer.objective.rows());
    if parts.is_empty() {
        bail!("audit: the first micro-batch has no segment with a target");
    }
    let mut checks = Vec::new();
    if parts.len() > 1 {
        leak(assembly, trainer, &parts)?;
        checks.push(Check {
            name: "leak probe".to_owned(),
            result: format!("{} segments do not see each other", parts.len()),
        });
    }
    if !trainer.estimator.needs_backward() {
        return Ok(checks);
    }
    if parts.len() > 1 {
        let difference = accumulation(assembly, trainer, &parts)?;
        checks.push(Check {
            name: "accumulation".to_owned(),
            result: format!("1×{0} and {0}×1 agree within {difference:.1e}", parts.len()),
        });
    }
    let tensors = gradients(assembly, trainer, &parts)?;
    checks.push(Check {
        name: "gradients".to_owned(),
        result: format!("all {tensors} trainable tensors receive one"),
    });
    Ok(checks)
}

/// Up to four short segments, or pairs of them, with a target each.
fn probes(batch: &LabelledBatch, rows: Rows) -> Vec<LabelledBatch> {
    let each = if rows == Rows::Pairs { 2 } else { 1 };
    let mut found = Vec::new();
    for (i, segments) in batch.flat.segments.chunks_exact(each).enumerate() {
        let (mut sequences, mut labels, mut learns) = (Vec::new(), Vec::new(), true);
        for segment in segments {
            // The end of a segment holds the answer; positions may start anywhere. An image is whole.
            let cut = if batch.flat.images.is_some() { segment.len() } else { PROBE_TOKENS };
            let from = segment.end.saturating_sub(cut).max(segment.start);
            sequences.push(batch.flat.ids[from..segment.end].to_vec());
            let own = &batch.labels[from..segment.end];
            learns &= rows == Rows::Targets || own.iter().any(|l| *l != -100);
            labels.extend_from_slice(own);
        }
        if !learns {
            continue;
        }
        let targets = batch.targets.iter().skip(i * each).take(each).cloned().collect();
        let flat = FlatBatch { images: batch.flat.images.clone(), ..FlatBatch::new(&sequences) };
        found.push(LabelledBatch { flat, labels, targets });
        if found.len() == 4 {
            break;
        }
    }
    found
}

fn joined(parts: &[LabelledBatch]) -> LabelledBatch {
    let of = |p: &LabelledBatch| -> Vec<Vec<u32>> {
        p.flat.segments.iter().map(|s| p.flat.ids[s.clone()].to_vec()).collect()
    };
    let flat = FlatBatch::new(&parts.iter().flat_map(of).collect::<Vec<_>>());
    LabelledBatch {
        flat: FlatBatch { images: parts.first().and_then(|p| p.flat.images.clone()), ..flat },
        labels: parts.iter().flat_map(|p| p.labels.iter().copied()).collect(),
        targets: parts.iter().flat_map(|p| p.targets.iter().cloned()).collect(),
    }
}

fn states(assembly: &Assembly, trainer: &Trainer, flat: FlatBatch) -> Result<Vec<f32>> {
    let mode = Mode { rng: trainer.rng, ..Mode::inference() };
    let fx = Forward::new(Tape::off(), assembly.sites.clone(), flat, mode);
    hidden(&assembly.model, &fx, Some(&*trainer.activation))?.array().to_f32()
}

fn leak(assembly: &Assembly, trainer: &Trainer, parts: &[LabelledBatch]) -> Result<()> {
    let all = joined(parts);
    let before = states(assembly, trainer, all.flat.clone())?;
    let first = all.flat.segments[0].clone();
    let mut ids = all.flat.ids.to_vec();
    let others = match &all.flat.images {
        Some(images) => images.len(),
        None => assembly.model.facts().vocab_size,
    };
    ids[first.start] = (ids[first.start] + 1) % others as u32;
    let changed = FlatBatch { ids: Rc::new(ids), ..all.flat.clone() };
    let after = states(assembly, trainer, changed)?;
    let from = first.end * assembly.model.facts().hidden_size;
    if before[from..] != after[from..] {
        bail!("audit: a token of one packed document changes the states of another: segments leak");
    }
    if before[..from] == after[..from] {
        bail!("audit: another token leaves the model's states as they were: the model ignores its input");
    }
    Ok(())
}

fn grads_of(assembly: &Assembly, trainer: &Trainer, batches: &[LabelledBatch]) -> Result<GradStore> {
    let totals = trainer.totals(batches);
    let mut store = GradStore::new();
    for batch in batches {
        trainer.micro_batch(assembly, batch, &totals, 0, false, &mut store)?;
    }
    Ok(store)
}

fn accumulation(assembly: &Assembly, trainer: &Trainer, parts: &[LabelledBatch]) -> Result<f64> {
    let whole = grads_of(assembly, trainer, &[joined(parts)])?;
    let summed = grads_of(assembly, trainer, parts)?;
    let (mut difference, mut norm) = (0.0f64, 0.0f64);
    for (param, a) in whole.iter() {
        let Some(b) = summed.get(param.id()) else {
            bail!("audit: `{}` has no gradient when accumulated", param.name())
        };
        for (x, y) in a.to_f32()?.iter().zip(b.to_f32()?) {
            difference += f64::from(x - y).powi(2);
            norm += f64::from(*x).powi(2);
        }
    }
    let relative = (difference / norm.max(f64::MIN_POSITIVE)).sqrt();
    // What is rounded to bf16 on the way turns the last bit of a sum into its own: a thousandth at once.
    let most = if assembly.sites.in_bf16() && bf16::unit().is_some() { 3e-2 } else { 1e-3 };
    if relative > most && norm > 0.0 {
        bail!(
            "audit: accumulated micro-batches give another gradient than the whole batch (off by {relative:.1e})"
        );
    }
    Ok(if norm > 0.0 { relative } else { 0.0 })
}

/// Tensors that begin at zero hide each other's gradients (LoRA's A behind B):
/// they are nudged for this check and put back, bit for bit.
fn gradients(assembly: &Assembly, trainer: &Trainer, parts: &[LabelledBatch]) -> Result<usize> {
    let trainable = assembly.trainable();
    let mut zeros = Vec::new();
    for param in &trainable {
        let value = param.value();
        if value.to_f32()?.iter().all(|x| *x == 0.0) {
            let stream = trainer.rng.named("audit", param.name());
            value.update(|x: &mut [f32]| stream.fill_normal(0, 1e-2, x))?;
            zeros.push(value);
        }
    }
    let store = grads_of(assembly, trainer, &[joined(parts)]);
    for value in zeros {
        value.update(|x: &mut [f32]| x.fill(0.0))?;
    }
    let store = store?;
    for param in &trainable {
        let grad: Option<&Array> = store.get(param.id());
        let flows = match grad {
            Some(g) => g.to_f32()?.iter().any(|x| *x != 0.0),
            None => false,
        };
        if !flows {
            bail!("audit: `{}` is set to train and receives no gradient", param.name());
        }
    }
    Ok(trainable.len())
}
