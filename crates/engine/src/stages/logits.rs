//! `kind = "logits"`: a file's batch to logits, loss and gradients.

use anyhow::Result;
use candle_core::{Device, Tensor};
use ramekin_core::Rng;
use ramekin_data::{Batch, Dataset};
use ramekin_recipe::{LogitsStage, Part};
use ramekin_slots::{FlatBatch, Forward, Mode};
use ramekin_store::{Data, write_safetensors};
use ramekin_tape::{GradStore, Tape};
use serde_json::{Value as Json, json};

use super::tokens::TokenFile;
use crate::assembly::{Assembly, Blueprint};
use crate::parts;
use crate::run::StageContext;
use crate::step::{LabelledBatch, hidden};

/// Runs the stage.
pub fn run(cx: &mut StageContext<'_>, s: &LogitsStage, plan: &Blueprint) -> Result<Json> {
    let path = plan.base_dir.join(&s.input);
    let file = TokenFile::read(&path)?;
    let plan = Blueprint { full_training: s.gradients && plan.adapters.is_empty(), ..plan.clone() };
    let assembly = plan.assemble(false)?;
    let mut out: Vec<(String, Data)> = vec![("logits".to_owned(), logits(&assembly, &file)?.into())];
    let mut figures = json!({});
    if let Some(labels) = &file.labels {
        let name = path.display().to_string();
        let data = Dataset::from_token_rows(name, file.ids.clone(), file.mask.clone(), Some(labels.clone()))?;
        let batch = LabelledBatch::new(Batch::of_rows(&data, &data.rows));
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

/// `[B, T, V]`, zeros where the mask is 0.
fn logits(assembly: &Assembly, file: &TokenFile) -> Result<Tensor> {
    let spans = file.spans()?;
    let sequences: Vec<Vec<u32>> =
        file.ids.iter().zip(&spans).map(|(row, span)| row[span.clone()].to_vec()).collect();
    let fx = Forward::new(Tape::off(), assembly.sites.clone(), FlatBatch::new(&sequences), Mode::inference());
    let h = hidden(&assembly.model, &fx, None)?;
    let z = assembly.model.head(&fx, &h)?;
    let v = assembly.model.facts().vocab_size;
    let (b, t) = (file.ids.len(), file.ids.first().map_or(0, Vec::len));
    let mut all = vec![0f32; b * t * v];
    let numbers = z.array().view::<f32>()?;
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
    let fx = Forward::new(
        tape.clone(),
        assembly.sites.clone(),
        batch.flat.clone(),
        Mode { rng: Rng::new(0), ..Mode::inference() },
    );
    let h = hidden(&assembly.model, &fx, None)?;
    let scale = 1.0 / batch.active().max(1) as f64;
    let loss = objective.loss(&fx, &assembly.model, &h, &batch.labels, scale)?;
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
