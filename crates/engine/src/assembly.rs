//! A model with all that a stage attaches to it.

use std::cell::{OnceCell, RefCell};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use ramekin_core::{Array, Category, DType, Elsewhere, Ledger, Meter, Param, Rng, UserError, meter};
use ramekin_data::Tokenizer;
use ramekin_recipe::{Adapter as AdapterChoice, Dtype, Model as ModelChoice, Part};
use ramekin_registry::{AnyPart, Slot};
use ramekin_slots::{
    Adapter, AttachContext, Forward, Half, LoadOptions, Loader, Model, ModelFacts, ModelFamily, Placement,
    RandomSource, Selection, ShapeSource, Sites, Visit, WeightSource, block_of,
};
use ramekin_tape::Value;
use serde_json::Value as Json;

use crate::around::Around;
use crate::inputs::{self, Origin};
use crate::saved::{Headless, read, saved_adapter};
use crate::shared::Shared;
use crate::source::{FileSource, MemorySource};
use crate::{around, blame, compat, parts, sparse};

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
    /// What tokens see; what the config says if absent.
    pub attention: Option<Part>,
    /// Folder that relative paths start from.
    pub base_dir: PathBuf,
    /// The run's seed.
    pub seed: u64,
    /// Number of the stage in its recipe.
    pub stage: usize,
    /// Everything trains: dense parameters are held in f32.
    pub full_training: bool,
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

/// An adapter in place.
pub struct Attached {
    /// Its place in the recipe.
    pub owner: String,
    /// Its part's name.
    pub kind: String,
    /// What its parameters are entered under.
    pub(crate) entered: String,
    /// What it does around the blocks.
    pub around: Around,
    /// The adapter.
    pub adapter: Box<dyn Adapter>,
    /// Paths of the linears it sits at.
    pub sites: Vec<String>,
}

