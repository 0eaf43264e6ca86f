//! The peak of the units that multiply bf16, from registers alone.

#[cfg(target_arch = "x86_64")]
use super::everywhere;

/// Products of one call.
#[cfg(target_arch = "x86_64")]
const ROUNDS: usize = 1 << 19;

/// GFLOP/s of `vdpbf16ps` on all threads; `None` where there is none.
pub fn vectors(threads: usize) -> Option<f64> {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx512f") && std::arch::is_x86_feature_detected!("avx512bf16") {
        let s = everywhere(threads, &|_| {
            // SAFETY: both features were found.
            std::hint::black_box(unsafe { dot_products() });
        });
        // 16 sums of two products.
        return Some((threads * ROUNDS * CHAINS * 16 * 2 * 2) as f64 / s / 1e9);
    }
    let _ = threads;
    None
}

/// GFLOP/s of `tdpbf16ps` on all threads; `None` where there is none or the system forbids it.
pub fn tiles(threads: usize) -> Option<f64> {
    #[cfg(target_arch = "x86_64")]
    if ramekin_kernels::cpu::widest(ramekin_kernels::cpu::Cpu::Amx) == ramekin_kernels::cpu::Cpu::Amx {
        // SAFETY: there are tiles, and asking for them has let this process use them.
        let s = everywhere(threads, &|_| unsafe { tile_products() });
        // 16×16 sums of 32 products.
        return Some((threads * ROUNDS / 8 * 4 * 16 * 16 * 32 * 2) as f64 / s / 1e9);
    }
    let _ = threads;
    None
}

/// Chains that run beside each other: as many as the compiler keeps in registers, more than latency asks for.
#[cfg(target_arch = "x86_64")]
const CHAINS: usize = 12;

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bf16")]
fn dot_products() -> f32 {
    use std::arch::x86_64::{_mm512_cvtne2ps_pbh, _mm512_dpbf16_ps, _mm512_reduce_add_ps, _mm512_set1_ps};
    let (one, small) = (_mm512_set1_ps(1.0), _mm512_set1_ps(1e-3));
    let (a, b) = (_mm512_cvtne2ps_pbh(one, one), _mm512_cvtne2ps_pbh(small, small));
    // Chains that begin alike would be taken for one.
    let mut acc: [_; CHAINS] = std::array::from_fn(|i| _mm512_set1_ps(std::hint::black_box(i as f32)));
    for _ in 0..ROUNDS {
        for x in &mut acc {
            *x = _mm512_dpbf16_ps(*x, a, b);
        }
    }
    acc.into_iter().map(|x| _mm512_reduce_add_ps(x)).sum()
}

/// The tiles' shapes: eight of 16 rows of 64 bytes.
#[cfg(target_arch = "x86_64")]
#[repr(C, align(64))]
struct Config([u8; 64]);

#[cfg(target_arch = "x86_64")]
static CONFIG: Config = {
    let mut bytes = [0; 64];
    bytes[0] = 1; // the palette
    let mut tile = 0;
    while tile < 8 {
        bytes[16 + 2 * tile] = 64;
        bytes[48 + tile] = 16;
        tile += 1;
    }
    Config(bytes)
};

/// # Safety
/// There must be tiles that this process may use.
#[cfg(target_arch = "x86_64")]
unsafe fn tile_products() {
    // SAFETY: the configuration is a valid one and given back; no memory is written.
    unsafe {
        std::arch::asm!(
            "ldtilecfg [{config}]",
            "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
            "tilezero tmm4", "tilezero tmm5", "tilezero tmm6", "tilezero tmm7",
            "2:",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "dec {n}", "jnz 2b",
            "tilerelease",
            config = in(reg) &CONFIG, n = inout(reg) ROUNDS / 8 => _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack, readonly),
        );
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_is_eight_full_tiles() {
        let rows: Vec<u16> = CONFIG.0[16..32].chunks(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect();
        assert_eq!(rows, [64; 8]);
        assert_eq!(CONFIG.0[48..56], [16; 8]);
        assert_eq!((CONFIG.0[0], &CONFIG.0[32..48]), (1, &[0; 16][..]));
    }
}
