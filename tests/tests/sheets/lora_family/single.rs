//! The checks that look at one linear.

use serde_json::json;

use super::lone_linear::{Lone, Teacher, normal};
use super::relative;

// Teacher W + P with P of rank 4: r = 4 reaches < 0.1 % of the initial loss; r = 1, 2, 3 the tail share
// of P's spectrum within 15 %; with A untrained r = 4 stays above 50 %.
#[test]
fn check_6() {
    let task = Teacher::new(0);
    for r in 1..=4 {
        let share = task.loss_share(r, true);
        let tail: f64 = task.spectrum[r..].iter().sum::<f64>() / task.spectrum.iter().sum::<f64>();
        println!("r = {r}: {share:.2e} of the initial loss, tail {tail:.2e}");
        if r == 4 {
            assert!(share < 1e-3, "r = 4 leaves {share:.1e}");
        } else {
            assert!((share / tail - 1.0).abs() <= 0.15, "r = {r} leaves {share:.4}, the tail is {tail:.4}");
        }
    }
    let untrained = task.loss_share(4, false);
    println!("A untrained: {untrained:.2}");
    assert!(untrained > 0.5, "A untrained leaves {untrained:.2}");
}

// Doubling r at fixed alpha halves s for LoRA and divides it by √2 for rsLoRA.
#[test]
fn check_6_scale() {
    let scale = |r: usize, rslora: bool| {
        let settings = json!({ "r": r, "lora_alpha": 12, "use_rslora": rslora });
        let lone = Lone::new("lora", &[0.0; 6], (2, 3), settings);
        for param in lone.params() {
            // A of 1/r and B of 1: BA is all ones.
            let fill = if param.name().contains("lora_A") { 1.0 / r as f32 } else { 1.0 };
            param.value().update(|x: &mut [f32]| x.fill(fill)).expect("f32");
        }
        f64::from(lone.forward(&[1.0, 0.0, 0.0])[0])
    };
    for r in [1, 3, 8] {
        let (lora, rslora) = (scale(r, false) / scale(2 * r, false), scale(r, true) / scale(2 * r, true));
        assert!((lora - 2.0).abs() < 1e-6 && (rslora - 2f64.sqrt()).abs() < 1e-6, "{lora}, {rslora}");
        assert!((scale(r, false) - 12.0 / r as f64).abs() < 1e-6);
        assert!((scale(r, true) - 12.0 / (r as f64).sqrt()).abs() < 1e-6);
    }
}

// The same as check_3_f64 in f32 (step 1e-2, tensors of O(1)) within 1e-3: a linear with L = ½ mean y².
#[test]
fn check_3_f32() {
    let on_input = json!({ "feedforward_modules": ["q_proj"] });
    for (name, part, settings) in [
        ("LoRA", "lora", json!({ "r": 3, "lora_alpha": 3 })),
        ("rsLoRA", "lora", json!({ "r": 4, "lora_alpha": 2, "use_rslora": true, "lora_bias": true })),
        ("DoRA", "dora", json!({ "r": 3, "lora_alpha": 3 })),
        ("VeRA", "vera", json!({ "r": 5 })),
        ("LoHa", "loha", json!({ "r": 2, "alpha": 2 })),
        ("LoKr", "lokr", json!({ "r": 1, "alpha": 1 })),
        ("(IA)³", "ia3", json!({})),
        ("(IA)³ on inputs", "ia3", on_input),
    ] {
        let (o, i, n) = (8, 9, 11);
        let lone = Lone::new(part, &normal("w", o * i, 1.0), (o, i), settings);
        for param in lone.params() {
            let numbers = normal(param.name(), param.value().len(), 1.0);
            param.value().update(|x: &mut [f32]| x.copy_from_slice(&numbers)).expect("f32");
        }
        let x = normal("x", n * i, 1.0);
        let loss = || lone.forward(&x).iter().map(|y| 0.5 * f64::from(*y).powi(2)).sum::<f64>() / n as f64;
        let seed: Vec<f32> = lone.forward(&x).iter().map(|y| y / n as f32).collect();
        let grads = lone.backward(&x, &seed);
        assert_eq!(grads.len(), lone.params().len(), "{name}");
        for (param, grad) in &grads {
            if part == "dora" && !param.name().ends_with("lora_magnitude_vector") {
                continue; // n is frozen for these: check_3_dora
            }
            let nudge = |k: usize, by: f32| param.value().update(|x: &mut [f32]| x[k] += by).expect("f32");
            let differences: Vec<f64> = (0..grad.len())
                .map(|k| {
                    nudge(k, 1e-2);
                    let up = loss();
                    nudge(k, -2e-2);
                    let down = loss();
                    nudge(k, 1e-2);
                    (up - down) / 2e-2
                })
                .collect();
            let grad: Vec<f64> = grad.iter().map(|g| f64::from(*g)).collect();
            let off = relative(&differences, &grad);
            println!("{name}: {} off by {off:.1e}", param.name());
            assert!(off <= 1e-3, "{name}: {} is off by {off:.1e}", param.name());
        }
    }
}

