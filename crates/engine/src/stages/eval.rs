//! `kind = "eval"`, and the evaluation inside training.

use std::io::Write as _;
use std::path::Path;

use anyhow::Result;
use ramekin_core::Rng;
use ramekin_data::{Batch, Dataset, Row};
use ramekin_eval::Metrics;
use ramekin_plan::Bill;
use ramekin_recipe::{EvalStage, Metric, Part};
use ramekin_slots::{Decoder, Forward, KvPolicy, Mode};
use ramekin_store::write_atomic;
use ramekin_tape::Tape;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json, json};

use super::data;
use crate::assembly::{Assembly, Blueprint};
use crate::generation::{Generator, Limits};
use crate::run::StageContext;
use crate::step::{LabelledBatch, hidden};
use crate::{bill, blame, parts};

/// What an evaluation needs.
pub struct Evaluation {
    /// Names of the metrics.
    pub metrics: Vec<&'static str>,
    /// For answers.
    pub decoder: Box<dyn Decoder>,
    /// For answers.
    pub kv: Box<dyn KvPolicy>,
    /// Rows at most.
    pub max_rows: Option<usize>,
    /// Tokens of an answer at most.
    pub max_new_tokens: usize,
    /// Rows whose loss is taken together; twice as many are answered together, which keeps less.
    pub rows: usize,
}

/// An answer beside what was expected.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[allow(missing_docs)]
pub struct Answer {
    pub prompt: String,
    pub completion: String,
    pub expected: String,
    pub right: bool,
}

/// Metric names as the eval crate knows them.
pub fn names(metrics: &[Metric]) -> Vec<&'static str> {
    metrics
        .iter()
        .map(|m| match m {
            Metric::Loss => "loss",
            Metric::Perplexity => "perplexity",
            Metric::ExactMatch => "exact_match",
        })
        .collect()
}

/// Exact match compares answers with expected ones.
///
/// # Errors
/// If it is asked for and no row has one.
pub fn ensure_references(data: &Dataset, metrics: &[Metric], place: &str) -> Result<()> {
    if metrics.contains(&Metric::ExactMatch) && data.examples.iter().all(|x| x.reference.is_none()) {
        let message = "`exact_match` needs rows with a prompt and a completion".to_owned();
        return Err(blame::at(place, message, format!("`{}` has none", data.name), None));
    }
    Ok(())
}

/// Evaluates a data set.
///
/// # Errors
/// Faults of the forward; an answer that is no text.
pub fn evaluate(
    assembly: &Assembly,
    data: &Dataset,
    e: &Evaluation,
) -> Result<(Map<String, Json>, Vec<Answer>)> {
    let mut metrics = Metrics::new(&e.metrics)?;
    if metrics.needs_loss() {
        let objective = parts::objective(&Part::of("sft"))?;
        let rows = &data.rows[..e.max_rows.unwrap_or(usize::MAX).min(data.rows.len())];
        let mut rises = Rises::of(assembly);
        for chunk in rows.chunks(e.rows.max(1)) {
            if !rises.worth(chunk.iter().map(Row::len).sum()) {
                continue;
            }
            let batch = LabelledBatch::new(Batch::of_rows(data, chunk));
            let fx = Forward::new(Tape::off(), assembly.sites.clone(), batch.flat.clone(), Mode::inference());
            let h = hidden(&assembly.model, &fx, None)?;
            let loss = objective.loss(&fx, &assembly.model, &h, &batch.labels, 1.0)?;
            metrics.add_loss(loss.array().scalar()?, batch.active() as u64);
        }
    }
    let mut answers = Vec::new();
    if metrics.needs_answers() {
        answers = answer(assembly, data, e, &mut metrics)?;
    }
    Ok((metrics.finish(), answers))
}

/// On shapes only what is larger than everything before tells something new.
struct Rises {
    shape_only: bool,
    highest: usize,
}

impl Rises {
    fn of(assembly: &Assembly) -> Self {
        Rises { shape_only: assembly.is_shape_only(), highest: 0 }
    }

