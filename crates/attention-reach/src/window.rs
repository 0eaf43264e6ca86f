//! `window`: a token sees the last few tokens before it.
//!
//! Query i sees the keys j with i − w < j ≤ i. Over L layers a token still hears of L·(w − 1) others.
//!
//! Source: Beltagy et al. 2020, arXiv:2004.05150; Jiang et al. 2023, arXiv:2310.06825.

use anyhow::Result;
use ramekin_registry::{Part, part};
use ramekin_slots::AttentionRule;
use ramekin_tape::ops::Reach;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::tokens;

part! { attention / "window" => Window, "a token sees the last few tokens of its document", source = "arXiv:2004.05150, 2310.06825", traits = [] }

/// Settings of `attention = { kind = "window", … }`.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct WindowSettings {
    /// Tokens that a token sees, itself included. Must be set.
    #[schemars(range(min = 1))]
    pub window: Option<usize>,
    /// Blocks from the first that keep what the config says, as `max_window_layers` of Qwen2.
    pub max_window_layers: usize,
}

/// The rule.
pub struct Window {
    window: usize,
    first: usize,
}

impl Part for Window {
    type Settings = WindowSettings;

    fn new(s: WindowSettings) -> Result<Self> {
        Ok(Window { window: tokens("window", s.window)?, first: s.max_window_layers })
    }
}

impl AttentionRule for Window {
    fn reach(&self, block: usize, own: Reach) -> Reach {
        if block < self.first { own } else { Reach::window(self.window) }
    }
}
