//! GaLore: the optimizer's moments live in a low-rank projection of each weight's gradient.
//!
//! G [m × n], rank r; every `update_proj_gap` steps of a weight, from the SVD of its gradient:
//!
//! right: R = G Q, Q = V[:, :r]        left: R = Pᵀ G, P = U[:, :r]        full: R = Pᵀ G Q
//! N = direction of the optimizer on R
//! W ← W − rate · scale · (N Qᵀ | P N | P N Qᵀ), then W ← W · (1 − lr·wd)
//!
//! `std` compresses the smaller side: right where m ≥ n, else left. Moments are neither reset nor turned
//! at a refresh. With `residual`, Fira's term (`residual`) is added. More than two dimensions count as
//! `[first, rest]`; everything that is no target or no matrix goes to the optimizer as it is.
//!
//! Cost: 2 products of 2·m·n·r operations a step, an SVD of about 22·m·n·min(m, n) at each refresh.
//! State: r·min(m, n) of projector besides the optimizer's moments of r·max(m, n).
//!
//! Source: Zhao et al. 2024, arXiv:2403.03507.

use std::sync::Arc;

use anyhow::{Context, Result};
use ramekin_core::{Array, BadSetting, Category, DType, Lease, Param};
use ramekin_kernels::matmul;
use ramekin_registry::{Part, part};
use ramekin_slots::{GradientTransform, ParamState, StateSpec, StateTable, StateTensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::residual::Residual;

part! { gradient / "galore" => Galore, "projects gradients to low rank, so that the optimizer's state is small; Fira with `residual`",
source = "arXiv:2403.03507", traits = [StatefulAcrossSteps] }

/// Settings of `gradient = [{ kind = "galore", … }]`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct GaloreSettings {
    /// Rank of the subspace; at most the smaller side of every target. Pretraining: a quarter to a half of
    /// the model's width; fine-tuning: 4 or 8.
    pub rank: usize,
    /// Steps of a weight between two projectors.
    pub update_proj_gap: u64,
    /// Factor of what comes back from the subspace; above 0.
    pub scale: f64,
    /// Which side is compressed.
    pub proj_type: ProjType,
    /// A matrix is a target if its name contains one of these.
    pub target_modules: Vec<String>,
    /// Whether each weight is updated, and its gradient freed, inside the backward pass; not together with
    /// several micro-batches a step or clipping by the global norm.
    pub per_layer_update: bool,
    /// Whether the part outside the subspace is added, rescaled (Fira).
    pub residual: bool,
    /// Whether that part also keeps 1 − `scale` of what is inside, as Fira's released code has it.
    pub residual_includes_scale: bool,
    /// The largest growth of the residual's norm from step to step; above 1. A huge one limits nothing.
    pub limiter_gamma: f64,
}

impl Default for GaloreSettings {
    fn default() -> Self {
        GaloreSettings {
            rank: 128,
            update_proj_gap: 200,
            scale: 0.25,
            proj_type: ProjType::Std,
            target_modules: vec!["attn".to_owned(), "mlp".to_owned()],
            per_layer_update: false,
            residual: false,
            residual_includes_scale: false,
            limiter_gamma: 1.01,
        }
    }
}

/// Which side of a gradient is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ProjType {
    /// The smaller one.
    Std,
    /// The larger one.
    ReverseStd,
    /// Outputs.
    Left,
    /// Inputs.
    Right,
    /// Both.
    Full,
}

/// Where a matrix is compressed, once its shape is known.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Side {
    Left,
    Right,
    Both,
}

/// The transform.
pub struct Galore {
    settings: GaloreSettings,
    table: StateTable,
}

impl Part for Galore {
    type Settings = GaloreSettings;