/// ½ Σ y² of y = m ⊙ ((W + s·BA) x) / n, and n where it is not given.
struct Written {
    w: Vec<f64>,
    x: Vec<f64>,
    shape: (usize, usize, usize),
    s: f64,
}

impl Written {
    fn loss(&self, [a, b, m]: [&[f64]; 3], frozen: Option<&[f64]>) -> (f64, Vec<f64>) {
        let (o, i, r) = self.shape;
        let turned: Vec<f64> = (0..o * i)
            .map(|k| self.w[k] + self.s * (0..r).map(|r2| b[k / i * r + r2] * a[r2 * i + k % i]).sum::<f64>())
            .collect();
        let norm = |row: &[f64]| row.iter().map(|w| w * w).sum::<f64>().sqrt();
        let n: Vec<f64> = frozen.map_or_else(|| turned.chunks(i).map(norm).collect(), <[f64]>::to_vec);
        let y = |x: &[f64], o: usize| {
            m[o] / n[o] * turned[o * i..(o + 1) * i].iter().zip(x).map(|(w, x)| w * x).sum::<f64>()
        };
        let loss =
            self.x.chunks(i).flat_map(|x| (0..o).map(|o| 0.5 * y(x, o).powi(2)).collect::<Vec<_>>()).sum();
        (loss, n)
    }
}

// Check 3 for DoRA: n is frozen at its current value. With A, B of std 0.4 against W of std 1 the
// gradients of A and B differ by more than 30 % from the undetached derivative (that of m does not).
#[test]
fn check_3_dora() {
    let (o, i, r, n) = (32, 32, 8, 16);
    let lone = Lone::new("dora", &normal("w", o * i, 1.0), (o, i), json!({ "r": r, "lora_alpha": 8 }));
    for param in lone.params() {
        let std = if param.name().ends_with("lora_magnitude_vector") { 1.0 } else { 0.4 };
        let numbers = normal(param.name(), param.value().len(), std);
        param.value().update(|x: &mut [f32]| x.copy_from_slice(&numbers)).expect("f32");
    }
    lone.widen();
    let wide = |x: Vec<f32>| x.into_iter().map(f64::from).collect::<Vec<_>>();
    let x = wide(normal("x", n * i, 1.0));
    let written = Written { w: wide(normal("w", o * i, 1.0)), x: x.clone(), shape: (o, i, r), s: 1.0 };
    let values: Vec<Vec<f64>> =
        lone.params().iter().map(|p| p.value().view::<f64>().expect("f64").to_vec()).collect();
    let at = |values: &[Vec<f64>], frozen: Option<&[f64]>| {
        written.loss([&values[0], &values[1], &values[2]], frozen)
    };
    let y = lone.forward_f64(&x);
    let (loss, norms) = at(&values, None);
    let found: f64 = y.iter().map(|y| 0.5 * y * y).sum();
    assert!((found / loss - 1.0).abs() < 1e-12, "the loss is {found}, written out {loss}");
    for (k, (param, grad)) in lone.backward_f64(&x, &y).into_iter().enumerate() {
        let slopes = |frozen: Option<&[f64]>| -> Vec<f64> {
            (0..grad.len())
                .map(|j| {
                    let moved = |by: f64| {
                        let mut values = values.clone();
                        values[k][j] += by;
                        at(&values, frozen).0
                    };
                    (moved(1e-5) - moved(-1e-5)) / 2e-5
                })
                .collect()
        };
        assert_eq!(param.id(), lone.params()[k].id(), "in order");
        let off = relative(&slopes(Some(&norms)), &grad);
        let undetached = relative(&slopes(None), &grad);
        println!("{}: off by {off:.1e}, from the undetached derivative by {undetached:.2}", param.name());
        assert!(off <= 1e-6, "{} is off by {off:.1e}", param.name());
        if param.name().ends_with("lora_magnitude_vector") {
            assert!(undetached <= 1e-6, "{undetached}");
        } else {
            assert!(undetached > 0.3, "{}: {undetached}", param.name());
        }
    }
}
