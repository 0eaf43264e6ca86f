//! Adafactor: a second moment kept as one number a row and one a column, updates of bounded size.
//!
//! matrices (rows i, columns j):  r_i ← β r_i + (1−β)·mean_j(g² + ε)     c_j likewise over rows
//!                                u = g / √(r_i c_j / mean(r))
//! everything else:               v ← β v + (1−β)(g² + ε)                u = g / √v
//! u ← lr · u / max(1, RMS(u) / clip)
//! with β₁:                       e ← β₁ e + (1−β₁) u                    u = e
//! p ← p · (1 − lr·wd) − u
//!
//! More than two dimensions are a stack of matrices, each with rows and columns of its own; the RMS is
//! that of the whole tensor. Sums are in f64 over fixed spans of rows.
//!
//! Source: Shazeer & Stern 2018, arXiv:1804.04235; the order is that of transformers' `Adafactor`.

use crate::Real;
use crate::split::{CHUNK, Shared, partials, rows_per_task, tasks};
use crate::wide::wide;

/// The scalars of one update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adafactor {
    /// Learning rate of this step.
    pub lr: f64,
    /// Decay of the second moment at this step.
    pub beta2: f64,
    /// Added to the squared gradient.
    pub eps: f64,
    /// The largest RMS of an update before `lr`.
    pub clip: f64,
    /// Decay of the first moment, where there is one.
    pub beta1: Option<f64>,
    /// Decoupled decay; the step takes `lr · weight_decay` off the weight.
    pub weight_decay: f64,
}

/// The second moment of a tensor.
pub enum Second<'a, T> {
    /// Of a stack of matrices, each `rows` × `cols`.
    Factored {
        /// One number a row of each matrix.
        row: &'a mut [T],
        /// One number a column of each matrix.
        col: &'a mut [T],
        /// Rows of a matrix.
        rows: usize,
        /// Columns of a matrix.
        cols: usize,
    },
    /// One number an entry.
    Full(&'a mut [T]),
}

/// One update of `p` from the gradient `g`; `first` is empty without `beta1`.
///
/// # Panics
/// If lengths do not fit.
pub fn step<T: Real>(o: &Adafactor, p: &mut [T], g: &[T], second: Second<'_, T>, first: &mut [T]) {
    assert_eq!(p.len(), g.len(), "slices must be equally long");
    assert_eq!(first.len(), if o.beta1.is_some() { p.len() } else { 0 }, "a first moment goes with `beta1`");
    if p.is_empty() {
        return;
    }
    match second {
        Second::Factored { row, col, rows, cols } => {
            assert!(
                row.len() * cols == p.len() && col.len() * rows == p.len(),
                "rows and columns fit no matrix"
            );
            let (by_row, by_col) = factors(o, g, row, col, rows, cols);
            let span = rows_per_task(cols);
            let cut = |t: usize| (t * span, row.len().min((t + 1) * span));
            let count = row.len().div_ceil(span);
            let scale = scale(
                o,
                p.len(),
                |t, sum| {
                    let (from, to) = cut(t);
                    for i in from..to {
                        let col = &by_col[i / rows * cols..][..cols];
                        *sum += squares_of_row(&g[i * cols..][..cols], by_row[i], col);
                    }
                },
                count,
            );
            let rule = Apply::new(o, scale);
            let (p, first, kept) = (Shared::new(p), Shared::new(first), usize::from(o.beta1.is_some()));
            tasks(count, |t| {
                let (from, to) = cut(t);
                for i in from..to {
                    let at = i * cols;
                    // SAFETY: each task owns its rows of `p` and `first`.
                    let (p, first) = unsafe { (p.slice(at, cols), first.slice(at * kept, cols * kept)) };
                    apply_row(
                        &rule,
                        p,
                        &g[at..at + cols],
                        by_row[i],
                        &by_col[i / rows * cols..][..cols],
                        first,
                    );
                }
            });
        }
        Second::Full(v) => {
            assert_eq!(p.len(), v.len(), "slices must be equally long");
            let (beta, new, eps) = (T::from_f64(o.beta2), T::from_f64(1.0 - o.beta2), T::from_f64(o.eps));
            let count = p.len().div_ceil(CHUNK);
            let cut = |t: usize| (t * CHUNK, g.len().min((t + 1) * CHUNK));
            let moments = Shared::new(v);
            let scale = scale(
                o,
                p.len(),
                |t, sum| {
                    let (from, to) = cut(t);
                    // SAFETY: each task owns its chunk of `v`.
                    let v = unsafe { moments.slice(from, to - from) };
                    *sum += full_moment(beta, new, eps, &g[from..to], v);
                },
                count,
            );
            let rule = Apply::new(o, scale);
            let (p, first, kept) = (Shared::new(p), Shared::new(first), usize::from(o.beta1.is_some()));
            tasks(count, |t| {
                let (from, to) = cut(t);
                let n = to - from;
                // SAFETY: each task owns its chunk of `p`, `first` and `v`.
                let (p, first, v) =
                    unsafe { (p.slice(from, n), first.slice(from * kept, n * kept), moments.slice(from, n)) };
                apply_full(&rule, p, &g[from..to], v, first);
            });
        }
    }
}

