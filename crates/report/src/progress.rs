//! Progress on standard error: a bar on a terminal, a plain line now and then elsewhere.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// What standard error can show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Console {
    /// Whether it is a terminal, on which a line can be drawn anew.
    pub terminal: bool,
    /// Whether colours are welcome.
    pub color: bool,
}

impl Console {
    /// Looks at standard error and the environment: `NO_COLOR` (set and not
    /// empty) and `TERM=dumb` mean no colours, the latter no bar either.
    pub fn detect() -> Console {
        Self::of(std::io::stderr().is_terminal(), |name| std::env::var(name).ok())
    }

    fn of(terminal: bool, var: impl Fn(&str) -> Option<String>) -> Console {
        let terminal = terminal && var("TERM").is_none_or(|t| t != "dumb");
        let plain = var("NO_COLOR").is_some_and(|v| !v.is_empty());
        Console { terminal, color: terminal && !plain }
    }
}

/// How far a piece of work is.
pub struct Progress {
    view: View,
}

enum View {
    Bar(ProgressBar, bool),
    Lines(Lines<std::io::Stderr>),
}

impl Progress {
    /// Begins to show `label` with `total` steps to do (0 if that is not known).
    pub fn new(console: Console, label: &str, total: u64) -> Progress {
        if !console.terminal {
            return Progress { view: View::Lines(Lines::new(std::io::stderr(), label, total)) };
        }
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(8));
        bar.set_style(style(console.color, total > 0, false));
        bar.set_prefix(label.to_owned());
        Progress { view: View::Bar(bar, console.color) }
    }

    /// `done` steps are done; `message` says how it goes (`loss 1.23  540 tokens/s`).
    pub fn update(&mut self, done: u64, message: &str) {
        match &mut self.view {
            View::Bar(bar, _) => {
                bar.set_position(done);
                bar.set_message(message.to_owned());
            }
            View::Lines(lines) => lines.update(lines.began.elapsed(), done, message),
        }
    }

    /// Prints a line of its own, above the bar if there is one.
    pub fn line(&self, text: &str) {
        match &self.view {
            View::Bar(bar, _) => bar.suspend(|| ramekin_core::say!("{text}")),
            View::Lines(_) => ramekin_core::say!("{text}"),
        }
    }

    /// Ends with a last message, which stays on the screen.
    pub fn finish(self, message: &str) {
        match self.view {
            View::Bar(bar, color) => {
                bar.set_style(style(color, bar.length().is_some_and(|n| n > 0), true));
                bar.abandon_with_message(message.to_owned());
            }
            View::Lines(mut lines) => {
                let elapsed = lines.began.elapsed();
                lines.finish(elapsed, message);
            }
        }
    }
}

/// The bar's looks: with a known total, and at its end with the time taken
/// instead of the time left.
fn style(color: bool, known: bool, ended: bool) -> ProgressStyle {
    // A template of our own making; the default style would do if it were refused.
    ProgressStyle::with_template(&template(color, known, ended))
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("━╸─")
}

fn template(color: bool, known: bool, ended: bool) -> String {
    let (cyan, dim) = if color { (".cyan/dim", ".dim") } else { ("", "") };
    let time = if ended || !known { "elapsed" } else { "eta" };
    let how_far =
        if known { format!("{{bar:24{cyan}}} {{pos}}/{{len}}") } else { "{spinner} {pos}".to_owned() };
    format!("{{prefix}} {how_far}  {{msg}}  {{{time}:5{dim}}}")
}

/// Plain lines: the first step, one every ten seconds, and the end.
struct Lines<W: Write> {
    out: W,
    label: String,
    total: u64,
    began: Instant,
    printed: Option<Duration>,
}

const EVERY: Duration = Duration::from_secs(10);

impl<W: Write> Lines<W> {
    fn new(out: W, label: &str, total: u64) -> Self {
        Lines { out, label: label.to_owned(), total, began: Instant::now(), printed: None }
    }

