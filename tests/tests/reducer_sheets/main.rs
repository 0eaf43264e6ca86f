//! The *must hold* checks of the sheets of reducers, and what they refuse. A module is a sheet, a test a check.

mod images;
mod pyra;
mod refusals;

/// The result, or why there is none.
#[track_caller]
fn ok<T>(result: anyhow::Result<T>) -> T {
    result.unwrap_or_else(|e| panic!("{e:#}"))
}
