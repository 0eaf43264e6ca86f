//! What a training stage writes while it runs, and the run's report page.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use ramekin_core::{Usage, meter, units};
use ramekin_plan::Share;
use ramekin_recipe::Part;
use ramekin_report::{
    Check, Console, EvalLine, EventWriter, Figure, Line, Mem, MetricsWriter, Outcome, Progress, ReportData,
    Sample, StageData, StepLine, read_metrics, write_report,
};
use ramekin_slots::{Track, TrackContext};
use serde::Serialize;
use serde_json::{Map, Value as Json, json};

use crate::parts;
use crate::run::{Options, RunOutcome};
use crate::step::StepReport;

/// Metrics, TensorBoard events and progress of one stage.
pub struct Journal {
    stage: usize,
    metrics: MetricsWriter,
    events: EventWriter,
    progress: Progress,
    total: u64,
    /// Steps whose evaluation the file has already, from before this process.
    evaluated: Vec<u64>,
    last_loss: Option<f64>,
    began: Instant,
    seen: usize,
    log_every: u64,
    peak: u64,
    at_peak: Usage,
    tracks: Vec<(String, Box<dyn Track>)>,
    /// What other ranks held at the peak of their last step.
    others: Share,
}

impl Journal {
    /// Opens the run's files; what a run that is resumed wrote after step `after` goes.
    pub fn open(
        out: &Path,
        stage: usize,
        label: &str,
        after: u64,
        total: u64,
        log_every: u64,
    ) -> Result<Self> {
        let file = out.join("metrics.jsonl");
        let mut metrics = MetricsWriter::open(&file)?;
        metrics.truncate_after(stage, after)?;
        let (mut evaluated, mut last_loss) = (Vec::new(), None);
        for line in read_metrics(&file)?.iter().filter(|l| l.at().0 == stage) {
            match line {
                Line::Step(l) => last_loss = Some(l.loss),
                Line::Eval(l) => evaluated.push(l.step),
            }
        }
        Ok(Journal {
            stage,
            metrics,
            events: EventWriter::create(out)?,
            progress: Progress::new(Console::detect(), label, total),
            total,
            evaluated,
            last_loss,
            began: Instant::now(),
            seen: 0,
            log_every: log_every.max(1),
            peak: 0,
            at_peak: Usage::default(),
            tracks: Vec::new(),
            others: Share::default(),
        })
    }

    /// Lets parts know of every line from here on.
    ///
    /// # Errors
    /// If one cannot begin.
    pub fn track(&mut self, parts: &[Part], cx: &TrackContext<'_>) -> Result<()> {
        for part in parts {
            let mut track = parts::track(part)?;
            track.begin(cx).with_context(|| format!("`track/{}`", part.kind))?;
            self.tracks.push((part.kind.clone(), track));
        }
        Ok(())
    }

    /// A track that fails is let go; what is trained does not hang on it.
    fn tell(&mut self, line: &impl Serialize) -> Result<()> {
        if self.tracks.is_empty() {
            return Ok(());
        }
        let line = serde_json::to_value(line)?;
        let mut all = std::mem::take(&mut self.tracks);
        all.retain_mut(|(kind, track)| {
            let told = track.line(&line);
            if let Err(e) = &told {
                self.say(&format!("`track/{kind}` ends here: {e:#}"));
            }
            told.is_ok()
        });
        self.tracks = all;
        Ok(())
    }

    /// Says something above the progress.
    pub fn say(&self, text: &str) {
        self.progress.line(&format!("  {text}"));
    }

    /// Notes step number `step`, which began at `begun`.
    pub fn step(&mut self, step: u64, r: &StepReport, begun: Instant) -> Result<()> {
        let meter = meter::current();
        self.observe();
        self.seen += r.tokens;
        let line = StepLine {
            stage: self.stage,
            step,
            loss: r.loss,
            lr: r.lr,
            grad_norm: r.grad_norm,
            tokens: r.tokens as u64,
            tokens_per_s: r.tokens as f64 / begun.elapsed().as_secs_f64().max(1e-9),
            mem: Mem::new(&self.others.at_peak.plus(&meter.at_peak()), self.peak, meter::resident().0),
            extra: r.figures.iter().map(|(n, x)| ((*n).to_owned(), json!(x))).collect(),
        };
        self.metrics.step(&line)?;
        self.events.step(step, &line)?;
        self.tell(&line)?;
        self.last_loss = Some(r.loss);
        if step.is_multiple_of(self.log_every) || step == self.total {
            let rate = self.seen as f64 / self.began.elapsed().as_secs_f64().max(1e-9);
            self.progress.update(step, &format!("loss {:.4}  {rate:.0} tokens/s", r.loss));
        }
        Ok(())
    }

    /// Notes how high the meter has been.
    pub fn observe(&mut self) {
        let meter = meter::current();
        let peak = meter.peak() + self.others.peak;
        if peak > self.peak {
            self.peak = peak;
            self.at_peak = self.others.at_peak.plus(&meter.at_peak());
        }
    }

    /// Notes what the other ranks held in the step that has just ended.
    pub fn others(&mut self, others: Share) {
        self.others = others;
    }

    /// The loss of the last step, whether this process took it or one before.
    pub fn last_loss(&self) -> Option<f64> {
        self.last_loss
    }

    /// Notes an evaluation after `step` (0: before the first), once: a run that is
    /// resumed may come by here again, with the same figures.
    pub fn eval(&mut self, step: u64, found: &Map<String, Json>) -> Result<()> {
        self.observe();
        let line = EvalLine { stage: self.stage, step, eval: found.clone() };
        if !self.evaluated.contains(&step) {
            self.metrics.eval(&line)?;
            self.events.eval(step, &line)?;
            self.tell(&line)?;
        }
        self.say(&format!("eval at step {step}: {}", words(found)));
        Ok(())
    }

