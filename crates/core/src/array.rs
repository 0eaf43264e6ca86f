//! A contiguous candle tensor whose bytes are on the meter.
//!
//! An array is real or *shape-only*. A shape-only array is a one-number tensor
//! expanded to its shape: operations see the right dims and dtype, the meter
//! sees the bytes, and nothing is allocated or computed. A plan is a run over
//! shape-only arrays.

use std::cell::RefCell;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use anyhow::{Context, Result, bail, ensure};
use candle_core::{CpuStorage, DType, Device, InplaceOp1, Layout, Storage, StorageRef, Tensor, WithDType};

use crate::meter::{self, Category, Meter};

/// Numbers an array can be viewed as.
pub trait Element: WithDType + bytemuck::Pod {
    /// The slice to change in place, if the storage holds this type.
    fn slice_mut(storage: &mut CpuStorage) -> Option<&mut [Self]>;
}

macro_rules! element {
    ($($t:ty => $variant:ident),*) => {$(
        impl Element for $t {
            fn slice_mut(storage: &mut CpuStorage) -> Option<&mut [Self]> {
                match storage {
                    CpuStorage::$variant(v) => Some(v),
                    _ => None,
                }
            }
        }
    )*};
}

element!(f32 => F32, f64 => F64, half::bf16 => BF16, half::f16 => F16, u8 => U8, u32 => U32, i64 => I64);

/// The hold of one allocation on its meter; returns the bytes when dropped.
/// For bytes that are not an [`Array`]'s, such as a packed weight's.
pub struct Lease {
    meter: Arc<Meter>,
    category: AtomicU8,
    bytes: u64,
}

impl Lease {
    /// Charges bytes to the current meter.
    pub fn new(category: Category, bytes: u64) -> Arc<Self> {
        let meter = meter::current();
        meter.take(category, bytes);
        Arc::new(Lease { meter, category: AtomicU8::new(category as u8), bytes })
    }

    fn category(&self) -> Category {
        Category::ALL[self.category.load(Ordering::Relaxed) as usize]
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.meter.give_back(self.category(), self.bytes);
    }
}

/// A row-major contiguous tensor. Cloning and reshaping share its bytes.
#[derive(Clone)]
pub struct Array {
    tensor: Tensor,
    lease: Arc<Lease>,
    kind: Kind,
}

/// What stands behind an array's shape.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Real,
    ShapeOnly,
    Absent,
}

impl std::fmt::Debug for Array {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Array({:?}, {:?})", self.dims(), self.dtype())
    }
}

impl Array {
    /// Takes over a tensor, charging its bytes; a view is made contiguous first.
    pub fn from_tensor(tensor: Tensor, category: Category) -> Result<Self> {
        let tensor = tensor.contiguous()?;
        let bytes = bytes_of(tensor.elem_count(), tensor.dtype());
        Ok(Array { tensor, lease: Lease::new(category, bytes), kind: Kind::Real })
    }

    /// Takes over a vector of as many numbers as the shape has.
    pub fn from_vec<T: Element>(data: Vec<T>, dims: &[usize], category: Category) -> Result<Self> {
        Self::from_tensor(Tensor::from_vec(data, dims, &Device::Cpu)?, category)
    }

    /// Zeros.
    pub fn zeros(dims: &[usize], dtype: DType, category: Category) -> Result<Self> {
        Self::from_tensor(Tensor::zeros(dims, dtype, &Device::Cpu)?, category)
    }

    /// The shape and the bytes, without the numbers.
    pub fn shape_only(dims: &[usize], dtype: DType, category: Category) -> Result<Self> {
        let tensor = Tensor::zeros((), dtype, &Device::Cpu)?.broadcast_as(dims)?;
        let bytes = bytes_of(dims.iter().product(), dtype);
        Ok(Array { tensor, lease: Lease::new(category, bytes), kind: Kind::ShapeOnly })
    }

    /// Whether this array has no numbers.
    pub fn is_shape_only(&self) -> bool {
        self.kind == Kind::ShapeOnly
    }

    /// A tensor that is elsewhere just now: its shape, no bytes, and no reading.
    pub fn absent(dims: &[usize], dtype: DType) -> Result<Self> {
        let tensor = Tensor::zeros((), dtype, &Device::Cpu)?.broadcast_as(dims)?;
        Ok(Array { tensor, lease: Lease::new(Category::Workspace, 0), kind: Kind::Absent })
    }

