//! The link between a shelf and the device: a block's copy up, its copy back, and the threads that make them.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use ramekin_core::Array;
use ramekin_core::meter::{self, Meter};
use ramekin_kernels::narrow::Rounding;
use ramekin_slots::Visit;

use crate::piece::{Buffer, Group, Piece};
use crate::shelf::Shelf;

/// A direction of the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leg {
    /// To the device.
    Up,
    /// Back.
    Down,
}

/// How long a copy of a block takes beside its own time.
pub type Delay = Arc<dyn Fn(Leg, usize) -> Duration + Send + Sync>;

/// What has moved since the beginning.
#[derive(Clone, Debug, Default)]
pub struct Moves {
    /// Uploads of each block.
    pub up: BTreeMap<usize, u64>,
    /// Blocks taken back.
    pub down: BTreeMap<usize, u64>,
    /// The most blocks that were on the device at once, those on their way included.
    pub most: usize,
}

/// What a block goes back with.
pub(crate) struct Load {
    /// Values by piece, of those that are in groups that go.
    pub values: Vec<Option<Array>>,
    /// Whether values are rounded by chance.
    pub stochastic: bool,
    /// When it was visited.
    pub visit: Visit,
}

/// Where a block is.
#[derive(Default)]
pub(crate) enum Stage {
    /// On the shelf.
    #[default]
    Home,
    /// Wanted, and on the shelf.
    Asked,
    /// On its way up.
    Coming,
    /// On the device.
    Here(Buffer),
    /// On the device, with this many uses.
    Held(Buffer, usize),
    /// On its way back.
    Going,
}

/// A block's tensors and where they are.
#[derive(Default)]
pub(crate) struct Block {
    pub pieces: Arc<Vec<Piece>>,
    pub groups: Vec<Group>,
    pub stage: Stage,
    /// Bytes of a bucket that is still being filled.
    pub loose: Vec<u8>,
    /// Whether it was looked at for updates that its type cannot hold.
    pub judged: bool,
}

/// What caller and workers share.
#[derive(Default)]
pub(crate) struct State {
    pub blocks: BTreeMap<usize, Block>,
    pub free: Vec<Buffer>,
    pub asked: VecDeque<usize>,
    pub going: VecDeque<(usize, Load, Buffer)>,
    pub moves: Moves,
    pub fault: Option<String>,
    pub closing: bool,
}

impl State {
    pub fn block(&mut self, block: usize) -> &mut Block {
        self.blocks.entry(block).or_default()
    }

    /// Notes that a block leaves home.
    pub fn leaves(&mut self, block: usize) {
        self.block(block).stage = Stage::Coming;
        let out = |b: &&Block| !matches!(b.stage, Stage::Home | Stage::Asked);
        self.moves.most = self.moves.most.max(self.blocks.values().filter(out).count());
    }

    /// Lets go of blocks that nobody holds, except these.
    pub fn keep_only(&mut self, window: &[usize]) {
        for (_, block) in self.blocks.iter_mut().filter(|(b, _)| !window.contains(b)) {
            match std::mem::take(&mut block.stage) {
                Stage::Here(buffer) => self.free.push(buffer),
                Stage::Asked => {}
                other => block.stage = other,
            }
        }
        self.asked.retain(|b| window.contains(b));
    }
}

/// The link.
pub(crate) struct Shared {
    pub state: Mutex<State>,
    pub changed: Condvar,
    pub shelf: Shelf,
    pub bandwidth: Option<f64>,
    pub delay: Mutex<Option<Delay>>,
    pub meter: Arc<Meter>,
}

pub(crate) type Guard<'a> = MutexGuard<'a, State>;

impl Shared {
    pub fn state(&self) -> Guard<'_> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn wait<'a>(&'a self, state: Guard<'a>) -> Guard<'a> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a filled bucket away.
    pub fn seal(&self, state: &mut State, block: usize) -> Result<()> {
        let entry = state.block(block);
        if !entry.loose.is_empty() {
            entry.groups[0].parcel = self.shelf.put(std::mem::take(&mut entry.loose))?;
        }
        Ok(())
    }

