//! `cargo xtask CMD`: builds what a command needs and forwards to `ramekin CMD`.
//!
//! Needs nothing but the standard library, so that it compiles in a blink.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

const HELP: &str = "\
cargo xtask CMD

  run RECIPE [--set K=V]… [--out DIR] [--resume]   cooks a recipe
  plan RECIPE                                      the bill, before anything is loaded
  check RECIPE                                     parses and validates
  parts [SLOT[/NAME]] [--schema] [--json]          every part with its settings
  chat RUN_OR_MODEL                                talks to a model
  test [ARGS]                                      all tests
  bench [NAME]… [--json] [--peers] [--write]       the benches; with --peers beside PyTorch and llama.cpp, which are
                                                   installed into target/peers once; --write to BENCHMARKS.md
  kernels                                          compiles every kernels/*.cu; fetches CUDA's compiler once
  ci                                               what CI runs
";

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let Some((command, rest)) = args.split_first() else {
        print!("{HELP}");
        return ExitCode::from(2);
    };
    let code = match command.as_str() {
        "run" | "plan" | "check" | "parts" | "chat" => ramekin(&args),
        "test" => test(rest),
        "bench" => bench(rest),
        "kernels" => kernels(),
        "ci" => ci(),
        "help" | "--help" | "-h" => {
            print!("{HELP}");
            0
        }
        "--version" | "-V" => ramekin(&args),
        other => {
            eprintln!("error: there is no command `{other}`\n\n{HELP}");
            2
        }
    };
    ExitCode::from(code)
}

fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

fn cargo() -> Command {
    Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Runs a command and returns its exit code; one killed by a signal is explained.
fn status(command: &mut Command) -> u8 {
    match command.status() {
        Ok(s) => s.code().map_or_else(
            || {
                eprintln!(
                    "error: the program was killed by the system ({s}); out of memory is the usual reason"
                );
                1
            },
            |c| u8::try_from(c).unwrap_or(1),
        ),
        Err(e) => {
            eprintln!("error: cannot start {:?}: {e}", command.get_program());
            1
        }
    }
}

fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// Builds the binary and forwards to it, in the caller's folder.
///
/// Of the whole workspace, as everywhere here: cargo picks the features of what crates share by what is built, and
/// with one choice nothing is compiled twice.
fn ramekin(args: &[String]) -> u8 {
    let mut build = cargo();
    build.args(["build", "--release", "--quiet", "--workspace", "--bin", "ramekin", "--manifest-path"]);
    build.arg(root().join("Cargo.toml"));
    if !target().join("release/ramekin").exists() {
        eprintln!("building ramekin; the first time takes some minutes");
    }
    match status(&mut build) {
        0 => {}
        code => return code,
    }
    let binary = target().join("release").join(if cfg!(windows) { "ramekin.exe" } else { "ramekin" });
    status(Command::new(binary).args(args))
}

fn has_nextest() -> bool {
    cargo().args(["nextest", "--version"]).output().is_ok_and(|o| o.status.success())
}

/// All tests, in the profile that runs use; by nextest where it is installed.
fn test(rest: &[String]) -> u8 {
    // The end-to-end tests start the binary.
    let mut build = cargo();
    build.current_dir(root()).args(["build", "--release", "--workspace", "--bin", "ramekin"]);
    match status(&mut build) {
        0 => {}
        code => return code,
    }
    let mut command = cargo();
    command.current_dir(root());
    if has_nextest() {
        command.args(["nextest", "run", "--release", "--workspace", "--no-fail-fast"]);
    } else {
        command.args(["test", "--release", "--workspace", "--no-fail-fast"]);
    }
    status(command.args(rest))
}

/// The benches, with the binary that some of them run.
fn bench(rest: &[String]) -> u8 {
    let mut build = cargo();
    build.current_dir(root()).args([
        "build",
        "--release",
        "--workspace",
        "--bin",
        "ramekin",
        "--bin",
        "bench",
    ]);
    match status(&mut build) {
        0 => {}
        code => return code,
    }
    let binary = target().join("release").join(if cfg!(windows) { "bench.exe" } else { "bench" });
    status(Command::new(binary).args(rest))
}

/// What `kernels` returns where CUDA's compiler cannot be had: no network, or none for this system.
const UNAVAILABLE: u8 = 69;

/// Compiles the CUDA files; neither a GPU nor Python is needed.
fn kernels() -> u8 {
    // Of the whole workspace, so that what it stands on is compiled for the tests too.
    let mut build = cargo();
    build.current_dir(root()).args(["build", "--release", "--quiet", "--workspace", "--bin", "cuda-build"]);
    match status(&mut build) {
        0 => {}
        code => return code,
    }
    let binary = target().join("release").join(if cfg!(windows) { "cuda-build.exe" } else { "cuda-build" });
    status(&mut Command::new(binary))
}

/// One step of CI: runs and returns an exit code.
type Step = Box<dyn Fn() -> u8>;

/// A step that is a cargo command in the workspace's root.
fn cargo_step(args: &'static [&'static str], envs: &'static [(&'static str, &'static str)]) -> Step {
    Box::new(move || {
        let mut command = cargo();
        command.current_dir(root()).args(args).envs(envs.iter().copied());
        status(&mut command)
    })
}

/// With the launchers of the CUDA kernels, which need nothing of CUDA to build.
const CUDA: [&str; 2] = ["--features", "ramekin-kernels-cuda/cuda"];

/// The kernels' own tests again, with no more than an older processor has.
fn instruction_sets() -> u8 {
    for set in ["portable", "avx2", "avx512"] {
        let mut command = cargo();
        command.current_dir(root()).env("RAMEKIN_CPU", set);
        if has_nextest() {
            // What `tests` has built.
            command.args(["nextest", "run", "--release", "--workspace", CUDA[0], CUDA[1]]);
            command.args(["-E", "binary_id(ramekin-kernels)", "--status-level", "fail"]);
        } else {
            command.args(["test", "--release", "--quiet", "-p", "ramekin-kernels", "--lib"]);
        }
        eprintln!("── with RAMEKIN_CPU={set}");
        match status(&mut command) {
            0 => {}
            code => return code,
        }
    }
    0
}

/// Format, lints, the quickstart, the CUDA files, the docs, all tests; stops at the first failure.
fn ci() -> u8 {
    let started = Instant::now();
    let quickstart: Step = Box::new(|| {
        let recipe = root().join("recipes/quickstart.toml").display().to_string();
        let out = target().join("ci-quickstart").display().to_string();
        ramekin(&["run".to_owned(), recipe, "--out".to_owned(), out])
    });
    const CLIPPY: &[&str] = &[
        "clippy",
        "--release",
        "--workspace",
        "--all-targets",
        CUDA[0],
        CUDA[1],
        "--quiet",
        "--",
        "-D",
        "warnings",
    ];
    const DOCS: &[&str] = &["doc", "--release", "--workspace", "--no-deps", "--quiet"];
    let steps: [(&str, Step); 7] = [
        ("format", cargo_step(&["fmt", "--all", "--check"], &[])),
        ("quickstart", quickstart),
        ("kernels", Box::new(kernels)),
        ("clippy", cargo_step(CLIPPY, &[])),
        ("docs", cargo_step(DOCS, &[("RUSTDOCFLAGS", "-D warnings")])),
        ("tests", Box::new(|| test(&CUDA.map(str::to_owned)))),
        ("instruction sets", Box::new(instruction_sets)),
    ];
    for (name, run) in steps {
        let begun = Instant::now();
        eprintln!("── {name}");
        let code = run();
        if name == "kernels" && code == UNAVAILABLE {
            eprintln!("── kernels: SKIPPED, the CUDA files were not compiled (the reason stands above)");
            continue;
        }
        let word = if code == 0 { "passed" } else { "FAILED" };
        eprintln!("── {name}: {word} in {:.0} s", begun.elapsed().as_secs_f64());
        if code != 0 {
            return code;
        }
    }
    eprintln!("── ci passed in {:.0} s", started.elapsed().as_secs_f64());
    0
}