/// `lr / max(1, RMS(u) / clip)` from partial sums of u².
fn scale(o: &Adafactor, len: usize, sum: impl Fn(usize, &mut f64) + Sync + Send, tasks: usize) -> f64 {
    let sums = partials(tasks, |t| {
        let mut total = 0.0;
        sum(t, &mut total);
        total
    });
    let rms = (sums.iter().sum::<f64>() / len as f64).sqrt();
    o.lr / (rms / o.clip).max(1.0)
}

/// Updates both factors and returns `1/√(r_i / mean(r))` a row and `1/√c_j` a column.
fn factors<T: Real>(
    o: &Adafactor,
    g: &[T],
    row: &mut [T],
    col: &mut [T],
    rows: usize,
    cols: usize,
) -> (Vec<T>, Vec<T>) {
    let (mut by_row, mut by_col) = (Vec::with_capacity(row.len()), Vec::with_capacity(col.len()));
    let span = rows_per_task(cols);
    for ((g, row), col) in g.chunks(rows * cols).zip(row.chunks_mut(rows)).zip(col.chunks_mut(cols)) {
        let sums = partials(rows.div_ceil(span), |t| {
            let (from, to) = (t * span, rows.min((t + 1) * span));
            let mut columns = vec![0.0f64; cols];
            let across: Vec<f64> =
                (from..to).map(|i| row_sums(&g[i * cols..][..cols], o.eps, &mut columns)).collect();
            (across, columns)
        });
        let mut columns = vec![0.0f64; cols];
        let mut i = 0;
        for (across, part) in sums {
            for sum in across {
                row[i] = T::from_f64(o.beta2 * row[i].to_f64() + (1.0 - o.beta2) * (sum / cols as f64));
                i += 1;
            }
            columns.iter_mut().zip(part).for_each(|(a, b)| *a += b);
        }
        for (c, sum) in col.iter_mut().zip(columns) {
            *c = T::from_f64(o.beta2 * c.to_f64() + (1.0 - o.beta2) * (sum / rows as f64));
            by_col.push(T::from_f64(1.0 / c.to_f64().sqrt()));
        }
        let mean = row.iter().map(|r| r.to_f64()).sum::<f64>() / rows as f64;
        by_row.extend(row.iter().map(|r| T::from_f64((mean / r.to_f64()).sqrt())));
    }
    (by_row, by_col)
}

/// What the last loop needs, rounded once.
struct Apply<T> {
    keep: T,
    scale: T,
    beta1: T,
    new1: T,
}

impl<T: Real> Apply<T> {
    fn new(o: &Adafactor, scale: f64) -> Self {
        let beta1 = o.beta1.unwrap_or(0.0);
        Apply {
            keep: T::from_f64(1.0 - o.lr * o.weight_decay),
            scale: T::from_f64(scale),
            beta1: T::from_f64(beta1),
            new1: T::from_f64(1.0 - beta1),
        }
    }
}

