//! RTN: round to nearest on an even grid, group by group along the inputs.
//!
//! asymmetric: scale = (hi − lo)/(2ᵇ − 1), zero = round(−lo/scale); symmetric: lo = −hi, zero = 2ᵇ⁻¹
//! ŵ = scale · (q − zero)
//!
//! Source: sheet `quant-family`, item 1.

use std::sync::Arc;

use anyhow::Result;
use ramekin_core::BadSetting;
use ramekin_kernels::packed::stream_bytes;
use ramekin_registry::{Part, part};
use ramekin_slots::{PackedWeight, Quantizer};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::packed::{Codes, Packed, check, refuse, takes};
use crate::rtn_codec::{RtnData, RtnSpec, ScaleDtype, packed_bytes};

part! { quantizer / "rtn" => Rtn, "round to nearest in groups: 8, 4, 3 or 2 bits",
source = "sheet quant-family", traits = [FreezesBase] }

/// Settings of `quantizer = { kind = "rtn", … }`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RtnSettings {
    /// Bits a weight: 8, 4, 3 or 2.
    pub bits: u32,
    /// Inputs that share a scale; −1 for a whole row.
    pub group_size: i64,
    /// A grid that is even around 0; else one from the smallest to the largest weight.
    pub sym: bool,
    /// `f32`, or `bf16`, which takes half a bit less a weight in groups of 32.
    pub scale_dtype: ScaleDtype,
    /// Bits of the head's weight; it stays as it is without.
    pub lm_head_bits: Option<u32>,
    /// Bits of activations in forwards, 8: 32 inputs share a scale, as in llama.cpp. Prompts take two thirds of the
    /// time; without, activations are not rounded beyond the model's `dtype`.
    pub act_bits: Option<u32>,
    /// Linears to leave as they are, by name or path ending.
    pub modules_to_not_convert: Vec<String>,
}

impl Default for RtnSettings {
    fn default() -> Self {
        RtnSettings {
            bits: 4,
            group_size: 128,
            sym: true,
            scale_dtype: ScaleDtype::F32,
            lm_head_bits: None,
            act_bits: None,
            modules_to_not_convert: Vec::new(),
        }
    }
}

/// The quantizer.
pub struct Rtn {
    spec: RtnSpec,
    head: Option<Box<Rtn>>,
    int8: bool,
    left_out: Vec<String>,
}

impl Part for Rtn {
    type Settings = RtnSettings;

    fn new(s: RtnSettings) -> Result<Self> {
        let spec = RtnSpec { bits: s.bits, group_size: s.group_size, sym: s.sym, scale_dtype: s.scale_dtype };
        // A width that every positive group size divides: only the settings themselves can be wrong.
        let width = usize::try_from(s.group_size).ok().filter(|g| *g > 0).unwrap_or(64);
        check(packed_bytes((1, width), spec))?;
        let sound = s.act_bits.is_none_or(|bits| bits == 8);
        BadSetting::unless(sound, "act_bits", s.act_bits.unwrap_or(8), "8, or left out")?;
        let int8 = s.act_bits.is_some();
        let head = s.lm_head_bits.map(|bits| {
            let spec = RtnSpec { bits, ..spec };
            let sound = packed_bytes((1, width), spec);
            sound.map_err(|e| BadSetting::new("lm_head_bits", e.to_string()))?;
            Ok::<_, anyhow::Error>(Box::new(Rtn { spec, head: None, int8, left_out: Vec::new() }))
        });
        Ok(Rtn { spec, head: head.transpose()?, int8, left_out: s.modules_to_not_convert })
    }
}

impl Quantizer for Rtn {
    fn name(&self) -> &'static str {
        "rtn"
    }

    fn converts(&self, path: &str) -> bool {
        takes(path, &self.left_out)
    }

    fn for_head(&self) -> Option<(&dyn Quantizer, &'static str)> {
        Some((self.head.as_deref()?, "lm_head_bits"))
    }

    fn rounds_activations(&self) -> bool {
        self.int8
    }

    fn pack(&self, name: &str, weight: &[f32], shape: (usize, usize)) -> Result<Arc<dyn PackedWeight>> {
        let data = RtnData::encode(weight, shape, self.spec).map_err(|e| refuse(name, e))?;
        let bytes = data.bytes();
        Ok(Packed::hold(Codes::Rtn(data), shape, bytes))
    }

    fn pack_shape(&self, name: &str, shape: (usize, usize)) -> Result<Arc<dyn PackedWeight>> {
        let bytes = packed_bytes(shape, self.spec).map_err(|e| refuse(name, e))?;
        let codes = (shape.0 * stream_bytes(shape.1, self.spec.bits)) as u64;
        Ok(Packed::hold(Codes::ShapeOnly(codes), shape, bytes))
    }

    fn module_names_left_out(&self) -> &[String] {
        &self.left_out
    }
}
