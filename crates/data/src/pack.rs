//! Rows: which stretches of which examples lie side by side in one row.
//!
//! | strategy | long examples | boundaries |
//! |---|---|---|
//! | `bfd` | cut to the row length | kept: positions restart, attention is block-diagonal |
//! | `bfd_split` | split into pieces of the row length, then `bfd` | kept |
//! | `wrapped` | everything is one stream, cut every row length | ignored: ordinary causal attention over the row |
//!
//! Best fit decreasing: examples by length, longest first (ties in file order),
//! each into the open bin with the smallest free space that suffices, of equals
//! the one that has had that space longest, else into a new bin. Source: TRL's `pack_dataset`.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use crate::settings::Packing;

/// A stretch of one example's tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Index of the example.
    pub example: usize,
    /// Which of its tokens.
    pub tokens: Range<usize>,
}

/// One row of training: pieces one after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// What lies in the row, in order.
    pub pieces: Vec<Piece>,
    /// Lengths of the stretches that see only themselves; they sum to [`Row::len`].
    pub segments: Vec<usize>,
}

impl Row {
    /// One example from its first token to its last.
    pub fn whole(example: usize, len: usize) -> Self {
        Row { pieces: vec![Piece { example, tokens: 0..len }], segments: vec![len] }
    }

    /// Tokens in the row.
    pub fn len(&self) -> usize {
        self.segments.iter().sum()
    }

    /// Whether the row holds no token.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Packs examples of these lengths into rows of at most `size` tokens. Empty
/// examples are left out; `size` 0 counts as 1.
pub fn pack(lengths: &[usize], size: usize, strategy: Packing) -> Vec<Row> {
    let size = size.max(1);
    let whole = lengths.iter().enumerate();
    match strategy {
        Packing::Bfd => {
            best_fit(whole.map(|(e, n)| Piece { example: e, tokens: 0..(*n).min(size) }).collect(), size)
        }
        Packing::BfdSplit => best_fit(
            whole
                .flat_map(|(e, n)| {
                    (0..*n).step_by(size).map(move |at| Piece { example: e, tokens: at..(at + size).min(*n) })
                })
                .collect(),
            size,
        ),
        Packing::Wrapped => wrap(lengths, size),
    }
}

fn best_fit(mut pieces: Vec<Piece>, size: usize) -> Vec<Row> {
    pieces.retain(|p| !p.tokens.is_empty());
    pieces.sort_by_key(|p| std::cmp::Reverse(p.tokens.len()));
    let mut rows: Vec<Row> = Vec::new();
    // Free space to the bins that have it, first come first filled.
    let mut open: BTreeMap<usize, VecDeque<usize>> = BTreeMap::new();
    for piece in pieces {
        let len = piece.tokens.len();
        let fit = open.range(len..).next().map(|(free, _)| *free);
        let (bin, free) = match fit {
            Some(free) => {
                let bins = open.entry(free).or_default();
                let bin = bins.pop_front();
                if bins.is_empty() {
                    open.remove(&free);
                }
                (bin, free)
            }
            None => (None, size),
        };
        let bin = bin.unwrap_or_else(|| {
            rows.push(Row { pieces: Vec::new(), segments: Vec::new() });
            rows.len() - 1
        });
        rows[bin].segments.push(len);
        rows[bin].pieces.push(piece);
        if free > len {
            open.entry(free - len).or_default().push_back(bin);
        }
    }
    rows
}

fn wrap(lengths: &[usize], size: usize) -> Vec<Row> {
    let mut rows = Vec::new();
    let (mut pieces, mut filled) = (Vec::new(), 0);
    for (example, n) in lengths.iter().enumerate() {
        let mut at = 0;
        while at < *n {
            let take = (size - filled).min(n - at);
            pieces.push(Piece { example, tokens: at..at + take });
            at += take;
            filled += take;
            if filled == size {
                rows.push(Row { pieces: std::mem::take(&mut pieces), segments: vec![size] });
                filled = 0;
            }
        }
    }
    if filled > 0 {
        rows.push(Row { pieces, segments: vec![filled] });
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lengths(rows: &[Row]) -> Vec<Vec<usize>> {
        rows.iter().map(|r| r.pieces.iter().map(|p| p.tokens.len()).collect()).collect()
    }

    #[test]
    fn sheet_example() {
        let rows = pack(&[5, 2, 3, 1], 4, Packing::Bfd);
        assert_eq!(lengths(&rows), [vec![4], vec![3, 1], vec![2]]);
        assert_eq!(rows[1].pieces[0], Piece { example: 2, tokens: 0..3 });
        assert_eq!(rows[1].segments, [3, 1]);
    }

    #[test]
    fn split_and_wrapped() {
        // 5 splits into 4 and 1; the two ones fill 3's and 2's bins, tightest first.
        let rows = pack(&[5, 2, 3, 1], 4, Packing::BfdSplit);
        assert_eq!(lengths(&rows), [vec![4], vec![3, 1], vec![2, 1]]);
        let rows = pack(&[5, 0, 2, 3, 1], 4, Packing::Wrapped);
        assert_eq!(lengths(&rows), [vec![4], vec![1, 2, 1], vec![2, 1]]);
        assert!(rows.iter().all(|r| r.segments.len() == 1));
    }

    #[test]
    fn oldest_of_equal_bins_first() {
        // Two bins with 2 free; the first piece of 2 belongs to the first.
        let rows = pack(&[4, 4, 2, 2], 6, Packing::Bfd);
        assert_eq!(rows[0].pieces[1].example, 2);
        assert_eq!(rows[1].pieces[1].example, 3);
    }

    proptest! {
        #[test]
        fn nothing_lost_nothing_doubled(
            lens in prop::collection::vec(0usize..40, 0..60),
            size in 1usize..24,
            strategy in prop::sample::select(vec![Packing::Bfd, Packing::BfdSplit, Packing::Wrapped]),
        ) {
            let rows = pack(&lens, size, strategy);
            let mut seen = vec![Vec::new(); lens.len()];
            for row in &rows {
                prop_assert!(row.len() <= size && !row.is_empty());
                prop_assert_eq!(row.len(), row.pieces.iter().map(|p| p.tokens.len()).sum::<usize>());
                for p in &row.pieces {
                    seen[p.example].extend(p.tokens.clone());
                }
            }
            for (n, mut tokens) in lens.iter().zip(seen) {
                tokens.sort_unstable();
                let expected = if strategy == Packing::Bfd { (*n).min(size) } else { *n };
                prop_assert_eq!(tokens, (0..expected).collect::<Vec<_>>());
            }
            // Best fit never leaves two bins that would fit into one another.
            if strategy == Packing::Bfd && rows.len() > 1 {
                let mut fill: Vec<usize> = rows.iter().map(Row::len).collect();
                fill.sort_unstable();
                prop_assert!(fill[0] + fill[1] > size);
            }
        }
    }
}
