//! `report.html`: one file that needs no network and no script.
//!
//! Each chart is drawn twice, for wide and for narrow screens, and the style
//! sheet shows the one that fits; texts then have the same size on both.

use std::fmt::Write;
use std::path::Path;

use anyhow::Result;
use ramekin_core::{Category, units};

use crate::chart::{AreaChart, LineChart, Overlay, Size, area_chart, line_chart};
use crate::data::{Check, Figure, Outcome, ReportData, Sample, StageData};
use crate::progress::human;
use crate::scale::{short, smooth};
use crate::table::table_card;

const STYLE: &str = include_str!("report.css");

/// Writes the page whole.
///
/// # Errors
/// If the file cannot be written.
pub fn write_report(path: impl AsRef<Path>, data: &ReportData) -> Result<()> {
    ramekin_store::write_atomic(path, render(data).as_bytes())
}

/// The page as text.
pub fn render(data: &ReportData) -> String {
    let mut out = String::new();
    let name = escape(&data.name);
    let _ = write!(
        out,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <title>{name} · Ramekin</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n"
    );
    header(&mut out, data);
    for warning in &data.warnings {
        let _ = writeln!(out, "<p class=\"note warn\"><b>Note</b> {}</p>", escape(warning));
    }
    let figures: Vec<Figure> = data.figures.iter().cloned().chain(own_figures(data)).collect();
    if !figures.is_empty() {
        out.push_str("<section class=\"figures\">\n");
        for f in &figures {
            let _ = writeln!(
                out,
                "<div class=\"figure\"><span>{}</span><strong>{}</strong><small>{}</small></div>",
                escape(&f.label),
                escape(&f.value),
                escape(&f.note)
            );
        }
        out.push_str("</section>\n");
    }
    for (i, stage) in data.stages.iter().enumerate() {
        stage_section(&mut out, stage, (data.stages.len() > 1).then_some(i + 1));
    }
    if !data.recipe.is_empty() {
        let _ = write!(
            out,
            "<details class=\"card\"><summary>The recipe, with every default</summary>\n<pre class=\"code\">{}</pre></details>\n",
            escape(&data.recipe)
        );
    }
    out.push_str("</main>\n</body>\n</html>\n");
    out
}

/// Text that can stand in an element or in a quoted attribute.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' | '\t' => out.push(c),
            // Control characters and marks that turn the reading direction around.
            c if c.is_control() => out.push('\u{fffd}'),
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

fn header(out: &mut String, data: &ReportData) {
    let (class, status) = match &data.outcome {
        Outcome::Done => ("good", "done".to_owned()),
        Outcome::Running => ("warn", "running".to_owned()),
        Outcome::Interrupted => ("warn", "interrupted, state saved".to_owned()),
        Outcome::Failed(_) => ("bad", "failed".to_owned()),
    };
    let _ = writeln!(
        out,
        "<header>{MARK}<div><h1>{}</h1><p class=\"status {class}\">{status} · {}</p></div></header>",
        escape(&data.name),
        human(data.seconds)
    );
    if let Outcome::Failed(why) = &data.outcome {
        let _ = writeln!(out, "<pre class=\"note bad\">{}</pre>", escape(why));
    }
    if !data.facts.is_empty() {
        out.push_str("<dl class=\"facts\">");
        for (name, value) in &data.facts {
            let _ = write!(out, "<div><dt>{}</dt><dd>{}</dd></div>", escape(name), escape(value));
        }
        out.push_str("</dl>\n");
    }
}

/// A small dish.
const MARK: &str = "<svg class=\"dish\" viewBox=\"0 0 48 40\" aria-hidden=\"true\">\
    <path class=\"steam\" d=\"M17 10c-3-3 3-5 0-9M24 10c-3-3 3-5 0-9M31 10c-3-3 3-5 0-9\"/>\
    <path class=\"pot\" d=\"M7 19h34l-2.500 17a3 3 0 0 1-3 2.500H12.500a3 3 0 0 1-3-2.500Z\"/>\
    <path class=\"ribs\" d=\"M15 24l1 11M21 24l.4 11M27 24l-.4 11M33 24l-1 11\"/>\
    <rect class=\"rim\" x=\"4\" y=\"14\" width=\"40\" height=\"6\" rx=\"3\"/></svg>";

