//! The llama family: Llama 1 to 3, Mistral, Qwen2 and Qwen3.
//!
//! One block: `h += o(attn(norm(h)))`, `h += down(silu(gate(n)) ⊙ up(n))`.
//! What differs is in the config: biases of q, k, v (Qwen2), norms of q and k
//! a head (Qwen3), a sliding window (Mistral), rope scaling (Llama 3).
//!
//! Source: sheet `model-architectures`, section 1.

mod config;
mod family;
mod model;
mod rope;

pub use config::LlamaConfig;
pub use family::{Llama, Mistral, Qwen2, Qwen3};
pub use model::LlamaModel;
