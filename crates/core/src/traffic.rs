//! What goes over a link: to host memory, to disk, between ranks.

use serde::{Deserialize, Serialize};

/// Bytes over one link, both ways.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Bytes that went there.
    pub sent: u64,
    /// Bytes that came back.
    pub fetched: u64,
}

impl Link {
    fn with(self, other: Link, f: impl Fn(u64, u64) -> u64) -> Link {
        Link { sent: f(self.sent, other.sent), fetched: f(self.fetched, other.fetched) }
    }

    /// Whether nothing went either way.
    pub fn is_idle(self) -> bool {
        self == Link::default()
    }
}

/// Bytes by link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Traffic {
    /// Between the device's memory and the host's.
    pub host: Link,
    /// Between memory and files.
    pub disk: Link,
    /// Between one rank and the others.
    pub ranks: Link,
}

impl Traffic {
    /// Every link by its name.
    pub fn links(&self) -> [(&'static str, Link); 3] {
        [("host", self.host), ("disk", self.disk), ("ranks", self.ranks)]
    }

    fn with(&self, other: &Traffic, f: impl Fn(u64, u64) -> u64 + Copy) -> Traffic {
        Traffic {
            host: self.host.with(other.host, f),
            disk: self.disk.with(other.disk, f),
            ranks: self.ranks.with(other.ranks, f),
        }
    }

    /// What has come to this since `before`.
    pub fn since(&self, before: &Traffic) -> Traffic {
        self.with(before, u64::saturating_sub)
    }

    /// Both together.
    pub fn plus(&self, other: &Traffic) -> Traffic {
        self.with(other, |a, b| a + b)
    }

    /// `times` of these, shared out among `parts`, rounded to whole bytes.
    pub fn scaled(&self, times: u64, parts: u64) -> Traffic {
        let parts = u128::from(parts.max(1));
        let scale = |x: u64, _: u64| ((u128::from(x) * u128::from(times) + parts / 2) / parts) as u64;
        self.with(self, scale)
    }

    /// Whether nothing went over any link.
    pub fn is_idle(&self) -> bool {
        *self == Traffic::default()
    }
}