/// Figures that every run with steps has.
fn own_figures(data: &ReportData) -> Vec<Figure> {
    let mut out = Vec::new();
    let steps = || data.stages.iter().flat_map(|s| &s.steps);
    if let Some(stage) = data.stages.iter().rev().find(|s| !s.steps.is_empty()) {
        let raw = losses(stage);
        let first = raw.iter().find(|p| p.1.is_finite());
        if let (Some((first, from)), Some((last, to))) = (first, smooth(&raw).last()) {
            let (value, note) = if first == last {
                (short(*from), format!("step {}", whole(*last)))
            } else {
                let value = format!("{} → {}", short(*from), short(*to));
                (value, format!("step {} → {}, smoothed", whole(*first), whole(*last)))
            };
            out.push(Figure::new("training loss", value, note));
        }
        let held = held_out(stage);
        if let (Some((_, from)), Some((step, to))) = (held.first(), held.last()) {
            let value =
                if held.len() > 1 { format!("{} → {}", short(*from), short(*to)) } else { short(*to) };
            out.push(Figure::new("held-out loss", value, format!("after step {}", whole(*step))));
        }
    }
    let biggest = data.stages.iter().filter(|s| s.measured.is_some()).max_by_key(|s| peak(s));
    if let Some(stage) = biggest.filter(|s| peak(s) > 0) {
        let mut notes = Vec::new();
        if let Some(plan) = stage.planned.filter(|p| p.peak > 0) {
            notes.push(format!("plan {}", units::bytes(plan.peak)));
        }
        if let Some(budget) = stage.budget {
            notes.push(format!("budget {}", units::bytes(budget)));
        }
        out.push(Figure::new("peak memory", units::bytes(peak(stage)), notes.join(" · ")));
    }
    let mut speeds: Vec<f64> = steps().map(|s| s.tokens_per_s).filter(|t| *t > 0.0).collect();
    if !speeds.is_empty() {
        speeds.sort_by(f64::total_cmp);
        let tokens: u64 = steps().map(|s| s.tokens).sum();
        let note = format!("median; {} tokens in all", units::count(tokens));
        out.push(Figure::new("tokens per second", short(speeds[speeds.len() / 2]), note));
    }
    out
}

fn whole(step: f64) -> String {
    units::count(step as u64)
}

fn peak(stage: &StageData) -> u64 {
    stage.measured.map_or(0, |m| m.peak)
}

fn losses(stage: &StageData) -> Vec<(f64, f64)> {
    stage.steps.iter().map(|s| (s.step as f64, s.loss)).collect()
}

fn held_out(stage: &StageData) -> Vec<(f64, f64)> {
    stage.evals.iter().filter_map(|e| Some((e.step as f64, e.get("loss")?))).collect()
}

fn stage_section(out: &mut String, stage: &StageData, number: Option<usize>) {
    let kind = escape(&stage.kind);
    match number {
        Some(n) => drop(writeln!(out, "<h2><span>stage {n}</span> {kind}</h2>")),
        None => drop(writeln!(out, "<h2>{kind}</h2>")),
    }
    for note in &stage.notes {
        let _ = writeln!(out, "<p class=\"remark\">{}</p>", escape(note));
    }
    out.push_str("<div class=\"grid\">\n");
    loss_card(out, stage);
    plain_card(out, stage, "Learning rate", false, |s| s.lr);
    plain_card(out, stage, "Tokens per second", true, |s| s.tokens_per_s);
    memory_card(out, stage);
    bill_card(out, stage);
    table_card(out, "Side by side", &stage.table);
    audit_card(out, &stage.audit);
    out.push_str("</div>\n");
    samples(out, &stage.samples);
}

const WIDE: Size = Size { width: 1000.0, height: 300.0 };
const HALF: Size = Size { width: 480.0, height: 200.0 };
const NARROW: Size = Size { width: 330.0, height: 210.0 };

fn card(out: &mut String, class: &str, title: &str, legend: &str, drawings: [String; 2]) {
    let [wide, narrow] = drawings;
    if wide.is_empty() {
        return;
    }
    let _ = writeln!(
        out,
        "<figure class=\"card {class}\"><figcaption>{title}</figcaption>{legend}\
         <div class=\"wide\">{wide}</div><div class=\"narrow\">{narrow}</div></figure>"
    );
}

fn key(class: &str, text: &str) -> String {
    format!("<span class=\"key {class}\">{text}</span>")
}

fn loss_card(out: &mut String, stage: &StageData) {
    let chart = LineChart {
        title: "loss by step",
        points: losses(stage),
        smoothed: true,
        marks: held_out(stage),
        from_zero: false,
    };
    let mut legend = String::new();
    if chart.points.len() >= 8 {
        legend += &key("raw", "each step");
        legend += &key("main", "smoothed");
    } else if !chart.points.is_empty() {
        legend += &key("main", "training");
    }
    let best = chart.marks.iter().filter(|m| m.1.is_finite()).min_by(|a, b| a.1.total_cmp(&b.1));
    if let Some((step, value)) = best {
        legend += &key("eval", &format!("held out, best {} after step {}", short(*value), whole(*step)));
    }
    let lost = chart.points.iter().filter(|p| !p.1.is_finite()).count();
    if lost > 0 {
        legend += &format!("<span class=\"bad\">{lost} steps without a finite loss</span>");
    }
    let legend = format!("<p class=\"legend\">{legend}</p>");
    let drawings = [WIDE, NARROW].map(|size| line_chart(size, &chart));
    card(out, "full", "Loss <small>nats a token, by step</small>", &legend, drawings);
}

