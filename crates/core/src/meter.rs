//! The byte meter: live bytes by category, their peak, and what was alive at it.
//!
//! Every [`crate::Array`] holds a lease on the meter that was current when it
//! was made; views share it, the last one returns it. The same code runs on
//! real arrays in a run and on shape-only arrays in a plan, so both fill a
//! meter by the same rules.

use std::cell::RefCell;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use serde::{Deserialize, Serialize};

use crate::traffic::{Link, Traffic};

/// What bytes are held for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Category {
    /// Frozen parameters, dense or packed.
    Weights,
    /// Parameters that a run changes.
    Trainable,
    /// Gradients of trainable parameters.
    Gradients,
    /// Optimizer state.
    Optimizer,
    /// What forward keeps for backward.
    Activations,
    /// Key/value caches.
    Kv,
    /// Everything in flight.
    Workspace,
}

impl Category {
    /// All categories, in the order of reports.
    pub const ALL: [Category; 7] = [
        Category::Weights,
        Category::Trainable,
        Category::Gradients,
        Category::Optimizer,
        Category::Activations,
        Category::Kv,
        Category::Workspace,
    ];

    /// The name in plans, metrics and reports.
    pub fn name(self) -> &'static str {
        match self {
            Category::Weights => "weights",
            Category::Trainable => "trainable",
            Category::Gradients => "gradients",
            Category::Optimizer => "optimizer",
            Category::Activations => "activations",
            Category::Kv => "kv",
            Category::Workspace => "workspace",
        }
    }
}

/// Bytes by category.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Usage {
    pub weights: u64,
    pub trainable: u64,
    pub gradients: u64,
    pub optimizer: u64,
    pub activations: u64,
    pub kv: u64,
    pub workspace: u64,
}

impl Usage {
    /// The bytes of one category.
    pub fn get(&self, category: Category) -> u64 {
        match category {
            Category::Weights => self.weights,
            Category::Trainable => self.trainable,
            Category::Gradients => self.gradients,
            Category::Optimizer => self.optimizer,
            Category::Activations => self.activations,
            Category::Kv => self.kv,
            Category::Workspace => self.workspace,
        }
    }

    fn get_mut(&mut self, category: Category) -> &mut u64 {
        match category {
            Category::Weights => &mut self.weights,
            Category::Trainable => &mut self.trainable,
            Category::Gradients => &mut self.gradients,
            Category::Optimizer => &mut self.optimizer,
            Category::Activations => &mut self.activations,
            Category::Kv => &mut self.kv,
            Category::Workspace => &mut self.workspace,
        }
    }

    /// Both together.
    pub fn plus(&self, other: &Usage) -> Usage {
        let mut sum = *self;
        Category::ALL.iter().for_each(|c| *sum.get_mut(*c) += other.get(*c));
        sum
    }

    /// The sum over all categories.
    pub fn total(&self) -> u64 {
        Category::ALL.iter().map(|c| self.get(*c)).sum()
    }
}

/// Where bytes are held that are not in the device's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    /// Host memory beside the device's; on the CPU a region of its own.
    Host,
    /// A file.
    Disk,
}

/// What is held in a tier, and what went over its link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Away {
    /// Bytes held now.
    pub live: u64,
    /// The most that were held at once since the last [`Meter::reset_peak`].
    pub peak: u64,
    /// Bytes that went there, since the beginning.
    pub sent: u64,
    /// Bytes that came back, since the beginning.
    pub fetched: u64,
}

#[derive(Default)]
struct State {
    live: Usage,
    away: [Away; 2],
    ranks: Link,
    work: u64,
    peak_total: u64,
    at_peak: Usage,
    highest: Usage,
    largest: Usage,
}

/// Counts live bytes; cheap enough to stay on in production.
#[derive(Default)]
pub struct Meter {
    state: Mutex<State>,
}

