//! Pages from the system and back.

/// Blocks from here on begin at a huge page and ask for such.
const HUGE_FROM: usize = 4 << 20;

/// Bytes of a huge page.
const HUGE: usize = 2 << 20;

/// A new mapping of zeros.
pub fn map(size: usize) -> Option<*mut u8> {
    if size < HUGE_FROM {
        return anonymous(size);
    }
    // As much more as it takes to begin at a multiple; what is too much goes back.
    let at = anonymous(size + HUGE)?;
    let before = at.align_offset(HUGE);
    // SAFETY: both ends lie within the mapping just made.
    unsafe {
        let start = at.add(before);
        if before > 0 {
            unmap(at, before);
        }
        if before < HUGE {
            unmap(start.add(size), HUGE - before);
        }
        #[cfg(target_os = "linux")]
        libc::madvise(start.cast(), size, libc::MADV_HUGEPAGE);
        Some(start)
    }
}

fn anonymous(size: usize) -> Option<*mut u8> {
    let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a new mapping wherever there is room touches no other memory.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), size, access, kind, -1, 0) };
    (at != libc::MAP_FAILED).then_some(at.cast())
}

/// Gives pages back.
///
/// # Safety
/// `at..at + size` is whole pages of a mapping that nobody uses.
pub unsafe fn unmap(at: *mut u8, size: usize) {
    // SAFETY: the caller's promise.
    unsafe { libc::munmap(at.cast(), size) };
}

/// The mapping with another size, perhaps elsewhere; what it held stays, new pages are zero.
///
/// # Safety
/// `at..at + old` is a mapping of the caller's.
#[cfg(target_os = "linux")]
pub unsafe fn remap(at: *mut u8, old: usize, new: usize) -> Option<*mut u8> {
    // SAFETY: the caller's promise.
    let to = unsafe { libc::mremap(at.cast(), old, new, libc::MREMAP_MAYMOVE) };
    (to != libc::MAP_FAILED).then_some(to.cast())
}

/// As on Linux, by a copy.
///
/// # Safety
/// As on Linux.
#[cfg(not(target_os = "linux"))]
pub unsafe fn remap(at: *mut u8, old: usize, new: usize) -> Option<*mut u8> {
    let to = map(new)?;
    // SAFETY: two mappings, each at least as long as what is copied; the old one is not used any more.
    unsafe {
        to.copy_from_nonoverlapping(at, old.min(new));
        unmap(at, old);
    }
    Some(to)
}
