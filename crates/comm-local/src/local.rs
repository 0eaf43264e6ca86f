//! `local`: every rank is a thread of this process, and all share the workers of one thread pool.
//!
//! A tensor is handed over as a handle to shared memory, and each rank adds all of them up for itself in
//! the order of the ranks; nothing is copied but the first summand. Two ranks with one micro-batch each
//! therefore give the bits that one rank with two gives.
//!
//! Source: Li et al. 2020, arXiv:2006.15704 (data-parallel training).

use std::sync::Arc;

use anyhow::{Result, bail};
use ramekin_core::{Array, BadSetting, Category, meter};
use ramekin_registry::{Part, part};
use ramekin_slots::{Comm, Peer};
use ramekin_tape::ops;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::hub::Hub;

part! { comm / "local" => Local, "ranks are threads of this process; gradients are summed in the order of the ranks",
source = "arXiv:2006.15704", traits = [] }

/// Settings of `comm = { kind = "local", … }`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LocalSettings {
    /// Ranks, from 1 to 64; each takes `gradient_accumulation_steps` micro-batches of every step.
    pub ranks: usize,
}

impl Default for LocalSettings {
    fn default() -> Self {
        LocalSettings { ranks: 2 }
    }
}

/// Threads that train as one.
pub struct Local {
    ranks: usize,
}

impl Part for Local {
    type Settings = LocalSettings;

    fn new(s: LocalSettings) -> Result<Self> {
        if !(1..=MOST).contains(&s.ranks) {
            let why = format!("is {}; it must be from 1 to {MOST}", s.ranks);
            return Err(BadSetting::new("ranks", why).into());
        }
        Ok(Local { ranks: s.ranks })
    }
}

/// More threads than this on one machine are a slip of the pen.
const MOST: usize = 64;

impl Comm for Local {
    fn ranks(&self) -> usize {
        self.ranks
    }

    fn join(&self) -> Result<Vec<Box<dyn Peer + Send>>> {
        let hub = Hub::new(self.ranks);
        let end = |rank| -> Box<dyn Peer + Send> {
            Box::new(End { rank, ranks: self.ranks, hub: Some(hub.clone()) })
        };
        Ok((0..self.ranks).map(end).collect())
    }

    fn rehearse(&self) -> Box<dyn Peer> {
        Box::new(End { rank: 0, ranks: self.ranks, hub: None })
    }
}

const APART: &str = "the ranks are not at the same place: one waits for tensors and one for figures";

/// What a rank leaves at a meeting.
#[derive(Clone)]
enum Left {
    Nothing,
    Bytes(Vec<u8>),
    Tensor(String, Array),
}

/// One thread's end; without a hub the others give what it gives.
struct End {
    rank: usize,
    ranks: usize,
    hub: Option<Arc<Hub<Left>>>,
}

impl End {
    fn meet(&self, own: Left) -> Result<Arc<Vec<Left>>> {
        match &self.hub {
            Some(hub) => Ok(hub.meet(self.rank, own)?),
            None => Ok(Arc::new(vec![own; self.ranks])),
        }
    }

    /// Everybody reads what everybody else has left.
    fn note(&self, own: u64, all: u64) {
        meter::current().exchange(own * (self.ranks as u64 - 1), all - own);
    }
}

impl Peer for End {
    fn rank(&self) -> usize {
        self.rank
    }

    fn ranks(&self) -> usize {
        self.ranks
    }

    fn gather(&self, own: Vec<u8>) -> Result<Vec<Vec<u8>>> {
        let sent = own.len() as u64;
        let all = self.meet(Left::Bytes(own))?;
        let bytes = all.iter().map(|left| match left {
            Left::Bytes(bytes) => Ok(bytes.clone()),
            _ => bail!(APART),
        });
        let bytes = bytes.collect::<Result<Vec<_>>>()?;
        self.note(sent, bytes.iter().map(|b| b.len() as u64).sum());
        Ok(bytes)
    }

    fn broadcast(&self, own: Vec<u8>) -> Result<Vec<u8>> {
        let own = if self.rank == 0 { own } else { Vec::new() };
        Ok(self.gather(own)?.swap_remove(0))
    }

    fn sum(
        &self,
        own: Option<(&str, Array)>,
        onto: &mut dyn FnMut(&str) -> Option<Array>,
    ) -> Result<Option<(String, Array)>> {
        let (mut sent, mut all_bytes) = (0, 0);
        let all = self.meet(match own {
            None => Left::Nothing,
            Some((name, array)) => {
                sent = array.bytes();
                Left::Tensor(name.to_owned(), array)
            }
        })?;
        let mut found: Option<(String, Option<Array>)> = None;
        for (rank, left) in all.iter().enumerate() {
            let (name, array) = match left {
                Left::Nothing => continue,
                Left::Tensor(name, array) => (name, array),
                Left::Bytes(_) => bail!(APART),
            };
            all_bytes += array.bytes();
            let (first, sum) = found.get_or_insert_with(|| (name.clone(), onto(name)));
            if first != name {
                bail!(
                    "rank {rank} has a gradient of `{name}` where the ranks before it have one of `{first}`"
                );
            }
            match sum {
                Some(sum) => ops::accumulate(sum, array.clone())?,
                None => *sum = Some(array.copied(Category::Gradients)?),
            }
        }
        drop(all);
        self.note(sent, all_bytes);
        // No rank goes on, and changes or frees its tensor, while another still reads it.
        self.meet(Left::Nothing)?;
        Ok(found.and_then(|(name, sum)| Some((name, sum?))))
    }

    fn fail(&self, why: &str) {
        if let Some(hub) = &self.hub {
            hub.fail(format!("rank {}: {why}", self.rank));
        }
    }
}

impl Drop for End {
    fn drop(&mut self) {
        // Whoever still waits for this rank would wait for ever.
        self.fail("has left");
    }
}
