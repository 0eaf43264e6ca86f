//! Rows of a table by id, and their gradient.
//!
//! y\[i\] = w[ids\[i\]]      gw\[v\] += Σ_{i: ids\[i\] = v} g\[i\], added in the order of i

use crate::Real;
use crate::split::{Tasks, rows_per_task};

/// Copies row `ids[i]` of `w` (rows of `d`) to row i of `y`.
///
/// # Panics
/// If an id is outside the table or `y` not `ids.len()` rows of `d`.
pub fn gather<T: Real>(w: &[T], d: usize, ids: &[u32], y: &mut [T]) {
    assert_eq!(y.len(), ids.len() * d, "`y` must hold {} rows of {d}", ids.len());
    if d == 0 {
        return;
    }
    let rows = rows_per_task(d);
    y.chunks_mut(rows * d).zip(ids.chunks(rows)).each_task(|(y, ids)| {
        for (y, id) in y.chunks_exact_mut(d).zip(ids) {
            let at = *id as usize * d;
            y.copy_from_slice(&w[at..at + d]);
        }
    });
}

/// Adds row i of `g` to row `ids[i]` of `gw`. Repeated ids are added in order, whoever does it.
///
/// # Panics
/// If an id is outside the table or `g` not `ids.len()` rows of `d`.
pub fn scatter_add<T: Real>(g: &[T], d: usize, ids: &[u32], gw: &mut [T]) {
    assert_eq!(g.len(), ids.len() * d, "`g` must hold {} rows of {d}", ids.len());
    if d == 0 || ids.is_empty() {
        return;
    }
    let mut order: Vec<(u32, u32)> = ids.iter().enumerate().map(|(i, id)| (*id, i as u32)).collect();
    order.sort_unstable(); // by id, then by position
    let last = order[order.len() - 1].0 as usize;
    assert!((last + 1) * d <= gw.len(), "id {last} in a table of {} rows", gw.len() / d);
    // Bands of the table, so that no two tasks share a row.
    let band = gw.len().div_ceil(d).div_ceil(64).max(1);
    gw.chunks_mut(band * d).enumerate().each_task(|(b, gw)| {
        let first = b * band;
        let from = order.partition_point(|(id, _)| (*id as usize) < first);
        for (id, i) in order[from..].iter().take_while(|(id, _)| (*id as usize) < first + band) {
            let (to, at) = ((*id as usize - first) * d, *i as usize * d);
            for (w, g) in gw[to..to + d].iter_mut().zip(&g[at..at + d]) {
                *w += *g;
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{assert_close, assert_same_for_threads, normal};

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn gathers_and_scatters(ids in prop::collection::vec(0u32..30, 0..200), d in 1usize..20) {
            let w = normal::<f64>(1, 30 * d);
            let mut y = vec![f64::NAN; ids.len() * d];
            gather(&w, d, &ids, &mut y);
            let want: Vec<f64> = ids.iter().flat_map(|id| w[*id as usize * d..][..d].to_vec()).collect();
            prop_assert_eq!(&y, &want);
            // Linear: <g, gather(w)> = <scatter(g), w>, entry by entry against the plain loop.
            let g = normal::<f64>(2, ids.len() * d);
            let mut want = normal::<f64>(3, 30 * d);
            let mut gw = want.clone();
            scatter_add(&g, d, &ids, &mut gw);
            for (i, id) in ids.iter().enumerate() {
                for c in 0..d {
                    want[*id as usize * d + c] += g[i * d + c];
                }
            }
            prop_assert_eq!(gw, want);
        }
    }

    #[test]
    fn repeated_ids_add_up() {
        let mut gw = vec![0.5f32; 6];
        scatter_add(&[1.0, 2.0, 10.0, 20.0], 2, &[2, 2], &mut gw);
        assert_close(&gw, &[0.5, 0.5, 0.5, 0.5, 11.5, 22.5], 0.0);
    }

    #[test]
    #[should_panic(expected = "id 3 in a table of 3 rows")]
    fn an_id_past_the_table_panics() {
        scatter_add(&[1.0f32, 1.0], 2, &[3], &mut [0.0; 6]);
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let ids: Vec<u32> = (0..3000).map(|i| i * i % 500).collect();
        let g = normal::<f32>(1, 3000 * 16);
        assert_same_for_threads(|| {
            let mut gw = vec![0.0; 500 * 16];
            scatter_add(&g, 16, &ids, &mut gw);
            gw
        });
    }
}
