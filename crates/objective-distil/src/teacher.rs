//! What both objectives do with their teacher.

use anyhow::Result;
use ramekin_core::BadSetting;
use ramekin_slots::{Labelled, ModelRef, ObjectiveContext};
use ramekin_tape::{Tape, Value, ops};

/// The setting, and the name in messages.
pub(crate) const NAME: &str = "teacher";

/// How far the student is from the teacher, and the share of plain cross-entropy.
pub(crate) struct Mix {
    /// Softens both distributions.
    pub temperature: f64,
    /// Between the two.
    pub divergence: ops::Divergence,
    /// Factor of the divergence.
    pub weight: f64,
    /// Factor of the cross-entropy with the labels.
    pub hard: f64,
    /// Labelled rows whose logits exist at once.
    pub chunk: usize,
}

pub(crate) fn check(temperature: (&str, f64), chunk: usize) -> Result<()> {
    let (name, t) = temperature;
    if !(t.is_finite() && t > 0.0) {
        return Err(BadSetting::new(name, format!("is {t}; it must be above 0")).into());
    }
    if chunk == 0 {
        return Err(BadSetting::new("chunk_tokens", "is 0; it must be at least 1").into());
    }
    Ok(())
}

/// The step's share of the loss.
pub(crate) fn loss(cx: &ObjectiveContext<'_>, teacher: Option<&ModelRef>, mix: &Mix) -> Result<Value> {
    // The teacher first: nothing of the student is kept yet.
    let pass = if teacher.is_some() { cx.other(NAME)? } else { cx.base()? };
    let taught = pass.labelled(cx.labels)?.hidden.into_array();
    let teacher = pass.head();
    drop(pass);
    let pass = cx.forward()?;
    let Labelled { hidden, targets, .. } = pass.labelled(cx.labels)?;
    let student = pass.head();
    drop(pass);
    let scale = cx.scale(0);
    cx.tape.chunked(&hidden, mix.chunk, &|tape, part, range| {
        let rows = taught.narrow_rows(range.start, range.len(), ramekin_core::Category::Workspace)?;
        let soft = teacher.logits(&Tape::off(), &Value::constant(rows))?.into_array();
        let logits = student.logits(tape, part)?;
        let hard = if mix.hard > 0.0 {
            // Both losses work in the place of their logits.
            let copy = ops::scale(tape, &logits, 1.0)?;
            let options = ops::CrossEntropy::default();
            Some(ops::cross_entropy(tape, copy, &targets[range], scale * mix.hard, options)?)
        } else {
            None
        };
        let far = ops::divergence(tape, logits, &soft, mix.temperature, mix.divergence, scale * mix.weight)?;
        match hard {
            Some(hard) => ops::add(tape, &hard, &far),
            None => Ok(far),
        }
    })
}