    /// Whether the tensor is elsewhere just now.
    pub fn is_absent(&self) -> bool {
        self.kind == Kind::Absent
    }

    fn check_numbers(&self) -> Result<()> {
        match self.kind {
            Kind::Real => Ok(()),
            Kind::ShapeOnly => bail!("a shape-only array {:?} has no numbers", self.dims()),
            Kind::Absent => Err(crate::Elsewhere(self.dims().to_vec()).into()),
        }
    }

    /// An array for an operation's result: shape-only as soon as one of its
    /// inputs is, else made by `fill` from a zeroed vector.
    pub fn build<T: Element>(
        dims: &[usize],
        shape_only: bool,
        category: Category,
        fill: impl FnOnce(&mut [T]) -> Result<()>,
    ) -> Result<Self> {
        Self::filled(dims, shape_only, category, |n| vec![T::zero(); n], fill)
    }

    /// As [`Array::build`] with a `fill` that writes every number: what it finds may be anything.
    pub fn written<T: Element>(
        dims: &[usize],
        shape_only: bool,
        category: Category,
        fill: impl FnOnce(&mut [T]) -> Result<()>,
    ) -> Result<Self> {
        Self::filled(dims, shape_only, category, ramekin_kernels::unwritten, fill)
    }

    fn filled<T: Element>(
        dims: &[usize],
        shape_only: bool,
        category: Category,
        room: impl FnOnce(usize) -> Vec<T>,
        fill: impl FnOnce(&mut [T]) -> Result<()>,
    ) -> Result<Self> {
        if shape_only {
            return Self::shape_only(dims, T::DTYPE, category);
        }
        let mut data = room(dims.iter().product());
        fill(&mut data)?;
        Self::from_vec(data, dims, category)
    }

    /// The same numbers in bytes of their own; of a shape-only array another one.
    ///
    /// # Errors
    /// If the numbers cannot be copied.
    pub fn copied(&self, category: Category) -> Result<Self> {
        match self.is_shape_only() {
            true => Self::shape_only(self.dims(), self.dtype(), category),
            false => Self::from_tensor(self.tensor.copy()?, category),
        }
    }

    /// Dimensions, outermost first.
    pub fn dims(&self) -> &[usize] {
        self.tensor.dims()
    }

    /// How many numbers.
    pub fn len(&self) -> usize {
        self.tensor.elem_count()
    }

    /// Whether there are no numbers at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The number type.
    pub fn dtype(&self) -> DType {
        self.tensor.dtype()
    }

    /// Bytes of the numbers.
    pub fn bytes(&self) -> u64 {
        bytes_of(self.len(), self.dtype())
    }

    /// The candle tensor; of a shape-only array an expanded zero.
    pub fn tensor(&self) -> &Tensor {
        &self.tensor
    }

    /// Length of the last dimension (1 for a scalar) and the product of the others.
    pub fn rows(&self) -> (usize, usize) {
        let d = self.dims().last().copied().unwrap_or(1);
        (self.len().checked_div(d).unwrap_or(0), d)
    }

    /// The same numbers in another shape.
    pub fn reshape(&self, dims: &[usize]) -> Result<Self> {
        let wanted: usize = dims.iter().product();
        ensure!(wanted == self.len(), "cannot see {:?} as {dims:?}", self.dims());
        let tensor = if self.kind != Kind::Real {
            Tensor::zeros((), self.dtype(), &Device::Cpu)?.broadcast_as(dims)?
        } else {
            self.tensor.reshape(dims)?
        };
        Ok(Array { tensor, lease: self.lease.clone(), kind: self.kind })
    }

    /// Copies rows `first..first + count` of the outermost dimension.
    pub fn narrow_rows(&self, first: usize, count: usize, category: Category) -> Result<Self> {
        let mut dims = self.dims().to_vec();
        ensure!(!dims.is_empty() && first + count <= dims[0], "no rows {first}+{count} in {dims:?}");
        dims[0] = count;
        if self.is_shape_only() {
            return Self::shape_only(&dims, self.dtype(), category);
        }
        self.check_numbers()?;
        Self::from_tensor(self.tensor.narrow(0, first, count)?.copy()?, category)
    }

    /// Moves the bytes to another category, unless they already belong to one
    /// that is not [`Category::Workspace`]: a weight kept for backward stays a weight.
    pub fn claim(&self, category: Category) {
        if self.lease.category() == Category::Workspace {
            self.recategorise(category);
        }
    }

