//! The *must hold* checks of the method sheets in `../shared/methods`, for the parts that exist.
//!
//! A module is a sheet, a test a check: `quant_family::check_2` is the second check of
//! `quant-family`. `check_n_…` are parts of a check, other names come from the sheet's rules
//! (`algorithm_n`, `section_n`) where no check covers them. Each module says what it leaves out.

#[path = "sheets/lora_family/mod.rs"]
mod lora_family;
#[path = "sheets/model_architectures/mod.rs"]
mod model_architectures;
#[path = "sheets/objectives.rs"]
mod objectives;
#[path = "sheets/quant_family.rs"]
mod quant_family;
