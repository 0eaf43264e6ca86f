//! Metrics over held-out rows: loss, perplexity and exact match.
//!
//! | name | counts | answers |
//! |---|---|---|
//! | `loss` | negative log likelihoods of active tokens | their mean, in nats |
//! | `perplexity` | the same | its exponential |
//! | `accuracy` | rows that the objective gets right | their share |
//! | `exact_match` | written answers, white space made even | the share that equal the expected text |
//! | `final_number` | written answers | the share whose last number is the expected one (gsm8k's `#### 42`) |
//! | `number`, `letter`, `choice` | written answers | the share whose number, letter or label is the expected one ([`extract`]) |
//!
//! Nothing here runs a model: the engine feeds sums and texts.

pub mod answer;
pub mod extract;
pub mod metrics;

pub use answer::{Compare, ExactMatch};
pub use metrics::{Loss, Metrics, NAMES, Perplexity};
