//! Frozen weights of the base that several ranks of a process read from the same memory.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::Result;
use ramekin_core::{Array, Ledger};
use ramekin_slots::{LinearBase, PackedWeight, WeightInfo, WeightSource};

use crate::assembly::Assembly;
use crate::blueprint::Blueprint;

/// What one rank has loaded and the others need not.
#[derive(Default)]
pub struct Shared {
    dense: HashMap<String, Array>,
    packed: HashMap<String, Arc<dyn PackedWeight>>,
}

impl Shared {
    /// The base's weights that never change in this stage and stay in memory.
    ///
    /// A selection may train any weight of the base sooner or later, so nothing is shared beside one.
    pub fn of(assembly: &Assembly, plan: &Blueprint) -> Self {
        let mut shared = Shared::default();
        if plan.trains_base() {
            return shared;
        }
        for entry in assembly.ledger.borrow().entries() {
            let Some(param) = entry.param.as_ref().filter(|_| entry.owner == Ledger::MODEL) else { continue };
            let value = param.value();
            if !(param.is_touched() || value.is_absent()) {
                shared.dense.insert(entry.name.clone(), value);
            }
        }
        for site in assembly.sites.linears() {
            if let LinearBase::Packed(weight) = site.base()
                && !weight.is_absent()
            {
                shared.packed.insert(format!("{}.weight", site.path), weight);
            }
        }
        shared
    }

    /// Bytes of it.
    pub fn bytes(&self) -> u64 {
        let dense: u64 = self.dense.values().map(Array::bytes).sum();
        dense + self.packed.values().map(|w| w.bytes()).sum::<u64>()
    }

    /// A source that gives these where it can, and what `inner` has for the rest.
    pub fn before<'a>(&'a self, inner: &'a mut dyn WeightSource) -> impl WeightSource + 'a {
        Before { shared: self, inner }
    }
}

struct Before<'a> {
    shared: &'a Shared,
    inner: &'a mut dyn WeightSource,
}

impl WeightSource for Before<'_> {
    fn info(&self, name: &str) -> Option<WeightInfo> {
        self.inner.info(name)
    }

    fn read(&mut self, name: &str, dims: &[usize]) -> Result<Array> {
        match self.shared.dense.get(name) {
            Some(array) => Ok(array.clone()),
            None => self.inner.read(name, dims),
        }
    }

    fn names(&self) -> Vec<String> {
        self.inner.names()
    }

    fn is_open(&self) -> bool {
        self.inner.is_open()
    }

    fn packed(&self, name: &str) -> Option<Arc<dyn PackedWeight>> {
        self.shared.packed.get(name).cloned()
    }

    fn label(&self) -> String {
        self.inner.label()
    }
}
