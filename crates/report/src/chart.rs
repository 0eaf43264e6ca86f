//! Charts as inline SVG. Colours are CSS variables, so that one drawing serves light and dark.

use std::fmt::Write;

use crate::scale::{Axis, smooth, thin};

/// A drawing's size in CSS pixels; texts keep their size, so narrow screens get drawings of their own.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Width.
    pub width: f64,
    /// Height.
    pub height: f64,
}

/// A line over steps.
#[derive(Clone, Debug, Default)]
pub struct LineChart<'a> {
    /// What it shows, for readers who cannot see it.
    pub title: &'a str,
    /// Step and value; NaN leaves a gap.
    pub points: Vec<(f64, f64)>,
    /// Whether a smoothed line is drawn over a faint raw one.
    pub smoothed: bool,
    /// Points of a second, rare series, drawn as marks joined by a line.
    pub marks: Vec<(f64, f64)>,
    /// Whether the vertical axis begins at zero.
    pub from_zero: bool,
}

/// A line over areas.
#[derive(Clone, Debug)]
pub struct Overlay<'a> {
    /// Step and value.
    pub points: Vec<(f64, f64)>,
    /// CSS class of line and label.
    pub class: &'a str,
    /// What stands at its end, plain text.
    pub label: String,
}

/// Areas on top of each other over steps.
#[derive(Clone, Debug, Default)]
pub struct AreaChart<'a> {
    /// What it shows, for readers who cannot see it.
    pub title: &'a str,
    /// Names of the layers, from the bottom; layer `n` is filled with `var(--NAME)`.
    pub layers: Vec<&'a str>,
    /// Step, and a value for each layer.
    pub rows: Vec<(f64, Vec<f64>)>,
    /// Lines over the areas.
    pub lines: Vec<Overlay<'a>>,
    /// A horizontal level: value, CSS class, label.
    pub levels: Vec<(f64, &'a str, String)>,
    /// A marked point with its label.
    pub mark: Option<((f64, f64), String)>,
}

/// The plotting area and its axes.
struct Frame {
    size: Size,
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
    x: Axis,
    y: Axis,
}

/// About the width of a character of the 11 px labels.
const CHAR: f64 = 6.3;

impl Frame {
    fn new(size: Size, steps: (f64, f64), y: Axis) -> Frame {
        let widest = y.labels.iter().map(|l| l.chars().count()).max().unwrap_or(1);
        let left = 10.0 + CHAR * widest as f64;
        let right = size.width - 14.0;
        // A label and its distance to the next need some eight characters.
        let count = ((right - left) / (8.0 * CHAR)).clamp(2.0, 10.0) as usize;
        let x = Axis::steps(steps.0, steps.1, count);
        Frame { size, left, right, top: 8.0, bottom: size.height - 24.0, x, y }
    }

    fn x(&self, step: f64) -> f64 {
        self.left + (self.right - self.left) * self.x.at(step)
    }

    fn y(&self, value: f64) -> f64 {
        self.bottom - (self.bottom - self.top) * self.y.at(value)
    }

    fn buckets(&self) -> usize {
        ((self.right - self.left) / 1.5) as usize
    }

    /// The opening tag, the grid and the labels of both axes.
    fn open(&self, title: &str) -> String {
        let Size { width, height } = self.size;
        let mut out = format!(
            "<svg viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" role=\"img\" \
             aria-label=\"{title}\">\n<g class=\"axis\">"
        );
        let (l, r, b) = (self.left, self.right, self.bottom);
        for (tick, label) in self.y.ticks.iter().zip(&self.y.labels) {
            let y = self.y(*tick);
            let _ = write!(
                out,
                "<path d=\"M{l:.1} {y:.1}H{r:.1}\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
                l - 6.0,
                y + 3.8
            );
        }
        for (tick, label) in self.x.ticks.iter().zip(&self.x.labels) {
            let x = self.x(*tick);
            // The last label may reach over the edge by half its width.
            let half = CHAR * label.chars().count() as f64 / 2.0;
            let at = x.min(width - half - 1.0);
            let _ = write!(
                out,
                "<path class=\"tick\" d=\"M{x:.1} {b:.1}v4\"/><text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{label}</text>",
                b + 16.0
            );
        }
        out.push_str("</g>\n");
        out
    }

