//! The side network: from hidden states to what the head is given.
//!
//! D model width, d side width, N the last state.

use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use anyhow::{Result, ensure};
use ramekin_core::{Array, Param};
use ramekin_slots::{Forward, NetworkAdapter};
use ramekin_tape::ops::{self, Activation};
use ramekin_tape::{Tape, Value};

use crate::settings::{Output, Phi, Pool, UniptSettings};

/// A weight with its bias.
#[derive(Clone)]
pub(crate) struct Pair(pub Arc<Param>, pub Arc<Param>);

impl Pair {
    fn linear(&self, tape: &Tape, x: &Value) -> Result<Value> {
        ops::linear(tape, x, &tape.param(&self.0)?, Some(&tape.param(&self.1)?))
    }

    fn norm(&self, tape: &Tape, x: &Value) -> Result<Value> {
        ops::layer_norm(tape, x, &tape.param(&self.0)?, &tape.param(&self.1)?, 1e-5)
    }
}

/// The parameters in place.
pub struct Side {
    pub(crate) settings: UniptSettings,
    /// Numbers of the states that are read, the last one last.
    pub(crate) states: Vec<usize>,
    /// Linear(D, d) of each state.
    pub(crate) down: Vec<Pair>,
    /// Layer norm of each state; none where the output is residual.
    pub(crate) norms: Vec<Pair>,
    /// Linear(d, 1).
    pub(crate) gate: Pair,
    /// One linear, or two, and a norm; none where the output is residual.
    pub(crate) phi: Vec<Pair>,
    /// Linear(d, D).
    pub(crate) up: Pair,
}

type Segments = Rc<Vec<Range<usize>>>;

impl Side {
    fn residual(&self) -> bool {
        self.settings.output == Output::Residual
    }

    /// u_i of every state that is read, `[T, d]` each.
    pub fn reduced(&self, tape: &Tape, states: &[Value]) -> Result<Vec<Value>> {
        let mut all = Vec::with_capacity(self.states.len());
        for (i, number) in self.states.iter().enumerate() {
            let state = &states[*number];
            ensure!(state.dims() == states[0].dims(), "hidden states of different shapes");
            all.push(if self.residual() {
                self.down[i].linear(tape, &ops::activation(tape, state, Activation::Relu)?)?
            } else {
                self.norms[i].norm(tape, &self.down[i].linear(tape, state)?)?
            });
        }
        Ok(all)
    }

    fn pooled(&self, tape: &Tape, u: &Value, segments: &Segments) -> Result<Value> {
        match self.settings.pool {
            Pool::MaskedMean => ops::segment_mean(tape, u, segments, false),
            Pool::PrefixMean => ops::segment_mean(tape, u, segments, true),
            Pool::First => {
                let first = segments.iter().flat_map(|s| s.clone().map(|_| s.start as u32)).collect();
                ops::select_rows(tape, u, &Rc::new(first))
            }
        }
    }

    /// What the head is given, `[T, D]`, and the confidences, `[T, targets]`.
    pub fn run(&self, tape: &Tape, states: &[Value], segments: &Segments) -> Result<(Value, Array)> {
        let u = self.reduced(tape, states)?;
        let q = &u[u.len() - 1];
        let targets = if self.residual() { &u[..] } else { &u[..u.len() - 1] };
        let anchor = self.pooled(tape, q, segments)?;
        let (mut found, mut scores) = (Vec::new(), Vec::new());
        for u in targets {
            let (causal, eps) = (self.settings.causal, self.settings.l1_eps);
            found.push(ops::relu_attention(tape, q, u, u, segments, causal, eps)?);
            let both = ops::mul(tape, &anchor, &self.pooled(tape, u, segments)?)?;
            scores.push(self.gate.linear(tape, &both)?);
        }
        let (mixed, confidences) = ops::softmax_mix(tape, &scores, &found)?;
        Ok((self.merge(tape, q, &mixed, &states[self.states[self.states.len() - 1]])?, confidences))
    }

    /// From the anchor and the mixture to the output.
    pub fn merge(&self, tape: &Tape, q: &Value, mixed: &Value, last: &Value) -> Result<Value> {
        let relu = |x: &Value| ops::activation(tape, x, Activation::Relu);
        if self.residual() {
            return ops::add(tape, last, &self.up.linear(tape, &relu(mixed)?)?);
        }
        let m = match &self.phi[..] {
            [one, norm] => norm.norm(tape, &one.linear(tape, mixed)?)?,
            [one, two, norm] => norm.norm(tape, &two.linear(tape, &relu(&one.linear(tape, mixed)?)?)?)?,
            _ => anyhow::bail!("phi has {} parts", self.phi.len()),
        };
        let o = ops::add(tape, q, &m)?;
        match self.settings.phi {
            Phi::Linear => self.up.linear(tape, &relu(&o)?),
            Phi::Mlp => self.up.linear(tape, &o),
        }
    }
}

impl NetworkAdapter for Side {
    fn forward(&self, fx: &Forward, states: &[Value]) -> Result<Value> {
        Ok(self.run(&fx.tape, states, &fx.batch.segments)?.0)
    }
}
