//! From pixels to the inputs of the patch embedding.

use anyhow::{Context, Result, ensure};
use ramekin_core::{Array, Category, DType, UserError};
use ramekin_slots::Forward;

use crate::config::VitConfig;

/// The patches of every segment's image in rows, `[S·P, C·p·p]`: row-major over the image, each patch in the
/// order of the convolution's weight. Shape-only in a plan.
///
/// # Errors
/// If the batch is of other images than the model's, or of none.
pub fn patches(fx: &Forward, c: &VitConfig, shape_only: bool) -> Result<Array> {
    let (segments, p) = (&fx.batch.segments, c.patch_size);
    let width = c.channels * p * p;
    let dims = [segments.len() * c.patches(), width];
    for s in segments.iter() {
        ensure!(
            s.len() == c.patches() + 1,
            "an image of {} tokens; this model makes {}",
            s.len(),
            c.patches() + 1
        );
    }
    if shape_only {
        return Array::shape_only(&dims, DType::F32, Category::Workspace);
    }
    let images = fx.batch.images.as_ref().ok_or_else(|| {
        UserError::new("this model reads images, and it was given tokens")
            .help("give it `pixel_values` of a safetensors file")
    })?;
    let [_, channels, height, side] = images.dims();
    ensure!(
        [channels, height, side] == [c.channels, c.image_size, c.image_size],
        "images of {channels}×{height}×{side} for a model of {}×{1}×{1}",
        c.channels,
        c.image_size
    );
    Array::build::<f32>(&dims, false, Category::Workspace, |out| {
        let across = side / p;
        for (segment, out) in segments.iter().zip(out.chunks_exact_mut(c.patches() * width)) {
            let number = fx.batch.ids[segment.start] as usize;
            let image = images.image(number).with_context(|| format!("there is no image {number}"))?;
            for (i, patch) in out.chunks_exact_mut(width).enumerate() {
                let corner = i / across * p * side + i % across * p;
                for (row, to) in patch.chunks_exact_mut(p).enumerate() {
                    let from = row / p * side * side + corner + row % p * side;
                    to.copy_from_slice(&image[from..from + p]);
                }
            }
        }
        Ok(())
    })
}
