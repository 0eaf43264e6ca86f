//! The *must hold* checks of the sheets of adapters that sit elsewhere than beside a linear, or in series
//! with one. A module is a sheet, a test a check; each module says what it leaves out.

mod llm_adapters;
mod ssf;
mod toy_vit;
mod unipt;

use ramekin_core::{Array, Category, Rng};
use ramekin_engine::assembly::Assembly;
use ramekin_tape::Value;

/// `n` draws of N(0, std²), by name.
fn normal(name: &str, n: usize, std: f64) -> Vec<f32> {
    let mut x = vec![0.0; n];
    Rng::new(17).named("tests/normal", name).fill_normal(0, std, &mut x);
    x
}

/// Numbers as an array.
fn array(x: Vec<f32>, dims: &[usize]) -> Array {
    Array::from_vec(x, dims, Category::Workspace).expect("as many numbers as the shape has")
}

/// Numbers as a constant.
fn value(x: Vec<f32>, dims: &[usize]) -> Value {
    Value::constant(array(x, dims))
}

/// The result, or why there is none.
#[track_caller]
fn ok<T>(result: anyhow::Result<T>) -> T {
    result.unwrap_or_else(|e| panic!("{e:#}"))
}

/// Moves every trainable number away from where it starts.
fn stir(assembly: &Assembly, by: f64) {
    for param in assembly.trainable() {
        let noise = normal(param.name(), param.value().len(), by);
        let add = |x: &mut [f32]| x.iter_mut().zip(noise).for_each(|(x, n)| *x += n);
        param.value().update(add).expect("f32");
    }
}
