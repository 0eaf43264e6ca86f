//! A random direction over all trainable parameters, known by its seed and never stored.

use std::sync::Arc;

use anyhow::Result;
use half::slice::HalfFloatSliceExt as _;
use ramekin_core::{Array, Category, DType, Param, Rng};
use ramekin_kernels::perturb::{self, Draw};
use ramekin_kernels::philox::Stream;
use ramekin_tape::dispatch;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How a direction's entries are distributed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Dist {
    /// Independent N(0, 1).
    #[default]
    Gaussian,
    /// Independent −1 or +1.
    Rademacher,
    /// Uniform on the sphere of radius √d over all d trainable numbers.
    Sphere,
}

/// z(seed): entry i of a parameter is a function of (run seed, seed, the parameter's name, i).
#[derive(Clone, Copy)]
pub struct Direction {
    rng: Rng,
    seed: u64,
    draw: Draw,
    length: f64,
}

impl Direction {
    /// The direction of this seed.
    ///
    /// # Errors
    /// If a parameter holds another type than f32 or f64.
    pub fn new(rng: Rng, seed: u64, dist: Dist, params: &[Arc<Param>]) -> Result<Self> {
        let draw = if dist == Dist::Rademacher { Draw::Sign } else { Draw::Normal };
        let plain = Direction { rng, seed, draw, length: 1.0 };
        if dist != Dist::Sphere {
            return Ok(plain);
        }
        let (mut squares, mut d) = (0.0, 0);
        for param in params {
            let z = zeros(param)?;
            plain.add(param, &z, 1.0)?;
            squares += sum_of_squares(&z)?;
            d += param.trainable_len();
        }
        Ok(Direction { length: (d as f64 / f64::max(squares, f64::MIN_POSITIVE)).sqrt(), ..plain })
    }

    fn stream(&self, param: &Param) -> Stream {
        self.rng.named(&format!("zo/{}", self.seed), param.name())
    }

    /// `x ← x + s·z` in place, on the entries of `param` that train.
    pub fn add(&self, param: &Param, x: &Array, s: f64) -> Result<()> {
        if x.is_shape_only() {
            return Ok(());
        }
        let (stream, s) = (self.stream(param), s * self.length);
        dispatch!(x, T => match param.mask() {
            None => x.update(|x: &mut [T]| perturb::add(x, 0, &stream, self.draw, s)),
            Some(mask) => {
                let part = mask.gather::<T>(x, Category::Workspace)?;
                part.update(|part: &mut [T]| perturb::add_at(part, mask.places(), &stream, self.draw, s))?;
                mask.scatter::<T>(&part, x)
            }
        })
    }

    /// For entries of a parameter all of which trains, from a place on: moves them by `s·z` and gives `c·z`.
    pub fn move_and_give(
        &self,
        param: &Param,
        s: f64,
        c: f64,
    ) -> impl Fn(usize, &mut [f32], &mut [f32]) + Sync {
        let (stream, draw, factors) = (self.stream(param), self.draw, (s * self.length, c * self.length));
        move |first, x, given| perturb::add_and_give(x, given, first as u64, &stream, draw, factors)
    }

    /// The same entries of `x + s·z` alone.
    pub fn add_there(&self, param: &Param, s: f64) -> impl Fn(usize, &mut [f32]) + Sync + use<> {
        let (stream, draw, s) = (self.stream(param), self.draw, s * self.length);
        move |first, x| perturb::add(x, first as u64, &stream, draw, s)
    }

    /// How many trainable entries of `param` a step of `s·z` leaves as they are.
    pub fn unmoved(&self, param: &Param, s: f64) -> Result<usize> {
        let (value, stream, s) = (param.value(), self.stream(param), s * self.length);
        if value.dtype() == DType::BF16 {
            let bits = value.view::<half::bf16>()?;
            return Ok(perturb::unmoved_bf16(bits.reinterpret_cast(), &stream, self.draw, s));
        }
        dispatch!(&value, T => Ok(match param.mask() {
            None => perturb::unmoved(&value.view::<T>()?, &stream, self.draw, s),
            Some(mask) => {
                let part = mask.gather::<T>(&value, Category::Workspace)?;
                perturb::unmoved_at(&part.view::<T>()?, mask.places(), &stream, self.draw, s)
            }
        }))
    }

    /// A copy of `x` moved by `s·z`, of its own type.
    pub fn moved(&self, param: &Param, x: &Array, s: f64) -> Result<Array> {
        if x.dtype() == DType::BF16 {
            let (stream, s) = (self.stream(param), s * self.length);
            return Array::written(
                x.dims(),
                x.is_shape_only(),
                Category::Workspace,
                |to: &mut [half::bf16]| {
                    let from = x.view::<half::bf16>()?;
                    let (from, to) = (from.reinterpret_cast(), to.reinterpret_cast_mut());
                    perturb::moved_bf16(from, to, 0, &stream, self.draw, s);
                    Ok(())
                },
            );
        }
        let copy = x.copied(Category::Workspace)?;
        self.add(param, &copy, s)?;
        Ok(copy)
    }
}

fn sum_of_squares(x: &Array) -> Result<f64> {
    if x.is_shape_only() {
        return Ok(1.0);
    }
    dispatch!(x, T => Ok(ramekin_kernels::elementwise::sum_of_squares::<T>(&x.view::<T>()?)))
}

/// Zeros like a parameter, the room of one z; f32 for a parameter in bf16.
pub(crate) fn zeros(param: &Param) -> Result<Array> {
    let value = param.value();
    let dtype = if value.dtype() == DType::BF16 { DType::F32 } else { value.dtype() };
    if value.is_shape_only() {
        return Array::shape_only(value.dims(), dtype, Category::Workspace);
    }
    Array::zeros(value.dims(), dtype, Category::Workspace)
}
