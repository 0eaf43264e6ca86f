//! `kernels/nf4_linear.cu`: y = x · Ŵᵀ and gx = g · Ŵ with Ŵ in NF4 blocks.

use cudarc::driver::{CudaSlice, PushKernelArg};

use crate::device::{grid, int};
use crate::{CudaError, Device, Element};

const FILE: &str = "nf4_linear";

/// Up to this many rows are bound by the weight's memory and have kernels of their own.
const FEW: usize = 8;

/// Rows and columns of a block's tile of the result, as in the file.
const TILE: usize = 128;

/// The scales of the blocks, as the CPU's codec holds them.
#[derive(Clone, Copy, Debug)]
pub enum Scales<'a> {
    /// One f32 a block.
    Plain(&'a [f32]),
    /// `map[codes[b]] · absmax[b / 256] + offset`
    Nested {
        /// One byte a block.
        codes: &'a [u8],
        /// One scale for each 256 blocks.
        absmax: &'a [f32],
        /// The mean that was taken off before.
        offset: f32,
        /// What the bytes stand for.
        map: &'a [f32; 256],
    },
}

enum DeviceScales {
    Plain(CudaSlice<f32>),
    Nested { codes: CudaSlice<u8>, absmax: CudaSlice<f32>, offset: f32, map: CudaSlice<f32> },
}

/// A packed `[out, in]` weight on a device.
pub struct Nf4Weight {
    packed: CudaSlice<u8>,
    scales: DeviceScales,
    shift: i32,
    shape: (usize, usize),
}

impl Nf4Weight {
    /// Copies a packed weight to a device: two codes a byte, the even entry in the high half, blocks of `block_size`
    /// entries of the weight flattened row by row.
    ///
    /// # Errors
    /// What the driver reports, such as memory that is used up.
    ///
    /// # Panics
    /// If the shape is empty, a length does not fit it, or `block_size` is no power of two from 32 to 4096.
    pub fn upload(
        device: &Device,
        packed: &[u8],
        scales: Scales<'_>,
        block_size: usize,
        shape: (usize, usize),
    ) -> Result<Self, CudaError> {
        let n = shape.0 * shape.1;
        assert!(n > 0, "an empty weight");
        assert!(block_size.is_power_of_two() && (32..=4096).contains(&block_size), "blocks of {block_size}");
        assert_eq!(packed.len(), n.div_ceil(2), "`packed` must hold {n} codes");
        let blocks = n.div_ceil(block_size);
        let scales = match scales {
            Scales::Plain(absmax) => {
                assert_eq!(absmax.len(), blocks, "a scale for each of {blocks} blocks");
                DeviceScales::Plain(device.upload(absmax)?)
            }
            Scales::Nested { codes, absmax, offset, map } => {
                assert_eq!(codes.len(), blocks, "a code for each of {blocks} blocks");
                assert_eq!(absmax.len(), blocks.div_ceil(256), "a scale for each 256 of {blocks} blocks");
                let (codes, absmax) = (device.upload(codes)?, device.upload(absmax)?);
                DeviceScales::Nested { codes, absmax, offset, map: device.upload(map)? }
            }
        };
        let shift = block_size.trailing_zeros() as i32;
        Ok(Nf4Weight { packed: device.upload(packed)?, scales, shift, shape })
    }

    /// Outputs and inputs.
    pub fn shape(&self) -> (usize, usize) {
        self.shape
    }

    /// Bytes on the device.
    pub fn bytes(&self) -> usize {
        let scales = match &self.scales {
            DeviceScales::Plain(absmax) => absmax.num_bytes(),
            DeviceScales::Nested { codes, absmax, map, .. } => {
                codes.num_bytes() + absmax.num_bytes() + map.num_bytes()
            }
        };
        self.packed.num_bytes() + scales
    }

    fn launch<E: Element>(
        &self,
        device: &Device,
        name: &str,
        blocks: (usize, usize),
        x: &CudaSlice<E>,
        y: &mut CudaSlice<E>,
        m: usize,
    ) -> Result<(), CudaError> {
        let kernel = device.kernel(FILE, &format!("nf4_linear_{name}_{}", E::NAME))?;
        let (m, out, inputs) = (int(m), int(self.shape.0), int(self.shape.1));
        let (null, zero) = (0u64, 0f32);
        let mut launch = device.stream().launch_builder(&kernel);
        launch.arg(x).arg(&self.packed);
        match &self.scales {
            DeviceScales::Plain(absmax) => launch.arg(&null).arg(absmax).arg(&null).arg(&zero),
            DeviceScales::Nested { codes, absmax, offset, map } => {
                launch.arg(codes).arg(absmax).arg(map).arg(offset)
            }
        };
        launch.arg(&self.shift).arg(y).arg(&m).arg(&out).arg(&inputs);
        // SAFETY: the arguments are the kernel's; lengths were looked at by `upload` and by the callers.
        unsafe { launch.launch(grid(blocks.0, blocks.1)) }?;
        Ok(())
    }
}

/// `y = x · Ŵᵀ` for `m` rows: x `[m, in]`, y `[m, out]`, which is overwritten.
///
/// # Errors
/// Kernels that are not compiled, or what the driver reports.
///
/// # Panics
/// If `x` or `y` has another length.
pub fn forward<E: Element>(
    device: &Device,
    x: &CudaSlice<E>,
    m: usize,
    w: &Nf4Weight,
    y: &mut CudaSlice<E>,
) -> Result<(), CudaError> {
    let (out, inputs) = w.shape;
    assert_eq!(x.len(), m * inputs, "`x` must hold {m} rows of {inputs}");
    assert_eq!(y.len(), m * out, "`y` must hold {m} rows of {out}");
    if m == 0 {
        return Ok(());
    }
    let aligned = inputs.is_multiple_of(16);
    if m > FEW {
        let name = if aligned { "forward" } else { "forward_any" };
        return w.launch(device, name, (m.div_ceil(TILE), out.div_ceil(TILE)), x, y, m);
    }
    // Four outputs a warp where that still fills the device twice; the sums are the same either way.
    let (suffix, outputs) = match aligned {
        false => ("_any", 1),
        true if out >= 2 * device.multiprocessors() * 8 * 4 => ("", 4),
        true => ("_short", 2),
    };
    let name = format!("few_{}{suffix}", m.next_power_of_two());
    w.launch(device, &name, (out.div_ceil(8 * outputs), 1), x, y, m)
}

/// `gx = g · Ŵ` for `m` rows: g `[m, out]`, gx `[m, in]`, which is overwritten.
///
/// # Errors
/// As [`forward`].
///
/// # Panics
/// If `g` or `gx` has another length.
pub fn backward_input<E: Element>(
    device: &Device,
    g: &CudaSlice<E>,
    m: usize,
    w: &Nf4Weight,
    gx: &mut CudaSlice<E>,
) -> Result<(), CudaError> {
    let (out, inputs) = w.shape;
    assert_eq!(g.len(), m * out, "`g` must hold {m} rows of {out}");
    assert_eq!(gx.len(), m * inputs, "`gx` must hold {m} rows of {inputs}");
    if m == 0 {
        return Ok(());
    }
    let name = if inputs.is_multiple_of(16) { "backward" } else { "backward_any" };
    w.launch(device, name, (m.div_ceil(TILE), inputs.div_ceil(TILE)), g, gx, m)
}
