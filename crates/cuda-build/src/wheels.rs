//! The compiler's wheels: one minor version, each file pinned by its SHA-256.
//!
//! All must be of one minor version: a compiler of 13.1 writes PTX that the assembler of 13.0 refuses with
//! "Unsupported .version".

/// The minor version that all wheels are of.
pub const MINOR: &str = "13.0";

/// A wheel for one processor.
#[derive(Clone, Copy, Debug)]
pub struct Wheel {
    /// The package's name in the index.
    pub package: &'static str,
    /// Its version.
    pub version: &'static str,
    /// The file's name.
    pub file: &'static str,
    /// SHA-256 of the file, in hexadecimal.
    pub sha256: &'static str,
    /// Size in bytes.
    pub bytes: u64,
}

const X86_64: [Wheel; 5] = [
    Wheel {
        package: "nvidia-cuda-nvcc",
        version: "13.0.88",
        file: "nvidia_cuda_nvcc-13.0.88-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
        sha256: "56fe502eb77625a12f25172caa3cdddb4e4c8ba2c8c17dba44b164761b380f03",
        bytes: 37_384_532,
    },
    Wheel {
        package: "nvidia-nvvm",
        version: "13.0.88",
        file: "nvidia_nvvm-13.0.88-py3-none-manylinux2010_x86_64.manylinux_2_12_x86_64.whl",
        sha256: "c5f41ffeb6466944a026dfa5317d7d85355c119bbec279205d22f1869d1054e0",
        bytes: 61_601_415,
    },
    Wheel {
        package: "nvidia-cuda-crt",
        version: "13.0.88",
        file: "nvidia_cuda_crt-13.0.88-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
        sha256: "2c8043c7c9e02492716426e9919fc78d2c5b3b2a7a768a88e952676b08aa55a4",
        bytes: 134_086,
    },
    Wheel {
        package: "nvidia-cuda-runtime",
        version: "13.0.96",
        file: "nvidia_cuda_runtime-13.0.96-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
        sha256: "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548",
        bytes: 2_243_632,
    },
    Wheel {
        package: "nvidia-cuda-cccl",
        version: "13.0.85",
        file: "nvidia_cuda_cccl-13.0.85-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
        sha256: "e0da7ad981f3a8aff08241b5bfc1af868742a63e2762f53a5171c492ef242649",
        bytes: 3_120_526,
    },
];

const AARCH64: [Wheel; 5] = [
    Wheel {
        package: "nvidia-cuda-nvcc",
        version: "13.0.88",
        file: "nvidia_cuda_nvcc-13.0.88-py3-none-manylinux2014_aarch64.manylinux_2_17_aarch64.whl",
        sha256: "c7ff28f86a24effdc6c034fa15230c549a273e4771b10a7fec14996f8cf3307f",
        bytes: 32_455_430,
    },
    Wheel {
        package: "nvidia-nvvm",
        version: "13.0.88",
        file: "nvidia_nvvm-13.0.88-py3-none-manylinux2014_aarch64.manylinux_2_17_aarch64.whl",
        sha256: "c4376a291d72d22a315d9d2f69bdae8f8cd83a627f75bad395cee49a0fe65dc1",
        bytes: 59_234_185,
    },
    Wheel {
        package: "nvidia-cuda-crt",
        version: "13.0.88",
        file: "nvidia_cuda_crt-13.0.88-py3-none-manylinux2014_aarch64.manylinux_2_17_aarch64.whl",
        sha256: "ee2ea2a97073e02ee62bb27841f437332be2c248e3eac013df07997ada39c003",
        bytes: 134_086,
    },
    Wheel {
        package: "nvidia-cuda-runtime",
        version: "13.0.96",
        file: "nvidia_cuda_runtime-13.0.96-py3-none-manylinux2014_aarch64.manylinux_2_17_aarch64.whl",
        sha256: "ef9bcbe90493a2b9d810e43d249adb3d02e98dd30200d86607d8d02687c43f55",
        bytes: 2_261_060,
    },
    Wheel {
        package: "nvidia-cuda-cccl",
        version: "13.0.85",
        file: "nvidia_cuda_cccl-13.0.85-py3-none-manylinux2014_aarch64.manylinux_2_17_aarch64.whl",
        sha256: "6f0203e29fed809ee2b7fe9b1344df66ecab990c37d6a2e0e189b26d6c97ed7c",
        bytes: 3_120_528,
    },
];

/// The wheels for a system and a processor (Rust's names of them), where there are any.
pub fn wheels(os: &str, arch: &str) -> Option<&'static [Wheel]> {
    match (os, arch) {
        ("linux", "x86_64") => Some(&X86_64),
        ("linux", "aarch64") => Some(&AARCH64),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_are_of_one_minor_version() {
        for arch in ["x86_64", "aarch64"] {
            for wheel in wheels("linux", arch).expect("wheels") {
                assert!(wheel.version.starts_with(&format!("{MINOR}.")), "{wheel:?}");
                let stem = format!("{}-{}-", wheel.package.replace('-', "_"), wheel.version);
                assert!(wheel.file.starts_with(&stem) && wheel.file.contains(arch), "{wheel:?}");
                assert_eq!(wheel.sha256.len(), 64);
            }
        }
        assert!(wheels("macos", "aarch64").is_none());
    }
}
