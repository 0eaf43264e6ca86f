//! Loading a data set: rows in, examples and packed rows out, with a report.

use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use ramekin_core::{BadSetting, UserError};
use ramekin_slots::{Images, Rows};
use rayon::prelude::*;
use serde::Serialize;

use crate::batch::Batch;
use crate::example::{Example, IGNORED, Preparer};
use crate::formats::{Reader, Sample};
use crate::pack::{Piece, Row, pack};
use crate::settings::{DataSettings, Packing, Preparation, TextUnit};
use crate::source::{Origin, Record};
use crate::tokenizer::Tokenizer;

/// What became of the rows of a data set.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct LoadReport {
    /// The format that was read.
    pub format: String,
    /// Rows read.
    pub read: usize,
    /// Examples kept.
    pub kept: usize,
    /// Examples left out because nothing in them is a target.
    pub without_target: usize,
    /// Examples cut to `max_length`.
    pub truncated: usize,
    /// Examples whose prompt's own tokens are not the start of the joint ones.
    pub prefix_differs: usize,
    /// Tokens kept.
    pub tokens: usize,
    /// Tokens that are targets.
    pub active_tokens: usize,
    /// Rows made of the examples.
    pub rows: usize,
    /// What a person should hear: the format chosen, warnings.
    pub notes: Vec<String>,
}

/// Examples and the rows they make.
#[derive(Clone, Debug, Default)]
pub struct Dataset {
    /// What the data is called in messages: its path or builtin name.
    pub name: String,
    /// The examples, in file order.
    pub examples: Vec<Example>,
    /// Rows of training; without packing one an example.
    pub rows: Vec<Row>,
    /// Whether each epoch has an order of its own.
    pub shuffle: bool,
    /// What became of the rows.
    pub report: LoadReport,
    /// What the rows are.
    pub kind: Rows,
    /// The examples held out by `split`.
    pub dev: Option<Box<Dataset>>,
    /// The images that ids are numbers of, where rows are images.
    pub images: Option<Arc<Images>>,
}

/// Rows taken through tokenising together; bounds what lies in memory as text.
const CHUNK: usize = 2048;

impl DataSettings {
    /// Loads the data. Relative paths are relative to `base_dir`.
    ///
    /// # Errors
    /// A file that is missing or not of its kind, naming file, line and what
    /// was wrong; a row lacking a key; a template that raises; a set in which
    /// nothing is a target, showing one row. The kind `tokens` is read by the
    /// engine and refused here.
    pub fn load(&self, tokenizer: &Tokenizer, base_dir: &Path) -> Result<Dataset> {
        self.load_rows(tokenizer, base_dir, Rows::Tokens)
    }

    /// [`DataSettings::load`] for an objective that learns from such rows.
    ///
    /// # Errors
    /// Also if the rows are others.
    pub fn load_rows(&self, tokenizer: &Tokenizer, base_dir: &Path, wanted: Rows) -> Result<Dataset> {
        let preparation = self.preparation().ok_or_else(|| {
            UserError::new("data of kind `tokens` cannot go here: its ids are ready and need no tokenizer")
        })?;
        preparation.check()?;
        check_packing(&preparation, wanted)?;
        let name = match self {
            DataSettings::Builtin(s) => format!("builtin:{}", s.name),
            _ => self.paths().iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", "),
        };
        let stream = matches!(self, DataSettings::Text(s) if s.unit == TextUnit::Whole);
        let records = self.records(base_dir)?.skip(preparation.skip_rows);
        let records: Box<dyn Iterator<Item = Result<Record>> + '_> = match preparation.max_rows {
            Some(n) => Box::new(records.take(n)),
            None => Box::new(records),
        };
        let mut preparer = Preparer::new(tokenizer, &preparation, base_dir)?;
        if stream {
            preparer = preparer.for_stream();
        }
        Loading { name, preparation: &preparation, preparer, tokenizer, stream, wanted }.run(records)
    }
}

struct Loading<'a> {
    name: String,
    preparation: &'a Preparation,
    preparer: Preparer<'a>,
    tokenizer: &'a Tokenizer,
    stream: bool,
    wanted: Rows,
}

