//! The `ramekin` command.
//!
//! Exit codes: 0 done, 1 the run failed, 2 usage or recipe invalid, 3 the plan
//! does not fit or the machine lacks something, 130 interrupted with its state saved.

mod allocator;
mod chat;
mod failure;
mod parts;
mod recipes;
mod standard;
mod threads;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result};
use clap::{Args, Parser, Subcommand};
use ramekin_core::UserError;
use ramekin_engine::Options;
use serde_json::json;

use crate::failure::Failure;
use crate::recipes::Loaded;

/// Cooks large models in little memory: TOML recipes that train, adapt, compress and run them.
#[derive(Parser)]
#[command(name = "ramekin", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Cooks a recipe.
    Run {
        #[command(flatten)]
        recipe: RecipeArgs,
        /// The run folder; `runs/NAME` beside the working directory if absent.
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
        /// Goes on from what is in the run folder.
        #[arg(long)]
        resume: bool,
        /// Shows the bill and stops.
        #[arg(long)]
        dry_run: bool,
    },
    /// Shows the bill: memory by category, trainable counts, disk. Reads configs and headers only.
    Plan(RecipeArgs),
    /// Parses and validates a recipe; needs no model.
    Check(RecipeArgs),
    /// The reference: every part, those of a slot or one of them, with settings, defaults, traits and source.
    Parts {
        /// `SLOT` or `SLOT/NAME`.
        which: Option<String>,
        /// Prints the JSON Schema of the recipe language.
        #[arg(long)]
        schema: bool,
        /// A line a part.
        #[arg(long)]
        brief: bool,
        /// The reference as Markdown.
        #[arg(long, conflicts_with = "brief")]
        markdown: bool,
        /// Prints JSON alone on standard output.
        #[arg(long, conflicts_with_all = ["brief", "markdown"])]
        json: bool,
    },
    /// Talks to a model or to what a run made.
    Chat(chat::ChatArgs),
}

#[derive(Args)]
struct RecipeArgs {
    /// The recipe.
    recipe: PathBuf,
    /// Overrides a key: `--set stage.0.optimizer.lr=1e-4`.
    #[arg(long = "set", value_name = "K=V")]
    set: Vec<String>,
    /// Prints JSON alone on standard output.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    ramekin_catalog::link();
    let cli = Cli::parse();
    let json = match &cli.command {
        Command::Run { recipe, .. } | Command::Plan(recipe) | Command::Check(recipe) => recipe.json,
        Command::Parts { json, .. } => *json,
        Command::Chat(_) => false,
    };
    let ready = processor().and_then(|()| Ok(threads::start()?));
    match ready.and_then(|()| dispatch(cli.command)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(json),
    }
}

/// `RAMEKIN_CPU` caps the instruction sets; a name that is none is no cap.
fn processor() -> Result<(), Failure> {
    use ramekin_kernels::cpu;
    let Some(name) = std::env::var_os(cpu::VARIABLE) else { return Ok(()) };
    let name = name.to_string_lossy().into_owned();
    if cpu::limit(&name).is_some() {
        return Ok(());
    }
    let wrong = UserError::new(format!("`{}` cannot be `{name}`", cpu::VARIABLE));
    Err(anyhow::Error::from(wrong.help(format!("it may be {}", cpu::NAMES.join(", ")))).into())
}

fn dispatch(command: Command) -> Result<(), Failure> {
    match command {
        Command::Run { recipe, out, resume, dry_run } => {
            if dry_run {
                return plan(&recipe);
            }
            run(&recipe, out, resume)
        }
        Command::Plan(args) => plan(&args),
        Command::Check(args) => {
            let loaded = Loaded::open(&args.recipe, &args.set)?;
            let stages = loaded.recipe.stage.len();
            let said = match args.json {
                true => json!({ "ok": true, "stages": stages }).to_string(),
                false => {
                    let plural = if stages == 1 { "" } else { "s" };
                    format!("{}: {stages} stage{plural}, nothing wrong", args.recipe.display())
                }
            };
            Ok(standard::print(&(said + "\n"))?)
        }
        Command::Parts { which, schema, brief, markdown, json } => {
            let form = match (json, markdown, brief) {
                (true, _, _) => parts::Form::Json,
                (_, true, _) => parts::Form::Markdown,
                (_, _, true) => parts::Form::Brief,
                _ => parts::Form::Full,
            };
            Ok(parts::show(which.as_deref(), schema, form)?)
        }
        Command::Chat(args) => Ok(chat::run(&args)?),
    }
}

fn plan(args: &RecipeArgs) -> Result<(), Failure> {
    let loaded = Loaded::open(&args.recipe, &args.set)?;
    let bills = loaded.explain(ramekin_engine::run::plan(&loaded.recipe, &loaded.base_dir))?;
    let text = match args.json {
        true => serde_json::to_string_pretty(&bills).map_err(anyhow::Error::from)? + "\n",
        false => bills.iter().map(|b| b.table()).collect(),
    };
    standard::print(&text)?;
    if let Some(budget) = loaded.recipe.memory.budget {
        for bill in &bills {
            bill.check(budget.0).with_context(|| format!("stage {}", bill.stage))?;
        }
    }
    Ok(())
}

fn run(args: &RecipeArgs, out: Option<PathBuf>, resume: bool) -> Result<(), Failure> {
    let loaded = Loaded::open(&args.recipe, &args.set)?;
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    let _ = ctrlc::set_handler(move || {
        if !flag.swap(true, Ordering::SeqCst) {
            ramekin_core::say!(
                "\nstopping after this step; the state will be saved (once more leaves at once)"
            );
            return;
        }
        ramekin_core::say!(
            "left at once: what came after the last checkpoint is not saved; go on with --resume"
        );
        // Whatever is being written is made so that it may stop anywhere.
        std::process::exit(130);
    });
    let out = out.unwrap_or_else(|| PathBuf::from("runs").join(&loaded.recipe.name));
    let options = Options {
        out: out.clone(),
        base_dir: loaded.base_dir.clone(),
        resume,
        stop,
        resolved: ramekin_recipe::resolved(&loaded.recipe),
    };
    let outcome = loaded.explain(ramekin_engine::run(&loaded.recipe, &options))?;
    let done = if args.json {
        json!({ "out": out, "stages": outcome.stages }).to_string()
    } else {
        format!("done: {}", out.display())
    };
    Ok(standard::print(&(done + "\n"))?)
}
