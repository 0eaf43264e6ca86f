//! Points, one of them marked, as an SVG picture of its own.

use std::fmt::Write as _;

use crate::html::escape;
use crate::scale::Axis;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 64.0;
const BOTTOM: f64 = 36.0;
const TOP: f64 = 36.0;
const RIGHT: f64 = 16.0;

/// `points` with a title; number `marked` is drawn larger.
pub fn scatter(title: &str, points: &[(f64, f64)], marked: usize) -> String {
    let ends = |of: fn(&(f64, f64)) -> f64| {
        let lo = points.iter().map(of).fold(f64::INFINITY, f64::min);
        (lo, points.iter().map(of).fold(f64::NEG_INFINITY, f64::max))
    };
    let ((x0, x1), (y0, y1)) = (ends(|p| p.0), ends(|p| p.1));
    let (across, axis) = (Axis::steps(x0, x1, 8), Axis::new(y0, y1, 5, true));
    let x = |v: f64| LEFT + across.at(v) * (WIDTH - LEFT - RIGHT);
    let y = |v: f64| HEIGHT - BOTTOM - axis.at(v) * (HEIGHT - BOTTOM - TOP);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"{LEFT}\" y=\"20\" font-size=\"14\">{}</text>\n",
        escape(title)
    );
    for (tick, label) in axis.ticks.iter().zip(&axis.labels) {
        let at = y(*tick);
        let _ = writeln!(
            out,
            "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#555\">{}</text>",
            WIDTH - RIGHT,
            LEFT - 6.0,
            at + 4.0,
            escape(label)
        );
    }
    for (i, (px, py)) in points.iter().enumerate() {
        let (radius, fill) = if i == marked { (6, "#c2410c") } else { (4, "#2563eb") };
        let _ = writeln!(
            out,
            "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"{radius}\" fill=\"{fill}\"><title>{px}: {py}</title></circle>",
            x(*px),
            y(*py)
        );
    }
    for (tick, label) in across.ticks.iter().zip(&across.labels) {
        let (at, foot, label) = (x(*tick), HEIGHT - 12.0, escape(label));
        let _ = writeln!(
            out,
            "<text x=\"{at:.1}\" y=\"{foot}\" text-anchor=\"middle\" fill=\"#555\">{label}</text>"
        );
    }
    out.push_str("</svg>\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_point_is_there_and_one_is_marked() {
        let picture = scatter("a < b", &[(1.0, 0.5), (2.0, 0.25), (3.0, 0.75)], 1);
        assert_eq!(picture.matches("<circle").count(), 3);
        assert_eq!(picture.matches("r=\"6\"").count(), 1);
        assert!(picture.contains("a &lt; b") && !picture.contains("NaN"));
        assert!(!scatter("", &[(1.0, 2.0)], 0).contains("NaN"));
        assert!(!scatter("", &[], 0).contains("NaN"));
    }
}
