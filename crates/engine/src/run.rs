//! A recipe's stages in order, what one leaves to the next, and resuming.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context, Result};
use ramekin_core::{DType, Interrupted, UserError, units};
use ramekin_plan::Bill;
use ramekin_recipe::{Adapter, MergeStage, Model, Part, Recipe, Stage, TrainStage, TrainableDtype};
use ramekin_report::Outcome;
use ramekin_store::write_atomic;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json, json};

use crate::blueprint::Blueprint;
use crate::{folder, journal, machine, preflight, stages};

/// How a recipe is run.
#[derive(Clone)]
pub struct Options {
    /// The run folder.
    pub out: PathBuf,
    /// Folder that the recipe's relative paths start from.
    pub base_dir: PathBuf,
    /// Goes on from what is in the run folder.
    pub resume: bool,
    /// Set when the user wants to stop; the run saves its state and leaves.
    pub stop: Arc<AtomicBool>,
    /// The resolved recipe's text, for the run folder.
    pub resolved: String,
}

/// What a run left.
#[derive(Clone, Debug, Default, Serialize)]
pub struct RunOutcome {
    /// Figures of each stage, under `K-KIND`.
    pub stages: Map<String, Json>,
}

/// What a stage leaves to the next.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Carry {
    model: Option<Model>,
    quantizer: Option<Part>,
    /// What tokens saw.
    #[serde(default)]
    attention: Option<Part>,
    /// Folders of saved adapters, absolute.
    adapters: Vec<String>,
    done: usize,
    stages: Map<String, Json>,
    /// Hashes of what was made.
    hashes: Map<String, Json>,
}

impl Carry {
    /// The next stage stands on this model, alone.
    pub fn leave_model(&mut self, folder: &Path) {
        self.model = Some(plain_model(&folder.display().to_string()));
        self.quantizer = None;
        self.adapters.clear();
    }

    /// The next stage also stands on these, which act on what a model computes and not on its weights.
    pub fn keep_reducers(&mut self, folders: Vec<String>) {
        self.adapters = folders;
    }

    /// The next stage stands on the same base with these adapters.
    pub fn leave_adapters(&mut self, blueprint: &Blueprint, folders: Vec<String>) {
        self.model = Some(blueprint.model.clone());
        self.quantizer.clone_from(&blueprint.quantizer);
        self.adapters = folders;
    }

    /// The next stage stands on the same base, its frozen weights stored this way.
    pub fn leave_base(&mut self, blueprint: &Blueprint, quantizer: Option<&Part>) {
        self.leave_adapters(blueprint, Vec::new());
        self.quantizer = quantizer.cloned();
    }

    /// The next stage stands on this model, its frozen weights stored this way.
    pub fn leave_quantized(&mut self, folder: &Path, quantizer: Option<&Part>) {
        self.leave_model(folder);
        self.quantizer = quantizer.cloned();
    }

    /// What tokens see in the next stage, where it says nothing: what they saw in this one.
    fn leave_attention(&mut self, stage: &Stage) {
        if stage.attention().is_some() || stage.model().is_some() {
            self.attention = stage.attention().cloned();
        }
    }

    /// Notes the hash of an artifact.
    pub fn note_hash(&mut self, what: &str, hash: String) {
        self.hashes.insert(what.to_owned(), Json::String(hash));
    }
}

/// A model choice without any option.
pub fn plain_model(source: &str) -> Model {
    Model {
        source: source.to_owned(),
        dtype: None,
        revision: None,
        config: None,
        tokenizer: None,
        path: String::new(),
    }
}

/// What every stage is given.
pub struct StageContext<'a> {
    /// The recipe.
    pub recipe: &'a Recipe,
    /// Number of the stage.
    pub index: usize,
    /// The stage's own folder.
    pub dir: PathBuf,
    /// How the run is run.
    pub options: &'a Options,
    /// From the stage before, to the stage after.
    pub carry: Carry,
    /// Whether this very stage had begun before.
    pub resumed: bool,
}

impl StageContext<'_> {
    /// `K-KIND`.
    pub fn name(&self) -> String {
        stage_name(self.recipe, self.index)
    }

    /// Shows at the top of the run folder what the stage made in its own.
    ///
    /// A stage never writes where it reads: one that is done again after a kill stands on what it
    /// stood on the first time.
    pub fn publish(&self, made: &[PathBuf]) -> Result<()> {
        let out = &self.options.out;
        for folder in made.iter().filter(|f| f.parent() != Some(out)) {
            ramekin_store::mirror(folder, &out.join(folder.file_name().unwrap_or_default()))?;
        }
        Ok(())
    }

    /// What this stage stands on: its own choices, else what the stage before it left.
    pub fn blueprint(&self, stage: &Stage, quantizer: Option<&Part>) -> Result<Blueprint> {
        let plan = blueprint(self.recipe, stage, quantizer, &self.carry, &self.options.base_dir)?;
        Ok(Blueprint { stage: self.index, ..plan })
    }
}

