//! Quantizers that round blocks of a weight: rtn and nf4.
//!
//! | format | stores | module |
//! |---|---|---|
//! | nf4 | 4-bit codes of a normal distribution's quantiles, one scale a block | [`nf4_codec`] |
//! | rtn | 2, 3, 4 or 8 bits on an even grid, one scale (and zero) a group | [`rtn_codec`] |
//!
//! The codecs are functions on slices that know nothing of models or recipes. What the sheet
//! `quant-family` asks of them is tested in the workspace's `tests`.

pub mod codec;
pub mod nf4;
pub mod nf4_codec;
mod nf4_file;
mod packed;
pub mod rtn;
pub mod rtn_codec;

pub use ramekin_kernels::dynamic_code;
