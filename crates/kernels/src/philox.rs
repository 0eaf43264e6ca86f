//! Random numbers by address: Philox4x32-10, a keyed bijection of 128-bit counters.
//!
//! A number is a pure function of (key, stream id, index). Order, threads and what was drawn before
//! cannot change it, so a mask replays from its address and needs no storage.
//!
//! Source: Salmon, Moraes, Dror & Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3".

use crate::Real;
use crate::box_muller;
use crate::split::in_pieces;
use crate::wide::{Isa, isa, wide};

#[cfg(target_arch = "x86_64")]
mod avx512;

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 10;

/// The four words that Philox4x32-10 makes of a counter under a key.
#[inline(always)]
pub fn philox4x32(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let [mut a, mut b, mut c, mut d] = counter;
    let [mut k0, mut k1] = key;
    for _ in 0..ROUNDS {
        let p = MULTIPLIERS[0] as u64 * a as u64;
        let q = MULTIPLIERS[1] as u64 * c as u64;
        (a, b, c, d) = ((q >> 32) as u32 ^ b ^ k0, q as u32, (p >> 32) as u32 ^ d ^ k1, p as u32);
        k0 = k0.wrapping_add(WEYL[0]);
        k1 = k1.wrapping_add(WEYL[1]);
    }
    [a, b, c, d]
}

/// A sequence of random numbers addressed by index; streams with different ids are independent.
///
/// All views read the same underlying words: [`u32_at`](Stream::u32_at)`(i)` is word i,
/// [`u64_at`](Stream::u64_at)`(i)` is words 2i and 2i + 1. Use one view of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    key: [u32; 2],
    id: u64,
}

impl Stream {
    /// The stream `id` under `key`.
    pub fn new(key: u64, id: u64) -> Self {
        Stream { key: [key as u32, (key >> 32) as u32], id }
    }

    #[inline(always)]
    fn block(&self, block: u64) -> [u32; 4] {
        philox4x32([block as u32, (block >> 32) as u32, self.id as u32, (self.id >> 32) as u32], self.key)
    }

    /// Word `index`: 32 random bits.
    pub fn u32_at(&self, index: u64) -> u32 {
        self.block(index / 4)[(index % 4) as usize]
    }

    /// Words 2·`index` and 2·`index` + 1: 64 random bits.
    pub fn u64_at(&self, index: u64) -> u64 {
        let block = self.block(index / 2);
        let at = (index % 2 * 2) as usize;
        block[at] as u64 | (block[at + 1] as u64) << 32
    }

    /// Uniform in [0, 1) with 32 bits: [`u32_at`](Stream::u32_at) / 2³².
    pub fn uniform_at(&self, index: u64) -> f64 {
        self.u32_at(index) as f64 * (1.0 / 4_294_967_296.0)
    }

    /// Standard normal by [`box_muller`]: entries 2j and 2j + 1 come from words 2j and 2j + 1. |x| < 6.77.
    pub fn normal_at(&self, index: u64) -> f32 {
        let block = self.block(index / 4);
        let at = (index % 4 / 2 * 2) as usize;
        let pair = box_muller::pair(block[at], block[at + 1]);
        if index.is_multiple_of(2) { pair.0 } else { pair.1 }
    }

    /// Words `first`, `first` + 1, … as by [`u32_at`](Stream::u32_at), on the calling thread.
    pub fn fill_u32(&self, first: u64, out: &mut [u32]) {
        fill_words(self, first, out);
    }

    /// `out[i] = lo + (hi − lo) · uniform_at(first + i)`
    pub fn fill_uniform<T: Real>(&self, first: u64, lo: f64, hi: f64, out: &mut [T]) {
        in_pieces(out, |at, out| {
            self.fill(first.wrapping_add(at as u64), out, |words, out| {
                for (o, w) in out.iter_mut().zip(words) {
                    *o = T::from_f64(lo + (hi - lo) * (*w as f64 * (1.0 / 4_294_967_296.0)));
                }
            });
        });
    }

