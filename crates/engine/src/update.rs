//! From a finished gradient to a changed parameter.

use std::cell::RefCell;
use std::sync::Arc;

use anyhow::{Result, bail};
use half::slice::HalfFloatSliceExt as _;
use ramekin_core::{Array, BadRecipe, Category, DType, Param, ParamId, Rng};
use ramekin_kernels::{bf16, elementwise, in_pieces, scratch};
use ramekin_recipe::TrainStage;
use ramekin_registry::{Slot, Trait, find};
use ramekin_slots::{GradientTransform, Optimizer, ParamGroup, Selection, StepInfo, Update};
use ramekin_tape::{Entries, GradSink, whole};

use crate::masks::{Masking, put_back};
use crate::parts;

/// How a parameter is updated.
#[derive(Clone, Copy)]
pub struct How {
    /// Where the optimizer stands.
    pub info: StepInfo,
    /// How the parameter differs from the optimizer's settings.
    pub group: ParamGroup,
    /// The run's randomness, of which roundings by chance are drawn.
    pub rng: Rng,
}

/// Updates one parameter and frees its gradient.
///
/// The gradient goes through the transforms in order. Where none of them projects it, the optimizer
/// steps in place. Else it computes a small update, which goes back through the transforms in reverse
/// and is applied with the decay after it; so it does for a parameter in bf16, which is rounded by chance.
pub fn apply(
    optimizer: &mut dyn Optimizer,
    transforms: &mut [Box<dyn GradientTransform>],
    param: &Arc<Param>,
    grad: Array,
    how: How,
) -> Result<()> {
    let mut grad = grad;
    let mut projected_by = Vec::new(); // the transform with the gradient that it was given
    for (i, transform) in transforms.iter_mut().enumerate() {
        if let Some(small) = transform.project(param, &grad)? {
            projected_by.push((i, std::mem::replace(&mut grad, small)));
        }
    }
    let value = param.value();
    if projected_by.is_empty() && value.dtype() != DType::BF16 {
        return optimizer.step(param, &grad, how.info, how.group);
    }
    let Update { mut direction, rate, decay } = optimizer.update(param, &grad, how.info, how.group)?;
    for (i, given) in projected_by.into_iter().rev() {
        direction = transforms[i].back(param, &given, &grad, direction)?;
        grad = given;
    }
    drop(grad);
    if value.is_shape_only() {
        return Ok(());
    }
    let d = direction.view::<f32>()?;
    each_piece(param, how, |first, p| {
        elementwise::add_scaled(p, -rate as f32, &d[first..first + p.len()]);
        if decay != 0.0 {
            elementwise::scale_assign(p, (1.0 - decay) as f32);
        }
    })?;
    Ok(())
}

/// Lets `f` change a parameter's numbers piece by piece as f32; those in bf16 are rounded by chance. Returns what `f`
/// returns, in order.
fn each_piece<R: Send>(
    param: &Param,
    how: How,
    f: impl Fn(usize, &mut [f32]) -> R + Send + Sync,
) -> Result<Vec<R>> {
    let value = param.value();
    if value.dtype() != DType::BF16 {
        return value.update(|p: &mut [f32]| in_pieces(p, f));
    }
    let chance = how.rng.named(&format!("rounding/{}", how.info.step), param.name());
    value.update(|bits: &mut [half::bf16]| {
        in_pieces(bits.reinterpret_cast_mut(), |first, bits: &mut [u16]| {
            scratch::with(bits.len(), |p: &mut [f32]| {
                bf16::widen_all(bits, p);
                let result = f(first, p);
                bf16::round_by_chance(p, first as u64, &chance, bits);
                result
            })
        })
    })
}

/// How a parameter's update differs from the optimizer's settings.
pub fn group(groups: &[(ParamId, ParamGroup)], id: ParamId) -> ParamGroup {
    groups.iter().find(|(other, _)| *other == id).map_or_else(ParamGroup::default, |g| g.1)
}

/// Updates each parameter as soon as backward has completed its gradient, which is then freed.
///
/// A parameter's gradient is complete only when every operation that read the parameter has been walked
/// back, so nothing in the same backward sees the new value.
pub struct InBackward<'a> {
    /// The rule.
    pub optimizer: &'a mut dyn Optimizer,
    /// Transforms of single tensors, in order.
    pub transforms: &'a mut [Box<dyn GradientTransform>],
    /// Groups of parameters that differ from the optimizer's settings.
    pub groups: &'a [(ParamId, ParamGroup)],
    /// Where the update stands.
    pub info: StepInfo,
    /// What trains, whole.
    pub params: &'a [Arc<Param>],
    /// What a gradient on its way counts as: one of forwards alone is a direction in a tensor's room.
    pub category: Category,
    /// The run's randomness.
    pub rng: Rng,
    /// ‖g‖² of the gradients so far.
    pub squares: f64,
}

impl InBackward<'_> {
    fn how(&self, param: &Param) -> How {
        How { info: self.info, group: group(self.groups, param.id()), rng: self.rng }
    }

    fn count(&mut self, param: &Param, squares: f64) -> Result<()> {
        if !squares.is_finite() {
            let (step, name) = (self.info.step, param.name());
            bail!("the gradient of `{name}` at step {step} is not finite: training has diverged");
        }
        self.squares += squares;
        Ok(())
    }
}

