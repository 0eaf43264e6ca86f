//! LoRA steps beside PyTorch + PEFT's: `yardstick`, `length` and `width`.
//!
//! The yardstick is a llama of 58 million random parameters (vocabulary 32000, width 512, 8 layers), LoRA of rank 16
//! on every linear, 4×512 tokens a step. A round is a process of its own on either side; its speed is that of its
//! fastest step but the first, its memory the peak resident set of the whole process.

use std::path::Path;

use anyhow::Result;

use crate::figure::Figures;
use crate::rounds::{Rounds, Side, Spread, alternate};
use crate::shape::{Shape, YARDSTICK, quantizer};
use crate::whole;

/// How a step is run.
#[derive(Clone, Copy)]
struct Way {
    dtype: &'static str,
    checkpoint: bool,
    /// What the base is packed in, which the peer has nothing for.
    packed: &'static str,
}

const fn way(dtype: &'static str, checkpoint: bool, packed: &'static str) -> Way {
    Way { dtype, checkpoint, packed }
}

/// Updates of a run; the first warms up.
const STEPS: u64 = 5;

/// What all cases of a bench share.
struct Turns<'a> {
    bench: &'static str,
    steps: u64,
    rounds: usize,
    torch: Option<&'a Path>,
}

const QUANTITIES: [(&str, &str); 3] = [("", "tokens/s"), (", resident", "MB"), (", on the meter", "MB")];

