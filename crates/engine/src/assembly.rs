//! A model with all that a stage attaches to it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use ramekin_core::{Array, Category, DType, Elsewhere, Ledger, Param, Rng, UserError};
use ramekin_data::Tokenizer;
use ramekin_recipe::{Adapter as AdapterChoice, Part};
use ramekin_slots::{Adapter, AttachContext, Model, Selection, Sites, Visit, block_of};
use serde_json::Value as Json;

use crate::around::Around;
use crate::blueprint::Blueprint;
use crate::inputs::Origin;
use crate::saved::{Headless, read, saved_adapter};
use crate::source::FileSource;
use crate::{compat, parts, sparse};

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
pub(crate) enum Choice<'a> {
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
    /// What decides what tokens see, where that is not the config.
    pub attention: Option<Part>,
    /// Other models that parts of the stage named, by the settings that name them.
    pub companions: BTreeMap<String, Assembly>,
    /// Heads that saved adapters brought along, by their names in a model's files.
    pub heads: BTreeMap<String, Array>,
}

impl Assembly {
    pub(crate) fn attach(&mut self, plan: &Blueprint, choice: Choice<'_>, shape_only: bool) -> Result<()> {
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
    pub(crate) fn install(&mut self, plan: &Blueprint, part: &Part, shape_only: bool) -> Result<()> {
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
    pub(crate) fn select(&self, plan: &Blueprint, part: &Part, shape_only: bool) -> Result<()> {
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
    pub(crate) fn train_everything(&self) -> Result<()> {
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
        self.sites.while_held(param.name(), || param.value().copied(Category::Workspace))
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
