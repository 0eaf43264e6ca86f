//! `cargo xtask bench [NAME]… [--json] [--python PYTHON]`.
//!
//! Every figure is measured in this run: the limits of the machine first, the kernels beside
//! them, then whole runs of the binary. With `--python` the same models and steps run in
//! PyTorch + PEFT too, one after the other with ours, and a figure says how it compares.

mod figure;
mod kernels;
mod limits;
mod shakespeare;
mod whole;
mod yardstick;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

use crate::figure::Figures;

/// Times the kernels and whole runs.
#[derive(Parser)]
#[command(name = "bench", max_term_width = 100)]
struct Cli {
    /// What to run: `limits`, `kernels`, `yardstick`, `decode`, `shakespeare`; all if absent.
    #[arg(value_parser = ["limits", "kernels", "yardstick", "decode", "shakespeare"])]
    names: Vec<String>,
    /// Prints JSON alone on standard output.
    #[arg(long)]
    json: bool,
    /// A Python with torch, transformers and peft: runs the peers as well.
    #[arg(long, value_name = "PYTHON")]
    python: Option<PathBuf>,
    /// The text for `shakespeare`.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/data/tinyshakespeare.txt"))]
    text: PathBuf,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    let wanted = |name: &str| cli.names.is_empty() || cli.names.iter().any(|n| n == name);
    let mut figures = Figures::new(!cli.json);
    let python = cli.python.as_deref();
    if wanted("limits") {
        limits::run(&mut figures);
    }
    if wanted("kernels") {
        kernels::run(&mut figures);
    }
    if wanted("yardstick") {
        yardstick::train(&mut figures, python)?;
    }
    if wanted("decode") {
        yardstick::decode(&mut figures)?;
    }
    if wanted("shakespeare") {
        if cli.text.is_file() {
            shakespeare::run(&mut figures, &cli.text, python)?;
        } else {
            eprintln!(
                "shakespeare is left out: `{}` is not here; name the text with --text",
                cli.text.display()
            );
        }
    }
    if cli.json {
        println!("{}", serde_json::to_string_pretty(figures.all())?);
    }
    Ok(())
}
