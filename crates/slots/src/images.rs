//! Images, for models that read pixels.

use anyhow::{Result, ensure};

/// What a model that reads images makes of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageFacts {
    /// Colours of a pixel.
    pub channels: usize,
    /// Pixels along a side.
    pub size: usize,
    /// Tokens that an image becomes, class token included.
    pub tokens: usize,
}

/// Images of one size, as numbers a model was trained on.
#[derive(Clone, Debug, PartialEq)]
pub struct Images {
    dims: [usize; 4],
    pixels: Vec<f32>,
}

impl Images {
    /// Images, channels, height, width, and the pixels in that order.
    ///
    /// # Errors
    /// If there are more or fewer pixels.
    pub fn new(dims: [usize; 4], pixels: Vec<f32>) -> Result<Self> {
        ensure!(dims.iter().product::<usize>() == pixels.len(), "{} pixels for {dims:?}", pixels.len());
        Ok(Images { dims, pixels })
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.dims[0]
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Images, channels, height, width.
    pub fn dims(&self) -> [usize; 4] {
        self.dims
    }

    /// The pixels of one image, `[C, H, W]`; none where there is no such image.
    pub fn image(&self, i: usize) -> Option<&[f32]> {
        let [_, c, h, w] = self.dims;
        self.pixels.get(i * c * h * w..(i + 1) * c * h * w)
    }
}
