//! Which of the tokens before it a token sees, where that is not what the model's config says.
//!
//! | kind | a token sees of its document | keys a query and head, at most |
//! |---|---|---|
//! | `full` | everything before it | T |
//! | `window` | the last `window` tokens | w |
//! | `block-diagonal` | its own block of `block_size` tokens, up to itself | b |
//!
//! Documents packed into one batch never see each other, whatever stands here. A model's files do not say
//! it: what was trained under another attention than its config's is used under the same part.

mod block_diagonal;
mod full;
mod window;

use anyhow::Result;
use ramekin_core::BadSetting;

pub use block_diagonal::{BlockDiagonal, BlockDiagonalSettings};
pub use full::{Full, FullSettings};
pub use window::{Window, WindowSettings};

/// A number of tokens that must have been set.
fn tokens(setting: &'static str, value: Option<usize>) -> Result<usize> {
    match value {
        Some(0) => Err(BadSetting::new(setting, "is 0; it must be at least 1").into()),
        Some(n) => Ok(n),
        None => {
            Err(BadSetting::new(setting, format!("is missing; say how many tokens, as `{setting} = 256`"))
                .into())
        }
    }
}
