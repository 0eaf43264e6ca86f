//! AdamW with moments in bytes: the dynamic 8-bit code, one largest value a block.
//!
//! The update is that of `adamw` on moments that are unpacked, changed and packed again block by block
//! (`ramekin_kernels::adamw8bit`). Small tensors and embeddings keep f32 moments: their gradients are
//! few or uneven, and they cost little.
//!
//! State: 2 + 8/256 bytes a number instead of 8.
//!
//! Source: Dettmers et al. 2021, arXiv:2110.02861; bitsandbytes' AdamW8bit, decay before the step.

use std::sync::Arc;

use anyhow::Result;
use ramekin_core::{Array, BadSetting, Category, Param, ParamId};
use ramekin_kernels::adamw::AdamW as Rule;
use ramekin_kernels::adamw8bit as kernel;
use ramekin_registry::{Part, part};
use ramekin_slots::{
    Optimizer, ParamGroup, ParamState, StateSpec, StateTable, StepInfo, Update, carried, last_of,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::adamw::{AdamWSettings, corrections, moments, run, small};

part! { optimizer / "adamw8bit" => AdamW8bit, "AdamW with moments in blocks of bytes; 2 bytes of state a trainable number",
source = "arXiv:2110.02861", traits = [StatefulAcrossSteps] }

/// Settings of `optimizer = { kind = "adamw8bit", … }`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AdamW8bitSettings {
    /// Learning rate at the top of the schedule.
    #[serde(alias = "learning_rate")]
    pub lr: f64,
    /// Decay rates of the first and second moment, each in [0, 1).
    pub betas: [f64; 2],
    /// Added to the root of the second moment; above 0, for a second moment may round to 0.
    #[serde(alias = "adam_epsilon")]
    pub eps: f64,
    /// Decoupled decay a step, as a factor of the learning rate.
    pub weight_decay: f64,
    /// Entries that share one scale: 256, or 2048 as in older bitsandbytes.
    pub block_size: usize,
    /// Tensors of fewer entries keep f32 moments.
    pub min_8bit_size: usize,
    /// Parameters with one of these in their name keep f32 moments.
    pub keep_f32: Vec<String>,
}

impl Default for AdamW8bitSettings {
    fn default() -> Self {
        let AdamWSettings { lr, betas, eps, weight_decay } = AdamWSettings::default();
        let keep_f32 = ["embed", "wte", "wpe"].map(str::to_owned).to_vec();
        AdamW8bitSettings { lr, betas, eps, weight_decay, block_size: 256, min_8bit_size: 4096, keep_f32 }
    }
}

const NAMES: [&str; 4] = ["exp_avg", "exp_avg_absmax", "exp_avg_sq", "exp_avg_sq_absmax"];

/// The optimizer.
pub struct AdamW8bit {
    rule: AdamWSettings,
    settings: AdamW8bitSettings,
    table: StateTable,
}

impl Part for AdamW8bit {
    type Settings = AdamW8bitSettings;

    fn new(s: AdamW8bitSettings) -> Result<Self> {
        let rule = AdamWSettings { lr: s.lr, betas: s.betas, eps: s.eps, weight_decay: s.weight_decay };
        rule.check()?;
        BadSetting::unless(s.eps > 0.0, "eps", s.eps, "above 0 here, such as 1e-8")?;
        BadSetting::unless(matches!(s.block_size, 256 | 2048), "block_size", s.block_size, "256 or 2048")?;
        Ok(AdamW8bit { rule, settings: s, table: StateTable::new(&NAMES) })
    }
}

impl AdamW8bitSettings {
    /// Whether the moments of this many entries are in bytes.
    fn in_bytes(&self, param: &str, entries: usize) -> bool {
        entries >= self.min_8bit_size && !self.keep_f32.iter().any(|k| param.contains(k.as_str()))
    }
}

impl AdamW8bit {
    /// Begins an update; the state and whether it is in bytes.
    fn advance(&mut self, param: &Arc<Param>, like: &Array) -> Result<(&mut ParamState, bool)> {
        let s = &self.settings;
        let bytes = s.in_bytes(param.name(), like.len());
        let blocks = [like.len().div_ceil(s.block_size)];
        let specs = if bytes {
            vec![
                StateSpec::u8(NAMES[0], like.dims()),
                StateSpec::f32(NAMES[1], &blocks),
                StateSpec::u8(NAMES[2], like.dims()),
                StateSpec::f32(NAMES[3], &blocks),
            ]
        } else {
            moments(like.dims()).to_vec()
        };
        Ok((self.table.advance(param, &specs, like.is_shape_only())?, bytes))
    }
}

