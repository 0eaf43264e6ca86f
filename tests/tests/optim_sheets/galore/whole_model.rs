//! Checks 5 and 6: a whole small model, and what is refused.

use ramekin_core::{BadSetting, Meter, meter};
use ramekin_engine::assembly::Assembly;
use ramekin_engine::blueprint::Blueprint;
use ramekin_engine::parts;
use ramekin_engine::step::Trainer;
use ramekin_tests::lab::{self, part};
use serde_json::{Value as Json, json};

fn model() -> Blueprint {
    Blueprint { full_training: true, ..lab::fresh_model(lab::small_llama()) }
}

fn trainer(settings: Json) -> Trainer {
    let mut trainer = lab::trainer(1e-2);
    trainer.gradient = vec![parts::gradient(&part("galore", settings)).unwrap()];
    trainer.fused = trainer.gradient[0].updates_in_backward();
    trainer
}

fn settings(rank: usize) -> Json {
    json!({ "rank": rank, "update_proj_gap": 4, "scale": 1.0 })
}

/// Ten steps; the weights' bits, and the most gradient numbers alive at once.
fn ten_steps(per_layer: bool) -> (Vec<(String, Vec<u32>)>, u64) {
    let meter = Meter::new();
    let _scope = meter::scope(meter.clone());
    let assembly = lab::assemble(&model());
    let mut settings = settings(8);
    settings["per_layer_update"] = json!(per_layer);
    let batch = lab::batch(&lab::sequences(&[14, 9], 61, 3));
    lab::train(&assembly, &mut trainer(settings), &batch, 10);
    let bits = |x: Vec<f32>| x.into_iter().map(f32::to_bits).collect();
    let weights = lab::trained(&assembly).into_iter().map(|(n, x)| (n, bits(x))).collect();
    (weights, meter.highest().gradients / 4)
}

/// Updates inside backward: the same bits, and one weight's gradient at a time.
#[test]
fn check_5() {
    let (ordinary, all) = ten_steps(false);
    let (inside, one) = ten_steps(true);
    assert!(ordinary == inside, "the weights differ");
    let sizes: Vec<u64> = ordinary.iter().map(|(_, x)| x.len() as u64).collect();
    println!("{one} gradient numbers at once instead of {all}");
    assert_eq!(one, *sizes.iter().max().unwrap());
    assert_eq!(all, sizes.iter().sum::<u64>());
}

/// r·min + 2·r·max numbers of state a target, to the number; two an entry for everything else.
#[test]
fn check_6() {
    let rank = 5;
    let meter = Meter::new();
    let _scope = meter::scope(meter.clone());
    let assembly = lab::assemble(&model());
    let mut trainer = trainer(settings(rank));
    lab::train(&assembly, &mut trainer, &lab::batch(&lab::sequences(&[14, 9], 61, 3)), 2);
    let is_target = |name: &str| name.contains("attn.") || name.contains("mlp.");
    let (mut targets, mut expected) = (0, 0);
    for param in assembly.trainable() {
        let own = |name: &str| name.ends_with(&format!(".{}", param.name())) && !name.contains("step.");
        let state = trainer.state(&assembly).unwrap();
        let found: usize = state.iter().filter(|t| own(&t.name)).map(|t| t.array.len()).sum();
        let dims = param.value().dims().to_vec();
        let want = match dims[..] {
            [m, n] if is_target(param.name()) => {
                targets += 1;
                rank * m.min(n) + 2 * rank * m.max(n)
            }
            _ => 2 * param.value().len(),
        };
        assert_eq!(found, want, "{} {dims:?}", param.name());
        expected += want as u64;
    }
    assert_eq!(targets, 14);
    assert_eq!(meter.live().optimizer, 4 * expected, "the meter says the same");
}

fn refusal(settings: Json, assembly: &Assembly) -> String {
    let made = parts::gradient(&part("galore", settings));
    let error = match made {
        Ok(transform) => transform.check(&assembly.trainable()).expect_err("refused"),
        Err(e) => e,
    };
    error.chain().find_map(|e| e.downcast_ref::<BadSetting>()).expect("a setting").to_string()
}

#[test]
fn bad_input() {
    let assembly = lab::assemble(&model());
    for (settings, message) in [
        (json!({ "rank": 0 }), "`rank` is 0; it must be at least 1"),
        (
            json!({ "rank": 33 }),
            "`rank` is 33; `model.layers.0.self_attn.q_proj.weight` is 32 × 32 and allows at most 32",
        ),
        (json!({ "update_proj_gap": 0 }), "`update_proj_gap` is 0; it must be at least 1"),
        (json!({ "scale": 0.0 }), "`scale` is 0; it must be a number above 0"),
        (json!({ "limiter_gamma": 1.0 }), "`limiter_gamma` is 1; it must be a number above 1"),
        (
            json!({ "rank": 4, "target_modules": ["atn"] }),
            "`target_modules` matches no matrix that trains; there is `lm_head.weight`",
        ),
        (
            json!({ "residual": true, "proj_type": "full" }),
            "`residual` cannot go with `proj_type = \"full\"`, which leaves no side to rescale along",
        ),
        (json!({ "residual_includes_scale": true }), "`residual_includes_scale` needs `residual = true`"),
    ] {
        assert_eq!(refusal(settings, &assembly), message);
    }
}

/// NaN in a gradient at a refresh is told with the weight's name.
#[test]
fn bad_input_nan() {
    let mut bench = super::Bench::new([4, 3], ("sgd", json!({})), Some(super::galore(2, 4, 1.0)));
    let grad = ramekin_core::Array::from_vec(vec![f32::NAN; 12], &[4, 3], ramekin_core::Category::Gradients);
    let error = bench.transforms[0].project(&bench.param, &grad.unwrap()).unwrap_err();
    assert!(format!("{error:#}").contains(super::NAME), "{error:#}");
    bench.done += 1;
}
