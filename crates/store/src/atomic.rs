//! Folders and files that appear whole or not at all.
//!
//! A folder is written as a hidden sibling `.NAME.writing`, summed up in its
//! `checksums.json`, synced, and renamed into place. An older folder of that
//! name is first moved to `.NAME.old` and removed last. Whatever instant the
//! process dies at, the old or the new folder is complete on disk, and
//! [`recover`] puts it back under its name.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::disk::{Disk, FileWriter, Sum};

/// The file in each atomic folder that tells what the others must be.
pub const CHECKSUMS: &str = "checksums.json";

const WRITING: &str = ".writing";
const OLD: &str = ".old";

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Checksums {
    files: BTreeMap<String, Sum>,
}

/// Why a folder is not what was once written into it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Damage {
    /// There is no `checksums.json`, or it cannot be understood.
    NoChecksums(String),
    /// A file is gone.
    Missing {
        /// Its name inside the folder.
        file: String,
    },
    /// A file is shorter or longer than it was.
    Size {
        /// Its name inside the folder.
        file: String,
        /// Bytes that were written.
        expected: u64,
        /// Bytes that are there.
        found: u64,
    },
    /// A file has the right size and other bytes.
    Changed {
        /// Its name inside the folder.
        file: String,
    },
    /// A file cannot be read.
    Unreadable {
        /// Its name inside the folder.
        file: String,
        /// What the system said.
        why: String,
    },
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Damage::NoChecksums(why) => write!(f, "`{CHECKSUMS}` {why}"),
            Damage::Missing { file } => write!(f, "`{file}` is missing"),
            Damage::Size { file, expected, found } if found < expected => {
                write!(f, "`{file}` is cut off: {found} of {expected} bytes are there")
            }
            Damage::Size { file, expected, found } => {
                write!(f, "`{file}` has {found} bytes where {expected} were written")
            }
            Damage::Changed { file } => {
                write!(f, "`{file}` has other bytes than were written (its SHA-256 differs)")
            }
            Damage::Unreadable { file, why } => write!(f, "`{file}` cannot be read: {why}"),
        }
    }
}

impl std::error::Error for Damage {}

/// Checks every file that a folder's `checksums.json` lists; other files do not matter.
///
/// # Errors
/// The first [`Damage`] found.
pub fn verify(dir: &Path) -> Result<(), Damage> {
    let text = match fs::read(dir.join(CHECKSUMS)) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(Damage::NoChecksums("is missing".into()));
        }
        Err(e) => return Err(Damage::NoChecksums(format!("cannot be read: {e}"))),
    };
    let sums: Checksums = serde_json::from_slice(&text)
        .map_err(|e| Damage::NoChecksums(format!("cannot be understood: {e}")))?;
    for (file, expected) in sums.files {
        let path = dir.join(&file);
        let found = match fs::metadata(&path) {
            Ok(meta) => meta.len(),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(Damage::Missing { file }),
            Err(e) => {
                return Err(Damage::Unreadable { file, why: e.to_string() });
            }
        };
        if found != expected.bytes {
            return Err(Damage::Size { file, expected: expected.bytes, found });
        }
        match Sum::of_file(&path) {
            Ok(sum) if sum == expected => {}
            Ok(_) => return Err(Damage::Changed { file }),
            Err(e) => {
                return Err(Damage::Unreadable { file, why: e.to_string() });
            }
        }
    }
    Ok(())
}

/// A folder being written beside its final place. Dropped without
/// [`AtomicDir::commit`], it removes what it wrote.
pub struct AtomicDir {
    disk: Disk,
    target: PathBuf,
    aside: PathBuf,
    sums: BTreeMap<String, Sum>,
    done: bool,
}

impl AtomicDir {
    /// Begins a folder that will stand at `target`; parents are made as needed.
    ///
    /// # Errors
    /// [`crate::DiskError`] if the hidden sibling cannot be made.
    pub fn begin(target: impl AsRef<Path>) -> Result<Self> {
        Self::begin_on(Disk::default(), target)
    }

    /// The same on a disk of the caller's.
    ///
    /// # Errors
    /// As [`AtomicDir::begin`].
    pub fn begin_on(disk: Disk, target: impl AsRef<Path>) -> Result<Self> {
        let target = target.as_ref().to_owned();
        let aside = sibling(&target, WRITING)?;
        restore(&disk, &target)?;
        disk.remove(&aside)?;
        disk.create_dir(&aside)?;
        Ok(AtomicDir { disk, target, aside, sums: BTreeMap::new(), done: false })
    }

