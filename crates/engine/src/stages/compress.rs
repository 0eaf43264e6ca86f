//! `kind = "compress"`: a calibration pass, channels that go, a storage for what stays, and a certificate of
//! what that costs.

use anyhow::{Context, Result};
use ramekin_calibrate::{Sample, batches, samples};
use ramekin_core::{Array, BadRecipe, Rng, UserError, units};
use ramekin_data::{Batch, Dataset, Row};
use ramekin_plan::Bill;
use ramekin_recipe::{CompressStage, Part};
use ramekin_slots::{LinearBase, MlpSite, MlpWeights, Pruner};
use ramekin_store::write_atomic;
use serde_json::{Map, Value as Json, json};

use super::eval::{Evaluation, evaluate};
use super::merge::fold::written_as;
use super::{data, save};
use crate::assembly::Assembly;
use crate::blueprint::Blueprint;
use crate::calibration::statistics;
use crate::run::{StageContext, plain_model};
use crate::surgery::{Kept, Surgery, highest, mlps};
use crate::{bill, digest, parts};

/// Tokens that run through a block at once.
const TOKENS: usize = 2048;

/// The stage's bill: the pass and both measurements, on the model as it is loaded.
pub fn bill(name: &str, s: &CompressStage, plan: &Blueprint) -> Result<Bill> {
    let (count, length) = (s.nsamples as usize, s.seqlen as usize);
    let dense = Blueprint { quantizer: None, ..plan.clone() };
    bill::inference(name, &dense, count * length, &|assembly| {
        refuse_images(s, assembly)?;
        let ids = vec![vec![vec![0u32; length]]; count];
        if let Some(part) = &s.prune {
            parts::placed(part, statistics(assembly, &batches(&ids, TOKENS), count))?;
        }
        loss(assembly, &ids).map(drop)
    })
}

/// Runs the stage.
pub fn run(cx: &mut StageContext<'_>, s: &CompressStage, plan: &Blueprint) -> Result<Json> {
    refuse_adapters(cx, s, plan)?;
    let assembly = Blueprint { quantizer: None, ..plan.clone() }.assemble(false)?;
    refuse_images(s, &assembly)?;
    let ids = calibration_rows(cx, s, plan, &assembly)?;
    let before = Sizes::of(&assembly, loss(&assembly, &ids)?);
    let mut stages = vec![("as it was", before)];
    let mut report = Json::Null;
    let mut folder = None;
    if let Some(part) = &s.prune {
        let mut pruner = parts::pruner(part)?;
        let (surgery, found) = prune(&assembly, part, &mut *pruner, &ids, s.pad)?;
        report = found;
        let target = cx.dir.join("model");
        write(&assembly, s, plan, &surgery, &report, &target)?;
        if surgery.is_uneven() {
            ramekin_core::say!(
                "  blocks have different widths: public loaders cannot read this model; `pad = true` writes one they can"
            );
        }
        folder = Some(target.canonicalize()?);
    }
    let label = assembly.label.clone();
    drop(assembly);
    let left = match &folder {
        Some(folder) => Blueprint::new(plain_model(&folder.display().to_string())),
        None => Blueprint { quantizer: None, ..plan.clone() },
    };
    if s.prune.is_some() {
        let pruned = left.assemble(false)?;
        stages.push(("pruned, reloaded from disk", Sizes::of(&pruned, loss(&pruned, &ids)?)));
    }
    if let Some(quantizer) = &s.quantizer {
        let packed = Blueprint { quantizer: Some(quantizer.clone()), ..left.clone() }.assemble(false)?;
        stages.push(("packed", Sizes::of(&packed, loss(&packed, &ids)?)));
    }
    for (what, sizes) in &stages {
        ramekin_core::say!("  {what}: {}", sizes.words());
    }
    let (_, after) = stages.last().context("what was measured")?;
    let certificate = json!({
        "base": label,
        "model": folder.as_ref().map(|f| f.display().to_string()),
        "prune": s.prune.as_ref().map(|p| &p.kind),
        "quantizer": s.quantizer.as_ref().map(|p| &p.kind),
        "checked": "loss on the calibration samples, after a reload from disk",
        "samples": ids.len(),
        "tokens": ids.iter().flatten().map(Vec::len).sum::<usize>(),
        "loss_before": before.loss,
        "loss_after": after.loss,
        "parameters_before": before.parameters,
        "parameters_after": after.parameters,
        "bytes_before": before.bytes,
        "bytes_after": after.bytes,
        "steps": stages.iter().map(|(what, s)| json!({ "what": what, "loss": s.loss, "parameters": s.parameters,
            "bytes": s.bytes })).collect::<Vec<_>>(),
        "report": report,
    });
    write_atomic(cx.dir.join("certificate.json"), &serde_json::to_vec_pretty(&certificate)?)?;
    anyhow::ensure!(after.loss.is_finite(), "the compressed model's loss is {}", after.loss);
    match &folder {
        Some(folder) => {
            cx.publish(&[cx.dir.join("model")])?;
            cx.carry.leave_quantized(folder, s.quantizer.as_ref());
        }
        None => cx.carry.leave_base(&left, s.quantizer.as_ref()),
    }
    Ok(certificate)
}

/// What a model costs and what it is worth.
#[derive(Clone, Copy)]
struct Sizes {
    loss: f64,
    parameters: u64,
    bytes: u64,
}

impl Sizes {
    fn of(assembly: &Assembly, loss: f64) -> Self {
        let ledger = assembly.ledger.borrow();
        let bytes = ledger.entries().iter().map(ramekin_core::Entry::bytes).sum();
        Sizes { loss, parameters: ledger.counts().0, bytes }
    }

