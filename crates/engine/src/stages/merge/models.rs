//! Several models put together, tensor by tensor, written, reloaded and compared.

use anyhow::{Result, bail};
use candle_core::DType;
use ramekin_core::{Array, Category, Lease};
use ramekin_plan::Bill;
use ramekin_recipe::{Dtype, MergeInput, MergeStage, Model, Part};
use ramekin_slots::{FlatBatch, MergedTensor, Merger, Stored, TaskVectors};
use ramekin_store::delta::{Base as DeltaBase, Codec, Delta, DeltaWriter};
use ramekin_store::{AtomicDir, write_atomic};
use serde_json::{Map, Value as Json, json};

use super::super::eval::evaluate;
use super::super::{data, save};
use super::fold::{PROBE, logits, probe, tolerance, written_as};
use super::inputs::{BaseModel, Found, tensors};
use super::judge::{Bench, Rows, evaluation};
use crate::assembly::Assembly;
use crate::blueprint::{Blueprint, Loading};
use crate::reader::Reader;
use crate::run::{StageContext, plain_model};
use crate::vectors::{Base, Task, Vectors};
use crate::{bill, digest, parts};

/// The stage's bill: one model that is made of pieces while it loads, and measured; writing holds less.
pub fn bill(name: &str, s: &MergeStage, plan: &Blueprint) -> Result<Bill> {
    let merger = parts::merger(&s.method)?;
    let tasks = s.models.len();
    let model = Model { dtype: s.dtype.or(plan.model.dtype), ..plan.model.clone() };
    let whole = s.models.iter().filter(|m| may_be_adapter(m, plan)).count();
    bill::inference(name, &Blueprint { model, ..plan.clone() }, PROBE, &|assembly| {
        let _buffers = Lease::new(Category::Workspace, Vectors::buffers(tasks) + merger.table_bytes(tasks));
        let largest = tensors(assembly)?.iter().map(MergedTensor::len).max().unwrap_or(0);
        // What is made, and what each adapter makes of the tensor, f32.
        let held = Array::shape_only(&[1 + 2 * whole, largest], DType::F32, Category::Workspace)?;
        bill::forward(assembly, PROBE)?;
        for part in s.models.iter().filter_map(|m| m.data.as_ref()).chain(&s.control) {
            let settings = parts::data_settings(part)?;
            if data::is_small(&settings, &plan.base_dir) {
                let rows = data::load(assembly, part, &plan.base_dir, ramekin_data::Rows::Tokens)?;
                evaluate(assembly, &rows, &evaluation("loss")?, &*parts::objective(&Part::of("sft"))?)?;
            } else {
                bill::forward(assembly, 16 * settings.preparation().map_or(1024, |p| p.max_length))?;
            }
        }
        drop(held);
        Ok(())
    })
}

/// Whether an entry may be an adapter, whose weights come a whole tensor at a time.
fn may_be_adapter(input: &MergeInput, plan: &Blueprint) -> bool {
    let config = |source: &String| plan.base_dir.join(source).join("adapter_config.json").exists();
    input.stage.is_some() || input.source.as_ref().is_some_and(config)
}

