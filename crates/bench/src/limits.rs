//! What this machine can do at best: memory reads, and multiply-adds in registers.

mod dots;

use crate::figure::Figures;
use crate::kernels::best;

/// Chains of multiply-adds that run beside each other, each a vector wide.
const CHAINS: usize = 12;

/// Numbers of the widest vector.
const LANES: usize = 16;

/// Multiply-adds of one call.
const ROUNDS: usize = 1 << 20;

/// Measures all of them.
pub fn run(figures: &mut Figures) {
    let threads = rayon::current_num_threads();
    figures.add("limits", "threads", threads as f64, "");
    figures.add("limits", "memory read, one thread", read(1), "GB/s");
    figures.add("limits", "memory read, all threads", read(threads), "GB/s");
    let s = everywhere(threads, &|i| {
        std::hint::black_box(multiply_adds(1.0 + i as f32 * 1e-9));
    });
    let flops = (threads * 2 * ROUNDS * CHAINS * LANES) as f64;
    figures.add("limits", MULTIPLY_ADDS, flops / s / 1e9, "GFLOP/s");
    if let Some(rate) = dots::vectors(threads) {
        figures.add("limits", DOTS, rate, "GFLOP/s");
    }
    if let Some(rate) = dots::tiles(threads) {
        figures.add("limits", TILES, rate, "GFLOP/s");
    }
}

/// The case of f32.
pub const MULTIPLY_ADDS: &str = "peak of f32 multiply-adds";

/// The case of AVX-512 BF16.
pub const DOTS: &str = "peak of AVX-512 bf16 dot products";

/// The case of AMX.
pub const TILES: &str = "peak of AMX bf16 tiles";

/// GB/s of reads from memory by so many threads: 256 MB, more than caches of most machines hold.
pub fn read(threads: usize) -> f64 {
    let data = vec![1.0f32; 1 << 26];
    let share = data.len().div_ceil(threads.max(1));
    let s = best(|| {
        std::thread::scope(|scope| {
            for part in data.chunks(share) {
                scope.spawn(|| std::hint::black_box(part.chunks(1 << 20).map(sum).sum::<f32>()));
            }
        });
    });
    (data.len() * 4) as f64 / s / 1e9
}

/// The least seconds of `work` on every thread at once.
fn everywhere(threads: usize, work: &(dyn Fn(usize) + Sync)) -> f64 {
    best(|| {
        std::thread::scope(|scope| {
            for i in 0..threads {
                scope.spawn(move || work(i));
            }
        });
    })
}

fn sum(x: &[f32]) -> f32 {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the feature was found.
        return unsafe { sum_with_avx2(x) };
    }
    lanes(x)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn sum_with_avx2(x: &[f32]) -> f32 {
    lanes(x)
}

#[inline(always)]
fn lanes(x: &[f32]) -> f32 {
    let mut lanes = [0.0; 4 * LANES];
    for chunk in x.chunks_exact(4 * LANES) {
        for (lane, v) in lanes.iter_mut().zip(chunk) {
            *lane += v;
        }
    }
    lanes.iter().sum()
}

fn multiply_adds(seed: f32) -> f32 {
    #[cfg(target_arch = "x86_64")]
    {
        if std::arch::is_x86_feature_detected!("avx512f") {
            // SAFETY: the feature was found.
            return unsafe { with_avx512(seed) };
        }
        if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
            // SAFETY: both features were found.
            return unsafe { with_avx2(seed) };
        }
    }
    chains(seed)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn with_avx512(seed: f32) -> f32 {
    use std::arch::x86_64::{_mm512_fmadd_ps, _mm512_reduce_add_ps, _mm512_set1_ps};
    let (a, b) = (_mm512_set1_ps(0.999), _mm512_set1_ps(seed));
    // Chains that begin alike would be taken for one.
    let mut acc: [_; CHAINS] = std::array::from_fn(|i| _mm512_set1_ps(std::hint::black_box(seed + i as f32)));
    for _ in 0..ROUNDS {
        for x in &mut acc {
            *x = _mm512_fmadd_ps(*x, a, b);
        }
    }
    acc.into_iter().map(|x| _mm512_reduce_add_ps(x)).sum()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn with_avx2(seed: f32) -> f32 {
    chains(seed)
}

#[inline(always)]
fn chains(seed: f32) -> f32 {
    let mut acc: [[f32; LANES]; CHAINS] =
        std::array::from_fn(|i| [std::hint::black_box(seed + i as f32); LANES]);
    for _ in 0..ROUNDS {
        for chain in &mut acc {
            for x in chain {
                *x = x.mul_add(0.999, seed);
            }
        }
    }
    acc.as_flattened().iter().sum()
}
