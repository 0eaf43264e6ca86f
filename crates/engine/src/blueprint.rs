//! What a stage's model is put together from, and the putting together.

use std::cell::{OnceCell, RefCell};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use anyhow::{Context, Result};
use ramekin_core::{BadRecipe, DType, Meter, Rng, UserError, meter};
use ramekin_data::Tokenizer;
use ramekin_recipe::{Adapter as AdapterChoice, Dtype, Model as ModelChoice, Part};
use ramekin_registry::{AnyPart, Slot};
use ramekin_slots::{
    Forward, Half, LoadOptions, Loader, Model, ModelFacts, ModelFamily, Placement, RandomSource, ShapeSource,
    WeightSource,
};
use ramekin_tape::Value;
use serde_json::Value as Json;

use crate::assembly::{Assembly, Choice, Seat};
use crate::inputs::{self, Origin};
use crate::shared::Shared;
use crate::source::{FileSource, MemorySource};
use crate::{around, blame, digest, parts};

/// What a stage wants to stand on.
#[derive(Clone)]
pub struct Blueprint {
    /// The model.
    pub model: ModelChoice,
    /// How its frozen linears are stored.
    pub quantizer: Option<Part>,
    /// What is attached, in order.
    pub adapters: Vec<AdapterChoice>,
    /// What leaves fewer tokens, attached behind the adapters.
    pub reducers: Vec<Part>,
    /// Which weights of the base train; the model is then held dense, unless a quantizer says otherwise.
    pub selection: Option<Part>,
    /// What brings parts of several slots; its adapters are attached after the others.
    pub method: Option<Part>,
    /// Where weights live while they are not used; in memory if absent.
    pub placement: Option<Part>,
    /// What tokens see; if absent what they saw in the model's or an adapter's training, else what the config says.
    pub attention: Option<Part>,
    /// Folder that relative paths start from.
    pub base_dir: PathBuf,
    /// The run's seed.
    pub seed: u64,
    /// Number of the stage in its recipe.
    pub stage: usize,
    /// Everything trains.
    pub full_training: bool,
    /// How matrices of the base are held that train.
    pub trainable: DType,
    /// The model's tokenizer, once it has been read or learnt.
    pub tokenizer: OnceCell<Option<Arc<Tokenizer>>>,
}

