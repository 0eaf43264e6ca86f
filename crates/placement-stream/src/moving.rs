//! A tensor of a block that comes and goes, and what stands in its place.

use std::sync::Arc;

use anyhow::Result;
use ramekin_core::{Array, DType, Param};
use ramekin_slots::{LinearBase, PackedWeight, Rebuild, Sites};

/// What a moving tensor is when it is here.
pub enum What {
    /// A parameter.
    Dense {
        /// The parameter.
        param: Arc<Param>,
        /// Its dimensions.
        dims: Vec<usize>,
        /// Its type.
        dtype: DType,
    },
    /// The packed weight of a linear.
    Packed {
        /// The linear's path.
        path: String,
        /// From the bytes to the weight.
        rebuild: Rebuild,
    },
}

impl What {
    /// A parameter as it is now.
    pub fn dense(param: &Arc<Param>) -> Self {
        let value = param.value();
        What::Dense { param: param.clone(), dims: value.dims().to_vec(), dtype: value.dtype() }
    }

    /// Puts the stand-in where the tensor was.
    pub fn leave(&self, sites: &Sites) -> Result<()> {
        match self {
            What::Dense { param, dims, dtype } => param.set(Array::absent(dims, *dtype)?),
            What::Packed { path, .. } => {
                let site = sites.linear(path)?;
                if let LinearBase::Packed(weight) = site.base() {
                    site.set_base(LinearBase::Packed(away(&*weight)));
                }
            }
        }
        Ok(())
    }

    /// Puts a packed weight where it belongs, made from its bytes.
    pub fn unpack(&self, bytes: Vec<u8>, sites: &Sites) -> Result<()> {
        if let What::Packed { path, rebuild } = self {
            sites.linear(path)?.set_base(LinearBase::Packed(rebuild(bytes)?));
        }
        Ok(())
    }
}

/// Stands in the place of a packed weight that is away.
struct Away {
    shape: (usize, usize),
    bytes: u64,
    shape_only: bool,
}

impl PackedWeight for Away {
    fn shape(&self) -> (usize, usize) {
        self.shape
    }
    fn bytes(&self) -> u64 {
        self.bytes
    }
    fn is_shape_only(&self) -> bool {
        self.shape_only
    }
    fn is_absent(&self) -> bool {
        true
    }
    fn rows_f32(&self, _: usize, _: &mut [f32]) {}
    fn rows_f64(&self, _: usize, _: &mut [f64]) {}
}

/// A stand-in for a packed weight.
pub fn away(weight: &dyn PackedWeight) -> Arc<dyn PackedWeight> {
    Arc::new(Away { shape: weight.shape(), bytes: weight.bytes(), shape_only: weight.is_shape_only() })
}
