//! Where weights live while they are not used.
//!
//! | kind | keeps in memory | costs |
//! |---|---|---|
//! | `resident` | everything | nothing |
//! | `disk` | embedding, norm, head, what trains, and the blocks at hand | a read of every block on each walk |
//!
//! The numbers are the same bits wherever the weights live.

mod disk;
mod resident;

pub use disk::{Disk, DiskSettings};
pub use resident::{Resident, ResidentSettings};
