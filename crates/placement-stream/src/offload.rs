//! `offload`: blocks live on the host and visit the device, what trains of them goes back changed.
//!
//! On a CPU the device is an arena of buffers, allocated once: the meter counts them as memory and
//! everything else as host or disk, so that residency, traffic and overlap are those of a device.
//!
//! With `amp` the host holds f32 weights in fewer bits and the device works on f32. What trains is rounded
//! each time it goes back, what is frozen once, while it is loaded.
//!
//! Source: Wang et al. 2025, arXiv:2503.12668; sheet `zo2`.

use std::cell::{RefCell, RefMut};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use ramekin_core::{Array, BadSetting, Param, UserError};
use ramekin_kernels::narrow::{Narrow, Rounding};
use ramekin_registry::{Part, part};
use ramekin_slots::{PackedWeight, Placement, Sites, Visit};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::arena::{Arena, rooms};
use crate::link::{Delay, Load, Moves};
use crate::moving::{What, away};
use crate::piece::{Piece, Room};
use crate::shelf::Shelf;

part! { placement / "offload" => Offload, "blocks wait on the host or on disk and visit the device, and go back changed",
source = "arXiv:2503.12668; sheet zo2", traits = [] }

/// Where blocks wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Device {
    /// In host memory.
    #[default]
    Cpu,
    /// In a scratch file.
    Disk,
}

/// Which blocks wait elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum Blocks {
    /// `"all"`.
    All(All),
    /// These, from 0.
    Some(Vec<usize>),
}

/// Every block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum All {
    /// Every block.
    All,
}

/// The type on the host with `amp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum HostDtype {
    /// As on the device.
    F32,
    /// Half precision.
    F16,
    /// The upper half of an f32.
    Bf16,
    /// 8-bit float, e4m3.
    F8,
}

/// How a weight becomes narrow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Rounded {
    /// To the closest number of the type.
    Nearest,
    /// To one of the two neighbours by chance, right in the mean: small updates are not lost.
    Stochastic,
}

/// Settings of `placement = { kind = "offload", … }`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct OffloadSettings {
    /// `cpu`, or `disk`.
    pub offload_device: Device,
    /// `"all"`, or a list of blocks from 0; the others stay on the device.
    pub offloading_blocks: Blocks,
    /// Copies run beside computing, in threads of their own.
    pub overlap: bool,
    /// A block's tensors move in one copy.
    pub bucket: bool,
    /// The host holds f32 weights of blocks in `host_dtype`.
    pub amp: bool,
    /// `f16`, `bf16`, `f8` or `f32`, with `amp` alone. Default: f16.
    pub host_dtype: Option<HostDtype>,
    /// `nearest` or `stochastic`, with `amp` alone. Default: nearest.
    pub rounding: Option<Rounded>,
    /// Blocks that have room on the device at once with `overlap`, 1 to 4: three keep upload, computing and
    /// taking back busy at the same time.
    pub prefetch_buffers: usize,
    /// Folder of the scratch file, with `offload_device = "disk"`; the system's for temporary files if absent.
    pub folder: Option<PathBuf>,
    /// Bytes a second of a simulated link, for tests of overlap; absent is the machine's own speed.
    pub bandwidth: Option<f64>,
}

impl Default for OffloadSettings {
    fn default() -> Self {
        OffloadSettings {
            offload_device: Device::default(),
            offloading_blocks: Blocks::All(All::All),
            overlap: true,
            bucket: false,
            amp: false,
            host_dtype: None,
            rounding: None,
            prefetch_buffers: 3,
            folder: None,
            bandwidth: None,
        }
    }
}

/// The placement.
pub struct Offload {
    settings: OffloadSettings,
    narrow: Option<Narrow>,
    arena: RefCell<Arena>,
    blocks: RefCell<BTreeMap<usize, Block>>,
}

#[derive(Default)]
struct Block {
    tensors: Vec<What>,
    changed: Option<Visit>,
}

impl Part for Offload {
    type Settings = OffloadSettings;

    fn new(s: OffloadSettings) -> Result<Self> {
        let buffers = s.prefetch_buffers;
        BadSetting::unless((1..=4).contains(&buffers), "prefetch_buffers", buffers, "from 1 to 4")?;
        if let Some(rate) = s.bandwidth {
            let holds = rate.is_finite() && rate > 0.0;
            BadSetting::unless(holds, "bandwidth", rate, "a number of bytes a second above 0")?;
        }
        let alone = |name: &str, there: bool, with: &str| match there {
            true => Err(BadSetting::new(name, format!("is read only with `{with}`"))),
            false => Ok(()),
        };
        alone("host_dtype", s.host_dtype.is_some() && !s.amp, "amp = true")?;
        alone("rounding", s.rounding.is_some() && !s.amp, "amp = true")?;
        let disk = s.offload_device == Device::Disk;
        alone("folder", s.folder.is_some() && !disk, "offload_device = \"disk\"")?;
        if let Some(folder) = s.folder.as_ref().filter(|f| !f.is_dir()) {
            let why = format!("names `{}`, which is no folder", folder.display());
            return Err(BadSetting::new("folder", why).into());
        }
        let narrow = match s.host_dtype.filter(|_| s.amp).or(s.amp.then_some(HostDtype::F16)) {
            None | Some(HostDtype::F32) => None,
            Some(HostDtype::F16) => Some(Narrow::F16),
            Some(HostDtype::Bf16) => Some(Narrow::Bf16),
            Some(HostDtype::F8) => Some(Narrow::F8),
        };
        let folder = disk.then(|| s.folder.clone().unwrap_or_else(std::env::temp_dir));
        let arena = Arena::new(Shelf::new(folder), buffers, s.overlap, s.bucket, s.bandwidth);
        Ok(Offload { settings: s, narrow, arena: RefCell::new(arena), blocks: RefCell::default() })
    }
}

