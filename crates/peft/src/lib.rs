//! What adapters in PEFT's layout share, so that a method is one short file.
//!
//! A method implements [`Method`]: its settings, its config's own fields, and what it puts at one
//! linear. [`PeftAdapter`] makes an adapter part of it: selects targets by PEFT's rules, names
//! parameters as PEFT's files do, trains whole modules and biases along, loads and saves.
//!
//! No method is known here; the files' facts are those of PEFT 0.21.

mod adapter;
mod config;
mod init;
mod kept;
mod method;

pub use adapter::PeftAdapter;
pub use config::{own_fields, pattern_numbers, settings, whole, whole_config};
pub use init::{kaiming, zeros};
pub use kept::Kept;
pub use method::{Biases, Method, Targeting};
