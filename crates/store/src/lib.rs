//! Files that survive: atomic folders, checksums, checkpoints, safetensors in and out.