/// Which ways of sharing rows there are for which rows.
fn check_packing(p: &Preparation, wanted: Rows) -> Result<(), BadSetting> {
    match wanted {
        Rows::Pairs if p.packing => {
            Err(BadSetting::new("packing", "cannot go with `chosen` and `rejected`: a row is a pair already"))
        }
        Rows::Targets if p.packing && p.packing_strategy != Packing::Bfd => {
            let why = "must be `bfd` where texts have labels: a label is of one whole text";
            Err(BadSetting::new("packing_strategy", why))
        }
        _ => Ok(()),
    }
}

impl Loading<'_> {
    fn run(self, records: impl Iterator<Item = Result<Record>>) -> Result<Dataset> {
        let mut report = LoadReport::default();
        let mut reader = Reader::new(self.preparation, self.preparer.has_template(), self.wanted);
        let mut examples = Vec::new();
        let mut masked: Option<Example> = None;
        let mut records = records.peekable();
        while records.peek().is_some() {
            let mut chunk: Vec<(Origin, Sample)> = Vec::with_capacity(CHUNK.min(64));
            for record in records.by_ref().take(CHUNK) {
                let record = record?;
                chunk.push((record.origin.clone(), reader.sample(record)?));
            }
            let prepared: Vec<Result<_>> = chunk
                .par_iter()
                .map(|(origin, sample)| self.preparer.prepare(sample).map_err(|e| origin.explain(e)))
                .collect();
            for item in prepared {
                let item = item?;
                report.read += 1;
                report.truncated += usize::from(item.truncated);
                report.prefix_differs += usize::from(item.prefix_differs);
                let learns =
                    |x: &Example| x.active_tokens() > 0 || self.wanted == Rows::Targets && !x.is_empty();
                if learns(&item.example) && item.rejected.as_ref().is_none_or(learns) {
                    examples.push(item.example);
                    examples.extend(item.rejected);
                } else {
                    report.without_target += 1;
                    masked.get_or_insert(item.example);
                }
            }
        }
        report.format = reader.format().name().to_owned();
        report.notes.extend(reader.into_notes());
        if examples.is_empty() {
            return Err(self.nothing_left(&report, masked.as_ref()));
        }
        self.note(&mut report);
        let mut data = Dataset {
            name: self.name,
            shuffle: self.preparation.shuffle,
            report,
            kind: self.wanted,
            ..Dataset::default()
        };
        match self.preparation.split {
            Some(split) => {
                let (train, dev) = divide(examples, split.dev, self.stream, data.each());
                if train.is_empty() || dev.is_empty() {
                    return Err(UserError::new(format!(
                        "`split.dev` = {} of {} examples leaves nothing to {}",
                        split.dev,
                        train.len() + dev.len(),
                        if train.is_empty() { "train on" } else { "evaluate on" }
                    ))
                    .in_file(&data.name)
                    .help("change the share or give more rows")
                    .into());
                }
                let mut held = Dataset {
                    name: format!("{} (held out)", data.name),
                    shuffle: false,
                    report: data.report.clone(),
                    kind: self.wanted,
                    ..Dataset::default()
                };
                data.set_examples(train, self.preparation);
                held.set_examples(dev, self.preparation);
                data.dev = Some(Box::new(held));
            }
            None => data.set_examples(examples, self.preparation),
        }
        Ok(data)
    }

    fn note(&self, report: &mut LoadReport) {
        let limit = self.preparation.max_length;
        if report.truncated > 0 {
            report
                .notes
                .push(format!("{} of {} examples were cut to {limit} tokens", report.truncated, report.read));
        }
        if report.without_target > 0 {
            report.notes.push(format!(
                "{} of {} examples have no target and were left out",
                report.without_target, report.read
            ));
        }
        if report.prefix_differs > 0 {
            report.notes.push(format!(
                "in {} of {} examples prompt and completion together do not start with the prompt's own tokens; \
                 end prompts where a token ends, as before a space",
                report.prefix_differs, report.read
            ));
        }
        let chat = matches!(report.format.as_str(), "messages" | "sharegpt");
        if self.tokenizer.eos_id().is_none() && !chat && !self.stream && self.wanted != Rows::Targets {
            report.notes.push("the tokenizer has no end token, so examples get none".to_owned());
        }
    }

    fn nothing_left(&self, report: &LoadReport, masked: Option<&Example>) -> anyhow::Error {
        let Some(example) = masked else {
            return UserError::new("the data has no rows").in_file(&self.name).into();
        };
        let view = crate::mask_view::mask_view(self.tokenizer, example, 400, false);
        UserError::new(format!("none of the {} examples has a target: every label is masked", report.read))
            .in_file(&self.name)
            .help(format!(
                "the first one, with what is masked in brackets:\n    {view}\n  raise `max_length` if the answer was cut off; \
                 check `completion_only_loss` and `assistant_only_loss`"
            ))
            .into()
    }
}

