//! The *must hold* checks of the sheets on optimizers and gradient transforms.
//!
//! A module is a sheet, a test a check; see `sheets.rs`.

mod galore;
mod quant_family;
