//! Blocks that are kept between uses.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::PAGE;
use crate::mapping::{map, remap, unmap};

/// Blocks kept at most.
const KEPT: usize = 2048;

/// How long a high-water mark is remembered, once or twice over.
const WINDOW: Duration = Duration::from_secs(60);

/// A block given out.
pub struct Block {
    pub at: *mut u8,
    /// Whether all of it is zero.
    pub fresh: bool,
}

/// What is kept. It lies in one array, since an allocator cannot ask for memory.
pub struct Pool {
    sizes: [usize; KEPT],
    places: [usize; KEPT],
    /// When each came, counted in calls.
    came: [u64; KEPT],
    count: usize,
    clock: u64,
    /// Bytes given out, and bytes kept.
    used: usize,
    kept: usize,
    /// The most in use at once: in this window and in the one before.
    most: [usize; 2],
    window: Option<Instant>,
}

static SHARED: Mutex<Pool> = Mutex::new(Pool::new());

/// The pool of the process.
pub fn shared() -> MutexGuard<'static, Pool> {
    SHARED.lock().unwrap_or_else(PoisonError::into_inner)
}

fn pages(size: usize) -> usize {
    size.next_multiple_of(PAGE)
}

impl Pool {
    const fn new() -> Self {
        Pool {
            sizes: [0; KEPT],
            places: [0; KEPT],
            came: [0; KEPT],
            count: 0,
            clock: 0,
            used: 0,
            kept: 0,
            most: [0; 2],
            window: None,
        }
    }

    /// A block of `size` bytes; `None` where the system has no more.
    pub fn take(&mut self, size: usize) -> Option<Block> {
        let size = pages(size);
        let block = match self.sizes[..self.count].iter().rposition(|s| *s == size) {
            Some(i) => Block { at: self.remove(i), fresh: false },
            None => self.other(size)?,
        };
        self.grown(size);
        Some(block)
    }

    /// A block of a size that is not there: a kept one cut or stretched to it where there is no room for one more.
    fn other(&mut self, size: usize) -> Option<Block> {
        let mark = self.mark();
        if self.used + self.kept + size > mark
            && let Some(i) = self.oldest()
        {
            let old = self.sizes[i];
            let at = self.remove(i);
            // SAFETY: the block was kept, so it is nobody else's.
            match unsafe { remap(at, old, size) } {
                Some(at) => {
                    self.shrink_to(mark.saturating_sub(size));
                    return Some(Block { at, fresh: false });
                }
                // SAFETY: as above.
                None => unsafe { unmap(at, old) },
            }
        }
        self.shrink_to(mark.saturating_sub(size));
        let at = map(size).or_else(|| {
            self.shrink_to(0);
            map(size)
        })?;
        Some(Block { at, fresh: true })
    }

    /// Takes a block back.
    pub fn put(&mut self, at: *mut u8, size: usize) {
        let size = pages(size);
        self.used -= size;
        if self.count == KEPT
            && let Some(i) = self.oldest()
        {
            self.drop(i);
        }
        self.sizes[self.count] = size;
        self.places[self.count] = at as usize;
        self.came[self.count] = self.clock;
        self.count += 1;
        self.clock += 1;
        self.kept += size;
        let mark = self.mark();
        self.shrink_to(mark);
    }

    /// The block with another size.
    pub fn resize(&mut self, at: *mut u8, old: usize, new: usize) -> Option<*mut u8> {
        let (old, new) = (pages(old), pages(new));
        if old == new {
            return Some(at);
        }
        if new > old {
            let mark = self.mark();
            self.shrink_to(mark.saturating_sub(new - old));
        }
        // SAFETY: the block is the caller's, who asks for this.
        let to = unsafe { remap(at, old, new) }?;
        self.used -= old;
        self.grown(new);
        Some(to)
    }

    fn grown(&mut self, size: usize) {
        self.used += size;
        self.most[0] = self.most[0].max(self.used);
    }

    /// What may be held: the most in use of late.
    fn mark(&mut self) -> usize {
        let now = Instant::now();
        if now.duration_since(*self.window.get_or_insert(now)) > WINDOW {
            self.window = Some(now);
            self.most = [self.used, self.most[0]];
        }
        self.most[0].max(self.most[1])
    }

    /// Gives back the oldest until at most `most` bytes are held.
    fn shrink_to(&mut self, most: usize) {
        while self.used + self.kept > most
            && let Some(i) = self.oldest()
        {
            self.drop(i);
        }
    }

    fn oldest(&self) -> Option<usize> {
        (0..self.count).min_by_key(|i| self.came[*i])
    }

    fn remove(&mut self, i: usize) -> *mut u8 {
        let at = self.places[i] as *mut u8;
        self.kept -= self.sizes[i];
        self.count -= 1;
        self.sizes[i] = self.sizes[self.count];
        self.places[i] = self.places[self.count];
        self.came[i] = self.came[self.count];
        at
    }

    fn drop(&mut self, i: usize) {
        let size = self.sizes[i];
        let at = self.remove(i);
        // SAFETY: the block was kept, so it is nobody else's.
        unsafe { unmap(at, size) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    #[test]
    fn a_step_like_the_last_maps_nothing() {
        let mut pool = Box::new(Pool::new());
        for step in 0..3 {
            let blocks: Vec<Block> = (1..9).map(|i| pool.take(i * MIB).unwrap()).collect();
            assert!(blocks.iter().all(|b| b.fresh == (step == 0)));
            for (b, i) in blocks.iter().zip(1..) {
                pool.put(b.at, i * MIB);
            }
            assert_eq!((pool.used, pool.kept), (0, 36 * MIB));
        }
        pool.shrink_to(0);
        assert_eq!((pool.kept, pool.count), (0, 0));
    }

    #[test]
    fn never_more_than_was_in_use_at_once() {
        let mut pool = Box::new(Pool::new());
        let held: Vec<Block> = (0..4).map(|_| pool.take(4 * MIB).unwrap()).collect();
        held.iter().for_each(|b| pool.put(b.at, 4 * MIB));
        let other: Vec<Block> = (0..5).map(|_| pool.take(3 * MIB).unwrap()).collect();
        assert!(pool.used + pool.kept <= 16 * MIB);
        for b in &other {
            // SAFETY: the block is ours.
            unsafe { b.at.write_bytes(1, 3 * MIB) };
            pool.put(b.at, 3 * MIB);
        }
        let all = pool.take(20 * MIB).unwrap();
        assert!(pool.kept == 0, "{} bytes kept beside the new peak", pool.kept);
        pool.put(all.at, 20 * MIB);
        pool.shrink_to(0);
    }

    #[test]
    fn full_of_blocks_it_gives_the_oldest_back() {
        let mut pool = Box::new(Pool::new());
        let blocks: Vec<Block> = (0..KEPT + 3).map(|_| pool.take(PAGE).unwrap()).collect();
        blocks.iter().for_each(|b| pool.put(b.at, PAGE));
        assert_eq!((pool.count, pool.kept), (KEPT, KEPT * PAGE));
        pool.shrink_to(0);
    }
}
