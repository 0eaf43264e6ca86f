//! AMX: blocks of 32×32 sums in four tiles. The instructions are written in assembly, as the compiler has no
//! stable names for them.

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;

/// The tiles' shapes: eight of 16 rows of 64 bytes.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    zero: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

static CONFIG: Config = Config {
    palette: 1,
    start_row: 0,
    zero: [0; 14],
    row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

/// Whether the processor has tiles of bf16 and the system lets this process use them.
pub fn allowed() -> bool {
    const TILE: u32 = 1 << 24;
    const BF16: u32 = 1 << 22;
    let features = __cpuid_count(7, 0).edx;
    features & TILE != 0 && features & BF16 != 0 && ask()
}

/// Asks Linux for the tiles' state (`arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)`).
#[cfg(target_os = "linux")]
fn ask() -> bool {
    const ARCH_PRCTL: i64 = 158;
    const REQUEST: i64 = 0x1023;
    const TILE_DATA: i64 = 18;
    let answer: i64;
    // SAFETY: a system call that changes what this process may use, and no memory.
    unsafe {
        asm!("syscall", inlateout("rax") ARCH_PRCTL => answer, in("rdi") REQUEST, in("rsi") TILE_DATA,
            out("rcx") _, out("r11") _, options(nostack));
    }
    answer == 0
}

#[cfg(not(target_os = "linux"))]
fn ask() -> bool {
    false
}

/// Runs `work` with the tiles set up on this thread.
pub fn with_tiles<R>(work: impl FnOnce() -> R) -> R {
    // SAFETY: `allowed` was asked before; the configuration is a valid one.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &CONFIG, options(nostack, readonly)) };
    let result = work();
    // SAFETY: ends what was begun above.
    unsafe { asm!("tilerelease", options(nostack)) };
    result
}

/// c[32×32] = (accumulate: c +) a · b over `steps` × 32 numbers.
///
/// # Safety
/// Within [`with_tiles`]. `a` and `below` point at `steps` tiles of 1024 bytes each: rows 0..16 and 16..32. `b` is a
/// panel of `steps` × 2048 bytes. `c` points at 32 rows of 32 f32, `stride` bytes apart.
pub unsafe fn block(
    (a, below): (*const u16, *const u16),
    b: *const u16,
    steps: usize,
    c: *mut f32,
    stride: usize,
    accumulate: bool,
) {
    // SAFETY: the caller's promise; the tile registers are nobody else's.
    unsafe {
        let lower = c.byte_add(16 * stride);
        if accumulate {
            asm!(
                "tileloadd tmm0, [{c} + {s}]", "tileloadd tmm1, [{c} + {s} + 64]",
                "tileloadd tmm2, [{d} + {s}]", "tileloadd tmm3, [{d} + {s} + 64]",
                c = in(reg) c, d = in(reg) lower, s = in(reg) stride,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, options(nostack),
            );
        } else {
            asm!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, options(nostack));
        }
        if steps > 0 {
            asm!(
                "2:",
                "tileloadd tmm4, [{a} + {ra}]",
                "tileloadd tmm6, [{b} + {rb}]",
                "tileloadd tmm7, [{b} + {rb} + 64]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm5, [{l} + {ra}]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {a}, 1024", "add {l}, 1024", "add {b}, 2048",
                "dec {n}", "jnz 2b",
                a = inout(reg) a => _, l = inout(reg) below => _, b = inout(reg) b => _, n = inout(reg) steps => _,
                ra = in(reg) 64usize, rb = in(reg) 128usize,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _, options(nostack, readonly),
            );
        }
        asm!(
            "tilestored [{c} + {s}], tmm0", "tilestored [{c} + {s} + 64], tmm1",
            "tilestored [{d} + {s}], tmm2", "tilestored [{d} + {s} + 64], tmm3",
            c = in(reg) c, d = in(reg) lower, s = in(reg) stride, options(nostack),
        );
    }
}
