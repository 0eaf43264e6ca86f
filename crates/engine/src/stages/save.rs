//! What a stage leaves on disk: adapters in PEFT layout, models in Hugging Face layout.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use candle_core::DType;
use ramekin_core::{Array, Category};
use ramekin_slots::{Differences, LinearBase, LinearSite, ObjectiveFile, SelectionFile};
use ramekin_store::{AtomicDir, Data, Spec, write_safetensors, write_sharded};
use serde_json::{Map, Value as Json, json};

use crate::assembly::{Assembly, Attached};
use crate::blueprint::Blueprint;
use crate::digest::{ATTENTION, BASES, BESIDE};
use crate::inputs::OWN_FIELDS;

/// Files that travel with every copy of a model.
const COMPANIONS: [&str; 9] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "added_tokens.json",
];

/// Writes one adapter: `adapter_config.json`, `adapter_model.safetensors`,
/// `README.md`, and `ramekin.json` for what PEFT has no place for; `bases` are the digests of what it was
/// tuned from.
///
/// What an objective leaves lies with the adapter, as PEFT's `modules_to_save` do.
pub fn adapter(
    assembly: &Assembly,
    attached: &Attached,
    beside: &ObjectiveFile,
    target: &Path,
    seed: u64,
    bases: &Json,
) -> Result<()> {
    let mut file = attached.adapter.file(&assembly.label)?;
    let mut tensors: Vec<(String, Data)> =
        file.tensors.iter().map(|(n, a)| (n.clone(), Data::from(a))).collect();
    for (name, param) in &beside.params {
        tensors.push((format!("base_model.model.{name}"), Data::from(&param.value())));
    }
    for (key, value) in &beside.adapter_config {
        let own = file.config[key].as_array().cloned().unwrap_or_default();
        file.config[key] = match value {
            Json::Array(more) => own.into_iter().chain(more.iter().cloned()).collect(),
            other => other.clone(),
        };
    }
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    let mut dir = AtomicDir::begin(target)?;
    write_safetensors(dir.path().join("adapter_model.safetensors"), &tensors, &[("format", "pt")])?;
    dir.write("adapter_config.json", &pretty(&file.config)?)?;
    let mut extra = json!({ "seed": seed, "owner": attached.owner, "sites": attached.sites, "extra": file.extra,
        BASES: bases });
    if let Some(part) = &assembly.attention {
        extra[ATTENTION] = serde_json::to_value(part)?;
    }
    dir.write(BESIDE, &pretty(&extra)?)?;
    dir.write("README.md", card(&assembly.label, &file.config).as_bytes())?;
    dir.commit()?;
    Ok(())
}

/// Writes what a selection leaves besides the model: `selection.json` and, where there is any,
/// `delta.safetensors`: slices, or places and values of sparse differences with `whole.safetensors` beside.
pub fn selection(plan: &Blueprint, file: &SelectionFile, target: &Path) -> Result<()> {
    let mut dir = AtomicDir::begin(target)?;
    let mut config = file.config.clone();
    config["base"] = plan.model.source.clone().into();
    dir.write("selection.json", &pretty(&config)?)?;
    let write = |name: &str, tensors: &[(String, Array)]| -> Result<()> {
        if tensors.is_empty() {
            return Ok(());
        }
        let tensors: Vec<(String, Data)> = tensors.iter().map(|(n, a)| (n.clone(), Data::from(a))).collect();
        write_safetensors(dir.path().join(name), &tensors, &[("format", "pt")])
    };
    if file.differences.is_empty() {
        write("delta.safetensors", &file.tensors)?;
    } else {
        write("delta.safetensors", &sparse(&file.differences)?)?;
        write("whole.safetensors", &file.tensors)?;
    }
    dir.commit()?;
    Ok(())
}

/// Two tensors of each: `NAME.indices`, places in the flattened tensor, and `NAME.values`, what is added there.
fn sparse(differences: &[Differences]) -> Result<Vec<(String, Array)>> {
    let mut all = Vec::new();
    for d in differences {
        let (places, values): (Vec<u32>, Vec<f32>) = d.entries.iter().copied().unzip();
        let count = places.len();
        let places = Array::from_vec(places, &[count], Category::Workspace)?;
        all.push((format!("{}.indices", d.name), places));
        let values = Array::from_vec(values, &[count], Category::Workspace)?;
        all.push((format!("{}.values", d.name), values));
    }
    Ok(all)
}

/// All adapters of an assembly; the first in `dir` itself, further ones in folders of their number.
///
/// What an objective leaves goes with the first.
pub fn adapters(
    assembly: &Assembly,
    beside: &ObjectiveFile,
    dir: &Path,
    seed: u64,
    bases: &Json,
) -> Result<Vec<PathBuf>> {
    let nothing = ObjectiveFile::default();
    let mut made = Vec::new();
    for (i, attached) in assembly.adapters.iter().enumerate() {
        let target = if i == 0 { dir.to_owned() } else { dir.with_file_name(format!("adapter-{i}")) };
        adapter(assembly, attached, if i == 0 { beside } else { &nothing }, &target, seed, bases)?;
        made.push(target);
    }
    Ok(made)
}