    /// Points joined by lines, in pieces where there are gaps; single points become dots.
    fn line(&self, points: &[(f64, f64)], class: &str) -> String {
        let (mut path, mut dots) = (String::new(), String::new());
        for piece in points.split(|p| !p.1.is_finite()) {
            if let [(x, y)] = piece {
                let (x, y) = (self.x(*x), self.y(*y));
                let _ = write!(dots, "<circle class=\"dot {class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\"/>");
            } else {
                for (i, (x, y)) in piece.iter().enumerate() {
                    let command = if i == 0 { 'M' } else { 'L' };
                    let _ = write!(path, "{command}{:.1} {:.1}", self.x(*x), self.y(*y));
                }
            }
        }
        if !path.is_empty() {
            path = format!("<path class=\"line {class}\" d=\"{path}\"/>");
        }
        format!("{path}{dots}\n")
    }
}

fn bounds(values: impl Iterator<Item = f64>) -> (f64, f64) {
    values
        .filter(|v| v.is_finite())
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(lo, hi), v| (lo.min(v), hi.max(v)))
}

fn rows_of_ticks(size: Size) -> usize {
    (size.height / 48.0).clamp(3.0, 7.0) as usize
}

/// Draws a line chart; without any finite point an empty text.
pub fn line_chart(size: Size, chart: &LineChart) -> String {
    let all = || chart.points.iter().chain(&chart.marks);
    if !all().any(|p| p.1.is_finite()) {
        return String::new();
    }
    let steps = bounds(all().map(|p| p.0));
    let (mut lo, hi) = bounds(all().map(|p| p.1));
    // Near zero the axis may as well begin there.
    if chart.from_zero || (lo > 0.0 && lo < hi * 0.25) {
        lo = lo.min(0.0);
    }
    let frame = Frame::new(size, steps, Axis::new(lo, hi, rows_of_ticks(size), true));
    let mut out = frame.open(chart.title);
    let few = thin(&chart.points, frame.buckets());
    if chart.smoothed && chart.points.len() >= 8 {
        out.push_str(&frame.line(&few, "raw"));
        out.push_str(&frame.line(&thin(&smooth(&chart.points), frame.buckets()), "main"));
    } else {
        out.push_str(&frame.line(&few, "main"));
    }
    if !chart.marks.is_empty() {
        let marks = thin(&chart.marks, frame.buckets());
        if marks.iter().filter(|m| m.1.is_finite()).count() > 1 {
            out.push_str(&frame.line(&marks, "eval"));
        }
        let radius = if marks.len() > 60 { 1.6 } else { 3.5 };
        for (step, value) in marks.iter().filter(|m| m.1.is_finite()) {
            let (x, y) = (frame.x(*step), frame.y(*value));
            let told = crate::scale::short(*value);
            let _ = write!(
                out,
                "<circle class=\"mark eval\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius}\"><title>step {step}: {told}</title></circle>"
            );
        }
    }
    out.push_str("</svg>");
    out
}

