//! Copies of parameters by name, saved with checkpoints.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use ramekin_core::{Array, Category, Ledger, Param};
use ramekin_slots::{StateTensor, read_text, text};

/// Copies of parameters.
#[derive(Default)]
pub struct Shadow(BTreeMap<String, Array>);

/// A copy of f32 numbers.
fn copy_of(array: &Array) -> Result<Array> {
    Array::build::<f32>(array.dims(), array.is_shape_only(), Category::Optimizer, |out| {
        out.copy_from_slice(&array.view::<f32>()?);
        Ok(())
    })
}

impl Shadow {
    /// Copies what trains and has no copy yet.
    pub fn grow(&mut self, ledger: &Ledger) -> Result<()> {
        for param in ledger.trainable() {
            if !self.0.contains_key(param.name()) {
                self.0.insert(param.name().to_owned(), copy_of(&param.value())?);
            }
        }
        Ok(())
    }

    /// Makes every copy anew, of all that has trained so far.
    pub fn retake(&mut self, ledger: &Ledger) -> Result<()> {
        self.0.clear();
        for param in ledger.touched() {
            self.0.insert(param.name().to_owned(), copy_of(&param.value())?);
        }
        Ok(())
    }

    /// Each copy with its parameter.
    pub fn pairs(&self, ledger: &Ledger) -> Result<Vec<(Array, Arc<Param>)>> {
        let param = |name: &str| {
            let found = ledger.get(name).and_then(|e| e.param.clone());
            found.with_context(|| format!("the parameter `{name}` is gone"))
        };
        self.0.iter().map(|(name, array)| Ok((array.clone(), param(name)?))).collect()
    }

    /// Exchanges copies and parameters; the numbers stay the same bits.
    pub fn swap(&mut self, ledger: &Ledger) -> Result<()> {
        for (name, array) in &mut self.0 {
            let param = ledger.get(name).and_then(|e| e.param.clone());
            let param = param.with_context(|| format!("the parameter `{name}` is gone"))?;
            let value = param.value();
            ensure!(value.dims() == array.dims(), "the copy of `{name}` has another shape");
            param.set(std::mem::replace(array, value));
            array.recategorise(Category::Optimizer);
        }
        Ok(())
    }

    /// For a checkpoint.
    pub fn state(&self) -> Result<Vec<StateTensor>> {
        let names: Vec<&str> = self.0.keys().map(String::as_str).collect();
        let mut all = vec![text("names", &names.join("\n"))?];
        all.extend(self.0.iter().map(|(n, a)| StateTensor { name: format!("copy.{n}"), array: a.clone() }));
        Ok(all)
    }

    /// From a checkpoint.
    pub fn restore(&mut self, get: &mut dyn FnMut(&str) -> Option<Array>) -> Result<()> {
        let names = read_text(&get("names").context("the checkpoint holds no copies of weights")?)?;
        self.0.clear();
        for name in names.lines() {
            let array = get(&format!("copy.{name}"));
            let array = array.with_context(|| format!("the checkpoint has no copy of `{name}`"))?;
            array.recategorise(Category::Optimizer);
            self.0.insert(name.to_owned(), array);
        }
        Ok(())
    }
}
