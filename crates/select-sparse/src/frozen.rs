//! A head's own table where it shared the embeddings': frozen, so it needs no parameter.

use ramekin_core::{Array, Category};
use ramekin_slots::PackedWeight;

/// A dense f32 table that never trains.
pub struct Frozen(Array);

impl Frozen {
    /// A copy of a table.
    ///
    /// # Errors
    /// If it is no matrix of f32.
    pub fn copy(table: &Array) -> anyhow::Result<Self> {
        let dims = table.dims();
        anyhow::ensure!(dims.len() == 2, "a table {dims:?}");
        Ok(Frozen(Array::build::<f32>(dims, table.is_shape_only(), Category::Weights, |out| {
            out.copy_from_slice(&table.view::<f32>()?);
            Ok(())
        })?))
    }

    fn copy_rows<T: From<f32>>(&self, first: usize, out: &mut [T]) {
        if let Ok(w) = self.0.view::<f32>() {
            let start = first * self.0.dims()[1];
            out.iter_mut().zip(&w[start..]).for_each(|(o, w)| *o = T::from(*w));
        }
    }
}

impl PackedWeight for Frozen {
    fn shape(&self) -> (usize, usize) {
        (self.0.dims()[0], self.0.dims()[1])
    }

    fn bytes(&self) -> u64 {
        self.0.bytes()
    }

    fn is_shape_only(&self) -> bool {
        self.0.is_shape_only()
    }

    fn rows_f32(&self, first: usize, out: &mut [f32]) {
        self.copy_rows(first, out);
    }

    fn rows_f64(&self, first: usize, out: &mut [f64]) {
        self.copy_rows(first, out);
    }
}
