//! A step over several ranks: numbers of micro-batches, sums in their order, gradients that become one.

use std::rc::Rc;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use ramekin_core::{Array, Category, Param};
use ramekin_slots::Peer;
use ramekin_tape::GradSink;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use crate::assembly::Assembly;
use crate::masks::masked;

/// The ranks of a stage, as one of them sees them; most stages have one alone.
#[derive(Clone, Default)]
pub struct Team(Option<Rc<dyn Peer>>);

impl Team {
    /// One rank alone.
    pub fn alone() -> Self {
        Team(None)
    }

    /// With the other ends of this one.
    pub fn with(peer: Box<dyn Peer>) -> Self {
        Team(Some(Rc::from(peer)))
    }

    /// The end to the others, where there are others.
    pub fn peer(&self) -> Option<&dyn Peer> {
        self.0.as_deref()
    }

    /// This rank's number, from 0.
    pub fn rank(&self) -> usize {
        self.peer().map_or(0, Peer::rank)
    }

    /// How many ranks there are.
    pub fn ranks(&self) -> usize {
        self.peer().map_or(1, Peer::ranks)
    }

    /// Number among the step's micro-batches of this rank's own number `own`: the ranks take them in turn.
    pub fn number(&self, own: usize) -> usize {
        own * self.ranks() + self.rank()
    }

    /// Figures of every rank's micro-batches, in the order of the step's micro-batches.
    ///
    /// # Errors
    /// If a rank has failed, or takes another number of micro-batches.
    pub fn in_order(&self, own: Vec<Vec<f64>>) -> Result<Vec<Vec<f64>>> {
        let Some(peer) = self.peer() else { return Ok(own) };
        let by_rank: Vec<Vec<Vec<f64>>> =
            peer.gather(pack(&own))?.iter().map(|bytes| unpack(bytes)).collect::<Result<_>>()?;
        let each = own.len();
        if by_rank.iter().any(|r| r.len() != each) {
            bail!("the ranks do not take the same number of micro-batches");
        }
        Ok((0..each).flat_map(|i| by_rank.iter().map(move |r| r[i].clone())).collect())
    }

    /// What every rank has found, by rank.
    ///
    /// # Errors
    /// If a rank has failed.
    pub fn gathered<T: Serialize + DeserializeOwned>(&self, own: T) -> Result<Vec<T>> {
        let Some(peer) = self.peer() else { return Ok(vec![own]) };
        peer.gather(serde_json::to_vec(&own)?)?
            .iter()
            .map(|bytes| Ok(serde_json::from_slice(bytes)?))
            .collect()
    }

    /// What rank 0 has found, on every rank.
    ///
    /// # Errors
    /// If a rank has failed.
    pub fn told<T: Serialize + DeserializeOwned>(&self, own: T) -> Result<T> {
        let Some(peer) = self.peer() else { return Ok(own) };
        Ok(serde_json::from_slice(&peer.broadcast(serde_json::to_vec(&own)?)?)?)
    }

    /// Tells the others that this rank cannot go on.
    pub fn fail(&self, error: &anyhow::Error) {
        if let Some(peer) = self.peer() {
            peer.fail(&format!("{error:#}"));
        }
    }

    /// Holds what has trained on every rank against rank 0's, bit for bit.
    ///
    /// # Errors
    /// The first tensor that differs.
    pub fn agree(&self, assembly: &Assembly, step: u64) -> Result<usize> {
        let params = assembly.ledger.borrow().touched();
        let Some(peer) = self.peer() else { return Ok(params.len()) };
        let mut own = Vec::with_capacity(params.len() * DIGEST);
        for param in &params {
            own.extend_from_slice(&Sha256::digest(param.value().to_bytes()?)[..DIGEST]);
        }
        let all = peer.gather(own)?;
        for (rank, theirs) in all.iter().enumerate() {
            if theirs.len() != all[0].len() {
                bail!("rank {rank} trains other tensors than rank 0");
            }
            let differs =
                all[0].chunks_exact(DIGEST).zip(theirs.chunks_exact(DIGEST)).position(|(a, b)| a != b);
            if let Some(at) = differs {
                let name = params.get(at).map_or("", |p| p.name());
                bail!("`{name}` is not the same on rank {rank} as on rank 0 after step {step}");
            }
        }
        Ok(params.len())
    }
}