impl GradSink for InBackward<'_> {
    fn ready(&mut self, param: &Arc<Param>, grad: Array) -> Result<()> {
        grad.recategorise(self.category);
        if !grad.is_shape_only() {
            let squares = elementwise::sum_of_squares(&grad.view::<f32>()?);
            self.count(param, squares)?;
        }
        let how = self.how(param);
        apply(self.optimizer, self.transforms, param, grad, how)?;
        put_back(self.params, param)
    }

    fn ready_by_entries(&mut self, param: &Arc<Param>, entries: &Entries<'_>) -> Result<()> {
        let how = self.how(param);
        let step = self.optimizer.by_entries(how.info, how.group).filter(|_| self.transforms.is_empty());
        let Some(step) = step else { return self.ready(param, whole(param, entries)?) };
        if param.value().is_shape_only() {
            return Ok(());
        }
        let squares = each_piece(param, how, |first, p| {
            scratch::with(p.len(), |grad: &mut [f32]| {
                entries(first, p, grad);
                step(p, grad);
                elementwise::sum_of_squares(grad)
            })
        })?;
        self.count(param, squares.iter().sum())
    }
}

/// Lets the selection add its own term to each gradient before it is used up.
struct Selecting<'a> {
    selection: &'a RefCell<Option<Box<dyn Selection>>>,
    sink: &'a mut dyn GradSink,
    loss: f64,
}

impl GradSink for Selecting<'_> {
    fn ready(&mut self, param: &Arc<Param>, grad: Array) -> Result<()> {
        if let Some(selection) = self.selection.borrow_mut().as_mut() {
            self.loss += selection.gradient(param, &grad)?;
        }
        self.sink.ready(param, grad)
    }

    fn ready_by_entries(&mut self, param: &Arc<Param>, entries: &Entries<'_>) -> Result<()> {
        if self.selection.borrow().is_none() {
            return self.sink.ready_by_entries(param, entries);
        }
        self.ready(param, whole(param, entries)?)
    }
}

/// Lets `f` hand on gradients that are used up at once; returns what it returns, what a selection added to
/// the loss, and the gradients' norm.
pub fn one_by_one<R>(
    mut sink: InBackward<'_>,
    selection: &RefCell<Option<Box<dyn Selection>>>,
    f: impl FnOnce(&mut dyn GradSink) -> Result<R>,
) -> Result<(R, f64, f64)> {
    let mut selecting = Selecting { selection, sink: &mut sink, loss: 0.0 };
    let result = f(&mut Masking(&mut selecting))?;
    Ok((result, selecting.loss, sink.squares.sqrt()))
}

/// Whether a stage updates inside the backward pass, and who wants it: the place in the recipe.
///
/// # Errors
/// If a gradient part's settings are wrong.
pub fn in_backward(index: usize, s: &TrainStage) -> Result<Option<String>> {
    if s.fused_optimizer {
        return Ok(Some(format!("stage.{index}.fused_optimizer")));
    }
    for part in &s.gradient {
        if parts::gradient(part)?.updates_in_backward() {
            return Ok(Some(format!("{}.per_layer_update", part.path)));
        }
    }
    // An estimator that walks nothing back has its gradients one after the other, too.
    let forwards_alone = !parts::estimator(&s.estimator)?.needs_backward();
    Ok(forwards_alone.then(|| s.estimator.path.clone()))
}

/// Refuses what needs all gradients of a step at once in a stage that updates inside the backward pass.
///
/// # Errors
/// [`BadRecipe`] with both places.
pub fn check_in_backward(index: usize, s: &TrainStage, micro_batches: usize) -> Result<()> {
    let Some(place) = in_backward(index, s)? else { return Ok(()) };
    let estimated = place == s.estimator.path;
    let key = match place.rsplit('.').next() {
        _ if estimated => format!("estimator/{}", s.estimator.kind),
        key => key.unwrap_or_default().to_owned(),
    };
    let refuse = |what: &str, other: String, label: String, help: &str| {
        let frees = match estimated {
            true => "makes no gradient of all weights at once",
            false => "frees each gradient before the next one exists",
        };
        let error = BadRecipe::new(format!("`{key}` cannot go with {what}")).at(&place, frees);
        Err(error.at(other, label).help(help).into())
    };
    let clipping = "clipping by the global norm";
    if s.max_grad_norm > 0.0 {
        let label = format!("`max_grad_norm` is {:?} here and needs all gradients at once", s.max_grad_norm);
        return refuse(clipping, format!("stage.{index}.max_grad_norm"), label, "set `max_grad_norm = 0`");
    }
    for part in &s.gradient {
        if find(Slot::Gradient, &part.kind)?.traits.contains(&Trait::NeedsGlobalGradNorm) {
            let label = format!("`{}` needs all gradients at once", part.kind);
            return refuse(clipping, part.path.clone(), label, "leave one of them out");
        }
    }
    if micro_batches > 1 && !estimated {
        let key = match (s.batch.gradient_accumulation_steps, s.batch.tokens) {
            (Some(_), _) => "batch.gradient_accumulation_steps",
            (None, Some(_)) => "batch.tokens",
            (None, None) => "batch",
        };
        let label = format!("sums gradients over {micro_batches} micro-batches");
        let help = "use one micro-batch a step: a larger `micro_batch_size`, or fewer `tokens`";
        return refuse("gradient accumulation", format!("stage.{index}.{key}"), label, help);
    }
    Ok(())
}