fn plain_card(
    out: &mut String,
    stage: &StageData,
    title: &str,
    smoothed: bool,
    value: impl Fn(&crate::metrics::StepLine) -> f64,
) {
    let points: Vec<_> = stage.steps.iter().map(|s| (s.step as f64, value(s))).collect();
    let chart = LineChart { title, points, smoothed, from_zero: true, ..LineChart::default() };
    let drawings = [HALF, NARROW].map(|size| line_chart(size, &chart));
    card(out, "half", &format!("{title} <small>by step</small>"), "", drawings);
}

/// The unit in which numbers of this size are read, and its bytes.
fn unit(largest: u64) -> (&'static str, f64) {
    match largest {
        n if n >= 2 << 30 => ("GiB", f64::from(1 << 30)),
        n if n >= 2 << 20 => ("MiB", f64::from(1 << 20)),
        _ => ("KiB", 1024.0),
    }
}

fn memory_card(out: &mut String, stage: &StageData) {
    let highest = stage.steps.iter().map(|s| s.mem.peak.max(s.mem.usage().total()).max(s.mem.rss));
    let (name, size) = unit(highest.max().unwrap_or(0));
    let scaled = |bytes: u64| bytes as f64 / size;
    let used: Vec<Category> =
        Category::ALL.into_iter().filter(|c| stage.steps.iter().any(|s| s.mem.usage().get(*c) > 0)).collect();
    if used.is_empty() {
        return;
    }
    let row = |s: &crate::metrics::StepLine| {
        let usage = s.mem.usage();
        (s.step as f64, used.iter().map(|c| scaled(usage.get(*c))).collect())
    };
    let rss: Vec<_> = stage.steps.iter().map(|s| (s.step as f64, scaled(s.mem.rss))).collect();
    let mut chart = AreaChart {
        title: "memory by category and step",
        layers: used.iter().map(|c| c.name()).collect(),
        rows: stage.steps.iter().map(row).collect(),
        ..AreaChart::default()
    };
    // The first step that reaches the highest peak; the peak counts on from there.
    let top = stage.steps.iter().map(|s| s.mem.peak).max().unwrap_or(0);
    let at = stage.steps.iter().find(|s| s.mem.peak == top && top > 0);
    if let Some(s) = at {
        let label = format!("peak {} at step {}", units::bytes(top), units::count(s.step));
        chart.mark = Some(((s.step as f64, scaled(top)), label));
    }
    if let Some(plan) = stage.planned.filter(|p| p.peak > 0) {
        let label = format!("plan {}", units::bytes(plan.peak));
        chart.levels.push((scaled(plan.peak), "plan", label));
    }
    // A budget far above everything would only squeeze the rest.
    if let Some(budget) = stage.budget.filter(|b| *b < 2 * top.max(1)) {
        chart.levels.push((scaled(budget), "budget", format!("budget {}", units::bytes(budget))));
    }
    if stage.steps.iter().any(|s| s.mem.rss > 0) {
        chart.lines.push(Overlay { points: rss, class: "rss", label: "resident set".to_owned() });
    }
    let mut legend: String = used
        .iter()
        .map(|c| {
            let name = c.name();
            format!("<span class=\"key box\" style=\"--box:var(--{name})\">{name}</span>")
        })
        .collect();
    if !chart.lines.is_empty() {
        legend += &key("rss", "resident set of the process");
    }
    let legend = format!("<p class=\"legend\">{legend}</p>");
    let drawings = [WIDE, NARROW].map(|size| area_chart(size, &chart));
    card(out, "full", &format!("Memory <small>{name}, by step</small>"), &legend, drawings);
}