/// Changes `p` and a parameter's moments in bytes.
fn run_bytes(rule: &Rule, block: usize, p: &mut [f32], grad: &Array, state: &ParamState) -> Result<()> {
    let g = grad.view::<f32>()?;
    let [m, m_max, v, v_max] = [0, 1, 2, 3].map(|i| state.array(i));
    m.update(|m: &mut [u8]| {
        m_max.update(|m_max: &mut [f32]| {
            v.update(|v: &mut [u8]| {
                v_max.update(|v_max: &mut [f32]| {
                    kernel::step(rule, block, p, &g, kernel::Moments { m, m_max, v, v_max });
                })
            })
        })
    })???
}

impl Optimizer for AdamW8bit {
    fn lr(&self) -> f64 {
        self.settings.lr
    }

    fn step(&mut self, param: &Arc<Param>, grad: &Array, info: StepInfo, group: ParamGroup) -> Result<()> {
        let value = param.value();
        let (settings, block) = (self.rule.clone(), self.settings.block_size);
        let (state, bytes) = self.advance(param, &value)?;
        if value.is_shape_only() {
            return Ok(());
        }
        let rule = settings.rule(state.steps(), info, group);
        value.update(|p: &mut [f32]| {
            if bytes { run_bytes(&rule, block, p, grad, state) } else { run(&rule, p, grad, state) }
        })?
    }

    fn update(
        &mut self,
        param: &Arc<Param>,
        grad: &Array,
        info: StepInfo,
        group: ParamGroup,
    ) -> Result<Update> {
        let (settings, block) = (self.rule.clone(), self.settings.block_size);
        let (state, bytes) = self.advance(param, grad)?;
        let rule = settings.rule(state.steps(), info, group);
        if !bytes {
            return small(rule, grad, state);
        }
        // On zeros, at a rate of −1 after its corrections, what is left of p is the direction. ε stays
        // corrected as bitsandbytes has it.
        let (c1, c2) = corrections(&rule);
        let on_zeros = Rule { lr: -c1 / c2, weight_decay: 0.0, ..rule };
        let fill = |p: &mut [f32]| run_bytes(&on_zeros, block, p, grad, state);
        let direction = Array::build(grad.dims(), grad.is_shape_only(), Category::Workspace, fill)?;
        Ok(Update { direction, rate: rule.lr * c2 / c1, decay: rule.lr * rule.weight_decay })
    }

    /// Moments in bytes are unpacked, carried along and packed again.
    fn remap(&mut self, param: ParamId, from: &[Option<usize>]) -> Result<()> {
        let Some(state) = self.table.get(param) else { return Ok(()) };
        if state.array(0).len() < last_of(from) {
            self.table.forget(param);
            return Ok(());
        }
        let moments = match state.arrays() {
            [m, v] => vec![(m, None), (v, None)],
            [m, m_max, v, v_max] => vec![(m, Some((m_max, true))), (v, Some((v_max, false)))],
            _ => Vec::new(),
        };
        let block = self.settings.block_size;
        let packed = self.settings.in_bytes(state.param(), from.len());
        let mut arrays = Vec::new();
        for (i, ((name, array), scales)) in moments.into_iter().enumerate() {
            let shape_only = array.is_shape_only();
            let kept = carried(shape_only, from, || match scales {
                None => Ok(array.view::<f32>()?.to_vec()),
                Some(((_, max), signed)) => {
                    Ok(kernel::unpack(&array.view::<u8>()?, &max.view::<f32>()?, block, signed))
                }
            })?;
            if !packed {
                arrays.push((*name, kept));
                continue;
            }
            let blocks = from.len().div_ceil(block);
            let codes = Array::build(&[from.len()], shape_only, Category::Optimizer, |_: &mut [u8]| Ok(()))?;
            let max = Array::build(&[blocks], shape_only, Category::Optimizer, |_: &mut [f32]| Ok(()))?;
            if !shape_only {
                let x = kept.view::<f32>()?;
                codes.update(|c: &mut [u8]| {
                    max.update(|max: &mut [f32]| kernel::pack(&x, block, i == 0, c, max))
                })??;
            }
            arrays.extend([(NAMES[2 * i], codes), (NAMES[2 * i + 1], max)]);
        }
        self.table.replace(param, arrays);
        Ok(())
    }

    fn table(&self) -> &StateTable {
        &self.table
    }

    fn table_mut(&mut self) -> &mut StateTable {
        &mut self.table
    }
}
