//! Products small enough for one thread and its caches, in f32: sums stay in registers, `b` is read as it lies.
//!
//! c[m×n] (+)= α · a[m×k] · b[k×n]      any strides of a; rows of b and c are contiguous
//!
//! One body, written once over the registers of AVX-512, AVX2 and the baseline. AVX-512 holds 6 rows by 64
//! columns of sums: 24 multiply-adds for four loads and six broadcasts, so that the multiply-adds are what bounds it.
//! Attention is made of these; the large products of `panels` too, once their `b` is in order.

use crate::cpu::{self, Cpu};
use crate::matmul::{self, Strided};
#[cfg(target_arch = "x86_64")]
use crate::registers::x86;
use crate::registers::{Lanes, Plain, Products, Step};
use crate::{Real, unwritten};

/// The operands of a product; rows of `b` and `c` lie `b_row` and `c_row` numbers apart.
#[derive(Clone, Copy)]
pub(crate) struct Operands {
    pub a: Strided<*const f32>,
    pub b: *const f32,
    pub b_row: usize,
    pub c: *mut f32,
    pub c_row: usize,
    pub alpha: f32,
    /// Whether the product is added to c.
    pub onto: bool,
}

impl Operands {
    /// Of numbers that are f32 by another name.
    fn of<T: Real>(
        alpha: T,
        a: Strided<*const T>,
        (b, b_row): (*const T, usize),
        onto: bool,
        (c, c_row): (*mut T, usize),
    ) -> Self {
        let a = Strided { start: a.start.cast(), row: a.row, col: a.col };
        Operands { a, b: b.cast(), b_row, c: c.cast(), c_row, alpha: alpha.to_f64() as f32, onto }
    }

    /// Those of up to `width` of the `n` columns at a time, and how many they are.
    #[inline(always)]
    fn strips(self, n: usize, width: usize) -> impl Iterator<Item = (Operands, usize)> {
        (0..n).step_by(width).map(move |first| {
            let o = Operands { b: self.b.wrapping_add(first), c: self.c.wrapping_add(first), ..self };
            (o, width.min(n - first))
        })
    }
}

/// m rows by the columns of V registers, R rows at a time; `cols` at most V·WIDTH, more than (V − 1)·WIDTH.
///
/// # Safety
/// The operands cover m×`cols` and k; the instruction set of L was seen.
#[inline(always)]
unsafe fn strip<L: Lanes, S: Step<L>, const R: usize, const V: usize>(
    o: &Operands,
    (m, cols, k): (usize, usize, usize),
) {
    // SAFETY: rows past the end stand for the last one and are not stored; the rest is the caller's promise.
    unsafe {
        let mask = L::mask(cols - L::WIDTH * (V - 1));
        let alpha = L::splat(o.alpha);
        for first in (0..m).step_by(R) {
            let here = R.min(m - first);
            let mut sums = [[L::zero(); V]; R];
            let rows: [*const f32; R] =
                std::array::from_fn(|r| o.a.start.offset((first + r.min(here - 1)) as isize * o.a.row));
            let (mut b, mut at) = (o.b, 0);
            for _ in 0..k {
                let right: [L; V] = std::array::from_fn(|v| match v + 1 == V {
                    true => L::load_some(mask, b.add(L::WIDTH * v)),
                    false => L::load(b.add(L::WIDTH * v)),
                });
                for r in 0..R {
                    let x = L::splat(*rows[r].offset(at));
                    for v in 0..V {
                        sums[r][v] = S::step(sums[r][v], x, right[v]);
                    }
                }
                b = b.wrapping_add(o.b_row);
                at += o.a.col;
            }
            let all = L::mask(L::WIDTH);
            for (r, sums) in sums.iter().enumerate().take(here) {
                let to = o.c.add((first + r) * o.c_row);
                for (v, sum) in sums.iter().enumerate() {
                    let (to, mask) = (to.add(L::WIDTH * v), if v + 1 == V { mask } else { all });
                    match o.onto {
                        true => L::load_some(mask, to).plus_product(alpha, *sum).store_some(mask, to),
                        false => sum.times(alpha).store_some(mask, to),
                    }
                }
            }
        }
    }
}