/// The last `share` of the examples, or of the one stream's tokens.
fn divide(mut examples: Vec<Example>, share: f64, stream: bool, each: usize) -> (Vec<Example>, Vec<Example>) {
    if stream {
        let mut all = Example::default();
        for e in examples {
            all.ids.extend(e.ids);
            all.labels.extend(e.labels);
        }
        let cut = all.len() - (all.len() as f64 * share).round() as usize;
        let dev =
            Example { ids: all.ids.split_off(cut), labels: all.labels.split_off(cut), ..Example::default() };
        let some = |e: Example| if e.len() > 1 { vec![e] } else { Vec::new() };
        return (some(all), some(dev));
    }
    let n = examples.len() / each;
    let held = ((n as f64 * share).round() as usize).max(1).min(n);
    let dev = examples.split_off(each * (n - held));
    (examples, dev)
}

/// `each` examples a row, in order.
fn singly(lengths: &[usize], each: usize) -> Vec<Row> {
    let piece = |e: usize| Piece { example: e, tokens: 0..lengths[e] };
    let row = |(r, lengths): (usize, &[usize])| Row {
        pieces: (0..lengths.len()).map(|i| piece(r * each + i)).collect(),
        segments: lengths.to_vec(),
    };
    lengths.chunks(each).enumerate().map(row).collect()
}

impl Dataset {
    /// Examples of a row that is not packed.
    fn each(&self) -> usize {
        if self.kind == Rows::Pairs { 2 } else { 1 }
    }

    fn set_examples(&mut self, examples: Vec<Example>, options: &Preparation) {
        let lengths: Vec<usize> = examples.iter().map(Example::len).collect();
        self.rows = if options.packing {
            pack(&lengths, options.max_length, options.packing_strategy)
        } else {
            singly(&lengths, self.each())
        };
        self.examples = examples;
        self.count();
    }

    fn count(&mut self) {
        self.report.kept = self.examples.len() / self.each();
        self.report.rows = self.rows.len();
        self.report.tokens = self.rows.iter().map(Row::len).sum();
        self.report.active_tokens = self.examples.iter().map(Example::active_tokens).sum();
    }

    /// A data set of examples that are ready, one a row, in file order.
    pub fn from_examples(name: impl Into<String>, examples: Vec<Example>) -> Self {
        let rows = examples.iter().enumerate().map(|(e, x)| Row::whole(e, x.len())).collect();
        let read = examples.len();
        let mut data = Dataset { name: name.into(), examples, rows, ..Dataset::default() };
        data.report.format = "tokens".to_owned();
        data.report.read = read;
        data.count();
        data
    }