impl Offload {
    /// The same with copies that take longer, as long as `delay` says.
    #[must_use]
    pub fn delayed(self, delay: Delay) -> Self {
        self.arena.borrow().delay(delay);
        self
    }

    /// What has moved so far.
    pub fn moves(&self) -> Moves {
        self.arena.borrow().moves()
    }

    fn moves_block(&self, block: usize) -> bool {
        match &self.settings.offloading_blocks {
            Blocks::All(_) => true,
            Blocks::Some(list) => list.contains(&block),
        }
    }

    fn block(&self, block: usize) -> RefMut<'_, Block> {
        RefMut::map(self.blocks.borrow_mut(), |all| all.entry(block).or_default())
    }
}

impl Placement for Offload {
    fn is_resident(&self) -> bool {
        false
    }

    fn check(&self, blocks: usize) -> Result<()> {
        let name = "offloading_blocks";
        match &self.settings.offloading_blocks {
            Blocks::Some(list) if list.is_empty() => {
                Err(BadSetting::new(name, "is empty; list blocks, or write \"all\"").into())
            }
            Blocks::Some(list) => match list.iter().find(|b| **b >= blocks) {
                None => Ok(()),
                Some(far) => {
                    let why = format!("lists block {far}; the model has blocks 0 to {}", blocks - 1);
                    Err(BadSetting::new(name, why).into())
                }
            },
            Blocks::All(_) => Ok(()),
        }
    }

    fn keeps_changes(&self) -> bool {
        true
    }

    fn adopt_param(&self, block: usize, param: &Arc<Param>) -> Result<()> {
        if !self.moves_block(block) {
            return Ok(());
        }
        let (value, what) = (param.value(), What::dense(param));
        let piece = Piece::dense(param.name(), &value, self.narrow);
        let bytes = if piece.shape_only { None } else { Some(piece.pack(&value, Rounding::Nearest)?) };
        param.set(Array::absent(value.dims(), value.dtype())?);
        drop(value);
        self.block(block).tensors.push(what);
        self.arena.borrow().add(block, piece, bytes)
    }

    fn adopt_packed(
        &self,
        block: usize,
        path: &str,
        weight: Arc<dyn PackedWeight>,
    ) -> Result<Arc<dyn PackedWeight>> {
        if !self.moves_block(block) {
            return Ok(weight);
        }
        if self.settings.amp {
            let why =
                format!("is true, and `{path}` is packed: it is narrow already and has no f32 to work on");
            return Err(BadSetting::new("amp", why).into());
        }
        let apart = weight.apart().ok_or_else(|| {
            UserError::new(format!(
                "the packed weight of `{path}` does not come apart for `placement/offload`"
            ))
            .help("take another quantizer, or `placement = { kind = \"resident\" }`")
        })?;
        let piece = Piece::packed(path, apart.bytes as usize, weight.is_shape_only());
        let bytes = (!piece.shape_only).then_some(apart.bulk);
        self.block(block).tensors.push(What::Packed { path: path.to_owned(), rebuild: apart.rebuild });
        self.arena.borrow().add(block, piece, bytes)?;
        Ok(away(&*weight))
    }

    fn acquire(&self, block: usize, sites: &Sites) -> Result<()> {
        let entry = self.block(block);
        self.arena.borrow_mut().acquire(block, |buffer| {
            for (what, room) in entry.tensors.iter().zip(rooms(buffer)) {
                match (what, room) {
                    (What::Dense { param, .. }, Room::Dense(array)) => param.set(array.clone()),
                    (packed, Room::Packed { bytes, lease }) => {
                        *lease = None;
                        packed.unpack(std::mem::take(bytes), sites)?;
                    }
                    _ => anyhow::bail!("a buffer of block {block} has another form"),
                }
            }
            Ok(())
        })
    }

    fn release(&self, block: usize, sites: &Sites) -> Result<()> {
        let mut entry = self.block(block);
        let Block { tensors, changed } = &mut *entry;
        self.arena.borrow_mut().release(block, |pieces, groups| {
            let visit = changed.take();
            let trains = |i: usize| matches!(&tensors[i], What::Dense { param, .. } if param.is_trainable());
            let mut values = vec![None; pieces.len()];
            for group in groups.iter().filter(|g| visit.is_some() && g.pieces.clone().any(trains)) {
                for i in group.pieces.clone() {
                    if let What::Dense { param, .. } = &tensors[i] {
                        values[i] = Some(param.value());
                    }
                }
            }
            tensors.iter().try_for_each(|t| t.leave(sites))?;
            let stochastic = self.settings.rounding == Some(Rounded::Stochastic);
            let goes = values.iter().any(Option::is_some);
            Ok(visit.filter(|_| goes).map(|visit| Load { values, stochastic, visit }))
        })
    }

    fn changed(&self, block: usize, visit: Visit) -> Result<()> {
        self.block(block).changed = Some(visit);
        Ok(())
    }
}