/// Strips of up to 64 columns.
///
/// # Safety
/// As for [`product`]; the instruction sets of L and S were seen.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn sixty_four<L: Lanes, S: Step<L>>(o: &Operands, (m, n, k): (usize, usize, usize)) {
    for (o, cols) in o.strips(n, 64) {
        // SAFETY: the caller's promise.
        unsafe {
            match (cols.div_ceil(16), m) {
                (4, 1) => strip::<L, S, 1, 4>(&o, (m, cols, k)),
                (4, 2) => strip::<L, S, 2, 4>(&o, (m, cols, k)),
                (4, 3) => strip::<L, S, 3, 4>(&o, (m, cols, k)),
                (4, 4) => strip::<L, S, 4, 4>(&o, (m, cols, k)),
                (4, _) => strip::<L, S, 6, 4>(&o, (m, cols, k)),
                (3, _) => strip::<L, S, 8, 3>(&o, (m, cols, k)),
                (2, _) => strip::<L, S, 12, 2>(&o, (m, cols, k)),
                _ => strip::<L, S, 16, 1>(&o, (m, cols, k)),
            }
        }
    }
}

/// # Safety
/// As for [`product`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
pub(crate) unsafe fn avx512(o: &Operands, shape: (usize, usize, usize)) {
    // SAFETY: the caller's promise.
    unsafe { sixty_four::<std::arch::x86_64::__m512, Products>(o, shape) }
}

/// Of words of two bf16.
///
/// # Safety
/// As for [`product`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
unsafe fn pairs(o: &Operands, shape: (usize, usize, usize)) {
    // SAFETY: the caller's promise.
    unsafe { sixty_four::<std::arch::x86_64::__m512, x86::Pairs>(o, shape) }
}

/// Strips of up to 16 columns.
///
/// # Safety
/// As for [`product`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2(o: &Operands, (m, n, k): (usize, usize, usize)) {
    use std::arch::x86_64::__m256 as L;
    for (o, cols) in o.strips(n, 16) {
        // SAFETY: the caller's promise.
        unsafe {
            match cols > 8 {
                true => strip::<L, Products, 6, 2>(&o, (m, cols, k)),
                false => strip::<L, Products, 12, 1>(&o, (m, cols, k)),
            }
        }
    }
}

/// Strips of up to 8 columns.
///
/// # Safety
/// As for [`product`].
unsafe fn portable(o: &Operands, (m, n, k): (usize, usize, usize)) {
    for (o, cols) in o.strips(n, 8) {
        // SAFETY: the caller's promise.
        unsafe {
            match cols > 4 {
                true => strip::<Plain, Products, 4, 2>(&o, (m, cols, k)),
                false => strip::<Plain, Products, 8, 1>(&o, (m, cols, k)),
            }
        }
    }
}

/// c (+)= α · a · b on the calling thread; f64 goes to the `gemm` crate.
///
/// # Safety
/// All elements of the three operands lie in live allocations, and `c` belongs to the caller alone.
#[inline]
pub(crate) unsafe fn product<T: Real>(
    shape: (usize, usize, usize),
    alpha: T,
    a: Strided<*const T>,
    b: (*const T, usize),
    onto: bool,
    c: (*mut T, usize),
) {
    if T::as_f32(&[]).is_none() {
        let (b, c) = (Strided::new(b.0, b.1, 1), Strided::new(c.0, c.1, 1));
        // SAFETY: the caller's promise.
        return unsafe { matmul::product(shape, alpha, a, b, onto, c) };
    }
    let o = Operands::of(alpha, a, b, onto, c);
    // SAFETY: T is f32; `found` has seen the features; the rest is the caller's promise.
    unsafe {
        match cpu::found() {
            #[cfg(target_arch = "x86_64")]
            Cpu::Avx512 | Cpu::Avx512Bf16 | Cpu::Amx => avx512(&o, shape),
            #[cfg(target_arch = "x86_64")]
            Cpu::Avx2 => avx2(&o, shape),
            _ => portable(&o, shape),
        }
    }
}

