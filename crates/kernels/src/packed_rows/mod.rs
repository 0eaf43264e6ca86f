//! A few rows times a packed weight, which is read once and never unpacked to memory: decoding.
//!
//! grid:   y\[j\] = Σ_g s\[j,g\] · (Σ_{i∈g} code\[j,i\]·x\[i\] − zero\[j,g\]·Σ_{i∈g} x\[i\])
//! table:  y\[j\] = Σ_b s\[b\] · Σ_{i∈b} table\[code\[j,i\]\]·x\[i\]
//!
//! With integer codes a row of x becomes whole numbers, 32 at a time with a scale of their own, cut into planes of
//! seven bits for the dot products of bytes (VNNI): as many as [`Activations`] says. Bound by reading the codes. A row's
//! bits do not depend on the rows beside it. Where the processor has no such dot products, [`forward`] says so and another
//! path is taken.

#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod grid;
#[cfg(target_arch = "x86_64")]
mod table;
#[cfg(test)]
pub(crate) mod tests;

pub use crate::matmul::FEW_ROWS;

/// A packed weight as it lies.
pub enum Layout<'a> {
    /// Whole numbers with a scale and a zero.
    Grid(Grid<'a>),
    /// Four-bit places in a table.
    Table(Table<'a>),
}

impl Layout<'_> {
    /// Outputs and inputs.
    pub fn shape(&self) -> (usize, usize) {
        match self {
            Layout::Grid(w) => w.shape,
            Layout::Table(w) => w.shape,
        }
    }
}

/// Codes of 2, 3, 4 or 8 bits, each row a bit stream as of [`pack_bits`](crate::packed::pack_bits).
pub struct Grid<'a> {
    /// The streams, row after row, each a whole number of bytes.
    pub packed: &'a [u8],
    /// Bits of a code.
    pub bits: u32,
    /// Inputs that share a scale; divides the inputs.
    pub group: usize,
    /// `[rows, inputs / group]`.
    pub scales: GroupScales<'a>,
    /// As `scales`; empty where every zero is `middle`.
    pub zeros: &'a [f32],
    /// The zero of a weight without `zeros`.
    pub middle: f32,
    /// Outputs and inputs.
    pub shape: (usize, usize),
}

/// Scales of groups.
#[derive(Clone, Copy)]
pub enum GroupScales<'a> {
    /// As they are.
    F32(&'a [f32]),
    /// The bits of bf16: half as much to read.
    Bf16(&'a [u16]),
}

impl GroupScales<'_> {
    /// How many.
    pub fn len(&self) -> usize {
        match self {
            GroupScales::F32(scales) => scales.len(),
            GroupScales::Bf16(bits) => bits.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Codes of four bits, the even entry in a byte's high half, blocks counted over the flattened weight.
pub struct Table<'a> {
    /// Two codes a byte.
    pub packed: &'a [u8],
    /// What codes stand for.
    pub table: &'a [f32; 16],
    /// Entries that share a scale.
    pub block: usize,
    /// A scale for each block.
    pub scales: Scales<'a>,
    /// Outputs and inputs.
    pub shape: (usize, usize),
}

/// Scales of blocks.
#[derive(Clone, Copy)]
pub enum Scales<'a> {
    /// As they are.
    Plain(&'a [f32]),
    /// `map[codes[b]] · absmax[b / 256] + offset`
    Nested {
        /// A byte a block.
        codes: &'a [u8],
        /// What bytes stand for.
        map: &'a [f32; 256],
        /// One for each 256 blocks.
        absmax: &'a [f32],
        /// Added to each.
        offset: f32,
    },
}

/// What x may be rounded to in a product with codes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activations {
    /// Nothing: three planes, 21 bits.
    #[default]
    F32,
    /// bf16, which keeps eight bits: two planes, 14 bits.
    Bf16,
    /// Whole numbers up to ±127 of 32 inputs, as in [`int8`](crate::int8): one plane.
    Int8,
}

/// `y[m×n] = x[m×k] · wᵀ`, m at most [`FEW_ROWS`]; false, and nothing is done, where this processor or layout has no
/// such way, as a table has none in [`Activations::Int8`].
///
/// # Panics
/// If a slice's length is not its shape.
pub fn forward(x: &[f32], m: usize, w: &Layout<'_>, activations: Activations, y: &mut [f32]) -> bool {
    let (n, k) = w.shape();
    assert_eq!(x.len(), m * k, "`x` must hold {m}×{k} values");
    assert_eq!(y.len(), m * n, "`y` must hold {m}×{n} values");
    if m > FEW_ROWS || k == 0 {
        return false;
    }
    #[cfg(target_arch = "x86_64")]
    match w {
        Layout::Grid(w) if grid::suits(w) => {
            grids(x, &[w], activations, &mut [y]);
            return true;
        }
        Layout::Table(w) if table::suits(w) && activations != Activations::Int8 => {
            match activations == Activations::Bf16 && crate::bf16::unit().is_some() {
                true => table::narrow(x, m, w, y),
                false => table::wide(x, m, w, y),
            }
            return true;
        }
        _ => {}
    }
    let _ = activations;
    false
}

/// As [`forward`] for several weights of one x, to the same bits: x is rounded once, and threads meet once. False, and
/// nothing is done, where these weights cannot share.
///
/// # Panics
/// As there.
pub fn forward_each(
    x: &[f32],
    m: usize,
    ws: &[Layout<'_>],
    activations: Activations,
    ys: &mut [&mut [f32]],
) -> bool {
    for (w, y) in ws.iter().zip(&*ys) {
        let (n, k) = w.shape();
        assert_eq!((x.len(), y.len()), (m * k, m * n), "`x` of {m}×{k} and `y` of {m}×{n} values");
    }
    #[cfg(target_arch = "x86_64")]
    if (1..=FEW_ROWS).contains(&m) {
        let grids_of = ws.iter().filter_map(|w| match w {
            Layout::Grid(grid) if grid::suits(grid) && grid.shape.1 > 0 => Some(grid),
            _ => None,
        });
        let all: Vec<&Grid<'_>> = grids_of.collect();
        if !all.is_empty() && all.len() == ws.len() && grid::alike(&all) {
            grids(x, &all, activations, ys);
            return true;
        }
    }
    let _ = activations;
    false
}

#[cfg(target_arch = "x86_64")]
fn grids(x: &[f32], ws: &[&Grid<'_>], activations: Activations, ys: &mut [&mut [f32]]) {
    match activations {
        Activations::Int8 => grid::forward::<1>(x, ws, ys),
        Activations::Bf16 => grid::forward::<2>(x, ws, ys),
        Activations::F32 => grid::forward::<3>(x, ws, ys),
    }
}
