//! `metrics.jsonl`: one object a step, one line an object.
//!
//! Lines are in the order in which things happened and each is written whole,
//! so that a file cut off anywhere can be read and continued.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use ramekin_core::Usage;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

/// Bytes by category at one step, the peak so far, and the process' resident set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct Mem {
    pub weights: u64,
    pub trainable: u64,
    pub gradients: u64,
    pub optimizer: u64,
    pub activations: u64,
    pub kv: u64,
    pub workspace: u64,
    /// The largest total that the meter saw, in bytes.
    pub peak: u64,
    /// Resident set size of the process, in bytes.
    pub rss: u64,
}

impl Mem {
    /// From the meter's categories, its peak and the resident set, in bytes.
    pub fn new(usage: &Usage, peak: u64, rss: u64) -> Mem {
        Mem {
            weights: usage.weights,
            trainable: usage.trainable,
            gradients: usage.gradients,
            optimizer: usage.optimizer,
            activations: usage.activations,
            kv: usage.kv,
            workspace: usage.workspace,
            peak,
            rss,
        }
    }

    /// The categories alone.
    pub fn usage(&self) -> Usage {
        Usage {
            weights: self.weights,
            trainable: self.trainable,
            gradients: self.gradients,
            optimizer: self.optimizer,
            activations: self.activations,
            kv: self.kv,
            workspace: self.workspace,
        }
    }
}

/// One optimizer step. A number that is not finite is null in the file and NaN here.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepLine {
    /// Index of the stage in the recipe, from 0.
    pub stage: usize,
    /// The step in this stage, from 1.
    pub step: u64,
    /// Training loss before this step's update, in nats.
    #[serde(deserialize_with = "number")]
    pub loss: f64,
    /// Learning rate of this update.
    #[serde(deserialize_with = "number")]
    pub lr: f64,
    /// Norm of all gradients before clipping; NaN where it was not taken.
    #[serde(deserialize_with = "number")]
    pub grad_norm: f64,
    /// Tokens seen by this step.
    pub tokens: u64,
    /// Tokens a second over this step.
    #[serde(deserialize_with = "number")]
    pub tokens_per_s: f64,
    /// Memory.
    pub mem: Mem,
    /// Figures that parts add under names of their own.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// One evaluation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EvalLine {
    /// Index of the stage in the recipe, from 0.
    pub stage: usize,
    /// The step after which it took place; 0 before the first.
    pub step: u64,
    /// Name and value of each metric.
    pub eval: Map<String, Value>,
}

impl EvalLine {
    /// A metric's value, if it is there and a number.
    pub fn get(&self, metric: &str) -> Option<f64> {
        self.eval.get(metric).and_then(Value::as_f64)
    }
}

/// A line of the file.
#[derive(Clone, Debug, PartialEq)]
pub enum Line {
    /// An optimizer step.
    Step(StepLine),
    /// An evaluation.
    Eval(EvalLine),
}

impl Line {
    /// Stage and step.
    pub fn at(&self) -> (usize, u64) {
        match self {
            Line::Step(l) => (l.stage, l.step),
            Line::Eval(l) => (l.stage, l.step),
        }
    }
}

fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::<f64>::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

/// Appends to a `metrics.jsonl`.
pub struct MetricsWriter {
    path: PathBuf,
    file: File,
}

impl MetricsWriter {
    /// Opens a file to append to, making it if absent; a torn last line is dropped.
    ///
    /// # Errors
    /// If the file cannot be opened or holds something else than metrics.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_owned();
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| format!("cannot open `{}`", path.display()))?;
        let writer = MetricsWriter { path, file };
        writer.cut(|_| true)?;
        Ok(writer)
    }

    /// Adds a step.
    ///
    /// # Errors
    /// If the line cannot be written.
    pub fn step(&mut self, line: &StepLine) -> Result<()> {
        self.put(line)
    }

    /// Adds an evaluation.
    ///
    /// # Errors
    /// If the line cannot be written.
    pub fn eval(&mut self, line: &EvalLine) -> Result<()> {
        self.put(line)
    }

    fn put(&mut self, line: &impl Serialize) -> Result<()> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        // One write a line and no buffer: what was logged survives the process.
        self.file.write_all(&text).with_context(|| {
            let path = self.path.display();
            format!("cannot write `{path}`, which needed {} bytes", text.len())
        })
    }

    /// Drops everything after a step, for a run that goes on from there.
    /// Evaluations after that very step stay.
    ///
    /// # Errors
    /// If the file cannot be read or cut.
    pub fn truncate_after(&mut self, stage: usize, step: u64) -> Result<()> {
        self.cut(|line| line.at() <= (stage, step))
    }

    /// Cuts the file before the first line that is torn or not to be kept.
    fn cut(&self, keep: impl Fn(&Line) -> bool) -> Result<()> {
        let path = self.path.display();
        let text = std::fs::read(&self.path).with_context(|| format!("cannot read `{path}`"))?;
        let (lines, _) = parse(&text, &self.path)?;
        let end = lines.iter().take_while(|(line, _)| keep(line)).last().map_or(0, |(_, end)| *end);
        if end < text.len() {
            self.file.set_len(end as u64).with_context(|| format!("cannot cut `{path}`"))?;
        }
        Ok(())
    }
}