/// What is read of a blueprint's files.
pub enum Loading<'a> {
    /// Everything.
    Whole,
    /// Configs and headers: for plans.
    Shapes,
    /// The adapters, and of the base configs and headers.
    AdaptersAlone,
    /// Everything, the base's tensors from here.
    From(&'a mut dyn WeightSource),
    /// Everything, and of the base what is not in memory yet.
    Beside(&'a Shared),
}

struct Opened {
    weights: Box<dyn WeightSource>,
    bytes: u64,
}

impl Blueprint {
    /// A model alone, frozen; relative paths start from the working folder.
    pub fn new(model: ModelChoice) -> Self {
        Blueprint {
            model,
            quantizer: None,
            adapters: Vec::new(),
            reducers: Vec::new(),
            selection: None,
            method: None,
            placement: None,
            attention: None,
            base_dir: PathBuf::from("."),
            seed: 0,
            stage: 0,
            full_training: false,
            trainable: DType::F32,
            tokenizer: OnceCell::new(),
        }
    }

    /// Whether the base itself changes, so that a stage leaves a model.
    pub fn trains_base(&self) -> bool {
        self.full_training || self.selection.is_some()
    }

    /// Reads `config.json`.
    pub fn config(&self) -> Result<(Origin, Json)> {
        let found = Origin::find(&self.model, &self.base_dir);
        let origin = found.map_err(|e| blame::source(&self.model, e))?;
        let config = origin.config(&self.model, &self.base_dir)?;
        Ok((origin, config))
    }

    /// Loads everything; shape-only reads configs and headers alone.
    ///
    /// # Errors
    /// What is missing or wrong in the model's files, the quantizer's or the adapters' settings.
    pub fn assemble(&self, shape_only: bool) -> Result<Assembly> {
        self.load(if shape_only { Loading::Shapes } else { Loading::Whole })
    }

    /// Loads as much as is asked for, or the base from another source.
    ///
    /// # Errors
    /// As [`Blueprint::assemble`].
    pub fn load(&self, loading: Loading<'_>) -> Result<Assembly> {
        let (shape_only, whole) = (matches!(loading, Loading::Shapes), matches!(loading, Loading::Whole));
        let (origin, mut config) = self.config()?;
        let tokenizer = self.tokenizer(&origin)?;
        if let Origin::Init = origin
            && let Some(map) = config.as_object_mut()
        {
            let tokens = tokenizer.as_ref().map(|t| t.vocab_size());
            if let (false, Some(n)) = (map.contains_key("vocab_size"), tokens) {
                map.insert("vocab_size".to_owned(), n.into());
            }
        }
        let family = family(&config)?;
        let facts = blame::field(&self.model, &origin, &self.base_dir, family.facts(&config))?;
        check_tokenizer(tokenizer.as_deref(), &facts)?;
        let mut source = self.source(&origin, &config)?;
        let read = source.bytes;
        let mut shapes;
        let mut before;
        // A base of shapes that adapters are only looked at on is held by nobody.
        let aside = matches!(loading, Loading::AdaptersAlone).then(|| meter::scope(Meter::new()));
        let source: &mut dyn WeightSource = match loading {
            Loading::Shapes | Loading::AdaptersAlone => {
                shapes = ShapeSource(Some(&*source.weights));
                &mut shapes
            }
            Loading::Whole => &mut *source.weights,
            Loading::From(other) => other,
            Loading::Beside(shared) => {
                before = shared.before(&mut *source.weights);
                &mut before
            }
        };
        let quantizer = self.quantizer.as_ref().map(parts::quantizer).transpose()?;
        let asked = self.dtype(source);
        let dtype = self.held(asked)?;
        let placement = self.placement.as_ref().map(parts::placement).transpose()?;
        let placement: Option<Rc<dyn Placement>> = placement.filter(|p| !p.is_resident()).map(Rc::from);
        if let (Some(placement), Some(part)) = (&placement, &self.placement) {
            parts::placed(part, placement.check(facts.blocks))?;
        }
        let attends = self.attends(&origin)?;
        if let (None, Some(part), true) = (&self.attention, &attends, whole) {
            ramekin_core::say!("  attention: `{}`, as it was in training", part.kind);
        }
        let attention = attends.as_ref().map(parts::attention).transpose()?;
        let options = LoadOptions {
            dtype,
            in_bf16: asked == DType::BF16,
            quantizer: quantizer.as_deref(),
            placement: placement.as_deref(),
            attention: attention.as_deref(),
        };
        let mut loader = Loader::new(source, options);
        let model = family.build(&config, &mut loader)?;
        let finished = loader.finish();
        let (ledger, mut sites, unused) = match &self.quantizer {
            Some(part) => parts::placed(part, finished)?,
            None => finished?,
        };
        let model = match placement {
            None => model,
            Some(placement) => {
                sites.set_placement(placement);
                Rc::new(Streamed(model))
            }
        };
        let mut assembly = Assembly {
            model,
            sites: Rc::new(sites),
            ledger: RefCell::new(ledger),
            adapters: Vec::new(),
            selection: RefCell::new(None),
            seat: self.seat(),
            tokenizer,
            config,
            dtype,
            label: origin.label(&self.model),
            read,
            unused,
            origin,
            attention: attends,
            companions: BTreeMap::new(),
            heads: BTreeMap::new(),
        };
        drop(aside);
        for choice in &self.adapters {
            assembly.attach(self, Choice::Adapter(choice), shape_only)?;
        }
        for part in &self.reducers {
            around::check_attention(self, part, assembly.model.facts())?;
            assembly.attach(self, Choice::Reducer(part), shape_only)?;
        }
        if let Some(part) = &self.method {
            assembly.install(self, part, shape_only)?;
        }
        if let Some(part) = &self.selection {
            assembly.select(self, part, shape_only)?;
        } else if self.full_training {
            assembly.train_everything()?;
        }
        around::check(&assembly)?;
        Ok(assembly)
    }

    fn seat(&self) -> Seat {
        let path = self.selection.as_ref().map_or("", |part| &part.path);
        let owner = if path.is_empty() { "selection" } else { path };
        Seat { owner: owner.to_owned(), stage: self.stage, rng: Rng::new(self.seed) }
    }

    /// The type of dense matrices of a model that is to be in `asked`. What trains is in f32, so that small steps count,
    /// or rounded by chance.
    fn held(&self, asked: DType) -> Result<DType> {
        if self.trainable == DType::BF16 && asked != DType::BF16 {
            let key = format!("stage.{}.trainable_dtype", self.stage);
            let error = BadRecipe::new("weights that train cannot be narrower than the model");
            return Err(error.at(key, "needs a model in bf16: set `dtype = \"bf16\"` of `[model]`").into());
        }
        let trains = self.full_training || self.selection.is_some() && self.quantizer.is_none();
        Ok(if trains { self.trainable } else { asked })
    }

    /// The rule of what tokens see: the recipe's, else the newest that training noted.
    fn attends(&self, origin: &Origin) -> Result<Option<Part>> {
        if self.attention.is_some() {
            return Ok(self.attention.clone());
        }
        for choice in self.adapters.iter().rev() {
            if let AdapterChoice::Saved { folder, .. } = choice
                && let Some(noted) = digest::attention(&digest::beside_in(&self.base_dir.join(folder)))?
            {
                return Ok(Some(noted));
            }
        }
        digest::attention(&digest::beside(origin))
    }

    fn tokenizer(&self, origin: &Origin) -> Result<Option<Arc<Tokenizer>>> {
        if let Some(known) = self.tokenizer.get() {
            return Ok(known.clone());
        }
        let found = inputs::tokenizer(&self.model, origin, &self.base_dir)?;
        Ok(self.tokenizer.get_or_init(|| found).clone())
    }

    /// What the recipe asks for, or what the files hold.
    fn dtype(&self, source: &dyn WeightSource) -> DType {
        match self.model.dtype {
            Some(Dtype::F32) => DType::F32,
            Some(Dtype::Bf16) => DType::BF16,
            Some(Dtype::F16) => DType::F16,
            None => {
                let stored = source.names().iter().find_map(|n| source.info(n)).map(|i| i.dtype);
                stored.filter(|d| matches!(d, DType::BF16 | DType::F16)).unwrap_or(DType::F32)
            }
        }
    }

    /// The base's tensors.
    pub fn weights(&self, origin: &Origin, config: &Json) -> Result<Box<dyn WeightSource>> {
        Ok(self.source(origin, config)?.weights)
    }

    fn source(&self, origin: &Origin, config: &Json) -> Result<Opened> {
        Ok(match origin {
            Origin::Init => Opened {
                weights: Box::new(RandomSource {
                    rng: Rng::new(self.seed),
                    std: config["initializer_range"].as_f64().unwrap_or(0.02),
                }),
                bytes: 0,
            },
            Origin::Folder(folder) => {
                let file = FileSource::open(folder)?;
                Opened { bytes: file.bytes(), weights: Box::new(file) }
            }
            Origin::Builtin(builtin) => {
                let bytes = builtin.file("model.safetensors").context("a built-in model without weights")?;
                let memory = MemorySource::from_bytes(bytes, &format!("builtin:{}", builtin.name))?;
                Opened { bytes: memory.bytes(), weights: Box::new(memory) }
            }
        })
    }
}

/// A model whose blocks' weights are in memory only while the block runs.
struct Streamed(Rc<dyn Model>);

impl Model for Streamed {
    fn facts(&self) -> &ModelFacts {
        self.0.facts()
    }

    fn embed(&self, fx: &Forward) -> Result<Value> {
        self.0.embed(fx)
    }

    fn block(&self, index: usize, fx: &Forward, x: &Value) -> Result<Value> {
        fx.sites.with_block(index, || self.0.block(index, fx, x))
    }

    fn half(&self, index: usize, half: Half, fx: &Forward, x: &Value) -> Result<Value> {
        fx.sites.with_block(index, || self.0.half(index, half, fx, x))
    }

    fn final_norm(&self, fx: &Forward, x: &Value) -> Result<Value> {
        self.0.final_norm(fx, x)
    }

    fn head(&self, fx: &Forward, x: &Value) -> Result<Value> {
        self.0.head(fx, x)
    }
}

/// The family that `model_type` names.
pub fn family(config: &Json) -> Result<Box<dyn ModelFamily>> {
    let Some(kind) = config["model_type"].as_str() else {
        return Err(UserError::new("config.json: `model_type` is missing").into());
    };
    match ramekin_registry::build(Slot::Model, kind, Json::Object(serde_json::Map::new()))? {
        AnyPart::Model(family) => Ok(family),
        _ => unreachable_slot(kind),
    }
}

pub(crate) fn unreachable_slot<T>(kind: &str) -> Result<T> {
    anyhow::bail!("`{kind}` is registered under the wrong slot")
}

fn check_tokenizer(tokenizer: Option<&Tokenizer>, facts: &ModelFacts) -> Result<()> {
    if let Some(t) = tokenizer
        && t.vocab_size() > facts.vocab_size
    {
        return Err(UserError::new(format!(
            "the tokenizer has {} tokens and the model's vocabulary {}",
            t.vocab_size(),
            facts.vocab_size
        ))
        .help("tokenizer and model do not belong together")
        .into());
    }
    Ok(())
}
