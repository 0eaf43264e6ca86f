//! Merging models by their task vectors.
//!
//! | kind | what it makes of θ₀ and the τ_t = θ_t − θ₀ | source |
//! |---|---|---|
//! | `lora` | folds attached adapters into their base | arXiv:2106.09685 |
//! | `task-arithmetic` | θ₀ + λ Σ w_t τ_t | arXiv:2212.04089 |
//! | `ties` | trims, elects a sign an entry, averages what agrees with it | arXiv:2306.01708 |
//! | `lines` | any merger, scaled by a factor that grows with depth | arXiv:2410.17146 |
//! | `compeft` | each τ_t as signs and one scale, in files of a few bits an entry | arXiv:2311.13171 |
//!
//! Everything works on pieces of tensors in f64; what needs all numbers at once, a threshold or a norm,
//! takes passes over the pieces. So no model is ever in memory whole.

mod adapters;
mod choice;
mod compeft;
mod consensus;
mod depth;
mod lines;
mod memory;
mod search;
mod select;
mod soup;
mod task_arithmetic;
mod ties;

pub use adapters::Fold;
pub use choice::OneOrMany;
pub use compeft::{Compeft, CompeftSettings};
pub use lines::{Lines, LinesSettings};
pub use memory::{InMemory, Nobody};
pub use select::{Kept, Scope, largest};
pub use task_arithmetic::{TaskArithmetic, TaskArithmeticSettings};
pub use ties::{Aggregate, Ties, TiesSettings, Vote};

use anyhow::Result;
use ramekin_core::BadSetting;
use ramekin_slots::TaskVectors;

/// Refuses vectors with numbers that are not finite, and returns each one's Σ|τ|.
fn norms(vectors: &dyn TaskVectors) -> Result<Vec<f64>> {
    let mut sums = vec![0.0; vectors.count()];
    vectors.pieces(&mut |piece| {
        for (sum, delta) in sums.iter_mut().zip(piece.deltas) {
            *sum += delta.iter().map(|x| x.abs()).sum::<f64>();
        }
        Ok(())
    })?;
    Ok(sums)
}

/// A number that must be finite and in a range.
fn within(name: &str, x: f64, good: bool, allowed: &str) -> Result<(), BadSetting> {
    if x.is_finite() && good {
        Ok(())
    } else {
        Err(BadSetting::new(name, format!("is {x}; it must be {allowed}")))
    }
}
