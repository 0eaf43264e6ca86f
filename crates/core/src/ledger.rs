//! The ledger of parameters: one entry a tensor, one owner a tensor.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use anyhow::{Result, bail};
use candle_core::DType;

use crate::array::Array;
use crate::mask::Mask;
use crate::meter::Category;

/// Identity of a parameter within a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ParamId(u64);

/// A dense parameter. Its numbers may be replaced or changed in place; whether
/// it trains may change between steps.
pub struct Param {
    id: ParamId,
    name: String,
    value: RwLock<Array>,
    trainable: AtomicBool,
    touched: AtomicBool,
    mask: RwLock<Option<Arc<Mask>>>,
}

impl std::fmt::Debug for Param {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Param({}, {:?})", self.name, self.value())
    }
}

impl Param {
    /// A frozen parameter.
    pub fn new(name: impl Into<String>, value: Array) -> Arc<Self> {
        static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        value.recategorise(Category::Weights);
        Arc::new(Param {
            id: ParamId(NEXT.fetch_add(1, Ordering::Relaxed)),
            name: name.into(),
            value: RwLock::new(value),
            trainable: AtomicBool::new(false),
            touched: AtomicBool::new(false),
            mask: RwLock::new(None),
        })
    }

    /// Some of its entries as a parameter of their own, with its identity and name: what an optimizer
    /// is given in the place of a masked one.
    pub fn part(&self, value: Array) -> Arc<Self> {
        value.recategorise(Category::Trainable);
        Arc::new(Param {
            id: self.id,
            name: self.name.clone(),
            value: RwLock::new(value),
            trainable: AtomicBool::new(true),
            touched: AtomicBool::new(true),
            mask: RwLock::new(None),
        })
    }

    /// Its identity.
    pub fn id(&self) -> ParamId {
        self.id
    }

    /// Its name: the tensor's name in files of the model or adapter.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A handle to the numbers.
    pub fn value(&self) -> Array {
        self.value.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces the numbers.
    pub fn set(&self, value: Array) {
        let category = if self.is_trainable() { Category::Trainable } else { Category::Weights };
        value.recategorise(category);
        *self.value.write().unwrap_or_else(PoisonError::into_inner) = value;
    }

    /// Whether gradients are wanted.
    pub fn is_trainable(&self) -> bool {
        self.trainable.load(Ordering::Relaxed)
    }

    /// Starts or stops training it.
    pub fn set_trainable(&self, trainable: bool) {
        self.trainable.store(trainable, Ordering::Relaxed);
        self.touched.fetch_or(trainable, Ordering::Relaxed);
        let category = if trainable { Category::Trainable } else { Category::Weights };
        self.value().recategorise(category);
    }

    /// Notes that it has trained before, as a run does that goes on from a checkpoint.
    pub fn touch(&self) {
        self.touched.store(true, Ordering::Relaxed);
    }

    /// Whether it has been trainable at some time of this run: then a checkpoint holds it.
    pub fn is_touched(&self) -> bool {
        self.touched.load(Ordering::Relaxed)
    }

    /// Which of its entries train; `None` is all. The others keep their bits: no optimizer sees them.
    pub fn mask(&self) -> Option<Arc<Mask>> {
        self.mask.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Narrows training to some entries, or widens it to all again.
    pub fn set_mask(&self, mask: Option<Arc<Mask>>) {
        *self.mask.write().unwrap_or_else(PoisonError::into_inner) = mask;
    }

    /// How many numbers train.
    pub fn trainable_len(&self) -> usize {
        match (self.is_trainable(), self.mask()) {
            (false, _) => 0,
            (true, Some(mask)) => mask.len(),
            (true, None) => self.value().len(),
        }
    }
}

/// How a tensor's numbers are held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Storage {
    /// As numbers of this type.
    Dense(DType),
    /// In the packed form of a quantizer: its name and the bytes.
    Packed {
        /// Name of the quantizer.
        format: String,
        /// Bytes held, scales included.
        bytes: u64,
    },
}

/// What the ledger knows of a tensor.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The tensor's name in files.
    pub name: String,
    /// Shape of the dense tensor.
    pub shape: Vec<usize>,
    /// How it is held.
    pub storage: Storage,
    /// Who may change it: `model`, or the path of the part that added or claimed it.
    pub owner: String,
    /// The parameter, where the tensor is dense.
    pub param: Option<Arc<Param>>,
}

impl Entry {
    /// Bytes held.
    pub fn bytes(&self) -> u64 {
        match &self.storage {
            Storage::Dense(d) => (self.shape.iter().product::<usize>() * d.size_in_bytes()) as u64,
            Storage::Packed { bytes, .. } => *bytes,
        }
    }