/// Draws stacked areas; without any row an empty text.
pub fn area_chart(size: Size, chart: &AreaChart) -> String {
    let total = |row: &(f64, Vec<f64>)| row.1.iter().sum::<f64>();
    if chart.rows.is_empty() {
        return String::new();
    }
    let values = chart
        .rows
        .iter()
        .map(total)
        .chain(chart.lines.iter().flat_map(|l| l.points.iter().map(|p| p.1)))
        .chain(chart.levels.iter().map(|l| l.0))
        .chain(chart.mark.iter().map(|m| m.0.1));
    // Some air above, where labels stand.
    let top = bounds(values).1 * 1.08;
    let y = Axis::new(0.0, top, rows_of_ticks(size), true);
    let mut rows = tallest(&chart.rows, (size.width / 2.0) as usize, total);
    let mut lines = chart.lines.clone();
    let (mut first, mut last) = bounds(rows.iter().map(|r| r.0));
    if first == last {
        // One step is drawn as a block around it.
        (first, last) = (first - 0.5, last + 0.5);
        let row = rows[0].1.clone();
        rows = vec![(first, row.clone()), (last, row)];
        for Overlay { points, .. } in &mut lines {
            *points = points.iter().flat_map(|p| [(first, p.1), (last, p.1)]).collect();
        }
    }
    let frame = Frame::new(size, (first, last), y);
    let mut out = String::new();
    let mut below = vec![0.0; rows.len()];
    for (layer, name) in chart.layers.iter().enumerate() {
        let above: Vec<f64> =
            rows.iter().zip(&below).map(|(r, b)| b + r.1.get(layer).unwrap_or(&0.0)).collect();
        let mut path = String::new();
        let mut go = |i: usize, value: f64| {
            let command = if path.is_empty() { 'M' } else { 'L' };
            let _ = write!(path, "{command}{:.1} {:.1}", frame.x(rows[i].0), frame.y(value));
        };
        (0..rows.len()).for_each(|i| go(i, above[i]));
        (0..rows.len()).rev().for_each(|i| go(i, below[i]));
        let _ = writeln!(
            out,
            "<path class=\"area\" style=\"fill:var(--{name})\" d=\"{path}Z\"><title>{name}</title></path>"
        );
        below = above;
    }
    let mut labels = Labels::new(&frame);
    for Overlay { points, class, label } in &lines {
        out.push_str(&frame.line(&thin(points, frame.buckets()), class));
        if let Some((_, y)) = points.iter().rev().find(|p| p.1.is_finite()) {
            labels.place(frame.right - 4.0, frame.y(*y), label, class);
        }
    }
    for (value, class, label) in &chart.levels {
        let y = frame.y(*value);
        let (l, r) = (frame.left, frame.right);
        let _ = writeln!(out, "<path class=\"line {class}\" d=\"M{l:.1} {y:.1}H{r:.1}\"/>");
        labels.place(frame.right - 4.0, y, label, class);
    }
    if let Some(((step, value), label)) = &chart.mark {
        let (x, y) = (frame.x(*step), frame.y(*value));
        let _ = writeln!(out, "<circle class=\"mark peak\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\"/>");
        labels.place(x, y, label, "peak");
    }
    // The grid over the areas, so that it can be read there.
    let grid = frame.open(chart.title);
    let Some((tag, axes)) = grid.split_once('\n') else {
        return String::new();
    };
    format!("{tag}\n{out}{axes}{}</svg>", labels.text)
}

/// Of each bucket of neighbours the row with the largest total.
fn tallest(
    rows: &[(f64, Vec<f64>)],
    buckets: usize,
    total: impl Fn(&(f64, Vec<f64>)) -> f64,
) -> Vec<(f64, Vec<f64>)> {
    let size = rows.len().div_ceil(buckets.max(1)).max(1);
    let best = |part: &[(f64, Vec<f64>)]| part.iter().max_by(|a, b| total(a).total_cmp(&total(b))).cloned();
    let mut out: Vec<_> = rows.chunks(size).filter_map(best).collect();
    // The chart begins and ends where the run does.
    if let (Some(first), Some(last)) = (rows.first(), rows.last()) {
        if out.first().is_some_and(|f| f.0 > first.0) {
            out.insert(0, first.clone());
        }
        if out.last().is_some_and(|l| l.0 < last.0) {
            out.push(last.clone());
        }
    }
    out
}

/// Puts labels near their points without letting them cover each other.
struct Labels {
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
    taken: Vec<(f64, f64, f64)>,
    text: String,
}

const LINE: f64 = 14.0;

impl Labels {
    fn new(frame: &Frame) -> Labels {
        let Frame { left, right, top, bottom, .. } = *frame;
        Labels { left, right, top, bottom, taken: Vec::new(), text: String::new() }
    }

