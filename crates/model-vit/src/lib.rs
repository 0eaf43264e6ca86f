//! Vision transformers: an image in patches, its class at the class token.
//!
//! h = [class, patches·W + b] + positions; one block: `h += o(attn(norm(h)))`, `h += down(gelu(up(norm(h))))`,
//! every token seeing all of its image; then a norm and the classifier.
//!
//! Source: Dosovitskiy et al. 2020, arXiv:2010.11929; sheet `model-architectures`, section 6.

mod config;
mod model;
mod patches;

use std::rc::Rc;

use anyhow::Result;
use ramekin_registry::{Part, part};
use ramekin_slots::{Loader, Model, ModelFacts, ModelFamily};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

pub use config::VitConfig;
pub use model::VitModel;

part! { model / "vit" => Vit, "vision transformers that tell the class of an image",
source = "arXiv:2010.11929", traits = [] }

/// A model has no settings beside its `config.json`.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct VitSettings {}

/// The architecture.
pub struct Vit;

impl Part for Vit {
    type Settings = VitSettings;

    fn new(_: VitSettings) -> Result<Self> {
        Ok(Vit)
    }
}

impl ModelFamily for Vit {
    fn facts(&self, config: &Json) -> Result<ModelFacts> {
        Ok(VitConfig::parse(config)?.facts())
    }

    fn build(&self, config: &Json, loader: &mut Loader<'_>) -> Result<Rc<dyn Model>> {
        Ok(Rc::new(VitModel::load(VitConfig::parse(config)?, loader)?))
    }
}
