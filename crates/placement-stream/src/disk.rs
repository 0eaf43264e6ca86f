//! `disk`: a block's frozen weights are read when the block runs, the likely next ones ahead of time.
//!
//! Loading hands each tensor to a scratch file, so that no more than one is in
//! memory beside the blocks at hand. Which block follows which is learnt as it
//! happens: forward, backward and decoding each have their own order.
//!
//! Source: Rajbhandari et al. 2021, arXiv:2104.07857 (weights on NVMe, prefetched).

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use ramekin_core::{Array, BadSetting, Category, Lease, Param, Tier, UserError, meter};
use ramekin_registry::{Part, part};
use ramekin_slots::{PackedWeight, Placement, Sites};
use ramekin_store::{Spool, Ticket};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::moving::{What, away};

part! { placement / "disk" => Disk, "the blocks' weights wait in a file and come in block by block, read ahead",
source = "arXiv:2104.07857", traits = [FreezesBase] }

/// Settings of `placement = { kind = "disk", … }`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DiskSettings {
    /// Blocks read ahead; 0 reads each when it is wanted.
    pub prefetch: usize,
    /// Folder of the scratch file; the system's folder for temporary files if absent.
    pub folder: Option<PathBuf>,
    /// Bytes a second of a simulated disk, for tests of overlap; absent is the disk's own speed.
    pub bandwidth: Option<f64>,
}

impl Default for DiskSettings {
    fn default() -> Self {
        DiskSettings { prefetch: 1, folder: None, bandwidth: None }
    }
}

/// The placement.
pub struct Disk {
    settings: DiskSettings,
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    spool: Option<Spool>,
    blocks: HashMap<usize, Block>,
    /// The block before and the present one → the one that came next.
    order: HashMap<(Option<usize>, usize), usize>,
    last: (Option<usize>, Option<usize>),
}

#[derive(Default)]
struct Block {
    tensors: Vec<Moving>,
    /// How many hold it now.
    held: usize,
    /// Bytes that are being read ahead.
    ahead: Option<Arc<Lease>>,
}

/// A tensor that comes and goes; without a ticket in a plan.
struct Moving {
    ticket: Option<Ticket>,
    bytes: u64,
    what: What,
}

/// Bytes that may wait to be written while a model is loaded.
const BUFFER: usize = 64 << 20;

impl Part for Disk {
    type Settings = DiskSettings;

    fn new(settings: DiskSettings) -> Result<Self> {
        if let Some(rate) = settings.bandwidth
            && !(rate.is_finite() && rate > 0.0)
        {
            let why = format!("is {rate}; it must be a number of bytes a second above 0");
            return Err(BadSetting::new("bandwidth", why).into());
        }
        if let Some(folder) = settings.folder.as_ref().filter(|f| !f.is_dir()) {
            let why = format!("names `{}`, which is no folder", folder.display());
            return Err(BadSetting::new("folder", why).into());
        }
        Ok(Disk { settings, state: RefCell::default() })
    }
}

impl Disk {
    fn adopt(&self, block: usize, bulk: Option<Vec<u8>>, bytes: u64, what: What) -> Result<()> {
        let mut state = self.state.borrow_mut();
        let ticket = match bulk {
            None => None, // a plan
            Some(bulk) => {
                if state.spool.is_none() {
                    let folder = self.settings.folder.clone().unwrap_or_else(std::env::temp_dir);
                    state.spool = Some(Spool::new(&folder, BUFFER, self.settings.bandwidth)?);
                }
                state.spool.as_ref().map(|s| s.put(bulk)).transpose()?
            }
        };
        meter::current().send(Tier::Disk, bytes);
        state.blocks.entry(block).or_default().tensors.push(Moving { ticket, bytes, what });
        Ok(())
    }
}

