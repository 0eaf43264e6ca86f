//! Softmax attention over packed segments, block by block, never the whole score matrix.
//!
//! s_ij = scale · q_i·k_j + b_j,   p_ij = exp(s_ij − L_i),   L_i = log Σ_j exp(s_ij),   o_i = Σ_j p_ij v_j
//! D_i = g_i·o_i,  dv_j = Σ_i p_ij g_i,  ds_ij = p_ij (g_i·v_j − D_i),  dq_i = scale Σ_j ds_ij k_j,
//! dk_j = scale Σ_i ds_ij q_i
//!
//! Query i of a segment stands at key position i + k_len − q_len and sees keys up to there (causal), and
//! with a window of w none before the last w, with chunks of c none of an earlier chunk. The bias b is a constant a
//! key, 0 where none is given. Query head h reads key head h / (heads / kv_heads).
//! A query that sees no key has o = 0, L = −∞ and no gradient; so have rows outside all segments.
//! NaN in a row of q or k stays with the queries that see it; in a row of v it reaches, as 0 · NaN, the
//! other queries of its block too, never another segment.
//!
//! Cost: 4·head_dim operations a visible pair forward, 10 backward; scratch of one
//! [`QUERIES`]×[`KEYS`] block a task. Source: Dao et al. 2022, arXiv:2205.14135 (the tiling only).

mod backward;
#[cfg(test)]
mod bf16_tests;
mod few;
mod form;
mod forward;
mod lanes;
pub mod reference;
#[cfg(test)]
mod tests;
mod votes;

pub use backward::backward;
pub use forward::forward;
pub use lanes::{Found, Query, Stored, lanes};
pub use votes::column_sums;

use std::ops::Range;

use form::Form;

use crate::matmul::Strided;
use crate::split::partials;
use crate::tile::{self, PANEL};
use crate::{Real, unwritten};

/// Queries of one block.
pub const QUERIES: usize = 64;
/// Keys of one block.
pub const KEYS: usize = 256;

/// Queries and the keys that they may look at, as row ranges; segments do not overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First query row.
    pub q_start: usize,
    /// Number of query rows.
    pub q_len: usize,
    /// First key row.
    pub k_start: usize,
    /// Number of key rows; more than `q_len` where a cache holds earlier ones.
    pub k_len: usize,
}

/// Which of the keys up to its own place a query sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    /// With `Some(w)` at most the last w.
    pub window: Option<usize>,
    /// With `Some(c)` those of its own chunk, places `n·c .. (n+1)·c` of the segment's keys.
    pub chunk: Option<usize>,
}

impl Reach {
    /// All of them.
    pub const ALL: Reach = Reach { window: None, chunk: None };

    /// At most the last `w`, the query's own place included.
    pub const fn window(w: usize) -> Self {
        Reach { window: Some(w), chunk: None }
    }

    /// Those of the query's own chunk of `c`.
    pub const fn chunk(c: usize) -> Self {
        Reach { window: None, chunk: Some(c) }
    }

    /// The first key in reach of the query whose place is the last before `end`.
    pub fn first(&self, end: usize) -> usize {
        let window = self.window.map_or(0, |w| end.saturating_sub(w));
        window.max(self.chunk.map_or(0, |c| end.saturating_sub(1) / c * c))
    }

    /// The most keys that a query sees; `None` where there is no limit.
    pub fn limit(&self) -> Option<usize> {
        self.window.into_iter().chain(self.chunk).min()
    }
}

/// Sizes and rules shared by all segments.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Factor of the scores, commonly 1/√head_dim.
    pub scale: f64,
    /// Which keys up to its own place a query sees.
    pub reach: Reach,
    /// Whether a query sees no key after its own place.
    pub causal: bool,
    /// Whether operands of products are rounded to bf16, where the machine multiplies that: what a bf16 model asks
    /// for. Weights are rounded after they are summed, as in PyTorch. Single queries stay in f32.
    pub bf16: bool,
}

impl Shape {
    /// Query heads that share a key head.
    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Keys of the segment that its query i sees; empty where there are none.
    fn visible(&self, s: &Segment, i: usize) -> Range<usize> {
        let end = i + 1 + s.k_len; // one past its own place, shifted by q_len to stay positive
        let hi = if self.causal { end.saturating_sub(s.q_len).min(s.k_len) } else { s.k_len };
        let lo = self.reach.first(end.saturating_sub(s.q_len));
        lo.min(hi)..hi
    }

    /// Those of the `n` keys from `start` on that the segment's query i sees, counted from `start`.
    fn visible_of(&self, s: &Segment, i: usize, start: usize, n: usize) -> Range<usize> {
        let seen = self.visible(s, i);
        let lo = seen.start.clamp(start, start + n) - start;
        lo..(seen.end.clamp(start, start + n) - start).max(lo)
    }

    /// Keys that any of the queries `rows` sees.
    fn visible_to_any(&self, s: &Segment, rows: Range<usize>) -> Range<usize> {
        if rows.is_empty() {
            return 0..0;
        }
        let (first, last) = (self.visible(s, rows.start), self.visible(s, rows.end - 1));
        first.start.min(last.end)..last.end
    }

    fn check<T>(&self, segments: &[Segment], q: usize, k: usize, v: usize, bias: Option<&[T]>) {
        assert!(self.kv_heads > 0 && self.heads.is_multiple_of(self.kv_heads), "kv_heads must divide heads");
        assert!(self.head_dim > 0, "head_dim must be at least 1");
        let (wide, narrow) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        assert!(q.is_multiple_of(wide), "`q` must be rows of {wide}");
        assert!(k.is_multiple_of(narrow) && k == v, "`k` and `v` must be equally many rows of {narrow}");
        assert!(bias.is_none_or(|b| b.len() * narrow == k), "`bias` must have one number a row of `k`");
        for s in segments {
            assert!((s.q_start + s.q_len) * wide <= q, "{s:?} reaches past `q`");
            assert!((s.k_start + s.k_len) * narrow <= k, "{s:?} reaches past `k`");
        }
    }
}

