//! Standard output, which may end before we do.

use std::io::{ErrorKind, Write as _};

use anyhow::{Context as _, Result};

/// Writes `text`; a reader that has seen enough (`… | head`) is no fault.
///
/// # Errors
/// If standard output takes nothing for another reason.
pub fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(()),
        done => done.context("cannot write to standard output"),
    }
}