    /// Ends the progress; the largest total that the meter saw, what was alive
    /// at it, and tokens a second over all.
    pub fn finish(mut self) -> (u64, Usage, f64) {
        for (kind, mut track) in std::mem::take(&mut self.tracks) {
            if let Err(e) = track.end() {
                self.say(&format!("`track/{kind}`: {e:#}"));
            }
        }
        let rate = self.seen as f64 / self.began.elapsed().as_secs_f64().max(1e-9);
        self.progress.finish(&format!("{rate:.0} tokens/s"));
        (self.peak, self.at_peak, rate)
    }
}

/// `loss 0.2432, exact_match 0.94`.
pub fn words(found: &Map<String, Json>) -> String {
    let value = |v: &Json| v.as_f64().map_or_else(|| v.to_string(), |x| format!("{x:.4}"));
    found.iter().map(|(k, v)| format!("{k} {}", value(v))).collect::<Vec<_>>().join(", ")
}

/// Writes `report.html` from what the stages left.
pub fn report(
    name: &str,
    options: &Options,
    outcome: &RunOutcome,
    ended: Outcome,
    seconds: f64,
) -> Result<()> {
    let lines = read_metrics(options.out.join("metrics.jsonl")).unwrap_or_default();
    let mut data = ReportData {
        name: name.to_owned(),
        outcome: ended,
        seconds,
        recipe: options.resolved.clone(),
        ..ReportData::default()
    };
    for (index, (stage, figures)) in outcome.stages.iter().enumerate() {
        let kind = stage.split_once('-').map_or(stage.as_str(), |(_, k)| k);
        let mut part = StageData { kind: kind.to_owned(), ..StageData::default() };
        for line in lines.iter().filter(|l| l.at().0 == index) {
            match line {
                Line::Step(l) => part.steps.push(l.clone()),
                Line::Eval(l) => part.evals.push(l.clone()),
            }
        }
        fill(&mut part, figures);
        data.figures.extend(headline(figures));
        data.stages.push(part);
    }
    write_report(options.out.join("report.html"), &data)
}

fn fill(part: &mut StageData, figures: &Json) {
    let usage = |key: &str| serde_json::from_value::<Usage>(figures[key].clone()).ok();
    let number = |key: &str| figures[key].as_u64().unwrap_or(0);
    part.planned = usage("planned").map(|u| Mem::new(&u, number("planned_peak"), 0));
    part.measured = usage("measured").map(|u| Mem::new(&u, number("measured_peak"), number("peak_rss")));
    let links = |key: &str| serde_json::from_value(figures[key].clone()).unwrap_or_default();
    part.planned_traffic = links("planned_traffic");
    part.measured_traffic = links("measured_traffic");
    part.budget = figures["budget"].as_u64();
    let list = |key: &str| figures[key].as_array().cloned().unwrap_or_default();
    let text = |v: &Json| v.as_str().map(str::to_owned);
    part.audit = list("audit")
        .iter()
        .map(|c| Check {
            name: text(&c["name"]).unwrap_or_default(),
            passed: true,
            detail: text(&c["result"]).unwrap_or_default(),
        })
        .collect();
    part.samples = list("samples")
        .iter()
        .map(|s| Sample {
            prompt: text(&s["prompt"]).unwrap_or_default(),
            expected: text(&s["expected"]),
            before: text(&s["before"]),
            after: text(&s["completion"]),
            before_right: s["before_right"].as_bool(),
            after_right: s["right"].as_bool(),
        })
        .collect();
    part.table = serde_json::from_value(figures["table"].clone()).unwrap_or_default();
    part.notes.extend(figures["note"].as_str().map(str::to_owned));
    part.notes.extend(compressed(figures));
    if let Some(relative) = figures["relative"].as_f64() {
        let what = if figures["method"].is_string() { "the merge" } else { "base + adapter" };
        part.notes.push(format!(
            "the merged model, reloaded from disk, equals {what} within {relative:.1e} of the largest logit"
        ));
    }
}

/// What a compress stage says of itself.
fn compressed(figures: &Json) -> Option<String> {
    let number = |key: &str| figures[key].as_f64();
    Some(format!(
        "loss on the calibration samples {:.4} → {:.4}; {} → {} parameters, {} → {} of weights",
        number("loss_before")?,
        number("loss_after")?,
        units::count(figures["parameters_before"].as_u64()?),
        units::count(figures["parameters_after"].as_u64()?),
        units::bytes(figures["bytes_before"].as_u64()?),
        units::bytes(figures["bytes_after"].as_u64()?),
    ))
}

/// Metrics before and after, for the top of the page, which shows the held-out loss of a
/// training by itself.
fn headline(figures: &Json) -> Vec<Figure> {
    let Some(after) = figures["eval"].as_object() else { return Vec::new() };
    after
        .iter()
        .filter(|(name, _)| *name != "loss" || !figures["eval_before"]["loss"].is_number())
        .filter_map(|(name, value)| {
            let show = |x: f64| {
                if name == "exact_match" { format!("{:.0} %", 100.0 * x) } else { format!("{x:.3}") }
            };
            let now = show(value.as_f64()?);
            let text = match figures["eval_before"][name].as_f64() {
                Some(then) => format!("{} → {now}", show(then)),
                None => now,
            };
            Some(Figure::new(name.replace('_', " "), text, "held-out rows"))
        })
        .collect()
}
