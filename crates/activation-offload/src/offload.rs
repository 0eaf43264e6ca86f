//! Activation offload: what backward needs waits in host memory or on disk.
//!
//! Saved tensors go through a hook: the large ones are copied away and come
//! back, read ahead, when backward reaches their block. With `recompute` a
//! block's input alone goes away and the block runs again in backward, as with
//! `checkpoint`.
//!
//! The numbers are the same bits wherever they waited.
//!
//! Source: Rajbhandari et al. 2021, arXiv:2104.07857 (offload of activations
//! and checkpoints); Ren et al. 2021, arXiv:2101.06840.

use std::path::PathBuf;
use std::rc::Rc;

use anyhow::Result;
use ramekin_core::{Array, BadSetting, Category};
use ramekin_registry::{Part, part};
use ramekin_slots::{ActivationPolicy, Block, Forward};
use ramekin_tape::{SavedHook, SavedKind, Tape, Value};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::depot::{Depot, carries};

part! { activation / "offload" => Offload, "moves what backward needs to host memory or disk and reads it ahead",
source = "arXiv:2104.07857", traits = [OwnsActivations] }

/// Where tensors wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum To {
    /// In host memory.
    #[default]
    Host,
    /// In a scratch file.
    Disk,
}

/// Settings of `activation = { kind = "offload", … }`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct OffloadSettings {
    /// `host`, or `disk`.
    pub to: To,
    /// Moves a block's input alone and runs the block again in backward.
    pub recompute: bool,
    /// Smaller tensors stay, in bytes.
    pub min_bytes: u64,
    /// Tensors read ahead of backward, from disk.
    pub prefetch: usize,
    /// Folder of the scratch file; the system's folder for temporary files if absent.
    pub folder: Option<PathBuf>,
    /// Bytes a second of a simulated disk, for tests of overlap; absent is the disk's own speed.
    pub bandwidth: Option<f64>,
}

impl Default for OffloadSettings {
    fn default() -> Self {
        OffloadSettings {
            to: To::default(),
            recompute: false,
            min_bytes: 4096,
            prefetch: 4,
            folder: None,
            bandwidth: None,
        }
    }
}

/// The policy.
pub struct Offload {
    depot: Rc<Depot>,
    recompute: bool,
    min_bytes: u64,
}

impl Part for Offload {
    type Settings = OffloadSettings;

    fn new(s: OffloadSettings) -> Result<Self> {
        if let Some(rate) = s.bandwidth
            && !(rate.is_finite() && rate > 0.0)
        {
            let why = format!("is {rate}; it must be a number of bytes a second above 0");
            return Err(BadSetting::new("bandwidth", why).into());
        }
        if s.to == To::Host && (s.folder.is_some() || s.bandwidth.is_some()) {
            let name = if s.folder.is_some() { "folder" } else { "bandwidth" };
            return Err(BadSetting::new(name, "is read only with `to = \"disk\"`").into());
        }
        let depot = match s.to {
            To::Host => Depot::host(),
            To::Disk => {
                let folder = s.folder.unwrap_or_else(std::env::temp_dir);
                if !folder.is_dir() {
                    let why = format!("names `{}`, which is no folder", folder.display());
                    return Err(BadSetting::new("folder", why).into());
                }
                Depot::disk(&folder, s.prefetch, s.bandwidth)?
            }
        };
        Ok(Offload { depot: Rc::new(depot), recompute: s.recompute, min_bytes: s.min_bytes })
    }
}

/// Sends large saved tensors to the depot.
struct Send {
    depot: Rc<Depot>,
    min_bytes: u64,
}

impl SavedHook for Send {
    fn pack(&self, array: Array, kind: SavedKind) -> Result<Box<dyn FnOnce() -> Result<Array>>> {
        if array.bytes() < self.min_bytes || !carries(array.dtype()) || array.is_held() {
            return Stay.pack(array, kind);
        }
        let parcel = self.depot.send(&array)?;
        let dims = array.dims().to_vec();
        Ok(Box::new(move || parcel.take(&dims)))
    }
}

/// Keeps every saved tensor where it is.
struct Stay;

impl SavedHook for Stay {
    fn pack(&self, array: Array, _: SavedKind) -> Result<Box<dyn FnOnce() -> Result<Array>>> {
        array.claim(Category::Activations);
        Ok(Box::new(move || Ok(array)))
    }
}

impl ActivationPolicy for Offload {
    fn recomputes(&self) -> bool {
        self.recompute
    }

    fn run(&self, fx: &Forward, _index: usize, block: Block, x: &Value) -> Result<Value> {
        let hook = Rc::new(Send { depot: self.depot.clone(), min_bytes: self.min_bytes });
        if !self.recompute {
            return fx.tape.with_hook(hook, || block(fx, x));
        }
        // Without the outer tape, which will own this closure.
        let outer = fx.on(&Tape::off());
        let again = Rc::new(move |tape: &Tape, inputs: &[Value]| {
            tape.with_hook(Rc::new(Stay), || block(&outer.on(tape), &inputs[0]))
        });
        fx.tape.with_hook(hook, || fx.tape.checkpoint(std::slice::from_ref(x), again))
    }
}
