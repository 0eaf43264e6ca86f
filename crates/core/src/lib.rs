//! What every other crate stands on: errors, arrays whose bytes are counted,
//! randomness by address, module-path patterns and the parameter ledger.
//!
//! Nothing here knows a method, a model or a recipe.

pub mod array;
pub mod error;
pub mod ledger;
pub mod mask;
pub mod meter;
pub mod pattern;
pub mod rng;
pub mod traffic;
pub mod units;

pub use array::{Array, Element, Lease, View};
pub use candle_core::DType;
pub use error::{
    BadRecipe, BadSetting, Elsewhere, Interrupted, Location, Unfit, UserError, exit_code, suggest,
};
pub use ledger::{Entry, Ledger, Param, ParamId, Storage};
pub use mask::Mask;
pub use meter::{Away, Category, Meter, Tier, Usage};
pub use rng::{Draws, Rng};
pub use traffic::{Link, Traffic};

/// Says something on standard error. That nobody listens (a closed terminal, a full disk behind it)
/// is no reason to end a run, so a failure to write is nothing; `eprintln!` would panic.
#[macro_export]
macro_rules! say {
    ($($text:tt)*) => {{
        if !$crate::is_hushed() {
            use ::std::io::Write as _;
            let _ = ::std::writeln!(::std::io::stderr(), $($text)*);
        }
    }};
}

thread_local! {
    static HUSHED: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// From now on [`say!`] says nothing on this thread: of ranks that do the same, one speaks.
pub fn hush() {
    HUSHED.set(true);
}

/// Whether this thread says nothing.
#[doc(hidden)]
pub fn is_hushed() -> bool {
    HUSHED.get()
}
