//! The compiled kernels: code for sm_90, PTX for other devices since compute capability 8.0.

use std::env;
use std::fs;
use std::path::PathBuf;

use cudarc::nvrtc::Ptx;

use crate::CudaError;

include!(concat!(env!("OUT_DIR"), "/embedded.rs"));

/// What a device of this compute capability loads for a `.cu` file.
pub(crate) fn image(file: &'static str, capability: (i32, i32)) -> Result<Ptx, CudaError> {
    if capability < (8, 0) {
        return Err(CudaError::TooOld { major: capability.0, minor: capability.1 });
    }
    // Code for 9.0 runs on 9.x alone.
    let native = capability.0 == 9;
    let name = format!("{file}.{}", if native { "sm_90.cubin" } else { "ptx" });
    let bytes = match env::var_os("RAMEKIN_KERNELS").filter(|f| !f.is_empty()) {
        Some(folder) => {
            let path = PathBuf::from(folder).join(&name);
            fs::read(&path).map_err(|e| CudaError::Unreadable { path, why: e.to_string() })?
        }
        None => {
            let found = EMBEDDED.iter().find(|(n, _)| *n == name);
            found.map(|(_, bytes)| bytes.to_vec()).ok_or(CudaError::NotCompiled { file })?
        }
    };
    if native {
        return Ok(Ptx::from_binary(bytes));
    }
    let text =
        String::from_utf8(bytes).map_err(|_| CudaError::Refused { file, why: "no text".to_owned() })?;
    Ok(Ptx::from_src(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_devices_and_missing_images_are_named() {
        assert!(matches!(image("rms_norm", (7, 5)), Err(CudaError::TooOld { major: 7, minor: 5 })));
        let missing = image("no_such_file", (9, 0)).map(drop).expect_err("there is none");
        assert!(missing.to_string().contains("no_such_file"), "{missing}");
    }

    #[test]
    fn embedded_images_are_what_they_are_called() {
        for (name, bytes) in EMBEDDED {
            let begin = if name.ends_with(".cubin") { &b"\x7fELF"[..] } else { b"//" };
            assert!(bytes.starts_with(begin), "{name}");
        }
    }
}
