//! What the files of PEFT's prompt-learning configs share.

use anyhow::{Result, ensure};
use ramekin_core::{Category, DType, Param, UserError};
use ramekin_slots::WeightSource;
use serde_json::{Value as Json, json};

/// The one tensor's name in files.
pub const TENSOR: &str = "prompt_embeddings";

/// The parameter's name in PEFT's `named_parameters`, without the adapter's name.
pub const NAME: &str = "prompt_encoder.embedding.weight";

/// Sizes of the model that every config repeats, and one that is read nowhere here.
pub const FOREIGN: [(&str, &[&str]); 4] = [
    ("num_attention_heads", &[]),
    ("num_layers", &[]),
    ("token_dim", &[]),
    ("num_transformer_submodules", &["1", "null"]),
];

/// What every config says of the model.
pub fn sizes(layers: usize, heads: usize, width: usize) -> Json {
    json!({
        "num_attention_heads": heads, "num_layers": layers, "num_transformer_submodules": 1,
        "token_dim": width, "modules_to_save": null,
    })
}

/// Reads the one tensor.
///
/// # Errors
/// If it is missing, has another shape, or is not alone.
pub fn load(param: &Param, source: &mut dyn WeightSource) -> Result<()> {
    let (label, dims) = (source.label(), param.value().dims().to_vec());
    let Some(info) = source.info(TENSOR) else {
        let message = format!("the adapter has no tensor `{TENSOR}`");
        return Err(UserError::new(message).in_file(label).into());
    };
    if info.dims != dims {
        let message =
            format!("the tensor `{TENSOR}` is {:?} in the file; this model needs {dims:?}", info.dims);
        return Err(UserError::new(message).in_file(label).into());
    }
    if let Some(other) = source.names().iter().find(|n| *n != TENSOR) {
        let message = format!("the adapter's tensor `{other}` fits nothing in this model");
        return Err(UserError::new(message).in_file(label).into());
    }
    let value = source.read(TENSOR, &dims)?.to_dtype(DType::F32, Category::Trainable)?;
    ensure!(value.dims() == dims, "`{TENSOR}` was read as {:?}", value.dims());
    param.set(value);
    Ok(())
}
