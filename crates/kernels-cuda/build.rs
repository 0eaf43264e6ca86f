//! Embeds what `cargo xtask kernels` compiled, if it is there; otherwise it is looked for at run time.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    println!("cargo::rerun-if-env-changed=CARGO_TARGET_DIR");
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| manifest.join("../../target"), PathBuf::from);
    let folder = target.join("kernels");
    println!("cargo::rerun-if-changed={}", folder.display());
    let entries = fs::read_dir(&folder).into_iter().flatten().filter_map(|e| e.ok().map(|e| e.path()));
    let image = |p: &Path| p.extension().is_some_and(|e| e == "ptx" || e == "cubin");
    let mut images: Vec<PathBuf> = entries.filter(|p| image(p)).collect();
    images.sort();
    let mut code = String::from("const EMBEDDED: &[(&str, &[u8])] = &[\n");
    for path in images {
        println!("cargo::rerun-if-changed={}", path.display());
        let path = path.canonicalize().unwrap_or(path);
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let _ = writeln!(code, "    ({name:?}, include_bytes!({:?})),", path.display().to_string());
    }
    code.push_str("];\n");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    fs::write(out.join("embedded.rs"), code).expect("OUT_DIR can be written");
}
