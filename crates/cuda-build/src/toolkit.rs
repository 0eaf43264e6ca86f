//! The compiler as a folder: fetched once, whole or not at all.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use flate2::bufread::DeflateDecoder;
use rawzip::{CompressionMethod, ZipArchive};
use sha2::{Digest, Sha256};

use crate::index::{Index, hex};
use crate::wheels::{MINOR, Wheel};

/// Where the wheels keep their files.
const PREFIX: &str = "nvidia/cu13/";

/// What compiling needs of them; the linker and the libraries stay behind.
const WANTED: [&str; 9] = [
    "bin/nvcc",
    "bin/nvcc.profile",
    "bin/ptxas",
    "bin/fatbinary",
    "bin/cudafe++",
    "bin/crt/",
    "nvvm/bin/",
    "nvvm/libdevice/",
    "include/",
];

/// Fetches and unpacks the wheels under `target/cuda`, unless they are there. Returns the folder with `bin/nvcc`.
///
/// # Errors
/// [`IndexError`](crate::index::IndexError); a wheel that cannot be unpacked; a disk that cannot be written.
pub fn toolkit(target: &Path, wheels: &[Wheel]) -> Result<PathBuf> {
    let pins: Vec<&str> = wheels.iter().map(|w| w.sha256).collect();
    let id = &hex(&Sha256::digest(pins.join(" ")))[..12];
    let home = target.join("cuda").join(format!("toolkit-{MINOR}-{id}"));
    if home.is_dir() {
        return Ok(home);
    }
    // A folder of its own, so that two at a time do not meet.
    let process = std::process::id();
    let (downloads, unpacked) = (target.join("cuda/wheels"), target.join(format!("cuda/part-{process}")));
    let _ = fs::remove_dir_all(&unpacked);
    for folder in [&downloads, &unpacked] {
        fs::create_dir_all(folder).with_context(|| format!("cannot make `{}`", folder.display()))?;
    }
    let index = Index::from_env()?;
    for wheel in wheels {
        let path = index.fetch(wheel, &downloads)?;
        let bytes = fs::read(&path).with_context(|| format!("cannot read `{}`", path.display()))?;
        unpack(&bytes, &unpacked).with_context(|| format!("cannot unpack `{}`", wheel.file))?;
    }
    if let Err(e) = fs::rename(&unpacked, &home)
        && !home.is_dir()
    {
        return Err(e).with_context(|| format!("cannot make `{}`", home.display()));
    }
    // Unpacked they are of no more use.
    let _ = fs::remove_dir_all(&downloads);
    let _ = fs::remove_dir_all(&unpacked);
    Ok(home)
}

/// Writes what is wanted of a wheel into a folder, with the sizes and checksums that it declares.
fn unpack(wheel: &[u8], folder: &Path) -> Result<()> {
    let archive = ZipArchive::from_slice(wheel)?;
    let mut entries = archive.entries();
    while let Some(entry) = entries.next_entry()? {
        let path = entry.file_path().try_normalize()?;
        let Some(inside) = path.as_str().strip_prefix(PREFIX) else { continue };
        let wanted = |w: &&str| inside == *w || w.ends_with('/') && inside.starts_with(*w);
        if entry.is_dir() || !WANTED.iter().any(wanted) {
            continue;
        }
        let out = folder.join(inside);
        fs::create_dir_all(out.parent().unwrap_or(folder))?;
        let mut file = File::create(&out)?;
        let held = archive.get_entry(entry.wayfinder())?;
        match entry.compression_method() {
            CompressionMethod::DEFLATE => {
                copy(held.verifying_reader(DeflateDecoder::new(held.data())), &mut file)?;
            }
            CompressionMethod::STORE => copy(held.verifying_reader(held.data()), &mut file)?,
            other => bail!("`{inside}` is compressed by a method that is not known here ({other:?})"),
        }
        if inside.contains("bin/") {
            make_executable(&out)?;
        }
    }
    Ok(())
}

fn copy(mut from: impl Read, to: &mut File) -> io::Result<()> {
    io::copy(&mut from, to).map(drop)
}

#[cfg(unix)]
fn make_executable(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
}

#[cfg(not(unix))]
fn make_executable(_: &Path) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn wheel(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut archive = rawzip::ZipArchiveWriter::new(&mut bytes);
        for (name, data) in files {
            let (mut entry, config) =
                archive.new_file(name).compression_method(CompressionMethod::DEFLATE).start().expect("entry");
            let encoder = flate2::write::DeflateEncoder::new(&mut entry, flate2::Compression::default());
            let mut writer = config.wrap(encoder);
            writer.write_all(data).expect("data");
            let (encoder, descriptor) = writer.finish().expect("data");
            encoder.finish().expect("data");
            entry.finish(descriptor).expect("entry");
        }
        archive.finish().expect("archive");
        bytes
    }

    #[test]
    fn only_what_compiling_needs_is_unpacked() {
        let folder = tempfile::tempdir().expect("folder");
        let bytes = wheel(&[
            ("nvidia/cu13/bin/nvcc", b"compiler"),
            ("nvidia/cu13/bin/nvlink", b"linker"),
            ("nvidia/cu13/include/cuda.h", b"header"),
            ("nvidia/cu13/lib/libnvvm.so.4", b"library"),
            ("elsewhere/include/a.h", b"other"),
        ]);
        unpack(&bytes, folder.path()).expect("a wheel");
        let read = |p: &str| fs::read(folder.path().join(p));
        assert_eq!(read("bin/nvcc").expect("nvcc"), b"compiler");
        assert_eq!(read("include/cuda.h").expect("cuda.h"), b"header");
        assert!(read("bin/nvlink").is_err() && !folder.path().join("lib").exists());
    }

    #[test]
    fn a_damaged_wheel_is_refused() {
        let folder = tempfile::tempdir().expect("folder");
        let mut bytes = wheel(&[("nvidia/cu13/include/cuda.h", &[7u8; 4000])]);
        let at = bytes.windows(6).position(|w| w == b"cuda.h").expect("name") + 6;
        bytes[at + 2] ^= 0x55;
        assert!(unpack(&bytes, folder.path()).is_err());
        assert!(unpack(&bytes[..bytes.len() / 2], folder.path()).is_err());
    }
}
