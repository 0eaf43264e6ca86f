//! The slot traits: what a part of each kind must offer, and what it may ask for.
//!
//! A slot is a trait here plus a key in the recipe. Parts implement these
//! traits in crates of their own and know neither a recipe nor each other.
//!
//! | slot | trait | decides |
//! |---|---|---|
//! | `model` | [`ModelFamily`], [`Model`] | architecture from `config.json` |
//! | `quantizer` | [`Quantizer`] | how a frozen weight is stored |
//! | `adapter` | [`Adapter`], [`LinearAdapter`], [`ModuleAdapter`], [`AttentionAdapter`], [`RowAdapter`], [`PathAdapter`], [`NetworkAdapter`] | extra parameters at sites |
//! | `selection` | [`Selection`] | which entries of the base train, and when |
//! | `method` | [`Method`], [`Builder`] | several slots at once |
//! | `estimator` | [`Estimator`] | how a gradient is obtained |
//! | `gradient` | [`GradientTransform`] | gradient to gradient |
//! | `optimizer` | [`Optimizer`] | update rule and its state |
//! | `schedule` | [`Schedule`] | rate by step |
//! | `objective` | [`Objective`] | loss |
//! | `activation` | [`ActivationPolicy`] | what survives from forward to backward |
//! | `placement` | [`Placement`] | where weights live while they are not used |
//! | `attention` | [`AttentionRule`] | which tokens a token sees |
//! | `kv` | [`KvPolicy`], [`KvCache`] | what a cache keeps |
//! | `reducer` | [`Reducer`] | which tokens become one |
//! | `decode` | [`Decoder`] | logits to token |
//! | `search` | [`Search`] | which recipe is tried next |
//! | `prune` | [`Pruner`] | which channels go |
//! | `merge` | [`Merger`] | several models into one |
//! | `comm` | [`Comm`], [`Peer`] | several ranks that train as one |
//! | `hook` | [`Hook`] | reacts to events of training |
//! | `track` | [`Track`] | where figures go besides the run folder |

mod adapter;
mod around;
mod attention;
mod comm;
pub mod config;
mod decode;
mod estimator;
mod forward;
mod gradient;
mod hook;
mod images;
mod kv;
mod loader;
mod merge;
mod method;
mod model;
mod model_ref;
mod module;
mod objective;
mod optimizer;
mod part;
mod placement;
mod probe;
mod prune;
mod quantizer;
mod reducer;
mod saved;
mod search;
mod selection;
mod sites;
mod track;
mod training;

pub use adapter::{Adapter, AdapterFile, AttachContext, Below, LinearAdapter};
pub use around::{
    Around, AttentionAdapter, Longer, NetworkAdapter, PathAdapter, RowAdapter, check_virtual_tokens,
};
pub use attention::AttentionRule;
pub use comm::{Comm, Peer, RankFailed};
pub use decode::{Decoder, Draft, Line, LogitRows, Logits, Other, Session, Stepper, Words};
pub use estimator::{Estimator, Problem, Stop};
pub use forward::{FlatBatch, Forward, Mode};
pub use gradient::GradientTransform;
pub use hook::{Event, Flow, Hook, HookContext};
pub use images::{ImageFacts, Images};
pub use kv::{Attend, KvCache, KvPolicy, KvPrefix, KvShape};
pub use loader::{LoadOptions, Loader, RandomSource, ShapeSource, WeightInfo, WeightSource};
pub use merge::{
    Candidate, Codec, Held, Judge, MergedTensor, Merger, Origin, PIECE, Piece, Stored, TaskVectors, ranges,
};
pub use method::{Builder, Method};
pub use model::{Half, Halves, Model, ModelFacts, ModelFamily, no_bias};
pub use model_ref::ModelRef;
pub use module::{Affine, ModuleAdapter, ModuleSite, NormInfo};
pub use objective::{
    Figure, Head, Labelled, Loss, Objective, ObjectiveAttach, ObjectiveContext, ObjectiveFile, OnEmbedding,
    Rows, Runner, States, labelled_tokens,
};
pub use optimizer::{
    Optimizer, ParamGroup, ParamState, StateSpec, StateTable, StateTensor, StepEntries, StepInfo, Update,
    carried, last_of,
};
pub use part::{AnyPart, Part, PartEntry, Slot, Trait};
pub use placement::{Placement, Visit, block_of};
pub use probe::Probe;
pub use prune::{BlockMetric, BlockStatistics, MlpSite, MlpWeights, Pruner};
pub use quantizer::Quantizer;
pub use ramekin_tape::ParamView;
pub use ramekin_tape::ops::{Apart, PackedWeight, Rebuild};
pub use reducer::{Keys, Reduced, Reducer};
pub use saved::{read_text, text};
pub use search::{Axis, Search, Space, Trial};
pub use selection::{Differences, RoundContext, Selection, SelectionFile};
pub use sites::{LinearBase, LinearSite, ParamSite, Sites};
pub use track::{Track, TrackContext};
pub use training::{ActivationPolicy, Block, Schedule, Stateful, run_coupled};
