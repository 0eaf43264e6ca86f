//! Low-rank adapters in PEFT's parametrisation.
//!
//! | kind | y | source |
//! |---|---|---|
//! | `lora` | Wx + b + s·B A drop(x), s = alpha/r (rsLoRA: alpha/√r) | arXiv:2106.09685, 2312.03732 |
//! | `dora` | g ⊙ (Wx + s·B A x) + b, g = m / ‖W + s·B A‖ by row | arXiv:2402.09353 |
//!
//! Both are `LoraConfig` in PEFT, told apart by `use_dora`; the config's common part is `config`.

mod config;
mod dora;
mod lora;
mod low_rank;
mod settings;

pub use dora::Dora;
pub use lora::Lora;
pub use settings::{Bias, InitWeights, LoraSettings};
