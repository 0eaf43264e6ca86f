//! `kind = "merge"`: adapters folded into the base, with a certificate.

use std::rc::Rc;

use anyhow::{Result, bail};
use ramekin_core::{Draws, Rng};
use ramekin_recipe::MergeStage;
use ramekin_slots::{FlatBatch, Forward, Mode};
use ramekin_store::write_atomic;
use ramekin_tape::Tape;
use serde_json::{Value as Json, json};

use super::save;
use crate::assembly::{Assembly, Blueprint};
use crate::run::{StageContext, plain_model};
use crate::step::hidden;

/// How far a merged model may be from base + adapter, relative to the largest logit.
fn tolerance(dtype: Option<candle_core::DType>) -> f64 {
    match dtype {
        None | Some(candle_core::DType::F32) => 1e-5,
        Some(candle_core::DType::F16) => 1e-2,
        _ => 5e-2,
    }
}

/// Runs the stage.
pub fn run(cx: &mut StageContext<'_>, s: &MergeStage, plan: &Blueprint) -> Result<Json> {
    let ramekin_recipe::MergeFormat::Safetensors = s.format;
    let assembly = plan.assemble(false)?;
    let dtype = save::dtype(s.dtype);
    let folder = cx.options.out.join("model");
    save::model(&assembly, &folder, dtype, s.max_shard_size.0)?;
    let batch = probe(&assembly, cx.recipe.seed);
    let before = logits(&assembly, &batch)?;
    let largest = before.iter().fold(0f32, |m, x| m.max(x.abs()));
    let label = assembly.label.clone();
    drop(assembly);
    let merged = Blueprint {
        model: plain_model(&folder.canonicalize()?.display().to_string()),
        quantizer: None,
        adapters: Vec::new(),
        ..plan.clone()
    };
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
        "tolerance": tolerance(dtype),
    });
    write_atomic(cx.dir.join("certificate.json"), &serde_json::to_vec_pretty(&certificate)?)?;
    if relative.is_nan() || relative > tolerance(dtype) {
        bail!(
            "the merged model answers differently from base + adapter: off by {relative:.1e} of the largest logit"
        );
    }
    eprintln!("  merged model equals base + adapter within {relative:.1e} of the largest logit");
    cx.carry.leave_model(&folder.canonicalize()?);
    Ok(certificate)
}

/// Held text where there is a tokenizer, seeded ids otherwise.
fn probe(assembly: &Assembly, seed: u64) -> FlatBatch {
    let text = "Anna has 4 red apples and gives 2 to Ben. How many apples does Anna have now?";
    let ids = assembly.tokenizer.as_ref().and_then(|t| t.encode(text, true).ok()).filter(|ids| ids.len() > 4);
    let ids = ids.unwrap_or_else(|| {
        let mut draws = Draws::new(Rng::new(seed).stream("merge/probe", 0));
        let vocabulary = assembly.model.facts().vocab_size;
        (0..48).map(|_| draws.below(vocabulary) as u32).collect()
    });
    let longest = assembly.model.facts().max_position_embeddings;
    FlatBatch::new(&[ids.into_iter().take(longest).collect()])
}

fn logits(assembly: &Assembly, batch: &FlatBatch) -> Result<Vec<f32>> {
    let fx = Forward::new(Tape::off(), Rc::clone(&assembly.sites), batch.clone(), Mode::inference());
    let h = hidden(&assembly.model, &fx, None)?;
    assembly.model.head(&fx, &h)?.array().to_f32()
}
