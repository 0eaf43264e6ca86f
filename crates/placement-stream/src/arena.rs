//! Blocks on their way to a device and back, through a few buffers.
//!
//! Three queues: while block i is held for computing, a worker uploads the next ones as far as there are
//! buffers, and another takes block i − 1 back. A buffer is in one hand at a time, so delays change when
//! things happen and never what. Without overlap the caller does both copies itself.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context, Result, bail};
use ramekin_core::meter;

use crate::link::{Delay, Load, Moves, Shared, Stage, State, offloads, uploads};
use crate::piece::{Buffer, Group, Piece, Room};
use crate::shelf::{Parcel, Shelf};

/// The buffers with all blocks.
pub struct Arena {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    buffers: usize,
    overlap: bool,
    bucket: bool,
    started: bool,
    last: Option<usize>,
    downwards: bool,
}

impl Arena {
    /// An arena of this many buffers before a shelf; `bandwidth` slows the link down, in bytes a second.
    pub fn new(shelf: Shelf, buffers: usize, overlap: bool, bucket: bool, bandwidth: Option<f64>) -> Self {
        let (state, changed, delay) = (Mutex::default(), Condvar::new(), Mutex::default());
        let shared = Shared { state, changed, shelf, bandwidth, delay, meter: meter::current() };
        Arena {
            shared: Arc::new(shared),
            workers: Vec::new(),
            buffers: if overlap { buffers } else { 1 },
            overlap,
            bucket,
            started: false,
            last: None,
            downwards: false,
        }
    }

    /// Makes every copy take this much longer.
    pub fn delay(&self, delay: Delay) {
        *self.shared.delay.lock().unwrap_or_else(PoisonError::into_inner) = Some(delay);
    }

    /// What has moved so far; what is on its way back arrives first.
    pub fn moves(&self) -> Moves {
        let mut state = self.shared.state();
        while state.fault.is_none() && state.blocks.values().any(|b| matches!(b.stage, Stage::Going)) {
            state = self.shared.wait(state);
        }
        state.moves.clone()
    }

    /// Adds a tensor to a block; without bytes in a plan.
    pub fn add(&self, block: usize, piece: Piece, bytes: Option<Vec<u8>>) -> Result<()> {
        let shared = &self.shared;
        shared.meter.send(shared.shelf.tier(), piece.bytes as u64);
        let mut state = shared.state();
        let (before, own): (Vec<_>, _) =
            (state.blocks.range(..block).map(|(b, _)| *b).collect(), self.bucket);
        before.into_iter().try_for_each(|b| shared.seal(&mut state, b))?;
        let entry = state.block(block);
        let at = entry.pieces.len();
        Arc::make_mut(&mut entry.pieces).push(piece);
        if own && at > 0 {
            entry.groups[0].pieces.end = at + 1;
            entry.loose.extend(bytes.unwrap_or_default());
            return Ok(());
        }
        let parcel = Parcel::Nothing;
        match bytes {
            Some(bytes) if own => entry.loose = bytes,
            Some(bytes) => {
                let parcel = shared.shelf.put(bytes)?;
                entry.groups.push(Group { pieces: at..at + 1, parcel });
                return Ok(());
            }
            None => {}
        }
        entry.groups.push(Group { pieces: at..at + 1, parcel });
        Ok(())
    }

    /// Makes the buffers and starts the workers, before the first block is asked for.
    fn start(&mut self) -> Result<()> {
        let mut state = self.shared.state();
        let all: Vec<usize> = state.blocks.keys().copied().collect();
        all.iter().try_for_each(|b| self.shared.seal(&mut state, *b))?;
        for block in all.iter().take(self.buffers) {
            let pieces = state.block(*block).pieces.clone();
            let _scope = meter::scope(self.shared.meter.clone());
            state.free.push(Buffer::new(&pieces)?);
        }
        let plan = state.blocks.values().flat_map(|b| b.pieces.iter()).any(|p| p.shape_only);
        drop(state);
        self.started = true;
        if plan {
            self.overlap = false; // the buffers are counted, and nothing takes time
        }
        if self.overlap {
            for (name, work) in [("upload", uploads as fn(&Shared)), ("offload", offloads)] {
                let shared = self.shared.clone();
                let thread = std::thread::Builder::new().name(name.to_owned());
                let run = move || {
                    let _scope = meter::scope(shared.meter.clone());
                    work(&shared);
                };
                self.workers.push(thread.spawn(run).with_context(|| format!("cannot start `{name}`"))?);
            }
        }
        Ok(())
    }