/// Runs the stage.
pub fn run(
    cx: &mut StageContext<'_>,
    s: &MergeStage,
    plan: &Blueprint,
    mut merger: Box<dyn Merger>,
    found: Vec<Found>,
) -> Result<Json> {
    let base = BaseModel::open(plan, &s.method)?;
    let labels: Vec<Json> = found.iter().map(|f| json!({ "model": f.label, "weight": f.weight })).collect();
    let tasks = found.into_iter().map(|f| base.task(plan, f)).collect::<Result<Vec<Task>>>()?;
    let vectors = Vectors::new(base.tensors.clone(), Base::Model(Reader::open(&base.shapes.origin)?), tasks);
    let rows = Rows::load(s, plan, &base.shapes, cx.index)?;
    let build = |source: &mut dyn ramekin_slots::WeightSource| plan.load(Loading::From(source));
    let mut judge = Bench { rows: &rows, vectors: &vectors, build: &build, used: Vec::new() };
    let report = parts::placed(&s.method, merger.prepare(&vectors, &mut judge))?;
    judge.all_read()?;

    let dtype = save::dtype(written_as(s.dtype, &base.shapes));
    let folder = cx.dir.join("model");
    let candidate = |piece: &ramekin_slots::Piece<'_>, out: &mut [f64]| merger.merge(piece, out);
    let (config, specs) = save::layout(&base.shapes, dtype)?;
    let mut beside = Map::new();
    beside.insert(digest::BASES.to_owned(), lineage(&base));
    save::streamed(&base.shapes, config, &folder, s.max_shard_size.0, &specs, beside, &mut |name| {
        match vectors.position(name) {
            Some(tensor) => vectors.made(tensor, &candidate),
            None => bail!("a tensor nobody listed"),
        }
    })?;
    let stored = match merger.stored() {
        Some(stored) => Some(store(cx, &base, &vectors, stored)?),
        None => None,
    };

    let batch = probe(&base.shapes, cx.recipe.seed)?;
    let held = Model { dtype: Some(as_recipe(dtype)), ..plan.model.clone() };
    let wanted = Blueprint { model: held, ..plan.clone() };
    let (before, _) = look(&wanted.load(Loading::From(&mut vectors.candidate(&candidate)))?, &batch)?;
    let written = plain_model(&folder.canonicalize()?.display().to_string());
    let reloaded = Blueprint { attention: plan.attention.clone(), ..Blueprint::new(written) };
    let (after, loss) = look(&reloaded.assemble(false)?, &batch)?;
    let (_, base_loss) = look(&plan.assemble(false)?, &batch)?;
    let largest = before.iter().fold(0f32, |m, x| m.max(x.abs()));
    let off = before.iter().zip(&after).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
    let relative = f64::from(off) / f64::from(largest.max(f32::MIN_POSITIVE));
    let finite = after.iter().all(|x| x.is_finite());
    let certificate = json!({
        "method": s.method.kind,
        "base": base.shapes.label,
        "base_sha256": base.sha256,
        "models": labels,
        "model": folder.display().to_string(),
        "report": report,
        "stored": stored,
        "checked": "logits of the model reloaded from disk against the merge computed again in memory",
        "tokens": batch.len(),
        "largest_logit": largest,
        "largest_difference": off,
        "relative": relative,
        "tolerance": tolerance(dtype),
        "probe_loss": loss,
        "probe_loss_of_base": base_loss,
    });
    write_atomic(cx.dir.join("certificate.json"), &serde_json::to_vec_pretty(&certificate)?)?;
    if !finite || relative.is_nan() || relative > tolerance(dtype) {
        bail!(
            "the merged model answers differently from the merge: off by {relative:.1e} of the largest logit"
        );
    }
    ramekin_core::say!(
        "  merged model equals the merge within {relative:.1e} of the largest logit; \
         loss on the probe {loss:.3}, the base's {base_loss:.3}"
    );
    cx.publish(std::slice::from_ref(&folder))?;
    if stored.is_some() {
        cx.publish(&[cx.dir.join("compressed")])?;
    }
    cx.carry.leave_model(&folder.canonicalize()?);
    Ok(certificate)
}

/// The digests of a merged model's bases.
fn lineage(base: &BaseModel) -> Json {
    let mut all = vec![base.sha256.clone()];
    all.extend(digest::bases(&digest::beside(&base.shapes.origin)));
    json!(all)
}

fn as_recipe(dtype: DType) -> Dtype {
    match dtype {
        DType::BF16 => Dtype::Bf16,
        DType::F16 => Dtype::F16,
        _ => Dtype::F32,
    }
}

