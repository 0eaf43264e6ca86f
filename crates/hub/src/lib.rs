//! Where a model comes from: the Hugging Face hub and its cache, a folder, or the built-in one.
//!
//! | source | answer |
//! |---|---|
//! | `builtin:NAME` | [`Located::Builtin`], for the engine's embedded models |
//! | `hf:ORG/NAME`, `hf:ORG/NAME@REVISION` | a snapshot in the standard cache; what lacks is fetched |
//! | anything else | a folder, relative to the recipe |
//!
//! The cache is asked first, so that a model once fetched needs no network.
//! `HF_HOME`, `HF_HUB_CACHE`, `HF_TOKEN`, `HF_HUB_OFFLINE` and `HF_ENDPOINT`
//! mean what they mean for `huggingface_hub`.

pub mod cache;
pub mod env;
pub mod error;
pub mod remote;
pub mod resolve;

pub use env::Env;
pub use error::{HubError, Kind};
pub use remote::{Listing, Remote, RemoteError};
pub use resolve::{Located, Resolver, resolve};
