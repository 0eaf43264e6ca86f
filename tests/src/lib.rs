//! Shared helpers of the workspace-wide tests.
//!
//! Most tests cook a small recipe with the binary, as a user would
//! ([`Kitchen`]); those that look inside assemble a model with the library
//! ([`lab`]), and train on tasks of seconds ([`toy`]). Numbers are compared by [`compare`].

pub mod compare;
pub mod decoding;
pub mod domains;
pub mod images;
pub mod kitchen;
pub mod lab;
pub mod recall;
pub mod selecting;
pub mod suite;
pub mod toy;
pub mod toy_model;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Tensor};
pub use kitchen::{Kitchen, Outcome};
use ramekin_store::Index;

/// The folder beside the project with goldens and data; says so when it is not there.
pub fn shared(test: &str) -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared");
    if !folder.join("goldens").is_dir() {
        println!("skipped {test}: ../shared is not here");
        return None;
    }
    Some(folder.canonicalize().expect("the folder is there"))
}

/// A folder of goldens, by the case's name.
pub fn golden(case: &str) -> Option<PathBuf> {
    Some(shared(case)?.join("goldens").join(case))
}

/// The tensors of a safetensors file or folder, by name.
pub type Tensors = BTreeMap<String, Tensor>;

/// Reads every tensor.
pub fn tensors(path: &Path) -> Tensors {
    let index = Index::open(path).expect("a safetensors file");
    index.names().map(|n| (n.to_owned(), index.read(n).expect("a tensor"))).collect()
}

/// The numbers of a tensor as f32, in order.
pub fn floats(t: &Tensor) -> Vec<f32> {
    let flat = t.to_dtype(DType::F32).and_then(|t| t.flatten_all());
    flat.and_then(|t| t.to_vec1()).expect("numbers")
}

/// The numbers of a tensor of integers, in order.
pub fn integers(t: &Tensor) -> Vec<i64> {
    let flat = t.to_dtype(DType::I64).and_then(|t| t.flatten_all());
    flat.and_then(|t| t.to_vec1()).expect("integers")
}

/// The rows of a `[rows, columns]` tensor of ids.
pub fn id_rows(t: &Tensor) -> Vec<Vec<u32>> {
    let width = t.dims()[1];
    integers(t).chunks(width).map(|row| row.iter().map(|id| *id as u32).collect()).collect()
}

/// Writes a file of token ids, `[rows, columns]`, for stages that read one.
pub fn write_ids(path: &Path, rows: &[Vec<u32>]) {
    let width = rows[0].len();
    let all: Vec<i64> = rows.iter().flatten().map(|id| i64::from(*id)).collect();
    let ids =
        Tensor::from_vec(all, (rows.len(), width), &candle_core::Device::Cpu).expect("rows of one length");
    ramekin_store::write_safetensors(path, &[("input_ids".to_owned(), ids.into())], &[])
        .expect("a written file");
}

/// SHA-256 of a file.
pub fn sha256(path: &Path) -> String {
    ramekin_engine::checkpoint::sha256(path).expect("a file that can be read")
}