impl Meter {
    /// A meter at zero.
    pub fn new() -> Arc<Self> {
        Arc::new(Meter::default())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn take(&self, category: Category, bytes: u64) {
        let mut guard = self.state();
        let s = &mut *guard;
        let live = s.live.get_mut(category);
        *live += bytes;
        let high = s.highest.get_mut(category);
        *high = (*high).max(*live);
        let largest = s.largest.get_mut(category);
        *largest = (*largest).max(bytes);
        let total = s.live.total();
        if total > s.peak_total {
            s.peak_total = total;
            s.at_peak = s.live;
        }
    }

    pub(crate) fn give_back(&self, category: Category, bytes: u64) {
        let mut s = self.state();
        let live = s.live.get_mut(category);
        *live = live.saturating_sub(bytes);
    }

    pub(crate) fn shift(&self, from: Category, to: Category, bytes: u64) {
        let mut guard = self.state();
        let s = &mut *guard;
        let live = s.live.get_mut(from);
        *live = live.saturating_sub(bytes);
        let live = s.live.get_mut(to);
        *live += bytes;
        let high = s.highest.get_mut(to);
        *high = (*high).max(*live);
    }

    /// Notes bytes that leave for a tier.
    pub fn send(&self, tier: Tier, bytes: u64) {
        let a = &mut self.state().away[tier as usize];
        a.live += bytes;
        a.sent += bytes;
        a.peak = a.peak.max(a.live);
    }

    /// Notes bytes that come back from a tier, where they stay as well.
    pub fn fetch(&self, tier: Tier, bytes: u64) {
        self.state().away[tier as usize].fetched += bytes;
    }

    /// Notes that a tier holds these bytes no more.
    pub fn discard(&self, tier: Tier, bytes: u64) {
        let a = &mut self.state().away[tier as usize];
        a.live = a.live.saturating_sub(bytes);
    }

    /// What is held in a tier, and its traffic.
    pub fn away(&self, tier: Tier) -> Away {
        self.state().away[tier as usize]
    }

    /// Notes bytes that went to other ranks and came from them, where nothing stays.
    pub fn exchange(&self, sent: u64, fetched: u64) {
        let link = &mut self.state().ranks;
        link.sent += sent;
        link.fetched += fetched;
    }

    /// Notes floating-point operations of a product, a multiplication and an addition each.
    pub fn work(&self, operations: u64) {
        self.state().work += operations;
    }

    /// Floating-point operations of all products since the beginning.
    pub fn worked(&self) -> u64 {
        self.state().work
    }

    /// What went over each link since the beginning.
    pub fn traffic(&self) -> Traffic {
        let s = self.state();
        let link = |tier: Tier| {
            let Away { sent, fetched, .. } = s.away[tier as usize];
            Link { sent, fetched }
        };
        Traffic { host: link(Tier::Host), disk: link(Tier::Disk), ranks: s.ranks }
    }

    /// Bytes alive now.
    pub fn live(&self) -> Usage {
        self.state().live
    }

    /// The largest total since the last [`Meter::reset_peak`], in bytes.
    pub fn peak(&self) -> u64 {
        self.state().peak_total
    }

    /// What was alive at the moment of the peak.
    pub fn at_peak(&self) -> Usage {
        self.state().at_peak
    }

    /// Each category's own highest point since the last reset.
    pub fn highest(&self) -> Usage {
        self.state().highest
    }

    /// The largest single array of each category made since the last reset.
    pub fn largest(&self) -> Usage {
        self.state().largest
    }

    /// Begins a new peak from what is alive now.
    pub fn reset_peak(&self) {
        let mut s = self.state();
        s.peak_total = s.live.total();
        s.at_peak = s.live;
        s.highest = s.live;
        s.largest = Usage::default();
        for a in &mut s.away {
            a.peak = a.live;
        }
    }
}

thread_local! {
    static CURRENT: RefCell<Option<Arc<Meter>>> = const { RefCell::new(None) };
}

/// The meter that new arrays of this thread are charged to.
pub fn current() -> Arc<Meter> {
    static PROCESS: OnceLock<Arc<Meter>> = OnceLock::new();
    CURRENT.with(|c| c.borrow().clone()).unwrap_or_else(|| PROCESS.get_or_init(Meter::new).clone())
}

/// Makes `meter` the current one of this thread until the guard is dropped.
pub fn scope(meter: Arc<Meter>) -> MeterScope {
    MeterScope { before: CURRENT.with(|c| c.replace(Some(meter))) }
}

/// Restores the meter that was current before.
pub struct MeterScope {
    before: Option<Arc<Meter>>,
}

impl Drop for MeterScope {
    fn drop(&mut self) {
        let before = self.before.take();
        CURRENT.with(|c| *c.borrow_mut() = before);
    }
}

/// Resident set size of this process and its high-water mark, in bytes; zeros
/// where the system does not tell.
pub fn resident() -> (u64, u64) {
    let Ok(status) = std::fs::read_to_string("/proc/self/status") else { return (0, 0) };
    let read = |key: &str| {
        status
            .lines()
            .find_map(|l| l.strip_prefix(key))
            .and_then(|l| l.trim().trim_end_matches("kB").trim().parse::<u64>().ok())
            .map_or(0, |kib| kib * 1024)
    };
    (read("VmRSS:"), read("VmHWM:"))
}