    /// Where files go until [`AtomicDir::commit`]; foreign code may write here directly.
    pub fn path(&self) -> &Path {
        &self.aside
    }

    /// Writes one file, hashing it on the way. `name` may have folders in it.
    ///
    /// # Errors
    /// [`crate::DiskError`] with path and bytes needed; whatever `fill` returns.
    pub fn file(&mut self, name: &str, fill: impl FnOnce(&mut FileWriter) -> Result<()>) -> Result<()> {
        let path = self.aside.join(inside(name)?);
        if let Some(parent) = path.parent().filter(|p| *p != self.aside) {
            self.disk.create_dir(parent)?;
        }
        let mut writer = self.disk.create(&path)?;
        fill(&mut writer)?;
        self.sums.insert(name.to_owned(), writer.finish()?);
        Ok(())
    }

    /// Writes one file from bytes in memory.
    ///
    /// # Errors
    /// As [`AtomicDir::file`].
    pub fn write(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        self.file(name, |w| Ok(w.put(bytes)?))
    }

    /// Takes over a file that exists elsewhere, whole and with this sum: by a second name for
    /// it where the file system can, else by a copy.
    ///
    /// # Errors
    /// [`crate::DiskError`] with the path.
    fn take(&mut self, name: &str, from: &Path, sum: &Sum) -> Result<()> {
        let path = self.aside.join(inside(name)?);
        if let Some(parent) = path.parent().filter(|p| *p != self.aside) {
            self.disk.create_dir(parent)?;
        }
        self.disk.link(from, &path)?;
        self.sums.insert(name.to_owned(), sum.clone());
        Ok(())
    }

    /// Sums up, syncs, and puts the folder into place; an older one of the same
    /// name goes away once the new one stands.
    ///
    /// # Errors
    /// [`crate::DiskError`]; the older folder is then still in place.
    pub fn commit(mut self) -> Result<PathBuf> {
        let (files, folders) = contents(&self.aside)?;
        for name in files.iter().filter(|n| *n != CHECKSUMS) {
            if !self.sums.contains_key(name) {
                let path = self.aside.join(name);
                let sum =
                    Sum::of_file(&path).with_context(|| format!("cannot read back `{}`", path.display()))?;
                self.disk.sync_file(&path)?;
                self.sums.insert(name.clone(), sum);
            }
        }
        let sums = Checksums { files: std::mem::take(&mut self.sums) };
        let text = serde_json::to_vec_pretty(&sums)?;
        let mut writer = self.disk.create(&self.aside.join(CHECKSUMS))?;
        writer.put(&text)?;
        writer.finish()?;
        for folder in folders.iter().rev() {
            self.disk.sync_dir(folder)?;
        }
        self.replace()?;
        self.done = true;
        Ok(self.target.clone())
    }

    fn replace(&self) -> Result<()> {
        let old = sibling(&self.target, OLD)?;
        let parent = parent(&self.target);
        let replaces = fs::symlink_metadata(&self.target).is_ok();
        if replaces {
            self.disk.rename(&self.target, &old)?;
        }
        if let Err(e) = self.disk.rename(&self.aside, &self.target) {
            if replaces {
                // Put the old one back; if even that fails, `recover` will.
                let _ = self.disk.rename(&old, &self.target);
            }
            return Err(e.into());
        }
        self.disk.sync_dir(parent)?;
        if replaces {
            self.disk.remove(&old)?;
            self.disk.sync_dir(parent)?;
        }
        Ok(())
    }
}

impl Drop for AtomicDir {
    fn drop(&mut self) {
        if !self.done {
            // What cannot be removed now is removed by `recover`.
            let _ = self.disk.remove(&self.aside);
        }
    }
}

/// Shows a folder that an [`AtomicDir`] wrote under a second name, which costs no room where the
/// file system has links. Files that `checksums.json` does not list stay behind.
///
/// # Errors
/// [`crate::DiskError`]; an older folder at `to` is then still in place.
pub fn mirror(from: &Path, to: &Path) -> Result<()> {
    let listing = from.join(CHECKSUMS);
    let text = fs::read(&listing).with_context(|| format!("cannot read `{}`", listing.display()))?;
    let sums: Checksums = serde_json::from_slice(&text)
        .with_context(|| format!("`{}` cannot be understood", listing.display()))?;
    let mut dir = AtomicDir::begin(to)?;
    for (name, sum) in &sums.files {
        dir.take(name, &from.join(name), sum)?;
    }
    dir.commit().map(drop)
}

