//! What a training stage does beside its steps: it measures on held rows and writes samples.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use ramekin_core::Rng;
use ramekin_data::Dataset;
use ramekin_recipe::{Part, TrainStage};
use ramekin_slots::{Decoder, KvPolicy, Objective};
use ramekin_store::write_atomic;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json, json};

use super::prepare::Rows;
use crate::assembly::Assembly;
use crate::audit;
use crate::fit::Way;
use crate::generation::{Generator, Limits, prompt_ids};
use crate::journal::Journal;
use crate::parts;
use crate::stages::eval::{Answer, Evaluation, evaluate, names};

/// Measuring and writing, where the stage asks for them.
pub struct Beside {
    /// On held rows.
    pub eval: Option<Evaluator>,
    /// Continuations of prompts.
    pub samples: Option<Writer>,
}

impl Beside {
    /// As the stage asks for it; without rows nothing can be measured.
    pub fn new(s: &TrainStage, rows: Option<&Rows>, way: &Way) -> Result<Self> {
        let held = rows.and_then(|r| r.eval.clone());
        let eval = match (&s.eval, held) {
            (Some(e), Some(data)) => Some(Evaluator {
                data,
                settings: Evaluation {
                    metrics: names(&e.metrics),
                    decoder: parts::decoder(&Part::of("greedy"))?,
                    kv: parts::kv(&Part::of("full"))?,
                    max_rows: e.max_rows.map(|n| n as usize),
                    max_new_tokens: e.max_new_tokens as usize,
                    rows: way.rows,
                },
                every: e.every.unwrap_or(u64::MAX),
            }),
            _ => None,
        };
        let samples = s
            .samples
            .as_ref()
            .map(|w| -> Result<Writer> {
                Ok(Writer {
                    prompts: w.prompts.clone(),
                    decoder: parts::lone_decoder(&w.decode)?,
                    kv: parts::kv(&Part::of("full"))?,
                    max_new_tokens: w.max_new_tokens as usize,
                    every: w.every.unwrap_or(u64::MAX),
                    seed: way.plan.seed,
                })
            })
            .transpose()?;
        Ok(Beside { eval, samples })
    }

    /// Everything once, for a plan on shapes.
    pub fn run(&self, assembly: &Assembly, objective: &dyn Objective) -> Result<()> {
        if let Some(e) = &self.eval {
            e.run(assembly, objective)?;
        }
        if let Some(w) = &self.samples {
            w.run(assembly)?;
        }
        Ok(())
    }
}

/// Measures on held rows.
pub struct Evaluator {
    data: Arc<Dataset>,
    settings: Evaluation,
    /// Steps between measurements.
    pub every: u64,
}

impl Evaluator {
    /// Figures and, where a metric asks for them, answers.
    pub fn run(
        &self,
        assembly: &Assembly,
        objective: &dyn Objective,
    ) -> Result<(Map<String, Json>, Vec<Answer>)> {
        evaluate(assembly, &self.data, &self.settings, objective)
    }
}

/// Continues prompts.
pub struct Writer {
    prompts: Vec<String>,
    decoder: Box<dyn Decoder>,
    kv: Box<dyn KvPolicy>,
    max_new_tokens: usize,
    /// Steps between samples.
    pub every: u64,
    seed: u64,
}

impl Writer {
    /// A line for each prompt with its continuation.
    pub fn run(&self, assembly: &Assembly) -> Result<Vec<Json>> {
        let tokenizer = assembly.tokenizer()?;
        let ids = self.prompts.iter().map(|p| prompt_ids(tokenizer, p, false)).collect::<Result<Vec<_>>>()?;
        let generator = Generator {
            assembly,
            decoder: &*self.decoder,
            kv: Some(&*self.kv),
            rng: Rng::new(self.seed),
            adapters: true,
        };
        let eos = assembly.eos_ids();
        let limits = Limits { max_new_tokens: self.max_new_tokens, eos: &eos };
        let results = generator.run(&ids, &limits, &mut |_, _| {})?.ids;
        let lines = self.prompts.iter().zip(ids.iter().zip(results));
        lines
            .map(|(prompt, (ids, all))| {
                Ok(json!({ "prompt": prompt, "completion": tokenizer.decode(&all[ids.len()..], true)? }))
            })
            .collect()
    }
}