/// As [`product`], of operands that hold two bf16 in each number, along what is summed over.
///
/// # Safety
/// As there; [`bf16::unit`](crate::bf16::unit) is there and T is f32.
pub(crate) unsafe fn product_of_pairs<T: Real>(
    shape: (usize, usize, usize),
    alpha: T,
    a: Strided<*const T>,
    b: (*const T, usize),
    onto: bool,
    c: (*mut T, usize),
) {
    let o = Operands::of(alpha, a, b, onto, c);
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the caller's promise.
    unsafe {
        pairs(&o, shape);
    }
    #[cfg(not(target_arch = "x86_64"))]
    unreachable!("no unit for {shape:?} of {:?}", o.c);
}

/// `panels[⌈rows / 64⌉][d][64]` ← the transpose of `rows` rows of `d` numbers, zeros where there is no row: what a
/// product with it as `b` reads in the order in which it lies.
///
/// # Safety
/// `from` covers its rows, `stride` numbers apart.
pub(crate) unsafe fn transposed<T: Real>(from: *const T, stride: usize, rows: usize, d: usize) -> Vec<T> {
    const EDGE: usize = 16;
    let mut panels = unwritten(rows.div_ceil(PANEL) * PANEL * d);
    for (p, panel) in panels.chunks_exact_mut(PANEL * d).enumerate() {
        let here = PANEL.min(rows - p * PANEL);
        if here < PANEL {
            panel.fill(T::ZERO);
        }
        for (r0, c0) in (0..here).step_by(EDGE).flat_map(|r| (0..d).step_by(EDGE).map(move |c| (r, c))) {
            let (r1, c1) = (here.min(r0 + EDGE), d.min(c0 + EDGE));
            #[cfg(target_arch = "x86_64")]
            if r1 - r0 == EDGE && T::as_f32(&[]).is_some() && cpu::found() >= Cpu::Avx512 {
                // SAFETY: 16 rows of c1 − c0 numbers within both; T is f32; the features were seen.
                unsafe {
                    let from = from.add((p * PANEL + r0) * stride + c0).cast();
                    square(
                        (from, 4 * stride),
                        c1 - c0,
                        (panel.as_mut_ptr().add(c0 * PANEL + r0).cast(), PANEL),
                    );
                }
                continue;
            }
            for r in r0..r1 {
                for c in c0..c1 {
                    // SAFETY: the caller's promise.
                    panel[c * PANEL + r] = unsafe { *from.add((p * PANEL + r) * stride + c) };
                }
            }
        }
    }
    panels
}

/// Rows of a panel of [`transposed`].
pub(crate) const PANEL: usize = 64;