impl State {
    fn bring_in(&mut self, block: usize, sites: &Sites) -> Result<()> {
        let State { spool, blocks, .. } = self;
        let Some(block) = blocks.get_mut(&block) else { return Ok(()) };
        block.held += 1;
        if block.held > 1 {
            return Ok(());
        }
        block.ahead = None;
        for tensor in &block.tensors {
            let bytes = match tensor.ticket {
                None => None,
                Some(ticket) => Some(spool.as_ref().context("no scratch file")?.get(ticket)?),
            };
            meter::current().fetch(Tier::Disk, tensor.bytes);
            match &tensor.what {
                What::Dense { param, dims, dtype } => param.set(match bytes {
                    None => Array::shape_only(dims, *dtype, Category::Weights)?,
                    Some(bytes) => Array::from_bytes(&bytes, dims, *dtype, Category::Weights)?,
                }),
                packed => packed.unpack(bytes.unwrap_or_default(), sites)?,
            }
        }
        Ok(())
    }

    fn let_go(&mut self, block: usize, sites: &Sites) -> Result<()> {
        let Some(block) = self.blocks.get_mut(&block) else { return Ok(()) };
        block.held = block.held.saturating_sub(1);
        if block.held > 0 {
            return Ok(());
        }
        block.tensors.iter().try_for_each(|t| t.what.leave(sites))
    }

    /// Begins to read what followed here the last time, or the next block on the way where this is new; what was
    /// read ahead for another way goes.
    fn read_ahead(&mut self, block: usize, count: usize) {
        let before = self.last.1;
        if let (earlier, Some(before)) = self.last {
            self.order.insert((earlier, before), block);
        }
        self.last = (before, Some(block));
        let (mut past, mut at) = (before, block);
        let mut coming = Vec::new();
        for _ in 0..count {
            let onward = if past.is_some_and(|p| p > at) { at.checked_sub(1) } else { Some(at + 1) };
            let Some(next) = self.order.get(&(past, at)).copied().or(onward) else { break };
            (past, at) = (Some(at), next);
            coming.push(next);
        }
        for (_, block) in self.blocks.iter_mut().filter(|(n, b)| b.ahead.is_some() && !coming.contains(n)) {
            block.ahead = None;
            if let Some(spool) = &self.spool {
                block.tensors.iter().filter_map(|t| t.ticket).for_each(|t| spool.forgo(t));
            }
        }
        for next in coming {
            let Some(found) = self.blocks.get_mut(&next).filter(|b| b.held == 0 && b.ahead.is_none()) else {
                continue;
            };
            found.ahead = Some(Lease::new(Category::Weights, found.tensors.iter().map(|t| t.bytes).sum()));
            if let Some(spool) = &self.spool {
                found.tensors.iter().filter_map(|t| t.ticket).for_each(|t| spool.prefetch(t));
            }
        }
    }
}

impl Placement for Disk {
    fn is_resident(&self) -> bool {
        false
    }

    fn adopt_param(&self, block: usize, param: &Arc<Param>) -> Result<()> {
        let (value, what) = (param.value(), What::dense(param));
        let bulk = if value.is_shape_only() { None } else { Some(value.to_bytes()?) };
        param.set(Array::absent(value.dims(), value.dtype())?);
        self.adopt(block, bulk, value.bytes(), what)
    }

    fn adopt_packed(
        &self,
        block: usize,
        path: &str,
        weight: Arc<dyn PackedWeight>,
    ) -> Result<Arc<dyn PackedWeight>> {
        let apart = weight.apart().ok_or_else(|| {
            UserError::new(format!("the packed weight of `{path}` does not come apart for `placement/disk`"))
                .help("take another quantizer, or `placement = { kind = \"resident\" }`")
        })?;
        let bulk = (!weight.is_shape_only()).then_some(apart.bulk);
        let what = What::Packed { path: path.to_owned(), rebuild: apart.rebuild };
        self.adopt(block, bulk, apart.bytes, what)?;
        Ok(away(&*weight))
    }

    fn acquire(&self, block: usize, sites: &Sites) -> Result<()> {
        let mut state = self.state.borrow_mut();
        let fresh = state.blocks.get(&block).is_some_and(|b| b.held == 0);
        state.bring_in(block, sites)?;
        if fresh {
            state.read_ahead(block, self.settings.prefetch);
        }
        Ok(())
    }

    fn release(&self, block: usize, sites: &Sites) -> Result<()> {
        self.state.borrow_mut().let_go(block, sites)
    }
}