/// How things stood before step 1; kept for a run that is resumed.
#[derive(Serialize, Deserialize)]
pub struct Start {
    /// Figures on held rows.
    pub eval: Map<String, Json>,
    answers: Vec<Answer>,
    /// Continuations of prompts.
    #[serde(default)]
    samples: Vec<Json>,
    /// What the audit saw.
    pub audit: Vec<audit::Check>,
}

impl Start {
    /// Looks at the model before step 1.
    pub fn look(
        assembly: &Assembly,
        objective: &dyn Objective,
        beside: &Beside,
        audit: Vec<audit::Check>,
        journal: &mut Journal,
    ) -> Result<Self> {
        let mut start = Start { eval: Map::new(), answers: Vec::new(), samples: Vec::new(), audit };
        if let Some(e) = &beside.eval {
            (start.eval, start.answers) = e.run(assembly, objective)?;
            journal.eval(0, &start.eval)?;
        }
        if let Some(w) = &beside.samples {
            start.samples = w.run(assembly)?;
            journal.observe();
        }
        Ok(start)
    }

    /// Each answer with what it was before.
    pub fn beside(&self, after: Vec<Answer>) -> Vec<Json> {
        let before = |i: usize| self.answers.get(i);
        let lines = after.into_iter().enumerate().map(|(i, answer)| {
            let mut line = json!(answer);
            if let Some(before) = before(i) {
                line["before"] = json!(before.completion);
                line["before_right"] = json!(before.right);
            }
            line
        });
        lines.collect()
    }

    /// Each continuation with what it was before.
    pub fn beside_samples(&self, mut after: Vec<Json>) -> Vec<Json> {
        for (line, before) in after.iter_mut().zip(&self.samples) {
            line["before"] = before["completion"].clone();
        }
        after
    }
}

/// `samples.jsonl`: texts with the step they were written at.
pub struct Texts {
    path: PathBuf,
    lines: Vec<Json>,
}

impl Texts {
    /// Goes on after `step`, where 0 begins with the continuations before any step.
    pub fn open(dir: &Path, start: &Start, step: u64) -> Result<Self> {
        let mut texts = Texts { path: dir.join("samples.jsonl"), lines: Vec::new() };
        if step == 0 {
            if !start.samples.is_empty() {
                texts.add(0, start.samples.clone())?;
            }
            return Ok(texts);
        }
        let Ok(text) = std::fs::read_to_string(&texts.path) else { return Ok(texts) };
        for line in text.lines() {
            let line: Json = serde_json::from_str(line)
                .with_context(|| format!("`{}` is damaged", texts.path.display()))?;
            if line["step"].as_u64().is_some_and(|at| at <= step) {
                texts.lines.push(line);
            }
        }
        Ok(texts)
    }

    /// Adds what was written after `step`.
    pub fn add(&mut self, step: u64, lines: Vec<Json>) -> Result<()> {
        self.lines.extend(lines.into_iter().map(|mut line| {
            line["step"] = step.into();
            line
        }));
        let mut text = String::new();
        for line in &self.lines {
            text.push_str(&line.to_string());
            text.push('\n');
        }
        write_atomic(&self.path, text.as_bytes())?;
        Ok(())
    }

    /// The first `count` of those written last.
    pub fn last(&self, count: usize) -> Vec<Json> {
        let Some(step) = self.lines.last().map(|l| l["step"].clone()) else { return Vec::new() };
        self.lines.iter().filter(|l| l["step"] == step).take(count).cloned().collect()
    }
}