    fn update(&mut self, elapsed: Duration, done: u64, message: &str) {
        if self.printed.is_some_and(|at| elapsed < at + EVERY) {
            return;
        }
        self.printed = Some(elapsed);
        let label = &self.label;
        let text = if self.total == 0 {
            format!("{label}  {done}  {message}")
        } else {
            let percent = 100.0 * done as f64 / self.total as f64;
            let left = self.total.saturating_sub(done);
            let eta = elapsed.as_secs_f64() / done.max(1) as f64 * left as f64;
            // The first moments tell nothing about the rest.
            let eta = if done > 0 && left > 0 && elapsed.as_secs() > 0 {
                format!("  {} left", human(eta))
            } else {
                String::new()
            };
            format!("{label}  {done}/{}  {percent:.0}%  {message}{eta}", self.total)
        };
        // A closed standard error is no reason to stop training.
        let _ = writeln!(self.out, "{text}");
    }

    fn finish(&mut self, elapsed: Duration, message: &str) {
        let _ = writeln!(self.out, "{}  {message}  ({})", self.label, human(elapsed.as_secs_f64()));
    }
}

/// A time as people say it: `8 s`, `2 min 5 s`, `3 h 20 min`.
pub fn human(seconds: f64) -> String {
    // Casting saturates, so that infinity and NaN are answered as well.
    let s = seconds.round() as u64;
    match (s / 3600, s / 60 % 60, s % 60) {
        (0, 0, 0) if seconds > 0.0 => format!("{seconds:.1} s"),
        (0, 0, s) => format!("{s} s"),
        (0, m, s) => format!("{m} min {s} s"),
        (h, m, _) => format!("{h} h {m} min"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_lines_are_few() {
        let mut lines = Lines::new(Vec::new(), "train", 100);
        for done in 1..=100 {
            lines.update(Duration::from_secs(done), done, &format!("loss {done}"));
        }
        lines.finish(Duration::from_secs(100), "done");
        let text = String::from_utf8(lines.out).unwrap();
        let all: Vec<_> = text.lines().collect();
        assert_eq!(all.len(), 11, "{text}");
        assert_eq!(all[0], "train  1/100  1%  loss 1  1 min 39 s left");
        assert_eq!(all[1], "train  11/100  11%  loss 11  1 min 29 s left");
        assert_eq!(all[10], "train  done  (1 min 40 s)");
    }

    #[test]
    fn templates_are_understood() {
        for flags in 0..8 {
            let text = template(flags & 1 > 0, flags & 2 > 0, flags & 4 > 0);
            assert!(ProgressStyle::with_template(&text).is_ok(), "{text}");
        }
        assert_eq!(template(false, true, false), "{prefix} {bar:24} {pos}/{len}  {msg}  {eta:5}");
    }

    #[test]
    fn unknown_totals() {
        let mut lines = Lines::new(Vec::new(), "read", 0);
        lines.update(Duration::ZERO, 7, "rows");
        assert_eq!(String::from_utf8(lines.out).unwrap(), "read  7  rows\n");
    }

    #[test]
    fn the_environment_decides() {
        let of = |terminal, name: &'static str, value: &'static str| {
            Console::of(terminal, |n| (n == name).then(|| value.to_owned()))
        };
        assert_eq!(of(true, "", ""), Console { terminal: true, color: true });
        assert_eq!(of(true, "NO_COLOR", "1"), Console { terminal: true, color: false });
        assert_eq!(of(true, "NO_COLOR", ""), Console { terminal: true, color: true });
        assert_eq!(of(true, "TERM", "dumb"), Console { terminal: false, color: false });
        assert_eq!(of(false, "", ""), Console { terminal: false, color: false });
    }

    #[test]
    fn times() {
        assert_eq!(human(0.0), "0 s");
        assert_eq!(human(0.25), "0.2 s");
        assert_eq!(human(8.4), "8 s");
        assert_eq!(human(125.0), "2 min 5 s");
        assert_eq!(human(12000.0), "3 h 20 min");
        assert_eq!(human(f64::NAN), "0 s");
    }
}
