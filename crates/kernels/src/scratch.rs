//! Room that a thread keeps from one kernel to the next.
//!
//! Operands are put in order in it, tile by tile. Were it asked for anew, it would lie in whatever hole there is
//! between a step's arrays, and where there is none drive memory out whose pages the next array has cleared again.

use std::cell::RefCell;

use bytemuck::{Pod, Zeroable};

use crate::unwritten;

/// A line of the cache.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

// SAFETY: bytes without padding, of any value.
unsafe impl Zeroable for Line {}
// SAFETY: as above.
unsafe impl Pod for Line {}

/// Lines that a thread keeps at most in one piece; more goes back at once.
const MOST: usize = (32 << 20) / size_of::<Line>();

thread_local! {
    /// What is not in use; the room of outer calls lies behind that of inner ones.
    static KEPT: RefCell<Vec<Vec<Line>>> = const { RefCell::new(Vec::new()) };
}

/// Calls `f` with room for `n` numbers, which may be anything before they are written.
pub fn with<T: Pod, R>(n: usize, f: impl FnOnce(&mut [T]) -> R) -> R {
    let bytes = n * size_of::<T>();
    let lines = bytes.div_ceil(size_of::<Line>());
    let mut room = KEPT.with_borrow_mut(Vec::pop).unwrap_or_default();
    if room.len() < lines {
        drop(room); // before there is another
        room = unwritten(lines);
    }
    let result = f(bytemuck::cast_slice_mut(&mut bytemuck::cast_slice_mut::<_, u8>(&mut room)[..bytes]));
    if room.len() <= MOST {
        KEPT.with_borrow_mut(|kept| kept.push(room));
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rooms_within_each_other_are_apart_and_kept() {
        let run = || {
            with(1000, |outer: &mut [f32]| {
                outer.fill(1.0);
                let inner = with(50, |inner: &mut [u16]| {
                    inner.fill(7);
                    inner.as_ptr() as usize
                });
                assert!(outer.iter().all(|x| *x == 1.0));
                (outer.as_ptr() as usize, inner)
            })
        };
        let places = run();
        assert_eq!(run(), places);
        assert!(places.0.is_multiple_of(64));
        with(0, |none: &mut [f64]| assert!(none.is_empty()));
    }
}
