//! Where the bytes of blocks wait: host memory or a scratch file.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use ramekin_core::Tier;
use ramekin_store::{Spool, Ticket};

/// Bytes that are put away; nothing in a plan.
#[derive(Clone)]
pub enum Parcel {
    /// A plan counts and holds nothing.
    Nothing,
    /// In host memory.
    Host(Arc<Vec<u8>>),
    /// In the scratch file.
    Disk(Ticket),
}

/// The place.
pub struct Shelf {
    /// Folder of the scratch file; host memory if absent.
    folder: Option<PathBuf>,
    spool: Mutex<Option<Arc<Spool>>>,
}

/// Bytes that may wait to be written to disk.
const BUFFER: usize = 64 << 20;

impl Shelf {
    /// Host memory, or a scratch file in this folder.
    pub fn new(folder: Option<PathBuf>) -> Self {
        Shelf { folder, spool: Mutex::default() }
    }

    /// Where the meter counts it.
    pub fn tier(&self) -> Tier {
        if self.folder.is_some() { Tier::Disk } else { Tier::Host }
    }

    fn spool(&self) -> Result<Option<Arc<Spool>>> {
        let Some(folder) = &self.folder else { return Ok(None) };
        let mut spool = self.spool.lock().unwrap_or_else(PoisonError::into_inner);
        if spool.is_none() {
            *spool = Some(Arc::new(Spool::new(folder, BUFFER, None)?));
        }
        Ok(spool.clone())
    }

    /// Puts bytes away.
    pub fn put(&self, bytes: Vec<u8>) -> Result<Parcel> {
        Ok(match self.spool()? {
            None => Parcel::Host(Arc::new(bytes)),
            Some(spool) => Parcel::Disk(spool.put(bytes)?),
        })
    }

    /// The bytes again.
    pub fn get(&self, parcel: &Parcel) -> Result<Arc<Vec<u8>>> {
        Ok(match parcel {
            Parcel::Nothing => Arc::default(),
            Parcel::Host(bytes) => bytes.clone(),
            Parcel::Disk(ticket) => Arc::new(self.spool()?.context("no scratch file")?.get(*ticket)?),
        })
    }

    /// Gives up bytes that others have taken the place of.
    pub fn free(&self, parcel: &Parcel) -> Result<()> {
        if let (Parcel::Disk(ticket), Some(spool)) = (parcel, self.spool()?) {
            spool.free(*ticket);
        }
        Ok(())
    }
}
