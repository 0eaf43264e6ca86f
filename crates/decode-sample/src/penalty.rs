//! The repetition penalty that both decoders share (Keskar et al. 2019, arXiv:1909.05858).

use std::collections::HashSet;

use anyhow::Result;
use ramekin_core::BadSetting;

pub(crate) fn check(penalty: f64) -> Result<()> {
    if !(penalty.is_finite() && penalty > 0.0) {
        let why = format!("is {penalty}; it must be above 0, and 1 is off");
        return Err(BadSetting::new("repetition_penalty", why).into());
    }
    Ok(())
}

/// Divides positive logits of ids already seen by `penalty`, multiplies negative ones.
pub(crate) fn apply(logits: &mut [f32], seen: &[u32], penalty: f64) {
    if penalty == 1.0 {
        return;
    }
    let seen: HashSet<u32> = seen.iter().copied().collect();
    for id in seen {
        if let Some(z) = logits.get_mut(id as usize) {
            *z = if *z > 0.0 { (f64::from(*z) / penalty) as f32 } else { (f64::from(*z) * penalty) as f32 };
        }
    }
}
