//! The registered names, by `model_type`.

use std::rc::Rc;

use anyhow::Result;
use ramekin_registry::{Part, part};
use ramekin_slots::{Loader, Model, ModelFacts, ModelFamily};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::config::LlamaConfig;
use crate::model::LlamaModel;

/// A model has no settings beside its `config.json`.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct FamilySettings {}

macro_rules! family {
    ($type:ident, $name:literal, $summary:literal, $source:literal) => {
        part! { model / $name => $type, $summary, source = $source, traits = [] }

        #[doc = $summary]
        pub struct $type;

        impl Part for $type {
            type Settings = FamilySettings;

            fn new(_: FamilySettings) -> Result<Self> {
                Ok($type)
            }
        }

        impl ModelFamily for $type {
            fn facts(&self, config: &Json) -> Result<ModelFacts> {
                Ok(LlamaConfig::parse(config)?.facts())
            }

            fn build(&self, config: &Json, loader: &mut Loader<'_>) -> Result<Rc<dyn Model>> {
                Ok(Rc::new(LlamaModel::load(LlamaConfig::parse(config)?, loader)?))
            }

            fn add_biases(&self, config: &mut Json, linears: &[String]) -> Result<Vec<String>> {
                crate::config::add_biases(config, linears)
            }
        }
    };
}

family!(
    Llama,
    "llama",
    "Llama 1 to 3 and their kin, with linear and llama3 rope scaling",
    "arXiv:2302.13971, 2407.21783"
);
family!(Mistral, "mistral", "Mistral, with its sliding window", "arXiv:2310.06825");
family!(Qwen2, "qwen2", "Qwen2 and Qwen2.5: biases on q, k and v", "arXiv:2407.10671");
family!(Qwen3, "qwen3", "Qwen3: norms of q and k a head", "arXiv:2505.09388");
