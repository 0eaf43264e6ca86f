//! Bottleneck adapters: small networks in series with, or beside, a frozen linear.
//!
//! | kind | y | source |
//! |---|---|---|
//! | `series` | u + c·Up f(Down u), u = Wx + b; or W(x + c·Up f(Down x)) + b | arXiv:2304.01933, 1902.00751 |
//! | `parallel` | Wx + b + c·Up f(Down x) | arXiv:2304.01933, 2110.04366 |
//!
//! Neither has biases. Files are those of LLM-Adapters' own PEFT (`peft_type` BOTTLENECK).

mod bottleneck;
mod parallel;
mod series;

pub use bottleneck::{Activation, Init, Scaling};
pub use parallel::{Parallel, ParallelSettings};
pub use series::{Position, Series, SeriesSettings};