/// The README of an adapter's folder.
pub fn card(base: &str, config: &Json) -> String {
    let kind = config["peft_type"].as_str().unwrap_or("adapter");
    format!(
        "---\nbase_model: {base}\nlibrary_name: peft\n---\n\nA {kind} adapter for `{base}`, made with Ramekin. \
         Load it with `PeftModel.from_pretrained`, or with `adapter = [{{ load = \"FOLDER\" }}]` in a recipe.\n"
    )
}

/// JSON for people too.
pub fn pretty(json: &Json) -> Result<Vec<u8>> {
    let mut text = serde_json::to_vec_pretty(json)?;
    text.push(b'\n');
    Ok(text)
}

/// One tensor of the model's files and where its numbers come from.
enum From<'a> {
    Linear(&'a LinearSite),
    Bias(&'a LinearSite),
    Param(String),
    Head(Array),
}

/// Writes the model with every adapter folded in: `config.json`, (sharded)
/// safetensors of this type, the files that came with it, and `notes` as `ramekin.json`.
///
/// An objective's own parameters and what adapters brought along of the kind are written too.
pub fn model(
    assembly: &Assembly,
    beside: &ObjectiveFile,
    target: &Path,
    dtype: DType,
    max_shard: u64,
    notes: Map<String, Json>,
) -> Result<()> {
    let mut settings = config(assembly, beside, dtype);
    let tensors = tensors(assembly, beside, &mut settings)?;
    let specs = listed(&tensors, dtype)?;
    streamed(assembly, settings, target, max_shard, &specs, notes, &mut |name| {
        let (_, _, from) = tensors.iter().find(|(n, _, _)| n == name).context("a tensor nobody listed")?;
        produce(assembly, from)
    })
}

fn produce(assembly: &Assembly, from: &From<'_>) -> Result<Array> {
    let sites = &assembly.sites;
    match from {
        From::Linear(site) => match site.base() {
            // As it lies: a copy of a head can be a good part of a small model.
            LinearBase::Dense(name) if site.adapter_count() == 0 => {
                assembly.read_param(&sites.param(&name)?.active(true))
            }
            _ => site.merged(sites),
        },
        From::Bias(site) => match sites.while_held(&site.path, || sites.folded_bias(site))? {
            Some(bias) => Ok(bias),
            None => Array::zeros(&[site.shape.0], DType::F32, Category::Workspace),
        },
        From::Param(name) => match sites.while_held(name, || sites.folded_norm(name))? {
            Some(folded) => Ok(folded),
            None => assembly.read_param(&sites.param(name)?.active(true)),
        },
        From::Head(array) => Ok(array.clone()),
    }
}

fn listed(tensors: &[(String, Vec<usize>, From<'_>)], dtype: DType) -> Result<Vec<Spec>> {
    let dtype = ramekin_store::write::to_stored(dtype).context("no such type in files")?;
    let all = tensors.iter();
    Ok(all.map(|(name, shape, _)| Spec { name: name.clone(), dtype, shape: shape.clone() }).collect())
}

/// A model's config and the names and shapes of its tensors, sorted, as its files have them.
pub fn layout(assembly: &Assembly, dtype: DType) -> Result<(Json, Vec<Spec>)> {
    let nothing = ObjectiveFile::default();
    let mut settings = config(assembly, &nothing, dtype);
    let specs = listed(&tensors(assembly, &nothing, &mut settings)?, dtype)?;
    Ok((settings, specs))
}

/// One tensor of the model with every adapter folded in.
///
/// # Errors
/// If there is none of this name, or an adapter cannot be folded in.
pub fn tensor(assembly: &Assembly, name: &str) -> Result<Array> {
    let nothing = ObjectiveFile::default();
    let all = tensors(assembly, &nothing, &mut config(assembly, &nothing, assembly.dtype))?;
    let (_, _, from) = all.iter().find(|(n, _, _)| n == name).context("a tensor nobody listed")?;
    produce(assembly, from)
}

/// As [`model`], with config and tensors from elsewhere: `produce` is asked for one after the other.
pub fn streamed(
    assembly: &Assembly,
    config: Json,
    target: &Path,
    max_shard: u64,
    specs: &[Spec],
    mut notes: Map<String, Json>,
    produce: &mut dyn FnMut(&str) -> Result<Array>,
) -> Result<()> {
    let mut dir = AtomicDir::begin(target)?;
    if let Some(part) = &assembly.attention {
        notes.insert(ATTENTION.to_owned(), serde_json::to_value(part)?);
    }
    write_sharded(dir.path(), specs, max_shard, &[("format", "pt")], |name| {
        let spec = specs.iter().find(|s| s.name == name).context("a tensor nobody listed")?;
        let dtype = DType::try_from(spec.dtype)?;
        Ok(Data::Tensor(produce(name)?.tensor().to_dtype(dtype)?))
    })?;
    let mut config = config;
    for key in OWN_FIELDS {
        if let Some(value) = config.as_object_mut().and_then(|c| c.shift_remove(key)) {
            notes.insert(key.to_owned(), value);
        }
    }
    dir.write("config.json", &pretty(&config)?)?;
    if !notes.is_empty() {
        dir.write(BESIDE, &pretty(&Json::Object(notes))?)?;
    }
    for name in COMPANIONS {
        if let Some(bytes) = assembly.origin.file(name) {
            dir.write(name, &bytes)?;
        }
    }
    if assembly.origin.file("tokenizer.json").is_none()
        && let Some(tokenizer) = &assembly.tokenizer
    {
        for (name, bytes) in tokenizer.to_files()? {
            dir.write(name, &bytes)?;
        }
    }
    dir.commit()?;
    Ok(())
}

fn config(assembly: &Assembly, beside: &ObjectiveFile, dtype: DType) -> Json {
    let mut config = assembly.config.as_object().cloned().unwrap_or_else(Map::new);
    let name = match dtype {
        DType::BF16 => "bfloat16",
        DType::F16 => "float16",
        _ => "float32",
    };
    let key = if config.contains_key("torch_dtype") { "torch_dtype" } else { "dtype" };
    config.insert(key.to_owned(), name.into());
    config.extend(beside.model_config.clone());
    let mut class = beside.class;
    if let Some(score) = assembly.heads.get(SCORE).filter(|_| beside.params.is_empty()) {
        config.extend(labels(score.dims()[0]));
        class = Some(CLASSIFIER);
    }
    if let Some(class) = class
        && let Some(names) = config.get_mut("architectures").and_then(Json::as_array_mut)
    {
        for name in names {
            *name = name.as_str().unwrap_or_default().replace("ForCausalLM", class).into();
        }
    }
    if untied(assembly) {
        config.insert("tie_word_embeddings".to_owned(), false.into());
    }
    Json::Object(config)
}

/// The head of transformers' sequence classifiers, and the ending of their class.
const SCORE: &str = "score.weight";
const CLASSIFIER: &str = "ForSequenceClassification";

/// From its rows a classifier's config knows how many classes there are.
fn labels(count: usize) -> Map<String, Json> {
    let name = |i: usize| format!("LABEL_{i}");
    let ids: Map<_, _> = (0..count).map(|i| (i.to_string(), json!(name(i)))).collect();
    let labels: Map<_, _> = (0..count).map(|i| (name(i), json!(i))).collect();
    [("id2label".to_owned(), ids.into()), ("label2id".to_owned(), labels.into())].into_iter().collect()
}

/// Whether a head that shared the embedding's table has gone its own way.
fn untied(assembly: &Assembly) -> bool {
    let facts = assembly.model.facts();
    let own = |l: &LinearSite| l.adapter_count() > 0 || matches!(l.base(), LinearBase::Packed(_));
    facts.tie_word_embeddings && assembly.sites.linears().iter().any(|l| l.is_head && own(l))
}

/// Every tensor; where folding gives a linear a bias that it had not, the config says so.
fn tensors<'a>(
    assembly: &'a Assembly,
    beside: &ObjectiveFile,
    settings: &mut Json,
) -> Result<Vec<(String, Vec<usize>, From<'a>)>> {
    let sites = &assembly.sites;
    let mut biased = sites.new_biases()?;
    if !biased.is_empty() {
        biased = crate::blueprint::family(settings)?.add_biases(settings, &biased)?;
    }
    let mut all = Vec::new();
    for site in sites.linears() {
        let name = format!("{}.weight", site.path);
        let shared = matches!(site.base(), LinearBase::Dense(base) if base != name);
        if shared && !untied(assembly) {
            continue;
        }
        all.push((name, vec![site.shape.0, site.shape.1], From::Linear(site)));
        if site.bias.is_some() || biased.contains(&site.path) {
            let name = site.bias.clone().unwrap_or_else(|| format!("{}.bias", site.path));
            all.push((name, vec![site.shape.0], From::Bias(site)));
        }
    }
    for name in sites.param_names() {
        if all.iter().any(|(n, _, _)| n == name) {
            continue;
        }
        let shape = sites.param(name)?.base().value().dims().to_vec();
        all.push((name.clone(), shape, From::Param(name.clone())));
    }
    let own = beside.params.iter().map(|(n, p)| (n.clone(), p.value()));
    let listed: Vec<String> = all.iter().map(|(n, _, _)| n.clone()).collect();
    let known = |n: &String| beside.params.iter().any(|(own, _)| own == n) || listed.contains(n);
    let brought = assembly.heads.iter().filter(|(n, _)| !known(n));
    for (name, array) in own.chain(brought.map(|(n, a)| (n.clone(), a.clone()))) {
        all.push((name, array.dims().to_vec(), From::Head(array)));
    }
    all.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(all)
}

/// The type that a recipe's name stands for.
pub fn dtype(choice: ramekin_recipe::Dtype) -> DType {
    match choice {
        ramekin_recipe::Dtype::F32 => DType::F32,
        ramekin_recipe::Dtype::Bf16 => DType::BF16,
        ramekin_recipe::Dtype::F16 => DType::F16,
    }
}
