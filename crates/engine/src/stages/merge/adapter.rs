//! One adapter compressed as it is: its own tensors, counted from zeros, ones or its start.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use ramekin_core::{Array, Category, UserError};
use ramekin_recipe::{Adapter, MergeStage};
use ramekin_slots::{MergedTensor, Merger, Origin, TaskVectors, WeightSource};
use ramekin_store::delta::Base as DeltaBase;
use ramekin_store::{AtomicDir, Index, write_atomic, write_safetensors};
use serde_json::{Value as Json, json};

use super::super::save::{card, pretty};
use super::fold::{logits, probe};
use super::inputs::{BaseModel, Found};
use super::judge::{Bench, Rows};
use super::models::write_delta;
use crate::assembly::Assembly;
use crate::blueprint::{Blueprint, Loading};
use crate::run::StageContext;
use crate::saved::saved_kind;
use crate::vectors::{Base, Task, TaskSource, Vectors};
use crate::{digest, parts, sparse};

/// From where an adapter's numbers are counted, and its tensors there.
struct Start {
    name: &'static str,
    tensors: Vec<(String, Array)>,
}

/// Runs the stage.
pub fn run(
    cx: &mut StageContext<'_>,
    s: &MergeStage,
    plan: &Blueprint,
    mut merger: Box<dyn Merger>,
    origin: Origin,
    found: &Found,
    folders: &[PathBuf],
) -> Result<Json> {
    let [folder] = folders else {
        let kinds =
            folders.iter().map(|f| saved_kind(f).map(|k| format!("`{k}`"))).collect::<Result<Vec<_>>>()?;
        let message = format!(
            "`merge/{}` cannot take `{}`, which is {} together, as one adapter",
            s.method.kind,
            found.label,
            kinds.join(" and ")
        );
        return Err(UserError::new(message)
            .help("name one adapter's folder, or set `reference = \"base\"`")
            .into());
    };
    if s.dtype.is_some() {
        return Err(UserError::new(
            "`dtype` is the type of a merged model; this stage compresses an adapter",
        )
        .into());
    }
    let folder = folder.canonicalize()?;
    let base = BaseModel::open(plan, &s.method)?;
    let noted = digest::beside_in(&folder);
    let saved = Adapter::Saved { folder: folder.display().to_string(), path: String::new() };
    let attached = Blueprint { adapters: vec![saved], ..plan.clone() };
    let own = saved_tensors(&attached)?;
    let start = start(s, plan, &folder, &noted, origin, &own)?;
    let config: Json = serde_json::from_slice(&std::fs::read(folder.join("adapter_config.json"))?)?;
    let tensors = own
        .iter()
        .map(|(name, a)| MergedTensor { name: name.clone(), dims: a.dims().to_vec(), early: false })
        .collect();
    let task = Task { label: found.label.clone(), weight: found.weight, source: TaskSource::Own(own) };
    let vectors = Vectors::new(tensors, Base::Own(start.tensors), vec![task]);
    if found.weight != 1.0 {
        let why = "weights models that are put together; an adapter that is compressed alone has none";
        return Err(ramekin_core::BadRecipe::new(format!("`weight` {why}"))
            .at(format!("{}.weight", found.path), "leave it out")
            .into());
    }
    let rows = Rows::load(s, plan, &base.shapes, cx.index)?;
    let build = |source: &mut dyn WeightSource| -> Result<Assembly> {
        let mut assembly = attached.load(Loading::Whole)?;
        let adapter = assembly.adapters.first_mut().context("an adapter that was attached")?;
        adapter.adapter.load(source)?;
        Ok(assembly)
    };
    let mut judge = Bench { rows: &rows, vectors: &vectors, build: &build, used: Vec::new() };
    let report = parts::placed(&s.method, merger.prepare(&vectors, &mut judge))?;
    judge.all_read()?;
    let stored = merger.stored().context("a method that compresses adapters stores them")?;
    let candidate = |piece: &ramekin_slots::Piece<'_>, out: &mut [f64]| merger.merge(piece, out);

    let extra = json!({ "reference": start.name, "seed": noted["seed"], "owner": noted["owner"] });
    let of = DeltaBase { label: base.shapes.label.clone(), sha256: base.sha256.clone() };
    let mut note = noted.clone();
    if !note.is_object() {
        note = json!({});
    }
    let mut bases = digest::bases(&noted);
    if !bases.contains(&base.sha256) {
        bases.insert(0, base.sha256.clone());
    }
    note[digest::BASES] = json!(bases);
    let compressed = cx.dir.join("compressed");
    let mut dir = AtomicDir::begin(&compressed)?;
    let bytes = write_delta(&vectors, stored, 0, of, extra, &dir.path().join(sparse::FILE))?;
    dir.write("adapter_config.json", &pretty(&config)?)?;
    dir.write(digest::BESIDE, &pretty(&note)?)?;
    dir.commit()?;
    let expanded = cx.dir.join("adapter");
    let mut dir = AtomicDir::begin(&expanded)?;
    let mut dense = Vec::new();
    for (t, tensor) in vectors.tensors().iter().enumerate() {
        dense.push((tensor.name.clone(), ramekin_store::Data::from(&vectors.made(t, &candidate)?)));
    }
    write_safetensors(dir.path().join("adapter_model.safetensors"), &dense, &[("format", "pt")])?;
    dir.write("adapter_config.json", &pretty(&config)?)?;
    dir.write(digest::BESIDE, &pretty(&note)?)?;
    dir.write("README.md", card(&base.shapes.label, &config).as_bytes())?;
    dir.commit()?;

    let batch = probe(&base.shapes, cx.recipe.seed)?;
    let original = logits(&attached.assemble(false)?, &batch)?;
    let wanted = logits(&build(&mut vectors.candidate(&candidate))?, &batch)?;
    let compressed = compressed.canonicalize()?;
    let again = Adapter::Saved { folder: compressed.display().to_string(), path: String::new() };
    let again = Blueprint { adapters: vec![again], ..plan.clone() };
    let reloaded = logits(&again.assemble(false)?, &batch)?;
    let same = wanted.iter().zip(&reloaded).all(|(a, b)| a.to_bits() == b.to_bits());
    let largest = original.iter().fold(0f32, |m, x| m.max(x.abs()));
    let moved = original.iter().zip(&reloaded).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
    let dense_bytes = Index::open(expanded.join("adapter_model.safetensors"))?.total_bytes();
    let certificate = json!({
        "method": s.method.kind,
        "base": base.shapes.label,
        "base_sha256": base.sha256,
        "adapter": found.label,
        "reference": start.name,
        "report": report,
        "bytes": bytes,
        "dense_bytes": dense_bytes,
        "checked": "logits of the compressed adapter reloaded from disk against the one in memory, bit for bit",
        "tokens": batch.len(),
        "largest_logit": largest,
        "moved_from_original": moved,
    });
    write_atomic(cx.dir.join("certificate.json"), &serde_json::to_vec_pretty(&certificate)?)?;
    if !same {
        bail!("the compressed adapter, reloaded, answers differently from the one in memory");
    }
    ramekin_core::say!(
        "  compressed from {dense_bytes} to {bytes} bytes, {:.1} times fewer, counted from `{}`",
        dense_bytes as f64 / bytes as f64,
        start.name
    );
    cx.publish(&[expanded.clone(), compressed.clone()])?;
    cx.carry.leave_adapters(plan, vec![compressed.display().to_string()]);
    Ok(certificate)
}

