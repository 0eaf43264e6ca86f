//! `kernels/rms_norm.cu`: y = x · s · w, s = 1 / √(mean x² + ε), one a row; and its gradients.

use cudarc::driver::{CudaSlice, PushKernelArg};

use crate::device::{THREADS, grid, int};
use crate::{CudaError, Device, Element};

const FILE: &str = "rms_norm";

/// Rows up to this width take a warp, wider ones a block.
const NARROW: usize = 1024;

/// Rows whose weight gradients a block adds up, as in the file.
const GRADIENT_ROWS: usize = 64;

fn rows_kernel<E: Element>(what: &str, rows: usize, d: usize) -> (String, usize) {
    if d <= NARROW {
        (format!("rms_norm_{what}_narrow_{}", E::NAME), rows.div_ceil(THREADS / 32))
    } else {
        (format!("rms_norm_{what}_{}", E::NAME), rows)
    }
}

/// `y = x · s · w` for each row of width `d`; keeps each row's s in `inv_rms` for the backward.
///
/// # Errors
/// Kernels that are not compiled, or what the driver reports.
///
/// # Panics
/// If `x` and `y` are not rows of `d`, `w` not `d` long, or `inv_rms` not one entry a row.
pub fn forward<E: Element>(
    device: &Device,
    x: &CudaSlice<E>,
    d: usize,
    w: &CudaSlice<E>,
    eps: f32,
    y: &mut CudaSlice<E>,
    inv_rms: &mut CudaSlice<f32>,
) -> Result<(), CudaError> {
    let rows = inv_rms.len();
    assert_eq!(w.len(), d, "`w` must hold {d} values");
    assert!(x.len() == rows * d && y.len() == rows * d, "`x` and `y` must hold {rows} rows of {d}");
    if x.is_empty() {
        return Ok(());
    }
    let (name, blocks) = rows_kernel::<E>("forward", rows, d);
    let kernel = device.kernel(FILE, &name)?;
    let (rows, d) = (rows as i64, int(d));
    let mut launch = device.stream().launch_builder(&kernel);
    launch.arg(x).arg(w).arg(y).arg(inv_rms).arg(&rows).arg(&d).arg(&eps);
    // SAFETY: the arguments are the kernel's, and the lengths were looked at above.
    unsafe { launch.launch(grid(blocks, 1)) }?;
    Ok(())
}

/// Gradient of [`forward`] to `x`; `gx` is overwritten.
///
/// # Errors
/// As [`forward`].
///
/// # Panics
/// If a slice's length is not its shape.
pub fn backward_input<E: Element>(
    device: &Device,
    g: &CudaSlice<E>,
    x: &CudaSlice<E>,
    w: &CudaSlice<E>,
    inv_rms: &CudaSlice<f32>,
    d: usize,
    gx: &mut CudaSlice<E>,
) -> Result<(), CudaError> {
    let rows = inv_rms.len();
    assert_eq!(w.len(), d, "`w` must hold {d} values");
    let right = g.len() == rows * d && x.len() == rows * d && gx.len() == rows * d;
    assert!(right, "`g`, `x` and `gx` must hold {rows} rows of {d}");
    if x.is_empty() {
        return Ok(());
    }
    let (name, blocks) = rows_kernel::<E>("backward", rows, d);
    let kernel = device.kernel(FILE, &name)?;
    let (rows, d) = (rows as i64, int(d));
    let mut launch = device.stream().launch_builder(&kernel);
    launch.arg(g).arg(x).arg(w).arg(inv_rms).arg(gx).arg(&rows).arg(&d);
    // SAFETY: the arguments are the kernel's, and the lengths were looked at above.
    unsafe { launch.launch(grid(blocks, 1)) }?;
    Ok(())
}

/// Gradient of [`forward`] to `w`, which `gw` is added: in f32 with the bits of the CPU twin, given its `inv_rms`.
/// Takes ⌈rows / 64⌉ · `d` f32 of device memory meanwhile.
///
/// # Errors
/// As [`forward`].
///
/// # Panics
/// If a slice's length is not its shape.
pub fn backward_weight<E: Element>(
    device: &Device,
    g: &CudaSlice<E>,
    x: &CudaSlice<E>,
    inv_rms: &CudaSlice<f32>,
    d: usize,
    gw: &mut CudaSlice<f32>,
) -> Result<(), CudaError> {
    let rows = inv_rms.len();
    assert_eq!(gw.len(), d, "`gw` must hold {d} values");
    assert!(g.len() == rows * d && x.len() == rows * d, "`g` and `x` must hold {rows} rows of {d}");
    if x.is_empty() {
        return Ok(());
    }
    let (blocks, columns) = (rows.div_ceil(GRADIENT_ROWS), d.div_ceil(THREADS));
    let mut partial = device.zeros::<f32>(blocks * d)?;
    let kernel = device.kernel(FILE, &format!("rms_norm_weight_partial_{}", E::NAME))?;
    let sum = device.kernel(FILE, "rms_norm_weight_sum")?;
    let (rows, wide, width) = (rows as i64, blocks as i64, int(d));
    let mut launch = device.stream().launch_builder(&kernel);
    launch.arg(g).arg(x).arg(inv_rms).arg(&mut partial).arg(&rows).arg(&width);
    // SAFETY: the arguments are the kernel's, and the lengths were looked at above.
    unsafe { launch.launch(grid(blocks, columns)) }?;
    let mut launch = device.stream().launch_builder(&sum);
    launch.arg(&partial).arg(gw).arg(&wide).arg(&width);
    // SAFETY: as above.
    unsafe { launch.launch(grid(columns, 1)) }?;
    Ok(())
}
