//! The *must hold* checks of the cache sheets in `../shared/methods`.
//!
//! A module is a sheet, a test a check: `snapkv::check_2` is the second check of `snapkv`.

mod kv_baselines;
mod snapkv;
mod tools;
