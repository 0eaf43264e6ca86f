//! Results that products make again in backward are not kept between.

mod gradients;

use std::rc::Rc;
use std::sync::Arc;

use gradients::{check, normal};
use ramekin_core::{Array, Category, Meter, Param, meter};
use ramekin_tape::ops::{self, Activation};
use ramekin_tape::{GradStore, SavedHook, SavedKind, Tape, Value};

/// Norm, two products of it, the gate, a product of that: an MLP.
fn mlp(tape: &Tape, v: &[Value]) -> anyhow::Result<Value> {
    let normed = ops::rms_norm(tape, &v[0], &v[1], 1e-5)?;
    let gate = ops::linear(tape, &normed, &v[2], None)?;
    let up = ops::linear(tape, &normed, &v[3], None)?;
    drop(normed);
    ops::linear(tape, &ops::swiglu(tape, &gate, &up)?, &v[4], None)
}

const DIMS: [&[usize]; 5] = [&[6, 4], &[4], &[5, 4], &[5, 4], &[4, 5]];

fn leaves(tape: &Tape) -> Vec<Value> {
    let leaf = |(i, dims): (usize, &&[usize])| {
        let param: Arc<Param> = Param::new(format!("p{i}"), normal(&format!("p{i}"), dims));
        param.set_trainable(true);
        tape.param(&param).expect("a leaf")
    };
    DIMS.iter().enumerate().map(leaf).collect()
}

#[test]
fn gradients_are_those_of_the_function() {
    check(&DIMS, mlp);
    check(&[&[4, 3], &[2, 3]], |t, v| {
        ops::linear(t, &ops::activation(t, &v[0], Activation::Gelu)?, &v[1], None)
    });
    check(&[&[4, 3], &[3], &[3], &[2, 3]], |t, v| {
        ops::linear(t, &ops::layer_norm(t, &v[0], &v[1], &v[2], 1e-5)?, &v[3], None)
    });
}

#[test]
fn only_what_it_is_made_of_is_kept() {
    let meter = Meter::new();
    let _scope = meter::scope(meter.clone());
    let tape = Tape::new();
    let leaves = leaves(&tape);
    let before = meter.live().total();
    let y = mlp(&tape, &leaves).expect("an output");
    // Gate and up, one number a row, and the output: neither the normed rows nor the gated ones.
    let kept = meter.live().total() - before;
    assert_eq!(kept, 8 * (2 * 6 * 5 + 6 + 6 * 4));
    let mut store = GradStore::new();
    tape.backward(&y, normal("c", y.dims()), &[], &mut store).expect("gradients");
    drop((y, leaves, tape, store.take()));
    assert_eq!(meter.live().total(), 0, "what was made again is gone too");
}

/// Copies what is saved, as one that moves it elsewhere does.
struct Elsewhere;

impl SavedHook for Elsewhere {
    fn pack(&self, array: Array, _: SavedKind) -> anyhow::Result<Box<dyn FnOnce() -> anyhow::Result<Array>>> {
        let copy = array.copied(Category::Workspace)?;
        Ok(Box::new(move || Ok(copy)))
    }
}

#[test]
fn a_hook_gets_operands_as_before() {
    check(&DIMS, |tape, v| tape.with_hook(Rc::new(Elsewhere), || mlp(tape, v)));
}
