//! `kind = "logits"`: a file's batch to logits, loss and gradients.

use std::cell::Cell;
use std::rc::Rc;

use anyhow::Result;
use candle_core::{Device, Tensor};
use ramekin_core::Rng;
use ramekin_data::Batch;
use ramekin_plan::Bill;
use ramekin_recipe::{LogitsStage, Part};
use ramekin_slots::{Forward, Mode};
use ramekin_store::{Data, write_safetensors};
use ramekin_tape::{GradStore, Tape, Value, ops};
use serde_json::{Value as Json, json};

use super::tokens::TokenFile;
use crate::assembly::Assembly;
use crate::blueprint::Blueprint;
use crate::hidden::hidden;
use crate::run::StageContext;
use crate::step::LabelledBatch;
use crate::{bill, objective, parts};

/// The stage's bill.
pub fn bill(name: &str, s: &LogitsStage, plan: &Blueprint) -> Result<Bill> {
    let tokens = Cell::new(0);
    let bill = bill::inference(name, &with_gradients(s, plan), 0, &|assembly| {
        let file = read(s, plan, assembly)?;
        tokens.set(file.ids.iter().map(Vec::len).sum());
        drop(all_logits(assembly, &file)?);
        match labelled(s, file)? {
            Some(batch) => loss_and_gradients(assembly, &batch, s.gradients).map(drop),
            None => Ok(()),
        }
    })?;
    Ok(Bill { tokens: tokens.get(), ..bill })
}

fn read(s: &LogitsStage, plan: &Blueprint, assembly: &Assembly) -> Result<TokenFile> {
    TokenFile::read(&plan.base_dir.join(&s.input), assembly.model.facts())
}

/// Without an adapter gradients of every weight are meant.
fn with_gradients(s: &LogitsStage, plan: &Blueprint) -> Blueprint {
    Blueprint { full_training: s.gradients && plan.adapters.is_empty(), ..plan.clone() }
}

fn labelled(s: &LogitsStage, file: TokenFile) -> Result<Option<LabelledBatch>> {
    if file.labels.is_none() {
        return Ok(None);
    }
    let data = file.dataset(s.input.clone())?;
    Ok(Some(LabelledBatch::new(Batch::of_rows(&data, &data.rows))))
}

/// Runs the stage.
pub fn run(cx: &mut StageContext<'_>, s: &LogitsStage, plan: &Blueprint) -> Result<Json> {
    let assembly = with_gradients(s, plan).assemble(false)?;
    let file = read(s, plan, &assembly)?;
    let mut out: Vec<(String, Data)> = vec![("logits".to_owned(), logits(&assembly, &file)?.into())];
    let mut figures = json!({});
    if let Some(batch) = labelled(s, file)? {
        let (loss, grads) = loss_and_gradients(&assembly, &batch, s.gradients)?;
        figures["loss"] = json!(loss);
        out.push(("loss".to_owned(), Tensor::new(&[loss as f32], &Device::Cpu)?.into()));
        for (name, grad) in grads {
            out.push((format!("grad.{name}"), grad.into()));
        }
    }
    write_safetensors(cx.dir.join("logits.safetensors"), &out, &[])?;
    Ok(figures)
}

/// Logits of the tokens that count, one after the other; of an image its first token's alone.
fn all_logits(assembly: &Assembly, file: &TokenFile) -> Result<Value> {
    let batch = file.flat()?;
    let first: Vec<u32> = batch.segments.iter().map(|s| s.start as u32).collect();
    let fx = Forward::new(Tape::off(), assembly.sites.clone(), batch, Mode::inference());
    let mut h = hidden(&assembly.model, &fx, None)?;
    if file.images.is_some() {
        h = ops::select_rows(&fx.tape, &h, &Rc::new(first))?;
    }
    assembly.model.head(&fx, &h)
}

/// `[B, T, V]`, zeros where the mask is 0; `[B, V]` of images.
fn logits(assembly: &Assembly, file: &TokenFile) -> Result<Tensor> {
    let spans = file.spans()?;
    let z = all_logits(assembly, file)?;
    let v = assembly.model.facts().vocab_size;
    let numbers = z.array().view::<f32>()?;
    if file.images.is_some() {
        return Ok(Tensor::from_vec(numbers.to_vec(), (file.ids.len(), v), &Device::Cpu)?);
    }
    let (b, t) = (file.ids.len(), file.ids.first().map_or(0, Vec::len));
    let mut all = vec![0f32; b * t * v];
    let mut from = 0;
    for (row, span) in spans.iter().enumerate() {
        let at = (row * t + span.start) * v;
        let n = span.len() * v;
        all[at..at + n].copy_from_slice(&numbers[from..from + n]);
        from += n;
    }
    Ok(Tensor::from_vec(all, (b, t, v), &Device::Cpu)?)
}

fn loss_and_gradients(
    assembly: &Assembly,
    batch: &LabelledBatch,
    wanted: bool,
) -> Result<(f64, Vec<(String, Tensor)>)> {
    let objective = parts::objective(&Part::of("sft"))?;
    let tape = if wanted { Tape::new() } else { Tape::off() };
    let mode = Mode { rng: Rng::new(0), ..Mode::inference() };
    let totals = [batch.active() as f64];
    let loss = objective::loss(&*objective, assembly, None, batch, &totals, &tape, mode)?.value;
    let value = loss.array().scalar()?;
    let mut store = GradStore::new();
    if wanted {
        tape.backward_scalar(&loss, &mut store)?;
    }
    let names = assembly.adapters.iter().flat_map(|a| a.adapter.params());
    let names: Vec<_> = names.map(|(name, p)| (p.id(), name)).collect();
    let grads = store.iter().map(|(p, g)| {
        let name = names.iter().find(|(id, _)| *id == p.id()).map_or(p.name(), |(_, n)| n);
        (name.to_owned(), g.tensor().clone())
    });
    Ok((value, grads.collect()))
}