    fn words(&self) -> String {
        let (parameters, bytes) = (units::count(self.parameters), units::bytes(self.bytes));
        format!("loss {:.4}, {parameters} parameters, {bytes} of weights", self.loss)
    }
}

fn refuse_adapters(cx: &StageContext<'_>, s: &CompressStage, plan: &Blueprint) -> Result<()> {
    if plan.adapters.is_empty() {
        return Ok(());
    }
    let key = if s.prune.is_some() { "prune" } else { "quantizer" };
    let message = "a `compress` stage cannot begin with an adapter";
    Err(BadRecipe::new(message)
        .at(format!("stage.{}.{key}", cx.index), "changes the weights that the adapter stands on")
        .help("fold it in with a `merge` stage between")
        .into())
}

/// The calibration pass reads text.
fn refuse_images(s: &CompressStage, assembly: &Assembly) -> Result<()> {
    let facts = assembly.model.facts();
    let part = s.prune.as_ref().map(|p| ("prune", p)).or(s.quantizer.as_ref().map(|p| ("quantizer", p)));
    let (Some((slot, part)), Some(_)) = (part, facts.images) else { return Ok(()) };
    let message = format!("`{slot}/{}` cannot go with `{}`, a model of images", part.kind, facts.model_type);
    Err(BadRecipe::new(message)
        .at(&part.path, "a `compress` stage looks at the model on text")
        .help("set `quantizer` in the stage that uses the model instead")
        .into())
}

/// The samples of the calibration pass.
fn calibration_rows(
    cx: &StageContext<'_>,
    s: &CompressStage,
    plan: &Blueprint,
    assembly: &Assembly,
) -> Result<Vec<Sample>> {
    let data = data::load(assembly, &s.data, &plan.base_dir, ramekin_data::Rows::Tokens)?;
    let ids = |row: &Row| Batch::of_rows(&data, std::slice::from_ref(row)).ids;
    let rows: Vec<Vec<u32>> = data.rows.iter().map(ids).collect();
    let (count, length) = (s.nsamples as usize, s.seqlen as usize);
    samples(&rows, count, length, Rng::new(cx.recipe.seed)).map_err(|e| {
        BadRecipe::new(format!("`{}` is too short for the calibration", data.name))
            .at(s.data.path.clone(), e.to_string())
            .help("lower `nsamples` or `seqlen`, or give more rows")
            .into()
    })
}

/// Mean loss of every next token.
fn loss(assembly: &Assembly, ids: &[Sample]) -> Result<f64> {
    let rows = ids.concat();
    let length = rows.iter().map(Vec::len).max().unwrap_or(1);
    let data = Dataset::from_token_rows("the calibration rows", rows, None, None)?;
    let e = Evaluation {
        metrics: vec!["loss"],
        decoder: parts::decoder(&Part::of("greedy"))?,
        kv: parts::kv(&Part::of("full"))?,
        max_rows: None,
        max_new_tokens: 1,
        rows: (TOKENS / length).max(1),
    };
    let (found, _) = evaluate(assembly, &data, &e, &*parts::objective(&Part::of("sft"))?)?;
    found.get("loss").and_then(Json::as_f64).context("no loss")
}

/// Chooses the channels that stay.
fn prune(
    assembly: &Assembly,
    part: &Part,
    pruner: &mut dyn Pruner,
    ids: &[Sample],
    pad: bool,
) -> Result<(Surgery, Json)> {
    let mlps = parts::placed(part, mlps(&*assembly.model))?;
    let blocks = statistics(assembly, &batches(ids, TOKENS), ids.len())?;
    let widths =
        mlps.iter().map(|m| Ok(assembly.sites.linear(&m.up)?.shape.0)).collect::<Result<Vec<_>>>()?;
    let left = parts::placed(part, pruner.widths(&blocks, &widths))?;
    let mut kept: Vec<Kept> = Vec::new();
    for ((mlp, block), count) in mlps.iter().zip(&blocks).zip(&left) {
        kept.push(highest(&pruner.scores(block, &weights(assembly, mlp)?)?, *count));
    }
    Ok((Surgery::new(&mlps, kept, pad)?, pruner.report()))
}

fn weights(assembly: &Assembly, mlp: &MlpSite) -> Result<MlpWeights> {
    let dense = |path: &String| -> Result<Array> {
        let site = assembly.sites.linear(path)?;
        if let LinearBase::Packed(_) = site.base() {
            return Err(UserError::new(format!("`{path}` is held packed: prune first, then quantise")).into());
        }
        site.dense(&assembly.sites, true)
    };
    Ok(MlpWeights {
        up: dense(&mlp.up)?,
        gate: mlp.gate.as_ref().map(dense).transpose()?,
        down: dense(&mlp.down)?,
    })
}

/// Writes the model after the cut.
fn write(
    assembly: &Assembly,
    s: &CompressStage,
    plan: &Blueprint,
    surgery: &Surgery,
    report: &Json,
    target: &std::path::Path,
) -> Result<()> {
    let dtype = save::dtype(written_as(s.dtype, assembly));
    let (config, mut specs) = save::layout(assembly, dtype)?;
    for spec in &mut specs {
        spec.shape = surgery.dims(&spec.name, &spec.shape);
    }
    let mut beside = Map::new();
    beside.insert(digest::BASES.to_owned(), digest::lineage(plan)?);
    beside.insert("prune".to_owned(), report.clone());
    let config = surgery.config(&config);
    save::streamed(assembly, config, target, s.max_shard_size.0, &specs, beside, &mut |name| {
        surgery.cut(name, save::tensor(assembly, name)?)
    })
}