fn stage_name(recipe: &Recipe, index: usize) -> String {
    format!("{index}-{}", recipe.stage[index].kind())
}

fn blueprint(
    recipe: &Recipe,
    stage: &Stage,
    quantizer: Option<&Part>,
    carry: &Carry,
    base_dir: &Path,
) -> Result<Blueprint> {
    if let Stage::Merge(s) = stage
        && !s.models.is_empty()
    {
        return merged_from(recipe, s, base_dir);
    }
    let own = stage.model();
    let model = own.or(carry.model.as_ref()).or(recipe.model.as_ref()).cloned().ok_or_else(|| {
        UserError::new("no model is named").help("set `[model] source`, for example to \"builtin:tiny\"")
    })?;
    let inherits = own.is_none();
    let quantizer = quantizer.cloned().or_else(|| carry.quantizer.clone().filter(|_| inherits));
    let mut adapters: Vec<Adapter> = Vec::new();
    if inherits {
        let saved = carry.adapters.iter();
        adapters.extend(saved.map(|f| Adapter::Saved { folder: f.clone(), path: String::new() }));
    }
    adapters.extend(stage.adapters().iter().cloned());
    let (selection, method) = match stage {
        Stage::Train(s) => (s.selection.clone(), s.method.clone()),
        _ => (None, None),
    };
    let something = !adapters.is_empty() || selection.is_some() || method.is_some();
    let full_training = matches!(stage, Stage::Train(_)) && !something;
    let trainable = match stage {
        Stage::Train(TrainStage { trainable_dtype: Some(TrainableDtype::Bf16), .. }) => DType::BF16,
        _ => DType::F32,
    };
    let base_dir = base_dir.to_owned();
    Ok(Blueprint {
        quantizer,
        adapters,
        reducers: stage.reducers().to_vec(),
        selection,
        method,
        placement: stage.placement().cloned(),
        attention: stage.attention().cloned().or_else(|| carry.attention.clone().filter(|_| inherits)),
        base_dir,
        seed: recipe.seed,
        full_training,
        trainable,
        ..Blueprint::new(model)
    })
}

/// What several models were tuned from: what the stage says, else the recipe's own model.
fn merged_from(recipe: &Recipe, s: &MergeStage, base_dir: &Path) -> Result<Blueprint> {
    let named = s.base.as_ref().map(|base| plain_model(base));
    let model = named.or_else(|| s.model.clone()).or_else(|| recipe.model.clone());
    let Some(model) = model else {
        return Err(UserError::new("no base is named").help("set `base` of the merge stage").into());
    };
    Ok(Blueprint { base_dir: base_dir.to_owned(), seed: recipe.seed, ..Blueprint::new(model) })
}

/// The bills of all stages, as far as they can be known before any has run.
///
/// # Errors
/// What is wrong with a model's config or headers, or with a part's settings.
pub fn plan(recipe: &Recipe, base_dir: &Path) -> Result<Vec<Bill>> {
    preflight::check(recipe, base_dir, Some(&Path::new("runs").join(&recipe.name)), 0)?;
    let mut carry = Carry::default();
    let mut bills = Vec::new();
    for (index, stage) in recipe.stage.iter().enumerate() {
        let name = stage_name(recipe, index);
        let tried = match stage {
            Stage::Search(s) => Some(stages::search::bills(index, s, base_dir)?),
            Stage::Bench(s) => Some(stages::bench::bills(index, s, base_dir)?),
            _ => None,
        };
        if let Some(tried) = tried {
            bills.extend(tried);
            continue;
        }
        let quantizer = stage.quantizer();
        let plan = blueprint(recipe, stage, quantizer, &carry, base_dir)?;
        let plan = Blueprint { stage: index, ..plan };
        let bill = stages::bill(&name, index, recipe, stage, &plan)?;
        let step_seconds = bill.step_flops / machine::operations_per_second();
        bills.push(Bill { step_seconds, ..bill });
        if matches!(stage, Stage::Train(_)) && !plan.trains_base() {
            // The adapter does not exist yet; the next stage is billed on the bare base it will sit on.
            carry.leave_adapters(&plan, Vec::new());
        }
        if let Stage::Compress(s) = stage {
            carry.leave_base(&plan, s.quantizer.as_ref());
        }
        carry.leave_attention(stage);
    }
    Ok(bills)
}

