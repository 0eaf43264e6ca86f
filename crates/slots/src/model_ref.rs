//! Other models that a part's settings name: a teacher, a reference, a draft.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Another model: `{ source = "…" }`. It is frozen; its tokenizer must be the stage's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ModelRef {
    /// `hf:ORG/NAME`, a folder, or `builtin:NAME`.
    pub source: String,
    /// The type weights are held in: `f32`, `bf16` or `f16`. Default: the type that the files store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dtype: Option<String>,
    /// Branch, tag or commit of a `hf:` source. Default: `main`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// How its linears are packed: a quantizer's name, such as `nf4`. Default: not at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantizer: Option<String>,
    /// Folder of a saved adapter on top of it. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter: Option<String>,
}
