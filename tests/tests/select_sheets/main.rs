//! The *must hold* checks of the sheets of selections and hooks.

mod hft;
mod ist;
mod lt_sft;
mod s2ft;
