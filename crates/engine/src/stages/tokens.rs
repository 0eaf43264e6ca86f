//! Batches of ids from a safetensors file: `input_ids`, `attention_mask`, `labels`; or of images, for a model
//! that reads some: `pixel_values` and `labels`.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use candle_core::DType;
use ramekin_core::UserError;
use ramekin_data::{Dataset, IGNORED};
use ramekin_slots::{FlatBatch, ImageFacts, Images, ModelFacts};
use ramekin_store::Index;

/// A file's batch, `[B, T]` each.
pub struct TokenFile {
    /// Ids; of an image's tokens its number.
    pub ids: Vec<Vec<u32>>,
    /// 1 where a token counts.
    pub mask: Option<Vec<Vec<u8>>>,
    /// Targets, not shifted; an image's is told at its first token.
    pub labels: Option<Vec<Vec<i64>>>,
    /// The images, where the rows are some.
    pub images: Option<Arc<Images>>,
}

impl TokenFile {
    /// Reads the file for a model.
    ///
    /// # Errors
    /// If it has no `input_ids` (`pixel_values` for a model of images), or shapes and ids make no sense.
    pub fn read(path: &Path, facts: &ModelFacts) -> Result<Self> {
        let index = Index::open(path)?;
        if let Some(images) = facts.images {
            return Pictures { path, index: &index, images, classes: facts.vocab_size }.read();
        }
        if index.contains("pixel_values") && !index.contains("input_ids") {
            let message = format!("holds images, and `{}` reads tokens", facts.model_type);
            return Err(UserError::new(message).in_file(path).into());
        }
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
        Ok(TokenFile { ids, mask, labels: rows("labels")?, images: None })
    }

    /// The tokens that count, one row after the other.
    ///
    /// # Errors
    /// As [`TokenFile::spans`].
    pub fn flat(&self) -> Result<FlatBatch> {
        let rows = self.ids.iter().zip(self.spans()?).map(|(row, span)| row[span].to_vec());
        Ok(FlatBatch { images: self.images.clone(), ..FlatBatch::new(&rows.collect::<Vec<_>>()) })
    }

    /// The rows as a data set of this name.
    ///
    /// # Errors
    /// If rows, masks and labels do not fit each other.
    pub fn dataset(self, name: String) -> Result<Dataset> {
        let data = Dataset::from_token_rows(name, self.ids, self.mask, self.labels)?;
        Ok(Dataset { images: self.images, ..data })
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

/// A file of images.
struct Pictures<'a> {
    path: &'a Path,
    index: &'a Index,
    images: ImageFacts,
    classes: usize,
}

impl Pictures<'_> {
    fn wrong(&self, message: String) -> anyhow::Error {
        UserError::new(message).in_file(self.path).into()
    }

    fn read(&self) -> Result<TokenFile> {
        if !self.index.contains("pixel_values") {
            return Err(self.wrong("there is no tensor `pixel_values`, which this model reads".to_owned()));
        }
        let pixels = self.index.read("pixel_values")?.to_dtype(DType::F32)?;
        let ImageFacts { channels, size, tokens } = self.images;
        let &[count, c, h, w] = pixels.dims() else {
            return Err(self.wrong(format!(
                "`pixel_values` is {:?}; it must be [images, {channels}, {size}, {size}]",
                pixels.dims()
            )));
        };
        if [c, h, w] != [channels, size, size] {
            return Err(self.wrong(format!(
                "`pixel_values` has images of {c}×{h}×{w}; the model is for {channels}×{size}×{size}, which makes {tokens} tokens"
            )));
        }
        let numbers = pixels.flatten_all()?.to_vec1::<f32>()?;
        if numbers.iter().any(|x| !x.is_finite()) {
            return Err(self.wrong("`pixel_values` holds numbers that are not finite".to_owned()));
        }
        Ok(TokenFile {
            ids: (0..count).map(|i| vec![i as u32; tokens]).collect(),
            mask: None,
            labels: self.labels(count)?,
            images: Some(Arc::new(Images::new([count, c, h, w], numbers)?)),
        })
    }

    /// The class of each image, where the first token finds it once labels are shifted.
    fn labels(&self, count: usize) -> Result<Option<Vec<Vec<i64>>>> {
        if !self.index.contains("labels") {
            return Ok(None);
        }
        let labels = self.index.read("labels")?;
        if labels.dims() != [count] {
            return Err(self
                .wrong(format!("`labels` is {:?}; it must be [{count}], a class an image", labels.dims())));
        }
        let labels = labels.to_dtype(DType::I64)?.to_vec1::<i64>()?;
        if let Some(bad) = labels.iter().find(|l| **l != IGNORED && !(0..self.classes as i64).contains(*l)) {
            let classes = self.classes;
            return Err(
                self.wrong(format!("`labels` holds {bad}; the model has {classes} classes, counted from 0"))
            );
        }
        let row = |class: i64| {
            let mut row = vec![IGNORED; self.images.tokens];
            row[1] = class;
            row
        };
        Ok(Some(labels.into_iter().map(row).collect()))
    }
}
