//! Gradients against central differences in f64.

use std::sync::Arc;

use ramekin_core::{Array, Category, Param, Rng};
use ramekin_tape::{GradStore, Tape, Value};

/// Standard normal numbers, by name.
pub fn normal(name: &str, dims: &[usize]) -> Array {
    let mut x = vec![0f64; dims.iter().product()];
    Rng::new(3).named("tests", name).fill_normal(0, 1.0, &mut x);
    Array::from_vec(x, dims, Category::Workspace).expect("an array")
}

/// Fails unless the gradients of Σ y ⊙ c, c random, equal central differences for each operand, and a
/// shape-only run gives gradients of the same shapes.
#[track_caller]
pub fn check(dims: &[&[usize]], f: impl Fn(&Tape, &[Value]) -> anyhow::Result<Value>) {
    let leaf = |i: usize, value: Array| {
        let p = Param::new(format!("p{i}"), value);
        p.set_trainable(true);
        p
    };
    let params: Vec<Arc<Param>> =
        dims.iter().enumerate().map(|(i, d)| leaf(i, normal(&format!("p{i}"), d))).collect();
    let run = |tape: &Tape, params: &[Arc<Param>]| {
        let values: Vec<Value> = params.iter().map(|p| tape.param(p).expect("a leaf")).collect();
        f(tape, &values).unwrap_or_else(|e| panic!("{e:#}"))
    };
    let grads = |params: &[Arc<Param>]| {
        let (tape, mut store) = (Tape::new(), GradStore::new());
        let y = run(&tape, params);
        let seed = match y.array().is_shape_only() {
            true => Array::shape_only(y.dims(), y.array().dtype(), Category::Workspace).expect("a shape"),
            false => normal("c", y.dims()),
        };
        tape.backward(&y, seed, &[], &mut store).expect("gradients");
        store.take()
    };
    let total = || -> f64 {
        let y = run(&Tape::off(), &params);
        let c = normal("c", y.dims());
        let (y, c) = (y.array().view::<f64>().expect("f64"), c.view::<f64>().expect("f64"));
        y.iter().zip(c.iter()).map(|(y, c)| y * c).sum()
    };
    let found = grads(&params);
    assert_eq!(found.len(), params.len(), "a gradient for each operand");
    for (p, grad) in found {
        let grad = grad.view::<f64>().expect("f64").to_vec();
        let nudge = |i: usize, by: f64| p.value().update(|x: &mut [f64]| x[i] += by).expect("f64");
        let (mut off, mut norm) = (0.0, 0.0);
        for (i, g) in grad.iter().enumerate() {
            nudge(i, 1e-5);
            let up = total();
            nudge(i, -2e-5);
            let down = total();
            nudge(i, 1e-5);
            off += ((up - down) / 2e-5 - g).powi(2);
            norm += g * g;
        }
        assert!(norm > 1e-6, "{}: nothing flows", p.name());
        assert!((off / norm).sqrt() < 1e-7, "{}: off by {:.1e}", p.name(), (off / norm).sqrt());
    }
    let shapes: Vec<Arc<Param>> = dims
        .iter()
        .enumerate()
        .map(|(i, d)| {
            leaf(i, Array::shape_only(d, ramekin_core::DType::F64, Category::Workspace).expect("a shape"))
        })
        .collect();
    for (p, grad) in grads(&shapes) {
        assert!(grad.is_shape_only() && grad.dims() == p.value().dims(), "{}: shapes of a plan", p.name());
    }
}
