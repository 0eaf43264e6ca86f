//! Compiles each `kernels/*.cu` to PTX for any GPU since compute capability 8.0 and to code for 9.0.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::index::hex;
use crate::usage::{Usage, usage};

/// What all are compiled with.
const FLAGS: [&str; 3] = ["-O3", "-std=c++17", "-Xptxas=-v"];

/// What is made of a file: the ending, and the flags.
const KINDS: [(&str, &[&str]); 2] =
    [("ptx", &["-ptx", "-arch=compute_80"]), ("sm_90.cubin", &["-cubin", "-arch=sm_90"])];

/// A compiled `.cu`.
pub struct Compiled {
    /// The file's name without its ending.
    pub name: String,
    /// Each kernel with what it takes on sm_90.
    pub kernels: Vec<Usage>,
    /// Whether it was there already, from the same sources and compiler.
    pub kept: bool,
}

/// Compiles all `.cu` of a folder into another; up to date ones stay as they are.
///
/// # Errors
/// No `.cu` there, no C++ compiler, or what the compiler says.
pub fn compile_all(home: &Path, sources: &Path, out: &Path) -> Result<Vec<Compiled>> {
    let entries = fs::read_dir(sources).with_context(|| format!("cannot read `{}`", sources.display()))?;
    let mut files: Vec<PathBuf> = entries.filter_map(|e| e.ok().map(|e| e.path())).collect();
    files.sort();
    let ending = |p: &Path, e: &str| p.extension().is_some_and(|x| x == e);
    let mut headers = Sha256::new();
    for header in files.iter().filter(|p| ending(p, "cuh")) {
        headers.update(fs::read(header).with_context(|| format!("cannot read `{}`", header.display()))?);
    }
    let headers = hex(&headers.finalize());
    files.retain(|p| ending(p, "cu"));
    if files.is_empty() {
        bail!("there is no `.cu` file in `{}`", sources.display());
    }
    let host = host_compiler()?;
    fs::create_dir_all(out).with_context(|| format!("cannot make `{}`", out.display()))?;
    let one = |file: &PathBuf| compile(home, &host, file, &headers, out);
    thread::scope(|scope| {
        let running: Vec<_> = files.iter().map(|file| scope.spawn(move || one(file))).collect();
        running.into_iter().map(|t| t.join().unwrap_or_else(|_| bail!("a compilation panicked"))).collect()
    })
}

/// The compiler that nvcc preprocesses with.
fn host_compiler() -> Result<PathBuf> {
    let named = ["NVCC_CCBIN", "CXX"].into_iter().filter_map(env::var_os);
    let candidates = named.chain(["g++".into(), "clang++".into()]);
    let paths = env::var_os("PATH").unwrap_or_default();
    for name in candidates {
        let here = Path::new(&name);
        let found = env::split_paths(&paths).map(|p| p.join(here)).find(|p| p.is_file());
        if let Some(path) = found {
            return Ok(path);
        }
    }
    bail!("CUDA's compiler needs a C++ compiler for its preprocessor: install `g++`, or name one in `CXX`")
}

fn compile(home: &Path, host: &Path, file: &Path, headers: &str, out: &Path) -> Result<Compiled> {
    let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let source = fs::read(file).with_context(|| format!("cannot read `{}`", file.display()))?;
    let mut stamp = Sha256::new();
    stamp.update(&source);
    let settings = format!("{headers} {FLAGS:?} {KINDS:?} {}", home.display());
    stamp.update(settings);
    let stamp = hex(&stamp.finalize());
    let (stamp_path, log_path) = (out.join(format!("{name}.stamp")), out.join(format!("{name}.log")));
    if fs::read_to_string(&stamp_path).is_ok_and(|s| s == stamp) {
        let log = fs::read_to_string(&log_path).unwrap_or_default();
        return Ok(Compiled { name, kernels: usage(&log), kept: true });
    }
    let mut log = String::new();
    for (ending, flags) in KINDS {
        let made = out.join(format!("{name}.{ending}"));
        let part = made.with_extension("part");
        let mut nvcc = Command::new(home.join("bin/nvcc"));
        nvcc.args(FLAGS).args(flags).arg("-ccbin").arg(host).arg(file).arg("-o").arg(&part);
        let ran =
            nvcc.output().with_context(|| format!("cannot start `{}`", home.join("bin/nvcc").display()))?;
        log = String::from_utf8_lossy(&ran.stderr).into_owned();
        if !ran.status.success() {
            bail!("`{}` does not compile to {ending}:\n{log}", file.display());
        }
        fs::rename(&part, &made).with_context(|| format!("cannot write `{}`", made.display()))?;
    }
    // The stamp comes last: a compilation that was cut off is done again.
    fs::write(&log_path, &log)
        .and_then(|()| fs::write(&stamp_path, &stamp))
        .context("cannot note what was compiled")?;
    Ok(Compiled { name, kernels: usage(&log), kept: false })
}