/// What a stage attaches to its model.
#[derive(Clone, Copy)]
enum Choice<'a> {
    Adapter(&'a AdapterChoice),
    Reducer(&'a Part),
}

/// A selection's place in the recipe.
#[derive(Clone, Debug)]
pub struct Seat {
    /// By which it owns its parameters.
    pub owner: String,
    /// Number of the stage.
    pub stage: usize,
    /// The run's randomness.
    pub rng: Rng,
}

/// A model, ready to run.
pub struct Assembly {
    /// The blocks.
    pub model: Rc<dyn Model>,
    /// Its linears and parameters.
    pub sites: Rc<Sites>,
    /// Every tensor.
    pub ledger: RefCell<Ledger>,
    /// Attached adapters, in order.
    pub adapters: Vec<Attached>,
    /// What chooses among the base's weights, in place.
    pub selection: RefCell<Option<Box<dyn Selection>>>,
    /// Where that stands in the recipe.
    pub seat: Seat,
    /// Its tokenizer, where the source has one.
    pub tokenizer: Option<Arc<Tokenizer>>,
    /// `config.json`.
    pub config: Json,
    /// Type of the dense matrices.
    pub dtype: DType,
    /// How the model is called: for `base_model_name_or_path`.
    pub label: String,
    /// Bytes that loading reads.
    pub read: u64,
    /// Tensors of the source that the model has no use for.
    pub unused: Vec<String>,
    /// The other files of the model's folder, to travel with copies of it.
    pub origin: Origin,
    /// Other models that parts of the stage named, by the settings that name them.
    pub companions: BTreeMap<String, Assembly>,
    /// Heads that saved adapters brought along, by their names in a model's files.
    pub heads: BTreeMap<String, Array>,
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
        let shape_only = matches!(loading, Loading::Shapes);
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
        let dtype = self.dtype(source);
        let placement = self.placement.as_ref().map(parts::placement).transpose()?;
        let placement: Option<Rc<dyn Placement>> = placement.filter(|p| !p.is_resident()).map(Rc::from);
        if let (Some(placement), Some(part)) = (&placement, &self.placement) {
            parts::placed(part, placement.check(facts.blocks))?;
        }
        let attention = self.attention.as_ref().map(parts::attention).transpose()?;
        let options = LoadOptions {
            // What trains is held in f32, so that small steps count.
            dtype: if self.trains_the_base() { DType::F32 } else { dtype },
            in_bf16: dtype == DType::BF16,
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

    fn tokenizer(&self, origin: &Origin) -> Result<Option<Arc<Tokenizer>>> {
        if let Some(known) = self.tokenizer.get() {
            return Ok(known.clone());
        }
        let found = inputs::tokenizer(&self.model, origin, &self.base_dir)?;
        Ok(self.tokenizer.get_or_init(|| found).clone())
    }

    fn trains_the_base(&self) -> bool {
        self.full_training || self.selection.is_some() && self.quantizer.is_none()
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

struct Opened {
    weights: Box<dyn WeightSource>,
    bytes: u64,
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

impl Assembly {
    fn attach(&mut self, plan: &Blueprint, choice: Choice<'_>, shape_only: bool) -> Result<()> {
        let index = self.adapters.len();
        let ((kind, mut adapter), slot, owner, saved) = match choice {
            Choice::Adapter(AdapterChoice::New(part)) => {
                ((part.kind.clone(), parts::adapter(part)?), "adapter", part.path.clone(), None)
            }
            Choice::Reducer(part) => {
                ((part.kind.clone(), parts::reducer(part)?), "reducer", part.path.clone(), None)
            }
            Choice::Adapter(AdapterChoice::Saved { folder, path }) => {
                let folder = plan.base_dir.join(folder);
                (saved_adapter(&folder)?, "adapter", path.clone(), Some(folder))
            }
        };
        let owner = if owner.is_empty() { format!("{slot}.{index}") } else { owner };
        let before = Around::of(&self.sites);
        // A compressed adapter may count from its own start, which is drawn as it was the first time.
        let sparse = saved.as_deref().map(sparse::Sparse::find).transpose()?.flatten();
        let (seed, drawn_as) = match sparse.as_ref().and_then(sparse::Sparse::start) {
            Some((seed, owner)) => (seed, owner),
            None => (plan.seed, owner.clone()),
        };
        let attached = self.put(plan, &mut *adapter, index, (seed, &drawn_as), shape_only);
        let sites = match choice {
            Choice::Adapter(AdapterChoice::New(part)) | Choice::Reducer(part) => {
                parts::placed(part, attached)?
            }
            Choice::Adapter(AdapterChoice::Saved { folder, .. }) => {
                attached.with_context(|| format!("the adapter in `{folder}`"))?
            }
        };
        if let Some(sparse) = sparse {
            if !shape_only {
                sparse.check_base(plan)?;
                adapter.load(&mut sparse.source(&*adapter)?)?;
            }
        } else if let Some(folder) = saved {
            let mut file = Headless::open(&folder)?;
            self.heads.extend(file.heads(shape_only)?);
            if !shape_only {
                adapter.load(&mut file)?;
            }
        }
        let around = Around::of(&self.sites).without(before);
        self.adapters.push(Attached { owner, kind, entered: drawn_as, around, adapter, sites });
        Ok(())
    }

    /// Puts an adapter at its sites; it is drawn by this seed under this name.
    fn put(
        &self,
        plan: &Blueprint,
        adapter: &mut dyn Adapter,
        index: usize,
        (seed, owner): (u64, &str),
        shape_only: bool,
    ) -> Result<Vec<String>> {
        adapter.attach(&mut AttachContext {
            sites: self.sites.clone(),
            ledger: &mut self.ledger.borrow_mut(),
            facts: self.model.facts(),
            rng: Rng::new(seed),
            owner: owner.to_owned(),
            index,
            stage: plan.stage,
            shape_only,
        })
    }

    /// Attaches the adapters that a method brings.
    fn install(&mut self, plan: &Blueprint, part: &Part, shape_only: bool) -> Result<()> {
        let owner = if part.path.is_empty() { "method" } else { &part.path };
        for mut adapter in parts::installed(part)?.adapters {
            let (index, before) = (self.adapters.len(), Around::of(&self.sites));
            let attached = self.put(plan, &mut *adapter, index, (plan.seed, owner), shape_only);
            let sites = parts::placed(part, attached)?;
            let (owner, kind) = (owner.to_owned(), part.kind.clone());
            let around = Around::of(&self.sites).without(before);
            self.adapters.push(Attached { entered: owner.clone(), owner, kind, around, adapter, sites });
        }
        Ok(())
    }

    /// Lets a selection choose what trains.
    fn select(&self, plan: &Blueprint, part: &Part, shape_only: bool) -> Result<()> {
        let mut selection = parts::selection(part)?;
        let attached = self.seated(shape_only, |cx| selection.attach(cx));
        if let (Some(placement), Err(e)) = (&plan.placement, &attached)
            && e.chain().any(|c| c.is::<Elsewhere>())
        {
            return Err(
                compat::trains_away(placement, &part.path, &format!("`selection/{}`", part.kind)).into()
            );
        }
        parts::placed(part, attached)?;
        *self.selection.borrow_mut() = Some(selection);
        Ok(())
    }

    /// A tensor that the model's files or a saved adapter hold and the model has no use for.
    pub fn left_over(&self, name: &str, shape_only: bool) -> Result<Option<Array>> {
        if let Some(head) = self.heads.get(name) {
            return Ok(Some(head.clone()));
        }
        match &self.origin {
            Origin::Folder(folder) if self.unused.iter().any(|n| n == name) => {
                let mut file = FileSource::open(folder)?;
                read(&mut file, name, shape_only).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// Number of the stage that this is for.
    pub fn stage(&self) -> usize {
        self.seat.stage
    }

    /// What a selection is given while it attaches.
    pub fn seated<R>(&self, shape_only: bool, f: impl FnOnce(&mut AttachContext<'_>) -> R) -> R {
        f(&mut AttachContext {
            sites: self.sites.clone(),
            ledger: &mut self.ledger.borrow_mut(),
            facts: self.model.facts(),
            rng: self.seat.rng,
            owner: self.seat.owner.clone(),
            index: self.adapters.len(),
            stage: self.seat.stage,
            shape_only,
        })
    }

    /// A saved adapter as it was before its training, drawn again: attached to this model, not kept.
    ///
    /// # Errors
    /// As attaching it.
    pub fn draw(&self, folder: &Path, seed: u64, owner: &str) -> Result<Box<dyn Adapter>> {
        let (_, mut adapter) = saved_adapter(folder)?;
        let mut ledger = self.ledger.borrow_mut();
        let mut cx = AttachContext {
            sites: self.sites.clone(),
            ledger: &mut ledger,
            facts: self.model.facts(),
            rng: Rng::new(seed),
            owner: owner.to_owned(),
            index: self.adapters.len(),
            stage: self.seat.stage,
            shape_only: false,
        };
        adapter.attach(&mut cx).with_context(|| format!("the adapter in `{}`", folder.display()))?;
        Ok(adapter)
    }

    /// Makes every dense parameter of the base trainable.
    fn train_everything(&self) -> Result<()> {
        let ledger = self.ledger.borrow();
        for entry in ledger.entries() {
            let param = entry
                .param
                .as_ref()
                .with_context(|| format!("`{}` is packed and cannot train", entry.name))?;
            param.set_trainable(true);
        }
        Ok(())
    }

    /// Whether the blocks' weights come and go.
    pub fn is_streamed(&self) -> bool {
        self.params_like(Array::is_absent) || self.sites.linears().iter().any(|l| l.is_absent())
    }

    /// Whether something trains whose weights come and go.
    pub fn trains_what_is_away(&self) -> bool {
        self.trainable().iter().any(|p| p.value().is_absent())
    }

    /// A parameter's numbers, wherever they are; those of one that is elsewhere are a copy.
    ///
    /// # Errors
    /// If they cannot be brought in.
    pub fn read_param(&self, param: &Arc<Param>) -> Result<Array> {
        if !param.value().is_absent() {
            return Ok(param.value());
        }
        self.sites.while_held(param.name(), || {
            let value = param.value();
            if value.is_shape_only() {
                return Array::shape_only(value.dims(), value.dtype(), Category::Workspace);
            }
            Array::from_tensor(value.tensor().copy()?, Category::Workspace)
        })
    }

    /// Puts saved numbers into parameters, wherever they are, and notes that they have trained.
    ///
    /// # Errors
    /// If one is elsewhere and changes of it are not kept.
    pub fn write_params(&self, saved: Vec<(Arc<Param>, Array)>, rng: Rng) -> Result<()> {
        let mut away: BTreeMap<usize, Vec<(Arc<Param>, Array)>> = BTreeMap::new();
        for (param, value) in saved {
            param.touch();
            match block_of(param.name()).filter(|_| param.value().is_absent()) {
                Some(block) => away.entry(block).or_default().push((param, value)),
                None => param.set(value),
            }
        }
        for (block, params) in away {
            self.sites.with_block_changed(block, Visit { rng, number: 0 }, || {
                params.into_iter().for_each(|(param, value)| param.set(value));
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Whether there are only shapes, for a plan.
    pub fn is_shape_only(&self) -> bool {
        self.params_like(Array::is_shape_only)
    }

    fn params_like(&self, like: impl Fn(&Array) -> bool) -> bool {
        self.ledger.borrow().entries().iter().filter_map(|e| e.param.as_ref()).any(|p| like(&p.value()))
    }

    /// The parameters that train, in the ledger's order.
    pub fn trainable(&self) -> Vec<Arc<Param>> {
        self.ledger.borrow().trainable()
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// If the model came without one.
    pub fn tokenizer(&self) -> Result<&Arc<Tokenizer>> {
        self.tokenizer.as_ref().ok_or_else(|| {
            UserError::new(format!(
                "the model `{}` has no tokenizer.json, and this stage handles text",
                self.label
            ))
            .into()
        })
    }

    /// Ids at which generation ends.
    pub fn eos_ids(&self) -> Vec<u32> {
        if let Some(t) = &self.tokenizer {
            return t.eos_ids().to_vec();
        }
        match &self.config["eos_token_id"] {
            Json::Number(n) => n.as_u64().map(|n| n as u32).into_iter().collect(),
            Json::Array(ids) => ids.iter().filter_map(Json::as_u64).map(|n| n as u32).collect(),
            _ => Vec::new(),
        }
    }
}

/// Refuses an assembly in which nothing trains.
pub fn ensure_trainable(assembly: &Assembly) -> Result<()> {
    ensure!(!assembly.trainable().is_empty(), "nothing in this stage trains");
    Ok(())
}
