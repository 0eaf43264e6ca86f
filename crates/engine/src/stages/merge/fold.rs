//! `method = { kind = "lora" }`: adapters folded into the base, with a certificate.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use anyhow::{Result, bail};
use ramekin_core::{Array, Category, DType, Draws, Rng, UserError};
use ramekin_kernels::bf16;
use ramekin_plan::Bill;
use ramekin_recipe::{Adapter, Dtype, MergeStage, Model};
use ramekin_slots::{FlatBatch, Forward, ImageFacts, Images, Mode, ObjectiveFile};
use ramekin_store::write_atomic;
use ramekin_tape::Tape;
use serde_json::{Map, Value as Json, json};

use super::super::save;
use crate::assembly::Assembly;
use crate::bill;
use crate::blueprint::Blueprint;
use crate::hidden::hidden;
use crate::run::{StageContext, plain_model};
use crate::saved::is_reducer;

/// How far a merged model may be from base + adapter, relative to the largest logit.
pub fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F32 => 1e-5,
        DType::F16 => 1e-2,
        _ => 5e-2,
    }
}

/// The stage's bill: writing one dense weight after the other, then the certificate on what was written.
pub fn bill(name: &str, s: &MergeStage, plan: &Blueprint) -> Result<Bill> {
    let plan = &apart(plan)?.0;
    let dtype = Cell::new(None);
    let writing = bill::inference(name, plan, PROBE, &|assembly| {
        check(assembly)?;
        dtype.set(Some(written_as(s.dtype, assembly)));
        bill::forward(assembly, PROBE)?;
        let largest = assembly.sites.linears().iter().max_by_key(|l| l.shape.0 * l.shape.1);
        let Some(site) = largest else { return Ok(()) };
        Array::shape_only(&[site.shape.0, site.shape.1], DType::F32, Category::Workspace).map(drop)
    })?;
    let model = Model { dtype: dtype.get(), ..plan.model.clone() };
    let alone = Blueprint { model, quantizer: None, adapters: Vec::new(), ..plan.clone() };
    let checking = bill::inference(name, &alone, PROBE, &|assembly| bill::forward(assembly, PROBE))?;
    Ok(if checking.total() > writing.total() {
        Bill { parameters: writing.parameters, sites: writing.sites, ..checking }
    } else {
        writing
    })
}

/// What is folded, and the folders of saved reducers, which have no place in weights and stay beside the model.
fn apart(plan: &Blueprint) -> Result<(Blueprint, Vec<String>)> {
    let (mut adapters, mut reducers) = (Vec::new(), Vec::new());
    for choice in &plan.adapters {
        match choice {
            Adapter::Saved { folder, .. } if is_reducer(&plan.base_dir.join(folder))? => {
                reducers.push(folder.clone());
            }
            other => adapters.push(other.clone()),
        }
    }
    Ok((Blueprint { adapters, ..plan.clone() }, reducers))
}

/// Refuses adapters that cannot be folded in.
fn check(assembly: &Assembly) -> Result<()> {
    for attached in &assembly.adapters {
        if let Some(why) = attached.adapter.unmergeable() {
            let message = format!("`merge/lora` cannot fold `adapter/{}` in: {why}", attached.kind);
            return Err(UserError::new(message).into());
        }
    }
    Ok(())
}

/// The recipe's choice, else the model's own type.
pub fn written_as(choice: Option<Dtype>, assembly: &Assembly) -> Dtype {
    choice.unwrap_or(match assembly.dtype {
        DType::BF16 => Dtype::Bf16,
        DType::F16 => Dtype::F16,
        _ => Dtype::F32,
    })
}

/// Tokens of the certificate at most.
pub const PROBE: usize = 48;

/// Runs the stage.
pub fn run(cx: &mut StageContext<'_>, s: &MergeStage, plan: &Blueprint) -> Result<Json> {
    let (plan, reducers) = apart(plan)?;
    let assembly = plan.assemble(false)?;
    let dtype = save::dtype(written_as(s.dtype, &assembly));
    let folder = cx.dir.join("model");
    save::model(&assembly, &ObjectiveFile::default(), &folder, dtype, s.max_shard_size.0, Map::new())?;
    let batch = probe(&assembly, cx.recipe.seed)?;
    let before = logits(&assembly, &batch)?;
    let largest = before.iter().fold(0f32, |m, x| m.max(x.abs()));
    // What multiplies in bf16 rounds on its way as much as what is written in it.
    let rounds = assembly.sites.in_bf16() && bf16::unit().is_some();
    let tolerance = tolerance(if rounds { DType::BF16 } else { dtype });
    let label = assembly.label.clone();
    drop(assembly);
    let written = plain_model(&folder.canonicalize()?.display().to_string());
    let merged = Blueprint { attention: plan.attention.clone(), ..Blueprint::new(written) };
    let after = logits(&merged.assemble(false)?, &batch)?;
    let off = before.iter().zip(&after).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
    let relative = f64::from(off) / f64::from(largest.max(f32::MIN_POSITIVE));
    let certificate = json!({
        "base": label,
        "model": folder.display().to_string(),
        "checked": "logits of the model reloaded from disk against base + adapter",
        "tokens": batch.len(),
        "largest_logit": largest,
        "largest_difference": off,
        "relative": relative,
        "tolerance": tolerance,
    });
    write_atomic(cx.dir.join("certificate.json"), &serde_json::to_vec_pretty(&certificate)?)?;
    if relative.is_nan() || relative > tolerance {
        bail!(
            "the merged model answers differently from base + adapter: off by {relative:.1e} of the largest logit"
        );
    }
    ramekin_core::say!("  merged model equals base + adapter within {relative:.1e} of the largest logit");
    cx.publish(std::slice::from_ref(&folder))?;
    cx.carry.leave_model(&folder.canonicalize()?);
    cx.carry.keep_reducers(reducers);
    Ok(certificate)
}

/// Held text where there is a tokenizer, seeded ids or pixels otherwise.
pub fn probe(assembly: &Assembly, seed: u64) -> Result<FlatBatch> {
    if let Some(ImageFacts { channels, size, tokens }) = assembly.model.facts().images {
        let dims = [PROBE.div_ceil(tokens), channels, size, size];
        let mut pixels = vec![0f32; dims.iter().product()];
        Rng::new(seed).stream("merge/probe", 0).fill_normal(0, 1.0, &mut pixels);
        return Ok(FlatBatch::of_images(Arc::new(Images::new(dims, pixels)?), tokens));
    }
    let text = "Anna has 4 red apples and gives 2 to Ben. How many apples does Anna have now?";
    let ids = assembly.tokenizer.as_ref().and_then(|t| t.encode(text, true).ok()).filter(|ids| ids.len() > 4);
    let ids = ids.unwrap_or_else(|| {
        let mut draws = Draws::new(Rng::new(seed).stream("merge/probe", 0));
        let vocabulary = assembly.model.facts().vocab_size;
        (0..PROBE).map(|_| draws.below(vocabulary) as u32).collect()
    });
    let longest = assembly.model.facts().max_position_embeddings.min(PROBE);
    Ok(FlatBatch::new(&[ids.into_iter().take(longest).collect()]))
}

/// The logits of every token of a batch.
pub fn logits(assembly: &Assembly, batch: &FlatBatch) -> Result<Vec<f32>> {
    let fx = Forward::new(Tape::off(), Rc::clone(&assembly.sites), batch.clone(), Mode::inference());
    let h = hidden(&assembly.model, &fx, None)?;
    assembly.model.head(&fx, &h)?.array().to_f32()
}
