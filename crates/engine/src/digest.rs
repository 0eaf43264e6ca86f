//! What a model is known by, the SHA-256 of its tensors however they lie in files, and what is noted beside it.

use std::path::Path;

use anyhow::{Context, Result};
use candle_core::DType;
use ramekin_core::Array;
use ramekin_recipe::Part;
use ramekin_slots::WeightSource;
use serde::Deserialize as _;
use serde_json::{Value as Json, json};
use sha2::{Digest, Sha256};

use crate::blueprint::Blueprint;
use crate::inputs::Origin;

/// The file beside a model or an adapter that holds what public files have no place for.
pub const BESIDE: &str = "ramekin.json";

/// The key of [`BESIDE`] with the digests of every base that a model was tuned from, the nearest first.
pub const BASES: &str = "base_sha256";

/// The key of [`BESIDE`] with what tokens saw in training, where that is not what the config says.
pub const ATTENTION: &str = "attention";

/// SHA-256 over name, shape, type and bytes of every tensor, in the order of names.
pub fn tensors(source: &mut dyn WeightSource) -> Result<String> {
    let mut names = source.names();
    names.sort();
    let mut sha = Sha256::new();
    for name in names {
        let info = source.info(&name).with_context(|| format!("`{name}` cannot be read"))?;
        sha.update(format!("{name}\0{:?}\0{:?}\0", info.dtype, info.dims));
        let array = source.read(&name, &info.dims)?;
        hash(&mut sha, &array)?;
    }
    Ok(sha.finalize().iter().map(|b| format!("{b:02x}")).collect())
}

fn hash(sha: &mut Sha256, array: &Array) -> Result<()> {
    macro_rules! by_type {
        ($($dtype:ident => $t:ty),*) => {
            match array.dtype() {
                $(DType::$dtype => sha.update(bytemuck::cast_slice::<$t, u8>(&array.view::<$t>()?)),)*
                _ => sha.update(bytemuck::cast_slice::<f32, u8>(&array.to_f32()?)),
            }
        };
    }
    by_type!(F32 => f32, F64 => f64, BF16 => half::bf16, F16 => half::f16, U8 => u8, U32 => u32, I64 => i64);
    Ok(())
}

/// The digests of the bases that a folder's model or adapter was tuned from; none where nobody noted them.
pub fn bases(beside: &Json) -> Vec<String> {
    beside[BASES].as_array().into_iter().flatten().filter_map(|s| s.as_str().map(str::to_owned)).collect()
}

/// [`BESIDE`] of a model's folder, or nothing.
pub fn beside(origin: &Origin) -> Json {
    parsed(origin.file(BESIDE))
}

/// [`BESIDE`] of an adapter's folder, or nothing.
pub fn beside_in(folder: &Path) -> Json {
    parsed(std::fs::read(folder.join(BESIDE)).ok())
}

fn parsed(text: Option<Vec<u8>>) -> Json {
    text.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or(Json::Null)
}

/// What tokens saw in a model's or an adapter's training, as its [`BESIDE`] says.
///
/// # Errors
/// If it is no part.
pub fn attention(beside: &Json) -> Result<Option<Part>> {
    let noted = Some(&beside[ATTENTION]).filter(|noted| !noted.is_null());
    noted
        .map(|noted| Part::deserialize(noted).with_context(|| format!("`{ATTENTION}` of {BESIDE}")))
        .transpose()
}

/// What is noted of the model that a blueprint begins with, for models tuned from it; fresh weights are no base.
pub fn lineage(plan: &Blueprint) -> Result<Json> {
    let (origin, config) = plan.config()?;
    if let Origin::Init = origin {
        return Ok(json!([]));
    }
    let mut all = vec![tensors(&mut *plan.weights(&origin, &config)?)?];
    all.extend(bases(&beside(&origin)));
    Ok(json!(all))
}
