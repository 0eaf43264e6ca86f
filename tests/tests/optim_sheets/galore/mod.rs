//! Sheet `galore`: GaLore, and Fira as its `residual`.
//!
//! The singular vectors that the checks compare with are found here, by Jacobi rotations in f64.

mod behaviour;
mod fira;
mod gpt;
mod identities;
mod jacobi;
mod whole_model;

use std::sync::Arc;

use ramekin_core::{Array, Category, Param, Rng};
use ramekin_engine::parts;
use ramekin_engine::update::{self, How};
use ramekin_slots::{GradientTransform, Optimizer, ParamGroup, StepInfo};
use ramekin_tests::lab::part;
use serde_json::{Value as Json, json};

/// A target's name.
const NAME: &str = "model.layers.0.mlp.up_proj.weight";

/// One weight under an optimizer, with or without GaLore before it.
struct Bench {
    param: Arc<Param>,
    optimizer: Box<dyn Optimizer>,
    transforms: Vec<Box<dyn GradientTransform>>,
    dims: [usize; 2],
    done: u64,
}

impl Bench {
    fn new(dims: [usize; 2], optimizer: (&str, Json), galore: Option<Json>) -> Self {
        ramekin_catalog::link();
        let start = numbers("start", 0, dims[0] * dims[1]);
        let param = Param::new(NAME, Array::from_vec(start, &dims, Category::Weights).unwrap());
        param.set_trainable(true);
        let transforms = galore.map(|s| parts::gradient(&part("galore", s)).unwrap());
        Bench {
            param,
            optimizer: parts::optimizer(&part(optimizer.0, optimizer.1)).unwrap(),
            transforms: transforms.into_iter().collect(),
            dims,
            done: 0,
        }
    }

    /// One update at this rate.
    fn step(&mut self, grad: Vec<f32>, lr: f64) {
        let grad = Array::from_vec(grad, &self.dims, Category::Gradients).unwrap();
        self.done += 1;
        let info = StepInfo { step: self.done, lr };
        let (optimizer, transforms) = (&mut *self.optimizer, &mut self.transforms[..]);
        let how = How { info, group: ParamGroup::default(), rng: Rng::new(0) };
        update::apply(optimizer, transforms, &self.param, grad, how).unwrap();
    }

    fn weight(&self) -> Vec<f32> {
        self.param.value().to_f32().unwrap()
    }

    /// A tensor of GaLore's state.
    fn state(&self, name: &str) -> Vec<f32> {
        let wanted = format!("{name}.{NAME}");
        let tensors = self.transforms[0].state().unwrap();
        let found = tensors.into_iter().find(|t| t.name == wanted);
        found.unwrap_or_else(|| panic!("no `{wanted}`")).array.to_f32().unwrap()
    }
}

/// Normal numbers by name and number.
fn numbers(name: &str, id: u64, len: usize) -> Vec<f32> {
    let stream = Rng::new(23).stream(name, id);
    (0..len as u64).map(|i| stream.normal_at(i)).collect()
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|x| f64::from(*x)).collect()
}

/// `a [m × k] · b [k × n]` in f64.
fn product(a: &[f64], b: &[f64], (m, k, n): (usize, usize, usize)) -> Vec<f64> {
    let entry = |i: usize, j: usize| (0..k).map(|l| a[i * k + l] * b[l * n + j]).sum();
    (0..m * n).map(|e| entry(e / n, e % n)).collect()
}

fn transposed(a: &[f64], (m, n): (usize, usize)) -> Vec<f64> {
    (0..m * n).map(|e| a[(e % m) * n + e / m]).collect()
}

fn norm(x: &[f64]) -> f64 {
    x.iter().map(|x| x * x).sum::<f64>().sqrt()
}

fn difference(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a - b).collect()
}

/// Settings with every part of the update inside the subspace left alone.
fn galore(rank: usize, gap: u64, scale: f64) -> Json {
    json!({ "rank": rank, "update_proj_gap": gap, "scale": scale })
}
