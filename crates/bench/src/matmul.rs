//! `matmul`: products in bf16 and f32 beside PyTorch's, and beside the peak of the unit.

use std::path::Path;

use anyhow::Result;
use ramekin_kernels::bf16::{self, Unit};
use ramekin_kernels::matmul;

use crate::figure::Figures;
use crate::kernels::{Bits, best, random};
use crate::limits;
use crate::rounds::{Side, alternate};
use crate::whole::{self, Server};

/// Rows × outputs × inputs.
const SIZES: [(usize, usize, usize); 3] = [(1024, 1024, 1024), (512, 576, 1536), (512, 1536, 576)];

/// Measures them; in each round the best of as many calls as fit in a third of a second.
pub fn run(figures: &mut Figures, rounds: usize, torch: Option<&Path>) -> Result<()> {
    let arguments = [whole::threads().to_string()];
    let mut torch = torch.map(|python| Server::start(python, "matmul.py", &arguments)).transpose()?;
    for (m, n, k) in SIZES {
        let rate = |s: f64| 2.0 * (m * n * k) as f64 / s / 1e9;
        let (x, w) = (random(m * k), random(n * k));
        let mut y = vec![0.0; m * n];
        for dtype in ["bf16", "f32"] {
            if dtype == "bf16" && bf16::unit().is_none() {
                eprintln!("matmul in bf16 is left out: nothing multiplies it here");
                continue;
            }
            let bits = Bits(w.iter().copied().map(bf16::round).collect(), n, k);
            let mut ours = || {
                let s = match dtype {
                    "bf16" => best(|| bf16::forward(&x, m, &bits, None, &mut y)),
                    _ => best(|| matmul::nt(m, n, k, 1.0, &x, &w, false, &mut y)),
                };
                Ok(vec![rate(s)])
            };
            let mut peer = torch.as_mut().map(|server| {
                move || {
                    let found = server.ask(&format!("{m} {n} {k} {dtype}"))?;
                    Ok(vec![rate(whole::figures(&found, &["seconds"])?[0])])
                }
            });
            let found = alternate(rounds, &mut ours, peer.as_mut().map(|p| p as &mut Side<'_>))?;
            let case = format!("{m}×{n}×{k} in {dtype}");
            found.note(figures, "matmul", &case, "PyTorch", &[("", "GFLOP/s")]);
            let units: &[&str] = match (dtype, bf16::unit()) {
                ("f32", _) => &[limits::MULTIPLY_ADDS],
                (_, Some(Unit::Tiles)) => &[limits::DOTS, limits::TILES],
                _ => &[limits::DOTS],
            };
            for unit in units {
                let (Some(peak), Some(ours)) = (figures.median("limits", unit), found.ours.first()) else {
                    continue;
                };
                let share = ours.map(|rate| 100.0 * rate / peak);
                figures.beside("matmul", format!("{case}, of the {unit}"), "%", share, None);
            }
        }
    }
    Ok(())
}
