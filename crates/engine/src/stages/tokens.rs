//! Batches of ids from a safetensors file: `input_ids`, `attention_mask`, `labels`.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use candle_core::DType;
use ramekin_core::UserError;
use ramekin_store::Index;

/// A file's batch, `[B, T]` each.
pub struct TokenFile {
    /// Ids.
    pub ids: Vec<Vec<u32>>,
    /// 1 where a token counts.
    pub mask: Option<Vec<Vec<u8>>>,
    /// Targets, not shifted.
    pub labels: Option<Vec<Vec<i64>>>,
}

impl TokenFile {
    /// Reads the file.
    ///
    /// # Errors
    /// If it has no `input_ids`, or shapes and ids make no sense.
    pub fn read(path: &Path) -> Result<Self> {
        let index = Index::open(path)?;
        let rows = |name: &str| -> Result<Option<Vec<Vec<i64>>>> {
            if !index.contains(name) {
                return Ok(None);
            }
            let t = index.read(name)?;
            ensure!(
                t.dims().len() == 2,
                UserError::new(format!("`{name}` is {:?}; it must be [rows, tokens]", t.dims()))
                    .in_file(path)
            );
            Ok(Some(t.to_dtype(DType::I64)?.to_vec2::<i64>()?))
        };
        let ids = rows("input_ids")?
            .ok_or_else(|| UserError::new("there is no tensor `input_ids`").in_file(path))?
            .into_iter()
            .map(|row| {
                row.into_iter()
                    .map(|id| {
                        u32::try_from(id)
                            .map_err(|_| UserError::new(format!("`input_ids` holds {id}")).in_file(path))
                    })
                    .collect::<Result<Vec<u32>, _>>()
            })
            .collect::<Result<Vec<_>, _>>()?;
        let mask = rows("attention_mask")?
            .map(|m| m.into_iter().map(|r| r.into_iter().map(|x| u8::from(x != 0)).collect()).collect());
        Ok(TokenFile { ids, mask, labels: rows("labels")? })
    }

    /// For each row the range of tokens that count.
    ///
    /// # Errors
    /// If a mask has another shape than the ids.
    pub fn spans(&self) -> Result<Vec<std::ops::Range<usize>>> {
        let width = self.ids.first().map_or(0, Vec::len);
        let Some(mask) = &self.mask else { return Ok(vec![0..width; self.ids.len()]) };
        ensure!(mask.len() == self.ids.len(), "`attention_mask` and `input_ids` differ in rows");
        mask.iter()
            .map(|m| {
                let start = m.iter().position(|x| *x != 0).context("a row without tokens")?;
                let end = m.iter().rposition(|x| *x != 0).context("a row without tokens")? + 1;
                ensure!(end <= width, "`attention_mask` is wider than `input_ids`");
                Ok(start..end)
            })
            .collect()
    }
}
