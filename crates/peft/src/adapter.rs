//! A method as an adapter part.

use std::rc::Rc;
use std::sync::Arc;

use anyhow::Result;
use ramekin_core::{Param, ParamId};
use ramekin_registry::{AnyPart, Part};
use ramekin_slots::{Adapter, AdapterFile, AttachContext, ParamGroup, Sites, WeightSource};
use serde_json::Value as Json;

use crate::config;
use crate::kept::Kept;
use crate::method::Method;

/// The adapter part of a method.
pub struct PeftAdapter<M> {
    method: M,
    kept: Kept,
}

impl<M: Method + 'static> PeftAdapter<M> {
    /// The part that a PEFT config describes, if it is this method's.
    pub fn from_peft(config: &Json) -> Option<Result<AnyPart>> {
        (config["peft_type"].as_str() == Some(M::PEFT_TYPE) && M::reads(config)).then(|| {
            let method = config::read::<M>(config)?;
            Ok(AnyPart::Adapter(Box::new(PeftAdapter { method, kept: Kept::default() })))
        })
    }
}

impl<M: Method> Part for PeftAdapter<M> {
    type Settings = M::Settings;

    fn new(settings: M::Settings) -> Result<Self> {
        Ok(PeftAdapter { method: M::new(settings)?, kept: Kept::default() })
    }
}

impl<M: Method> Adapter for PeftAdapter<M> {
    fn attach(&mut self, cx: &mut AttachContext<'_>) -> Result<Vec<String>> {
        let sites: Rc<Sites> = cx.sites.clone();
        let kept = &mut self.kept;
        kept.select(&sites, &self.method.targeting())?;
        self.method.prepare(kept, cx)?;
        for path in kept.targets().to_vec() {
            let site = sites.linear(&path)?;
            site.attach(self.method.adapt(kept, cx, site)?);
        }
        let at = self.method.targeting();
        kept.add_modules(cx, at.modules_to_save)?;
        kept.claim_biases(cx, at.biases)?;
        Ok(kept.targets().to_vec())
    }

    fn load(&mut self, source: &mut dyn WeightSource) -> Result<()> {
        self.kept.load(source, |key| self.method.optional(key))?;
        self.method.loaded();
        Ok(())
    }

    fn file(&self, base: &str) -> Result<AdapterFile> {
        let saved = self.kept.tensors().filter(|(key, _)| self.method.saves(key));
        Ok(AdapterFile {
            config: config::write(&self.method, self.kept.targets(), base),
            tensors: saved.map(|(key, p)| (key.to_owned(), p.value())).collect(),
            extra: Json::Null,
        })
    }

    fn params(&self) -> Vec<(String, Arc<Param>)> {
        self.kept.params().map(|(key, p)| (key.to_owned(), p.clone())).collect()
    }

    fn groups(&self, _: f64) -> Vec<(ParamId, ParamGroup)> {
        self.method.groups(&self.kept)
    }

    fn unmergeable(&self) -> Option<String> {
        self.method.unmergeable()
    }
}