/// Bytes of a tensor's digest that are compared.
const DIGEST: usize = 16;

fn pack(records: &[Vec<f64>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for record in records {
        bytes.extend_from_slice(&(record.len() as u32).to_le_bytes());
        record.iter().for_each(|x| bytes.extend_from_slice(&x.to_le_bytes()));
    }
    bytes
}

fn unpack(mut bytes: &[u8]) -> Result<Vec<Vec<f64>>> {
    let mut records = Vec::new();
    while let Some((count, rest)) = bytes.split_first_chunk::<4>() {
        let size = 8 * u32::from_le_bytes(*count) as usize;
        let numbers = rest.get(..size).context("another rank sent half a record")?;
        records.push(numbers.as_chunks::<8>().0.iter().map(|x| f64::from_le_bytes(*x)).collect());
        bytes = &rest[size..];
    }
    Ok(records)
}

/// Gradients of every rank's micro-batches as one, added up in the order of the step's micro-batches.
///
/// A parameter's gradient is exchanged as soon as backward has completed it, so no more than one tensor
/// is alive twice; after the last micro-batch it goes on to the sink. A rank alone hands on what it gets.
pub struct Summed<'a> {
    peer: Option<&'a dyn Peer>,
    params: &'a [Arc<Param>],
    sink: &'a mut dyn GradSink,
    sums: Vec<(Arc<Param>, Array)>,
    last: bool,
}

impl<'a> Summed<'a> {
    /// For these parameters.
    pub fn new(peer: Option<&'a dyn Peer>, params: &'a [Arc<Param>], sink: &'a mut dyn GradSink) -> Self {
        Summed { peer, params, sink, sums: Vec::new(), last: false }
    }

    /// Before a micro-batch; after the `last` one sums are complete.
    pub fn begin(&mut self, last: bool) {
        self.last = last;
    }

    /// After a micro-batch: takes what other ranks still bring, whose batches may reach more parameters.
    pub fn end(&mut self) -> Result<()> {
        while self.exchange(None)? {}
        if !self.last {
            return Ok(());
        }
        for (param, sum) in std::mem::take(&mut self.sums) {
            self.sink.ready(&param, sum)?;
        }
        Ok(())
    }

    fn exchange(&mut self, own: Option<(&Arc<Param>, Array)>) -> Result<bool> {
        let (param, own) = own.unzip();
        let own = param.zip(own).map(|(p, grad)| (p.name(), grad));
        let Summed { peer: Some(peer), sums, .. } = self else { return Ok(false) };
        let mut known = None;
        let found = peer.sum(own, &mut |name| {
            let at = sums.iter().position(|(p, _)| p.name() == name)?;
            let (param, sum) = sums.remove(at);
            known = Some(param);
            Some(sum)
        })?;
        let Some((name, sum)) = found else { return Ok(false) };
        let param = match (param, known) {
            (Some(param), _) => param.clone(),
            (None, Some(param)) => param,
            (None, None) => {
                let whole = self.params.iter().find(|p| p.name() == name);
                masked(
                    whole.with_context(|| format!("another rank trains `{name}`, which nothing here is"))?,
                )?
            }
        };
        if self.last {
            self.sink.ready(&param, sum)?;
        } else {
            sum.recategorise(Category::Gradients);
            self.sums.push((param, sum));
        }
        Ok(true)
    }
}

impl GradSink for Summed<'_> {
    fn ready(&mut self, param: &Arc<Param>, grad: Array) -> Result<()> {
        match self.peer {
            Some(_) => self.exchange(Some((param, grad))).map(drop),
            None => self.sink.ready(param, grad),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back() {
        let records = vec![vec![1.5, f64::NAN], vec![], vec![-0.0]];
        let back = unpack(&pack(&records)).expect("whole records");
        let bits = |all: &[Vec<f64>]| -> Vec<Vec<u64>> {
            all.iter().map(|r| r.iter().map(|x| x.to_bits()).collect()).collect()
        };
        assert_eq!(bits(&back), bits(&records));
        assert!(unpack(&[2, 0, 0, 0, 1]).is_err());
    }
}
