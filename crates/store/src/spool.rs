//! A scratch file for bytes that leave memory and come back: written behind the caller, read ahead of it.
//!
//! One worker thread writes in order. Bytes that are not written yet are given
//! back from memory; bytes asked for in advance ([`Spool::prefetch`]) are read
//! by the worker, all others by the caller. The file has no name: it is gone
//! with the process, however that ends.
//!
//! `bandwidth` makes the disk as slow as wanted, so that overlap can be tested anywhere.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Bytes put away. Give it back to [`Spool::free`] when they are not needed any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket(u64);

enum Place {
    /// To be written.
    Memory(Arc<Vec<u8>>),
    Disk,
    /// The worker is at it, or will be.
    Coming,
    /// Read ahead.
    Here(Vec<u8>),
    Lost(String),
}

struct Entry {
    offset: u64,
    len: usize,
    place: Place,
}

enum Job {
    Write(Ticket),
    Read(Ticket),
}

#[derive(Default)]
struct State {
    entries: HashMap<Ticket, Entry>,
    jobs: VecDeque<Job>,
    /// Freed extents by length.
    holes: HashMap<usize, Vec<u64>>,
    end: u64,
    next: u64,
    unwritten: usize,
    written: u64,
    read: u64,
    closing: bool,
}

struct Shared {
    file: File,
    state: Mutex<State>,
    changed: Condvar,
    bandwidth: Option<f64>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&'a self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// Does what a transfer of this many bytes takes on the simulated disk.
    fn pace(&self, began: Instant, bytes: usize) {
        if let Some(rate) = self.bandwidth {
            let due = Duration::from_secs_f64(bytes as f64 / rate);
            std::thread::sleep(due.saturating_sub(began.elapsed()));
        }
    }

    fn read(&self, offset: u64, len: usize) -> std::io::Result<Vec<u8>> {
        let began = Instant::now();
        let mut bytes = vec![0; len];
        self.file.read_exact_at(&mut bytes, offset)?;
        self.pace(began, len);
        Ok(bytes)
    }
}

/// The scratch file.
pub struct Spool {
    shared: Arc<Shared>,
    worker: Option<JoinHandle<()>>,
    most_unwritten: usize,
}

impl Spool {
    /// A scratch file in `folder`. At most `buffer` bytes wait to be written; `bandwidth` (bytes a
    /// second) slows transfers down to that of a simulated disk.
    ///
    /// # Errors
    /// If the file or the thread cannot be made.
    pub fn new(folder: &Path, buffer: usize, bandwidth: Option<f64>) -> Result<Self> {
        let file = tempfile::tempfile_in(folder)
            .with_context(|| format!("cannot make a scratch file in `{}`", folder.display()))?;
        let shared = Arc::new(Shared { file, state: Mutex::default(), changed: Condvar::new(), bandwidth });
        let theirs = shared.clone();
        let worker = std::thread::Builder::new()
            .name("spool".to_owned())
            .spawn(move || work(&theirs))
            .context("cannot start the spool's thread")?;
        Ok(Spool { shared, worker: Some(worker), most_unwritten: buffer })
    }

    /// Puts bytes away; waits where too many are still to be written.
    ///
    /// # Errors
    /// If an earlier write failed, a full disk above all.
    pub fn put(&self, bytes: Vec<u8>) -> Result<Ticket> {
        let mut state = self.shared.state();
        while state.unwritten > 0 && state.unwritten + bytes.len() > self.most_unwritten {
            state = self.shared.wait(state);
        }
        if let Some(why) = state.entries.values().find_map(|e| match &e.place {
            Place::Lost(why) => Some(why.clone()),
            _ => None,
        }) {
            bail!("{why}");
        }
        let len = bytes.len();
        let offset = match state.holes.get_mut(&len).and_then(Vec::pop) {
            Some(hole) => hole,
            None => {
                state.end += len as u64;
                state.end - len as u64
            }
        };
        let ticket = Ticket(state.next);
        state.next += 1;
        state.unwritten += len;
        state.entries.insert(ticket, Entry { offset, len, place: Place::Memory(Arc::new(bytes)) });
        state.jobs.push_back(Job::Write(ticket));
        drop(state);
        self.shared.changed.notify_all();
        Ok(ticket)
    }

    /// Begins to read bytes that will be wanted soon.
    pub fn prefetch(&self, ticket: Ticket) {
        let mut state = self.shared.state();
        if let Some(entry) = state.entries.get_mut(&ticket)
            && matches!(entry.place, Place::Disk)
        {
            entry.place = Place::Coming;
            state.jobs.push_back(Job::Read(ticket));
            drop(state);
            self.shared.changed.notify_all();
        }
    }

    /// Lets go of bytes that were read ahead and are not wanted after all; they can still be had.
    pub fn forgo(&self, ticket: Ticket) {
        let mut state = self.shared.state();
        if let Some(entry) = state.entries.get_mut(&ticket)
            && matches!(entry.place, Place::Coming | Place::Here(_))
        {
            entry.place = Place::Disk;
        }
    }

