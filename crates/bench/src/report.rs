//! Figures as JSON and as a section of BENCHMARKS.md.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use ramekin_store::write_atomic;
use serde::Serialize;

use crate::figure::{Figure, digits};
use crate::machine::Machine;
use crate::peers::Peers;

/// Everything about a run of the benches.
#[derive(Serialize)]
pub struct Report<'a> {
    /// When they ended, UTC: `2026-11-26 21:10`.
    pub date: String,
    /// The commit, where it can be had.
    pub commit: Option<String>,
    /// Runs of each side that were made of each case in turn.
    pub rounds: usize,
    /// Where.
    pub machine: &'a Machine,
    /// Beside what.
    pub peers: &'a [String],
    /// What was found.
    pub figures: &'a [Figure],
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

impl<'a> Report<'a> {
    /// Of now.
    pub fn new(rounds: usize, machine: &'a Machine, peers: &'a Peers, figures: &'a [Figure]) -> Self {
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        Report { date: date(seconds), commit: commit(), rounds, machine, peers: &peers.words, figures }
    }

    /// A dated section: what it was measured on, then a table a bench.
    pub fn section(&self) -> String {
        let mut benches: Vec<&str> = Vec::new();
        for figure in self.figures {
            if !benches.contains(&figure.bench) {
                benches.push(figure.bench);
            }
        }
        let (day, time) = self.date.split_once(' ').unwrap_or((&self.date, ""));
        let mut text = format!("## {}: {}\n\n{}\n", spelled(day), benches.join(", "), self.machine.words());
        let commit = self.commit.as_ref().map(|c| format!(" at {c}")).unwrap_or_default();
        text += &format!(
            "\nMeasured at {time} UTC{commit}, {} in turn of each side: medians, and the least and most in brackets. {}\n",
            if self.rounds == 1 { "one run".to_owned() } else { format!("{} runs", self.rounds) },
            if self.peers.is_empty() {
                "Without peers.".to_owned()
            } else {
                format!("Peers: {}.", self.peers.join("; "))
            },
        );
        for bench in benches {
            text += &format!("\n### {bench}\n\n");
            text += &table(self.figures.iter().filter(|f| f.bench == bench));
        }
        text
    }
}

/// Lines of a table; columns for a peer where there is one.
fn table<'a>(figures: impl Iterator<Item = &'a Figure>) -> String {
    let figures: Vec<&Figure> = figures.collect();
    let beside = figures.iter().any(|f| f.peer.is_some());
    let mut text = String::from(if beside {
        "| case | unit | Ramekin | peer | ratio |\n| --- | --- | --- | --- | --- |\n"
    } else {
        "| case | unit | Ramekin |\n| --- | --- | --- |\n"
    });
    for f in figures {
        let case = f.case.replace('|', "\\|");
        text += &format!("| {case} | {} | {} |", f.unit, f.ours.words());
        if beside {
            let peer = f.peer.as_ref().map(|p| format!("{} {}", p.name, p.spread.words()));
            let ratio = f.ratio.map(digits);
            text += &format!(" {} | {} |", peer.unwrap_or_default(), ratio.unwrap_or_default());
        }
        text.push('\n');
    }
    text
}

/// BENCHMARKS.md with a section before the older ones; nothing else of it changes.
pub fn inserted(text: &str, section: &str) -> String {
    let heading = |(at, _): &(usize, &str)| *at == 0 || text[..*at].ends_with('\n');
    match text.match_indices("## ").find(heading) {
        Some((at, _)) => format!("{}{}\n\n{}", &text[..at], section.trim_end(), &text[at..]),
        None if text.trim().is_empty() => format!("# Benchmarks\n\n{}\n", section.trim_end()),
        None => format!("{}\n\n{}\n", text.trim_end(), section.trim_end()),
    }
}

/// Writes the section into the workspace's BENCHMARKS.md; where that is.
pub fn write(section: &str) -> Result<PathBuf> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../BENCHMARKS.md");
    let text = std::fs::read_to_string(&file).with_context(|| format!("`{}`", file.display()))?;
    write_atomic(&file, inserted(&text, section).as_bytes())?;
    Ok(file)
}

