//! The random matrices of `vera`: drawn as PEFT draws them, and cut to a linear's size.
//!
//! PEFT seeds torch's generator (MT19937) with `projection_prng_key` and fills A, then B, uniformly in
//! ±√(6/fan_in) from the low 24 bits of each draw. The same numbers here are what lets files without the
//! projections travel both ways.
//!
//! Source: Matsumoto and Nishimura 1998, doi:10.1145/272991.272995.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Result;
use ramekin_core::{Array, Category, Param};

/// MT19937, started as by `init_genrand`.
pub(crate) struct Mersenne {
    state: Vec<u32>,
    next: usize,
}

const N: usize = 624;

impl Mersenne {
    pub(crate) fn new(seed: u64) -> Self {
        let mut state = vec![seed as u32; N];
        for i in 1..N {
            let before: u32 = state[i - 1];
            state[i] = 1_812_433_253u32.wrapping_mul(before ^ (before >> 30)).wrapping_add(i as u32);
        }
        Mersenne { state, next: N }
    }

    pub(crate) fn draw(&mut self) -> u32 {
        if self.next == N {
            for i in 0..N {
                let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % N] & 0x7fff_ffff);
                let twist = if y & 1 == 1 { 0x9908_b0df } else { 0 };
                self.state[i] = self.state[(i + 397) % N] ^ (y >> 1) ^ twist;
            }
            self.next = 0;
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    /// Uniform in ±`bound`, with torch's rounding: one fused multiply-add in f32.
    pub(crate) fn uniform(&mut self, bound: f64, out: &mut [f32]) {
        let bound = bound as f32;
        for x in out {
            let unit = (self.draw() & 0x00ff_ffff) as f32 / 16_777_216.0;
            *x = unit.mul_add(bound + bound, -bound);
        }
    }
}

/// Which side of a projection a linear's size cuts.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Cut {
    /// The first rows: B `[max O, r]`.
    Rows,
    /// The first columns: A `[r, max I]`.
    Columns,
}

/// A shared projection and its cuts by size, made when first asked for.
pub(crate) struct Projection {
    whole: Arc<Param>,
    cut: Cut,
    made: RefCell<BTreeMap<usize, Array>>,
}

impl Projection {
    pub(crate) fn new(whole: Arc<Param>, cut: Cut) -> Self {
        Projection { whole, cut, made: RefCell::default() }
    }

    /// Forgets the cuts: the projection has got other numbers.
    pub(crate) fn renew(&self) {
        self.made.borrow_mut().clear();
    }

    /// The part for `size` outputs or inputs.
    pub(crate) fn part(&self, size: usize) -> Result<Array> {
        let whole = self.whole.value();
        let full = if self.cut == Cut::Rows { whole.dims()[0] } else { whole.dims()[1] };
        if size == full {
            return Ok(whole);
        }
        if let Some(part) = self.made.borrow().get(&size).filter(|p| p.dtype() == whole.dtype()) {
            return Ok(part.clone());
        }
        let part = match self.cut {
            Cut::Rows => whole.narrow_rows(0, size, Category::Weights)?,
            Cut::Columns if whole.is_shape_only() => {
                Array::shape_only(&[whole.dims()[0], size], whole.dtype(), Category::Weights)?
            }
            Cut::Columns => Array::from_tensor(whole.tensor().narrow(1, 0, size)?, Category::Weights)?,
        };
        self.made.borrow_mut().insert(size, part.clone());
        Ok(part)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_stream() {
        let mut m = Mersenne::new(5489);
        let first: Vec<u32> = (0..3).map(|_| m.draw()).collect();
        assert_eq!(first, [3_499_211_612, 581_869_302, 3_890_346_734]);
        for _ in 3..9_999 {
            m.draw();
        }
        assert_eq!(m.draw(), 4_123_659_995, "the 10000th, as C++ requires of mt19937");
    }
}
