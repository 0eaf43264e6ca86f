//! `kind = "bench"`: variants of a recipe side by side, planned and measured.
//!
//! Every variant is a run in a folder of its own, `variants/NN-R`; what is done is read again, so an
//! interrupted bench goes on where it was. A variant that fails is a row that says so.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::Result;
use ramekin_core::{BadRecipe, Category, Traffic, Usage, units};
use ramekin_plan::Bill;
use ramekin_recipe::{BenchStage, setting};
use ramekin_report::{Line, read_metrics};
use ramekin_store::write_atomic;
use serde::Serialize;
use serde_json::{Value as Json, json};

use super::tried::{Tried, columns};
use crate::machine;
use crate::run::StageContext;

/// How the table is read.
const UNITS: &str = "MiB at the peak; host and disk: MiB over the link in a step";

/// What a variant's stage held and did; bytes, tokens a second.
#[derive(Clone, Debug, Default, Serialize)]
struct Figures {
    peak: u64,
    /// At the peak; a stage that tells no categories leaves them at 0.
    at_peak: Usage,
    /// A step's.
    traffic: Traffic,
    tokens_per_s: Option<f64>,
}

/// A row of the table.
#[derive(Clone, Debug, Serialize)]
struct Row {
    variant: String,
    set: BTreeMap<String, Json>,
    planned: Figures,
    measured: Option<Figures>,
    /// (largest − smallest) ÷ median of tokens a second over rounds.
    spread: Option<f64>,
    fault: Option<String>,
}

/// The variants as `K=V`, those before included where they stand on each other.
fn overrides(s: &BenchStage) -> Vec<Vec<String>> {
    let mut all: Vec<Vec<String>> = Vec::new();
    for v in &s.variant {
        let mut these = all.last().filter(|_| s.cumulative).cloned().unwrap_or_default();
        these.extend(v.set.iter().map(|(key, value)| setting(key, value)));
        all.push(these);
    }
    all
}

/// The recipe of variant `i` of stage `index`.
fn load(index: usize, s: &BenchStage, i: usize, overrides: &[String], base_dir: &Path) -> Result<Tried> {
    let tried = Tried::load((index, "bench"), &s.recipe, base_dir, overrides)
        .map_err(|e| e.context(format!("variant `{}`", s.variant[i].name)))?;
    let kinds = tried.kinds();
    if s.stage as usize >= kinds.len() {
        let title = format!("`{}` has no stage {}", s.recipe, s.stage);
        let named: Vec<String> = kinds.iter().enumerate().map(|(i, kind)| format!("{i} ({kind})")).collect();
        let label = format!("it has {}", named.join(", "));
        return Err(BadRecipe::new(title).at(format!("stage.{index}.stage"), label).into());
    }
    Ok(tried)
}

/// The bill of each variant's stage, under the variant's name.
pub fn bills(index: usize, s: &BenchStage, base_dir: &Path) -> Result<Vec<Bill>> {
    let each = overrides(s).into_iter().enumerate().map(|(i, set)| {
        let bills = load(index, s, i, &set, base_dir)?.plan()?;
        let bill = bills.into_iter().nth(s.stage as usize).unwrap_or_default();
        Ok(Bill { stage: format!("{index}-bench, {}: {}", s.variant[i].name, bill.stage), ..bill })
    });
    each.collect()
}

/// Runs the stage.
pub fn run(cx: &mut StageContext<'_>, s: &BenchStage) -> Result<Json> {
    let sets = overrides(s);
    let bills = bills(cx.index, s, &cx.options.base_dir)?;
    let rate = machine::operations_per_second();
    let mut rows: Vec<Row> = bills.iter().zip(&s.variant).map(|(b, v)| planned(b, v, rate)).collect();
    let mut speeds: Vec<Vec<f64>> = vec![Vec::new(); rows.len()];
    for round in 0..s.rounds {
        for (i, set) in sets.iter().enumerate().filter(|(i, _)| rows[*i].fault.is_none()).collect::<Vec<_>>()
        {
            let of =
                if s.rounds > 1 { format!(", round {} of {}", round + 1, s.rounds) } else { String::new() };
            ramekin_core::say!("variant {} of {}: {}{of}", i + 1, rows.len(), rows[i].variant);
            match cook(cx, s, i, round, set) {
                Ok((found, speed)) => {
                    speeds[i].extend(speed);
                    let most = rows[i].measured.take().filter(|before| before.peak > found.peak);
                    rows[i].measured = Some(most.unwrap_or(found));
                }
                // What does not fit or fails is a result; a mistake in the recipe is everybody's.
                Err(e) if matches!(ramekin_core::exit_code(&e), 1 | 3) => {
                    ramekin_core::say!("  variant failed: {e:#}");
                    rows[i].fault = Some(format!("{e:#}"));
                }
                Err(e) => return Err(e.context(format!("variant `{}`", rows[i].variant))),
            }
        }
    }
    for (row, speeds) in rows.iter_mut().zip(&mut speeds) {
        let Some(median) = median(speeds) else { continue };
        if let Some(m) = &mut row.measured {
            m.tokens_per_s = Some(median);
        }
        if let [first, .., last] = speeds[..] {
            row.spread = Some((last - first) / median);
        }
    }
    let cells = cells(&rows);
    let mut text = columns(&cells, 2);
    let _ = writeln!(text, "  {UNITS}");
    for row in rows.iter().filter(|r| r.fault.is_some()) {
        let _ = writeln!(text, "  {}: {}", row.variant, row.fault.as_deref().unwrap_or_default());
    }
    ramekin_core::say!("{}", text.trim_end());
    write_atomic(cx.dir.join("bench.txt"), text.as_bytes())?;
    let lines = rows.iter().try_fold(String::new(), |text, row| {
        Ok::<_, serde_json::Error>(text + &serde_json::to_string(row)? + "\n")
    })?;
    write_atomic(cx.dir.join("bench.jsonl"), lines.as_bytes())?;
    Ok(json!({
        "variants": rows,
        "operations_per_second": rate,
        "threads": rayon::current_num_threads(),
        "failed": rows.iter().filter(|r| r.fault.is_some()).count(),
        "table": cells,
        "note": UNITS,
    }))
}