    fn pace(&self, leg: Leg, block: usize, began: Instant, bytes: u64) {
        let due = self.bandwidth.map_or(Duration::ZERO, |rate| Duration::from_secs_f64(bytes as f64 / rate));
        std::thread::sleep(due.saturating_sub(began.elapsed()));
        let delay = self.delay.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(delay) = delay {
            std::thread::sleep(delay(leg, block));
        }
    }

    /// Waits until a block that was asked for is here.
    pub fn await_block<'a>(&'a self, mut state: Guard<'a>, block: usize) -> Result<Guard<'a>> {
        self.changed.notify_all();
        loop {
            if let Some(why) = &state.fault {
                bail!("{why}");
            }
            match state.block(block).stage {
                Stage::Here(_) => return Ok(state),
                Stage::Home => {
                    state.block(block).stage = Stage::Asked;
                    state.asked.push_front(block);
                    self.changed.notify_all();
                }
                _ => {}
            }
            let moving = |b: &Block| matches!(b.stage, Stage::Coming | Stage::Going);
            if state.free.is_empty() && !state.blocks.values().any(moving) {
                // All room is taken by blocks that are held, or ahead of this one.
                self.make_room(&mut state, block)?;
                self.changed.notify_all();
            }
            state = self.wait(state);
        }
    }

    fn make_room(&self, state: &mut State, block: usize) -> Result<()> {
        if state.free.is_empty() {
            state.keep_only(&[block]);
        }
        if state.free.is_empty() {
            let pieces = state.block(block).pieces.clone();
            let _scope = meter::scope(self.meter.clone());
            state.free.push(Buffer::new(&pieces)?);
        }
        Ok(())
    }

    /// Uploads a block on the caller's thread.
    pub fn bring<'a>(&'a self, mut state: Guard<'a>, block: usize) -> Result<Guard<'a>> {
        if matches!(state.block(block).stage, Stage::Here(_)) {
            return Ok(state);
        }
        self.make_room(&mut state, block)?;
        self.upload(state, block)
    }

    /// Uploads a block into a free buffer.
    fn upload<'a>(&'a self, mut state: Guard<'a>, block: usize) -> Result<Guard<'a>> {
        let buffer = state.free.pop().context("no room")?;
        state.leaves(block);
        let entry = state.block(block);
        let (pieces, groups) = (entry.pieces.clone(), entry.groups.clone());
        drop(state);
        let began = Instant::now();
        let _scope = meter::scope(self.meter.clone());
        let mut buffer = buffer.fitted(&pieces)?;
        for group in &groups {
            buffer.fill(&pieces, group, &self.shelf.get(&group.parcel)?)?;
        }
        let bytes = pieces.iter().map(|p| p.bytes as u64).sum();
        self.pace(Leg::Up, block, began, bytes);
        self.meter.fetch(self.shelf.tier(), bytes);
        let mut state = self.state();
        state.block(block).stage = Stage::Here(buffer);
        *state.moves.up.entry(block).or_default() += 1;
        Ok(state)
    }

    /// Takes the first of the blocks back that are going.
    pub fn take_back<'a>(&'a self, mut state: Guard<'a>) -> Result<Guard<'a>> {
        let Some((block, load, buffer)) = state.going.pop_front() else { return Ok(state) };
        let entry = state.block(block);
        let (pieces, mut groups) = (entry.pieces.clone(), entry.groups.clone());
        let judge = load.visit.number > 1 && !load.stochastic && !std::mem::replace(&mut entry.judged, true);
        drop(state);
        let began = Instant::now();
        let (mut bytes, mut counts) = (0, (0, 0));
        for group in &mut groups {
            if group.pieces.clone().all(|i| load.values[i].is_none()) {
                continue;
            }
            bytes += self.put_group(&pieces, group, &load, judge.then_some(&mut counts))?;
        }
        drop(load);
        self.pace(Leg::Down, block, began, bytes);
        self.meter.discard(self.shelf.tier(), bytes);
        self.meter.send(self.shelf.tier(), bytes);
        if 2 * counts.0 > counts.1 {
            let share = 100 * counts.0 / counts.1;
            ramekin_core::say!(
                "  warning: an update left {share} % of block {block}'s weights as they were: it is below half a \
                 unit of `host_dtype`; `rounding = \"stochastic\"` or `amp = false` keeps it"
            );
        }
        let mut state = self.state();
        let entry = state.block(block);
        (entry.groups, entry.stage) = (groups, Stage::Home);
        state.free.push(buffer);
        *state.moves.down.entry(block).or_default() += 1;
        Ok(state)
    }

