//! How work is cut: by shape alone, so that results do not depend on the number of threads.

use rayon::prelude::*;

use crate::team;

/// Elements of one task of a cheap elementwise loop: long enough to pay for the hand-over.
pub(crate) const CHUNK: usize = 16 * 1024;

/// Runs `task(0) … task(n − 1)`, on the pool when there is more than one.
pub(crate) fn tasks(n: usize, task: impl Fn(usize) + Send + Sync) {
    match n {
        0 => {}
        1 => task(0), // waking the pool for one task costs more than many a task
        _ if alone() => (0..n).for_each(task),
        _ if team::run(n, &task) => {}
        _ => (0..n).into_par_iter().with_max_len(1).for_each(task),
    }
}

/// Whether there is one thread alone: it need not hand anything over.
fn alone() -> bool {
    rayon::current_num_threads() == 1
}

/// Partial results of `task(0) … task(n − 1)`, in order.
pub(crate) fn partials<R: Send>(n: usize, task: impl Fn(usize) -> R + Send + Sync) -> Vec<R> {
    match n {
        0 => Vec::new(),
        1 => vec![task(0)],
        _ => {
            let mut found: Vec<Option<R>> = (0..n).map(|_| None).collect();
            let places = Shared::new(&mut found);
            // SAFETY: a place of its own a task.
            tasks(n, |i| unsafe { *places.at(i) = Some(task(i)) });
            found.into_iter().flatten().collect()
        }
    }
}

/// Runs `work(first, piece)` on pieces of `x` that stay in the first caches, on all threads, and returns what it returns
/// in order. Kernels within are each one thread's.
pub fn in_pieces<T: Send, R: Send>(x: &mut [T], work: impl Fn(usize, &mut [T]) -> R + Send + Sync) -> Vec<R> {
    let (n, x) = (x.len(), Shared::new(x));
    partials(n.div_ceil(CHUNK), |c| {
        let first = c * CHUNK;
        // SAFETY: pieces of their own.
        work(first, unsafe { x.slice(first, CHUNK.min(n - first)) })
    })
}

/// As [`in_pieces`], with the same places of `y`.
///
/// # Panics
/// If `y` is not as long as `x`.
pub fn in_pieces_beside<T: Send, U: Send, R: Send>(
    x: &mut [T],
    y: &mut [U],
    work: impl Fn(usize, &mut [T], &mut [U]) -> R + Send + Sync,
) -> Vec<R> {
    assert_eq!(x.len(), y.len(), "slices must be equally long");
    let y = Shared::new(y);
    // SAFETY: pieces of their own.
    in_pieces(x, |first, x| work(first, x, unsafe { y.slice(first, x.len()) }))
}

/// Iterators over what tasks are about: chunks of slices, mostly.
pub(crate) trait Tasks: Iterator<Item: Send> + Sized {
    /// Runs a task for each item.
    fn each_task(self, task: impl Fn(Self::Item) + Send + Sync) {
        let mut items: Vec<Option<Self::Item>> = self.map(Some).collect();
        let n = items.len();
        let places = Shared::new(&mut items);
        tasks(n, |i| {
            // SAFETY: a place of its own a task.
            if let Some(item) = unsafe { (*places.at(i)).take() } {
                task(item);
            }
        });
    }
}

impl<I: Iterator<Item: Send>> Tasks for I {}

/// Rows of width `d` that make one task of a cheap loop.
pub(crate) fn rows_per_task(d: usize) -> usize {
    (CHUNK / d.max(1)).max(1)
}

/// A slice that several tasks write to in places that do not overlap.
#[derive(Clone, Copy)]
pub(crate) struct Shared<T> {
    start: *mut T,
    len: usize,
}

// SAFETY: the only access is through `at`, whose callers promise not to overlap.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// Shares `slice` for as long as the caller keeps it borrowed.
    pub(crate) fn new(slice: &mut [T]) -> Self {
        Shared { start: slice.as_mut_ptr(), len: slice.len() }
    }

    /// Pointer to element `index`.
    ///
    /// # Safety
    /// The slice is still borrowed, and what is reached through the pointer belongs to this task alone.
    pub(crate) unsafe fn at(&self, index: usize) -> *mut T {
        assert!(index <= self.len, "index {index} in a slice of {}", self.len);
        // SAFETY: within the slice, or one past its end.
        unsafe { self.start.add(index) }
    }

    /// The `len` elements from `index` on.
    ///
    /// # Safety
    /// As for [`Shared::at`].
    #[allow(clippy::mut_from_ref)] // the caller promises that no two tasks ask for the same elements
    pub(crate) unsafe fn slice(&self, index: usize, len: usize) -> &mut [T] {
        assert!(index + len <= self.len, "{index}+{len} in a slice of {}", self.len);
        // SAFETY: within the slice; not aliased by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(index), len) }
    }
}