    /// The block and those that are likely to be next, as many as there are buffers.
    fn window(&mut self, block: usize, state: &State) -> Vec<usize> {
        let all: Vec<usize> = state.blocks.keys().copied().collect();
        let at = all.iter().position(|b| *b == block).unwrap_or(0);
        match self.last {
            Some(last) if block < last => self.downwards = at > 0,
            Some(last) if block > last => self.downwards = false,
            _ => {}
        }
        self.last = Some(block);
        let wide = if self.overlap { self.buffers } else { 1 };
        if self.downwards {
            all[..=at].iter().rev().take(wide).copied().collect()
        } else {
            all[at..].iter().take(wide).copied().collect()
        }
    }

    /// Brings a block in; `place` puts its tensors where they belong unless it was held already.
    pub fn acquire(&mut self, block: usize, place: impl FnOnce(&mut Buffer) -> Result<()>) -> Result<()> {
        if !self.started {
            self.start()?;
        }
        let shared = self.shared.clone();
        let mut state = shared.state();
        match &mut state.blocks.get_mut(&block).map(|b| &mut b.stage) {
            None => return Ok(()), // one that stays
            Some(Stage::Held(_, uses)) => {
                *uses += 1;
                return Ok(());
            }
            Some(_) => {}
        }
        let window = self.window(block, &state);
        state.keep_only(&window);
        let mut state = if self.overlap {
            for b in window {
                if matches!(state.block(b).stage, Stage::Home) {
                    state.block(b).stage = Stage::Asked;
                    state.asked.push_back(b);
                }
            }
            shared.await_block(state, block)?
        } else {
            shared.bring(state, block)?
        };
        let Stage::Here(mut buffer) = std::mem::take(&mut state.block(block).stage) else {
            bail!("block {block} did not come")
        };
        place(&mut buffer)?;
        state.block(block).stage = Stage::Held(buffer, 1);
        Ok(())
    }

    /// Lets a block go; unless it is still held, `leave` takes its tensors out and says what goes back.
    pub fn release(
        &mut self,
        block: usize,
        leave: impl FnOnce(&[Piece], &[Group]) -> Result<Option<Load>>,
    ) -> Result<()> {
        let shared = self.shared.clone();
        let mut state = shared.state();
        let Some(entry) = state.blocks.get_mut(&block) else { return Ok(()) };
        let buffer = match std::mem::take(&mut entry.stage) {
            Stage::Held(buffer, 1) => buffer,
            Stage::Held(buffer, uses) => {
                entry.stage = Stage::Held(buffer, uses - 1);
                return Ok(());
            }
            _ => bail!("block {block} is let go and was not held"),
        };
        match leave(&entry.pieces, &entry.groups)? {
            // It may be wanted again before its room is; a packed weight's bytes have left the buffer.
            None if entry.pieces.iter().all(|p| p.dtype.is_some()) => entry.stage = Stage::Here(buffer),
            None => state.free.push(buffer),
            Some(load) => {
                entry.stage = Stage::Going;
                state.going.push_back((block, load, buffer));
                if !self.overlap {
                    shared.take_back(state).map(drop)?;
                    return Ok(());
                }
            }
        }
        drop(state);
        shared.changed.notify_all();
        Ok(())
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        self.shared.state().closing = true;
        self.shared.changed.notify_all();
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

/// The tensors of a buffer, to be put where they belong.
pub fn rooms(buffer: &mut Buffer) -> impl Iterator<Item = &mut Room> {
    buffer.0.iter_mut()
}
