//! Files that survive: atomic folders, checksums, checkpoints, safetensors in and out.
//!
//! | module | gives |
//! |---|---|
//! | [`disk`] | the few file operations that the rest is made of, each with a place where a fault can be injected |
//! | [`atomic`] | folders and files that appear whole or not at all, and `checksums.json` |
//! | [`checkpoint`] | `checkpoint-STEP/` folders, the newest good one, and why others are not good |
//! | [`delta`] | sparse differences from a base, in few bits |
//! | [`header`] | the header of a safetensors file, checked against the file before anything is believed |
//! | [`index`] | reading tensors of one file or of a sharded model, one at a time, into memory of their own |
//! | [`spool`] | a scratch file for bytes that leave memory and come back |
//! | [`mod@write`] | writing safetensors, whole or sharded, one tensor at a time |
//!
//! Nothing is mapped into memory: what is read is counted where it is held.

pub mod atomic;
pub mod checkpoint;
pub mod delta;
pub mod disk;
pub mod header;
pub mod index;
pub mod spool;
pub mod write;

pub use atomic::{AtomicDir, Damage, mirror, recover, verify, write_atomic};
pub use checkpoint::{Checkpoint, CheckpointWriter, Checkpoints, Damaged, Latest};
pub use disk::{Disk, DiskError, Op};
pub use header::{Header, TensorInfo};
pub use index::Index;
pub use safetensors::Dtype;
pub use spool::{Spool, Ticket};
pub use write::{Data, Spec, write_safetensors, write_sharded};
