//! Names to parts.
//!
//! A part registers itself beside its implementation with one [`part!`] line;
//! `inventory` collects the entries of every crate that is linked (the
//! `catalog` crate links the built-in families).

mod list;

#[doc(hidden)]
pub use inventory;
pub use list::{PartInfo, build, complete, describe, find, load_adapter, names, parts};
#[doc(hidden)]
pub use ramekin_slots as slots;
pub use ramekin_slots::{AnyPart, Part, PartEntry, Slot, Trait};

/// Makes an adapter from a PEFT `adapter_config.json`; `None` if the config is another part's.
pub type FromPeft = fn(&serde_json::Value) -> Option<anyhow::Result<AnyPart>>;

/// An entry with what only the registry needs.
pub struct Registered {
    /// The part.
    pub entry: PartEntry,
    /// For adapters and reducers: makes the part from a PEFT `adapter_config.json` that is its own.
    pub from_peft: Option<FromPeft>,
}

inventory::collect!(Registered);

#[doc(hidden)]
pub fn schema_of<P: Part>() -> schemars::Schema {
    schemars::schema_for!(P::Settings)
}

#[doc(hidden)]
pub fn complete_of<P: Part>(settings: serde_json::Value) -> Result<serde_json::Value, serde_json::Error> {
    let typed: P::Settings = serde_json::from_value(settings)?;
    serde_json::to_value(typed)
}

#[doc(hidden)]
pub fn make<P: Part>(settings: serde_json::Value) -> anyhow::Result<P> {
    P::new(serde_json::from_value(settings)?)
}

/// Registers a part: `part! { optimizer / "adamw" => AdamW, "Adam with decoupled decay",
/// source = "arXiv:1711.05101", traits = [StatefulAcrossSteps] }`.
///
/// The first word is the slot in lower case; the type implements [`Part`] and
/// the slot's trait. Adapters may add `from_peft = function`.
#[macro_export]
macro_rules! part {
    ($slot:ident / $name:literal => $part:ty, $summary:literal, source = $source:literal,
     traits = [$($t:ident),*] $(, from_peft = $from:path)? $(,)?) => {
        $crate::inventory::submit! {
            $crate::Registered {
                entry: $crate::PartEntry {
                    slot: $crate::slot!($slot),
                    name: $name,
                    summary: $summary,
                    source: $source,
                    traits: &[$($crate::Trait::$t),*],
                    schema: $crate::schema_of::<$part>,
                    complete: $crate::complete_of::<$part>,
                    build: |settings| $crate::any!($slot, $crate::make::<$part>(settings)?),
                },
                from_peft: $crate::optional!($($from)?),
            }
        }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! optional {
    () => {
        None
    };
    ($f:path) => {
        Some($f)
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! slot {
    (model) => {
        $crate::Slot::Model
    };
    (quantizer) => {
        $crate::Slot::Quantizer
    };
    (adapter) => {
        $crate::Slot::Adapter
    };
    (selection) => {
        $crate::Slot::Selection
    };
    (method) => {
        $crate::Slot::Method
    };
    (estimator) => {
        $crate::Slot::Estimator
    };
    (gradient) => {
        $crate::Slot::Gradient
    };
    (optimizer) => {
        $crate::Slot::Optimizer
    };
    (schedule) => {
        $crate::Slot::Schedule
    };
    (objective) => {
        $crate::Slot::Objective
    };
    (data) => {
        $crate::Slot::Data
    };
    (activation) => {
        $crate::Slot::Activation
    };
    (placement) => {
        $crate::Slot::Placement
    };
    (attention) => {
        $crate::Slot::Attention
    };
    (kv) => {
        $crate::Slot::Kv
    };
    (reducer) => {
        $crate::Slot::Reducer
    };
    (decode) => {
        $crate::Slot::Decode
    };
    (prune) => {
        $crate::Slot::Prune
    };
    (merge) => {
        $crate::Slot::Merge
    };
    (search) => {
        $crate::Slot::Search
    };
    (comm) => {
        $crate::Slot::Comm
    };
    (hook) => {
        $crate::Slot::Hook
    };
    (track) => {
        $crate::Slot::Track
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! any {
    (model, $p:expr) => {
        Ok($crate::AnyPart::Model(Box::new($p)))
    };
    (quantizer, $p:expr) => {
        Ok($crate::AnyPart::Quantizer(Box::new($p)))
    };
    (adapter, $p:expr) => {
        Ok($crate::AnyPart::Adapter(Box::new($p)))
    };
    (selection, $p:expr) => {
        Ok($crate::AnyPart::Selection(Box::new($p)))
    };
    (method, $p:expr) => {
        Ok($crate::AnyPart::Method(Box::new($p)))
    };
    (estimator, $p:expr) => {
        Ok($crate::AnyPart::Estimator(Box::new($p)))
    };
    (prune, $p:expr) => {
        Ok($crate::AnyPart::Prune(Box::new($p)))
    };
    (merge, $p:expr) => {
        Ok($crate::AnyPart::Merge(Box::new($p)))
    };
    (comm, $p:expr) => {
        Ok($crate::AnyPart::Comm(Box::new($p)))
    };
    (hook, $p:expr) => {
        Ok($crate::AnyPart::Hook(Box::new($p)))
    };
    (search, $p:expr) => {
        Ok($crate::AnyPart::Search(Box::new($p)))
    };
    (placement, $p:expr) => {
        Ok($crate::AnyPart::Placement(Box::new($p)))
    };
    (gradient, $p:expr) => {
        Ok($crate::AnyPart::Gradient(Box::new($p)))
    };
    (optimizer, $p:expr) => {
        Ok($crate::AnyPart::Optimizer(Box::new($p)))
    };
    (schedule, $p:expr) => {
        Ok($crate::AnyPart::Schedule(Box::new($p)))
    };
    (objective, $p:expr) => {
        Ok($crate::AnyPart::Objective(Box::new($p)))
    };
    (activation, $p:expr) => {
        Ok($crate::AnyPart::Activation(Box::new($p)))
    };
    (attention, $p:expr) => {
        Ok($crate::AnyPart::Attention(Box::new($p)))
    };
    (track, $p:expr) => {
        Ok($crate::AnyPart::Track(Box::new($p)))
    };
    (kv, $p:expr) => {
        Ok($crate::AnyPart::Kv(Box::new($p)))
    };
    (reducer, $p:expr) => {
        Ok($crate::AnyPart::Reducer(Box::new($p)))
    };
    (decode, $p:expr) => {
        Ok($crate::AnyPart::Decode(Box::new($p)))
    };
    ($other:ident, $p:expr) => {{
        let _: $crate::Declares = ($p).into();
        Ok($crate::AnyPart::Declared)
    }};
}

/// What a part of a slot without a trait (data) turns into: proof that its settings hold.
pub struct Declares;