/// Reads a `metrics.jsonl`; a last line that was cut off in writing is left out.
///
/// # Errors
/// If the file cannot be read, or a line before the last is no metrics line.
pub fn read_metrics(path: impl AsRef<Path>) -> Result<Vec<Line>> {
    let path = path.as_ref();
    let text = std::fs::read(path).with_context(|| format!("cannot read `{}`", path.display()))?;
    Ok(parse(&text, path)?.0.into_iter().map(|(line, _)| line).collect())
}

/// Each whole line with the offset behind it, and whether a torn one follows.
fn parse(text: &[u8], path: &Path) -> Result<(Vec<(Line, usize)>, bool)> {
    let mut lines = Vec::new();
    let (mut start, mut number) = (0, 0);
    while start < text.len() {
        number += 1;
        let Some(length) = text[start..].iter().position(|b| *b == b'\n') else {
            return Ok((lines, true));
        };
        let end = start + length + 1;
        match parse_line(&text[start..end]) {
            Ok(line) => lines.push((line, end)),
            // A crash of the machine can leave a last line of zeros.
            Err(_) if end == text.len() => return Ok((lines, true)),
            Err(e) => bail!("`{}:{number}` is no line of metrics: {e}", path.display()),
        }
        start = end;
    }
    Ok((lines, false))
}

fn parse_line(text: &[u8]) -> Result<Line, serde_json::Error> {
    let value: Value = serde_json::from_slice(text)?;
    if value.get("eval").is_some() {
        serde_json::from_value(value).map(Line::Eval)
    } else {
        serde_json::from_value(value).map(Line::Step)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn step(stage: usize, step: u64) -> StepLine {
        let mem = Mem { weights: 5, peak: 9, rss: 11, ..Mem::default() };
        StepLine { stage, step, loss: 0.1 + step as f64, tokens: 64, mem, ..StepLine::default() }
    }

    fn eval(stage: usize, step: u64) -> EvalLine {
        let eval = json!({"loss": 1.5}).as_object().unwrap().clone();
        EvalLine { stage, step, eval }
    }

    #[test]
    fn the_contracts_names() {
        let mut line = step(0, 3);
        line.grad_norm = f64::NAN;
        line.extra.insert("aux_loss".into(), json!(0.5));
        let value = serde_json::to_value(&line).unwrap();
        let keys: Vec<_> = value.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(
            keys,
            ["stage", "step", "loss", "lr", "grad_norm", "tokens", "tokens_per_s", "mem", "aux_loss"]
        );
        let mem: Vec<_> = value["mem"].as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(
            mem,
            [
                "weights",
                "trainable",
                "gradients",
                "optimizer",
                "activations",
                "kv",
                "workspace",
                "peak",
                "rss"
            ]
        );
        assert!(value["grad_norm"].is_null());
        let back: StepLine = serde_json::from_value(value).unwrap();
        assert!(back.grad_norm.is_nan());
        assert_eq!(back.loss.to_bits(), line.loss.to_bits());
        assert_eq!(back.extra, line.extra);
    }

    #[test]
    fn written_and_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut writer = MetricsWriter::open(&path).unwrap();
        writer.eval(&eval(0, 0)).unwrap();
        for s in 1..=3 {
            writer.step(&step(0, s)).unwrap();
        }
        writer.eval(&eval(0, 3)).unwrap();
        let lines = read_metrics(&path).unwrap();
        let at: Vec<_> = lines.iter().map(Line::at).collect();
        assert_eq!(at, [(0, 0), (0, 1), (0, 2), (0, 3), (0, 3)]);
        assert_eq!(lines[1], Line::Step(step(0, 1)));
        let Line::Eval(last) = &lines[4] else { panic!("no evaluation") };
        assert_eq!(last.get("loss"), Some(1.5));
    }

    #[test]
    fn resuming_cuts_behind_the_step() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut writer = MetricsWriter::open(&path).unwrap();
        for stage in 0..2 {
            for s in 1..=4 {
                writer.step(&step(stage, s)).unwrap();
                writer.eval(&eval(stage, s)).unwrap();
            }
        }
        drop(writer);
        let mut torn = OpenOptions::new().append(true).open(&path).unwrap();
        torn.write_all(b"{\"stage\":1,\"st").unwrap();
        assert_eq!(read_metrics(&path).unwrap().len(), 16);

        let mut writer = MetricsWriter::open(&path).unwrap();
        assert!(std::fs::read(&path).unwrap().ends_with(b"}\n"), "the torn line is gone");
        writer.truncate_after(1, 2).unwrap();
        let lines = read_metrics(&path).unwrap();
        assert_eq!(lines.len(), 12);
        assert_eq!(lines.last(), Some(&Line::Eval(eval(1, 2))));
        writer.step(&step(1, 3)).unwrap();
        assert_eq!(read_metrics(&path).unwrap().len(), 13);
        writer.truncate_after(0, 0).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"");
    }

    #[test]
    fn any_cut_is_readable() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut writer = MetricsWriter::open(&path).unwrap();
        (1..=3).for_each(|s| writer.step(&step(0, s)).unwrap());
        let whole = std::fs::read(&path).unwrap();
        for cut in 0..whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let lines = read_metrics(&path).unwrap();
            assert_eq!(lines.len(), whole[..cut].iter().filter(|b| **b == b'\n').count());
        }
        std::fs::write(&path, b"{}\n{\"stage\":0}\n").unwrap();
        let error = read_metrics(&path).unwrap_err().to_string();
        assert!(error.contains("metrics.jsonl:1` is no line of metrics"), "{error}");
    }
}