    /// A data set of rows of ids, in order, each a sequence of its own.
    ///
    /// * `ids`: the rows
    /// * `mask`: 1 where a token counts; a row's ones must be one stretch, padding on either side is dropped
    /// * `labels`: not shifted, −100 where a token is no target; the ids themselves where absent
    ///
    /// # Errors
    /// Lengths that differ, a mask with a gap, a row without a token, no active label at all.
    pub fn from_token_rows(
        name: impl Into<String>,
        ids: Vec<Vec<u32>>,
        mask: Option<Vec<Vec<u8>>>,
        labels: Option<Vec<Vec<i64>>>,
    ) -> Result<Self> {
        let name = name.into();
        let wrong = |what: String| UserError::new(what).in_file(&name);
        let count = ids.len();
        for (what, n) in
            [("attention_mask", mask.as_ref().map(Vec::len)), ("labels", labels.as_ref().map(Vec::len))]
        {
            if n.is_some_and(|n| n != count) {
                return Err(
                    wrong(format!("`{what}` has {} rows, `input_ids` {count}", n.unwrap_or(0))).into()
                );
            }
        }
        let mut examples = Vec::with_capacity(count);
        for (r, row) in ids.into_iter().enumerate() {
            let keep = match mask.as_ref().map(|m| &m[r]) {
                None => 0..row.len(),
                Some(m) if m.len() != row.len() => {
                    let n = row.len();
                    return Err(wrong(format!(
                        "row {r} of `attention_mask` has {} entries for {n} ids",
                        m.len()
                    ))
                    .into());
                }
                Some(m) => {
                    let start = m.iter().position(|x| *x != 0).unwrap_or(0);
                    let end = m.iter().rposition(|x| *x != 0).map_or(0, |p| p + 1);
                    if m[start..end].contains(&0) {
                        return Err(wrong(format!(
                            "row {r} of `attention_mask` has a gap; its ones must be one stretch"
                        ))
                        .into());
                    }
                    start..end
                }
            };
            if keep.is_empty() {
                return Err(wrong(format!("row {r} has no token")).into());
            }
            let row_labels = match labels.as_ref().map(|l| &l[r]) {
                Some(l) if l.len() != row.len() => {
                    let n = row.len();
                    return Err(
                        wrong(format!("row {r} of `labels` has {} entries for {n} ids", l.len())).into()
                    );
                }
                Some(l) => l[keep.clone()].to_vec(),
                None => row[keep.clone()].iter().map(|id| i64::from(*id)).collect(),
            };
            if let Some(bad) = row_labels.iter().find(|l| **l < 0 && **l != IGNORED) {
                return Err(wrong(format!("row {r} of `labels` has {bad}; a label is an id or -100")).into());
            }
            examples.push(Example { ids: row[keep].to_vec(), labels: row_labels, ..Example::default() });
        }
        if examples.is_empty() {
            return Err(wrong("the file has no rows".to_owned()).into());
        }
        Ok(Self::from_examples(name, examples))
    }

    /// A data set of pairs, a chosen and a rejected example in turn, in file order.
    pub fn from_pairs(name: impl Into<String>, examples: Vec<Example>) -> Self {
        let mut data = Self::from_examples(name, examples);
        data.kind = Rows::Pairs;
        data.rows = singly(&data.examples.iter().map(Example::len).collect::<Vec<_>>(), 2);
        data.count();
        data
    }

    /// Tokens of the longest row.
    pub fn longest_row(&self) -> usize {
        self.rows.iter().map(Row::len).max().unwrap_or(0)
    }

    /// Mean tokens of a row.
    pub fn mean_row(&self) -> f64 {
        self.report.tokens as f64 / self.rows.len().max(1) as f64
    }

    /// A micro-batch of the `rows` longest rows, the largest that can come.
    pub fn longest_batch(&self, rows: usize) -> Batch {
        let mut order: Vec<usize> = (0..self.rows.len()).collect();
        order.sort_by_key(|r| std::cmp::Reverse(self.rows[*r].len()));
        // Fewer rows than asked for come round again, as the sampler does it.
        let rows = if order.is_empty() { 0 } else { rows };
        Batch::of_rows(self, order.iter().cycle().take(rows).map(|r| &self.rows[*r]))
    }

    /// How many rows have how many tokens: (length, rows), shortest first.
    pub fn histogram(&self) -> Vec<(usize, usize)> {
        let mut counts = std::collections::BTreeMap::new();
        for row in &self.rows {
            *counts.entry(row.len()).or_insert(0) += 1;
        }
        counts.into_iter().collect()
    }

    /// The largest id or label, to hold against a model's vocabulary; `None` without tokens.
    pub fn largest_id(&self) -> Option<i64> {
        self.examples
            .iter()
            .flat_map(|e| e.ids.iter().map(|i| i64::from(*i)).chain(e.labels.iter().copied()))
            .max()
    }
}

#[cfg(test)]
#[path = "dataset_tests.rs"]
mod tests;