/// Logits of the probe, and the mean loss of its next tokens.
fn look(assembly: &Assembly, batch: &FlatBatch) -> Result<(Vec<f32>, f64)> {
    let logits = logits(assembly, batch)?;
    let width = logits.len() / batch.len().max(1);
    let mut loss = 0.0;
    for (row, next) in logits.chunks(width).zip(batch.ids.iter().skip(1)) {
        let largest = row.iter().fold(f32::NEG_INFINITY, |m, x| m.max(*x));
        let sum: f64 = row.iter().map(|x| f64::from(x - largest).exp()).sum();
        loss += f64::from(largest) + sum.ln() - f64::from(row[*next as usize]);
    }
    Ok((logits, loss / batch.len().saturating_sub(1).max(1) as f64))
}

/// As the format of files knows it.
pub fn codec(stored: &dyn Stored) -> Codec {
    match stored.codec() {
        ramekin_slots::Codec::Golomb => Codec::Golomb,
        ramekin_slots::Codec::Bitmask => Codec::Bitmask,
        ramekin_slots::Codec::Raw => Codec::Raw,
    }
}

/// Writes one task's vector to a file.
pub fn write_delta(
    vectors: &dyn TaskVectors,
    stored: &dyn Stored,
    task: usize,
    base: DeltaBase,
    extra: Json,
    file: &std::path::Path,
) -> Result<u64> {
    let mut writer = DeltaWriter::new(codec(stored), stored.density(task), base, extra);
    for (t, tensor) in vectors.tensors().iter().enumerate() {
        writer.begin(&tensor.name, &tensor.dims, stored.scale(task, t))?;
        vectors.pieces_of(t, &mut |piece| {
            let mut out = vec![0.0; piece.base.len()];
            stored.values(task, piece, &mut out)?;
            writer.push(&out)
        })?;
    }
    writer.finish(file)
}

/// Every task's vector in a file of its own under `compressed/`, and how much they have in common.
fn store(cx: &StageContext<'_>, base: &BaseModel, vectors: &Vectors, stored: &dyn Stored) -> Result<Json> {
    let mut dir = AtomicDir::begin(cx.dir.join("compressed"))?;
    let mut files = Vec::new();
    let dense: u64 = 4 * vectors.numbers();
    for task in 0..vectors.count() {
        let name = format!("task-{task}.safetensors");
        let of = DeltaBase { label: base.shapes.label.clone(), sha256: base.sha256.clone() };
        let extra = json!({ "model": vectors.label(task) });
        let bytes = write_delta(vectors, stored, task, of, extra, &dir.path().join(&name))?;
        ramekin_core::say!(
            "  `{}` in {name}: {bytes} bytes, {:.1} times fewer than in f32",
            vectors.label(task),
            dense as f64 / bytes as f64
        );
        files.push(
            json!({ "file": name, "model": vectors.label(task), "bytes": bytes, "dense_bytes": dense }),
        );
    }
    let products = inner_products(dir.path(), vectors)?;
    dir.write("README.md", README.as_bytes())?;
    dir.commit()?;
    Ok(json!({ "files": files, "inner_products": products }))
}

const README: &str = "Differences from a base in few bits, one file a model. Name a file as a `source` in \
    `models` of a `merge` stage, with the same `base`.\n";

/// ⟨τ̃_s, τ̃_t⟩ of all pairs, from the files' masks; nothing where entries have values of their own.
fn inner_products(folder: &std::path::Path, vectors: &Vectors) -> Result<Json> {
    let files: Vec<Delta> = (0..vectors.count())
        .map(|t| Delta::open(folder.join(format!("task-{t}.safetensors"))))
        .collect::<Result<_>>()?;
    let mut products = vec![vec![0.0; files.len()]; files.len()];
    for tensor in vectors.tensors() {
        let mut masks = Vec::new();
        for file in &files {
            let Some(mask) = file.ternary(&tensor.name)? else { return Ok(Json::Null) };
            masks.push(mask);
        }
        for (row, a) in products.iter_mut().zip(&masks) {
            for (sum, b) in row.iter_mut().zip(&masks) {
                *sum += a.dot(b);
            }
        }
    }
    Ok(json!(products))
}
