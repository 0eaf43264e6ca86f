//! `cargo xtask bench [NAME]… [--json] [--peers] [--write]`.
//!
//! Every figure is measured in this run: the limits of the machine first, the kernels beside them, then whole runs of
//! the binary. With `--peers` (or `--python`) the same models and steps run in PyTorch + PEFT and llama.cpp too, in
//! turn with ours and on as many threads, and a figure says how its median compares.

mod decode;
mod figure;
mod kernels;
mod limits;
mod machine;
mod matmul;
mod mezo;
mod peers;
mod report;
mod rounds;
mod shakespeare;
mod shape;
mod whole;
mod yardstick;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

use crate::figure::Figures;
use crate::machine::Machine;
use crate::peers::Peers;
use crate::report::Report;

/// What can be named.
const NAMES: [&str; 9] =
    ["limits", "kernels", "matmul", "yardstick", "length", "width", "shakespeare", "decode", "mezo"];

/// Times the kernels and whole runs.
#[derive(Parser)]
#[command(name = "bench", max_term_width = 100)]
struct Cli {
    /// What to run; all if absent.
    #[arg(value_parser = NAMES)]
    names: Vec<String>,
    /// Prints JSON alone on standard output.
    #[arg(long)]
    json: bool,
    /// Installs PyTorch + PEFT and llama.cpp into `target/peers`, once, and runs them as well.
    #[arg(long, conflicts_with = "python")]
    peers: bool,
    /// A Python that has torch, transformers and peft, or llama-cpp-python and gguf: runs those as well.
    #[arg(long, value_name = "PYTHON")]
    python: Option<PathBuf>,
    /// Runs of each side of a case, in turn.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: u16,
    /// Puts a section with the figures into BENCHMARKS.md, before the older ones.
    #[arg(long)]
    write: bool,
    /// Leaves out what takes long: the 1.1 B model of `decode`, 8192 tokens of `length`.
    #[arg(long)]
    short: bool,
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
    let peers = match &cli.python {
        Some(python) => Peers::of(python),
        None if cli.peers => Peers::installed(),
        None => Peers::default(),
    };
    for words in &peers.words {
        eprintln!("peers: {words}");
    }
    let mut machine = Machine::here();
    let mut figures = Figures::new(!cli.json);
    if !cli.json {
        println!("{}", machine.words());
    }
    for name in NAMES {
        // Products are compared with the limits.
        let needed = cli.names.iter().any(|n| n == name || (n == "matmul" && name == "limits"));
        if needed || cli.names.is_empty() {
            bench(cli, name, &peers, &mut figures)?;
        }
    }
    machine.finish();
    let report = Report::new(usize::from(cli.rounds), &machine, &peers, figures.all());
    if cli.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    }
    if cli.write {
        let file = report::write(&report.section())?;
        eprintln!("written to {}", file.display());
    }
    Ok(())
}

fn bench(cli: &Cli, name: &str, peers: &Peers, figures: &mut Figures) -> Result<()> {
    let (rounds, torch) = (usize::from(cli.rounds), peers.torch.as_deref());
    match name {
        "limits" => limits::run(figures),
        "kernels" => kernels::run(figures),
        "matmul" => matmul::run(figures, rounds, torch)?,
        "yardstick" => yardstick::train(figures, rounds, torch)?,
        "length" => yardstick::length(figures, rounds, cli.short, torch)?,
        "width" => yardstick::width(figures, rounds, torch)?,
        "shakespeare" if !cli.text.is_file() => {
            let text = cli.text.display();
            eprintln!("shakespeare is left out: `{text}` is not here; name the text with --text");
        }
        "shakespeare" => shakespeare::run(figures, rounds, &cli.text, torch)?,
        "decode" => decode::run(figures, rounds, cli.short, peers.llama.as_deref())?,
        _ => mezo::run(figures, rounds, torch)?,
    }
    Ok(())
}