wide! {
    /// Σ (g² + ε) of a row, each term also added to its column.
    fn row_sums[T: Real](g: &[T], eps: f64, columns: &mut [f64]) -> f64 {
        let mut sum = 0.0;
        for (g, c) in g.iter().zip(columns) {
            let square = g.to_f64() * g.to_f64() + eps;
            *c += square;
            sum += square;
        }
        sum
    }

    /// Σ u² of a row.
    fn squares_of_row[T: Real](g: &[T], row: T, col: &[T]) -> f64 {
        let mut sum = 0.0;
        for (g, c) in g.iter().zip(col) {
            let u = (*g * row * *c).to_f64();
            sum += u * u;
        }
        sum
    }

    /// Updates a full second moment and returns Σ u².
    fn full_moment[T: Real](beta: T, new: T, eps: T, g: &[T], v: &mut [T]) -> f64 {
        let mut sum = 0.0;
        for (g, v) in g.iter().zip(v) {
            *v = beta * *v + new * (*g * *g + eps);
            let u = (*g / v.sqrt()).to_f64();
            sum += u * u;
        }
        sum
    }

    fn apply_row[T: Real](o: &Apply<T>, p: &mut [T], g: &[T], row: T, col: &[T], first: &mut [T]) {
        if first.is_empty() {
            for ((p, g), c) in p.iter_mut().zip(g).zip(col) {
                *p = *p * o.keep - o.scale * (*g * row * *c);
            }
        } else {
            for (((p, g), c), e) in p.iter_mut().zip(g).zip(col).zip(first) {
                *e = o.beta1 * *e + o.new1 * (o.scale * (*g * row * *c));
                *p = *p * o.keep - *e;
            }
        }
    }

    fn apply_full[T: Real](o: &Apply<T>, p: &mut [T], g: &[T], v: &[T], first: &mut [T]) {
        if first.is_empty() {
            for ((p, g), v) in p.iter_mut().zip(g).zip(v) {
                *p = *p * o.keep - o.scale * (*g / v.sqrt());
            }
        } else {
            for (((p, g), v), e) in p.iter_mut().zip(g).zip(v).zip(first) {
                *e = o.beta1 * *e + o.new1 * (o.scale * (*g / v.sqrt()));
                *p = *p * o.keep - *e;
            }
        }
    }
}

/// The same written down directly in f64.
pub mod reference {
    use super::Adafactor;

    /// A tensor's state.
    #[derive(Clone, Debug, Default)]
    pub struct State {
        /// Row factors, for matrices.
        pub row: Vec<f64>,
        /// Column factors, for matrices.
        pub col: Vec<f64>,
        /// The whole second moment, for anything else.
        pub full: Vec<f64>,
        /// The first moment, with `beta1`.
        pub first: Vec<f64>,
    }

