//! NF4: 4-bit codes at the quantiles of a normal distribution, in bitsandbytes' layout.
//!
//! ŵ = code\[q\] · absmax of the block; with double quantisation the absmax are 8-bit codes themselves.
//!
//! Source: Dettmers et al. 2023, arXiv:2305.14314; sheet `quant-family`, items 2 and 3.

use std::sync::Arc;

use anyhow::Result;
use ramekin_registry::{Part, part};
use ramekin_slots::{PackedWeight, Quantizer};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::nf4_codec::{Nf4Data, Nf4Spec, packed_bytes};
use crate::packed::{Codes, Packed, check, refuse, takes};

part! { quantizer / "nf4" => Nf4, "4-bit normal-float blocks, with 8-bit scales (QLoRA)",
source = "arXiv:2305.14314; sheet quant-family", traits = [FreezesBase] }

/// Settings of `quantizer = { kind = "nf4", … }`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Nf4Settings {
    /// Numbers that share a scale: a power of two from 32 to 4096.
    pub block_size: usize,
    /// Packs the scales to 8 bits: 4.13 bits a weight instead of 4.5.
    #[serde(alias = "bnb_4bit_use_double_quant", alias = "use_double_quant")]
    pub double_quant: bool,
    /// Linears to leave as they are, by name or path ending; the head always stays.
    pub modules_to_not_convert: Vec<String>,
}

impl Default for Nf4Settings {
    fn default() -> Self {
        Nf4Settings { block_size: 64, double_quant: true, modules_to_not_convert: Vec::new() }
    }
}

/// The quantizer.
pub struct Nf4 {
    spec: Nf4Spec,
    left_out: Vec<String>,
}

impl Part for Nf4 {
    type Settings = Nf4Settings;

    fn new(s: Nf4Settings) -> Result<Self> {
        let spec = Nf4Spec { block_size: s.block_size, double_quant: s.double_quant };
        check(packed_bytes((1, 64), spec))?;
        Ok(Nf4 { spec, left_out: s.modules_to_not_convert })
    }
}

impl Quantizer for Nf4 {
    fn name(&self) -> &'static str {
        "nf4"
    }

    fn converts(&self, path: &str) -> bool {
        takes(path, &self.left_out)
    }

    fn pack(&self, name: &str, weight: &[f32], shape: (usize, usize)) -> Result<Arc<dyn PackedWeight>> {
        let data = Nf4Data::encode(weight, shape, self.spec).map_err(|e| refuse(name, e))?;
        let bytes = data.bytes();
        Ok(Packed::hold(Codes::Nf4(data), shape, bytes))
    }

    fn pack_shape(&self, name: &str, shape: (usize, usize)) -> Result<Arc<dyn PackedWeight>> {
        let bytes = packed_bytes(shape, self.spec).map_err(|e| refuse(name, e))?;
        Ok(Packed::hold(Codes::ShapeOnly((shape.0 * shape.1).div_ceil(2) as u64), shape, bytes))
    }

    fn module_names_left_out(&self) -> &[String] {
        &self.left_out
    }
}
