//! `recipes/tasks/shakespeare-char.toml`, nanoGPT's setting for a CPU, beside the same in PyTorch.
//!
//! Both sides run twice, one after the other, and the faster run of each counts; only the
//! seconds of the training steps are compared.

use std::path::Path;

use anyhow::{Context, Result};

use crate::figure::Figures;
use crate::whole;

/// Steps of the recipe.
const STEPS: u64 = 2000;

/// Loss on held-out text, seconds of the training steps.
pub fn run(figures: &mut Figures, text: &Path, python: Option<&Path>) -> Result<()> {
    let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes/tasks/shakespeare-char.toml");
    let text = text.canonicalize()?.display().to_string();
    let sets = [
        format!("model.tokenizer.data={text:?}"),
        format!("stage.0.data.path={text:?}"),
        format!("stage.0.steps={STEPS}"),
    ];
    let sets: Vec<String> = sets.into_iter().flat_map(|s| ["--set".to_owned(), s]).collect();
    let (mut ours, mut theirs) = (f64::INFINITY, f64::INFINITY);
    let (mut loss, mut peer_loss) = (f64::NAN, None);
    for _ in 0..2 {
        let folder = tempfile::tempdir()?;
        let run = whole::cook_file(&recipe, &folder.path().join("out"), &sets)?;
        ours = ours.min(run.step_seconds(0)?.iter().sum());
        loss = run.summary["stages"]["0-train"]["eval"]["loss"].as_f64().context("no held-out loss")?;
        if let Some(python) = python {
            let arguments = [text.clone(), STEPS.to_string(), whole::threads().to_string()];
            let found = whole::peer(python, "shakespeare.py", &arguments)?;
            theirs = theirs.min(found["seconds"].as_f64().context("the peer's `seconds`")?);
            peer_loss = found["loss"].as_f64();
        }
    }
    figures.beside("shakespeare", "held-out loss after 2000 steps", loss, "", peer_loss);
    let theirs = python.map(|_| theirs);
    figures.beside("shakespeare", "2000 steps", ours, "s", theirs);
    Ok(())
}
