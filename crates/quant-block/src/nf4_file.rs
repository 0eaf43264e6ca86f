//! NF4 weights in files: the tensors that bitsandbytes writes beside `weight`.
//!
//! | tensor | type and shape | holds |
//! |---|---|---|
//! | `weight` | u8 `[⌈n/2⌉, 1]` | codes |
//! | `weight.absmax` | f32 or, doubly quantised, u8 `[blocks]` | scales |
//! | `weight.nested_absmax` | f32 `[⌈blocks/256⌉]` | scales of the scales |
//! | `weight.quant_map`, `weight.nested_quant_map` | f32 `[16]`, `[256]` | code books |
//! | `weight.quant_state.bitsandbytes__nf4` | u8, JSON | block sizes, offset, shape, dtype before packing |

use std::sync::Arc;

use serde::Deserialize;

use crate::codec::{ByteTensor, CodecError};
use crate::dynamic_code::signed;
use crate::nf4_codec::{Absmax, NESTED_BLOCK, NF4, Nf4Data, check_block_size};

impl Nf4Data {
    /// The tensors of bitsandbytes' files. `weight` is the weight's name (`….weight`), `dtype` torch's name
    /// of the type that it had before (`float32`, `bfloat16`, `float16`).
    pub fn to_tensors(&self, weight: &str, dtype: &str) -> Vec<ByteTensor> {
        let (rows, columns) = self.shape;
        let named = |suffix: &str| format!("{weight}.{suffix}");
        let blocks = vec![self.absmax.blocks()];
        let mut state = format!(
            "{{\"quant_type\": \"nf4\", \"blocksize\": {}, \"dtype\": \"{dtype}\", \"shape\": [{rows}, {columns}]",
            self.block_size
        );
        let mut tensors =
            vec![ByteTensor::u8(weight.to_owned(), vec![self.packed.len(), 1], self.packed.clone())];
        match &self.absmax {
            Absmax::Plain(absmax) => tensors.push(ByteTensor::f32(named("absmax"), blocks, absmax)),
            Absmax::Nested { codes, absmax, offset, map } => {
                tensors.push(ByteTensor::u8(named("absmax"), blocks, codes.clone()));
                tensors.push(ByteTensor::f32(named("nested_absmax"), vec![absmax.len()], absmax));
                tensors.push(ByteTensor::f32(named("nested_quant_map"), vec![256], &map[..]));
                // Every digit of the f32 as a double, which is how Python writes it.
                state += &format!(
                    ", \"nested_blocksize\": {NESTED_BLOCK}, \"nested_dtype\": \"float32\", \"nested_offset\": {:?}",
                    f64::from(*offset)
                );
            }
        }
        tensors.push(ByteTensor::f32(named("quant_map"), vec![16], &NF4));
        state.push('}');
        tensors.push(ByteTensor::u8(named(STATE), vec![state.len()], state.into_bytes()));
        tensors
    }

    /// Reads what [`Nf4Data::to_tensors`] or bitsandbytes wrote; `get` finds a tensor by its name.
    ///
    /// # Errors
    /// [`CodecError::Missing`], [`CodecError::Tensor`] or [`CodecError::Content`], naming the tensor.
    pub fn from_tensors(weight: &str, get: impl Fn(&str) -> Option<ByteTensor>) -> Result<Self, CodecError> {
        let find = |name: String| get(&name).ok_or(CodecError::Missing(name));
        let named = |suffix: &str| format!("{weight}.{suffix}");
        let state = State::read(find(named(STATE))?)?;
        let shape = (state.shape[0], state.shape[1]);
        let n = state.shape[0] * state.shape[1];
        let codes = find(weight.to_owned())?;
        if codes.bytes.len() != n.div_ceil(2) {
            return Err(codes.unlike(format!(
                "{} bytes of codes for {}×{}",
                n.div_ceil(2),
                shape.0,
                shape.1
            )));
        }
        let map = find(named("quant_map"))?;
        let name = map.name.clone();
        if map.into_f32(16)?.iter().zip(NF4).any(|(a, b)| (a - b).abs() > 1e-6) {
            return Err(CodecError::Content { name, why: "is not the NF4 code book".to_owned() });
        }
        let blocks = n.div_ceil(state.blocksize);
        let absmax = match state.nested_offset {
            None => Absmax::Plain(find(named("absmax"))?.into_f32(blocks)?),
            Some(offset) => {
                let map = find(named("nested_quant_map"))?.into_f32(256)?;
                let usual = map[..] == signed()[..];
                let map = if usual { signed().clone() } else { Arc::new(std::array::from_fn(|i| map[i])) };
                Absmax::Nested {
                    codes: find(named("absmax"))?.into_u8(blocks)?,
                    absmax: find(named("nested_absmax"))?.into_f32(blocks.div_ceil(NESTED_BLOCK))?,
                    offset: offset as f32,
                    map,
                }
            }
        };
        Ok(Nf4Data { packed: codes.bytes, absmax, block_size: state.blocksize, shape })
    }
}

const STATE: &str = "quant_state.bitsandbytes__nf4";

/// What bitsandbytes writes as JSON beside the tensors; its other keys do not change the numbers.
#[derive(Deserialize)]
struct State {
    quant_type: String,
    blocksize: usize,
    shape: Vec<usize>,
    nested_blocksize: Option<usize>,
    nested_offset: Option<f64>,
}

impl State {
    fn read(tensor: ByteTensor) -> Result<State, CodecError> {
        let name = tensor.name.clone();
        let bad = |why: String| CodecError::Content { name: name.clone(), why };
        let len = tensor.bytes.len();
        let state: State = serde_json::from_slice(&tensor.into_u8(len)?).map_err(|e| bad(e.to_string()))?;
        if state.quant_type != "nf4" {
            return Err(bad(format!("`quant_type` is `{}`; expected `nf4`", state.quant_type)));
        }
        check_block_size(state.blocksize).map_err(|_| {
            bad(format!("`blocksize` is {}; it must be a power of two from 32 to 4096", state.blocksize))
        })?;
        let (rows, columns) = match state.shape[..] {
            [rows, columns] => (rows, columns),
            _ => {
                return Err(bad(format!("`shape` is {:?}; expected outputs and inputs", state.shape)));
            }
        };
        if rows.checked_mul(columns).is_none_or(|n| n > isize::MAX as usize) {
            return Err(bad(format!("`shape` is {rows}×{columns}, more than any file holds")));
        }
        if state.nested_offset.is_some_and(|o| !(o as f32).is_finite()) {
            return Err(bad("`nested_offset` is not finite".to_owned()));
        }
        if state.nested_offset.is_some() && state.nested_blocksize != Some(NESTED_BLOCK) {
            return Err(bad(format!(
                "`nested_blocksize` is {:?}; expected {NESTED_BLOCK}",
                state.nested_blocksize
            )));
        }
        Ok(state)
    }
}