    fn new(s: GaloreSettings) -> Result<Self> {
        BadSetting::unless(s.rank >= 1, "rank", s.rank, "at least 1")?;
        BadSetting::unless(s.update_proj_gap >= 1, "update_proj_gap", s.update_proj_gap, "at least 1")?;
        BadSetting::unless(s.scale.is_finite() && s.scale > 0.0, "scale", s.scale, "a number above 0")?;
        let gamma = s.limiter_gamma;
        BadSetting::unless(gamma.is_finite() && gamma > 1.0, "limiter_gamma", gamma, "a number above 1")?;
        if s.residual && s.proj_type == ProjType::Full {
            let why = "cannot go with `proj_type = \"full\"`, which leaves no side to rescale along";
            return Err(BadSetting::new("residual", why).into());
        }
        if s.residual_includes_scale && !s.residual {
            return Err(BadSetting::new("residual_includes_scale", "needs `residual = true`").into());
        }
        Ok(Galore { settings: s, table: StateTable::new(&[LEFT, RIGHT, LIMITER]) })
    }
}

const LEFT: &str = "projector_left";
const RIGHT: &str = "projector_right";
const LIMITER: &str = "limiter";

/// Outputs and inputs of a target's gradient.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub m: usize,
    pub n: usize,
    pub r: usize,
    pub side: Side,
}

impl Shape {
    fn projected(self) -> [usize; 2] {
        match self.side {
            Side::Right => [self.m, self.r],
            Side::Left => [self.r, self.n],
            Side::Both => [self.r, self.r],
        }
    }

    fn specs(self, residual: bool) -> Vec<StateSpec> {
        let mut specs = Vec::new();
        if self.side != Side::Right {
            specs.push(StateSpec::f32(LEFT, &[self.m, self.r]));
        }
        if self.side != Side::Left {
            specs.push(StateSpec::f32(RIGHT, &[self.n, self.r]));
        }
        if residual {
            specs.push(StateSpec { name: LIMITER, dims: vec![1], dtype: DType::F64 });
        }
        specs
    }

    /// R from G.
    fn down(self, state: &ParamState, g: &[f32], out: &mut [f32]) -> Result<()> {
        let Shape { m, n, r, side } = self;
        let (first, last) =
            (state.array(0).view::<f32>()?, state.array(usize::from(side == Side::Both)).view::<f32>()?);
        match side {
            Side::Right => matmul::nn(m, n, r, 1.0, g, &first, false, out),
            Side::Left => matmul::tn(m, r, n, 1.0, &first, g, false, out),
            Side::Both => {
                let mut half = vec![0.0; r * n];
                matmul::tn(m, r, n, 1.0, &first, g, false, &mut half);
                matmul::nn(r, n, r, 1.0, &half, &last, false, out);
            }
        }
        Ok(())
    }

    /// `out += alpha ·` what R stands for in the full space.
    pub fn up(self, state: &ParamState, alpha: f64, x: &[f32], out: &mut [f32]) -> Result<()> {
        let Shape { m, n, r, side } = self;
        let (first, last) =
            (state.array(0).view::<f32>()?, state.array(usize::from(side == Side::Both)).view::<f32>()?);
        let alpha = alpha as f32;
        match side {
            Side::Right => matmul::nt(m, n, r, alpha, x, &first, true, out),
            Side::Left => matmul::nn(m, r, n, alpha, &first, x, true, out),
            Side::Both => {
                let mut half = vec![0.0; r * n];
                matmul::nt(r, n, r, 1.0, x, &last, false, &mut half);
                matmul::nn(m, r, n, alpha, &first, &half, true, out);
            }
        }
        Ok(())
    }

    /// Takes new projectors from the leading singular vectors of G.
    fn refresh(self, state: &ParamState, g: &[f32]) -> Result<()> {
        let found = ramekin_linalg::svd(self.m, self.n, g)
            .with_context(|| format!("the gradient of `{}` has no projector", state.param()))?;
        for (name, array) in state.arrays() {
            let new = match *name {
                LEFT => found.left(0, self.r),
                RIGHT => found.right(0, self.r),
                _ => continue,
            };
            array.update(|p: &mut [f32]| p.copy_from_slice(&new))?;
        }
        Ok(())
    }
}

impl Galore {
    /// Whether a target has such a name.
    fn names(&self, name: &str) -> bool {
        self.settings.target_modules.iter().any(|t| name.contains(t.as_str()))
    }

