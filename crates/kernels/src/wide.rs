//! Compiles an inner loop once for each instruction set and picks the widest at run time.
//!
//! The workspace is built for the baseline processor, whose registers hold four `f32`. A function
//! written inside [`wide!`] exists three times: for AVX-512, for AVX2 and for the baseline. Its body is
//! ordinary Rust; the compiler does the vectorising. No fused multiply-add is used in such bodies, so
//! all three give the same bits.

use std::sync::atomic::{AtomicU8, Ordering};

use crate::cpu::{self, Cpu};

/// The instruction sets that loops are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(dead_code)] // the wide ones are never made on other processors
pub(crate) enum Isa {
    Baseline = 1,
    Avx2 = 2,
    Avx512 = 3,
}

/// The widest instruction set of this machine, looked up once.
#[inline]
pub(crate) fn isa() -> Isa {
    static FOUND: AtomicU8 = AtomicU8::new(0);
    match FOUND.load(Ordering::Relaxed) {
        1 => Isa::Baseline,
        2 => Isa::Avx2,
        3 => Isa::Avx512,
        _ => {
            let found = detect();
            FOUND.store(found as u8, Ordering::Relaxed);
            found
        }
    }
}

fn detect() -> Isa {
    match cpu::found() {
        Cpu::Portable => Isa::Baseline,
        Cpu::Avx2 => Isa::Avx2,
        Cpu::Avx512 | Cpu::Avx512Bf16 | Cpu::Amx => Isa::Avx512,
    }
}

/// Declares functions whose bodies are compiled for each instruction set; see the module's page.
///
/// Generic parameters are written `[T: Real]` or `[T: Real, const N: usize]`, arguments are plain names.
macro_rules! wide {
    ($($(#[$meta:meta])* $vis:vis fn $name:ident [$($p:ident : $bound:ident),* $(; const $c:ident : $ct:ty)*]
        ($($arg:ident : $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block)*) => {$(
        $(#[$meta])*
        #[inline]
        #[allow(clippy::too_many_arguments)]
        $vis fn $name<$($p: $bound,)* $(const $c: $ct),*>($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            #[allow(clippy::too_many_arguments)]
            fn body<$($p: $bound,)* $(const $c: $ct),*>($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
            #[allow(clippy::too_many_arguments)]
            fn avx512<$($p: $bound,)* $(const $c: $ct),*>($($arg: $ty),*) $(-> $ret)? {
                body::<$($p,)* $($c),*>($($arg),*)
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            #[allow(clippy::too_many_arguments)]
            fn avx2<$($p: $bound,)* $(const $c: $ct),*>($($arg: $ty),*) $(-> $ret)? {
                body::<$($p,)* $($c),*>($($arg),*)
            }

            match $crate::wide::isa() {
                // SAFETY: `isa` has seen the features that each of these is compiled for.
                #[cfg(target_arch = "x86_64")]
                $crate::wide::Isa::Avx512 => unsafe { avx512::<$($p,)* $($c),*>($($arg),*) },
                #[cfg(target_arch = "x86_64")]
                $crate::wide::Isa::Avx2 => unsafe { avx2::<$($p,)* $($c),*>($($arg),*) },
                _ => body::<$($p,)* $($c),*>($($arg),*),
            }
        }
    )*};
}
pub(crate) use wide;
