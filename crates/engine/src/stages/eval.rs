//! `kind = "eval"`, and the evaluation inside training.

use std::io::Write as _;
use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use ramekin_core::Rng;
use ramekin_data::{Batch, Dataset, Row};
use ramekin_eval::Metrics;
use ramekin_plan::Bill;
use ramekin_recipe::{EvalStage, Metric, Part};
use ramekin_slots::{Decoder, KvPolicy, Mode, Objective, Rows};
use ramekin_store::write_atomic;
use ramekin_tape::Tape;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json, json};

use super::data;
use crate::assembly::Assembly;
use crate::blueprint::Blueprint;
use crate::generation::{Generator, Limits};
use crate::objective::{self, Figures};
use crate::run::StageContext;
use crate::step::LabelledBatch;
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
            Metric::Accuracy => "accuracy",
            Metric::Number => "number",
            Metric::Letter => "letter",
            Metric::Choice => "choice",
        })
        .collect()
}

/// Some metrics compare answers with expected ones, and others want something of the objective.
///
/// # Errors
/// If one is asked for that rows or objective do not give.
pub fn ensure_measurable(
    data: &Dataset,
    objective: &dyn Objective,
    metrics: &[Metric],
    place: &str,
) -> Result<()> {
    let tokens = objective.rows() == Rows::Tokens;
    for (metric, name, fine) in [
        (Metric::Perplexity, "perplexity", tokens),
        (Metric::ExactMatch, "exact_match", tokens),
        (Metric::Number, "number", tokens),
        (Metric::Letter, "letter", tokens),
        (Metric::Choice, "choice", tokens),
        (Metric::Accuracy, "accuracy", objective.accuracy().is_some()),
    ] {
        if metrics.contains(&metric) && !fine {
            let message = format!("`{name}` is nothing that this objective gives");
            return Err(blame::at(place, message, "`loss` is the objective's own".to_owned(), None));
        }
    }
    let of_answers = metrics
        .iter()
        .position(|m| matches!(m, Metric::ExactMatch | Metric::Number | Metric::Letter | Metric::Choice));
    if let Some(i) = of_answers
        && data.examples.iter().all(|x| x.reference.is_none())
    {
        let message = format!("`{}` needs rows with a prompt and a completion", names(metrics)[i]);
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
    objective: &dyn Objective,
) -> Result<(Map<String, Json>, Vec<Answer>)> {
    let mut metrics = Metrics::new(&e.metrics)?;
    let seen = Figures::default();
    if metrics.needs_loss() || metrics.needs_accuracy() {
        let (sum, over) = sum(assembly, data, e, objective, &seen)?;
        metrics.add_loss(sum, over as u64);
        if objective.is_cross_entropy() {
            metrics.add_cross_entropy(sum, over as u64);
        }
        if let Some(share) = objective.accuracy().and_then(|name| seen.mean(name)) {
            metrics.add_accuracy(share, 1.0);
        }
    }
    if metrics.needs_cross_entropy() && !objective.is_cross_entropy() {
        let plain = parts::objective(&Part::of("sft"))?;
        let (sum, over) = sum(assembly, data, e, &*plain, &Figures::default())?;
        metrics.add_cross_entropy(sum, over as u64);
    }
    let mut answers = Vec::new();
    if metrics.needs_answers() {
        answers = answer(assembly, data, e, &mut metrics)?;
    }
    let mut figures = metrics.finish();
    for (name, x) in seen.means().into_iter().filter(|(n, _)| Some(*n) != objective.accuracy()) {
        figures.insert(name.to_owned(), json!(x));
    }
    Ok((figures, answers))
}

/// What the objective's loss over all rows is the mean of: a sum and over how much.
fn sum(
    assembly: &Assembly,
    data: &Dataset,
    e: &Evaluation,
    objective: &dyn Objective,
    seen: &Figures,
) -> Result<(f64, f64)> {
    let rows = &data.rows[..e.max_rows.unwrap_or(usize::MAX).min(data.rows.len())];
    let chunk = e.rows.max(1);
    let batch = |rows: &[Row]| LabelledBatch::new(Batch::of_rows(data, rows));
    let mut totals: Vec<f64> = Vec::new();
    for rows in rows.chunks(chunk) {
        let counts = objective::totals(objective, &[batch(rows)]);
        totals.resize(counts.len(), 0.0);
        totals.iter_mut().zip(counts).for_each(|(t, c)| *t += c);
    }
    // A mean of one kind of summand is formed at the end; of several it comes out of the runs themselves.
    let over = totals.first().copied().unwrap_or(0.0);
    let one = [1.0];
    let (scaled, whole) = if totals.len() == 1 { (&one[..], 1.0) } else { (&totals[..], over) };
    let mut rises = Rises::of(assembly);
    let mut sum = 0.0;
    for rows in rows.chunks(chunk) {
        if !rises.worth(rows.iter().map(Row::len).sum()) {
            continue;
        }
        let found = objective::loss(
            objective,
            assembly,
            None,
            &batch(rows),
            scaled,
            &Tape::off(),
            Mode::inference(),
        )?;
        sum += found.value.array().scalar()?;
        seen.add(found.figures);
    }
    Ok((sum * whole, over))
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
        let results = generator.run(&prompts, &limits, &mut |_, _| {})?.ids;
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

/// The stage's objective, in its place.
fn joined(assembly: &mut Assembly, s: &EvalStage, plan: &Blueprint) -> Result<Box<dyn Objective>> {
    let mut objective = parts::objective(&s.objective)?;
    let place = &s.objective.path;
    parts::placed(&s.objective, objective::join(assembly, plan, &mut *objective, place, false))?;
    if s.metrics.contains(&Metric::ExactMatch) {
        let others = parts::decoder(&s.decode)?.models();
        parts::placed(&s.decode, objective::companions(assembly, plan, others, &s.decode.path))?;
    }
    Ok(objective)
}

/// Rows whose loss an `eval` stage takes together.
const ROWS: usize = 16;

/// The stage's bill.
pub fn bill(name: &str, index: usize, s: &EvalStage, plan: &Blueprint) -> Result<Bill> {
    let place = &format!("stage.{index}.metrics");
    let evaluation = evaluation(s)?;
    let settings = parts::data_settings(&s.data)?;
    let longest = settings.preparation().map_or(1024, |p| p.max_length);
    bill::inference(name, plan, ROWS * longest, &|assembly| {
        let objective = joined(assembly, s, plan)?;
        if data::is_small(&settings, &plan.base_dir) {
            let data = data::load(assembly, &s.data, &plan.base_dir, objective.rows())?;
            objective::check_targets(&data, &*objective, &s.data)?;
            ensure_measurable(&data, &*objective, &s.metrics, place)?;
            parts::placed(&s.kv, evaluate(assembly, &data, &evaluation, &*objective)).map(drop)
        } else {
            bill::forward(assembly, ROWS * longest)
        }
    })
}

/// Runs the stage.
pub fn run(cx: &mut StageContext<'_>, s: &EvalStage, plan: &Blueprint) -> Result<Json> {
    let mut assembly = plan.assemble(false)?;
    let objective = joined(&mut assembly, s, plan)?;
    let data = data::load(&assembly, &s.data, &plan.base_dir, objective.rows())?;
    objective::check_targets(&data, &*objective, &s.data)?;
    ensure_measurable(&data, &*objective, &s.metrics, &format!("stage.{}.metrics", cx.index))?;
    let begun = Instant::now();
    let (mut figures, answers) =
        parts::placed(&s.kv, evaluate(&assembly, &data, &evaluation(s)?, &*objective))?;
    let seconds = begun.elapsed().as_secs_f64();
    write_answers(&cx.dir, &answers)?;
    ramekin_core::say!("  {}", crate::journal::words(&figures));
    figures.insert("seconds".to_owned(), json!(seconds));
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
