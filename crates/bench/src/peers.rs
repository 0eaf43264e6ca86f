//! The peers: a virtual environment in `target/peers`, filled once.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::Serialize;

/// What can be measured beside.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Peers {
    /// A Python with torch, transformers and peft.
    #[serde(skip)]
    pub torch: Option<PathBuf>,
    /// A Python with llama-cpp-python and gguf.
    #[serde(skip)]
    pub llama: Option<PathBuf>,
    /// What takes part, with versions; or why something does not.
    pub words: Vec<String>,
}

/// A peer: what Python must be able to import, and what brings it.
struct Wanted {
    name: &'static str,
    modules: &'static [&'static str],
    packages: &'static [&'static str],
    /// Built here, from the source distribution.
    built: &'static [&'static str],
}

const TORCH: Wanted = Wanted {
    name: "PyTorch",
    modules: &["torch", "transformers", "peft"],
    packages: &["torch", "transformers", "peft"],
    built: &[],
};

const LLAMA: Wanted = Wanted {
    name: "llama.cpp",
    modules: &["llama_cpp", "gguf"],
    packages: &["numpy", "gguf", "cmake", "ninja"],
    built: &["llama-cpp-python"],
};

/// Where the benches keep peers and their models: `target/peers`.
pub fn folder() -> Result<PathBuf> {
    let own = std::env::current_exe().context("where is this program?")?;
    let target = own.parent().and_then(Path::parent).context("this program lies in no target folder")?;
    Ok(target.join("peers"))
}

impl Peers {
    /// Those that a Python of the user's has.
    pub fn of(python: &Path) -> Self {
        let mut peers = Peers::default();
        peers.torch = peers.take(&TORCH, find(python, &TORCH).map(|v| (python.to_owned(), v)));
        peers.llama = peers.take(&LLAMA, find(python, &LLAMA).map(|v| (python.to_owned(), v)));
        peers
    }

    /// Those of `target/peers`, installed if they are not there yet, each for itself.
    pub fn installed() -> Self {
        let mut peers = Peers::default();
        match environment() {
            Ok(python) => {
                peers.torch = peers.take(&TORCH, install(&python, &TORCH).map(|v| (python.clone(), v)));
                peers.llama = peers.take(&LLAMA, install(&python, &LLAMA).map(|v| (python.clone(), v)));
            }
            Err(e) => peers.words.push(format!("no peers: {e:#}")),
        }
        peers
    }

    fn take(&mut self, wanted: &Wanted, found: Result<(PathBuf, String)>) -> Option<PathBuf> {
        match found {
            Ok((python, versions)) => {
                self.words.push(versions);
                Some(python)
            }
            Err(e) => {
                self.words.push(format!("{} is left out: {e:#}", wanted.name));
                None
            }
        }
    }
}

/// The Python of `target/peers/venv`, which is made if it is not there.
fn environment() -> Result<PathBuf> {
    let venv = folder()?.join("venv");
    let python = venv.join(if cfg!(windows) { "Scripts/python.exe" } else { "bin/python" });
    if !python.exists() {
        eprintln!("making a virtual environment in `{}`", venv.display());
        std::fs::create_dir_all(folder()?)?;
        let system = if cfg!(windows) { "python" } else { "python3" };
        call(Command::new(system).args(["-m", "venv"]).arg(&venv))?;
    }
    Ok(python)
}

/// `NAME VERSION` of each module that a peer needs.
fn find(python: &Path, wanted: &Wanted) -> Result<String> {
    let modules = wanted.modules.join(", ");
    let code = format!(
        "import {modules}\nfrom importlib.metadata import version\n\
         names = {{'llama_cpp': 'llama-cpp-python'}}\n\
         print(', '.join(names.get(m, m) + ' ' + version(names.get(m, m)) for m in '{modules}'.split(', ')))"
    );
    call(Command::new(python).arg("-c").arg(code))
}

/// Finds a peer or brings it from the package index.
fn install(python: &Path, wanted: &Wanted) -> Result<String> {
    if let Ok(versions) = find(python, wanted) {
        return Ok(versions);
    }
    let pip = || {
        let mut command = Command::new(python);
        command.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]);
        command
    };
    eprintln!("installing {}: {}", wanted.name, wanted.packages.join(", "));
    call(pip().args(wanted.packages))?;
    for package in wanted.built {
        eprintln!("building {package} from its source; this takes some minutes");
        let mut build = pip();
        build.args(["--no-binary", package, package]);
        // Compiled for this very processor.
        let mut arguments = "-DGGML_NATIVE=ON".to_owned();
        let mended = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/tiles.h");
        if cfg!(target_arch = "x86_64") && !mended.to_string_lossy().contains(char::is_whitespace) {
            arguments += &format!(" '-DCMAKE_CXX_FLAGS=-include {}'", mended.display());
        }
        call(build.env("CMAKE_ARGS", arguments))?;
    }
    find(python, wanted)
}

/// What a program prints; its last words if it fails.
fn call(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output =
        command.stdin(Stdio::null()).output().with_context(|| format!("`{program}` cannot be started"))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        let last = text.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or("it failed without a word");
        bail!("`{program}` says: {}", last.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        let peers = Peers::of(Path::new("/nowhere/python3"));
        assert!(peers.torch.is_none() && peers.llama.is_none());
        assert_eq!(peers.words.len(), 2);
        assert!(
            peers.words[0].starts_with("PyTorch is left out: `/nowhere/python3` cannot be started"),
            "{:?}",
            peers.words
        );
    }

    #[test]
    fn each_is_skipped_for_itself() {
        let mut peers = Peers::default();
        let python = peers.take(&TORCH, Ok(("py".into(), "torch 2".to_owned())));
        let none = peers.take(&LLAMA, Err(anyhow::anyhow!("no compiler")));
        assert_eq!((python, none), (Some("py".into()), None));
        assert_eq!(peers.words, ["torch 2", "llama.cpp is left out: no compiler"]);
    }

    #[test]
    fn last_words_are_kept() {
        if cfg!(unix) {
            let failed = call(Command::new("sh").args(["-c", "echo first >&2; echo last >&2; exit 3"]));
            assert_eq!(failed.unwrap_err().to_string(), "`sh` says: last");
        }
    }
}
