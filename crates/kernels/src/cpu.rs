//! Which instruction sets are used: the widest of this machine, or at most what `RAMEKIN_CPU` says.

use std::sync::OnceLock;

/// Instruction sets, each with all before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cpu {
    /// What every processor of the architecture has.
    Portable,
    /// AVX2 and fused multiply-adds.
    Avx2,
    /// AVX-512 with bytes, words and short vectors.
    Avx512,
    /// The same with dot products of bf16.
    Avx512Bf16,
    /// AMX tiles of bf16.
    Amx,
}

/// The variable.
pub const VARIABLE: &str = "RAMEKIN_CPU";

/// Its values; `avx512` takes dot products of bf16 where there are some.
pub const NAMES: [&str; 4] = ["portable", "avx2", "avx512", "amx"];

/// The instruction set that a value of `RAMEKIN_CPU` allows at most.
pub fn limit(name: &str) -> Option<Cpu> {
    Some(match name {
        "portable" => Cpu::Portable,
        "avx2" => Cpu::Avx2,
        "avx512" => Cpu::Avx512Bf16,
        "amx" => Cpu::Amx,
        _ => return None,
    })
}

/// What is used, looked up once. A value that is none of [`NAMES`] limits nothing; the command refuses it.
pub fn found() -> Cpu {
    static FOUND: OnceLock<Cpu> = OnceLock::new();
    *FOUND.get_or_init(|| {
        let most = std::env::var(VARIABLE).ok().and_then(|name| limit(&name)).unwrap_or(Cpu::Amx);
        widest(most)
    })
}

/// Whether dot products of bytes (VNNI) come with what is used.
#[cfg(target_arch = "x86_64")]
pub fn has_vnni() -> bool {
    found() >= Cpu::Avx512 && is_x86_feature_detected!("avx512vnni")
}

/// The widest that this machine has, up to `most`.
#[cfg(target_arch = "x86_64")]
pub fn widest(most: Cpu) -> Cpu {
    let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    let avx512 = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl");
    let has = |cpu: Cpu| match cpu {
        Cpu::Portable => true,
        Cpu::Avx2 => avx2,
        Cpu::Avx512 => avx2 && avx512,
        Cpu::Avx512Bf16 => avx2 && avx512 && is_x86_feature_detected!("avx512bf16"),
        Cpu::Amx => avx2 && avx512 && is_x86_feature_detected!("avx512bf16") && crate::bf16::tiles_allowed(),
    };
    let all = [Cpu::Amx, Cpu::Avx512Bf16, Cpu::Avx512, Cpu::Avx2];
    all.into_iter().find(|c| *c <= most && has(*c)).unwrap_or(Cpu::Portable)
}

/// The widest that this machine has, up to `most`.
#[cfg(not(target_arch = "x86_64"))]
pub fn widest(_: Cpu) -> Cpu {
    Cpu::Portable
}
