//! Where weights live while they are not used.
//!
//! | kind | keeps in memory | costs |
//! |---|---|---|
//! | `resident` | everything | nothing |
//! | `disk` | embedding, norm, head, what trains, and the blocks at hand | a read of every block on each walk |
//! | `offload` | embedding, norm, head, and buffers for the blocks at hand | a copy of every block on each walk, and one back where it changed |
//!
//! The numbers are the same bits wherever the weights live, unless `offload` is told to hold them in fewer.

mod arena;
mod disk;
mod link;
mod moving;
mod offload;
mod piece;
mod resident;
mod shelf;

pub use disk::{Disk, DiskSettings};
pub use link::{Delay, Leg, Moves};
pub use offload::{All, Blocks, Device, HostDtype, Offload, OffloadSettings, Rounded};
pub use resident::{Resident, ResidentSettings};