    /// `label` must be plain text; it ends at `x` if there is no room to the right of it.
    fn place(&mut self, x: f64, y: f64, label: &str, class: &str) {
        let width = CHAR * label.chars().count() as f64;
        let ends = x + 8.0 + width > self.right;
        let edge = x >= self.right - 4.0;
        let begin = match (ends, edge) {
            (false, _) => x + 8.0,
            (true, true) => x - width,
            (true, false) => x - 8.0 - width,
        };
        let begin = begin.max(self.left + 4.0);
        let near = [-5.0, 13.0];
        let far = (1..12).flat_map(|n| near.map(|o| o + if o < 0.0 { -LINE } else { LINE } * n as f64));
        let free = |base: &f64| {
            let inside = *base - 9.0 >= self.top - 2.0 && *base <= self.bottom - 2.0;
            inside
                && self.taken.iter().all(|(b, e, at)| {
                    begin + width + 4.0 < *b || *e + 4.0 < begin || (at - base).abs() >= LINE
                })
        };
        let base = near.into_iter().chain(far).map(|o| y + o).find(free).unwrap_or(y - 5.0);
        self.taken.push((begin, begin + width, base));
        // Widths are guesses, so a label at the right edge is anchored there.
        let (at, anchor) = if ends { (begin + width, "end") } else { (begin, "start") };
        let _ = writeln!(
            self.text,
            "<text class=\"label {class}\" x=\"{at:.1}\" y=\"{base:.1}\" text-anchor=\"{anchor}\">{label}</text>"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: Size = Size { width: 360.0, height: 220.0 };

    #[test]
    fn every_coordinate_is_inside() {
        for n in [1, 2, 9, 100_000] {
            let points = (0..n).map(|i| (i as f64, (i as f64 / 99.0).sin())).collect();
            let marks = vec![(0.0, 0.3)];
            let chart = LineChart { points, marks, smoothed: true, ..LineChart::default() };
            let svg = line_chart(SIZE, &chart);
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{n}: {svg}");
            assert!(svg.len() < 60_000, "{n} points make {} bytes", svg.len());
            for part in svg.split(['M', 'L']).skip(1) {
                let mut numbers = part.split(|c: char| !(c.is_ascii_digit() || c == '.' || c == '-'));
                let x: f64 = numbers.next().and_then(|t| t.parse().ok()).unwrap_or(0.0);
                assert!((0.0..=SIZE.width).contains(&x), "{x} of {n}");
            }
        }
    }

    #[test]
    fn gaps_and_nothing() {
        let chart = |points: Vec<(f64, f64)>| LineChart { points, ..LineChart::default() };
        assert_eq!(line_chart(SIZE, &chart(vec![])), "");
        assert_eq!(line_chart(SIZE, &chart(vec![(1.0, f64::NAN)])), "");
        let gap = vec![(1.0, 1.0), (2.0, 2.0), (3.0, f64::INFINITY), (4.0, 1.5)];
        let svg = line_chart(SIZE, &chart(gap));
        assert!(svg.contains("class=\"dot main\"") && svg.contains("class=\"line main\""), "{svg}");
        assert_eq!(area_chart(SIZE, &AreaChart::default()), "");
    }

    #[test]
    fn labels_keep_apart() {
        let level = |v: f64, label: &str| (v, "plan", label.to_owned());
        let chart = AreaChart {
            layers: vec!["weights"],
            rows: vec![(1.0, vec![10.0])],
            levels: vec![
                level(10.0, "plan 10.0 MiB"),
                level(10.1, "resident 10.1 MiB"),
                level(9.9, "budget"),
            ],
            mark: Some(((1.0, 10.0), "peak 10.0 MiB at step 1".to_owned())),
            ..AreaChart::default()
        };
        let svg = area_chart(SIZE, &chart);
        let mut boxes: Vec<(f64, f64, f64)> = Vec::new();
        for text in svg.split("<text class=\"label ").skip(1) {
            let attribute = |name: &str| -> f64 {
                let from = text.split(&format!("{name}=\"")).nth(1).unwrap();
                from.split('"').next().unwrap().parse().unwrap()
            };
            let label = text.split('>').nth(1).unwrap().split('<').next().unwrap();
            let width = CHAR * label.len() as f64;
            let begin = attribute("x") - if text.contains("\"end\"") { width } else { 0.0 };
            boxes.push((begin, begin + width, attribute("y")));
        }
        assert_eq!(boxes.len(), 4);
        for (i, a) in boxes.iter().enumerate() {
            for b in &boxes[..i] {
                assert!(a.1 < b.0 || b.1 < a.0 || (a.2 - b.2).abs() >= 13.9, "{a:?} {b:?}");
            }
        }
    }
}
