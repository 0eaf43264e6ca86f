//! φ = θ₂ − θ₀ as places and values, and what is done with it.

use std::collections::HashSet;

use anyhow::{Result, ensure};
use ramekin_core::{Array, UserError};
use ramekin_slots::{Differences, LinearBase, Sites};

/// Differences of at most this size are dropped.
pub const CUT: f32 = 1e-7;

/// The entries of `now` that are further than `CUT` from `base`.
///
/// # Errors
/// If the shapes differ.
pub fn differences(name: &str, base: &Array, now: &Array) -> Result<Differences> {
    ensure!(base.dims() == now.dims(), "`{name}` is {:?} and was {:?}", now.dims(), base.dims());
    let (old, new) = (base.view::<f32>()?, now.view::<f32>()?);
    let entries = old
        .iter()
        .zip(&*new)
        .enumerate()
        .map(|(i, (a, b))| (i as u32, b - a))
        .filter(|(_, d)| d.abs() > CUT)
        .collect();
    Ok(Differences { name: name.to_owned(), dims: now.dims().to_vec(), entries })
}

/// θ ← θ + factor · φ; −1 reverts. Vectors of one base may be applied in any order.
///
/// # Errors
/// [`UserError`] if a tensor is missing, packed or of another shape; then nothing is changed.
pub fn apply(sites: &Sites, vector: &[Differences], factor: f32) -> Result<()> {
    let packed: HashSet<String> = sites
        .linears()
        .iter()
        .filter(|l| matches!(l.base(), LinearBase::Packed(_)))
        .map(|l| format!("{}.weight", l.path))
        .collect();
    for d in vector {
        let wrong =
            |why: String| Err(UserError::new(format!("the sparse vector does not fit: {why}")).into());
        if packed.contains(&d.name) {
            return wrong(format!("`{}` is held packed here", d.name));
        }
        match sites.param(&d.name) {
            Err(_) => return wrong(format!("there is no tensor `{}` here", d.name)),
            Ok(site) if site.base().value().dims() != d.dims => {
                let here = site.base().value().dims().to_vec();
                return wrong(format!("`{}` is {here:?} here and {:?} there", d.name, d.dims));
            }
            Ok(_) => {}
        }
    }
    for d in vector {
        sites.param(&d.name)?.base().value().update(|x: &mut [f32]| {
            d.entries.iter().for_each(|(at, by)| x[*at as usize] += factor * by);
        })?;
    }
    Ok(())
}