/// A row before anything has run.
fn planned(bill: &Bill, variant: &ramekin_recipe::Variant, rate: f64) -> Row {
    let tokens_per_s = (bill.step_flops > 0.0).then(|| bill.step_tokens as f64 * rate / bill.step_flops);
    Row {
        variant: variant.name.clone(),
        set: variant.set.clone(),
        planned: Figures { peak: bill.peak, at_peak: bill.at_peak, traffic: bill.traffic, tokens_per_s },
        measured: None,
        spread: None,
        fault: None,
    }
}

/// Runs a variant once, or reads what it left; its figures and tokens a second.
fn cook(
    cx: &StageContext<'_>,
    s: &BenchStage,
    i: usize,
    round: u64,
    set: &[String],
) -> Result<(Figures, Option<f64>)> {
    let out = cx.dir.join("variants").join(format!("{i:02}-{round}"));
    let tried = load(cx.index, s, i, set, &cx.options.base_dir)?;
    let outcome = tried.cook(cx, out.clone())?;
    let figures = outcome.stages.values().nth(s.stage as usize).unwrap_or(&Json::Null);
    let found = Figures {
        peak: figures["measured_peak"].as_u64().unwrap_or(0),
        at_peak: serde_json::from_value(figures["measured"].clone()).unwrap_or_default(),
        traffic: serde_json::from_value(figures["measured_traffic"].clone()).unwrap_or_default(),
        tokens_per_s: None,
    };
    let lines = read_metrics(out.join("metrics.jsonl")).unwrap_or_default();
    // The first step makes the optimizer's state and brings everything in.
    let steps = lines.iter().filter_map(|l| match l {
        Line::Step(l) if l.stage as u64 == s.stage && l.step > 1 => Some(l.tokens_per_s),
        _ => None,
    });
    let mut steps: Vec<f64> = steps.collect();
    Ok((found, median(&mut steps).or_else(|| figures["tokens_per_s"].as_f64())))
}

/// The middle one of all, which come sorted.
fn median(all: &mut [f64]) -> Option<f64> {
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied()
}

/// Two lines a variant, planned and measured; columns that are 0 everywhere are left out.
fn cells(rows: &[Row]) -> Vec<Vec<String>> {
    let sides = |r: &Row| std::iter::once(r.planned.clone()).chain(r.measured.clone()).collect::<Vec<_>>();
    let any = |f: &dyn Fn(&Figures) -> u64| rows.iter().flat_map(sides).any(|x| f(&x) > 0);
    let used: Vec<Category> = Category::ALL.into_iter().filter(|c| any(&|f| f.at_peak.get(*c))).collect();
    let links: Vec<usize> = (0..3).filter(|i| any(&|f| over(f, *i))).collect();
    let mut head = vec!["variant".to_owned(), String::new(), "peak".to_owned()];
    head.extend(used.iter().map(|c| c.name().to_owned()));
    head.extend(links.iter().map(|i| Traffic::default().links()[*i].0.to_owned()));
    head.push("tokens/s".to_owned());
    let line = |name: &str, side: &str, f: &Figures, spread: Option<f64>| {
        let mut row = vec![name.to_owned(), side.to_owned(), mib(f.peak)];
        row.extend(used.iter().map(|c| mib(f.at_peak.get(*c))));
        row.extend(links.iter().map(|i| mib(over(f, *i))));
        let speed = f.tokens_per_s.map_or_else(|| "-".to_owned(), |x| units::count(x.round() as u64));
        row.push(speed + &spread.map_or_else(String::new, |s| format!(" ±{:.0} %", 50.0 * s)));
        row
    };
    let mut cells = vec![head];
    for r in rows {
        cells.push(line(&r.variant, "planned", &r.planned, None));
        match &r.measured {
            Some(m) => cells.push(line("", "measured", m, r.spread)),
            None => {
                let width = cells[0].len();
                let mut row = vec![String::new(), "failed".to_owned()];
                row.resize(width, "-".to_owned());
                cells.push(row);
            }
        }
    }
    cells
}

/// Bytes over a link, both ways.
fn over(f: &Figures, link: usize) -> u64 {
    let link = f.traffic.links()[link].1;
    link.sent + link.fetched
}

/// Mebibytes with a digit behind the point; nothing is a dash.
fn mib(n: u64) -> String {
    if n == 0 { "-".to_owned() } else { format!("{:.1}", n as f64 / f64::from(1 << 20)) }
}
