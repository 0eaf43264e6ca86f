//! Numerical operations on slices: the formula, a plain reference and the fast CPU twin of each.
//!
//! Every operation is one file: its formula at the head, a `reference` that is obviously right in any
//! precision, and the fast twin that the engine calls. All are generic over [`Real`] (`f32` for work,
//! `f64` for checking gradients) and know nothing of tensors, devices or recipes.
//!
//! Three rules hold for all of them.
//! * **Same bits for any number of threads.** Work is cut by shape alone, never by the size of the
//!   pool, and partial results meet in a fixed order.
//! * **A bad value stays in its row.** NaN or infinity in a row of the input touches that row of the
//!   output only (and, in gradients of weights, what that row contributes to).
//! * **Lengths are the caller's promise.** A wrong slice length is a bug in the caller and panics; each
//!   function says what it expects.
//!
//! Inner loops are plain Rust that the compiler vectorises; they are compiled for AVX-512, AVX2 and the
//! baseline, and the widest one that the machine offers is taken at run time ([`cpu`]).

pub mod activation;
pub mod adafactor;
pub mod adamw;
pub mod adamw8bit;
pub mod attention;
pub mod bf16;
pub mod box_muller;
pub mod broadcast;
pub mod cpu;
pub mod cross_entropy;
pub mod divergence;
mod dot;
pub mod dynamic_code;
pub mod elementwise;
pub mod embedding;
pub mod int8;
pub mod khatri_rao;
pub mod layer_norm;
pub mod linear;
pub mod lion;
pub mod matching;
pub mod matmul;
pub mod merge_rows;
pub mod narrow;
pub mod packed;
pub mod packed_rows;
#[cfg(target_arch = "x86_64")]
mod panels;
pub mod perturb;
pub mod philox;
pub mod reactivate;
pub mod real;
mod registers;
pub mod relu_attention;
pub mod rms_norm;
pub mod rope;
pub mod row_norm;
pub mod sampling;
pub mod scale_shift;
pub mod scratch;
pub mod segment_mean;
pub mod sgd;
pub mod softmax_mix;
mod split;
pub mod swiglu;
pub mod team;
#[cfg(test)]
mod testing;
mod tile;
mod unwritten;
mod wide;

pub use real::Real;
pub use split::{in_pieces, in_pieces_beside};
pub use unwritten::unwritten;
