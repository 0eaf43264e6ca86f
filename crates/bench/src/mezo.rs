//! `mezo`: a step of MeZO on every weight against one forward of the same batch, in time and memory.

use std::path::Path;

use anyhow::{Result, ensure};

use crate::figure::Figures;
use crate::rounds::{Side, alternate};
use crate::shape::YARDSTICK;
use crate::whole;

/// Steps, and forwards: the first of each warms up, the next ones settle what memory is kept.
const STEPS: usize = 6;

/// Seconds of a step over those of a forward, and peaks over peaks, on either side.
pub fn run(figures: &mut Figures, rounds: usize, torch: Option<&Path>) -> Result<()> {
    for dtype in ["f32", "bf16"] {
        let mut peer = torch.map(|python| {
            move || {
                let threads = whole::threads().to_string();
                let arguments = [YARDSTICK.json()?, dtype.to_owned(), STEPS.to_string(), threads];
                let found = whole::peer(python, "mezo.py", &arguments)?;
                let f = whole::figures(&found, &["step", "forward", "peak_step", "peak_forward"])?;
                Ok(vec![f[0] / f[1], f[2] / f[3], f[0], f[1], f[2] / 1e6])
            }
        });
        let mut ours = || ours(dtype);
        let found = alternate(rounds, &mut ours, peer.as_mut().map(|p| p as &mut Side<'_>))?;
        let quantities = [
            (": step over forward", "times"),
            (": resident over inference's", "times"),
            (": step", "s"),
            (": forward", "s"),
            (": resident", "MB"),
            (": on the meter over inference's", "times"),
        ];
        found.note(figures, "mezo", &format!("MeZO in {dtype}"), "PyTorch", &quantities);
    }
    Ok(())
}

fn ours(dtype: &str) -> Result<Vec<f64>> {
    let folder = tempfile::tempdir()?;
    YARDSTICK.write_ids(folder.path())?;
    let model = YARDSTICK.model(dtype);
    let data = "data = { kind = \"tokens\", path = \"ids.safetensors\" }";
    let eval = format!("\n[[stage]]\nkind = \"eval\"\n{data}\nmetrics = [\"loss\"]\n");
    let inference = whole::cook(folder.path(), &(model.clone() + &eval.repeat(STEPS)))?;
    let seconds = (1..STEPS).map(|i| inference.figure(&format!("{i}-eval"), "seconds"));
    let forward = seconds.collect::<Result<Vec<_>>>()?.into_iter().fold(f64::INFINITY, f64::min);
    std::fs::remove_dir_all(&inference.out)?;
    // In bf16 the weights stay as they are while a direction is tried, so that they need no f32.
    let (held, mode) = match dtype {
        "bf16" => ("trainable_dtype = \"bf16\"\n", ", perturb_mode = \"scratch\""),
        _ => ("", ""),
    };
    let train = format!(
        "{model}\n[[stage]]\nkind = \"train\"\n{data}\nestimator = {{ kind = \"mezo\", zo_eps = 1e-3{mode} }}\n{held}\
         optimizer = {{ kind = \"sgd\", lr = 1e-6 }}\nmax_grad_norm = 0\nsteps = {STEPS}\n"
    );
    let walk = whole::cook(folder.path(), &train)?;
    let step = walk.least_step(0)?;
    ensure!(forward > 0.0, "a forward took no time");
    let peaks =
        |key| Ok::<_, anyhow::Error>((walk.figure("0-train", key)?, inference.figure("1-eval", key)?));
    let (resident, metered) = (peaks("peak_rss")?, peaks("measured_peak")?);
    Ok(vec![step / forward, resident.0 / resident.1, step, forward, resident.0 / 1e6, metered.0 / metered.1])
}
