//! `kernels/philox_perturb.cu`: directions by address, added to weights or multiplied with them.

use cudarc::driver::{CudaSlice, PushKernelArg};

use crate::device::{THREADS, grid, int};
use crate::{CudaError, Device, Element};

const FILE: &str = "philox_perturb";

/// How an entry of a direction is drawn, the CPU's to the bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Draw {
    /// Standard normal.
    Normal,
    /// −1 or +1.
    Sign,
}

impl Draw {
    fn name(self) -> &'static str {
        match self {
            Draw::Normal => "normal",
            Draw::Sign => "sign",
        }
    }
}

/// A direction times a factor: s · z, z(i) by the stream `id` under `key`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Direction {
    /// The key.
    pub key: u64,
    /// The stream.
    pub id: u64,
    /// How its entries are drawn.
    pub draw: Draw,
    /// The factor s.
    pub s: f32,
}

impl Direction {
    fn words(&self) -> [u32; 4] {
        [self.key as u32, (self.key >> 32) as u32, self.id as u32, (self.id >> 32) as u32]
    }
}

/// `x[i] += s · z(first + i)`, the product rounded before the sum.
///
/// # Errors
/// Kernels that are not compiled, or what the driver reports.
pub fn add<E: Element>(
    device: &Device,
    x: &mut CudaSlice<E>,
    first: u64,
    direction: &Direction,
) -> Result<(), CudaError> {
    if x.is_empty() {
        return Ok(());
    }
    let kernel = device.kernel(FILE, &format!("perturb_add_{}_{}", direction.draw.name(), E::NAME))?;
    let (n, [k0, k1, i0, i1]) = (x.len() as i64, direction.words());
    let threads = x.len().div_ceil(4) + 1; // one more where `first` cuts a block of four
    let mut launch = device.stream().launch_builder(&kernel);
    launch.arg(x).arg(&n).arg(&first).arg(&k0).arg(&k1).arg(&i0).arg(&i1).arg(&direction.s);
    // SAFETY: the arguments are the kernel's, and it keeps to the `n` entries of `x`.
    unsafe { launch.launch(grid(threads.div_ceil(THREADS), 1)) }?;
    Ok(())
}

/// `x[i] += s · z(places[i])`: some entries of a larger tensor.
///
/// # Errors
/// As [`add`].
///
/// # Panics
/// If there is not a place for each entry.
pub fn add_at<E: Element>(
    device: &Device,
    x: &mut CudaSlice<E>,
    places: &CudaSlice<u32>,
    direction: &Direction,
) -> Result<(), CudaError> {
    assert_eq!(x.len(), places.len(), "a place for each entry");
    if x.is_empty() {
        return Ok(());
    }
    let kernel = device.kernel(FILE, &format!("perturb_add_at_{}_{}", direction.draw.name(), E::NAME))?;
    let (n, blocks, [k0, k1, i0, i1]) = (x.len() as i64, x.len().div_ceil(THREADS), direction.words());
    let mut launch = device.stream().launch_builder(&kernel);
    launch.arg(x).arg(places).arg(&n).arg(&k0).arg(&k1).arg(&i0).arg(&i1).arg(&direction.s);
    // SAFETY: the arguments are the kernel's, and the lengths were looked at above.
    unsafe { launch.launch(grid(blocks, 1)) }?;
    Ok(())
}

/// `y = x · (W + s·Z)ᵀ` with Z[o, i] = z(first + o·in + i) and W as it is: x `[m, in]`, w `[out, in]`, y `[m, out]`.
/// What [`add`] would leave in W is what is multiplied; W is not written.
///
/// # Errors
/// As [`add`].
///
/// # Panics
/// If a slice's length is not its shape.
#[allow(clippy::too_many_arguments)] // two shapes, three tensors and an address
pub fn linear<E: Element>(
    device: &Device,
    x: &CudaSlice<E>,
    m: usize,
    w: &CudaSlice<E>,
    (out, inputs): (usize, usize),
    first: u64,
    direction: &Direction,
    y: &mut CudaSlice<E>,
) -> Result<(), CudaError> {
    assert_eq!(x.len(), m * inputs, "`x` must hold {m} rows of {inputs}");
    assert_eq!(w.len(), out * inputs, "`w` must hold {out} rows of {inputs}");
    assert_eq!(y.len(), m * out, "`y` must hold {m} rows of {out}");
    if m == 0 || out == 0 || inputs == 0 {
        if !y.is_empty() {
            device.stream().memset_zeros(y)?;
        }
        return Ok(());
    }
    let (few, blocks) = match m {
        1 => ("few_1_", (out.div_ceil(8), 1)),
        2..=4 => ("few_4_", (out.div_ceil(8), 1)),
        5..=8 => ("few_8_", (out.div_ceil(8), 1)),
        _ => ("", (m.div_ceil(128), out.div_ceil(128))),
    };
    let name = format!("perturb_linear_{few}{}_{}", direction.draw.name(), E::NAME);
    let kernel = device.kernel(FILE, &name)?;
    let (m, out, inputs, [k0, k1, i0, i1]) = (int(m), int(out), int(inputs), direction.words());
    let mut launch = device.stream().launch_builder(&kernel);
    launch.arg(x).arg(w).arg(y).arg(&m).arg(&out).arg(&inputs).arg(&first);
    launch.arg(&k0).arg(&k1).arg(&i0).arg(&i1).arg(&direction.s);
    // SAFETY: the arguments are the kernel's, and the lengths were looked at above.
    unsafe { launch.launch(grid(blocks.0, blocks.1)) }?;
    Ok(())
}
