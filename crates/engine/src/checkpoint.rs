//! Checkpoints of a training stage: what trains, the optimizer's state, the step.
//!
//! Data order and randomness are pure functions of seed and step, so nothing
//! else is needed to go on to the bit.

use std::collections::HashMap;
use std::io::Read as _;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use ramekin_core::{Array, Category, UserError};
use ramekin_store::{Checkpoints, Data, Index};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::assembly::Assembly;
use crate::step::Trainer;

const WEIGHTS: &str = "trainable.safetensors";
const STATE: &str = "optimizer.safetensors";

/// Opens a stage's checkpoints.
pub fn open(dir: &Path, keep: usize) -> Result<Checkpoints> {
    Checkpoints::open(dir.join("checkpoints"), keep.max(1))
}

/// Saves the state after `step` updates.
pub fn save(all: &Checkpoints, step: u64, epoch: f64, assembly: &Assembly, trainer: &Trainer) -> Result<()> {
    let weights: Vec<(String, Data)> =
        assembly.trainable().iter().map(|p| (p.name().to_owned(), Data::from(&p.value()))).collect();
    let state: Vec<(String, Data)> =
        trainer.optimizer.state().iter().map(|t| (t.name.clone(), Data::from(&t.array))).collect();
    all.save(step, epoch, &json!({ "max_steps": trainer.total_steps }), |w| {
        w.tensors(WEIGHTS, &weights)?;
        w.tensors(STATE, &state)
    })?;
    Ok(())
}

/// Puts the newest whole checkpoint back; returns its step. Damaged ones are named and passed over.
///
/// # Errors
/// [`UserError`] if there are checkpoints and every one is damaged; nothing is removed then.
pub fn restore(all: &Checkpoints, assembly: &Assembly, trainer: &mut Trainer) -> Result<Option<u64>> {
    let latest = all.latest_good()?;
    for damaged in &latest.damaged {
        ramekin_core::say!("  warning: `{}` is passed over: {}", damaged.path.display(), damaged.why);
    }
    let Some(good) = latest.good else {
        if let Some(first) = latest.damaged.first() {
            let message = format!("no checkpoint is whole; in the newest, {}", first.why);
            let help = "bring it back from a copy, or remove `checkpoints` and begin the stage again with `--resume`";
            return Err(UserError::new(message).in_file(&first.path).help(help).into());
        }
        return Ok(None);
    };
    let read = |file: &str| -> Result<HashMap<String, Array>> {
        let index = Index::open(good.path.join(file))?;
        let names: Vec<String> = index.names().map(str::to_owned).collect();
        names
            .into_iter()
            .map(|n| {
                let array = Array::from_tensor(index.read(&n)?, Category::Workspace)?;
                Ok((n, array))
            })
            .collect()
    };
    let mut weights = read(WEIGHTS)?;
    let params = assembly.trainable();
    for param in &params {
        let saved = weights
            .remove(param.name())
            .with_context(|| format!("the checkpoint has no `{}`", param.name()))?;
        ensure!(
            saved.dims() == param.value().dims(),
            "`{}` has another shape in the checkpoint",
            param.name()
        );
        param.set(saved);
    }
    let mut state = read(STATE)?;
    trainer.optimizer.restore(&params, &mut |name| state.remove(name))?;
    Ok(Some(good.step))
}

/// SHA-256 of a file, in hexadecimal.
pub fn sha256(path: &Path) -> Result<String> {
    let mut file = std::fs::File::open(path).with_context(|| format!("cannot read `{}`", path.display()))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        hash.update(&buffer[..n]);
    }
    Ok(hash.finalize().iter().map(|b| format!("{b:02x}")).collect())
}
