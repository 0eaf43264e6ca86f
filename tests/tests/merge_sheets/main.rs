//! The *must hold* checks of the sheets about merging and pruning, for the parts that exist; see `sheets.rs`.

mod cfsp;
mod compeft;
mod expert;
mod lines;
mod pruned;
mod residual_mlp;
mod tuned_away;

use ramekin_core::Rng;

/// `n` draws of N(0, 1), by name.
pub fn normal(name: &str, n: usize) -> Vec<f64> {
    let mut x = vec![0f32; n];
    Rng::new(23).named("tests/normal", name).fill_normal(0, 1.0, &mut x);
    x.into_iter().map(f64::from).collect()
}