/// Runs a recipe.
///
/// # Errors
/// A user's mistake, [`ramekin_core::Unfit`], [`ramekin_core::Interrupted`], or a fault of the run.
pub fn run(recipe: &Recipe, options: &Options) -> Result<RunOutcome> {
    cook(recipe, options).inspect_err(|e| {
        if ramekin_core::exit_code(e) == 1 {
            folder::say_what_is_kept(&options.out);
        }
    })
}

fn cook(recipe: &Recipe, options: &Options) -> Result<RunOutcome> {
    let out = &options.out;
    folder::open(out)?;
    let state_file = out.join("state.json");
    let mut carry = Carry::default();
    if options.resume {
        folder::check_same(out, &options.resolved)?;
        if let Ok(text) = std::fs::read(&state_file) {
            carry = serde_json::from_slice(&text)
                .with_context(|| format!("`{}` is damaged", state_file.display()))?;
        }
    }
    preflight::check(recipe, &options.base_dir, Some(out), carry.done)?;
    if carry.done == recipe.stage.len() && folder::is_complete(out) {
        ramekin_core::say!("finished already: `{}`", out.display());
        return Ok(RunOutcome { stages: carry.stages });
    }
    if !options.resume {
        folder::clear(out)?;
    }
    folder::write_recipe(out, &options.resolved)?;
    let had_begun = carry.done;
    let began = Instant::now();
    for (index, stage) in recipe.stage.iter().enumerate().skip(carry.done) {
        let dir = if recipe.stage.len() == 1 {
            out.clone()
        } else {
            out.join("stages").join(stage_name(recipe, index))
        };
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot make `{}`", dir.display()))?;
        ramekin_store::recover(&dir)?;
        let mut cx = StageContext {
            recipe,
            index,
            dir,
            options,
            carry,
            resumed: options.resume && index == had_begun,
        };
        let name = cx.name();
        let done = cook_stage(&mut cx, stage)
            .and_then(|figures| within_budget(recipe, figures))
            .with_context(|| format!("stage {name}"));
        let figures = match done {
            Ok(figures) => figures,
            Err(e) => {
                let mut stages = cx.carry.stages;
                stages.insert(name, json!({}));
                return Err(ended(recipe, options, stages, e, began));
            }
        };
        carry = cx.carry;
        carry.leave_attention(stage);
        carry.stages.insert(name, figures);
        carry.done = index + 1;
        write_atomic(&state_file, &serde_json::to_vec_pretty(&carry)?)?;
        if index + 1 < recipe.stage.len() && options.stop.load(Ordering::SeqCst) {
            let stage = stage_name(recipe, index);
            let message =
                format!("stopped after stage {stage}; it is in `{}`, go on with --resume", out.display());
            return Err(ended(recipe, options, carry.stages, Interrupted(message).into(), began));
        }
    }
    let summary = json!({ "name": recipe.name, "stages": carry.stages, "sha256": carry.hashes });
    write_atomic(out.join("summary.json"), &serde_json::to_vec_pretty(&summary)?)?;
    let outcome = RunOutcome { stages: carry.stages };
    journal::report(&recipe.name, options, &outcome, Outcome::Done, began.elapsed().as_secs_f64())?;
    Ok(outcome)
}

fn cook_stage(cx: &mut StageContext<'_>, stage: &Stage) -> Result<Json> {
    match stage {
        Stage::Search(s) => return stages::search::run(cx, s),
        Stage::Bench(s) => return stages::bench::run(cx, s),
        _ => {}
    }
    let plan = cx.blueprint(stage, stage.quantizer())?;
    stages::run(cx, stage, &plan)
}

/// The report page of a run that ends with this error.
fn ended(
    recipe: &Recipe,
    options: &Options,
    stages: Map<String, Json>,
    error: anyhow::Error,
    began: Instant,
) -> anyhow::Error {
    let how = match ramekin_core::exit_code(&error) {
        130 => Outcome::Interrupted,
        _ => Outcome::Failed(format!("{error:#}")),
    };
    // The page is a courtesy here; the error is what counts.
    let seconds = began.elapsed().as_secs_f64();
    let _ = journal::report(&recipe.name, options, &RunOutcome { stages }, how, seconds);
    error
}

/// Says so when a stage held more than the budget in spite of its bill.
fn within_budget(recipe: &Recipe, mut figures: Json) -> Result<Json> {
    let Some(budget) = recipe.memory.budget else { return Ok(figures) };
    let held = figures["measured_peak"].as_u64().unwrap_or(0);
    if held > budget.0 {
        let (held, budget) = (units::bytes(held), units::bytes(budget.0));
        ramekin_core::say!(
            "  warning: the stage held {held} at once, above the budget of {budget}; its plan was too low"
        );
        figures["over_budget"] = true.into();
    }
    Ok(figures)
}
