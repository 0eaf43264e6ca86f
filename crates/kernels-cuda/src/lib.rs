//! Launchers of the CUDA twins: one module for each file in `kernels/`, where the formulas and shapes stand.
//!
//! Without the feature `cuda` this crate is empty. With it, nothing of CUDA is needed to build: the driver is looked
//! for when `Device::open` is called, and what is missing comes back as a sentence. The compiled kernels are those
//! that `cargo xtask kernels` made, embedded if they were there at build time, else read from the folder that
//! `RAMEKIN_KERNELS` names, which also wins over the embedded ones.
//!
//! Launches are put on the device's one stream and return before they are done; a download waits for them. As with the
//! CPU twins, a wrong slice length is a bug in the caller and panics.

#[cfg(feature = "cuda")]
mod device;
#[cfg(feature = "cuda")]
mod images;
#[cfg(feature = "cuda")]
pub mod nf4_linear;
#[cfg(feature = "cuda")]
pub mod philox_perturb;
#[cfg(feature = "cuda")]
pub mod rms_norm;

#[cfg(feature = "cuda")]
pub use crate::device::{Bf16, CudaError, Device, Element};
#[cfg(feature = "cuda")]
pub use cudarc::driver::CudaSlice;
