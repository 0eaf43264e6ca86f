//! The file operations that everything here is made of.
//!
//! Each operation first asks an optional hook, so that a test can make the
//! disk full, refuse permission or die at any chosen instant.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ramekin_core::units;
use sha2::{Digest, Sha256};

/// One kind of file operation, as the hook sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Making a folder.
    CreateDir,
    /// Making or emptying a file.
    CreateFile,
    /// Writing some bytes to a file.
    Write,
    /// Forcing a file's bytes to the device.
    SyncFile,
    /// Forcing a folder's entries to the device.
    SyncDir,
    /// Renaming a file or folder.
    Rename,
    /// Removing a file or an (emptied) folder.
    Remove,
}

/// Decides before each operation whether it fails.
pub type Hook = dyn Fn(Op, &Path) -> io::Result<()> + Send + Sync;

/// Where files are written: the real file system, perhaps with a fault hook.
#[derive(Clone, Default)]
pub struct Disk {
    hook: Option<Arc<Hook>>,
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.hook.is_some() { "Disk(with faults)" } else { "Disk" })
    }
}

/// A file operation that failed: which file, what for, and what it needed.
#[derive(Debug)]
pub struct DiskError {
    /// The file or folder.
    pub path: PathBuf,
    /// What was being done, as in "writing".
    pub doing: &'static str,
    /// Bytes that the operation needed, where that is known.
    pub needed: Option<u64>,
    /// What the system said.
    pub source: io::Error,
}

impl DiskError {
    /// Whether room is what is missing (disk full, quota used up, file too large).
    pub fn is_full(&self) -> bool {
        use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        matches!(self.source.kind(), StorageFull | QuotaExceeded | FileTooLarge)
    }

    /// Whether an error, or one that it was caused by, says that the disk is full.
    pub fn found_full(error: &anyhow::Error) -> bool {
        error.chain().any(|e| e.downcast_ref::<DiskError>().is_some_and(DiskError::is_full))
    }
}

impl fmt::Display for DiskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        match (self.is_full(), self.source.kind()) {
            (true, _) => write!(f, "no room on the disk while {} `{path}`", self.doing)?,
            (_, io::ErrorKind::PermissionDenied) => {
                write!(f, "no permission while {} `{path}`", self.doing)?;
            }
            _ => write!(f, "failed while {} `{path}`", self.doing)?,
        }
        if let Some(needed) = self.needed {
            write!(f, ", which needed {} ({needed} bytes)", units::bytes(needed))?;
        }
        write!(f, ": {}", self.source)
    }
}

// The cause is part of the text, so it is not offered as `source()` again.
impl std::error::Error for DiskError {}

pub(crate) type DiskResult<T> = Result<T, DiskError>;

fn failed(path: &Path, doing: &'static str, source: io::Error) -> DiskError {
    DiskError { path: path.to_owned(), doing, needed: None, source }
}

impl Disk {
    /// A disk whose operations can fail: the hook is asked before each one, and
    /// a refused write still takes half of its bytes, as a real disk may.
    pub fn with_hook(hook: impl Fn(Op, &Path) -> io::Result<()> + Send + Sync + 'static) -> Self {
        Disk { hook: Some(Arc::new(hook)) }
    }

    fn ask(&self, op: Op, path: &Path) -> io::Result<()> {
        self.hook.as_ref().map_or(Ok(()), |hook| hook(op, path))
    }

    fn run<T>(
        &self,
        op: Op,
        path: &Path,
        doing: &'static str,
        act: impl FnOnce() -> io::Result<T>,
    ) -> DiskResult<T> {
        self.ask(op, path).and_then(|()| act()).map_err(|e| failed(path, doing, e))
    }

    pub(crate) fn create_dir(&self, path: &Path) -> DiskResult<()> {
        self.run(Op::CreateDir, path, "making the folder", || fs::create_dir_all(path))
    }

    pub(crate) fn rename(&self, from: &Path, to: &Path) -> DiskResult<()> {
        self.run(Op::Rename, to, "renaming into", || fs::rename(from, to))
    }

    /// A second name for a file; a copy where the file system has no such thing.
    pub(crate) fn link(&self, from: &Path, to: &Path) -> DiskResult<()> {
        self.run(Op::CreateFile, to, "linking", || {
            fs::hard_link(from, to).or_else(|_| {
                fs::copy(from, to)?;
                File::open(to)?.sync_all()
            })
        })
    }

