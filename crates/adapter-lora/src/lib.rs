//! Low-rank adapters in PEFT's parametrisation.
//!
//! | kind | y | source |
//! |---|---|---|
//! | `lora` | Wx + b + s·B A drop(x), s = alpha/r (rsLoRA: alpha/√r) | arXiv:2106.09685, 2312.03732 |
//!
//! Files are PEFT's own, both ways ([`file`]).

mod file;
mod lora;
mod settings;

pub use lora::Lora;
pub use settings::{Bias, InitWeights, LoraSettings};