/// The saved adapter's tensors, f32.
fn saved_tensors(attached: &Blueprint) -> Result<Vec<(String, Array)>> {
    let assembly = attached.load(Loading::AdaptersAlone)?;
    let adapter = assembly.adapters.first().context("an adapter that was attached")?;
    let tensors = adapter.adapter.file(&assembly.label)?.tensors;
    let as_f32 =
        |(name, a): (String, Array)| Ok((name, Array::from_vec(a.to_f32()?, a.dims(), Category::Workspace)?));
    tensors.into_iter().map(as_f32).collect()
}

/// The tensors that the adapter's numbers are counted from.
fn start(
    s: &MergeStage,
    plan: &Blueprint,
    folder: &Path,
    noted: &Json,
    origin: Origin,
    own: &[(String, Array)],
) -> Result<Start> {
    let known = noted["seed"].is_u64() && noted["owner"].is_string();
    let kind = peft_type(folder)?;
    let origin = match origin {
        Origin::Known if known && kind != "IA3" => Origin::Start,
        Origin::Known if kind == "IA3" => Origin::One,
        Origin::Known => Origin::Zero,
        Origin::Start if !known => {
            let why =
                "is `lora_start`, and the adapter's folder has no `ramekin.json` with its seed; use `zero`";
            return Err(ramekin_core::BadSetting::new("reference", why).of(s.method.path.clone()).into());
        }
        other => other,
    };
    let constant = |x: f32| {
        own.iter()
            .map(|(n, a)| Ok((n.clone(), Array::from_vec(vec![x; a.len()], a.dims(), Category::Workspace)?)))
            .collect::<Result<Vec<_>>>()
    };
    Ok(match origin {
        Origin::Zero | Origin::Known => Start { name: "zero", tensors: constant(0.0)? },
        Origin::One => Start { name: "one", tensors: constant(1.0)? },
        Origin::Start => Start { name: "start", tensors: drawn(plan, folder, noted)? },
    })
}

/// The adapter's initial values.
fn drawn(plan: &Blueprint, folder: &Path, noted: &Json) -> Result<Vec<(String, Array)>> {
    let (seed, owner) = (noted["seed"].as_u64().unwrap_or(0), noted["owner"].as_str().unwrap_or_default());
    let assembly = plan.load(Loading::Whole)?; // some adapters begin with what the base is
    let adapter = assembly.draw(folder, seed, owner)?;
    let tensors = adapter.file(&assembly.label)?.tensors;
    tensors
        .into_iter()
        .map(|(name, a)| Ok((name, Array::from_vec(a.to_f32()?, a.dims(), Category::Workspace)?)))
        .collect()
}

fn peft_type(folder: &Path) -> Result<String> {
    let config: Json = serde_json::from_slice(&std::fs::read(folder.join("adapter_config.json"))?)?;
    Ok(config["peft_type"].as_str().unwrap_or_default().to_owned())
}
