//! An allocator for training: a step that repeats the one before asks the system for nothing.
//!
//! Blocks of [`LARGE`] bytes and more lie side by side in reserved address space. A freed one's memory is kept, as one
//! with its neighbours', and given out again, so that its pages need no clearing by the kernel; a step's arrays fit
//! where those of the step before were. Kept and used together hold hardly more (1/128) than was in use at once in the
//! last minutes, so keeping memory does not make the process larger than its peak. A block that fits into no hole takes one
//! with the free addresses beside it, so that only the rest is new. Smaller blocks are another allocator's.
//!
//! The address space asks for huge pages, which the kernel gives where `madvise` may ask for them: blocks share them.

#[cfg(unix)]
mod mapping;
#[cfg(unix)]
mod pool;

use std::alloc::{GlobalAlloc, Layout};

/// From this many bytes on a block is pages of its own.
pub const LARGE: usize = 64 << 10;

/// Alignment of blocks, the least that systems have.
const PAGE: usize = 4096;

/// The allocator: large blocks as above, small ones from `A`.
pub struct Arena<A>(pub A);

/// Whether a block of this layout is pages of its own.
const fn is_large(layout: &Layout) -> bool {
    cfg!(unix) && layout.size() >= LARGE && layout.align() <= PAGE
}

// SAFETY: which allocator a block is of depends on its layout alone, which the caller gives back with it; blocks
// of the pool are aligned to pages, as long as was asked for, and belong to one caller at a time.
unsafe impl<A: GlobalAlloc> GlobalAlloc for Arena<A> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        #[cfg(unix)]
        if is_large(&layout) {
            return pool::shared().take(layout.size()).map_or(std::ptr::null_mut(), |b| b.at);
        }
        // SAFETY: the caller's promise.
        unsafe { self.0.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        #[cfg(unix)]
        if is_large(&layout) {
            let Some(block) = pool::shared().take(layout.size()) else { return std::ptr::null_mut() };
            if !block.fresh {
                // SAFETY: the block is ours and at least as long.
                unsafe { block.at.write_bytes(0, layout.size()) };
            }
            return block.at;
        }
        // SAFETY: the caller's promise.
        unsafe { self.0.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        #[cfg(unix)]
        if is_large(&layout) {
            return pool::shared().put(at, layout.size());
        }
        // SAFETY: the caller's promise.
        unsafe { self.0.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let Ok(new) = Layout::from_size_align(size, layout.align()) else { return std::ptr::null_mut() };
        match (is_large(&layout), is_large(&new)) {
            // SAFETY: the caller's promise.
            (false, false) => unsafe { self.0.realloc(at, layout, size) },
            #[cfg(unix)]
            (true, true) => pool::shared().resize(at, layout.size(), size).unwrap_or(std::ptr::null_mut()),
            // SAFETY: the new block is another one, and both hold what is copied.
            _ => unsafe {
                let to = self.alloc(new);
                if !to.is_null() {
                    to.copy_from_nonoverlapping(at, layout.size().min(size));
                    self.dealloc(at, layout);
                }
                to
            },
        }
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::alloc::System;

    use super::*;

    fn layout(size: usize) -> Layout {
        Layout::from_size_align(size, 64).unwrap()
    }

    #[test]
    fn blocks_grow_and_shrink_across_the_border() {
        let arena = Arena(System);
        let sizes = [100, LARGE - 1, LARGE, 3 * LARGE + 5, 40 * LARGE, LARGE + 1, 1000, 9 * LARGE];
        // SAFETY: each block is given back with the layout that it was asked for with.
        unsafe {
            let mut at = arena.alloc(layout(sizes[0]));
            at.write_bytes(7, sizes[0]);
            for pair in sizes.windows(2) {
                at = arena.realloc(at, layout(pair[0]), pair[1]);
                assert_eq!(at.align_offset(64), 0);
                let kept = std::slice::from_raw_parts(at, pair[0].min(pair[1]));
                assert!(kept.iter().all(|b| *b == 7), "{pair:?}");
                at.write_bytes(7, pair[1]);
            }
            arena.dealloc(at, layout(sizes[sizes.len() - 1]));
        }
    }

    #[test]
    fn zeroed_blocks_are_zero_when_they_were_used_before() {
        let arena = Arena(System);
        let size = 2 * LARGE + 12345;
        for _ in 0..3 {
            // SAFETY: as above.
            unsafe {
                let at = arena.alloc_zeroed(layout(size));
                assert!(std::slice::from_raw_parts(at, size).iter().all(|b| *b == 0));
                at.write_bytes(1, size);
                arena.dealloc(at, layout(size));
            }
        }
    }
}