/// `YEAR-MONTH-DAY HOUR:MINUTE` of seconds since 1970 (Hinnant's civil_from_days).
fn date(seconds: u64) -> String {
    let (days, rest) = (seconds / 86400, seconds % 86400);
    let z = days + 719_468;
    let (era, day_of_era) = (z / 146_097, z % 146_097);
    let year = (day_of_era - day_of_era / 1460 + day_of_era / 36524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year + year / 4 - year / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}", rest / 3600, rest % 3600 / 60)
}

/// `26 November 2026` of `2026-11-26`.
fn spelled(day: &str) -> String {
    let parts: Vec<usize> = day.split('-').filter_map(|p| p.parse().ok()).collect();
    match parts[..] {
        [year, month @ 1..=12, day] => format!("{day} {} {year}", MONTHS[month - 1]),
        _ => day.to_owned(),
    }
}

fn commit() -> Option<String> {
    let mut command = std::process::Command::new("git");
    command.current_dir(env!("CARGO_MANIFEST_DIR")).args(["describe", "--always", "--dirty", "--exclude=*"]);
    let output = command.output().ok().filter(|o| o.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figure::Figures;
    use crate::rounds::Spread;

    #[test]
    fn days_are_counted() {
        assert_eq!(date(0), "1970-01-01 00:00");
        assert_eq!(date(951_782_399), "2000-02-28 23:59");
        assert_eq!(date(951_782_400), "2000-02-29 00:00");
        assert_eq!(date(1_795_727_460), "2026-11-26 21:11");
        assert_eq!(spelled("2026-11-26"), "26 November 2026");
    }

    #[test]
    fn the_newest_comes_first_and_the_rest_stays() {
        let old = "# Benchmarks\n\nWords with ## in them.\n\n## 1 May\n\nBy hand.\n\n### Part\n";
        let new = inserted(old, "## 2 May: a\n\nText.\n");
        assert_eq!(
            new,
            "# Benchmarks\n\nWords with ## in them.\n\n## 2 May: a\n\nText.\n\n## 1 May\n\nBy hand.\n\n### Part\n"
        );
        let newer = inserted(&new, "## 3 May: a\n\nText.\n");
        assert!(newer.ends_with(&new[new.find("## 2 May").unwrap()..]));
        assert_eq!(inserted("# Benchmarks\n", "## A\n"), "# Benchmarks\n\n## A\n");
        assert_eq!(inserted("", "## A\n"), "# Benchmarks\n\n## A\n");
    }

    #[test]
    fn tables_have_a_peer_where_there_is_one() {
        let mut figures = Figures::new(false);
        figures.add("limits", "a|b", 1.5, "GB/s");
        let peer = Some(("PyTorch", Spread::of(&[2.0])));
        figures.beside("yardstick", "step", "s", Spread::of(&[1.0, 3.0, 5.0]), peer);
        figures.add("yardstick", "alone", 7.0, "s");
        assert_eq!(
            table(figures.all()[..1].iter()),
            "| case | unit | Ramekin |\n| --- | --- | --- |\n| a\\|b | GB/s | 1.50 |\n"
        );
        let lines: Vec<String> = table(figures.all()[1..].iter()).lines().map(str::to_owned).collect();
        assert_eq!(lines[2], "| step | s | 3.00 (1.00–5.00) | PyTorch 2.00 | 1.50 |");
        assert_eq!(lines[3], "| alone | s | 7.00 |  |  |");
    }

    #[test]
    fn a_section_says_where_and_beside_what() {
        let mut figures = Figures::new(false);
        figures.add("limits", "threads", 2.0, "");
        figures.add("matmul", "x", 2.0, "GFLOP/s");
        let mut machine = Machine::here();
        machine.cpu = "Processor".into();
        let peers =
            Peers { words: vec!["torch 2".into(), "llama.cpp is left out: why".into()], ..Peers::default() };
        let report =
            Report { date: "2026-01-02 03:04".into(), ..Report::new(5, &machine, &peers, figures.all()) };
        let section = report.section();
        assert!(section.starts_with("## 2 January 2026: limits, matmul\n"), "{section}");
        for part in [
            "Processor",
            "at 03:04 UTC",
            "5 runs",
            "torch 2; llama.cpp is left out: why.",
            "### matmul\n\n| case",
        ] {
            assert!(section.contains(part), "{part} in {section}");
        }
    }
}
