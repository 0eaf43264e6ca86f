//! Words among the numbers of a part's saved state.

use anyhow::{Context, Result};
use ramekin_core::{Array, Category};

use crate::StateTensor;

/// Text as a tensor of bytes.
///
/// # Errors
/// None that is known.
pub fn text(name: &str, text: &str) -> Result<StateTensor> {
    let bytes = text.as_bytes().to_vec();
    let len = bytes.len();
    Ok(StateTensor { name: name.to_owned(), array: Array::from_vec(bytes, &[len], Category::Workspace)? })
}

/// The text of such a tensor.
///
/// # Errors
/// If it is no text.
pub fn read_text(array: &Array) -> Result<String> {
    String::from_utf8(array.view::<u8>()?.to_vec()).context("saved state that should be text is not")
}
