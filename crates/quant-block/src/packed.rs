//! What both formats need to be a part: which linears they take, and a packed
//! weight as the model's linears see it.

use std::sync::Arc;

use anyhow::Result;
use ramekin_core::pattern::ends_in;
use ramekin_core::{BadSetting, Category, Lease, UserError};
use ramekin_kernels::packed_rows::Layout;
use ramekin_slots::{Apart, PackedWeight};

use crate::codec::CodecError;
use crate::nf4_codec::Nf4Data;
use crate::rtn_codec::RtnData;

/// Codes and scales of either format.
pub(crate) enum Codes {
    Nf4(Nf4Data),
    Rtn(RtnData),
    /// Bytes alone, for a plan: those of the codes.
    ShapeOnly(u64),
}

/// A packed weight, on the meter.
pub(crate) struct Packed {
    codes: Codes,
    shape: (usize, usize),
    lease: Arc<Lease>,
    bytes: u64,
}

impl Packed {
    pub(crate) fn hold(codes: Codes, shape: (usize, usize), bytes: u64) -> Arc<dyn PackedWeight> {
        Arc::new(Packed { codes, shape, lease: Lease::new(Category::Weights, bytes), bytes })
    }
}

impl PackedWeight for Packed {
    fn shape(&self) -> (usize, usize) {
        self.shape
    }

    fn bytes(&self) -> u64 {
        debug_assert!(Arc::strong_count(&self.lease) > 0);
        self.bytes
    }

    fn is_shape_only(&self) -> bool {
        matches!(self.codes, Codes::ShapeOnly(_))
    }

    /// The codes move; the scales, a few per cent of them, stay.
    fn apart(&self) -> Option<Apart> {
        let (shape, bytes) = (self.shape, self.bytes);
        let bulk = match &self.codes {
            Codes::Nf4(d) => d.packed.clone(),
            Codes::Rtn(d) => d.packed.clone(),
            Codes::ShapeOnly(_) => Vec::new(),
        };
        let moving = match &self.codes {
            Codes::ShapeOnly(n) => *n,
            _ => bulk.len() as u64,
        };
        let rest = match &self.codes {
            Codes::Nf4(d) => Codes::Nf4(Nf4Data { packed: Vec::new(), ..d.clone() }),
            Codes::Rtn(d) => Codes::Rtn(RtnData { packed: Vec::new(), ..d.clone() }),
            Codes::ShapeOnly(n) => Codes::ShapeOnly(*n),
        };
        let scales = Lease::new(Category::Weights, bytes - moving);
        let rebuild = move |packed: Vec<u8>| -> Result<Arc<dyn PackedWeight>> {
            let _ = &scales; // held for as long as the weight may come back
            let codes = match &rest {
                Codes::Nf4(d) => Codes::Nf4(Nf4Data { packed, ..d.clone() }),
                Codes::Rtn(d) => Codes::Rtn(RtnData { packed, ..d.clone() }),
                Codes::ShapeOnly(n) => Codes::ShapeOnly(*n),
            };
            let lease = Lease::new(Category::Weights, moving);
            Ok(Arc::new(Packed { codes, shape, lease, bytes }))
        };
        Some(Apart { bulk, bytes: moving, rebuild: Box::new(rebuild) })
    }

    fn layout(&self) -> Option<Layout<'_>> {
        match &self.codes {
            Codes::Nf4(d) => Some(Layout::Table(d.layout())),
            Codes::Rtn(d) => Some(Layout::Grid(d.layout())),
            Codes::ShapeOnly(_) => None,
        }
    }

    fn rows_f32(&self, first: usize, out: &mut [f32]) {
        match &self.codes {
            Codes::Nf4(d) => d.rows_into(first, out),
            Codes::Rtn(d) => d.rows_into(first, out),
            Codes::ShapeOnly(_) => {}
        }
    }

    fn rows_f64(&self, first: usize, out: &mut [f64]) {
        match &self.codes {
            Codes::Nf4(d) => d.rows_into(first, out),
            Codes::Rtn(d) => d.rows_into(first, out),
            Codes::ShapeOnly(_) => {}
        }
    }
}

/// Whether a linear is packed: everything but what the recipe leaves out.
pub(crate) fn takes(path: &str, left_out: &[String]) -> bool {
    !left_out.iter().any(|name| ends_in(path, name))
}

/// A codec's refusal in the recipe's terms: of a setting where a setting is to blame.
pub(crate) fn refuse(name: &str, e: CodecError) -> anyhow::Error {
    match &e {
        CodecError::Bits(_) => BadSetting::new("bits", e.to_string()).into(),
        CodecError::BlockSize(_) => BadSetting::new("block_size", e.to_string()).into(),
        CodecError::GroupSize { .. } => {
            BadSetting::new("group_size", format!("does not fit `{name}`: {e}")).into()
        }
        _ => UserError::new(format!("`{name}`: {e}")).into(),
    }
}

/// Settings that make no sense for any weight.
pub(crate) fn check<T>(result: Result<T, CodecError>) -> Result<()> {
    result.map(drop).map_err(|e| refuse("any weight", e))
}
