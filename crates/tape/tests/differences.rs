//! Gradients against central differences in f64, for operations of thin matrices and shapes.

use std::sync::Arc;

use ramekin_core::{Array, Category, Param, Rng};
use ramekin_tape::{GradStore, Tape, Value, ops};

fn normal(name: &str, dims: &[usize]) -> Array {
    let mut x = vec![0f64; dims.iter().product()];
    Rng::new(3).named("tests", name).fill_normal(0, 1.0, &mut x);
    Array::from_vec(x, dims, Category::Workspace).expect("an array")
}

/// The gradients of Σ y ⊙ c, c random, equal central differences for each operand.
#[track_caller]
fn check(dims: &[&[usize]], f: impl Fn(&Tape, &[Value]) -> Value) {
    let params: Vec<Arc<Param>> = dims
        .iter()
        .enumerate()
        .map(|(i, d)| {
            let p = Param::new(format!("p{i}"), normal(&format!("p{i}"), d));
            p.set_trainable(true);
            p
        })
        .collect();
    let run = |tape: &Tape| {
        let values: Vec<Value> = params.iter().map(|p| tape.param(p).expect("a leaf")).collect();
        f(tape, &values)
    };
    let weights = |y: &Value| normal("c", y.dims());
    let total = || -> f64 {
        let y = run(&Tape::off());
        let c = weights(&y);
        let (y, c) = (y.array().view::<f64>().expect("f64"), c.view::<f64>().expect("f64"));
        y.iter().zip(c.iter()).map(|(y, c)| y * c).sum()
    };
    let tape = Tape::new();
    let y = run(&tape);
    let mut store = GradStore::new();
    tape.backward(&y, weights(&y), &[], &mut store).expect("gradients");
    let grads = store.take();
    assert_eq!(grads.len(), params.len(), "a gradient for each operand");
    for (p, grad) in grads {
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
}

fn ok(v: anyhow::Result<Value>) -> Value {
    v.unwrap_or_else(|e| panic!("{e:#}"))
}

#[test]
fn broadcasts() {
    check(&[&[5, 3], &[3]], |t, v| ok(ops::mul_row(t, &v[0], &v[1])));
    check(&[&[2, 2, 3], &[1, 3]], |t, v| ok(ops::mul_row(t, &v[0], &v[1])));
    check(&[&[5, 3], &[5, 1]], |t, v| ok(ops::mul_column(t, &v[0], &v[1])));
    check(&[&[3]], |t, v| ok(ops::mul_row(t, &Value::constant(normal("x", &[4, 3])), &v[0])));
}

#[test]
fn shapes() {
    check(&[&[4, 6]], |t, v| ok(ops::reshape(t, &v[0], &[2, 4, 3])));
    check(&[&[2, 3, 4]], |t, v| ok(ops::swap_last(t, &v[0])));
    let x = Value::constant(
        Array::from_vec(vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0], &[2, 3], Category::Workspace).expect("x"),
    );
    let y = ok(ops::swap_last(&Tape::off(), &x));
    assert_eq!(
        (y.dims(), y.array().to_f32().expect("numbers")),
        (&[3, 2][..], vec![1.0, 4.0, 2.0, 5.0, 3.0, 6.0])
    );
}

#[test]
fn products() {
    check(&[&[4, 2], &[4, 3]], |t, v| ok(ops::row_products(t, &v[0], &v[1])));
    check(&[&[2, 5], &[3, 5]], |t, v| ok(ops::column_products(t, &v[0], &v[1])));
}

/// (a₁b₁) ⊙ (a₂b₂) = (rows of a₁ times rows of a₂)(columns of b₁ times columns of b₂).
#[test]
fn the_products_make_a_hadamard_product() {
    let [a1, a2, b1, b2] = [("a1", [4, 2]), ("a2", [4, 2]), ("b1", [2, 3]), ("b2", [2, 3])]
        .map(|(n, d)| Value::constant(normal(n, &d)));
    let tape = Tape::off();
    let left = ok(ops::row_products(&tape, &a1, &a2));
    let right = ok(ops::column_products(&tape, &b1, &b2));
    let made = ok(ops::linear(&tape, &left, &ok(ops::swap_last(&tape, &right)), None));
    let matmul = |a: &Value, b: &Value| a.array().tensor().matmul(b.array().tensor()).expect("a product");
    let want = (matmul(&a1, &b1) * matmul(&a2, &b2)).expect("a product");
    let off = (want - made.array().tensor()).and_then(|d| d.abs()?.sum_all()?.to_scalar::<f64>());
    assert!(off.expect("numbers") < 1e-12);
}

#[test]
fn norms_of_rows() {
    let (w, b, a) = (normal("w", &[5, 4]), normal("b", &[5, 2]), normal("a", &[2, 4]));
    let norms = ops::row_norms(ops::HeldWeight::Dense(&w), &b, &a, 0.5).expect("norms");
    let update = b.tensor().matmul(a.tensor()).and_then(|m| m * 0.5).expect("a product");
    let whole = (w.tensor() + update).and_then(|m| m.sqr()?.sum(1)?.sqrt()?.to_vec1::<f64>()).expect("norms");
    for (n, want) in norms.view::<f64>().expect("f64").iter().zip(whole) {
        assert!((n - want).abs() < 1e-12, "{n} should be {want}");
    }
}