/// The yardstick's step.
pub fn train(figures: &mut Figures, rounds: usize, torch: Option<&Path>) -> Result<()> {
    let ways = [
        way("f32", false, ""),
        way("f32", true, ""),
        way("bf16", false, ""),
        way("bf16", true, ""),
        way("f32", true, "nf4"),
        way("bf16", false, "nf4"),
        way("bf16", true, "nf4"),
    ];
    let (mut f32_peer, mut bf16) = (None, None);
    let turns = Turns { bench: "yardstick", steps: STEPS, rounds, torch };
    for way in ways {
        let found = measure(figures, &turns, "LoRA step", &YARDSTICK, way)?;
        match (way.dtype, way.checkpoint, way.packed) {
            ("f32", false, "") => f32_peer = found.peer.map(|p| ("PyTorch f32", p[1].clone())),
            ("bf16", false, "") => bf16 = Some(("our bf16", found.ours[0].clone())),
            (dtype, checkpoint, "nf4") => {
                let name = format!("QLoRA in {dtype}{}", if checkpoint { ", checkpoint" } else { "" });
                if dtype == "bf16" {
                    figures.beside("yardstick", &name, "tokens/s", found.ours[0].clone(), bf16.clone());
                }
                if f32_peer.is_some() {
                    let case = format!("{name}, resident");
                    figures.beside("yardstick", case, "MB", found.ours[1].clone(), f32_peer.clone());
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// The same model on longer sequences: 1×512 to 1×8192 tokens, or to 1×2048 if it shall be `short`.
pub fn length(figures: &mut Figures, rounds: usize, short: bool, torch: Option<&Path>) -> Result<()> {
    let shapes = [512, 2048, 8192].map(|length| Shape { batch: 1, length, ..YARDSTICK });
    let shapes = if short { &shapes[..2] } else { &shapes[..] };
    let name = |s: &Shape| format!("{}×{} tokens", s.batch, s.length);
    grow(figures, &Turns { bench: "length", steps: 3, rounds, torch }, shapes, &name)
}

/// Two layers of the yardstick's width and of four times it.
pub fn width(figures: &mut Figures, rounds: usize, torch: Option<&Path>) -> Result<()> {
    let shapes = [1, 4].map(|n| Shape {
        width: 512 * n,
        intermediate: 1408 * n,
        heads: 8 * n,
        kv_heads: 8 * n,
        layers: 2,
        ..YARDSTICK
    });
    let name = |s: &Shape| format!("width {}, {} layers", s.width, s.layers);
    grow(figures, &Turns { bench: "width", steps: 3, rounds, torch }, &shapes, &name)
}

/// Steps of growing sizes in f32 and bf16, and by how much time and memory grow from one to the next.
fn grow(
    figures: &mut Figures,
    turns: &Turns<'_>,
    shapes: &[Shape],
    name: &dyn Fn(&Shape) -> String,
) -> Result<()> {
    for dtype in ["f32", "bf16"] {
        let mut before: Option<(&Shape, Rounds)> = None;
        for shape in shapes {
            let found = measure(figures, turns, &name(shape), shape, way(dtype, false, ""))?;
            if let Some((smaller, before)) = before {
                let case = format!("{} over {} in {dtype}", name(shape), name(smaller));
                growth(figures, turns.bench, &case, (&before, smaller), (&found, shape));
            }
            before = Some((shape, found));
        }
    }
    Ok(())
}

/// How many times the seconds and bytes of the smaller size the larger one takes, by medians.
fn growth(
    figures: &mut Figures,
    bench: &'static str,
    case: &str,
    (small, smaller): (&Rounds, &Shape),
    (large, larger): (&Rounds, &Shape),
) {
    let more = larger.tokens() / smaller.tokens();
    for (i, what) in ["seconds", "resident"].into_iter().enumerate() {
        let times = |small: &[Spread], large: &[Spread]| {
            let (small, large) = (small.get(i)?.median, large.get(i)?.median);
            // The first quantity is a speed.
            Some(Spread::of(&[if i == 0 { more * small / large } else { large / small }]))
        };
        let Some(ours) = times(&small.ours, &large.ours) else { continue };
        let peer = small.peer.as_ref().zip(large.peer.as_ref()).and_then(|(s, l)| times(s, l));
        let peer = peer.map(|p| ("PyTorch", p));
        figures.beside(bench, format!("{case}: {what}"), "times", ours, peer);
    }
}

/// Measures a way to step and notes it.
fn measure(figures: &mut Figures, turns: &Turns<'_>, name: &str, shape: &Shape, way: Way) -> Result<Rounds> {
    let Turns { bench, steps, rounds, torch } = *turns;
    let mut ours = || ours(shape, way, steps);
    let mut peer = torch.filter(|_| way.packed.is_empty()).map(|python| {
        move || {
            let checkpoint = u8::from(way.checkpoint).to_string();
            let threads = whole::threads().to_string();
            let arguments = [shape.json()?, way.dtype.to_owned(), steps.to_string(), checkpoint, threads];
            let found = whole::peer(python, "yardstick.py", &arguments)?;
            let found = whole::figures(&found, &["tokens_per_s", "peak_rss"])?;
            Ok(vec![found[0], found[1] / 1e6])
        }
    });
    let found = alternate(rounds, &mut ours, peer.as_mut().map(|p| p as &mut Side<'_>))?;
    let kept = if way.checkpoint { ", checkpoint" } else { "" };
    let on = if way.packed.is_empty() { String::new() } else { format!(" on {}", way.packed) };
    let case = format!("{name} in {}{on}{kept}", way.dtype);
    found.note(figures, bench, &case, "PyTorch", &QUANTITIES);
    Ok(found)
}

/// Tokens a second, resident and metered MB of one run.
fn ours(shape: &Shape, way: Way, steps: u64) -> Result<Vec<f64>> {
    let folder = tempfile::tempdir()?;
    shape.write_ids(folder.path())?;
    let packed = if way.packed.is_empty() { String::new() } else { format!("kind = \"{}\"", way.packed) };
    let recipe = format!(
        r#"{}
[[stage]]
kind = "train"
{}
adapter = [{{ kind = "lora", r = 16, lora_alpha = 32, target_modules = "all-linear" }}]
activation = {{ kind = "{}" }}
optimizer = {{ kind = "adamw", lr = 1e-3 }}
data = {{ kind = "tokens", path = "ids.safetensors" }}
steps = {steps}
"#,
        shape.model(way.dtype),
        quantizer(&packed),
        if way.checkpoint { "checkpoint" } else { "keep" },
    );
    let run = whole::cook(folder.path(), &recipe)?;
    let (resident, metered) = (run.figure("0-train", "peak_rss")?, run.figure("0-train", "measured_peak")?);
    Ok(vec![shape.tokens() / run.least_step(0)?, resident / 1e6, metered / 1e6])
}