    /// Whether the bytes are a parameter's or a state's, which stay where they are whatever saves them.
    pub fn is_held(&self) -> bool {
        !matches!(self.lease.category(), Category::Workspace | Category::Activations)
    }

    /// Moves the bytes to another category.
    pub fn recategorise(&self, category: Category) {
        let before = self.lease.category.swap(category as u8, Ordering::Relaxed);
        self.lease.meter.shift(Category::ALL[before as usize], category, self.lease.bytes);
    }

    /// The hold that all handles to these bytes share: their identity.
    pub fn lease(&self) -> &Arc<Lease> {
        &self.lease
    }

    /// Whether this handle is the only one to its bytes.
    pub fn is_unique(&self) -> bool {
        Arc::strong_count(&self.lease) == 1
    }

    /// The numbers.
    ///
    /// # Errors
    /// If the array is shape-only, holds another type, or is not on the CPU.
    pub fn view<T: Element>(&self) -> Result<View<'_, T>> {
        self.check_numbers()?;
        let (storage, layout) = self.tensor.storage_and_layout();
        let (start, len) = (layout.start_offset(), self.tensor.elem_count());
        match &*storage {
            Storage::Cpu(cpu) => cpu.as_slice::<T>().map(|_| ())?,
            _ => bail!("the numbers are not in host memory"),
        }
        Ok(View { storage, start, len, element: std::marker::PhantomData })
    }

    /// Changes the numbers in place; every handle to the same bytes sees it.
    pub fn update<T: Element, R>(&self, f: impl FnOnce(&mut [T]) -> R) -> Result<R> {
        self.check_numbers()?;
        let op = Update { f: RefCell::new(Some(f)), out: RefCell::new(None), t: std::marker::PhantomData };
        self.tensor.inplace_op1(&op)?;
        op.out.into_inner().context("the update did not run")
    }

    /// The numbers as a vector, converted to f32.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        self.check_numbers()?;
        Ok(self.tensor.flatten_all()?.to_dtype(DType::F32)?.to_vec1::<f32>()?)
    }

    /// The numbers as a vector, converted to f64.
    pub fn to_f64(&self) -> Result<Vec<f64>> {
        self.check_numbers()?;
        Ok(self.tensor.flatten_all()?.to_dtype(DType::F64)?.to_vec1::<f64>()?)
    }

    /// The numbers in another type, as a new allocation (the same one if the type is the same).
    pub fn to_dtype(&self, dtype: DType, category: Category) -> Result<Self> {
        if dtype == self.dtype() {
            return Ok(self.clone());
        }
        if self.is_shape_only() {
            return Self::shape_only(self.dims(), dtype, category);
        }
        self.check_numbers()?;
        Self::from_tensor(self.tensor.to_dtype(dtype)?, category)
    }

    /// The bytes of the numbers, in this machine's order.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        Ok(match self.dtype() {
            DType::F32 => bytemuck::cast_slice(&self.view::<f32>()?).to_vec(),
            DType::F64 => bytemuck::cast_slice(&self.view::<f64>()?).to_vec(),
            DType::BF16 => bytemuck::cast_slice(&self.view::<half::bf16>()?).to_vec(),
            DType::F16 => bytemuck::cast_slice(&self.view::<half::f16>()?).to_vec(),
            DType::U8 => self.view::<u8>()?.to_vec(),
            other => bail!("no bytes of {other:?}"),
        })
    }

    /// The array that [`Array::to_bytes`] was taken from.
    pub fn from_bytes(bytes: &[u8], dims: &[usize], dtype: DType, category: Category) -> Result<Self> {
        fn numbers<T: bytemuck::Pod>(bytes: &[u8]) -> Vec<T> {
            let mut all = vec![T::zeroed(); bytes.len() / size_of::<T>()];
            bytemuck::cast_slice_mut(&mut all).copy_from_slice(bytes);
            all
        }
        match dtype {
            DType::F32 => Self::from_vec(numbers::<f32>(bytes), dims, category),
            DType::F64 => Self::from_vec(numbers::<f64>(bytes), dims, category),
            DType::BF16 => Self::from_vec(numbers::<half::bf16>(bytes), dims, category),
            DType::F16 => Self::from_vec(numbers::<half::f16>(bytes), dims, category),
            DType::U8 => Self::from_vec(bytes.to_vec(), dims, category),
            other => bail!("no numbers in {other:?}"),
        }
    }

    /// Takes the numbers of [`Array::to_bytes`] into this array's own room.
    ///
    /// # Errors
    /// If they are not as many bytes, or the type has none.
    pub fn fill_bytes(&self, bytes: &[u8]) -> Result<()> {
        fn copy<T: bytemuck::Pod + Element>(array: &Array, bytes: &[u8]) -> Result<()> {
            array.update(|x: &mut [T]| bytemuck::cast_slice_mut(x).copy_from_slice(bytes))
        }
        ensure!(bytes.len() as u64 == self.bytes(), "{} bytes for {self:?}", bytes.len());
        match self.dtype() {
            DType::F32 => copy::<f32>(self, bytes),
            DType::F64 => copy::<f64>(self, bytes),
            DType::BF16 => copy::<half::bf16>(self, bytes),
            DType::F16 => copy::<half::f16>(self, bytes),
            DType::U8 => copy::<u8>(self, bytes),
            other => bail!("no numbers in {other:?}"),
        }
    }

    /// A scalar's value.
    pub fn scalar(&self) -> Result<f64> {
        if self.is_shape_only() {
            return Ok(0.0);
        }
        self.check_numbers()?;
        ensure!(self.len() == 1, "{:?} is not a scalar", self.dims());
        Ok(self.tensor.flatten_all()?.to_dtype(DType::F64)?.to_vec1::<f64>()?[0])
    }
}