    /// Removes a file or a folder with all that is in it, one entry at a time; absent is fine.
    pub(crate) fn remove(&self, path: &Path) -> DiskResult<()> {
        let doing = "removing";
        match fs::symlink_metadata(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(failed(path, doing, e)),
            Ok(meta) if meta.is_dir() => {
                for entry in fs::read_dir(path).map_err(|e| failed(path, doing, e))? {
                    self.remove(&entry.map_err(|e| failed(path, doing, e))?.path())?;
                }
                self.run(Op::Remove, path, doing, || fs::remove_dir(path))?;
            }
            Ok(_) => self.run(Op::Remove, path, doing, || fs::remove_file(path))?,
        }
        Ok(())
    }

    pub(crate) fn sync_file(&self, path: &Path) -> DiskResult<()> {
        self.run(Op::SyncFile, path, "syncing", || File::open(path)?.sync_all())
    }

    /// Makes renames inside a folder durable; only Unix lets a folder be synced.
    pub(crate) fn sync_dir(&self, path: &Path) -> DiskResult<()> {
        self.run(
            Op::SyncDir,
            path,
            "syncing",
            || {
                if cfg!(unix) { File::open(path)?.sync_all() } else { Ok(()) }
            },
        )
    }

    /// A new file that counts and hashes what goes into it.
    pub(crate) fn create(&self, path: &Path) -> DiskResult<FileWriter> {
        let file = self.run(Op::CreateFile, path, "making", || File::create(path))?;
        Ok(FileWriter { file, path: path.to_owned(), disk: self.clone(), sha: Sha256::new(), bytes: 0 })
    }
}

/// A file being written; counts and hashes its bytes on the way.
pub struct FileWriter {
    file: File,
    path: PathBuf,
    disk: Disk,
    sha: Sha256,
    bytes: u64,
}

impl FileWriter {
    /// Writes all of these bytes.
    ///
    /// # Errors
    /// [`DiskError`] with the path and the number of bytes that did not fit.
    pub fn put(&mut self, bytes: &[u8]) -> DiskResult<()> {
        // Pieces small enough that a fault can strike inside a large tensor.
        for piece in bytes.chunks(4 << 20) {
            let written = match self.disk.ask(Op::Write, &self.path) {
                Ok(()) => self.file.write_all(piece),
                Err(e) => self.file.write_all(&piece[..piece.len() / 2]).and(Err(e)),
            };
            written.map_err(|e| DiskError {
                needed: Some(bytes.len() as u64),
                ..failed(&self.path, "writing", e)
            })?;
            self.sha.update(piece);
            self.bytes += piece.len() as u64;
        }
        Ok(())
    }

    /// Forces the bytes to the device; returns their number and SHA-256.
    pub(crate) fn finish(self) -> DiskResult<Sum> {
        let FileWriter { file, path, disk, sha, bytes } = self;
        disk.run(Op::SyncFile, &path, "syncing", || file.sync_all())?;
        Ok(Sum { sha256: hex(&sha.finalize()), bytes })
    }
}

/// Size and SHA-256 of a file.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sum {
    /// Lower-case hexadecimal SHA-256.
    pub sha256: String,
    /// Size in bytes.
    pub bytes: u64,
}

impl Sum {
    /// Reads a file once and sums it up.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn of_file(path: &Path) -> io::Result<Sum> {
        struct Count(Sha256, u64);
        impl Write for Count {
            fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
                self.0.update(piece);
                self.1 += piece.len() as u64;
                Ok(piece.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut count = Count(Sha256::new(), 0);
        let mut reader = io::BufReader::with_capacity(1 << 20, File::open(path)?);
        io::copy(&mut reader, &mut count)?;
        Ok(Sum { sha256: hex(&count.0.finalize()), bytes: count.1 })
    }
}

fn hex(digest: &[u8]) -> String {
    digest.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_path_purpose_and_need() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.bin");
        let full = Disk::with_hook(|op, _| match op {
            Op::Write => Err(io::ErrorKind::StorageFull.into()),
            _ => Ok(()),
        });
        let error = full.create(&path).unwrap().put(&[7; 2048]).unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with("no room on the disk while writing `"), "{text}");
        assert!(text.contains("x.bin`, which needed 2.0 KiB (2048 bytes)"), "{text}");
        assert!(DiskError::found_full(&anyhow::Error::from(error).context("saving")));
        assert_eq!(fs::read(&path).unwrap().len(), 1024, "half of the bytes arrived");

        let denied = Disk::with_hook(|_, _| Err(io::ErrorKind::PermissionDenied.into()));
        let error = denied.create(&path).map(|_| ()).unwrap_err();
        assert!(error.to_string().starts_with("no permission while making `"), "{error}");
        assert!(!error.is_full());
    }

    #[test]
    fn sums_agree() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("abc");
        let mut file = Disk::default().create(&path).unwrap();
        file.put(b"a").unwrap();
        file.put(b"bc").unwrap();
        let written = file.finish().unwrap();
        assert_eq!(written, Sum::of_file(&path).unwrap());
        assert_eq!(written.sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
