//! Checkpoints of a training stage: what trains, the optimizer's state, the step; or the step and a log that
//! gives both again from the first weights.
//!
//! Data order and randomness are pure functions of seed and step, so nothing
//! else is needed to go on to the bit.

use std::collections::HashMap;
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use ramekin_core::{Array, Category, Param, UserError};
use ramekin_store::{Checkpoints, Data, Index, Spec};
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

/// Where a saved stage stands.
pub struct Restored {
    /// Updates done.
    pub step: u64,
    /// Why it ended before its last step, where a hook ended it.
    pub ended: Option<String>,
}

/// Saves the state after `step` updates; `ended` is why there will be no further one.
pub fn save(
    all: &Checkpoints,
    step: u64,
    epoch: f64,
    assembly: &Assembly,
    trainer: &Trainer,
    ended: Option<&str>,
) -> Result<()> {
    let (weights, state) = trainer.kept(assembly)?;
    let specs = weights.iter().map(|p| {
        let data = Data::from(&p.value());
        Spec::of(p.name(), &data)
    });
    let specs = specs.collect::<Result<Vec<Spec>>>()?;
    let state: Vec<(String, Data)> = state.iter().map(|t| (t.name.clone(), Data::from(&t.array))).collect();
    let mut more = json!({ "max_steps": trainer.total_steps });
    if let Some(why) = ended {
        more["ended"] = why.into();
    }
    all.save(step, epoch, &more, |w| {
        if !trainer.estimator.log_only() {
            w.tensors_as_made(WEIGHTS, &specs, |name| {
                let param = weights.iter().find(|p| p.name() == name).context("a tensor nobody listed")?;
                assembly.read_param(param).map(|value| Data::from(&value))
            })?;
        }
        w.tensors(STATE, &state)
    })?;
    Ok(())
}

/// Puts the newest whole checkpoint back. Damaged ones are named and passed over.
///
/// # Errors
/// [`UserError`] if there are checkpoints and every one is damaged; nothing is removed then.
pub fn restore(all: &Checkpoints, assembly: &Assembly, trainer: &mut Trainer) -> Result<Option<Restored>> {
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
    let whole = !trainer.estimator.log_only();
    let mut weights = if whole { read(WEIGHTS)? } else { HashMap::new() };
    let missing = |p: &&Arc<Param>| whole && !weights.contains_key(p.name());
    if let Some(param) = assembly.trainable().iter().find(missing) {
        bail!("the checkpoint has no `{}`", param.name());
    }
    let mut saved = Vec::new();
    for (name, value) in weights.drain() {
        let param = assembly.ledger.borrow().get(&name).and_then(|e| e.param.clone());
        let param = param.with_context(|| format!("the checkpoint holds `{name}`, which nothing here is"))?;
        ensure!(
            value.dims() == param.value().dims(),
            "`{}` has another shape in the checkpoint",
            param.name()
        );
        saved.push((param, value));
    }
    assembly.write_params(saved, trainer.rng)?;
    let mut state = read(STATE)?;
    trainer.restore(assembly, good.step, &mut |name| state.remove(name))?;
    Ok(Some(Restored { step: good.step, ended: good.state["ended"].as_str().map(str::to_owned) }))
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