    /// How a tensor of this name and shape is projected, if it is a target.
    fn shape(&self, name: &str, dims: &[usize]) -> Option<Shape> {
        let s = &self.settings;
        let [m, rest @ ..] = dims else { return None };
        if rest.is_empty() || !self.names(name) {
            return None;
        }
        let (m, n) = (*m, rest.iter().product());
        let side = match s.proj_type {
            ProjType::Std if m >= n => Side::Right,
            ProjType::ReverseStd if m < n => Side::Right,
            ProjType::Right => Side::Right,
            ProjType::Full => Side::Both,
            ProjType::Std | ProjType::ReverseStd | ProjType::Left => Side::Left,
        };
        Some(Shape { m, n, r: s.rank, side })
    }
}

impl GradientTransform for Galore {
    fn check(&self, params: &[Arc<Param>]) -> Result<()> {
        let mut targets = 0;
        for param in params {
            let Some(Shape { m, n, r, .. }) = self.shape(param.name(), param.value().dims()) else {
                continue;
            };
            let name = param.name();
            if r > m.min(n) {
                let why = format!("is {r}; `{name}` is {m} × {n} and allows at most {}", m.min(n));
                return Err(BadSetting::new("rank", why).into());
            }
            if param.mask().is_some() {
                let why = format!(
                    "matches `{name}`, of which a selection trains only some entries; galore projects whole matrices"
                );
                return Err(BadSetting::new("target_modules", why).into());
            }
            targets += 1;
        }
        if targets == 0 {
            let near = params.iter().max_by_key(|p| (self.names(p.name()), p.value().dims().len()));
            let some = near.map_or(String::new(), |p| format!("; there is `{}`", p.name()));
            let why = format!("matches no matrix that trains{some}");
            return Err(BadSetting::new("target_modules", why).into());
        }
        Ok(())
    }

    fn project(&mut self, param: &Arc<Param>, grad: &Array) -> Result<Option<Array>> {
        let Some(shape) = self.shape(param.name(), grad.dims()) else { return Ok(None) };
        let shape_only = grad.is_shape_only();
        let state = self.table.advance(param, &shape.specs(self.settings.residual), shape_only)?;
        let due = (state.steps() - 1).is_multiple_of(self.settings.update_proj_gap);
        if due || shape_only {
            // A plan is for the step that holds most: one with a refresh.
            let _held = Lease::new(Category::Workspace, ramekin_linalg::svd_workspace(shape.m, shape.n));
            if !shape_only {
                shape.refresh(state, &grad.view::<f32>()?)?;
            }
        }
        Array::build(&shape.projected(), shape_only, Category::Workspace, |out| {
            shape.down(state, &grad.view::<f32>()?, out)
        })
        .map(Some)
    }

    fn back(
        &mut self,
        param: &Arc<Param>,
        grad: &Array,
        projected: &Array,
        direction: Array,
    ) -> Result<Array> {
        let s = &self.settings;
        let shape = self.shape(param.name(), grad.dims()).context("nothing was projected")?;
        let state = self.table.get(param.id()).context("nothing was projected")?;
        Array::build(grad.dims(), grad.is_shape_only(), Category::Workspace, |out| {
            let n = direction.view::<f32>()?;
            if s.residual {
                let limiter = state.arrays().last().context("no limiter")?.1.clone();
                let inside = if s.residual_includes_scale { s.scale } else { 1.0 };
                let residual = Residual { shape, inside, gamma: s.limiter_gamma };
                residual.add(state, &limiter, &grad.view::<f32>()?, &projected.view::<f32>()?, &n, out)?;
            }
            shape.up(state, s.scale, &n, out)
        })
    }

    fn updates_in_backward(&self) -> bool {
        self.settings.per_layer_update
    }

    fn state(&self) -> Result<Vec<StateTensor>> {
        self.table.tensors()
    }

    fn restore(&mut self, params: &[Arc<Param>], get: &mut dyn FnMut(&str) -> Option<Array>) -> Result<()> {
        self.table.restore(params, get)
    }
}
