//! Hooks that watch weights and figures while training runs.
//!
//! | kind | does | source |
//! |---|---|---|
//! | `ema` | averages the weights; measures and saves the average | Polyak & Juditsky 1992 |
//! | `early-stop` | ends training when a figure stops improving | Prechelt 1998 |

mod early_stop;
mod ema;
mod shadow;

pub use early_stop::{EarlyStop, EarlyStopSettings, Goal};
pub use ema::{Ema, EmaSettings};
