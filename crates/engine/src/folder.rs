//! The run folder: whether it is one, what in it is a run's own, and what goes when a run begins anew.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use ramekin_core::UserError;
use ramekin_store::{Checkpoints, write_atomic};

/// The first line of a run folder's `recipe.toml`, by which it is known.
const HEADER: &str = "# The recipe of this run with every default written out, by ramekin.\n";

/// What a run writes. The first go first: without them nothing that is left is taken for a state.
const OURS: [&str; 16] = [
    "state.json",
    "checkpoints",
    "stages",
    "summary.json",
    "start.json",
    "plan.json",
    "metrics.jsonl",
    "report.html",
    "adapter",
    "model",
    "samples.jsonl",
    "logits.safetensors",
    "generated.safetensors",
    "certificate.json",
    "audit.json",
    RECIPE,
];

const RECIPE: &str = "recipe.toml";

fn ours(name: &str) -> bool {
    let further = name.strip_prefix("adapter-").is_some_and(|n| n.parse::<usize>().is_ok());
    OURS.contains(&name) || further || name.starts_with("events.out.tfevents.")
}

/// Makes the folder, or finds a run's; tidies what a kill left half-written.
///
/// # Errors
/// If things lie there that a run would overwrite and no run has made.
pub fn open(out: &Path) -> Result<()> {
    std::fs::create_dir_all(out)
        .with_context(|| format!("cannot make the run folder `{}`", out.display()))?;
    let recipe = std::fs::read_to_string(out.join(RECIPE)).unwrap_or_default();
    if !recipe.starts_with(HEADER)
        && let Some(foreign) = entries(out)?.into_iter().find(|(name, _)| ours(name))
    {
        let message = format!("`{}` holds `{}` and is no run folder", out.display(), foreign.0);
        return Err(UserError::new(message).help("choose another with `--out`").into());
    }
    ramekin_store::recover(out)
}

/// Writes the recipe that the run is run with.
pub fn write_recipe(out: &Path, resolved: &str) -> Result<()> {
    write_atomic(out.join(RECIPE), format!("{HEADER}{resolved}").as_bytes())
}

/// A run goes on only with the recipe it began with.
pub fn check_same(out: &Path, resolved: &str) -> Result<()> {
    let file = out.join(RECIPE);
    match std::fs::read_to_string(&file) {
        Ok(before) if before.strip_prefix(HEADER) != Some(resolved) => {
            Err(UserError::new("the recipe is not the one this run began with")
                .in_file(&file)
                .help("run without `--resume`, or into another folder with `--out`")
                .into())
        }
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("cannot read `{}`", file.display()))
        }
        _ => Ok(()),
    }
}

/// Whether the last things that a run writes are there.
pub fn is_complete(out: &Path) -> bool {
    ["summary.json", "report.html"].iter().all(|name| out.join(name).exists())
}

/// What an earlier run left would be mistaken for this one's. `recipe.toml` stays until the new one
/// takes its place, so that a kill on the way leaves a folder known as the earlier run's.
pub fn clear(out: &Path) -> Result<()> {
    let mut all: Vec<_> =
        entries(out)?.into_iter().filter(|(name, _)| ours(name) && name != RECIPE).collect();
    all.sort_by_key(|(name, _)| OURS.iter().position(|o| o == name).unwrap_or(OURS.len()));
    for (name, path) in all {
        let removing = || format!("cannot remove `{}`", path.display());
        if path.is_dir() {
            // Under a leftover's name first: half a folder must not look like a whole one.
            let doomed = out.join(format!(".{name}.writing"));
            std::fs::rename(&path, &doomed).with_context(removing)?;
            std::fs::remove_dir_all(&doomed).with_context(removing)?;
        } else {
            std::fs::remove_file(&path).with_context(removing)?;
        }
    }
    Ok(())
}

/// After a fault: from where the run can go on.
pub fn say_what_is_kept(out: &Path) {
    let mut folders = vec![out.to_owned()];
    let mut stages: Vec<_> = entries(&out.join("stages")).unwrap_or_default();
    stages.sort_by_key(|(name, _)| name.split('-').next().and_then(|n| n.parse::<usize>().ok()));
    folders.extend(stages.into_iter().map(|(_, path)| path));
    let newest = |folder: &PathBuf| {
        let dir = folder.join("checkpoints");
        if !dir.is_dir() {
            return None;
        }
        Checkpoints::open(dir, 0).ok()?.list().ok()?.pop()
    };
    match folders.iter().rev().find_map(newest) {
        Some((step, path)) => {
            ramekin_core::say!(
                "the state after step {step} is kept in `{}`; go on with --resume",
                path.display()
            );
        }
        None => ramekin_core::say!("no checkpoint was made yet; --resume begins the stage again"),
    }
}

fn entries(folder: &Path) -> Result<Vec<(String, PathBuf)>> {
    let list = || format!("cannot list `{}`", folder.display());
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(list)? {
        let entry = entry.with_context(list)?;
        all.push((entry.file_name().to_string_lossy().into_owned(), entry.path()));
    }
    all.sort();
    Ok(all)
}
