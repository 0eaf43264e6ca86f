//! Key/value caches that drop entries.
//!
//! | kind | score | budget | trigger | positions | source |
//! |---|---|---|---|---|---|
//! | `streaming` | age, the first few spared | one for all | before each token | by slot | arXiv:2309.17453 |
//! | `h2o` | weights summed over all queries | one a head | after each token | true | arXiv:2306.14048 |
//! | `tova` | the newest query's weights | one for all | after each token | true | arXiv:2401.06104 |
//! | `snapkv` | the prompt's last queries' weights, pooled | one a head | after the prompt | true | arXiv:2404.14469 |
//! | `pyramid` | as snapkv | shrinks with depth | after the prompt | true | arXiv:2406.02069 |
//! | `ada` | as snapkv | shared out among heads | after the prompt | true | arXiv:2407.11550 |
//!
//! Each is a rule over the lanes of `lanes`; what scores and budgets have in common is in `window`
//! (votes of a prompt's end) and `budget` (by layer, by head).

mod ada;
mod budget;
mod h2o;
mod pyramid;
mod snapkv;
mod streaming;
mod tova;
mod window;

pub use ada::{Ada, AdaSettings, Safeguard};
pub use budget::{by_head, by_layer};
pub use h2o::{H2o, H2oSettings};
pub use pyramid::{Pyramid, PyramidSettings};
pub use snapkv::{SnapKv, SnapKvSettings, hit_rate};
pub use streaming::{Streaming, StreamingSettings};
pub use tova::{Tova, TovaSettings};
pub use window::{GqaReduce, Pooling};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// By what positions the keys in a cache are turned.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Positions {
    /// By the entry's place in the cache: no distance is ever longer than the cache.
    Slot,
    /// By the token's true position.
    Original,
}

/// Makes a rule a policy over f32 lanes; `fits` is its own check of model and lengths.
macro_rules! policy {
    ($rule:ty) => {
        impl ramekin_slots::KvPolicy for $rule {
            fn check(
                &self,
                facts: &ramekin_slots::ModelFacts,
                shape: ramekin_slots::KvShape,
            ) -> anyhow::Result<()> {
                self.fits(facts, shape)
            }

            fn cache(
                &self,
                shape: ramekin_slots::KvShape,
            ) -> anyhow::Result<std::rc::Rc<std::cell::RefCell<dyn ramekin_slots::KvCache>>> {
                ramekin_lanes::open(self.clone(), ramekin_lanes::Dense, shape)
            }

            fn bytes(&self, shape: ramekin_slots::KvShape) -> u64 {
                ramekin_lanes::bytes(self, &ramekin_lanes::Dense, shape)
            }
        }
    };
}
pub(crate) use policy;
