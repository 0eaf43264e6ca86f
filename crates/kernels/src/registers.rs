//! Registers of f32 as small products see them: one trait, and what stands for it in each instruction set.

/// The mask of the first `n` of sixteen lanes, of all for more.
#[inline(always)]
pub(crate) const fn first_lanes(n: usize) -> u16 {
    if n >= 16 { !0 } else { (1 << n) - 1 }
}

/// A register of f32.
pub(crate) trait Lanes: Copy {
    /// Which lanes are there.
    type Mask: Copy;
    /// Numbers it holds.
    const WIDTH: usize;
    /// Zeros.
    unsafe fn zero() -> Self;
    /// The first `n` lanes.
    unsafe fn mask(n: usize) -> Self::Mask;
    /// The same number in all lanes.
    unsafe fn splat(x: f32) -> Self;
    /// All lanes from memory.
    unsafe fn load(from: *const f32) -> Self;
    /// The lanes of the mask from memory, zeros elsewhere.
    unsafe fn load_some(mask: Self::Mask, from: *const f32) -> Self;
    /// The lanes of the mask to memory.
    unsafe fn store_some(self, mask: Self::Mask, to: *mut f32);
    /// self + a·b
    unsafe fn plus_product(self, a: Self, b: Self) -> Self;
    /// self · a
    unsafe fn times(self, a: Self) -> Self;
}

/// What a product adds to its sums in one step.
pub(crate) trait Step<L> {
    /// sum + what lanes of a and b make
    unsafe fn step(sum: L, a: L, b: L) -> L;
}

/// Their products.
pub(crate) struct Products;

impl<L: Lanes> Step<L> for Products {
    #[inline(always)]
    unsafe fn step(sum: L, a: L, b: L) -> L {
        // SAFETY: the caller's promise.
        unsafe { sum.plus_product(a, b) }
    }
}

/// Four numbers in whatever the compiler has for them.
#[derive(Clone, Copy)]
#[repr(align(16))]
pub(crate) struct Plain([f32; 4]);

impl Lanes for Plain {
    type Mask = usize;
    const WIDTH: usize = 4;
    #[inline(always)]
    unsafe fn zero() -> Self {
        Plain([0.0; 4])
    }
    #[inline(always)]
    unsafe fn mask(n: usize) -> usize {
        n
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Plain([x; 4])
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's promise.
        Plain(unsafe { from.cast::<[f32; 4]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn load_some(n: usize, from: *const f32) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            match n {
                4.. => Self::load(from),
                _ => Plain(std::array::from_fn(|i| if i < n { *from.add(i) } else { 0.0 })),
            }
        }
    }
    #[inline(always)]
    unsafe fn store_some(self, n: usize, to: *mut f32) {
        for (i, x) in self.0.iter().enumerate().take(n) {
            // SAFETY: the caller's promise.
            unsafe { *to.add(i) = *x };
        }
    }
    #[inline(always)]
    unsafe fn plus_product(self, a: Self, b: Self) -> Self {
        Plain(std::array::from_fn(|i| self.0[i] + a.0[i] * b.0[i]))
    }
    #[inline(always)]
    unsafe fn times(self, a: Self) -> Self {
        Plain(std::array::from_fn(|i| self.0[i] * a.0[i]))
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) mod x86 {
    use std::arch::x86_64::*;

    use super::{Lanes, Step, first_lanes};

    impl Lanes for __m256 {
        type Mask = __m256i;
        const WIDTH: usize = 8;
        #[inline(always)]
        unsafe fn zero() -> Self {
            // SAFETY: callers have the feature; so throughout.
            unsafe { _mm256_setzero_ps() }
        }
        #[inline(always)]
        unsafe fn mask(n: usize) -> __m256i {
            let lanes: [i32; 8] = std::array::from_fn(|i| if i < n { -1 } else { 0 });
            // SAFETY: as above.
            unsafe { _mm256_loadu_si256(lanes.as_ptr().cast()) }
        }
        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            // SAFETY: as above.
            unsafe { _mm256_set1_ps(x) }
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: as above.
            unsafe { _mm256_loadu_ps(from) }
        }
        #[inline(always)]
        unsafe fn load_some(mask: __m256i, from: *const f32) -> Self {
            // SAFETY: as above.
            unsafe { _mm256_maskload_ps(from, mask) }
        }
        #[inline(always)]
        unsafe fn store_some(self, mask: __m256i, to: *mut f32) {
            // SAFETY: as above.
            unsafe { _mm256_maskstore_ps(to, mask, self) }
        }
        #[inline(always)]
        unsafe fn plus_product(self, a: Self, b: Self) -> Self {
            // SAFETY: as above.
            unsafe { _mm256_fmadd_ps(a, b, self) }
        }
        #[inline(always)]
        unsafe fn times(self, a: Self) -> Self {
            // SAFETY: as above.
            unsafe { _mm256_mul_ps(self, a) }
        }
    }

    impl Lanes for __m512 {
        type Mask = u16;
        const WIDTH: usize = 16;
        #[inline(always)]
        unsafe fn zero() -> Self {
            // SAFETY: as above.
            unsafe { _mm512_setzero_ps() }
        }
        #[inline(always)]
        unsafe fn mask(n: usize) -> u16 {
            first_lanes(n)
        }
        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            // SAFETY: as above.
            unsafe { _mm512_set1_ps(x) }
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: as above.
            unsafe { _mm512_loadu_ps(from) }
        }
        #[inline(always)]
        unsafe fn load_some(mask: u16, from: *const f32) -> Self {
            // SAFETY: as above.
            unsafe { _mm512_maskz_loadu_ps(mask, from) }
        }
        #[inline(always)]
        unsafe fn store_some(self, mask: u16, to: *mut f32) {
            // SAFETY: as above.
            unsafe { _mm512_mask_storeu_ps(to, mask, self) }
        }
        #[inline(always)]
        unsafe fn plus_product(self, a: Self, b: Self) -> Self {
            // SAFETY: as above.
            unsafe { _mm512_fmadd_ps(a, b, self) }
        }
        #[inline(always)]
        unsafe fn times(self, a: Self) -> Self {
            // SAFETY: as above.
            unsafe { _mm512_mul_ps(self, a) }
        }
    }

    /// Dot products of the two bf16 that each lane holds.
    pub(crate) struct Pairs;

    impl Step<__m512> for Pairs {
        #[inline(always)]
        unsafe fn step(sum: __m512, a: __m512, b: __m512) -> __m512 {
            // SAFETY: as above; the casts are between 512 bits of anything.
            unsafe {
                let bits = |x: __m512| std::mem::transmute::<__m512, __m512bh>(x);
                _mm512_dpbf16_ps(sum, bits(a), bits(b))
            }
        }
    }
}
