//! Address space cut into blocks, and the memory of freed ones, which the next blocks get.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::PAGE;
use crate::mapping::{HUGE, carry, discard, reserve, unmap};

/// Free extents at most.
const EXTENTS: usize = 2048;

/// Address space that is reserved at a time; it costs nothing until it is used.
const RESERVED: usize = 1 << 30;

/// The part of the high-water mark that may be held beyond it, 1/128: what fits into no hole drives out less then.
const SLACK: usize = 128;

/// How long a high-water mark is remembered, once or twice over.
const WINDOW: Duration = Duration::from_secs(60);

/// A block given out.
pub struct Block {
    pub at: *mut u8,
    /// Whether all of it is zero.
    pub fresh: bool,
}

/// Addresses that are nobody's.
#[derive(Clone, Copy)]
struct Extent {
    start: usize,
    size: usize,
    /// Whether a block was here whose memory is kept; else it takes none and reads as zeros.
    kept: bool,
    /// When the last block in it was freed, counted in calls.
    came: u64,
}

impl Extent {
    const NONE: Extent = Extent { start: 0, size: 0, kept: false, came: 0 };

    fn end(&self) -> usize {
        self.start + self.size
    }
}

/// What is free. It lies in one array, since an allocator cannot ask for memory.
pub struct Pool {
    /// By address; no two that touch are of one kind.
    free: [Extent; EXTENTS],
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
        let free = [Extent::NONE; EXTENTS];
        Pool { free, count: 0, clock: 0, used: 0, kept: 0, most: [0; 2], window: None }
    }

    /// A block of `size` bytes; `None` where the system has no more.
    pub fn take(&mut self, size: usize) -> Option<Block> {
        let size = pages(size);
        let fitting = |e: &(usize, &Extent)| e.1.kept && e.1.size >= size;
        // The smallest kept one, so that the large ones stay whole.
        let kept = self.extents().filter(fitting).min_by_key(|(_, e)| e.size).map(|(i, _)| i);
        let (at, fresh) = if let Some(i) = kept {
            (self.cut(i, size), false)
        } else if let Some(at) = self.around_kept(size) {
            self.cut_across(at, at + size);
            self.make_room(size);
            (at, false)
        } else {
            (self.fresh(size)?, true)
        };
        self.grown(size);
        Some(Block { at: at as *mut u8, fresh })
    }

    /// Where `size` bytes are free that touch, most of them in memory that is kept: from an extent's first byte on, or up
    /// to its last one.
    fn around_kept(&self, size: usize) -> Option<usize> {
        let kept = self.extents().filter(|(_, e)| e.kept);
        let places = kept.flat_map(|(_, e)| [Some(e.start), e.end().checked_sub(size)]).flatten();
        let found = places.filter_map(|at| Some((self.kept_within(at, size)?, at)));
        found.max_by_key(|(kept, at)| (*kept, usize::MAX - at)).map(|(_, at)| at)
    }

    /// How much of these addresses is kept, if all of them are free.
    fn kept_within(&self, start: usize, size: usize) -> Option<usize> {
        let free = &self.free[..self.count];
        let (mut at, mut kept) = (start, 0);
        for e in &free[free.partition_point(|e| e.end() <= start)..] {
            if e.start > at {
                return None;
            }
            let to = e.end().min(start + size);
            kept += if e.kept { to - at } else { 0 };
            at = to;
            if at == start + size {
                return Some(kept);
            }
        }
        None
    }

    /// Takes these addresses, all of them free.
    fn cut_across(&mut self, start: usize, end: usize) {
        let within = |e: &Extent| e.start < end && e.end() > start;
        while let Some(i) = self.free[..self.count].iter().position(within) {
            let e = self.free[i];
            self.remove(i);
            if e.kept {
                self.kept -= e.end().min(end) - e.start.max(start);
            }
            for (from, to) in [(e.start, start.max(e.start)), (end.min(e.end()), e.end())] {
                if from < to {
                    self.insert(Extent { start: from, size: to - from, ..e });
                }
            }
        }
    }

    /// Addresses without memory, for which memory that is kept goes back where there would be more than the mark.
    fn fresh(&mut self, size: usize) -> Option<usize> {
        self.make_room(size);
        let fitting = |e: &(usize, &Extent)| !e.1.kept && e.1.size >= size;
        let lowest = |pool: &Self| pool.extents().find(fitting).map(|(i, _)| i);
        let i = lowest(self).or_else(|| {
            let least = size.checked_next_multiple_of(HUGE)?;
            let found = [RESERVED.max(least), least].into_iter().find_map(|s| Some((reserve(s)?, s)));
            let (at, size) = found?;
            self.insert(Extent { start: at as usize, size, kept: false, came: 0 });
            lowest(self)
        })?;
        Some(self.cut(i, size))
    }

    /// Takes a block back.
    pub fn put(&mut self, at: *mut u8, size: usize) {
        let size = pages(size);
        self.used -= size;
        self.keep(at as usize, size);
        let mark = self.mark();
        self.shrink_to(mark);
    }

    fn keep(&mut self, start: usize, size: usize) {
        self.clock += 1;
        self.kept += size;
        self.insert(Extent { start, size, kept: true, came: self.clock });
    }

    /// The block with another size.
    pub fn resize(&mut self, at: *mut u8, old: usize, new: usize) -> Option<*mut u8> {
        let (old, new) = (pages(old), pages(new));
        if new <= old {
            self.used -= old - new;
            if new < old {
                self.keep(at as usize + new, old - new);
            }
            return Some(at);
        }
        let more = new - old;
        let behind = self.extents().find(|(_, e)| e.start == at as usize + old && e.size >= more);
        if let Some((i, _)) = behind {
            self.cut(i, more);
            self.grown(more);
            let mark = self.mark();
            self.shrink_to(mark);
            return Some(at);
        }
        // What moves is not there twice: it goes to addresses without memory, page by page.
        let to = self.fresh(new)? as *mut u8;
        // SAFETY: two blocks of ours, the new one free until now.
        unsafe {
            if carry(at, to, old) {
                self.insert(Extent { start: at as usize, size: old, kept: false, came: 0 });
            } else {
                to.copy_from_nonoverlapping(at, old);
                self.keep(at as usize, old);
            }
        }
        self.grown(more);
        Some(to)
    }

    fn grown(&mut self, size: usize) {
        self.used += size;
        self.most[0] = self.most[0].max(self.used);
    }

    /// What may be held: the most in use of late, and a little more.
    fn mark(&mut self) -> usize {
        let now = Instant::now();
        if now.duration_since(*self.window.get_or_insert(now)) > WINDOW {
            self.window = Some(now);
            self.most = [self.used, self.most[0]];
        }
        let most = self.most[0].max(self.most[1]);
        most + most / SLACK
    }

    /// Gives back what would be more than the mark beside `size` bytes to come.
    fn make_room(&mut self, size: usize) {
        let mark = self.mark();
        self.shrink_to(mark.saturating_sub(size));
    }

    /// Gives memory back, the longest unused first, until at most `most` bytes are held.
    fn shrink_to(&mut self, most: usize) {
        while let over @ 1.. = (self.used + self.kept).saturating_sub(most)
            && let Some((i, e)) = self.extents().filter(|(_, e)| e.kept).min_by_key(|(_, e)| e.came)
        {
            let e = *e;
            // Whole huge pages, so that none is left in pieces.
            let from = (e.end() - over.min(e.size)) & !(HUGE - 1);
            let from = from.max(e.start);
            self.free[i].size = from - e.start;
            if from == e.start {
                self.remove(i);
            }
            let size = e.end() - from;
            self.kept -= size;
            // SAFETY: the extent was free, so it is nobody else's.
            unsafe {
                match discard(from as *mut u8, size) {
                    true => self.insert(Extent { start: from, size, kept: false, came: 0 }),
                    false => unmap(from as *mut u8, size),
                }
            }
        }
    }

    fn extents(&self) -> impl Iterator<Item = (usize, &Extent)> {
        self.free[..self.count].iter().enumerate()
    }

    /// Takes the first `size` bytes of an extent.
    fn cut(&mut self, i: usize, size: usize) -> usize {
        let Extent { start, kept, .. } = self.free[i];
        if kept {
            self.kept -= size;
        }
        self.free[i].start += size;
        self.free[i].size -= size;
        if self.free[i].size == 0 {
            self.remove(i);
        }
        start
    }

    fn remove(&mut self, i: usize) {
        self.free.copy_within(i + 1..self.count, i);
        self.count -= 1;
    }

    /// Adds an extent, as one with the neighbours of its kind.
    fn insert(&mut self, mut e: Extent) {
        let mut i = self.free[..self.count].partition_point(|f| f.start < e.start);
        if i < self.count && self.free[i].start == e.end() && self.free[i].kept == e.kept {
            e.size += self.free[i].size;
            e.came = e.came.max(self.free[i].came);
            self.remove(i);
        }
        if i > 0 && self.free[i - 1].end() == e.start && self.free[i - 1].kept == e.kept {
            i -= 1;
            e.start = self.free[i].start;
            e.size += self.free[i].size;
            e.came = e.came.max(self.free[i].came);
            self.remove(i);
        }
        if self.count == EXTENTS {
            // No room to note it: it goes back, addresses and all.
            if e.kept {
                self.kept -= e.size;
            }
            // SAFETY: the extent is free, so it is nobody else's.
            return unsafe { unmap(e.start as *mut u8, e.size) };
        }
        self.free.copy_within(i..self.count, i + 1);
        self.free[i] = e;
        self.count += 1;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: usize = 1 << 20;

    /// The sums of what is free are what the pool says, and extents lie in order, apart where they are of one kind.
    fn check(pool: &Pool) {
        let free = &pool.free[..pool.count];
        assert_eq!(free.iter().filter(|e| e.kept).map(|e| e.size).sum::<usize>(), pool.kept);
        for pair in free.windows(2) {
            assert!(
                pair[0].end() < pair[1].start
                    || pair[0].end() == pair[1].start && pair[0].kept != pair[1].kept
            );
        }
        assert!(free.iter().all(|e| e.size > 0));
    }

    #[test]
    fn a_step_like_the_last_asks_for_nothing() {
        let mut pool = Box::new(Pool::new());
        for step in 0..3 {
            let blocks: Vec<Block> = (1..9).map(|i| pool.take(i * MIB).unwrap()).collect();
            assert!(blocks.iter().all(|b| b.fresh == (step == 0)));
            for (b, i) in blocks.iter().zip(1..) {
                pool.put(b.at, i * MIB);
            }
            assert_eq!((pool.used, pool.kept), (0, 36 * MIB));
            check(&pool);
        }
    }

    #[test]
    fn other_sizes_get_the_memory_of_those_before() {
        let mut pool = Box::new(Pool::new());
        let small: Vec<Block> = (0..12).map(|_| pool.take(MIB).unwrap()).collect();
        small.iter().for_each(|b| pool.put(b.at, MIB));
        let large: Vec<Block> = (0..3).map(|_| pool.take(4 * MIB).unwrap()).collect();
        assert!(large.iter().all(|b| !b.fresh), "twelve small blocks side by side are three large ones");
        large.iter().for_each(|b| pool.put(b.at, 4 * MIB));
        assert!(!pool.take(12 * MIB).unwrap().fresh);
    }

    #[test]
    fn a_hole_too_small_grows_into_what_is_free_beside_it() {
        let mut pool = Box::new(Pool::new());
        let first = pool.take(2 * MIB).unwrap();
        let hole = pool.take(3 * MIB).unwrap();
        pool.put(hole.at, 3 * MIB);
        // Behind the hole there is address space alone.
        let grown = pool.take(4 * MIB).unwrap();
        assert_eq!((grown.at, grown.fresh, pool.kept), (hole.at, false, 0));
        check(&pool);
        // The hole at the end of what is in use, and what lies before it.
        let last = pool.take(MIB).unwrap();
        pool.put(first.at, 2 * MIB);
        pool.put(grown.at, 4 * MIB);
        pool.shrink_to(5 * MIB);
        check(&pool);
        let again = pool.take(5 * MIB).unwrap();
        assert!(again.at < last.at && pool.used + pool.kept <= 7 * MIB + 7 * MIB / SLACK);
        check(&pool);
    }

    #[test]
    fn hardly_more_than_was_in_use_at_once() {
        let mut pool = Box::new(Pool::new());
        let held: Vec<Block> = (0..8).map(|_| pool.take(2 * MIB).unwrap()).collect();
        held.iter().step_by(2).for_each(|b| pool.put(b.at, 2 * MIB));
        // Holes of 2 MiB do not hold 3: some go back for it.
        let other = pool.take(3 * MIB).unwrap();
        assert!(other.fresh && pool.used + pool.kept <= 16 * MIB + 16 * MIB / SLACK);
        held.iter().skip(1).step_by(2).for_each(|b| pool.put(b.at, 2 * MIB));
        pool.put(other.at, 3 * MIB);
        let all = pool.take(20 * MIB).unwrap();
        assert!(
            pool.used + pool.kept <= 20 * MIB + 20 * MIB / SLACK,
            "{} bytes kept beside the new peak",
            pool.kept
        );
        pool.put(all.at, 20 * MIB);
        check(&pool);
    }

    #[test]
    fn without_room_for_one_more_extent_a_block_goes_back() {
        let mut pool = Box::new(Pool::new());
        let blocks: Vec<Block> = (0..2 * EXTENTS + 4).map(|_| pool.take(PAGE).unwrap()).collect();
        // Every second one, so that none has a neighbour to be one with.
        blocks.iter().step_by(2).for_each(|b| pool.put(b.at, PAGE));
        assert_eq!(pool.count, EXTENTS);
        check(&pool);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn blocks_keep_their_bytes(calls in proptest::collection::vec((0u8..3, 1usize..40, any::<u8>()), 1..80)) {
            let mut pool = Box::new(Pool::new());
            let mut held: Vec<(*mut u8, usize, u8)> = Vec::new();
            for (what, size, at) in calls {
                let size = size * 64 * PAGE / 16 + 1;
                let i = at as usize % held.len().max(1);
                match what {
                    0 => {
                        let b = pool.take(size).unwrap();
                        // SAFETY: the block is ours.
                        unsafe {
                            if b.fresh {
                                assert!(std::slice::from_raw_parts(b.at, size).iter().all(|x| *x == 0));
                            }
                            b.at.write_bytes(at, size);
                        }
                        held.push((b.at, size, at));
                    }
                    1 if !held.is_empty() => {
                        let (at, size, _) = held.swap_remove(i);
                        pool.put(at, size);
                    }
                    _ if !held.is_empty() => {
                        let (old, before, fill) = held[i];
                        let to = pool.resize(old, before, size).unwrap();
                        // SAFETY: the block is ours.
                        unsafe {
                            let kept = std::slice::from_raw_parts(to, before.min(size));
                            assert!(kept.iter().all(|x| *x == fill));
                            to.write_bytes(fill, size);
                        }
                        held[i] = (to, size, fill);
                    }
                    _ => {}
                }
                check(&pool);
                for (at, size, fill) in &held {
                    // SAFETY: the blocks are ours.
                    unsafe { assert!([*at, at.add(size - 1)].iter().all(|p| p.read() == *fill)) };
                }
            }
        }
    }
}