    /// The bytes again. They stay on disk until [`Spool::free`].
    ///
    /// # Errors
    /// If they could not be written or cannot be read.
    pub fn get(&self, ticket: Ticket) -> Result<Vec<u8>> {
        let mut state = self.shared.state();
        loop {
            let entry = state.entries.get_mut(&ticket).context("these bytes were freed")?;
            match &mut entry.place {
                Place::Memory(bytes) => return Ok(bytes.to_vec()),
                Place::Lost(why) => bail!("{why}"),
                Place::Here(bytes) => {
                    let bytes = std::mem::take(bytes);
                    entry.place = Place::Disk;
                    return Ok(bytes);
                }
                Place::Disk => {
                    let (offset, len) = (entry.offset, entry.len);
                    drop(state);
                    let bytes = self.shared.read(offset, len).context("cannot read the scratch file")?;
                    self.shared.state().read += len as u64;
                    return Ok(bytes);
                }
                Place::Coming => state = self.shared.wait(state),
            }
        }
    }

    /// Gives the bytes' place away.
    pub fn free(&self, ticket: Ticket) {
        let mut state = self.shared.state();
        while matches!(state.entries.get(&ticket).map(|e| &e.place), Some(Place::Memory(_) | Place::Coming)) {
            state = self.shared.wait(state);
        }
        if let Some(entry) = state.entries.remove(&ticket) {
            state.holes.entry(entry.len).or_default().push(entry.offset);
        }
    }

    /// Bytes written and read so far.
    pub fn traffic(&self) -> (u64, u64) {
        let state = self.shared.state();
        (state.written, state.read)
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        self.shared.state().closing = true;
        self.shared.changed.notify_all();
        if let Some(worker) = self.worker.take() {
            let _ = worker.join();
        }
    }
}

fn work(shared: &Shared) {
    let mut state = shared.state();
    loop {
        if state.closing {
            return;
        }
        let Some(job) = state.jobs.pop_front() else {
            state = shared.wait(state);
            continue;
        };
        match job {
            Job::Write(ticket) => {
                let Some((offset, bytes)) = state.entries.get(&ticket).and_then(|e| match &e.place {
                    Place::Memory(bytes) => Some((e.offset, bytes.clone())),
                    _ => None,
                }) else {
                    continue;
                };
                drop(state);
                let began = Instant::now();
                let done = shared.file.write_all_at(&bytes, offset);
                shared.pace(began, bytes.len());
                state = shared.state();
                state.unwritten -= bytes.len();
                state.written += bytes.len() as u64;
                if let Some(entry) = state.entries.get_mut(&ticket) {
                    entry.place = match done {
                        Ok(()) => Place::Disk,
                        Err(e) => Place::Lost(format!("cannot write the scratch file: {e}")),
                    };
                }
            }
            Job::Read(ticket) => {
                let wanted = state.entries.get(&ticket).filter(|e| matches!(e.place, Place::Coming));
                let Some((offset, len)) = wanted.map(|e| (e.offset, e.len)) else {
                    continue;
                };
                drop(state);
                let done = shared.read(offset, len);
                state = shared.state();
                state.read += len as u64;
                if let Some(entry) = state.entries.get_mut(&ticket)
                    && matches!(entry.place, Place::Coming)
                {
                    entry.place = match done {
                        Ok(bytes) => Place::Here(bytes),
                        Err(e) => Place::Lost(format!("cannot read the scratch file: {e}")),
                    };
                }
            }
        }
        shared.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spool(bandwidth: Option<f64>) -> Spool {
        Spool::new(&std::env::temp_dir(), 1 << 16, bandwidth).unwrap()
    }

    #[test]
    fn bytes_come_back_in_any_order() {
        let spool = spool(None);
        let data = |i: usize| vec![i as u8; 1000 + i];
        let tickets: Vec<Ticket> = (0..40).map(|i| spool.put(data(i)).unwrap()).collect();
        tickets.iter().rev().step_by(2).for_each(|t| spool.prefetch(*t));
        for (i, t) in tickets.iter().enumerate().rev() {
            assert_eq!(spool.get(*t).unwrap(), data(i));
            assert_eq!(spool.get(*t).unwrap(), data(i), "a second time");
        }
    }

    #[test]
    fn what_is_forgone_can_still_be_had() {
        let spool = spool(Some(4e6));
        let tickets: Vec<Ticket> = (0..8u8).map(|i| spool.put(vec![i; 20_000]).unwrap()).collect();
        for round in 0..3 {
            tickets.iter().for_each(|t| spool.prefetch(*t));
            tickets.iter().skip(round).step_by(2).for_each(|t| spool.forgo(*t));
            for (i, t) in tickets.iter().enumerate() {
                assert_eq!(spool.get(*t).unwrap(), vec![i as u8; 20_000], "round {round}");
            }
        }
    }

    #[test]
    fn freed_places_are_used_again() {
        let spool = spool(None);
        for i in 0..20u8 {
            let t = spool.put(vec![i; 4096]).unwrap();
            assert_eq!(spool.get(t).unwrap(), vec![i; 4096]);
            spool.free(t);
            assert!(spool.get(t).is_err());
        }
        assert_eq!(spool.shared.state().end, 4096);
    }

    #[test]
    fn a_slow_disk_gives_the_same_bytes() {
        let spool = spool(Some(4e6));
        let tickets: Vec<Ticket> = (0..8u8).map(|i| spool.put(vec![i; 20_000]).unwrap()).collect();
        for (i, t) in tickets.iter().enumerate() {
            spool.prefetch(*t);
            assert_eq!(spool.get(*t).unwrap(), vec![i as u8; 20_000]);
        }
        assert!(spool.traffic().0 <= 160_000);
    }
}
