//! A device, its memory and its kernels.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::sys::{self, CUdevice_attribute};
use cudarc::driver::{
    CudaContext, CudaFunction, CudaModule, CudaSlice, CudaStream, DeviceRepr, DriverError, LaunchConfig,
    ValidAsZeroBits,
};
use half::bf16;
use thiserror::Error;

use crate::images::image;

/// Why something cannot run on a CUDA device.
#[derive(Debug, Error)]
pub enum CudaError {
    /// No driver on this machine.
    #[error("there is no CUDA driver on this machine: `libcuda.so` is not found")]
    NoDriver,
    /// The driver is there and sees no such device.
    #[error("there is no CUDA device {ordinal}: the driver sees {seen} (`CUDA_VISIBLE_DEVICES` chooses)")]
    NoDevice {
        /// The number asked for.
        ordinal: usize,
        /// How many there are.
        seen: i32,
    },
    /// A device that the kernels are not made for.
    #[error("the CUDA device has compute capability {major}.{minor}; the kernels need 8.0 or more")]
    TooOld {
        /// Its compute capability.
        major: i32,
        /// The part behind the point.
        minor: i32,
    },
    /// Neither embedded nor named.
    #[error(
        "`kernels/{file}.cu` is not compiled: run `cargo xtask kernels` and build again, or set `RAMEKIN_KERNELS` to the folder that has it"
    )]
    NotCompiled {
        /// The file, without its ending.
        file: &'static str,
    },
    /// `RAMEKIN_KERNELS` names a folder without it.
    #[error("cannot read `{}`, which `RAMEKIN_KERNELS` leads to: {why}", path.display())]
    Unreadable {
        /// Where it should be.
        path: PathBuf,
        /// What the system says.
        why: String,
    },
    /// The driver does not take the compiled file.
    #[error("the CUDA driver refuses the compiled `{file}.cu`: {why}; it must be of CUDA 13.0 or later")]
    Refused {
        /// The file, without its ending.
        file: &'static str,
        /// What the driver says.
        why: String,
    },
    /// Anything else that the driver reports, such as memory that is used up.
    #[error("the CUDA driver reports {0}")]
    Driver(#[from] DriverError),
}

/// A number as device memory holds it.
pub trait Element: DeviceRepr + ValidAsZeroBits + Copy + Default + Unpin + Send + Sync + 'static {
    /// The ending of its kernels' names.
    const NAME: &'static str;
    /// The nearest number of this type.
    fn from_f32(x: f32) -> Self;
    /// The number.
    fn to_f32(self) -> f32;
}

impl Element for f32 {
    const NAME: &'static str = "f32";
    fn from_f32(x: f32) -> Self {
        x
    }
    fn to_f32(self) -> f32 {
        self
    }
}

/// A bf16 by its bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Bf16(pub u16);

// SAFETY: two bytes like the `u16` inside, and any bits are a bf16.
unsafe impl DeviceRepr for Bf16 {}
// SAFETY: zero bits are 0.
unsafe impl ValidAsZeroBits for Bf16 {}

impl Element for Bf16 {
    const NAME: &'static str = "bf16";
    fn from_f32(x: f32) -> Self {
        Bf16(bf16::from_f32(x).to_bits())
    }
    fn to_f32(self) -> f32 {
        bf16::from_bits(self.0).to_f32()
    }
}

/// A CUDA device with one stream.
pub struct Device {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    capability: (i32, i32),
    multiprocessors: usize,
    modules: Mutex<HashMap<&'static str, Arc<CudaModule>>>,
    functions: Mutex<HashMap<String, CudaFunction>>,
}