/// Keys or values in an order of their own, of some pairs of a segment and a key head, counted segment by segment.
struct PerHead<T> {
    first: usize,
    parts: Vec<Vec<T>>,
}

/// Numbers that are held in an order of their own at a time, a MiB of f32; long segments may need more.
const HELD: usize = 1 << 18;

/// Pairs of a segment and a key head that are worked on at a time, where a pair's keys are held so many times.
fn waves(segments: &[Segment], shape: &Shape, times: usize) -> impl Iterator<Item = Range<usize>> + use<> {
    let longest = segments.iter().map(|s| s.k_len).max().unwrap_or(0);
    // A pair's numbers do not depend on those beside it, so that threads may tell how many there are.
    let wave = (HELD / (times * longest * shape.head_dim).max(1)).max(1);
    let wave = wave.next_multiple_of(rayon::current_num_threads());
    let pairs = segments.len() * shape.kv_heads;
    (0..pairs).step_by(wave).map(move |first| first..pairs.min(first + wave))
}

impl<T: Real> PerHead<T> {
    /// Transposed into panels: what scores are products with.
    fn panels(x: &[T], segments: &[Segment], shape: &Shape, pairs: Range<usize>, least: usize) -> Self {
        let (form, d) = (Form::of::<T>(shape), shape.head_dim);
        Self::of(x, segments, shape, pairs, least, |from, stride, rows| {
            if form == Form::Plain {
                // SAFETY: as `of` promises.
                return unsafe { tile::transposed(from, stride, rows, d) };
            }
            let (mut own, mut scratch) = (unwritten(rows * d), Vec::new());
            // SAFETY: as `of` promises; then the words of all rows.
            unsafe {
                copy_rows(from, stride, d, &mut own);
                let words = form.left(&own, &mut scratch);
                tile::transposed(words.as_ptr(), form.words(d), rows, form.words(d))
            }
        })
    }

    /// Row after row, to be summed over: heads side by side lie so far apart that their rows drive each other out of
    /// the cache.
    fn rows(x: &[T], segments: &[Segment], shape: &Shape, pairs: Range<usize>, least: usize) -> Self {
        let (form, d) = (Form::of::<T>(shape), shape.head_dim);
        Self::of(x, segments, shape, pairs, least, |from, stride, rows| {
            let mut own = unwritten(rows * d);
            // SAFETY: as `of` promises.
            unsafe { copy_rows(from, stride, d, &mut own) };
            if form == Form::Plain {
                return own;
            }
            let mut words = Vec::new();
            form.beside(&own, d, &mut words);
            words
        })
    }

    /// Of the segments with `least` queries or more; `order` is given where a head's rows begin, how far apart they lie and
    /// how many there are, all within `x`, which has passed [`Shape::check`].
    fn of(
        x: &[T],
        segments: &[Segment],
        shape: &Shape,
        pairs: Range<usize>,
        least: usize,
        order: impl Fn(*const T, usize, usize) -> Vec<T> + Sync,
    ) -> Self {
        let (d, kv_heads) = (shape.head_dim, shape.kv_heads);
        let narrow = kv_heads * d;
        let parts = partials(pairs.len(), |t| {
            let (s, head) = (&segments[(pairs.start + t) / kv_heads], (pairs.start + t) % kv_heads);
            if s.q_len < least {
                return Vec::new();
            }
            order(x.as_ptr().wrapping_add(s.k_start * narrow + head * d), narrow, s.k_len)
        });
        PerHead { first: pairs.start, parts }
    }

    fn part(&self, pair: usize) -> &[T] {
        &self.parts[pair - self.first]
    }
}

/// Rows of `d` numbers, `stride` apart, one after the other.
///
/// # Safety
/// `from` covers as many rows as `to` holds.
unsafe fn copy_rows<T: Real>(from: *const T, stride: usize, d: usize, to: &mut [T]) {
    for (r, to) in to.chunks_exact_mut(d).enumerate() {
        // SAFETY: the caller's promise.
        to.copy_from_slice(unsafe { std::slice::from_raw_parts(from.add(r * stride), d) });
    }
}

/// Where blocks of keys begin that cover `keys`, whole panels each.
fn key_blocks(keys: &Range<usize>) -> impl Iterator<Item = usize> + use<> {
    (keys.start / PANEL * PANEL..keys.end).step_by(KEYS)
}

/// `to[rows×n]` = factor · a · xᵀ for the `n` rows of x from `start` on, a multiple of [`PANEL`], in panels; rows of
/// `to` lie `width` apart, `n` up to a multiple of [`PANEL`]. Rows of `a` and of x have `d` words.
///
/// # Safety
/// `a` covers rows×d, as a left operand; `to` has room and is the caller's.
unsafe fn scores<T: Real>(
    form: Form,
    (rows, start, n): (usize, usize, usize),
    factor: T,
    (a, d): (Strided<*const T>, usize),
    panels: &[T],
    (to, width): (*mut T, usize),
) {
    for first in (0..n).step_by(PANEL) {
        let panel = &panels[(start + first) * d..][..PANEL * d];
        // SAFETY: the caller's promise.
        unsafe {
            let b = (panel.as_ptr(), PANEL);
            form.product((rows, PANEL, d), factor, a, b, false, (to.add(first), width));
        }
    }
}