    fn worth(&mut self, tokens: usize) -> bool {
        let worth = !self.shape_only || tokens > self.highest;
        self.highest = self.highest.max(tokens);
        worth
    }
}

fn answer(assembly: &Assembly, data: &Dataset, e: &Evaluation, metrics: &mut Metrics) -> Result<Vec<Answer>> {
    let tokenizer = assembly.tokenizer()?;
    let references: Vec<_> = data.examples.iter().filter_map(|x| x.reference.as_ref()).collect();
    let references = &references[..e.max_rows.unwrap_or(usize::MAX).min(references.len())];
    let eos = assembly.eos_ids();
    let limits = Limits { max_new_tokens: e.max_new_tokens, eos: &eos };
    let generator =
        Generator { assembly, decoder: &*e.decoder, kv: Some(&*e.kv), rng: Rng::new(0), adapters: true };
    let mut answers = Vec::new();
    let mut rises = Rises::of(assembly);
    for group in references.chunks(2 * e.rows.max(1)) {
        let prompts = group.iter().map(|r| r.prompt_ids(tokenizer)).collect::<Result<Vec<_>>>()?;
        let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
        if !rises.worth(prompts.len() * (longest + e.max_new_tokens)) {
            continue;
        }
        let results = generator.run(&prompts, &limits, &mut |_, _| {})?;
        for ((reference, prompt), ids) in group.iter().zip(&prompts).zip(results) {
            let completion = tokenizer.decode(&ids[prompt.len()..], true)?;
            let right = metrics.add_answer(&completion, &reference.completion)?;
            answers.push(Answer {
                prompt: reference.prompt.clone(),
                completion,
                expected: reference.completion.clone(),
                right,
            });
        }
    }
    Ok(answers)
}

fn evaluation(s: &EvalStage) -> Result<Evaluation> {
    Ok(Evaluation {
        metrics: names(&s.metrics),
        decoder: parts::decoder(&s.decode)?,
        kv: parts::kv(&s.kv)?,
        max_rows: s.max_rows.map(|n| n as usize),
        max_new_tokens: s.max_new_tokens as usize,
        rows: ROWS,
    })
}

/// Rows whose loss an `eval` stage takes together.
const ROWS: usize = 16;

/// The stage's bill.
pub fn bill(name: &str, s: &EvalStage, plan: &Blueprint) -> Result<Bill> {
    let evaluation = evaluation(s)?;
    let settings = parts::data_settings(&s.data)?;
    let longest = settings.preparation().map_or(1024, |p| p.max_length);
    bill::inference(name, plan, ROWS * longest, &|assembly| {
        if data::is_small(&settings, &plan.base_dir) {
            let data = data::load(assembly, &s.data, &plan.base_dir)?;
            parts::placed(&s.kv, evaluate(assembly, &data, &evaluation)).map(drop)
        } else {
            bill::forward(assembly, ROWS * longest)
        }
    })
}

/// Runs the stage.
pub fn run(cx: &mut StageContext<'_>, s: &EvalStage, plan: &Blueprint) -> Result<Json> {
    let assembly = plan.assemble(false)?;
    let data = data::load(&assembly, &s.data, &plan.base_dir)?;
    ensure_references(&data, &s.metrics, &format!("stage.{}.metrics", cx.index))?;
    let (figures, answers) = parts::placed(&s.kv, evaluate(&assembly, &data, &evaluation(s)?))?;
    write_answers(&cx.dir, &answers)?;
    ramekin_core::say!("  {}", crate::journal::words(&figures));
    Ok(Json::Object(figures))
}

fn write_answers(dir: &Path, answers: &[Answer]) -> Result<()> {
    if answers.is_empty() {
        return Ok(());
    }
    let mut lines = Vec::new();
    for a in answers {
        writeln!(lines, "{}", json!(a))?;
    }
    write_atomic(dir.join("samples.jsonl"), &lines)?;
    Ok(())
}