impl Device {
    /// Opens a device by its number.
    ///
    /// # Errors
    /// [`CudaError::NoDriver`], [`CudaError::NoDevice`], [`CudaError::TooOld`], or what the driver reports.
    pub fn open(ordinal: usize) -> Result<Device, CudaError> {
        // SAFETY: loads the driver's library, which every other call would do too.
        if !unsafe { sys::is_culib_present() } {
            return Err(CudaError::NoDriver);
        }
        let seen = match CudaContext::device_count() {
            Ok(n) => n,
            Err(e) if e.0 == sys::CUresult::CUDA_ERROR_NO_DEVICE => 0,
            // A driver's library on a machine without the driver itself.
            Err(e) if e.0 == sys::CUresult::CUDA_ERROR_STUB_LIBRARY => return Err(CudaError::NoDriver),
            Err(e) => return Err(e.into()),
        };
        if i32::try_from(ordinal).map_or(true, |o| o >= seen) {
            return Err(CudaError::NoDevice { ordinal, seen });
        }
        let context = CudaContext::new(ordinal)?;
        let capability = context.compute_capability()?;
        if capability < (8, 0) {
            return Err(CudaError::TooOld { major: capability.0, minor: capability.1 });
        }
        let count = context.attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        let multiprocessors = usize::try_from(count).unwrap_or(1);
        let stream = context.default_stream();
        let (modules, functions) = (Mutex::default(), Mutex::default());
        Ok(Device { context, stream, capability, multiprocessors, modules, functions })
    }

    /// The device's name, as its maker says it.
    ///
    /// # Errors
    /// What the driver reports.
    pub fn name(&self) -> Result<String, CudaError> {
        Ok(self.context.name()?)
    }

    /// Its compute capability.
    pub fn capability(&self) -> (i32, i32) {
        self.capability
    }

    /// The stream that everything is put on.
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    pub(crate) fn multiprocessors(&self) -> usize {
        self.multiprocessors
    }

    /// Copies numbers to the device.
    ///
    /// # Errors
    /// What the driver reports, such as memory that is used up.
    pub fn upload<T: DeviceRepr>(&self, host: &[T]) -> Result<CudaSlice<T>, CudaError> {
        // The driver hands out no memory of no bytes.
        Ok(if host.is_empty() { self.stream.null()? } else { self.stream.clone_htod(host)? })
    }

    /// Copies numbers from the device, when all before is done.
    ///
    /// # Errors
    /// What the driver reports, also of launches before.
    pub fn download<T: DeviceRepr>(&self, device: &CudaSlice<T>) -> Result<Vec<T>, CudaError> {
        let host = if device.is_empty() { Vec::new() } else { self.stream.clone_dtoh(device)? };
        self.stream.synchronize()?;
        Ok(host)
    }

    /// `n` zeros on the device.
    ///
    /// # Errors
    /// What the driver reports, such as memory that is used up.
    pub fn zeros<T: DeviceRepr + ValidAsZeroBits>(&self, n: usize) -> Result<CudaSlice<T>, CudaError> {
        Ok(if n == 0 { self.stream.null()? } else { self.stream.alloc_zeros(n)? })
    }

    /// A kernel of a `.cu` file; loaded the first time.
    pub(crate) fn kernel(&self, file: &'static str, name: &str) -> Result<CudaFunction, CudaError> {
        let mut functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(function) = functions.get(name) {
            return Ok(function.clone());
        }
        let refused = |e: DriverError| CudaError::Refused { file, why: format!("{name}: {e}") };
        let function = self.module(file)?.load_function(name).map_err(refused)?;
        functions.insert(name.to_owned(), function.clone());
        Ok(function)
    }

    fn module(&self, file: &'static str) -> Result<Arc<CudaModule>, CudaError> {
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(module) = modules.get(file) {
            return Ok(module.clone());
        }
        let refused = |e: DriverError| CudaError::Refused { file, why: e.to_string() };
        let module = self.context.load_module(image(file, self.capability)?).map_err(refused)?;
        modules.insert(file, module.clone());
        Ok(module)
    }
}

/// Threads of a block, in all kernels.
pub(crate) const THREADS: usize = 256;

/// A grid of blocks of [`THREADS`].
pub(crate) fn grid(x: usize, y: usize) -> LaunchConfig {
    let count = |n: usize| u32::try_from(n).expect("fewer than 2³² blocks");
    LaunchConfig { grid_dim: (count(x), count(y), 1), block_dim: (THREADS as u32, 1, 1), shared_mem_bytes: 0 }
}

/// A size as kernels take it.
pub(crate) fn int(n: usize) -> i32 {
    i32::try_from(n).expect("rows and columns below 2³¹")
}