    fn put_group(
        &self,
        pieces: &[Piece],
        group: &mut Group,
        load: &Load,
        judge: Option<&mut (usize, usize)>,
    ) -> Result<u64> {
        let own = || group.pieces.clone();
        let bytes = own().map(|i| pieces[i].bytes).sum::<usize>();
        if own().any(|i| pieces[i].shape_only) {
            return Ok(bytes as u64);
        }
        let stays = own().any(|i| load.values[i].is_none());
        let narrowed = judge.filter(|_| own().any(|i| pieces[i].narrow.is_some()));
        let before =
            if stays || narrowed.is_some() { self.shelf.get(&group.parcel)? } else { Arc::default() };
        let (mut after, mut counts) = (Vec::with_capacity(bytes), (0, 0));
        for piece in own() {
            let (from, Piece { name, bytes, .. }) = (after.len(), &pieces[piece]);
            match &load.values[piece] {
                None => after.extend_from_slice(&before[from..from + bytes]),
                Some(value) => {
                    let stream = || load.visit.rng.named(&format!("offload/{}", load.visit.number), name);
                    let chance = load.stochastic.then(stream);
                    let rounding = chance.map_or(Rounding::Nearest, Rounding::Stochastic);
                    after.extend(pieces[piece].pack(value, rounding)?);
                    if narrowed.is_some() {
                        let (same, all) = pieces[piece].same(&before[from..from + bytes], &after[from..]);
                        counts = (counts.0 + same, counts.1 + all);
                    }
                }
            }
        }
        if let Some(all) = narrowed {
            *all = (all.0 + counts.0, all.1 + counts.1);
        }
        let parcel = self.shelf.put(after)?;
        self.shelf.free(&std::mem::replace(&mut group.parcel, parcel))?;
        Ok(bytes as u64)
    }

    /// Notes why a worker cannot go on.
    fn fail(&self, what: &str, error: &anyhow::Error) {
        self.state().fault = Some(format!("cannot {what} a block: {error:#}"));
        self.changed.notify_all();
    }
}

/// Nobody waits for a worker that is gone.
struct Alarm<'a>(&'a Shared);

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail("move", &anyhow::anyhow!("its thread has ended"));
        }
    }
}

/// Brings in what is asked for, in order, as far as there is room.
pub(crate) fn uploads(shared: &Shared) {
    let _alarm = Alarm(shared);
    let mut state = shared.state();
    while !state.closing {
        if state.free.is_empty() || state.fault.is_some() {
            state = shared.wait(state);
            continue;
        }
        let Some(block) = state.asked.pop_front() else {
            state = shared.wait(state);
            continue;
        };
        match shared.upload(state, block) {
            Ok(guard) => state = guard,
            Err(e) => return shared.fail("bring in", &e),
        }
        shared.changed.notify_all();
    }
}

/// Takes back what goes, in order.
pub(crate) fn offloads(shared: &Shared) {
    let _alarm = Alarm(shared);
    let mut state = shared.state();
    loop {
        if state.going.is_empty() {
            if state.closing {
                return;
            }
            state = shared.wait(state);
            continue;
        }
        match shared.take_back(state) {
            Ok(guard) => state = guard,
            Err(e) => return shared.fail("take back", &e),
        }
        shared.changed.notify_all();
    }
}
