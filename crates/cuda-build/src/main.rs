//! `cargo xtask kernels`: compiles every `kernels/*.cu`, on machines without a GPU too.
//!
//! CUDA's compiler comes as pinned wheels from a Python package index into `target/cuda`; what it makes lies in
//! `target/kernels`: `NAME.ptx`, `NAME.sm_90.cubin` and `NAME.log`, the assembler's words. No Python is needed, and
//! no network once it is fetched.

mod compile;
mod index;
mod toolkit;
mod usage;
mod wheels;

use std::env;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;

use crate::index::IndexError;

/// The exit code that says: the compiler cannot be had here, which is no fault of the kernels.
const UNAVAILABLE: u8 = 69;

fn main() -> ExitCode {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let root = root.canonicalize().unwrap_or(root);
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let Some(wheels) = wheels::wheels(env::consts::OS, env::consts::ARCH) else {
        let (os, arch) = (env::consts::OS, env::consts::ARCH);
        eprintln!("error: there is no CUDA compiler for {os} on {arch}; Linux on x86_64 or aarch64 has one");
        return ExitCode::from(UNAVAILABLE);
    };
    match run(&root, &target, wheels) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e:#}");
            let gone = matches!(e.downcast_ref(), Some(IndexError::Unreachable { .. }));
            ExitCode::from(if gone { UNAVAILABLE } else { 1 })
        }
    }
}

fn run(root: &Path, target: &Path, wheels: &[wheels::Wheel]) -> Result<()> {
    let begun = Instant::now();
    let home = toolkit::toolkit(target, wheels)?;
    let out = target.join("kernels");
    let all = compile::compile_all(&home, &root.join("kernels"), &out)?;
    println!("{:<40} {:>9} {:>12} {:>8}", "kernel (sm_90)", "registers", "shared, B", "spilled");
    for file in &all {
        println!("{}.cu{}", file.name, if file.kept { " (up to date)" } else { "" });
        for u in &file.kernels {
            println!("  {:<38} {:>9} {:>12} {:>8}", u.kernel, u.registers, u.shared, u.spilled);
        }
    }
    let (files, seconds) = (all.len(), begun.elapsed().as_secs_f64());
    println!("{files} files compiled to PTX and sm_90 code in {seconds:.0} s: {}", out.display());
    Ok(())
}
