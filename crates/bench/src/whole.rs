//! Whole runs: the binary and its peers, as processes of their own.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value as Json;

/// The binary that `cargo xtask bench` builds before.
fn binary() -> Result<PathBuf> {
    let own = std::env::current_exe().context("where is this program?")?;
    let binary = own.with_file_name(format!("ramekin{}", std::env::consts::EXE_SUFFIX));
    ensure!(binary.exists(), "`{}` is not built: `cargo xtask bench` does that", binary.display());
    Ok(binary)
}

/// A recipe cooked in a folder of its own.
pub struct Cooked {
    /// The run folder.
    pub out: PathBuf,
    /// `summary.json`.
    pub summary: Json,
}

/// Cooks `recipe`, which may name files of `folder`, into `folder/out`.
pub fn cook(folder: &Path, recipe: &str) -> Result<Cooked> {
    let file = folder.join("recipe.toml");
    std::fs::write(&file, recipe)?;
    cook_file(&file, &folder.join("out"), &[])
}

/// Cooks a recipe's file into `out`.
pub fn cook_file(file: &Path, out: &Path, arguments: &[String]) -> Result<Cooked> {
    let mut command = Command::new(binary()?);
    command.arg("run").arg(file).arg("--out").arg(out).args(arguments).stdin(Stdio::null());
    let output = command.output().context("cannot start the binary")?;
    ensure!(
        output.status.success(),
        "`{}` failed:\n{}",
        file.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    let summary = serde_json::from_slice(&std::fs::read(out.join("summary.json"))?)?;
    Ok(Cooked { out: out.to_owned(), summary })
}

impl Cooked {
    /// Seconds of each step of a stage.
    pub fn step_seconds(&self, stage: u64) -> Result<Vec<f64>> {
        let text = std::fs::read_to_string(self.out.join("metrics.jsonl"))?;
        let lines = text.lines().filter_map(|l| serde_json::from_str::<Json>(l).ok());
        let of_stage = lines.filter(|l| l["stage"].as_u64() == Some(stage));
        Ok(of_stage.filter_map(|l| Some(l["tokens"].as_f64()? / l["tokens_per_s"].as_f64()?)).collect())
    }

    /// The least seconds of a stage's steps after the first, which warms up.
    pub fn least_step(&self, stage: u64) -> Result<f64> {
        let least = self.step_seconds(stage)?.into_iter().skip(1).fold(f64::INFINITY, f64::min);
        ensure!(least.is_finite(), "a stage has only one step");
        Ok(least)
    }

    /// A figure of a stage.
    pub fn figure(&self, stage: &str, key: &str) -> Result<f64> {
        let found = self.summary["stages"][stage][key].as_f64();
        found.with_context(|| format!("summary.json has no `{key}` of stage `{stage}`"))
    }
}

fn script(python: &Path, name: &str, arguments: &[String]) -> Command {
    let mut command = Command::new(python);
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("peers").join(name)).args(arguments);
    command
}

/// Runs a peer's script of `peers/`; the JSON that it prints.
pub fn peer(python: &Path, name: &str, arguments: &[String]) -> Result<Json> {
    let mut command = script(python, name, arguments);
    let output = command.stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("cannot start `{}`", python.display()))?;
    ensure!(
        output.status.success(),
        "`peers/{name}` failed ({}):\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8_lossy(&output.stdout);
    let last = text.lines().last().unwrap_or_default();
    serde_json::from_str(last).with_context(|| format!("`peers/{name}` printed no JSON"))
}

/// Figures of what a peer printed.
pub fn figures(found: &Json, keys: &[&str]) -> Result<Vec<f64>> {
    keys.iter().map(|k| found[*k].as_f64().with_context(|| format!("the peer's `{k}` is missing"))).collect()
}

/// A peer that stays and answers a line with a line, so that what it loads is loaded once.
pub struct Server {
    name: String,
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Server {
    /// Starts a script of `peers/`.
    pub fn start(python: &Path, name: &str, arguments: &[String]) -> Result<Self> {
        let mut command = script(python, name, arguments);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let to = child.stdin.take().context("the peer's input")?;
        let from = BufReader::new(child.stdout.take().context("the peer's output")?);
        Ok(Server { name: name.to_owned(), child, to, from })
    }

    /// What it answers to a line.
    pub fn ask(&mut self, line: &str) -> Result<Json> {
        writeln!(self.to, "{line}").with_context(|| format!("`peers/{}` has ended", self.name))?;
        let mut answer = String::new();
        self.from.read_line(&mut answer)?;
        ensure!(!answer.is_empty(), "`peers/{}` has ended without an answer", self.name);
        serde_json::from_str(&answer).with_context(|| format!("`peers/{}` answered {answer:?}", self.name))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // One that has ended by itself cannot be ended again.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Threads that both sides use.
pub fn threads() -> usize {
    rayon::current_num_threads()
}
