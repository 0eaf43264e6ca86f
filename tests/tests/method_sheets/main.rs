//! The *must hold* checks of the sheets of methods that bring parts of several slots. A module is a sheet,
//! a test a check; each module says what it leaves out.

mod meft;

/// The result, or why there is none.
#[track_caller]
fn ok<T>(result: anyhow::Result<T>) -> T {
    result.unwrap_or_else(|e| panic!("{e:#}"))
}
