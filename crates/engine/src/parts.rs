//! From a recipe's parts to live ones.

use anyhow::{Context, Result, bail};
use ramekin_core::BadSetting;
use ramekin_data::DataSettings;
use ramekin_recipe::{Part, TrainStage};
use ramekin_registry::{AnyPart, Slot, build};
pub use ramekin_slots::Decoder;
use ramekin_slots::{
    ActivationPolicy, Adapter, AttentionRule, Builder, Comm, Estimator, GradientTransform, Hook, KvPolicy,
    Merger, Method, Objective, Optimizer, Placement, Pruner, Quantizer, Schedule, Search, Selection, Track,
};
use serde_json::Value as Json;

use crate::blame;

/// Puts the part's place in the recipe into a refusal of one of its settings.
pub fn placed<T>(part: &Part, result: Result<T>) -> Result<T> {
    blame::part(result, || part.path.clone())
}

/// Settings of a data part.
pub fn data_settings(part: &Part) -> Result<DataSettings> {
    placed(part, DataSettings::from_json(&part.kind, Json::Object(part.settings.clone())))
}

fn any(slot: Slot, part: &Part) -> Result<AnyPart> {
    placed(part, build(slot, &part.kind, Json::Object(part.settings.clone())))
        .with_context(|| format!("{}/{}", slot.name(), part.kind))
}

macro_rules! makers {
    ($($(#[$doc:meta])* $name:ident: $slot:ident => $trait:ident;)*) => {$(
        $(#[$doc])*
        pub fn $name(part: &Part) -> Result<Box<dyn $trait>> {
            match any(Slot::$slot, part)? {
                AnyPart::$slot(p) => Ok(p),
                _ => bail!("`{}` is registered under the wrong slot", part.kind),
            }
        }
    )*};
}

makers! {
    /// A quantizer.
    quantizer: Quantizer => Quantizer;
    /// An adapter, not attached.
    adapter: Adapter => Adapter;
    /// A reducer, not attached.
    reducer: Reducer => Adapter;
    /// A selection, not attached.
    selection: Selection => Selection;
    /// A method, not installed.
    method: Method => Method;
    /// An estimator.
    estimator: Estimator => Estimator;
    /// A placement.
    placement: Placement => Placement;
    /// A search.
    search: Search => Search;
    /// Ranks.
    comm: Comm => Comm;
    /// A hook.
    hook: Hook => Hook;
    /// A gradient transform.
    gradient: Gradient => GradientTransform;
    /// An optimizer without state.
    optimizer: Optimizer => Optimizer;
    /// A schedule.
    schedule: Schedule => Schedule;
    /// An objective.
    objective: Objective => Objective;
    /// An activation policy.
    activation: Activation => ActivationPolicy;
    /// Where figures go.
    track: Track => Track;
    /// What a token sees.
    attention: Attention => AttentionRule;
    /// A cache policy.
    kv: Kv => KvPolicy;
    /// A way to merge.
    merger: Merge => Merger;
    /// A pruner.
    pruner: Prune => Pruner;
    /// A decoder, its settings not yet held against each other.
    any_decoder: Decode => Decoder;
}

/// What a method brings, not attached.
pub fn installed(part: &Part) -> Result<Builder> {
    let mut builder = Builder::default();
    placed(part, method(part)?.install(&mut builder))?;
    Ok(builder)
}

/// The activation policy of a stage: its method's, else its own.
pub fn policy(s: &TrainStage) -> Result<Box<dyn ActivationPolicy>> {
    let own = s.method.as_ref().map(installed).transpose()?.and_then(|built| built.activation);
    own.map_or_else(|| activation(&s.activation), Ok)
}

/// A decoder.
pub fn decoder(part: &Part) -> Result<Box<dyn Decoder>> {
    let decoder = any_decoder(part)?;
    placed(part, decoder.check())?;
    Ok(decoder)
}

/// A decoder that runs the model in work alone.
///
/// # Errors
/// If it wants further models.
pub fn lone_decoder(part: &Part) -> Result<Box<dyn Decoder>> {
    let decoder = decoder(part)?;
    if decoder.models().is_empty() {
        return Ok(decoder);
    }
    let why = format!("is `{}`, which runs further models; here the model in work is alone", part.kind);
    placed(part, Err(BadSetting::new("kind", why).into()))
}