    /// Whether some of it trains.
    pub fn is_trainable(&self) -> bool {
        self.param.as_ref().is_some_and(|p| p.is_trainable())
    }
}

/// Every tensor of a model and of what is attached to it, in order of arrival.
#[derive(Default)]
pub struct Ledger {
    entries: Vec<Entry>,
    by_name: HashMap<String, usize>,
}

impl Ledger {
    /// The base model's own tensors belong to this owner until a part claims them.
    pub const MODEL: &'static str = "model";

    /// Adds a dense parameter.
    pub fn add(&mut self, param: &Arc<Param>, owner: &str) -> Result<()> {
        let value = param.value();
        self.insert(Entry {
            name: param.name().to_owned(),
            shape: value.dims().to_vec(),
            storage: Storage::Dense(value.dtype()),
            owner: owner.to_owned(),
            param: Some(param.clone()),
        })
    }

    /// Adds a packed tensor, which never trains.
    pub fn add_packed(&mut self, name: &str, shape: &[usize], format: &str, bytes: u64) -> Result<()> {
        self.insert(Entry {
            name: name.to_owned(),
            shape: shape.to_vec(),
            storage: Storage::Packed { format: format.to_owned(), bytes },
            owner: Self::MODEL.to_owned(),
            param: None,
        })
    }

    fn insert(&mut self, entry: Entry) -> Result<()> {
        if let Some(i) = self.by_name.get(&entry.name) {
            bail!("`{}` and `{}` both own the tensor `{}`", self.entries[*i].owner, entry.owner, entry.name);
        }
        self.by_name.insert(entry.name.clone(), self.entries.len());
        self.entries.push(entry);
        Ok(())
    }

    /// Gives a tensor of the base model to a part, which alone may change it from now on.
    ///
    /// # Errors
    /// If there is no such tensor or another part has it already.
    pub fn claim(&mut self, name: &str, owner: &str) -> Result<()> {
        let Some(entry) = self.by_name.get(name).map(|i| &mut self.entries[*i]) else {
            bail!("there is no tensor `{name}` to train");
        };
        if entry.owner != Self::MODEL && entry.owner != owner {
            bail!("`{}` and `{owner}` both want to change the tensor `{name}`", entry.owner);
        }
        owner.clone_into(&mut entry.owner);
        Ok(())
    }

    /// Takes a part's tensors out again.
    pub fn remove_owner(&mut self, owner: &str) {
        self.entries.retain(|e| e.owner != owner);
        self.by_name = self.entries.iter().enumerate().map(|(i, e)| (e.name.clone(), i)).collect();
    }

    /// The entry of a tensor.
    pub fn get(&self, name: &str) -> Option<&Entry> {
        self.by_name.get(name).map(|i| &self.entries[*i])
    }

    /// All entries in order.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The parameters that train, in order.
    pub fn trainable(&self) -> Vec<Arc<Param>> {
        self.entries.iter().filter(|e| e.is_trainable()).filter_map(|e| e.param.clone()).collect()
    }

    /// The parameters that train or have trained in this run, in order: what a checkpoint holds.
    pub fn touched(&self) -> Vec<Arc<Param>> {
        self.entries.iter().filter_map(|e| e.param.clone()).filter(|p| p.is_touched()).collect()
    }

    /// How many numbers there are, and how many of them train.
    pub fn counts(&self) -> (u64, u64) {
        let size = |e: &Entry| e.shape.iter().product::<usize>() as u64;
        let trained = |e: &Entry| e.param.as_ref().map_or(0, |p| p.trainable_len() as u64);
        (self.entries.iter().map(size).sum(), self.entries.iter().map(trained).sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_owner_a_tensor() {
        let mut ledger = Ledger::default();
        let w = Param::new("w", Array::zeros(&[2, 3], DType::F32, Category::Workspace).unwrap());
        ledger.add(&w, Ledger::MODEL).unwrap();
        assert!(ledger.add(&w, "adapter.0").is_err());
        ledger.claim("w", "adapter.0").unwrap();
        ledger.claim("w", "adapter.0").unwrap();
        let e = ledger.claim("w", "adapter.1").unwrap_err().to_string();
        assert_eq!(e, "`adapter.0` and `adapter.1` both want to change the tensor `w`");
        assert!(ledger.claim("v", "adapter.1").is_err());
    }

    #[test]
    fn trainable_bytes_move_category() {
        let meter = crate::Meter::new();
        let _scope = crate::meter::scope(meter.clone());
        let w = Param::new("w", Array::zeros(&[2, 3], DType::F32, Category::Workspace).unwrap());
        assert_eq!(meter.live().weights, 24);
        w.set_trainable(true);
        assert_eq!((meter.live().weights, meter.live().trainable), (0, 24));
    }
}