/// Finishes or undoes what an interrupted [`AtomicDir`] or [`write_atomic`]
/// left in `parent`: half-written siblings go, an old folder whose place is
/// empty comes back. Call it before looking for such folders. An absent
/// `parent` is fine. Only one process may write there at a time.
///
/// # Errors
/// If `parent` cannot be listed or a leftover cannot be moved.
pub fn recover(parent: &Path) -> Result<()> {
    recover_on(&Disk::default(), parent)
}

pub(crate) fn recover_on(disk: &Disk, parent: &Path) -> Result<()> {
    let entries = match fs::read_dir(parent) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e).with_context(|| format!("cannot list `{}`", parent.display())),
    };
    for entry in entries {
        let path = entry.with_context(|| format!("cannot list `{}`", parent.display()))?.path();
        if strip(&path, WRITING).is_some() {
            disk.remove(&path)?;
        } else if let Some(target) = strip(&path, OLD) {
            restore(disk, &target)?;
        }
    }
    Ok(())
}

/// Brings `.NAME.old` back if `NAME` is absent, else removes it.
fn restore(disk: &Disk, target: &Path) -> Result<()> {
    let old = sibling(target, OLD)?;
    if fs::symlink_metadata(&old).is_err() {
        return Ok(());
    }
    if fs::symlink_metadata(target).is_ok() {
        disk.remove(&old)?;
    } else {
        disk.rename(&old, target)?;
        disk.sync_dir(parent(target))?;
    }
    Ok(())
}

/// Writes a file that is afterwards either the old or the new one, whole.
///
/// # Errors
/// [`crate::DiskError`] with the path and the bytes needed; the old file is then untouched.
pub fn write_atomic(path: impl AsRef<Path>, bytes: &[u8]) -> Result<()> {
    write_atomic_on(&Disk::default(), path.as_ref(), bytes)
}

pub(crate) fn write_atomic_on(disk: &Disk, path: &Path, bytes: &[u8]) -> Result<()> {
    write_file_on(disk, path, |w| Ok(w.put(bytes)?))
}

/// The same for a file that is written piece by piece.
pub(crate) fn write_file_on(
    disk: &Disk,
    path: &Path,
    fill: impl FnOnce(&mut FileWriter) -> Result<()>,
) -> Result<()> {
    let aside = sibling(path, WRITING)?;
    let parent = parent(path);
    let attempt = || -> Result<()> {
        disk.create_dir(parent)?;
        let mut writer = disk.create(&aside)?;
        fill(&mut writer)?;
        writer.finish()?;
        disk.rename(&aside, path)?;
        Ok(disk.sync_dir(parent)?)
    };
    attempt().inspect_err(|_| drop(disk.remove(&aside)))
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    }
}

fn sibling(target: &Path, suffix: &str) -> Result<PathBuf> {
    let name = target
        .file_name()
        .with_context(|| format!("`{}` names no file or folder to write", target.display()))?;
    let mut hidden = OsString::from(".");
    hidden.push(name);
    hidden.push(suffix);
    Ok(target.with_file_name(hidden))
}

/// The place that a hidden sibling stands for.
fn strip(path: &Path, suffix: &str) -> Option<PathBuf> {
    let name = path.file_name().and_then(OsStr::to_str)?;
    let inner = name.strip_prefix('.')?.strip_suffix(suffix)?;
    (!inner.is_empty()).then(|| path.with_file_name(inner))
}

fn inside(name: &str) -> Result<&Path> {
    let path = Path::new(name);
    let plain = path.components().all(|c| matches!(c, std::path::Component::Normal(_)));
    ensure!(plain && !name.is_empty(), "`{name}` is no file name inside a folder");
    Ok(path)
}

/// Names of all files below a folder (with `/`), and all folders, parents first.
fn contents(root: &Path) -> Result<(Vec<String>, Vec<PathBuf>)> {
    let (mut files, mut folders) = (Vec::new(), vec![root.to_owned()]);
    let mut next = 0;
    while let Some(folder) = folders.get(next).cloned() {
        next += 1;
        let list = || format!("cannot list `{}`", folder.display());
        for entry in fs::read_dir(&folder).with_context(list)? {
            let path = entry.with_context(list)?.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(root)?;
                let name = name
                    .to_str()
                    .with_context(|| format!("the file name `{}` is not UTF-8", path.display()))?;
                files.push(name.replace('\\', "/"));
            }
        }
    }
    files.sort();
    Ok((files, folders))
}

#[cfg(test)]
#[path = "atomic_tests.rs"]
mod tests;