    /// One update; `cols` is 0 for a tensor that is no matrix.
    pub fn step(o: &Adafactor, p: &mut [f64], g: &[f64], rows: usize, cols: usize, s: &mut State) {
        let n = p.len();
        let square: Vec<f64> = g.iter().map(|g| g * g + o.eps).collect();
        let mix = |old: f64, new: f64| o.beta2 * old + (1.0 - o.beta2) * new;
        let mut u = vec![0.0; n];
        if cols == 0 {
            for i in 0..n {
                s.full[i] = mix(s.full[i], square[i]);
                u[i] = g[i] / s.full[i].sqrt();
            }
        } else {
            for b in 0..n / (rows * cols) {
                let entry = |i: usize, j: usize| (b * rows + i) * cols + j;
                for i in 0..rows {
                    let mean = (0..cols).map(|j| square[entry(i, j)]).sum::<f64>() / cols as f64;
                    s.row[b * rows + i] = mix(s.row[b * rows + i], mean);
                }
                for j in 0..cols {
                    let mean = (0..rows).map(|i| square[entry(i, j)]).sum::<f64>() / rows as f64;
                    s.col[b * cols + j] = mix(s.col[b * cols + j], mean);
                }
                let mean = s.row[b * rows..][..rows].iter().sum::<f64>() / rows as f64;
                for i in 0..rows {
                    for j in 0..cols {
                        let v = s.row[b * rows + i] * s.col[b * cols + j] / mean;
                        u[entry(i, j)] = g[entry(i, j)] / v.sqrt();
                    }
                }
            }
        }
        let rms = (u.iter().map(|u| u * u).sum::<f64>() / n as f64).sqrt();
        for i in 0..n {
            let mut change = o.lr * u[i] / (rms / o.clip).max(1.0);
            if let Some(beta1) = o.beta1 {
                s.first[i] = beta1 * s.first[i] + (1.0 - beta1) * change;
                change = s.first[i];
            }
            p[i] = p[i] - o.weight_decay * o.lr * p[i] - change;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, assert_same_for_threads, normal, wide};

    const O: Adafactor =
        Adafactor { lr: 1e-2, beta2: 0.9, eps: 1e-30, clip: 1.0, beta1: None, weight_decay: 0.1 };

    fn check(stack: usize, rows: usize, cols: usize, beta1: Option<f64>, clip: f64) {
        let n = stack * rows * cols.max(1);
        let factored = cols > 0;
        let mut p = normal::<f32>(1, n);
        let (mut row, mut col, mut full) = (Vec::new(), Vec::new(), Vec::new());
        let mut s = reference::State::default();
        if factored {
            (row, col) = (vec![0f32; stack * rows], vec![0f32; stack * cols]);
            (s.row, s.col) = (vec![0.0; stack * rows], vec![0.0; stack * cols]);
        } else {
            (full, s.full) = (vec![0f32; n], vec![0.0; n]);
        }
        let mut first = vec![0f32; if beta1.is_some() { n } else { 0 }];
        s.first = vec![0.0; first.len()];
        let mut want = wide(&p);
        for t in 1..=4u64 {
            let mut g = normal::<f32>(10 + t, n);
            g.iter_mut().enumerate().for_each(|(i, g)| *g *= 1.0 + (i % 7) as f32);
            let o = Adafactor { beta2: 1.0 - (t as f64).powf(-0.8), beta1, clip, ..O };
            let second = if factored {
                Second::Factored { row: &mut row, col: &mut col, rows, cols }
            } else {
                Second::Full(&mut full)
            };
            step(&o, &mut p, &g, second, &mut first);
            reference::step(&o, &mut want, &wide(&g), rows, cols, &mut s);
        }
        assert_close(&p, &want, 1e-6);
        if factored {
            assert_close(&row, &s.row, 1e-5);
            assert_close(&col, &s.col, 1e-5);
        } else {
            assert_close(&full, &s.full, 1e-5);
        }
    }

    #[test]
    fn equals_the_reference_over_steps() {
        for (stack, rows, cols) in
            [(1, 5, 3), (1, 1, 1), (2, 3, 4), (1, 300, 200), (1, 17, 0), (1, 40_000, 0)]
        {
            check(stack, rows, cols, None, 1.0);
            check(stack, rows, cols, Some(0.9), 0.5);
        }
    }

    #[test]
    fn nothing_happens_to_nothing() {
        step::<f32>(&O, &mut [], &[], Second::Full(&mut []), &mut []);
    }

    #[test]
    fn a_gradient_of_zeros_moves_by_decay_alone() {
        let (mut p, mut row, mut col) = (vec![1f32; 6], vec![0f32; 2], vec![0f32; 3]);
        let second = Second::Factored { row: &mut row, col: &mut col, rows: 2, cols: 3 };
        step(&Adafactor { beta2: 0.0, ..O }, &mut p, &[0.0; 6], second, &mut []);
        assert_eq!(p, [1.0 - 1e-3f32; 6]);
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let (rows, cols) = (500, 200);
        let (g, start) = (normal::<f32>(1, rows * cols), normal::<f32>(2, rows * cols));
        assert_same_for_threads(|| {
            let (mut p, mut row, mut col) = (start.clone(), vec![0f32; rows], vec![0f32; cols]);
            let second = Second::Factored { row: &mut row, col: &mut col, rows, cols };
            step(&O, &mut p, &g, second, &mut []);
            let mut full = vec![0f32; rows * cols];
            step(&O, &mut p, &g, Second::Full(&mut full), &mut []);
            p
        });
    }
}