/// The plan beside what was measured.
fn bill_card(out: &mut String, stage: &StageData) {
    let (Some(plan), Some(measured)) = (stage.planned, stage.measured) else {
        return;
    };
    out.push_str(
        "<div class=\"card wider\"><h3>The bill <small>planned and measured at the peak</small></h3>\
         <table><thead><tr><th>category</th><th>plan</th><th>measured</th><th>difference</th>\
         <th class=\"bars\"></th></tr></thead><tbody>\n",
    );
    let mut line = |name: &str, class: &str, swatch: &str, planned: u64, found: u64, largest: u64| {
        let (text, mark) = difference(planned, found);
        let width = |bytes: u64| 100.0 * (bytes as f64 / largest.max(1) as f64).min(1.0);
        let _ = writeln!(
            out,
            "<tr class=\"{class}\"><th>{swatch}{name}</th><td>{}</td><td>{}</td><td class=\"{mark}\">{text}</td>\
             <td class=\"bars\"><i style=\"width:{:.1}%\"></i><b style=\"width:{:.1}%\"></b></td></tr>",
            units::bytes(planned),
            units::bytes(found),
            width(planned),
            width(found),
        );
    };
    let largest = plan.peak.max(measured.peak);
    let (planned, found) = (plan.usage(), measured.usage());
    for category in Category::ALL {
        let (name, p, f) = (category.name(), planned.get(category), found.get(category));
        if p > 0 || f > 0 {
            let swatch = format!("<span class=\"key box\" style=\"--box:var(--{name})\"></span>");
            line(name, "", &swatch, p, f, largest);
        }
    }
    line("peak", "sum", "", plan.peak, measured.peak, largest);
    for (way, planned, found) in traffic(stage) {
        line(&way, "", "", planned, found, planned.max(found));
    }
    out.push_str("</tbody></table>");
    let mut remarks = Vec::new();
    if measured.rss > 0 {
        remarks.push(format!("resident set at its highest {}", units::bytes(measured.rss)));
    }
    if let Some(budget) = stage.budget {
        remarks.push(format!("budget {}", units::bytes(budget)));
    }
    if !remarks.is_empty() {
        let _ = write!(out, "<p class=\"remark\">{}</p>", remarks.join(" · "));
    }
    out.push_str("</div>\n");
}

/// Bytes a step over each link that was used, planned and measured.
fn traffic(stage: &StageData) -> Vec<(String, u64, u64)> {
    let links = stage.planned_traffic.links().into_iter().zip(stage.measured_traffic.links());
    let ways = links.flat_map(|((link, p), (_, m))| {
        let name = |way: &str| format!("{link}, {way} a step");
        [(name("sent"), p.sent, m.sent), (name("fetched"), p.fetched, m.fetched)]
    });
    ways.filter(|(_, p, m)| p + m > 0).collect()
}

/// How far a measured number is from the plan, and how bad that is.
fn difference(planned: u64, found: u64) -> (String, &'static str) {
    match (planned, found) {
        (0, 0) => ("–".to_owned(), ""),
        (0, _) => ("not planned".to_owned(), "warn"),
        _ => {
            let percent = 100.0 * (found as f64 - planned as f64) / planned as f64;
            let sign = if percent < -0.05 {
                "−"
            } else if percent > 0.05 {
                "+"
            } else {
                "±"
            };
            let mark = if percent.abs() <= 5.0 { "good" } else { "warn" };
            (format!("{sign}{:.1} %", percent.abs()), mark)
        }
    }
}

fn audit_card(out: &mut String, audit: &[Check]) {
    if audit.is_empty() {
        return;
    }
    let failed = audit.iter().filter(|c| !c.passed).count();
    let told = if failed == 0 { "all passed".to_owned() } else { format!("{failed} failed") };
    let _ = write!(
        out,
        "<div class=\"card rest\"><h3>The audit <small>before step 1: {told}</small></h3><ul class=\"checks\">"
    );
    for check in audit {
        let (class, told) = if check.passed { ("good", "passed") } else { ("bad", "failed") };
        let _ = write!(
            out,
            "<li class=\"{class}\" title=\"{told}\"><b>{}</b> {}</li>",
            escape(&check.name),
            escape(&check.detail)
        );
    }
    out.push_str("</ul></div>\n");
}

fn samples(out: &mut String, samples: &[Sample]) {
    if samples.is_empty() {
        return;
    }
    out.push_str("<section class=\"samples\"><h3>Samples <small>before and after</small></h3>\n");
    for sample in samples {
        let _ =
            write!(out, "<div class=\"card sample\"><pre class=\"prompt\">{}</pre>", escape(&sample.prompt));
        out.push_str("<div class=\"pair\">");
        answer(out, "before", sample.before.as_deref(), sample.before_right);
        answer(out, "after", sample.after.as_deref(), sample.after_right);
        out.push_str("</div>");
        if let Some(expected) = &sample.expected {
            let _ = write!(
                out,
                "<div class=\"expected\"><span>expected</span><pre>{}</pre></div>",
                escape(expected)
            );
        }
        out.push_str("</div>\n");
    }
    out.push_str("</section>\n");
}

fn answer(out: &mut String, name: &str, text: Option<&str>, right: Option<bool>) {
    let Some(text) = text else { return };
    let (class, verdict) = match right {
        Some(true) => ("right", "right"),
        Some(false) => ("wrong", "wrong"),
        None => ("", ""),
    };
    let text = if text.trim().is_empty() { "<i>nothing</i>".to_owned() } else { escape(text) };
    let _ = write!(
        out,
        "<div class=\"answer {class}\"><span>{name} <em>{verdict}</em></span><pre>{text}</pre></div>"
    );
}

#[cfg(test)]
#[path = "html_tests.rs"]
mod tests;
