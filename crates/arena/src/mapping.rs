//! Pages from the system and back.

/// Bytes of a huge page.
pub const HUGE: usize = 2 << 20;

/// Address space of `size` bytes, a multiple of [`HUGE`], that begins at a huge page and asks for such. It reads
/// as zeros; a page takes memory from its first use on.
pub fn reserve(size: usize) -> Option<*mut u8> {
    // As much more as it takes to begin at a multiple; what is too much goes back.
    let at = anonymous(std::ptr::null_mut(), size.checked_add(HUGE)?, 0)?;
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
        ask_for_huge(start, size);
        Some(start)
    }
}

fn anonymous(at: *mut u8, size: usize, how: libc::c_int) -> Option<*mut u8> {
    let access = libc::PROT_READ | libc::PROT_WRITE;
    let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | how;
    // SAFETY: a new mapping wherever there is room touches no other memory; for a fixed one the callers answer.
    let at = unsafe { libc::mmap(at.cast(), size, access, kind, -1, 0) };
    (at != libc::MAP_FAILED).then_some(at.cast())
}

/// # Safety
/// `at..at + size` is mapped by the caller.
unsafe fn ask_for_huge(at: *mut u8, size: usize) {
    #[cfg(target_os = "linux")]
    // SAFETY: the caller's promise; advice changes no byte.
    unsafe {
        libc::madvise(at.cast(), size, libc::MADV_HUGEPAGE);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (at, size);
}

/// Gives the memory back and keeps the addresses, which read as zeros from then on; whether the system did.
///
/// # Safety
/// `at..at + size` is whole pages of a mapping that nobody uses.
pub unsafe fn discard(at: *mut u8, size: usize) -> bool {
    #[cfg(target_os = "linux")]
    // SAFETY: the caller's promise.
    return unsafe { libc::madvise(at.cast(), size, libc::MADV_DONTNEED) } == 0;
    #[cfg(not(target_os = "linux"))]
    return anonymous(at, size, libc::MAP_FIXED).is_some();
}

/// Gives pages back, addresses and all.
///
/// # Safety
/// `at..at + size` is whole pages of a mapping that nobody uses.
pub unsafe fn unmap(at: *mut u8, size: usize) {
    // SAFETY: the caller's promise.
    unsafe { libc::munmap(at.cast(), size) };
}

/// Moves what `from` holds to `to` without copying, where the system can; `from` reads as zeros afterwards.
///
/// # Safety
/// Both are `size` bytes of whole pages of mappings, do not overlap and are the caller's.
#[cfg(target_os = "linux")]
pub unsafe fn carry(from: *mut u8, to: *mut u8, size: usize) -> bool {
    let how = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    // SAFETY: the caller's promise; the hole that is left behind is mapped again before anyone can see it.
    unsafe {
        if libc::mremap(from.cast(), size, size, how, to) == libc::MAP_FAILED {
            return false;
        }
        let again = anonymous(from, size, libc::MAP_FIXED);
        assert!(again.is_some(), "the system refuses a mapping where there was one");
        ask_for_huge(from, size);
        true
    }
}

/// As on Linux, which alone can.
///
/// # Safety
/// As on Linux.
#[cfg(not(target_os = "linux"))]
pub unsafe fn carry(_: *mut u8, _: *mut u8, _: usize) -> bool {
    false
}
