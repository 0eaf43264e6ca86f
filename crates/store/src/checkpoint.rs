//! Checkpoints: `checkpoint-STEP/` folders of which the last good one always survives.
//!
//! Each holds `trainer_state.json` (`global_step`, `epoch` and whatever the
//! caller adds), the caller's files, and `checksums.json`.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::atomic::{self, AtomicDir, Damage};
use crate::disk::{Disk, FileWriter};
use crate::write::{self, Data, Spec};

/// The file with the step, the epoch and the caller's state.
pub const TRAINER_STATE: &str = "trainer_state.json";

const PREFIX: &str = "checkpoint-";

/// The checkpoints of one run, in one folder.
pub struct Checkpoints {
    disk: Disk,
    dir: PathBuf,
    keep: usize,
}

/// A checkpoint that is whole.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// Its folder.
    pub path: PathBuf,
    /// The optimizer step after which it was written.
    pub step: u64,
    /// `trainer_state.json`, an object.
    pub state: Value,
}

/// A checkpoint that is not whole, and why.
#[derive(Clone, Debug)]
pub struct Damaged {
    /// Its folder.
    pub path: PathBuf,
    /// The step in its name.
    pub step: u64,
    /// What is wrong with it.
    pub why: Damage,
}

impl fmt::Display for Damaged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` is damaged: {}", self.path.display(), self.why)
    }
}

/// The answer of [`Checkpoints::latest_good`].
#[derive(Clone, Debug)]
pub struct Latest {
    /// The newest whole checkpoint, if there is one.
    pub good: Option<Checkpoint>,
    /// Newer ones that had to be passed over, newest first.
    pub damaged: Vec<Damaged>,
}

/// Takes the files of a checkpoint being written.
pub struct CheckpointWriter {
    dir: AtomicDir,
}

impl CheckpointWriter {
    /// Writes named tensors as one safetensors file.
    ///
    /// # Errors
    /// [`crate::DiskError`]; a tensor that safetensors cannot hold.
    pub fn tensors(&mut self, file: &str, tensors: &[(String, Data)]) -> Result<()> {
        self.dir.file(file, |w| write::stream(w, tensors, &[]))
    }

    /// Writes a safetensors file whose tensors are made one by one, so that they need not be in memory
    /// all at once.
    ///
    /// # Errors
    /// As [`CheckpointWriter::tensors`]; what `produce` returns; a tensor that is not what its spec says.
    pub fn tensors_as_made(
        &mut self,
        file: &str,
        specs: &[Spec],
        produce: impl FnMut(&str) -> Result<Data>,
    ) -> Result<()> {
        self.dir.file(file, |w| write::stream_as_made(w, specs, produce))
    }

    /// Writes a file of the caller's from bytes.
    ///
    /// # Errors
    /// [`crate::DiskError`].
    pub fn file(&mut self, file: &str, bytes: &[u8]) -> Result<()> {
        self.dir.write(file, bytes)
    }

    /// Writes a file of the caller's piece by piece.
    ///
    /// # Errors
    /// [`crate::DiskError`]; whatever `fill` returns.
    pub fn stream(&mut self, file: &str, fill: impl FnOnce(&mut FileWriter) -> Result<()>) -> Result<()> {
        self.dir.file(file, fill)
    }

    /// Where foreign code may write files directly until the save is done.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }
}

impl Checkpoints {
    /// Opens a folder of checkpoints, making it if absent, and finishes or
    /// undoes what an interrupted save left. `keep` is how many stay; 0 keeps all.
    ///
    /// # Errors
    /// If the folder cannot be made, listed or cleaned.
    pub fn open(dir: impl AsRef<Path>, keep: usize) -> Result<Self> {
        Self::open_on(Disk::default(), dir, keep)
    }

    /// The same on a disk of the caller's.
    ///
    /// # Errors
    /// As [`Checkpoints::open`].
    pub fn open_on(disk: Disk, dir: impl AsRef<Path>, keep: usize) -> Result<Self> {
        let dir = dir.as_ref().to_owned();
        disk.create_dir(&dir)?;
        atomic::recover_on(&disk, &dir)?;
        Ok(Checkpoints { disk, dir, keep })
    }

    /// The folder that the checkpoints lie in.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// All checkpoints by step, oldest first, whole or not.
    ///
    /// # Errors
    /// If the folder cannot be listed.
    pub fn list(&self) -> Result<Vec<(u64, PathBuf)>> {
        let list = || format!("cannot list `{}`", self.dir.display());
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.dir).with_context(list)? {
            let path = entry.with_context(list)?.path();
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            if let Some(step) = name.strip_prefix(PREFIX).and_then(|s| s.parse().ok()) {
                found.push((step, path));
            }
        }
        found.sort();
        Ok(found)
    }

    /// Saves the state after `step`: `state` (an object) joins `global_step` and
    /// `epoch` in `trainer_state.json`, `fill` adds files. Once the new checkpoint
    /// is on disk and its checksums hold, those beyond `keep` go, oldest first;
    /// checkpoints of a later step are left-overs of a run that was rewound and go first.
    ///
    /// # Errors
    /// [`crate::DiskError`] naming file and bytes needed, damage found on reading
    /// back, or `fill`'s error; all older checkpoints are then still there.
    pub fn save(
        &self,
        step: u64,
        epoch: f64,
        state: &impl Serialize,
        fill: impl FnOnce(&mut CheckpointWriter) -> Result<()>,
    ) -> Result<PathBuf> {
        let name = format!("{PREFIX}{step}");
        let target = self.dir.join(&name);
        let saving = || format!("cannot save `{}`", target.display());
        let mut writer =
            CheckpointWriter { dir: AtomicDir::begin_on(self.disk.clone(), &target).with_context(saving)? };
        let text = serde_json::to_vec_pretty(&trainer_state(step, epoch, state)?)?;
        writer.file(TRAINER_STATE, &text).and_then(|()| fill(&mut writer)).with_context(saving)?;
        writer.dir.commit().with_context(saving)?;
        atomic::verify(&target)
            .with_context(|| format!("`{}` does not read back as written", target.display()))?;
        self.prune(step)?;
        Ok(target)
    }

    /// Removes all but the newest `keep`, counting steps after `newest` as oldest.
    fn prune(&self, newest: u64) -> Result<()> {
        if self.keep == 0 {
            return Ok(());
        }
        let mut all = self.list()?;
        all.sort_by_key(|(step, _)| (*step <= newest, *step));
        let surplus = all.len().saturating_sub(self.keep);
        for (_, path) in all.into_iter().take(surplus) {
            // Under a leftover's name first: a half-removed folder must not look like a checkpoint.
            let doomed = self.dir.join(format!(".{}.writing", name_of(&path)));
            self.disk.remove(&doomed)?;
            self.disk.rename(&path, &doomed)?;
            self.disk.remove(&doomed)?;
        }
        Ok(())
    }

    /// The newest checkpoint whose every file has its checksum, and the newer
    /// ones that do not.
    ///
    /// # Errors
    /// If the folder cannot be listed.
    pub fn latest_good(&self) -> Result<Latest> {
        let mut damaged = Vec::new();
        for (step, path) in self.list()?.into_iter().rev() {
            match atomic::verify(&path).and_then(|()| read_state(&path, step)) {
                Ok(state) => {
                    return Ok(Latest { good: Some(Checkpoint { path, step, state }), damaged });
                }
                Err(why) => damaged.push(Damaged { path, step, why }),
            }
        }
        Ok(Latest { good: None, damaged })
    }
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn trainer_state(step: u64, epoch: f64, state: &impl Serialize) -> Result<Value> {
    let mut all = Map::new();
    all.insert("global_step".into(), json!(step));
    all.insert("epoch".into(), json!(epoch));
    let given = serde_json::to_value(state).context("the state is no JSON")?;
    let Value::Object(given) = given else {
        anyhow::bail!("the state of a checkpoint must be an object, not `{given}`");
    };
    for (key, value) in given {
        ensure!(!all.contains_key(&key), "a checkpoint's state has its own `{key}`");
        all.insert(key, value);
    }
    Ok(Value::Object(all))
}

fn read_state(path: &Path, step: u64) -> Result<Value, Damage> {
    let unreadable = |why: String| Damage::Unreadable { file: TRAINER_STATE.into(), why };
    let text = fs::read(path.join(TRAINER_STATE)).map_err(|e| unreadable(e.to_string()))?;
    let state: Value = serde_json::from_slice(&text).map_err(|e| unreadable(e.to_string()))?;
    let told = state.get("global_step").and_then(Value::as_u64);
    if told != Some(step) {
        return Err(unreadable(format!("`global_step` is not the folder's {step}")));
    }
    Ok(state)
}

#[cfg(test)]
#[path = "checkpoint_tests.rs"]
mod tests;