fn bytes_of(len: usize, dtype: DType) -> u64 {
    (len * dtype.size_in_bytes()) as u64
}

/// A borrowed look at an array's numbers.
pub struct View<'a, T> {
    storage: StorageRef<'a>,
    start: usize,
    len: usize,
    element: std::marker::PhantomData<T>,
}

impl<T: Element> Deref for View<'_, T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // `view` checked both; an empty slice keeps this total.
        match &*self.storage {
            Storage::Cpu(cpu) => cpu.as_slice::<T>().map_or(&[], |s| &s[self.start..self.start + self.len]),
            _ => &[],
        }
    }
}

struct Update<T, F, R> {
    f: RefCell<Option<F>>,
    out: RefCell<Option<R>>,
    t: std::marker::PhantomData<T>,
}

impl<T: Element, R, F: FnOnce(&mut [T]) -> R> InplaceOp1 for Update<T, F, R> {
    fn name(&self) -> &'static str {
        "update"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let Some(slice) = T::slice_mut(storage) else {
            candle_core::bail!("the array does not hold {:?}", T::DTYPE)
        };
        let (start, len) = (layout.start_offset(), layout.shape().elem_count());
        if let Some(f) = self.f.borrow_mut().take() {
            *self.out.borrow_mut() = Some(f(&mut slice[start..start + len]));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_follow_the_last_handle() {
        let meter = Meter::new();
        let _scope = meter::scope(meter.clone());
        let a = Array::zeros(&[4, 8], DType::F32, Category::Workspace).unwrap();
        let b = a.reshape(&[32]).unwrap();
        assert_eq!(meter.live().workspace, 128);
        b.claim(Category::Activations);
        assert_eq!((meter.live().workspace, meter.live().activations), (0, 128));
        b.claim(Category::Weights);
        assert_eq!(meter.live().activations, 128);
        drop(a);
        assert_eq!(meter.live().total(), 128);
        drop(b);
        assert_eq!(meter.live().total(), 0);
        assert_eq!(meter.peak(), 128);
    }

    #[test]
    fn shape_only_counts_and_holds_nothing() {
        let meter = Meter::new();
        let _scope = meter::scope(meter.clone());
        let a = Array::shape_only(&[1 << 20, 1 << 20], DType::F32, Category::Weights).unwrap();
        assert_eq!(meter.live().weights, 1 << 42);
        assert_eq!(a.reshape(&[1 << 40]).unwrap().dims(), [1 << 40]);
        assert!(a.view::<f32>().is_err());
    }

    #[test]
    fn updates_in_place() {
        let a = Array::from_vec(vec![1f32, 2.0], &[2], Category::Workspace).unwrap();
        let b = a.clone();
        a.update(|x: &mut [f32]| x[1] = 5.0).unwrap();
        assert_eq!(&*b.view::<f32>().unwrap(), &[1.0, 5.0]);
    }
}