/// The transpose of 16 rows of `n` ≤ 16 words of 32 bits: `n` rows of 16. Rows of `from` lie `stride` bytes apart, of
/// `to` `apart` words.
///
/// # Safety
/// Both lie within their allocations; `from` need not be aligned.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
pub(crate) unsafe fn square((from, stride): (*const f32, usize), n: usize, (to, apart): (*mut f32, usize)) {
    use std::arch::x86_64::*;
    // SAFETY: the caller's promise; loads are masked to the words that are there.
    unsafe {
        let there: u16 = if n >= 16 { !0 } else { (1 << n) - 1 };
        let row = |i: usize| _mm512_maskz_loadu_ps(there, from.byte_add(i * stride));
        // Pairs of rows, then pairs of pairs: 4×4 squares lie transposed in each quarter.
        let mut quads = [_mm512_setzero_ps(); 16];
        for i in (0..16).step_by(4) {
            let (a, b, c, d) = (row(i), row(i + 1), row(i + 2), row(i + 3));
            let (ab, cd) = (_mm512_unpacklo_ps(a, b), _mm512_unpacklo_ps(c, d));
            let (ab_high, cd_high) = (_mm512_unpackhi_ps(a, b), _mm512_unpackhi_ps(c, d));
            quads[i] = _mm512_shuffle_ps::<0b01_00_01_00>(ab, cd);
            quads[i + 1] = _mm512_shuffle_ps::<0b11_10_11_10>(ab, cd);
            quads[i + 2] = _mm512_shuffle_ps::<0b01_00_01_00>(ab_high, cd_high);
            quads[i + 3] = _mm512_shuffle_ps::<0b11_10_11_10>(ab_high, cd_high);
        }
        // Quarters change places: quads[4·g + c] holds columns c, c + 4, c + 8, c + 12 of rows 4·g ….
        for c in 0..4 {
            let (q0, q1, q2, q3) = (quads[c], quads[4 + c], quads[8 + c], quads[12 + c]);
            let even = _mm512_shuffle_f32x4::<0b10_00_10_00>(q0, q1); // 0, 8 of rows 0…; 0, 8 of rows 4…
            let odd = _mm512_shuffle_f32x4::<0b11_01_11_01>(q0, q1);
            let even_low = _mm512_shuffle_f32x4::<0b10_00_10_00>(q2, q3);
            let odd_low = _mm512_shuffle_f32x4::<0b11_01_11_01>(q2, q3);
            let put = |at: usize, x: __m512| {
                if at < n {
                    _mm512_storeu_ps(to.add(at * apart), x);
                }
            };
            put(c, _mm512_shuffle_f32x4::<0b10_00_10_00>(even, even_low));
            put(c + 8, _mm512_shuffle_f32x4::<0b11_01_11_01>(even, even_low));
            put(c + 4, _mm512_shuffle_f32x4::<0b10_00_10_00>(odd, odd_low));
            put(c + 12, _mm512_shuffle_f32x4::<0b11_01_11_01>(odd, odd_low));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::matmul::reference;
    use crate::testing::{assert_sums, magnitudes, normal, wide};

    type Kind = unsafe fn(&Operands, (usize, usize, usize));

    /// Every instruction set of this machine.
    fn kinds() -> Vec<Kind> {
        let mut kinds: Vec<Kind> = vec![portable];
        #[cfg(target_arch = "x86_64")]
        {
            let widest = cpu::widest(Cpu::Amx);
            if widest >= Cpu::Avx2 {
                kinds.push(avx2);
            }
            if widest >= Cpu::Avx512 {
                kinds.push(avx512);
            }
        }
        kinds
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn every_set_equals_the_reference(
            m in 1usize..30, n in 1usize..150, k in 0usize..40, gap in 0usize..5, flipped: bool, onto: bool,
        ) {
            let (a, b) = (normal::<f32>(1, m * k), normal::<f32>(2, k * (n + gap)));
            let start = normal::<f32>(3, m * (n + gap));
            let dense: Vec<f32> = b.chunks(n + gap).flat_map(|row| &row[..n]).copied().collect();
            let lying: Vec<f32> = match flipped {
                true => (0..m * k).map(|i| a[i % m * k + i / m]).collect(),
                false => a.clone(),
            };
            let (row, col) = if flipped { (1, m) } else { (k, 1) };
            let product = reference::nn(m, k, n, &wide(&a), &wide(&dense));
            let sizes = reference::nn(m, k, n, &magnitudes(&a), &magnitudes(&dense));
            for kind in kinds() {
                let mut c = start.clone();
                let o = Operands {
                    a: Strided::new(lying.as_ptr(), row, col),
                    b: b.as_ptr(), b_row: n + gap, c: c.as_mut_ptr(), c_row: n + gap, alpha: 0.5, onto,
                };
                // SAFETY: whole operands; `kinds` names what is here.
                unsafe { kind(&o, (m, n, k)) };
                for (i, (row, before)) in c.chunks(n + gap).zip(start.chunks(n + gap)).enumerate() {
                    let of = |j: usize| if onto { f64::from(before[j]) } else { 0.0 };
                    let want: Vec<f64> = (0..n).map(|j| 0.5 * product[i * n + j] + of(j)).collect();
                    let sizes: Vec<f64> = (0..n).map(|j| 0.5 * sizes[i * n + j] + of(j).abs()).collect();
                    assert_sums(&row[..n], &want, &sizes, 1e-6);
                    prop_assert_eq!(&row[n..], &before[n..], "written between the rows");
                }
            }
        }

        #[test]
        fn transposed_is_the_transpose(rows in 0usize..150, d in 1usize..70, gap in 0usize..3) {
            let x = normal::<f32>(1, rows * (d + gap));
            // SAFETY: all rows are there.
            let panels = unsafe { transposed(x.as_ptr(), d + gap, rows, d) };
            for r in 0..rows.next_multiple_of(PANEL) {
                for c in 0..d {
                    let want = if r < rows { x[r * (d + gap) + c] } else { 0.0 };
                    prop_assert_eq!(panels[r / PANEL * PANEL * d + c * PANEL + r % PANEL], want);
                }
            }
        }
    }
}