    /// `out[i] = std · normal_at(first + i)`, the product in `T`.
    pub fn fill_normal<T: Real>(&self, first: u64, std: f64, out: &mut [T]) {
        let of = |z: f32| T::from_f64(std) * T::from_f64(f64::from(z));
        // A start within a counter, or an odd end, cuts a pair; those entries are made one at a time.
        let head = ((4 - first % 4) as usize % 4).min(out.len());
        let (cut, out) = out.split_at_mut(head);
        let pairs = out.len() / 2 * 2;
        let (even, tail) = out.split_at_mut(pairs);
        for (o, at) in cut.iter_mut().zip(first..) {
            *o = of(self.normal_at(at));
        }
        let first = first.wrapping_add(head as u64);
        in_pieces(even, |at, out| self.normals(first.wrapping_add(at as u64), std, out));
        for (o, at) in tail.iter_mut().zip(first.wrapping_add(pairs as u64)..) {
            *o = of(self.normal_at(at));
        }
    }

    /// [`fill_normal`](Stream::fill_normal) of whole pairs from the first word of a counter on, on the calling thread.
    fn normals<T: Real>(&self, first: u64, std: f64, out: &mut [T]) {
        let mut done = 0;
        #[cfg(target_arch = "x86_64")]
        if isa() == Isa::Avx512
            && let Some(out) = T::as_f32_mut(out)
        {
            let batches = out.as_chunks_mut::<{ 4 * avx512::BATCH }>().0;
            done = batches.as_flattened().len();
            // SAFETY: `isa` has seen the features.
            unsafe { avx512::normals(self, first / 4, std as f32, batches) };
        }
        self.fill(first.wrapping_add(done as u64), &mut out[done..], |words, out| {
            box_muller::fill(words, std, out)
        });
    }

    /// Hands out words with the slice that they are to fill, on the calling thread.
    fn fill<T: Real>(&self, first: u64, out: &mut [T], f: impl Fn(&[u32], &mut [T])) {
        const PIECE: usize = 256;
        let mut words = [0u32; PIECE];
        for (p, out) in out.chunks_mut(PIECE).enumerate() {
            let words = &mut words[..out.len()];
            self.fill_u32(first.wrapping_add((p * PIECE) as u64), words);
            f(words, out);
        }
    }
}

wide! {
    /// Whole batches of counters from `block` on.
    fn fill_batches[](stream: &Stream, first: u64, batches: &mut [[u32; 4 * BATCH]]) {
        let mut block = first;
        for batch in batches {
            let counter: [u64; BATCH] = std::array::from_fn(|l| block.wrapping_add(l as u64));
            let id = [stream.id as u32, (stream.id >> 32) as u32];
            let mut words =
                [counter.map(|c| c as u32), counter.map(|c| (c >> 32) as u32), [id[0]; BATCH], [id[1]; BATCH]];
            let [mut k0, mut k1] = stream.key;
            for _ in 0..ROUNDS {
                let [a, b, c, d] = words;
                for l in 0..BATCH {
                    let p = MULTIPLIERS[0] as u64 * a[l] as u64;
                    let q = MULTIPLIERS[1] as u64 * c[l] as u64;
                    words[0][l] = (q >> 32) as u32 ^ b[l] ^ k0;
                    words[1][l] = q as u32;
                    words[2][l] = (p >> 32) as u32 ^ d[l] ^ k1;
                    words[3][l] = p as u32;
                }
                k0 = k0.wrapping_add(WEYL[0]);
                k1 = k1.wrapping_add(WEYL[1]);
            }
            for (l, four) in batch.chunks_exact_mut(4).enumerate() {
                four.copy_from_slice(&[words[0][l], words[1][l], words[2][l], words[3][l]]);
            }
            block = block.wrapping_add(BATCH as u64);
        }
    }
}

/// Counters side by side, so that the rounds vectorise across them.
const BATCH: usize = 16;

fn fill_words(stream: &Stream, first: u64, out: &mut [u32]) {
    let skip = (first % 4) as usize;
    let mut block = first / 4;
    let mut out = out;
    if skip > 0 && !out.is_empty() {
        let n = (4 - skip).min(out.len());
        let (head, rest) = out.split_at_mut(n);
        head.copy_from_slice(&stream.block(block)[skip..skip + n]);
        block = block.wrapping_add(1);
        out = rest;
    }
    #[cfg(target_arch = "x86_64")]
    if isa() == Isa::Avx512 {
        let (batches, rest) = out.as_chunks_mut::<{ 4 * avx512::BATCH }>();
        // SAFETY: `isa` has seen the features.
        unsafe { avx512::words(stream, block, batches) };
        block = block.wrapping_add((avx512::BATCH * batches.len()) as u64);
        out = rest;
    }
    let (batches, rest) = out.as_chunks_mut::<{ 4 * BATCH }>();
    fill_batches(stream, block, batches);
    block = block.wrapping_add((BATCH * batches.len()) as u64);
    for piece in rest.chunks_mut(4) {
        piece.copy_from_slice(&stream.block(block)[..piece.len()]);
        block = block.wrapping_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers of the Random123 distribution.
    #[test]
    fn known_answers() {
        assert_eq!(philox4x32([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox4x32([!0; 4], [!0; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        let pi = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
        assert_eq!(
            philox4x32(pi, [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn filling_equals_asking_one_at_a_time() {
        let s = Stream::new(0x0123_4567_89ab_cdef, 42);
        for first in [0, 1, 2, 3, 5, u64::from(u32::MAX) * 4 - 9] {
            for n in [0, 1, 2, 3, 4, 63, 64, 65, 200] {
                let mut words = vec![0; n];
                s.fill_u32(first, &mut words);
                let (mut uniform, mut normal) = (vec![0.0f64; n], vec![0.0f64; n]);
                s.fill_uniform(first, 2.0, 5.0, &mut uniform);
                s.fill_normal(first, 3.0, &mut normal);
                for i in 0..n {
                    let at = first + i as u64;
                    assert_eq!(words[i], s.u32_at(at));
                    assert_eq!(uniform[i], 2.0 + 3.0 * s.uniform_at(at));
                    assert_eq!(normal[i], 3.0 * f64::from(s.normal_at(at)));
                }
            }
        }
    }

    #[test]
    fn normals_in_bulk_have_the_bits_of_one_at_a_time() {
        let s = Stream::new(0x0123_4567_89ab_cdef, 42);
        for first in [0, 1, 2, 3, 4, 18, u64::from(u32::MAX) * 4 - 90] {
            for n in [0, 1, 5, 127, 128, 131, 1000, 20_000] {
                let mut z = vec![f32::NAN; n];
                s.fill_normal(first, -0.3, &mut z);
                for (z, at) in z.iter().zip(first..) {
                    assert_eq!(
                        z.to_bits(),
                        (-0.3f32 * s.normal_at(at)).to_bits(),
                        "{at} of {n} from {first}"
                    );
                }
            }
        }
    }

    #[test]
    fn words_pair_up() {
        let s = Stream::new(7, 8);
        for i in 0..10 {
            assert_eq!(s.u64_at(i), s.u32_at(2 * i) as u64 | (s.u32_at(2 * i + 1) as u64) << 32);
        }
    }

    #[test]
    fn keys_and_ids_separate_streams() {
        let word = |key, id| Stream::new(key, id).u32_at(0);
        let all = [word(1, 1), word(2, 1), word(1, 2), word(1 << 32, 1), word(1, 1 << 32)];
        for (i, a) in all.iter().enumerate() {
            assert!(all[i + 1..].iter().all(|b| a != b));
        }
    }

    #[test]
    fn moments_are_right() {
        let n = 1 << 20;
        let (mut u, mut z) = (vec![0.0f64; n], vec![0.0f64; n]);
        Stream::new(1, 2).fill_uniform(0, 0.0, 1.0, &mut u);
        Stream::new(1, 3).fill_normal(0, 1.0, &mut z);
        let mean = |x: &[f64], p: i32| x.iter().map(|x| x.powi(p)).sum::<f64>() / n as f64;
        // Five standard errors each.
        assert!((mean(&u, 1) - 0.5).abs() < 5.0 * 0.289 / 1024.0);
        assert!((mean(&u, 2) - 1.0 / 3.0).abs() < 5.0 * 0.298 / 1024.0);
        assert!(mean(&z, 1).abs() < 5.0 / 1024.0);
        assert!((mean(&z, 2) - 1.0).abs() < 5.0 * 2f64.sqrt() / 1024.0);
        assert!((mean(&z, 4) - 3.0).abs() < 5.0 * 96f64.sqrt() / 1024.0);
        assert!(u.iter().all(|u| (0.0..1.0).contains(u)));
        let pairs: f64 = z.chunks(2).map(|z| z[0] * z[1]).sum::<f64>() / (n / 2) as f64;
        assert!(pairs.abs() < 5.0 / (n as f64 / 2.0).sqrt(), "the two of a pair are correlated");
    }
}
